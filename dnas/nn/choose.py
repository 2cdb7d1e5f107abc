"""Which kernels are the fastest for a network on a device, from a measurement."""

import logging
import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dnas.arch import DenseNetSpec, Spec
from dnas.nn.densenet import DenseNet
from dnas.nn.kernels import why_not

CANDIDATES = ("cpu", "plain")  # the preferred first; `ref` is there to be compared with, and no faster than `plain`
ROUNDS = 5  # of timed steps, after one that is not; fewer where they take long
CLEARLY = 0.8  # of the time of the preferred kernels: below this others are taken
ENOUGH_SECONDS = 5.0
MEASURED_IMAGES = 64  # at most: what is the fastest with so many is with more

log = logging.getLogger(__name__)


def choose_kernels(spec: Spec, device: str | torch.device, batch: int, threads: int) -> str:
    """The kernels whose training steps of `batch` images are the fastest on `device`, on a CPU with `threads` threads:
    by the fastest of a few steps each, taken in turn; of those that are about as fast the preferred ones, so that the
    same command chooses the same on a busy machine too. No random stream is touched.

    Where this machine has no C++ kernels the log says why, and the answer is `plain`, as it is for other families.
    """
    if not isinstance(spec, DenseNetSpec):
        return "plain"
    device = torch.device(device)
    able = [name for name in CANDIDATES if name != "cpu" or (device.type == "cpu" and _has_cpu_kernels())]
    if len(able) == 1:
        return able[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            seconds = _measure(spec, device, min(batch, MEASURED_IMAGES), able)
    finally:
        torch.set_num_threads(before)
    fastest = min(able, key=seconds.__getitem__)
    return fastest if seconds[fastest] < CLEARLY * seconds[able[0]] else able[0]


def _has_cpu_kernels() -> bool:
    if reason := why_not("cpu"):
        log.warning("dense blocks run on the plain path: %s", reason)
    return not reason


def _measure(spec: DenseNetSpec, device: torch.device, batch: int, names: Sequence[str]) -> dict[str, float]:
    """The least seconds of a training step with each: what else the machine does only ever adds to them."""
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % spec.classes
    nets = {name: DenseNet(spec, kernels=name).to(device).to(memory_format=torch.channels_last) for name in names}
    for net in nets.values():
        _step_seconds(net, x, y)  # the first finds no memory at hand
    least = dict.fromkeys(names, math.inf)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for name, net in nets.items():
            least[name] = min(least[name], _step_seconds(net, x, y))
        if time.perf_counter() - began > ENOUGH_SECONDS:
            break
    return least


def _step_seconds(net: DenseNet, x: Tensor, y: Tensor) -> float:
    started = time.perf_counter()
    F.cross_entropy(net(x), y).backward()
    seconds = time.perf_counter() - started
    net.zero_grad()
    return seconds
