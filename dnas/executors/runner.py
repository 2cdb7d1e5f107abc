"""Run trials through an executor: event loop, message handling and failure policy.

A search proposes the next network from the results so far, and a batch knows its runs beforehand. Each of them is a
`Source`. Everything else is shared and implemented in this module.
"""

import math
import socket
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from dnas.errors import InputError
from dnas.executors.lease import Watch
from dnas.executors.process import Job, Message
from dnas.executors.protocol import Executor, Outcome, Show, Source
from dnas.io import DiskFull
from dnas.study.config import RunConfig
from dnas.study.provenance import versions
from dnas.study.record import TrialRecord
from dnas.training.defaults import DEFAULT_KERNELS

MAX_SAME_ERRORS = 3  # identical errors in a row that stop the loop
OVERDUE_CHECK_SECONDS = 0.5  # shortest time between two checks for runs that take too long
MAX_LOSSES = 5  # number of workers lost without finishing another epoch after which a run fails
MAX_CRASHES = 2  # crashes by the same signal (such as SIGSEGV) after which a run fails without a retry
COUNTED_ERRORS = ("error", "input", "lost worker", "crash")  # failures whose cause may be outside the network


@dataclass
class _Running:
    """A run in progress.

    since: its start, by the executor's clock.
    before: seconds trained before this start.
    watch: monitor of its worker's heartbeat.
    """

    record: TrialRecord
    job: Job
    since: float
    before: float
    watch: Watch


class TrialRunner:
    """Run loop that executes the trials of `source` on `executor` until there is nothing left to run.

    source: decides what to run next, and interprets results.
    show: observer, such as a display.
    """

    def __init__(self, source: Source, executor: Executor, show: Show) -> None:
        self.source, self.executor, self.show = source, executor, show
        self._retries: deque[TrialRecord] = deque()  # started before new runs
        self._running: dict[str, _Running] = {}
        self._losses: dict[str, tuple[int, int]] = {}  # key -> (epochs finished, workers lost since)
        self._crashes: dict[str, list[str]] = {}  # key -> text of each crash
        self._errors: list[str] = []
        self._kernels: str | None = None
        self._checked = -math.inf  # time of the last check for overdue runs, by the executor's clock

    def run(self) -> Outcome:
        outcome = Outcome(0)
        self._check_kernels()
        slots = self.source.run_config.workers
        while True:
            while outcome.stopped_by is None and len(self.executor.running) < min(slots, self.executor.workers):
                record = self._retries.popleft() if self._retries else self.source.next(self.executor.running)
                if record is None:
                    break
                if not self.executor.room(self.source.job(record)):
                    self._retries.appendleft(record)
                    break
                self._start(record)
            if not self.executor.running:
                break
            for key, message in self.executor.wait(timeout=1.0):
                if key in self._running:  # otherwise an earlier message of this list has ended it
                    self._handle(self._running[key], message, outcome)
            self._end_overdue(outcome)
        outcome.trials = len(self.source.records)
        return outcome

    def _start(self, record: TrialRecord) -> None:
        record.started = record.started or self.source.folder.now()
        record.attempts += 1
        record.threads = self.source.run_config.threads
        if record.spec:  # the user's own code has no network, and no kernels
            record.kernels = record.kernels or self._resolve_kernels(record)
        job = self.source.job(record)
        self._write(record, job)
        clock = self.executor.clock()
        self._running[job.key] = _Running(record, job, clock, record.seconds, Watch(Path(job.folder), clock))
        self.executor.start(job)
        self.show.began(record)

    def _write(self, record: TrialRecord, job: Job) -> None:
        self.source.folder.write_record(record, Path(job.folder))

    # --- kernels --------------------------------------------------------------------------------------------------

    def _check_kernels(self) -> None:
        """Read the study's kernels. Studies of versions without a choice of kernels use `plain`.

        Raises:
            InputError: The requested kernels are unknown, cannot run on this machine, or are not the study's.
        """
        requested, folder = self.source.run_config.kernels, self.source.folder
        if requested is not None:
            from dnas.nn.kernels import check_kernels

            check_kernels(requested)
        before = any(record.attempts and record.kernels is None for record in self.source.records.values())
        self._kernels = folder.config().get("kernels", "plain" if before else None)
        if requested not in (None, "auto") and self._kernels not in (None, requested):
            raise InputError(
                f"study {folder.name} was started with the kernels {self._kernels} (now {requested}), whose"
                " results are not bit-identical; leave --kernels out, or name another study."
            )

    def _resolve_kernels(self, record: TrialRecord) -> str:
        """Return the study's kernels. The first run selects them for all runs, and study.toml stores them.

        `auto` is measured only once, because a resumed study must be bit-identical.
        """
        if self._kernels is None:
            run_config, folder = self.source.run_config, self.source.folder
            requested = run_config.kernels or DEFAULT_KERNELS
            self._kernels = measured_kernels(run_config, record) if requested == "auto" else requested
            folder.write_config(folder.config() | {"kernels": self._kernels})
        return self._kernels

    # --- messages -------------------------------------------------------------------------------------------------

    def _handle(self, running: _Running, message: Message, outcome: Outcome) -> None:
        record, key, values = running.record, running.job.key, message.values
        match message.kind:
            case "started":
                record.device, record.host = values["device"], values.get("host", record.host)
                record.kernels = values.get("kernels", record.kernels)  # a host may lack a compiler
                running.since = self.executor.clock()
                self.source.on_started(record, values)
            case "step":
                self.show.step(record, values["done"], values["total"])
            case "epoch":
                go_on = self.source.on_epoch(record, values)
                if self.source.run_config.ray is not None:  # the curve is on another machine until the run ends
                    self._write(record, running.job)
                self.show.epoch(record, values)
                self.executor.answer(key, go_on)
            case "done":
                self.source.on_result(record, values)
                self._end(running)
                self._errors.clear()
            case "lost":
                restarted, crashed = values.get("restarted", False), values.get("crashed", False)
                self._lose(running, values["text"], outcome, restarted=restarted, crashed=crashed)
            case "failed":
                self._handle_failure(running, values["reason"], values["text"], outcome)

    def _handle_failure(self, running: _Running, reason: str, text: str, outcome: Outcome) -> None:
        record = running.record
        if reason == "disk full":
            raise DiskFull(text)  # the record stays `running`, and the next start resumes it
        if reason == "out of memory" and not record.recompute:
            # Recomputing the activations is bit-identical. Other runs on the device may also have used its memory.
            self.source.on_retry(record, reason, recompute=True)
            record.recompute = True
            self._write(record, running.job)
            self.show.note(f"trial {running.job.key}: out of memory; retrying with recomputed activations")
            self._retry(running)
            return
        self._fail(running, reason, text, outcome)

    def _lose(
        self, running: _Running, text: str, outcome: Outcome, *, restarted: bool = False, crashed: bool = False
    ) -> None:
        """Resume a run from its checkpoint after its worker died or froze; fail the run if this happens too often.

        Args:
            running: The run.
            text: How its worker ended.
            outcome: Outcome of the loop, which a repeated error stops.
            restarted: The executor has restarted the run by itself.
            crashed: A signal such as SIGSEGV ended the worker. The second crash by the same signal fails the
                run, regardless of the epochs.
        """
        record, key = running.record, running.job.key
        reason = ""
        if crashed:
            crashes = self._crashes.setdefault(key, [])
            crashes.append(text)
            if crashes.count(text) >= MAX_CRASHES:
                host = "this machine" if record.host in (None, socket.gethostname()) else record.host
                reason = "crash"
                text = f"{text} {MAX_CRASHES} times; this network crashes torch {versions()['torch']} on {host}"
        if not reason:
            epochs, losses = self._losses.get(key, (record.epochs, 0))
            losses = losses + 1 if epochs == record.epochs else 1
            self._losses[key] = (record.epochs, losses)
            reason = "lost worker" if losses >= MAX_LOSSES else ""
        if reason:
            if restarted:
                self.executor.kill(key)
            self._fail(running, reason, text, outcome)
            return
        record.losses += 1
        self.source.on_retry(record, f"lost worker: {text}")
        self._write(record, running.job)
        self.show.note(f"trial {key}: {text}; resuming from its checkpoint")
        if not restarted:
            self._retry(running)

    def _retry(self, running: _Running) -> None:
        self._running.pop(running.job.key, None)
        self._retries.appendleft(running.record)

    def _end_overdue(self, outcome: Outcome) -> None:
        """Fail runs that exceed the time limit, and restart those whose workers send no heartbeat."""
        clock = self.executor.clock()
        if clock - self._checked < OVERDUE_CHECK_SECONDS:
            return
        self._checked = clock
        started = set(self.executor.running) - self.executor.queued
        limit = self.source.run_config.timeout
        for key, running in list(self._running.items()):
            if key not in started:
                continue
            spent = running.before + clock - running.since
            if limit is not None and spent > limit:
                self.executor.kill(key)
                text = f"{spent:.0f} s of training, more than --timeout {limit:g} allows"
                self._fail(running, "timeout", text, outcome)
            elif running.watch.silent(clock):
                self.executor.kill(key)
                self._lose(running, "no heartbeat from its worker", outcome)

    # --- ends -----------------------------------------------------------------------------------------------------

    def _fail(self, running: _Running, reason: str, text: str, outcome: Outcome) -> None:
        """Fail a run, and stop the loop after too many identical errors in a row."""
        record = running.record
        record.state = "infeasible" if reason == "out of memory" else "failed"
        record.reason = f"{reason}: {text}"
        self._end(running)
        self._errors = [*self._errors, text] if reason in COUNTED_ERRORS else []
        if len(self._errors) >= MAX_SAME_ERRORS and len(set(self._errors[-MAX_SAME_ERRORS:])) == 1:
            outcome.stopped_by = (
                f"{MAX_SAME_ERRORS} trials in a row failed with the same error: {text}"
                f" (see {Path(running.job.folder) / 'traceback.txt'})"
            )

    def _end(self, running: _Running) -> None:
        record, key = running.record, running.job.key
        record.ended = self.source.folder.now()
        self._write(record, running.job)
        self.source.on_end(record)
        for table in (self._running, self._losses, self._crashes):
            table.pop(key, None)
        self.show.ended(record)


def measured_kernels(run_config: RunConfig, record: TrialRecord) -> str:
    """Measure the fastest kernels for a record's network on the first device of `run_config`."""
    from dnas.nn import resolve_kernels
    from dnas.training.devices import list_devices

    try:
        device = list_devices(run_config.device)[0]
    except InputError:
        return "plain"  # only the cluster's nodes have such a device, so it cannot be measured here
    return resolve_kernels("auto", record.network_spec, device, record.recipe["batch_size"], run_config.compile_net)
