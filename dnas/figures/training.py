"""What happened while networks trained: learning curves, the sizes of weights, and what each layer costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dnas.analysis import WeightNorms, leads_from
from dnas.analysis.curves import error_curves
from dnas.analysis.efficiency import cost_by_part, part_of
from dnas.arch import Spec, layer_costs
from dnas.errors import InputError
from dnas.figures.style import BLUE, COLOURS, GREY, KINDS, QUIET, UNFINISHED, canvas, error_axis, styled
from dnas.formatting import percent


def plot_learning_curves(curves: pd.DataFrame, best: int) -> Figure:
    """Every trial's validation error by epoch, faint, and on them the best's, with its training error.

    curves: as `dnas.analysis.learning_curves`. best: the number of the trial to stand out.
    """
    own = curves[curves["number"] == best].sort_values("epoch") if len(curves) else curves
    if not len(own):
        raise InputError(f"no learning curve of trial {best}: none of its epochs was written down.")
    val = own.dropna(subset=["val_error"])
    last = own.iloc[-1]
    if not len(val):
        title = f"#{best} ended at {percent(last['train_error'])} training error"
    else:
        title = f"#{best} ended at {percent(val.iloc[-1]['val_error'])} validation error"
        lead = leads_from(curves, best)
        if lead is not None and curves["number"].nunique() > 1:
            title += (
                f", and none was below it from epoch {lead} on"
                if lead < last["epoch"]
                else ", ahead only in the last epoch"
            )
    with styled():
        figure = canvas(4.0, title)
        axes = figure.add_subplot()
        others = curves[curves["number"] != best].dropna(subset=["val_error"])
        for state, colour, width in (
            ("stopped", GREY, 0.7),
            ("paused", GREY, 0.7),
            ("complete", BLUE, 0.8),
            ("running", BLUE, 0.8),
        ):
            some = [*error_curves(others[others["state"] == state]).values()]
            if some:
                faint = float(np.clip(10 / len(some), 0.04, 0.6))
                dense = (
                    sum(map(len, some)) > 20_000 or len(some) > 1_000
                )  # as vectors they would make a file of megabytes
                axes.add_collection(
                    LineCollection(
                        some, colors=colour, linewidths=width, alpha=faint, zorder=1, gid=state, rasterized=dense
                    )
                )
        single = others[~others["number"].duplicated(keep=False)]  # a line of one point shows nothing
        single = single[~single["state"].isin(UNFINISHED)]
        if len(single):
            axes.scatter(single["epoch"], single["val_error"], s=12, color=BLUE, alpha=0.6, zorder=2, gid="single")
        ended = others[others["state"].isin(UNFINISHED)].groupby("number").tail(1)
        if len(ended):
            axes.scatter(ended["epoch"], ended["val_error"], marker="x", s=12, lw=0.8, color=GREY, alpha=0.6, zorder=2)
        axes.plot(
            own["epoch"], own["train_error"], color=COLOURS["best"], lw=1.3, ls=(0, (4, 2)), zorder=4, gid="best-train"
        )
        axes.plot(val["epoch"], val["val_error"], color=COLOURS["best"], lw=2, zorder=5, gid="best-val")
        if len(own) == 1:
            axes.plot(own["epoch"], own["train_error"], marker="o", mfc="white", color=COLOURS["best"], zorder=4)
            axes.plot(val["epoch"], val["val_error"], marker="o", color=COLOURS["best"], zorder=5)
        error_axis(axes, [*own["train_error"], *others["val_error"], *val["val_error"]], "error (%)")
        final = int(curves["epoch"].max())
        axes.set_xlim(1 - 0.02 * final, final * 1.02) if final > 1 else axes.set_xlim(0.5, 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlabel("epoch")
        figure.draw_without_rendering()
        ends = [("training, as it was augmented", last["train_error"], "normal")]
        if len(val):
            ends.insert(0, (f"#{best} validation", val.iloc[-1]["val_error"], "bold"))
        _label_ends(figure, axes, float(last["epoch"]), ends)
        handles: list = []
        for state, colour, text in (
            ("complete", BLUE, "other complete trials"),
            ("stopped", GREY, "stopped early"),
            ("paused", GREY, "paused, may be promoted"),
        ):
            number = others[others["state"] == state]["number"].nunique()
            if number:
                marker = "x" if state in UNFINISHED else ""
                handles.append(
                    Line2D([], [], color=colour, lw=1.2, marker=marker, ms=4, label=f"{text} ({number}), validation")
                )
        if handles:
            axes.legend(handles=handles, loc="upper right")
    return figure


def _label_ends(figure: Figure, axes: Axes, x: float, ends: list[tuple[str, float, str]]) -> None:
    """Labels at the right ends of lines, moved apart where they would touch."""
    scale = figure.dpi / 72
    heights = [axes.transData.transform((x, y))[1] / scale for _, y, _ in ends]
    order = np.argsort(heights)
    placed: dict[int, float] = {}
    lowest = -np.inf
    for index in order:
        lowest = max(heights[index], lowest + 12)
        placed[int(index)] = lowest
    for index, (text, y, weight) in enumerate(ends):
        axes.annotate(
            text.replace(", ", ",\n") if len(text) > 22 else text,
            (x, y),
            xytext=(7, placed[index] - heights[index]),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=COLOURS["best"],
            fontweight=weight,
            annotation_clip=False,
        )


# Of a kind of weight norm: what it is of, and its colour bar's label.
SIZES = {
    "rms": ("Convolutions", "RMS weight ÷ its untrained value"),
    "l1": ("Convolutions", "mean |weight| ÷ its untrained value"),
    "gamma": ("Scales of batch norms", "RMS scale γ (untrained: 1)"),
}


def plot_weight_norms(norms: WeightNorms) -> Figure:
    """Heatmap: rows are layers in depth order, columns epochs, the colour a layer's size over its untrained value.

    The scale is that of the layers before the classifier; a classifier beyond it has the colour of the end.
    """
    what, label = SIZES[norms.kind]
    ratio = norms.ratio
    last = [layer == "classifier" for layer in norms.layers]
    inner = ratio[~np.array(last)]
    if not np.isfinite(inner).any():
        raise InputError("weight norms can't be drawn: no convolution has weights of a finite size, before training.")
    low, high = float(np.nanmin(inner[:, -1])), float(np.nanmax(inner[:, -1]))
    rows, columns = ratio.shape
    parts = [part_of(layer) for layer in norms.layers]
    title = "Untrained: no epoch is finished"
    if columns > 1:
        title = f"{what} ended at {low:.2f} to {high:.2f} times their untrained size"
        if any(last) and np.isfinite(ratio[-1, -1]):
            title += f", the classifier at {ratio[-1, -1]:.2f}"
    with styled():
        figure = canvas(float(np.clip(1.5 + 0.17 * rows, 2.8, 7.4)), title)
        axes = figure.add_subplot()
        axes.grid(False)
        shown = np.ma.masked_invalid(ratio)
        # No norm follows the classifier, so it often grows several times over: on a scale of its own range nothing else
        # would show, so it may lie beyond the ends.
        least, most = float(np.nanmin(inner)), float(np.nanmax(inner))
        beyond = (float(shown.min()) < least, float(shown.max()) > most)
        mesh = axes.imshow(
            shown,
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            vmin=least,
            vmax=most if most > least else least + 1e-6,
            extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        )
        ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
        bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=30, extend=ends.get(beyond, "neither"), extendfrac=0.03)
        bar.set_label(label)
        bar.outline.set_visible(False)
        if least < 1 < most:
            bar.ax.axhline(1, color="white", lw=1.5)
        axes.set_xlabel("epoch (0: untrained)")
        axes.xaxis.set_major_locator(MaxNLocator(min(12, columns), integer=True))
        axes.set_xlim(-0.5, columns - 0.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        figure.draw_without_rendering()
        name_rows(axes, norms.layers, parts, axes.bbox.height * 72 / figure.dpi / rows)
    return figure


def name_rows(axes: Axes, layers: Sequence[str], parts: Sequence[str], pitch: float) -> None:
    """Ticks at as many layers as there is room for (`pitch`: points a row), a white line and a name at each block."""
    every = max(1, int(np.ceil(10 / pitch)))
    single = [row for row, part in enumerate(parts) if parts.count(part) == 1]
    ticks = {row: parts[row] for row in single}
    for part in dict.fromkeys(parts):
        rows = [row for row, name in enumerate(parts) if name == part]
        if len(rows) == 1:
            continue
        for row in rows:
            number = int(layers[row][len(layers[row].rstrip("0123456789")) :] or 0)
            near = min((abs(row - other) for other in single), default=every)
            if (
                (number == 1 or number % every == 0)
                and near >= every
                and (every == 1 or number != 1 or rows[-1] - row >= every)
            ):
                ticks[row] = str(number)
        axes.annotate(
            part,
            (0, (rows[0] + rows[-1]) / 2),
            xycoords=("axes fraction", "data"),
            xytext=(-34, 0),
            textcoords="offset points",
            rotation=90 if len(rows) * pitch > 40 else 0,
            ha="right",
            va="center",
            color=QUIET,
        )
    axes.set_yticks(sorted(ticks), [ticks[row] for row in sorted(ticks)], fontsize=8)
    for row in range(1, len(parts)):
        if parts[row] != parts[row - 1]:
            axes.axhline(row - 0.5, color="white", lw=1.4 if pitch > 4 else 0.9)


def plot_layer_costs(spec: Spec) -> Figure:
    """Params and macs of each layer in the order of execution, coloured by what kind of layer it is."""
    costs = layer_costs(spec)
    shares = cost_by_part(spec).set_index("part")
    most_params, most_macs = shares["params_share"].idxmax(), shares["macs_share"].idxmax()
    text = f"{str(most_params).capitalize()} holds {shares['params_share'].max():.0%} of the params"
    text += " and" if most_params == most_macs else f", {most_macs}"
    text += f" does {shares['macs_share'].max():.0%} of the multiply-adds"
    with styled():
        figure = canvas(3.4, text)
        upper, lower = figure.subplots(2, 1, sharex=True)
        colours = [KINDS[cost.kind] for cost in costs]
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
        handles = [
            Patch(color=KINDS[kind], label=word)
            for kind, word in _KIND_WORDS.items()
            if kind in {c.kind for c in costs}
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, handlelength=1, columnspacing=1.6)
    return figure


_KIND_WORDS = {
    "stem": "stem",
    "dense": "dense layer",
    "unit": "residual unit",
    "transition": "transition",
    "classifier": "classifier",
}


def _name_columns(axes: Axes, parts: list[str]) -> None:
    ticks = {}
    for part in dict.fromkeys(parts):
        if part.startswith(("block", "stage")):
            columns = [column for column, name in enumerate(parts) if name == part]
            ticks[(columns[0] + columns[-1]) / 2] = part
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("layers in the order of execution")
