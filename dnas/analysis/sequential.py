"""Sequential test for `--seeds auto`: a comparison receives another seed only while it is undecided.

Testing after each seed and stopping at p <= α would exceed the error rate α by far. Here each comparison with the base
is a group-sequential sign-flip test. If the paired differences are distributed symmetrically about 0, then given their
magnitudes |d_1|, |d_2|, ... their signs are fair coins, and the 2^n sign assignments are known. After n pairs the test
rejects the assignments with the largest |Σ ±d_i| among those not rejected before, as many as keep the share of all
rejected assignments at or below the level that may be spent by then,

    (α / m)·f(n / max_pairs),    f(t) = t^1.5,

for m comparisons and at most `max_pairs` pairs. A comparison is decided when the observed assignment is rejected. If
there is no difference, the probability that it is ever decided is at most α/m, exactly, for any symmetric distribution
and any stopping point of the budget. Over the study the error rate is at most α by Bonferroni, which makes the
intervals valid simultaneously. Holm's later steps would need regions nested over the levels, and less informative
intervals.

Sources: error spending, Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials"; its power family,
Kim and DeMets 1987; intervals that hold at each look, Jennison and Turnbull 1989, "Interim analyses: the repeated
confidence interval approach"; random subsets of the signs, Phipson and Smyth 2010.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dnas.analysis.intervals import TIE, UNBOUNDED, deviation
from dnas.analysis.metrics import Metric
from dnas.analysis.paired import (
    VAL_ERROR,
    Effects,
    Verdict,
    check_values,
    compare_with_base,
    detectable_difference,
    verdict_of,
)
from dnas.analysis.pairs import allowed, first_look, spent

ENUMERATED = 14  # pairs for which all sign assignments are enumerated; later pairs have random signs
POINTS = 65  # grid points for the search of the interval, before bisection of its ends
HALVINGS = 24  # bisection steps


@dataclass(frozen=True)
class Race:
    """State of one comparison when it stopped: at the pair that decided it, or at the last available pair.

    Attributes:
        pairs: Number of pairs until then.
        decided: Whether the test rejects.
        mean: Mean of their differences. NaN without any.
        interval: Shifts of the differences that the test does not reject. It contains 0 if and only if the comparison
            is undecided. The intervals of all comparisons are simultaneously valid at 1 - α, whenever they stop.
            Unbounded before `first_look`.
        p: Share of the sign assignments rejected by then or at least as extreme as the observed one, divided by f. At
            or below α/m if and only if the comparison is decided. Otherwise it only indicates how close it is.
    """

    pairs: int
    decided: bool
    mean: float
    interval: tuple[float, float]
    p: float


def undecided(values: pd.DataFrame, base: str, alpha: float, max_pairs: int) -> tuple[str, ...]:
    """Return the variants that receive the next seed.

    Their comparison with the base has fewer than `max_pairs` pairs and is undecided. The result depends only on the
    values, so an interrupted race resumes unchanged.

    Args:
        values: Errors of all variants, as for `compare_with_base`. Pairs count in the order of the rows.
        base: Name of the base.
        alpha: Level of the family of tests.
        max_pairs: Maximum number of pairs of a comparison.
    """
    check_values(values, base, alpha)
    others = [str(name) for name in values.columns if name != base]
    first_look(len(others), alpha, max_pairs)
    names = []
    for name in others:
        d = (values[name] - values[base]).dropna().to_numpy(dtype=float)
        if len(d) < max_pairs and not stop(d, alpha / len(others), max_pairs).decided:
            names.append(name)
    return tuple(names)


def run_race(differences: Sequence[float] | np.ndarray, comparisons: int, alpha: float, max_pairs: int) -> Race:
    """Run the sequential test of one comparison until it stops.

    Args:
        differences: Paired differences, in the order of their seeds. Those after `max_pairs` do not count.
        comparisons: Number of comparisons of the study.
        alpha: Level of the family of tests.
        max_pairs: Maximum number of pairs of a comparison.
    """
    first = first_look(comparisons, alpha, max_pairs)
    d = np.asarray(differences, dtype=float)
    level = alpha / max(1, comparisons)
    end = stop(d, level, max_pairs)
    d = d[: end.pairs]
    mean = float(d.mean()) if len(d) else math.nan
    interval = _interval(d, level, max_pairs, end.decided) if end.pairs >= first else UNBOUNDED
    return Race(end.pairs, end.decided, mean, interval, end.p)


def race_with_base(
    values: pd.DataFrame, base: str, max_pairs: int, *, metric: Metric = VAL_ERROR, alpha: float = 0.05
) -> Effects:
    """Compare each variant with the base in a study whose seeds were added by `undecided`.

    The verdicts, p, p_holm (m·p) and `race_interval` are results of the races. Pairs after the end of a race do not
    count. t_interval, bootstrap_interval and effect_size treat the number of pairs as fixed, so they overestimate an
    effect that stopped its race. `detectable` is at the level of the last look. `pairs_needed` is `first_look`.
    `left_out` does not include the seeds after the decision of a comparison.

    Args:
        values: Errors of all variants, as for `compare_with_base`.
        base: Name of the base.
        max_pairs: Maximum number of pairs of a comparison.
        metric: The compared metric.
        alpha: Level of the family of tests.
    """
    check_values(values, base, alpha)
    others = [str(name) for name in values.columns if name != base]
    first = first_look(len(others), alpha, max_pairs)
    values = values.copy()
    races: dict[str, Race] = {}
    left_out = {base: values.index[values[base].isna()]}
    for name in others:
        d = (values[name] - values[base]).dropna()
        race = races[name] = run_race(d.to_numpy(dtype=float), len(others), alpha, max_pairs)
        over = race.decided or race.pairs == max_pairs
        end = values.index.get_loc(d.index[race.pairs - 1]) + 1 if over else len(values)
        left_out[name] = values.index[:end][values[name].iloc[:end].isna()]
        values.iloc[end:, values.columns.get_loc(name)] = np.nan
    effects = compare_with_base(values, base, metric=metric, alpha=alpha)
    comparisons = []
    for comparison in effects.comparisons:
        race = races[comparison.name]
        verdict: Verdict = "too few seeds" if race.pairs < first else "cannot tell"
        if race.decided:
            verdict = verdict_of(race.mean, metric)
        level = alpha * spent(race.pairs, max_pairs)
        sd = deviation(np.array(comparison.differences))
        comparisons.append(
            dataclasses.replace(
                comparison,
                p=race.p,
                p_holm=min(1.0, len(others) * race.p),
                detectable=detectable_difference(sd, race.pairs, len(others), level),
                verdict=verdict,
                race_interval=race.interval,
            )
        )
    return dataclasses.replace(
        effects,
        comparisons=tuple(comparisons),
        pairs_needed=first,
        can_conclude=any(race.pairs >= first for race in races.values()),
        left_out={name: tuple(int(seed) for seed in seeds) for name, seeds in left_out.items() if len(seeds)},
    )


# --- the test -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """Outcome of a test after `pairs` pairs. `decided` and `p` are as in `Race`."""

    pairs: int
    decided: bool
    p: float


def stop(d: np.ndarray, level: float, max_pairs: int) -> Stop:
    """Test after each of up to `max_pairs` pairs, until the test rejects the observed signs.

    level: Level of all looks together, α/m.
    """
    d = d[:max_pairs]
    signs = _ways(len(d))
    ways = signs.shape[1]
    sums, left = np.zeros(ways), np.ones(ways, dtype=bool)
    rejected, p = 0, 1.0
    for n in range(1, len(d) + 1):
        sums = sums + signs[n - 1] * d[n - 1]
        budget = allowed(ways, level * spent(n, max_pairs)) - rejected
        last = n == len(d)
        if budget <= 0 and not last:
            continue
        size = np.where(left, np.abs(sums), -math.inf)
        tie = TIE * float(np.abs(d[:n]).sum())
        # Reject the assignments whose rank by size, with ties, is at most `budget`.
        is_rejected = (
            size > np.partition(size, ways - 1 - budget)[ways - 1 - budget] + tie if budget > 0 else size > math.inf
        )
        if is_rejected[0] or last:
            p = (rejected + np.count_nonzero(size >= size[0] - tie)) / (ways * spent(n, max_pairs))
        if is_rejected[0]:
            return Stop(n, True, min(1.0, float(p)))
        left &= ~is_rejected
        rejected += int(np.count_nonzero(is_rejected))
    return Stop(len(d), False, min(1.0, float(p)))


@functools.lru_cache(maxsize=64)
def _ways(pairs: int) -> np.ndarray:
    """Return the factors of the signs in each assignment, [pairs, ways].

    The first factor is 1, because flipping all signs leaves |sum| unchanged. All assignments are enumerated up to
    `ENUMERATED` pairs. After that each has one continuation of random signs from a fixed seed, except the first, which
    keeps the observed signs. If the signs are fair coins, the observed ones are equally likely to be any of these
    assignments, so the test remains exact. Its first looks are those with all assignments.
    """
    known = min(pairs, ENUMERATED)
    ways = 2 ** max(0, known - 1)
    bits = (np.arange(ways)[None, :] >> np.arange(max(0, known - 1))[:, None]) & 1
    rows = [np.ones((min(1, known), ways)), 1.0 - 2.0 * bits]
    for pair in range(known, pairs):
        continued = np.random.default_rng([0, pair]).integers(0, 2, (1, ways)) * 2.0 - 1.0
        continued[0, 0] = 1.0
        rows.append(continued)
    return np.concatenate(rows)


def _interval(d: np.ndarray, level: float, max_pairs: int, decided: bool) -> tuple[float, float]:
    """Return the smallest and largest shift that are not rejected by the last pair.

    All shifts beyond the smallest and the largest difference are rejected. There all signs are equal, which is the most
    extreme assignment at any look.
    """
    centre = float(d.mean())

    def kept(shift: float) -> bool:
        return not stop(d - shift, level, max_pairs).decided

    low, high = float(d.min()), float(d.max())
    points = {*np.linspace(low, high, POINTS).tolist(), centre, *([] if decided or not low <= 0 <= high else [0.0])}
    if decided:  # 0 is rejected, so search only the side of the mean
        points = {point for point in points if point * centre > 0}
    shifts = sorted(points)
    inside = [index for index, shift in enumerate(shifts) if kept(shift)]
    if not inside:  # the first pairs differ too much from the last ones; fall back to the mean
        return centre, centre
    ends = []
    for index, step, beyond in ((inside[0], -1, low), (inside[-1], 1, high)):
        near = shifts[index]
        far = shifts[index + step] if 0 <= index + step < len(shifts) else beyond
        if decided and near * far <= 0:
            far = 0.0
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            near, far = (middle, far) if kept(middle) else (near, middle)
        ends.append(near)
    return ends[0], ends[1]
