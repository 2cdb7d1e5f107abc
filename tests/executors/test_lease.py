"""Tests that a lease has a single holder when real processes die, freeze or race."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dnas.executors import lease as leases
from dnas.executors.lease import Lease, LeaseHeld, LeaseInfo, LeaseLost, is_dead, process_start, read_lease
from dnas.io import remove_torn
from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds to wait for an event that takes one
QUICK = {"beat_seconds": 0.1, "expiry_seconds": 2.0}

# Takes the lease and reports it. Reports for each line of its input whether it still has it. Releases it at the end.
HOLDER = """
import sys, pathlib
from dnas.executors.lease import Lease, LeaseLost
with Lease.take(pathlib.Path(sys.argv[1]), 3, 0.0, beat_seconds=0.1) as lease:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lease.check()
            print("held", flush=True)
        except LeaseLost as error:
            print("lost:", error, flush=True)
print("released", flush=True)
"""

# Races with other racers for one folder after another, and keeps the leases that it gets.
RACER = """
import sys, pathlib, time
from dnas.executors.lease import Lease, LeaseHeld
folders, start = sys.argv[2:], pathlib.Path(sys.argv[1])
print("ready", flush=True)
while not start.exists():
    pass
kept = []
for folder in folders:
    try:
        kept.append(Lease.take(pathlib.Path(folder), 1, 0.0))
        print(folder, flush=True)
    except LeaseHeld:
        pass
print("end", flush=True)
sys.stdin.read()
"""


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return line(process)


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = run(HOLDER, folder)
    try:
        assert line(process) == "held"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_lease_names_its_holder_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "7"
    assert read_lease(folder) is None
    with Lease.take(folder, attempt=2) as lease:
        info = read_lease(folder)
        assert info is not None
        assert (info.owner, info.pid, info.attempt, info.beat) == (lease.owner, os.getpid(), 2, 0)
        assert set(json.loads((folder / "lease.json").read_text())) == {
            "owner", "host", "pid", "process_started", "attempt", "beat", "since",
        }  # fmt: skip
        assert is_dead(info) is False
        lease.check()
    assert read_lease(folder) is None
    assert list(folder.iterdir()) == []


def test_beat_increments_in_the_file(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, 1)
    for beats in range(1, 120):
        lease.beat()
        info = read_lease(tmp_path)
        assert info is not None
        assert (info.owner, info.beat) == (lease.owner, beats)
    lease.release()
    with pytest.raises(LeaseLost, match="is gone"):
        lease.check()


def test_thread_sends_heartbeats_while_the_lease_is_held(tmp_path: Path) -> None:
    with Lease.take(tmp_path, 1, beat_seconds=0.02):
        began = time.monotonic()
        while (info := read_lease(tmp_path)) is not None and info.beat < 5:
            assert time.monotonic() - began < patience(PATIENCE)
        assert info is not None


def test_living_holder_keeps_the_lease(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        began = time.monotonic()
        # Longer than the expiry: the heartbeats keep the lease.
        with pytest.raises(LeaseHeld, match=f"its folder is in use by process {process.pid} on ") as error:
            Lease.take(tmp_path, 4, 4.0, **QUICK)
        assert time.monotonic() - began >= 4.0
        assert error.value.info.pid == process.pid
        assert error.value.info.attempt == 3
        assert ask(process) == "held"
        process.communicate()
    Lease.take(tmp_path, 4, 0.0).release()


def test_killed_holder_is_detected_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        info = read_lease(tmp_path)
        assert info is not None
        assert is_dead(info) is True
        with Lease.take(tmp_path, 4, 0.0):  # does not wait
            now = read_lease(tmp_path)
            assert now is not None
            assert (now.pid, now.attempt) == (os.getpid(), 4)


def test_killed_holder_is_dead_before_its_parent_waits_for_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        began = time.monotonic()
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() - began < patience(PATIENCE)
        Lease.take(tmp_path, 4, 0.0).release()


def test_holder_on_another_host_is_judged_by_its_beat_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
    with holder(tmp_path) as process:
        info = read_lease(tmp_path)
        assert info is not None
        assert is_dead(info) is None
        with pytest.raises(LeaseHeld):
            Lease.take(tmp_path, 4, 4.0, **QUICK)
        process.kill()
        process.wait()
        with pytest.raises(LeaseHeld):
            Lease.take(tmp_path, 4, 0.2, **QUICK)  # too short to detect it
        began = time.monotonic()
        lease = Lease.take(tmp_path, 4, **QUICK)
        assert time.monotonic() - began >= QUICK["expiry_seconds"]
        lease.release()


def test_frozen_holder_loses_the_lease_and_cannot_write_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with Lease.take(tmp_path, 4, **QUICK) as lease:
            process.send_signal(signal.SIGCONT)
            answer = ask(process)
            assert answer.startswith("lost: ")
            assert answer.endswith(f"is held by process {os.getpid()} on elsewhere, since {read_lease(tmp_path).since}")  # type: ignore[union-attr]
            time.sleep(0.5)  # several beats of both
            info = read_lease(tmp_path)
            assert info is not None
            assert info.owner == lease.owner
            assert process.communicate()[0] == "released\n"
            lease.check()  # the other process did not release this lease
        assert list(tmp_path.iterdir()) == []


def test_one_of_several_racers_gets_a_dead_lease(tmp_path: Path) -> None:
    dead = run("import os; print(os.getpid())")
    dead.communicate()
    folders = [tmp_path / str(number) for number in range(60)]
    for number, folder in enumerate(folders):
        lease = Lease.take(folder, 1)
        if number % 3 == 0:
            lease.release()  # this folder has no lease
        else:
            text = (folder / "lease.json").read_text()
            (folder / "lease.json").write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {dead.pid}'))
    racers = [run(RACER, tmp_path / "start", *folders) for _ in range(4)]
    try:
        assert [line(racer) for racer in racers] == ["ready"] * 4
        (tmp_path / "start").touch()
        taken: list[str] = []
        for racer in racers:
            while (folder_taken := line(racer)) != "end":
                assert folder_taken, "the racer failed"
                taken.append(folder_taken)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(taken) == sorted(map(str, folders))


def test_one_of_two_that_saw_the_holder_dead_replaces_it(tmp_path: Path) -> None:
    """The second one tries to replace the file that it read before the first one replaced it."""
    dead = Lease.take(tmp_path, 1)
    path = tmp_path / "lease.json"
    content = path.read_bytes()
    assert leases._replace(path, content, "first", 2) is not None
    assert leases._replace(path, content, "second", 2) is None
    assert leases._link(path, "third", 2) is None
    info = read_lease(tmp_path)
    assert info is not None
    assert info.owner == "first"
    dead.release()  # the previous holder wakes up and ends
    assert read_lease(tmp_path) == info
    assert [file.name for file in tmp_path.iterdir()] == ["lease.json"]


def test_holder_that_beats_during_the_replacement_keeps_the_lease(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, 1)
    content = (tmp_path / "lease.json").read_bytes()
    lease.beat()
    assert leases._replace(tmp_path / "lease.json", content, "hasty", 2) is None
    lease.check()


def test_later_process_with_the_same_pid_is_not_the_holder() -> None:
    start = process_start(os.getpid())
    assert start is not None
    system, _, moment = start.rpartition("/")
    info = LeaseInfo("me", leases.socket.gethostname(), os.getpid(), start, 1, 0, "")
    assert is_dead(info) is False
    assert is_dead(LeaseInfo("me", info.host, info.pid, f"{system}/{int(moment) - 1}", 1, 0, "")) is True
    # Another container with the same host name has its own pids.
    assert is_dead(LeaseInfo("me", info.host, info.pid, f"{system}x/{moment}", 1, 0, "")) is None


@pytest.mark.parametrize("content", ["", "{", '{"owner": "x"}', "[]"])
def test_unreadable_lease_file_is_waited_for(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    with pytest.raises(LeaseHeld):
        Lease.take(tmp_path, 1, 0.1, **QUICK)
    Lease.take(tmp_path, 1, beat_seconds=0.05, expiry_seconds=0.2).release()


def test_temporary_lease_file_is_removed_with_other_torn_files(tmp_path: Path) -> None:
    temporary = leases._write_aside(tmp_path / "lease.json", "a" * 32, 1)
    assert temporary.exists()
    remove_torn(tmp_path)
    assert not temporary.exists()
