"""Leases: one holder, whoever dies, freezes or races for it. Real processes, with SIGKILL and SIGSTOP."""

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
PATIENCE = 60.0  # seconds for a thing that takes one
QUICK = {"beat_seconds": 0.1, "expiry_seconds": 2.0}

# Takes the lease and says so; on each line of its input says whether it still has it; at the end gives it back.
HOLDER = """
import sys, pathlib
from dnas.executors.lease import Lease, LeaseLost
with Lease.take(pathlib.Path(sys.argv[1]), 3, 0.0, beat_seconds=0.1) as lease:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lease.check()
            print("mine", flush=True)
        except LeaseLost as error:
            print("lost:", error, flush=True)
print("released", flush=True)
"""

# Races for one folder after another with others of its kind, and keeps what it gets.
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


def test_a_lease_says_who_holds_it_and_leaves_nothing(tmp_path: Path) -> None:
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


def test_a_beat_counts_up_in_the_file(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, 1)
    for beats in range(1, 120):
        lease.beat()
        info = read_lease(tmp_path)
        assert info is not None
        assert (info.owner, info.beat) == (lease.owner, beats)
    lease.release()
    with pytest.raises(LeaseLost, match="is gone"):
        lease.check()


def test_a_thread_beats_as_long_as_it_is_held(tmp_path: Path) -> None:
    with Lease.take(tmp_path, 1, beat_seconds=0.02):
        began = time.monotonic()
        while (info := read_lease(tmp_path)) is not None and info.beat < 5:
            assert time.monotonic() - began < patience(PATIENCE)
        assert info is not None


def test_a_living_holder_keeps_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        began = time.monotonic()
        # Longer than a still beat is given: the beat is what keeps it.
        with pytest.raises(LeaseHeld, match=f"its folder is in use by process {process.pid} on ") as error:
            Lease.take(tmp_path, 4, 4.0, **QUICK)
        assert time.monotonic() - began >= 4.0
        assert error.value.info.pid == process.pid
        assert error.value.info.attempt == 3
        assert ask(process) == "mine"
        process.communicate()
    Lease.take(tmp_path, 4, 0.0).release()


def test_a_killed_holder_is_seen_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        info = read_lease(tmp_path)
        assert info is not None
        assert is_dead(info) is True
        with Lease.take(tmp_path, 4, 0.0):  # without any waiting
            now = read_lease(tmp_path)
            assert now is not None
            assert (now.pid, now.attempt) == (os.getpid(), 4)


def test_a_killed_holder_that_nobody_has_waited_for_is_dead_too(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        began = time.monotonic()
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() - began < patience(PATIENCE)
        Lease.take(tmp_path, 4, 0.0).release()


def test_from_another_host_only_the_beat_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            Lease.take(tmp_path, 4, 0.2, **QUICK)  # too short to know
        began = time.monotonic()
        lease = Lease.take(tmp_path, 4, **QUICK)
        assert time.monotonic() - began >= QUICK["expiry_seconds"]
        lease.release()


def test_a_frozen_holder_is_taken_for_dead_and_cannot_write_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with Lease.take(tmp_path, 4, **QUICK) as lease:
            process.send_signal(signal.SIGCONT)
            said = ask(process)
            assert said.startswith("lost: ")
            assert said.endswith(f"is held by process {os.getpid()} on elsewhere, since {read_lease(tmp_path).since}")  # type: ignore[union-attr]
            time.sleep(0.5)  # some beats of both
            info = read_lease(tmp_path)
            assert info is not None
            assert info.owner == lease.owner
            assert process.communicate()[0] == "released\n"
            lease.check()  # what the other gave back was not this
        assert list(tmp_path.iterdir()) == []


def test_of_those_who_race_for_a_dead_lease_one_gets_it(tmp_path: Path) -> None:
    gone = run("import os; print(os.getpid())")
    gone.communicate()
    folders = [tmp_path / str(number) for number in range(60)]
    for number, folder in enumerate(folders):
        lease = Lease.take(folder, 1)
        if number % 3 == 0:
            lease.release()  # one that nobody holds
        else:
            text = (folder / "lease.json").read_text()
            (folder / "lease.json").write_text(text.replace(f'"pid": {os.getpid()}', f'"pid": {gone.pid}'))
    racers = [run(RACER, tmp_path / "start", *folders) for _ in range(4)]
    try:
        assert [line(racer) for racer in racers] == ["ready"] * 4
        (tmp_path / "start").touch()
        taken: list[str] = []
        for racer in racers:
            while (said := line(racer)) != "end":
                assert said, "it failed"
                taken.append(said)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(taken) == sorted(map(str, folders))


def test_of_those_who_judged_it_dead_one_replaces_it(tmp_path: Path) -> None:
    """The second comes when the first has replaced it, with what it saw before: a race that no timing has to hit."""
    dead = Lease.take(tmp_path, 1)
    path = tmp_path / "lease.json"
    seen = path.read_bytes()
    assert leases._replace(path, seen, "first", 2) is not None
    assert leases._replace(path, seen, "second", 2) is None
    assert leases._link(path, "third", 2) is None
    info = read_lease(tmp_path)
    assert info is not None
    assert info.owner == "first"
    dead.release()  # it wakes, and ends
    assert read_lease(tmp_path) == info
    assert [left.name for left in tmp_path.iterdir()] == ["lease.json"]


def test_a_holder_that_beats_while_it_is_judged_keeps_it(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, 1)
    seen = (tmp_path / "lease.json").read_bytes()
    lease.beat()
    assert leases._replace(tmp_path / "lease.json", seen, "hasty", 2) is None
    lease.check()


def test_another_process_with_the_same_pid_is_another() -> None:
    start = process_start(os.getpid())
    assert start is not None
    system, _, moment = start.rpartition("/")
    info = LeaseInfo("me", leases.socket.gethostname(), os.getpid(), start, 1, 0, "")
    assert is_dead(info) is False
    assert is_dead(LeaseInfo("me", info.host, info.pid, f"{system}/{int(moment) - 1}", 1, 0, "")) is True
    # Another container of the same name numbers its processes in its own way.
    assert is_dead(LeaseInfo("me", info.host, info.pid, f"{system}x/{moment}", 1, 0, "")) is None


@pytest.mark.parametrize("content", ["", "{", '{"owner": "x"}', "[]"])
def test_a_file_that_says_nothing_is_waited_for(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    with pytest.raises(LeaseHeld):
        Lease.take(tmp_path, 1, 0.1, **QUICK)
    Lease.take(tmp_path, 1, beat_seconds=0.05, expiry_seconds=0.2).release()


def test_what_a_kill_leaves_of_a_lease_is_cleared_with_the_rest(tmp_path: Path) -> None:
    left = leases._write_aside(tmp_path / "lease.json", "a" * 32, 1)
    assert left.exists()
    remove_torn(tmp_path)
    assert not left.exists()
