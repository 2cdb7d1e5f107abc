"""Colours, fonts, axes and saving, shared by all figures. Does not use pyplot and keeps no state."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from dnas.analysis.metrics import METRICS
from dnas.errors import InputError

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
INK, QUIET = "#1d1d1f", "#6b6b70"
COLOURS = {"best": RED, "sampler": BLUE, "first": GREEN, "control": GREY, "published": PURPLE, "front": INK}
ARMS = {"sampler": ("o", "sampler"), "control": ("o", "random control"), "first": ("D", "given first")}
# Legend text of the marks of trials that did not reach their last epoch, by state.
UNFINISHED = {
    "stopped": "stopped early, at its last error",
    "paused": "paused, at its last error; may be promoted",
}
KINDS = {"stem": BROWN, "dense": SKY, "unit": SKY, "transition": ORANGE, "classifier": YELLOW}

FORMATS = ("svg", "png", "pdf")

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # bundled with matplotlib, so figures are the same on every machine
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # keep `$` in names literal
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
    "svg.fonttype": "path",  # looks the same in every viewer, with any fonts installed
    "svg.hashsalt": "dnas",
    "pdf.fonttype": 42,  # TrueType: submission systems refuse Type 3 fonts
}
WIDTH = 8.2  # inches
NOT_OF_FIGURES = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch")
_DEFAULTS = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in NOT_OF_FIGURES}


@contextmanager
def styled() -> Iterator[None]:
    """Context with the style of dnas alone: settings of the user's matplotlibrc have no effect."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update(_DEFAULTS | _STYLE)  # type: ignore[arg-type]
        yield


def check_format(path: Path | str) -> str:
    """Return the format that the suffix of `path` names. Raises `InputError` if it is unknown."""
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        suffixes = ", ".join("." + name for name in FORMATS)
        raise InputError(f"cannot save a figure as {Path(path).name!r}: the suffix must be one of {suffixes}.")
    return kind


def save(figure: Figure, path: Path | str) -> Path:
    """Write `figure` in the format of the suffix of `path`: .svg, .png (144 dpi) or .pdf.

    Equal figures are written as equal bytes.
    """
    path, kind = Path(path), check_format(path)
    # Omit dates and versions, so that a file changes only with the content of its figure.
    metadata: dict[str, dict[str, None]] = {
        "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
        "png": {"Software": None},
        "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with styled(), _pdf_fonts_without_layout() if kind == "pdf" else nullcontext():
        figure.savefig(path, format=kind, dpi=144, metadata=metadata[kind])
    return path


@contextmanager
def _pdf_fonts_without_layout() -> Iterator[None]:
    """Context in which fontTools drops the tables of a font that place its glyphs, since a PDF file places each glyph.

    Reducing these tables to the characters of a figure took most of the time of a PDF file.
    """
    from fontTools import subset

    defaults = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*defaults, "GSUB", "GPOS", "GDEF", "MATH", "FFTM"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = defaults


def lay_out(figure: Figure) -> None:
    """Apply the layout, which determines the positions in pixels."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)


class Drawing(Figure):
    """Figure with hover texts. `hover[gid]` holds a text per mark of a collection, in the order of its offsets."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hover: dict[str, list[str]] = {}

    def _repr_png_(self) -> bytes:
        """Return the figure as a notebook shows it."""
        content = BytesIO()
        with styled():
            self.savefig(content, format="png", dpi=144)
        return content.getvalue()


def canvas(height: float, title: str, width: float = WIDTH) -> Drawing:
    figure = Drawing(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, fontweight="bold")
    return figure


def title(figure: Figure) -> str:
    """Return the title of a figure, which states its finding."""
    return figure.get_suptitle()


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
