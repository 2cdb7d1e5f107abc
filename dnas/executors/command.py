"""Executors of the user's own code: commands in a pool of processes, and functions in this process.

A job names its command or call by its key. This module does not import torch, so that a command starts at once.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.errors import InputError, os_reason
from dnas.executors.process import Job, Message
from dnas.formatting import redact
from dnas.io import write_atomic

POLL_SECONDS = 0.05  # interval between two looks at the running commands
LOG_BYTES = 20_000  # size of the end of standard error that is kept as the log of a failed run
# Runs a command in its own process group, and kills the group when the standard input ends, because the driver has then
# ended. Repeats the exit status or the signal of the command.
GUARD = """
import os, signal, subprocess, sys, threading
def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class RunFailed(Exception):
    """A run ended without a value. reason: "error", or "diverged" for a value that is not finite."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Command:
    """A command of the user's.

    Attributes:
        arguments: The program and its arguments. No shell is involved.
        read: Reads the metric from the output on standard output and the time of the start, as `time.time` returns it.
            Raises `RunFailed`.
        environment: Variables in addition to those of this process.
    """

    arguments: tuple[str, ...]
    read: Callable[[str, float], float]
    environment: Mapping[str, str]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float  # by `time.time`, as the times of files
    clock: float


class CommandExecutor:
    """Run commands in processes of this host, at most `workers` at once. Their output goes to files in their folders.

    commands: key of a job -> its command.
    """

    def __init__(self, commands: Mapping[str, Command], workers: int = 1) -> None:
        self.commands, self.workers = commands, workers
        self._running: dict[str, _Running] = {}

    @property
    def running(self) -> list[str]:
        """Keys of the jobs that have been started and have not ended."""
        return list(self._running)

    @property
    def queued(self) -> set[str]:
        """Keys of the started jobs that wait for room: always empty."""
        return set()

    def clock(self) -> float:
        """Return the seconds of a monotonic clock."""
        return time.monotonic()

    def room(self, job: Job) -> bool:
        """Return whether `job` can start now, beside the running jobs."""
        return len(self._running) < self.workers

    def start(self, job: Job) -> None:
        """Start the command of `job`. It is killed with all its processes when this process ends."""
        command, folder = self.commands[job.key], Path(job.folder)
        with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", GUARD, *command.arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
                env=os.environ | command.environment,
                start_new_session=True,
            )
        self._running[job.key] = _Running(job, process, time.time(), self.clock())

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        """Return the last messages of the jobs that have ended; [] after `timeout` seconds without any."""
        deadline = self.clock() + timeout
        while True:
            ended = [key for key, running in self._running.items() if running.process.poll() is not None]
            if ended or self.clock() >= deadline:
                return [(key, self._message(self._running.pop(key))) for key in ended]
            time.sleep(POLL_SECONDS)

    def answer(self, key: str, go_on: bool) -> None:
        """Commands report no epochs, so there is nothing to answer."""

    def kill(self, key: str) -> None:
        """End one command with all its processes, without a further message."""
        running = self._running.pop(key)
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        _reap(running.process)

    def stop(self) -> None:
        """End every command at once."""
        for key in self.running:
            self.kill(key)

    def _message(self, running: _Running) -> Message:
        seconds = self.clock() - running.clock
        _reap(running.process)
        folder, status = Path(running.job.folder), running.process.returncode
        try:
            if status:
                raise RunFailed("error", _why(status, folder))
            output = (folder / "stdout.log").read_bytes().decode(errors="replace")
            value = self.commands[running.job.key].read(output, running.began)
        except RunFailed as error:
            write_atomic(folder / "traceback.txt", (folder / "stderr.log").read_bytes()[-LOG_BYTES:])
            return Message("failed", {"reason": error.reason, "text": str(error)})
        except OSError as error:
            return Message("failed", {"reason": "error", "text": f"{error.filename}: {os_reason(error)}"})
        return Message("done", {"value": value, "seconds": seconds})


def _reap(process: "subprocess.Popen[bytes]") -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _why(status: int, folder: Path) -> str:
    """Return how a command ended, and the last line of its standard error, or else of its output."""
    if status < 0:
        text = f"the command was ended by {signal.Signals(-status).name}"
    else:
        text = f"the command exited with status {status}"
    for name in ("stderr.log", "stdout.log"):
        lines = (folder / name).read_bytes()[-LOG_BYTES:].decode(errors="replace").split("\n")
        if last := next((line.strip() for line in reversed(lines) if line.strip()), ""):
            return f"{text}: {redact(last)}"
    return f"{text}, without any output"


class FunctionExecutor:
    """Call functions one after the other in this process, so that Ctrl-C interrupts the function.

    calls: key of a job -> a function without arguments, which returns the value of the metric or raises.
    """

    workers = 1

    def __init__(self, calls: Mapping[str, Callable[[], float]]) -> None:
        self.calls = calls
        self._job: Job | None = None

    @property
    def running(self) -> list[str]:
        """Key of the job that has been started and has not ended."""
        return [] if self._job is None else [self._job.key]

    @property
    def queued(self) -> set[str]:
        """Keys of the started jobs that wait for room: always empty."""
        return set()

    def clock(self) -> float:
        """Return the seconds of a monotonic clock."""
        return time.monotonic()

    def room(self, job: Job) -> bool:
        """Return whether `job` can start now."""
        return self._job is None

    def start(self, job: Job) -> None:
        """Let the next `wait` run `job`."""
        self._job = job

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        """Call the function of the started job and return its last message."""
        job = self._job
        assert job is not None
        began = self.clock()
        try:
            message = Message("done", {"value": self.calls[job.key](), "seconds": self.clock() - began})
        except Exception as error:
            write_atomic(Path(job.folder) / "traceback.txt", "".join(traceback.format_exception(error)))
            values: dict[str, Any] = {"reason": "error", "text": f"{type(error).__name__}: {error}"}
            if isinstance(error, RunFailed):
                values = {"reason": error.reason, "text": str(error)}
            elif isinstance(error, InputError):
                values = {"reason": "input", "text": str(error)}
            message = Message("failed", values)
        self._job = None
        return [(job.key, message)]

    def answer(self, key: str, go_on: bool) -> None:
        """Functions report no epochs, so there is nothing to answer."""

    def kill(self, key: str) -> None:
        """Forget the job. A function that is running cannot be ended."""
        self._job = None

    def stop(self) -> None:
        """Forget the job."""
        self._job = None
