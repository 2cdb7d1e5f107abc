"""A study as one page that answers in the order in which a reader asks, with its figures and tables beside it.

    reports/<study>/index.html              self-contained: styles, figures, numbers and scripts are inside
    reports/<study>/*.svg, *.png, *.pdf     each figure; *.csv the numbers behind it
    reports/<study>/trials.csv              `dnas.study.folder.read_study`; pareto.csv: the front's rows of it

Everything shown is read from the study's folder. Nothing here imports optuna, and torch only where the norms of the
best network must be taken from its checkpoint.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dnas.analysis.metrics import METRICS
from dnas.figures import style
from dnas.io import write_atomic
from dnas.report import compare, sections
from dnas.report.data import read_for_report
from dnas.report.figures import PICTURES, draw_all, inline_svg
from dnas.report.templating import template
from dnas.report.validity import checks
from dnas.study.folder import find_study

__all__ = ["PICTURES", "inline_svg", "watch_report", "write_comparison", "write_report"]

MATTERED = (
    *("best_so_far", "importance", "fanova", "interactions", "path"),
    *("slices", "parallel", "distribution", "timeline"),
)
WATCH_SECONDS = 15  # between two writings of a page that is watched


def write_report(study: str | Path, out: Path | None = None, refresh: float | None = None) -> Path:
    """Writes the report of a study (its name in ./studies, or its folder) to `out`, else reports/<study>, and gives the
    path of its index.html. It works at any moment: before the first trial, while a search runs, after it.

    An ablation's page is `dnas.report.ablation`'s. refresh: seconds after which a browser loads the page again.
    """
    if "ablation" in find_study(study).config():
        from dnas.report.ablation import write_ablation  # which reads its study with torch

        return write_ablation(study, out, refresh)
    s = read_for_report(study, out)
    s.out.mkdir(parents=True, exist_ok=True)
    write_atomic(s.out / "trials.csv", s.frame.to_csv(index=False))
    write_atomic(s.out / "pareto.csv", s.front.trials.to_csv(index=False))
    draw_all(s)
    page = template("report.html.j2").render(
        name=str(s.config.get("name", s.folder.name)),
        status=sections.status(s),
        answer=sections.answer(s),
        checks=checks(s),
        mattered=any(name in s.drawn for name in MATTERED),
        inside=sections.inside(s),
        front=sections.front(s),
        columns=sections.columns(s),
        main_figure=s.main_figure,
        rows=sections.rows(s),
        details=sections.details(s),
        shared=", ".join(sorted(sections.shared_words([record.network for record in s.records]))),
        again=sections.again(s),
        figures=s.drawn,
        colours=style.COLOURS,
        refresh=refresh,
    )
    write_atomic(s.out / "index.html", page)
    return s.out / "index.html"


def write_comparison(names: Sequence[str | Path], out: Path | None = None) -> Path:
    """Writes one page of several studies on the same data to `out`, else reports/<a>-<b>-...; its path. `InputError`
    where they can't be compared."""
    studies = compare.read_all(names)
    title = " and ".join(s.folder.name for s in studies)
    out = Path(out) if out is not None else Path("reports") / "-".join(s.folder.name for s in studies)
    out.mkdir(parents=True, exist_ok=True)
    page = template("compare.html.j2").render(
        name=title,
        data=studies[0].data.get("title", "unknown data"),
        objective=METRICS[studies[0].objectives[0]].label,
        rows=compare.rows(studies),
        pairs=compare.pairs(studies),
        cautions=compare.cautions(studies),
        commands=[s.config["command"] for s in studies if s.config.get("command")],
        figures=compare.draw(studies, out),
        colours=style.COLOURS,
        refresh=None,
    )
    write_atomic(out / "index.html", page)
    return out / "index.html"


def watch_report(study: str | Path, out: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """Writes the report again whenever the study has changed, until no trial of it runs and none is left to begin."""
    said = False
    while True:
        folder = find_study(study)
        stamp = _stamp(folder.path)  # before it is read: what changes meanwhile is news
        records, asked = folder.records(), folder.config().get("trials", 0)
        over = len(records) >= asked and not any(record.state == "running" for record in records)
        path = write_report(study, out, refresh=None if over else WATCH_SECONDS)
        if not said:
            say(f"the report lies at {path}" + ("" if over else "; it is written again as the study goes on"))
            said = True
        if over:
            return path
        while _stamp(folder.path) == stamp:
            time.sleep(1.0)
        time.sleep(WATCH_SECONDS)


def _stamp(folder: Path) -> tuple[int, int]:
    """Of the log, or where a study has none (its runs were listed) of its trials' folders: it changes with them."""
    log = folder / "events.jsonl"
    if log.exists():
        return log.stat().st_size, log.stat().st_mtime_ns
    parts = [folder, *(folder / "trials").glob("*")]
    return len(parts), max(part.stat().st_mtime_ns for part in parts)
