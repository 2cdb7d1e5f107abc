"""`dnas search`: search a space for the best networks."""

import argparse

from dnas.cli.output import print_json, report_interruption
from dnas.cli.parser import (
    Group,
    add_compile_options,
    add_data_options,
    add_dry_run,
    add_executor_options,
    add_json,
    add_kernels,
    add_threads_and_device,
    add_timeout,
    add_training_options,
    add_verbosity,
    add_workers,
    fraction,
    size_limit,
    whole_number,
)
from dnas.errors import InputError

SUMMARY = "search a space for the best networks"
EXAMPLES = """  dnas search --space digits_bc --trials 20
  dnas search --space cifar_bc --trials 200 --dry-run
  dnas search --space cifar_bc --dataset folder:~/cifar10 --trials 2 --epochs 1 --subset 2000
  dnas search --space digits_bc --trials 40 --objective val_error,params --workers 2 --study digits_front
  dnas search --space digits_bc --trials 20 --retrain-best 2
  dnas search --space digits_bc --trials 20 --study on_ray --executor ray --cpus-per-trial 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    study = parser.add_argument_group("study")
    study.add_argument(
        "--study",
        metavar="NAME",
        help="name of the study; studies/NAME.toml sets defaults for these options (default: the space's name,"
        " followed by the data's if they are not the space's)",
    )
    study.add_argument(
        "--track",
        action="append",
        metavar="TRACKER",
        help="also copy the study to tensorboard:FOLDER, mlflow:URI or wandb:PROJECT while it runs; repeatable (see"
        " `dnas help track`)",
    )
    execution, output = add_search_options(parser, study)
    add_executor_options(execution)
    add_dry_run(execution)
    add_json(output)


def add_search_options(parser: argparse.ArgumentParser, study: Group) -> tuple[Group, Group]:
    """Add the options that `dnas search` and `dnas worker` share; return the groups of execution and output options.

    study: the group of the study's options.
    """
    add = study.add_argument
    add("--space", metavar="NAME", help="search space: a name (see `dnas spaces`), or a file that ends with .toml")
    add("--trials", type=whole_number(1), metavar="N", help="total number of trials to start, earlier ones included")
    add(
        "--mirror",
        metavar="URL",
        help="Optuna storage to copy the study to, for dashboards; none for no copy (default: study.db in its folder)",
    )
    add = parser.add_argument_group("search").add_argument
    add(
        "--objective",
        metavar="NAMES",
        help="value to minimise at the last epoch: val_error, val_loss, balanced_error, auroc or f1 (1 minus the score)"
        " or module:function; further objectives, separated by commas, are params, macs, activation_bytes and latency"
        " (default: val_error)",
    )
    add("--sampler", metavar="NAME", help="sampler of the networks: gp, tpe, nsga2, random or grid (default: gp)")
    add(
        "--control",
        type=fraction,
        metavar="FRACTION",
        help="fraction of proposals drawn at random as a control group (default: 0)",
    )
    add(
        "--stopping",
        metavar="NAME",
        help="early stopping: asha or hyperband (poor trials are paused and may be promoted later), median, or none"
        " (default: asha)",
    )
    add(
        "--max-params",
        type=size_limit,
        metavar="N",
        help="limit on parameters, such as 100k or 1.2M (default: the space's)",
    )
    add("--max-macs", type=size_limit, metavar="N", help="limit on multiply-adds per image (default: the space's)")
    add(
        "--retrain-best",
        type=whole_number(1),
        metavar="K",
        help="after the search, retrain the K best networks and measure them on the test set (default: 0)",
    )
    add(
        "--retrain-seeds",
        type=whole_number(1),
        metavar="N",
        help="with --retrain-best: new seeds per network (default: 1)",
    )
    add_training_options(parser.add_argument_group("training"), None)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        help="data set: digits, cifar10, ..., folder:PATH, csv:FILE, npz:FILE or hf:FOLDER (default: the space's)",
    )
    add_data_options(data)
    data.set_defaults(split_seed=None, augment=None)  # an existing study keeps its own
    execution = parser.add_argument_group("execution")
    add_workers(execution)
    add_threads_and_device(execution)
    add_timeout(execution)
    add_compile_options(execution)
    add_kernels(execution)
    output = parser.add_argument_group("output")
    add_verbosity(output)
    return execution, output


def run(args: argparse.Namespace) -> int:
    from dnas.api.options import SearchOptions
    from dnas.api.searches import prepare

    as_json, dry_run = bool(args.json), bool(args.dry_run)
    if as_json and dry_run:
        raise InputError("--json prints the result of a search, but --dry-run has none; leave one of them out.")
    quiet = args.quiet or as_json
    search = prepare(SearchOptions.of(vars(args)), dry_run)
    if dry_run:
        from dnas.batch.forecast import describe, forecast

        plan = forecast(search.config)
        print(describe(plan), flush=True)
        from dnas.batch.estimate import describe_time

        print(f"{describe_time(plan)}\nnothing was trained; leave out --dry-run to start")
        return 0
    header = search.opening()  # also checks the study on disk
    if not quiet:
        print(header, flush=True)
    study = search.config.study
    try:
        outcome = search.run(quiet, bool(args.verbose))
    except KeyboardInterrupt:
        return report_interruption(f"studies/{study}")
    from dnas.cli import search_text as text

    if as_json:
        print_json(text.as_json(study, outcome))
    else:
        print(text.closing(study, outcome, search.config.trials))
    return 1 if outcome.stopped_by else 0
