"""Tests of `dnas search` as a process with workers, killed at critical moments with SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from benchmarks.kill_search import SLOW_RENAME
from benchmarks.kill_workers import command as kill_command
from benchmarks.kill_workers import failed_checks, kill_at_random
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from tests.support.commands import Command
from tests.support.patience import patience, wait_until

pytestmark = pytest.mark.xdist_group("commands")  # one server for all tests that fork commands

SEARCH = ["search", "--space", "tiny", "--trials", "4", "--epochs", "4", "--stopping", "none"]
SEARCH += ["--kernels", "plain"]  # autotuning may choose differently on a busy machine
COMMAND = [sys.executable, "-m", "dnas", *SEARCH]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
PATIENCE = 120.0  # seconds to wait for an event that takes about five


def essence(folder: Path) -> list[tuple[object, ...]]:
    records: list[TrialRecord] = StudyFolder(folder / "studies" / "tiny").records()
    return [(r.number, r.state, r.digest, r.val_error, r.val_loss, r.epochs, r.weights_digest) for r in records]


def run(folder: Path, *arguments: str) -> str:
    """Run a command to its end, and return its output."""
    command = Command(*arguments, folder=folder)
    out, errors = command.communicate(patience(PATIENCE))
    assert command.returncode == 0, errors
    return out


def new_python(folder: Path, *path: str) -> "subprocess.Popen[bytes]":
    """Start the command as a new Python. path: Folders of modules to import first."""
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([*path, str(ROOT)])}
    return subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(
    folder: Path, condition: Callable[[Path], bool], process: "subprocess.Popen[bytes] | Command | None" = None
) -> None:
    """Kill the driver of the command, but not its workers, as soon as `condition(study)` is true.

    Args:
        folder: Folder of the command.
        condition: Called with the study.
        process: The command (default: a process that is forked).
    """
    process = process or Command(*SEARCH, folder=folder)
    began = time.monotonic()
    while not condition(folder / "studies" / "tiny"):
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() - began < patience(PATIENCE)
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def events(study: Path) -> tuple[dict[str, object], ...]:
    log = study / "events.jsonl"
    return _events(study, log.stat().st_size if log.exists() else 0)


@lru_cache(1)
def _events(study: Path, size: int) -> tuple[dict[str, object], ...]:
    """Read the log only if its size changed, since tests poll it while the command needs the processor."""
    return tuple(StudyFolder(study).events())


def test_killed_search_resumes_with_an_identical_result(tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "alone", tmp_path / "killed"
    uninterrupted.mkdir()
    killed.mkdir()
    kill_when(killed, lambda study: any(event["event"] == "report" for event in events(study)))
    out = run(killed, *SEARCH)
    assert "best      #" in out
    run(uninterrupted, *SEARCH)
    assert essence(killed) == essence(uninterrupted)
    assert [row[1] for row in essence(killed)] == ["complete"] * 4
    asked = [event["number"] for event in events(killed / "studies" / "tiny") if event["event"] == "ask"]
    assert asked == [0, 1, 2, 3]


@pytest.mark.slow
def test_search_killed_at_every_stage_ends_with_an_identical_result(tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "alone", tmp_path / "killed"
    uninterrupted.mkdir()
    killed.mkdir()
    run(uninterrupted, *SEARCH)

    def after_an_ask(study: Path) -> bool:
        return any(event["event"] == "ask" for event in events(study))

    def inside_an_epoch(study: Path) -> bool:
        return any(event["event"] == "report" for event in events(study))

    def while_a_checkpoint_is_written(study: Path) -> bool:
        return any(study.glob("trials/*/.checkpoint.pt.*"))

    def before_a_tell(study: Path) -> bool:
        return any(
            event["event"] == "report" and event["number"] == 2 and event["epoch"] == 4 for event in events(study)
        )

    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_RENAME)
    kill_when(killed, after_an_ask)
    kill_when(killed, inside_an_epoch)
    kill_when(killed, while_a_checkpoint_is_written, new_python(killed, str(slow)))
    assert list(killed.rglob(".checkpoint.pt.*")), "the kill interrupted the write of a checkpoint"
    kill_when(killed, before_a_tell)
    out = run(killed, *SEARCH)
    assert "best      #" in out
    assert essence(killed) == essence(uninterrupted)
    assert len(essence(killed)) == 4
    assert {row[1] for row in essence(killed)} == {"complete"}
    asked = [event["number"] for event in events(killed / "studies" / "tiny") if event["event"] == "ask"]
    assert asked == [0, 1, 2, 3]
    assert not list(killed.rglob(".*.[0-9]*")), "partial files of the kills are removed"


def wait_for_a_report(folder: Path) -> None:
    study = folder / "studies" / "tiny"
    wait_until(
        lambda: any(event["event"] == "report" for event in events(study)),
        "a first epoch",
        seconds=PATIENCE,
        pause=0.001,
    )


def test_ctrl_c_prints_the_command_that_resumes_the_search(tmp_path: Path) -> None:
    process = Command(*SEARCH, folder=tmp_path)
    wait_for_a_report(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals the driver and its workers
    out, errors = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 130
    assert "every finished epoch is saved in studies/tiny" in out
    assert "dnas search --space tiny --trials 4" in out
    assert "Traceback" not in errors
    assert {row[1] for row in essence(tmp_path)} >= {"running"}
    run(tmp_path, *SEARCH)
    assert {row[1] for row in essence(tmp_path)} == {"complete"}


def test_killed_worker_is_replaced_and_its_trial_resumes(tmp_path: Path) -> None:
    process = Command(*SEARCH, folder=tmp_path)
    wait_for_a_report(tmp_path)
    for pid in descendants(process.pid):
        if children(pid) == []:  # a worker: the others are the forkservers that started it
            os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 0
    assert "its process was ended by SIGKILL; resuming from its checkpoint" in out
    records = StudyFolder(tmp_path / "studies/tiny").records()
    assert [record.state for record in records] == ["complete"] * 4
    assert max(record.attempts for record in records) == 2


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


def descendants(pid: int) -> list[int]:
    processes = []
    for child in children(pid):
        processes += [child, *descendants(child)]
    return [pid for pid in processes if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_diverged_trials_are_recorded(tmp_path: Path) -> None:
    assert "2 failed" in run(tmp_path, *SEARCH[:5], "--learning-rate", "1e30", "--trials", "2")
    record = json.loads((tmp_path / "studies/tiny/trials/0/record.json").read_text())
    assert record["reason"].startswith("diverged: the training loss is ")


def test_retraining_evaluates_on_the_test_set(tmp_path: Path) -> None:
    out = run(tmp_path, *SEARCH[:3], "--trials", "1", "--epochs", "1", "--retrain-best", "1")
    assert "% test error, 1 seed\n" in out
    record = json.loads((tmp_path / "studies/tiny/retrain/0-1/record.json").read_text())
    assert record["val_error"] is None
    assert record["data"]["val_size"] == 0
    assert round(record["test_error"] * 359) == pytest.approx(record["test_error"] * 359)


@pytest.mark.slow
def test_search_with_several_objectives_and_workers_survives_random_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three random SIGKILLs hit workers, the driver or both. Every trial is accounted for, and some are retried.

    benchmarks/kill_workers.py does the same a hundred times.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = kill_command(trials=6, epochs=9)[3:]  # without `python -m dnas.cli`

    def start(folder: Path, run: list[str]) -> Command:
        return Command(*run, folder=folder, merge=True)

    kills = kill_at_random(tmp_path, run, kills=3, seed=3, pause=(0.3, 2.0), start=start)
    assert kills
    monkeypatch.chdir(tmp_path)
    study = StudyFolder(Path("studies/front"))
    assert failed_checks(study, trials=6, retrained=2) == []
    assert study.config()["objective"] == "val_error,params"


def test_ctrl_c_while_python_shuts_down_prints_nothing() -> None:
    code = """if True:
        import atexit, sys, time
        from dnas.cli import entry_point
        atexit.register(lambda: (print("closing", flush=True), time.sleep(2)))
        sys.argv = ["dnas", "spaces"]
        sys.exit(entry_point())
    """
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line == "closing\n" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
