"""One network on several processes: what one process would get, to rounding. In float64, where rounding is nothing: in
float32 units at ReLU's kink flip, and the gradients of two orders of addition differ by a thousandth."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dnas.arch import parse_name
from dnas.cli import main
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.training.checkpoint import Epoch, load_run
from dnas.training.distributed import ALONE, Group, SyncBatchNorm2d, is_loss_of_peer, join_group
from dnas.training.fit import Diverged, fit
from dnas.training.launch import LOST_PEER, launch
from dnas.training.recipe import make_recipe
from dnas.training.single import check_processes
from tests.support.data_files import write_folder
from tests.support.patience import patience

pytestmark = pytest.mark.xdist_group("distributed")  # its processes run once

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds for a thing that takes about five
BOTTLENECK = "densenet-bc:layers=2-2,k=4,theta=0.5,channels=1,size=8"
CASES: dict[str, dict[str, Any]] = {  # of 270 training images
    "bottleneck": {"name": BOTTLENECK, "batch_size": 64},  # the last batch has 14
    "recomputed": {"name": BOTTLENECK, "batch_size": 64, "recompute": True},
    "uneven": {"name": "densenet:layers=2-1,k=4,channels=1,size=8", "batch_size": 89},  # 3: slices of 1 and 2
    "empty": {"name": BOTTLENECK, "batch_size": 67},  # 2: of three slices the first is empty
    "empty, recomputed": {"name": BOTTLENECK, "batch_size": 67, "recompute": True},
    "dropped units": {"name": "resnet-b:units=2-2,width=4,drop=0.6,channels=1,size=8", "batch_size": 67},
    "whole": {"name": BOTTLENECK, "batch_size": 64, "validate": False},
}
SEED = (3, 1)
WORLDS = {
    2: ("bottleneck", "recomputed", "uneven", "dropped units", "whole"),
    3: ("bottleneck", "empty", "empty, recomputed", "dropped units"),
}


class Wide(Dataset):
    """Images in float64."""

    def _normalised(self, *arguments: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.double(), y) for x, y in super()._normalised(*arguments))


def wide_digits() -> Dataset:
    digits = load_dataset("digits", subset=300)
    return Wide(**{field.name: getattr(digits, field.name) for field in dataclasses.fields(digits)})


def plan(epochs: int = 2, **changes: Any) -> Any:
    recipe = make_recipe("fast", data_info("digits"), epochs=epochs, **changes)
    return dataclasses.replace(recipe, label_smoothing=0.1)


def train(case: str, group: Group = ALONE, epochs: int = 2, **more: Any) -> dict[str, Any]:
    """All that a training leaves behind, by name."""
    given = dict(CASES[case])
    spec, batch_size, validate = parse_name(given.pop("name")), given.pop("batch_size"), given.pop("validate", True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        data = wide_digits() if validate else wide_digits().with_validation_in_training()
        result = fit(spec, data, plan(epochs, batch_size=batch_size), seed=SEED, group=group, **given, **more)
    finally:
        torch.set_default_dtype(before)
    found = {f"state {name}": value for name, value in result.run.net.state_dict().items()}
    for row in result.run.curve:
        values = dataclasses.asdict(row) | {"seconds": 0.0}
        found |= {f"epoch {row.epoch} {key}": value for key, value in values.items()}
    return found | {"norms": result.run.norms[-1].l2, "digest": result.weights_digest}


def far(left: dict[str, Any], right: dict[str, Any]) -> dict[str, float]:
    """What differs by more than rounding."""
    assert left.keys() == right.keys()
    found = {}
    for key in left.keys() - {"digest"}:
        a, b = (torch.as_tensor(0.0 if side[key] is None else side[key]).double() for side in (left, right))
        assert a.shape == b.shape
        allowed = 1e-6 if key.endswith("val_loss") else 1e-10  # `evaluate` sums float32
        if not (apart := (a - b).abs().max().item()) < allowed:
            found[key] = apart
    return found


# what a process does


def all_trainings(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    group = join_group("cpu")
    found: dict[str, Any] = {case: train(case, group) for case in WORLDS[group.world]}
    reported: list[int] = []

    def report(epoch: Epoch) -> bool:
        reported.append(epoch.epoch)
        return group.world == 3 or epoch.epoch < 1

    folder = args.folder / ("run" if group.is_first else "never")
    found["resumed"] = train("bottleneck", group, 3, folder=folder, report=report)
    found["reported"] = reported
    if group.world == 2:
        Group.synchronise_norms, kept = lambda self, net: None, Group.synchronise_norms  # type: ignore[method-assign]
        found["each its own statistics"] = train("bottleneck", group)
        Group.synchronise_norms = kept  # type: ignore[method-assign]
        try:
            fit(parse_name(BOTTLENECK), load_dataset("digits"), plan(learning_rate=1e30), seed=SEED, group=group)
        except Diverged as error:
            found["diverged"] = str(error)
        dropout = parse_name(BOTTLENECK + ",dropout=0.5")
        data = load_dataset("digits", subset=300)
        for number in (0, 1):
            found[f"dropout {number}"] = fit(dropout, data, plan(1), seed=SEED, group=group).weights_digest
    found["sum"] = group.sum(torch.tensor([group.rank, 1]))
    found["max"] = group.max(group.rank, "cpu")
    found["norm"] = norm_in_bf16(group)
    torch.save(found, args.folder / f"{group.world}-{group.rank}.pt")
    group.leave()
    return 0


def norm_in_bf16(group: Group | None, ranks: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A step of a norm whose maps are bf16 and whose weights are float32, as under autocast on a GPU; of two images, so
    that of three slices one is empty. Output, and the gradients of x, weight and bias, of this slice."""
    torch.manual_seed(0)
    x, norm = (5 + torch.randn(2, 4, 3, 3)).bfloat16(), nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    target = torch.randn(2, 4, 3, 3)
    own = slice(0, 2)
    if group is not None:
        norm = SyncBatchNorm2d.of(norm)
        own = slice(2 * group.rank // group.world, 2 * (group.rank + 1) // group.world)
    x = x[own].clone().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    (y.float() * target[own]).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return y.detach().float(), x.grad.float(), norm.weight.grad, norm.bias.grad


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[str, Any]]:
    """What each process found, by (processes, rank). One training is begun by two of them, gone on with by this process
    alone, and ended by three."""
    folder = tmp_path_factory.mktemp("runs")
    given = argparse.Namespace(dataset="digits", folder=folder)
    assert launch(all_trainings, given, 2, "") == 0
    assert len(load_run(folder / "run/checkpoint.pt").curve) == 1
    train("bottleneck", epochs=3, folder=folder / "run", report=lambda epoch: epoch.epoch < 2)
    assert launch(all_trainings, given, 3, "") == 0
    assert not (folder / "never").exists(), "only the first writes"
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["checkpoint.pt", "curve.csv", "norms.npz"]
    return {
        (world, rank): torch.load(folder / f"{world}-{rank}.pt", weights_only=False)
        for world in WORLDS
        for rank in range(world)
    }


Runs = dict[tuple[int, int], dict[str, Any]]


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in WORLDS for case in WORLDS[world]])
def test_several_processes_end_as_one_does(runs: Runs, world: int, case: str) -> None:
    """Curve, weights and running statistics."""
    alone = train(case)
    assert far(runs[world, 0][case], alone) == {}
    digests = {runs[world, rank][case]["digest"] for rank in range(world)}
    assert len(digests) == 1, "the processes must not drift apart by a bit"


def test_with_statistics_of_its_own_slice_each_they_would_not(runs: Runs) -> None:
    apart = far(runs[2, 0]["each its own statistics"], train("bottleneck"))
    assert apart["epoch 2 train_loss"] > 1e-4
    assert apart["state features.norm5.running_var"] > 1e-4


def test_recomputation_changes_no_bit_there_either(runs: Runs) -> None:
    assert runs[2, 0]["recomputed"]["digest"] == runs[2, 0]["bottleneck"]["digest"]
    assert runs[3, 0]["empty, recomputed"]["digest"] == runs[3, 0]["empty"]["digest"]


def test_a_run_is_gone_on_with_by_any_number_of_processes(runs: Runs) -> None:
    assert far(runs[3, 0]["resumed"], train("bottleneck", epochs=3)) == {}
    assert not [name for name in runs[3, 0]["resumed"] if "module." in name]


def test_only_the_first_reports_and_its_answer_holds_for_all(runs: Runs) -> None:
    assert [runs[2, rank]["reported"] for rank in (0, 1)] == [[1], []]
    assert [runs[3, rank]["reported"] for rank in (0, 1, 2)] == [[1, 2, 3], [], []]
    assert "epoch 2 train_loss" not in runs[2, 1]["resumed"]


def test_all_see_that_a_training_diverges(runs: Runs) -> None:
    assert runs[2, 0]["diverged"].startswith("the training loss is ")
    assert runs[2, 0]["diverged"] == runs[2, 1]["diverged"]


def test_dropout_is_repeatable_for_a_number_of_processes(runs: Runs) -> None:
    assert runs[2, 0]["dropout 0"] == runs[2, 0]["dropout 1"] == runs[2, 1]["dropout 1"]


def test_sums_and_largest(runs: Runs) -> None:
    for (world, rank), found in runs.items():
        assert found["sum"].tolist() == [sum(range(world)), world], rank
        assert found["max"] == world - 1
    assert ALONE.max(3, "cpu") == 3


@pytest.mark.parametrize("world", WORLDS)
def test_a_norm_of_bf16_maps_equals_one_on_the_whole_batch(runs: Runs, world: int) -> None:
    parts = [runs[world, rank]["norm"] for rank in range(world)]
    whole = norm_in_bf16(None)
    for number in (0, 1):
        together = torch.cat([part[number] for part in parts])
        torch.testing.assert_close(together, whole[number], rtol=0.02, atol=0.02)
    for number in (2, 3):
        torch.testing.assert_close(sum(part[number] for part in parts), whole[number], rtol=1e-3, atol=1e-3)


# data


def test_the_slices_of_a_batch_are_the_batch(tmp_path: Path) -> None:
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
            every = []
            for rank in range(ranks):
                generator.manual_seed(5)
                share = dataclasses.replace(data, share=(rank, ranks))
                every.append(list(share.train_batches(size, generator)))
                assert torch.equal(generator.get_state(), after), "or the next epoch would be another"
                assert share.describe() == data.describe()
            for (x, y), *parts in zip(whole, *every, strict=True):
                sizes = [len(part[1]) for part in parts]
                assert max(sizes) - min(sizes) <= 1
                assert torch.equal(torch.cat([part[0] for part in parts]), x)
                assert torch.equal(torch.cat([part[1] for part in parts]), y)
        if name == "small":
            assert len(whole[-1][1]) == 2, "of three or more slices some must be empty"


def test_every_image_is_validated_by_one_process() -> None:
    data = load_dataset("digits", subset=300)
    whole = [y.tolist() for _, y in data.batches("val", 8)]
    shares = [
        [y.tolist() for _, y in dataclasses.replace(data, share=(rank, 3)).batches("val", 8)] for rank in range(3)
    ]
    assert sorted(map(tuple, whole)) == sorted(tuple(batch) for share in shares for batch in share)
    assert len(whole) == 4


# the launching command


def fail(args: argparse.Namespace) -> int:
    if int(os.environ["RANK"]) == args.rank:
        print("not heard")
        print("the cause", file=sys.stderr, flush=True)
        match args.how:
            case "error":
                raise ZeroDivisionError
            case "input":
                raise InputError("`N > 0` must hold.")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "status":
                return 1
    join_group("cpu")  # waits for the one that is not coming
    return 0


@pytest.mark.parametrize(
    ("how", "rank", "status", "says"),
    [
        ("error", 1, 1, ["the cause", "ZeroDivisionError"]),
        ("input", 1, 2, ["the cause", "dnas: `N > 0` must hold.\n"]),
        ("status", 1, 1, ["the cause\n"]),
        ("kill", 1, 1, ["dnas: the process of rank 1 was ended by SIGKILL; go on so.\n"]),
        ("kill", 0, 1, ["dnas: the process of rank 0 was ended by SIGKILL; go on so.\n"]),
    ],
)
def test_one_that_fails_ends_all(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    rank: int,
    status: int,
    says: list[str],
) -> None:
    monkeypatch.setattr("dnas.training.launch.GRACE_SECONDS", 0.3)
    given = argparse.Namespace(dataset="digits", how=how, rank=rank)
    began = time.monotonic()
    assert launch(fail, given, 2, "go on so.") == status
    assert time.monotonic() - began < patience(PATIENCE / 4)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(text in printed.err for text in says), printed.err
    if how == "kill":
        assert printed.err == says[0]


def test_a_lost_process_is_known_from_other_errors() -> None:
    assert is_loss_of_peer(dist.DistBackendError("NCCL error"))
    assert is_loss_of_peer(
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    )
    assert not is_loss_of_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_loss_of_peer(ValueError("gloo"))


COMMAND = ["train", "densenet-bc:layers=1-1,k=4", "--dataset", "digits", "--epochs", "6", "--out", "run"]
COMMAND += ["--device", "cpu", "--gpus", "2"]


def wait_for_epochs(epochs: int) -> str:
    """The curve as it is when it has so many."""
    began, curve = time.monotonic(), Path("run/curve.csv")
    while not curve.exists() or len(curve.read_text().splitlines()) <= epochs:
        assert time.monotonic() - began < patience(PATIENCE)
        time.sleep(0.005)
    return curve.read_text()


def test_interrupted_and_killed_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    resume_hint = "every finished epoch is saved in run/. Run the same command to resume.\n"
    process = subprocess.Popen(
        [sys.executable, "-m", "dnas", *COMMAND],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_epochs(2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all
    time.sleep(0.1)  # or the two would be one
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=patience(PATIENCE))
    # The second may come when Python itself is ending, and does not catch it any more: a shell says 130 for both.
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


# what cannot be


def refusal(capsys: pytest.CaptureFixture[str], more: str) -> str:
    try:
        status = main(f"train densenet-bc:layers=1,k=2 --dataset digits {more}".split())
    except SystemExit as error:
        status = error.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    return printed.err


def test_more_gpus_than_there_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected a whole number of at least 1, but got 0" in refusal(capsys, "--gpus 0")
    assert "--gpus 4: a batch of 3 cannot be split; give --batch-size 4 or more." in refusal(
        capsys, "--device cpu --gpus 4 --batch-size 3"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA device here; --device cpu takes 2 processes" in refusal(capsys, "--gpus 2")
    assert "finds no CUDA device here; use --device cpu" in refusal(capsys, "--gpus 2 --device cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--gpus 3: this machine has 2 CUDA devices; give at most that number." in refusal(capsys, "--gpus 3")
    assert "--device cuda:1 is a single GPU; give --device cuda." in refusal(capsys, "--gpus 2 --device cuda:1")


def test_torchruns_environment_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert check_processes("auto", None, 64) == ("cuda", 1)
    assert check_processes("auto", 2, 64) == ("cuda", 2)
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert check_processes("auto", 2, 64) == ("cuda", 2), "half of the variables are somebody else's"
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
