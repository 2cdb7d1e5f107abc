"""Figures of efficiency: error against cost, and the sampler against the random control."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import BboxBase

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
    Drawing,
    canvas,
    cost_axis,
    error_axis,
    lay_out,
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
    """Plot the trained objective of every trial against its first cost, with the Pareto front (the paper's Figure 4).

    Args:
        frame: Trials, as returned by `read_study`.
        front: The Pareto front. For two objectives it is a line; for more, its trials are ringed.
        published: Test errors of the paper, from `dnas.analysis.published`. Drawn against params only.
        noise_floor: Interval of the best network's error, drawn as a band.
        best: Number of the chosen network. Defaults to the lowest error of the front.
        objectives: The trained objective, then the costs.
    """
    y, x = objectives[0], objectives[1]
    complete, unfinished = _finite_trials(frame, x, y)
    if best is None and len(front.trials):
        best = int(front.trials.sort_values([y, x])["number"].iloc[0])
    chosen = complete[complete["number"] == best] if len(complete) else complete
    with styled():
        figure = canvas(4.9, _cost_title(complete, best, front, objectives, bool(unfinished)))
        axes = figure.add_subplot()
        comparable = (x, y) == ("params", "val_error")
        points = published if comparable and published is not None and len(published) else None
        drawn = [trials for trials in (complete, *unfinished.values()) if len(trials)]
        # Errors of unfinished trials are so high that they would take half of the axis.
        errors = [value for trials in (drawn[:1] if len(complete) else drawn) for value in trials[y]]
        sizes = [value for trials in drawn for value in trials[x]]
        handles: list[Artist] = []
        if noise_floor is not None and len(chosen) and y == "val_error":
            errors += [noise_floor.low, noise_floor.high]
            handles.append(_draw_noise_floor(axes, noise_floor))
        if points is not None:
            errors, sizes = [*errors, *points["test_error"]], [*sizes, *points["params"]]
            handles.append(_draw_published(axes, points))
        label = METRICS[y].axis_label + (", published: test error (%)" if points is not None else "")
        error_axis(axes, errors, label, METRICS[y].scale)
        cost_axis(axes, sizes, x)
        handles = _draw_arms(figure, axes, complete, x, y) + _draw_unfinished(figure, axes, unfinished, x, y) + handles
        if len(front.trials):
            handles.insert(0, _draw_front(axes, front, objectives))
        if len(chosen):
            ring: dict[str, Any] = {"facecolor": "none", "edgecolor": COLOURS["best"], "lw": 1.8}
            axes.scatter(chosen[x], chosen[y], s=95, zorder=5, gid="best", **ring)
        if handles:
            spacing: dict[str, Any] = {"columnspacing": 1.6, "handletextpad": 0.5, "handlelength": 1.4}
            figure.legend(handles=handles, loc="outside lower left", ncols=3, **spacing)
        _label_points(figure, axes, front, best, points, pd.concat(drawn) if drawn else front.trials, objectives)
    return figure


def _finite_trials(frame: pd.DataFrame, x: str, y: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Trials with both values: the complete ones, and the unfinished ones by state."""
    known = frame[frame[y].notna() & frame[x].notna()] if len(frame) and x in frame else frame.iloc[:0]
    if not len(known):
        return known, {}
    known = known.astype({x: float, y: float})  # the columns of a frame of records may hold objects
    unfinished = {state: known[known["state"] == state] for state in UNFINISHED}
    return known[known["state"] == "complete"], {state: trials for state, trials in unfinished.items() if len(trials)}


def _cost_title(
    complete: pd.DataFrame, best: int | None, front: Front, objectives: Sequence[str], any_unfinished: bool
) -> str:
    y, x = (METRICS[name] for name in objectives[:2])
    chosen = complete[complete["number"] == best] if len(complete) else complete
    if not len(chosen):
        return "No trial is complete yet" if any_unfinished else "Nothing to show yet: no trial has an error"
    row = chosen.iloc[0]
    title = f"Lowest {y.noun}: {y.format(row[y.key])} with {x.with_noun(row[x.key])} (#{int(row['number'])})"
    tied = complete[(complete[y.key] == row[y.key]) & (complete["number"] != best)]["number"].tolist()
    if tied:
        title += f", which {f'#{tied[0]:.0f} reached' if len(tied) == 1 else f'{len(tied)} others reached'} too"
    if row["arm"] == "first" and len(complete) > 1:
        title += "; the search started from it"
    if len(objectives) > 2:
        title += f"; {len(front.trials)} on the front in all {len(objectives)} objectives"
    return title


def _draw_noise_floor(axes: Axes, floor: NoiseFloor) -> Patch:
    axes.axhspan(floor.low, floor.high, color=COLOURS["best"], alpha=0.09, lw=0, zorder=0)
    label = f"95% interval of the best (n = {floor.size:,})"
    return Patch(color=COLOURS["best"], alpha=0.14, lw=0, label=label)


def _draw_unfinished(
    figure: Drawing, axes: Axes, unfinished: Mapping[str, pd.DataFrame], x: str, y: str
) -> list[Artist]:
    """Draw trials without a final error; those above the axis become a rug on its upper edge."""
    handles: list[Artist] = []
    look: dict[str, Any] = {"marker": "x", "s": 16, "lw": 0.9, "color": GREY, "alpha": 0.55, "zorder": 2}
    top = axes.get_ylim()[1]
    for state, trials in unfinished.items():
        above = int((trials[y] > top).sum())
        label = f"{UNFINISHED[state]} ({len(trials)}" + (f", {above} above the axis)" if above else ")")
        marks = axes.scatter(trials[x], trials[y].clip(upper=top), label=label, gid=state, clip_on=False, **look)
        handles.append(marks)
        figure.hover[state] = _hover_texts(trials, x, y)
    return handles


def _draw_arms(figure: Drawing, axes: Axes, complete: pd.DataFrame, x: str, y: str) -> list[Artist]:
    """Draw the complete trials of each arm; the control is drawn first, below the others, and comes last in legends."""
    handles: list[Artist] = []
    look: dict[str, Any] = {"s": 30, "edgecolor": "white", "lw": 0.5, "alpha": 0.85, "zorder": 3}
    for arm in ("control", "sampler", "first"):
        trials = complete[complete["arm"] == arm] if len(complete) else complete
        if len(trials):
            marker, name = ARMS[arm]
            label, gid = f"{name} ({len(trials)})", f"arm-{arm}"
            marks = axes.scatter(
                trials[x],
                trials[y],
                marker=marker,
                color=COLOURS[arm],
                label=label,
                gid=gid,
                **look,
            )
            figure.hover[gid] = _hover_texts(trials, x, y)
            handles.insert(0, marks)
    return handles


def _hover_texts(trials: pd.DataFrame, x: str, y: str) -> list[str]:
    """Return the hover text of each trial's mark."""
    return [
        f"#{row['number']}  {METRICS[y].format(row[y])}, {METRICS[x].with_noun(row[x])}\n{row.get('network', '')}"
        for row in trials.to_dict("records")
    ]


def _draw_published(axes: Axes, points: pd.DataFrame) -> Line2D:
    """Draw published points as hollow squares, with those of one family joined in order of size."""
    for family, family_points in points.groupby(points["method"].str.replace(r" \(.*", "", regex=True), sort=True):
        family_points = family_points.sort_values("params")
        line = ":" if str(family).startswith("DenseNet") else "none"
        axes.plot(
            family_points["params"],
            family_points["test_error"],
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
        label="published: the paper's Table 2 (grey: not DenseNets)",
    )


def _draw_front(axes: Axes, front: Front, objectives: Sequence[str]) -> Artist:
    """Draw the front as steps: at a cost, the lowest error of any network of at most that cost.

    A front of three objectives is not a line in two of them, so its trials are ringed.
    """
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


class _Label(NamedTuple):
    """Label of a point. x, y: Data coordinates of the point."""

    x: float
    y: float
    text: str
    colour: str
    weight: str


Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


def _label_points(
    figure: Figure,
    axes: Axes,
    front: Front,
    best: int | None,
    points: pd.DataFrame | None,
    others: pd.DataFrame,
    objectives: Sequence[str],
) -> None:
    """Label the front's trials and the published points beside their marks as far as there is room, the best first.

    No mark can be below and to the left of the front, so its labels are placed there if possible.
    """
    labels = _labels(front, best, points, objectives)
    if not labels:
        return
    lay_out(figure)
    obstacles = _obstacles(axes, labels, front, others, objectives)
    taken: list[Box] = []
    for index, label in enumerate(labels):
        offsets = [(-6, -11, "right"), (7, -11, "left"), (7, 6, "left"), (-7, 6, "right"), (9, -3, "left")]
        if 0 < index < len(front.trials):
            del offsets[1:]  # a label above the front would seem to belong to another point
        for dx, dy, alignment in offsets:
            box = _label_box(axes, label, dx, dy, alignment, figure.dpi / 72)
            if _is_free(box, axes.bbox, taken, obstacles):
                taken.append(box)
                _draw_label(axes, label, dx, dy, alignment)
                break


def _labels(front: Front, best: int | None, points: pd.DataFrame | None, objectives: Sequence[str]) -> list[_Label]:
    """Return the labels of the front's trials, the best first, then those of the published points."""
    error, cost = objectives[0], objectives[1]
    labels = []
    rows = front.trials.astype({cost: float, error: float}).sort_values([error, cost])
    rows = pd.concat([rows[rows["number"] == best], rows[rows["number"] != best]])
    for number, x, y in zip(rows["number"], rows[cost], rows[error], strict=True):
        colour, weight = (COLOURS["best"], "bold") if number == best else (INK, "normal")
        labels.append(_Label(x, y, f"#{int(number)}  {METRICS[error].format(y)}", colour, weight))
    if points is not None:
        for row in points.sort_values("test_error").to_dict("records"):
            name, colour = _published_name(row["method"], row["depth"])
            if all(name != label.text for label in labels):
                labels.append(_Label(row["params"], row["test_error"], name, colour, "normal"))
    return labels


def _obstacles(
    axes: Axes, labels: Sequence[_Label], front: Front, others: pd.DataFrame, objectives: Sequence[str]
) -> list[tuple[float, float]]:
    """Return the pixels that labels must not hide: all marks, and every fourth pixel of the front's line."""
    error, cost = objectives[0], objectives[1]
    to_page = axes.transData.transform
    obstacles = [tuple(to_page((x, y))) for x, y in zip(others[cost], others[error], strict=True)]
    obstacles += [tuple(to_page((label.x, label.y))) for label in labels]
    line = front.trials if len(objectives) == 2 else front.trials.iloc[:0]
    steps = [tuple(to_page((x, y))) for x, y in zip(line[cost], line[error], strict=True)]
    for (x0, y0), (x1, y1) in itertools.pairwise([*steps, *([(axes.bbox.x1, steps[-1][1])] if len(steps) else [])]):
        obstacles += [(x, y0) for x in np.arange(x0, x1, 4)] + [(x1, y) for y in np.arange(y1, y0, 4)]
    return obstacles


def _label_box(axes: Axes, label: _Label, dx: float, dy: float, alignment: str, scale: float) -> Box:
    """Estimate the box of a label that is dx, dy points away from its mark. scale: pixels per point."""
    x, y = axes.transData.transform((label.x, label.y))
    width = 5.7 * len(label.text) * scale * (1.1 if label.weight == "bold" else 1)
    height = 10.5 * scale
    left = x + dx * scale - (width if alignment == "right" else 0)
    return left, y + dy * scale - 2 * scale, left + width, y + dy * scale + height


def _is_free(box: Box, frame: BboxBase, taken: Sequence[Box], obstacles: Sequence[tuple[float, float]]) -> bool:
    """Return True if a box is inside the frame, overlaps no other box, and hides no obstacle."""
    left, bottom, right, top = box
    inside = left > frame.x0 and right < frame.x1 and bottom > frame.y0 and top < frame.y1
    overlaps = any(left < b[2] and b[0] < right and bottom < b[3] and b[1] < top for b in taken)
    hides = any(left - 3 < x < right + 3 and bottom - 1 < y < top + 1 for x, y in obstacles)
    return inside and not overlaps and not hides


def _draw_label(axes: Axes, label: _Label, dx: float, dy: float, alignment: str) -> None:
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=alignment,
        fontsize=8.5,
        color=label.colour,
        fontweight=label.weight,
        zorder=6,
        path_effects=[withStroke(linewidth=2.2, foreground="white")],
    )


def _published_name(method: str, depth: int) -> tuple[str, str]:
    """Return a short label of a published network, and its colour."""
    if method.startswith("DenseNet"):
        return method.replace(" (", f" (L={depth}, "), COLOURS["published"]
    return f"{method.partition(' (')[0].replace(' with ', ' + ')}, {depth} layers", QUIET


def plot_control(arms: ArmComparison) -> Figure:
    """Plot the values of the sampler and the control by trial number, and the distribution of each."""
    import seaborn

    label, factor = METRICS[arms.objective].axis_label, METRICS[arms.objective].scale
    if arms.beats is None:
        raise InputError("cannot draw the arms: one of them has no trial that reached this epoch.")
    with styled():
        figure = canvas(2.9, arms.verdict)
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
            seaborn.ecdfplot(y=list(values.values()), ax=right, color=COLOURS[arm], lw=1.6, gid=f"ecdf-{arm}")
        all_values = [*arms.control.values(), *arms.sampler.values()]
        error_axis(
            left,
            all_values,
            f"{label.partition(' (')[0]}\nafter epoch {arms.epoch} ({label.partition(' (')[2]}",
            factor,
        )
        left.set_xlabel("trial")
        left.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        right.set_xlabel("share of the arm at or below (%)")
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, handletextpad=0.3)
    return figure
