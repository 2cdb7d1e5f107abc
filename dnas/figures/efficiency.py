"""Error against what a network costs, and the sampler's arm against the control's."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dnas.analysis import Front, NoiseFloor
from dnas.analysis.control import ArmComparison
from dnas.analysis.metrics import METRICS
from dnas.errors import InputError
from dnas.figures.style import (
    ARMS,
    COLOURS,
    GREY,
    INK,
    QUIET,
    UNFINISHED,
    canvas,
    cost_axis,
    error_axis,
    styled,
)


def plot_error_against_cost(
    frame: pd.DataFrame,
    front: Front,
    published: pd.DataFrame | None = None,
    noise_floor: NoiseFloor | None = None,
    best: int | None = None,
    objectives: Sequence[str] = ("val_error", "params"),
) -> Figure:
    """The trained objective of every trial against its first cost, with the Pareto front (as Figure 4 of the paper).

    frame: as `read_study`. objectives: the trained one, then the costs; of two, the front is a line, of more it is a
    surface, of which the trials are marked. best: the number of the network that was chosen; the front's lowest error
    unless given. published: test errors of the paper (`dnas.analysis.published`), against params only; noise_floor:
    drawn as a band, that of the best's error.
    """
    y, x = objectives[0], objectives[1]
    known = frame[frame[y].notna() & frame[x].notna()] if len(frame) and x in frame else frame.iloc[:0]
    if len(known):
        known = known.astype({x: float, y: float})  # a frame of records has objects where one had no value
    complete = known[known["state"] == "complete"] if len(known) else known
    unfinished = {state: known[known["state"] == state] for state in UNFINISHED} if len(known) else {}
    unfinished = {state: some for state, some in unfinished.items() if len(some)}
    if best is None and len(front.trials):
        best = int(front.trials.sort_values([y, x])["number"].iloc[0])
    chosen = complete[complete["number"] == best] if len(complete) else complete
    if len(chosen):
        row = chosen.iloc[0]
        title = f"Lowest {METRICS[y].noun}: {METRICS[y].format(row[y])} with {METRICS[x].with_noun(row[x])}"
        title += f" (#{int(row['number'])})"
        if len(objectives) > 2:
            title += f"; {len(front.trials)} on the front in all {len(objectives)} objectives"
    else:
        title = "No trial is complete yet" if unfinished else "Nothing to show yet: no trial has an error"
    with styled():
        figure = canvas(4.9, title)
        axes = figure.add_subplot()
        comparable = (x, y) == ("params", "val_error")
        points = published if comparable and published is not None and len(published) else None
        errors = [value for some in (complete, *unfinished.values()) for value in some.get(y, [])]
        sizes = [value for some in (complete, *unfinished.values()) for value in some.get(x, [])]
        if points is not None:
            errors, sizes = [*errors, *points["test_error"]], [*sizes, *points["params"]]
        handles: list = []
        if noise_floor is not None and len(chosen) and y == "val_error":
            errors += [noise_floor.low, noise_floor.high]
            axes.axhspan(noise_floor.low, noise_floor.high, color=COLOURS["best"], alpha=0.09, lw=0, zorder=0)
            handles.append(
                Patch(
                    color=COLOURS["best"],
                    alpha=0.14,
                    lw=0,
                    label=f"95% interval of the best (n = {noise_floor.size:,})",
                )
            )
        for state, some in unfinished.items():
            marks = axes.scatter(
                some[x],
                some[y],
                marker="x",
                s=16,
                lw=0.9,
                color=GREY,
                alpha=0.55,
                label=f"{UNFINISHED[state]} ({len(some)})",
                zorder=2,
                gid=state,
            )
            figure.hover[state] = _told(some, x, y)
            handles.append(marks)
        for arm in ("control", "sampler", "first"):
            some = complete[complete["arm"] == arm] if len(complete) else complete
            if not len(some):
                continue
            marker, label = ARMS[arm]
            marks = axes.scatter(
                some[x],
                some[y],
                marker=marker,
                s=30,
                color=COLOURS[arm],
                edgecolor="white",
                lw=0.5,
                alpha=0.85,
                label=f"{label} ({len(some)})",
                zorder=3,
                gid=f"arm-{arm}",
            )
            figure.hover[f"arm-{arm}"] = _told(some, x, y)
            handles.insert(0, marks)
        if points is not None:
            handles.append(_draw_published(axes, points))
        label, factor = METRICS[y].axis_label, METRICS[y].scale
        error_axis(axes, errors, label + (", published: test error (%)" if points is not None else ""), factor)
        cost_axis(axes, sizes, x)
        if len(front.trials):
            handles.insert(0, _draw_front(axes, front, objectives))
        if len(chosen):
            axes.scatter(
                chosen[x],
                chosen[y],
                s=95,
                facecolor="none",
                edgecolor=COLOURS["best"],
                lw=1.8,
                zorder=5,
                gid="best",
            )
        if handles:
            figure.legend(
                handles=handles,
                loc="outside lower left",
                ncols=3,
                columnspacing=1.6,
                handletextpad=0.5,
                handlelength=1.4,
            )
        shown = [some for some in (complete, *unfinished.values()) if len(some)]
        _label_points(figure, axes, front, best, points, pd.concat(shown) if shown else front.trials, objectives)
    return figure


def _told(some: pd.DataFrame, x: str, y: str) -> list[str]:
    """What each mark of a trial says of itself."""
    return [
        f"#{row['number']}  {METRICS[y].format(row[y])}, {METRICS[x].with_noun(row[x])}\n{row.get('network', '')}"
        for row in some.to_dict("records")
    ]


def _draw_published(axes: Axes, points: pd.DataFrame) -> Line2D:
    """Hollow squares; those of one family joined in order of size."""
    for family, some in points.groupby(points["method"].str.replace(r" \(.*", "", regex=True), sort=True):
        some = some.sort_values("params")
        line = ":" if str(family).startswith("DenseNet") else "none"
        axes.plot(
            some["params"],
            some["test_error"],
            ls=line,
            lw=1,
            marker="s",
            ms=5,
            mfc="white",
            mew=1.1,
            color=COLOURS["published"] if line == ":" else GREY,
            zorder=2.5,
            gid="published",
        )
    return Line2D(
        [],
        [],
        ls="none",
        marker="s",
        ms=5,
        mfc="white",
        mew=1.1,
        color=COLOURS["published"],
        label="published: the paper's Table 2 (others than DenseNets grey)",
    )


def _draw_front(axes: Axes, front: Front, objectives: Sequence[str]) -> Artist:
    """Steps: at a cost, the lowest error that a network of at most that cost reached; to the right it goes on. The
    front of three objectives is no line on two of them: its trials are ringed."""
    x, y = (front.trials[name].astype(float).tolist() for name in (objectives[1], objectives[0]))
    if len(objectives) > 2:
        label = f"Pareto front in all {len(objectives)} objectives ({len(x)})"
        return axes.scatter(
            x, y, s=52, facecolor="none", edgecolor=COLOURS["front"], lw=1.1, zorder=4, gid="front", label=label
        )
    axes.step(
        [*x, axes.get_xlim()[1]], [*y, y[-1]], where="post", color=COLOURS["front"], lw=1.3, zorder=2.8, gid="front"
    )
    return Line2D([], [], color=COLOURS["front"], lw=1.3, label=f"Pareto front ({len(x)})")


def _label_points(
    figure: Figure,
    axes: Axes,
    front: Front,
    best: int | None,
    points: pd.DataFrame | None,
    others: pd.DataFrame,
    objectives: Sequence[str],
) -> None:
    """Names the front's trials and the published points beside their marks, as far as there is room; the best first.

    Below and to the left of the front nothing can lie, so its labels go there where they can.
    """
    error, cost = objectives[0], objectives[1]
    wanted: list[tuple[float, float, str, str, str]] = []
    rows = front.trials.astype({cost: float, error: float}).sort_values([error, cost])
    rows = pd.concat([rows[rows["number"] == best], rows[rows["number"] != best]])
    for number, x, y in zip(rows["number"], rows[cost], rows[error], strict=True):
        colour = COLOURS["best"] if number == best else INK
        wanted.append(
            (x, y, f"#{int(number)}  {METRICS[error].format(y)}", colour, "bold" if number == best else "normal")
        )
    if points is not None:
        for row in points.sort_values("test_error").to_dict("records"):
            name, colour = _published_name(row["method"], row["depth"])
            if all(name != text for _, _, text, _, _ in wanted):
                wanted.append((row["params"], row["test_error"], name, colour, "normal"))
    if not wanted:
        return
    figure.draw_without_rendering()  # settles the layout: only then is a point's place on the page known
    to_page, scale = axes.transData.transform, figure.dpi / 72
    avoid = [tuple(to_page((x, y))) for x, y in zip(others[cost], others[error], strict=True)]
    avoid += [tuple(to_page((x, y))) for x, y, *_ in wanted]
    line = front.trials if len(objectives) == 2 else front.trials.iloc[:0]
    steps = [tuple(to_page((x, y))) for x, y in zip(line[cost], line[error], strict=True)]
    for (x0, y0), (x1, y1) in itertools.pairwise([*steps, *([(axes.bbox.x1, steps[-1][1])] if len(steps) else [])]):
        avoid += [(x, y0) for x in np.arange(x0, x1, 4)] + [(x1, y) for y in np.arange(y1, y0, 4)]
    frame = axes.bbox
    taken: list[tuple[float, float, float, float]] = []
    for index, (x, y, text, colour, weight) in enumerate(wanted):
        places = [(-6, -11, "right"), (7, -11, "left"), (7, 6, "left"), (-7, 6, "right"), (9, -3, "left")]
        if 0 < index < len(rows):
            del places[1:]  # above the front a label looks as if it belonged to another point
        px, py = to_page((x, y))
        width, height = 5.7 * len(text) * scale * (1.1 if weight == "bold" else 1), 10.5 * scale
        for dx, dy, ha in places:
            left = px + dx * scale - (width if ha == "right" else 0)
            box = (left, py + dy * scale - 2 * scale, left + width, py + dy * scale + height)
            inside = box[0] > frame.x0 and box[2] < frame.x1 and box[1] > frame.y0 and box[3] < frame.y1
            over = any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            hides = any(box[0] - 3 < x < box[2] + 3 and box[1] - 1 < y < box[3] + 1 for x, y in avoid)
            if inside and not over and not hides:
                taken.append(box)
                axes.annotate(
                    text,
                    (x, y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha=ha,
                    fontsize=8.5,
                    color=colour,
                    fontweight=weight,
                    zorder=6,
                    path_effects=[withStroke(linewidth=2.2, foreground="white")],
                )
                break


def _published_name(method: str, depth: int) -> tuple[str, str]:
    """A short label and its colour."""
    if method.startswith("DenseNet"):
        return method.replace(" (", f" (L={depth}, "), COLOURS["published"]
    return f"{method.partition(' (')[0].replace(' with ', ' + ')}, {depth} layers", QUIET


def plot_control(arms: ArmComparison) -> Figure:
    """The sampler's and the control's values by trial number, and beside them the share of each at or below a value."""
    label, factor = METRICS[arms.objective].axis_label, METRICS[arms.objective].scale
    if arms.beats is None:
        raise InputError("the arms can't be drawn: one of them has no trial that got so far.")
    title = f"A trial of the sampler beats a random one with probability {arms.beats:.0%}"
    if not arms.enough:
        title += ", of too few to tell"
    with styled():
        figure = canvas(2.9, title)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
        for arm, values in (("control", arms.control), ("sampler", arms.sampler)):
            name = f"{ARMS[arm][1]} ({len(values)})"
            left.scatter(
                list(values),
                list(values.values()),
                s=26,
                color=COLOURS[arm],
                edgecolor="white",
                lw=0.5,
                label=name,
                zorder=3 if arm == "sampler" else 2,
                gid=f"arm-{arm}",
            )
            right.ecdf(list(values.values()), orientation="horizontal", color=COLOURS[arm], lw=1.6, gid=f"ecdf-{arm}")
        every = [*arms.control.values(), *arms.sampler.values()]
        error_axis(
            left, every, f"{label.partition(' (')[0]}\nafter epoch {arms.epoch} ({label.partition(' (')[2]}", factor
        )
        left.set_xlabel("trial")
        left.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        right.set_xlabel("share of the arm at or below (%)")
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, handletextpad=0.3)
    return figure
