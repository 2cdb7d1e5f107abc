"""One quiet thread for every test process: the suite shares few cores, and spinning threads would eat them."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
    for module in ("dnas.executors.runner", "dnas.training.single"):
        monkeypatch.setattr(f"{module}.DEFAULT_KERNELS", "plain")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "Scheduling":
    """Distribute tests by `xdist_group`; a test that crashes its process fails once, and the others still run."""
    from tests.support.scheduling import GroupScheduling

    return GroupScheduling(config, log)


LONGEST = ("test_ray_tune", "test_worker", "test_processes", "test_ablation", "test_reproduce", "test_page")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with what takes longest, so that no process is left alone with it at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


if TYPE_CHECKING:
    from xdist.scheduler.protocol import Scheduling

    from tests.support.postgres import Server


@pytest.fixture(scope="session")
def server() -> "Iterator[Server]":
    """A PostgreSQL of the test run's own."""
    from tests.support.postgres import Server

    running = Server()
    yield running
    running.close()
