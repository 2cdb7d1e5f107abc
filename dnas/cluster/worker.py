"""`dnas worker`: a host that trains for a shared study, and may propose for it."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from dnas.cluster.database import Beat, Stopped
from dnas.cluster.executor import PostgresExecutor
from dnas.cluster.study import FILES, StoredStudy, _line
from dnas.data import Dataset
from dnas.executors.lease import LeaseLost, Watch
from dnas.executors.worker import Job, Message
from dnas.formatting import percent, several
from dnas.io import DiskFull
from dnas.search.driver import Driver, Executor, Outcome, Show
from dnas.search.retrain import retrain_best
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyHeld
from dnas.study.optuna_mirror import open_mirror

BEAT_SECONDS = 2.0
CLAIM_SECONDS = 0.25  # between two looks for a job, where there is a free slot
STEP_SECONDS = 2.0  # between two messages that say how far an epoch is
FAST_LOOK, SLOW_LOOK = 0.02, 0.2  # seconds that the carrier listens to its trainings: where one waits, or none
LONGEST_PAUSE = 10.0  # seconds between two attempts to reach the shared folder
COMPLETE = "complete"

T = TypeVar("T")


class Display(Show, Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


# --- a worker -----------------------------------------------------------------------------------------------------


@dataclass
class _Carried:
    """A job of this worker: when it was claimed, by the monotonic clock; the last epoch whose checkpoint is shared; the
    epoch whose answer its training waits for; the transfer in progress, and what follows it."""

    job: Job
    attempt: int
    claimed: float
    watch: Watch
    epoch: int = 0
    asked: int | None = None
    transfer: Future[Any] | None = None
    then: Callable[[Any], None] = lambda result: None
    held: bool = False  # it is on this host and waits for room
    dropped: bool = False  # it is another's now
    putting: tuple[str, ...] = ()  # what the transfer in progress puts into the shared folder
    said_step: float = -float("inf")


class Worker:
    """One host's part in a study. executor: carries the trainings on this host. slots: how many at once.

    `run` returns when the study is done. KeyboardInterrupt gives the jobs back.
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
        self.storage, self.shared, self.executor, self.slots = folder.storage, folder.shared, executor, slots
        self.beat_seconds = beat_seconds or BEAT_SECONDS
        self.outcome: Outcome | None = None  # where this worker proposed last
        self.trained = 0
        self._carried: dict[str, _Carried] = {}
        self._claim_at = -float("inf")
        self._beat = 0.0, Beat({}, False, None)
        self._proposes, self._done = False, ""
        self._failure: BaseException | None = None

    def run(self) -> str:
        """Carries and proposes until the study is done; how it ended."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix="dnas-", ignore_cleanup_errors=True) as scratch,
            ThreadPoolExecutor(self.slots, "transfer") as self._pool,
        ):
            self._scratch = Path(scratch)
            self._beat = time.monotonic(), self.storage.beat(self.slots)
            # A thread of its own: whatever the others wait for (a disk, a server of processes), this host lives.
            threading.Thread(target=self._or_fail, args=(self._keep_alive,), name="heartbeat", daemon=True).start()
            proposer = threading.Thread(
                target=self._or_fail, args=(self._propose_when_free,), name="proposer", daemon=True
            )
            proposer.start()
            try:
                while not self._done and self._failure is None:
                    self._carry()
                proposer.join()  # it may bring the local folder up to date
                if self._failure is not None:
                    raise self._failure
            finally:
                self.storage.stop.set()
                for key in list(self._carried):
                    self._drop(key)
                self.executor.stop()
                self.storage.leave()  # at once: the proposer can write nothing from now on
                proposer.join(5.0)
        return self._done

    # carrying

    def _carry(self) -> None:
        """One turn: what the last heartbeat found, a claim, answers, and what the trainings say."""
        now = time.monotonic()
        self._heed(*self._beat)
        if len(self._carried) < self.slots and now - self._claim_at >= CLAIM_SECONDS:
            if (found := self.storage.claim(self._carried)) is not None:
                self._take(*found)
            else:
                self._claim_at = now
        for key, carried in list(self._carried.items()):
            if carried.transfer is not None and carried.transfer.done():
                self._after_transfer(key, carried)
            elif carried.held:
                self._begin_training(key, carried)
        if any(carried.asked is not None for carried in self._carried.values()):
            self._pass_answers()
        busy = any(carried.asked is not None or carried.transfer for carried in self._carried.values())
        if not self.executor.running:
            time.sleep(FAST_LOOK if busy else min(SLOW_LOOK, CLAIM_SECONDS))
            return
        for key, message in self.executor.wait(FAST_LOOK if busy else SLOW_LOOK):
            self._hear(key, message)

    def _keep_alive(self) -> None:
        while not self.storage.stop.wait(self.beat_seconds):
            self._beat = time.monotonic(), self.storage.beat(self.slots)

    def _or_fail(self, work: Callable[[], None]) -> None:
        """A thread: what ends it, ends the worker."""
        try:
            work()
        except Stopped:
            return
        except BaseException as error:  # the main thread raises it
            self._failure = error

    def _heed(self, began: float, beat: Beat) -> None:
        """Ends what a heartbeat that began at `began` did not find any more, and what is frozen."""
        self._proposes, self._done = beat.proposes, beat.done or ""
        for key, carried in list(self._carried.items()):
            if carried.claimed < began and beat.jobs.get(key) != carried.attempt:
                self._drop(key)
            elif key in self.executor.running and carried.watch.silent(time.monotonic()):
                self.executor.kill(key)
                self._say_end(key, Message("lost", {"text": "its process gave no sign of life"}), None)

    def _take(self, key: str, attempt: int, plain: dict[str, Any]) -> None:
        folder = self._scratch / f"{key}-{attempt}"
        data = plain["data"] | {"data_root": self.options.run.data["data_root"]}
        job = Job(**plain | {"folder": str(folder), "data": data, "seed": tuple(plain["seed"])})
        carried = _Carried(job, attempt, time.monotonic(), Watch(folder, time.monotonic()))
        self._carried[key] = carried
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if (found := self.storage.checkpoint(key, job.recipe["epochs"])) is None:
            self._begin_training(key, carried)
            return
        epoch, name = found

        def fetched(there: bool) -> None:
            if not there:
                self.show.note(f"{name} is missing in {self.shared}; #{key} begins anew")
            carried.epoch = epoch if there else 0
            self._begin_training(key, carried)

        self._transfer(carried, lambda: self.shared.get(name, folder / "checkpoint.pt"), fetched)

    def _begin_training(self, key: str, carried: _Carried) -> None:
        carried.held = not self.executor.room(carried.job)
        if not carried.held:
            self.executor.start(carried.job)

    def _transfer(self, carried: _Carried, move: Callable[[], T], then: Callable[[T], None], *putting: str) -> None:
        """Has a thread move files, which can take long; `then` follows in a later turn."""
        carried.transfer, carried.then, carried.putting = (
            self._pool.submit(self._patiently, carried, move),
            then,
            putting,
        )

    def _patiently(self, carried: _Carried, move: Callable[[], T]) -> T:
        """What `move` gives, as soon as the shared folder lets it."""
        pause, said = 0.1, False
        while True:
            try:
                return move()
            except Exception as error:  # each file system has its own for a network that is away
                if carried.dropped or self.storage.stop.is_set():
                    raise Stopped from None
                if not said and pause > 0.5:
                    self.show.note(f"{self.shared} can't be used; waiting ({_line(error)})")
                    said = True
            self.storage.stop.wait(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _after_transfer(self, key: str, carried: _Carried) -> None:
        assert carried.transfer is not None
        result, carried.transfer = carried.transfer.result(), None
        try:
            carried.then(result)
            carried.putting = ()
        except LeaseLost:
            self._drop(key)

    def _hear(self, key: str, message: Message) -> None:
        carried = self._carried[key]
        try:
            match message.kind:
                case "step":
                    if time.monotonic() - carried.said_step >= STEP_SECONDS:
                        carried.said_step = time.monotonic()
                        self.storage.say(key, carried.attempt, "step", message.values)
                case "epoch":
                    self._share_epoch(key, carried, message)
                case "failed" if message.values["reason"] == "disk full":
                    raise DiskFull(message.values["text"])  # of this host: others go on with it
                case "done" | "failed":
                    self._share_result(key, carried, message)
                case "lost":
                    self._say_end(key, message, None)
                case _:
                    self.storage.say(key, carried.attempt, message.kind, message.values | {"host": self.storage.host})
        except LeaseLost:
            self._drop(key)

    def _mark(self, carried: _Carried) -> str:
        return f"{carried.attempt}-{self.storage.owner[:8]}"

    def _share_epoch(self, key: str, carried: _Carried, message: Message) -> None:
        """Puts the checkpoint of an epoch into the shared folder, and then tells the proposer of it."""
        row, path = message.values, Path(carried.job.folder) / "checkpoint.pt"
        epoch = row["epoch"]
        if epoch <= carried.epoch or not path.exists():
            self.storage.say(key, carried.attempt, "epoch", row)
            carried.asked = epoch
            return
        name = f"{self.folder.name}/checkpoints/{key}/{epoch}-{self._mark(carried)}.pt"

        def tell(_: object) -> None:
            checkpoint = carried.job.recipe["epochs"], epoch, name, row["val_error"]
            stale = self.storage.say(key, carried.attempt, "epoch", row, checkpoint=checkpoint)
            carried.epoch, carried.asked = epoch, epoch
            self._pool.submit(self._remove, stale)

        self._may_write(key, carried)
        self._transfer(carried, lambda: self.shared.put(name, path), tell, name)

    def _share_result(self, key: str, carried: _Carried, message: Message) -> None:
        folder, name = Path(carried.job.folder), f"{self.folder.name}/trials/{key}/{self._mark(carried)}"

        def put() -> None:
            for file in FILES:
                if (folder / file).exists():
                    self.shared.put(f"{name}/{file}", folder / file)

        self._may_write(key, carried)
        self._transfer(carried, put, lambda _: self._say_end(key, message, name), name)

    def _may_write(self, key: str, carried: _Carried) -> None:
        if not self.storage.holds(key, carried.attempt):
            raise LeaseLost(f"job {key} is another's")

    def _say_end(self, key: str, message: Message, result: str | None) -> None:
        carried = self._carried.pop(key)
        shutil.rmtree(carried.job.folder, ignore_errors=True)
        finished = bool(message.values.get("finished"))
        try:
            stale = self.storage.say(
                key, carried.attempt, message.kind, message.values, ends=True, result=result, finished=finished
            )
        except LeaseLost:
            self._pool.submit(self._remove, list(carried.putting))
            return
        folder = [f"{self.folder.name}/checkpoints/{key}"] if finished else []
        self._pool.submit(self._remove, stale + folder)
        self._report(key, message)

    def _report(self, key: str, message: Message) -> None:
        if message.kind == "done":
            self.trained += 1
        if self._proposes:
            return  # who proposes shows every trial
        values = message.values
        if message.kind == "done":
            how = f"{percent(values['val_error'])}  {several(values['epochs'], 'epoch')}  {values['seconds']:.1f} s"
        else:
            how = values.get("text", "")
        self.show.note(f"{'trained' if message.kind == 'done' else message.kind}  #{key}  {how}")

    def _remove(self, names: list[str]) -> None:
        for name in names:
            with suppress(Exception):  # what is left goes with the folder, at the trial's end
                self.shared.remove(name)

    def _pass_answers(self) -> None:
        held = self.storage.held()
        for key, carried in list(self._carried.items()):
            if carried.asked is None:
                continue
            attempt, answered, go_on = held.get(key, (None, None, None))
            if attempt != carried.attempt:
                self._drop(key)
            elif answered == carried.asked:
                carried.asked = None
                self.executor.answer(key, bool(go_on))

    def _drop(self, key: str) -> None:
        """Ends a training that is not this worker's any more."""
        carried = self._carried.pop(key)
        carried.dropped = True
        if key in self.executor.running:
            self.executor.kill(key)
        names = list(carried.putting)
        if names and carried.transfer is not None:
            carried.transfer.add_done_callback(lambda _: self._remove(names))
        elif names:
            self._pool.submit(self._remove, names)
        shutil.rmtree(carried.job.folder, ignore_errors=True)

    # proposing

    def _propose_when_free(self) -> None:
        while not self.storage.stop.is_set() and not self._done:
            if self.storage.take_lease():
                try:
                    self._propose()
                    return
                except LeaseLost:
                    self.show.note("another host proposes now; this one goes on training")
                except StudyHeld as error:  # by another worker in this very folder: that one may
                    self.storage.release_lease()
                    self.show.note(str(error))
                    self.storage.stop.wait(self.storage.expiry_seconds)
            self.storage.stop.wait(self.beat_seconds)

    def _propose(self) -> None:
        folder, options = self.folder, self.options
        with folder.lock(), self.show:
            folder.sync()
            driver = Driver(
                folder, options, options.space, self.data.describe(), self.show, PostgresExecutor(self.storage)
            )
            driver.open()
            with open_mirror(folder, options.mirror, self.show.note):
                outcome = driver.run()
                if outcome.stopped_by is None and options.retrain:
                    outcome.stopped_by = retrain_best(driver, self.data)
            folder.clear_up()
            self.storage.finish(outcome.stopped_by or COMPLETE)
            folder.pull()
            self.outcome = outcome
