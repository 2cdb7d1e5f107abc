"""`dnas reproduce`: plan, train what is missing, draw, and say what holds."""

import argparse
from pathlib import Path

from dnas.arch import cost
from dnas.batch.estimate import RECORD_BYTES, estimate_seconds
from dnas.batch.runs import PlannedRun, check_same_runs
from dnas.cli.listed import check_executor, command_line, means_of, train_listed
from dnas.formatting import count, duration, several, size
from dnas.reproduce.targets import Plan, make_plan
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.training.devices import list_devices


def main_reproduce(args: argparse.Namespace) -> int:
    """0: done; 1: done in part; 130: interrupted."""
    check_executor(args)
    plan = make_plan(args.target, args.budget, args.seeds)
    means = means_of(args, {"name": plan.info.name, "data_root": args.data_root}, plan.info.image_size or 0)
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
        try:
            stopped_by = train_listed(
                args, plan.study, plan.target.title, planned(plan), means, final=plan.final
            ).stopped_by
        except KeyboardInterrupt:
            print(
                f"\nstopped; every finished epoch is saved in {folder.path}/."
                f" The same command goes on from there:\n  {command_line()}"
            )
            return 130
    from dnas.reproduce.page import write_page
    from dnas.reproduce.results import read_result

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


def planned(plan: Plan) -> list[PlannedRun]:
    """The plan as `dnas.batch.runs` trains it. All networks of a seed share its streams of chance."""
    return [PlannedRun(run.key, run.group, run.spec, plan.recipe, (run.seed, 0)) for run in plan.runs]


# --- the plan in words --------------------------------------------------------------------------------------------


def describe_plan(plan: Plan, folder: StudyFolder, means: RunConfig, out: Path) -> str:
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
    missing = [run for run in planned(plan) if run.key not in done]
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
        seconds = estimate_seconds(missing, lambda run: plan.budget.images, device, means.threads) / means.workers
        lines.append(
            f"time      about {duration(seconds)}, {several(means.workers, 'training')} at once"
            f" ({several(means.threads, 'thread')} each, {device.partition(':')[0]})"
        )
    disk = sum(8 * cost(run.spec).params + RECORD_BYTES for run in plan.runs)
    lines.append(f"disk      about {size(disk)} in studies/{plan.study}/")
    lines.append(f"page      {out}/")
    return "\n".join(lines)
