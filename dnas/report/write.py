"""Writer of the report of a study: one page, with its figures and tables in the same folder.

    reports/<study>/index.html              self-contained: styles, figures, numbers and scripts are inside
    reports/<study>/*.svg                   each figure; *.csv has its numbers. PNG and PDF files are made if asked for
    reports/<study>/trials.csv              `dnas.study.folder.read_study`; pareto.csv has the rows of the front

The page is made from the files of the study alone. This module does not import optuna, and imports
torch only to read the norms of the best network from its checkpoint.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dnas.analysis.metrics import METRICS
from dnas.figures import UNTITLED, formatted
from dnas.report import compare, sections
from dnas.report.data import read_for_report
from dnas.report.figures import draw_all
from dnas.report.page import write_page, write_table
from dnas.report.validity import checks
from dnas.strategy.script import script_of
from dnas.study.folder import find_study

WATCH_SECONDS = 15  # interval between two versions of a watched page


@formatted(UNTITLED)
def write_report(
    study: str | Path,
    out: Path | None = None,
    refresh: float | None = None,
    show: Callable[[str], None] = lambda text: None,
    formats: Sequence[str] = (),
) -> Path:
    """Write the report of a study and return the path of its index.html.

    It works at any time: before the first trial, during a search, and after it. Ablations have a separate page
    (`dnas.report.ablation`).

    Args:
        study: Name of a study in ./studies, or path of its folder.
        out: Folder of the report, by default reports/<study>.
        refresh: Seconds after which a browser reloads the page.
        show: Receives the current step, such as a figure.
        formats: Formats of the files of each figure besides SVG: png, pdf. Earlier files in the folder are updated.
    """
    if "ablation" in find_study(study).config():
        from dnas.report.ablation import write_ablation  # imports torch to read the study

        return write_ablation(study, out, refresh, show, formats)
    s = read_for_report(study, out, formats)
    write_table(s.frame, s.out / "trials.csv")
    write_table(s.front.trials, s.out / "pareto.csv")
    draw_all(s, show)
    values = {
        "name": str(s.config.get("name", s.folder.name)),
        "status": sections.status(s),
        "answer": sections.answer(s),
        "checks": checks(s),
        "mattered": sections.mattered(s),
        "arms": any(record.arm == "control" for record in s.records),
        "inside": sections.inside(s),
        "front": sections.front(s),
        "columns": sections.columns(s),
        "main_figure": s.main_figure,
        "rows": sections.rows(s),
        "details": sections.details(s),
        "shared": ", ".join(sorted(sections.shared_parts([record.network for record in s.records]))),
        "again": sections.reproduction(s),
        "figures": s.drawn,
        "refresh": refresh,
    }
    return write_page(s.out, "report.html.j2", values)


@formatted(UNTITLED)
def write_comparison(
    names: Sequence[str | Path],
    out: Path | None = None,
    show: Callable[[str], None] = lambda text: None,
    formats: Sequence[str] = (),
) -> Path:
    """Write one page that compares studies on the same data, and return the path of its index.html.

    Args:
        names: The studies, by name or path.
        out: Folder of the page, by default reports/<a>-<b>-...
        show: Receives the current step.
        formats: Formats of the files of each figure besides SVG, as for `write_report`.

    Raises:
        InputError: If the studies cannot be compared.
    """
    show("reading the studies")
    studies = compare.read_all(names)
    out = Path(out) if out is not None else Path("reports") / "-".join(s.folder.name for s in studies)
    values = {
        "name": " and ".join(s.folder.name for s in studies),
        "data": studies[0].data.get("title", "unknown data"),
        "objective": METRICS[studies[0].objectives[0]].label,
        "rows": compare.rows(studies),
        "pairs": compare.pairs(studies),
        "cautions": compare.cautions(studies),
        "scripts": [(s.folder.name, script_of(s.folder)) for s in studies],
        "figures": compare.draw(studies, out, formats, show),
    }
    return write_page(out, "compare.html.j2", values)


def watch_report(
    study: str | Path,
    out: Path | None = None,
    say: Callable[[str], None] = print,
    opened: Callable[[Path], None] | None = None,
    formats: Sequence[str] = (),
) -> Path:
    """Rewrite the report whenever the study changes, until no trial runs and none is left to start.

    Args:
        study: Name or path of the study.
        out: Folder of the report.
        say: Receives one line with the path of the report, after it is first written.
        opened: Receives the path of the report, after it is first written.
        formats: Formats of the files of each figure besides SVG, as for `write_report`.
    """
    announced = False
    while True:
        folder = find_study(study)
        stamp = _stamp(folder.path)  # taken before reading, so that changes in the meantime are noticed
        records, asked = folder.records(), folder.config().get("trials", 0)
        finished = len(records) >= asked and not any(record.state == "running" for record in records)
        path = write_report(study, out, refresh=None if finished else WATCH_SECONDS, formats=formats)
        if not announced:
            say(f"report    {path}" + ("" if finished else ", updated while the study runs"))
            if opened is not None:
                opened(path)
            announced = True
        if finished:
            return path
        while _stamp(folder.path) == stamp:
            time.sleep(1.0)
        time.sleep(WATCH_SECONDS)


def _stamp(folder: Path) -> tuple[int, int]:
    """Return a value that changes with the study: of its log, or of its trial folders if there is no log."""
    log = folder / "events.jsonl"
    if log.exists():
        return log.stat().st_size, log.stat().st_mtime_ns
    parts = [folder, *(folder / "trials").glob("*")]
    return len(parts), max(part.stat().st_mtime_ns for part in parts)
