"""Several studies on one page: whether one found better networks than another, and what may be said of it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dnas import figures
from dnas.analysis.metrics import METRICS
from dnas.analysis.progress import attainment, compare_distributions, distribution
from dnas.errors import InputError
from dnas.formatting import joined, several
from dnas.report.data import Study, read_for_report, value
from dnas.report.page import Drawn, Picture, write_figure
from dnas.study.folder import find_study


def read_all(names: Sequence[str | Path]) -> list[Study]:
    """The studies, checked to be comparable: `InputError` where their data or their trained objective differ."""
    for name in names:
        folder = find_study(name)
        if "ablation" in folder.config():
            raise InputError(f"{folder.name} is an ablation, which compares its own variants; give it alone.")
    studies = [read_for_report(name, None) for name in names]
    twice = {s.folder.path.resolve() for s in studies}
    if len(twice) < len(studies):
        raise InputError("a study can't be compared with itself; name each once.")
    first = studies[0]
    for other in studies[1:]:
        for what, of_first, of_other in (
            ("data set", first.data.get("title"), other.data.get("title")),
            ("data files (fingerprint)", first.data.get("fingerprint"), other.data.get("fingerprint")),
            ("image size", first.data.get("image_size"), other.data.get("image_size")),
            ("part of the data", first.data.get("subset", "whole"), other.data.get("subset", "whole")),
            ("trained objective", first.objectives[0], other.objectives[0]),
        ):
            if of_first != of_other:
                raise InputError(
                    f"{first.folder.name} and {other.folder.name} can't be compared: their {what} differ,"
                    f" {_short(of_first)} and {_short(of_other)}."
                )
    return studies


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def cautions(studies: Sequence[Study]) -> list[str]:
    """What makes the studies unlike beside what is to be compared, a sentence each."""
    found = []
    first = studies[0]
    for other in studies[1:]:
        pairs = [
            ("recipes", first.config.get("recipe"), other.config.get("recipe")),
            ("validation splits", first.data.get("split_seed"), other.data.get("split_seed")),
            ("augmentations", first.data.get("augmentation"), other.data.get("augmentation")),
            ("limits", first.config.get("limits"), other.config.get("limits")),
            ("numbers of trials", len(first.records), len(other.records)),
        ]
        unlike = [what for what, a, b in pairs if a != b]
        if unlike:
            found.append(f"{first.folder.name} and {other.folder.name} have different {joined(unlike)}.")
    found.append(
        "Each search was run once with its seed: what another seed would give is not in any interval here, unless"
        " several of the studies differ in nothing but the seed."
    )
    return found


def same_but_seed(studies: Sequence[Study]) -> bool:
    """Whether the studies differ in nothing but their seeds, so that they are repeats of one search."""
    keys = ("space", "limits", "recipe", "objective", "sampler", "control", "stopping")
    alike = all(s.config.get(key) == studies[0].config.get(key) for s in studies for key in keys)
    return alike and len({s.config.get("seed") for s in studies}) == len(studies)


def draw(studies: Sequence[Study], out: Path) -> dict[str, Drawn]:
    """The figures that several studies share, written to `out`."""
    objective = studies[0].objectives[0]
    drawn: dict[str, Drawn] = {}

    def put(name: str, picture: Picture) -> None:
        drawn[name] = write_figure(picture, name, out)

    complete = {s.folder.name: s.frame[(s.frame["state"] == "complete") & s.frame[objective].notna()] for s in studies}
    fronts = {s.folder.name: s.front.trials for s in studies}
    cost = studies[0].axes[1]
    if any(len(front) for front in fronts.values()):
        numbers = pd.concat([frame.assign(study=name) for name, frame in complete.items()])
        put(
            "fronts",
            Picture(
                figures.plot_fronts({n: (complete[n], fronts[n]) for n in complete}, cost, objective),
                numbers[["study", "number", "network", cost, objective]],
                "Each mark is a complete trial, each line the Pareto front of a study.",
            ),
        )
    values = {name: frame[objective].astype(float).tolist() for name, frame in complete.items() if len(frame)}
    if values:
        spread = {name: distribution(some) for name, some in values.items()}
        names = list(values)
        test = compare_distributions(values[names[0]], values[names[1]]) if len(names) > 1 else None
        rows = [
            {"study": name, "value": x, "share": y, "low": low, "high": high}
            for name, found in spread.items()
            for x, y, low, high in zip(found.error, found.share, found.low, found.high, strict=True)
        ]
        put(
            "distributions",
            Picture(
                figures.plot_distribution(spread, test, objective),
                pd.DataFrame(rows),
                "The share of complete trials at or below an error, with pointwise 95% bands by bootstrap over trials."
                + (
                    f" Between the first two: Mann and Whitney's test; the largest distance is {test.ks:.2f}. A"
                    " sampler's trials follow from the earlier ones, so p is an approximation."
                    if test
                    else ""
                ),
            ),
        )
    if len(studies) > 1 and same_but_seed(studies) and all(len(s.front.trials) for s in studies):
        found = attainment([s.front for s in studies], cost, objective)
        try:
            figure = figures.plot_attainment(found, len(studies), cost, objective)
        except InputError:
            return drawn
        caption = (
            "These studies differ in their seeds alone. At a cost: the lowest error that the best search, half of them,"
            " and all of them reached (empirical attainment, Fonseca et al. 2011)."
        )
        put("attainment", Picture(figure, found, caption))
    return drawn


def rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """A row a study of the table."""
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
            "value": value(getattr(s.best, objective), objective) if s.best else "–",
            "interval": (s.floor.low, s.floor.high) if s.floor else None,
        }
        for s in studies
    ]


def pairs(studies: Sequence[Study]) -> list[str]:
    """A sentence for each two studies: how often a trial of one beats one of the other."""
    objective = studies[0].objectives[0]
    found = []
    for a, b in itertools.combinations(studies, 2):
        mine, other = ([float(v) for r in s.of("complete") if (v := getattr(r, objective)) is not None] for s in (a, b))
        if not mine or not other:
            continue
        test = compare_distributions(mine, other)
        p = "p < 0.001" if test.p < 0.001 else f"p = {test.p:.2g}"
        found.append(
            f"By {METRICS[objective].label}, a complete trial of {a.folder.name} beats one of {b.folder.name} in"
            f" {test.better:.0%} of pairs ({p}; {several(len(mine), 'trial')} against {len(other)})."
        )
    return found
