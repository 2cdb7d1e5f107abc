"""Statistics of an ablation: paired differences, their uncertainty, and the smallest detectable effect.

Runs of one seed are a pair. They share the split, the order of the data, the augmentation and the random stream of the
initialisation, whose effects cancel in their difference. From the differences d_1 .. d_n, one per seed, follow

- the mean, with Student's t interval and a bootstrap-t interval (`bootstrap_interval`) of each comparison by itself;
- p: exact two-sided sign-flip test (`sign_flip_p`). Adjusted by Holm for the number of comparisons, it alone decides
  the verdict;
- d_z = mean / sd (Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences", 2.3.5);
- the smallest difference that would be detected with 80% power (`detectable_difference`).

With n pairs no sign-flip p is below 2^(1-n), so m comparisons cannot conclude anything if m·2^(1-n) > α.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from dnas.analysis.intervals import (
    UNBOUNDED,
    bootstrap_interval,
    deviation,
    holm,
    sign_flip_p,
    t_interval,
    t_quantile,
)
from dnas.analysis.metrics import METRICS, Metric
from dnas.analysis.pairs import check_alpha, pairs_needed
from dnas.errors import InputError, unknown

Kind = Literal["variant", "main effect", "interaction"]
Verdict = Literal["fewer errors", "more errors", "better", "worse", "cannot tell", "too few seeds"]

VAL_ERROR = METRICS["val_error"]

POWER = 0.8

LEAST_PAIRS = 3  # fewer pairs say too little about the spread of their differences for an interval


@dataclass(frozen=True)
class Comparison:
    """One paired comparison: of a variant with the base, or of two halves of a factorial design.

    Attributes:
        name: The variant, or the term, such as "bottleneck: 4 against 0" or "bottleneck × compression".
        kind: Kind of the comparison.
        seeds: Seeds of the pairs.
        differences: Difference of each pair. Of errors it is a fraction, and below 0 there are fewer errors than with
            the base. For an interaction, a difference of differences.
        mean: Mean difference. NaN without a pair.
        t_interval: Student's t interval at 1 - α, for this comparison alone. Unbounded with fewer than `LEAST_PAIRS`
            pairs, and if all differences are equal: then nothing is known about their spread.
        bootstrap_interval: Bootstrap-t interval at 1 - α, as above.
        p: Two-sided p value of the sign-flip test. 1 without a pair.
        p_holm: p adjusted by Holm over the comparisons of the study.
        effect_size: d_z. NaN with fewer than two pairs or an sd of 0.
        detectable: Smallest mean difference that this number of pairs with this sd detects with 80% power among the
            comparisons of the study. Infinite if they cannot detect any, NaN if the sd is 0 or unknown.
        verdict: Conclusion, by `p_holm`.
        aliases: Terms that the design cannot distinguish from this one (fractional designs).
        race_interval: Interval at 1 - α over all comparisons together that remains valid although seeds were added
            until the comparison was decided (`dnas.analysis.sequential`). None if they were not.
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
        """Interval to show: the interval of the race, if there is one, else Student's."""
        return self.t_interval if self.race_interval is None else self.race_interval


@dataclass(frozen=True)
class Effects:
    """Comparisons of a study, as one family of tests. The probability of any false verdict is at most `alpha`.

    Attributes:
        base: Name of the base.
        metric: The compared metric.
        alpha: Level of the family of tests.
        comparisons: The comparisons.
        pairs: Smallest number of pairs of a comparison.
        pairs_needed: Number of pairs that a comparison needs to conclude anything.
        can_conclude: Whether any comparison has this number.
        noise: sd of the base's error over its seeds. NaN with fewer than two.
        left_out: Seeds without a value, by variant, for the variants that lack any.
    """

    base: str
    metric: Metric
    alpha: float
    comparisons: tuple[Comparison, ...]
    pairs: int
    pairs_needed: int
    can_conclude: bool
    noise: float
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def verdict_of(mean: float, metric: Metric) -> Verdict:
    """Return the verdict on a difference that is not due to chance."""
    if mean * metric.sign < 0:
        return "fewer errors" if metric.is_error else "better"
    return "more errors" if metric.is_error else "worse"


def compare_with_base(values: pd.DataFrame, base: str, *, metric: Metric = VAL_ERROR, alpha: float = 0.05) -> Effects:
    """Compare each variant with the base, with Holm's correction over all comparisons.

    A pair with a missing value is left out of its comparison only.

    Args:
        values: Values of the metric, indexed by seed, with one column per variant. NaN if missing.
        base: Name of the base.
        metric: The compared metric.
        alpha: Level of the family of tests.

    Raises:
        InputError: If the base is not a column, a seed or variant occurs twice, or `alpha` is outside (0, 1).
    """
    check_values(values, base, alpha)
    differences = {str(name): (values[name] - values[base]).dropna() for name in values.columns if name != base}
    rows = [_Row(name, "variant", column) for name, column in differences.items()]
    return _effects(rows, values, base, metric, alpha)


def factorial_effects(
    values: pd.DataFrame,
    levels: Mapping[str, Mapping[str, Any]],
    base_levels: Mapping[str, Any],
    *,
    metric: Metric = VAL_ERROR,
    alpha: float = 0.05,
) -> Effects:
    """Test main effects and interactions of two factors, with Holm's correction over all of them.

    Each seed yields one value of each contrast over the design. These values are treated like differences of pairs.

    The main effect of a level a, other than the base level b of its factor, is the mean error at a minus the mean error
    at b over the design, with equal weights for the levels of the other factors. With two levels it is the classical
    contrast. The interaction of levels a, c of two factors with base levels b, d is (ȳ_ac - ȳ_bc) - (ȳ_ad - ȳ_bd), the
    change of the first effect by the level of the second factor. With two levels it is twice the interaction effect of
    textbooks (Box, Hunter and Hunter 1978, chapter 10).

    Seeds that lack a run of a contrast are left out of it. In fractional designs a contrast represents several terms.
    Terms of up to three factors whose contrasts are not orthogonal to it are its `aliases`. Contrasts that differ only
    in sign or scale are tested once.

    Args:
        values: As for `compare_with_base`.
        levels: Level of each factor, by variant. Factors that are not listed have the base's level.
        base_levels: Level of each factor of the base.
        metric: The compared metric.
        alpha: Level of the family of tests.

    Raises:
        InputError: If a variant has no levels, two variants have the same, or combinations of levels of two factors
            occur unequally often, which would confound main effects.
    """
    names = [str(name) for name in values.columns]
    if missing := [name for name in names if name not in levels]:
        raise InputError(f"variant {missing[0]} has no levels; a factorial design needs the levels of every variant.")
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
    return _effects(rows, values, base, metric, alpha)


def together(*parts: Effects) -> tuple[Effects, ...]:
    """Correct several sets of comparisons as one family: Holm's correction covers all of them, as does `detectable`.

    This is for studies that report comparisons with the base together with effects of factors.
    """
    comparisons = [comparison for part in parts for comparison in part.comparisons]
    judged = iter(_judged(comparisons, parts[0].metric, parts[0].alpha)) if parts else iter(())
    needed = pairs_needed(len(comparisons), parts[0].alpha) if parts else 0
    return tuple(
        Effects(
            part.base,
            part.metric,
            part.alpha,
            part_comparisons := tuple(next(judged) for _ in part.comparisons),
            part.pairs,
            needed,
            any(len(comparison.seeds) >= needed for comparison in part_comparisons),
            part.noise,
            part.left_out,
        )
        for part in parts
    )


# --- one comparison ---------------------------------------------------------------------------------------------------


def detectable_difference(
    sd: float, pairs: int, comparisons: int = 1, alpha: float = 0.05, power: float = POWER
) -> float:
    """Return the smallest mean difference that n pairs detect with `power`, at Holm's strictest level α/m.

    It is the δ for which Student's noncentral t with n - 1 degrees of freedom and noncentrality δ·√n / sd exceeds its
    critical value with `power`, at the level (k - 1/2) / 2^(n-1). Here k = ⌊2^(n-1)·α/m⌋ is the number of pairs of
    opposite sign assignments for which the sign-flip test rejects. The 1/2 is an empirical correction, because a
    sign-flip test with few rejections has less power than t at its level. In simulations of normal differences the
    resulting power is 0.77 to 0.84 with 6 to 16 pairs (benchmarks/results/ablation_stats.md).

    Args:
        sd: Standard deviation of the differences.
        pairs: Number of pairs n.
        comparisons: Number of comparisons m of the family.
        alpha: Level α of the family.
        power: Probability of detection.

    Returns:
        The difference in units of `sd`'s. Infinite if k = 0, NaN if the sd is 0 or unknown.
    """
    if not math.isfinite(sd) or sd == 0:
        return math.nan
    level = _level(pairs, alpha / max(1, comparisons))
    if level == 0:
        return math.inf
    from scipy import special  # imported at the first use, because this takes a quarter of a second

    critical = t_quantile(pairs - 1, level)
    return float(special.nctdtrinc(pairs - 1, 1 - power, critical)) * sd / math.sqrt(pairs)


def _level(pairs: int, alpha: float) -> float:
    """Return half a step below the largest level up to `alpha` of a sign-flip test, or 0 if it has none."""
    signs = 2.0 ** (pairs - 1)
    rejected = math.floor(signs * alpha * (1 + 1e-12))
    return (rejected - 0.5) / signs if rejected else 0.0


# --- seed noise -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedNoise:
    """Variation of the base's error due to the seed alone.

    Runs of one seed have much in common, so paired differences of variants may vary less.

    Attributes:
        sd: Standard deviation over `seeds` runs. NaN with fewer than two.
        difference: Standard deviation of the difference of two runs, sd·√2.
        band: Half the width of the (1 - α) band about 0 that contains the mean of `pairs` such differences,
            t_(n-1)·sd·√(2 / pairs).
        seeds: Number of runs.
        pairs: Number of pairs of the comparison for which the band is drawn.
    """

    sd: float
    difference: float
    band: float
    seeds: int
    pairs: int


def seed_noise(errors: Sequence[float] | pd.Series, pairs: int, alpha: float = 0.05) -> SeedNoise:
    """Estimate the seed noise from the errors of the base, one per seed. NaN values are left out.

    pairs: Number of pairs of the comparison for which the band is drawn.
    """
    known = np.asarray(errors, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2 or pairs < 1:
        return SeedNoise(math.nan, math.nan, math.nan, len(known), pairs)
    sd = deviation(known)
    quantile = t_quantile(len(known) - 1, alpha)
    return SeedNoise(sd, sd * math.sqrt(2), quantile * sd * math.sqrt(2 / pairs), len(known), pairs)


# --- comparisons of a study -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One requested comparison, with its differences by seed."""

    name: str
    kind: Kind
    differences: pd.Series
    aliases: tuple[str, ...] = ()


def _effects(rows: Sequence[_Row], values: pd.DataFrame, base: str, metric: Metric, alpha: float) -> Effects:
    comparisons = _judged([_compared(row, alpha) for row in rows], metric, alpha)
    counts = [len(comparison.seeds) for comparison in comparisons]
    needed = pairs_needed(len(rows), alpha)
    return Effects(
        base=base,
        metric=metric,
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
    """Compute the fields that depend on this comparison alone. `_judged` sets p_holm, detectable and verdict."""
    d = row.differences.to_numpy(dtype=float)
    sd = deviation(d)
    has_interval = len(d) >= LEAST_PAIRS and sd > 0
    return Comparison(
        name=row.name,
        kind=row.kind,
        seeds=tuple(int(seed) for seed in row.differences.index),
        differences=tuple(d.tolist()),
        mean=float(d.mean()) if len(d) else math.nan,
        t_interval=t_interval(d, alpha) if has_interval else UNBOUNDED,
        bootstrap_interval=bootstrap_interval(d, alpha) if has_interval else UNBOUNDED,
        p=sign_flip_p(d),
        p_holm=math.nan,
        effect_size=float(d.mean()) / sd if sd > 0 else math.nan,
        detectable=math.nan,
        verdict="cannot tell",
        aliases=row.aliases,
    )


def _judged(comparisons: Sequence[Comparison], metric: Metric, alpha: float) -> tuple[Comparison, ...]:
    """Set the verdict of each comparison, by the adjusted p alone.

    If the numbers of pairs differ, a comparison with too few pairs can still be decided at a later step of Holm's.
    """
    adjusted = holm([comparison.p for comparison in comparisons])
    needed = pairs_needed(len(comparisons), alpha)
    judged = []
    for comparison, p in zip(comparisons, adjusted, strict=True):
        assert p is not None
        pairs = len(comparison.seeds)
        verdict: Verdict = "too few seeds" if pairs < needed else "cannot tell"
        if p <= alpha * (1 + 1e-12):
            verdict = verdict_of(comparison.mean, metric)
        sd = deviation(np.array(comparison.differences))
        detectable = detectable_difference(sd, pairs, len(comparisons), alpha)
        judged.append(dataclasses.replace(comparison, p_holm=p, detectable=detectable, verdict=verdict))
    return tuple(judged)


def check_values(values: pd.DataFrame, base: str, alpha: float) -> None:
    """Raise `InputError` unless `values` has one row per seed and one column per variant, including the base."""
    check_alpha(alpha)
    for axis, kind in ((values.index, "seed"), (values.columns, "variant")):
        if axis.has_duplicates:
            raise InputError(f"{kind} {axis[axis.duplicated()][0]} occurs twice; each must occur once.")
    if base not in values.columns:
        raise unknown("variant", base, map(str, values.columns))


# --- contrasts of a factorial design ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """A main effect or an interaction.

    changes: Level of each changed factor. One factor is a main effect, several are an interaction.
    weights: Weight of each variant in the contrast.
    """

    name: str
    changes: dict[str, Any]
    weights: np.ndarray


@dataclass(frozen=True)
class _Design:
    points: dict[str, dict[str, Any]]
    base: dict[str, Any]

    def levels(self, factor: str) -> list[Any]:
        """Return the distinct levels, the base's first. A level may be a list, so they are compared by equality."""
        levels = [self.base[factor]]
        for point in self.points.values():
            if point[factor] not in levels:
                levels.append(point[factor])
        return levels

    def at(self, factor: str, level: Any) -> np.ndarray:
        return np.array([point[factor] == level for point in self.points.values()], dtype=bool)

    def check(self) -> None:
        names = list(self.points)
        for name, other in itertools.combinations(names, 2):
            if self.points[name] == self.points[other]:
                raise InputError(
                    f"variants {name} and {other} have the same levels; each point of a design must occur once."
                )
        for factor in self.base:
            self._check_even(factor, [self.at(factor, level) for level in self.levels(factor)])
        for first, second in itertools.combinations(self.base, 2):
            cells = itertools.product(self.levels(first), self.levels(second))
            cell_members = [self.at(first, a) & self.at(second, b) for a, b in cells]
            self._check_even(f"{first} and {second}", cell_members)

    def _check_even(self, factors: str, cells: list[np.ndarray]) -> None:
        counts = [int(cell.sum()) for cell in cells]
        if min(counts) != max(counts) or not counts[0]:
            raise InputError(
                f"in a factorial design the levels of {factors} must occur equally often, but they occur {counts}"
                " times; compare its variants with the base instead."
            )

    def terms(self) -> list[_Term]:
        """Return main effects, interactions of two factors, and interactions of three factors, which are only aliases.

        Terms with a combination of levels that the design does not have are left out.
        """
        terms = []
        has_several_levels = {factor: len(self.levels(factor)) > 2 for factor in self.base}
        for order in (1, 2, 3):
            for factors in itertools.combinations(self.base, order):
                for changed in itertools.product(*(self.levels(factor)[1:] for factor in factors)):
                    changes = dict(zip(factors, changed, strict=True))
                    weights = self._weights(changes)
                    if weights is None:
                        continue
                    contrasts = [
                        f"{f}: {_level_text(level)} against {_level_text(self.base[f])}" for f, level in changes.items()
                    ]
                    if order > 1:
                        contrasts = [
                            text if has_several_levels[f] else f for f, text in zip(factors, contrasts, strict=True)
                        ]
                    terms.append(_Term(" × ".join(contrasts), changes, weights))
        return terms

    def _weights(self, changes: Mapping[str, Any]) -> np.ndarray | None:
        """Return the weights of a difference (of differences) of cell means: ± 1 / the size of the cell.

        For three factors in a fractional design, half of the cells may be empty. None if a cell of fewer factors is.
        """
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


def _level_text(level: Any) -> str:
    return "-".join(map(str, level)) if isinstance(level, list | tuple) else str(level)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def _orthogonal(first: np.ndarray, second: np.ndarray) -> bool:
    return abs(_cosine(first, second)) < 1e-9


def _parallel(first: np.ndarray, second: np.ndarray) -> bool:
    return abs(_cosine(first, second)) > 1 - 1e-9
