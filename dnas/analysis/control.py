"""Comparison of the sampler's trials with the control arm, which the same study drew at random.

Early stopping makes the ends of trials no fair comparison: who trained to the end was chosen by its error. So the two
arms are compared at the first epoch at which a trial was stopped or paused, which every trial that got there has.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dnas.analysis.intervals import welch_interval
from dnas.search.state import stop_epochs

# Of a two-sided test at 5% that is to find a difference four times in five: the normal quantiles 0.975 and 0.8.
_QUANTILES = 1.959963984540054 + 0.8416212335729143
EXACT_UP_TO = 20_000  # ways to deal the values to the arms, all of which are then counted


@dataclass(frozen=True)
class ArmComparison:
    """One objective after one epoch, of either arm: lower is better everywhere.

    sampler, control: trial number -> value (errors are fractions, losses nats).
    difference: mean of the sampler's less mean of the control's, and `interval`, Welch's 95% for it.
    beats: the share of pairs in which the sampler's trial is the better one, ties counted as half: the probability that
    it beats one drawn at random (Mann and Whitney's U over the number of pairs); `p` is two-sided.
    best: the expected best value of `draws` trials of the sampler's and of the control's, `draws` being the size of the
    smaller arm. What needs more trials than there are is None.
    """

    objective: str
    epoch: int
    sampler: dict[int, float]
    control: dict[int, float]
    difference: float | None
    interval: tuple[float, float] | None
    beats: float | None
    p: float | None
    draws: int
    best: tuple[float, float] | None

    @property
    def detectable(self) -> float | None:
        """The least probability of beating chance that this number of trials would detect (5%, two-sided) four times
        in five: 1/2 + 2.80/√(12nm/(n + m)) for n and m trials (Noether 1987, "Sample size determination for
        some common nonparametric tests"). 1 or more: too few for anything."""
        return detectable(len(self.sampler), len(self.control))

    @property
    def enough(self) -> bool:
        """True if the trials are enough to distinguish the arms at all."""
        return self.detectable is not None and self.detectable < 1


def detectable(first: int, second: int) -> float | None:
    """`ArmComparison.detectable` for arms of the given sizes; None if one is empty."""
    if not first or not second:
        return None
    return 0.5 + _QUANTILES / math.sqrt(12 * first * second / (first + second))


def decision_epoch(events: Iterable[Mapping], ended: Iterable[int], last: int) -> int:
    """The first epoch at which the log tells that a trial was stopped or paused, since the study's epochs were last
    raised; of `ended`, the epochs of those that are stopped or paused now, the least, if that is less (a log may be
    lost); `last` where there was none."""
    return min({*stop_epochs(events), *ended, last})


def values_at(curves: pd.DataFrame, objective: str, epoch: int) -> dict[int, float]:
    """Trial number -> `objective` after `epoch`, of the trials that got there. curves: as `learning_curves`."""
    rows = curves[curves["epoch"] == epoch].dropna(subset=[objective]) if len(curves) else curves
    return {int(n): float(v) for n, v in zip(rows["number"], rows[objective], strict=True)} if len(rows) else {}


def compare_arms(values: Mapping[int, float], arms: Mapping[int, str], objective: str, epoch: int) -> ArmComparison:
    """The sampler's trials against the control's. values: as `values_at`; arms: trial number -> arm, of which those
    other than `sampler` and `control` are left out."""
    parts = {
        arm: {number: values[number] for number in sorted(values) if arms.get(number) == arm}
        for arm in ("sampler", "control")
    }
    sampler, control = (np.array(list(part.values())) for part in parts.values())
    draws = min(len(sampler), len(control))
    difference = interval = beats = p = best = None
    if draws:
        difference = float(sampler.mean() - control.mean())
        beats = float(np.mean(np.sign(control[None, :] - sampler[:, None]) + 1) / 2)
        p = _mann_whitney_p(sampler, control)
        best = (expected_best(sampler, draws), expected_best(control, draws))
    if draws > 1 and (np.ptp(sampler) > 0 or np.ptp(control) > 0):
        interval = welch_interval(sampler, control)
    return ArmComparison(
        objective, epoch, parts["sampler"], parts["control"], difference, interval, beats, p, draws, best
    )


def _mann_whitney_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided. Few trials: the share of all ways to deal the values to the arms that are as extreme, which errors on
    few images need, for many are equal; many: the normal approximation, corrected for ties."""
    if np.ptp(np.concatenate([first, second])) == 0:
        return 1.0
    few, every = min(len(first), len(second)), len(first) + len(second)
    if math.comb(every, few) > EXACT_UP_TO:
        return float(stats.mannwhitneyu(first, second, alternative="two-sided", method="asymptotic").pvalue)
    ranks = stats.rankdata(np.concatenate([first, second]))  # of equal ones the mean
    dealt = np.array(list(itertools.combinations(range(every), few)))
    away = np.abs(ranks[dealt].sum(axis=1) - few * (every + 1) / 2)
    observed = ranks[: len(first)] if len(first) == few else ranks[len(first) :]
    return float(np.mean(away >= abs(observed.sum() - few * (every + 1) / 2)))  # ranks are whole or half: exact


def expected_best(values: Sequence[float] | np.ndarray, draws: int) -> float:
    """The mean of the least of `draws` of the values, over every way to draw them without putting one back."""
    ordered = np.sort(np.asarray(values, dtype=float))
    count = len(ordered)
    assert 1 <= draws <= count, "no more can be drawn than there are"
    # The i-th least is the least drawn if the other draws come from those above it.
    shares = [math.comb(count - 1 - i, draws - 1) / math.comb(count, draws) for i in range(count)]
    return float(ordered @ np.array(shares))


def dominance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Over all pairs of a row of `first` [n, k] and one of `second` [m, k], values minimised: the share in which the
    first dominates (no worse in any column, better in one), and that in which the second does. The rest are ties."""
    a, b = np.asarray(first, dtype=float)[:, None, :], np.asarray(second, dtype=float)[None, :, :]
    ahead, behind = (a <= b).all(axis=2), (b <= a).all(axis=2)
    return float(np.mean(ahead & ~behind)), float(np.mean(behind & ~ahead))
