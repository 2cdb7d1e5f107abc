"""One quiet thread for every test process: the suite shares few cores, and spinning threads would eat them."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Begun in the background by a shell, this process ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def plain_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of tests begin a study whose trainings are formulas: none of them is to measure kernels first. What is
    said here is of this process alone: the commands that tests start choose as a user's do."""
    for module in ("dnas.trainings", "dnas.single"):
        monkeypatch.setattr(f"{module}.DEFAULT_KERNELS", "plain")


if TYPE_CHECKING:
    from tests.postgres import Server


@pytest.fixture(scope="session")
def server() -> "Iterator[Server]":
    """A PostgreSQL of the test run's own."""
    from tests.postgres import Server

    running = Server()
    yield running
    running.close()
