"""What `--dry-run` says: what a command will train, and what that costs."""

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

DRAWS = 200
STEPS = 3
RECORD_BYTES = 60_000  # of a trial's record, curve and norms
START_SECONDS = 2.0  # of a training in a list, before its first step
MOST_MACS = 2e10  # of a step that is timed for a list's estimate: what costs more is reckoned from that
VALIDATION_SHARE = 1 / 27  # of an epoch's time: a ninth as many images, at a third of the work


def plan(config: SearchConfig) -> str:
    """The plan in a few lines: networks, cost, time, disk. Loads the data, and times the median network's step."""
    device = check_device(config.run.device)
    data = load_dataset(**config.run.data)
    space = config.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    rng = random.Random(config.seed)
    drawn = (space.feasible(space.random_point(rng)) for _ in range(50 * DRAWS))
    specs = [spec for spec, _ in zip((spec for spec in drawn if spec is not None), range(DRAWS), strict=False)]
    prices = [cost(spec, space.recipe.batch_size) for spec in specs]
    macs = median(price.macs for price in prices)
    typical = min(specs, key=lambda spec: abs(cost(spec).macs - macs))
    recipe, trials = space.recipe, config.trials
    step = seconds_per_step(typical, recipe.batch_size, device, config.run.threads)
    # A validation image takes a forward pass, a third of a training image's work.
    epoch = step * (data.steps_per_epoch(recipe.batch_size) + data.val_size / recipe.batch_size / 3)
    most = trials * recipe.epochs * epoch / config.run.workers
    share = _share_trained(config.stopping, recipe.epochs)
    low, high = min(price.params for price in prices), max(price.params for price in prices)
    checkpoint = 2 * 4 * median(price.params for price in prices)
    opened = max(price.activation_bytes for price in prices)
    return "\n".join(
        (
            f"networks  {trials} of {space.name}: {count(low)} to {count(high)} params,"
            f" {count(min(p.macs for p in prices))} to {count(max(p.macs for p in prices))} macs"
            f" (of {len(specs)} drawn)",
            f"data      {data.title}: {data.train_size:,} training and {data.val_size:,} validation images of"
            f" {data.image_size}×{data.image_size}",
            f"training  {recipe.epochs} epochs of batch {recipe.batch_size}, recipe {recipe.name}",
            f"memory    up to {size(opened)} of activations a step, in each of {config.run.workers} workers",
            f"time      about {duration(share * most)} with early stopping, at most {duration(most)}"
            if share < 1
            else f"time      about {duration(most)}",
            f"          (from {STEPS} timed steps of the median network, {1000 * step:.0f} ms each on {device})",
            f"disk      about {size(trials * (checkpoint + RECORD_BYTES))} in studies/{config.study}/",
            "nothing was trained; leave out --dry-run to begin",
        )
    )


def _share_trained(stopping: str, epochs: int) -> float:
    """The share of all epochs that is trained where each rung lets one in `REDUCTION` pass."""
    found = {"asha": ((rungs(epochs), 1),), "hyperband": brackets(epochs)}.get(stopping, (((), 1),))
    trained = 0.0
    for every, trials in found:
        alive, last = trials / sum(count for _, count in found), 0
        for rung in (*every, epochs):
            trained += alive * (rung - last)
            alive, last = alive / REDUCTION, rung
    return trained / epochs


def seconds_per_step(spec: Spec, batch_size: int, device: str, threads: int) -> float:
    """Median seconds of a training step on noise, after one that is not counted."""
    torch.set_num_threads(threads)
    net = build(spec).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    x = torch.randn(batch_size, spec.in_channels, spec.image_size, spec.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch_size, dtype=torch.long, device=device)
    times = []
    for _ in range(STEPS + 1):
        began = time.monotonic()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return median(times[1:])


def estimate_seconds(
    runs: Sequence[PlannedRun], images: Callable[[PlannedRun], int], device: str, threads: int
) -> float:
    """Seconds of training of all `runs`, one after the other: timed are the cheapest step and the dearest one of up to
    `MOST_MACS`; between them it is linear in macs, above them proportional. images: of a run's training part."""
    macs = {(run.spec, run.recipe.batch_size): cost(run.spec).macs * run.recipe.batch_size for run in runs}
    steps = sorted(macs, key=lambda step: macs[step])
    timed = sorted({steps[0], *[step for step in steps if macs[step] <= MOST_MACS][-1:]}, key=steps.index)
    seconds = [seconds_per_step(spec, batch, device, threads) for spec, batch in timed]
    sizes = [float(macs[step]) for step in timed]
    total = 0.0
    for run in runs:
        x = float(macs[run.spec, run.recipe.batch_size])
        step = float(np.interp(x, sizes, seconds)) if x <= sizes[-1] else seconds[-1] * x / sizes[-1]
        steps_of_epoch = math.ceil(images(run) / run.recipe.batch_size)
        total += START_SECONDS + run.recipe.epochs * steps_of_epoch * step * (1 + VALIDATION_SHARE)
    return total
