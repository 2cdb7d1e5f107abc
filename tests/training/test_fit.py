"""Training: exact resumption, divergence, schedules, and checkpoints that are safe to open."""

import dataclasses
import errno
import math
import os
import pickle
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dnas.arch import DenseNetSpec, parse_name
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.io import DiskFull, room_for, write_atomic
from dnas.nn import build
from dnas.training.checkpoint import Epoch, load_run, read_checkpoint, weights_digest
from dnas.training.devices import check_device, is_out_of_memory, list_devices, peak_memory_bytes
from dnas.training.evaluate import evaluate, measure_latency
from dnas.training.fit import Diverged, fit, stream_seed, time_steps
from dnas.training.norms import GRADIENT_STEPS, GradientNorms, measure_norms
from dnas.training.recipe import Recipe, learning_rate, make_recipe
from dnas.training.step import Step

SPEC = parse_name("densenet-bc:layers=1-1,k=4,dropout=0.2,channels=1,size=8")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", subset=300)


def recipe(epochs: int = 4, **changes: object) -> Recipe:
    return make_recipe("fast", data_info("digits"), epochs=epochs, **changes)


def without_time(curve: list[Epoch]) -> list[tuple[object, ...]]:
    return [(e.epoch, e.train_loss, e.train_error, e.val_loss, e.val_error, e.learning_rate) for e in curve]


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_run_interrupted_after_every_epoch_ends_bit_equal(digits: Dataset, tmp_path: Path, name: str) -> None:
    plan = make_recipe(name, data_info("digits"), epochs=4)
    whole = fit(SPEC, digits, plan, seed=(3, 1))

    def interrupt(epoch: Epoch) -> bool:
        if epoch.epoch > interrupted[-1]:
            interrupted.append(epoch.epoch)
            raise KeyboardInterrupt
        return True

    interrupted = [0]
    for _ in range(4):
        torch.manual_seed(os.getpid())  # earlier random numbers of the process must not matter
        with pytest.raises(KeyboardInterrupt):
            fit(SPEC, digits, plan, seed=(3, 1), folder=tmp_path, report=interrupt)
    resumed = fit(SPEC, digits, plan, seed=(3, 1), folder=tmp_path)
    assert interrupted == [0, 1, 2, 3, 4]
    assert resumed.weights_digest == whole.weights_digest
    assert without_time(resumed.run.curve) == without_time(whole.run.curve)
    assert resumed.run.norms == whole.run.norms


def test_epoch_is_nesterov_sgd_on_the_random_streams_of_the_run(digits: Dataset) -> None:
    """Compare two epochs with a literal implementation of updates and sums, and of the seed of each random stream."""
    plan = Recipe("mine", 2, 64, learning_rate=0.1, milestones=(0.5,), weight_decay=0.03, label_smoothing=0.2)
    run = fit(SPEC, digits, plan, seed=(3, 1)).run

    torch.manual_seed(stream_seed(3, 1, "initialisation"))
    net = build(SPEC).to(memory_format=torch.channels_last)
    images = torch.Generator().manual_seed(stream_seed(3, 1, "data"))
    torch.manual_seed(stream_seed(3, 1, "dropout"))
    velocity: dict[str, torch.Tensor] = {}
    for rate, row in zip((0.1, 0.01), run.curve, strict=True):
        losses, wrong, seen = 0.0, 0, 0
        for x, y in digits.train_batches(64, images):
            logits = net.train()(x.contiguous(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.2)
            names, weights = zip(*net.named_parameters(), strict=True)
            for name, weight, gradient in zip(names, weights, torch.autograd.grad(loss, weights), strict=True):
                gradient = gradient + 0.03 * weight.detach()
                velocity[name] = 0.9 * velocity[name] + gradient if name in velocity else gradient
                weight.data -= rate * (gradient + 0.9 * velocity[name])
            losses, seen = losses + loss.item() * len(y), seen + len(y)
            wrong += int((logits.argmax(1) != y).sum())
        assert seen % 64, "the last batch must be smaller, or a mean of means would pass"
        assert row.train_loss == pytest.approx(losses / seen, rel=1e-4)
        assert row.train_error == pytest.approx(wrong / seen, abs=0.01)
        assert row.learning_rate == pytest.approx(rate)
    for (name, ours), theirs in zip(net.named_parameters(), run.net.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4, msg=name)


def test_seed_and_trial_number_change_the_run(digits: Dataset) -> None:
    digests = {
        fit(spec, digits, recipe(1), seed=seed).weights_digest
        for spec, seed in [(SPEC, (0, 0)), (SPEC, (1, 0)), (SPEC, (0, 1)), (SPEC, (0, 0))]
    }
    assert len(digests) == 3


def test_random_streams_differ_by_seed_number_and_name() -> None:
    assert stream_seed(5, 2, "data") == stream_seed(5, 2, "data")
    streams = {
        stream_seed(s, n, name) for s in range(3) for n in range(3) for name in ("initialisation", "data", "dropout")
    }
    assert len(streams) == 27


def test_report_is_called_once_per_epoch_and_can_stop_the_run(digits: Dataset) -> None:
    seen: list[int] = []
    result = fit(SPEC, digits, recipe(4), seed=(0, 0), report=lambda e: seen.append(e.epoch) or e.epoch < 2)  # type: ignore[func-returns-value]
    assert seen == [1, 2]
    assert not result.finished
    assert len(result.run.curve) == 2


def test_resumed_run_reports_earlier_epochs_again_and_can_be_stopped_by_them(digits: Dataset, tmp_path: Path) -> None:
    fit(SPEC, digits, recipe(3), seed=(0, 0), folder=tmp_path, report=lambda epoch: epoch.epoch < 2)
    stopped = fit(SPEC, digits, recipe(3), seed=(0, 0), folder=tmp_path, report=lambda epoch: False)
    assert len(stopped.run.curve) == 2
    seen: list[int] = []
    result = fit(SPEC, digits, recipe(3), seed=(0, 0), folder=tmp_path, report=lambda e: not seen.append(e.epoch))  # type: ignore[func-returns-value]
    assert seen == [1, 2, 3]
    assert result.finished
    assert result.run.seconds == pytest.approx(sum(epoch.seconds for epoch in result.run.curve))
    assert load_run(tmp_path / "checkpoint.pt").seconds == result.run.seconds


def test_training_learns_the_digits() -> None:
    data = load_dataset("digits")
    result = fit(parse_name("densenet-bc:L=16,k=8,channels=1,size=8"), data, recipe(4), seed=(0, 0))
    assert result.run.curve[0].train_error > 0.3
    assert result.run.curve[-1].val_error is not None
    assert result.run.curve[-1].val_error < 0.15


def test_divergence_ends_the_run_immediately(digits: Dataset) -> None:
    steps: list[int] = []
    with pytest.raises(Diverged, match=r"training loss is (nan|inf) at step \d+ of epoch 1"):
        fit(
            SPEC,
            digits,
            recipe(4, learning_rate=1e30, warmup=0.0),
            seed=(0, 0),
            on_step=lambda done, total: steps.append(done),
        )
    assert len(steps) < digits.steps_per_epoch(64)


def test_divergence_in_the_last_step_is_detected_by_validation(digits: Dataset) -> None:
    with pytest.raises(Diverged, match=r"the validation loss is (nan|inf) after epoch 1\."):
        fit(SPEC, digits, recipe(2, batch_size=512, learning_rate=1e38, warmup=0.0), seed=(0, 0))


def test_run_without_validation_part_has_no_validation_error(digits: Dataset) -> None:
    result = fit(SPEC, digits.with_validation_in_training(), recipe(1), seed=(0, 0))
    assert result.run.curve[0].val_error is None
    assert result.run.data["val_size"] == 0


def test_evaluate_is_the_mean_over_all_images() -> None:
    torch.manual_seed(0)
    net, data = build(SPEC).eval(), load_dataset("digits")
    parts = list(data.batches("train"))
    assert len(parts[-1][1]) < len(parts[0][1]), "the last batch must be smaller, or a mean of means would pass"
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    with torch.no_grad():
        logits = net(x)
    loss, error = evaluate(net.train(), data, "train")
    assert error == int((logits.argmax(1) != y).sum()) / len(y)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


def test_files_of_a_run_match_its_result(digits: Dataset, tmp_path: Path) -> None:
    result = fit(SPEC, digits, recipe(2), seed=(0, 0), folder=tmp_path)
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert list(curve["epoch"]) == [1, 2]
    assert curve["val_error"].iloc[-1] == result.run.curve[-1].val_error
    norms = np.load(tmp_path / "norms.npz")
    assert norms["l2"].shape == (3, len(norms["names"]))
    assert norms["reuse"].shape == (3, len(norms["pairs"]))
    assert norms["numel"].sum() == sum(p.numel() for p in result.run.net.parameters())
    loaded = load_run(tmp_path / "checkpoint.pt")
    assert weights_digest(loaded.net) == result.weights_digest
    for name, parameter in loaded.net.named_parameters():
        last = norms["l2"][-1][list(norms["names"]).index(name)]
        assert last == pytest.approx(parameter.detach().norm().item(), rel=1e-6)


def test_gradient_norms_are_measured_at_the_last_steps(tmp_path: Path) -> None:
    # One step per epoch on all images: the gradient of epoch 2 is taken at the weights after epoch 1.
    digits = load_dataset("digits", subset=300, augmentation="none")
    plan = dataclasses.replace(recipe(2), batch_size=digits.train_size)
    spec = dataclasses.replace(SPEC, dropout=0.0)
    first = fit(spec, digits, plan, seed=(0, 0), folder=tmp_path, report=lambda epoch: False)
    x, y = next(iter(digits.batches("train", digits.train_size)))
    net = first.run.net.train()
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    expected = [float(parameter.grad.norm()) for parameter in net.parameters()]
    assert not first.run.norms[0].gradient
    resumed = fit(spec, digits, plan, seed=(0, 0), folder=tmp_path)
    assert resumed.run.norms[2].gradient == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert resumed.run.norms[1].gradient != resumed.run.norms[2].gradient
    last = dict(zip(resumed.run.norms[2].names, resumed.run.norms[2].l1, strict=True))
    for name, parameter in resumed.run.net.named_parameters():
        assert last[name] == pytest.approx(parameter.detach().abs().sum().item(), rel=1e-6)


def test_gradient_norms_are_root_mean_squares_over_steps() -> None:
    weight, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    gradients = GradientNorms([weight, other])
    assert gradients.value() == ()
    for a, b in ((3.0, 4.0), (0.0, 1.0)):
        weight.grad = torch.tensor([a, b])
        gradients.add()
    assert gradients.value() == pytest.approx((math.sqrt((25 + 1) / 2), 0))


def test_only_the_last_steps_of_an_epoch_are_measured(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(GradientNorms, "add", lambda self: counted.append(1))
    plan = dataclasses.replace(recipe(2), batch_size=20)
    assert digits.steps_per_epoch(20) > GRADIENT_STEPS
    fit(SPEC, digits, plan, seed=(0, 0))
    assert len(counted) == 2 * GRADIENT_STEPS


def test_run_without_gradient_norms_resumes(digits: Dataset, tmp_path: Path) -> None:
    whole = fit(SPEC, digits, recipe(3), seed=(0, 0))
    fit(SPEC, digits, recipe(3), seed=(0, 0), folder=tmp_path, report=lambda epoch: epoch.epoch < 2)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["norms"]["l1"], content["norms"]["gradient"]  # as dnas 0.1 wrote it
    torch.save(content, tmp_path / "checkpoint.pt")
    done = fit(SPEC, digits, recipe(3), seed=(0, 0), folder=tmp_path)
    assert done.weights_digest == whole.weights_digest
    assert done.run.norms[2] == dataclasses.replace(whole.run.norms[2], l1=(), gradient=())
    assert done.run.norms[3] == whole.run.norms[3]
    assert load_run(tmp_path / "checkpoint.pt").norms == done.run.norms
    with np.load(tmp_path / "norms.npz") as norms:
        assert np.isnan(norms["gradient"][:3]).all()
        assert norms["gradient"][3].tolist() == list(whole.run.norms[3].gradient)


def test_reuse_is_the_mean_absolute_weight_by_source() -> None:
    spec = parse_name("densenet-bc:layers=2-1,k=3,size=8,channels=1")
    net = build(spec)
    norms = measure_norms(net, spec)
    weight = net.get_parameter("features.denseblock1.denselayer2.conv1.weight").detach()
    row = dict(zip(norms.pairs, norms.reuse, strict=True))
    assert row["stem", "denseblock1.denselayer2"] == pytest.approx(weight[:, :6].abs().mean().item())
    assert row["denseblock1.denselayer1", "denseblock1.denselayer2"] == pytest.approx(weight[:, 6:].abs().mean().item())
    assert ("transition1", "classifier") in row


# recipes


def test_schedule_of_the_paper() -> None:
    plan = make_recipe("paper", data_info("cifar10"))
    assert (plan.epochs, plan.batch_size, plan.weight_decay, plan.momentum) == (300, 64, 1e-4, 0.9)
    rates = [learning_rate(plan, epoch * 10, 10) for epoch in (0, 149, 150, 224, 225, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    imagenet = make_recipe("paper", data_info("imagenet"))
    assert (imagenet.epochs, imagenet.batch_size) == (90, 256)
    rates = [learning_rate(imagenet, epoch * 7, 7) for epoch in (29, 30, 59, 60)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert make_recipe("paper", data_info("svhn")).epochs == 40
    assert plan.dropout_without_augmentation == 0.2
    assert imagenet.dropout_without_augmentation == 0.0


def test_one_cycle_rises_and_falls_to_zero() -> None:
    plan = Recipe("fast", epochs=10, schedule="one-cycle", warmup=0.3, learning_rate=0.2)
    rates = [learning_rate(plan, step, 10) for step in range(100)]
    peak = max(range(100), key=rates.__getitem__)
    assert peak == 30
    assert rates[peak] == pytest.approx(0.2)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] < 0.005


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "`epochs >= 1` must hold, but got epochs=0."),
        ({"batch_size": 1}, "`batch_size >= 2` must hold"),
        ({"learning_rate": -1.0}, "`0 <= learning_rate < inf` must hold"),
        ({"momentum": 1.0}, "`0 <= momentum < 1` must hold"),
        ({"schedule": "cosine"}, "schedule must be one of steps, one-cycle, but got 'cosine'."),
        ({"epoch": 3}, "a recipe has no 'epoch'. Did you mean epochs?"),
    ],
)
def test_invalid_recipes_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        make_recipe("fast", data_info("digits"), **changes)
    assert message in str(error.value)


# checkpoints


def test_checkpoint_of_another_run_is_refused(digits: Dataset, tmp_path: Path) -> None:
    fit(SPEC, digits, recipe(1), seed=(0, 0), folder=tmp_path)
    with pytest.raises(
        InputError, match=r"belongs to another run, with seed=\(0, 0\) \(now \(1, 0\)\); choose another"
    ):
        fit(SPEC, digits, recipe(1), seed=(1, 0), folder=tmp_path)
    with pytest.raises(InputError, match=r"belongs to another run, of 1 epoch \(now 2\)"):
        fit(SPEC, digits, recipe(2), seed=(0, 0), folder=tmp_path)
    with pytest.raises(InputError, match=r"belongs to another run, with dropout=0.2 \(now 0.1\)"):
        fit(dataclasses.replace(SPEC, dropout=0.1), digits, recipe(1), seed=(0, 0), folder=tmp_path)
    for key, value in {"fingerprint": "0" * 64, "subset": 299, "split_seed": 9, "augmentation": "flip"}.items():
        with pytest.raises(InputError, match=f"belongs to another run, with {key}=.* \\(now {value}\\)"):
            fit(SPEC, dataclasses.replace(digits, **{key: value}), recipe(1), seed=(0, 0), folder=tmp_path)  # type: ignore[arg-type]


def test_partial_files_of_a_killed_process_are_removed_on_resume(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.4711").write_bytes(b"half of a checkpo")
    (tmp_path / ".mine").write_text("not ours")
    fit(SPEC, digits, recipe(1), seed=(0, 0), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "checkpoint.pt", "curve.csv", "norms.npz"]


def test_truncated_checkpoint_is_refused(digits: Dataset, tmp_path: Path) -> None:
    fit(SPEC, digits, recipe(1), seed=(0, 0), folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="is not a dnas checkpoint"):
            read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("hello.txt", "a zip file, but none of torch's")
    with pytest.raises(InputError, match="is not a dnas checkpoint"):
        read_checkpoint(path)
    middle = bytearray(content)
    middle[200:260] = b"\xff" * 60
    path.write_bytes(bytes(middle))
    with pytest.raises(InputError, match="is not a dnas checkpoint"):
        read_checkpoint(path)


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


def test_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "dnas-checkpoint-1", "weights": _Bomb()}, "bomb.pt")
    assert zipfile.is_zipfile("bomb.pt")
    Path("bare.pt").write_bytes(pickle.dumps(_Bomb()))
    torch.save({"something": "else"}, "other.pt")
    for name in ("bomb.pt", "bare.pt", "other.pt", "missing.pt"):
        with pytest.raises(InputError, match=name):
            read_checkpoint(Path(name))
    assert not Path("exploded").exists()


def test_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_atomic(path, b"before")
    code = (
        "import resource, pathlib, sys; from dnas.io import DiskFull, write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(pathlib.Path(sys.argv[1]), b'x' * 5000)\n"
        "except DiskFull as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "no space left to write" in run.stdout
    assert str(path) in run.stdout
    assert path.read_bytes() == b"before"
    assert [left.name for left in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert issubclass(DiskFull, InputError)


def test_open_reader_of_a_replaced_file_sees_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, "before")
    with path.open() as reader:
        write_atomic(path, "after")
        assert reader.read() == "before"
    assert path.read_text() == "after"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's ever-full device")
def test_only_a_full_disk_raises_disk_full() -> None:
    with pytest.raises(DiskFull, match=r"no space left to write x.pt \(No space left on device\)"):  # noqa: SIM117
        with room_for(Path("x.pt")), Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
    for code in (errno.EDQUOT, errno.EFBIG):
        with pytest.raises(DiskFull), room_for(Path("x.pt")):
            raise OSError(code, os.strerror(code))
    with pytest.raises(PermissionError), room_for(Path("x.pt")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_out_of_memory_is_distinguished_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert is_out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    for text in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "std::bad_alloc",
    ):
        assert is_out_of_memory(RuntimeError(text))
    for other in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("a table of words: out of memory"),
    ):
        assert not is_out_of_memory(other)


def test_peak_memory_is_in_bytes() -> None:
    assert 50e6 < peak_memory_bytes("cpu") < 500e9  # torch alone takes more than 50 MB


REPEATED_ALLOCATION = """
import resource, torch
import dnas.training.fit  # the imports of a run, which determine the gaps in the heap
from dnas.training.devices import keep_memory
keep_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 23)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_allocated_memory_is_kept() -> None:
    """Allocating 32 MB costs thousands of page faults (tens with large pages) at first, and none later."""
    done = subprocess.run([sys.executable, "-c", REPEATED_ALLOCATION], capture_output=True, text=True, check=True)
    faults = [int(line) for line in done.stdout.split()]
    assert max(faults[:5]) > 10
    assert max(faults[5:]) <= 1


def test_timed_steps_are_those_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernels and the same step as in `fit`, without any effect on threads or random streams."""
    kernels: list[str] = []
    batches: list[int] = []
    step = Step.__call__

    def count(self: Step, x: torch.Tensor, *others: Any) -> None:
        batches.append(len(x))
        step(self, x, *others)

    monkeypatch.setattr("dnas.training.fit.use_kernels", lambda net, name: kernels.append(name))
    monkeypatch.setattr(Step, "__call__", count)
    threads, stream = torch.get_num_threads(), torch.get_rng_state()
    training, validation = time_steps(SPEC, recipe(batch_size=16), "cpu", 2, kernels="ref", steps=3)
    assert training > 0
    assert validation > 0
    assert (kernels, batches) == (["ref"], [16] * 4)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), stream)


def test_digest_of_weights_covers_running_statistics() -> None:
    net = build(SPEC)
    before = weights_digest(net)
    net.get_buffer("features.norm5.running_mean").add_(1e-6)
    after = weights_digest(net)
    net.get_parameter("classifier.bias").data[0] += 1e-6
    assert len({before, after, weights_digest(net)}) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_device_is_refused_without_cuda(device: str) -> None:
    with pytest.raises(InputError, match="finds no CUDA device here; use --device cpu"):
        check_device(device)


def test_unknown_devices_are_refused() -> None:
    for device in ("gpu", "mps", "cuda:x"):
        with pytest.raises(InputError, match=r"cpu"):
            check_device(device)
    assert check_device("cpu") == "cpu"


def test_list_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_devices("cpu") == ("cpu",)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list_devices("auto") == ("cpu",)
    with pytest.raises(InputError, match="finds no CUDA device here"):
        list_devices("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert list_devices("auto") == list_devices("cuda") == ("cuda:0", "cuda:1")
    assert list_devices("cuda:1") == ("cuda:1",)
    assert list_devices("cpu") == ("cpu",)
    with pytest.raises(InputError, match=r"--device cuda:2: this machine has cuda:0 to cuda:1\."):
        list_devices("cuda:2")


def test_latency_is_measured_on_one_image_without_side_effects() -> None:
    net = build(SPEC).train()
    before, stream, threads = weights_digest(net), torch.get_rng_state(), torch.get_num_threads()
    shapes: list[tuple[int, ...]] = []
    modes: list[bool] = []
    net.register_forward_pre_hook(lambda module, x: shapes.append(tuple(x[0].shape)) or modes.append(module.training))  # type: ignore[func-returns-value]
    seconds = measure_latency(net, SPEC, "cpu", 1)
    assert 1e-5 < seconds < 1
    assert set(shapes) == {(1, 1, 8, 8)}
    assert set(modes) == {False}
    assert 1 < len(shapes) <= 35
    assert net.training
    assert weights_digest(net) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.get_num_threads() == threads


def test_larger_network_has_higher_latency() -> None:
    large = parse_name("densenet-bc:L=40,k=24,channels=1,size=32")
    assert measure_latency(build(large), large, "cpu", 1) > 3 * measure_latency(build(SPEC), SPEC, "cpu", 1)


def test_guard_is_called_before_every_write(digits: Dataset, tmp_path: Path) -> None:
    written: list[tuple[str, ...]] = []  # the files in the folder at each call

    def guard() -> None:
        written.append(tuple(sorted(path.name for path in tmp_path.iterdir())))

    fit(SPEC, digits, recipe(1), seed=(0, 0), folder=tmp_path, guard=guard)
    files = ("checkpoint.pt", "curve.csv", "norms.npz")
    assert written == [(), (), files[:1], files[:2]]

    class Lost(Exception): ...

    def refuse() -> None:
        raise Lost

    (tmp_path / ".checkpoint.pt.4711").write_bytes(b"half")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(Lost):
        fit(SPEC, digits, recipe(1), seed=(0, 0), folder=tmp_path, guard=refuse)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_validation_batches_are_no_larger_than_training_batches(digits: Dataset) -> None:
    sizes: set[int] = set()

    class Watched(Dataset):
        def batches(self, part, batch_size=500):  # type: ignore[no-untyped-def]
            sizes.add(batch_size)
            return super().batches(part, batch_size)

    watched = Watched(**{f.name: getattr(digits, f.name) for f in dataclasses.fields(digits)})
    fit(SPEC, watched, recipe(1, batch_size=32), seed=(0, 0))
    evaluate(build(SPEC), watched, "val")
    assert sizes == {32, 500}


def test_specs_reach_the_module_unchanged() -> None:
    assert isinstance(SPEC, DenseNetSpec)
    assert build(SPEC).spec == SPEC


def test_flipped_byte_is_never_loaded_as_a_weight(digits: Dataset, tmp_path: Path) -> None:
    whole = fit(SPEC, digits, recipe(1), seed=(0, 0), folder=tmp_path).weights_digest
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            assert weights_digest(load_run(path).net) == whole  # the byte is padding
        except InputError:
            refused += 1
    assert refused > 30
    for cut in (1, 100, len(content) // 3):
        path.write_bytes(content[cut:])
        with pytest.raises(InputError, match="is not a dnas checkpoint"):
            load_run(path)


def test_history_files_missing_after_a_kill_are_rewritten(digits: Dataset, tmp_path: Path) -> None:
    fit(SPEC, digits, recipe(2), seed=(0, 0), folder=tmp_path)
    for name in ("curve.csv", "norms.npz"):  # as if killed after the last checkpoint
        (tmp_path / name).unlink()
    fit(SPEC, digits, recipe(2), seed=(0, 0), folder=tmp_path)
    assert list(pd.read_csv(tmp_path / "curve.csv")["epoch"]) == [1, 2]
    assert len(np.load(tmp_path / "norms.npz")["l2"]) == 3
