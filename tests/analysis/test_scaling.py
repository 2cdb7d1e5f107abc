"""Error against cost: the monotone fit and the cost ratio at equal error, compared with known results."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dnas.analysis.intervals import wilson_interval
from dnas.analysis.scaling import (
    Fit,
    IsoError,
    fit_of,
    iso_error,
    log_ratio,
    monotone_fit,
    shared_errors,
    sized,
)
from dnas.errors import InputError


def table(curves: dict[str, list[tuple[float, list[float]]]]) -> pd.DataFrame:
    """Return a table of runs. curves: group -> (params, errors by seed) of each network."""
    return pd.DataFrame(
        [
            {"group": group, "network": f"{group}-{params:g}", "seed": seed, "params": params, "val_error": error}
            for group, networks in curves.items()
            for params, errors in networks
            for seed, error in enumerate(errors)
        ]
    )


def planted(ratio: float, noise: float = 0.0, seeds: int = 3, rng: np.random.Generator | None = None) -> pd.DataFrame:
    """Return runs of two families with the error 30% - 5% log(size / 10,000).

    The size of the first is its params, and that of the second `ratio` times its params.
    """
    rng = rng or np.random.default_rng(0)
    curves: dict[str, list[tuple[float, list[float]]]] = {"plain": [], "bc": []}
    for i, (group, less) in itertools.product(range(4), (("plain", 1.0), ("bc", ratio))):
        size = 1e4 * 2.2**i * (1.15 if group == "bc" else 1.0)
        error = 0.3 - 0.05 * math.log(size / 1e4)
        scale = noise * math.sqrt(error * (1 - error))
        curves[group].append((size / less, [error + scale * rng.normal() for _ in range(seeds)]))
    return table(curves)


def read(frame: pd.DataFrame, **changes: int) -> IsoError:
    return iso_error(sized(frame), "plain", "bc", **changes)


def test_mean_and_interval_of_a_network_over_seeds() -> None:
    [one] = sized(table({"a": [(100.0, [0.1, 0.2, 0.3])]}))
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # the 97.5% quantile of t with 2 degrees of freedom
    assert (one.mean, one.interval) == (pytest.approx(0.2), "t")
    assert (one.low, one.high) == (max(0.0, 0.2 - half), pytest.approx(0.2 + half))
    assert stats.t.ppf(0.975, 2) == pytest.approx(4.302652729911275)


def test_seeds_with_equal_errors_have_an_interval() -> None:
    [one] = sized(table({"a": [(100.0, [0.1, 0.1])]}), images=100)
    half = 12.706204736432095 * (0.01 / math.sqrt(12)) / math.sqrt(2)  # t with 1 degree of freedom
    assert one.high - one.mean == pytest.approx(half)


def test_one_seed_has_wilsons_interval_only_if_the_number_of_images_is_known() -> None:
    frame = table({"a": [(100.0, [0.1])]})
    [one] = sized(frame, images=144)
    assert (one.interval, one.low, one.high) == ("Wilson", *wilson_interval(0.1, 144))
    [one] = sized(frame)
    assert (one.interval, one.low, one.high) == ("none", 0.1, 0.1)


def test_networks_are_sorted_by_group_and_cost_without_failed_runs() -> None:
    frame = table({"b": [(300.0, [0.1, math.nan]), (100.0, [0.2, 0.4])], "a": [(50.0, [math.nan])]})
    found = sized(frame)
    assert [(n.group, n.cost, n.errors) for n in found] == [("b", 100.0, {0: 0.2, 1: 0.4}), ("b", 300.0, {0: 0.1})]


def test_fit_pools_errors_that_rise_with_cost() -> None:
    # 0.2 is followed by 0.3 with twice the weight, so that both become (0.2 + 2·0.3) / 3.
    fit = monotone_fit([1, 2, 4, 8], [0.5, 0.2, 0.3, 0.1], [1, 1, 2, 1])
    assert fit.errors == pytest.approx([0.5, 0.8 / 3, 0.8 / 3, 0.1])
    # Points of equal cost are merged to their weighted mean.
    assert monotone_fit([2, 1, 2], [0.1, 0.5, 0.4], [2, 1, 1]).errors == pytest.approx([0.5, 0.2])
    assert monotone_fit([1, 2, 4], [0.3, 0.2, 0.1]).errors == pytest.approx([0.3, 0.2, 0.1])


def test_fit_has_the_least_squares_of_all_monotone_curves() -> None:
    """No random monotone curve near the fit has a smaller weighted sum of squares."""
    rng = np.random.default_rng(3)
    y, w = rng.random(7), rng.random(7) + 0.1
    fit = monotone_fit(np.arange(1, 8), y, w).errors
    assert (np.diff(fit) <= 1e-12).all()
    best = (w * (y - fit) ** 2).sum()
    for _ in range(3000):
        other = np.sort(fit + rng.normal(0, 0.05, 7))[::-1]
        assert (w * (y - other) ** 2).sum() >= best - 1e-12


def test_the_cost_at_an_error_is_read_on_a_log_scale() -> None:
    fit = Fit(np.array([100.0, 400.0, 800.0, 1600.0]), np.array([0.4, 0.2, 0.2, 0.1]))
    assert fit.cost_at(0.3) == pytest.approx(200)  # halfway from 100 to 400 on a log scale
    assert fit.cost_at(0.2) == pytest.approx(400)  # the lowest cost with this error
    assert fit.cost_at(0.15) == pytest.approx(800 * math.sqrt(2))
    assert fit.cost_at(0.5) == 100
    assert fit.cost_at(0.05) == math.inf


@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.9])
def test_a_planted_ratio_is_found(ratio: float) -> None:
    found = read(planted(ratio))
    assert found.ratio == pytest.approx(ratio, rel=1e-6)
    # Without noise the interval has no width.
    assert (found.low, found.high) == (pytest.approx(ratio), pytest.approx(ratio))
    low, high = shared_errors(*(fit_of([n for n in sized(planted(ratio)) if n.group == g]) for g in ("plain", "bc")))
    assert found.range == (low, high)
    assert low == pytest.approx(0.3 - 0.05 * math.log(2.2**3))  # the best of plain; the worst of bc is the upper end
    assert high == pytest.approx(0.3 - 0.05 * math.log(1.15))
    assert found.at is not None
    assert found.at[1] / found.at[2] == pytest.approx(ratio)
    # Without noise all 2000 draws are on one side of a ratio of 1, or equal to it, which counts for both sides.
    assert found.p == pytest.approx(1.0 if ratio == 1.0 else 2 / 2001)


def test_the_ratio_is_the_mean_over_the_shared_errors_on_a_log_scale() -> None:
    # At error 0.4 both cost 100. At 0.2 the first costs 400 and the second 200. The log ratio is from 0 to log 2.
    first, second = (
        Fit(np.array([100.0, 400.0]), np.array([0.4, 0.2])),
        Fit(np.array([100.0, 200.0]), np.array([0.4, 0.2])),
    )
    assert log_ratio(first, second) == pytest.approx(math.log(2) / 2)
    assert log_ratio(second, first) == pytest.approx(-math.log(2) / 2)


def test_sentence_and_verdict_of_a_ratio() -> None:
    found = read(planted(2.9, noise=0.02, rng=np.random.default_rng(5)))
    assert found.low is not None
    assert found.high is not None
    assert found.sentence().startswith(f"the same error with {found.ratio:.1f} times fewer params, 95% interval ")
    assert found.verdict == "holds"
    other = iso_error(sized(planted(2.9, noise=0.02, rng=np.random.default_rng(5))), "bc", "plain")
    assert other.ratio == pytest.approx(1 / found.ratio)
    assert f"{found.ratio:.1f} times more params, 95% interval {found.low:.1f} to {found.high:.1f}" in other.sentence()
    assert other.verdict == "does not hold"
    assert read(planted(1.0, noise=0.02)).verdict == "cannot tell"


def test_one_seed_per_network_yields_a_ratio_and_no_verdict() -> None:
    found = read(planted(2.9, seeds=1))
    assert (found.low, found.high, found.p, found.verdict) == (None, None, None, "cannot tell")
    assert found.sentence() == "the same error with 2.9 times fewer params; one seed each has no interval"


def test_curves_without_a_shared_error_have_a_bound_and_no_ratio() -> None:
    apart = table({"plain": [(1e4, [0.5, 0.51]), (4e4, [0.4, 0.41])], "bc": [(1e4, [0.2, 0.21]), (2e4, [0.1, 0.11])]})
    found = read(apart)
    assert (found.ratio, found.beyond, found.bound) == (None, 1, 4.0)
    assert (found.low, found.high, found.verdict) == (math.inf, math.inf, "holds")
    assert found.sentence() == (
        "no network of plain gets as low as the worst of bc: more than 4.0 times fewer params, as far as was measured;"
        " the curves share no error, so there is no ratio"
    )
    back = iso_error(sized(apart), "bc", "plain")
    assert (back.ratio, back.beyond, back.bound, back.verdict) == (None, -1, 0.25, "does not hold")


def test_unbounded_interval_is_reported() -> None:
    """The curves share few errors, and in many draws none."""
    hair = table(
        {
            "plain": [(1e4, [0.5, 0.52, 0.48]), (4e4, [0.3, 0.32, 0.28])],
            "bc": [(1e4, [0.31, 0.33, 0.29]), (2e4, [0.1, 0.11, 0.09])],
        }
    )
    found = read(hair)
    assert found.high == math.inf
    assert "upwards" in found.sentence()


def test_a_family_without_a_network_is_refused() -> None:
    with pytest.raises(InputError, match="no network of b has an error yet"):
        iso_error(sized(table({"a": [(1.0, [0.1])]})), "a", "b")
    with pytest.raises(InputError, match="costs above 0"):
        monotone_fit([0.0, 1.0], [0.2, 0.1])


@pytest.mark.parametrize("seeds", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_interval_covers_the_planted_ratio(seeds: int) -> None:
    """The interval contains the ratio in 95% of 100 simulations, within four standard errors."""
    rng = np.random.default_rng(seeds)
    hits = 0
    for _ in range(100):
        found = read(planted(2.0, noise=0.03, seeds=seeds, rng=rng), draws=200)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 2.0 <= found.high
    assert hits >= 86
