"""`dnas worker`: a host that runs jobs of a shared study and may propose networks for it."""

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from dnas.cluster import jobs, proposer
from dnas.cluster.database import Stopped
from dnas.cluster.executor import PostgresExecutor
from dnas.cluster.jobs import Heartbeat
from dnas.cluster.local_jobs import LocalJobs
from dnas.cluster.study import StoredStudy
from dnas.cluster.transfers import Transfers
from dnas.data import Dataset
from dnas.executors.lease import LeaseLost
from dnas.executors.process import Message
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.formatting import percent, several
from dnas.strategy.driver import Driver
from dnas.strategy.run import search_and_retrain
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyHeld

BEAT_SECONDS = 2.0
COMPLETE = "complete"


class Display(Show, Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Worker:
    """Worker of one host, which runs jobs of a study and proposes networks while it owns the proposer's lease.

    Args:
        folder: the study.
        options: the study's options on this host.
        data: this host's copy of the study's data.
        show: display of the progress.
        executor: runs the jobs on this host.
        slots: number of jobs that run at once.
        beat_seconds: interval between two heartbeats (default: 2 s).
    """

    def __init__(
        self,
        folder: StoredStudy,
        options: SearchConfig,
        data: Dataset,
        show: Display,
        executor: Executor,
        slots: int,
        *,
        beat_seconds: float | None = None,
    ) -> None:
        self.folder, self.options, self.data, self.show = folder, options, data, show
        self.database, self.executor, self.slots = folder.database, executor, slots
        self.beat_seconds = beat_seconds or BEAT_SECONDS
        self.outcome: Outcome | None = None  # set if this worker proposed last
        self.trained = 0
        self._last_beat = 0.0, Heartbeat({}, False, None)  # monotonic time at its start, and its result
        self._done = ""
        self._failure: BaseException | None = None

    def run(self) -> str:
        """Run jobs and propose until the study is done; return how it ended.

        KeyboardInterrupt returns the jobs to the queue.
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        stop = self.database.stop
        with (
            tempfile.TemporaryDirectory(prefix="dnas-", ignore_cleanup_errors=True) as scratch,
            closing(Transfers(self.folder.shared, self.slots, stop, self.show.note)) as transfers,
        ):
            root = self.options.run.data["data_root"]
            local_jobs = LocalJobs(
                self.folder, self.executor, self.slots, root, Path(scratch), transfers, self._report_end
            )
            self._last_beat = time.monotonic(), jobs.beat(self.database, self.slots)
            # Heartbeats have their own thread, so that a slow disk or fork server does not let the leases expire.
            self._start_thread("heartbeat", self._send_heartbeats)
            proposer_thread = self._start_thread("proposer", self._propose_when_free)
            try:
                while not self._done and self._failure is None:
                    began, heartbeat = self._last_beat
                    self._done = heartbeat.done or ""
                    local_jobs.apply(began, heartbeat)
                    local_jobs.step()
                proposer_thread.join()  # it may be updating the local folder
                if self._failure is not None:
                    raise self._failure
            finally:
                stop.set()
                local_jobs.drop_all()
                self.executor.stop()
                jobs.leave(self.database)  # from here on the proposer thread cannot write
                proposer_thread.join(5.0)
        return self._done

    # --- threads --------------------------------------------------------------------------------------------------

    def _start_thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run_thread, args=(work,), name=name, daemon=True)
        thread.start()
        return thread

    def _run_thread(self, work: Callable[[], None]) -> None:
        """Run `work` and store its error, which the main thread raises."""
        try:
            work()
        except Stopped:
            return
        except BaseException as error:
            self._failure = error

    def _send_heartbeats(self) -> None:
        while not self.database.stop.wait(self.beat_seconds):
            self._last_beat = time.monotonic(), jobs.beat(self.database, self.slots)

    # --- display --------------------------------------------------------------------------------------------------

    def _report_end(self, key: str, message: Message) -> None:
        """Count and show a job that ended on this host."""
        if message.kind == "done":
            self.trained += 1
        if self._last_beat[1].proposes:
            return  # the driver shows every trial
        values = message.values
        if message.kind == "done":
            text = f"{percent(values['val_error'])}  {several(values['epochs'], 'epoch')}  {values['seconds']:.1f} s"
        else:
            text = values.get("text", "")
        self.show.note(f"{'trained' if message.kind == 'done' else message.kind}  #{key}  {text}")

    # --- proposing ------------------------------------------------------------------------------------------------

    def _propose_when_free(self) -> None:
        """Propose as soon as the proposer's lease is free, until the study is done."""
        while not self.database.stop.is_set() and not self._done:
            if proposer.take_lease(self.database):
                try:
                    self._propose()
                    return
                except LeaseLost:
                    self.show.note("another host proposes now; this one continues training")
                except StudyHeld as error:  # another worker in the same folder, which may propose instead
                    proposer.release_lease(self.database)
                    self.show.note(str(error))
                    self.database.stop.wait(self.database.expiry_seconds)
            self.database.stop.wait(self.beat_seconds)

    def _propose(self) -> None:
        folder, options = self.folder, self.options
        with folder.lock(), self.show:
            folder.sync()
            driver = Driver(folder, options, options.space, self.data.describe(), self.show)
            driver.open()
            outcome = search_and_retrain(driver, self.data, PostgresExecutor(self.database))
            folder.clear_up()
            proposer.finish_study(self.database, outcome.stopped_by or COMPLETE)
            folder.pull()
            self.outcome = outcome
