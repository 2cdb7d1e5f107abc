"""Estimates for `--dry-run`: the networks that a command will train, their cost, time and disk space."""

import math
import random
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from dnas.arch import Spec, cost
from dnas.batch.runs import PlannedRun
from dnas.data import load_dataset
from dnas.formatting import count, duration, size
from dnas.nn import build
from dnas.search.stopping import REDUCTION, brackets, rungs
from dnas.study.config import SearchConfig
from dnas.training.devices import check_device

SAMPLED_NETWORKS = 200
TIMED_STEPS = 3
RECORD_BYTES = 60_000  # disk space for record, curve and norms of a trial
START_SECONDS = 2.0  # time from the start of a listed run to its first step
MAX_TIMED_MACS = 2e10  # largest step that is timed for a list of runs; the time of larger steps is extrapolated
VALIDATION_SHARE = 1 / 27  # validation time per epoch: a ninth as many images, at a third of the work


def plan(config: SearchConfig) -> str:
    """Describe a search before it starts: networks, cost, time and disk space.

    The data are loaded, and a few training steps of the median network are timed.
    """
    device = check_device(config.run.device)
    data = load_dataset(**config.run.data)
    space = config.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    rng = random.Random(config.seed)
    sampled = (space.feasible(space.random_point(rng)) for _ in range(50 * SAMPLED_NETWORKS))
    feasible = (spec for spec in sampled if spec is not None)
    specs = [spec for spec, _ in zip(feasible, range(SAMPLED_NETWORKS), strict=False)]
    costs = [cost(spec, space.recipe.batch_size) for spec in specs]
    macs = median(network.macs for network in costs)
    typical = min(specs, key=lambda spec: abs(cost(spec).macs - macs))
    recipe, trials = space.recipe, config.trials
    step = seconds_per_step(typical, recipe.batch_size, device, config.run.threads)
    # A validation image needs a forward pass only, a third of the work of a training image.
    epoch = step * (data.steps_per_epoch(recipe.batch_size) + data.val_size / recipe.batch_size / 3)
    longest = trials * recipe.epochs * epoch / config.run.workers
    share = _share_trained(config.stopping, recipe.epochs)
    low, high = min(network.params for network in costs), max(network.params for network in costs)
    checkpoint = 2 * 4 * median(network.params for network in costs)
    activations = max(network.activation_bytes for network in costs)
    return "\n".join(
        (
            f"networks  {trials} of {space.name}: {count(low)} to {count(high)} params,"
            f" {count(min(network.macs for network in costs))} to {count(max(network.macs for network in costs))} macs"
            f" (of {len(specs)} sampled)",
            f"data      {data.title}: {data.train_size:,} training and {data.val_size:,} validation images of"
            f" {data.image_size}×{data.image_size}",
            f"training  {recipe.epochs} epochs of batch {recipe.batch_size}, recipe {recipe.name}",
            f"memory    up to {size(activations)} of activations per step, in each of {config.run.workers} workers",
            f"time      about {duration(share * longest)} with early stopping, at most {duration(longest)}"
            if share < 1
            else f"time      about {duration(longest)}",
            f"          (from {TIMED_STEPS} timed steps of the median network, {1000 * step:.0f} ms each on {device})",
            f"disk      about {size(trials * (checkpoint + RECORD_BYTES))} in studies/{config.study}/",
            "nothing was trained; remove --dry-run to start",
        )
    )


def _share_trained(stopping: str, epochs: int) -> float:
    """Return the fraction of all epochs that is trained if one trial in `REDUCTION` passes each rung."""
    ladders = {"asha": ((rungs(epochs), 1),), "hyperband": brackets(epochs)}.get(stopping, (((), 1),))
    trained = 0.0
    for ladder, trials in ladders:
        alive, last = trials / sum(count for _, count in ladders), 0
        for rung in (*ladder, epochs):
            trained += alive * (rung - last)
            alive, last = alive / REDUCTION, rung
    return trained / epochs


def seconds_per_step(spec: Spec, batch_size: int, device: str, threads: int) -> float:
    """Return the median seconds of a training step on noise, after a warm-up step."""
    torch.set_num_threads(threads)
    net = build(spec).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    x = torch.randn(batch_size, spec.in_channels, spec.image_size, spec.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch_size, dtype=torch.long, device=device)
    times = []
    for _ in range(TIMED_STEPS + 1):
        start = time.monotonic()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.monotonic() - start)
    return median(times[1:])


def estimate_seconds(
    runs: Sequence[PlannedRun], images: Callable[[PlannedRun], int], device: str, threads: int
) -> float:
    """Estimate the training time of all `runs` in seconds, if they run one after the other.

    The cheapest step and the most expensive one of up to `MAX_TIMED_MACS` are timed. Between the two the time is
    interpolated linearly in the macs; above them it is proportional to the macs.

    Args:
        runs: The runs.
        images: Function that returns the number of training images of a run.
        device: Device that trains them.
        threads: Number of CPU threads per run.
    """
    macs = {(run.spec, run.recipe.batch_size): cost(run.spec).macs * run.recipe.batch_size for run in runs}
    steps = sorted(macs, key=lambda step: macs[step])
    timed = sorted({steps[0], *[step for step in steps if macs[step] <= MAX_TIMED_MACS][-1:]}, key=steps.index)
    seconds = [seconds_per_step(spec, batch, device, threads) for spec, batch in timed]
    sizes = [float(macs[step]) for step in timed]
    total = 0.0
    for run in runs:
        x = float(macs[run.spec, run.recipe.batch_size])
        step = float(np.interp(x, sizes, seconds)) if x <= sizes[-1] else seconds[-1] * x / sizes[-1]
        steps_of_epoch = math.ceil(images(run) / run.recipe.batch_size)
        total += START_SECONDS + run.recipe.epochs * steps_of_epoch * step * (1 + VALIDATION_SHARE)
    return total
