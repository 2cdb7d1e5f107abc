"""Which device a training goes to: arithmetic on predicted bytes, without torch and without a GPU.

On CUDA the prediction is the cost model's, corrected by the peaks of the trainings that have ended; trainings share a
GPU as long as their predictions fit. On a CPU nothing is predicted: at most `workers` trainings share it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dnas.arch import layer_costs, spec_from_dict
from dnas.arch.cost import FLOAT_BYTES

if TYPE_CHECKING:
    from dnas.executors.worker import Job

MIB = 2**20
CONTEXT_BYTES = 500 * MIB  # of each process on a GPU, outside its tensors: CUDA's context and the kernels
WORKSPACE_BYTES = 200 * MIB  # of each process, among its tensors: cuDNN's and cuBLAS's scratch, and rounding to blocks
PARAM_BYTES = 4 * FLOAT_BYTES  # of a parameter: weight, gradient, momentum, and copies that a step makes on its way
STEP_PEAK = 1.25  # the most that a step holds, over what it keeps for its backward pass
BF16 = 0.5  # autocast keeps bf16 for float32
MEMORY_SHARE = 0.9  # of a GPU's memory that predictions may fill: the allocator's blocks don't fit exactly
MARGIN = 1.1  # on the worst ratio of measured and predicted bytes
FEW = 3  # measured trainings, below which their ratios may only raise a prediction


@dataclass(frozen=True)
class Device:
    """A device of this host; `total_bytes` is None where memory does not decide, on a CPU."""

    name: str
    total_bytes: int | None = None


@dataclass(frozen=True)
class Load:
    """What a running training takes of its device; `predicted` is its `training_bytes`, before any correction."""

    bytes: int
    alone: bool = False
    predicted: int = 0


def training_bytes(job: "Job") -> int:
    """The predicted peak of a training on CUDA as torch counts it, bytes, the data set apart."""
    return WORKSPACE_BYTES + tensor_bytes(job)


def tensor_bytes(job: "Job") -> int:
    """The peak of a training's own tensors, bytes: activations in bf16, the weights, their gradients and momentum."""
    return int(STEP_PEAK * BF16 * kept_bytes(job)) + PARAM_BYTES * job.params


def kept_bytes(job: "Job") -> int:
    """Activations of a training step at the recipe's batch, bytes in float32. With recomputation: every layer's output,
    and one layer's own activations, the largest's."""
    if not job.recompute:
        return job.activation_bytes
    batch = job.recipe["batch_size"]
    layers = layer_costs(spec_from_dict(job.spec), batch)
    outputs = sum(FLOAT_BYTES * batch * layer.out_channels * layer.size**2 for layer in layers)
    return min(job.activation_bytes, outputs + max(layer.activation_bytes for layer in layers))


def correction(measured: Sequence[tuple[int, int]]) -> float:
    """The factor on `training_bytes` after trainings of (predicted, measured) bytes: the worst ratio with a margin;
    1 before the first."""
    ratios = [peak / predicted for predicted, peak in measured]
    worst = MARGIN * max(ratios, default=1 / MARGIN)
    return worst if len(ratios) >= FEW else max(1.0, worst)


def place(load: Load, devices: Sequence[Device], running: Mapping[str, Sequence[Load]]) -> str | None:
    """The device for one more training, the least loaded first; None where none has room.

    An empty device takes what fits it, and what fits none; one in use takes what fits beside the others, unless it or
    one of them is to be alone.
    """
    largest = max((device.total_bytes or 0 for device in devices), default=0)
    found = [device for device in devices if _fits(load, device, running.get(device.name, ()), largest)]
    return min(found, key=lambda device: _fullness(device, running), default=Device("")).name or None


def _fits(load: Load, device: Device, others: Sequence[Load], largest: int) -> bool:
    if others and (load.alone or any(other.alone for other in others)):
        return False
    if device.total_bytes is None:
        return True
    room = MEMORY_SHARE * device.total_bytes
    if not others and load.bytes > MEMORY_SHARE * largest:
        return device.total_bytes == largest  # too large for all, by the prediction: the largest has the best chance
    return sum(other.bytes for other in others) + load.bytes <= room


def _fullness(device: Device, running: Mapping[str, Sequence[Load]]) -> tuple[int, float]:
    loads = running.get(device.name, ())
    return len(loads), sum(load.bytes for load in loads) / (device.total_bytes or 1)


@dataclass
class Ledger:
    """Which training runs on which device, and what was measured: `place` with a memory."""

    devices: tuple[Device, ...]
    workers: int
    running: dict[str, tuple[str, Load]] = field(default_factory=dict)  # key -> device, load
    measured: list[tuple[int, int]] = field(default_factory=list)  # (predicted, measured) bytes
    resident_bytes: int = 0  # the data set on its device, as the workers report it

    def load(self, job: "Job") -> Load:
        """What `job` would take of a GPU, by the prediction as it stands."""
        predicted = training_bytes(job)
        total = CONTEXT_BYTES + self.resident_bytes + int(correction(self.measured) * predicted)
        return Load(total, job.alone, predicted)

    def pick(self, job: "Job") -> str | None:
        """The device with room for `job` now; None where there is none, or `workers` trainings run."""
        if len(self.running) >= self.workers:
            return None
        return place(self.load(job), self.devices, self._by_device())

    def begin(self, job: "Job") -> str:
        """Notes that `job` runs; its device, which is the least loaded where none has room."""
        by_device = self._by_device()
        name = place(self.load(job), self.devices, by_device)
        name = name or min(self.devices, key=lambda device: _fullness(device, by_device)).name
        self.running[job.key] = name, self.load(job)
        return name

    def measure(self, key: str, peak_bytes: int) -> None:
        """Learns the peak of a training's tensors on its GPU (the data set included); a CPU teaches nothing."""
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
