"""Trials in processes of this host: one process a trial, so that its memory is given back whole."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from time import monotonic

import torch

from dnas.executors.placement import Device, Ledger
from dnas.executors.worker import Job, Message, lost, run_in_process
from dnas.training.forkserver import start_forkserver


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    pipe: Connection


class LocalExecutor:
    """Starts jobs from a forkserver that has imported torch: a child is there in hundredths of a second, and none
    inherits the driver's threads.

    workers: the most trainings at once, over all `devices`; how many of them share a GPU is `placement`'s to say.
    """

    def __init__(self, workers: int = 1, devices: Sequence[str] = ("cpu",)) -> None:
        self._context = start_forkserver()
        self._running: dict[str, _Running] = {}
        self._ledger = Ledger(tuple(Device(name, total_bytes(name)) for name in devices), workers)

    @property
    def running(self) -> list[str]:
        """The keys of the jobs that have been started and have not ended."""
        return list(self._running)

    @property
    def workers(self) -> int:
        """The most trainings at once."""
        return self._ledger.workers

    @property
    def queued(self) -> set[str]:
        """The jobs that were started and wait for a place: none, here."""
        return set()

    def clock(self) -> float:
        """Seconds of a clock that only goes forward."""
        return monotonic()

    def room(self, job: Job) -> bool:
        """Whether `job` can begin now, beside those that run."""
        return self._ledger.pick(job) is not None

    def start(self, job: Job) -> None:
        """Begins `job` on the device that suits it best; `job.device` does not matter."""
        job = replace(job, device=self._ledger.begin(job))
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=run_in_process, args=(job, theirs), daemon=False)
        process.start()
        theirs.close()
        self._running[job.key] = _Running(job, process, ours)

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        """The messages that came, each with its job's key; [] after `timeout` seconds without any."""
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
        """Tells a job that said `epoch` whether to go on."""
        with suppress(BrokenPipeError):  # it died meanwhile: `wait` says so
            self._running[key].pipe.send(go_on)

    def kill(self, key: str) -> None:
        """Ends one job at once, and says nothing of it any more; its checkpoint stays."""
        self._running[key].process.kill()
        self._end(key)

    def stop(self) -> None:
        """Ends every job at once; their checkpoints stay."""
        for key in self.running:
            self.kill(key)

    def _learn(self, key: str, message: Message) -> None:
        """What the next placements are to know of this training."""
        if message.kind == "started":
            self._ledger.resident_bytes = max(self._ledger.resident_bytes, message.values.get("resident_bytes", 0))
        elif "peak_memory_bytes" in message.values:  # of one that failed for want of memory, at least so much
            self._ledger.measure(key, message.values["peak_memory_bytes"])

    def _end(self, key: str) -> None:
        running = self._running.pop(key)
        self._ledger.end(key)
        running.process.join()
        running.process.close()
        running.pipe.close()


def total_bytes(device: str) -> int | None:
    """The memory of a GPU; None of a CPU, where memory does not decide who runs beside whom."""
    if not device.startswith("cuda"):
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
