"""Output of `dnas reproduce`: the plan and the findings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.arch import cost
from dnas.batch.forecast import RECORD_BYTES
from dnas.batch.planned import PlannedRun
from dnas.formatting import count, several, size
from dnas.reproduce.targets import Plan
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder

if TYPE_CHECKING:
    from dnas.reproduce.results import Result


def describe_plan(plan: Plan, folder: StudyFolder, config: RunConfig, out: Path) -> str:
    """Return the networks with their costs, the runs and the disk space, but not the time."""
    target, budget = plan.target, plan.budget
    lines = [target.title, f"claim     {target.claim}"]
    if not plan.runs:
        return "\n".join([*lines, "training  none: it compares architectures and their costs", f"page      {out}/"])
    networks = list(dict.fromkeys((run.group, run.name) for run in plan.runs))
    first = {run.name: run for run in reversed(plan.runs)}
    width = max(len(name) for _, name in networks)
    for index, (group, name) in enumerate(networks):
        price = cost(first[name].spec)
        lines.append(
            f"{'networks' if not index else '':10s}{group:12s} {name:{width}s} {count(price.params):>9s} params"
            f" {count(price.macs):>9s} macs"
        )
    complete, recipe = len(plan.runs) - len(missing_runs(plan, folder)), plan.recipe
    lines.append(
        f"budget    {budget.name}: {plan.info.title}, recipe {recipe.name}, {several(recipe.epochs, 'epoch')}"
        f" of batch {recipe.batch_size}"
        + ("; trained on the validation data too, measured on the test set" if plan.final else "")
    )
    lines.append(
        f"runs      {len(plan.runs)}: {several(len(networks), 'network')} from {several(plan.seeds, 'seed')}"
        + (f"; {complete} are complete" if complete else "")
    )
    disk = sum(8 * cost(run.spec).params + RECORD_BYTES for run in plan.runs)
    lines.append(f"disk      about {size(disk)} in studies/{plan.study}/")
    lines.append(f"page      {out}/")
    return "\n".join(lines)


def missing_runs(plan: Plan, folder: StudyFolder) -> list[PlannedRun]:
    """Return the runs that the study on disk has not completed."""
    records = folder.records() if folder.exists else []
    complete = {record.params.get("key") for record in records if record.state == "complete"}
    return [run for run in plan.planned() if run.key not in complete]


def describe_result(plan: Plan, result: "Result", page: Path) -> str:
    data = plan.info.title if plan.runs else "the paper's tables"
    lines = [f"\n{plan.target.title}, on {data}"]
    lines += [f"  {finding.verdict:14s}  {finding.claim}\n{'':18s}{finding.numbers}" for finding in result.findings]
    lines += [f"  note{'':12s}{note}" for note in result.notes[:1]]
    return "\n".join([*lines, f"page      {page}"])


def as_json(plan: Plan, result: "Result", page: Path, stopped_by: str | None) -> dict[str, Any]:
    return {
        "target": plan.target.name,
        "budget": plan.budget.name,
        "study": plan.study if plan.runs else None,
        "claim": plan.target.claim,
        "findings": [
            {"verdict": finding.verdict, "claim": finding.claim, "numbers": finding.numbers}
            for finding in result.findings
        ],
        "notes": list(result.notes),
        "page": str(page),
        "stopped_by": stopped_by,
    }
