"""Statistics of an ablation: paired differences, their uncertainty, and the smallest detectable effect.

Runs of one seed are a pair: they share the split, the order of the data, the augmentation and the stream of the
initialisation, so that what they share cancels in their difference. Of d_1 .. d_n, one a seed:

- the mean, with Student's t interval and a bootstrap-t interval (`bootstrap_interval`), each of its own comparison;
- p: exact two-sided sign-flip test (`sign_flip_p`). Only this one, adjusted by Holm for the number of comparisons,
  decides the verdict;
- d_z = mean / sd (Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", 2.3.5);
- the smallest difference that would have been found four times in five (`detectable_difference`).

With n pairs no sign-flip p is below 2^(1-n), so m comparisons conclude nothing while m·2^(1-n) > α.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from dnas.analysis.intervals import bootstrap_interval, deviation, holm, sign_flip_p, t_interval, t_quantile
from dnas.errors import InputError, unknown

Kind = Literal["variant", "main effect", "interaction"]
Verdict = Literal["fewer errors", "more errors", "cannot tell", "too few seeds"]

POWER = 0.8


@dataclass(frozen=True)
class Comparison:
    """One paired difference: of a variant and the base, or of two halves of a factorial design.

    name: the variant, or the term: "bottleneck: 4 against 0", "bottleneck × compression".
    seeds, differences: of the pairs; differences are fractions of error, and below 0 there are fewer errors than with
        the base. An interaction's are differences of differences.
    mean: nan without a pair. t_interval, bootstrap_interval: at 1 - α, each for this comparison alone; unbounded with
        fewer than two pairs.
    p, p_holm: two-sided sign-flip, and adjusted by Holm over the study's comparisons; 1 without a pair.
    effect_size: d_z; nan where fewer than two pairs, or an sd of 0, give none.
    detectable: the smallest mean difference that this number of pairs of this sd finds with 80% power beside the
        study's other comparisons; infinite where they can find none, nan where the sd is 0 or unknown.
    aliases: terms that the design cannot distinguish from this one (fractional designs).
    race_interval: where seeds were added until the comparison was decided (`sequential`), the interval that
        holds in spite of that, at 1 - α over all comparisons together; else None.
    """

    name: str
    kind: Kind
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    t_interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]
    p: float
    p_holm: float
    effect_size: float
    detectable: float
    verdict: Verdict
    aliases: tuple[str, ...] = ()
    race_interval: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The one to show: of a race its own, else Student's."""
        return self.t_interval if self.race_interval is None else self.race_interval


@dataclass(frozen=True)
class Effects:
    """The comparisons of a study, one family of tests: the chance of any false verdict is at most `alpha`.

    pairs: of the comparison with the fewest. can_conclude: whether any comparison has the `pairs_needed`.
    noise: sd of the base's error over its seeds (nan below two).
    left_out: variant -> the seeds for which it has no value, of all variants that lack one.
    """

    base: str
    measure: str
    alpha: float
    comparisons: tuple[Comparison, ...]
    pairs: int
    pairs_needed: int
    can_conclude: bool
    noise: float
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def pairs_needed(comparisons: int, alpha: float = 0.05) -> int:
    """The fewest pairs n with m·2^(1-n) <= α, for m comparisons: with fewer no sign-flip test can conclude."""
    _check_alpha(alpha)
    return next(n for n in itertools.count(1) if comparisons * 2.0 ** (1 - n) <= alpha)


def compare_with_base(values: pd.DataFrame, base: str, *, measure: str = "val_error", alpha: float = 0.05) -> Effects:
    """Each variant against the base, Holm over all of them. values: errors (or NaN), indexed by seed, one column per
    variant.

    A pair that lacks a value is left out of its own comparison alone. `InputError` for a base that is no column, a seed
    that comes twice, and an `alpha` outside (0, 1).
    """
    check_values(values, base, alpha)
    differences = {str(name): (values[name] - values[base]).dropna() for name in values.columns if name != base}
    rows = [_Row(name, "variant", some) for name, some in differences.items()]
    return _effects(rows, values, base, measure, alpha)


def factorial_effects(
    values: pd.DataFrame,
    levels: Mapping[str, Mapping[str, Any]],
    base_levels: Mapping[str, Any],
    *,
    measure: str = "val_error",
    alpha: float = 0.05,
) -> Effects:
    """Main effects and interactions of two factors, Holm over all of them. Each seed yields one value of each contrast,
    over the whole design, and those are treated as the differences of pairs are.

    values: as in `compare_with_base`. levels: variant -> the level of each factor (those not named are the base's).

    main effect, for each level a of a factor other than the base's b: mean error at a less mean error at b, over the
        design (the other factors' levels count alike). With two levels it is the classical contrast.
    interaction, for levels a, c of two factors and their base levels b, d: (ȳ_ac - ȳ_bc) - (ȳ_ad - ȳ_bd), what the
        first factor's effect gains from the second's level. With two levels it is twice what textbooks call the
        interaction effect (Box, Hunter and Hunter 1978, chapter 10).

    A contrast needs each run that it weighs: seeds that lack one are left out of it. In fractional designs a contrast
    represents several terms: those of up to three factors whose contrasts are not orthogonal to it are its `aliases`,
    and what differs from an earlier one by its sign or scale alone is not tested twice.

    `InputError` where a variant has no levels, where two have the same, and where the levels of two factors do not meet
    equally often: then a main effect would hold part of another.
    """
    names = [str(name) for name in values.columns]
    if missing := [name for name in names if name not in levels]:
        raise InputError(f"variant {missing[0]} has no levels; a factorial design needs those of each of its variants.")
    design = _Design({name: {**base_levels, **levels[name]} for name in names}, dict(base_levels))
    base = next((name for name in names if design.points[name] == design.base), names[0] if names else "")
    check_values(values, base, alpha)
    design.check()
    rows: list[_Row] = []
    tested: list[np.ndarray] = []
    terms = design.terms()
    for term in terms:
        if len(term.changes) > 2 or any(_parallel(term.weights, other) for other in tested):
            continue
        tested.append(term.weights)
        weighed = values.loc[:, term.weights != 0]
        contrast = (weighed @ term.weights[term.weights != 0])[weighed.notna().all(axis=1)]
        aliases = tuple(
            other.name
            for other in terms
            if set(other.changes) != set(term.changes) and not _orthogonal(other.weights, term.weights)
        )
        rows.append(_Row(term.name, "main effect" if len(term.changes) == 1 else "interaction", contrast, aliases))
    return _effects(rows, values, base, measure, alpha)


def together(*parts: Effects) -> tuple[Effects, ...]:
    """The same, but as one family: Holm over the comparisons of all, and `detectable` with it. For a study that shows
    its variants against the base and its factors' effects beside them, and means both."""
    every = [comparison for part in parts for comparison in part.comparisons]
    judged = iter(_judged(every, parts[0].alpha)) if parts else iter(())
    needed = pairs_needed(len(every), parts[0].alpha) if parts else 0
    return tuple(
        Effects(
            part.base,
            part.measure,
            part.alpha,
            some := tuple(next(judged) for _ in part.comparisons),
            part.pairs,
            needed,
            any(len(comparison.seeds) >= needed for comparison in some),
            part.noise,
            part.left_out,
        )
        for part in parts
    )


# --- one comparison ---------------------------------------------------------------------------------------------------


def detectable_difference(
    sd: float, pairs: int, comparisons: int = 1, alpha: float = 0.05, power: float = POWER
) -> float:
    """The smallest mean difference that n pairs of this sd find with `power`, at Holm's strictest level α/m.

    δ·√n / sd of Student's noncentral t with n - 1 degrees of freedom that exceeds its critical value with `power`, at
    the level (k - 1/2) / 2^(n-1), where k = ⌊2^(n-1)·α/m⌋ of the pairs of opposite signs make the sign-flip test
    reject. The half is ours: a sign-flip test that rejects few signs has less power than t at its level. By simulation
    of normal differences the power at it is 0.77 to 0.84 with 6 to 16 pairs (benchmarks/results/ablation_stats.md).
    Infinite where k = 0; nan where the sd is 0 or not known.
    """
    if not math.isfinite(sd) or sd == 0:
        return math.nan
    level = _level(pairs, alpha / max(1, comparisons))
    if level == 0:
        return math.inf
    critical = t_quantile(pairs - 1, level)
    return float(special.nctdtrinc(pairs - 1, 1 - power, critical)) * sd / math.sqrt(pairs)


def _level(pairs: int, alpha: float) -> float:
    """Half a step below the largest level up to `alpha` that a sign-flip test of this number of pairs has; 0: none."""
    signs = 2.0 ** (pairs - 1)
    rejected = math.floor(signs * alpha * (1 + 1e-12))
    return (rejected - 0.5) / signs if rejected else 0.0


# --- what the seed alone does -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedNoise:
    """Variation of the base's error due to the seed alone. sd: over `seeds` runs, nan below two; difference: sd·√2,
    that of the difference of two runs; band: half the width of the (1 - α) band about 0 in which the mean of `pairs`
    such differences falls, t_(n-1)·sd·√(2 / pairs). Runs of one seed have much in common, so that paired differences of
    variants may vary less."""

    sd: float
    difference: float
    band: float
    seeds: int
    pairs: int


def seed_noise(errors: Sequence[float] | pd.Series, pairs: int, alpha: float = 0.05) -> SeedNoise:
    """errors: of the base, one a seed, NaN left out. pairs: of the comparison that the band is drawn for."""
    known = np.asarray(errors, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or pairs < 1:
        return SeedNoise(math.nan, math.nan, math.nan, len(known), pairs)
    sd = deviation(known)
    quantile = t_quantile(len(known) - 1, alpha)
    return SeedNoise(sd, sd * math.sqrt(2), quantile * sd * math.sqrt(2 / pairs), len(known), pairs)


# --- a study's comparisons --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One comparison as it is asked for: differences by seed."""

    name: str
    kind: Kind
    differences: pd.Series
    aliases: tuple[str, ...] = ()


def _effects(rows: Sequence[_Row], values: pd.DataFrame, base: str, measure: str, alpha: float) -> Effects:
    comparisons = _judged([_compared(row, alpha) for row in rows], alpha)
    counts = [len(comparison.seeds) for comparison in comparisons]
    needed = pairs_needed(len(rows), alpha)
    return Effects(
        base=base,
        measure=measure,
        alpha=alpha,
        comparisons=comparisons,
        pairs=min(counts, default=0),
        pairs_needed=needed,
        can_conclude=any(count >= needed for count in counts),
        noise=seed_noise(values[base], 1).sd,
        left_out={
            str(name): tuple(int(seed) for seed in values.index[values[name].isna()])
            for name in values.columns
            if values[name].isna().any()
        },
    )


def _compared(row: _Row, alpha: float) -> Comparison:
    """All that the comparison says by itself; p_holm, detectable and verdict come with the others (`_judged`)."""
    d = row.differences.to_numpy(dtype=float)
    sd = deviation(d)
    return Comparison(
        name=row.name,
        kind=row.kind,
        seeds=tuple(int(seed) for seed in row.differences.index),
        differences=tuple(d.tolist()),
        mean=float(d.mean()) if len(d) else math.nan,
        t_interval=t_interval(d, alpha),
        bootstrap_interval=bootstrap_interval(d, alpha),
        p=sign_flip_p(d),
        p_holm=math.nan,
        effect_size=float(d.mean()) / sd if sd > 0 else math.nan,
        detectable=math.nan,
        verdict="cannot tell",
        aliases=row.aliases,
    )


def _judged(comparisons: Sequence[Comparison], alpha: float) -> tuple[Comparison, ...]:
    """A verdict by the adjusted p alone. With other numbers of pairs than the others', a comparison with too few for
    itself can still be told, at one of Holm's later steps."""
    adjusted = holm([comparison.p for comparison in comparisons])
    needed = pairs_needed(len(comparisons), alpha)
    judged = []
    for comparison, p in zip(comparisons, adjusted, strict=True):
        assert p is not None
        pairs = len(comparison.seeds)
        verdict: Verdict = "too few seeds" if pairs < needed else "cannot tell"
        if p <= alpha * (1 + 1e-12):
            verdict = "fewer errors" if comparison.mean < 0 else "more errors"
        sd = deviation(np.array(comparison.differences))
        detectable = detectable_difference(sd, pairs, len(comparisons), alpha)
        judged.append(dataclasses.replace(comparison, p_holm=p, detectable=detectable, verdict=verdict))
    return tuple(judged)


def check_values(values: pd.DataFrame, base: str, alpha: float) -> None:
    """`InputError` where `values` is not a table with one row per seed and one column per variant, including the
    base."""
    _check_alpha(alpha)
    for axis, kind in ((values.index, "seed"), (values.columns, "variant")):
        if axis.has_duplicates:
            raise InputError(f"{kind} {axis[axis.duplicated()][0]} comes twice; each has one value.")
    if base not in values.columns:
        raise unknown("variant", base, map(str, values.columns))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"`0 < alpha < 1` must hold (the share of false verdicts), but got alpha={alpha!r}.")


# --- contrasts of a factorial design ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """changes: factor -> its level, against the base's; one is a main effect, several are an interaction. weights: of
    each variant in the contrast."""

    name: str
    changes: dict[str, Any]
    weights: np.ndarray


@dataclass(frozen=True)
class _Design:
    points: dict[str, dict[str, Any]]
    base: dict[str, Any]

    def levels(self, factor: str) -> list[Any]:
        """The base's first, then in the order in which they come. By equality: a level may be a list."""
        levels = [self.base[factor]]
        for point in self.points.values():
            if point[factor] not in levels:
                levels.append(point[factor])
        return levels

    def at(self, factor: str, level: Any) -> np.ndarray:
        return np.array([point[factor] == level for point in self.points.values()], dtype=bool)

    def check(self) -> None:
        names = list(self.points)
        for one, other in itertools.combinations(names, 2):
            if self.points[one] == self.points[other]:
                raise InputError(f"variants {one} and {other} have the same levels; a design has each point once.")
        for factor in self.base:
            self._check_even(factor, [self.at(factor, level) for level in self.levels(factor)])
        for first, second in itertools.combinations(self.base, 2):
            cells = itertools.product(self.levels(first), self.levels(second))
            meet = [self.at(first, a) & self.at(second, b) for a, b in cells]
            self._check_even(f"{first} and {second}", meet)

    def _check_even(self, what: str, cells: list[np.ndarray]) -> None:
        counts = [int(cell.sum()) for cell in cells]
        if min(counts) != max(counts) or not counts[0]:
            raise InputError(
                f"in a factorial design the levels of {what} must come equally often, but they come {counts} times;"
                " compare its variants with the base instead."
            )

    def terms(self) -> list[_Term]:
        """Main effects, interactions of two factors, and, as aliases alone, of three; those that the design cannot
        form, since a combination of levels is not in it, are left out."""
        terms = []
        several = {factor: len(self.levels(factor)) > 2 for factor in self.base}
        for order in (1, 2, 3):
            for factors in itertools.combinations(self.base, order):
                for changed in itertools.product(*(self.levels(factor)[1:] for factor in factors)):
                    changes = dict(zip(factors, changed, strict=True))
                    weights = self._weights(changes)
                    if weights is None:
                        continue
                    contrasts = [f"{f}: {_said(level)} against {_said(self.base[f])}" for f, level in changes.items()]
                    if order > 1:
                        contrasts = [text if several[f] else f for f, text in zip(factors, contrasts, strict=True)]
                    terms.append(_Term(" × ".join(contrasts), changes, weights))
        return terms

    def _weights(self, changes: Mapping[str, Any]) -> np.ndarray | None:
        """Of the difference of differences of cell means: ± 1 / its size for each point of a cell. For three factors
        in a fraction half of the cells may be empty: their product of signs, on the scale of the others."""
        weights = np.zeros(len(self.points))
        for sides in itertools.product((True, False), repeat=len(changes)):
            cell = np.ones(len(self.points), dtype=bool)
            for (factor, level), changed in zip(changes.items(), sides, strict=True):
                cell &= self.at(factor, level if changed else self.base[factor])
            if cell.any():
                weights[cell] = (-1.0) ** sides.count(False) / cell.sum()
            elif len(changes) < 3:
                return None
        return weights


def _said(level: Any) -> str:
    return "-".join(map(str, level)) if isinstance(level, list | tuple) else str(level)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def _orthogonal(first: np.ndarray, second: np.ndarray) -> bool:
    return abs(_cosine(first, second)) < 1e-9


def _parallel(first: np.ndarray, second: np.ndarray) -> bool:
    return abs(_cosine(first, second)) > 1 - 1e-9
