"""Progress of a search: best error over time, distribution of errors, and rank fidelity of early epochs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dnas.analysis.efficiency import Front
from dnas.analysis.intervals import percentile_interval
from dnas.errors import InputError
from dnas.search.state import training_spans
from dnas.study.record import TrialRecord

ENDED = ("complete", "stopped", "paused", "infeasible", "failed")
BOOTSTRAPS = 2000
STEP_MACS = 3  # multiply-adds of a training step over those of a forward pass: one forward, two backward


def best_so_far(records: Iterable[TrialRecord], objective: str = "val_error") -> pd.DataFrame:
    """The lowest error among the complete trials when the n-th trial of an arm had ended.

    Returns one row per trial and arm: arm (`search`: sampler's and given ones, `control`: drawn at random), trials
    (ended so far in this arm), seconds (their training time added up), macs (multiply-adds of their training added up:
    3 times those of a forward pass, for each training image and epoch), error (not a number before the first complete
    one). Arms are counted apart: at equal x both had the same budget.
    """
    rows: list[dict[str, Any]] = []
    ended = sorted((r for r in records if r.state in ENDED), key=lambda r: (r.ended or "", r.number))
    for arm in ("search", "control"):
        best, seconds, macs = np.nan, 0.0, 0.0
        arm_records = [record for record in ended if (record.arm == "control") == (arm == "control")]
        for count, record in enumerate(arm_records, 1):
            seconds += record.seconds
            macs += STEP_MACS * record.cost.get("macs", 0) * record.epochs * record.data.get("train_size", 0)
            value = getattr(record, objective)
            if record.state == "complete" and value is not None:
                best = np.nanmin([best, value])
            rows.append({"arm": arm, "trials": count, "seconds": seconds, "macs": macs, "error": best})
    return pd.DataFrame(rows, columns=["arm", "trials", "seconds", "macs", "error"])


@dataclass(frozen=True)
class Distribution:
    """The empirical distribution of errors: share[i] of n trials is at or below error[i]; low and high bound a
    pointwise 95% interval, by bootstrap over the trials."""

    error: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int


def distribution(errors: Sequence[float], seed: int = 0) -> Distribution:
    """The empirical distribution function of `errors` (fractions); Radosavovic et al. 2019 compare design spaces by it.

    Percentile bootstrap of 2,000 draws. Raises `InputError` without a value.
    """
    values = np.sort(np.asarray(errors, dtype=float))
    values = values[np.isfinite(values)]
    if not len(values):
        raise InputError("an error distribution needs a trial with an error, but there is none.")
    grid = np.unique(values)
    share = np.searchsorted(values, grid, side="right") / len(values)
    # How many of a resample are at or below each value: the counts of its draws, added up.
    weights = np.unique(values, return_counts=True)[1] / len(values)
    counts = np.random.default_rng(seed).multinomial(len(values), weights, size=BOOTSTRAPS)
    shares = counts.cumsum(axis=1) / len(values)
    low, high = percentile_interval(shares)
    return Distribution(grid, share, low, high, len(values))


@dataclass(frozen=True)
class SpaceComparison:
    """`better`: the share of pairs in which a trial of the first is better than one of the second, ties as half;
    `p`: two-sided, Mann and Whitney; `ks`: the largest distance between the two distributions."""

    better: float
    p: float
    ks: float


def compare_distributions(first: Sequence[float], second: Sequence[float]) -> SpaceComparison:
    """Compare the errors of two searches. Each needs at least one value."""
    a, b = (np.asarray(values, dtype=float) for values in (first, second))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not len(a) or not len(b):
        raise InputError("two error distributions can be compared only where each has a trial with an error.")
    test = stats.mannwhitneyu(b, a, alternative="two-sided")
    return SpaceComparison(
        float(test.statistic / (len(a) * len(b))), float(test.pvalue), float(stats.ks_2samp(a, b).statistic)
    )


def fidelity(curves: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation between the validation errors after each epoch and after the last.

    curves: as `learning_curves`. Returns one row per epoch: epoch, rho (Spearman's, of the complete trials' errors
    there and at their last epoch), low, high (95%: Fisher's z with the standard error √((1 + ρ²/2)/(n - 3)) of Bonett
    and Wright 2000; not a number below n = 5), n. Only complete trials have a last epoch; where bad ones were stopped
    early, those left are alike, which makes ρ smaller than it is over the whole space.
    """
    columns = ["epoch", "rho", "low", "high", "n"]
    done = curves[curves["state"] == "complete"].dropna(subset=["val_error"]) if len(curves) else curves
    if not len(done):
        return pd.DataFrame(columns=columns)
    table = done.pivot_table(index="epoch", columns="number", values="val_error")
    last = int(table.index.max())
    table = table.loc[:, table.loc[last].notna()]  # of the same schedule
    rows = []
    for epoch, errors in table.iterrows():
        both = errors.notna()
        n = int(both.sum())
        if n < 3:
            continue
        x, y = errors[both].to_numpy(), table.loc[last, both].to_numpy()
        rho = float(stats.spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else np.nan
        low = high = np.nan
        if n >= 5 and np.isfinite(rho):
            z, spread = np.arctanh(np.clip(rho, -0.999999, 0.999999)), np.sqrt((1 + rho**2 / 2) / (n - 3))
            low, high = np.tanh(z - 1.96 * spread), np.tanh(z + 1.96 * spread)
        rows.append({"epoch": int(str(epoch)), "rho": rho, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows, columns=columns)


def timeline(records: Iterable[TrialRecord], events: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the intervals in which each trial trained, one row per interval: number, state (what it ended in:
    `paused` where it was promoted later), lane (from 0: as many as ran at once), start, end (seconds since the first
    began; to the second)."""
    by_number = {record.number: record for record in records}
    stretches: list[tuple[datetime, datetime, int, str]] = []
    for span in training_spans(event for event in events if event.get("number") in by_number):
        start, end = (datetime.fromisoformat(time) for time in (span.start, span.end or span.start))
        state = by_number[span.number].state if span.state == "ended" else span.state
        stretches.append((start, end, span.number, state))
    stretches.sort()
    free: list[datetime] = []  # when each lane is free again
    rows = []
    for start, end, number, state in stretches:
        lane = next((i for i, until in enumerate(free) if until <= start), len(free))
        free[lane : lane + 1] = [end]
        origin = stretches[0][0]
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
    """Attainment of several searches: the lowest error at a cost that one, half and all of them reached.

    fronts: of searches of one space with different seeds. Returns one row per cost at which any front has a point:
    that cost, `best`, `median` and `worst` over the searches (infinite if too few have a network that small); Fonseca
    et al. 2011. With an even number of searches the median is the worse of the middle two: what at least half of them
    attained.
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
