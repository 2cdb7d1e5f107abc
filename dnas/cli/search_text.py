"""Output of `dnas search` and `dnas worker` after the search."""

from pathlib import Path
from typing import Any

from dnas.analysis.metrics import METRICS
from dnas.api.display import state_counts
from dnas.api.study import Study
from dnas.cli.output import counts_by_state
from dnas.executors.protocol import Outcome
from dnas.formatting import count, percent, several
from dnas.study.config import objectives_of
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord

FRONT_LINES = 5  # networks of the Pareto front that are printed


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
            f"best      #{record.number}  {_metrics(record)}{percent(record.val_error)} validation error"
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


def _metrics(record: TrialRecord) -> str:
    """Return the further metrics of a trial that its study asks for."""
    from dnas.analysis.metrics import METRICS

    return "".join(f"{METRICS[name].with_noun(value)}  " for name, value in record.metrics.items())


def _front_lines(folder: StudyFolder, best: TrialRecord) -> list[str]:
    first, costs, front = _front(folder, best)
    lines: list[str] = []
    for row in front[:FRONT_LINES]:
        texts = {name: METRICS[name].format(row[name]) for name in (first, *costs)}
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
    rows = Study(folder).front.to_dict("records")
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
        "params": record.cost.get("params"),
        "macs": record.cost.get("macs"),
        "epochs": record.epochs,
        "epochs_planned": record.epochs_planned,
        "seconds": record.seconds,
    }
