"""Contents of figures: titles agree with the data, axes have units, files match their suffixes."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from dnas import figures
from dnas.analysis import (
    WeightNorms,
    learning_curves,
    noise_floor,
    pareto_front,
    published,
    read_norms,
    within_reach,
)
from dnas.analysis.control import compare_arms
from dnas.analysis.scaling import sized
from dnas.analysis.weight_norms import weight_norms
from dnas.arch import PRESETS
from dnas.errors import InputError
from dnas.figures.paper import plot_families
from dnas.study.folder import StudyFolder, read_study
from tests.support.heatmaps import mesh
from tests.support.studies import make_study

STATES = ["complete"] * 6 + ["stopped"] * 3 + ["failed"] + ["complete"] * 5 + ["running"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return make_study(tmp_path_factory.mktemp("studies") / "s", STATES)


def draw_main(study: StudyFolder) -> Figure:
    frame = read_study(study.path)
    front = pareto_front(frame)
    best = study.best()[0]
    assert best.val_error is not None
    return figures.plot_error_against_cost(frame, front, None, noise_floor(best.val_error, 144), best.number)


def marks(figure: Figure, gid: str) -> np.ndarray:
    return np.concatenate(
        [np.empty((0, 2)), *[a.get_offsets() for a in figure.axes[0].collections if a.get_gid() == gid]]
    )


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_every_trial_with_an_error_has_its_mark(study: StudyFolder) -> None:
    figure, frame = draw_main(study), read_study(study.path)
    complete = frame[frame["state"] == "complete"]
    for arm, some in complete.groupby("arm"):
        assert sorted(map(tuple, marks(figure, f"arm-{arm}"))) == sorted(
            zip(some["params"], some["val_error"], strict=True)
        )
    stopped = frame[frame["state"] == "stopped"]
    top = figure.axes[0].get_ylim()[1]
    assert (
        marks(figure, "stopped").tolist()
        == stopped[["params", "val_error"]].clip(upper=[np.inf, top], axis=1).to_numpy(float).tolist()
    )
    assert len(marks(figure, "best")) == 1
    assert any(text.startswith("stopped early, at its last error (3") for text in texts(figure))


def test_title_states_the_best_network(study: StudyFolder) -> None:
    best = study.best()[0]
    assert best.val_error is not None
    figure = draw_main(study)
    title = f"Lowest error: {100 * best.val_error:.2f}% with {best.cost['params'] / 1e3:.1f} k"
    assert figures.title(figure).startswith(title)
    assert f"(#{best.number})" in figures.title(figure)
    assert any(text.startswith(f"#{best.number}  ") for text in texts(figure))  # also beside its mark
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("parameters (thousands)", "validation error (%)")
    assert axes.get_xscale() == "log"


def test_the_front_is_drawn_as_steps_through_its_trials(study: StudyFolder) -> None:
    figure, front = draw_main(study), pareto_front(read_study(study.path))
    (line,) = [line for line in figure.axes[0].lines if line.get_gid() == "front"]
    assert line.get_drawstyle() == "steps-post"
    drawn = list(zip(*line.get_data(), strict=True))[:-1]
    assert drawn == list(zip(front.trials["params"], front.trials["val_error"], strict=True))


def test_paused_trials_are_drawn_like_stopped_ones(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 3 + ["paused"] * 4 + ["stopped"])
    figure, frame = draw_main(study), read_study(study.path)
    paused = frame[frame["state"] == "paused"]
    top = figure.axes[0].get_ylim()[1]
    above = int((paused["val_error"] > top).sum())
    assert above > 0  # their errors would take half of the axis: they are a rug on its upper edge
    assert marks(figure, "paused")[:, 1].tolist() == paused["val_error"].clip(upper=top).tolist()
    assert f"paused, at its last error; may be promoted (4, {above} above the axis)" in texts(figure)
    assert top < 1.3 * frame.loc[frame["state"] == "complete", "val_error"].max()
    curves = figures.plot_learning_curves(learning_curves(study), study.best()[0].number)
    drawn = {c.get_gid(): len(c.get_paths()) for c in curves.axes[0].collections if c.get_gid()}
    assert drawn == {"complete": 2, "stopped": 1, "paused": 4}
    assert "paused, may be promoted (4), validation" in texts(curves)


@pytest.mark.parametrize(
    ("objectives", "labels", "title"),
    [
        (("val_error", "macs"), ("multiply-adds of one image (millions)", "validation error (%)"), "Lowest error: "),
        (("val_loss", "params"), ("parameters (millions)", "validation loss (nats)"), "Lowest loss: "),
        (("val_loss", "activation_bytes"), ("activations of one batch (MB)", "validation loss (nats)"), "Lowest loss"),
        (("val_error", "latency"), ("latency of one image (ms)", "validation error (%)"), "Lowest error: "),
    ],
)
def test_axes_are_the_objectives_of_the_study(
    tmp_path: Path, objectives: tuple[str, str], labels: tuple[str, str], title: str
) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 8, objective=",".join(objectives))
    frame, best = read_study(study.path), study.best()[0]
    front = pareto_front(frame, objectives[::-1])
    figure = figures.plot_error_against_cost(frame, front, best=best.number, objectives=objectives)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == (*labels, "log")
    x, y = (best.objectives[name] for name in objectives[::-1])
    assert marks(figure, "best").tolist() == [[x, y]]
    assert figures.title(figure).startswith(title)
    (line,) = [line for line in axes.lines if line.get_gid() == "front"]
    assert list(line.get_xdata())[:-1] == front.trials[objectives[1]].tolist()  # type: ignore[arg-type]
    # Tick labels are values in the unit of the axis.
    low, high = axes.get_xlim()
    factor = {"latency": 1e3}.get(objectives[1], 1e-6)
    printed = [
        (tick, float(label.get_text())) for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    ]
    assert all(label == pytest.approx(tick * factor, rel=1e-3) for tick, label in printed if low <= tick <= high)


def test_front_of_three_objectives_has_marks_and_no_line(tmp_path: Path) -> None:
    objectives = ("val_error", "params", "latency")
    study = make_study(tmp_path / "s", ["complete"] * 8, objective=",".join(objectives))
    frame = read_study(study.path)
    front = pareto_front(frame, ("params", "val_error", "latency"))
    figure = figures.plot_error_against_cost(frame, front, objectives=objectives)
    assert not [line for line in figure.axes[0].lines if line.get_gid() == "front"]
    assert sorted(map(tuple, marks(figure, "front"))) == sorted(
        zip(front.trials["params"], front.trials["val_error"], strict=True)
    )
    assert figures.title(figure).endswith(f"; {len(front.trials)} on the front in all 3 objectives")


def test_both_arms_are_drawn_by_trial_and_as_shares() -> None:
    values = {0: 0.5, 1: 0.2, 2: 0.4, 3: 0.3, 4: 0.1}
    arms = compare_arms(
        values, dict(enumerate(["control", "sampler", "control", "sampler", "sampler"])), "val_error", 4
    )
    figure = figures.plot_control(arms)
    assert marks(figure, "arm-control").tolist() == [[0, 0.5], [2, 0.4]]
    assert marks(figure, "arm-sampler").tolist() == [[1, 0.2], [3, 0.3], [4, 0.1]]
    grey = [c for c in figure.axes[0].collections if c.get_gid() == "arm-control"]
    assert to_hex(grey[0].get_facecolor()[0]) == figures.GREY  # type: ignore[index]
    steps = {line.get_gid(): line for line in figure.axes[1].lines}
    assert sorted({*map(float, steps["ecdf-sampler"].get_ydata())} - {-math.inf}) == [0.1, 0.2, 0.3]  # type: ignore[arg-type]
    assert figures.title(figure) == (
        "Too few trials to compare the sampler with random search: it wins in 100% of pairs (p\u00a0=\u00a00.20)"
    )
    assert figure.axes[0].get_ylabel() == "validation error\nafter epoch 4 (%)"
    with pytest.raises(InputError, match="one of them has no trial"):
        figures.plot_control(compare_arms(values, dict.fromkeys(values, "sampler"), "val_error", 4))


def test_labels_overlap_neither_each_other_nor_marks() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(1e4), np.log(1e6), 60))
    errors = 10 / np.sqrt(sizes) * np.exp(rng.uniform(0, 0.4, 60))
    frame = pd.DataFrame(
        {
            "number": range(60),
            "state": ["complete", "stopped"] * 30,
            "arm": "sampler",
            "params": sizes,
            # stopped trials, which are on no front, may be at the position of a label of the front
            "val_error": errors * np.tile([1.0, 0.97], 30),
        }
    )
    figure = figures.plot_error_against_cost(frame, pareto_front(frame))
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text().startswith("#")]
    assert len(boxes) > 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = figure.axes[0].transData.transform(frame[["params", "val_error"]].to_numpy(float))
    assert not any(box.contains(x, y) for box in boxes for x, y in points)


def test_published_points_have_other_marks_and_name_their_error(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 3, image=(3, 32), sizes=(6, 14))
    frame = read_study(study.path)
    points = within_reach(published("cifar10").query("augmented"), frame)
    figure = figures.plot_error_against_cost(frame, pareto_front(frame), points)
    squares = [line for line in figure.axes[0].lines if line.get_gid() == "published"]
    assert sum(len(line.get_xdata()) for line in squares) == len(points) > 0  # type: ignore[arg-type]
    assert "published: test error" in figure.axes[0].get_ylabel()
    assert any("DenseNet-BC (L=100, k=12)" in text for text in texts(figure))


@pytest.mark.parametrize(("states", "title"), [([], "Nothing to show yet"), (["stopped"], "No trial is complete yet")])
def test_figure_of_a_study_without_a_result_states_that(tmp_path: Path, states: list[str], title: str) -> None:
    frame = read_study(make_study(tmp_path / "s", states).path)
    assert figures.title(figures.plot_error_against_cost(frame, pareto_front(frame))).startswith(title)


def test_a_perfect_network_is_drawn_at_zero() -> None:
    frame = pd.DataFrame(
        [
            {"number": 0, "state": "complete", "arm": "sampler", "params": 5_000, "val_error": 0.2, "network": "a"},
            {"number": 1, "state": "complete", "arm": "sampler", "params": 9_000, "val_error": 0.0, "network": "b"},
        ]
    )
    figure = figures.plot_error_against_cost(frame, pareto_front(frame), noise_floor=noise_floor(0.0, 100))
    assert figures.title(figure).startswith("Lowest error: 0.00% with 9.0 k params")
    low, high = figure.axes[0].get_ylim()
    assert low < 0 < 0.2 < high


def test_ties_and_an_unimproved_first_network_are_in_the_title() -> None:
    frame = pd.DataFrame(
        {"number": range(3), "state": "complete", "arm": ["first", "sampler", "sampler"], "params": [5.0, 6.0, 7.0]}
    )

    def title(errors: list[float], best: int) -> str:
        trials = frame.assign(val_error=errors)
        return figures.title(figures.plot_error_against_cost(trials, pareto_front(trials), best=best))

    assert title([0.1, 0.2, 0.3], 0) == "Lowest error: 10.00% with 5 params (#0); the search started from it"
    assert title([0.1, 0.1, 0.3], 0).endswith("(#0), which #1 reached too; the search started from it")
    assert title([0.1, 0.1, 0.1], 1).endswith("(#1), which 2 others reached too")
    assert title([0.2, 0.1, 0.3], 1).endswith("(#1)")
    curves = pd.DataFrame(
        {"number": [0, 0, 1, 1], "state": "complete", "epoch": [1, 2, 1, 2], "train_error": 0.1}
    ).assign(val_error=[0.4, 0.2, 0.3, 0.2])
    assert figures.title(figures.plot_learning_curves(curves, 0)) == (
        "#0 ended at 20.00% validation error, as 1 other trial did"
    )
    ahead = figures.plot_learning_curves(curves.assign(val_error=[0.4, 0.2, 0.3, 0.3]), 0)
    assert figures.title(ahead).endswith(", the lowest of the last epoch")


def test_title_of_learning_curves_states_the_final_error_of_the_best(study: StudyFolder) -> None:
    curves, best = learning_curves(study), study.best()[0]
    figure = figures.plot_learning_curves(curves, best.number)
    assert best.val_error is not None
    assert f"#{best.number} ended at {100 * best.val_error:.2f}% validation error" in figures.title(figure)
    axes = figure.axes[0]
    lines = {line.get_gid(): line for line in axes.lines}
    own = curves[curves["number"] == best.number]
    assert np.asarray(lines["best-val"].get_ydata()).tolist() == own["val_error"].tolist()
    assert np.asarray(lines["best-train"].get_ydata()).tolist() == own["train_error"].tolist()
    others = {c.get_gid(): len(c.get_paths()) for c in axes.collections if c.get_gid()}
    assert others == {"complete": 10, "stopped": 3, "running": 1}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "error (%)")
    with pytest.raises(InputError, match="no learning curve of trial 99"):
        figures.plot_learning_curves(curves, 99)


def test_the_heatmap_shows_the_ratio_and_names_the_blocks(study: StudyFolder) -> None:
    norms = weight_norms(read_norms(study.trial_folder(study.best()[0].number)))
    figure = figures.plot_weight_norms(norms)
    image = mesh(figure.axes[0])
    assert np.allclose(np.asarray(image.get_array()), norms.ratio)
    *inner, last = norms.ratio[:, -1]
    ends = f"{min(inner):.2f} to {max(inner):.2f} times their untrained size, the classifier at {last:.2f}"
    assert figures.title(figure) == f"Convolutions ended at {ends}"
    shown = texts(figure)
    assert {"stem", "transition 1", "transition 2", "classifier", "block 1"} <= set(shown)
    assert "RMS weight ÷ its untrained value" in shown
    assert figure.axes[0].get_xlabel() == "epoch (0: untrained)"


@pytest.mark.parametrize(("layers", "epochs"), [(3, 1), (12, 12), (66, 300)])
def test_row_names_of_a_heatmap_never_overlap(layers: int, epochs: int) -> None:
    names = ["stem"]
    for block in (1, 2, 3):
        names += [f"denseblock{block}.denselayer{i}" for i in range(1, layers + 1)]
        names += [f"transition{block}" if block < 3 else "classifier"]
    rms = np.linspace(1, 2, len(names))[:, None] * np.linspace(1, 0.5, epochs + 1)
    figure = figures.plot_weight_norms(WeightNorms(tuple(names), tuple(range(epochs + 1)), rms))
    figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in figure.axes[0].get_yticklabels() if label.get_text()]
    heights = sorted((box.y0, box.y1) for box in labels)
    assert all(upper[0] > lower[1] - 3 for lower, upper in itertools.pairwise(heights))
    assert len(labels) >= 4


def test_classifier_does_not_determine_the_colour_scale() -> None:
    norms = WeightNorms(("stem", "classifier"), (0, 1), np.array([[1.0, 1.2], [1.0, 10.0]]))
    figure = figures.plot_weight_norms(norms)
    image = mesh(figure.axes[0])
    assert image.get_clim() == (1.0, 1.2)
    assert image.colorbar is not None
    assert image.colorbar.extend == "max"
    assert figures.title(figure).endswith("the classifier at 10.00")


def test_rows_of_zero_weights_are_blank() -> None:
    norms = WeightNorms(("stem", "classifier"), (0, 1), np.array([[1.0, 2.0], [0.0, 1.0]]))
    image = mesh(figures.plot_weight_norms(norms).axes[0])
    assert np.ma.getmaskarray(image.get_array()).tolist() == [[False, False], [True, True]]
    with pytest.raises(InputError, match="no convolution"):
        figures.plot_weight_norms(WeightNorms(("stem",), (0,), np.array([[0.0]])))


def test_layer_costs_state_the_largest_shares() -> None:
    figure = figures.plot_layer_costs(PRESETS["densenet_bc_100_12"]())
    upper, lower = figure.axes
    assert sum(bar.get_height() for bar in upper.patches) == pytest.approx(769_162 / 1e3)  # type: ignore[attr-defined]
    assert sum(bar.get_height() for bar in lower.patches) == pytest.approx(287_929_692 / 1e6)  # type: ignore[attr-defined]
    # Computed from the sizes: a layer that reads c channels has 50c + 9 · 48 · 12 + 96 params.
    first, second, third = (sum(50 * (c + 12 * i) + 5280 for i in range(16)) for c in (24, 108, 150))
    assert max(first, second, third) == third
    macs = sum((48 * (24 + 12 * i) + 5184) * 32 * 32 for i in range(16))
    expected = f"Block 3 holds {third / 769_162:.0%} of the params, block 1 does {macs / 287_929_692:.0%} of the"
    assert figures.title(figure) == f"{expected} multiply-adds"


# --- saving -------------------------------------------------------------------------------------------------------


def test_figure_is_saved_in_the_format_of_its_suffix(tmp_path: Path, study: StudyFolder) -> None:
    figure = draw_main(study)
    starts = {"svg": b"<?xml", "png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-"}
    for suffix, start in starts.items():
        path = figures.save(figure, tmp_path / "new" / f"a.{suffix}")
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size > 5_000
    pdf = (tmp_path / "new" / "a.pdf").read_bytes()
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"/Type3" not in pdf, "submission systems refuse fonts of this type"
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    with pytest.raises(InputError, match=r"the file must end with \.svg, \.png or \.pdf, but got 'a\.gif'"):
        figures.save(figure, tmp_path / "a.gif")


def test_equal_input_yields_equal_bytes(tmp_path: Path, study: StudyFolder) -> None:
    for suffix in ("svg", "png", "pdf"):
        first, second = (figures.save(draw_main(study), tmp_path / f"{i}.{suffix}").read_bytes() for i in (1, 2))
        assert first == second
    assert b"<dc:date>" not in (tmp_path / "1.svg").read_bytes()


def test_drawing_leaves_no_state_behind(study: StudyFolder) -> None:
    import matplotlib

    draw_main(study)
    assert dict(matplotlib.rcParams) == dict(matplotlib.rcParamsOrig)


def test_dollar_signs_are_text(tmp_path: Path) -> None:
    points = pd.DataFrame(
        [{"method": r"DenseNet ($\frac{$)", "depth": 3, "params": 9_000, "augmented": True, "test_error": 0.1}]
    )
    frame = read_study(make_study(tmp_path / "s", ["complete"]).path)
    figure = figures.plot_error_against_cost(frame, pareto_front(frame), points)
    figures.save(figure, tmp_path / "a.svg")  # mathtext would raise
    assert any(r"$\frac{" in text for text in texts(figure))


def test_curves_of_one_epoch_are_marks(tmp_path: Path) -> None:
    single = make_study(tmp_path / "s", ["complete"] * 4, epochs=1)
    figure = figures.plot_learning_curves(learning_curves(single), single.best()[0].number)
    assert len(marks(figure, "single")) == 3


# --- gradients, and the norms of many trials ----------------------------------------------------------------------


def test_gradients_by_layer_and_epoch() -> None:
    layers = ("stem", "denseblock1.denselayer1", "denseblock1.denselayer2", "classifier")
    values = np.array([[9.0, 4.0, 8.0], [9.0, 2.0, 3.0], [9.0, 1.0, 1.0], [9.0, 2.0, 4.0]]) / 100
    figure = figures.plot_gradients(WeightNorms(layers, (0, 1, 2), values, "gradient"))
    heading = figures.title(figure).replace("\n", " ")
    assert heading == (
        "At the end of epoch 2, the first layer's gradient is 2 times the classifier's;"
        " the layers before it span a factor of 8"
    )
    image = mesh(figure.axes[0])
    assert np.allclose(np.asarray(image.get_array()), values[:, 1:])
    profile = figure.axes[1]
    assert [line.get_label() for line in profile.lines] == ["epoch 1", "epoch 2"]
    assert np.allclose(profile.lines[1].get_xdata(), values[:, 2])
    with pytest.raises(InputError, match="no epoch is finished"):
        figures.plot_gradients(WeightNorms(layers, (0,), values[:, :1], "gradient"))


def test_norms_of_many_trials_share_one_scale() -> None:
    def norms(last: float) -> WeightNorms:
        return WeightNorms(("stem", "classifier"), (0, 1), np.array([[1.0, last], [1.0, 50.0]]))

    shown = [(f"#{number}", norms(1 + number / 10)) for number in range(7)]
    figure = figures.plot_weight_norms_of_trials(shown, left_out=3)
    assert figures.title(figure).replace("\n", " ") == (
        "Convolutions ended at 1.00 to 1.60 times their untrained size in 7 trials, the best of 10"
    )
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in drawn] == [name for name, _ in shown]
    assert {mesh(axes).get_clim() for axes in drawn} == {(1.0, 1.6)}
    with pytest.raises(InputError, match="no trial has norms"):
        figures.plot_weight_norms_of_trials([])


def test_an_interval_of_two_seeds_does_not_flatten_the_curves() -> None:
    frame = pd.DataFrame(
        {"group": "ResNet", "network": ["a", "b"] * 3, "seed": [0, 0, 1, 1, 2, 2], "params": [1e4, 2e4] * 3}
    ).assign(val_error=[0.10, 0.05, 0.14, 0.09, 0.12, 0.07])

    def drawn(seeds: int) -> Figure:
        return plot_families(sized(frame[frame["seed"] < seeds]), None, finding="A finding", error="error")

    assert sized(frame[frame["seed"] < 2])[0].high > 0.3  # Student's interval with one degree of freedom
    assert drawn(2).axes[0].get_ylim()[1] < 0.16
    assert "2 seeds, too few for an interval" in texts(drawn(2))
    assert "95% interval of the mean, 3 seeds (dots)" in texts(drawn(3))
