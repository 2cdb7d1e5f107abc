"""`dnas reproduce`: reproduce a table or figure of the paper with networks trained by this command."""

import argparse
from pathlib import Path

from dnas.cli.output import print_json, report_interruption
from dnas.cli.parser import add_json, add_run_options, add_verbosity, file_path, whole_number
from dnas.errors import InputError

SUMMARY = "reproduce a table or figure of the paper, next to the published one"
EXAMPLES = """  dnas reproduce fig4-left                                      # digits, minutes on a laptop
  dnas reproduce fig4-left --budget short --dry-run
  dnas reproduce table2 --budget paper --seeds 3 --executor ray --ray-address auto"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", metavar="TARGET", help="table1, table2, fig3, fig4-left, fig4-middle, fig4-right or fig5"
    )
    study = parser.add_argument_group("study")
    study.add_argument(
        "--budget",
        default="smoke",
        metavar="NAME",
        help="how much to train: smoke (digits, minutes), short (CIFAR-10, one GPU) or paper (GPU-days)"
        " (default: smoke)",
    )
    study.add_argument("--seeds", type=whole_number(1), metavar="N", help="seeds per network (default: the budget's)")
    add_run_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=file_path, metavar="FOLDER", help="folder to write to (default: reports/reproduce/TARGET-BUDGET)"
    )
    add_verbosity(output)
    add_json(output)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 for success, 1 if the runs stopped early, 130 after Ctrl-C."""
    from dnas.api.execution import Execution, check_machine
    from dnas.reproduce.targets import make_plan

    json, dry_run, data_root = bool(args.json), bool(args.dry_run), args.data_root
    execution = Execution.of(args, quiet=args.quiet or json)
    plan = make_plan(args.target, args.budget, args.seeds)
    from dnas.batch.planned import check_same_runs
    from dnas.cli.reproduce_text import as_json, describe_plan, describe_result, missing_runs
    from dnas.study.folder import StudyFolder

    out: Path = args.out or Path("reports/reproduce") / plan.folder
    if json and dry_run:
        raise InputError("--json prints the result, but --dry-run has none; leave one of them out.")
    config = execution.run_config({"name": plan.info.name, "data_root": data_root}, plan.info.image_size or 0)
    folder = StudyFolder(Path("studies") / plan.study)
    runs = plan.planned()
    if folder.exists:
        check_same_runs(folder, runs, plan.final)
    if runs:
        check_machine(execution.device, execution.kernels, execution.executor)
    if not json:
        print(describe_plan(plan, folder, config, out), flush=True)
    if not json and runs:
        from dnas.batch.estimate import describe_list_time

        print(
            describe_list_time(missing_runs(plan, folder), lambda run: plan.budget.images, config, folder), flush=True
        )
    if dry_run:
        print("nothing was trained; leave out --dry-run to start")
        return 0
    from dnas.reproduce.page import write_page
    from dnas.reproduce.results import read_result

    stopped_by = None
    if runs:
        try:
            stopped_by = execution.train(plan.study, plan.target.title, runs, config, final=plan.final).stopped_by
        except KeyboardInterrupt:
            return report_interruption(folder.path)
    result = read_result(plan, folder if runs else None)
    page = write_page(plan, result, folder if runs else None, out)
    if json:
        print_json(as_json(plan, result, page, stopped_by))
    else:
        if stopped_by:
            print(f"stopped: {stopped_by}")
        print(describe_result(plan, result, page))
    return 1 if stopped_by else 0
