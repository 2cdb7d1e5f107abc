"""Training loop of one network, with a checkpoint per epoch from which a run resumes bit for bit.

Training does not depend on a tuner. `fit(..., report)` calls `report(epoch)` after each epoch and stops if it returns
False.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch import DenseNetSpec, ResNetSpec, Spec
from dnas.data import Dataset
from dnas.io import remove_torn
from dnas.nn import build, use_kernels
from dnas.training.checkpoint import (
    Epoch,
    Run,
    TrainState,
    check_same_run,
    restore,
    weights_digest,
    write_checkpoint,
    write_history,
)
from dnas.training.devices import keep_memory, peak_memory_bytes
from dnas.training.distributed import ALONE, Group
from dnas.training.evaluate import evaluate
from dnas.training.metrics import measure
from dnas.training.norms import GRADIENT_STEPS, GradientNorms, measure_norms
from dnas.training.recipe import Recipe, learning_rate
from dnas.training.step import WARM_UP_STEPS, Criterion, GraphedStep, Step, autocast, check_cuda_graph

# `data` draws the order of the images and then their augmentation.
STREAMS = ("initialisation", "data", "dropout")
CHECKPOINT = "checkpoint.pt"

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """The loss is not finite, so the run cannot recover."""


@dataclass(frozen=True)
class Fit:
    """Result of a training run. `finished` is False if `report` stopped it."""

    run: Run
    finished: bool
    weights_digest: str
    peak_memory_bytes: int


def stream_seed(seed: int, number: int, stream: str, *part: int) -> int:
    """Return the seed of one of the random `STREAMS` of a run, or of a part of it.

    Runs with equal `seed` and `number` share all streams, even if their specs differ.
    """
    high, low = np.random.SeedSequence([seed, number, STREAMS.index(stream), *part]).generate_state(2, np.uint32)
    return int(high) << 31 | int(low) >> 1


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
    metrics: Sequence[str] = (),
    report: Callable[[Epoch], bool] = lambda epoch: True,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    guard: Callable[[], None] = lambda: None,
) -> Fit:
    """Train the network of `spec`, resuming from the checkpoint in `folder` if there is one.

    On a CPU the result depends only on the arguments and the number of threads, however often the run was interrupted.

    Args:
        spec: The network.
        data: The data set to train and validate on.
        recipe: Epochs, batch size and optimiser settings.
        seed: (study seed, trial number), from which all random streams follow.
        device: `cpu`, `cuda` or `cuda:N`.
        folder: Receives checkpoint.pt, curve.csv and norms.npz, each replaced after every epoch. None stores nothing.
        compile_net: Compile the network by torch.compile.
        cuda_graph: On one GPU, run each step as one CUDA graph (`GraphedStep`), which is the same run to rounding. If
            the network cannot be captured, a warning is logged and its kernels are launched one by one. Not yet run on
            a GPU.
        kernels: Kernels of the dense blocks of a DenseNet (see `dnas.nn.DenseNet`). If this machine lacks them, a
            warning is logged and the modules run. Different kernels agree to rounding, not bit for bit.
        recompute: Recompute activations in the backward pass. A step needs a fraction of the memory and, on a CPU, 15
            to 50% more time, and the run is the same bit for bit. A run may be resumed with either value. The network
            is neither compiled nor captured.
        group: The processes that train this network together. Each calls `fit` with equal arguments and its own
            device, and trains on a slice of every batch. The run equals that of one process to rounding, except for
            dropout, whose masks depend on the number of processes. It can be resumed by any number of processes. Only
            the first process writes and reports.
        metrics: Further metrics to measure on the validation part after each epoch, see `dnas.training.metrics`. They
            need a single process.
        report: Called once per epoch, including the epochs before a resume. False ends the run.
        on_step: Called after each step with the number of steps done and the steps of this epoch.
        guard: Called before any change in `folder`. An exception from it ends the run.

    Raises:
        Diverged: As soon as the loss is not finite.
        InputError: If the checkpoint belongs to another run, or `cuda_graph` does not apply to this device.
    """
    if cuda_graph:
        check_cuda_graph(device, group.world, compile_net)
    if device == "cpu":
        keep_memory()
    data = replace(data, share=(group.rank, group.world))
    state = _new_state(spec, data.describe(), recipe, seed, device, kernels, recompute, group)
    _restore_or_start(state, data, folder, group, guard)
    proceed = True
    for epoch in state.run.curve:
        proceed = proceed and group.from_first(partial(report, epoch))
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True  # every batch but the last of an epoch has one shape
        torch.cuda.reset_peak_memory_stats(device)
    net = state.run.net
    forward: nn.Module = torch.compile(net) if compile_net and not recompute else net  # type: ignore[assignment]
    weights = class_weights(recipe, data)
    step = _make_step(state, forward, device, group, cuda_graph and _is_capturable(spec, recompute), weights)
    loop = _EpochLoop(state, data, step, forward, device, group, on_step, tuple(metrics))
    while proceed and len(state.run.curve) < recipe.epochs:
        epoch = loop.run_epoch()
        if folder is not None and group.is_first:
            _save(state, folder, guard)
        proceed = group.from_first(partial(report, epoch))
    peak = group.max(peak_memory_bytes(device), device)
    return Fit(state.run, len(state.run.curve) == recipe.epochs, weights_digest(net), peak)


def _new_state(
    spec: Spec,
    facts: dict[str, Any],
    recipe: Recipe,
    seed: tuple[int, int],
    device: str,
    kernels: str,
    recompute: bool,
    group: Group,
) -> TrainState:
    """Build the untrained network, its optimiser and its random streams."""
    torch.manual_seed(stream_seed(*seed, "initialisation"))
    run = Run(spec, recipe, facts, seed, build(spec))
    # Channels-last is the same arithmetic, and several times faster in the 1×1 convolutions of oneDNN and cuDNN.
    net = run.net.to(device).to(memory_format=torch.channels_last)
    net.recompute = recompute  # type: ignore[assignment]
    use_kernels(net, kernels)
    group.synchronise_norms(net)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
    generator = torch.Generator().manual_seed(stream_seed(*seed, "data"))
    torch.manual_seed(stream_seed(*seed, "dropout"))
    return TrainState(run, optimizer, generator)


def time_steps(
    spec: Spec,
    recipe: Recipe,
    device: str,
    threads: int,
    *,
    kernels: str,
    compile_net: bool = False,
    cuda_graph: bool = False,
    steps: int = 3,
) -> tuple[float, float]:
    """Time the step and the validation batch of `fit`, on noise.

    Args:
        spec: The network.
        recipe: Batch size and optimiser.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of the run.
        kernels: Kernels of the run, resolved: not `auto`.
        compile_net: As in `fit`.
        cuda_graph: As in `fit`.
        steps: Number of timed steps, after warm-up steps.

    Returns:
        Median seconds of a training step on a batch, and of the forward pass of a batch of the same size.
    """
    before, warm_up = torch.get_num_threads(), WARM_UP_STEPS if device.startswith("cuda") or compile_net else 1
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng([device] if device.startswith("cuda") else []):
            state = _new_state(spec, {}, recipe, (0, 0), device, kernels, False, ALONE)
            net = state.run.net
            forward: nn.Module = torch.compile(net) if compile_net else net  # type: ignore[assignment]
            step = _make_step(state, forward, device, ALONE, cuda_graph and _is_capturable(spec, False))
            shape = (recipe.batch_size, spec.in_channels, spec.image_size, spec.image_size)
            x, y = torch.randn(shape, device=device), torch.zeros(shape[0], dtype=torch.long, device=device)
            net.train()
            training = _median_seconds(lambda: step(x, y, len(y), 0.0), warm_up, steps, device)
            net.eval()
            with torch.no_grad(), autocast(device):
                validation = _median_seconds(
                    lambda: forward(x.contiguous(memory_format=torch.channels_last)), warm_up, steps, device
                )
    finally:
        torch.set_num_threads(before)
    return training, validation


def _median_seconds(work: Callable[[], object], warm_up: int, repetitions: int, device: str) -> float:
    times = []
    for _ in range(warm_up + repetitions):
        start = time.monotonic()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        times.append(time.monotonic() - start)
    return statistics.median(times[warm_up:])


def _restore_or_start(
    state: TrainState, data: Dataset, folder: Path | None, group: Group, guard: Callable[[], None]
) -> None:
    """Load the checkpoint in `folder` into `state`. Without one, record the norms of the untrained network."""
    run = state.run

    def read() -> dict[str, Any] | None:
        if folder is None:
            return None
        guard()
        remove_torn(folder)
        path = folder / CHECKPOINT
        return check_same_run(path, run.spec, run.recipe, data, run.seed) if path.exists() else None

    content = group.from_first(read)
    if content is None:
        run.norms.append(measure_norms(run.net, run.spec))
        return
    restore(state, content)
    if folder is not None and group.is_first:  # the process may have been killed between the checkpoint and these files
        write_history(folder, run, guard)


def _save(state: TrainState, folder: Path, guard: Callable[[], None]) -> None:
    guard()
    write_checkpoint(folder / CHECKPOINT, state)
    write_history(folder, state.run, guard)


def _make_step(
    state: TrainState, forward: nn.Module, device: str, group: Group, captured: bool, weights: Tensor | None = None
) -> Step:
    spec, recipe = state.run.spec, state.run.recipe
    some_unused = isinstance(spec, ResNetSpec) and spec.stochastic_depth > 0
    shared = group.shared(forward, device, some_unused=some_unused)
    criterion = _criterion(recipe, group, None if weights is None else weights.to(device))
    if captured:
        return GraphedStep(shared, state.optimizer, criterion, device, recipe.batch_size)
    return Step(shared, state.optimizer, criterion, device, scale=group.world)


def _is_capturable(spec: Spec, recompute: bool) -> bool:
    """Return whether a step can be captured as a CUDA graph, and log a warning if it cannot."""
    reason = ""
    if recompute:
        reason = "recomputation frees memory that a graph would keep"
    elif isinstance(spec, ResNetSpec) and spec.stochastic_depth:
        reason = "with stochastic depth each step runs other units"
    if reason:
        log.warning("the training steps are not captured as a CUDA graph: %s", reason)
    return not reason


def class_weights(recipe: Recipe, data: Dataset) -> Tensor | None:
    """Return the weights of the classes in the training loss, float32 [classes]; None without weights.

    They are n / (classes · n_c) for n_c of n training images, scaled to a mean of 1 over the training images. For
    several labels per image they weight the images that have a label: (n - n_c) / n_c.
    """
    if recipe.class_weights == "none":
        return None
    labels = data.labels.cpu()[data.train_index]
    if data.multilabel:
        present = labels.sum(dim=0).double()
        return ((len(labels) - present) / present.clamp(min=1)).clamp(min=1 / len(labels)).float()
    counts = torch.bincount(labels, minlength=data.classes).double()
    weights = len(labels) / (data.classes * counts.clamp(min=1))
    return (weights * len(labels) / (weights * counts).sum()).float()


def _criterion(recipe: Recipe, group: Group, weights: Tensor | None) -> Criterion:
    """Return this process's part of the mean loss over the batch, also for slices of unequal sizes."""
    smoothing = recipe.label_smoothing

    def of_labels(logits: Tensor, y: Tensor, size: int) -> Tensor:
        targets = y.float() * (1 - smoothing) + smoothing / 2
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return total / (size * y.shape[1])

    def of_classes(logits: Tensor, y: Tensor, size: int) -> Tensor:
        if group.world == 1 and weights is None:
            return F.cross_entropy(logits, y, label_smoothing=smoothing)
        return F.cross_entropy(logits, y, weights, label_smoothing=smoothing, reduction="sum") / size

    return lambda logits, y, size: (of_labels if y.ndim == 2 else of_classes)(logits, y, size)


@dataclass(frozen=True)
class _EpochLoop:
    """Loop that trains and validates `state`, one epoch per call of `run_epoch`.

    forward: The network for evaluation, compiled or not; `step` may wrap it for several processes.
    """

    state: TrainState
    data: Dataset
    step: Step
    forward: nn.Module
    device: str
    group: Group
    on_step: Callable[[int, int], None]
    metrics: tuple[str, ...] = ()

    def run_epoch(self) -> Epoch:
        """Train one epoch, validate, and append the result to the curve and the norms of the run."""
        run, group = self.state.run, self.group
        started = time.monotonic()
        # Every other process draws its own dropout masks. The checkpoint stores the stream of the first process only.
        # The units that stochastic depth drops must be equal in all processes, so ResNets share one stream.
        if not group.is_first and isinstance(run.spec, DenseNetSpec):
            torch.manual_seed(stream_seed(*run.seed, "dropout", group.rank, len(run.curve)))
        gradients = GradientNorms(run.net.parameters())
        loss, error, rate = self._train(gradients)
        val_loss, val_error = None, None
        outputs: list[tuple[Tensor, Tensor]] = []
        if self.data.val_size:
            size = -(-run.recipe.batch_size // group.world)
            kept = outputs if self.metrics else None
            val_loss, val_error = evaluate(self.forward, self.data, "val", self.device, size, group, outputs=kept)
        if val_loss is not None and not math.isfinite(val_loss):
            raise Diverged(f"the validation loss is {val_loss} after epoch {len(run.curve) + 1}.")
        measured = {}
        if outputs:
            labels, scores = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
            measured = measure(self.metrics, labels, scores)
        seconds = time.monotonic() - started
        epoch = Epoch(len(run.curve) + 1, loss, error, val_loss, val_error, rate, seconds, measured)
        run.curve.append(epoch)
        run.norms.append(measure_norms(run.net, run.spec, gradients.value()))
        run.seconds += seconds
        return epoch

    def _train(self, gradients: GradientNorms) -> tuple[float, float, float]:
        """Train on every batch of the epoch; `gradients` measures the last steps.

        Returns the mean loss, the mean error and the last learning rate.
        """
        run, step, group, data = self.state.run, self.step, self.group, self.data
        step.begin_epoch()
        epoch, batch_size, steps = len(run.curve), run.recipe.batch_size, data.steps_per_epoch(run.recipe.batch_size)
        # Reading the loss waits for the device, so it is checked at every step only on a CPU.
        check_interval = 1 if step.device == "cpu" else 50
        seen, rate = 0, 0.0
        for number, (x, y) in enumerate(data.train_batches(batch_size, self.state.generator)):
            size = min(batch_size, data.train_size - number * batch_size)  # y may be a slice of the batch
            rate = learning_rate(run.recipe, epoch * steps + number, steps)
            step(x, y, size, rate)
            if number % check_interval == 0 and not math.isfinite(loss := group.sum(step.loss).item()):
                raise Diverged(f"the training loss is {loss} at step {number + 1} of epoch {epoch + 1}.")
            if number >= steps - GRADIENT_STEPS:
                gradients.add()
            seen += size
            self.on_step(number + 1, steps)
        mean_loss = group.sum(step.total_loss).item() / seen
        if not math.isfinite(mean_loss):
            raise Diverged(f"the training loss is {mean_loss} in epoch {epoch + 1}.")
        return mean_loss, group.sum(step.wrong).item() / (seen * (data.classes if data.multilabel else 1)), rate
