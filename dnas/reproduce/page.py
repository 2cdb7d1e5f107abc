"""A reproduction as one page with its figures and numbers beside it.

reports/reproduce/<target>-<budget>/index.html     self-contained: styles and figures are inside
reports/reproduce/<target>-<budget>/*.svg, *.png, *.pdf, *.csv
"""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dnas.figures import FORMATS, save, title
from dnas.formatting import duration, percent, several
from dnas.io import write_atomic
from dnas.reproduce.results import Result
from dnas.reproduce.targets import Plan
from dnas.study.folder import StudyFolder
from dnas.study.provenance import git_commit, versions

TEMPLATES = Path(__file__).parent / "templates"
CLASSES = {"holds": "holds", "does not hold": "not", "cannot tell": "unclear"}
ONLY_IN_FILES = ("errors", "p", "shared_error_low", "shared_error_high", "cost")
AS_PERCENT = re.compile(r"error|^low$|^high$")


def write_page(plan: Plan, result: Result, folder: StudyFolder | None, out: Path) -> Path:
    """Writes the page, figures and tables; gives the page's path. folder: the study, None where nothing was trained."""
    out.mkdir(parents=True, exist_ok=True)
    figures = []
    for name, (figure, caption) in result.figures.items():
        for kind in FORMATS:
            save(figure, out / f"{name}.{kind}")
        svg = (out / f"{name}.svg").read_text(encoding="utf-8")
        figures.append({"name": name, "title": title(figure), "caption": caption, "svg": svg[svg.index("<svg") :]})
    for name, (frame, _) in result.tables.items():
        write_atomic(out / f"{name}.csv", frame.to_csv(index=False))
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("reproduce.html.j2").render(
        title=plan.target.title,
        about=f"{plan.budget.about[0].upper()}{plan.budget.about[1:]}." if plan.runs else "Nothing is trained for it.",
        findings=result.findings,
        classes=CLASSES,
        notes=result.notes,
        figures=figures,
        kinds=FORMATS,
        tables=[_table(*result.tables[name]) for name in result.shown],
        files=list(result.tables),
        command=f"dnas reproduce {plan.target.name} --budget {plan.budget.name} --seeds {plan.seeds}"
        if plan.runs
        else f"dnas reproduce {plan.target.name}",
        facts=_facts(plan, folder),
    )
    write_atomic(out / "index.html", text)
    return out / "index.html"


def _facts(plan: Plan, folder: StudyFolder | None) -> list[tuple[str, str]]:
    own = versions()
    software = f"dnas {own['dnas']}, torch {own['torch']}, Python {own['python']}"
    if folder is None:
        return [("software", software), ("commit", git_commit() or "not a checkout")]
    config, records = folder.config(), folder.records()
    data = config["data"]
    devices = sorted({record.device.partition(":")[0] for record in records})
    return [
        ("study", str(folder.path)),
        ("runs", several(len(plan.runs), "run") + f" from {several(plan.seeds, 'seed')}"),
        ("training", f"{duration(sum(record.seconds for record in records))} in all, on {', '.join(devices)}"),
        ("recipe", ", ".join(f"{key} {value}" for key, value in plan.recipe.to_dict().items() if key != "name")),
        ("data", f"{data['title']}, {data['train_size']:,} training images, fingerprint {data['fingerprint'][:16]}"),
        ("split", f"seed {data['split_seed']}, augmentation {data['augmentation']}"),
        ("machine", f"{config['host']}, {own['system']}"),
        ("software", software),
        ("commit", config.get("commit") or "not a checkout"),
    ]


def _table(frame: pd.DataFrame, caption: str) -> dict[str, Any]:
    """For the page: errors as percent, whole numbers with their commas; what is long stays in the CSV."""
    frame = frame.drop(columns=[name for name in ONLY_IN_FILES if name in frame]).dropna(axis=1, how="all")
    if "network" in frame:  # classes and image size are the data's, and the same for all
        frame = frame.assign(network=frame["network"].str.replace(r",(channels|size|classes)=\d+", "", regex=True))
    heads = [
        {"text": str(name).replace("_", " "), "num": pd.api.types.is_numeric_dtype(frame[name].dtype)}
        for name in frame.columns
    ]
    rows = [
        [_cell(str(name), value) for name, value in zip(frame.columns, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    return {"caption": caption, "heads": heads, "rows": rows}


def _cell(name: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if AS_PERCENT.search(name) and isinstance(value, float):
        return percent(value)
    if isinstance(value, float) and math.isinf(value):
        return "no end"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 and value != int(value) else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) or hasattr(value, "__index__") else str(value)
