"""Progress of a search: best error over time, distribution of errors, and rank fidelity of early epochs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.efficiency import Front
from dnas.analysis.intervals import percentile_interval, spearman
from dnas.errors import InputError
from dnas.formatting import p_value
from dnas.strategy.state import training_spans
from dnas.study.record import TrialRecord

ENDED = ("complete", "stopped", "paused", "infeasible", "failed")
BOOTSTRAPS = 2000
STEP_MACS = 3  # multiply-adds of a training step in forward passes: one forward, two backward


def best_so_far(records: Iterable[TrialRecord], objective: str = "val_error") -> pd.DataFrame:
    """Compute the lowest error among the complete trials when the n-th trial of an arm ended.

    Arms are counted separately, so that both have the same budget at equal numbers.

    Returns:
        One row per trial and arm: arm (`search` for trials of the sampler and given ones, `control` for random ones),
        trials (ended so far in this arm), seconds (their total training time), macs (their total multiply-adds of
        training: 3 times those of a forward pass, for each training image and epoch), error (NaN before the first
        complete trial).
    """
    rows: list[dict[str, Any]] = []
    ended = sorted((r for r in records if r.state in ENDED), key=lambda r: (r.ended or "", r.number))
    for arm in ("search", "control"):
        best, seconds, macs = np.nan, 0.0, 0.0
        arm_records = [record for record in ended if (record.arm == "control") == (arm == "control")]
        for count, record in enumerate(arm_records, 1):
            seconds += record.seconds
            macs += STEP_MACS * record.cost.get("macs", 0) * record.epochs * record.data.get("train_size", 0)
            value = record.measured(objective)
            if record.state == "complete" and value is not None:
                best = np.nanmin([best, value])
            rows.append({"arm": arm, "trials": count, "seconds": seconds, "macs": macs, "error": best})
    return pd.DataFrame(rows, columns=["arm", "trials", "seconds", "macs", "error"])


@dataclass(frozen=True)
class Distribution:
    """Empirical distribution of errors: share[i] of n trials is at or below error[i].

    low and high are the ends of a pointwise 95% interval, by bootstrap over the trials.
    """

    error: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def distribution(errors: Sequence[float], seed: int = 0) -> Distribution:
    """Compute the empirical distribution of `errors` (fractions), by which Radosavovic et al. 2019 compare spaces.

    The interval is a percentile bootstrap of 2,000 draws. Raises `InputError` if there is no error.
    """
    values = np.sort(np.asarray(errors, dtype=float))
    values = values[np.isfinite(values)]
    if not len(values):
        raise InputError("an error distribution needs a trial with an error, but there is none.")
    grid = np.unique(values)
    share = np.searchsorted(values, grid, side="right") / len(values)
    # Share of each resample at or below each value: the cumulative counts of its draws.
    weights = np.unique(values, return_counts=True)[1] / len(values)
    counts = np.random.default_rng(seed).multinomial(len(values), weights, size=BOOTSTRAPS)
    shares = counts.cumsum(axis=1) / len(values)
    low, high = percentile_interval(shares)
    return Distribution(grid, share, low, high, len(values))


@dataclass(frozen=True)
class SpaceComparison:
    """Comparison of the errors of two searches.

    Attributes:
        better: Share of pairs in which a trial of the first is better than one of the second, with ties as half.
        p: Two-sided p value of Mann and Whitney's test.
        ks: Largest distance between the two distributions.
    """

    better: float
    p: float
    ks: float

    def sentence(self, first: str, second: str) -> str:
        """State which of the two searches has the better trials, or that the test does not show it."""
        share, p = max(self.better, 1 - self.better), p_value(self.p)
        if self.better < 0.5:
            first, second = second, first
        if self.p >= 0.05:
            return f"{first} was not shown to be better than {second}: it is in {share:.0%} of pairs ({p})"
        return f"A trial of {first} beats one of {second} in {share:.0%} of pairs ({p})"


def compare_distributions(first: Sequence[float], second: Sequence[float]) -> SpaceComparison:
    """Compare the errors of two searches. Each needs at least one value."""
    from scipy import stats  # imported at the first use, because this takes half a second

    a, b = (np.asarray(values, dtype=float) for values in (first, second))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not len(a) or not len(b):
        raise InputError("cannot compare two error distributions unless each has a trial with an error.")
    test = stats.mannwhitneyu(b, a, alternative="two-sided")
    return SpaceComparison(
        float(test.statistic / (len(a) * len(b))), float(test.pvalue), float(stats.ks_2samp(a, b).statistic)
    )


def fidelity(curves: pd.DataFrame) -> pd.DataFrame:
    """Compute the rank correlation between the validation errors after each epoch and after the last.

    Only complete trials have a last epoch. If poor trials were stopped early, the complete ones are similar, and ρ
    is smaller than over the complete space.

    Args:
        curves: As returned by `learning_curves`.

    Returns:
        One row per epoch: epoch, rho (Spearman's ρ of the complete trials), low, high (95%, by Fisher's z with the
        standard error √((1 + ρ²/2)/(n - 3)) of Bonett and Wright 2000; NaN for n < 5), n (number of trials).
    """
    columns = ["epoch", "rho", "low", "high", "n"]
    done = curves[curves["state"] == "complete"].dropna(subset=["val_error"]) if len(curves) else curves
    if not len(done):
        return pd.DataFrame(columns=columns)
    table = done.pivot_table(index="epoch", columns="number", values="val_error")
    last = int(table.index.max())
    table = table.loc[:, table.loc[last].notna()]  # trials with the same number of epochs
    rows = []
    for epoch, errors in table.iterrows():
        both = errors.notna()
        n = int(both.sum())
        if n < 3:
            continue
        x, y = errors[both].to_numpy(), table.loc[last, both].to_numpy()
        rho = float(spearman(x, y))
        low = high = np.nan
        if n >= 5 and np.isfinite(rho):
            z, spread = np.arctanh(np.clip(rho, -0.999999, 0.999999)), np.sqrt((1 + rho**2 / 2) / (n - 3))
            low, high = np.tanh(z - 1.96 * spread), np.tanh(z + 1.96 * spread)
        rows.append({"epoch": int(str(epoch)), "rho": rho, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows, columns=columns)


def timeline(records: Iterable[TrialRecord], events: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the intervals in which each trial was trained, one row per interval.

    The columns are number, state (at the end of the interval: `paused` if the trial was promoted later), lane (from 0;
    intervals that overlap are in different lanes), start and end (whole seconds since the first interval started).
    """
    by_number = {record.number: record for record in records}
    intervals: list[tuple[datetime, datetime, int, str]] = []
    for span in training_spans(event for event in events if event.get("number") in by_number):
        start, end = (datetime.fromisoformat(time) for time in (span.start, span.end or span.start))
        state = by_number[span.number].state if span.state == "ended" else span.state
        intervals.append((start, end, span.number, state))
    intervals.sort()
    free: list[datetime] = []  # time at which each lane becomes free
    rows = []
    for start, end, number, state in intervals:
        lane = next((i for i, until in enumerate(free) if until <= start), len(free))
        free[lane : lane + 1] = [end]
        origin = intervals[0][0]
        rows.append(
            {
                "number": number,
                "state": state,
                "lane": lane,
                "start": (start - origin).total_seconds(),
                "end": (end - origin).total_seconds(),
            }
        )
    return pd.DataFrame(rows, columns=["number", "state", "lane", "start", "end"])


def attainment(fronts: Sequence[Front], cost: str = "params", objective: str = "val_error") -> pd.DataFrame:
    """Compute the attainment of several searches: the lowest error at each cost that one, half or all of them reached.

    See Fonseca et al. 2011.

    Args:
        fronts: Fronts of searches of one space with different seeds.
        cost: Column of the cost.
        objective: Column of the error.

    Returns:
        One row per cost at which any front has a point: that cost, and `best`, `median` and `worst` over the searches
        (infinite if too few have a network that small). With an even number of searches the median is the worse of the
        middle two, which at least half of them attained.
    """
    if not fronts:
        raise InputError("an attainment surface needs a front, but there is none.")
    costs = np.unique(np.concatenate([front.trials[cost].to_numpy(float) for front in fronts]))
    levels = np.full((len(fronts), len(costs)), np.inf)
    for row, front in enumerate(fronts):
        for x, y in zip(front.trials[cost].to_numpy(float), front.trials[objective].to_numpy(float), strict=True):
            levels[row, costs >= x] = np.minimum(levels[row, costs >= x], y)
    ordered = np.sort(levels, axis=0)
    middle = len(fronts) // 2
    return pd.DataFrame({cost: costs, "best": ordered[0], "median": ordered[middle], "worst": ordered[-1]})
