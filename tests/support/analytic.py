"""Executor that computes runs by a formula, to test searches with failures and lost workers in milliseconds."""

import dataclasses
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from dnas.arch import Spec, cost, spec_from_dict
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.space.space import Space
from dnas.study.config import RunConfig, SearchConfig
from dnas.study.record import TrialRecord

Trouble = Callable[[Job, int], Message | None]  # returns the failure of a job before an epoch, if any


def curve(spec: Spec, epochs: int) -> list[float]:
    """Return validation errors that fall towards a floor, which is lower for large and densely connected networks."""
    floor = 0.02 + 0.3 / math.log(cost(spec).params) + 0.02 * (getattr(spec, "connectivity", "") == "none")
    return [floor + (0.9 - floor) * math.exp(-4 * epoch / epochs) for epoch in range(1, epochs + 1)]


def epoch_row(number: int, error: float) -> dict[str, Any]:
    """Return an epoch's row of the learning curve."""
    row: dict[str, Any] = {"epoch": number, "train_loss": error, "train_error": error, "val_loss": 2 * error}
    return row | {"val_error": error, "learning_rate": 0.1, "seconds": 1.0}


def result(row: dict[str, Any], finished: bool) -> dict[str, Any]:
    """Return the values of the `done` message of a run that ends with `row`."""
    return {
        "finished": finished,
        "epochs": row["epoch"],
        "val_error": row["val_error"],
        "val_loss": row["val_loss"],
        "seconds": 1.0 * row["epoch"],
        "peak_memory_bytes": 1,
        "weights_digest": f"{row['val_error']:.9f}",
    }


class AnalyticExecutor:
    """Executor with the interface of `LocalExecutor`. A restarted job repeats the epochs that it had reported."""

    def __init__(self, trouble: Trouble = lambda job, epoch: None) -> None:
        self.trouble = trouble
        self.jobs: dict[str, deque[Message]] = {}
        self.asked: set[str] = set()
        self.started: list[Job] = []
        self.last: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0  # of the simulated clock, which advances by one per epoch

    @property
    def running(self) -> list[str]:
        return list(self.jobs)

    @property
    def workers(self) -> int:
        return sys.maxsize

    @property
    def queued(self) -> set[str]:
        return set()

    def room(self, job: Job) -> bool:
        return True

    def clock(self) -> float:
        return self.seconds

    def kill(self, key: str) -> None:
        del self.jobs[key]
        self.asked.discard(key)

    def start(self, job: Job) -> None:
        self.started.append(job)
        errors = curve(spec_from_dict(job.spec), job.recipe["epochs"])
        messages: deque[Message] = deque()
        for number, error in enumerate(errors, 1):
            if (trouble := self.trouble(job, number)) is not None:
                messages.append(trouble)
                break
            row = epoch_row(number, error)
            messages.append(Message("epoch", row))
        else:
            messages.append(Message("done", {"row": row, "finished": True}))
        self.jobs[job.key] = messages

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        for key in self.running:
            if key in self.asked:
                continue
            message = self.jobs[key].popleft()
            if message.kind == "epoch":
                self.asked.add(key)
                self.seconds += message.values["seconds"]
                self.last[key] = message.values
            elif message.kind == "done":
                message = Message("done", self._result(**message.values))
            if message.kind in ("done", "failed", "lost"):
                del self.jobs[key]
            return [(key, message)]
        raise AssertionError("every job waits for an answer")

    def _result(self, row: dict[str, Any], finished: bool) -> dict[str, Any]:
        """Return the values of the `done` message; subclasses add final results."""
        return result(row, finished)

    def answer(self, key: str, go_on: bool) -> None:
        self.asked.discard(key)
        if not go_on:
            self.jobs[key] = deque([Message("done", {"row": self.last[key], "finished": False})])

    def stop(self) -> None:
        self.jobs.clear()
        self.asked.clear()


class Silent:
    """A display that shows nothing and keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def began(self, record: TrialRecord) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def search_config(trials: int, space: Space | None = None, **changes: Any) -> SearchConfig:
    """Return the config of a search on 200 digits. changes: fields of `SearchConfig` and of its `RunConfig`."""
    run = RunConfig({"name": "digits", "subset": 200})
    return changed(SearchConfig(space or load_space("digits_bc"), "s", trials, run), **changes)


def changed(config: SearchConfig, **changes: Any) -> SearchConfig:
    """Replace fields of `config` and of its `RunConfig`."""
    run_changes = {name: changes.pop(name) for name in list(changes) if name in RunConfig.__dataclass_fields__}
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **run_changes), **changes)
