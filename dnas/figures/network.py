"""What is inside trained networks: how layers reuse each other's maps, and how large weights and gradients are."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dnas.analysis.efficiency import part_of
from dnas.analysis.reuse import BlockReuse, Reuse
from dnas.analysis.weight_norms import WeightNorms
from dnas.errors import InputError
from dnas.figures.style import BLUE, GREY, INK, QUIET, WIDTH, canvas, log_ticks, styled
from dnas.figures.training import SIZES, name_rows
from dnas.formatting import percent, several

# From blue to red as in the paper, but in ColorBrewer's steps, which colour-blind readers can tell apart.
REUSE_MAP = "RdYlBu_r"

_MEANING = {
    "column": "over the greatest of its column: red is the source that a layer draws on most",
    "block": "over the greatest of its block",
    "none": "not normalised",
}

# --- feature reuse ------------------------------------------------------------------------------------------------


def plot_reuse(reuse: Reuse) -> Figure:
    """The paper's Figure 5: a triangle a block, rows are sources (the first the block's input), columns targets (the
    last, framed, the transition or classifier), all on one scale; hatched where a cell can't be told from untrained."""
    found = reuse.strongest()
    layers = sum(found.values())
    if reuse.epoch == 0:
        title = "Untrained, no source of a layer stands out"
    elif not layers:
        title = "Each layer reads a single source: nothing is reused"
    else:
        title = (
            f"Of {several(layers, 'layer')}, {found['before']} draw most on the layer just before,"
            f" {found['input']} on their block's input"
        )
    cells = sum(int(np.isfinite(block.values).sum()) for block in reuse.blocks)
    unclear = sum(int(block.unclear.sum()) for block in reuse.blocks)
    if reuse.epoch != 0 and unclear > cells / 2:
        title = f"{unclear} of {cells} cells can't be told from the same network untrained"
    when = "after the last epoch" if reuse.epoch is None else f"after epoch {reuse.epoch}"
    seeds = f"mean of {reuse.networks} seeds" if reuse.networks > 1 else "one seed"
    caption = (
        "Mean |w| of the target's first convolution (or the classifier's matrix) over the channels that the source"
        f" made, {_MEANING[reuse.normalise]}; {when if reuse.epoch != 0 else 'untrained'}, {seeds}."
        " Top row: the block's input; framed: the transition or classifier."
    )
    if unclear:
        caption += " Hatched: cannot be told from the same network untrained (95%, cell by cell)."
    top = 1.0 if reuse.normalise != "none" else max(float(np.nanmax(block.values)) for block in reuse.blocks)
    label = "mean |w|" + {"column": " ÷ column's greatest", "block": " ÷ block's greatest", "none": ""}[reuse.normalise]
    return _triangles(reuse.blocks, title, caption, REUSE_MAP, Normalize(0, top or 1.0), label)


def plot_causal(causal: Reuse, intact: float, images: int, correlation: str) -> Figure:
    """The validation error gained where a target no longer gets a source's channels, in the form of `plot_reuse`.

    causal: `CausalReuse.as_reuse()`, fractions. intact: the error with every connection, on so many `images`.
    correlation: what the title says of the weights, such as "ρ with the weights 0.61 (0.50 to 0.70)".
    """
    values = np.concatenate([block.values[np.isfinite(block.values)] for block in causal.blocks])
    blocks = [replace(block, values=np.maximum(block.values, 0)) for block in causal.blocks]
    worst = max(float(values.max()), 1e-9)
    title = f"Cutting one connection costs {percent(float(np.median(values)))} error at the median, at most"
    title += f" {percent(float(values.max()))}; {correlation}"
    caption = (
        "Validation error gained (percentage points) where the target no longer gets the source's channels: its"
        " weights on them are zero, every other reader keeps them, nothing is trained again. Intact:"
        f" {percent(intact)} error on {several(images, 'image')}."
        " Top row: the block's input; framed: the transition or classifier."
    )
    if (values < 0).any():
        caption += " Cells where the error fell are drawn as 0."
    return _triangles(blocks, title, caption, "cividis", PowerNorm(0.5, 0, worst), "error gained (points)", factor=100)


def _triangles(
    blocks: Sequence[BlockReuse], title: str, caption: str, cmap: str, norm: Normalize, label: str, factor: float = 1
) -> Figure:
    columns = [len(block.targets) for block in blocks]
    left, gap, right, bar = 0.62, 0.42, 0.75, 0.14  # inches
    cell = min(0.42, (WIDTH - left - right - gap * (len(blocks) - 1)) / sum(columns))
    lines = textwrap.wrap(caption, 146)
    hatched = any(block.unclear.any() for block in blocks)
    heading = textwrap.wrap(title, 84)
    above, below = 0.52 + 0.2 * len(heading), 0.56 + 0.2 * hatched + 0.16 * len(lines)
    tall = max(columns) * cell
    height = above + max(tall, 0.9) + below
    with styled():
        figure = Figure(figsize=(WIDTH, height))
        figure.suptitle(
            "\n".join(heading), x=0.012, y=1 - 0.1 / height, ha="left", va="top", fontsize=11.5, fontweight="bold"
        )
        x = left
        for block, count in zip(blocks, columns, strict=True):
            side = count * cell
            axes = figure.add_axes(
                (x / WIDTH, 1 - (above + side) / height, side / WIDTH, side / height), gid=f"block-{block.number}"
            )
            _triangle(axes, block, cell * 72, cmap, norm)
            if block is blocks[0]:
                axes.set_ylabel("source layer s")
            x += side + gap
        shown = max(tall, 0.9)
        across = x - gap + 0.22
        cax = figure.add_axes((across / WIDTH, 1 - (above + shown) / height, bar / WIDTH, shown / height))
        scale = figure.colorbar(ScalarMappable(norm, cmap), cax=cax)
        scale.set_label(label, fontsize=8.5)
        scale.outline.set_visible(False)
        scale.ax.yaxis.set_major_locator(MaxNLocator(5))
        scale.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{factor * v:.3g}"))
        scale.ax.yaxis.set_minor_formatter(NullFormatter())
        scale.ax.tick_params(length=0, labelsize=8)
        if hatched:
            mark = Patch(facecolor="#d9d9de", edgecolor=INK, hatch="////", lw=0, label="not told from untrained")
            figure.legend(
                handles=[mark],
                loc="lower right",
                bbox_to_anchor=(1 - 0.08 / WIDTH, (0.14 + 0.16 * len(lines)) / height),
                handlelength=1.4,
                handleheight=1.2,
            )
        figure.text(
            0.012, 0.08 / height, "\n".join(lines), ha="left", va="bottom", fontsize=8, color=QUIET, linespacing=1.25
        )
    return figure


def _triangle(axes: Axes, block: BlockReuse, pitch: float, cmap: str, norm: Normalize) -> None:
    count = len(block.targets)
    axes.grid(False)
    axes.imshow(
        np.ma.masked_invalid(block.values),
        cmap=cmap,
        norm=norm,
        interpolation="nearest",
        aspect="auto",
        extent=(0.5, count + 0.5, count - 0.5, -0.5),
    )
    for row, column in zip(*np.nonzero(block.unclear), strict=True):
        axes.add_patch(
            Rectangle(
                (column + 0.5, row - 0.5),
                1,
                1,
                fill=False,
                hatch="////" if pitch > 9 else "//////",
                lw=0,
                edgecolor=INK,
                alpha=0.55,
                gid="unclear",
            )
        )
    if pitch > 6:  # white lines between cells
        for at in range(1, count):
            axes.plot([at + 0.5] * 2, [-0.5, at + 0.5], color="white", lw=0.5, zorder=2)
            axes.plot([at - 0.5, count + 0.5], [at - 0.5] * 2, color="white", lw=0.5, zorder=2)
    axes.add_patch(
        Rectangle((count - 0.5, -0.5), 1, count, fill=False, lw=1.5, ec=INK, clip_on=False, zorder=4, gid="frame")
    )
    every = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20) if step * pitch >= 15 or step == 20)
    numbers = list(range(every, count, every))
    if numbers and count - numbers[-1] < 12 / pitch:
        numbers.pop()
    axes.set_xticks([*numbers, count], [*map(str, numbers), "T" if block.follower == "transition" else "C"], fontsize=8)
    rows = range(every, count, every)
    axes.set_yticks([0, *rows], ["in", *map(str, rows)], fontsize=8)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlim(0.5, count + 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_title(f"Block {block.number}", fontsize=9.5)
    axes.set_xlabel("target layer ℓ", labelpad=2)


# --- gradients ----------------------------------------------------------------------------------------------------


def plot_gradients(norms: WeightNorms) -> Figure:
    """Heatmap of each layer's RMS gradient (rows, in depth order) by epoch, and beside it the first and last epoch's
    profile over depth. norms: as `gradient_norms`."""
    values = norms.values[:, 1:]
    if values.size == 0 or not np.isfinite(values).any() or not (values > 0).any():
        raise InputError("gradients can't be drawn: no epoch is finished.")
    measured = np.isfinite(values).any(axis=0)
    first, last = int(np.argmax(measured)), values.shape[1] - 1
    ends = values[:, last]
    title = f"At the end of epoch {last + 1}, the first layer's gradient is {ends[0] / ends[-1]:.2g} times"
    title += " the classifier's"
    inner = ends[:-1][ends[:-1] > 0]
    if len(inner) > 1:
        title += f"; the layers before it span a factor of {inner.max() / inner.min():.2g}"
    rows, columns = values.shape
    parts = [part_of(layer) for layer in norms.layers]
    with styled():
        figure = canvas(float(np.clip(1.8 + 0.17 * rows, 3.0, 7.4)), "\n".join(textwrap.wrap(title, 84)))
        axes, profile = figure.subplots(1, 2, sharey=True, width_ratios=(2.3, 1))
        axes.grid(False)
        positive = values[values > 0]
        mesh = axes.imshow(
            np.ma.masked_less_equal(np.ma.masked_invalid(values), 0),
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            norm=LogNorm(positive.min(), max(positive.max(), positive.min() * 1.001)),
            extent=(0.5, columns + 0.5, rows - 0.5, -0.5),
        )
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
        bar.set_label("RMS gradient of a weight")
        log_ticks(bar.ax, "y", 1.0)
        bar.outline.set_visible(False)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(min(12, columns), integer=True))
        for epoch, colour in ((first, GREY), (last, BLUE)) if first < last else ((last, BLUE),):
            profile.plot(values[:, epoch], range(rows), "-o", ms=3, lw=1.2, color=colour, label=f"epoch {epoch + 1}")
        profile.set_xscale("log")
        profile.autoscale_view()
        low, high = profile.get_xlim()
        if high > 10 * low:
            profile.xaxis.set_major_locator(LogLocator(numticks=5))
            profile.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            profile.xaxis.set_minor_formatter(NullFormatter())
        else:
            log_ticks(profile, "x", 1.0)
        profile.set_xlabel("RMS gradient of a weight")
        profile.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.5, columnspacing=1.2)
        profile.tick_params(axis="y", labelleft=False, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        axes.set_ylim(rows - 0.5, -0.5)
        figure.supxlabel(
            "Root mean square over a layer's weights and over the last 10 steps of the epoch.",
            x=0.012,
            ha="left",
            fontsize=8,
            color=QUIET,
        )
        figure.draw_without_rendering()
        name_rows(axes, norms.layers, parts, axes.bbox.height * 72 / figure.dpi / rows)
    return figure


# --- weight norms of many -----------------------------------------------------------------------------------------


def plot_weight_norms_of_trials(trials: Sequence[tuple[str, WeightNorms]], left_out: int = 0) -> Figure:
    """Small heatmaps side by side, one a trial, as `plot_weight_norms` draws one, all on one scale.

    trials: (title, norms), of one kind, in the order of drawing. left_out: how many further trials there are.
    """
    if not trials:
        raise InputError("there is nothing to draw: no trial has norms.")
    what, label = SIZES[trials[0][1].kind]
    ratios = [norms.ratio for _, norms in trials]
    inner = [
        ratio[[layer != "classifier" for layer in norms.layers]]
        for ratio, (_, norms) in zip(ratios, trials, strict=True)
    ]
    known = np.concatenate([ratio[np.isfinite(ratio)] for ratio in inner])
    if not len(known):
        raise InputError("weight norms can't be drawn: no layer has weights of a finite size, before training.")
    ends = np.concatenate([ratio[:, -1][np.isfinite(ratio[:, -1])] for ratio in inner])
    title = f"{what} ended at {ends.min():.2f} to {ends.max():.2f} times their untrained size in"
    title += f" {several(len(trials), 'trial')}" + (f", the best of {len(trials) + left_out}" if left_out else "")
    across = min(len(trials), 6)
    down = -(-len(trials) // across)
    with styled():
        figure = canvas(1.1 + 1.6 * down, title)
        grid = figure.subplots(down, across, squeeze=False)
        norm = Normalize(float(known.min()), float(max(known.max(), known.min() + 1e-6)))
        for axes, ratio, (name, norms) in zip(grid.flat, ratios, trials, strict=False):
            rows, columns = ratio.shape
            axes.grid(False)
            mesh = axes.imshow(
                np.ma.masked_invalid(ratio),
                aspect="auto",
                interpolation="nearest",
                cmap="cividis",
                norm=norm,
                extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
            )
            axes.set_title(name, fontsize=8.5)
            axes.set_xticks([0, columns - 1] if columns > 1 else [0])
            parts = [part_of(layer) for layer in norms.layers]
            for row in range(1, rows):
                if parts[row] != parts[row - 1]:
                    axes.axhline(row - 0.5, color="white", lw=0.8)
            axes.set_yticks([])
            axes.tick_params(length=0, labelsize=8)
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes in list(grid.flat)[len(trials) :]:
            axes.set_visible(False)
        bar = figure.colorbar(mesh, ax=grid, pad=0.02, aspect=30)
        bar.set_label(label)
        bar.outline.set_visible(False)
        figure.supxlabel("epoch; each row is a layer, the stem at the top, the classifier at the bottom", fontsize=8.5)
    return figure
