"""Seeds that are added while a comparison is undecided: error rates and coverage, exactly and in simulations."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from dnas.analysis.intervals import t_interval
from dnas.analysis.metrics import METRICS
from dnas.analysis.sequential import ENUMERATED, Race, first_look, race_with_base, run_race, spent, stop, undecided
from dnas.errors import InputError
from tests.support.warnings import WARNINGS_ARE_ERRORS

pytestmark = WARNINGS_ARE_ERRORS


def test_the_first_look_by_hand() -> None:
    # 0.05/3·(8/12)^1.5 = 0.00907 is at least 1/128, and 0.05/3·(7/12)^1.5 = 0.00743 is less than 1/64.
    assert first_look(3, 0.05, max_pairs=12) == 8
    assert first_look(1, 0.05, max_pairs=12) == 7
    assert first_look(3, 0.05, max_pairs=7) == 7  # a single look, at which the full level may be spent
    with pytest.raises(InputError, match=r"3 comparisons, max_pairs=6 and alpha=0\.05; allow 7 seeds or more"):
        first_look(3, 0.05, max_pairs=6)


def test_equal_signs_are_decided_at_the_first_look() -> None:
    d = [-0.01, -0.02, -0.03, -0.01, -0.02, -0.03, -0.01, -0.02]
    assert not run_race(d[:7], 3, 0.05, max_pairs=12).decided
    race = run_race([*d, 0.5, 0.5], 3, 0.05, max_pairs=12)  # pairs after the end do not count
    assert (race.pairs, race.decided) == (8, True)
    assert race.mean == pytest.approx(-0.15 / 8)
    assert race.p == pytest.approx(1 / 128 / (8 / 12) ** 1.5)
    assert race.interval[1] < 0


def by_hand(d: tuple[int, ...], level: float, most: int) -> int | None:
    """Return the number of pairs at which the test decides, computed in plain loops over all 2^n sign patterns."""
    ways = dict.fromkeys(itertools.product((1, -1), repeat=len(d)), True)
    for n in range(1, len(d) + 1):
        left = {s: abs(sum(a * b for a, b in zip(s[:n], d, strict=False))) for s, is_left in ways.items() if is_left}
        gone = len(ways) - len(left)
        out = [s for s in left if gone + sum(v >= left[s] for v in left.values()) <= level * spent(n, most) * len(ways)]
        if (1,) * len(d) in out:
            return n
        ways |= dict.fromkeys(out, False)
    return None


def test_decisions_equal_those_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(40):
        d = tuple(int(v) for v in rng.integers(-2, 6, 7))  # integers, so that there are many ties and zeros
        end = stop(np.array(d) / 144, 0.1, 8)
        ends.append(end.pairs if end.decided else None)
        assert ends[-1] == by_hand(d, 0.1, 8)
        assert end.decided == (end.p <= 0.1)
    assert set(ends) >= {None, 6, 7}


@pytest.mark.parametrize("magnitudes", ["equal", "whole", "one large", "growing"])
def test_share_of_sign_patterns_that_are_decided_is_at_most_the_level(magnitudes: str) -> None:
    """All sign patterns are enumerated, so that the error rate is exact."""
    sizes = {
        "equal": np.ones(9),
        "whole": np.array([1, 2, 1, 3, 0, 2, 1, 4, 2]),
        "one large": np.array([1, 1, 1, 1, 1, 1, 9, 1, 1.5]),
        "growing": 1.3 ** np.arange(9),
    }[magnitudes]
    ends = [stop(sizes * signs, 0.05, 9) for signs in itertools.product((1, -1), repeat=9)]
    for n in range(1, 10):
        assert np.mean([end.decided and end.pairs <= n for end in ends]) <= 0.05 * spent(n, 9)
    if magnitudes == "growing":
        assert np.mean([end.decided for end in ends]) > 0.045  # most of the level is spent


def test_repeated_looks_keep_the_level() -> None:
    """Without a difference, a t-test after each pair exceeds its level of 5%, and the race does not.

    The tails are heavy.
    """
    draws = np.random.default_rng(1).standard_t(3, size=(1500, 12))

    def peeks(d: np.ndarray) -> bool:
        return any(low > 0 or high < 0 for low, high in (t_interval(d[:n]) for n in range(5, 13)))

    assert np.mean([peeks(d) for d in draws[:500]]) > 0.10
    assert np.mean([stop(d, 0.05, 12).decided for d in draws]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


def test_level_and_power_with_more_pairs_than_are_enumerated() -> None:
    draws = np.random.default_rng(2).normal(size=(150, 18))
    ends = [stop(d, 0.05, 18) for d in draws]
    assert np.mean([end.decided for end in ends]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
    for d, end in zip(draws[:20], ends, strict=False):  # the first looks equal those with fewer pairs
        early = stop(d[: ENUMERATED - 2], 0.05, 18)
        assert early.decided == (end.decided and end.pairs <= ENUMERATED - 2)
    assert np.mean([stop(d + 1.0, 0.05, 18).decided for d in draws]) > 0.95
    ends = [(d + 0.7, stop(d + 0.7, 0.05, 18)) for d in draws]
    late = [(d, end) for d, end in ends if ENUMERATED < end.pairs <= 16]
    assert late
    for d, end in late:
        assert stop(d[:16], 0.05, 18) == end


def races(shift: float, number: int, seed: int) -> list[Race]:
    return [run_race(d + shift, 2, 0.05, 9) for d in np.random.default_rng(seed).normal(size=(number, 9))]


@pytest.mark.parametrize("number", [30, pytest.param(150, marks=pytest.mark.slow)])
def test_interval_agrees_with_the_decision_and_covers_the_shift(number: int) -> None:
    for shift in (0.0, 1.0, -2.5):
        found = races(shift, number, seed=4)
        assert all((race.interval[0] <= 0 <= race.interval[1]) == (not race.decided) for race in found)
        assert all(race.interval[0] <= race.mean <= race.interval[1] for race in found)
        covered = np.mean([race.interval[0] <= shift <= race.interval[1] for race in found])
        assert covered > 0.975 - 3 * math.sqrt(0.025 * 0.975 / number)
        assert shift != -2.5 or all(race.decided for race in found)


def test_the_interval_ends_where_the_test_begins_to_reject() -> None:
    d = np.random.default_rng(10).normal(size=11)
    low, high = run_race(d, 2, 0.05, 12).interval
    for end, outwards in ((low, -1e-5), (high, 1e-5)):
        assert not stop(d - end, 0.025, 12).decided
        assert stop(d - end - outwards, 0.025, 12).decided


def test_interval_excludes_0_if_shifts_beyond_it_are_not_rejected() -> None:
    d = np.array([-6, 4, 0, -6, -2, -6, -4])
    assert not stop(d - 4 / 11, 0.2, 9).decided  # although 0, which is nearer to the mean, is rejected
    race = run_race(d, 1, 0.2, 9)
    assert race.decided
    assert race.interval[0] < race.mean < race.interval[1] < 0


def test_the_interval_moves_and_scales_with_the_differences() -> None:
    d = np.random.default_rng(6).normal(size=12)
    low, high = run_race(d, 1, 0.05, 12).interval
    assert run_race(d * 0.01, 1, 0.05, 12).interval == pytest.approx((low / 100, high / 100))
    assert run_race(-d, 1, 0.05, 12).interval == pytest.approx((-high, -low))
    assert low < 0 < high


def test_few_or_constant_differences_have_infinite_or_empty_intervals() -> None:
    assert run_race([], 1, 0.05, 9).interval == (-math.inf, math.inf)
    assert math.isnan(run_race([], 1, 0.05, 9).mean)
    assert run_race([0.01] * 5, 1, 0.05, 9).interval == (-math.inf, math.inf)
    same = run_race([0.0] * 9, 1, 0.05, 9)
    assert (same.interval, same.decided, same.p) == ((0.0, 0.0), False, 1.0)
    shifted = run_race([0.01] * 9, 1, 0.05, 9)
    assert (shifted.interval, shifted.decided, shifted.pairs) == ((0.01, 0.01), True, 7)


def test_undecided_returns_the_variants_that_need_another_seed() -> None:
    values = pd.DataFrame(
        {"base": [0.0] * 8, "far": [-1.0] * 8, "near": [1.0, -1.0] * 4, "late": [1.0] * 6 + [math.nan] * 2}
    )
    assert undecided(values.iloc[:7], "base", 0.05, max_pairs=12) == ("far", "near", "late")
    assert undecided(values, "base", 0.05, max_pairs=12) == ("near", "late")
    values.loc[8] = [0.0, 5.0, 1.0, math.nan]  # decisions are final
    assert undecided(values, "base", 0.05, max_pairs=12) == ("near", "late")
    assert undecided(values, "base", 0.05, max_pairs=9) == ("late",)  # `near` has the largest number of pairs
    with pytest.raises(InputError, match="no variant 'none'"):
        undecided(values, "none", 0.05, max_pairs=12)
    with pytest.raises(InputError, match="allow 7 seeds or more"):
        undecided(values, "base", 0.05, max_pairs=5)


def race_through(runs: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the part of `runs` that is trained by a study that adds seeds to undecided variants only."""
    others = [name for name in runs.columns if name != "base"]
    values = runs.iloc[: first_look(len(others), 0.05, most)].copy()
    while (open_ := undecided(values, "base", 0.05, most)) and len(values) < most:
        values = pd.concat([values, runs.loc[[len(values)], ["base", *open_]].reindex(columns=runs.columns)])
    return values


@pytest.mark.parametrize("studies", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_race_keeps_its_level_and_finds_a_planted_effect_with_fewer_runs(studies: int) -> None:
    """Two variants equal the base, and the third is better by two standard deviations of a difference."""
    rng, most = np.random.default_rng(8), 11
    false, found, used = 0, 0, 0
    for study in range(studies):
        runs = pd.DataFrame(
            rng.normal(size=(most, 4)) - [0, 0, 0, 2 * math.sqrt(2)], columns=["base", "x", "y", "better"]
        )
        values = race_through(runs, most)
        used += int(values["better"].notna().sum())
        decided = {}
        for name in ("x", "y", "better"):
            decided[name] = stop((values[name] - values["base"]).dropna().to_numpy(), 0.05 / 3, most).decided
        false += decided["x"] or decided["y"]
        found += decided["better"]
        if study < 10:
            effects = race_with_base(values, "base", most)
            assert [c.verdict != "cannot tell" for c in effects.comparisons] == list(decided.values())
    assert false / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert found / studies > 0.95
    assert used / studies < 9  # 8 is the first look


def test_effects_of_a_race() -> None:
    values = pd.DataFrame(
        {
            "base": [0.10] * 10,
            "far": [0.08, 0.09, 0.07, 0.08, 0.09, 0.07, 0.08, 0.09, math.nan, math.nan],
            "near": [0.11, 0.09, math.nan, 0.12, 0.08, 0.11, 0.09, 0.12, 0.08, 0.10],
            "lost": [math.nan] * 10,
        },
        index=range(1, 11),
    )
    effects = race_with_base(values, "base", 12, metric=METRICS["test_error"])
    far, near, lost = effects.comparisons
    assert [c.verdict for c in effects.comparisons] == ["fewer errors", "cannot tell", "too few seeds"]
    assert far.seeds == tuple(range(1, 9))
    assert far.p == pytest.approx(1 / 128 / (8 / 12) ** 1.5)
    assert far.p_holm == pytest.approx(3 * far.p)
    assert far.interval == far.race_interval == run_race(far.differences, 3, 0.05, 12).interval
    assert near.interval[0] < 0 < near.interval[1]
    assert near.p_holm == 1.0
    assert near.seeds == (1, 2, 4, 5, 6, 7, 8, 9, 10)
    assert lost.interval == (-math.inf, math.inf)
    # The seeds after the decision on `far` are not missing.
    assert effects.left_out == {"near": (3,), "lost": tuple(range(1, 11))}
    assert (effects.pairs, effects.pairs_needed, effects.can_conclude) == (0, 8, True)
    assert effects.metric.key == "test_error"
    assert near.detectable > 0
    later = values.assign(far=[0.08, 0.09, 0.07, 0.08, 0.09, 0.07, 0.08, 0.09, 0.5, 0.5])
    assert race_with_base(later, "base", 12).comparisons[0].differences == far.differences
