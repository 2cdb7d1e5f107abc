"""Placement of jobs on simulated GPUs."""

from typing import Any

import pytest
import torch

from dnas.arch import cost, parse_name
from dnas.executors.placement import (
    CONTEXT_BYTES,
    MARGIN,
    MEMORY_SHARE,
    WORKSPACE_BYTES,
    Device,
    Ledger,
    Load,
    correction,
    kept_bytes,
    place,
    tensor_bytes,
    training_bytes,
)
from dnas.executors.worker import Job
from dnas.nn import build
from tests.nn.test_recompute import step_bytes

GIB = 2**30
ONE, TWO = Device("cuda:0", 10 * GIB), Device("cuda:1", 10 * GIB)
CPU = Device("cpu")


def job(key: str = "a", gib: float = 1.0, **changes: Any) -> Job:
    """Return a job that keeps `gib` GiB of activations in float32."""
    return Job(key, "", {}, {"batch_size": 64}, {}, (0, 0), activation_bytes=int(gib * GIB), **changes)


def loads(*gib: float, alone: bool = False) -> list[Load]:
    return [Load(int(size * GIB), alone) for size in gib]


@pytest.mark.parametrize(
    ("load", "running", "device"),
    [
        (Load(4 * GIB), {}, "cuda:0"),
        (Load(4 * GIB), {"cuda:0": loads(1)}, "cuda:1"),  # the least loaded device
        (Load(4 * GIB), {"cuda:0": loads(3), "cuda:1": loads(2)}, "cuda:1"),
        # The number of jobs counts before their bytes.
        (Load(1 * GIB), {"cuda:0": loads(4), "cuda:1": loads(1, 1)}, "cuda:0"),
        (Load(4 * GIB), {"cuda:0": loads(5), "cuda:1": loads(6)}, "cuda:0"),
        (Load(4 * GIB), {"cuda:0": loads(6), "cuda:1": loads(6)}, None),
        (Load(5 * GIB, alone=True), {"cuda:0": loads(1)}, "cuda:1"),
        (Load(5 * GIB, alone=True), {"cuda:0": loads(1), "cuda:1": loads(1)}, None),
        (Load(1 * GIB), {"cuda:0": loads(1, alone=True), "cuda:1": loads(1, alone=True)}, None),
        (Load(50 * GIB), {"cuda:0": loads(1)}, "cuda:1"),  # too large for every device, so it may only run alone
        (Load(50 * GIB), {"cuda:0": loads(1), "cuda:1": loads(1)}, None),
        (Load(1 * GIB), {"cuda:0": loads(50), "cuda:1": loads(50)}, None),
    ],
)
def test_next_job_goes_to_the_least_loaded_device_with_room(
    load: Load, running: dict[str, list[Load]], device: str | None
) -> None:
    assert place(load, [ONE, TWO], running) == device


def test_predictions_fill_no_more_than_the_stated_share() -> None:
    room = int(MEMORY_SHARE * 10 * GIB)
    assert place(Load(room - GIB), [ONE], {"cuda:0": loads(1)}) == "cuda:0"
    assert place(Load(room - GIB + 1), [ONE], {"cuda:0": loads(1)}) is None


def test_job_too_large_for_every_device_waits_for_the_largest() -> None:
    small, large = Device("cuda:0", 10 * GIB), Device("cuda:1", 40 * GIB)
    assert place(Load(50 * GIB), [small, large], {}) == "cuda:1"
    assert place(Load(50 * GIB), [small, large], {"cuda:1": loads(1)}) is None
    assert place(Load(20 * GIB), [small, large], {"cuda:1": loads(30)}) is None
    assert place(Load(20 * GIB), [small, large], {}) == "cuda:1"


def test_cpu_is_limited_only_by_the_number_of_workers() -> None:
    ledger = Ledger((CPU,), workers=3)
    for key in "abc":
        assert ledger.pick(job(key, gib=1000)) == "cpu"
        assert ledger.begin(job(key, gib=1000)) == "cpu"
    assert ledger.pick(job("d")) is None
    ledger.end("b")
    assert ledger.pick(job("d")) == "cpu"
    assert ledger.pick(job("d", alone=True)) is None
    ledger.end("a")
    ledger.end("c")
    assert ledger.pick(job("d", alone=True)) == "cpu"
    ledger.begin(job("d", alone=True))
    assert ledger.pick(job("e")) is None


def test_jobs_share_gpus_while_they_fit() -> None:
    ledger = Ledger((ONE, TWO), workers=100)
    keys: list[str] = []
    while (name := ledger.pick(job(str(len(keys)), gib=4))) is not None:
        assert ledger.begin(job(str(len(keys)), gib=4)) == name
        keys.append(name)
    each = CONTEXT_BYTES + training_bytes(job(gib=4))
    assert keys.count("cuda:0") == keys.count("cuda:1") == int(MEMORY_SHARE * 10 * GIB // each) == 2
    assert keys[:2] == ["cuda:0", "cuda:1"]
    assert ledger.begin(job("more", gib=4)) == "cuda:0"  # `begin` accepts a job that `pick` would refuse


def test_workers_limits_the_jobs_on_all_gpus_together() -> None:
    ledger = Ledger((ONE, TWO), workers=3)
    for key in "abc":
        ledger.begin(job(key, gib=0.1))
    assert ledger.pick(job("d", gib=0.1)) is None


def test_measured_peaks_correct_predictions() -> None:
    ledger = Ledger((ONE,), workers=9)
    ledger.begin(job("a", gib=4))
    before = ledger.load(job("b", gib=4)).bytes
    ledger.resident_bytes = GIB
    assert ledger.load(job("b", gib=4)).bytes == before + GIB
    ledger.measure("a", GIB + 2 * training_bytes(job(gib=4)))  # twice the prediction, without the data set
    assert ledger.measured == [(training_bytes(job(gib=4)), 2 * training_bytes(job(gib=4)))]
    assert ledger.load(job("b", gib=4)).bytes == before + GIB + int((2 * MARGIN - 1) * training_bytes(job(gib=4)))
    assert ledger.pick(job("b", gib=4)) is None


def test_peak_of_a_cpu_process_is_ignored() -> None:
    ledger = Ledger((CPU,), workers=9)
    ledger.begin(job("a"))
    ledger.measure("a", 100 * GIB)
    assert ledger.measured == []


def test_worst_ratio_counts_and_a_few_ratios_only_raise_predictions() -> None:
    assert correction([]) == 1
    assert correction([(100, 50)]) == 1
    assert correction([(100, 50), (100, 40), (100, 60)]) == pytest.approx(0.6 * MARGIN)
    assert correction([(100, 150)]) == pytest.approx(1.5 * MARGIN)
    assert correction([(100, 50), (100, 150), (100, 60)]) == pytest.approx(1.5 * MARGIN)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "densenet:L=40,k=12,size=16",
        "densenet_bc_40_12",
        "densenet-bc:L=64,k=12,size=16",
        "densenet-bc:layers=6-12-12,k=32,stem=imagenet,size=64",
        "densenet-bc:L=40,k=12,dropout=0.2,connect=log",
        "densenet-bc:L=40,k=12,connect=window:2",
        "densenet-bc:layers=3-3-3,k=32,size=16",
    ],
)
def test_predictions_slightly_exceed_the_tensors_of_a_step(name: str, recompute: bool) -> None:
    """On a CPU in bf16 all tensors can be counted, and there is no workspace."""
    spec, batch = parse_name(name), 2
    costs = cost(spec, batch)
    sizes = {"activation_bytes": costs.activation_bytes, "params": costs.params}
    predicted_job = Job("a", "", spec.to_dict(), {"batch_size": batch}, {}, (0, 0), recompute=recompute, **sizes)
    predicted = tensor_bytes(predicted_job)
    net: Any = build(spec).to(memory_format=torch.channels_last)
    net.recompute = recompute
    x, y = torch.randn(batch, 3, spec.image_size, spec.image_size), torch.zeros(batch, dtype=torch.long)
    weights_and_momentum = 2 * 4 * costs.params
    peak = step_bytes(net, x, y, autocast=True)[1] + weights_and_momentum
    assert peak <= predicted <= 1.5 * peak


def test_recomputation_is_predicted_from_the_spec() -> None:
    spec = parse_name("densenet_bc_100_12")
    activations = cost(spec, 64).activation_bytes
    plain = Job("a", "", spec.to_dict(), {"batch_size": 64}, {}, (0, 0), activation_bytes=activations)
    recomputed = Job(
        "a", "", spec.to_dict(), {"batch_size": 64}, {}, (0, 0), activation_bytes=activations, recompute=True
    )
    assert kept_bytes(plain) == activations
    assert kept_bytes(recomputed) < 0.15 * activations
    assert training_bytes(recomputed) > WORKSPACE_BYTES
