"""Scheduling of the tests: a group shares a process, and a test that crashes or hangs does not stop the run."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.patience import patience, wait_until
from tests.support.scheduling import GroupScheduling

ROOT = Path(__file__).resolve().parent.parent
TOGETHER = """
import os, pytest
from pathlib import Path

pytestmark = pytest.mark.xdist_group("together")

@pytest.mark.parametrize("number", range(12))
def test_in_a_group(number):
    with Path("processes").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " ")
    if number in (3, 4):
        os.abort()
"""
ALONE = """
import time, pytest

@pytest.mark.parametrize("number", range(12))
def test_alone(number):
    if number == 5:
        time.sleep(600)
"""


@pytest.mark.slow
def test_crashed_and_hanging_tests_fail_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "test_together.py").write_text(TOGETHER)
    (tmp_path / "test_alone.py").write_text(ALONE)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n")
    options = ["-q", "-n", "2", "--dist", "loadgroup", "--timeout", "5", "-p", "no:cacheprovider"]
    options += ["-p", "xdist.plugin", "-p", "pytest_timeout"]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # start faster
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=patience(300))
    assert done.stdout.splitlines()[-1].startswith("3 failed, 21 passed"), done.stdout
    for number in (3, 4):
        assert f"crashed while running 'test_together.py::test_in_a_group[{number}]" in done.stdout
    assert "Timeout" in done.stdout
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == 12
    order = list(dict.fromkeys(processes))
    assert len(order) <= 3, "one process for the group, and another one after each crash"
    assert sorted(processes, key=order.index) == processes, "never two at the same time"


def test_tests_of_a_group_are_one_unit_of_work(tmp_path: Path) -> None:
    (tmp_path / "test_together.py").write_text(TOGETHER)
    (tmp_path / "test_alone.py").write_text(ALONE)
    scheduling = SimpleNamespace(config=SimpleNamespace(rootpath=tmp_path))
    scopes = [
        GroupScheduling._split_scope(scheduling, f"test_{file}.py::test[{number}]")  # type: ignore[arg-type]
        for file in ("together", "alone")
        for number in (0, 1)
    ]
    assert scopes == ["together", "together", "test_alone.py::test[0]", "test_alone.py::test[1]"]


def test_waiting_takes_longer_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, seconds in ((0.0, 10.0), (2.0, 10.0), (3.0, 15.0), (12.0, 60.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert patience(10.0) == seconds


def test_waiting_ends_with_an_error_that_describes_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), "the third answer")
    with pytest.raises(AssertionError, match=r"after 0 s still false: the fourth answer"):
        wait_until(lambda: False, "the fourth answer", seconds=0.0)
