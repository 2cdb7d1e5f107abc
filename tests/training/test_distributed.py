"""A network trained by several processes equals the one trained by a single process, to rounding.

The tests run in float64. In float32, units at the kink of the ReLU flip, and gradients of two orders of summation
differ by a thousandth.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dnas.cli import main
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.training.checkpoint import load_run
from dnas.training.distributed import ALONE, is_loss_of_peer, join_group
from dnas.training.launch import LOST_PEER, launch
from dnas.training.single import check_processes
from tests.support.commands import Command
from tests.support.data_files import write_folder
from tests.support.distributed import WORLDS, fail, norm_in_bf16, run_all_cases, train
from tests.support.patience import patience

pytestmark = pytest.mark.xdist_group("distributed")  # the processes of the fixture run once

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 120.0  # for steps that take about five seconds


def differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, float]:
    """Return the largest difference of each result that differs by more than rounding."""
    assert left.keys() == right.keys()
    distances = {}
    for key in left.keys() - {"digest"}:
        if isinstance(left[key], dict):  # further metrics, which no run asked for
            assert left[key] == right[key] == {}
            continue
        a, b = (torch.as_tensor(0.0 if side[key] is None else side[key]).double() for side in (left, right))
        assert a.shape == b.shape
        allowed = 1e-6 if key.endswith("val_loss") else 1e-10  # `evaluate` sums float32
        if not (distance := (a - b).abs().max().item()) < allowed:
            distances[key] = distance
    return distances


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the results of each process by (number of processes, rank).

    One of the runs is started by two processes, resumed by a single process, and finished by three.
    """
    folder = tmp_path_factory.mktemp("runs")
    config = argparse.Namespace(folder=folder)
    assert launch(run_all_cases, config, 2, "") == 0
    assert len(load_run(folder / "run/checkpoint.pt").curve) == 1
    train("bottleneck", epochs=3, folder=folder / "run", report=lambda epoch: epoch.epoch < 2)
    assert launch(run_all_cases, config, 3, "") == 0
    assert not (folder / "never").exists(), "only the first writes"
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["checkpoint.pt", "curve.csv", "norms.npz"]
    return {
        (world, rank): torch.load(folder / f"{world}-{rank}.pt", weights_only=False)
        for world in WORLDS
        for rank in range(world)
    }


Runs = dict[tuple[int, int], dict[str, Any]]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "case"), [(world, case) for world in WORLDS for case in WORLDS[world]])
def test_several_processes_equal_a_single_one(runs: Runs, world: int, case: str) -> None:
    """Curve, weights and running statistics."""
    alone = train(case)
    assert differences(runs[world, 0][case], alone) == {}
    digests = {runs[world, rank][case]["digest"] for rank in range(world)}
    assert len(digests) == 1, "the processes must not drift apart by a bit"


@pytest.mark.slow
def test_statistics_of_each_slice_alone_change_the_result(runs: Runs) -> None:
    distances = differences(runs[2, 0]["local statistics"], train("bottleneck"))
    assert distances["epoch 2 train_loss"] > 1e-4
    assert distances["state features.norm5.running_var"] > 1e-4


@pytest.mark.slow
def test_recomputation_changes_no_bit_with_several_processes(runs: Runs) -> None:
    assert runs[3, 0]["empty, recomputed"]["digest"] == runs[3, 0]["empty"]["digest"]


@pytest.mark.slow
def test_run_can_be_resumed_by_any_number_of_processes(runs: Runs) -> None:
    assert differences(runs[3, 0]["resumed"], train("bottleneck", epochs=3)) == {}
    assert not [name for name in runs[3, 0]["resumed"] if "module." in name]


@pytest.mark.slow
def test_only_rank_0_reports_and_its_answer_applies_to_all(runs: Runs) -> None:
    assert [runs[2, rank]["reported"] for rank in (0, 1)] == [[1], []]
    assert [runs[3, rank]["reported"] for rank in (0, 1, 2)] == [[1, 2, 3], [], []]
    assert "epoch 2 train_loss" not in runs[2, 1]["resumed"]


@pytest.mark.slow
def test_all_processes_detect_divergence(runs: Runs) -> None:
    assert runs[2, 0]["diverged"].startswith("the training loss is ")
    assert runs[2, 0]["diverged"] == runs[2, 1]["diverged"]


@pytest.mark.slow
def test_dropout_is_repeatable_for_a_number_of_processes(runs: Runs) -> None:
    assert runs[2, 0]["dropout 0"] == runs[2, 0]["dropout 1"] == runs[2, 1]["dropout 1"]


@pytest.mark.slow
def test_sum_and_max_over_processes(runs: Runs) -> None:
    for (world, rank), results in runs.items():
        assert results["sum"].tolist() == [sum(range(world)), world], rank
        assert results["max"] == world - 1
    assert ALONE.max(3, "cpu") == 3


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_norm_of_bf16_maps_equals_the_norm_of_the_whole_batch(runs: Runs, world: int) -> None:
    parts = [runs[world, rank]["norm"] for rank in range(world)]
    whole = norm_in_bf16(None)
    for number in (0, 1):
        together = torch.cat([part[number] for part in parts])
        torch.testing.assert_close(together, whole[number], rtol=0.02, atol=0.02)
    for number in (2, 3):
        torch.testing.assert_close(sum(part[number] for part in parts), whole[number], rtol=1e-3, atol=1e-3)


# data


def test_slices_concatenate_to_the_batch(tmp_path: Path) -> None:
    write_folder(tmp_path / "small", "train", ["a", "b"], 31, 16)
    write_folder(tmp_path / "large", "train", ["a", "b"], 6, 110)
    for name, augmentation in (("small", "crop+flip"), ("small", "none"), ("large", "resized-crop+flip")):
        side = 16 if name == "small" else 100
        data = load_dataset(f"folder:{tmp_path / name}", augmentation=augmentation, image_size=side)
        data = dataclasses.replace(data, workers=0)
        size = 9 if name == "small" else 4
        generator = torch.Generator().manual_seed(5)
        whole, after = list(data.train_batches(size, generator)), generator.get_state()
        for ranks in (1, 2, 3, 5):
            shares = []
            for rank in range(ranks):
                generator.manual_seed(5)
                share = dataclasses.replace(data, share=(rank, ranks))
                shares.append(list(share.train_batches(size, generator)))
                assert torch.equal(generator.get_state(), after), "the next epoch must not depend on the share"
                assert share.describe() == data.describe()
            for (x, y), *parts in zip(whole, *shares, strict=True):
                sizes = [len(part[1]) for part in parts]
                assert max(sizes) - min(sizes) <= 1
                assert torch.equal(torch.cat([part[0] for part in parts]), x)
                assert torch.equal(torch.cat([part[1] for part in parts]), y)
        if name == "small":
            assert len(whole[-1][1]) == 2, "some of three or more slices must be empty"


def test_every_image_is_validated_by_exactly_one_process() -> None:
    data = load_dataset("digits", subset=300)
    whole = [y.tolist() for _, y in data.batches("val", 8)]
    shares = [
        [y.tolist() for _, y in dataclasses.replace(data, share=(rank, 3)).batches("val", 8)] for rank in range(3)
    ]
    assert sorted(map(tuple, whole)) == sorted(tuple(batch) for share in shares for batch in share)
    assert len(whole) == 4


# launch


@pytest.mark.parametrize(
    ("how", "rank", "status", "errors"),
    [
        ("error", 1, 1, ["the cause", "ZeroDivisionError"]),
        ("input", 1, 2, ["the cause", "dnas: `N > 0` must hold.\n"]),
        ("status", 1, 1, ["the cause\n"]),
        ("kill", 1, 1, ["dnas: the process of rank 1 was ended by SIGKILL; resume so.\n"]),
        ("kill", 0, 1, ["dnas: the process of rank 0 was ended by SIGKILL; resume so.\n"]),
    ],
)
def test_failure_of_one_process_ends_all(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    rank: int,
    status: int,
    errors: list[str],
) -> None:
    monkeypatch.setattr("dnas.training.launch.GRACE_SECONDS", 0.3)
    config = argparse.Namespace(how=how, rank=rank)
    started = time.monotonic()
    assert launch(fail, config, 2, "resume so.") == status
    assert time.monotonic() - started < patience(TIMEOUT_SECONDS / 4)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(text in printed.err for text in errors), printed.err
    if how == "kill":
        assert printed.err == errors[0]


def test_lost_process_is_distinguished_from_other_errors() -> None:
    assert is_loss_of_peer(dist.DistBackendError("NCCL error"))
    assert is_loss_of_peer(
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    )
    assert not is_loss_of_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_loss_of_peer(ValueError("gloo"))


COMMAND = ["train", "densenet-bc:layers=1-1,k=4", "--dataset", "digits", "--epochs", "6", "--out", "run"]
COMMAND += ["--device", "cpu", "--gpus", "2"]


def wait_for_epochs(epochs: int) -> str:
    """Wait until the curve has at least this many epochs, and return it."""
    started, curve = time.monotonic(), Path("run/curve.csv")
    while not curve.exists() or len(curve.read_text().splitlines()) <= epochs:
        assert time.monotonic() - started < patience(TIMEOUT_SECONDS)
        time.sleep(0.005)
    return curve.read_text()


@pytest.mark.slow
def test_same_command_resumes_after_ctrl_c_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    resume_hint = "every finished epoch is saved in run/. Run the same command to resume.\n"
    process = Command(*COMMAND, environment=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for_epochs(2)
    os.killpg(process.pid, signal.SIGINT)  # to all processes, as a terminal does
    time.sleep(0.1)  # otherwise the two signals would merge
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=patience(TIMEOUT_SECONDS))
    # The second signal may arrive when Python is exiting and no longer handles it. A shell reports 130 for both.
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == ""
    assert "2 processes on cpu (1 thread each)" in out
    assert out.count("epoch   1/6") == 1, "rank 0 alone prints"
    assert out.endswith(f"\nstopped; {resume_hint}")
    begun = Path("run/curve.csv").read_text()

    killed: list[int] = []

    def kill() -> None:
        wait_for_epochs(len(begun.splitlines()))
        killed.extend(child.pid for child in multiprocessing.active_children() if child.pid is not None)
        os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(COMMAND) == 1
    killer.join()
    assert len(killed) == 2
    assert capsys.readouterr().err in [
        f"dnas: the process of rank {rank} was ended by SIGKILL; {resume_hint}" for rank in (0, 1)
    ]
    assert multiprocessing.active_children() == []
    assert Path("run/curve.csv").read_text().startswith(begun)
    assert len(load_run(Path("run/checkpoint.pt")).curve) < 6

    assert main(COMMAND) == 0
    assert Path("run/curve.csv").read_text().startswith(begun)
    assert len(load_run(Path("run/checkpoint.pt")).curve) == 6
    assert json.loads(Path("run/run.json").read_text())["processes"] == 2


# refusals


def refusal(capsys: pytest.CaptureFixture[str], more: str) -> str:
    try:
        status = main(f"train densenet-bc:layers=1,k=2 --dataset digits {more}".split())
    except SystemExit as error:
        status = error.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    return printed.err


def test_invalid_gpu_counts_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected a whole number of at least 1, but got 0" in refusal(capsys, "--gpus 0")
    assert "--gpus 4: a batch of 3 cannot be split; give --batch-size 4 or more." in refusal(
        capsys, "--device cpu --gpus 4 --batch-size 3"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA device here; use --device cpu to train in 2 processes" in refusal(capsys, "--gpus 2")
    assert "has no CUDA device; use --device cpu" in refusal(capsys, "--gpus 2 --device cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("dnas.training.defaults.cuda_devices", lambda: None)  # a machine on which torch is asked
    assert "--gpus 3: this machine has 2 CUDA devices; give at most that number." in refusal(capsys, "--gpus 3")
    assert "--device cuda:1 is a single GPU; give --device cuda." in refusal(capsys, "--gpus 2 --device cuda:1")


def test_environment_of_torchrun_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_processes("auto", None, 64) == ("cuda", 1)
    assert check_processes("auto", 2, 64) == ("cuda", 2)
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert check_processes("auto", 2, 64) == ("cuda", 2), "an incomplete set of variables is ignored"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert check_processes("auto", None, 64) == ("cuda:1", 4)
    assert check_processes("cpu", 4, 64) == ("cpu", 4)
    with pytest.raises(InputError, match="--gpus 2: torchrun started 4 processes; leave --gpus out"):
        check_processes("auto", 2, 64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="torchrun's 4 processes: this machine has 2 CUDA devices"):
        check_processes("auto", None, 64)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_group("cpu") is ALONE
    assert LOST_PEER not in (0, 1, 2, 130)
