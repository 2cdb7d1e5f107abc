"""Figures of a search: lines, bars and titles agree with the tables that they show."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dnas import figures
from dnas.analysis import Front
from dnas.analysis.progress import SpaceComparison, attainment, distribution
from dnas.arch import layer_costs, parse_name
from dnas.errors import InputError


def line(figure: Figure, gid: str) -> np.ndarray:
    (found,) = [part for axes in figure.axes for part in axes.lines if part.get_gid() == gid]
    assert gid == "rho" or found.get_drawstyle() == "steps-post"  # an error holds until a lower one is reached
    return np.asarray(found.get_xydata())


def test_best_so_far_draws_each_arm_to_its_end() -> None:
    found = pd.DataFrame(
        {
            "arm": ["search"] * 3 + ["control"],
            "trials": [1, 2, 3, 1],
            "seconds": [60.0, 120.0, 180.0, 60.0],
            "macs": [1e12, 2e12, 3e12, 1e12],
            "error": [np.nan, 0.2, 0.2, 0.3],
        }
    )
    figure = figures.plot_best_so_far(found)
    assert figures.title(figure) == "The sampler stayed at its first value, 20.00%; the random control reached 30.00%"
    alone = figures.plot_best_so_far(found[found["arm"] == "search"])
    assert figures.title(alone) == "No trial improved on the first complete one: 20.00%"
    better = figures.plot_best_so_far(found.assign(error=[0.3, 0.2, 0.2, 0.3]))
    assert figures.title(better) == "20.00% was reached after 2 trials and 2 min 00 s of training"
    assert line(figure, "best-search-trials").tolist() == [[2, 0.2], [3, 0.2], [3, 0.2]]
    assert line(figure, "best-search-seconds")[:, 0].tolist() == [2, 3, 3]  # minutes
    assert line(figure, "best-control-macs")[:, 0].tolist() == [1, 1]
    with pytest.raises(InputError, match="no trial is complete"):
        figures.plot_best_so_far(found.assign(error=np.nan))


def test_a_distribution_is_drawn_in_percent() -> None:
    figure = figures.plot_distribution({"a": distribution([0.1, 0.2, 0.2, 0.3])})
    assert figures.title(figure) == "Half of 4 trials are at or below 20.00%"
    np.testing.assert_allclose(line(figure, "edf-a"), [[-np.inf, 0], [10, 25], [20, 75], [30, 100]])
    both = {"a": distribution([0.1]), "b": distribution([0.2])}
    figure = figures.plot_distribution(both, SpaceComparison(0.75, 0.0004, 0.5))
    assert figures.title(figure) == "A trial of a beats one of b in 75% of pairs (p\u00a0<\u00a00.001)"
    figure = figures.plot_distribution(both, SpaceComparison(0.25, 0.0004, 0.5))
    assert figures.title(figure).startswith("A trial of b beats one of a in 75% of pairs")
    figure = figures.plot_distribution(both, SpaceComparison(0.38, 0.43, 0.5))
    unclear = "b was not shown to be better than a: it is in 62% of pairs (p\u00a0=\u00a00.43)"
    assert figures.title(figure) == unclear
    assert figures.title(figures.plot_distribution(both)) == "Errors of the complete trials of 2 studies"


def test_fidelity_names_the_first_epoch_that_ranks_well() -> None:
    found = pd.DataFrame(
        {"epoch": [1, 2, 3, 4], "rho": [0.1, 0.85, 0.9, 1.0], "low": [0, 0.6, 0.7, 1], "high": [0.3, 0.97, 0.98, 1]}
    ).assign(n=7)
    figure = figures.plot_fidelity(found)
    assert figures.title(figure) == "Epoch 2 ranks these networks much as epoch 4 does: ρ = 0.85, 0.60 to 0.97 (n = 7)"
    wide = figures.title(figures.plot_fidelity(found.assign(low=-0.2)))
    assert wide.startswith(
        "No earlier epoch was shown to rank these networks as epoch 4 does: ρ is at most 0.90, −0.20"
    )
    assert line(figure, "rho").tolist() == [[1, 0.1], [2, 0.85], [3, 0.9], [4, 1]]
    low = figures.plot_fidelity(found.assign(rho=[0.1, 0.3, 0.2, 1.0], low=np.nan))
    assert "ρ is at most 0.30 (n" in figures.title(low)
    with pytest.raises(InputError, match="three complete trials"):
        figures.plot_fidelity(found.tail(1))


def test_timeline_has_one_bar_per_span() -> None:
    found = pd.DataFrame(
        {
            "number": [0, 1],
            "state": ["complete", "failed"],
            "lane": [0, 1],
            "start": [0.0, 60.0],
            "end": [120.0, 180.0],
        }
    )
    figure = figures.plot_timeline(found)
    assert figures.title(figure) == "3 min 00 s, 2 at once: busy 67% of the time"
    bars = [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in figure.axes[0].patches]
    np.testing.assert_allclose(bars, [(0, 2, 0), (1, 2, 1)])  # minutes


def test_importance_colours_what_is_above_chance() -> None:
    found = pd.DataFrame(
        {"choice": ["k", "theta"], "share": [0.8, 0.2], "low": [0.6, 0.1], "high": [0.9, 0.4], "null": [0.5, 0.5]}
    )
    figure = figures.plot_importance(found)
    assert figures.title(figure) == "k mattered most for being among the best: 80%"
    first, second = figure.axes[0].patches
    assert (first.get_width(), second.get_width()) == (80, 20)
    assert first.get_facecolor() != second.get_facecolor()
    assert figures.title(figures.plot_importance(found.assign(low=0.0))).startswith("No choice exceeds chance")
    overlap = figures.plot_importance(found.assign(high=[0.9, 0.7]))
    assert figures.title(overlap) == "k mattered more than chance for being among the best: 80%"


def test_slices_and_parallel_coordinates_show_what_varies() -> None:
    frame = pd.DataFrame(
        {
            "number": [3, 5, 8],
            "k": [4, 8, 8],
            "connect": ["none", "dense", "log"],
            "same": [1, 1, 1],
            "val_error": [0.4, 0.1, 0.2],
        }
    )
    choices = ["k", "connect", "same"]
    figure = figures.plot_slices(frame, choices)
    shown = [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]
    assert shown == ["k", "connect"]
    assert figure.hover["slice-k"][1] == "#5  10.00%\nk = 8"  # type: ignore[attr-defined]
    places = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.asarray(places), [[4, 0.4], [8, 0.1], [8, 0.2]])
    ticks = [axes.get_xticks().tolist() for axes in figure.axes[:2]]
    assert ticks == [[4, 8], [0, 1, 2]]  # no tick at a value that no trial has
    assert not [c for c in figure.axes[0].collections if c.get_gid() == "median-k" and len(c.get_offsets())]
    many = figures.plot_slices(pd.concat([frame] * 2, ignore_index=True), ["k"])
    (median,) = [c for c in many.axes[0].collections if c.get_gid() == "median-k"]
    np.testing.assert_allclose(np.asarray(median.get_offsets()), [[8, 0.15]])  # k = 4 has two trials
    parallel = figures.plot_parallel(frame, choices)
    assert figures.title(parallel) == "The choices of 3 complete trials and their errors"
    assert {"10.00%", "40.00%"} <= {text.get_text() for text in parallel.axes[0].texts}
    others = parallel.axes[0].collections[0].get_array()
    assert others is not None
    assert others.tolist() == [1, pytest.approx(1 / 3)]  # coloured by error, the worst at the bottom
    best = parallel.axes[0].collections[1].get_segments()
    np.testing.assert_allclose(best, [[[0, 1], [1, 0], [2, 0]]])  # the best has k = 8 and dense connections
    with pytest.raises(InputError, match="differ in a choice"):
        figures.plot_slices(frame, ["same"])


def test_attainment_and_fronts_are_steps() -> None:
    fronts = [Front(pd.DataFrame({"params": [1, 3], "val_error": [0.5, 0.1]}))] * 2
    figure = figures.plot_attainment(attainment(fronts), 2)
    assert figures.title(figure) == "Half of 2 searches reached 10.00%; the best, 10.00%"
    assert line(figure, "attained-median").tolist() == [[1, 0.5], [3, 0.1]]
    trials = pd.DataFrame({"number": [1, 2], "network": ["a", "b"], "params": [10, 30], "val_error": [0.5, 0.1]})
    both = figures.plot_fronts({"first": (trials, trials), "none": (trials.iloc[:0], trials.iloc[:0])})
    assert figures.title(both) == "Lowest error: 10.00%, in first"
    assert line(both, "front-0")[:2].tolist() == [[10, 0.5], [30, 0.1]]
    equal = figures.plot_fronts({"first": (trials, trials), "second": (trials, trials)})
    assert figures.title(equal) == "Lowest error: 10.00%, in first and second"
    unlike = figures.plot_fronts({"first": (trials, trials), "second": (trials, trials)}, alike=False)
    assert figures.title(unlike) == "Fronts of 2 studies whose settings differ"
    with pytest.raises(InputError, match="none of the studies"):
        figures.plot_fronts({"none": (trials.iloc[:0], trials.iloc[:0])})


@pytest.mark.parametrize("name", ["densenet-bc:layers=3-2,k=4", "resnet:L=20"])
def test_the_diagram_has_a_bar_for_each_layer(name: str) -> None:
    spec = parse_name(name)
    figure = figures.plot_diagram(spec)
    costs = layer_costs(spec)
    bars = figure.axes[0].patches[: len(costs)]
    assert [bar.get_height() for bar in bars] == [cost.in_channels for cost in costs]
    assert f"{spec.depth} layers, up to {max(cost.in_channels for cost in costs):,} channels" in figures.title(figure)
