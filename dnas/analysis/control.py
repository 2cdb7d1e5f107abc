"""Comparison of the sampler's trials with the control arm, which the same study drew at random.

With early stopping the final errors cannot be compared fairly, because the trials that reach the last epoch were
selected by their errors. The arms are therefore compared at the first epoch at which a trial was stopped or paused.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dnas.analysis.intervals import mean_ranks, welch_interval
from dnas.formatting import p_value
from dnas.strategy.state import stop_epochs

# Sum of the normal quantiles 0.975 and 0.8, for a two-sided test at 5% with a power of 80%.
_QUANTILES = 1.959963984540054 + 0.8416212335729143
EXACT_UP_TO = 20_000  # count all assignments of values to arms up to this number of them


@dataclass(frozen=True)
class ArmComparison:
    """Comparison of both arms in one objective after one epoch. Lower values are better.

    Results that need more trials than there are are None.

    Attributes:
        objective: Name of the objective.
        epoch: Epoch after which the values were measured.
        sampler: Value of each trial of the sampler, by number (errors as fractions, losses in nats).
        control: Value of each trial of the control arm, by number.
        difference: Mean of the sampler minus mean of the control.
        interval: Welch's 95% interval of the difference.
        beats: Probability that a trial of the sampler beats a random one: the share of pairs in which it is better,
            with ties counted as half (Mann and Whitney's U over the number of pairs).
        p: Two-sided p value of Mann and Whitney's test.
        draws: Size of the smaller arm.
        best: Expected best value of `draws` trials of the sampler and of the control.
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
        """Smallest value of `beats` above 1/2 that this number of trials detects with 80% power (5%, two-sided).

        It is 1/2 + 2.80/√(12nm/(n + m)) for n and m trials (Noether 1987, "Sample size determination for some common
        nonparametric tests"). With 1 or more, the trials are too few to detect any difference.
        """
        return detectable(len(self.sampler), len(self.control))

    @property
    def enough(self) -> bool:
        """True if the trials are enough to distinguish the arms at all."""
        return self.detectable is not None and self.detectable < 1

    @property
    def clear(self) -> bool:
        """True if the test distinguishes the arms."""
        return self.enough and self.p is not None and self.p < 0.05

    @property
    def verdict(self) -> str:
        """The conclusion that the test supports, with its numbers. Both arms need a trial."""
        assert self.beats is not None
        assert self.p is not None
        if not self.enough:
            text = "Too few trials to compare the sampler with random search"
        elif not self.clear:
            text = "The sampler was not shown to beat random search"
        else:
            text = f"The sampler {'beats' if self.beats > 0.5 else 'did worse than'} random search"
        return f"{text}: it wins in {self.beats:.0%} of pairs ({p_value(self.p)})"


def detectable(first: int, second: int) -> float | None:
    """Return `ArmComparison.detectable` for arms of the given sizes, or None if one is empty."""
    if not first or not second:
        return None
    return 0.5 + _QUANTILES / math.sqrt(12 * first * second / (first + second))


def decision_epoch(events: Iterable[Mapping], ended: Iterable[int], last: int) -> int:
    """Return the first epoch at which a trial was stopped or paused since the study's epochs were last raised.

    Args:
        events: Events of the study's log.
        ended: Epochs of the trials that are stopped or paused now. They count too, because a log may be lost.
        last: Epoch to return if no trial was stopped or paused.
    """
    return min({*stop_epochs(events), *ended, last})


def values_at(curves: pd.DataFrame, objective: str, epoch: int) -> dict[int, float]:
    """Return `objective` after `epoch` by trial number, for the trials that reached it.

    curves: As returned by `learning_curves`.
    """
    rows = curves[curves["epoch"] == epoch].dropna(subset=[objective]) if len(curves) else curves
    return {int(n): float(v) for n, v in zip(rows["number"], rows[objective], strict=True)} if len(rows) else {}


def compare_arms(values: Mapping[int, float], arms: Mapping[int, str], objective: str, epoch: int) -> ArmComparison:
    """Compare the trials of the sampler with those of the control.

    Args:
        values: Value of each trial by number, as returned by `values_at`.
        arms: Arm of each trial by number. Arms other than `sampler` and `control` are left out.
        objective: Name of the objective.
        epoch: Epoch after which the values were measured.
    """
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
    """Return the two-sided p value of Mann and Whitney's test.

    With few trials it is exact: the share of all assignments of the values to the arms that are as extreme. Errors on
    few images need this, because many of them are equal. With many trials it is the normal approximation, corrected
    for ties.
    """
    if np.ptp(np.concatenate([first, second])) == 0:
        return 1.0
    smaller, total = min(len(first), len(second)), len(first) + len(second)
    if math.comb(total, smaller) > EXACT_UP_TO:
        from scipy import stats  # imported at the first use, because this takes half a second

        return float(stats.mannwhitneyu(first, second, alternative="two-sided", method="asymptotic").pvalue)
    ranks = mean_ranks(np.concatenate([first, second]))
    dealt = np.array(list(itertools.combinations(range(total), smaller)))
    away = np.abs(ranks[dealt].sum(axis=1) - smaller * (total + 1) / 2)
    observed = ranks[: len(first)] if len(first) == smaller else ranks[len(first) :]
    return float(
        np.mean(away >= abs(observed.sum() - smaller * (total + 1) / 2))
    )  # exact, because ranks are multiples of 1/2


def expected_best(values: Sequence[float] | np.ndarray, draws: int) -> float:
    """Return the expected minimum of `draws` of the values, drawn without replacement."""
    ordered = np.sort(np.asarray(values, dtype=float))
    count = len(ordered)
    assert 1 <= draws <= count, "cannot draw more values than there are"
    # The i-th smallest value is the minimum if the other draws are all above it.
    shares = [math.comb(count - 1 - i, draws - 1) / math.comb(count, draws) for i in range(count)]
    return float(ordered @ np.array(shares))


def dominance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the shares of pairs in which a row of `first` dominates one of `second`, and the other way round.

    `first` is [n, k] and `second` is [m, k], with values to be minimised. A row dominates another if it is no worse in
    any column and better in one. The remaining pairs are ties.
    """
    a, b = np.asarray(first, dtype=float)[:, None, :], np.asarray(second, dtype=float)[None, :, :]
    ahead, behind = (a <= b).all(axis=2), (b <= a).all(axis=2)
    return float(np.mean(ahead & ~behind)), float(np.mean(behind & ~ahead))
