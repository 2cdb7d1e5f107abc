"""`dnas path`: from the default to the best network of a search, a choice at a time; predicted, or trained."""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from dnas.analysis.ablation_path import Estimate, Path, Trained, find_path, params_of, path_frame
from dnas.analysis.evidence import over_line, read_evidence
from dnas.analysis.fanova import BELIEVABLE, BOOTSTRAPS
from dnas.analysis.importance import Evidence
from dnas.analysis.metrics import METRICS
from dnas.arch import parse_name
from dnas.cli.listed import check_executor, command_line, means_of, train_listed
from dnas.errors import InputError
from dnas.formatting import count, several
from dnas.space.space import Space
from dnas.study.config import data_arguments_of
from dnas.study.folder import StudyFolder, find_study
from dnas.study.record import rank

if TYPE_CHECKING:
    from dnas.batch.runs import PlannedRun  # which imports torch


def main_path(args: argparse.Namespace) -> int:
    """0: done; 1: trained in part; 130: interrupted."""
    if args.seeds is not None and not args.train:
        raise InputError("--seeds says how often each network is trained; it goes with --train.")
    check_executor(args)
    if args.out is not None and args.out.suffix != ".csv":
        from dnas.figures.style import check_format

        check_format(args.out)
    folder = find_study(args.study)
    found = read_evidence(folder)
    path = path_of(folder, found, args.source)
    trained, outcome = None, None
    if args.train and not args.dry_run:
        try:
            outcome = _train(folder, found, path, args)
        except KeyboardInterrupt:
            print(f"\nstopped; the same command goes on from there:\n  {command_line()}")
            return 130
        trained = read_trained(folder, found, path, args.seeds or SEEDS)
    if args.out is not None:
        _write(args.out, path, trained, found.objective)
    if args.json:
        print(json.dumps(_as_json(found, path, trained), indent=1))
    else:
        _print(folder, found, path, trained, args.out)
        if args.dry_run and args.train:
            print(
                f"{_plan(folder, found, path, args.seeds or SEEDS)}\nnothing was trained; leave out --dry-run to begin"
            )
    if outcome:
        print(f"stopped: {outcome}", file=sys.stderr)
    return int(bool(outcome))


SEEDS = 3


def path_of(folder: StudyFolder, found: Evidence, source: str | None = None, bootstraps: int = BOOTSTRAPS) -> Path:
    """The predicted path from `source` (a trial's number or a network's name; None: the space's first network) to the
    best network of the study."""
    best = next(iter(rank(folder.records())), None)
    if best is None:
        raise InputError(f"study {folder.name} has no complete trial yet.")
    return find_path(found, _source(folder, found.space, source), best.params, bootstraps)


def _source(folder: StudyFolder, space: Space, source: str | None) -> Mapping[str, Any]:
    if source is None:
        if not space.first:
            raise InputError(
                f"space {space.name} names no [[first]] network; say where the path begins: --from NAME, or a trial's"
                " number."
            )
        return space.first[0]
    if source.isdigit():
        for record in folder.records():
            if record.number == int(source):
                return record.params
        raise InputError(f"study {folder.name} has no trial {source}.")
    spec = parse_name(source)
    of_data = {name: space.fixed[name] for name in ("in_channels", "image_size", "classes") if name in space.fixed}
    return params_of(space, dataclasses.replace(spec, **of_data))


# --- training -----------------------------------------------------------------------------------------------------


def planned(folder: StudyFolder, found: Evidence, path: Path, seeds: int) -> "list[PlannedRun]":
    """Each network of the path from each seed. A seed has its own split of the data, and shares chance among the
    networks; the search's own seed and split, by which the best was chosen, are left out. A run's key names the
    network and the seed, so that another path of the study trains only what is new."""
    from dnas.batch.runs import PlannedRun

    config = folder.config()
    used = {config["seed"], config["data"]["split_seed"]}
    fresh = itertools.islice((seed for seed in itertools.count(1) if seed not in used), seeds)
    nodes = {node.spec.digest: node for node in path.nodes}
    return [
        PlannedRun(_key(digest, seed), found.space.name_of(node.spec), node.spec, found.space.recipe, (seed, 0),
                   {"split_seed": seed})
        for seed in fresh
        for digest, node in nodes.items()
    ]  # fmt: skip


def _key(digest: str, seed: int) -> str:
    return f"{digest[:12]}/s{seed}"


def study_of_path(folder: StudyFolder) -> str:
    return f"{folder.name}_path"


def _train(folder: StudyFolder, found: Evidence, path: Path, args: argparse.Namespace) -> str | None:
    """Trains what is missing; why it stopped early, if it did."""
    seeds = args.seeds or SEEDS
    data = data_arguments_of(folder.config())
    if args.data_root is not None:
        data["data_root"] = args.data_root
    runs = planned(folder, found, path, seeds)
    if not args.quiet and not args.json:
        print(_plan(folder, found, path, seeds), flush=True)
    args.quiet = args.quiet or args.json
    means = means_of(args, data, path.nodes[0].spec.image_size)
    return train_listed(args, study_of_path(folder), f"The path of {folder.name}", runs, means).stopped_by


def _plan(folder: StudyFolder, found: Evidence, path: Path, seeds: int) -> str:
    epochs, networks = several(found.space.recipe.epochs, "epoch"), len({node.spec.digest for node in path.nodes})
    return (
        f"training  {several(networks, 'network')} from {several(seeds, 'seed')}, {epochs} each:"
        f" {several(networks * seeds, 'run')} in studies/{study_of_path(folder)}/"
    )


def read_trained(folder: StudyFolder, found: Evidence, path: Path, seeds: int) -> Trained:
    """What the trainings of `planned` came to."""
    from dnas.batch.runs import read_runs

    runs = planned(folder, found, path, seeds)
    frame = read_runs(StudyFolder(File("studies") / study_of_path(folder)).path)
    done = frame[frame["state"] == "complete"].set_index("key")[found.objective].to_dict()
    rows = {
        run.seed[0]: [done.get(_key(node.spec.digest, run.seed[0]), math.nan) for node in path.nodes] for run in runs
    }
    return Trained(pd.DataFrame.from_dict(rows, orient="index"))


# --- what is said -------------------------------------------------------------------------------------------------


def _write(out: File, path: Path, trained: Trained | None, objective: str) -> None:
    if out.suffix == ".csv":
        out.parent.mkdir(parents=True, exist_ok=True)
        path_frame(path, trained).to_csv(out, index=False)
        return
    from dnas.figures import plot_path, save

    save(plot_path(path, objective, trained), out)


def _as_json(found: Evidence, path: Path, trained: Trained | None) -> dict[str, Any]:
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in path_frame(path, trained).to_dict("records")
    ]
    return {
        "study": found.study,
        "objective": found.objective,
        "trials": path.trials,
        "r2": path.r2,
        "seeds": trained.seeds if trained is not None else 0,
        "steps": rows,
    }


def _print(folder: StudyFolder, found: Evidence, path: Path, trained: Trained | None, out: File | None) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=200)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(f"{found.study}   from {found.space.name_of(path.nodes[0].spec)}")
    say(f"{'':{len(found.study)}s}   to   {found.space.name_of(path.nodes[-1].spec)}\n{over_line(folder)}")
    console.print(_table(path, trained, found.objective))
    say("")
    say(
        f"predicted by a forest of {several(path.trials, 'trial')} (R² out of bag {path.r2:.2f}), 95% intervals by"
        " bootstrap over trials" + ("; nothing of it was trained" if trained is None else "")
    )
    if path.r2 < BELIEVABLE:
        say(
            f"mind      the predictions can't be believed: with R² below {BELIEVABLE} the forest does not know how"
            " unseen networks do; --train measures them"
        )
    say("measured: in the search, from one seed; the best network's is lucky, as it was chosen by it")
    if trained is not None:
        say(
            f"trained from {several(trained.seeds, 'fresh seed')}, each with its own split, the same for all networks;"
            " differences within a seed, 95% by Student's t, each step by itself"
            + ("" if trained.seeds > 1 else ": one seed has no interval")
        )
        say(f"from the first to the last: {_change(trained.whole, found.objective)}")
        missing = int(trained.values.isna().to_numpy().sum())
        if missing:
            say(f"mind      {several(missing, 'training')} failed or {'is' if missing == 1 else 'are'} missing")
    else:
        say(f"next      dnas path {found.study} --train --seeds {SEEDS}")
    if out is not None:
        say(f"written to {out}")


def _table(path: Path, trained: Trained | None, objective: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    heads = ["step", "choice", "from → to", "params", "predicted", "difference", "measured"]
    heads += ["trained", "difference, trained"] if trained is not None else []
    for head in heads:
        table.add_column(head, justify="left" if head in ("choice", "from → to") else "right", no_wrap=True)
    for i, node in enumerate(path.nodes):
        table.add_row(
            str(i),
            "\n".join(name for name, _, _ in node.changes),
            "\n".join(f"{_shown(before)} → {_shown(after)}" for _, before, after in node.changes),
            count(node.cost.params) + (f"\nover: {', '.join(node.excess)}" if node.excess else ""),
            _interval(path.predicted[i], objective),
            _change(path.change[i], objective),
            METRICS[objective].format(path.measured[i]) if i in path.measured else "",
            *(
                (_interval(trained.errors[i], objective), _change(trained.changes[i], objective))
                if trained is not None
                else ()
            ),
        )
    return table


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _interval(one: Estimate, objective: str) -> str:
    """`1.83% (1.33 to 2.71)`."""
    if math.isnan(one.value):
        return ""
    factor, digits = METRICS[objective].scale, METRICS[objective].digits
    text = METRICS[objective].format(one.value)
    return text if math.isnan(one.low) else f"{text} ({factor * one.low:.{digits}f} to {factor * one.high:.{digits}f})"


def _change(one: Estimate, objective: str) -> str:
    """`-0.19 (-0.75 to +0.30)`: points of a percentage, or nats."""
    if math.isnan(one.value):
        return ""
    factor, digits = METRICS[objective].scale, METRICS[objective].digits
    text = f"{factor * one.value:+.{digits}f}"
    return (
        text if math.isnan(one.low) else f"{text} ({factor * one.low:+.{digits}f} to {factor * one.high:+.{digits}f})"
    )
