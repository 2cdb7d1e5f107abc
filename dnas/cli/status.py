"""`dnas status`: show the trials and the progress of a study."""

import argparse
from typing import TYPE_CHECKING, Any

from dnas.cli.output import console_or_pipe, counts_by_state, print_json
from dnas.cli.parser import add_json, add_study

if TYPE_CHECKING:
    from dnas.study.folder import StudyFolder

SUMMARY = "show the progress of a study"
EXAMPLES = """  dnas status digits_bc
  dnas status studies/digits_bc"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_json(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    from dnas.study.folder import find_study

    folder = find_study(args.study)
    if args.json:
        print_json(status_as_json(folder))
    else:
        _show(folder)
    return 0


def _seeds(config: dict[str, Any]) -> list[int]:
    """Return the seed of a search, or the seeds of a list of runs."""
    return sorted({run["seed"][0] for run in config.get("runs", [])}) or [config["seed"]]


def status_as_json(folder: "StudyFolder") -> dict[str, Any]:
    from dnas.cli.search_text import trial_as_json
    from dnas.study.record import rank

    config, records = folder.config(), folder.records()
    best = next(iter(rank(records)), None)
    return {
        "study": folder.name,
        "folder": str(folder.path),
        "title": config["space"]["title"],
        "objective": config["objective"],
        "dataset": config["data"]["title"],
        "recipe": config["recipe"]["name"],
        "epochs": config["recipe"]["epochs"],
        "seeds": _seeds(config),
        "command": config["command"],
        "trials_planned": config["trials"],
        "states": counts_by_state(records),
        "seconds": sum(record.seconds for record in records),
        "best": None if best is None else best.number,
        "trials": [trial_as_json(record) for record in records],
        "retrained": [
            {"name": path.name, "trial": record.number, "state": record.state, "test_error": record.test_error}
            for path, record in folder.retrained()
        ],
    }


def _show(folder: "StudyFolder") -> None:
    from dnas.cli.display import LiveTable, state_lines

    config, records = folder.config(), folder.records()
    console = console_or_pipe()
    table = LiveTable(console)
    table.opened(records, config["trials"])
    seeds = _seeds(config)
    recipe = config["recipe"]
    lines = [
        f"{folder.name}   {config['space']['title']}",
        f"{config['objective']} on {config['data']['title']}, recipe {recipe['name']} {recipe['epochs']} epochs,"
        f" seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {config['command']}\n",
    ]
    for line in lines:
        console.print(line)
    console.print(table.table(len(records)) if records else "no trial yet")
    console.print(f"\n{table.progress.footer()}")
    for line in state_lines(records):
        console.print(line)
    for path, record in folder.retrained():
        error = f"{100 * record.test_error:.2f}% test error" if record.test_error is not None else record.state
        console.print(f"retrained {path.name}: {error}")
