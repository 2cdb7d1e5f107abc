"""Figures of the influence of choices: functional ANOVA, interactions, and the path between two networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dnas.analysis.ablation_path import Estimate, Path, Trained
from dnas.analysis.fanova import BELIEVABLE, REST, Axis, Fanova
from dnas.analysis.metrics import METRICS
from dnas.errors import InputError
from dnas.figures.heatmap import add_colorbar, draw_heatmap
from dnas.figures.style import BLUE, GREY, INK, ORANGE, QUIET, RED, canvas, styled
from dnas.formatting import several

PAIRS = 6  # pairs of choices that get a bar
MAX_TICKS = 12  # per side of the matrix of predicted errors


def plot_fanova(overall: Fanova, best: Fanova | None = None) -> Figure:
    """Plot the share of the error's variance due to each choice and to the strongest pairs.

    overall: Shares among all trials. best: Shares among the best tenth, drawn in a second panel.
    """
    effects = overall.effects
    pairs = effects[effects["other"] != ""].head(PAIRS)
    single = effects[(effects["other"] == "") & (effects["choice"] != REST)]
    clear = effects[effects["clear"]]
    if not overall.believable:
        title = f"Too few trials to assess these shares (R² {overall.r2:.2f} on unseen trials)"
    elif len(clear):
        first = clear.iloc[0]
        others = effects[(effects.index != first.name) & (effects["choice"] != REST)]
        part = "the largest part" if (others["high"] < first["low"]).all() else "more than chance"
        title = f"{_term(first)} explains {part} of the error's variance: {first['share']:.0%}"
    else:
        title = "No choice exceeds chance: the trials are too few, or none matters"
    keys = [(row["choice"], row["other"]) for _, row in [*single.iterrows(), *pairs.iterrows()]] + [(REST, "")]
    panels = [("over all", overall)] + ([("for the best tenth", best)] if best is not None else [])
    with styled():
        figure = canvas(1.9 + 0.27 * len(keys), title)
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, fanova) in zip(row, panels, strict=True):
            _bars(axes, fanova, keys)
            trust = "" if fanova.believable else ", unreliable"
            axes.set_title(f"{name}: R² {fanova.r2:.2f}{trust}", fontsize=9, loc="left")
            axes.set_xlabel("share of the variance (%), 95% interval")
        figure.legend(*row[-1].get_legend_handles_labels(), loc="outside lower left")
    return figure


def _term(row: Any) -> str:
    return f"{row['choice']} × {row['other']}" if row["other"] else str(row["choice"])


def _bars(axes: Axes, fanova: Fanova, keys: Sequence[tuple[str, str]]) -> None:
    rows = fanova.effects.set_index(["choice", "other"]).reindex(keys)
    places = np.arange(len(keys))[::-1]
    rest = np.array([name == REST for name, _ in keys])
    colours = [BLUE if fanova.believable and clear == 1 else GREY for clear in rows["clear"]]
    axes.barh(places, 100 * rows["share"], color=colours, height=0.62)
    axes.hlines(places, 100 * rows["low"], 100 * rows["high"], color=INK, lw=1.1)
    null = 100 * rows["null"].to_numpy(dtype=float)
    axes.scatter(null[~rest], places[~rest], marker="|", s=90, color=RED, zorder=4, label="share by chance")
    axes.set_yticks(places, [f"{a} × {b}" if b else a for a, b in keys], fontsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0)


def plot_interactions(fanova: Fanova, objective: str = "val_error") -> Figure:
    """Plot the shares of all pairs of choices as a matrix, and the mean predicted error over the strongest pair.

    The diagonal holds the shares of single choices. They are printed but not coloured, because they are often so much
    greater that the pairs could not be distinguished.
    """
    axes_of = fanova.forest.axes
    if len(axes_of) < 2:
        raise InputError("interactions need two choices that vary.")
    pairs = fanova.effects[fanova.effects["other"] != ""]
    strongest = (pairs[pairs["clear"]] if pairs["clear"].any() else pairs).iloc[0]
    names = [axis.name for axis in axes_of]
    with styled():
        figure = canvas(4.3, _interactions_title(fanova, pairs, strongest))
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_share_matrix(figure, left, fanova, names, pairs)
        a, b = names.index(strongest["choice"]), names.index(strongest["other"])
        metric = METRICS[objective]
        errors = metric.scale * fanova.forest.marginal(a, b).T
        norm = Normalize(float(errors.min()), max(float(errors.max()), float(errors.min()) + 1e-9))
        mesh = draw_heatmap(right, errors, norm)
        right.invert_yaxis()
        _ticks(right, "x", axes_of[a])
        _ticks(right, "y", axes_of[b])
        right.set_title("predicted mean over the other choices", fontsize=9, loc="left")
        add_colorbar(figure, mesh, metric.axis_label, ax=right, shrink=0.85)
    return figure


def _interactions_title(fanova: Fanova, pairs: pd.DataFrame, strongest: "pd.Series[Any]") -> str:
    if not fanova.believable:
        return f"Too few trials to assess interactions (R² {fanova.r2:.2f} on unseen trials)"
    if pairs["clear"].any():
        return f"{_term(strongest)} interact beyond chance: {strongest['share']:.0%} of the variance"
    return "No interaction exceeds chance"


def _draw_share_matrix(figure: Figure, axes: Axes, fanova: Fanova, names: Sequence[str], pairs: pd.DataFrame) -> None:
    shares = 100 * fanova.forest.shares.pair
    single = 100 * fanova.forest.shares.single
    clear = {frozenset((row["choice"], row["other"])) for _, row in pairs[pairs["clear"]].iterrows()}
    below = np.tril(np.ones_like(shares, dtype=bool), -1)
    top = max(float(shares[below].max()), 1.0)
    mesh = draw_heatmap(axes, np.where(below, shares, np.nan), Normalize(0, top), lines=0.5)
    for i, name in enumerate(names):
        for j in range(i + 1):
            bold = i != j and frozenset((name, names[j])) in clear
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{single[i] if i == j else shares[i, j]:.1f}",
                ha="center",
                va="center",
                color="white" if i != j and shares[i, j] < 0.55 * top else INK,
                fontsize=8,
                fontweight="bold" if bold else "normal",
            )
    places = np.arange(len(names)) + 0.5
    axes.set_xticks(places, names, rotation=35, ha="right", fontsize=8)
    axes.set_yticks(places, names, rotation=0, fontsize=8)
    axes.set_title("share of the variance (%); bold: above chance", fontsize=9, loc="left")
    add_colorbar(figure, mesh, "share of a pair (%)", ax=axes, shrink=0.85)


def _ticks(axes: Axes, side: str, axis: Axis) -> None:
    step = -(-len(axis.values) // MAX_TICKS)
    texts = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in axis.values]
    places = [place + 0.5 for place in range(0, len(texts), step)]
    rotation = 30 if side == "x" and max(map(len, texts)) > 6 else 0
    getattr(axes, f"set_{side}ticks")(places, texts[::step], fontsize=8, rotation=rotation)
    getattr(axes, f"set_{side}label")(axis.name)


def plot_path(path: Path, objective: str = "val_error", trained: Trained | None = None) -> Figure:
    """Plot the error of each network on the path, one row per network, and the change at each step.

    Errors are predicted with intervals, as measured in the search, and, if given, as trained along the path.
    """
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
    x, low, high = (
        factor * np.array([getattr(estimate, name) for estimate in values]) for name in ("value", "low", "high")
    )
    axes.hlines(places, low, high, color=colour, lw=1.4)
    axes.scatter(x, places, color=colour, s=30, zorder=3, label=label or None)


def _params(axes: Axes, path: Path) -> None:
    """Write the size of each network to the right of its row."""
    place: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": QUIET, "annotation_clip": False}
    across = axes.get_yaxis_transform()
    for i, node in enumerate(path.nodes):
        text = METRICS["params"].format(node.cost.params) + (", over a limit" if node.excess else "")
        axes.annotate(text, (1, i), xycoords=across, xytext=(4, 0), va="center", **place)
    axes.annotate("params", (1, 1), xycoords="axes fraction", xytext=(4, 4), **place)


def _step_title(path: Path, changes: Sequence[Estimate], trained: bool, objective: str, word: str) -> str:
    if not trained and path.r2 < BELIEVABLE:
        return f"Too few trials to predict the steps (R² {path.r2:.2f} on unseen trials)"
    gains = np.array([change.value for change in changes[1:]])
    reduces = "reduced" if trained else "is predicted to reduce"
    if not np.isfinite(gains).any() or np.nanmin(gains) >= 0:
        return f"No step {reduces} the {word}"
    best_step = int(np.nanargmin(gains)) + 1
    sure = changes[best_step].high < 0
    metric = METRICS[objective]
    size = f"{-metric.scale * changes[best_step].value:.{metric.digits}f} {metric.difference_unit}"
    return f"{node_label(path, best_step)} {reduces} the {word} most, by {size}" + (
        "" if sure else " (interval includes 0)"
    )


def node_label(path: Path, place: int) -> str:
    """Return a description of the step that leads to a node, such as `growth_rate 8 → 16`."""
    return _changes_text(path.nodes[place].changes) if place else "the first network"


def _changes_text(changes: Sequence[tuple[str, Any, Any]]) -> str:
    parts = []
    for name, before, after in changes:
        if before is None:
            parts.append(f"{name} = {after}")
        elif after is None:
            parts.append(f"no {name}")
        else:
            parts.append(f"{name} {before} → {after}")
    return ", ".join(parts)
