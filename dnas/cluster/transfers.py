"""Copies between this host and the shared storage, which run in threads because a copy can be slow."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from dnas.cluster.database import Stopped
from dnas.executors.shared_storage import SharedStorage
from dnas.formatting import first_line

MAX_RETRY_SECONDS = 10.0  # longest pause between two attempts to reach the shared storage
NOTE_AFTER_SECONDS = 0.5  # pauses up to this length are not worth a note

T = TypeVar("T")


class Transfers:
    """Background copies to and from `shared`, at most `threads` at once.

    Errors of the shared storage are retried until `stop` is set. Leaving the context waits for the copies in progress.
    """

    def __init__(self, shared: SharedStorage, threads: int, stop: threading.Event, note: Callable[[str], None]) -> None:
        self.shared, self.stop, self.note = shared, stop, note
        self._pool = ThreadPoolExecutor(threads, "transfer")

    def close(self) -> None:
        self._pool.shutdown()

    def start(self, copy: Callable[[], T], cancelled: Callable[[], bool]) -> "Future[T]":
        """Run `copy` in a thread and retry it until it succeeds or `cancelled` returns True."""
        return self._pool.submit(self._retry, copy, cancelled)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files and folders from the shared storage in a thread."""
        self._pool.submit(self.remove_now, list(names))

    def remove_now(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(Exception):  # a file that remains is removed with its folder when the trial ends
                self.shared.remove(name)

    def _retry(self, copy: Callable[[], T], cancelled: Callable[[], bool]) -> T:
        pause, noted = 0.1, False
        while True:
            try:
                return copy()
            except Exception as error:  # each file system raises its own errors for a lost network
                if cancelled() or self.stop.is_set():
                    raise Stopped from None
                if not noted and pause > NOTE_AFTER_SECONDS:
                    self.note(f"cannot use {self.shared}; waiting ({first_line(error)})")
                    noted = True
            self.stop.wait(pause)
            pause = min(MAX_RETRY_SECONDS, 2 * pause)
