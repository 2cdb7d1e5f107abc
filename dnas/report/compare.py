"""Comparison of several searches on one page: which one found better networks, and how certain that is."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from dnas import figures
from dnas.analysis.curves import error_curves
from dnas.analysis.metrics import METRICS
from dnas.analysis.progress import attainment, compare_distributions, distribution
from dnas.errors import InputError
from dnas.formatting import joined, percent, several
from dnas.report.data import Study, read_for_report, value
from dnas.report.page import Drawn, Picture, write_figure
from dnas.study.folder import find_study


def read_all(names: Sequence[str | Path]) -> list[Study]:
    """Read the studies, and raise `InputError` if their data or their trained objectives differ."""
    for name in names:
        folder = find_study(name)
        if "ablation" in folder.config():
            raise InputError(f"{folder.name} is an ablation, which compares its own variants; report it alone.")
    studies = [read_for_report(name, None) for name in names]
    paths = {s.folder.path.resolve() for s in studies}
    if len(paths) < len(studies):
        raise InputError("a study cannot be compared with itself; name each study once.")
    first = studies[0]
    for other in studies[1:]:
        for setting, first_value, other_value in (
            ("data set", first.data.get("title"), other.data.get("title")),
            ("data files (fingerprint)", first.data.get("fingerprint"), other.data.get("fingerprint")),
            ("image size", first.data.get("image_size"), other.data.get("image_size")),
            ("part of the data", first.data.get("subset", "whole"), other.data.get("subset", "whole")),
            ("trained objective", first.objectives[0], other.objectives[0]),
        ):
            if first_value != other_value:
                raise InputError(
                    f"{first.folder.name} and {other.folder.name} cannot be compared: their {setting} differ,"
                    f" {_short(first_value)} and {_short(other_value)}."
                )
    return studies


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def differing(a: Study, b: Study) -> list[str]:
    """Return the settings that change what the errors of complete trials mean, and that differ between two studies."""
    recipes = [dict(s.config.get("recipe", {})) for s in (a, b)]
    epochs = [recipe.pop("epochs", None) for recipe in recipes]
    pairs = [
        ("numbers of epochs", *epochs),
        ("recipes", *recipes),
        ("stopping rules", a.config.get("stopping"), b.config.get("stopping")),
        ("objectives", a.config.get("objective"), b.config.get("objective")),
        ("limits", a.config.get("limits"), b.config.get("limits")),
        ("validation splits", a.data.get("split_seed"), b.data.get("split_seed")),
        ("augmentations", a.data.get("augmentation"), b.data.get("augmentation")),
    ]
    return [setting for setting, first, second in pairs if first != second]


def at_common_epoch(a: Study, b: Study) -> str:
    """Return a sentence with the median errors of all trials of two studies at the last epoch that all have reached."""
    curves = [error_curves(s.curves) for s in (a, b)]
    if not all(curves):
        return ""
    epoch = min(int(curve[-1, 0]) for known in curves for curve in known.values())
    medians = [median(float(curve[curve[:, 0] == epoch, 1][0]) for curve in known.values()) for known in curves]
    texts = [
        f"{percent(middle)} ({s.folder.name}, {several(len(known), 'trial')})"
        for s, known, middle in zip((a, b), curves, medians, strict=True)
    ]
    return (
        f" After epoch {epoch}, the last that all trials reached, the median validation error is {' and '.join(texts)}."
    )


def cautions(studies: Sequence[Study]) -> list[str]:
    """Return one sentence for each pair of studies with different settings, and one about the seeds."""
    sentences = []
    first = studies[0]
    for other in studies[1:]:
        settings = differing(first, other)
        if len(first.records) != len(other.records):
            settings.append("numbers of trials")
        if settings:
            sentences.append(f"{first.folder.name} and {other.folder.name} have different {joined(settings)}.")
    sentences.append(
        "Each search was run once, from one seed. The intervals do not include the variation between seeds of a search,"
        " unless several of the studies differ only in their seeds."
    )
    return sentences


def same_but_seed(studies: Sequence[Study]) -> bool:
    """Return whether the studies differ only in their seeds, so that they are repetitions of one search."""
    keys = ("space", "limits", "recipe", "objective", "sampler", "control", "stopping")
    alike = all(s.config.get(key) == studies[0].config.get(key) for s in studies for key in keys)
    return alike and len({s.config.get("seed") for s in studies}) == len(studies)


def draw(
    studies: Sequence[Study], out: Path, formats: Sequence[str], show: Callable[[str], None] = lambda text: None
) -> dict[str, Drawn]:
    """Draw the figures of the comparison into `out`, in SVG and `formats`. `show` receives the name of each."""
    objective = studies[0].objectives[0]
    drawn: dict[str, Drawn] = {}

    def put(name: str, picture: Picture) -> None:
        show(f"drawing {name}")
        drawn[name] = write_figure(picture, name, out, formats)

    complete = {s.folder.name: s.frame[(s.frame["state"] == "complete") & s.frame[objective].notna()] for s in studies}
    fronts = {s.folder.name: s.front.trials for s in studies}
    cost = studies[0].axes[1]
    if any(len(front) for front in fronts.values()):
        numbers = pd.concat([frame.assign(study=name) for name, frame in complete.items()])
        put(
            "fronts",
            Picture(
                figures.plot_fronts(
                    {n: (complete[n], fronts[n]) for n in complete},
                    cost,
                    objective,
                    alike=not any(differing(a, b) for a, b in itertools.combinations(studies, 2)),
                ),
                numbers[["study", "number", "network", cost, objective]],
                "Each mark is a complete trial, each line the Pareto front of a study.",
            ),
        )
    values = {name: frame[objective].astype(float).tolist() for name, frame in complete.items() if len(frame)}
    if values:
        spread = {name: distribution(sample) for name, sample in values.items()}
        names = list(values)
        alike = len(names) > 1 and not differing(*(s for s in studies if s.folder.name in names[:2]))
        test = compare_distributions(values[names[0]], values[names[1]]) if alike else None
        rows = [
            {"study": name, "value": x, "share": y, "low": low, "high": high}
            for name, errors in spread.items()
            for x, y, low, high in zip(errors.error, errors.share, errors.low, errors.high, strict=True)
        ]
        put(
            "distributions",
            Picture(
                figures.plot_distribution(spread, test, objective),
                pd.DataFrame(rows),
                "Fraction of complete trials at or below an error, with pointwise 95% bootstrap bands over trials."
                + (
                    f" The first two are compared by the Mann-Whitney test; the largest distance is {test.ks:.2f}. A"
                    " sampler's trials depend on the earlier ones, so p is an approximation."
                    if test
                    else ""
                ),
            ),
        )
    if len(studies) > 1 and same_but_seed(studies) and all(len(s.front.trials) for s in studies):
        attained = attainment([s.front for s in studies], cost, objective)
        try:
            figure = figures.plot_attainment(attained, len(studies), cost, objective)
        except InputError:
            return drawn
        caption = (
            "These studies differ only in their seeds. The lines show the lowest error at each cost that the best"
            " search, half of the searches, and all searches reached (empirical attainment, Fonseca et al. 2011)."
        )
        put("attainment", Picture(figure, attained, caption))
    return drawn


def rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Return one row per study for the table."""
    objective = studies[0].objectives[0]
    return [
        {
            "name": s.folder.name,
            "space": s.config.get("space", {}).get("name", ""),
            "sampler": f"{s.config.get('sampler', '')}, seed {s.config.get('seed', 'unknown')}",
            "trials": len(s.records),
            "complete": len(s.of("complete")),
            "seconds": sum(record.seconds for record in s.records),
            "best": s.best,
            "value": value(s.best.measured(objective), objective) if s.best else "–",
            "interval": (s.floor.low, s.floor.high) if s.floor else None,
        }
        for s in studies
    ]


def pairs(studies: Sequence[Study]) -> list[str]:
    """Return one sentence for each pair of studies: how often a trial of one is better than a trial of the other.

    If their settings differ, so do the meanings of their errors, and no better study is named.
    """
    objective = studies[0].objectives[0]
    sentences = []
    for a, b in itertools.combinations(studies, 2):
        if settings := differing(a, b):
            sentences.append(
                f"{a.folder.name} and {b.folder.name} have different {joined(settings)}, so their complete trials"
                f" cannot tell which search is better.{at_common_epoch(a, b)}"
            )
            continue
        first, second = (
            [float(v) for r in s.of("complete") if (v := r.measured(objective)) is not None] for s in (a, b)
        )
        if not first or not second:
            continue
        test = compare_distributions(first, second)
        sentences.append(
            f"{test.sentence(a.folder.name, b.folder.name)}, by {METRICS[objective].label}:"
            f" {several(len(first), 'complete trial')} against {len(second)}."
        )
    return sentences
