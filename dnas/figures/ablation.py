"""Figures of an ablation: paired differences with intervals, slopes per seed, interactions, cost and learning curves.

The base is dark in every figure. A variant is blue if it is better (fewer errors), red if it is worse, and grey if the
comparison is inconclusive.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from dnas.analysis.metrics import METRICS, Metric
from dnas.analysis.paired import Comparison, Effects, SeedNoise
from dnas.analysis.verdicts import CONCLUDED, IMPAIRED, IMPROVED, best_first, level, raced, short
from dnas.errors import InputError
from dnas.figures.style import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    PURPLE,
    QUIET,
    RED,
    SKY,
    Drawing,
    canvas,
    error_axis,
    lay_out,
    styled,
)
from dnas.formatting import joined, p_value, percent, several

VERDICTS = dict.fromkeys(IMPROVED, BLUE) | dict.fromkeys(IMPAIRED, RED) | {"cannot tell": GREY, "too few seeds": GREY}
LEVELS = (PURPLE, GREEN, ORANGE, BROWN, SKY, PINK)  # colours of the levels that are drawn as lines
PANEL_COLUMNS = 4
# Quantities that can be held equal, with the label of their residual.
HELD = {**{key: METRICS[key].label for key in ("params", "macs")}, "seconds": "training time, as estimated,"}


def plot_forest(effects: Effects, noise: SeedNoise | None = None) -> Figure:
    """Plot one row per comparison, the best on top.

    A row shows each pair, the mean with its interval, and the bootstrap interval below it. The base is the zero line.
    noise: Seed noise of the base, drawn as a band.
    """
    rows, metric = best_first(effects), effects.metric
    if not rows:
        raise InputError("a forest plot needs a seed that the base and another variant have both finished.")
    with styled():
        figure = canvas(1.55 + 0.44 * len(rows), short(effects))
        axes = figure.add_subplot()
        handles: list = []
        if noise is not None and noise.band > 0:
            band = metric.scale * noise.band
            axes.axvspan(-band, band, color=INK, alpha=0.06, lw=0, zorder=0, gid="noise")
            differences = several(noise.pairs, "unpaired difference")
            text = f"central {level(effects)} of means of {differences} of {effects.base}"
            handles.append(Patch(color=INK, alpha=0.1, lw=0, label=text))
        axes.axvline(0, color=INK, lw=1.3, zorder=1, gid="base")
        for y, comparison in enumerate(rows):
            _row(axes, y, comparison, metric.scale)
            gid = f"pairs-{y}"
            figure.hover[gid] = [
                f"{comparison.name}, seed {seed}: {metric.amount(d)}"
                for seed, d in zip(comparison.seeds, comparison.differences, strict=True)
            ]
            p = "" if comparison.verdict == "too few seeds" else f"{p_value(comparison.p_holm)}, "
            axes.annotate(
                f"{metric.difference(comparison.mean)} ({p}n = {len(comparison.seeds)})",
                (1.015, y),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8.5,
                color=INK if comparison.verdict in CONCLUDED else QUIET,
                fontweight="bold" if comparison.verdict in CONCLUDED else "normal",
                annotation_clip=False,
            )
        axes.set_yticks(range(len(rows)), [textwrap.fill(comparison.name, 30) for comparison in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}".replace("-", "\u2212") if x else "0"))
        axes.xaxis.set_major_locator(MaxNLocator(9 if metric.unit == "%" else 5))  # other numbers may be long
        axes.margins(x=0.06)
        beside = f" from {effects.base}" if rows[0].kind == "variant" else ""
        unit = "percentage points; " if metric.unit == "%" else ""
        left = IMPROVED[0] if metric.is_error else "worse" if metric.maximize else "better"
        axes.set_xlabel(f"difference in {metric.label}{beside} ({unit}left of 0: {left})")
        kind = "" if raced(effects) else "t "
        handles += [
            Line2D([], [], color=QUIET, lw=2, marker="o", ms=6, label=f"mean and {level(effects)} {kind}interval"),
            Line2D([], [], color=QUIET, lw=1, marker="|", ms=5, label="bootstrap interval"),
            Line2D([], [], color=QUIET, ls="none", marker="o", ms=3.5, alpha=0.45, label="a pair"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, columnspacing=1.6)
    return figure


def _row(axes: Axes, y: int, comparison: Comparison, scale: float) -> None:
    colour = VERDICTS[comparison.verdict]
    is_clear = comparison.verdict in CONCLUDED
    axes.scatter(
        scale * np.array(comparison.differences),
        y - 0.2 - 0.07 * _stacked(comparison.differences),
        s=12,
        color=colour,
        alpha=0.5,
        lw=0,
        zorder=3,
        gid=f"pairs-{y}",
    )
    low, high = (scale * end for end in comparison.interval)
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], color=colour, lw=2.4, solid_capstyle="butt", zorder=3, gid=f"interval-{y}")
    low, high = (scale * end for end in comparison.bootstrap_interval)
    if math.isfinite(low):
        axes.plot([low, high], [y + 0.22] * 2, color=colour, lw=1, marker="|", ms=5, zorder=3, gid=f"bootstrap-{y}")
    axes.plot(
        [scale * comparison.mean],
        [y],
        marker="o",
        ms=7,
        mfc=colour if is_clear else "white",
        mec=colour,
        mew=1.6,
        zorder=4,
        gid=f"mean-{y}",
    )


def _stacked(values: Sequence[float]) -> np.ndarray:
    """Return the number of earlier values that equal each value. Errors on few images are often equal."""
    seen: Counter[float] = Counter()
    places = []
    for value in values:
        seen[round(value, 9)] += 1
        places.append(seen[round(value, 9)] - 1)
    return np.array(places, float)


def plot_slopes(values: pd.DataFrame, effects: Effects) -> Figure:
    """Plot one panel per variant, with a line per seed from the base's error to the variant's.

    The dark line joins the means. The panels are in the order of the forest plot.
    values: Values of the metric, indexed by seed, with one column per variant. Missing ones are NaN.
    """
    base, rows, metric = effects.base, best_first(effects), effects.metric
    if not rows:
        raise InputError("slopes need a seed that the base and another variant have both finished.")
    fewer, more = ({c.name: sum(way * metric.sign * d > 0 for d in c.differences) for c in rows} for way in (-1, 1))
    words = ("fewer", "more") if metric.is_error else ("better", "worse")
    with styled():
        figure, panels = _panels(len(rows), _slopes_title(rows, effects, fewer, more), 2.9)
        shown: list[float] = []
        for index, (axes, comparison) in enumerate(zip(panels, rows, strict=True)):
            pairs = values.loc[list(comparison.seeds), [base, comparison.name]].to_numpy(float)
            shown += pairs.ravel().tolist()
            for seed, (before, after) in zip(comparison.seeds, pairs, strict=True):
                colour = {-1: BLUE, 0: GREY, 1: RED}[int(np.sign(after - before)) * metric.sign]
                axes.plot([0, 1], [before, after], color=colour, lw=1.1, alpha=0.75, zorder=2, gid=f"seed-{seed}")
            gid = f"slopes-{index}"
            signs = metric.sign * np.sign(pairs[:, 1] - pairs[:, 0])
            axes.scatter(
                np.repeat([0, 1], len(pairs)),
                pairs.T.ravel(),
                s=16,
                color=np.tile([{-1: BLUE, 0: GREY, 1: RED}[int(sign)] for sign in signs], 2),
                zorder=3,
                gid=gid,
            )
            hover_texts = [
                f"seed {seed}: {base} {metric.format(before)}, {comparison.name} {metric.format(after)}\n"
                f"{metric.amount(after - before)}"
                for seed, (before, after) in zip(comparison.seeds, pairs, strict=True)
            ]
            figure.hover[gid] = hover_texts * 2
            axes.plot([0, 1], pairs.mean(axis=0), color=INK, lw=2.4, zorder=4, gid=f"mean-{index}")
            same = len(pairs) - fewer[comparison.name] - more[comparison.name]
            text = f"{fewer[comparison.name]} {words[0]}, {more[comparison.name]} {words[1]}"
            text += f", {same} equal" if same else ""
            axes.set_title(text, fontsize=8.5, color=QUIET)
            axes.set_xticks([0, 1], [textwrap.fill(base, 14), textwrap.fill(comparison.name, 14)])
            axes.set_xlim(-0.25, 1.25)
            axes.grid(axis="x", visible=False)
        _value_axis(panels[0], shown, metric)
        labels = ("a seed with fewer errors", "with more") if metric.is_error else ("a better seed", "a worse one")
        handles = [
            Line2D([], [], color=BLUE, lw=1.1, label=labels[0]),
            Line2D([], [], color=RED, lw=1.1, label=labels[1]),
            Line2D([], [], color=INK, lw=2.4, label="mean of the pairs"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure


def _value_axis(axes: Axes, values: Sequence[float], metric: Metric) -> None:
    """Set up the y axis for values of a metric. Only errors are known to be positive, and may need a log scale."""
    if metric.unit == "%":
        error_axis(axes, values, metric.axis_label)
        return
    axes.set_ylabel(metric.axis_label)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(7))


def _slopes_title(
    rows: Sequence[Comparison], effects: Effects, fewer: Mapping[str, int], more: Mapping[str, int]
) -> str:
    """Return the numbers of seeds of the clearest conclusion, or of the clearest difference with its verdict."""
    base, is_error = effects.base, effects.metric.is_error
    concluded = [c for c in rows if c.verdict in CONCLUDED]
    clear = max(concluded or rows, key=lambda c: max(fewer[c.name], more[c.name]) / len(c.seeds))
    seeds = several(len(clear.seeds), "seed")
    if concluded:
        count = (fewer if clear.verdict in IMPROVED else more)[clear.name]
        return f"{clear.name} {'makes' if is_error else 'is'} {clear.verdict} than {base} from {count} of {seeds}"
    why = "too few seeds to conclude" if clear.verdict == "too few seeds" else "inconclusive"
    counts = f"from {fewer[clear.name]} of {seeds}, {'more' if is_error else 'worse'} from {more[clear.name]}"
    return f"{clear.name} {'has fewer errors' if is_error else 'is better'} than {base} {counts}: {why}"


def _lowest_title(name: str, text: str, effects: Effects) -> str:
    """Return a title about the variant with the lowest mean, with the verdict on its difference from the others.

    Variants are compared with the base only.
    """
    if name != effects.base:
        verdict = next((c.verdict for c in effects.comparisons if c.name == name), "")
        against = effects.base
    else:
        open_ones = [c for c in effects.comparisons if c.verdict != "more errors"]
        verdict = "too few seeds" if any(c.verdict == "too few seeds" for c in open_ones) else ""
        verdict = verdict or ("cannot tell" if open_ones else "fewer errors")
        against = joined([c.name for c in open_ones])
    if verdict == "fewer errors":
        return text
    why = "too few seeds to distinguish it" if verdict == "too few seeds" else "not distinguished"
    return f"{text}, {why} from {against}"


def _panels(count: int, title: str, height: float) -> tuple[Drawing, list[Axes]]:
    """Return `count` panels with shared axes, at most `PANEL_COLUMNS` per row. The rest of the last row stays empty."""
    columns = min(PANEL_COLUMNS, count)
    rows = -(-count // columns)
    figure = canvas(0.75 + height * rows, title)
    panels = list(np.atleast_1d(figure.subplots(rows, columns, sharey=True, squeeze=False)).ravel())
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def plot_interaction(cells: pd.DataFrame, effects: Effects) -> Figure:
    """Plot one panel per pair of factors: the mean error at each level of one, with a line per level of the other.

    cells: As returned by `dnas.analysis.variants.cell_means`. effects: Effects of the design, whose interactions the
    title states.
    """
    known = cells[cells["n"] > 0]
    pairs = list(dict.fromkeys(zip(known["x_factor"], known["line_factor"], strict=True)))
    if len(pairs) == 1:  # there is room to draw the pair both ways
        swapped = {
            f"{a}_{part}": f"{b}_{part}" for a, b in (("x", "line"), ("line", "x")) for part in ("factor", "level")
        }
        known = pd.concat([known, known.rename(columns=swapped)])
        pairs.append(pairs[0][::-1])
    if not pairs:
        raise InputError("interactions need a seed from which every variant of two factors was finished.")
    interactions = [c for c in effects.comparisons if c.kind == "interaction"]
    metric = effects.metric
    clear = [c for c in interactions if c.verdict in CONCLUDED]
    if clear:
        title = f"{clear[0].name}: the effects do not add up, by {metric.amount(clear[0].mean)}"
    elif interactions and all(c.verdict == "too few seeds" for c in interactions):
        title = (
            f"Too few seeds to tell whether effects add up: {effects.pairs_needed} needed, {effects.pairs} available"
        )
    else:
        title = "No interaction was found: parallel lines mean effects that add up"
    with styled():
        figure, panels = _panels(len(pairs), title, 3.0)
        shown = [*known["mean"], *known["low"].dropna(), *known["high"].dropna()]
        for index, (axes, (x, line)) in enumerate(zip(panels, pairs, strict=True)):
            panel_cells = known[(known["x_factor"] == x) & (known["line_factor"] == line)]
            ticks = list(dict.fromkeys(panel_cells["x_level"]))
            lines = list(dict.fromkeys(panel_cells["line_level"]))
            for number, line_level in enumerate(lines):
                line_cells = panel_cells[panel_cells["line_level"] == line_level]
                shift = 0.06 * (number - (len(lines) - 1) / 2)
                places = np.array([ticks.index(value) for value in line_cells["x_level"]]) + shift
                colour, gid = LEVELS[number % len(LEVELS)], f"cell-{index}-{number}"
                axes.plot(places, line_cells["mean"], color=colour, lw=1.8, zorder=3, gid=f"line-{index}-{number}")
                axes.vlines(places, line_cells["low"], line_cells["high"], color=colour, lw=1.4, alpha=0.6, zorder=2)
                axes.scatter(
                    places, line_cells["mean"], s=28, color=colour, zorder=4, gid=gid, label=f"{line} {line_level}"
                )
                figure.hover[gid] = [
                    f"{x} {row['x_level']}, {line} {line_level}: {metric.format(row['mean'])} (n = {row['n']})"
                    for row in line_cells.to_dict("records")
                ]
            axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
            axes.set_xlim(-0.4, len(ticks) - 0.6)
            axes.set_xlabel(x)
            axes.grid(axis="x", visible=False)
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                borderaxespad=0.3,
                ncols=min(3, len(lines)),
                fontsize=8,
                handletextpad=0.2,
                columnspacing=1,
            )
        _value_axis(panels[0], shown, metric)
    return figure


def plot_variants(rows: pd.DataFrame, effects: Effects, equal: str = "nothing", tolerance: float = 0.01) -> Figure:
    """Plot the mean error of each variant, with its range over seeds, against params and against multiply-adds.

    All variants have nearly the same amount of a quantity that is held equal. Its panel shows each variant's residual
    instead.

    Args:
        rows: One row per variant: variant, params, macs, n, mean, least, most, residual. Errors and residuals are
            fractions.
        effects: Comparisons with the base, which determine the colours.
        equal: The quantity held equal, a key of `HELD`, or "nothing".
        tolerance: Largest accepted residual, as a fraction. Drawn as a band.

    Raises:
        InputError: If no run is complete.
    """
    known = rows[rows["n"] > 0]
    if known.empty:
        raise InputError("error against cost needs a complete run.")
    verdicts = {c.name: c.verdict for c in effects.comparisons}
    colours = {name: VERDICTS.get(verdicts.get(name, ""), INK) for name in rows["variant"]}
    held = equal in HELD and bool(rows["residual"].notna().all())
    costs = {name: METRICS[name].format for name in ("params", "macs") if name != equal or not held}
    first = known.loc[known["mean"].idxmin()]
    title = _lowest_title(first["variant"], f"Lowest mean error: {percent(first['mean'])}, {first['variant']}", effects)
    with styled():
        figure = canvas(3.6, title)
        grid = figure.add_gridspec(1, len(costs) + held)
        panels: list[Axes] = []
        for place, (column, format_cost) in enumerate(costs.items()):
            axes = figure.add_subplot(grid[0, place], sharey=panels[0] if panels else None)
            panels.append(axes)
            x = known[column].to_numpy(float)
            gid = f"variants-{column}"
            tones = [colours[name] for name in known["variant"]]
            axes.vlines(x, known["least"], known["most"], color=tones, lw=1.2, alpha=0.6)
            axes.scatter(x, known["mean"], s=42, color=tones, zorder=3, gid=gid)
            figure.hover[gid] = [
                f"{row['variant']}: {percent(row['mean'])} (n = {row['n']}), {format_cost(row[column])} {column}"
                for row in known.to_dict("records")
            ]
            pad = 0.15 * (x.max() - x.min()) or 0.05 * x.max()
            axes.set_xlim(x.min() - pad, x.max() + 1.6 * pad)
            _size_ticks(axes, column)
            axes.tick_params(labelleft=not place)
        error_axis(panels[0], [*known["least"], *known["most"]], effects.metric.axis_label)
        if held:
            _residuals(figure.add_subplot(grid[0, -1]), rows, equal, tolerance, colours)
        _name_marks(figure, dict(zip(costs, panels, strict=True)), known, colours)
    return figure


def _size_ticks(axes: Axes, cost: str) -> None:
    """Set a few ticks, with just enough digits to distinguish them."""
    axes.xaxis.set_major_locator(MaxNLocator(4))
    ticks = axes.xaxis.get_major_locator()()
    label, scale = METRICS[cost].axis_for(max(ticks))
    digits = max(0, -math.floor(math.log10((ticks[1] - ticks[0]) * scale) + 1e-9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * scale:,.{digits}f}"))
    axes.set_xlabel(label)


def _residuals(axes: Axes, rows: pd.DataFrame, equal: str, tolerance: float, colours: Mapping[str, str]) -> None:
    places = np.arange(len(rows))
    residuals = 100 * rows["residual"].to_numpy(float)
    axes.axvspan(-100 * tolerance, 100 * tolerance, color=INK, alpha=0.06, lw=0, zorder=0)
    axes.axvline(0, color=INK, lw=1.2)
    axes.hlines(places, 0, residuals, color=[colours[name] for name in rows["variant"]], lw=2)
    axes.scatter(residuals, places, s=30, color=[colours[name] for name in rows["variant"]], zorder=3, gid="residuals")
    axes.set_yticks(places, [textwrap.fill(name, 16) for name in rows["variant"]], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    limit = max(100 * tolerance, float(np.abs(residuals).max())) * 1.25
    axes.set_xlim(-limit, limit)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(f"{HELD[equal]} off the base's (%)")


def _name_marks(figure: Figure, panels: Mapping[str, Axes], known: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """Write the variants' names beside their marks, where possible free of other marks and names."""
    lay_out(figure)
    scale = figure.dpi / 72
    rows = known.sort_values("mean").to_dict("records")
    beside = (
        (8, 0, "left"),
        (-8, 0, "right"),
        (6, 10, "left"),
        (6, -10, "left"),
        (-6, 10, "right"),
        (-6, -10, "right"),
    )
    for column, axes in panels.items():
        marks = [axes.transData.transform((row[column], row["mean"])) for row in rows]
        taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in marks]
        for (x, y), row in zip(marks, rows, strict=True):
            width, height = 5.4 * len(row["variant"]) * scale, 10 * scale
            places = []
            for dx, dy, side in beside:
                left = x + dx * scale - (width if side == "right" else 0)
                places.append((Bbox.from_bounds(left, y + dy * scale - height / 2, width, height), (dx, dy), side))
            inside = [place for place in places if axes.bbox.x0 <= place[0].x0 and place[0].x1 <= axes.bbox.x1]
            free = [place for place in inside if not place[0].count_overlaps(taken)]
            box, offset, side = (free or inside or places)[0]
            taken.append(box)
            axes.annotate(
                row["variant"],
                (row[column], row["mean"]),
                xytext=offset,
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8,
                color=INK if colours[row["variant"]] == GREY else colours[row["variant"]],
            )


def plot_curves_of_variants(bands: pd.DataFrame, effects: Effects, order: Sequence[str]) -> Figure:
    """Plot one panel per variant: mean validation error by epoch with the range over seeds, beside the dark base.

    bands: As returned by `dnas.analysis.variants.curve_bands`. order: Names of the variants, including the base.
    """
    available = set(bands["variant"]) if len(bands) else set()
    names = [name for name in order if name in available and name != effects.base] or [
        n for n in order if n in available
    ]
    if not names:
        raise InputError("learning curves of variants need a complete run.")
    last = bands.loc[bands.groupby("variant")["epoch"].idxmax()].set_index("variant")["mean"]
    lowest = str(last.idxmin())
    title = _lowest_title(lowest, f"Lowest mean after the last epoch: {percent(float(last.min()))}, {lowest}", effects)
    verdicts = {c.name: c.verdict for c in effects.comparisons}
    with styled():
        figure, panels = _panels(len(names), title, 2.5)
        for axes, name in zip(panels, names, strict=True):
            for variant, colour in ((effects.base, INK), (name, VERDICTS.get(verdicts.get(name, ""), INK))):
                band, dashes = bands[bands["variant"] == variant], (0, (4, 1.5)) if variant == effects.base else "-"
                if band.empty or (variant == name and name == effects.base):
                    continue
                colour = QUIET if colour == GREY else colour
                axes.fill_between(band["epoch"], band["low"], band["high"], color=colour, alpha=0.14, lw=0)
                gid = f"curve-{variant}"
                text = f"{variant} ({band['n'].max()})"
                axes.plot(band["epoch"], band["mean"], color=colour, lw=1.8, ls=dashes, label=text, gid=gid)
            axes.set_title(textwrap.fill(name, 24), fontsize=9)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.legend(loc="lower left", fontsize=7.5)
        error_axis(panels[0], [*bands["low"], *bands["high"]], METRICS["val_error"].axis_label)
    return figure
