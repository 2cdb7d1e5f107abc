"""The paper's Figures 3 and 4, drawn from new runs in the form of the originals.

Measured points are filled marks with the interval over seeds and a monotone fit. Published points are hollow and
labelled as such.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from dnas.analysis.metrics import METRICS
from dnas.analysis.scaling import IsoError, Sized, fit_of, times
from dnas.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    RED,
    canvas,
    error_axis,
    log_ticks,
    styled,
)

# Colour and marker of each family, the same in every figure. The proposed networks are blue, as in the paper.
FAMILIES: dict[str, tuple[str, str]] = {
    "DenseNet": (GREY, "s"),
    "DenseNet-B": (ORANGE, "^"),
    "DenseNet-C": (GREEN, "D"),
    "DenseNet-BC": (BLUE, "o"),
    "ResNet": (RED, "v"),
}
_OTHERS = (PURPLE, "P")


def plot_families(
    networks: Sequence[Sized],
    reading: IsoError | None,
    *,
    finding: str,
    error: str,
    log: bool = False,
    published: pd.DataFrame | None = None,
    published_error: str | None = None,
) -> Figure:
    """Plot the paper's Figure 4, left and middle: error against cost per family, with the iso-error comparison.

    Args:
        networks: Measured networks, in the order of their families in the legend.
        reading: Comparison of two families at equal error, if any. Names the cost, which defaults to params.
        finding: Title of the figure.
        error: Measured quantity and data set, for the axis.
        log: Draw the cost on a log scale, as in the middle panel, instead of in units of 10⁵, as on the left.
        published: The paper's points, with columns group, cost and error (a fraction).
        published_error: Quantity that the published errors measure, if it differs from `error`. The published points
            are then drawn on separate axes, because errors on other data are not comparable.
    """
    cost = reading.cost if reading is not None else "params"
    with styled():
        apart = published is not None and published_error is not None and len(published) > 0
        figure = canvas(4.6, finding)
        if apart:
            axes, beside = figure.subplots(1, 2, width_ratios=[2.1, 1])
        else:
            axes = figure.subplots()
        _draw_families(axes, networks, cost, log)
        if reading is not None:
            _draw_reading(axes, reading)
        if published is not None and not apart:
            _draw_published(axes, published)
        _error_axis(axes, f"{error} (%)")
        _cost_axis(axes, cost, log)
        handles = _handles(networks)
        if published is not None and len(published):
            handles.append(_hollow("published in the paper's tables (hollow)"))
        if apart:
            assert published is not None
            _draw_published(beside, published, label=True)
            beside.margins(y=0.12)
            _error_axis(beside, f"{published_error} (%)")
            _cost_axis(beside, cost, True)
            beside.set_title("as published", fontsize=9.5, color=QUIET, loc="left")
            axes.set_title("measured here", fontsize=9.5, color=QUIET, loc="left")
        figure.legend(
            handles=handles, loc="outside lower left", ncols=len(handles) if len(handles) < 5 else 3, handlelength=1.8
        )
    return figure


def plot_two_costs(
    networks: Mapping[str, Sequence[Sized]],
    readings: Mapping[str, IsoError],
    *,
    finding: str,
    error: str,
    published: pd.DataFrame | None = None,
    published_error: str | None = None,
) -> Figure:
    """Plot the paper's Figure 3: error against params on the left, and against multiply-adds on the right.

    Args:
        networks: Measured networks by cost (`params`, `macs`).
        readings: Comparisons of two families at equal error, by cost.
        finding: Title of the figure.
        error: Measured quantity and data set, for the axis.
        published: The paper's points, with columns group, network, params, macs and error (a fraction).
        published_error: As for `plot_families`.
    """
    with styled():
        apart = published is not None and published_error is not None and len(published) > 0
        figure = canvas(7.2 if apart else 4.4, finding)
        grid = figure.subplots(2 if apart else 1, 2, squeeze=False, sharey="row")
        for column, cost in enumerate(networks):
            axes = grid[0][column]
            _draw_families(axes, networks[cost], cost, True)
            if cost in readings:
                _draw_reading(axes, readings[cost])
            if published is not None and not apart:
                _draw_published(axes, published.assign(cost=published[cost]))
            _cost_axis(axes, cost, True)
            if column == 0:
                _error_axis(axes, f"{error} (%)")
            if apart:
                assert published is not None
                below = grid[1][column]
                _draw_published(below, published.assign(cost=published[cost]), label=True)
                below.margins(y=0.12)
                _cost_axis(below, cost, True)
                if column == 0:
                    _error_axis(below, f"{published_error} (%)")
                    below.set_title("as published", fontsize=9.5, color=QUIET, loc="left")
                    axes.set_title("measured here", fontsize=9.5, color=QUIET, loc="left")
        handles = _handles(networks["params"])
        if published is not None and len(published):
            handles.append(_hollow("published in the paper's tables (hollow)"))
        figure.legend(
            handles=handles, loc="outside lower left", ncols=len(handles) if len(handles) < 5 else 3, handlelength=1.8
        )
    return figure


def plot_two_curves(curves: pd.DataFrame, *, finding: str, error: str) -> Figure:
    """Plot the paper's Figure 4, right: validation error and training loss of two networks by epoch.

    The line is the mean over seeds, and the band spans the lowest to the highest seed. The paper shows test errors.

    Args:
        curves: Learning curves, with columns group, label, seed, epoch, train_loss (nats) and val_error (a fraction).
        finding: Title of the figure.
        error: Measured quantity and data set, for the axis.
    """
    with styled():
        figure = canvas(4.4, finding)
        left, right = figure.subplots(1, 2)
        labels = {}
        for group, group_curves in curves.groupby("group", sort=False):
            colour = _look(str(group))[0]
            labels[str(group)] = str(group_curves["label"].iloc[0])
            for axes, name in ((left, "val_error"), (right, "train_loss")):
                table = group_curves.pivot_table(index="epoch", columns="seed", values=name)
                style = "-" if name == "val_error" else "--"
                axes.fill_between(
                    table.index,
                    table.min(axis=1),
                    table.max(axis=1),
                    color=colour,
                    alpha=0.16,
                    lw=0,
                    gid=f"band-{group}",
                )
                axes.plot(table.index, table.mean(axis=1), style, color=colour, lw=1.7, gid=f"mean-{group}")
        error_axis(left, curves["val_error"].dropna().tolist(), f"{error} (%)")
        right.set_ylabel(METRICS["train_loss"].axis_label)
        right.set_yscale("log")
        right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        right.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        right.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.set_xlim(1, max(2, curves["epoch"].max()))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        handles = [Line2D([], [], color=_look(group)[0], lw=1.7, label=label) for group, label in labels.items()]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, handlelength=1.8)
    return figure


# --- parts of the figures -------------------------------------------------------------------------------------------


def _look(group: str) -> tuple[str, str]:
    return FAMILIES.get(group, _OTHERS)


def _has_bar(network: Sized) -> bool:
    """Return whether a network's interval is drawn. An interval of two seeds is wide enough to flatten the curves."""
    return network.interval == "Wilson" or (network.interval == "t" and len(network.errors) > 2)


def _draw_families(axes: Axes, networks: Sequence[Sized], cost: str, log: bool) -> None:
    for group in dict.fromkeys(n.group for n in networks):
        family = [n for n in networks if n.group == group]
        colour, marker = _look(group)
        x, y = np.array([n.cost for n in family]), np.array([n.mean for n in family])
        drawn = [_has_bar(n) for n in family]
        bars = np.array([[n.mean - n.low for n in family], [n.high - n.mean for n in family]]) * drawn
        axes.errorbar(
            x,
            y,
            yerr=bars,
            ls="none",
            marker=marker,
            ms=6,
            color=colour,
            mec="white",
            mew=0.6,
            ecolor=colour,
            elinewidth=1,
            capsize=2.5,
            alpha=0.95,
            zorder=4 if group == "DenseNet-BC" else 3,
            gid=f"family-{group}",
        )
        for n in family:
            if len(n.errors) > 1:
                axes.plot(
                    [n.cost] * len(n.errors),
                    [*n.errors.values()],
                    ls="none",
                    marker=".",
                    ms=4,
                    color=colour,
                    alpha=0.45,
                )
        fit = fit_of(family)
        costs = np.geomspace(fit.costs[0], fit.costs[-1], 200)
        axes.plot(
            costs,
            np.interp(np.log(costs), np.log(fit.costs), fit.errors),
            color=colour,
            lw=1.7,
            zorder=2.5,
            gid=f"fit-{group}",
        )
    if log:
        axes.set_xscale("log")


def _draw_reading(axes: Axes, reading: IsoError) -> None:
    """Draw an arrow from one curve to the other at equal error, labelled with the ratio of the costs."""
    if reading.at is None or reading.ratio is None:
        return
    error, first, second = reading.at
    axes.annotate(
        "",
        xy=(second, error),
        xytext=(first, error),
        arrowprops={"arrowstyle": "<|-|>", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0},
        zorder=5,
    )
    middle = np.sqrt(first * second) if axes.get_xscale() == "log" else (first + second) / 2
    less = max(reading.ratio, 1 / reading.ratio)
    axes.annotate(
        f"{times(less)}×",
        (middle, error),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        fontweight="bold",
        color=INK,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=6,
    )
    # Errors fall with the cost, so the space above the right end of the curves is free.
    text = "\n".join(textwrap.wrap(reading.sentence().replace("params,", "params,\n", 1), 44, replace_whitespace=False))
    axes.annotate(
        f"{reading.second} against {reading.first}:\n{text}",
        (0.985, 0.97),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=8.5,
        color=INK,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=6,
    )


def _draw_published(axes: Axes, published: pd.DataFrame, label: bool = False) -> None:
    for group, points in published.groupby("group", sort=False):
        colour, marker = _look(str(group))
        points = points.sort_values("cost")
        axes.plot(
            points["cost"],
            points["error"],
            ls=":",
            lw=1,
            marker=marker,
            ms=6,
            mfc="white",
            mec=colour,
            mew=1.2,
            color=colour,
            zorder=2,
            gid=f"published-{group}",
        )
        if label:
            smallest = points.iloc[0]
            axes.annotate(
                str(group),
                (smallest["cost"], smallest["error"]),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )


def _handles(networks: Sequence[Sized]) -> list[Line2D]:
    seeds = {len(n.errors) for n in networks}
    kinds = {n.interval for n in networks}
    handles = []
    for group in dict.fromkeys(n.group for n in networks):
        colour, marker = _look(group)
        handles.append(Line2D([], [], color=colour, marker=marker, ms=6, mec="white", mew=0.6, lw=1.7, label=group))
    if "t" in kinds:
        count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        if any(_has_bar(n) for n in networks):
            handles.append(_bar(f"95% interval of the mean, {count} seeds (dots)"))
        else:
            handles.append(
                Line2D(
                    [], [], ls="none", marker=".", ms=4, color=QUIET, label=f"{count} seeds, too few for an interval"
                )
            )
    elif "Wilson" in kinds:
        handles.append(_bar("Wilson's 95% interval, one seed"))
    return handles


def _bar(label: str) -> Line2D:
    return Line2D([], [], ls="none", marker="|", ms=11, color=QUIET, mew=1, label=label)


def _hollow(label: str) -> Line2D:
    return Line2D([], [], ls=":", lw=1, marker="o", ms=6, mfc="white", mec=QUIET, mew=1.2, color=QUIET, label=label)


def _error_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]), top=min(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(100 * y, 6):g}"))


def _cost_axis(axes: Axes, cost: str, log: bool) -> None:
    if not log:
        unit, word = (1e5, "×10⁵") if axes.get_xlim()[1] > 8e4 else (1e3, "×10³")
        axes.set_xlabel(f"{METRICS[cost].axis} ({word})")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{round(x / unit, 6):g}"))
        return
    label, scale = METRICS[cost].axis_for(axes.get_xlim()[1])
    axes.set_xlabel(f"{label[:-1]}, log scale)")
    axes.set_xscale("log")
    log_ticks(axes, "x", scale)
