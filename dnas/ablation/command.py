"""`dnas ablate`: plan, train what is missing, and say what may be concluded."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.ablation.parse import AUTO, load_definition
from dnas.cli.listed import check_executor, command_line, means_of, train_listed
from dnas.errors import InputError
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder, check_study_name

if TYPE_CHECKING:
    from dnas.ablation.plan import Plan
    from dnas.batch.runs import PlannedRun


def main_ablate(args: argparse.Namespace) -> int:
    """0: done; 1: done in part; 130: interrupted."""
    check_executor(args)
    definition = load_definition(
        args.name,
        seeds=_seeds(args.seeds),
        dataset=args.dataset,
        epochs=args.epochs,
        subset=args.subset,
        data_root=args.data_root,
    )
    folder = StudyFolder(Path("studies") / check_study_name(args.study or definition.name))
    from dnas.ablation.plan import begun_ablation, describe_plan, make_plan  # they import torch
    from dnas.batch.runs import check_same_runs

    begun_ablation(folder, definition)
    side = max(variant.spec.image_size for variant in definition.variants)
    means = means_of(args, {"name": definition.dataset, "data_root": args.data_root}, side)
    plan = make_plan(
        definition, folder, means, final=args.final, most=args.max_seeds, asked=args.seeds is not None, note=_say(args)
    )
    if args.budget is not None and not plan.auto:
        raise InputError("--budget goes with --seeds auto.")
    if folder.exists:
        check_same_runs(folder, plan.runs, plan.final)
    if not args.quiet or args.dry_run:
        print(describe_plan(plan, folder, means), flush=True)
    if args.dry_run:
        print("nothing was trained; leave out --dry-run to begin")
        return 0
    try:
        stopped_by = _train(plan, folder, means, args)
    except KeyboardInterrupt:
        print(
            f"\nstopped; every finished epoch is saved in {folder.path}/."
            f" The same command goes on from there:\n  {command_line()}"
        )
        return 130
    from dnas.ablation.results import read_ablation
    from dnas.ablation.summary import describe_result

    if stopped_by:
        print(f"stopped: {stopped_by}")
    print(describe_result(read_ablation(folder.path)))
    return 1 if stopped_by else 0


def _say(args: argparse.Namespace) -> Callable[[str], None]:
    return (lambda text: None) if args.quiet else (lambda text: print(text, flush=True))


def _seeds(text: str | None) -> int | str | None:
    """What `--seeds` says."""
    if text is None or text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--seeds is a number of seeds, or auto, but got {text!r}.") from None


def _train(plan: "Plan", folder: StudyFolder, means: RunConfig, args: argparse.Namespace) -> str | None:
    """Trains what is missing; why it stopped early, if it did."""
    from dnas.ablation.plan import frozen_table

    about = {"ablation": frozen_table(plan)}

    def train(runs: "Sequence[PlannedRun]") -> str | None:
        title = f"{plan.definition.name}: {plan.definition.question}"
        return train_listed(args, plan.study, title, runs, means, final=plan.final, about=about).stopped_by

    if not plan.auto:
        return train(plan.runs)
    from dnas.ablation.auto_seeds import train_rounds

    return train_rounds(plan, folder, train, args.budget, _say(args))
