"""Figures of the inside of trained networks: feature reuse, gradients, and the weight norms of several trials."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from dnas.analysis.efficiency import part_of
from dnas.analysis.reuse import BlockReuse, Reuse
from dnas.analysis.weight_norms import WeightNorms
from dnas.errors import InputError
from dnas.figures.heatmap import SEQUENTIAL, add_colorbar, draw_heatmap, ticks_at_cells
from dnas.figures.style import (
    BLUE,
    GREY,
    INK,
    QUIET,
    canvas,
    drawn_width,
    fit,
    has_title,
    lay_out,
    log_ticks,
    styled,
)
from dnas.figures.training import SIZES, label_rows, separate_parts
from dnas.formatting import percent, several

# From blue to red as in the paper, in the steps of ColorBrewer, which colour-blind readers can distinguish.
REUSE_MAP = "RdYlBu_r"
MAX_BAR_TICKS = 5
LINE_PITCH = 6  # points; triangles of smaller cells are drawn without lines between them

_NORMALISATIONS = {
    "column": "divided by the greatest of its column: red is the source that a layer uses most",
    "block": "divided by the greatest of its block",
    "none": "not normalised",
}
_ROWS_AND_FRAMES = " Top row: the block's input. Framed column: the transition or classifier."

# --- feature reuse ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Triangles:
    """Content of a figure of triangles, one per dense block. factor: From values to ticks of the colour bar."""

    blocks: Sequence[BlockReuse]
    title: str
    caption: str
    cmap: str
    norm: Normalize
    label: str
    factor: float = 1


def plot_reuse(reuse: Reuse) -> Figure:
    """Plot the paper's Figure 5: one triangle per dense block, all on one colour scale.

    Rows are sources (the first is the block's input), columns are targets (the last, framed, is the transition or
    classifier). Cells that do not differ from the untrained network are hatched.
    """
    top = 1.0 if reuse.normalise != "none" else max(float(np.nanmax(block.values)) for block in reuse.blocks)
    divisor = {"column": " ÷ column's greatest", "block": " ÷ block's greatest", "none": ""}[reuse.normalise]
    return _draw_triangles(
        _Triangles(
            reuse.blocks,
            _reuse_title(reuse),
            _reuse_caption(reuse),
            REUSE_MAP,
            Normalize(0, top or 1.0),
            f"mean |w|{divisor}",
        )
    )


def _reuse_title(reuse: Reuse) -> str:
    if reuse.epoch == 0:
        return "Untrained: no source of a layer is prominent"
    cells = sum(int(np.isfinite(block.values).sum()) for block in reuse.blocks)
    unclear = _unclear(reuse)
    if unclear > cells / 2:
        return f"{unclear} of {cells} cells do not differ from the untrained network"
    strongest = reuse.strongest()
    layers = sum(strongest.values())
    if not layers:
        return "Each layer reads a single source: no features are reused"
    return (
        f"Of {several(layers, 'layer')}, {strongest['before']} rely most on the preceding layer,"
        f" {strongest['input']} on their block's input"
    )


def _reuse_caption(reuse: Reuse) -> str:
    when = (
        "after the last epoch" if reuse.epoch is None else f"after epoch {reuse.epoch}" if reuse.epoch else "untrained"
    )
    seeds = f"mean of {reuse.networks} seeds" if reuse.networks > 1 else "one seed"
    caption = (
        "Mean |w| of the target's first convolution (or the classifier's matrix) over the channels that the source"
        f" produces, {_NORMALISATIONS[reuse.normalise]}; {when}, {seeds}.{_ROWS_AND_FRAMES}"
    )
    if _unclear(reuse):
        caption += " Hatched: does not differ from the untrained network (95%, each cell by itself)."
    return caption


def _unclear(reuse: Reuse) -> int:
    return sum(int(block.unclear.sum()) for block in reuse.blocks)


def plot_causal(causal: Reuse, intact: float, images: int, correlation: str) -> Figure:
    """Plot the validation error gained by cutting each connection, in the form of `plot_reuse`.

    Args:
        causal: `CausalReuse.as_reuse()`, in fractions.
        intact: Error of the network with every connection.
        images: Number of validation images that the errors were measured on.
        correlation: Statement about the weights for the title, such as "ρ with the weights 0.61 (0.50 to 0.70)".
    """
    values = np.concatenate([block.values[np.isfinite(block.values)] for block in causal.blocks])
    worst = float(values.max())
    title = f"Cutting one connection costs {percent(float(np.median(values)))} error at the median, at most"
    title += f" {percent(worst)}; {correlation}"
    caption = (
        "Validation error gained (percentage points) when the target no longer receives the source's channels: its"
        " weights on them are zero, all other readers keep them, and the network is not retrained. Intact:"
        f" {percent(intact)} error on {several(images, 'image')}.{_ROWS_AND_FRAMES}"
    )
    if (values < 0).any():
        caption += " Cells where the error fell are drawn as 0."
    blocks = [replace(block, values=np.maximum(block.values, 0)) for block in causal.blocks]
    norm = PowerNorm(0.5, 0, max(worst, 1e-9))
    return _draw_triangles(_Triangles(blocks, title, caption, SEQUENTIAL, norm, "error gained (points)", factor=100))


def _draw_triangles(content: _Triangles) -> Figure:
    """Lay out the triangles, a colour bar on the right, and the caption. All lengths are in inches.

    In a narrow figure, each block has a row.
    """
    left, gap, right, between = 0.62, 0.42, 0.75, 0.85
    width, blocks = drawn_width(), content.blocks
    rows = [[block] for block in blocks] if width < 6 else [blocks]
    counts = [[len(block.targets) for block in row] for row in rows]
    cell = min(min(0.42, (width - left - right - gap * (len(row) - 1)) / sum(row)) for row in counts)
    heights = [max(row) * cell for row in counts]
    lines = fit(content.caption, 146).splitlines()
    hatched = any(block.unclear.any() for block in blocks)
    heading = fit(content.title, 84).splitlines() if has_title() else []
    above, below = 0.52 + 0.2 * len(heading), 0.56 + 0.2 * hatched + 0.16 * len(lines)
    shown = max(sum(heights) + between * (len(rows) - 1), 0.9)
    height = above + shown + below
    with styled():
        figure = canvas(height, content.title, layout=False)
        top = above
        for row, tall in zip(rows, heights, strict=True):
            x = left
            for block in row:
                side = len(block.targets) * cell
                place = (x / width, 1 - (top + side) / height, side / width, side / height)
                axes = figure.add_axes(place, gid=f"block-{block.number}")
                _draw_triangle(axes, block, cell * 72, content.cmap, content.norm)
                if block is row[0]:
                    axes.set_ylabel("source layer s")
                x += side + gap
            top += tall + between
        end = left + max(sum(row) * cell + gap * (len(row) - 1) for row in counts)
        place = ((end + 0.22) / width, 1 - (above + shown) / height, 0.14 / width, shown / height)
        _draw_triangle_scale(figure, place, content)
        if hatched:
            _hatch_legend(figure, (1 - 0.08 / width, (0.14 + 0.16 * len(lines)) / height))
        figure.text(
            0.012, 0.08 / height, "\n".join(lines), ha="left", va="bottom", fontsize=8, color=QUIET, linespacing=1.25
        )
    return figure


def _draw_triangle_scale(figure: Figure, place: tuple[float, float, float, float], content: _Triangles) -> None:
    bar = figure.colorbar(ScalarMappable(content.norm, content.cmap), cax=figure.add_axes(place))
    bar.set_label(content.label, fontsize=8.5)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{content.factor * v:.3g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(length=0, labelsize=8)


def _hatch_legend(figure: Figure, anchor: tuple[float, float]) -> None:
    mark = Patch(facecolor="#d9d9de", edgecolor=INK, hatch="////", lw=0, label="does not differ from untrained")
    figure.legend(handles=[mark], loc="lower right", bbox_to_anchor=anchor, handlelength=1.4, handleheight=1.2)


def _draw_triangle(axes: Axes, block: BlockReuse, pitch: float, cmap: str, norm: Normalize) -> None:
    """Draw one block. pitch: side of a cell in points."""
    count = len(block.targets)
    draw_heatmap(axes, block.values, norm, cmap, lines=0.5 if pitch > LINE_PITCH else 0)
    hatch = "////" if pitch > 9 else "//////"
    for row, column in zip(*np.nonzero(block.unclear), strict=True):
        cell = Rectangle((column, row), 1, 1, fill=False, hatch=hatch, lw=0, edgecolor=INK, alpha=0.55, gid="unclear")
        axes.add_patch(cell)
    frame = Rectangle((count - 1, 0), 1, count, fill=False, lw=1.5, ec=INK, clip_on=False, zorder=4, gid="frame")
    axes.add_patch(frame)
    every = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20) if step * pitch >= 15 or step == 20)
    numbers = list(range(every, count, every))
    rows = [0, *numbers]
    axes.set_yticks([row + 0.5 for row in rows], ["in", *map(str, rows[1:])], fontsize=8, rotation=0)
    if numbers and count - numbers[-1] < 12 / pitch:
        numbers.pop()
    last = "T" if block.follower == "transition" else "C"
    axes.set_xticks([n - 0.5 for n in [*numbers, count]], [*map(str, numbers), last], fontsize=8)
    axes.tick_params(length=0, pad=2)
    axes.set_title(f"Block {block.number}", fontsize=9.5)
    axes.set_xlabel("target layer ℓ", labelpad=2)


# --- gradients ----------------------------------------------------------------------------------------------------


def plot_gradients(norms: WeightNorms) -> Figure:
    """Plot a heatmap of each layer's RMS gradient by epoch, and the profile over depth at the first and last epoch.

    norms: As returned by `gradient_norms`.
    """
    values = norms.values[:, 1:]
    if values.size == 0 or not np.isfinite(values).any() or not (values > 0).any():
        raise InputError("cannot draw gradients: no epoch is finished.")
    rows = len(values)
    with styled():
        figure = canvas(float(np.clip(2.2 + 0.19 * rows, 3.4, 7.4)), _gradient_title(values))
        axes, profile = figure.subplots(1, 2, width_ratios=(1.5, 1))
        positive = values[values > 0]
        norm = LogNorm(positive.min() / 1.05, positive.max() * 1.05)
        mesh = draw_heatmap(axes, np.where(values > 0, values, np.nan), norm)
        # The profile's axis has the colours' scale, so one bar below it serves both.
        bar = add_colorbar(figure, mesh, "RMS gradient of a weight", ax=profile, orientation="horizontal")
        log_ticks(bar.ax, "x", 1.0)
        ticks = bar.get_ticks().tolist()
        bar.set_ticks(ticks[:: -(-len(ticks) // MAX_BAR_TICKS)])
        axes.set_xlabel("epoch")
        ticks_at_cells(axes, 1, values.shape[1])
        _draw_profile(profile, values, norm)
        figure.supxlabel(
            fit("Root mean square over a layer's weights and over the last 10 steps of the epoch.", 146),
            x=0.012,
            ha="left",
            fontsize=8,
            color=QUIET,
        )
        lay_out(figure)
        label_rows(axes, norms.layers, axes.bbox.height * 72 / figure.dpi / rows)
        profile.set_yticks(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()], fontsize=8)
    return figure


def _gradient_title(values: np.ndarray) -> str:
    ends = values[:, -1]
    title = f"At the end of epoch {values.shape[1]}, the first layer's gradient is {ends[0] / ends[-1]:.2g} times"
    title += " the classifier's"
    inner = ends[:-1][ends[:-1] > 0]
    if len(inner) > 1:
        title += f"; the layers before it span a factor of {inner.max() / inner.min():.2g}"
    return title


def _draw_profile(axes: Axes, values: np.ndarray, norm: Normalize) -> None:
    """Draw the gradients over depth at the first measured epoch and the last, at the height of the heatmap's rows."""
    rows, columns = values.shape
    first, last = int(np.argmax(np.isfinite(values).any(axis=0))), columns - 1
    for epoch, colour in {first: GREY, last: BLUE}.items():
        places = np.arange(rows) + 0.5
        axes.plot(values[:, epoch], places, "-o", ms=3, lw=1.2, color=colour, label=f"epoch {epoch + 1}")
    axes.set_ylim(rows, 0)
    axes.set_xscale("log")
    axes.set_xlim(norm.vmin, norm.vmax)
    log_ticks(axes, "x", 1.0)
    axes.tick_params(labelbottom=False, length=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.5, columnspacing=1.2)


# --- weight norms of several trials -------------------------------------------------------------------------------


def plot_weight_norms_of_trials(trials: Sequence[tuple[str, WeightNorms]], left_out: int = 0) -> Figure:
    """Plot small heatmaps side by side, one per trial, in the form of `plot_weight_norms` and on one scale.

    Args:
        trials: (title, norms) of each trial, all norms of one kind, in the order of drawing.
        left_out: Number of further trials, for the title.
    """
    if not trials:
        raise InputError("there is nothing to draw: no trial has norms.")
    subject, label = SIZES[trials[0][1].kind]
    inner = [norms.ratio[[layer != "classifier" for layer in norms.layers]] for _, norms in trials]
    known = np.concatenate([ratio[np.isfinite(ratio)] for ratio in inner])
    if not len(known):
        raise InputError("cannot draw weight norms: no layer has weights of a finite size before training.")
    ends = np.concatenate([ratio[:, -1][np.isfinite(ratio[:, -1])] for ratio in inner])
    title = f"{subject} ended at {ends.min():.2f} to {ends.max():.2f} times their untrained size in"
    title += f" {several(len(trials), 'trial')}" + (f", the best of {len(trials) + left_out}" if left_out else "")
    across = min(len(trials), 6)
    down = -(-len(trials) // across)
    norm = Normalize(float(known.min()), float(max(known.max(), known.min() + 1e-6)))
    with styled():
        figure = canvas(0.9 + 0.2 * len(fit(title, 84).splitlines()) + 1.6 * down, title)
        grid = figure.subplots(down, across, squeeze=False)
        for axes, (name, norms) in zip(grid.flat, trials, strict=False):
            mesh = draw_heatmap(axes, norms.ratio, norm)
            axes.set_title(name, fontsize=8.5)
            columns = norms.ratio.shape[1]
            numbers = [0, columns - 1] if columns > 1 else [0]
            axes.set_xticks([number + 0.5 for number in numbers], [str(number) for number in numbers], fontsize=8)
            separate_parts(axes, [part_of(layer) for layer in norms.layers], 0.8)
        for axes in list(grid.flat)[len(trials) :]:
            axes.set_visible(False)
        add_colorbar(figure, mesh, label, ax=grid)
        rows = "epoch; each row is a layer, from the stem (top) to the classifier (bottom)"
        figure.supxlabel(fit(rows, 130), fontsize=8.5)
    return figure
