"""What a search's trials say of its choices: functional ANOVA, interactions, and the path between two networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnas.analysis.ablation_path import Estimate, Path, Trained
from dnas.analysis.fanova import REST, Axis, Fanova
from dnas.analysis.metrics import METRICS
from dnas.errors import InputError
from dnas.figures.style import BLUE, GREY, INK, ORANGE, QUIET, RED, canvas, styled
from dnas.formatting import several

PAIRS = 6  # of the bars
MAP = "cividis"
LABELS = 12  # of the ticks of a matrix's side


def plot_fanova(found: Fanova, best: Fanova | None = None) -> Figure:
    """The shares of the error's variance that each choice and the greatest pairs make, over all trials and, beside it,
    of what happens in the best tenth."""
    effects = found.effects
    pairs = effects[effects["other"] != ""].head(PAIRS)
    single = effects[(effects["other"] == "") & (effects["choice"] != REST)]
    clear = effects[effects["clear"]]
    if not found.believable:
        title = f"The trials teach too little for these shares (R² {found.r2:.2f} on unseen ones)"
    elif len(clear):
        title = f"{_term(clear.iloc[0])} makes the largest part of the error's variance: {clear.iloc[0]['share']:.0%}"
    else:
        title = "No choice is told from chance: these trials are too few, or none matters"
    keys = [(row["choice"], row["other"]) for _, row in [*single.iterrows(), *pairs.iterrows()]] + [(REST, "")]
    panels = [("over all", found)] + ([("for the best tenth", best)] if best is not None else [])
    with styled():
        figure = canvas(1.7 + 0.27 * len(keys), title)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, one) in zip(row, panels, strict=True):
            _bars(axes, one, keys)
            trust = "" if one.believable else ", not to be believed"
            axes.set_title(f"{name}: R² {one.r2:.2f}{trust}", fontsize=9, loc="left")
            axes.set_xlabel("share of the variance (%), 95% interval")
        row[-1].legend(loc="lower right", fontsize=8)
    return figure


def _term(row: Any) -> str:
    return f"{row['choice']} × {row['other']}" if row["other"] else str(row["choice"])


def _bars(axes: Axes, found: Fanova, keys: Sequence[tuple[str, str]]) -> None:
    rows = found.effects.set_index(["choice", "other"]).reindex(keys)
    places = np.arange(len(keys))[::-1]
    rest = np.array([name == REST for name, _ in keys])
    colours = [BLUE if found.believable and clear == 1 else GREY for clear in rows["clear"]]
    axes.barh(places, 100 * rows["share"], color=colours, height=0.62)
    axes.hlines(places, 100 * rows["low"], 100 * rows["high"], color=INK, lw=1.1)
    null = 100 * rows["null"].to_numpy(dtype=float)
    axes.scatter(null[~rest], places[~rest], marker="|", s=90, color=RED, zorder=4, label="what chance gives")
    axes.set_yticks(places, [f"{a} × {b}" if b else a for a, b in keys], fontsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0)


def plot_interactions(found: Fanova, objective: str = "val_error") -> Figure:
    """The matrix of all pairs' shares, with the single choices' on its diagonal; and the mean predicted error over the
    two choices of the pair that makes most."""
    forest = found.forest
    axes_of = forest.box.axes
    if len(axes_of) < 2:
        raise InputError("interactions need two choices that vary.")
    shares = forest.shares
    values = shares.pair + np.diag(shares.single)
    names = [axis.name for axis in axes_of]
    pairs = found.effects[found.effects["other"] != ""]
    first = pairs.iloc[0]
    said = f"{_term(first)}: {first['share']:.0%} of the variance"
    if not found.believable:
        title = f"The trials teach too little of interactions (R² {found.r2:.2f} on unseen ones)"
    elif pairs["clear"].any():
        first = pairs[pairs["clear"]].iloc[0]
        title = f"The strongest interaction is {_term(first)}: {first['share']:.0%} of the variance"
    else:
        title = f"No interaction is told from chance; the greatest is {said}"
    clear = {frozenset((row["choice"], row["other"])) for _, row in pairs[pairs["clear"]].iterrows()}
    with styled():
        figure = canvas(4.3, title)
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        hidden = np.triu(np.ones_like(values, dtype=bool), 1)
        top = max(float(values[~np.eye(len(values), dtype=bool)].max()), 0.01)
        left.imshow(np.ma.array(100 * values, mask=hidden), cmap=MAP, vmin=0, vmax=100 * top)
        for i in range(len(names)):
            for j in range(i + 1):
                told = i == j or frozenset((names[i], names[j])) in clear
                colour = "white" if values[i, j] < 0.55 * top else INK
                left.text(
                    j, i, f"{100 * values[i, j]:.1f}", ha="center", va="center", color=colour,
                    fontsize=8, fontweight="bold" if told and i != j else "normal",
                )  # fmt: skip
        left.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        left.set_yticks(range(len(names)), names, fontsize=8)
        left.grid(visible=False)
        left.set_title("share of the variance (%); bold: above chance", fontsize=9, loc="left")
        a, b = names.index(first["choice"]), names.index(first["other"])
        label, factor = METRICS[objective].axis_label, METRICS[objective].scale
        image = right.imshow(factor * forest.marginal(a, b).T, cmap=MAP, aspect="auto", origin="lower")
        _ticks(right, "x", axes_of[a])
        _ticks(right, "y", axes_of[b])
        right.grid(visible=False)
        right.set_title("predicted, mean over the other choices", fontsize=9, loc="left")
        figure.colorbar(image, ax=right, shrink=0.85, label=label)
    return figure


def _ticks(axes: Axes, side: str, axis: Axis) -> None:
    step = -(-len(axis.values) // LABELS)
    texts = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in axis.values]
    places = range(0, len(texts), step)
    rotation = 30 if side == "x" and max(map(len, texts)) > 6 else 0
    getattr(axes, f"set_{side}ticks")(list(places), texts[::step], fontsize=8, rotation=rotation)
    getattr(axes, f"set_{side}label")(axis.name)


def plot_path(path: Path, objective: str = "val_error", trained: Trained | None = None) -> Figure:
    """The error of each network on the path, a row each from the first to the last, and what each step changed:
    predicted with intervals, as measured in the search, and as trained for it."""
    metric = METRICS[objective]
    label, factor, word = metric.axis_label, metric.scale, metric.noun
    rows = np.arange(len(path.nodes))
    changes = trained.changes if trained is not None else path.change
    series = [(path.predicted, path.change, BLUE, "predicted by the forest, 95%", 0.0 if trained is None else -0.14)]
    if trained is not None:
        name = f"trained, {several(trained.seeds, 'seed')}" + (", 95%" if trained.seeds > 1 else "")
        series.append((trained.errors, trained.changes, RED, name, 0.14))
    with styled():
        figure = canvas(1.6 + 0.42 * len(rows), _step_title(path, changes, trained is not None, objective, word))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.35, 1])
        for errors, steps, colour, name, shift in series:
            _estimates(left, errors, rows + shift, colour, factor, name)
            _estimates(right, steps[1:], rows[1:] + shift, colour, factor)
            left.step(factor * np.array([e.value for e in errors]), rows + shift, where="pre", color=colour, alpha=0.4)
        if path.measured:
            left.scatter(
                [factor * value for value in path.measured.values()],
                list(path.measured),
                marker="D",
                s=34,
                facecolor="none",
                edgecolor=ORANGE,
                lw=1.5,
                zorder=4,
                label="measured in the search, one seed",
            )
        left.set_yticks(rows, [node_label(path, i) for i in range(len(rows))], fontsize=8.5)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlabel(label)
        right.axvline(0, color=QUIET, lw=1)
        right.set_xlabel("difference from the row above" + (" (points)" if factor == 100 else ""))
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        _params(right, path)
        figure.legend(loc="outside lower left", ncols=3)
    return figure


def _estimates(
    axes: Axes, values: Sequence[Estimate], places: np.ndarray, colour: str, factor: float, label: str = ""
) -> None:
    x, low, high = (factor * np.array([getattr(one, name) for one in values]) for name in ("value", "low", "high"))
    axes.hlines(places, low, high, color=colour, lw=1.4)
    axes.scatter(x, places, color=colour, s=30, zorder=3, label=label or None)


def _params(axes: Axes, path: Path) -> None:
    """The size of each network, right of its row."""
    place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": QUIET, "annotation_clip": False}
    across = axes.get_yaxis_transform()
    for i, node in enumerate(path.nodes):
        text = METRICS["params"].format(node.cost.params) + (", over a limit" if node.excess else "")
        axes.annotate(text, (1, i), xycoords=across, xytext=(4, 0), va="center", **place)
    axes.annotate("params", (1, 1), xycoords="axes fraction", xytext=(4, 4), **place)


def _step_title(path: Path, changes: Sequence[Estimate], trained: bool, objective: str, word: str) -> str:
    gains = np.array([change.value for change in changes[1:]])
    takes = "took off" if trained else "is predicted to take off"
    if not np.isfinite(gains).any() or np.nanmin(gains) >= 0:
        return f"No step {takes} any {word}"
    most = int(np.nanargmin(gains)) + 1
    sure = changes[most].high < 0
    size = METRICS[objective].format(-changes[most].value)
    return f"{node_label(path, most)} {takes} most: {size} {word}" + ("" if sure else ", but its interval holds 0")


def node_label(path: Path, place: int) -> str:
    """`growth_rate 8 → 16`."""
    return said_changes(path.nodes[place].changes) if place else "the first network"


def said_changes(changes: Sequence[tuple[str, Any, Any]]) -> str:
    parts = []
    for name, before, after in changes:
        if before is None:
            parts.append(f"{name} = {after}")
        elif after is None:
            parts.append(f"no {name}")
        else:
            parts.append(f"{name} {before} → {after}")
    return ", ".join(parts)
