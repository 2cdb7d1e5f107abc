"""A real Ray cluster of several nodes on this machine, each in a private folder, that can be killed one by one."""

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
PATIENCE = 90.0  # seconds for a thing that takes about five
QUICK = {  # a node that is gone is seen after some seconds, not half a minute
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "6",
}


class Nodes:
    """The head runs no trial; each node has a working folder and a folder for temporary files of its own."""

    def __init__(self, **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))  # a socket's path must be short
        self.environment = environment
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._start("head", "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
        self._wait()

    def add(self, name: str, cpus: int = 1, gpus: int = 0) -> None:
        self._start(name, f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")

    def kill(self, name: str) -> None:
        """Kills a node with all that runs on it, as a machine dies."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, *options: str) -> None:
        own = self.folder / name
        (own / "tmp").mkdir(parents=True)
        environment = os.environ | QUICK | {"PYTHONPATH": str(ROOT), "TMPDIR": str(own / "tmp")} | self.environment
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--temp-dir={own / 'ray'}", *options]
        with (own / "log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=own, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
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
