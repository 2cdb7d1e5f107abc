"""Train one network: batches in, a curve out, and a checkpoint per epoch from which it resumes bit for bit.

Training knows no tuner: `fit(..., report)` calls `report(epoch)` after each epoch, and False means stop.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dnas.arch import DenseNetSpec, ResNetSpec, Spec
from dnas.data import Dataset
from dnas.io import remove_torn
from dnas.nn import build, use_kernels
from dnas.training.checkpoint import (
    Epoch,
    Run,
    _restore,
    _write_history,
    check_same_run,
    weights_digest,
    write_checkpoint,
)
from dnas.training.devices import keep_memory, peak_memory_bytes
from dnas.training.distributed import ALONE, Group
from dnas.training.evaluate import evaluate
from dnas.training.norms import GRADIENT_STEPS, GradientNorms, measure_norms
from dnas.training.recipe import Recipe, learning_rate
from dnas.training.step import Criterion, GraphedStep, Step, check_cuda_graph

STREAMS = ("initialisation", "data", "dropout")  # data: the order of the images, then their augmentation

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """The loss is not a finite number: the run cannot recover."""


@dataclass(frozen=True)
class Fit:
    """How a training ended. `finished` is False where `report` stopped it."""

    run: Run
    finished: bool
    weights_digest: str
    peak_memory_bytes: int


def stream_seed(seed: int, number: int, stream: str, *part: int) -> int:
    """The seed of one of a run's `STREAMS`, or of a part of it; runs with the same `seed` and `number` share all,
    whatever their spec."""
    words = np.random.SeedSequence([seed, number, STREAMS.index(stream), *part]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def fit(
    spec: Spec,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: tuple[int, int],
    device: str = "cpu",
    folder: Path | None = None,
    compile_net: bool = False,
    cuda_graph: bool = False,
    kernels: str = "plain",
    recompute: bool = False,
    group: Group = ALONE,
    report: Callable[[Epoch], bool] = lambda epoch: True,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    guard: Callable[[], None] = lambda: None,
) -> Fit:
    """Trains `spec` from `seed = (study seed, trial number)`, or goes on from `folder`'s checkpoint where it has one.

    folder: gets checkpoint.pt, curve.csv and norms.npz, each replaced after every epoch; None keeps nothing.
    cuda_graph: on one GPU, each step is one CUDA graph (`GraphedStep`): the same run to rounding. Where the
        network cannot be captured the log says why, and its steps are launched one kernel at a time. It has not been
        run on a GPU yet.
    kernels: what runs a DenseNet's dense blocks (`dnas.nn.DenseNet`). Where this machine has not got them the log says
        why, and the modules do. Other kernels are the same run to rounding, and not bit for bit.
    recompute: activations are worked out again in the backward pass: a fraction of the memory, 15 to 50% more time on a
        CPU, and the same run, bit for bit. A run may be gone on with either way. The network is then neither compiled
        nor captured.
    group: the processes that train it together; every one calls `fit` with the same arguments and its own device. A
        batch is that of the recipe, sliced; the run is that of one process to rounding, but for dropout, whose masks
        depend on the number of processes. It may be gone on with by any number. Only the first writes and reports.
    report: called once an epoch, for those before a resume too; False ends the training.
    on_step: called after each step with the steps done and the total of this epoch.
    guard: called before anything in `folder` is changed; what it raises ends the training.

    Raises `Diverged` as soon as the loss is not finite, and `InputError` where the checkpoint is of another run, or
    `cuda_graph` not for this device. On the CPU the result depends on nothing but the arguments and the number of
    threads, however often it was interrupted.
    """
    if cuda_graph:
        check_cuda_graph(device, group.world, compile_net)
    if device == "cpu":
        keep_memory()
    torch.manual_seed(stream_seed(*seed, "initialisation"))
    run = Run(spec, recipe, data.describe(), seed, build(spec))
    # The paper's layouts are the same arithmetic; oneDNN's and cuDNN's 1×1 convolutions are several times faster so.
    net = run.net.to(device).to(memory_format=torch.channels_last)
    net.recompute = recompute  # type: ignore[assignment]
    use_kernels(net, kernels)
    group.synchronise_norms(net)
    data = replace(data, share=(group.rank, group.world))
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
    generator = torch.Generator().manual_seed(stream_seed(*seed, "data"))
    torch.manual_seed(stream_seed(*seed, "dropout"))

    def begin() -> dict[str, Any] | None:
        if folder is not None:
            guard()
            remove_torn(folder)
        if folder is None or not (folder / "checkpoint.pt").exists():
            return None
        return check_same_run(folder / "checkpoint.pt", spec, recipe, data, seed)

    content = group.from_first(begin)
    home = folder if group.is_first else None
    if content is not None:
        _restore(run, optimizer, generator, content)
        if home is not None:  # a kill may have come between the checkpoint and these
            _write_history(home, run, guard)
    else:
        run.norms.append(measure_norms(net, spec))
    go_on = True
    for epoch in run.curve:
        go_on = go_on and group.from_first(partial(report, epoch))
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True  # every batch but the last of an epoch has one shape
        torch.cuda.reset_peak_memory_stats(device)
    forward: nn.Module = torch.compile(net) if compile_net and not recompute else net  # type: ignore[assignment]
    trained = group.shared(forward, device, some_unused=isinstance(spec, ResNetSpec) and spec.stochastic_depth > 0)
    criterion = _criterion(recipe, group)
    if cuda_graph and _is_capturable(spec, recompute):
        step: Step = GraphedStep(trained, optimizer, criterion, device, recipe.batch_size)
    else:
        step = Step(trained, optimizer, criterion, device, scale=group.world)
    while go_on and len(run.curve) < recipe.epochs:
        started = time.monotonic()
        # Masks of its own, and none to be kept: the checkpoint holds the first one's stream. The units that stochastic
        # depth drops are the same in all processes: without masks, all draw alike from the stream that all began with.
        if not group.is_first and isinstance(spec, DenseNetSpec):
            torch.manual_seed(stream_seed(*seed, "dropout", group.rank, len(run.curve)))
        gradients = GradientNorms(net.parameters())
        loss, error, rate = _train_epoch(step, data, recipe, len(run.curve), generator, group, on_step, gradients)
        val_loss, val_error = None, None
        if data.val_size:
            size = -(-recipe.batch_size // group.world)
            val_loss, val_error = evaluate(forward, data, "val", device, size, group)
        if val_loss is not None and not math.isfinite(val_loss):
            raise Diverged(f"the validation loss is {val_loss} after epoch {len(run.curve) + 1}.")
        seconds = time.monotonic() - started
        run.curve.append(Epoch(len(run.curve) + 1, loss, error, val_loss, val_error, rate, seconds))
        run.norms.append(measure_norms(net, spec, gradients.value()))
        run.seconds += seconds
        if home is not None:
            guard()
            write_checkpoint(home / "checkpoint.pt", run, optimizer, generator)
            _write_history(home, run, guard)
        go_on = group.from_first(partial(report, run.curve[-1]))
    peak = group.max(peak_memory_bytes(device), device)
    return Fit(run, len(run.curve) == recipe.epochs, weights_digest(net), peak)


def _is_capturable(spec: Spec, recompute: bool) -> bool:
    """Whether a step can be a CUDA graph; where not, the log says why."""
    reason = ""
    if recompute:
        reason = "memory is short, and a graph keeps its own"
    elif isinstance(spec, ResNetSpec) and spec.stochastic_depth:
        reason = "with stochastic depth each step runs other units"
    if reason:
        log.warning("the training steps are not captured as a CUDA graph: %s", reason)
    return not reason


def _train_epoch(
    step: Step,
    data: Dataset,
    recipe: Recipe,
    epoch: int,
    generator: torch.Generator,
    group: Group,
    on_step: Callable[[int, int], None],
    gradients: GradientNorms,
) -> tuple[float, float, float]:
    """Mean loss, mean error and last learning rate of one pass over the training part; `gradients` gets its last."""
    step.begin_epoch()
    steps = data.steps_per_epoch(recipe.batch_size)
    # A look at the loss waits for the device: every step on a CPU, where it is free, else now and then.
    look = 1 if step.device == "cpu" else 50
    seen, rate = 0, 0.0
    for number, (x, y) in enumerate(data.train_batches(recipe.batch_size, generator)):
        size = min(recipe.batch_size, data.train_size - number * recipe.batch_size)  # y may be a slice of it
        rate = learning_rate(recipe, epoch * steps + number, steps)
        step(x, y, size, rate)
        if number % look == 0 and not math.isfinite(now := group.sum(step.loss).item()):
            raise Diverged(f"the training loss is {now} at step {number + 1} of epoch {epoch + 1}.")
        if number >= steps - GRADIENT_STEPS:
            gradients.add()
        seen += size
        on_step(number + 1, steps)
    mean_loss = group.sum(step.total_loss).item() / seen
    if not math.isfinite(mean_loss):
        raise Diverged(f"the training loss is {mean_loss} in epoch {epoch + 1}.")
    return mean_loss, group.sum(step.wrong).item() / seen, rate


def _criterion(recipe: Recipe, group: Group) -> Criterion:
    """This process's part of the mean over the batch: of slices of unequal sizes too."""
    smoothing = recipe.label_smoothing
    if group.world == 1:
        return lambda logits, y, size: F.cross_entropy(logits, y, label_smoothing=smoothing)
    return lambda logits, y, size: F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="sum") / size
