"""Error, loss and latency of a trained network."""

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dnas.arch import Spec
from dnas.data import Dataset
from dnas.training.distributed import ALONE, Group
from dnas.training.step import autocast, count_wrong

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
    outputs: list[tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> tuple[float, float]:
    """Return the mean cross entropy (nats) and the error (fraction) on a part of the data.

    If images have several labels, these are the mean binary cross entropy and the fraction of wrong labels at a
    probability of 0.5 (Hamming loss), over all images and labels. Neither has class weights.

    Args:
        net: The network on `device`; set to evaluation mode.
        data: The data set.
        part: `train`, `val` or `test`.
        device: Device of the network.
        batch_size: Images per batch, at most `MAX_EVALUATION_BATCH`. With the batch size of training, evaluation needs
            less memory than a training step.
        group: Processes whose `data` are shares of one data set. All of them return the result for all shares.
        confusion: int64 [classes, classes] on `device`. The number of images of class i that are predicted as class j
            is added to entry [i, j]. For several labels, int64 [classes, 2, 2]: the number of images that have the
            label (1) or not (0), and are predicted to have it (1) or not.
        outputs: Receives the labels and the probabilities of each batch, on the CPU.
    """
    net.eval()
    loss, wrong, seen = 0.0, 0, 0
    for x, y in data.batches(part, min(batch_size, MAX_EVALUATION_BATCH)):  # type: ignore[arg-type]
        with autocast(device):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        if data.multilabel:
            loss += F.binary_cross_entropy_with_logits(logits.float(), y.float(), reduction="sum").item()
        else:
            loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        wrong += int(count_wrong(logits, y).item())
        if confusion is not None:
            add_to_confusion(confusion, logits, y)
        if outputs is not None:
            probabilities = logits.float().sigmoid() if data.multilabel else logits.float().softmax(1)
            outputs.append((y.cpu(), probabilities.cpu()))
        seen += y.numel()
    if group.world > 1:
        loss, wrong, seen = group.sum(torch.tensor([loss, wrong, seen], dtype=torch.float64, device=device)).tolist()
    return loss / seen, wrong / seen


def add_to_confusion(confusion: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
    """Add the predictions of a batch to the `confusion` of `evaluate`."""
    places: tuple[torch.Tensor, ...]
    if y.ndim == 2:
        places = (torch.arange(y.shape[1], device=y.device).expand_as(y), y, (logits > 0).long())
    else:
        places = (y, logits.argmax(1))
    confusion.index_put_(places, torch.ones_like(y), accumulate=True)


def evaluate_classes(net: nn.Module, data: Dataset, part: str, device: str = "cpu") -> tuple[float, float, list[Any]]:
    """Return the results of `evaluate` and its `confusion` as lists."""
    shape = (data.classes, 2, 2) if data.multilabel else (data.classes, data.classes)
    confusion = torch.zeros(shape, dtype=torch.int64, device=device)
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
