"""Drawing, and only that: each function takes a result of `dnas.analysis` and gives a matplotlib Figure.

Titles state what the numbers say; errors are fractions in, percent on the axes. No pyplot, no state kept.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from dnas import wording as words
from dnas.analysis import Front, NoiseFloor, WeightNorms, leads_from
from dnas.analysis.control import ArmComparison
from dnas.analysis.efficiency import cost_by_part, part_of
from dnas.arch import DenseNetSpec, layer_costs
from dnas.errors import InputError
from dnas.wording import percent

# seaborn's `colorblind`; one colour, one meaning, on every figure and on the page.
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
# Of an objective: its axis, what a value is multiplied by there, and its word after a value.
AXES = {
    "val_error": ("validation error (%)", 100.0, "error"),
    "val_loss": ("validation loss (nats)", 1.0, "loss"),
    "params": ("parameters (millions)", 1e-6, "params"),
    "macs": ("multiply-adds of one image (millions)", 1e-6, "macs"),
    "activation_bytes": ("activations of one batch (MB)", 1e-6, "of activations"),
    "latency": ("latency of one image (ms)", 1e3, "latency"),
}
# Of a trial that did not train to its end: what a reader is told of its mark.
UNFINISHED = {
    "stopped": "stopped early, at its last error",
    "paused": "paused, at its last error; may be promoted",
}
KINDS = {"stem": BROWN, "dense": SKY, "transition": ORANGE, "classifier": YELLOW}

FORMATS = ("svg", "png", "pdf")

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a `$` in a name is a `$`
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
    "svg.fonttype": "path",  # looks alike wherever it is opened, whatever fonts are there
    "svg.hashsalt": "dnas",
}
WIDTH = 8.2  # inches


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


def save(figure: Figure, path: Path | str) -> Path:
    """Writes `figure` as the suffix of `path` says: .svg, .png (144 dpi) or .pdf. Equal figures give equal bytes."""
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise InputError(f"a figure is saved as {', '.join('.' + name for name in FORMATS)}, but got {path.name!r}.")
    # No dates, no versions: a picture changes only when what it shows does.
    metadata: dict[str, dict[str, None]] = {
        "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
        "png": {"Software": None},
        "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with _style():
        figure.savefig(path, format=kind, dpi=144, metadata=metadata[kind])
    return path


def _canvas(height: float, title: str, width: float = WIDTH) -> Figure:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, fontweight="bold")
    return figure


# --- error against a cost -----------------------------------------------------------------------------------------


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
        title = f"Lowest {AXES[y][2]}: {_said(y, row[y])} with {_said(x, row[x])} {AXES[x][2]} (#{int(row['number'])})"
        if len(objectives) > 2:
            title += f"; {len(front.trials)} on the front in all {len(objectives)} objectives"
    else:
        title = "No trial is complete yet" if unfinished else "Nothing to show yet: no trial has an error"
    with _style():
        figure = _canvas(4.9, title)
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
            handles.insert(0, marks)
        if points is not None:
            handles.append(_draw_published(axes, points))
        label, factor, _ = AXES[y]
        _error_axis(axes, errors, label + (", published: test error (%)" if points is not None else ""), factor)
        _cost_axis(axes, sizes, x)
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


def _said(objective: str, value: float) -> str:
    """A value as it is written on the axes and beside the marks: sizes in one unit, so that they can be compared."""
    exact = {"params": words.params, "macs": words.macs}
    return exact.get(objective, lambda number: words.said(objective, number))(value)


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
        wanted.append((x, y, f"#{int(number)}  {_said(error, y)}", colour, "bold" if number == best else "normal"))
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


def _error_axis(axes: Axes, errors: Sequence[float], label: str, factor: float = 100) -> None:
    """`factor` times the values, percent unless given; a log scale where they span a factor above 4, with a straight
    piece at its foot where one is 0."""
    axes.set_ylabel(label)
    most_of_all = 1.0 if factor == 100 else np.inf  # no error is above 100%
    positive = [error for error in errors if error > 0]
    if not positive:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{factor * y:g}"))
        return
    least, most = min(positive), max(positive)
    zero = min(errors) == 0
    if most / least <= 4 and not zero:
        pad = 0.12 * (most - least) or 0.1 * most
        axes.set_ylim(max(0, least - pad), min(most_of_all, most + pad))
        axes.yaxis.set_major_locator(MaxNLocator(7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{round(factor * y, 6):g}"))
        return
    if zero:
        axes.set_yscale("symlog", linthresh=least, linscale=0.35)
        axes.set_ylim(-0.12 * least, min(1.15 * most_of_all, most * 1.25))
    else:
        axes.set_yscale("log")
        axes.set_ylim(least / 1.3, min(1.15 * most_of_all, most * 1.25))
    _log_ticks(axes, "y", factor)


def _cost_axis(axes: Axes, sizes: Sequence[float], objective: str) -> None:
    label, factor, _ = AXES[objective]
    axes.set_xscale("log")
    axes.set_xlabel(label)
    if len(sizes):
        low, high = min(sizes), max(sizes)
        room = max(1.12, (high / low) ** 0.06) if high / low > 1.5 else 2.0
        axes.set_xlim(low / room, high * room)
    _log_ticks(axes, "x", factor)


def _log_ticks(axes: Axes, side: str, factor: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten of the printed value; fewer over many decades, more within one."""
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


# --- the control arm ----------------------------------------------------------------------------------------------


def plot_control(arms: ArmComparison) -> Figure:
    """The sampler's and the control's values by trial number, and beside them the share of each at or below a value."""
    label, factor, _ = AXES[arms.objective]
    if arms.beats is None:
        raise InputError("the arms can't be drawn: one of them has no trial that got so far.")
    title = f"A trial of the sampler beats a random one with probability {arms.beats:.0%}"
    if not arms.enough:
        title += ", of too few to tell"
    with _style():
        figure = _canvas(2.9, title)
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
        _error_axis(
            left, every, f"{label.partition(' (')[0]}\nafter epoch {arms.epoch} ({label.partition(' (')[2]}", factor
        )
        left.set_xlabel("trial")
        left.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        right.set_xlabel("share of the arm at or below (%)")
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, handletextpad=0.3)
    return figure


# --- learning curves ----------------------------------------------------------------------------------------------


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
    with _style():
        figure = _canvas(4.0, title)
        axes = figure.add_subplot()
        others = curves[curves["number"] != best].dropna(subset=["val_error"])
        for state, colour, width in (
            ("stopped", GREY, 0.7),
            ("paused", GREY, 0.7),
            ("complete", BLUE, 0.8),
            ("running", BLUE, 0.8),
        ):
            some = [
                c[["epoch", "val_error"]].to_numpy(float) for _, c in others[others["state"] == state].groupby("number")
            ]
            if some:
                faint = float(np.clip(10 / len(some), 0.04, 0.6))
                dense = sum(map(len, some)) > 20_000  # as vectors they would make a file of megabytes
                axes.add_collection(
                    LineCollection(
                        some, colors=colour, linewidths=width, alpha=faint, zorder=1, gid=state, rasterized=dense
                    )
                )
        single = others.groupby("number").filter(lambda curve: len(curve) == 1)  # a line of one point shows nothing
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
        _error_axis(axes, [*own["train_error"], *others["val_error"], *val["val_error"]], "error (%)")
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


# --- weight norms -------------------------------------------------------------------------------------------------


def plot_weight_norms(norms: WeightNorms) -> Figure:
    """Heatmap: rows are layers in depth order, columns epochs, the colour the RMS weight over its untrained value.

    The scale is that of the convolutions; a classifier beyond it has the colour of the end.
    """
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
        title = f"Convolutions ended at {low:.2f} to {high:.2f} times their untrained size"
        if any(last) and np.isfinite(ratio[-1, -1]):
            title += f", the classifier at {ratio[-1, -1]:.2f}"
    with _style():
        figure = _canvas(float(np.clip(1.5 + 0.17 * rows, 2.8, 7.4)), title)
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
        bar.set_label("RMS weight ÷ its untrained value")
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
        _name_rows(axes, norms.layers, parts, axes.bbox.height * 72 / figure.dpi / rows)
    return figure


def _name_rows(axes: Axes, layers: Sequence[str], parts: Sequence[str], pitch: float) -> None:
    """Ticks at as many layers as there is room for (`pitch`: points a row), a white line and a name at each block."""
    every = max(1, int(np.ceil(10 / pitch)))
    single = [row for row, part in enumerate(parts) if parts.count(part) == 1]
    ticks = {row: parts[row] for row in single}
    for part in dict.fromkeys(parts):
        rows = [row for row, name in enumerate(parts) if name == part]
        if len(rows) == 1:
            continue
        for row in rows:
            number = int(layers[row].rpartition("denselayer")[2] or 0)
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


# --- cost by layer ------------------------------------------------------------------------------------------------


def plot_layer_costs(spec: DenseNetSpec) -> Figure:
    """Params and macs of each layer in the order of execution, coloured by what kind of layer it is."""
    costs = layer_costs(spec)
    shares = cost_by_part(spec).set_index("part")
    most_params, most_macs = shares["params_share"].idxmax(), shares["macs_share"].idxmax()
    text = f"{str(most_params).capitalize()} holds {shares['params_share'].max():.0%} of the params"
    text += " and" if most_params == most_macs else f", {most_macs}"
    text += f" does {shares['macs_share'].max():.0%} of the multiply-adds"
    with _style():
        figure = _canvas(3.4, text)
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


_KIND_WORDS = {"stem": "stem", "dense": "dense layer", "transition": "transition", "classifier": "classifier"}


def _name_columns(axes: Axes, parts: list[str]) -> None:
    ticks = {}
    for part in dict.fromkeys(parts):
        if part.startswith("block"):
            columns = [column for column, name in enumerate(parts) if name == part]
            ticks[(columns[0] + columns[-1]) / 2] = part
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("layers in the order of execution")


def title(figure: Figure) -> str:
    """The finding that a figure states."""
    return figure.get_suptitle()
