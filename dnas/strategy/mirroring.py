"""Copies of a study for other programs, kept up to date by a separate thread while the study runs."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dnas.errors import InputError
from dnas.io import complete_lines
from dnas.strategy.state import Trial, TrialLog

EVERY_SECONDS = 3.0
MAX_TIME_SHARE = 0.05  # largest fraction of the time spent on the copy


class Keeper:
    """Thread that updates a copy every few seconds, and a last time when it is closed.

    Args:
        name: Name of the thread.
        update: Brings the copy up to date. Its argument is True for the last time.
        drop: Closes what `update` has opened, after an error and at the end.
        report: Receives the first error. Each later pass tries again.
    """

    def __init__(
        self,
        name: str,
        update: Callable[[bool], object],
        drop: Callable[[], None],
        report: Callable[[Exception], None],
    ) -> None:
        self._update, self._drop, self._report = update, drop, report
        self._reported = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Wait at most `seconds` for the last pass."""
        self._end.set()
        if not self._thread.is_alive() or not seconds:
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(TimeoutError("its last pass took too long"))

    def _keep(self) -> None:
        while True:
            last = self._end.is_set()  # read before the pass, so that writes during the pass are not missed
            start = time.monotonic()
            try:
                self._update(last)
            except Exception as error:  # a broken copy must not stop the search
                self._close_copy()
                self._fail(error)
            if last:
                break
            seconds = time.monotonic() - start
            self._end.wait(max(EVERY_SECONDS, seconds / MAX_TIME_SHARE - seconds))
        self._close_copy()

    def _close_copy(self) -> None:
        with suppress(Exception):
            self._drop()

    def _fail(self, error: Exception) -> None:
        if not self._reported:
            self._report(error)
        self._reported = True


@dataclass
class LogReader:
    """Trials of an event log, read incrementally."""

    path: Path
    offset: int = 0

    def __post_init__(self) -> None:
        self._fold = TrialLog(0)

    @property
    def trials(self) -> dict[int, Trial]:
        return self._fold.trials

    def read(self) -> set[int]:
        """Read the new complete lines; return the numbers of the trials that they concern."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.offset:  # the log was replaced
            self.offset = 0
            self._fold = TrialLog(0)
        if size == self.offset:
            return set()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        complete = complete_lines(content)
        self.offset += len(complete)
        touched: set[int] = set()
        for line in complete.splitlines():
            with suppress(ValueError, KeyError, TypeError, InputError):  # damaged lines are left to `dnas doctor`
                touched |= self._fold.apply(json.loads(line))
        return touched


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return values that change when a file is replaced; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
