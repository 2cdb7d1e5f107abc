"""Statistics of an ablation: results computed by hand, and simulations of coverage and error rates."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from dnas.analysis.metrics import METRICS
from dnas.analysis.paired import (
    Effects,
    bootstrap_interval,
    compare_with_base,
    detectable_difference,
    factorial_effects,
    pairs_needed,
    seed_noise,
    sign_flip_p,
    t_interval,
    together,
)
from dnas.errors import InputError
from tests.support.warnings import WARNINGS_ARE_ERRORS

pytestmark = WARNINGS_ARE_ERRORS


def table(**columns: list[float]) -> pd.DataFrame:
    """Return one row per seed, from 0."""
    return pd.DataFrame(columns, dtype=float).rename_axis("seed")


# --- one comparison -----------------------------------------------------------------------------------------------


def test_pairs_needed() -> None:
    assert [pairs_needed(m) for m in (0, 1, 2, 3, 4, 6, 7)] == [1, 6, 7, 7, 8, 8, 9]  # m·2^(1-n) <= 0.05
    assert pairs_needed(3, alpha=0.01) == 10
    assert pairs_needed(1, alpha=0.25) == 3  # exactly at the level


def test_detectable_difference() -> None:
    assert detectable_difference(0.01, pairs=6, comparisons=3) == math.inf  # no verdict, however large
    assert math.isnan(detectable_difference(0.0, 7))
    assert math.isnan(detectable_difference(math.nan, 7))
    assert detectable_difference(0.02, 7, 3) == pytest.approx(2 * detectable_difference(0.01, 7, 3))
    # Many pairs: the normal quantiles 0.975 and 0.8, 2.8016 / √400.
    assert detectable_difference(1.0, 400) == pytest.approx(2.8016 / 20, rel=0.01)
    assert detectable_difference(1.0, 12, 3) > detectable_difference(1.0, 12, 1) > detectable_difference(1.0, 16, 1)


# --- a study ------------------------------------------------------------------------------------------------------


def test_each_variant_is_compared_with_the_base() -> None:
    base = [0.10, 0.11, 0.12, 0.10, 0.09, 0.10, 0.11]
    values = table(
        base=base,
        better=[b - d for b, d in zip(base, [0.01, 0.02, 0.03, 0.02, 0.01, 0.02, 0.03], strict=True)],
        worse=[b + 0.01 * d for b, d in zip(base, [1, 2, 3, 1, 2, 3, 4], strict=True)],
        same=[b + 0.01 * d for b, d in zip(base, [1, -1, 2, -2, 3, -3, 0], strict=True)],
    )
    effects = compare_with_base(values, "base", metric=METRICS["test_error"])
    better, worse, same = effects.comparisons
    assert [c.name for c in effects.comparisons] == ["better", "worse", "same"]
    assert [c.verdict for c in effects.comparisons] == ["fewer errors", "more errors", "cannot tell"]
    assert better.mean == pytest.approx(-0.02)
    assert better.seeds == tuple(range(7))
    assert better.effect_size == pytest.approx(-0.02 / (0.01 * math.sqrt(4 / 6)))  # sum of squared deviations: 4·0.01²
    assert better.p == worse.p == 2 / 2**7
    assert same.p == 1.0
    assert (better.p_holm, worse.p_holm, same.p_holm) == (3 / 64, 3 / 64, 1.0)
    assert better.interval == better.t_interval == t_interval(better.differences)
    assert better.kind == "variant"
    assert better.aliases == ()
    assert (effects.pairs, effects.pairs_needed, effects.can_conclude) == (7, 7, True)
    assert effects.noise == pytest.approx(np.std(base, ddof=1))
    assert effects.metric.key == "test_error"
    assert dict(effects.left_out) == {}


def test_five_pairs_never_give_a_verdict_on_three_comparisons() -> None:
    rng = np.random.default_rng(0)
    for size in (0.0, 0.01, 1.0):
        values = pd.DataFrame(rng.normal(0.1, 0.001, (5, 4)) - [0, size, -size, size], columns=list("bxyz"))
        effects = compare_with_base(values, "b")
        assert {c.verdict for c in effects.comparisons} == {"too few seeds"}
        assert not effects.can_conclude
        assert effects.pairs_needed == 7
        assert all(c.detectable == math.inf for c in effects.comparisons)


def test_missing_run_affects_only_its_comparison() -> None:
    rng = np.random.default_rng(1)
    values = pd.DataFrame(rng.normal(0.1, 0.01, (8, 3)), columns=["base", "x", "y"], index=range(10, 18))
    whole = compare_with_base(values, "base")
    values.loc[12, "x"] = math.nan
    effects = compare_with_base(values, "base")
    x, y = effects.comparisons
    assert x.seeds == (10, 11, 13, 14, 15, 16, 17)
    assert len(x.differences) == 7
    assert y.differences == whole.comparisons[1].differences
    assert effects.left_out == {"x": (12,)}
    assert effects.pairs == 7
    values.loc[13, "base"] = math.nan  # a missing run of the base affects every comparison
    effects = compare_with_base(values, "base")
    assert [len(c.seeds) for c in effects.comparisons] == [6, 7]
    assert effects.left_out == {"base": (13,), "x": (12,)}


def test_comparison_with_fewer_pairs_can_be_decided_at_a_later_step() -> None:
    values = table(b=[0.0] * 8, x=[1.0] * 8, y=[1.0] * 6 + [math.nan] * 2)
    # p = 2/256·2, then 2/64. Each is at most 0.05, although a verdict on both at the first step needs 7 pairs.
    effects = compare_with_base(values, "b")
    assert [c.verdict for c in effects.comparisons] == ["more errors", "more errors"]
    values["x"] = [1.0, -1.0] * 4
    assert compare_with_base(values, "b").comparisons[1].verdict == "too few seeds"


@pytest.mark.parametrize("differences", [[0.01, 0.03], [0.02] * 6])
def test_few_or_equal_differences_have_no_interval(differences: list[float]) -> None:
    base = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3][: len(differences)]
    values = table(base=base, other=[a + b for a, b in zip(base, differences, strict=True)])
    (comparison,) = compare_with_base(values, "base").comparisons
    assert comparison.interval == comparison.bootstrap_interval == (-math.inf, math.inf)


def test_constant_or_missing_values_cause_no_warning() -> None:
    values = table(base=[0.1] * 7, same=[0.1] * 7, shifted=[0.3] * 7, lost=[math.nan] * 7)
    same, shifted, lost = compare_with_base(values, "base").comparisons
    unbounded = (-math.inf, math.inf)
    assert (same.mean, same.t_interval, same.bootstrap_interval, same.p) == (0.0, unbounded, unbounded, 1.0)
    assert same.verdict == "cannot tell"
    assert math.isnan(same.effect_size)
    assert math.isnan(same.detectable)
    assert shifted.t_interval == unbounded
    assert shifted.verdict == "more errors"
    assert lost.seeds == ()
    assert math.isnan(lost.mean)
    assert lost.verdict == "too few seeds"
    assert (lost.p, lost.p_holm, lost.t_interval) == (1.0, 1.0, (-math.inf, math.inf))
    one = compare_with_base(values.iloc[:1], "base")
    assert one.comparisons[1].mean == pytest.approx(0.2)
    assert math.isnan(one.noise)
    assert one.comparisons[1].bootstrap_interval == (-math.inf, math.inf)
    assert not one.can_conclude
    alone = compare_with_base(values[["base"]], "base")
    assert alone.comparisons == ()
    assert alone.pairs == 0
    assert not alone.can_conclude


def test_invalid_tables_are_refused() -> None:
    values = table(base=[0.1, 0.2], x=[0.1, 0.2])
    with pytest.raises(InputError, match=r"no variant 'bsae'.*Did you mean base"):
        compare_with_base(values, "bsae")
    with pytest.raises(InputError, match="seed 0 occurs twice"):
        compare_with_base(pd.concat([values, values]), "base")
    with pytest.raises(InputError, match="`0 < alpha < 1`"):
        compare_with_base(values, "base", alpha=5)


def test_two_tables_are_corrected_as_one_family() -> None:
    values = table(b=[0.0] * 7, x=[1.0] * 7, y=[1.0] * 7)
    first, second = (compare_with_base(values[["b", name]], "b") for name in "xy")
    assert first.comparisons[0].p_holm == 1 / 64
    first, second = together(first, second)
    assert first.comparisons[0].p_holm == second.comparisons[0].p_holm == 2 / 64
    both = compare_with_base(values, "b")
    assert (*first.comparisons, *second.comparisons) == both.comparisons
    assert first.pairs_needed == both.pairs_needed == 7
    assert together() == ()


def test_noise_of_the_seed_by_hand() -> None:
    noise = seed_noise([0.10, 0.12, 0.14, math.nan], pairs=8)  # sd 0.02, t of 2 degrees of freedom 4.3027
    assert (noise.sd, noise.difference) == pytest.approx((0.02, 0.02 * math.sqrt(2)))
    assert noise.band == pytest.approx(4.30265 * 0.02 * math.sqrt(2 / 8))
    assert noise.seeds == 3
    assert math.isnan(seed_noise([0.1], pairs=8).band)


# --- factorial designs --------------------------------------------------------------------------------------------

PLAIN = {"bottleneck": 0, "compression": 1.0}
DENSENETS = {
    "plain": PLAIN,
    "B": {"bottleneck": 4},
    "C": {"compression": 0.5},
    "BC": {"bottleneck": 4, "compression": 0.5},
}


def test_main_effects_and_interaction_of_two_factors_by_hand() -> None:
    values = table(plain=[0.10, 0.20], B=[0.08, 0.17], C=[0.11, 0.20], BC=[0.05, 0.15])
    effects = factorial_effects(values, DENSENETS, PLAIN)
    found = {c.name: c for c in effects.comparisons}
    assert list(found) == ["bottleneck: 4 against 0", "compression: 0.5 against 1.0", "bottleneck × compression"]
    bottleneck, compression, both = found.values()
    assert bottleneck.differences == pytest.approx([(-0.02 - 0.06) / 2, (-0.03 - 0.05) / 2])  # mean of B-plain, BC-C
    assert compression.differences == pytest.approx([(0.01 - 0.03) / 2, (0.0 - 0.02) / 2])  # of C-plain, BC-B
    assert both.differences == pytest.approx([-0.06 + 0.02, -0.05 + 0.03])  # (BC - C) - (B - plain)
    assert [c.kind for c in found.values()] == ["main effect", "main effect", "interaction"]
    assert effects.base == "plain"
    assert effects.noise == pytest.approx(0.1 / math.sqrt(2))


def test_each_further_level_is_compared_with_the_base() -> None:
    points = {f"{k}-{drop}": {"k": k, "drop": drop} for k in (12, 24, 40) for drop in (0.0, 0.2)}
    # The effects are additive, except that k = 40 with dropout gains 0.01 more.
    error = {12: 0.10, 24: 0.07, 40: 0.06}
    row = {n: error[p["k"]] - 0.1 * p["drop"] - 0.01 * (n == "40-0.2") for n, p in points.items()}
    effects = factorial_effects(pd.DataFrame([row, row]), points, {"k": 12, "drop": 0.0})
    found = {c.name: c.mean for c in effects.comparisons}
    assert found == pytest.approx(
        {
            "k: 24 against 12": -0.03,
            "k: 40 against 12": -0.045,
            "drop: 0.2 against 0.0": -0.02 - 0.01 / 3,
            "k: 24 against 12 × drop": 0.0,
            "k: 40 against 12 × drop": -0.01,
        },
        abs=1e-12,
    )


def test_a_seed_that_lacks_a_run_is_left_out_of_the_contrasts_that_need_it() -> None:
    points = {f"{k}-{d}": {"k": k, "d": d} for k in (1, 2, 3) for d in (0, 1)}
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 6)), columns=list(points))
    values.loc[2, "3-1"] = math.nan
    effects = factorial_effects(values, points, {"k": 1, "d": 0})
    pairs = {c.name: c.seeds for c in effects.comparisons}
    assert pairs["k: 2 against 1"] == pairs["k: 2 against 1 × d"] == (0, 1, 2, 3)
    assert pairs["k: 3 against 1"] == pairs["d: 1 against 0"] == pairs["k: 3 against 1 × d"] == (0, 1, 3)
    assert effects.left_out == {"3-1": (2,)}
    assert effects.pairs == 3


def half_fraction(generator: Callable[[int, int, int], int]) -> dict[str, dict[str, int]]:
    """Return three free two-level factors A, B, C, and D by the generator; the base has level 1 of each."""
    rows = [(*signs, generator(*signs)) for signs in itertools.product((1, -1), repeat=3)]
    return {str(number): dict(zip("ABCD", row, strict=True)) for number, row in enumerate(rows)}


def test_effects_of_fractions_list_their_aliases() -> None:
    base = dict.fromkeys("ABCD", 1)
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(3, 8)), columns=[str(n) for n in range(8)])
    four = factorial_effects(values, half_fraction(lambda a, b, c: a * b * c), base)  # I = ABCD
    assert {c.name: c.aliases for c in four.comparisons} == {
        "A: -1 against 1": ("B × C × D",),
        "B: -1 against 1": ("A × C × D",),
        "C: -1 against 1": ("A × B × D",),
        "D: -1 against 1": ("A × B × C",),
        "A × B": ("C × D",),
        "A × C": ("B × D",),
        "A × D": ("B × C",),
    }
    three = factorial_effects(values, half_fraction(lambda a, b, c: a * b), base)  # I = ABD
    found = {c.name: c.aliases for c in three.comparisons}
    assert found["A: -1 against 1"] == ("B × D",)
    assert found["D: -1 against 1"] == ("A × B",)
    assert "A × B" not in found
    assert found["C: -1 against 1"] == ()  # its shortest alias is A × B × C × D
    assert found["A × C"] == ("B × C × D",)


def test_partially_confounded_terms_are_listed_too() -> None:
    """The design is a Latin square with three levels of A and B, and C = A + B modulo 3."""
    points = {f"{a}{b}": {"A": a, "B": b, "C": (a + b) % 3} for a in range(3) for b in range(3)}
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(3, 9)), columns=list(points))
    found = {c.name: c.aliases for c in factorial_effects(values, points, dict.fromkeys("ABC", 0)).comparisons}
    assert "A: 1 against 0 × B: 1 against 0" in found["C: 1 against 0"]
    assert all("C: 2 against 0" not in aliases for name, aliases in found.items() if name.startswith("C"))


def test_planted_effects_are_estimated_from_a_fraction() -> None:
    points = half_fraction(lambda a, b, c: a * b * c)
    row = {name: 0.1 + 0.01 * (p["A"] < 0) - 0.02 * (p["D"] < 0) for name, p in points.items()}
    effects = factorial_effects(pd.DataFrame([row] * 7), points, dict.fromkeys("ABCD", 1))
    found = {c.name: round(c.mean, 9) for c in effects.comparisons}
    assert found["A: -1 against 1"] == 0.01
    assert found["D: -1 against 1"] == -0.02
    assert {value for name, value in found.items() if name[0] not in "AD" or "×" in name} == {0.0}


def test_designs_that_are_not_factorial_are_refused() -> None:
    values = table(plain=[0.1, 0.2], B=[0.1, 0.2], C=[0.1, 0.2])
    with pytest.raises(InputError, match="levels of bottleneck must occur equally often, but they occur \\[2, 1\\]"):
        factorial_effects(values, DENSENETS, PLAIN)
    with pytest.raises(InputError, match="variant C has no levels"):
        factorial_effects(values, {"plain": PLAIN, "B": {"bottleneck": 4}}, PLAIN)
    with pytest.raises(InputError, match="plain and B have the same levels"):
        factorial_effects(values, {**DENSENETS, "B": {}}, PLAIN)


# --- simulations --------------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size=size),
    "skewed": lambda rng, size: rng.exponential(size=size) - 1,
    "whole images": lambda rng, size: np.round(rng.normal(size=size)),  # sd of about one image
}


def coverage(interval: Callable[[np.ndarray], tuple[float, float]], draws: np.ndarray) -> float:
    found = [interval(d) for d in draws]
    return float(np.mean([low <= 0 <= high for low, high in found]))


FAST = (("normal", 5), ("skewed", 8))


@pytest.mark.parametrize(
    ("shape", "pairs"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in itertools.product(SHAPES, [5, 8])],
)
def test_intervals_cover(shape: str, pairs: int) -> None:
    """The nominal coverage is 95%. Student's interval is below it if differences are skewed.

    The percentile bootstrap is always below it.
    """
    draws = SHAPES[shape](np.random.default_rng(7), (2000, pairs))  # standard error of a coverage: 0.005
    assert 0.92 < coverage(bootstrap_interval, draws) < 0.97
    assert coverage(t_interval, draws) < 0.91 if shape == "skewed" else coverage(t_interval, draws) > 0.925

    def percentile(d: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(d[resamples].mean(axis=1), [0.025, 0.975])
        return low, high

    resamples = np.random.default_rng(0).integers(pairs, size=(999, pairs))
    assert coverage(percentile, draws[:500]) < 0.91


def simulated(rng: np.random.Generator, pairs: int, shifts: list[float], shape: str = "normal") -> Effects:
    """Return the effects of a study with noise that variants share for each seed (sd 1), and noise per run (sd 1)."""
    size = (pairs, 1 + len(shifts))
    values = rng.normal(size=(pairs, 1)) + SHAPES[shape](rng, size) + [0, *shifts]
    return compare_with_base(pd.DataFrame(values, columns=["base", *"xyz"[: len(shifts)]]), "base")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "shifts"), [("normal", [0, 0, 0]), ("heavy tails", [0, 0, 9]), ("skewed", [0, 9, 9])]
)
def test_holm_keeps_the_chance_of_any_false_verdict(shape: str, shifts: list[float]) -> None:
    """Some effects are real, all comparisons share one base, and errors may be skewed.

    The difference of two exchangeable runs is symmetric even if their errors are skewed.
    """
    rng, studies = np.random.default_rng(11), 600
    false = sum(
        any(
            c.verdict in ("fewer errors", "more errors")
            for c, shift in zip(e.comparisons, shifts, strict=True)
            if not shift
        )
        for e in (simulated(rng, 8, shifts, shape) for _ in range(studies))
    )
    assert false / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.parametrize(("pairs", "comparisons"), [(7, 3), (8, 3), (9, 1), (12, 3)])
def test_detectable_difference_is_found_with_a_power_of_80_percent(pairs: int, comparisons: int) -> None:
    draws = np.random.default_rng(3).normal(size=(1500, pairs))
    shifted = draws + detectable_difference(1.0, pairs, comparisons)
    found = np.mean([sign_flip_p(d) <= 0.05 / comparisons for d in shifted])
    assert 0.77 < found < 0.85  # standard error 0.010


def test_only_the_planted_effect_is_found() -> None:
    effects = simulated(np.random.default_rng(5), 10, [-6.0, 0.0, 0.0])
    assert [c.verdict for c in effects.comparisons] == ["fewer errors", "cannot tell", "cannot tell"]
    x, y, z = effects.comparisons
    assert x.t_interval[1] < 0
    assert x.bootstrap_interval[1] < 0
    assert -x.mean > x.detectable
    assert y.t_interval[0] < 0 < y.t_interval[1]
    assert abs(z.mean) < z.detectable


@pytest.mark.slow
def test_the_main_effects_of_a_factorial_keep_their_error_rate() -> None:
    rng, studies, false = np.random.default_rng(13), 400, 0
    for _ in range(studies):
        values = pd.DataFrame(rng.normal(size=(7, 4)), columns=list(DENSENETS)) + rng.normal(size=(7, 1))
        found = factorial_effects(values, DENSENETS, PLAIN).comparisons
        false += any(c.verdict in ("fewer errors", "more errors") for c in found)
    assert false / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
