"""`dnas ablate --command`: compare variants of the user's own program."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.cli.output import command_line, print_json
from dnas.errors import InputError

if TYPE_CHECKING:
    from dnas.ablation.external import External

# Options of networks, which a command does not have. Their values are those that argparse sets.
ONLY_NETWORKS = (
    *("epochs", "dataset", "subset", "data_root", "kernels", "max_seeds", "budget"),
    *("ray_address", "gpus_per_trial", "cpus_per_trial", "shared"),
)
ONLY_COMMANDS = ("factor", "metric", "maximize", "error_rate", "design", "alpha", "question")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("your own program")
    group.add_argument(
        "--command",
        dest="program",
        metavar="TEXT",
        help="program to run, with {seed}, {folder} (of the run) and each {FACTOR}",
    )
    group.add_argument(
        "--factor", action="append", metavar="NAME=A,B", help="a factor and its levels, the base's first; repeatable"
    )
    group.add_argument(
        "--metric",
        metavar="PATTERN",
        help="regular expression whose only group is the number, at its last match on standard output; or"
        " json:PATH:KEY, a key of a JSON file that the run writes",
    )
    group.add_argument("--maximize", action="store_true", help="larger values are better (default: smaller ones)")
    group.add_argument(
        "--error-rate", action="store_true", help="the metric is a fraction of errors: show it in percent"
    )
    group.add_argument(
        "--design",
        choices=("one-at-a-time", "factorial"),
        help="change one factor at a time, or run all combinations (default: one-at-a-time)",
    )
    group.add_argument("--alpha", type=float, metavar="A", help="level of the tests together (default: 0.05)")
    group.add_argument("--question", metavar="TEXT", help="question of the study, for its page")


def refuse_command_options(args: argparse.Namespace) -> None:
    """Raise `InputError` if an option of commands was given without --command."""
    for name in ONLY_COMMANDS:
        if getattr(args, name):
            raise InputError(
                f"--{name.replace('_', '-')} is for --command; an ablation of networks states it in its file."
            )
    if args.name is None:
        raise InputError("name an ablation or its file, or give your own program with --command; see `dnas spaces`.")


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 for success, 1 if the runs stopped early or failed, 130 after Ctrl-C."""
    from dnas.ablation.command import read_factors, read_metric, split_command
    from dnas.ablation.external import describe_external, make_external, run_command
    from dnas.analysis.metrics import named_metric

    _refuse_network_options(args)
    workers = args.workers or 1
    factors = read_factors(args.factor or ())
    arguments = split_command(args.program, factors)
    if args.metric is None:
        raise InputError(
            "--command needs --metric, such as 'val_err=([-+.0-9e]+)' or json:{folder}/results.json:val_err."
        )
    source = read_metric(args.metric, factors, workers)
    if args.maximize and args.error_rate:
        raise InputError("--maximize and --error-rate exclude each other: fewer errors are better.")
    external = make_external(
        args.study or _study_name(arguments),
        args.program,
        {"json" if args.metric.startswith("json:") else "printed": args.metric},
        named_metric(source.name, maximize=args.maximize, error_rate=args.error_rate),
        factors,
        seeds=_seeds(args.seeds),
        design=args.design or "one-at-a-time",
        alpha=0.05 if args.alpha is None else args.alpha,
        question=args.question or "",
    )
    from dnas.ablation.plan import evidence

    if args.dry_run and args.json:
        print_json(_plan_as_json(external, workers))
        return 0
    if args.dry_run or not (args.quiet or args.json):
        print("\n".join(describe_external(external, source, workers)))
        print(f"evidence  {evidence(len(external.cells) - 1, len(external.seeds), external.alpha)}", flush=True)
    if args.dry_run:
        print("nothing was run; leave out --dry-run to start")
        return 0
    from dnas.api.display import make_display

    display = make_display(args.quiet or args.json, args.verbose)
    try:
        with display:
            outcome = run_command(
                external,
                source,
                display,
                workers=workers,
                timeout=args.timeout,
                threads=args.threads,
                command=command_line(),
            )
    except KeyboardInterrupt:
        ended = f"the runs that ended are saved in {external.folder.path}/"
        print(f"\nstopped; {ended}. Run the same command to resume:\n  {command_line()}")
        return 130
    return _report(external, outcome.stopped_by, bool(args.json))


def _report(external: "External", stopped_by: str | None, as_json: bool) -> int:
    """Print the comparisons, and return the exit status."""
    from dnas.ablation.results import read_ablation
    from dnas.cli import ablate_text as text

    ablation = read_ablation(external.folder.path)
    if as_json:
        print_json(text.as_json(ablation, stopped_by))
    else:
        if stopped_by:
            print(f"stopped: {stopped_by}")
        print(text.describe_result(ablation))
    return 1 if stopped_by or external.missing() else 0


def _refuse_network_options(args: argparse.Namespace) -> None:
    if args.name is not None:
        raise InputError(
            f"{args.name} names an ablation of networks, but --command is given; name the study by --study."
        )
    given = [name for name in ONLY_NETWORKS if getattr(args, name) is not None]
    given += ["final"] * args.final + ["device"] * (args.device != "auto")
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} is for networks that dnas trains; leave it out with --command."
        )
    if args.executor != "local":
        raise InputError(f"--command runs on this machine (--executor local), but the executor is {args.executor}.")


def _seeds(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        raise InputError(f"--seeds must be a number of seeds with --command, but got {text!r}.") from None


def _study_name(arguments: tuple[str, ...]) -> str:
    """Return the name of the program's script, such as `train` for `python train.py --lr {lr}`."""
    script = next((word for word in arguments if Path(word).suffix in (".py", ".sh", ".R", ".jl")), arguments[0])
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in Path(script).stem)
    if not name.strip("-"):
        raise InputError(f"give the study a name with --study; none follows from {shlex.join(arguments)}.")
    return name.strip("-")


def _plan_as_json(external: "External", workers: int) -> dict[str, Any]:
    """Return the plan with the keys of an ablation of networks. Costs and times are unknown."""
    from dnas.analysis.pairs import pairs_needed

    comparisons = len(external.cells) - 1
    needed = pairs_needed(comparisons, external.alpha)
    return {
        "ablation": external.study,
        "study": external.study,
        "question": external.question,
        "design": external.design,
        "held_equal": "nothing",
        "dataset": None,
        "measure": external.metric.key,
        "variants": [
            {"name": cell.name, "network": None, "params": None, "macs": None, "changes": cell.levels}
            for cell in external.cells
        ],
        "seeds": list(external.seeds),
        "auto": False,
        "alpha": external.alpha,
        "runs": len(external.rows()),
        "missing": len(external.missing()),
        "workers": workers,
        "seconds": None,
        "comparisons": comparisons,
        "pairs_needed": needed,
        "can_conclude": len(external.seeds) >= needed,
    }
