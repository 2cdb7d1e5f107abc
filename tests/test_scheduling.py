"""The test run itself: what happens to it when a test takes its process down or hangs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import os, time, pytest

@pytest.mark.parametrize("number", range(12))
@pytest.mark.xdist_group("together")
def test_in_a_group(number):
    if number in (3, 4):
        os.abort()

@pytest.mark.parametrize("number", range(12))
def test_alone(number):
    if number == 5:
        time.sleep(60)
"""


def test_a_crashed_process_is_a_failed_test_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "test_crash.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler\n")
    options = ["-q", "-n", "2", "--dist", "loadgroup", "--timeout", "5", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines()[-1].startswith("3 failed, 21 passed"), done.stdout
    assert "crashed while running" in done.stdout
    assert "test_crash.py::test_in_a_group[3]@together" in done.stdout
    assert "Timeout" in done.stdout
