"""Colours, fonts, sizes and axes, shared by all figures. Does not use pyplot."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from dnas.analysis.metrics import METRICS
from dnas.figures.files import written
from dnas.figures.settings import INK as INK
from dnas.figures.settings import STYLES as STYLES
from dnas.figures.settings import UNTITLED as UNTITLED
from dnas.figures.settings import Format, is_narrow
from dnas.figures.settings import lay_out as lay_out
from dnas.figures.settings import styled as styled

# seaborn's `colorblind` palette. Each colour has the same meaning in all figures and on the report page.
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, YELLOW, SKY = (
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#fbafe4",
    "#949494",
    "#ece133",
    "#56b4e9",
)
QUIET = "#6b6b70"
COLOURS = {"best": RED, "sampler": BLUE, "first": GREEN, "control": GREY, "published": PURPLE, "front": INK}
ARMS = {"sampler": ("o", "sampler"), "control": ("o", "random control"), "first": ("D", "given first")}
# Legend text of the marks of trials that did not reach their last epoch, by state.
UNFINISHED = {
    "stopped": "stopped early, at its last error",
    "paused": "paused, at its last error; may be promoted",
}
KINDS = {"stem": BROWN, "dense": SKY, "unit": SKY, "transition": ORANGE, "classifier": YELLOW}
PANEL, SMALL_PANEL = 2.5, 1.8  # smallest width in inches of a panel as drawn, and of one among many
_format: ContextVar[Format] = ContextVar("format", default=STYLES["page"])
_target: ContextVar[SubFigure | None] = ContextVar("target", default=None)


@contextmanager
def formatted(format: Format) -> Iterator[None]:
    """Context (or decorator) in which figures are drawn in the given format."""
    token = _format.set(format)
    try:
        yield
    finally:
        _format.reset(token)


@contextmanager
def drawn_on(part: SubFigure) -> Iterator[None]:
    """Context in which each plot function draws on a part of a figure, and returns it, instead of a new figure.

    For example, `left, right = Figure(layout="constrained").subfigures(1, 2)`, and then
    `with drawn_on(left): plot_importance(shares)`.
    """
    token = _target.set(part)
    try:
        yield
    finally:
        _target.reset(token)


class Drawing(Figure):
    """Figure with hover texts. `hover[gid]` holds a text per mark of a collection, in the order of its offsets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hover: dict[str, list[str]] = {}
        self.finding = ""
        self.scale = 1.0

    def subplots(self, nrows: int = 1, ncols: int = 1, **options: Any) -> Any:
        """Add a grid of axes. If the figure is narrow, the columns that have no room continue in further rows."""
        room = max(1, int(self.get_figwidth() / (SMALL_PANEL if nrows > 1 or ncols > 3 else PANEL)))
        if ncols <= room or not is_narrow(self):
            return super().subplots(nrows, ncols, **options)
        count, rows = nrows * ncols, -(-nrows * ncols // room)
        self.set_figheight(self.get_figheight() * max(1.0, 0.75 * rows / nrows))
        squeeze, options = options.get("squeeze", True), {k: v for k, v in options.items() if k in ("sharex", "sharey")}
        grid = super().subplots(rows, room, squeeze=False, **options)
        for unused in grid.flat[count:]:
            unused.remove()
        panels = grid.flat[:count].reshape(nrows, ncols)
        return panels[0] if nrows == 1 and squeeze else panels

    def legend(self, *arguments: Any, **options: Any) -> Legend:
        """Add a legend, in fewer columns if the figure is narrow."""
        share = min(1.0, self.get_figwidth() / Format.width)
        return super().legend(*arguments, **options | {"ncols": max(1, int(share * options.get("ncols", 1)))})

    def _repr_png_(self) -> bytes:
        """Return the figure as a notebook shows it."""
        return written(self, "png")

    def _repr_svg_(self) -> str:
        """Return the figure as a notebook shows it, with sharp lines at any size."""
        return written(self, "svg").decode()


def canvas(height: float, title: str, layout: bool = True) -> Drawing:
    """Return an empty figure in the current format, or the part of a figure that `drawn_on` names.

    Args:
        height: Height in inches.
        title: The finding.
        layout: Whether matplotlib places the axes. If not, the caller does, and has space for the title above them.
    """
    format, part = _format.get(), _target.get()
    if part is not None:
        figure = cast(Drawing, part)
        figure.hover = {}
    else:
        engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08) if layout else None
        figure = Drawing(figsize=(format.drawn_width, height), layout=engine)
        figure.scale = format.scale
    figure.finding = title
    if format.title:
        y = {} if layout else {"y": 1 - 0.1 / height, "va": "top"}
        figure.suptitle(fit(title, 84), x=0.012, ha="left", fontsize=11.5, fontweight="bold", **y)
    return figure


def has_title() -> bool:
    """Return whether the current format has titles."""
    return _format.get().title


def drawn_width() -> float:
    """Return the width in inches of figures in the current format."""
    part = _target.get()
    return _format.get().drawn_width if part is None else part.bbox.width / part.dpi


def fit(text: str, characters: int) -> str:
    """Wrap each line of a text that has room for a number of characters in a figure of the usual width."""
    share = drawn_width() / Format.width
    room = characters if share >= 1 else max(20, int(0.95 * share * characters))
    return "\n".join(textwrap.fill(line, room) for line in text.splitlines())


def title(figure: Figure) -> str:
    """Return the title of a figure, which states its finding, whether the figure shows it or not."""
    return getattr(figure, "finding", "") or figure.get_suptitle()


def error_axis(axes: Axes, errors: Sequence[float], label: str, factor: float = 100) -> None:
    """Set up the y axis for errors, labelled in `factor` times the values (default: percent).

    The scale is logarithmic if the errors span a factor above 4. If one of them is 0, its lowest part is linear.
    """
    axes.set_ylabel(label)
    max_error = 1.0 if factor == 100 else np.inf  # no error is above 100%
    positive = [error for error in errors if error > 0]
    if not positive:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{factor * y:g}"))
        return
    smallest, largest = min(positive), max(positive)
    zero = min(errors) == 0
    if largest / smallest <= 4 and not zero:
        pad = 0.12 * (largest - smallest) or 0.1 * largest
        axes.set_ylim(max(0, smallest - pad), min(max_error, largest + pad))
        axes.yaxis.set_major_locator(MaxNLocator(7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(factor * y, 6):g}"))
        return
    if zero:
        axes.set_yscale("symlog", linthresh=smallest, linscale=0.35)
        axes.set_ylim(-0.12 * smallest, min(1.15 * max_error, largest * 1.25))
    else:
        axes.set_yscale("log")
        axes.set_ylim(smallest / 1.3, min(1.15 * max_error, largest * 1.25))
    log_ticks(axes, "y", factor)


def cost_axis(axes: Axes, sizes: Sequence[float], objective: str) -> None:
    label, scale = METRICS[objective].axis_for(max(sizes, default=0))
    axes.set_xscale("log")
    axes.set_xlabel(label)
    if len(sizes):
        low, high = min(sizes), max(sizes)
        room = max(1.12, (high / low) ** 0.06) if high / low > 1.5 else 2.0
        axes.set_xlim(low / room, high * room)
    log_ticks(axes, "x", scale)


def log_ticks(axes: Axes, side: str, factor: float) -> None:
    """Set ticks at 1, 2 and 5 times powers of ten of the printed value, fewer over many decades, more within one."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    low, high = axes.get_xlim() if side == "x" else axes.get_ylim()
    shown = [0.0] if low < 0 else []
    low = max(low, 1e-12) if low > 0 else (axes.yaxis.get_transform().linthresh * 0.5)  # type: ignore[attr-defined]
    decades = np.log10(high / low)
    steps: tuple[float, ...] = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    for more_than, fewer in ((0.6, (1, 2, 3, 5, 7)), (1.3, (1, 2, 5)), (3.5, (1,))):
        steps = fewer if decades > more_than else steps
    powers = np.arange(np.floor(np.log10(low * factor)), np.ceil(np.log10(high * factor)) + 1)
    values = sorted(step * 10**power / factor for power in powers for step in steps)
    axis.set_major_locator(FixedLocator(shown + [v for v in values if low <= v <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * factor:.4g}"))
    axis.set_minor_formatter(NullFormatter())
