"""Run trials through an executor: event loop, message handling and failure policy.

A search proposes the next network from the results so far; a batch knows its runs beforehand. Everything else is shared
and lives here.
"""

import math
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.errors import InputError
from dnas.executors.job import make_job
from dnas.executors.lease import Watch
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.executors.worker import Job, Message
from dnas.io import DiskFull
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.study.provenance import versions
from dnas.study.record import TrialRecord
from dnas.training.defaults import DEFAULT_KERNELS

SAME_ERRORS = 3  # so many identical errors in a row stop the search
LOOK_SECONDS = 0.5  # between two looks for what takes too long
LOST_WORKERS = 5  # so often a trial whose process died is gone on with before it has finished another epoch
CRASHES = 2  # deaths by one signal such as SIGSEGV after which a trial fails: its network would crash again


@dataclass
class _Running:
    """A training in progress: when it was started, by the executor's clock, and the seconds that it had before; and a
    look at its worker's heartbeat."""

    since: float
    before: float
    watch: Watch


class Trainings:
    """The trainings of one study. What a subclass decides: which is next, whether one goes on after an epoch, and what
    a result means."""

    folder: StudyFolder
    run_config: RunConfig
    show: Show
    executor: Executor
    records: dict[int, TrialRecord]  # where a training is not known by its trial's number, its key and `_record` differ
    waiting: deque[TrialRecord]  # what was interrupted: before anything new

    def __init__(self) -> None:
        self.records, self.waiting = {}, deque()
        self._running: dict[str, _Running] = {}
        self._stuck: dict[str, tuple[int, int]] = {}  # key -> (epochs it had, losses since)
        self._crashes: dict[str, list[str]] = {}  # key -> the text of each crash
        self._errors: list[str] = []
        self._kernels: str | None = None
        self._looked = -math.inf  # when what is overdue was looked for, by the executor's clock

    # --- what differs ---------------------------------------------------------------------------------------------

    def _next(self, outcome: Outcome) -> TrialRecord | None:
        """What is to be trained next, or nothing now."""
        raise NotImplementedError

    def _on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        """Takes in one epoch: a new one, or one of its checkpoint that a worker repeats. Whether it goes on."""
        raise NotImplementedError

    def _finish(self, record: TrialRecord, values: dict[str, Any]) -> None:
        """Takes in a result; ends with `_end`, or with `_leave` where the trial may go on later."""
        raise NotImplementedError

    def emit(self, event: Mapping[str, Any]) -> None:
        """Notes what happened in the study's log, where it has one."""

    def _record(self, key: str) -> TrialRecord:
        return self.records[int(key)]

    def _key(self, record: TrialRecord) -> str:
        """What the executor calls the training of a record."""
        return str(record.number)

    def _path(self, record: TrialRecord) -> Path:
        """The folder of a training's files."""
        return self.folder.trial_folder(record.number)

    def _job(self, record: TrialRecord) -> Job:
        return make_job(self.run_config, record, self._path(record), self._key(record))

    def _on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None:
        """Takes in what a worker found out before it began to train."""

    def _emit_tell(self, record: TrialRecord) -> None:
        """Notes the end of a trial, whose record is written."""

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        outcome = Outcome(0)
        self._check_kernels()
        while True:
            while outcome.stopped_by is None and len(self.executor.running) < self._most():
                record = self._next(outcome)
                if record is None:
                    break
                if not self.executor.room(self._job(record)):
                    self.waiting.appendleft(record)
                    break
                self._start(record)
            if not self.executor.running:
                break
            for key, message in self.executor.wait(timeout=1.0):
                if key in self._running:  # else an earlier message of this batch has ended it
                    self._hear(self._record(key), message, outcome)
            self._end_overdue(outcome)
        outcome.trials = len(self.records)
        return outcome

    def _most(self) -> int:
        return min(self.run_config.workers, self.executor.workers)

    def _start(self, record: TrialRecord) -> None:
        record.started = record.started or self.folder.now()
        record.attempts += 1
        record.threads = self.run_config.threads
        record.kernels = record.kernels or self._settled_kernels(record)
        self._write(record)
        clock = self.executor.clock()
        self._running[self._key(record)] = _Running(clock, record.seconds, Watch(self._path(record), clock))
        self.executor.start(self._job(record))
        self.show.began(record)

    def _settled_kernels(self, record: TrialRecord) -> str:
        """The study's kernels. `auto` is settled by the first training, on its network, and written into study.toml:
        what goes on later must be the same bit for bit."""
        if self._kernels is None:
            asked = self.run_config.kernels or DEFAULT_KERNELS
            self._kernels = self._measured_kernels(record) if asked == "auto" else asked
            self.folder.write_config(self.folder.config() | {"kernels": self._kernels})
        return self._kernels

    def _measured_kernels(self, record: TrialRecord) -> str:
        from dnas.nn import resolve_kernels
        from dnas.training.devices import list_devices

        try:
            device = list_devices(self.run_config.device)[0]
        except InputError:
            return "plain"  # the cluster's nodes have one, this machine has none to measure on
        batch_size, compile_net = record.recipe["batch_size"], self.run_config.compile_net
        return resolve_kernels("auto", record.network_spec, device, batch_size, compile_net)

    def _check_kernels(self) -> None:
        """Reads the study's kernels; one that was begun before there was a choice has `plain`. `InputError` where
        others are asked for, or those that there are not, or that this machine cannot run."""
        asked = self.run_config.kernels
        if asked is not None:
            from dnas.nn.kernels import check_kernels

            check_kernels(asked)
        before = any(record.attempts and record.kernels is None for record in self.records.values())
        self._kernels = self.folder.config().get("kernels", "plain" if before else None)
        if asked not in (None, "auto") and self._kernels not in (None, asked):
            raise InputError(
                f"study {self.folder.name} was begun with the kernels {self._kernels} (now {asked}), which are not the"
                " same bit for bit; leave --kernels out, or name another study."
            )

    def _write(self, record: TrialRecord) -> None:
        self.folder.write_record(record, self._path(record))

    def _hear(self, record: TrialRecord, message: Message, outcome: Outcome) -> None:
        values = message.values
        match message.kind:
            case "started":
                record.device, record.host = values["device"], values.get("host", record.host)
                record.kernels = values.get("kernels", record.kernels)  # a host may lack a compiler
                self._running[self._key(record)].since = self.executor.clock()
                self._on_started(record, values)
            case "step":
                self.show.step(record, values["done"], values["total"])
            case "epoch":
                self.executor.answer(self._key(record), self._on_epoch(record, values))
            case "done":
                self._finish(record, values)
                self._errors.clear()
            case "lost":
                restarted, crashed = values.get("restarted", False), values.get("crashed", False)
                self._lose(record, values["text"], outcome, restarted=restarted, crashed=crashed)
            case "failed":
                self._hear_failure(record, values["reason"], values["text"], outcome)

    def _hear_failure(self, record: TrialRecord, reason: str, text: str, outcome: Outcome) -> None:
        """The policy for each way to fail."""
        if reason == "disk full":
            raise DiskFull(text)  # it stays `running`: the next start goes on with it
        if reason == "out of memory" and not record.recompute:
            # Recomputing the activations is exact, so this is the same trial; it may have shared its device, too.
            self.emit({"event": "again", "number": record.number, "reason": reason, "recompute": True})
            record.recompute = True
            self._write(record)
            self.show.note(f"trial {self._key(record)}: out of memory; again, its activations recomputed")
            self._running.pop(self._key(record), None)
            self.waiting.appendleft(record)
            return
        self._fail(record, reason, text)
        self._count_error(record, reason, text, outcome)

    def _lose(
        self, record: TrialRecord, text: str, outcome: Outcome, *, restarted: bool = False, crashed: bool = False
    ) -> None:
        """Resume a trial whose worker died or froze from its checkpoint; fail one that died too often.

        restarted: the executor has restarted it by itself.
        crashed: a signal such as SIGSEGV ended it. The second such death ends the trial, in whichever epochs they came.
        """
        key = self._key(record)
        if crashed:
            crashes = self._crashes.setdefault(key, [])
            crashes.append(text)
            if crashes.count(text) >= CRASHES:
                if restarted:
                    self.executor.kill(key)
                where = "this machine" if record.host in (None, socket.gethostname()) else record.host
                text = f"{text} {CRASHES} times; this network crashes torch {versions()['torch']} on {where}"
                self._fail(record, "crash", text)
                self._count_error(record, "crash", text, outcome)
                return
        epochs, losses = self._stuck.get(key, (record.epochs, 0))
        losses = losses + 1 if epochs == record.epochs else 1
        self._stuck[key] = (record.epochs, losses)
        if losses >= LOST_WORKERS:
            if restarted:
                self.executor.kill(key)
            self._fail(record, "lost worker", text)
            self._count_error(record, "lost worker", text, outcome)
            return
        record.losses += 1
        self.emit({"event": "again", "number": record.number, "reason": f"lost worker: {text}"})
        self._write(record)
        self.show.note(f"trial {key}: {text}; going on from its checkpoint")
        if not restarted:
            self._running.pop(key, None)
            self.waiting.appendleft(record)

    def _count_error(self, record: TrialRecord, reason: str, text: str, outcome: Outcome) -> None:
        self._errors = [*self._errors, text] if reason in ("error", "input", "lost worker", "crash") else []
        if len(self._errors) >= SAME_ERRORS and len(set(self._errors[-SAME_ERRORS:])) == 1:
            outcome.stopped_by = (
                f"{SAME_ERRORS} trials in a row failed alike: {text} (see {self._path(record) / 'traceback.txt'})"
            )

    def _end_overdue(self, outcome: Outcome) -> None:
        """Ends trainings that take too long, and goes on with those whose worker sends no heartbeat."""
        clock = self.executor.clock()
        if clock - self._looked < LOOK_SECONDS:
            return
        self._looked = clock
        begun = set(self.executor.running) - self.executor.queued
        for key, running in list(self._running.items()):
            record, limit = self._record(key), self.run_config.timeout
            if key not in begun:
                continue
            spent = running.before + clock - running.since
            if limit is not None and spent > limit:
                self.executor.kill(key)
                text = f"{spent:.0f} s of training, more than --timeout {limit:g} allows"
                self._fail(record, "timeout", text)
                self._count_error(record, "timeout", text, outcome)
            elif running.watch.silent(clock):
                self.executor.kill(key)
                self._lose(record, "no heartbeat from its worker", outcome)

    def _fail(self, record: TrialRecord, reason: str, text: str) -> None:
        record.state = "infeasible" if reason == "out of memory" else "failed"
        record.reason = f"{reason}: {text}"
        self._end(record)

    def _end(self, record: TrialRecord) -> None:
        record.ended = self.folder.now()
        self._write(record)
        self._emit_tell(record)
        self._leave(record)

    def _leave(self, record: TrialRecord) -> None:
        self._running.pop(self._key(record), None)
        self._stuck.pop(self._key(record), None)
        self._crashes.pop(self._key(record), None)
        self.show.ended(record)
