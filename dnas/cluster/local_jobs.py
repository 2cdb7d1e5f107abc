"""Claimed jobs of a worker: start them, share their files, send their messages and pass answers to them."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dnas.cluster import jobs
from dnas.cluster.jobs import Heartbeat, StoredCheckpoint
from dnas.cluster.study import FILES, StoredStudy
from dnas.cluster.transfers import Transfers
from dnas.executors.lease import LeaseLost, Watch
from dnas.executors.process import Job, Message
from dnas.executors.protocol import Executor
from dnas.io import DiskFull

CLAIM_SECONDS = 0.25  # pause between two attempts to claim a job for a free slot
STEP_SECONDS = 2.0  # shortest time between two messages about the progress within an epoch
BUSY_WAIT_SECONDS, IDLE_WAIT_SECONDS = 0.02, 0.2  # time to wait for messages while a job needs attention, or none does

T = TypeVar("T")


@dataclass
class LocalJob:
    """A job of this worker.

    Attributes:
        claimed: monotonic time of the claim.
        watch: monitor of the heartbeat of the job's process.
        epoch: last epoch whose checkpoint is in the shared storage.
        asked: epoch for which the process waits for an answer.
        transfer: copy in progress.
        then: function to call with the result of the copy.
        uploading: names in the shared storage that the copy in progress writes.
        waits_for_room: whether the executor has had no room for it yet.
        dropped: whether it no longer belongs to this worker.
        step_sent: monotonic time of the last message about the progress within an epoch.
    """

    job: Job
    attempt: int
    claimed: float
    watch: Watch
    epoch: int = 0
    asked: int | None = None
    transfer: Future[Any] | None = None
    then: Callable[[Any], None] = lambda result: None
    uploading: tuple[str, ...] = ()
    waits_for_room: bool = False
    dropped: bool = False
    step_sent: float = -float("inf")


class LocalJobs:
    """The claimed jobs of one worker, driven by repeated calls of `step`.

    Args:
        study: the study, with its database and shared storage.
        executor: runs the jobs on this host.
        slots: number of jobs that run at once.
        data_root: folder of the data sets on this host.
        scratch: folder for the jobs' working files.
        transfers: copies to and from the shared storage.
        on_end: called with the key and the last message of each job that ends.
    """

    def __init__(
        self,
        study: StoredStudy,
        executor: Executor,
        slots: int,
        data_root: Path | None,
        scratch: Path,
        transfers: Transfers,
        on_end: Callable[[str, Message], None],
    ) -> None:
        self.study, self.database, self.executor, self.slots = study, study.database, executor, slots
        self.data_root, self.scratch, self.transfers, self.on_end = data_root, scratch, transfers, on_end
        self._jobs: dict[str, LocalJob] = {}
        self._claim_failed = -float("inf")  # monotonic time of the last claim that found no job

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Claim a job, finish copies, pass on answers, and handle the messages of the running jobs."""
        self._claim()
        for key, local in list(self._jobs.items()):
            if local.transfer is not None and local.transfer.done():
                self._finish_transfer(key, local)
            elif local.waits_for_room:
                self._start(local)
        if any(local.asked is not None for local in self._jobs.values()):
            self._pass_answers()
        busy = any(local.asked is not None or local.transfer for local in self._jobs.values())
        if not self.executor.running:
            time.sleep(BUSY_WAIT_SECONDS if busy else min(IDLE_WAIT_SECONDS, CLAIM_SECONDS))
            return
        for key, message in self.executor.wait(BUSY_WAIT_SECONDS if busy else IDLE_WAIT_SECONDS):
            self._handle(key, message)

    def apply(self, began: float, heartbeat: Heartbeat) -> None:
        """Stop frozen jobs, and jobs that are missing from a heartbeat. began: monotonic time at its start."""
        for key, local in list(self._jobs.items()):
            if local.claimed < began and heartbeat.jobs.get(key) != local.attempt:
                self._drop(key)
            elif key in self.executor.running and local.watch.silent(time.monotonic()):
                self.executor.kill(key)
                self._end(key, Message("lost", {"text": "no heartbeat from its process"}), None)

    def drop_all(self) -> None:
        for key in list(self._jobs):
            self._drop(key)

    # --- starting -------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        now = time.monotonic()
        if len(self._jobs) >= self.slots or now - self._claim_failed < CLAIM_SECONDS:
            return
        claimed = jobs.claim(self.database, self._jobs)
        if claimed is None:
            self._claim_failed = now
        else:
            self._prepare(*claimed)

    def _prepare(self, key: str, attempt: int, values: dict[str, Any]) -> None:
        """Start a claimed job, after its furthest checkpoint has been fetched."""
        folder = self.scratch / f"{key}-{attempt}"
        data = values["data"] | {"data_root": self.data_root}
        job = Job(**values | {"folder": str(folder), "data": data, "seed": tuple(values["seed"])})
        local = LocalJob(job, attempt, time.monotonic(), Watch(folder, time.monotonic()))
        self._jobs[key] = local
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        checkpoint = jobs.furthest_checkpoint(self.database, key, job.recipe["epochs"])
        if checkpoint is None:
            self._start(local)
            return
        epoch, name = checkpoint

        def start(exists: bool) -> None:
            if not exists:
                self.study.note(f"{name} is missing in {self.study.shared}; #{key} restarts from its first epoch")
            local.epoch = epoch if exists else 0
            self._start(local)

        self._transfer(local, lambda: self.study.shared.get(name, folder / "checkpoint.pt"), start)

    def _start(self, local: LocalJob) -> None:
        local.waits_for_room = not self.executor.room(local.job)
        if not local.waits_for_room:
            self.executor.start(local.job)

    # --- copies ---------------------------------------------------------------------------------------------------

    def _transfer(self, local: LocalJob, copy: Callable[[], T], then: Callable[[T], None], *uploading: str) -> None:
        """Start a copy; a later step calls `then` with its result."""
        transfer = self.transfers.start(copy, lambda: local.dropped)
        local.transfer, local.then, local.uploading = transfer, then, uploading

    def _finish_transfer(self, key: str, local: LocalJob) -> None:
        assert local.transfer is not None
        result, local.transfer = local.transfer.result(), None
        try:
            local.then(result)
            local.uploading = ()
        except LeaseLost:
            self._drop(key)

    # --- messages -------------------------------------------------------------------------------------------------

    def _handle(self, key: str, message: Message) -> None:
        local = self._jobs[key]
        try:
            match message.kind:
                case "step":
                    if time.monotonic() - local.step_sent >= STEP_SECONDS:
                        local.step_sent = time.monotonic()
                        jobs.send(self.database, key, local.attempt, "step", message.values)
                case "epoch":
                    self._share_epoch(key, local, message)
                case "failed" if message.values["reason"] == "disk full":
                    raise DiskFull(message.values["text"])  # only this host's; the job continues on another
                case "done" | "failed":
                    self._share_result(key, local, message)
                case "lost":
                    self._end(key, message, None)
                case _:
                    values = message.values | {"host": self.database.host}
                    jobs.send(self.database, key, local.attempt, message.kind, values)
        except LeaseLost:
            self._drop(key)

    def _share_epoch(self, key: str, local: LocalJob, message: Message) -> None:
        """Upload the checkpoint of an epoch, and then send the epoch to the proposer."""
        row, path = message.values, Path(local.job.folder) / "checkpoint.pt"
        epoch = row["epoch"]
        if epoch <= local.epoch or not path.exists():
            jobs.send(self.database, key, local.attempt, "epoch", row)
            local.asked = epoch
            return
        name = f"{self.study.name}/checkpoints/{key}/{epoch}-{self._suffix(local)}.pt"

        def send(_: object) -> None:
            checkpoint = StoredCheckpoint(local.job.recipe["epochs"], epoch, name, row["val_error"])
            stale = jobs.send(self.database, key, local.attempt, "epoch", row, checkpoint=checkpoint)
            local.epoch, local.asked = epoch, epoch
            self.transfers.remove(stale)

        self._check_held(key, local)
        self._transfer(local, lambda: self.study.shared.put(name, path), send, name)

    def _share_result(self, key: str, local: LocalJob, message: Message) -> None:
        """Upload the files of an ended job, and then send its result to the proposer."""
        folder, name = Path(local.job.folder), f"{self.study.name}/trials/{key}/{self._suffix(local)}"

        def upload() -> None:
            for file in FILES:
                if (folder / file).exists():
                    self.study.shared.put(f"{name}/{file}", folder / file)

        self._check_held(key, local)
        self._transfer(local, upload, lambda _: self._end(key, message, name), name)

    def _suffix(self, local: LocalJob) -> str:
        """Return the part of a file's name that is unique to this attempt and this worker."""
        return f"{local.attempt}-{self.database.owner[:8]}"

    def _check_held(self, key: str, local: LocalJob) -> None:
        if not jobs.holds(self.database, key, local.attempt):
            raise jobs.lost_job(self.database, key)

    def _pass_answers(self) -> None:
        """Pass the proposer's answers on to the processes that wait for them."""
        held = jobs.held_jobs(self.database)
        for key, local in list(self._jobs.items()):
            if local.asked is None:
                continue
            attempt, answered, go_on = held.get(key, (None, None, None))
            if attempt != local.attempt:
                self._drop(key)
            elif answered == local.asked:
                local.asked = None
                self.executor.answer(key, bool(go_on))

    # --- ending ---------------------------------------------------------------------------------------------------

    def _end(self, key: str, message: Message, result: str | None) -> None:
        """Send a job's last message. result: folder in the shared storage with its files."""
        local = self._jobs.pop(key)
        shutil.rmtree(local.job.folder, ignore_errors=True)
        finished = bool(message.values.get("finished"))
        try:
            stale = jobs.send(
                self.database,
                key,
                local.attempt,
                message.kind,
                message.values,
                ends=True,
                result=result,
                finished=finished,
            )
        except LeaseLost:
            self.transfers.remove(local.uploading)
            return
        folder = [f"{self.study.name}/checkpoints/{key}"] if finished else []
        self.transfers.remove(stale + folder)
        self.on_end(key, message)

    def _drop(self, key: str) -> None:
        """Stop a job that no longer belongs to this worker, and remove what it was uploading."""
        local = self._jobs.pop(key)
        local.dropped = True
        if key in self.executor.running:
            self.executor.kill(key)
        names = list(local.uploading)
        if names and local.transfer is not None:
            local.transfer.add_done_callback(lambda _: self.transfers.remove_now(names))
        elif names:
            self.transfers.remove(names)
        shutil.rmtree(local.job.folder, ignore_errors=True)
