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

MAX_EVALUATION_BATCH = 500
LATENCY_WARM_UP_RUNS = 5
LATENCY_RUNS, LATENCY_SECONDS = 30, 0.5  # timing ends as soon as one of the two limits is reached


@torch.no_grad()
def evaluate(
    net: nn.Module,
    data: Dataset,
    part: str,
    device: str = "cpu",
    batch_size: int = MAX_EVALUATION_BATCH,
    group: Group = ALONE,
    confusion: torch.Tensor | None = None,
) -> tuple[float, float]:
    """Return the mean cross entropy (nats) and the error (fraction) on a part of the data.

    Args:
        net: The network on `device`; set to evaluation mode.
        data: The data set.
        part: `train`, `val` or `test`.
        device: Device of the network.
        batch_size: Images per batch, at most `MAX_EVALUATION_BATCH`. With the batch size of training, evaluation needs
            less memory than a training step.
        group: Processes whose `data` are shares of one data set. All of them return the result for all shares.
        confusion: int64 [classes, classes] on `device`. The number of images of class i that are predicted as class j
            is added to entry [i, j].
    """
    net.eval()
    loss, wrong, seen = 0.0, 0, 0
    for x, y in data.batches(part, min(batch_size, MAX_EVALUATION_BATCH)):  # type: ignore[arg-type]
        with autocast(device):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        predicted = logits.argmax(1)
        wrong += int((predicted != y).sum().item())
        if confusion is not None:
            confusion.index_put_((y, predicted), torch.ones_like(y), accumulate=True)
        seen += len(y)
    if group.world > 1:
        loss, wrong, seen = group.sum(torch.tensor([loss, wrong, seen], dtype=torch.float64, device=device)).tolist()
    return loss / seen, wrong / seen


def evaluate_classes(
    net: nn.Module, data: Dataset, part: str, device: str = "cpu"
) -> tuple[float, float, list[list[int]]]:
    """Return the results of `evaluate`, and the number of images of class i (row) that are predicted as class j."""
    confusion = torch.zeros((data.classes, data.classes), dtype=torch.int64, device=device)
    loss, error = evaluate(net, data, part, device, confusion=confusion)
    return loss, error, confusion.tolist()


def measure_latency(net: nn.Module, spec: Spec, device: str, threads: int) -> float:
    """Return the seconds of a forward pass of one image in evaluation mode: the median of up to `LATENCY_RUNS` passes.

    Moves `net` to `device`; on a CPU it runs with `threads` threads. No random stream, weight or running statistic is
    changed.
    """
    settings = torch.get_num_threads(), torch.backends.cudnn.benchmark, net.training
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # as in `fit`: the warm-up chooses the kernels
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, spec.in_channels, spec.image_size, spec.image_size, generator=generator)
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    try:
        with torch.no_grad(), autocast(device):
            for _ in range(LATENCY_WARM_UP_RUNS):
                net(x)
            while len(times) < LATENCY_RUNS and sum(times) < LATENCY_SECONDS:
                _finish_work(device)
                started = time.perf_counter()
                net(x)
                _finish_work(device)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(settings[0])
        torch.backends.cudnn.benchmark = settings[1]
        net.train(settings[2])
    return statistics.median(times)


def _finish_work(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
