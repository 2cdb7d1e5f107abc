"""What the commands that train a list of runs share: the options that say how, the executor, and the display."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError, unknown
from dnas.formatting import redact
from dnas.study.config import RunConfig
from dnas.training.defaults import TINY_IMAGE, cores, default_threads, default_workers

if TYPE_CHECKING:
    from dnas.batch.runs import PlannedRun
    from dnas.executors.protocol import Outcome

EXECUTORS = ("local", "ray")
RAY_OPTIONS = ("ray_address", "gpus_per_trial", "cpus_per_trial", "shared")
ANY_NUMBER = 10**6  # of workers on Ray: as many as the cluster has room for


def check_executor(args: argparse.Namespace) -> None:
    """`InputError` for an unknown executor, and for options of another one."""
    if args.executor not in EXECUTORS:
        raise unknown("executor", args.executor, EXECUTORS)
    given = [name for name in RAY_OPTIONS if getattr(args, name) is not None]
    if given and args.executor != "ray":
        raise InputError(f"--{given[0].replace('_', '-')} is for --executor ray, but the executor is {args.executor}.")


def means_of(args: argparse.Namespace, data: dict[str, Any], side: int) -> RunConfig:
    """What the command leaves open, filled in: on CPUs a training of tiny images takes one thread, and each core has
    one. data: arguments of `load_dataset`; side: of the images, pixels."""
    tiny_on_cpu = side <= TINY_IMAGE and args.device in ("auto", "cpu")
    workers = args.workers or (cores() if tiny_on_cpu else default_workers())
    return RunConfig(
        data=data,
        workers=workers,
        threads=args.threads or default_threads(workers, side),
        device=args.device,
        timeout=args.timeout,
        kernels=args.kernels,
    )


def on_ray(args: argparse.Namespace, study: str, side: int) -> tuple[Any, dict[str, Any]]:
    """The executor, connected, and what Ray's nodes need in place of this host's means."""
    from dnas.executors.ray_tune import RayExecutor

    cpus = args.cpus_per_trial or args.threads or 1
    executor = RayExecutor(
        study,
        args.ray_address,
        cpus=cpus,
        gpus=0 if args.device == "cpu" else args.gpus_per_trial,
        shared=args.shared or Path("studies", study, "ray").absolute(),
    )
    return executor, {
        "workers": args.workers or ANY_NUMBER,
        "threads": args.threads or (1 if side <= TINY_IMAGE else max(1, int(cpus))),
        "device": "cuda" if executor.gpus else "cpu",
    }


def command_line() -> str:
    """The command as it was given, without passwords."""
    return redact(shlex.join(["dnas", *sys.argv[1:]]))


def train_listed(
    args: argparse.Namespace,
    study: str,
    title: str,
    runs: "Sequence[PlannedRun]",
    means: RunConfig,
    *,
    final: bool = False,
    about: Mapping[str, Any] | None = None,
) -> "Outcome":
    """`dnas.batch.runs.train_runs` by the executor that the command names, and shown as it asks."""
    from dnas.batch.runs import train_runs
    from dnas.cli.display import make_display

    executor: Any = None
    if args.executor == "ray":
        executor, changes = on_ray(args, study, max(run.spec.image_size for run in runs))
        means = dataclasses.replace(means, **changes)
    display = make_display(args.quiet, args.verbose)
    with display:
        return train_runs(
            study, title, runs, means, display, executor, final=final, command=command_line(), about=about
        )
