"""Settings of matplotlib, sizes of figures, and their layout. Does not use pyplot."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dnas.figures.memo import remembered

INK = "#1d1d1f"  # colour of text
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # bundled with matplotlib, so figures are the same on every machine
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # keep `$` in names literal
    "text.hinting": "none",  # faster, and texts have the same widths in all formats
    "axes.edgecolor": "#b8b8bd",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#ececf0",
    "grid.linewidth": 0.8,
    "xtick.color": "#b8b8bd",
    "ytick.color": "#b8b8bd",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.fonttype": "none",  # text stays text, in the first font of `dnas.figures.files.FONTS` that a viewer has
    "svg.hashsalt": "dnas",
    "pdf.fonttype": 42,  # TrueType: submission systems refuse Type 3 fonts
}
NOT_OF_FIGURES = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch")
_is_styled: ContextVar[bool] = ContextVar("is_styled", default=False)
_DEFAULTS = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in NOT_OF_FIGURES}


TEXT_POINTS = 9.5  # size of text and of everything else as drawn; a `Format` scales the result


@dataclass(frozen=True)
class Format:
    """Size of a figure on paper or on a screen.

    Attributes:
        width: Width in inches.
        text: Size of the text in points. Lines and marks are scaled with it.
        title: Whether the title, which states the finding, is part of the figure.
    """

    width: float = 8.2
    text: float = TEXT_POINTS
    title: bool = True

    @property
    def scale(self) -> float:
        """Size of the result divided by the size at which a figure is drawn."""
        return self.text / TEXT_POINTS

    @property
    def drawn_width(self) -> float:
        """Width in inches at which a figure is drawn."""
        return self.width / self.scale


STYLES = {
    "page": Format(),
    "paper": Format(width=3.25, text=8, title=False),  # one column; two columns are 6.75 in wide
    "slides": Format(width=10, text=16),
}
UNTITLED = Format(title=False)  # the pages of dnas, which have the title above the figure


@contextmanager
def styled() -> Iterator[None]:
    """Context with the style of dnas alone: settings of the user's matplotlibrc have no effect.

    Within another such context it does nothing, because setting all parameters takes some milliseconds.
    """
    if _is_styled.get():
        yield
        return
    token = _is_styled.set(True)
    try:
        with matplotlib.rc_context():
            matplotlib.rcParams.update(_DEFAULTS | _STYLE)  # type: ignore[arg-type]
            yield
    finally:
        _is_styled.reset(token)


def is_narrow(figure: Figure) -> bool:
    """Return whether a figure is too narrow for the usual arrangement of its parts."""
    return bool(figure.get_figwidth() < 0.75 * Format.width)


def lay_out(figure: Figure) -> None:
    """Apply the layout, which determines the positions in pixels."""
    root = figure.get_figure(root=True)
    if (engine := root.get_layout_engine()) is None:
        return
    with remembered():
        engine.execute(root)
    if is_narrow(root) and hasattr(root, "finding"):  # a figure of dnas
        for axes in root.axes:
            _fit_labels(axes)
        with remembered():
            engine.execute(root)


def _fit_labels(axes: Axes) -> None:
    """Wrap the titles, labels and legend of narrow axes, and leave out labels of ticks that overlap."""
    box = axes.get_window_extent()
    headings = {axes.get_title(loc) for loc in ("left", "center", "right")}
    titles = [text for text in axes.get_children() if isinstance(text, Text) and text.get_text() in headings]
    for label in (*titles, axes.xaxis.label):
        _wrap(label, label.get_window_extent().width, box.width)
    _wrap(axes.yaxis.label, axes.yaxis.label.get_window_extent().height, box.height)
    if legend := axes.get_legend():
        for text in legend.get_texts():
            _wrap(text, legend.get_window_extent().width, box.width)
    low, high = sorted(axes.get_xlim())
    labels = [label for label in axes.get_xticklabels() if label.get_text() and low <= label.get_position()[0] <= high]
    boxes = [label.get_window_extent() for label in labels]
    step = next((n for n in range(1, len(boxes)) if not _overlap(boxes[::n])), len(boxes) or 1)
    if step == 1:
        return
    if all(re.fullmatch(r"[-−]?[\d.,]+", label.get_text()) for label in labels):
        axes.set_xticks([label.get_position()[0] for label in labels[::step]], [x.get_text() for x in labels[::step]])
    else:
        axes.tick_params(axis="x", labelrotation=90)


def _wrap(text: Text, length: float, room: float) -> None:
    """Wrap a text of the given length, so that its lines fit into a room."""
    if text.get_text() and length > room:
        text.set_text(textwrap.fill(text.get_text(), max(12, int(len(text.get_text()) * room / length))))


def _overlap(boxes: Sequence[Bbox]) -> bool:
    return any(right.x0 < left.x1 + 2 for left, right in pairwise(boxes))
