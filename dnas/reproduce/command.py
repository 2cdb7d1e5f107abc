"""`dnas reproduce`: plan, train what is missing, draw, and say what holds."""

import argparse
import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnas.arch import cost
from dnas.errors import unknown
from dnas.inputs import TINY_IMAGE, Means, cores, default_threads, default_workers
from dnas.plan import RECORD_BYTES, seconds_per_step
from dnas.reproduce.targets import Listed, Plan, make_plan
from dnas.runs import PlannedRun, check_same_runs, train_runs
from dnas.study import StudyFolder
from dnas.train import list_devices
from dnas.wording import count, duration, redact, several, size

EXECUTORS = ("local", "ray")
ANY_NUMBER = 10**6  # of workers on Ray: as many as the cluster has room for
START_SECONDS = 2.0  # of a training, before its first step
MOST_MACS = 2e10  # of a step that is timed for the estimate: what costs more is reckoned from that


def main_reproduce(args: argparse.Namespace) -> int:
    """0: done; 1: done in part; 130: interrupted."""
    if args.executor not in EXECUTORS:
        raise unknown("executor", args.executor, EXECUTORS)
    plan = make_plan(args.target, args.budget, args.seeds)
    means = means_of(plan, args)
    folder = StudyFolder(Path("studies") / plan.study)
    out = args.out or Path("reports/reproduce") / plan.folder
    if folder.exists:
        check_same_runs(folder, planned(plan), plan.final)
    print(describe_plan(plan, folder, means, out), flush=True)
    if args.dry_run:
        print("nothing was trained; leave out --dry-run to begin")
        return 0
    stopped_by = None
    if plan.runs:
        command = redact(shlex.join(["dnas", *sys.argv[1:]]))
        try:
            stopped_by = _train(plan, means, args, command)
        except KeyboardInterrupt:
            print(
                f"\nstopped; every finished epoch is saved in {folder.path}/."
                f" The same command goes on from there:\n  {command}"
            )
            return 130
    from dnas.reproduce.page import write_page
    from dnas.reproduce.readings import read_result

    if stopped_by:
        print(f"stopped: {stopped_by}")
    result = read_result(plan, folder if plan.runs else None)
    page = write_page(plan, result, folder if plan.runs else None, out)
    where = plan.info.title if plan.runs else "the paper's tables"
    print(f"\n{plan.target.title}, on {where}")
    for finding in result.findings:
        print(f"  {finding.verdict:14s}  {finding.claim}\n{'':18s}{finding.numbers}")
    for note in result.notes[:1]:
        print(f"  mind{'':12s}{note}")
    print(f"page      {page}")
    return 1 if stopped_by else 0


def _train(plan: Plan, means: Means, args: argparse.Namespace, command: str) -> str | None:
    """Trains what is missing; why it stopped early, if it did."""
    from dnas.display import make_display

    executor: Any = None
    if args.executor == "ray":
        executor, means = on_ray(plan, means, args)
    display = make_display(args.quiet, args.verbose)
    with display:
        outcome = train_runs(
            plan.study, plan.target.title, planned(plan), means, display, executor, final=plan.final, command=command
        )
    return outcome.stopped_by


def means_of(plan: Plan, args: argparse.Namespace) -> Means:
    """What the command leaves open, filled in: on CPUs a training of tiny images takes one thread, and each core has
    one."""
    side = plan.info.image_size or 0
    tiny_on_cpu = side <= TINY_IMAGE and args.device in ("auto", "cpu")
    workers = args.workers or (cores() if tiny_on_cpu else default_workers())
    return Means(
        data={"name": plan.info.name, "data_root": args.data_root},
        workers=workers,
        threads=args.threads or default_threads(workers, side),
        device=args.device,
        timeout=args.timeout,
    )


def on_ray(plan: Plan, means: Means, args: argparse.Namespace) -> tuple[Any, Means]:
    """The executor, connected, and the means as Ray's nodes need them."""
    from dnas.executors.ray_tune import RayExecutor

    cpus = args.cpus_per_trial or args.threads or 1
    executor = RayExecutor(
        plan.study,
        args.ray_address,
        cpus=cpus,
        gpus=0 if args.device == "cpu" else args.gpus_per_trial,
        shared=args.shared or Path("studies", plan.study, "ray").absolute(),
    )
    return executor, dataclasses.replace(
        means,
        workers=args.workers or ANY_NUMBER,
        threads=args.threads or max(1, int(cpus)),
        device="cuda" if executor.gpus else "cpu",
    )


def planned(plan: Plan) -> list[PlannedRun]:
    """The plan as `dnas.runs` trains it. All networks of a seed share its streams of chance."""
    return [PlannedRun(run.key, run.group, run.spec, plan.recipe, (run.seed, 0)) for run in plan.runs]


# --- the plan in words --------------------------------------------------------------------------------------------


def describe_plan(plan: Plan, folder: StudyFolder, means: Means, out: Path) -> str:
    """The plan in some lines: networks with their costs, time, disk. Times a few steps."""
    target, budget = plan.target, plan.budget
    lines = [target.title, f"claim     {target.claim}"]
    if not plan.runs:
        return "\n".join([*lines, "training  none: it compares architectures and their costs", f"page      {out}/"])
    names = list(dict.fromkeys((run.group, run.name) for run in plan.runs))
    first = {run.name: run for run in reversed(plan.runs)}
    width = max(len(name) for _, name in names)
    for index, (group, name) in enumerate(names):
        price = cost(first[name].spec)
        lines.append(
            f"{'networks' if not index else '':10s}{group:12s} {name:{width}s} {count(price.params):>9s} params"
            f" {count(price.macs):>9s} macs"
        )
    done = (
        {record.params.get("key") for record in folder.records() if record.state == "complete"}
        if folder.exists
        else set()
    )
    missing = [run for run in plan.runs if run.key not in done]
    lines.append(
        f"budget    {budget.name}: {plan.info.title}, recipe {plan.recipe.name}, {several(plan.recipe.epochs, 'epoch')}"
        f" of batch {plan.recipe.batch_size}"
        + ("; trained on validation data too, measured on the test set" if plan.final else "")
    )
    lines.append(
        f"runs      {len(plan.runs)}: {several(len(names), 'network')} from {several(plan.seeds, 'seed')}"
        + (f"; {len(plan.runs) - len(missing)} are there" if done else "")
    )
    if missing:
        device = list_devices(means.device)[0]
        seconds = estimate_seconds(plan, missing, device, means.threads) / means.workers
        lines.append(
            f"time      about {duration(seconds)}, {several(means.workers, 'training')} at once"
            f" ({several(means.threads, 'thread')} each, {device.partition(':')[0]})"
        )
    disk = sum(8 * cost(run.spec).params + RECORD_BYTES for run in plan.runs)
    lines.append(f"disk      about {size(disk)} in studies/{plan.study}/")
    lines.append(f"page      {out}/")
    return "\n".join(lines)


def estimate_seconds(plan: Plan, runs: Sequence[Listed], device: str, threads: int) -> float:
    """Seconds of training of all `runs`, one after the other: timed are a step of the cheapest network and of the
    dearest one up to `MOST_MACS`; between them it is linear in macs, above them proportional."""
    batch = plan.recipe.batch_size
    macs = {run.name: cost(run.spec).macs for run in runs}
    specs = {run.name: run.spec for run in runs}
    names = sorted(macs, key=lambda name: macs[name])
    timed = sorted({names[0], *[name for name in names if macs[name] * batch <= MOST_MACS][-1:]}, key=names.index)
    steps = [seconds_per_step(specs[name], batch, device, threads) for name in timed]
    sizes = [float(macs[name]) for name in timed]
    per_epoch = math.ceil(plan.budget.images / batch) * (1 + 1 / 27)  # a ninth as many validation images, at a third
    total = 0.0
    for run in runs:
        x = float(macs[run.name])
        step = float(np.interp(x, sizes, steps)) if x <= sizes[-1] else steps[-1] * x / sizes[-1]
        total += START_SECONDS + plan.recipe.epochs * per_epoch * step
    return total
