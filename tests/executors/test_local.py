"""Tests of jobs in real processes: messages, failures and the files that remain after they are killed."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dnas.arch import cost, parse_name
from dnas.data.catalog import data_info
from dnas.executors import local
from dnas.executors.lease import Lease, LeaseLost, read_lease
from dnas.executors.local import LocalExecutor
from dnas.executors.worker import REASONS, Job, Message, limit_memory, run_job
from dnas.io import DiskFull
from dnas.study.folder import StudyFolder
from dnas.training import fit as train
from dnas.training.checkpoint import read_checkpoint
from dnas.training.forkserver import start, start_forkserver
from dnas.training.recipe import make_recipe
from tests.support.patience import patience

SPEC = parse_name("densenet-bc:layers=2-1,k=4,dropout=0.2,channels=1,size=8")
PATIENCE = 120.0  # seconds to wait for an event that takes a few


def job(folder: Path, key: str = "a", name: str | None = None, **changes: Any) -> Job:
    spec = SPEC if name is None else parse_name(name)
    recipe = make_recipe("fast", data_info("digits"), epochs=3, batch_size=64)
    values: dict[str, Any] = {
        "key": key,
        "folder": str(folder),
        "spec": spec.to_dict(),
        "recipe": recipe.to_dict(),
        "data": {"name": "digits", "subset": 300},
        "seed": (3, 1),
        "params": cost(spec).params,
    }
    return Job(**values | changes)


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(workers=2)
    yield executor
    executor.stop()


def messages(executor: LocalExecutor, until: tuple[str, ...] = ("done", "failed", "lost")) -> list[tuple[str, Message]]:
    """Continue every epoch; return the messages up to the first of the kinds `until`."""
    received: list[tuple[str, Message]] = []
    began = time.monotonic()
    while time.monotonic() - began < patience(PATIENCE):
        for key, message in executor.wait(1.0):
            received.append((key, message))
            if message.kind == "epoch" and "epoch" not in until:
                executor.answer(key, True)
        if any(message.kind in until for _, message in received):
            return received
    raise AssertionError(f"received only {received}")


def test_job_sends_its_device_then_its_epochs_then_its_result(executor: LocalExecutor, tmp_path: Path) -> None:
    before = executor.clock()
    executor.start(job(tmp_path, device="ignored"))
    assert executor.running == ["a"]
    received = [message for _, message in messages(executor) if message.kind != "step"]
    assert [message.kind for message in received] == ["started", "epoch", "epoch", "epoch", "done"]
    assert received[0].values == {"device": "cpu", "latency": None, "resident_bytes": 0, "kernels": "plain"}
    assert [message.values["epoch"] for message in received[1:4]] == [1, 2, 3]
    assert received[-1].values["finished"]
    assert received[-1].values["peak_memory_bytes"] > 50e6
    assert executor.running == []
    assert executor.clock() > before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "curve.csv", "norms.npz"]


def test_room_is_limited_by_the_number_of_workers(executor: LocalExecutor, tmp_path: Path) -> None:
    for key in "ab":
        assert executor.room(job(tmp_path / key, key))
        executor.start(job(tmp_path / key, key))
    assert not executor.room(job(tmp_path / "c", "c"))
    executor.kill("a")
    assert executor.room(job(tmp_path / "c", "c"))
    assert not executor.room(job(tmp_path / "c", "c", alone=True))
    messages(executor)
    assert executor.room(job(tmp_path / "c", "c", alone=True))


def test_killed_job_sends_nothing_and_resumes_from_its_checkpoint(executor: LocalExecutor, tmp_path: Path) -> None:
    executor.start(job(tmp_path / "whole"))
    whole = messages(executor)[-1][1].values
    executor.start(job(tmp_path / "killed"))
    messages(executor, until=("epoch",))
    executor.kill("a")
    assert executor.running == []
    assert executor.wait(0.2) == []
    assert len(read_checkpoint(tmp_path / "killed" / "checkpoint.pt")["curve"]) == 1
    assert read_lease(tmp_path / "killed") is not None
    executor.start(job(tmp_path / "killed", attempt=2))
    received = messages(executor)
    assert received[-1][1].values["weights_digest"] == whole["weights_digest"]
    assert [m.values["epoch"] for _, m in received if m.kind == "epoch"] == [1, 2, 3]
    assert read_lease(tmp_path / "killed") is None


@pytest.mark.parametrize(("signal_name", "crashed"), [("SIGKILL", False), ("SIGSEGV", True), ("SIGABRT", True)])
def test_job_whose_process_dies_is_lost(
    executor: LocalExecutor, tmp_path: Path, signal_name: str, crashed: bool
) -> None:
    executor.start(job(tmp_path))
    messages(executor, until=("epoch",))
    info = read_lease(tmp_path)
    assert info is not None
    assert info.attempt == 1
    os.kill(info.pid, signal.Signals[signal_name])
    key, message = messages(executor)[-1]
    assert (key, message.kind, message.values["text"]) == ("a", "lost", f"its process was ended by {signal_name}")
    assert message.values.get("crashed", False) == crashed
    assert executor.room(job(tmp_path))


def test_measuring_the_latency_does_not_change_the_result(executor: LocalExecutor, tmp_path: Path) -> None:
    results = {}
    for measured in (False, True):
        executor.start(job(tmp_path / str(measured), measure_latency=measured))
        received = [message for _, message in messages(executor)]
        latency = received[0].values["latency"]
        assert (1e-5 < latency < 1) if measured else latency is None
        results[measured] = received[-1].values["weights_digest"]
    assert results[True] == results[False]


# A step of this network needs 1.4 GB of activations, or 0.3 GB with recomputation.
DEEP = "densenet-bc:layers=45,k=4,channels=1,size=8"
LIMIT_BYTES = 800_000_000


def test_workers_collect_garbage_but_not_what_their_server_imported() -> None:
    context = start_forkserver()
    pipe, child_pipe = context.Pipe()
    code = "import gc; pipe.send((gc.isenabled(), gc.get_freeze_count()))"
    process = context.Process(target=exec, args=(code, {"pipe": child_pipe}))
    start(process)
    enabled, exempt = pipe.recv()
    process.join()
    assert enabled
    assert exempt > 100_000


@pytest.mark.slow
def test_job_out_of_memory_fails_and_fits_with_recomputation(executor: LocalExecutor, tmp_path: Path) -> None:
    recipe = make_recipe("fast", data_info("digits"), epochs=1, batch_size=512).to_dict()
    large_job = job(
        tmp_path, name=DEEP, recipe=recipe, memory_limit_bytes=LIMIT_BYTES, data={"name": "digits", "subset": 600}
    )
    executor.start(large_job)
    failed = messages(executor)[-1][1]
    assert failed.kind == "failed"
    assert failed.values["reason"] == "out of memory"
    assert "allocate" in failed.values["text"]
    assert not (tmp_path / "traceback.txt").exists()
    assert list(tmp_path.iterdir()) == []
    executor.start(dataclasses.replace(large_job, recompute=True, attempt=2))
    done = messages(executor)[-1][1]
    assert done.kind == "done", done.values
    assert done.values["finished"]


# --- jobs in the test process, without a pipe ---------------------------------------------------------------------


def listen(job: Job) -> list[Message]:
    received: list[Message] = []
    run_job(job, received.append, lambda message: not received.append(message))  # type: ignore[func-returns-value]
    return received


def test_a_job_measures_the_metrics_that_its_study_asks_for(tmp_path: Path) -> None:
    received = listen(job(tmp_path, metrics=("auroc_error", "f1_error")))
    rows = [message.values for message in received if message.kind == "epoch"]
    done = received[-1].values
    assert done["metrics"] == {name: rows[-1][name] for name in ("auroc_error", "f1_error")}
    assert all(low <= done["metrics"][name] <= high for name, (low, high) in done["intervals"].items())
    assert set(done["intervals"]) == set(done["metrics"])
    assert (tmp_path / "curve.csv").read_text().splitlines()[0].endswith(",seconds,auroc_error,f1_error")
    plain = listen(job(tmp_path / "plain"))
    assert plain[-1].values["weights_digest"] == done["weights_digest"], "a measurement draws no random numbers"
    assert not {"metrics", "intervals"} & set(plain[-1].values)
    assert "auroc_error" not in plain[1].values


def test_failures_have_a_reason_of_the_list(tmp_path: Path) -> None:
    diverging = make_recipe("fast", data_info("digits"), epochs=1, batch_size=64, learning_rate=1e30, warmup=0.0)
    for name, changes, reason, text in [
        ("diverged", {"recipe": diverging.to_dict()}, "diverged", "the training loss is "),
        ("input", {"data": {"name": "nothing"}}, "input", "nothing"),
        ("error", {"data": {"nonsense": 1}}, "error", "TypeError: "),
    ]:
        last = listen(job(tmp_path / name, **changes))[-1]
        assert (last.kind, last.values["reason"]) == ("failed", reason)
        assert reason in REASONS
        assert text in last.values["text"]
        assert (tmp_path / name / "traceback.txt").exists() == (reason in ("input", "error"))
        assert read_lease(tmp_path / name) is None


def test_full_disk_has_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFull("no room left to write it")

    monkeypatch.setattr(train, "write_checkpoint", full)
    last = listen(job(tmp_path))[-1]
    assert (last.kind, last.values) == ("failed", {"reason": "disk full", "text": "no room left to write it"})


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    last = listen(job(tmp_path / "file" / "trial"))[-1]
    assert (last.kind, last.values["reason"]) == ("failed", "error")


def test_folder_in_use_by_another_process_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".checkpoint.pt.4711").write_bytes(b"half of a checkpo")
    monkeypatch.setattr(Lease.take.__func__, "__kwdefaults__", {"beat_seconds": 0.05, "expiry_seconds": 0.5})
    with Lease.take(tmp_path, 1):
        received = listen(job(tmp_path))
    assert [message.kind for message in received] == ["lost"]
    assert (
        received[0]
        .values["text"]
        .startswith(f"its folder is in use by process {os.getpid()} on {socket.gethostname()}")
    )
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint.pt.4711"]
    listen(job(tmp_path))  # with the lease, the torn file is removed
    assert not (tmp_path / ".checkpoint.pt.4711").exists()


def test_process_that_lost_the_lease_ends_without_a_message_or_a_write(tmp_path: Path) -> None:
    received: list[Message] = []
    content: dict[str, bytes] = {}

    def ask(message: Message) -> bool:
        received.append(message)
        if message.values["epoch"] == 2:  # another process takes over between two checkpoints
            info = json.loads((tmp_path / "lease.json").read_text())
            (tmp_path / "lease.json").write_text(json.dumps(info | {"owner": "another", "beat": 1}))
            content.update({path.name: path.read_bytes() for path in tmp_path.iterdir()})
        return True

    with pytest.raises(LeaseLost):
        run_job(job(tmp_path), received.append, ask)
    assert [message.kind for message in received if message.kind != "step"] == ["started", "epoch", "epoch"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


# --- simulated GPUs -----------------------------------------------------------------------------------------------


def test_measured_peaks_on_gpus_affect_the_next_placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "total_bytes", lambda name: 10 * 2**30)
    executor = LocalExecutor(workers=9, devices=("cuda:0", "cuda:1"))
    started: list[str] = []

    class Process:
        def __init__(self, target: object, args: tuple[Job, Any], daemon: bool) -> None:
            started.append(args[0].device)
            self.pipe = args[1]

        def start(self) -> None:
            self.pipe.send(Message("started", {"device": "cuda:0", "latency": None, "resident_bytes": 2**30}))
            self.pipe.send(Message("done", {"peak_memory_bytes": 9 * 2**30}))

        def join(self, timeout: float | None = None) -> None: ...
        def close(self) -> None: ...

    monkeypatch.setattr(executor._context, "Process", Process)
    two = job(tmp_path, "a", activation_bytes=2 * 2**30), job(tmp_path, "b", activation_bytes=2 * 2**30)
    for first in two:
        assert executor.room(first)
        executor.start(first)
    assert started == ["cuda:0", "cuda:1"]
    assert executor.room(job(tmp_path, "c", activation_bytes=2 * 2**30))
    while executor.running:
        executor.wait(1.0)
    assert executor._ledger.resident_bytes == 2**30
    assert [measured for _, measured in executor._ledger.measured] == [8 * 2**30] * 2
    executor.start(job(tmp_path, "d", activation_bytes=2 * 2**30))
    executor.start(job(tmp_path, "e", activation_bytes=2 * 2**30))
    assert not executor.room(job(tmp_path, "f", activation_bytes=2 * 2**30)), "each of the first two jobs used 8 GiB"
    while executor.running:
        executor.wait(1.0)


def test_memory_limit_of_a_gpu_is_a_fraction_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    caps: list[tuple[float, str]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: caps.append((share, device))
    )
    limit_memory(20 * 2**30, "cuda:1")
    limit_memory(200 * 2**30, "cuda:1")
    assert caps == [(0.25, "cuda:1"), (1.0, "cuda:1")]


def test_cpu_has_no_memory_limit() -> None:
    assert local.total_bytes("cpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_gpu_is_an_error() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        LocalExecutor(devices=("cuda:0",))


SCRIPT = """
print("my program runs", flush=True)
from dnas.api.display import PlainLines
from dnas.strategy.run import search
from dnas.space.parse import load_space
from dnas.study.config import RunConfig, SearchConfig

run = RunConfig({"name": "digits", "subset": 100}, kernels="plain")
print(search(SearchConfig(load_space("tiny", epochs=1), "mine", 1, run, mirror="none"), PlainLines()))
"""


@pytest.mark.slow
def test_script_without_a_guard_runs_once_and_its_trials_succeed(tmp_path: Path) -> None:
    """A new Python, because the forkserver of a forked one has its main module already."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    command = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (command.returncode, command.stderr) == (0, "")
    assert command.stdout.count("my program runs") == 1
    assert "Outcome(trials=1, exhausted=False, stopped_by=None)" in command.stdout
    assert StudyFolder(tmp_path / "studies/mine").records()[0].state == "complete"


def test_processes_of_trials_do_not_import_the_program_that_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    program, told = ModuleType("__main__"), {}
    program.__file__ = "mine.py"
    monkeypatch.setitem(sys.modules, "__main__", program)

    class Process:
        def start(self) -> None:
            told.update(get_preparation_data("worker"))

    start(Process())  # type: ignore[arg-type]
    assert told
    assert not [key for key in told if key.startswith("init_main")]
    assert sys.modules["__main__"] is program
