"""Error, loss and latency of a trained network."""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from dnas.arch import Spec
from dnas.data import Dataset
from dnas.training.distributed import ALONE, Group
from dnas.training.step import autocast

EVALUATION_BATCH = 500  # at most
LATENCY_RUNS, LATENCY_SECONDS, LATENCY_WARM_UP = 30, 0.5, 5  # the timed runs end with whichever comes first


@torch.no_grad()
def evaluate(
    net: nn.Module,
    data: Dataset,
    part: str,
    device: str = "cpu",
    batch_size: int = EVALUATION_BATCH,
    group: Group = ALONE,
) -> tuple[float, float]:
    """Mean cross entropy (nats) and error (fraction) on a part of the data: `train`, `val` or `test`. In batches of the
    size that it was trained with, a network needs less memory than a training step does.

    group: processes whose `data` are shares of the same; all get the result of the whole.
    """
    net.eval()
    loss, wrong, seen = 0.0, 0, 0
    for x, y in data.batches(part, min(batch_size, EVALUATION_BATCH)):  # type: ignore[arg-type]
        with autocast(device):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        wrong += int((logits.argmax(1) != y).sum().item())
        seen += len(y)
    if group.world > 1:
        loss, wrong, seen = group.sum(torch.tensor([loss, wrong, seen], dtype=torch.float64, device=device)).tolist()
    return loss / seen, wrong / seen


def measure_latency(net: nn.Module, spec: Spec, device: str, threads: int) -> float:
    """Seconds of a forward pass of one image, as `evaluate` runs it: the median of up to 30 on `device`, which `net` is
    moved to; on a CPU with `threads` threads. No random stream and no weight or statistic of `net` is touched."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, net.training
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # as in `fit`: the warm-up chooses the kernels
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, spec.in_channels, spec.image_size, spec.image_size, generator=generator)
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    try:
        with torch.no_grad(), autocast(device):
            for _ in range(LATENCY_WARM_UP):
                net(x)
            while len(times) < LATENCY_RUNS and sum(times) < LATENCY_SECONDS:
                _finish_work(device)
                started = time.perf_counter()
                net(x)
                _finish_work(device)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]
        net.train(before[2])
    return statistics.median(times)


def _finish_work(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
