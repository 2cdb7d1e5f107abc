"""Figures of training: learning curves, weight norms, and the cost of each layer."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dnas.analysis import WeightNorms, leads_from
from dnas.analysis.curves import error_curves
from dnas.analysis.efficiency import cost_by_part, part_of
from dnas.arch import LayerCost, Spec, layer_costs
from dnas.errors import InputError
from dnas.figures.heatmap import add_colorbar, draw_heatmap, ticks_at_cells
from dnas.figures.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    KINDS,
    PURPLE,
    QUIET,
    SKY,
    UNFINISHED,
    canvas,
    error_axis,
    lay_out,
    styled,
)
from dnas.formatting import percent, several

DENSE_POINTS, DENSE_LINES = 20_000, 1_000  # above either, the faint curves are rasterized
# Colour and width of the faint curves, by the state of their trials.
_STATE_LINES = {"stopped": (GREY, 0.7), "paused": (GREY, 0.7), "complete": (BLUE, 0.8), "running": (BLUE, 0.8)}


def plot_learning_curves(curves: pd.DataFrame, best: int) -> Figure:
    """Plot the validation error of every trial by epoch, faint, with the curves of the best trial on top.

    Args:
        curves: Learning curves, as returned by `dnas.analysis.learning_curves`.
        best: Number of the trial to highlight. Its training error is drawn too.

    Raises:
        InputError: If trial `best` has no recorded epoch.
    """
    highlighted = curves[curves["number"] == best].sort_values("epoch") if len(curves) else curves
    if not len(highlighted):
        raise InputError(f"no learning curve of trial {best}: no epoch of it was recorded.")
    others = curves[curves["number"] != best].dropna(subset=["val_error"])
    with styled():
        figure = canvas(4.0, _learning_title(curves, highlighted, best))
        axes = figure.add_subplot()
        _draw_other_curves(axes, others)
        _draw_best_curves(axes, highlighted)
        val_errors = highlighted["val_error"].dropna()
        error_axis(axes, [*highlighted["train_error"], *others["val_error"], *val_errors], "error (%)")
        final = int(curves["epoch"].max())
        axes.set_xlim(1 - 0.02 * final, final * 1.02) if final > 1 else axes.set_xlim(0.5, 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlabel("epoch")
        lay_out(figure)
        last = highlighted.iloc[-1]
        ends = [("training, as augmented", last["train_error"], "normal")]
        if len(val_errors):
            ends.insert(0, (f"#{best} validation", val_errors.iloc[-1], "bold"))
        _label_ends(figure, axes, float(last["epoch"]), ends)
        handles = _handles_of_others(others)
        if handles:
            axes.legend(handles=handles, loc="upper right")
    return figure


def _learning_title(curves: pd.DataFrame, highlighted: pd.DataFrame, best: int) -> str:
    val_errors = highlighted["val_error"].dropna()
    last = highlighted.iloc[-1]
    if not len(val_errors):
        return f"#{best} ended at {percent(last['train_error'])} training error"
    title = f"#{best} ended at {percent(val_errors.iloc[-1])} validation error"
    lead = leads_from(curves, best)
    if lead is None or curves["number"].nunique() < 2:
        return title
    at_end = curves[(curves["epoch"] == last["epoch"]) & (curves["val_error"] == val_errors.iloc[-1])]
    tied = int(at_end["number"].nunique()) - 1
    if tied:
        return f"{title}, as {several(tied, 'other trial')} did"
    return title + (
        f", and no trial was below it from epoch {lead} on"
        if lead < last["epoch"]
        else ", the lowest of the last epoch"
    )


def _draw_other_curves(axes: Axes, others: pd.DataFrame) -> None:
    for state, (colour, width) in _STATE_LINES.items():
        lines = [*error_curves(others[others["state"] == state]).values()]
        if lines:
            # As vectors, many long curves would take megabytes.
            dense = sum(map(len, lines)) > DENSE_POINTS or len(lines) > DENSE_LINES
            alpha = float(np.clip(10 / len(lines), 0.04, 0.6))
            axes.add_collection(
                LineCollection(
                    lines, colors=colour, linewidths=width, alpha=alpha, zorder=1, gid=state, rasterized=dense
                )
            )
    single = others[~others["number"].duplicated(keep=False)]  # a line through one point is invisible
    single = single[~single["state"].isin(UNFINISHED)]
    if len(single):
        axes.scatter(single["epoch"], single["val_error"], s=12, color=BLUE, alpha=0.6, zorder=2, gid="single")
    ended = others[others["state"].isin(UNFINISHED)].groupby("number").tail(1)
    if len(ended):
        axes.scatter(ended["epoch"], ended["val_error"], marker="x", s=12, lw=0.8, color=GREY, alpha=0.6, zorder=2)


def _draw_best_curves(axes: Axes, highlighted: pd.DataFrame) -> None:
    colour = COLOURS["best"]
    val = highlighted.dropna(subset=["val_error"])
    epochs, train = highlighted["epoch"], highlighted["train_error"]
    axes.plot(epochs, train, color=colour, lw=1.3, ls=(0, (4, 2)), zorder=4, gid="best-train")
    axes.plot(val["epoch"], val["val_error"], color=colour, lw=2, zorder=5, gid="best-val")
    if len(highlighted) == 1:
        axes.plot(epochs, train, marker="o", mfc="white", color=colour, zorder=4)
        axes.plot(val["epoch"], val["val_error"], marker="o", color=colour, zorder=5)


def _handles_of_others(others: pd.DataFrame) -> list[Line2D]:
    texts = {
        "complete": "other complete trials",
        "stopped": "stopped early",
        "paused": "paused, may be promoted",
    }
    handles = []
    for state, text in texts.items():
        number = others[others["state"] == state]["number"].nunique()
        if number:
            marker = "x" if state in UNFINISHED else ""
            label = f"{text} ({number}), validation"
            handles.append(Line2D([], [], color=_STATE_LINES[state][0], lw=1.2, marker=marker, ms=4, label=label))
    return handles


def _label_ends(figure: Figure, axes: Axes, x: float, ends: list[tuple[str, float, str]]) -> None:
    """Label the right ends of lines, with labels moved apart that would overlap.

    ends: (text, y, font weight) of each line.
    """
    scale = figure.dpi / 72
    heights = [axes.transData.transform((x, y))[1] / scale for _, y, _ in ends]
    texts = [text.replace(", ", ",\n") if len(text) > 20 else text for text, _, _ in ends]
    apart = 12 if all("\n" not in text for text in texts) else 18  # points between the centres of labels
    placed: dict[int, float] = {}
    lowest = -np.inf
    for index in np.argsort(heights):
        lowest = max(heights[index], lowest + apart)
        placed[int(index)] = lowest
    for index, (_, y, weight) in enumerate(ends):
        axes.annotate(
            texts[index],
            (x, y),
            xytext=(7, placed[index] - heights[index]),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=COLOURS["best"],
            fontweight=weight,
            annotation_clip=False,
        )


# Subject of the title, and label of the colour bar, by kind of weight norm.
SIZES = {
    "rms": ("Convolutions", "RMS weight ÷ its untrained value"),
    "l1": ("Convolutions", "mean |weight| ÷ its untrained value"),
    "gamma": ("Scales of batch norms", "RMS scale γ (untrained: 1)"),
}


def plot_weight_norms(norms: WeightNorms) -> Figure:
    """Plot a heatmap of each layer's weight norm over its untrained value, with layers in rows and epochs in columns.

    The colour scale covers the layers before the classifier. No batch norm follows the classifier, so its weights often
    grow several times over and would hide all else. Values beyond the scale have the colour of its end.
    """
    subject, label = SIZES[norms.kind]
    ratio = norms.ratio
    is_last = np.array([layer == "classifier" for layer in norms.layers])
    inner = ratio[~is_last]
    if not np.isfinite(inner).any():
        raise InputError("cannot draw weight norms: no convolution has weights of a finite size before training.")
    low, high = float(np.nanmin(inner)), float(np.nanmax(inner))
    rows, columns = ratio.shape
    with styled():
        figure = canvas(float(np.clip(1.5 + 0.17 * rows, 2.8, 7.4)), _norms_title(subject, ratio, is_last))
        axes = figure.add_subplot()
        mesh = draw_heatmap(axes, ratio, Normalize(low, high if high > low else low + 1e-6))
        beyond = (float(np.nanmin(ratio)) < low, float(np.nanmax(ratio)) > high)
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
        bar = add_colorbar(figure, mesh, label, ax=axes, pad=0.015, extend=extend, extendfrac=0.03)
        if low < 1 < high:
            bar.ax.axhline(1, color="white", lw=1.5)
        axes.set_xlabel("epoch (0: untrained)")
        ticks_at_cells(axes, 0, columns)
        lay_out(figure)
        label_rows(axes, norms.layers, axes.bbox.height * 72 / figure.dpi / rows)
    return figure


def _norms_title(subject: str, ratio: np.ndarray, is_last: np.ndarray) -> str:
    if ratio.shape[1] < 2:
        return "Untrained: no epoch is finished"
    ends = ratio[~is_last, -1]
    title = f"{subject} ended at {np.nanmin(ends):.2f} to {np.nanmax(ends):.2f} times their untrained size"
    if is_last.any() and np.isfinite(ratio[-1, -1]):
        title += f", the classifier at {ratio[-1, -1]:.2f}"
    return title


def label_rows(axes: Axes, layers: Sequence[str], pitch: float) -> None:
    """Label the rows of a heatmap of layers: numbers where there is room, and a white line and a name at each block.

    pitch: Height of a row in points.
    """
    parts = [part_of(layer) for layer in layers]
    every = max(1, int(np.ceil(10 / pitch)))
    single = [row for row, part in enumerate(parts) if parts.count(part) == 1]
    ticks = {row: parts[row] for row in single}
    for part in dict.fromkeys(parts):
        rows = [row for row, name in enumerate(parts) if name == part]
        if len(rows) == 1:
            continue
        for row in rows:
            number = int(layers[row][len(layers[row].rstrip("0123456789")) :] or 0)
            nearest = min((abs(row - other) for other in single), default=every)
            if (
                (number == 1 or number % every == 0)
                and nearest >= every
                and (every == 1 or number != 1 or rows[-1] - row >= every)
            ):
                ticks[row] = str(number)
        axes.annotate(
            part,
            (0, (rows[0] + rows[-1] + 1) / 2),
            xycoords=("axes fraction", "data"),
            xytext=(-34, 0),
            textcoords="offset points",
            rotation=90 if len(rows) * pitch > 40 else 0,
            ha="right",
            va="center",
            color=QUIET,
        )
    axes.set_yticks([row + 0.5 for row in sorted(ticks)], [ticks[row] for row in sorted(ticks)], fontsize=8)
    separate_parts(axes, parts, 1.4 if pitch > 4 else 0.9)


def separate_parts(axes: Axes, parts: Sequence[str], width: float) -> None:
    """Draw a white line of the given width between rows of different parts."""
    for row in range(1, len(parts)):
        if parts[row] != parts[row - 1]:
            axes.axhline(row, color="white", lw=width)


def plot_layer_costs(spec: Spec) -> Figure:
    """Plot params and multiply-adds of each layer in the order of execution, coloured by kind of layer."""
    costs = layer_costs(spec)
    shares = cost_by_part(spec).set_index("part")
    most_params, most_macs = shares["params_share"].idxmax(), shares["macs_share"].idxmax()
    text = f"{str(most_params).capitalize()} holds {shares['params_share'].max():.0%} of the params"
    text += " and" if most_params == most_macs else f", {most_macs}"
    text += f" does {shares['macs_share'].max():.0%} of the multiply-adds"
    with styled():
        figure = canvas(3.4, text)
        upper, lower = figure.subplots(2, 1, sharex=True)
        by_kind = kind_colours(costs)
        colours = [by_kind[cost.kind] for cost in costs]
        for axes, key, label in ((upper, "params", "params"), (lower, "macs", "multiply-adds")):
            values = np.array([getattr(cost, key) for cost in costs], dtype=float)
            unit, name = next(((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if values.max() >= u), (1.0, ""))
            axes.bar(range(len(costs)), values / unit, color=colours, width=0.8 if len(costs) < 80 else 1.0)
            axes.set_ylabel(f"{label}\n({name})" if name else label)
            axes.grid(axis="x", visible=False)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlim(-0.7, len(costs) - 0.3)
        parts = [part_of(cost.name) for cost in costs]
        _name_columns(lower, parts)
        upper.tick_params(axis="x", length=0)
        figure.legend(handles=kind_handles(costs), loc="outside lower left", ncols=4, handlelength=1, columnspacing=1.6)
    return figure


_KIND_WORDS = {
    "stem": "stem",
    "dense": "dense layer",
    "unit": "residual unit",
    "transition": "transition",
    "classifier": "classifier",
}


def kind_colours(costs: Sequence[LayerCost]) -> dict[str, str]:
    """Return the colour of each kind of layer, the shipped kinds first. Other kinds have other colours."""
    kinds = dict.fromkeys(cost.kind for cost in costs)
    others = [kind for kind in kinds if kind not in KINDS]
    shipped = {kind: KINDS[kind] for kind in _KIND_WORDS if kind in kinds}
    return shipped | dict(zip(others, itertools.cycle((SKY, GREEN, PURPLE)), strict=False))


def kind_handles(costs: Sequence[LayerCost]) -> list[Patch]:
    """Return one entry of a legend for each kind of layer."""
    return [Patch(color=colour, label=_KIND_WORDS.get(kind, kind)) for kind, colour in kind_colours(costs).items()]


def _name_columns(axes: Axes, parts: list[str]) -> None:
    ticks = {}
    for part in dict.fromkeys(parts):
        if part.startswith(("block", "stage")):
            columns = [column for column, name in enumerate(parts) if name == part]
            ticks[(columns[0] + columns[-1]) / 2] = part
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("layers in the order of execution")
