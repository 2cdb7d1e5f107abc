"""Commands as processes that start fast, because they are forked from a server that has imported what a search needs.

A new Python needs 3 to 6 seconds of CPU time for imports before `dnas search` trains, and its forkserver needs the same
time. A forked process starts in 0.05 seconds, and so does its forkserver. Tests of start-up, of signals while Python
ends, and one kill per executor start a real `python -m dnas` instead.
"""

import atexit
import gc
import json
import multiprocessing.util
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
DNAS = "from dnas.cli import entry_point; raise SystemExit(entry_point())"
LARGEST_REQUEST = 1 << 17  # bytes


class Command:
    """A command in its own process group, with the part of the interface of `subprocess.Popen` that the tests use.

    Args:
        arguments: `sys.argv` of the command, without the program.
        code: Python code that the process runs (default: the command line of dnas).
        folder: Its working directory.
        environment: All its environment variables (default: the environment of this process).
        merge: Redirect its standard error to its standard output.
    """

    def __init__(
        self,
        *arguments: str,
        code: str = DNAS,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        merge: bool = False,
    ) -> None:
        self.out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.errors: IO[bytes] = self.out if merge else tempfile.TemporaryFile()  # noqa: SIM115
        self.returncode: int | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "arguments": list(arguments),
            "code": code,
            "folder": str(folder or Path.cwd()),
            "environment": dict(os.environ if environment is None else environment),
        }
        with theirs:
            socket.send_fds(
                _server(), [json.dumps(request).encode()], [theirs.fileno(), self.out.fileno(), self.errors.fileno()]
            )
        self.pid = int(self._channel.recv(16))

    def __del__(self) -> None:
        for resource in ("out", "errors", "_channel"):  # which warn if they are not closed
            if hasattr(self, resource):
                getattr(self, resource).close()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return its exit status, as `subprocess` counts, or None while it runs."""
        if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
            self.returncode = int(self._channel.recv(16))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = int(self._channel.recv(16))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process and return its output and its errors."""
        self.wait(timeout)
        return self._read(self.out), self._read(self.errors)

    @staticmethod
    def _read(file: IO[bytes]) -> str:
        file.seek(0)
        return file.read().decode()


@cache
def _server() -> socket.socket:
    """Start the server of this process, and return the socket for requests. It ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.support.commands", str(theirs.fileno())]
        subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
    return ours


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request. Return the request in the forked process, which executes it."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
        while os.waitpid(-1, os.WNOHANG)[0]:  # reap supervisors that ended
            pass
    requests.close()
    channel = socket.socket(fileno=descriptors[0])
    if process := os.fork():  # this is the supervisor of the command
        channel.send(str(process).encode())
        channel.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())
        os._exit(0)
    channel.close()
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[2], 2)
    _close_all_but(0, 1, 2)
    request: dict[str, Any] = json.loads(message)
    return request


def _close_all_but(*kept: int) -> None:
    for descriptor in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - {*kept}:
        with suppress(OSError):  # the descriptor of the folder is already closed
            os.close(descriptor)


def _spawn_by_fork(path: bytes, arguments: list[str], descriptors: list[int]) -> int:
    """Start the forkserver of `multiprocessing` by a fork, with the descriptors that it would inherit otherwise."""
    if "forkserver" not in str(arguments[-1]):
        return _spawn(path, arguments, descriptors)
    if process := os.fork():
        return process
    try:
        _close_all_but(0, 1, 2, *descriptors)
        exec(arguments[-1], {})
    finally:
        os._exit(0)


def _run(code: str, namespace: dict[str, Any]) -> None:
    """Execute `code` and end the process as Python does, but skip freeing torch's modules, which takes 2 seconds."""
    status = 0
    try:
        exec(code, namespace)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


_spawn = multiprocessing.util.spawnv_passfds

if __name__ == "__main__":
    gc.disable()  # as in dnas.executors.preload
    import alembic.command  # noqa: F401
    import optuna.storages._rdb.storage  # noqa: F401
    import torch._dynamo  # noqa: F401

    import dnas.analysis.efficiency
    import dnas.cli.search_text
    import dnas.executors.worker
    import dnas.strategy.run
    import dnas.strategy.samplers.gp
    import dnas.strategy.samplers.tpe  # noqa: F401

    gc.freeze()
    gc.enable()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    multiprocessing.util.spawnv_passfds = _spawn_by_fork
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["dnas", *request["arguments"]]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    _run(request["code"], main.__dict__)
