"""Figures of a search: its progress, its errors, and its choices."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dnas.analysis.efficiency import part_of
from dnas.analysis.metrics import METRICS
from dnas.analysis.progress import Distribution, SpaceComparison
from dnas.arch import Spec, layer_costs
from dnas.errors import InputError
from dnas.figures.heatmap import SEQUENTIAL
from dnas.figures.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    RED,
    canvas,
    cost_axis,
    error_axis,
    styled,
)
from dnas.figures.training import kind_colours, kind_handles
from dnas.formatting import duration, joined, several

STATES = {
    "complete": BLUE,
    "paused": "#9ecae1",
    "stopped": GREY,
    "infeasible": ORANGE,
    "failed": RED,
    "running": GREEN,
}
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)  # colours of several studies, in order
MANY = 1_000  # marks per panel; above it they are rasterized
MIN_RHO = 0.5  # lower end of the interval from which on an epoch is said to rank networks as the last one does
MIN_OF_MEDIAN = 3  # trials with a value, from which on their median is drawn
ARM_WORDS = {"search": "search", "control": "random control"}


def plot_best_so_far(progress: pd.DataFrame, objective: str = "val_error") -> Figure:
    """Plot the lowest value reached by a search and its control arm against trials, training time and multiply-adds.

    progress: As returned by `dnas.analysis.progress.best_so_far`.
    """
    known = progress.dropna(subset=["error"])
    if known.empty:
        raise InputError("the best so far cannot be drawn: no trial is complete.")
    search_rows = known[known["arm"] == "search"]
    label, factor = METRICS[objective].axis_label, METRICS[objective].scale
    if len(search_rows):
        last = search_rows.iloc[-1]
        since = search_rows[search_rows["error"] == last["error"]].iloc[0]
        value = METRICS[objective].format(last["error"])
        title = f"{value} was reached after {several(int(since['trials']), 'trial')}"
        title += f" and {duration(since['seconds'])} of training"
        if never_improved(progress):
            title = f"No trial improved on the first complete one: {value}"
            control = progress.loc[progress["arm"] == "control", "error"].min()
            if np.isfinite(control):
                title = f"The sampler stayed at its first value, {value}"
                title += f"; the random control reached {METRICS[objective].format(control)}"
    else:
        title = "Only the random control has a complete trial"
    with styled():
        figure = canvas(3.1, title)
        panels = figure.subplots(1, 3, sharey=True)
        hours = progress["seconds"].max() > 2 * 3600
        units = (
            ("trials", 1.0, "trials"),
            ("seconds", 1 / 3600 if hours else 1 / 60, f"training time ({'hours' if hours else 'minutes'})"),
            ("macs", 1e-12, "multiply-adds of training (10¹²)"),
        )
        for axes, (column, scale, name) in zip(panels, units, strict=True):
            for arm in ("control", "search"):
                arm_rows = known[known["arm"] == arm]
                end = progress.loc[progress["arm"] == arm, column].max()
                if len(arm_rows):
                    axes.step(
                        scale * np.append(arm_rows[column], end),
                        np.append(arm_rows["error"], arm_rows["error"].iloc[-1]),
                        where="post",
                        color=COLOURS["control" if arm == "control" else "sampler"],
                        lw=1.8,
                        label=f"{ARM_WORDS[arm]} ({(progress['arm'] == arm).sum()} trials)",
                        gid=f"best-{arm}-{column}",
                    )
            axes.set_xlabel(name)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=column == "trials"))
        error_axis(panels[0], list(known["error"]), f"lowest {label}", factor)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    return figure


def never_improved(progress: pd.DataFrame) -> bool:
    """Return whether the first complete trial of the search stayed the best. progress: As for `plot_best_so_far`."""
    return progress.loc[progress["arm"] == "search", "error"].nunique() == 1


def plot_distribution(
    spread: Mapping[str, Distribution], comparison: SpaceComparison | None = None, objective: str = "val_error"
) -> Figure:
    """Plot the share of trials at or below each error with its band, one curve per study.

    comparison: Comparison of the first two studies, for the title.
    """
    import seaborn

    label, factor = METRICS[objective].axis_label, METRICS[objective].scale
    (name, first), *rest = spread.items()
    middle = first.error[np.searchsorted(first.share, 0.5)]
    title = f"Half of {first.n} trials are at or below {METRICS[objective].format(float(middle))}"
    if rest and comparison is not None:
        title = comparison.sentence(name, rest[0][0])
    elif rest:
        title = f"Errors of the complete trials of {several(len(spread), 'study', 'studies')}"
    with styled():
        figure = canvas(3.3, title)
        axes = figure.add_subplot()
        for (study, distribution), colour in zip(spread.items(), SERIES, strict=False):
            x = factor * distribution.error
            axes.fill_between(
                x, 100 * distribution.low, 100 * distribution.high, step="post", color=colour, alpha=0.15, lw=0
            )
            seaborn.ecdfplot(
                x=x,
                weights=np.diff(distribution.share, prepend=0),
                stat="percent",
                ax=axes,
                color=colour,
                lw=1.8,
                label=f"{study} ({distribution.n})",
                gid=f"edf-{study}",
            )
        low, high = min(f.error[0] for f in spread.values()), max(f.error[-1] for f in spread.values())
        if low > 0 and high / low > 4:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if str(f"{v:e}")[0] in "25" else ""))
        axes.set_xlabel(f"{label} after the last epoch")
        axes.set_ylabel("trials at or below (%)")
        axes.set_ylim(0, 102)
        if rest:
            axes.legend(loc="lower right")
    return figure


def plot_fidelity(rhos: pd.DataFrame) -> Figure:
    """Plot Spearman's ρ between the errors after each epoch and after the last, with its 95% interval.

    rhos: As returned by `dnas.analysis.progress.fidelity`.
    """
    early = rhos[(rhos["epoch"] < rhos["epoch"].max()) & rhos["rho"].notna()] if len(rhos) else rhos
    if early.empty:
        raise InputError("rank fidelity needs three complete trials of several epochs.")
    last = int(rhos["epoch"].max())
    good = early[early["low"] >= MIN_RHO]
    pick = good.iloc[0] if len(good) else early.loc[early["rho"].idxmax()]
    rho = f"{pick['rho']:.2f}"
    if np.isfinite(pick["low"]):
        rho += f", {pick['low']:.2f} to {pick['high']:.2f}"
    rho = rho.replace("-", "\u2212")
    title = f"Epoch {int(pick['epoch'])} ranks these networks much as epoch {last} does: ρ = {rho}"
    if not len(good):
        title = f"No earlier epoch was shown to rank these networks as epoch {last} does: ρ is at most {rho}"
    with styled():
        figure = canvas(3.0, f"{title} (n = {int(pick['n'])})")
        axes = figure.add_subplot()
        axes.fill_between(rhos["epoch"], rhos["low"], rhos["high"], color=BLUE, alpha=0.15, lw=0)
        axes.plot(rhos["epoch"], rhos["rho"], color=BLUE, lw=1.8, marker="o", ms=3.5, gid="rho")
        axes.axhline(0, color=QUIET, lw=0.8)
        axes.set_ylim(
            min(-0.1, float(rhos["low"].min(skipna=True) if rhos["low"].notna().any() else 0)) - 0.02,
            1.03,
        )
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"rank correlation ρ\nwith epoch {last}")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    return figure


def plot_timeline(intervals: pd.DataFrame) -> Figure:
    """Plot a bar for each interval in which a trial was trained, by lane, coloured by state.

    intervals: As returned by `dnas.analysis.progress.timeline`.
    """
    if intervals.empty:
        raise InputError("the timeline cannot be drawn: no trial was started.")
    end = float(intervals["end"].max())
    lanes = int(intervals["lane"].max()) + 1
    busy = float((intervals["end"] - intervals["start"]).sum()) / (lanes * end) if end else 1.0
    unit, name = next((u, n) for u, n in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "s")) if end >= 2 * u or u == 1.0)
    title = f"{duration(end)}, {lanes} at once" if lanes > 1 else f"{duration(end)}, one at a time"
    with styled():
        figure = canvas(float(np.clip(1.5 + 0.28 * lanes, 1.9, 7.0)), f"{title}: busy {busy:.0%} of the time")
        axes = figure.add_subplot()
        for state, bars in intervals.groupby("state"):
            axes.barh(
                bars["lane"],
                (bars["end"] - bars["start"]).clip(lower=end / 500) / unit,
                left=bars["start"] / unit,
                height=0.72,
                color=STATES[str(state)],
                edgecolor="white",
                lw=0.4,
            )
        if len(intervals) <= 60:
            for row in intervals.to_dict("records"):
                if (row["end"] - row["start"]) / max(end, 1e-9) > 0.02:
                    x = (row["start"] + row["end"]) / 2 / unit
                    light = row["state"] in ("paused",)
                    axes.text(
                        x,
                        row["lane"],
                        str(row["number"]),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color=INK if light else "white",
                    )
        axes.set_yticks([])
        axes.set_ylim(lanes - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"time since the first trial began ({name})")
        states = [state for state in STATES if (intervals["state"] == state).any()]
        handles = [Patch(color=STATES[s], label=f"{s} ({(intervals['state'] == s).sum()})") for s in states]
        figure.legend(handles=handles, loc="outside lower left", ncols=6, handlelength=1)
    return figure


def plot_importance(shares: pd.DataFrame) -> Figure:
    """Plot each choice's share of the importance for being among the best, with its interval and the share by chance.

    shares: As returned by `dnas.analysis.importance.importance`.
    """
    clear = shares[shares["low"] > shares["null"]]
    title = "No choice exceeds chance: the trials are too few, or none matters"
    if len(clear):
        first = clear.iloc[0]
        most = bool((shares.loc[shares["choice"] != first["choice"], "high"] < first["low"]).all())
        verb = "mattered most" if most else "mattered more than chance"
        title = f"{first['choice']} {verb} for being among the best: {first['share']:.0%}"
    with styled():
        figure = canvas(float(1.6 + 0.32 * len(shares)), title)
        axes = figure.add_subplot()
        places = np.arange(len(shares))[::-1]
        colours = [BLUE if low > null else GREY for low, null in zip(shares["low"], shares["null"], strict=True)]
        axes.barh(places, 100 * shares["share"], color=colours, height=0.6)
        axes.hlines(places, 100 * shares["low"], 100 * shares["high"], color=INK, lw=1.2)
        axes.scatter(100 * shares["null"], places, marker="|", s=120, color=RED, zorder=4, label="share by chance")
        axes.set_yticks(places, shares["choice"])
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0)
        axes.set_xlabel("share of the importance (%), 95% interval")
        figure.legend(loc="outside lower left")
    return figure


def plot_slices(frame: pd.DataFrame, choices: Sequence[str], objective: str = "val_error") -> Figure:
    """Plot the error of every complete trial against each choice, with the median at each value.

    frame: One row per trial, with the columns `choices`, `objective` and number.
    """
    choices = [c for c in choices if frame[c].nunique(dropna=True) > 1][:12] if len(frame) else []
    if not choices:
        raise InputError("slices need complete trials that differ in a choice.")
    label, factor = METRICS[objective].axis_label, METRICS[objective].scale
    columns = min(4, len(choices))
    rows = -(-len(choices) // columns)
    best = frame.loc[frame[objective].idxmin()]
    with styled():
        figure = canvas(0.7 + 2.0 * rows, f"Error by each choice ({len(frame)} complete trials)")
        panels = np.atleast_1d(figure.subplots(rows, columns, sharey=True, squeeze=False)).ravel()
        for axes, choice in zip(panels, choices, strict=False):
            values = frame[choice]
            numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
            names = sorted(map(str, values.unique())) if not numeric else []
            x = values.astype(float) if numeric else values.astype(str).map(names.index).astype(float)
            gid = f"slice-{choice}"
            many = len(frame) > MANY
            axes.scatter(
                x, frame[objective], s=14, color=BLUE, alpha=0.55, edgecolor="white", lw=0.3, gid=gid, rasterized=many
            )
            if not many:
                figure.hover[gid] = [
                    f"#{n}  {METRICS[objective].format(y)}\n{choice} = {v}"
                    for n, y, v in zip(frame["number"], frame[objective], values, strict=True)
                ]
            middle = frame[objective].groupby(x.to_numpy()).agg(["median", "size"]).query("size >= @MIN_OF_MEDIAN")
            axes.scatter(middle.index, middle["median"], marker="_", s=160, color=INK, lw=1.6, gid=f"median-{choice}")
            axes.scatter(x[best.name], best[objective], s=60, facecolor="none", edgecolor=COLOURS["best"], lw=1.5)
            axes.set_xlabel(choice, fontsize=8.5)
            if numeric:
                axes.set_xticks(_apart(sorted(x.dropna().unique())))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            else:
                axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 4 else 30, fontsize=7.5)
                axes.set_xlim(-0.6, len(names) - 0.4)
        for axes in panels[len(choices) :]:
            axes.set_visible(False)
        error_axis(panels[0], list(frame[objective]), label.replace("validation ", "validation\n"), factor)
    return figure


def _apart(values: Sequence[float], least: float = 0.14) -> list[float]:
    """Return those of the ascending values that are at least a share `least` of their range apart, the ends first."""
    shown = list(values[:1])
    for value in values[1:-1]:
        if min(value - shown[-1], values[-1] - value) >= least * (values[-1] - values[0]):
            shown.append(value)
    return shown + list(values[1:][-1:])


def plot_parallel(frame: pd.DataFrame, choices: Sequence[str], objective: str = "val_error") -> Figure:
    """Plot parallel coordinates: one line per complete trial through its choices to its error.

    The colour of a line is its place on the axis of the errors. The best tenth of the trials is thicker.
    """
    choices = [c for c in choices if frame[c].nunique(dropna=True) > 1] if len(frame) else []
    if not choices or len(frame) < 2:
        raise InputError("parallel coordinates need two complete trials that differ in a choice.")
    scaled, ends = {}, {}
    for choice in [*choices, objective]:
        values = frame[choice]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.astype(float)
            low, high = float(numbers.min()), float(numbers.max())
            if choice == objective and low > 0 and high > 4 * low:
                scaled[choice] = np.log(numbers / low) / np.log(high / low)
                ends[choice] = [(0.0, METRICS[objective].format(low)), (1.0, METRICS[objective].format(high))]
                continue
            written = METRICS[objective].format if choice == objective else "{:.4g}".format
            ends[choice] = [(0.0, written(low)), (1.0, written(high))]
            scaled[choice] = (numbers - low) / ((high - low) or 1.0)
        else:
            names = sorted(map(str, values.unique()))
            ends[choice] = [(i / max(1, len(names) - 1), name) for i, name in enumerate(names)]
            scaled[choice] = values.astype(str).map(names.index) / max(1, len(names) - 1)
    places = pd.DataFrame(scaled)
    top = frame[objective].rank(method="first") <= max(1, round(0.1 * len(frame)))
    with styled():
        figure = canvas(3.6, f"The choices of {len(frame)} complete trials and their errors")
        axes = figure.add_subplot()
        order = frame[objective].sort_values(ascending=False).index  # the best are drawn last
        for selected, alpha, width in ((~top, max(0.1, min(0.7, 20 / len(frame))), 0.9), (top, 0.95, 2.2)):
            drawn = places.loc[[index for index in order if selected[index]]].to_numpy(float)
            lines = [np.column_stack([range(len(places.columns)), row]) for row in drawn]
            collection = LineCollection(lines, cmap=SEQUENTIAL, alpha=alpha, lw=width, rasterized=len(lines) > 2000)
            collection.set_array(drawn[:, -1])
            collection.set_clim(0, 1.25)  # the yellow end of the scale is hard to see on white
            axes.add_collection(collection)
        for column, choice in enumerate(places.columns):
            axes.axvline(column, color=INK, lw=0.8)
            for y, text in ends[choice]:
                axes.annotate(
                    text,
                    (column, y),
                    xytext=(4, 0),
                    textcoords="offset points",
                    fontsize=7.5,
                    va="center",
                    color=INK,
                    bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 0.6},
                )
        axes.set_xticks(range(len(places.columns)), [*choices, METRICS[objective].axis], fontsize=8)
        axes.set_xlim(-0.15, len(places.columns) - 1 + 0.4)
        axes.set_ylim(-0.06, 1.06)
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        handles = [
            Line2D([], [], color=INK, lw=width, label=text) for text, width in (("best tenth", 2.2), ("others", 0.9))
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


def plot_attainment(
    attained: pd.DataFrame, searches: int, cost: str = "params", objective: str = "val_error"
) -> Figure:
    """Plot the errors that the best, half and all of several searches reached at each cost.

    attained: As returned by `attainment`.
    """
    label, factor = METRICS[objective].axis_label, METRICS[objective].scale
    finite = attained[np.isfinite(attained["median"])]
    if finite.empty:
        raise InputError("no cost is reached by half of the searches: their fronts do not overlap.")
    end = finite.iloc[-1]
    with styled():
        figure = canvas(
            3.6,
            f"Half of {searches} searches reached {METRICS[objective].format(end['median'])}; the best, "
            f"{METRICS[objective].format(float(attained['best'].iloc[-1]))}",
        )
        axes = figure.add_subplot()
        x = attained[cost].to_numpy(float)
        high = attained["worst"].replace(np.inf, np.nan)
        axes.fill_between(x, attained["best"], high, step="post", color=BLUE, alpha=0.13, lw=0, label="best to worst")
        for name, width, style in (("best", 1, ":"), ("median", 2, "-"), ("worst", 1, "--")):
            values = attained[name].replace(np.inf, np.nan)
            axes.step(x, values, where="post", color=BLUE, lw=width, ls=style, label=name, gid=f"attained-{name}")
        all_values = attained[["best", "median", "worst"]].to_numpy(float)
        error_axis(axes, list(all_values[np.isfinite(all_values)]), f"lowest {label}", factor)
        cost_axis(axes, list(x), cost)
        axes.legend(loc="upper right")
    return figure


def plot_diagram(spec: Spec) -> Figure:
    """Plot a network from left to right, with one bar per layer. Its height is the number of channels that it reads."""
    costs = layer_costs(spec)
    colours = kind_colours(costs)
    parts = [part_of(cost.name) for cost in costs]
    max_channels = max(cost.in_channels for cost in costs)
    with styled():
        figure = canvas(2.9, f"{spec.title}: {spec.depth} layers, up to {max_channels:,} channels")
        axes = figure.add_subplot()
        axes.bar(
            range(len(costs)),
            [cost.in_channels for cost in costs],
            width=0.86 if len(costs) < 90 else 1.0,
            color=[colours[cost.kind] for cost in costs],
        )
        added_channels = [cost.out_channels if cost.kind == "dense" else 0 for cost in costs]
        axes.bar(
            range(len(costs)),
            added_channels,
            bottom=[cost.in_channels for cost in costs],
            width=0.86 if len(costs) < 90 else 1.0,
            color=BLUE,
        )
        axes.set_ylabel("channels read")
        axes.grid(axis="x", visible=False)
        axes.set_xlim(-0.8, len(costs) - 0.2)
        ticks, names = [], []
        for part in dict.fromkeys(parts):
            rows = [i for i, name in enumerate(parts) if name == part]
            side = costs[rows[0]].size
            if len(rows) > 1 or part.startswith(("block", "stage")):
                ticks.append((rows[0] + rows[-1]) / 2)
                names.append(f"{part}\n{len(rows)} layer{'s' * (len(rows) > 1)}, {side}×{side}")
        axes.set_xticks(ticks, names, fontsize=8)
        axes.tick_params(axis="x", length=0)
        handles = [Patch(color=BLUE, label="maps that a layer adds")] if any(added_channels) else []
        handles += kind_handles(costs)
        figure.legend(handles=handles, loc="outside lower left", ncols=5, handlelength=1, columnspacing=1.4)
    return figure


def plot_fronts(
    studies: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    cost: str = "params",
    objective: str = "val_error",
    alike: bool = True,
) -> Figure:
    """Plot the complete trials of several studies, and the Pareto front of each.

    Args:
        studies: (trials, front) of each study, by name.
        cost: The cost on the x axis.
        objective: The trained objective.
        alike: Whether the errors of the studies are comparable. If not, the title names no lowest error.
    """
    known = {name: frames for name, frames in studies.items() if len(frames[1])}
    if not known:
        raise InputError("no front can be drawn: none of the studies has a complete trial.")
    label, factor = METRICS[objective].axis_label, METRICS[objective].scale
    lowest = {name: float(front[objective].min()) for name, (_, front) in known.items()}
    least = min(lowest.values())
    title = f"Lowest {METRICS[objective].noun}: {METRICS[objective].format(least)}, in "
    title += joined([name for name, value in lowest.items() if value == least])
    if not alike:
        title = f"Fronts of {several(len(studies), 'study', 'studies')} whose settings differ"
    with styled():
        figure = canvas(4.4, title)
        axes = figure.add_subplot()
        errors: list[float] = []
        sizes: list[float] = []
        for index, (name, (trials, _)) in enumerate(known.items()):
            colour, gid = SERIES[index % len(SERIES)], f"study-{index}"
            x, y = trials[cost].to_numpy(float), trials[objective].to_numpy(float)
            errors, sizes = [*errors, *y], [*sizes, *x]
            axes.scatter(x, y, s=18, color=colour, alpha=0.45, edgecolor="white", lw=0.3, gid=gid, zorder=2)
            figure.hover[gid] = [
                f"{name} #{n}  {METRICS[objective].format(error)}, {METRICS[cost].with_noun(size)}\n{network}"
                for n, error, size, network in zip(trials["number"], y, x, trials["network"], strict=True)
            ]
        error_axis(axes, errors, label, factor)
        cost_axis(axes, sizes, cost)
        for index, (name, (_, front)) in enumerate(known.items()):
            x, y = front[cost].tolist(), front[objective].tolist()
            axes.step(
                [*x, axes.get_xlim()[1]],
                [*y, y[-1]],
                where="post",
                lw=1.6,
                color=SERIES[index % len(SERIES)],
                label=f"{name} ({len(x)} on its front)",
                zorder=3,
                gid=f"front-{index}",
            )
        axes.legend(loc="upper right")
    return figure
