"""`dnas path`: show the path from the first network to the best of a search, one choice at a time."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.cli.output import print_json, report_interruption
from dnas.cli.parser import add_json, add_run_options, add_verbosity, file_path, whole_number
from dnas.errors import InputError

if TYPE_CHECKING:
    from dnas.analysis.ablation_path import Path as AblationPath
    from dnas.analysis.importance import Evidence
    from dnas.api.execution import Execution
    from dnas.study.folder import StudyFolder

SUMMARY = "show the path from the default to the best network, one choice at a time"
EXAMPLES = """  dnas path digits_bc
  dnas path digits_bc --from 3 --out path.svg
  dnas path digits_bc --train --seeds 5"""
FOR_TRAINING = ("seeds", "workers", "threads", "device", "timeout", "data_root", "kernels", "executor", "dry_run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a search's name, or the path of its folder")
    analysis = parser.add_argument_group("analysis")
    analysis.add_argument(
        "--from",
        dest="source",
        metavar="NETWORK",
        help="start of the path: a trial's number or a network's name (default: the space's first network)",
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train", action="store_true", help="train the networks of the path, in the study STUDY_path"
    )
    training.add_argument(
        "--seeds", type=whole_number(1), metavar="N", help="with --train: seeds per network (default: 3)"
    )
    add_run_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=file_path, metavar="FILE", help="write the steps to a .csv, or the figure to a .svg, .png or .pdf"
    )
    add_verbosity(output)
    add_json(output)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 for success, 1 if the runs stopped early, 130 after Ctrl-C."""
    for name in FOR_TRAINING:
        if not args.train and getattr(args, name) not in (None, False, "auto", "local"):
            raise InputError(f"--{name.replace('_', '-')} is an option for training the path, which needs --train.")
    from dnas.study.folder import find_study

    folder = find_study(args.study)  # before the slow imports
    from dnas.api.execution import Execution

    as_json, seeds, out, data_root = bool(args.json), args.seeds, args.out, args.data_root
    source, train, dry_run = args.source, args.train and not args.dry_run, args.dry_run
    execution = Execution.of(args, quiet=args.quiet or as_json)
    if out is not None and out.suffix != ".csv":
        from dnas.io import check_format

        check_format(out)
    from dnas.ablation.path import SEEDS, path_of, read_trained, study_of_path
    from dnas.analysis.evidence import read_evidence
    from dnas.cli import path_text as text

    seeds = seeds or SEEDS
    evidence = read_evidence(folder)
    path = path_of(folder, evidence, source)
    trained, stopped_by = None, None
    if train:
        try:
            stopped_by = _train(folder, evidence, path, source, seeds, data_root, execution)
        except KeyboardInterrupt:
            return report_interruption(f"studies/{study_of_path(folder)}")
        trained = read_trained(folder, evidence, path, seeds)
    if out is not None:
        text.write(out, path, trained, evidence.objective)
    if as_json:
        print_json(text.as_json(evidence, path, trained))
    else:
        text.show(folder, evidence, path, trained, out)
        if dry_run:
            print(text.plan(folder, evidence, path, seeds) + "\nnothing was trained; leave out --dry-run to start")
    if stopped_by:
        print(f"stopped: {stopped_by}", file=sys.stderr)
    return int(bool(stopped_by))


def _train(
    folder: "StudyFolder",
    evidence: "Evidence",
    path: "AblationPath",
    source: str | None,
    seeds: int,
    data_root: Path | None,
    execution: "Execution",
) -> str | None:
    """Train the networks of the path without results, and return the reason for an early stop, if any."""
    from dnas.ablation.path import planned, study_of_path
    from dnas.cli.path_text import plan
    from dnas.study.commands import command
    from dnas.study.config import data_arguments_of

    data = data_arguments_of(folder.config())
    if data_root is not None:
        data["data_root"] = data_root
    runs = planned(folder, evidence, path, seeds)
    if not execution.quiet:
        print(plan(folder, evidence, path, seeds), flush=True)
    config = execution.run_config(data, path.nodes[0].spec.image_size)
    again = command("path", folder.name, source=source, train=True, seeds=seeds)
    title = f"The path of {folder.name}"
    return execution.train(study_of_path(folder), title, runs, config, command=again).stopped_by
