"""Several hosts without a scheduler: each runs `dnas worker`, and all meet in a database and a shared folder.

A worker process does two things. It carries: claims jobs, trains them in private scratch folders through an executor
of its host, and puts checkpoints and results into the shared folder. And it proposes, as long as it holds the
proposer's lease: then it alone runs the `Driver` of the study, in a thread, on a study folder whose every write goes to
the database first.

In the shared folder:
    STUDY/ID                                    of which study it is: all hosts see the same folder
    STUDY/checkpoints/KEY/EPOCH-ATTEMPT-WHO.pt  the last and the best of a training in progress
    STUDY/trials/KEY/ATTEMPT-WHO/               checkpoint.pt, curve.csv, norms.npz, traceback.txt of one that ended
    STUDY/records/KEY-EPOCHS.json               its record, put once
A name holds who wrote it, and the database says which count: what a worker puts after it lost its job, nobody reads.
"""

import json
import shutil
import tempfile
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import tomli_w

from dnas.data import Dataset, load_dataset
from dnas.errors import InputError
from dnas.executors.lease import LeaseLost, Watch
from dnas.executors.postgres import PostgresExecutor
from dnas.executors.shared_storage import Shared
from dnas.executors.worker import Job, Message
from dnas.formatting import percent, redact, several
from dnas.io import DiskFull, write_atomic
from dnas.search.driver import Driver, Executor, Outcome, Show, check_fits
from dnas.search.retrain import retrain_best
from dnas.search.state import ENDED
from dnas.storage import Beat, Stopped, Storage
from dnas.study.config import Options, check_objectives, data_arguments_of, frozen_inputs, objectives_of, space_of
from dnas.study.folder import StudyFolder, StudyHeld
from dnas.study.optuna_mirror import open_mirror
from dnas.study.record import TrialRecord

BEAT_SECONDS = 2.0
CLAIM_SECONDS = 0.25  # between two looks for a job, where there is a free slot
STEP_SECONDS = 2.0  # between two messages that say how far an epoch is
FAST_LOOK, SLOW_LOOK = 0.02, 0.2  # seconds that the carrier listens to its trainings: where one waits, or none
LONGEST_PAUSE = 10.0  # seconds between two attempts to reach the shared folder
FILES = ("checkpoint.pt", "curve.csv", "norms.npz", "traceback.txt")
ANY_NUMBER = 10**6  # of trainings at once: as many as the workers take
COMPLETE = "complete"

T = TypeVar("T")


class Display(Show, Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


# --- the study ----------------------------------------------------------------------------------------------------


class StoredStudy(StudyFolder):
    """A study folder whose truth is in a database: each write goes there first, and then into the local files."""

    def __init__(self, path: Path, storage: Storage, shared: Shared, note: Callable[[str], None]) -> None:
        super().__init__(path)
        self.storage, self.shared, self.note = storage, shared, note
        self._events = 0

    def sync(self) -> None:
        """Makes the local config, log and records what the database holds."""
        found = self.storage.read()
        if found is None:
            raise self.storage.missing()
        id, text, _ = found
        if self.exists and self.config().get("storage", {}).get("id") != id:
            raise InputError(
                f"{self.path} is another study than the {self.name} in {self.storage}; move it away, or start in"
                " another folder."
            )
        lines = self.storage.events()
        write_atomic(self.path / "study.toml", text)
        write_atomic(self.path / "events.jsonl", "".join(f"{line}\n" for line in lines))
        records = self.storage.records()
        for name, body in records.items():
            write_atomic(self.path / name, body)
        for path in (*self.path.glob("trials/*/record.json"), *self.path.glob("retrain/*/record.json")):
            if path.relative_to(self.path).as_posix() not in records:
                path.unlink()  # of a database that was set back
        self._events = len(lines)

    def now(self) -> str:
        return self.storage.now()

    def write_config(self, config: Mapping[str, Any]) -> None:
        self.storage.write_config(tomli_w.dumps(config, multiline_strings=True))
        super().write_config(config)

    def append(self, event: Mapping[str, Any]) -> None:
        line = self.storage.append(self._events, event)
        self._events += 1
        super().append(json.loads(line))  # its time comes with it

    def write_record(self, record: TrialRecord, folder: Path | None = None) -> None:
        folder = folder or self.trial_folder(record.number)
        key = None if record.state == "running" else folder.name
        body = record.to_json()
        self.storage.write_record((folder / "record.json").relative_to(self.path).as_posix(), body, key)
        super().write_record(record, folder)
        if record.state in ENDED:
            try:
                self.publish(record, folder.name)
            except Exception as error:  # the study's end tries again
                self.note(f"record {folder.name} could not be put into {self.shared}: {_line(error)}")

    def publish(self, record: TrialRecord, key: str) -> None:
        """Puts an ended trial's record into the shared folder, where there is none of it."""
        name = f"{self.name}/records/{key}-{record.epochs_planned}.json"
        if self.shared.create(name, record.to_json().encode()):
            return
        there = TrialRecord.from_json(self.shared.read(name) or b"{}")
        if (there.state, there.digest, there.weights_digest) != (record.state, record.digest, record.weights_digest):
            self.note(f"{self.shared} holds another record of {key}, {there.state}; the one in the database counts")

    def clear_up(self) -> None:
        """At the end: every record is in the shared folder, and no checkpoint but those of paused trials."""
        ended = {str(record.number): record for record in self.records() if record.state in ENDED}
        ended |= {path.name: record for path, record in self.retrained() if record.state in ENDED}
        there = set(self.shared.names(f"{self.name}/records"))
        for key, record in ended.items():
            if f"{key}-{record.epochs_planned}.json" not in there:
                self.publish(record, key)
        for key in self.storage.checkpointed():
            if key in ended:
                self.shared.remove(f"{self.name}/checkpoints/{key}")
                self.storage.forget_checkpoints(key)

    def pull(self) -> None:
        """Rebuilds the folder: what the database holds, and the files of every training that ended."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.sync()
        for key, name in self.storage.results().items():
            folder = self.path / ("retrain" if "-" in key else "trials") / key
            mark = folder / ".from"  # which of its results this one is
            if mark.exists() and mark.read_text() == name:
                continue
            there = self.shared.names(name)
            for file in FILES:
                if file not in there or not self.shared.get(f"{name}/{file}", folder / file):
                    (folder / file).unlink(missing_ok=True)
            write_atomic(mark, name)


def begin(storage: Storage, shared: Shared, options: Options, device: str, note: Callable[[str], None]) -> None:
    """Begins the study in the database, unless another host has by now."""
    data = load_dataset(**options.data, progress=note)
    space = options.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    check_fits(space)
    check_objectives(space, options.objectives)
    id = uuid.uuid4().hex
    config = frozen_inputs(options, space, data.describe(), device)
    config["data"]["root"] = ""  # each host has its own
    config["created"] = storage.now()
    config["retrain"] = {"best": options.retrain, "seeds": options.retrain_seeds}
    secret = redact(shared.address) != shared.address
    config["storage"] = {"id": id, "shared": "" if secret else shared.address}
    shared.write(f"{options.study}/{id}", b"")  # before the study is there: it is never without
    storage.create(id, tomli_w.dumps(config, multiline_strings=True))


def read_config(storage: Storage) -> dict[str, Any]:
    found = storage.read()
    if found is None:
        raise storage.missing()
    return tomllib.loads(found[1])


def shared_of(config: Mapping[str, Any], given: str | None) -> Shared:
    """The shared folder of a study in a database, as this host sees it; `InputError` where it is another one."""
    name, id = config["name"], config["storage"]["id"]
    address = given or config["storage"]["shared"]
    if not address:
        raise InputError(f"the address of the shared folder of {name} holds a secret, so give it: --shared URL.")
    shared = Shared(address)
    shared.check()
    if shared.read(f"{name}/{id}") is None:
        raise InputError(
            f"{shared} is not the shared folder of study {name}, which lies at"
            f" {config['storage']['shared'] or 'an address that holds a secret'}; all hosts must see the same one."
        )
    return shared


def options_of(config: Mapping[str, Any], own: Options) -> Options:
    """The study as it was begun, on this host. own: what is the host's (data root, device, timeout, mirror)."""
    return replace(
        own,
        space=space_of(config),
        study=config["name"],
        trials=config["trials"],
        data=data_arguments_of(config) | {"data_root": own.data["data_root"]},
        seed=config["seed"],
        objectives=objectives_of(config),
        sampler=config["sampler"],
        control=config["control"],
        stopping=config["stopping"],
        workers=ANY_NUMBER,
        threads=config["threads"],
        retrain=config["retrain"]["best"],
        retrain_seeds=config["retrain"]["seeds"],
        command=config["command"],
    )


def load_data(config: Mapping[str, Any], options: Options, note: Callable[[str], None]) -> Dataset:
    """This host's copy of the study's data; `InputError` where it is another."""
    data = load_dataset(**options.data, progress=note)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise InputError(
            f"{data.title} on this host has other files than study {config['name']} was begun with (fingerprint"
            f" {data.fingerprint}, not {config['data']['fingerprint']}); give it the same data: --data-root."
        )
    return data


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
        options: Options,
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
        data = plain["data"] | {"data_root": self.options.data["data_root"]}
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


def _line(error: BaseException) -> str:
    return redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
