"""Trials in processes of this host: one process a trial, so that its memory is given back whole."""

import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess

from dnas.executors.forkserver import start_forkserver
from dnas.executors.worker import Job, Message, run_in_process


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    pipe: Connection


class LocalExecutor:
    """Starts jobs from a forkserver that has imported torch: a child is there in hundredths of a second, and none
    inherits the driver's threads."""

    def __init__(self, dataset: str) -> None:
        self._context = start_forkserver(dataset)
        self._running: dict[str, _Running] = {}

    @property
    def running(self) -> list[str]:
        return list(self._running)

    def start(self, job: Job) -> None:
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
                message = Message("lost", {"text": self._last_word(key)})
            messages.append((key, message))
            if message.kind in ("done", "failed", "lost"):
                self._end(key)
        return messages

    def answer(self, key: str, go_on: bool) -> None:
        """Tells a job that said `epoch` whether to go on."""
        with suppress(BrokenPipeError):  # it died meanwhile: `wait` says so
            self._running[key].pipe.send(go_on)

    def stop(self) -> None:
        """Ends every job at once; their checkpoints stay."""
        for key in self.running:
            self._running[key].process.kill()
            self._end(key)

    def _last_word(self, key: str) -> str:
        process = self._running[key].process
        process.join(5)
        code = process.exitcode
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with status {code}"

    def _end(self, key: str) -> None:
        running = self._running.pop(key)
        running.process.join()
        running.process.close()
        running.pipe.close()
