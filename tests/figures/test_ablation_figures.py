"""Figures of an ablation: marks, lines, bands and titles agree with the numbers that they show."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnas import figures
from dnas.analysis.paired import Effects, SeedNoise, compare_with_base, factorial_effects
from dnas.analysis.variants import cell_means
from dnas.errors import InputError
from dnas.figures.style import BLUE, GREY, INK, RED

SEEDS = range(8)
# For every seed "a" is 1 to 3 points below the base and "c" is 2 points above. "b" is above as often as below.
BASE = np.array([0.10, 0.12, 0.11, 0.13, 0.10, 0.12, 0.11, 0.14])
VALUES = pd.DataFrame(
    {
        "base": BASE,
        "a": BASE - np.array([0.01, 0.02, 0.03, 0.02, 0.01, 0.02, 0.03, 0.02]),
        "b": BASE + np.array([0.01, -0.01, 0.01, -0.01, 0.0, 0.01, -0.01, 0.0]),
        "c": BASE + 0.02,
    },
    index=pd.Index(SEEDS, name="seed"),
)


@pytest.fixture(scope="module")
def effects() -> Effects:
    return compare_with_base(VALUES, "base")


def line(figure: Figure, gid: str) -> np.ndarray:
    (found,) = [part for axes in figure.axes for part in axes.lines if part.get_gid() == gid]
    return np.asarray(found.get_xydata())


def colour(figure: Figure, gid: str) -> str:
    (found,) = [part for axes in figure.axes for part in axes.lines if part.get_gid() == gid]
    return str(found.get_color())


def marks(axes: Axes, gid: str) -> np.ndarray:
    (found,) = [part for part in axes.collections if part.get_gid() == gid]
    return np.asarray(found.get_offsets())


def test_forest_is_ordered_and_has_every_interval(effects: Effects) -> None:
    figure = figures.plot_forest(effects, SeedNoise(0.01, 0.014, 0.012, 8, 8))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]
    found = {c.name: c for c in effects.comparisons}
    for y, name in enumerate(("a", "b", "c")):
        np.testing.assert_allclose(line(figure, f"mean-{y}"), [[100 * found[name].mean, y]], atol=1e-9)
        if name != "c":  # all differences of c are equal, so it has no interval
            low, high = found[name].t_interval
            np.testing.assert_allclose(line(figure, f"interval-{y}")[:, 0], [100 * low, 100 * high], atol=1e-9)
            low, high = found[name].bootstrap_interval
            np.testing.assert_allclose(line(figure, f"bootstrap-{y}")[:, 0], [100 * low, 100 * high], atol=1e-9)
        np.testing.assert_allclose(marks(axes, f"pairs-{y}")[:, 0], 100 * np.array(found[name].differences), atol=1e-9)
    assert figure.hover["pairs-0"][2] == "a, seed 2: −3.00 points"  # type: ignore[attr-defined]
    assert [colour(figure, f"interval-{y}") for y in range(2)] == [BLUE, GREY]
    assert [part.get_markeredgecolor() for part in axes.lines if part.get_gid() == "mean-2"] == [RED]
    assert not [part for part in axes.lines if part.get_gid() in ("interval-2", "bootstrap-2")]
    (band,) = [patch for patch in axes.patches if patch.get_gid() == "noise"]
    left, right = band.get_extents().transformed(axes.transData.inverted()).intervalx
    assert (left, right) == pytest.approx((-1.2, 1.2))
    assert line(figure, "base")[:, 0].tolist() == [0, 0]
    assert figures.title(figure) == "a makes fewer errors and c makes more errors than base; b is inconclusive"


def test_equal_pairs_do_not_hide_each_other(effects: Effects) -> None:
    axes = figures.plot_forest(effects).axes[0]
    places = [tuple(np.round(place, 6)) for place in marks(axes, "pairs-2")]
    assert len(set(places)) == 8  # all differences are 2 points


def test_one_pair_has_a_mark_and_no_interval() -> None:
    figure = figures.plot_forest(compare_with_base(VALUES.iloc[:1], "base"))
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{d} (n = 1)" for d in ("−1.00", "+1.00", "+2.00")]
    gids = {part.get_gid() for part in figure.axes[0].lines}
    assert "mean-0" in gids
    assert not {gid for gid in gids if gid and gid.startswith(("interval", "bootstrap"))}
    assert figures.title(figure) == "Too few seeds to conclude: 3 comparisons need 7 pairs at 5%, and there is 1"
    with pytest.raises(InputError, match="both finished"):
        figures.plot_forest(compare_with_base(VALUES.assign(base=math.nan), "base"))


def test_slopes_have_one_line_per_seed(effects: Effects) -> None:
    figure = figures.plot_slopes(VALUES, effects)
    assert figures.title(figure) == "a makes fewer errors than base from 8 of 8 seeds"
    first, second, third = figure.axes[:3]
    lines = [part for part in first.lines if str(part.get_gid()).startswith("seed-")]
    assert len(lines) == 8
    np.testing.assert_allclose(np.asarray(lines[2].get_xydata()), [[0, 0.11], [1, 0.08]])
    assert {part.get_color() for part in lines} == {BLUE}
    assert [axes.get_title() for axes in (first, second, third)] == [
        "8 fewer, 0 more",
        "3 fewer, 3 more, 2 equal",
        "0 fewer, 8 more",
    ]
    np.testing.assert_allclose(line(figure, "mean-1"), [[0, BASE.mean()], [1, VALUES["b"].mean()]])
    assert figure.hover["slopes-0"][2] == "seed 2: base 11.00%, a 8.00%\n−3.00 points"  # type: ignore[attr-defined]
    worse = figures.plot_slopes(VALUES[["base", "c"]], compare_with_base(VALUES[["base", "c"]], "base"))
    assert figures.title(worse) == "c makes more errors than base from 8 of 8 seeds"
    open_ones = [*effects.comparisons][1:2]
    assert open_ones[0].name == "b"
    unclear = figures.plot_slopes(VALUES, dataclasses.replace(effects, comparisons=tuple(open_ones)))
    assert figures.title(unclear) == "b has fewer errors than base from 3 of 8 seeds, more from 3: inconclusive"
    a, _, c = effects.comparisons
    mixed = dataclasses.replace(effects, comparisons=(dataclasses.replace(a, verdict="cannot tell"), c))
    assert figures.title(figures.plot_slopes(VALUES, mixed)) == "c makes more errors than base from 8 of 8 seeds"
    two = figures.plot_slopes(VALUES, compare_with_base(VALUES.iloc[:2], "base"))
    assert figures.title(two).endswith("errors than base from 2 of 2 seeds, more from 0: too few seeds to conclude")
    with pytest.raises(InputError, match="both finished"):
        figures.plot_slopes(VALUES, compare_with_base(VALUES.assign(base=math.nan), "base"))


LEVELS = {"base": {"x": 0, "y": 1}, "a": {"x": 4, "y": 1}, "b": {"x": 0, "y": 2}, "c": {"x": 4, "y": 2}}


def test_an_interaction_is_read_both_ways() -> None:
    factorial = factorial_effects(VALUES, LEVELS, LEVELS["base"])
    cells = cell_means(VALUES, LEVELS)
    figure = figures.plot_interaction(cells, factorial)
    assert [axes.get_xlabel() for axes in figure.axes] == ["x", "y"]
    for gid, (left, right) in {
        "line-0-0": ("base", "a"),  # y = 1, over x
        "line-0-1": ("b", "c"),
        "line-1-0": ("base", "b"),  # x = 0, over y
        "line-1-1": ("a", "c"),
    }.items():
        np.testing.assert_allclose(line(figure, gid)[:, 1], [VALUES[left].mean(), VALUES[right].mean()])
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["0", "4"]
    assert figures.title(figure) == "x × y: the effects do not add up, by +4.00 points"
    none = figures.plot_interaction(cells, factorial_effects(VALUES.iloc[:2], LEVELS, LEVELS["base"]))
    assert figures.title(none) == "Too few seeds to tell whether effects add up: 7 needed, 2 available"
    with pytest.raises(InputError, match="every variant of two factors"):
        figures.plot_interaction(cells.iloc[:0], factorial)


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": ["base", "a", "c"],
            "params": [20_000, 20_100, 19_900],
            "macs": [400_000, 500_000, 600_000],
            "n": [8, 8, 8],
            "mean": [0.11, 0.09, 0.13],
            "least": [0.1, 0.08, 0.12],
            "most": [0.14, 0.12, 0.16],
            "residual": [0.0, 0.005, -0.005],
        }
    )


def test_variants_are_drawn_at_their_costs_and_equal_costs_at_their_residuals(effects: Effects) -> None:
    free = figures.plot_variants(rows(), effects)
    assert [axes.get_xlabel() for axes in free.axes] == [
        "parameters (thousands)",
        "multiply-adds of one image (millions)",
    ]
    np.testing.assert_allclose(marks(free.axes[0], "variants-params"), rows()[["params", "mean"]])
    assert figures.title(free) == "Lowest mean error: 9.00%, a"
    held = figures.plot_variants(rows(), effects, "params", 0.01)
    assert [axes.get_xlabel() for axes in held.axes] == [
        "multiply-adds of one image (millions)",
        "params off the base's (%)",
    ]
    np.testing.assert_allclose(marks(held.axes[1], "residuals"), [[0, 0], [0.5, 1], [-0.5, 2]], atol=1e-9)
    names = {text.get_text(): text.get_color() for text in held.axes[0].texts}
    assert names == {"base": INK, "a": BLUE, "c": RED}
    ticks = [held.axes[0].xaxis.get_major_formatter()(tick) for tick in held.axes[0].get_xticks()]
    assert len(set(ticks)) == len(ticks)
    with pytest.raises(InputError, match="needs a complete run"):
        figures.plot_variants(rows().assign(n=0), effects)


def test_the_lowest_variant_is_named_with_its_verdict(effects: Effects) -> None:
    def title(lowest: str, effects: Effects) -> str:
        means = [0.01 if name == lowest else 0.11 for name in rows()["variant"]]
        return figures.title(figures.plot_variants(rows().assign(mean=means), effects))[
            len(f"Lowest mean error: 1.00%, {lowest}") :
        ]

    assert title("a", effects) == ""  # fewer errors than the base
    assert title("base", effects) == ", not distinguished from a and b"
    few = compare_with_base(VALUES.iloc[:2], "base")
    assert title("a", few) == ", too few seeds to distinguish it from base"
    assert title("base", few) == ", too few seeds to distinguish it from a, b and c"
    worse = compare_with_base(VALUES[["base", "c"]], "base")
    assert title("base", worse) == ""  # the only variant makes more errors


def test_labels_of_near_variants_do_not_touch(effects: Effects) -> None:
    near = rows().assign(macs=[400_000, 400_000, 400_100], mean=[0.1, 0.1002, 0.1004])
    figure = figures.plot_variants(near, effects)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(3) for j in range(i))


def test_curves_of_a_variant_are_drawn_with_those_of_the_base(effects: Effects) -> None:
    bands = pd.DataFrame(
        {
            "variant": ["base", "base", "a", "a"],
            "epoch": [1, 2, 1, 2],
            "mean": [0.4, 0.2, 0.3, 0.1],
            "low": [0.3, 0.15, 0.2, 0.05],
            "high": [0.5, 0.25, 0.4, 0.15],
            "n": 8,
        }
    )
    figure = figures.plot_curves_of_variants(bands, effects, ["base", "a", "b", "c"])
    assert figures.title(figure) == "Lowest mean after the last epoch: 10.00%, a"
    assert len(figure.axes) == 1  # b and c have no run
    np.testing.assert_allclose(line(figure, "curve-a"), [[1, 0.3], [2, 0.1]])
    np.testing.assert_allclose(line(figure, "curve-base"), [[1, 0.4], [2, 0.2]])
    assert (colour(figure, "curve-a"), colour(figure, "curve-base")) == (BLUE, INK)
    with pytest.raises(InputError, match="need a complete run"):
        figures.plot_curves_of_variants(bands.iloc[:0], effects, ["base", "a"])
