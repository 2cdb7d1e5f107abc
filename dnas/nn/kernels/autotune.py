"""Measure which kernels train a network fastest on a device."""

import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch import Spec
from dnas.nn.kernels import unavailable_reason

CANDIDATES = ("cpu", "plain")  # in order of preference; `ref` is an oracle for tests and no faster than `plain`
TIMED_ROUNDS = 5  # timed steps per candidate, after one warm-up step
FASTER_RATIO = 0.8  # another candidate must stay below this fraction of the preferred one's time in every round
MAX_MEASURED_IMAGES = 64  # larger batches rank the candidates in the same order

log = logging.getLogger(__name__)


def fastest_kernels(
    make_net: Callable[[str], nn.Module], spec: Spec, device: str | torch.device, batch_size: int
) -> str:
    """Return the name of the kernels whose training step is fastest.

    The preferred kernels win unless another candidate is clearly faster in every one of a few rounds. The clock is the
    processor time of one thread. Wall-clock time would include other load on the machine, so the same command could
    choose other kernels, and train other bits, on a busy day. No random stream is advanced.

    If the C++ kernels are unavailable, the log states the reason and the result is `plain`.

    Args:
        make_net: Builds the network on the CPU with the kernels of the given name.
        spec: The network's spec, which defines the shape of its input [N, in_channels, image_size, image_size].
        device: Device to measure on.
        batch_size: Images per training step; at most `MAX_MEASURED_IMAGES` of them are measured.
    """
    device = torch.device(device)
    candidates = [name for name in CANDIDATES if name != "cpu" or (device.type == "cpu" and _has_cpu_kernels())]
    if len(candidates) == 1:
        return candidates[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            images = min(batch_size, MAX_MEASURED_IMAGES)
            x = torch.randn(images, spec.in_channels, spec.image_size, spec.image_size, device=device)
            y = torch.arange(images, device=device) % spec.classes
            nets = {name: make_net(name).to(device).to(memory_format=torch.channels_last) for name in candidates}
            return _fastest(nets, x.contiguous(memory_format=torch.channels_last), y)
    finally:
        torch.set_num_threads(threads)


def _has_cpu_kernels() -> bool:
    if reason := unavailable_reason("cpu"):
        log.warning("dense blocks run on the plain path: %s", reason)
    return not reason


def _fastest(nets: dict[str, nn.Module], x: Tensor, y: Tensor) -> str:
    """Return the first name, unless others stay below `FASTER_RATIO` of its time in every round.

    Measuring stops at the first round in which no other candidate is clearly faster.
    """
    preferred, *others = nets
    for net in nets.values():
        _step_seconds(net, x, y)  # warm-up: the first step allocates memory
    faster = dict.fromkeys(others, 0.0)  # seconds of the latest round
    for _ in range(TIMED_ROUNDS):
        limit = FASTER_RATIO * _step_seconds(nets[preferred], x, y)
        faster = {name: seconds for name in faster if (seconds := _step_seconds(nets[name], x, y)) < limit}
        if not faster:
            return preferred
    return min(faster, key=faster.__getitem__)


def _step_seconds(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the processor time of this thread for one forward and backward pass, in seconds."""
    started = time.thread_time()
    F.cross_entropy(net(x), y).backward()
    seconds = time.thread_time() - started
    net.zero_grad()
    return seconds
