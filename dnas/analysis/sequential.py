"""`--seeds auto`: a comparison gets another seed only while it is undecided, by a test that holds in spite of that.

Who looks again after each seed and stops at p <= α is wrong far more often than α says. Here each comparison with the
base is a group-sequential sign-flip test. Given the magnitudes |d_1|, |d_2|, ... of its paired differences, their signs
are fair coins where they are distributed symmetrically about 0, and the 2^n ways in which they may have fallen are
known. After n pairs those ways are rejected that have the largest |Σ ±d_i| among those not rejected after fewer, as
many as leave the share of all that were ever rejected at or below what may be spent by then,

    (α / m)·f(n / most),    f(t) = t^1.5,

for m comparisons and at most `most` pairs. A comparison is decided when its own way is among them. So where there is no
difference it is ever decided with a chance of at most α/m: exactly, for any symmetric distributions, wherever the
budget ends. Over the study that makes α (Bonferroni, which lets the intervals hold together; Holm's later steps would
need regions that are nested over the levels, and intervals that say less).

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
from dnas.analysis.paired import Effects, Verdict, check_values, compare_with_base, detectable_difference
from dnas.errors import InputError
from dnas.formatting import several

ENUMERATED = 14  # pairs whose ways are all counted; each of these is continued by random signs
POINTS = 65  # at which the interval is looked for, before its ends are narrowed down
HALVINGS = 24


@dataclass(frozen=True)
class Race:
    """One comparison where it stopped: at the pair that decided it, or at the last there is.

    pairs: counted up to there; decided: whether the test rejects. mean: of their differences, nan without any.
    interval: the shifts of the differences that the test does not reject, so that it contains 0 if and only if nothing
        is decided: all comparisons' hold together at 1 - α, whenever they stop. Unbounded before `first_look`.
    p: the share of the ways rejected by then, and of those left that are as extreme as its own, over f. At or below
        α/m if and only if the comparison is decided; elsewhere it tells how near it is, and no test is made with it.
    """

    pairs: int
    decided: bool
    mean: float
    interval: tuple[float, float]
    p: float


def spent(pairs: int, max_pairs: int) -> float:
    """f: the share of a comparison's level that may be spent on its first `pairs`. 1.5 is in the midst: of the power
    that a single look has, linear spending loses more, and O'Brien and Fleming's function waits for longer
    (benchmarks/results/ablation_stats.md)."""
    return float((pairs / max_pairs) ** 1.5)


def first_look(comparisons: int, alpha: float, max_pairs: int) -> int:
    """The fewest pairs that can decide a comparison: with fewer, one way of the signs is more than may be spent.

    `InputError` where even `max_pairs` decide nothing.
    """
    if max_pairs < 1 or not _allowed(2.0 ** (max_pairs - 1), alpha / max(1, comparisons)):
        needed = math.ceil(1 + math.log2(max(1, comparisons) / alpha) - 1e-9)
        raise InputError(
            f"`m·2^(1 - max_pairs) <= alpha` must hold, but got {several(comparisons, 'comparison')},"
            f" max_pairs={max_pairs} and alpha={alpha:g}; allow {needed} seeds or more."
        )
    level = alpha / max(1, comparisons)
    return next(n for n in range(1, max_pairs + 1) if _allowed(2.0 ** (n - 1), level * spent(n, max_pairs)))


def undecided(values: pd.DataFrame, base: str, alpha: float, max_pairs: int) -> tuple[str, ...]:
    """Return the variants that get the next seed: their comparison with the base has fewer than `max_pairs` pairs and
    is not decided. They follow from the values alone, so that an interrupted race resumes unchanged.

    values: All of the study's variants, as in `compare_with_base`. Pairs count in the order of its rows.
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
    """Run the race of one of `comparisons` comparisons: its differences in the order in which their seeds came; those
    after `max_pairs` do not count."""
    first = first_look(comparisons, alpha, max_pairs)
    d = np.asarray(differences, dtype=float)
    level = alpha / max(1, comparisons)
    end = stop(d, level, max_pairs)
    d = d[: end.pairs]
    mean = float(d.mean()) if len(d) else math.nan
    interval = _interval(d, level, max_pairs, end.decided) if end.pairs >= first else UNBOUNDED
    return Race(end.pairs, end.decided, mean, interval, end.p)


def race_with_base(
    values: pd.DataFrame, base: str, max_pairs: int, *, measure: str = "val_error", alpha: float = 0.05
) -> Effects:
    """`compare_with_base` of a study whose seeds were added by `undecided`: verdicts, p, p_holm (m·p) and
    `race_interval` are the races', of the pairs up to each one's end; later pairs, if there are, do not count.

    t_interval, bootstrap_interval and effect_size are of these pairs as if their number had been fixed: an effect that
    stopped its race looks larger in them than it is. detectable: at the level of the last look that was reached.
    pairs_needed: `first_look`. left_out: without the seeds that a comparison did not get, since it was decided.
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
    effects = compare_with_base(values, base, measure=measure, alpha=alpha)
    comparisons = []
    for comparison in effects.comparisons:
        race = races[comparison.name]
        verdict: Verdict = "too few seeds" if race.pairs < first else "cannot tell"
        if race.decided:
            verdict = "fewer errors" if race.mean < 0 else "more errors"
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
    """Outcome of a test after `pairs` pairs; decided, p: as in `Race`."""

    pairs: int
    decided: bool
    p: float


def _allowed(ways: float, share: float) -> int:
    """Number of ways (each represents its opposite too) that are at most this share of all."""
    return math.floor(ways * share * (1 + 1e-12))


def stop(d: np.ndarray, level: float, max_pairs: int) -> Stop:
    """Test after each of up to `max_pairs` pairs, until the test rejects the signs as they are. level: α/m, of all
    looks."""
    d = d[:max_pairs]
    signs = _ways(len(d))
    ways = signs.shape[1]
    sums, left = np.zeros(ways), np.ones(ways, dtype=bool)
    rejected, p = 0, 1.0
    for n in range(1, len(d) + 1):
        sums = sums + signs[n - 1] * d[n - 1]
        budget = _allowed(ways, level * spent(n, max_pairs)) - rejected
        last = n == len(d)
        if budget <= 0 and not last:
            continue
        size = np.where(left, np.abs(sums), -math.inf)
        tie = TIE * float(np.abs(d[:n]).sum())
        # Out goes what has at most `budget` as large as itself, and so is above the largest but those.
        out = size > np.partition(size, ways - 1 - budget)[ways - 1 - budget] + tie if budget > 0 else size > math.inf
        if out[0] or last:
            p = (rejected + np.count_nonzero(size >= size[0] - tie)) / (ways * spent(n, max_pairs))
        if out[0]:
            return Stop(n, True, min(1.0, float(p)))
        left &= ~out
        rejected += int(np.count_nonzero(out))
    return Stop(len(d), False, min(1.0, float(p)))


@functools.lru_cache(maxsize=64)
def _ways(pairs: int) -> np.ndarray:
    """[pairs, ways]: by what the signs are multiplied, the first by 1, as flipping all signs yields the same |sum|.

    All of them up to `ENUMERATED` pairs. Then each of these has one continuation, of random signs from a fixed seed,
    except the first, which continues unchanged. The true signs, if they are fair coins, are as likely to be any one of
    the ways that this makes of them: the test with these is exact too, and its first looks are those with all ways.
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
    """The outermost shifts that are not rejected by the last pair. Beyond the smallest and the largest difference all
    are: there the signs are equal, the most extreme way at any look."""
    centre = float(d.mean())

    def kept(shift: float) -> bool:
        return not stop(d - shift, level, max_pairs).decided

    low, high = float(d.min()), float(d.max())
    points = {*np.linspace(low, high, POINTS).tolist(), centre, *([] if decided or not low <= 0 <= high else [0.0])}
    if decided:  # the ends must say so too: 0 itself is rejected, and only the mean's side is asked for
        points = {point for point in points if point * centre > 0}
    shifts = sorted(points)
    inside = [index for index, shift in enumerate(shifts) if kept(shift)]
    if not inside:  # the first pairs were far from where the last ones are: what is left is their mean
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
