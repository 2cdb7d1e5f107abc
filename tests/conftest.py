"""Settings of every test process: one quiet thread, time limits that grow with the load, scheduling in groups."""

import atexit
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.patience import patience

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A process that a shell started in the background ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A busy machine is no failure: an example may take as long as it needs.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def plain_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the measurement of kernels in the hundreds of studies whose runs are formulas.

    Only this process is affected. The commands that tests start choose kernels as usual.
    """
    for module in ("dnas.executors.runner", "dnas.api.train_network", "dnas.batch.estimate"):
        monkeypatch.setattr(f"{module}.DEFAULT_KERNELS", "plain")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--cpu-times FILE`, which appends the CPU seconds of each test to a file."""
    parser.addoption("--cpu-times", type=Path, metavar="FILE", help="append the CPU seconds of each test to FILE")


def pytest_configure(config: pytest.Config) -> None:
    """Measure CPU times if `--cpu-times` is given, and let a process of xdist end without freeing its modules."""
    if hasattr(config, "workerinput"):
        atexit.register(os._exit, 0)  # runs after what tests register; freeing one module after the other takes seconds
    if path := config.getoption("--cpu-times"):
        from tests.support.cpu_times import CpuTimes

        config.pluginmanager.register(CpuTimes(path))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Raise the time limit of a test on a busy machine, before pytest-timeout reads it."""
    limit = item.config.getoption("timeout", None) or float(item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(patience(limit)))
    return (yield)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Start more processes than there are cores, because tests wait for other processes.

    They wait for a quarter of the time, and the slow ones for half of it.
    """
    cores = os.cpu_count() or 1
    return 2 * cores if config.getoption("markexpr") == "slow" else cores + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "Scheduling":
    """Distribute tests by `xdist_group`; a test that crashes its process fails once, and the others still run."""
    from tests.support.scheduling import GroupScheduling

    return GroupScheduling(config, log)


LONGEST = (
    *("test_trackers", "test_ray_single_node", "test_ray_tune", "test_deploy", "test_triton", "test_external"),
    *("test_processes", "test_guide", "test_notebooks", "test_plugins"),
    *("test_page", "test_worker", "test_ablation", "test_reproduce", "test_report", "test_doctor"),
)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import test modules without garbage collection, and exempt what they imported from it.

    The imports create a million objects that stay. Without this, going through them takes 8 of 20 seconds of CPU time
    in each process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let Python free the imported objects at its end, or Triton would report them as leaks."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no process is still busy with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


if TYPE_CHECKING:
    from xdist.scheduler.protocol import Scheduling

    from tests.support.postgres import Server


@pytest.fixture(scope="session")
def server() -> "Iterator[Server]":
    """A private PostgreSQL server of this test process."""
    from tests.support.postgres import Server

    running = Server()
    yield running
    running.close()
