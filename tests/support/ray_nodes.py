"""Real Ray cluster on this machine, of several nodes with private folders that can be killed one by one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90.0  # seconds to wait for an event that takes about five
QUICK = {  # detect a lost node within seconds instead of half a minute
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "6",
}


class Nodes:
    """A head, and nodes with their own folders for work and for temporary files.

    Args:
        cpus: CPUs of the head. With 0 it runs no trials.
        environment: Environment variables of all nodes.
    """

    def __init__(self, cpus: int = 0, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # a socket's path must be short
        self.environment = environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._start("head", "--head", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false")
        self._wait()

    def add(self, name: str, cpus: int = 1, gpus: int = 0) -> None:
        self._start(name, f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")

    def kill(self, name: str) -> None:
        """Kill a node with all its processes, as the loss of a machine would."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, *options: str) -> None:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        environment = os.environ | QUICK | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")} | self.environment
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--temp-dir={folder / 'ray'}", *options]
        with (folder / "log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _wait(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < patience(PATIENCE):
            host, port = self.address.split(":")
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                assert self.processes["head"].poll() is None, (self.folder / "head" / "log").read_text()
                time.sleep(0.1)
        raise AssertionError("the head did not start")
