"""Executor that runs each trial in its own process on this host, so that all its memory is released."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from time import monotonic

import torch

from dnas.executors.placement import Device, Ledger
from dnas.executors.process import Job, Message, lost, run_in_process
from dnas.training.forkserver import start, start_forkserver


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    pipe: Connection


class LocalExecutor:
    """Start jobs from a fork server that has imported torch.

    A child starts within hundredths of a second and does not inherit the driver's threads.

    Args:
        workers: largest number of jobs at once on all devices together. `placement` decides how many share a GPU.
        devices: names of the devices.
    """

    def __init__(self, workers: int = 1, devices: Sequence[str] = ("cpu",)) -> None:
        self._context = start_forkserver()
        self._running: dict[str, _Running] = {}
        self._ledger = Ledger(tuple(Device(name, total_bytes(name)) for name in devices), workers)

    @property
    def running(self) -> list[str]:
        """Keys of the jobs that have been started and have not ended."""
        return list(self._running)

    @property
    def workers(self) -> int:
        """Largest number of jobs at once."""
        return self._ledger.workers

    @property
    def queued(self) -> set[str]:
        """Keys of the started jobs that wait for room: always empty."""
        return set()

    def clock(self) -> float:
        """Return the seconds of a monotonic clock."""
        return monotonic()

    def room(self, job: Job) -> bool:
        """Return whether `job` can start now, beside the running jobs."""
        return self._ledger.pick(job) is not None

    def start(self, job: Job) -> None:
        """Start `job` on the most suitable device; `job.device` is ignored."""
        job = replace(job, device=self._ledger.begin(job))
        pipe, child_pipe = self._context.Pipe()
        process = self._context.Process(target=run_in_process, args=(job, child_pipe), daemon=False)
        start(process)
        child_pipe.close()
        self._running[job.key] = _Running(job, process, pipe)

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        """Return new messages with the keys of their jobs; [] after `timeout` seconds without any."""
        by_pipe = {running.pipe: key for key, running in self._running.items()}
        messages = []
        for pipe in wait_for(list(by_pipe), timeout):
            key = by_pipe[pipe]  # type: ignore[index]
            try:
                message = self._running[key].pipe.recv()
            except (EOFError, ConnectionResetError):
                message = lost(self._running[key].process)
            self._learn(key, message)
            messages.append((key, message))
            if message.ends:
                self._end(key)
        return messages

    def answer(self, key: str, go_on: bool) -> None:
        """Answer a job's `epoch` message with whether it continues."""
        with suppress(BrokenPipeError):  # the job has died, which `wait` reports
            self._running[key].pipe.send(go_on)

    def kill(self, key: str) -> None:
        """End one job at once, without a further message. Its checkpoint stays."""
        self._running[key].process.kill()
        self._end(key)

    def stop(self) -> None:
        """End every job at once. Their checkpoints stay."""
        for key in self.running:
            self.kill(key)

    def _learn(self, key: str, message: Message) -> None:
        """Record the memory that a message reports, for later placements."""
        if message.kind == "started":
            self._ledger.resident_bytes = max(self._ledger.resident_bytes, message.values.get("resident_bytes", 0))
        elif "peak_memory_bytes" in message.values:  # for a job that ran out of memory, a lower bound
            self._ledger.measure(key, message.values["peak_memory_bytes"])

    def _end(self, key: str) -> None:
        running = self._running.pop(key)
        self._ledger.end(key)
        running.process.join()
        running.process.close()
        running.pipe.close()


def total_bytes(device: str) -> int | None:
    """Return the memory of a GPU; None for a CPU, on which memory does not limit the jobs."""
    if not device.startswith("cuda"):
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
