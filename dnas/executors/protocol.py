"""Interfaces of the run loop: the source of runs, the executor that runs them, and the observer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dnas.executors.process import Job, Message
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord


@dataclass
class Outcome:
    """Result of a search or a batch of runs.

    `stopped_by` is the reason for an early stop, or None. `exhausted` is True if no untried network was left.
    """

    trials: int
    exhausted: bool = False
    stopped_by: str | None = None


class Source(Protocol):
    """Supplies the runs of one study and interprets their results. `dnas.strategy.driver.Driver` is one.

    The job of a record identifies its run: `job.key` names it for the executor, and `job.folder` holds its files.
    """

    @property
    def folder(self) -> StudyFolder: ...
    @property
    def run_config(self) -> RunConfig: ...
    @property
    def records(self) -> Mapping[Any, TrialRecord]:
        """Records of all runs that have been started."""

    def next(self, running: list[str]) -> TrialRecord | None:
        """Return the next run to start, or None if there is none now. running: keys of the runs in progress."""

    def job(self, record: TrialRecord) -> Job: ...
    def on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None:
        """Record the worker's measurements before training."""

    def on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        """Record an epoch, possibly one from a checkpoint. Return True if the run continues."""

    def on_result(self, record: TrialRecord, values: dict[str, Any]) -> None:
        """Copy a result into the record, including its `state`."""

    def on_retry(self, record: TrialRecord, reason: str, *, recompute: bool = False) -> None:
        """Record that a run restarts from its checkpoint."""

    def on_end(self, record: TrialRecord) -> None:
        """Record the end or pause of a run whose record has been written."""


class Executor(Protocol):
    """Runs jobs and makes no decisions. `dnas.executors.local.LocalExecutor` is one."""

    @property
    def running(self) -> list[str]: ...
    @property
    def workers(self) -> int: ...
    @property
    def queued(self) -> set[str]: ...
    def room(self, job: Job) -> bool: ...
    def start(self, job: Job) -> None: ...
    def wait(self, timeout: float) -> list[tuple[str, Message]]: ...
    def answer(self, key: str, go_on: bool) -> None: ...
    def kill(self, key: str) -> None: ...
    def clock(self) -> float: ...
    def stop(self) -> None: ...


class Show(Protocol):
    """Observer of a run loop, such as a display."""

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def began(self, record: TrialRecord) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...
    def note(self, text: str) -> None: ...
