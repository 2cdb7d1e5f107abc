"""Which kernels are the fastest for a network on a device, from a measurement."""

import logging
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dnas.arch import DenseNetSpec, Spec
from dnas.nn.densenet import DenseNet
from dnas.nn.kernels import why_not

CANDIDATES = ("cpu", "plain")  # the preferred first; `ref` is there to be compared with, and no faster than `plain`
ROUNDS = 5  # of timed steps, after one that is not
CLEARLY = 0.8  # of the preferred kernels' time, in each round: below this others are taken
MEASURED_IMAGES = 64  # at most: what is the fastest with so many is with more

log = logging.getLogger(__name__)


def choose_kernels(spec: Spec, device: str | torch.device, batch: int) -> str:
    """The kernels whose training steps of `batch` images are the fastest on `device`: the preferred ones, unless others
    take clearly less of one thread's processor time in every one of a few rounds. The clock on the wall would count
    what else the machine does, and the same command could choose otherwise, and train other bits, on a busy day.
    No random stream is touched.

    Where this machine has no C++ kernels the log says why, and the answer is `plain`, as it is for other families.
    """
    if not isinstance(spec, DenseNetSpec):
        return "plain"
    device = torch.device(device)
    able = [name for name in CANDIDATES if name != "cpu" or (device.type == "cpu" and _has_cpu_kernels())]
    if len(able) == 1:
        return able[0]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            return _fastest(spec, device, min(batch, MEASURED_IMAGES), able)
    finally:
        torch.set_num_threads(before)


def _has_cpu_kernels() -> bool:
    if reason := why_not("cpu"):
        log.warning("dense blocks run on the plain path: %s", reason)
    return not reason


def _fastest(spec: DenseNetSpec, device: torch.device, batch: int, names: Sequence[str]) -> str:
    """The first, or what took less than `CLEARLY` of its time in each round. The first round that it wins ends this."""
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch, device=device) % spec.classes
    nets = {name: DenseNet(spec, kernels=name).to(device).to(memory_format=torch.channels_last) for name in names}
    for net in nets.values():
        _step_seconds(net, x, y)  # the first finds no memory at hand
    faster = dict.fromkeys(names[1:], 0.0)  # the seconds of those that have been clearly faster so far
    for _ in range(ROUNDS):
        limit = CLEARLY * _step_seconds(nets[names[0]], x, y)
        faster = {name: seconds for name in faster if (seconds := _step_seconds(nets[name], x, y)) < limit}
        if not faster:
            return names[0]
    return min(faster, key=faster.__getitem__)


def _step_seconds(net: DenseNet, x: Tensor, y: Tensor) -> float:
    """Of this thread's processor time: on a CPU with one thread all of the step is in it."""
    started = time.thread_time()
    F.cross_entropy(net(x), y).backward()
    seconds = time.thread_time() - started
    net.zero_grad()
    return seconds
