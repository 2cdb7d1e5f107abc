"""Commands that the tests start by a fork behave like those of a new Python."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import Command
from tests.support.patience import patience, wait_until

pytestmark = pytest.mark.xdist_group("commands")  # one server for all tests that fork commands

TWO_PROCESSES = """
import multiprocessing, os, signal, sys, time
process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
process.start()
print(process.pid, os.getppid(), multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)
signal.pause()
"""


def test_a_command_runs_in_its_folder_with_its_arguments_and_environment(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(sys.argv[1:], os.getcwd(), dict(os.environ)); print('no', file=sys.stderr); sys.exit(3)"
    )
    command = Command("a", "b c", code=code, folder=tmp_path, environment={"KEY": "value"})
    out, errors = command.communicate(patience(60))
    assert (command.returncode, command.poll()) == (3, 3)
    assert out == f"{['a', 'b c']} {tmp_path} {{'KEY': 'value'}}\n"
    assert errors == "no\n"


def test_errors_and_signals_end_a_command_as_they_end_python() -> None:
    failing = Command(code="import atexit; atexit.register(print, 'end'); 1 / 0", merge=True)
    out, _ = failing.communicate(patience(60))
    assert failing.returncode == 1
    assert out.rstrip().endswith("end")
    assert "ZeroDivisionError: division by zero" in out
    for number, status in ((signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
        waiting = Command(code="import signal; print('here', flush=True); signal.pause()")
        wait_until(lambda command=waiting: os.fstat(command.out.fileno()).st_size, "its first line")
        assert waiting.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.0)
        waiting.send_signal(number)
        assert waiting.wait(patience(60)) == status
    assert "KeyboardInterrupt" not in Command("spaces").communicate(patience(60))[1]


def test_forkserver_of_a_killed_command_ends_with_it() -> None:
    """The forked forkserver holds none of the command's descriptors, so it ends when the command does."""
    command = Command(code=TWO_PROCESSES)
    wait_until(lambda: os.fstat(command.out.fileno()).st_size, "the numbers of its processes")
    command.kill()
    out, _ = command.communicate(patience(60))
    worker, _, server = map(int, out.split())
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{server}").exists(), "the end of the forkserver")
