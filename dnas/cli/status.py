"""`dnas status`: show the trials and the progress of a study."""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.cli.output import console_or_pipe, counts_by_state, print_json
from dnas.cli.parser import add_json, add_study
from dnas.data.catalog import is_local
from dnas.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dnas.study.folder import StudyFolder
    from dnas.study.record import TrialRecord

SUMMARY = "show the progress of a study"
EXAMPLES = """  dnas status digits_bc
  dnas status studies/digits_bc
  dnas status digits_bc --watch"""
WATCH_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--watch", action="store_true", help="update the display until no process runs the study")
    add_json(output)


def run(args: argparse.Namespace) -> int:
    from dnas.study.folder import find_study

    if args.watch and args.json:
        raise InputError("--json prints the study once, and --watch shows it repeatedly; leave one of them out.")
    folder = find_study(args.study)
    if args.json:
        print_json(status_as_json(folder))
    elif args.watch:
        _watch(folder)
    else:
        console_or_pipe().print(_view(folder, None))
    return 0


def _watch(folder: "StudyFolder") -> None:
    from rich.live import Live

    from dnas.api.display import ROWS

    console = console_or_pipe()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while folder.is_running:
            live.update(_view(folder, ROWS), refresh=True)
            time.sleep(WATCH_SECONDS)
    console.print(_view(folder, None))


def _seeds(config: dict[str, Any]) -> list[int]:
    """Return the seed of a search, or the seeds of a list of runs."""
    return sorted({run["seed"][0] for run in config.get("runs", [])}) or [config["seed"]]


def _records(folder: "StudyFolder", running: bool) -> "list[TrialRecord]":
    """Return the records with the epochs of the curves. Without a process, running trials are interrupted ones."""
    records = folder.records()
    for record in records:
        folder.catch_up(record)
        if record.state == "running" and not running:
            record.state = "interrupted"
    return records


def _has_ended(folder: "StudyFolder", config: dict[str, Any], records: "list[TrialRecord]") -> bool:
    """Return True if neither a trial nor a final run is left to train."""
    retrain, retrained = config.get("retrain", {}), folder.retrained()
    complete = sum(record.state == "complete" for record in records)
    return (
        (len(records) >= config["trials"] or config.get("exhausted", False))
        and len(retrained) >= min(complete, retrain.get("best", 0)) * retrain.get("seeds", 1)
        and not any(r.state in ("running", "interrupted") for r in [*records, *(record for _, record in retrained)])
    )


def _seconds_left(config: dict[str, Any], records: "list[TrialRecord]") -> float | None:
    from dnas.api.progress import seconds_left
    from dnas.strategy.stopping import expected_epochs

    return seconds_left(records, config["trials"], config.get("workers"), partial(expected_epochs, config["stopping"]))


def status_as_json(folder: "StudyFolder") -> dict[str, Any]:
    from dnas.cli.search_text import trial_as_json
    from dnas.study.commands import resume_command
    from dnas.study.record import rank

    config, running = folder.config(), folder.is_running
    records = _records(folder, running)
    best = next(iter(rank(records)), None)
    return {
        "study": folder.name,
        "folder": str(folder.path),
        "title": config["space"]["title"],
        "objective": config["objective"],
        "dataset": config["data"]["title"],
        "recipe": config["recipe"].get("name"),
        "epochs": config["recipe"].get("epochs"),
        "seeds": _seeds(config),
        "running": running,
        "seconds_left": _seconds_left(config, records) if running else None,
        "resume": None if running or _has_ended(folder, config, records) else resume_command(config, folder.project),
        "trials_planned": config["trials"],
        "states": counts_by_state(records),
        "seconds": sum(record.seconds for record in records),
        "best": None if best is None or not best.cost else best.number,
        "trials": [trial_as_json(record) for record in records],
        "retrained": [
            {"name": path.name, "trial": record.number, "state": record.state, "test_error": record.test_error}
            for path, record in folder.retrained()
        ],
    }


def _view(folder: "StudyFolder", rows: int | None) -> "RenderableType":
    """Return the display of a study. rows: the largest number of trials to show; None shows all."""
    from rich.console import Group

    from dnas.api.display import LiveTable, state_lines
    from dnas.formatting import duration

    config, running = folder.config(), folder.is_running
    records, recipe, seeds = _records(folder, running), config["recipe"], _seeds(config)
    table = LiveTable(console_or_pipe())
    table.opened(records, config["trials"])
    footer = table.progress.footer()
    if running and (left := _seconds_left(config, records)) is not None:
        footer += f"      about {duration(left)} left"
    retrained = [
        f"retrained {path.name}: "
        + (f"{100 * record.test_error:.2f}% test error" if record.test_error is not None else record.state)
        for path, record in folder.retrained()
    ]
    trained = f"recipe {recipe['name']} {recipe['epochs']} epochs, " if recipe else ""  # the user's own code has none
    return Group(
        f"{folder.name}   {config['space']['title']}",
        f"{config['objective']} {'on' if recipe else 'of'} {_data_name(config['data'])}, {trained}"
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}\n",
        table.table(len(records) if rows is None else rows) if records else "no trial yet",
        f"\n{footer}",
        *state_lines(records),
        *retrained,
        *([] if running or _has_ended(folder, config, records) else _hint(folder, config)),
    )


def _data_name(data: dict[str, Any]) -> str:
    """Return the title of a data set, or the kind of own data and their path from the current folder."""
    name = str(data.get("name", ""))
    if not is_local(name):
        return str(data["title"])
    kind, _, text = name.partition(":")
    path = Path(text)
    return f"{kind}:{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"


def _hint(folder: "StudyFolder", config: dict[str, Any]) -> list[str]:
    """Return lines on how to resume a study that no process runs."""
    from dnas.study.commands import resume_command

    command = resume_command(config, folder.project)
    if "storage" in config:
        return [f"a copy of a study in a database: `dnas pull {folder.name}` updates it, `{command}` resumes it"]
    if command is None:
        return ["interrupted; the program that started it resumes it"]
    return ["interrupted; resume it with", f"  {command}"]
