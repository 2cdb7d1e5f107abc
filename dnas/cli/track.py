"""`dnas track`: copy a study to TensorBoard, MLflow or W&B."""

import argparse
import sys

from dnas.cli.output import print_json, progress_line
from dnas.cli.parser import add_json, add_study

SUMMARY = "copy a study to TensorBoard, MLflow or W&B"
EXAMPLES = """  dnas track digits_bc tensorboard:runs                         # then: tensorboard --logdir runs
  dnas track digits_bc mlflow:http://localhost:5000
  dnas track digits_connectivity wandb:densenets mlflow:sqlite:///mlflow.db"""
HELP = "tensorboard:FOLDER, mlflow:URI or wandb:PROJECT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    parser.add_argument("tracker", metavar="TRACKER", nargs="+", help=HELP)
    add_json(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 for success, 1 if a tracker could not be brought up to date."""
    from dnas.errors import InputError
    from dnas.study.folder import find_study
    from dnas.track.targets import read_targets

    targets = read_targets(args.tracker)  # before the slow imports
    folder = find_study(args.study)
    from dnas.formatting import several
    from dnas.track.keep import track

    copied: dict[str, int | None] = {}
    for target in targets:
        try:
            with progress_line() as show:
                copied[str(target)] = number = track(folder, target, show)
        except InputError as error:  # the other trackers may work
            copied[str(target)] = None
            print(f"dnas: {error}", file=sys.stderr)
            continue
        if not args.json:
            print(f"{target}  {several(number, 'run') + ' copied' if number else 'up to date'}")
    if args.json:
        rows = [{"tracker": target, "copied": number} for target, number in copied.items()]
        print_json({"study": folder.name, "trackers": rows})
    return int(None in copied.values())
