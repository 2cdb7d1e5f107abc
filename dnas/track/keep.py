"""Keep the copies of a study in trackers up to date, while it runs or once."""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from dnas.errors import InputError
from dnas.formatting import first_line, redact
from dnas.strategy.mirroring import Keeper
from dnas.study.folder import StudyFolder
from dnas.track.source import Source, TrackedRun, TrackedStudy
from dnas.track.targets import Target

CLOSING_SECONDS = 30.0  # time limit for the last pass, at the end of a search
FILES = "trackers"  # folder in the study's folder, with a lock and a ledger per tracker


class Tracker(Protocol):
    """A study in a tracker. Each method is safe to repeat after a kill or an error at any moment."""

    def write(self, run: TrackedRun) -> bool:
        """Copy a run, except what the tracker already has. Return True if something was missing."""

    def finish(self, report: Path | None) -> None:
        """Copy the facts of the study, and its report if there is one."""

    def close(self) -> None: ...


class Tracking:
    """The copy of one study in one tracker. A lock keeps other processes from writing it at the same time."""

    def __init__(self, folder: StudyFolder, target: Target) -> None:
        self.folder, self.target = folder, target
        self._source: Source | None = None
        self._tracker: Tracker | None = None
        self._lock: IO[str] | None = None

    def update(self, last: bool) -> int:
        """Copy what has changed since the last call, and return the number of runs that the tracker lacked.

        last: no later call follows. Paused trials are then closed, and the report is copied.
        """
        if not self.folder.exists:  # a search creates it after reading the data
            return 0
        if self._tracker is None or self._source is None:
            self._lock = self._take_lock()
            self._source = Source(self.folder)
            self._tracker = _open(self.target, self._source.study, self.folder.path / FILES)
        number = 0
        for run in self._source.changed(last):
            number += self._tracker.write(run)
        if last:
            report = report_of(self.folder)
            self._tracker.finish(report if report.is_file() else None)
        return number

    def drop(self) -> None:
        """Close the tracker. The next `update` reopens it."""
        with ExitStack() as resources:
            if self._lock is not None:
                resources.callback(self._lock.close)
            if self._tracker is not None:
                resources.callback(self._tracker.close)
            self._source = self._tracker = self._lock = None

    def _take_lock(self) -> IO[str]:
        path = self.folder.path / FILES / f"{self.target.slug}.lock"
        path.parent.mkdir(exist_ok=True)
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(f"another process is copying study {self.folder.name} to {self.target}") from None
        return file


def report_of(folder: StudyFolder) -> Path:
    """Return the path of a study's report, in its default folder."""
    return Path("reports") / folder.name / "index.html"


def track(folder: StudyFolder, target: Target, show: Callable[[str], None] = lambda text: None) -> int:
    """Copy a study to a tracker, with an up-to-date report, and return the number of runs that the tracker lacked.

    show: receives the current step.

    Raises:
        InputError: The tracker cannot be reached, or refused the study.
    """
    page = report_of(folder)
    times = [path.stat().st_mtime for path in folder.path.glob("*/*/record.json")]
    if not page.is_file() or page.stat().st_mtime < max(times, default=0.0):
        from dnas.report import write_report

        with suppress(InputError):  # some lists of runs have no report
            write_report(folder.path, show=show)
    show(f"copying to {target}")
    tracking = Tracking(folder, target)
    try:
        return tracking.update(last=True)
    except Exception as error:
        raise InputError(f"{target} is out of date: {_cause(error)}; rerun to complete it.") from error
    finally:
        with suppress(Exception):
            tracking.drop()


@contextmanager
def open_trackers(folder: StudyFolder, targets: Sequence[Target], note: Callable[[str], None]) -> Iterator[None]:
    """Copy a study to trackers inside the `with` block, and a last time at its end.

    A tracker that cannot be reached is reported once, and tried again at each pass.

    Args:
        folder: Folder of the study, which may not exist yet.
        targets: The trackers.
        note: Called with the first error of each tracker.
    """
    keepers = [_keeper(Tracking(folder, target), note) for target in targets]
    try:
        for keeper in keepers:
            keeper.start()
        yield
    finally:
        for keeper in keepers:
            keeper.close(CLOSING_SECONDS)


def _keeper(tracking: Tracking, note: Callable[[str], None]) -> Keeper:
    target, name = tracking.target, tracking.folder.name

    def report(error: Exception) -> None:
        note(
            f"{target} is out of date ({_cause(error)}); the search continues and retries, and"
            f" `dnas track {name} {target}` completes it later"
        )

    return Keeper(f"track {target.kind}", tracking.update, tracking.drop, report)


def _cause(error: Exception) -> str:
    """Return the first line of an error, and a short one if a server does not answer."""
    text = redact(first_line(error))
    return "its server does not answer" if "Max retries exceeded" in text else text


def _open(target: Target, study: TrackedStudy, files: Path) -> Tracker:
    if target.kind == "tensorboard":
        from dnas.track.tensorboard_files import TensorBoard

        return TensorBoard(target.place, study)
    if target.kind == "mlflow":
        from dnas.track.mlflow_runs import MLflow

        return MLflow(target.place, study)
    from dnas.track.wandb_runs import WandB

    return WandB(target.place, study, files / f"{target.slug}.json")
