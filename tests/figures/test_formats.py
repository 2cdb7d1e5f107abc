"""Sizes, files and parts of figures: the width and text that were asked for, in each format, with nothing cut off."""

import io
import re
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image

from dnas import figures
from dnas.analysis.progress import distribution
from dnas.figures.files import Recording
from dnas.figures.heatmap import draw_heatmap
from dnas.figures.style import Drawing, canvas, lay_out, styled

LONG = "The finding of a figure is a sentence that may be longer than the figure is wide, and then it is wrapped"


def curve() -> Figure:
    return figures.plot_distribution({"a": distribution([0.1, 0.2, 0.2, 0.3])})


def shares() -> Figure:
    choices = [f"a_long_name_of_choice_{number}" for number in range(3)]
    table = pd.DataFrame({"choice": choices, "share": [0.5, 0.3, 0.2], "low": 0.1, "high": 0.6, "null": 0.3})
    return figures.plot_importance(table)


def panels() -> Figure:
    with styled():
        figure = canvas(2.5, LONG)
        for axes in figure.subplots(1, 3, sharey=True):
            axes.plot([1000, 9000], [0, 1], label="a line with a long name, in one of three panels")
            axes.set_xlabel("a quantity with a long name (in thousands of units)")
        figure.legend(loc="outside lower left", ncols=3)
    return figure


def heatmap() -> Figure:
    with styled():
        figure = canvas(2.5, "A figure")
        mesh = draw_heatmap(figure.add_subplot(), np.arange(12.0).reshape(3, 4), Normalize(0, 11))
        mesh.axes.set_xlabel("a label")
    return figure


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(float)


@pytest.mark.parametrize(("style", "width", "points"), [("page", 8.2, 9.5), ("paper", 3.25, 8), ("slides", 10, 16)])
def test_each_file_has_the_width_and_text_of_its_style(style: str, width: float, points: float) -> None:
    with figures.formatted(figures.STYLES[style]):
        recording = Recording(curve(), dpi=100)
    svg, png, pdf = (recording.written(kind) for kind in figures.FORMATS)
    sides = re.search(r'width="([\d.]+)pt".*?viewBox="0 0 ([\d.]+)', svg.decode(), re.DOTALL)
    assert sides is not None
    assert float(sides[1]) == pytest.approx(72 * width, abs=0.01)
    assert 9.5 * float(sides[1]) / float(sides[2]) == pytest.approx(points, abs=0.01)
    assert pixels(png).shape[1] == pytest.approx(100 * width, abs=1)
    assert Image.open(io.BytesIO(png)).info["dpi"] == pytest.approx((100, 100), abs=0.1)
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)
    assert box is not None
    assert float(box[1]) == pytest.approx(72 * width, abs=0.01)


def test_text_of_an_svg_file_is_text_with_a_generic_font() -> None:
    svg = Recording(curve()).written("svg").decode()
    assert ">trials at or below (%)</text>" in svg
    assert "'DejaVu Sans', Verdana, sans-serif" in svg


def test_paper_figures_keep_their_finding_but_do_not_show_it() -> None:
    finding = figures.title(curve())
    assert finding == "Half of 4 trials are at or below 20.00%"
    assert finding in Recording(curve()).written("svg").decode()
    with figures.formatted(figures.STYLES["paper"]):
        figure = curve()
    assert figures.title(figure) == finding
    assert "Half of" not in Recording(figure).written("svg").decode()


@pytest.mark.parametrize("draw", [curve, heatmap])
def test_recorded_png_files_look_like_those_of_matplotlib(draw: Callable[[], Figure]) -> None:
    recorded, file = pixels(Recording(draw()).written("png")), io.BytesIO()
    with styled():
        draw().savefig(file, format="png", dpi=144)
    expected = pixels(file.getvalue())
    assert recorded.shape == expected.shape
    assert np.abs(recorded - expected).mean() < 3  # of 255, from text moved by less than a pixel
    assert recorded.std() == pytest.approx(expected.std(), rel=0.05)


def test_heatmaps_are_images_in_pdf_files() -> None:
    assert b"/Subtype /Image" in Recording(heatmap()).written("pdf")
    assert b"/Subtype /Image" not in Recording(curve()).written("pdf")


@pytest.mark.parametrize("draw", [curve, shares, panels])
@pytest.mark.parametrize("style", ["paper", "slides"])
def test_no_text_is_cut_off_or_overlaps_in_a_narrow_figure(draw: Callable[[], Figure], style: str) -> None:
    with figures.formatted(figures.STYLES[style]):
        figure = draw()
    lay_out(figure)
    labels = [part for axes in figure.axes for part in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    keys = [text for legend in figure.findobj(Legend) for text in legend.get_texts()]
    for text in (*labels, *keys, *(text for text in figure.texts)):
        if text.get_text():
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.x1 <= figure.bbox.width + 1, text
    for axes in figure.axes:
        low, high = axes.get_xlim()
        shown = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in shown if label.get_text()]
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_figures_are_drawn_on_parts_of_a_figure() -> None:
    whole = Figure(figsize=(8, 3), layout="constrained")
    left, right = whole.subfigures(1, 2)
    for part in (left, right):
        with figures.drawn_on(part):
            assert curve() is part
    assert [len(part.axes) for part in (left, right)] == [1, 1]
    assert Recording(whole).written("svg").count(b">trials at or below (%)</text>") == 2
    assert isinstance(curve(), Drawing)


def test_notebooks_show_a_figure() -> None:
    figure = heatmap()
    assert isinstance(figure, Drawing)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert "A figure" in figure._repr_svg_()


@pytest.mark.parametrize("draw", [curve, shares, panels, heatmap])
def test_what_is_remembered_while_drawing_changes_no_figure(
    draw: Callable[[], Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Recording(draw()).written("svg")
    for module in ("settings", "files"):
        monkeypatch.setattr(f"dnas.figures.{module}.remembered", nullcontext)
    assert Recording(draw()).written("svg") == figure


def test_a_saved_figure_keeps_its_layout_engine(tmp_path: Path) -> None:
    figure = curve()
    engine, dpi = figure.get_layout_engine(), figure.dpi
    figures.save(figure, tmp_path / "a.pdf")
    assert (figure.get_layout_engine(), figure.dpi) == (engine, dpi)
