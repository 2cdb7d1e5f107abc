"""Writer of a reproduction as one page, with its figures and tables in the same folder.

reports/reproduce/<target>-<budget>/index.html     self-contained: styles and figures are inside
reports/reproduce/<target>-<budget>/*.svg, *.png, *.pdf, *.csv
"""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from dnas.figures import FORMATS
from dnas.formatting import duration, percent, several
from dnas.report import page
from dnas.report.page import Picture, write_figure, write_table
from dnas.reproduce.results import Result
from dnas.reproduce.targets import Plan
from dnas.study.folder import StudyFolder
from dnas.study.provenance import git_commit, versions

TEMPLATES = Path(__file__).parent / "templates"
CLASSES = {"holds": "holds", "does not hold": "not", "cannot tell": "unclear"}
ONLY_IN_FILES = ("errors", "p", "shared_error_low", "shared_error_high", "cost")
AS_PERCENT = re.compile(r"error|^low$|^high$")


def write_page(plan: Plan, result: Result, folder: StudyFolder | None, out: Path) -> Path:
    """Write the page with its figures and tables, and return the path of its index.html.

    Args:
        plan: The target and its budget.
        result: Findings, figures and tables.
        folder: The study, or None if nothing was trained.
        out: Folder of the page.
    """
    drawn = {
        name: write_figure(Picture(figure, None, caption), name, out, FORMATS)
        for name, (figure, caption) in result.figures.items()
    }
    for name, (frame, _) in result.tables.items():
        write_table(frame, out / f"{name}.csv")
    command = f"dnas reproduce {plan.target.name}"
    values = {
        "name": plan.target.title,
        "about": f"{plan.budget.about[0].upper()}{plan.budget.about[1:]}." if plan.runs else "No network is trained.",
        "findings": result.findings,
        "classes": CLASSES,
        "notes": result.notes,
        "figures": drawn,
        "tables": [_table(*result.tables[name]) for name in result.shown],
        "files": list(result.tables),
        "command": f"{command} --budget {plan.budget.name} --seeds {plan.seeds}" if plan.runs else command,
        "facts": _facts(plan, folder),
    }
    return page.write_page(out, "reproduce.html.j2", values, TEMPLATES)


def _facts(plan: Plan, folder: StudyFolder | None) -> list[tuple[str, str]]:
    installed = versions()
    software = f"dnas {installed['dnas']}, torch {installed['torch']}, Python {installed['python']}"
    if folder is None:
        return [("software", software), ("commit", git_commit() or "not a checkout")]
    config, records = folder.config(), folder.records()
    data = config["data"]
    devices = sorted({record.device.partition(":")[0] for record in records})
    return [
        ("study", str(folder.path)),
        ("runs", several(len(plan.runs), "run") + f" from {several(plan.seeds, 'seed')}"),
        ("training", f"{duration(sum(record.seconds for record in records))} in total, on {', '.join(devices)}"),
        ("recipe", ", ".join(f"{key} {value}" for key, value in plan.recipe.to_dict().items() if key != "name")),
        ("data", f"{data['title']}, {data['train_size']:,} training images, fingerprint {data['fingerprint'][:16]}"),
        ("split", f"seed {data['split_seed']}, augmentation {data['augmentation']}"),
        ("machine", f"{config['host']}, {installed['system']}"),
        ("software", software),
        ("commit", config.get("commit") or "not a checkout"),
    ]


def _table(frame: pd.DataFrame, caption: str) -> dict[str, Any]:
    """Return a table for the page. Errors are shown in percent; long columns are in the CSV file only."""
    frame = frame.drop(columns=[name for name in ONLY_IN_FILES if name in frame]).dropna(axis=1, how="all")
    if "network" in frame:  # channels, image size and classes are the same for all networks of a data set
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
        return "unbounded"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 and value != int(value) else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) or hasattr(value, "__index__") else str(value)
