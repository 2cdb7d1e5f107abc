"""`dnas ablate`: compare variants of a network, or of the user's own program, in pairs, and report the conclusions."""

import argparse

from dnas.cli import ablate_command
from dnas.cli.output import print_json, printer, report_interruption
from dnas.cli.parser import add_json, add_run_options, add_verbosity, positive_number, whole_number
from dnas.errors import InputError

SUMMARY = "compare variants of a network, or of your own program, in pairs, and report what may be concluded"
EXAMPLES = """  dnas ablate digits_connectivity                               # minutes on a laptop
  dnas ablate bottleneck_compression --dry-run                  # the plan, and whether it can reach a conclusion
  dnas ablate bottleneck_compression --seeds 12                 # adds seeds: only the new runs are trained
  dnas ablate my_study.toml --seeds auto --max-seeds 30         # adds seeds where they are needed
  dnas ablate --command 'python train.py --lr {lr} --seed {seed}' --factor lr=0.1,0.01 --metric 'val_err=([-+.0-9e]+)'
  dnas ablate --command './train --width {width} --seed {seed} --out {folder}/out.json' --factor width=16,32 \\
      --metric json:{folder}/out.json:accuracy --maximize       # after a kill, the same command resumes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="an ablation of studies/, or a file that ends with .toml"
    )
    study = parser.add_argument_group("study")
    study.add_argument("--study", metavar="NAME", help="name of the study (default: the ablation's, or your script's)")
    study.add_argument(
        "--seeds",
        metavar="N",
        help="seeds per variant, or auto, which adds seeds while a comparison is undecided (default: the file's, or 7)",
    )
    study.add_argument(
        "--max-seeds", type=whole_number(2), metavar="N", help="with --seeds auto: limit per comparison (default: 20)"
    )
    study.add_argument(
        "--budget",
        type=positive_number,
        metavar="SECONDS",
        help="with --seeds auto: total training time, in seconds, after which no seed is added (default: none)",
    )
    ablate_command.add_arguments(parser)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--final", action="store_true", help="train on the validation data too, and measure on the test set"
    )
    training.add_argument(
        "--epochs", type=whole_number(1), metavar="N", help="epochs of each run (default: the file's)"
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        help="data set: digits, cifar10, ..., folder:PATH, csv:FILE, npz:FILE or hf:FOLDER (default: the file's)",
    )
    data.add_argument(
        "--subset", type=whole_number(1), metavar="N", help="train on a stratified subset of N images (default: all)"
    )
    add_run_options(parser)
    output = parser.add_argument_group("output")
    add_verbosity(output)
    add_json(output)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 for success, 1 if the runs stopped early, 130 after Ctrl-C."""
    if args.program is not None:
        return ablate_command.run(args)
    ablate_command.refuse_command_options(args)
    from dnas.ablation.plan import describe_epochs, describe_plan
    from dnas.api.ablations import prepare
    from dnas.api.execution import Execution

    as_json, dry_run = bool(args.json), bool(args.dry_run)
    ablation = prepare(
        args.name,
        Execution.of(args, quiet=args.quiet or as_json),
        study=args.study,
        seeds=_seeds(args.seeds),
        max_seeds=args.max_seeds,
        budget=args.budget,
        final=bool(args.final),
        epochs=args.epochs,
        dataset=args.dataset,
        subset=args.subset,
        data_root=args.data_root,
        dry_run=dry_run,
    )
    folder, config, quiet = ablation.folder, ablation.config, ablation.execution.quiet
    shown = not as_json and (dry_run or not quiet)
    if shown:
        print(describe_plan(ablation.plan, folder, config), flush=True)
    if ablation.plan.needs_timing:
        ablation = ablation.timed()
        if shown:
            print(describe_epochs(ablation.plan), flush=True)
    plan = ablation.plan
    if dry_run and as_json:
        from dnas.cli.ablate_text import plan_as_json

        print_json(plan_as_json(plan, folder, config))
        return 0
    if shown:
        from dnas.batch.estimate import describe_list_time

        print(describe_list_time(plan.missing(folder), plan.images_of, config, folder, plan.auto), flush=True)
    if dry_run:
        print("nothing was trained; leave out --dry-run to start")
        return 0
    from dnas.ablation.results import read_ablation
    from dnas.cli import ablate_text as text

    try:
        stopped_by = ablation.run(printer(quiet))
    except KeyboardInterrupt:
        return report_interruption(folder.path)
    result = read_ablation(folder.path)
    if as_json:
        print_json(text.as_json(result, stopped_by))
    else:
        if stopped_by:
            print(f"stopped: {stopped_by}")
        print(text.describe_result(result))
    return 1 if stopped_by else 0


def _seeds(text: str | None) -> int | str | None:
    from dnas.ablation.parse import AUTO

    if text is None or text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--seeds must be a number of seeds, or auto, but got {text!r}.") from None
