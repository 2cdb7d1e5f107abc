"""Placement of jobs on devices, from predicted memory. Needs neither torch nor a GPU.

On CUDA the cost model predicts the memory, corrected by the peaks of the jobs that have ended. Jobs share a GPU while
their predictions fit. On a CPU nothing is predicted, and at most `workers` jobs share it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dnas.arch import layer_costs, spec_from_dict
from dnas.arch.cost import FLOAT_BYTES

if TYPE_CHECKING:
    from dnas.executors.process import Job

MIB = 2**20
CONTEXT_BYTES = 500 * MIB  # GPU memory per process outside its tensors: CUDA's context and the kernels
# Per process and counted with its tensors: cuDNN and cuBLAS workspaces, and rounding to blocks.
WORKSPACE_BYTES = 200 * MIB
BYTES_PER_PARAM = 4 * FLOAT_BYTES  # weight, gradient, momentum, and temporary copies during a step
STEP_PEAK = 1.25  # peak memory of a step relative to the activations kept for its backward pass
BF16 = 0.5  # size of bf16, in which autocast keeps activations, relative to float32
MEMORY_SHARE = 0.9  # fraction of a GPU's memory that predictions may fill; the rest allows for fragmentation
MARGIN = 1.1  # factor on the worst ratio of measured to predicted bytes
MIN_MEASURED = 3  # with fewer measured jobs, their ratios may only raise a prediction


@dataclass(frozen=True)
class Device:
    """A device of this host. `total_bytes` is None for a CPU, on which memory does not limit the jobs."""

    name: str
    total_bytes: int | None = None


@dataclass(frozen=True)
class Load:
    """Memory of a running job on its device. `predicted` is its `training_bytes` before any correction."""

    bytes: int
    alone: bool = False
    predicted: int = 0


def training_bytes(job: "Job") -> int:
    """Predict the peak memory of a job on CUDA in bytes, as torch counts it, without the data set."""
    return WORKSPACE_BYTES + tensor_bytes(job)


def tensor_bytes(job: "Job") -> int:
    """Predict the peak bytes of a job's tensors: activations in bf16, weights, gradients and momentum."""
    return int(STEP_PEAK * BF16 * kept_bytes(job)) + BYTES_PER_PARAM * job.params


def kept_bytes(job: "Job") -> int:
    """Return the bytes in float32 of the activations that a training step keeps at the recipe's batch size.

    With recomputation these are the outputs of all layers and the largest activations inside one layer.
    """
    if not job.recompute:
        return job.activation_bytes
    batch = job.recipe["batch_size"]
    layers = layer_costs(spec_from_dict(job.spec), batch)
    outputs = sum(FLOAT_BYTES * batch * layer.out_channels * layer.size**2 for layer in layers)
    return min(job.activation_bytes, outputs + max(layer.activation_bytes for layer in layers))


def correction(measured: Sequence[tuple[int, int]]) -> float:
    """Return the correction factor on `training_bytes`: the worst ratio of measured to predicted bytes, with a margin.

    Without measurements it is 1. measured: (predicted, measured) bytes of the jobs that have ended.
    """
    ratios = [peak / predicted for predicted, peak in measured]
    worst = MARGIN * max(ratios, default=1 / MARGIN)
    return worst if len(ratios) >= MIN_MEASURED else max(1.0, worst)


def place(load: Load, devices: Sequence[Device], running: Mapping[str, Sequence[Load]]) -> str | None:
    """Return the least loaded device that has room for one more job; None if there is none.

    An empty device accepts a job that fits it, and the largest device one that fits no device. A device in use accepts
    a job that fits beside the others, unless that job or one of the others must be alone.
    """
    largest = max((device.total_bytes or 0 for device in devices), default=0)
    candidates = [device for device in devices if _fits(load, device, running.get(device.name, ()), largest)]
    return min(candidates, key=lambda device: _fullness(device, running), default=Device("")).name or None


def _fits(load: Load, device: Device, others: Sequence[Load], largest: int) -> bool:
    if others and (load.alone or any(other.alone for other in others)):
        return False
    if device.total_bytes is None:
        return True
    room = MEMORY_SHARE * device.total_bytes
    if not others and load.bytes > MEMORY_SHARE * largest:
        return device.total_bytes == largest  # predicted to fit no device; the largest has the best chance
    return sum(other.bytes for other in others) + load.bytes <= room


def _fullness(device: Device, running: Mapping[str, Sequence[Load]]) -> tuple[int, float]:
    loads = running.get(device.name, ())
    return len(loads), sum(load.bytes for load in loads) / (device.total_bytes or 1)


@dataclass
class Ledger:
    """Record of the running jobs, their devices and the measured memory, from which jobs are placed."""

    devices: tuple[Device, ...]
    workers: int
    running: dict[str, tuple[str, Load]] = field(default_factory=dict)  # key -> device, load
    measured: list[tuple[int, int]] = field(default_factory=list)  # (predicted, measured) bytes
    resident_bytes: int = 0  # size of the data set on its device, as reported by the workers

    def load(self, job: "Job") -> Load:
        """Predict the GPU memory of `job`, with the current correction."""
        predicted = training_bytes(job)
        total = CONTEXT_BYTES + self.resident_bytes + int(correction(self.measured) * predicted)
        return Load(total, job.alone, predicted)

    def pick(self, job: "Job") -> str | None:
        """Return the device with room for `job`; None if there is none or if `workers` jobs are running."""
        if len(self.running) >= self.workers:
            return None
        return place(self.load(job), self.devices, self._by_device())

    def begin(self, job: "Job") -> str:
        """Record that `job` runs; return its device, which is the least loaded one if none has room."""
        by_device = self._by_device()
        name = place(self.load(job), self.devices, by_device)
        name = name or min(self.devices, key=lambda device: _fullness(device, by_device)).name
        self.running[job.key] = name, self.load(job)
        return name

    def measure(self, key: str, peak_bytes: int) -> None:
        """Record the peak memory of a job's tensors on its GPU, data set included. Jobs on a CPU are ignored."""
        name, load = self.running[key]
        if name.startswith("cuda"):
            self.measured.append((load.predicted, max(0, peak_bytes - self.resident_bytes)))

    def end(self, key: str) -> None:
        del self.running[key]

    def _by_device(self) -> dict[str, list[Load]]:
        by_device: dict[str, list[Load]] = {}
        for name, load in self.running.values():
            by_device.setdefault(name, []).append(load)
        return by_device
