"""Output of `dnas search` and `dnas worker` before and after the search."""

from pathlib import Path
from typing import Any

from dnas.analysis.efficiency import pareto_front
from dnas.analysis.metrics import METRICS
from dnas.cli.display import state_counts
from dnas.cli.output import counts_by_state
from dnas.data.catalog import data_info
from dnas.executors.protocol import Executor, Outcome
from dnas.formatting import count, percent, several
from dnas.search.stopping import Ladder
from dnas.study.config import SearchConfig, objectives_of
from dnas.study.folder import StudyFolder, read_study
from dnas.study.record import TrialRecord

FRONT_LINES = 5  # networks of the Pareto front that are printed
SAMPLERS = {"gp": "Gaussian process", "tpe": "TPE", "nsga2": "NSGA-II"}


def opening(config: SearchConfig, executor: Executor | None) -> str:
    """Return a summary of a search before it starts. executor: None means processes of this machine."""
    space, recipe = config.space, config.space.recipe
    networks, (low, high) = space.size(), space.survey().range("params")
    limits = ", ".join(f"{name} ≤ {count(value)}" for name, value in space.limits.stated().items()) or "none"
    subset = f", {config.run.data['subset']:,} images of it" if config.run.data["subset"] else ""
    workers = config.run.workers if executor is None else min(config.run.workers, executor.workers)
    control = f", {100 * config.control:.0f}% random control" if config.control else ""
    return "\n".join(
        (
            f"{space.name}   {space.title}",
            f"space    {f'{networks:,} networks' if networks is not None else 'infinite'},"
            f" {count(low)} to {count(high)} params",
            f"limits   {limits}",
            f"data     {data_info(space.dataset).title}{subset}",
            f"train    recipe {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size};"
            f" early stopping {_stopping(config)}",
            f"search   {', '.join(config.objectives)} by {SAMPLERS.get(config.sampler, config.sampler)}, seed"
            f" {config.seed}{control}; {config.trials} trials, {workers} at once"
            f" ({several(config.run.threads, 'thread')} each); studies/{config.study}/",
            "",
        )
    )


def _stopping(config: SearchConfig) -> str:
    epochs = config.space.recipe.epochs
    rungs = Ladder(config.stopping, epochs, several=len(config.objectives) > 1).rungs
    if not rungs:
        return "none"
    few = len(rungs) < 6
    text = "·".join(str(rung) for rung in (*rungs, epochs)) if few else f"{rungs[0]} to {rungs[-1]}"
    return f"{config.stopping} after {text} epochs"


def closing(study: str, outcome: Outcome, trials: int) -> str:
    """Return the result of a search as text. trials: requested number of trials."""
    folder = StudyFolder(Path("studies") / study)
    lines = [""]
    if outcome.stopped_by:
        lines.append(f"stopped: {outcome.stopped_by}")
    elif outcome.exhausted and outcome.trials < trials:
        lines.append(f"the space holds no further network inside its limits: all {outcome.trials} were tried.")
    best = folder.best()
    if best:
        record = best[0]
        lines.append(
            f"best      #{record.number}  {percent(record.val_error)} validation error"
            f"  {count(record.cost['params'])} params  {count(record.cost['macs'])} macs  {record.network}"
        )
        lines += _front_lines(folder, record)
    for number, errors in _test_errors(folder).items():
        spread = f" ({percent(min(errors))} to {percent(max(errors))})" if len(errors) > 1 else ""
        mean = percent(sum(errors) / len(errors))
        lines.append(f"test      #{number}  {mean} test error, {several(len(errors), 'seed')}{spread}")
    lines.append("trials    " + state_counts(folder.records()))
    lines.append(f"stored    studies/{study}/")
    lines.append(f"next      dnas report {study}")
    return "\n".join(lines)


def _front_lines(folder: StudyFolder, best: TrialRecord) -> list[str]:
    first, costs, front = _front(folder, best)
    lines: list[str] = []
    for row in front[:FRONT_LINES]:
        texts = {name: METRICS[name].in_terminal(row[name]) for name in (first, *costs)}
        prices = ", ".join(texts[name] if name == "latency" else f"{texts[name]} {name}" for name in costs)
        head = "front" if not lines else ""
        lines.append(f"{head:9s} {texts[first]:>8s} at {prices}  #{row['number']}  {row['network']}")
    if len(front) > FRONT_LINES:
        lines.append(f"{'':9s} and {len(front) - FRONT_LINES} more, in the report")
    return lines


def _front(folder: StudyFolder, best: TrialRecord) -> tuple[str, tuple[str, ...], list[dict[str, Any]]]:
    """Return the first objective, the costs it is compared with, and the trials of the Pareto front.

    With a single objective the cost is `params`.
    """
    costs = objectives_of(folder.config())[1:] or ("params",)
    first = next(iter(best.objectives))
    rows = pareto_front(read_study(folder.path), (*costs, first)).trials.to_dict("records")
    return first, costs, [{str(key): value for key, value in row.items()} for row in rows]


def _test_errors(folder: StudyFolder) -> dict[int, list[float]]:
    """Return the test errors of the retrained networks, by trial."""
    errors: dict[int, list[float]] = {}
    for _, record in folder.retrained():
        if record.test_error is not None:
            errors.setdefault(record.number, []).append(record.test_error)
    return errors


def as_json(study: str, outcome: Outcome) -> dict[str, Any]:
    folder = StudyFolder(Path("studies") / study)
    ranked = folder.best()
    front = []
    if ranked:
        first, costs, rows = _front(folder, ranked[0])
        front = [{name: row[name] for name in ("number", "network", first, *costs)} for row in rows]
    return {
        "study": study,
        "folder": str(folder.path),
        "trials": outcome.trials,
        "states": counts_by_state(folder.records()),
        "best": trial_as_json(ranked[0]) if ranked else None,
        "front": front,
        "test_errors": _test_errors(folder),
        "exhausted": outcome.exhausted,
        "stopped_by": outcome.stopped_by,
    }


def trial_as_json(record: TrialRecord) -> dict[str, Any]:
    return {
        "number": record.number,
        "state": record.state,
        "reason": record.reason,
        "network": record.network,
        "val_error": record.val_error,
        "objectives": record.objectives,
        "params": record.cost["params"],
        "macs": record.cost["macs"],
        "epochs": record.epochs,
        "epochs_planned": record.epochs_planned,
        "seconds": record.seconds,
    }
