"""Estimates for `--dry-run`: the networks that a command will train, their cost, time and disk space."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from dnas.arch import Spec, cost
from dnas.batch.runs import PlannedRun
from dnas.data import load_dataset
from dnas.formatting import count, duration, size
from dnas.nn import kernels_or_plain, resolve_kernels
from dnas.search.stopping import REDUCTION, brackets, rungs
from dnas.study.config import RunConfig, SearchConfig
from dnas.study.folder import StudyFolder
from dnas.training.defaults import DEFAULT_KERNELS
from dnas.training.devices import check_device
from dnas.training.fit import time_steps
from dnas.training.recipe import Recipe

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
    kernels = settled_kernels(
        config.run, typical, recipe.batch_size, device, StudyFolder(Path("studies") / config.study)
    )
    epoch = epoch_seconds(typical, recipe, (data.train_size, data.val_size), device, config.run, kernels)
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
            f"          (from {TIMED_STEPS} timed steps of the median network on {device}, kernels {kernels})",
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


def settled_kernels(run_config: RunConfig, spec: Spec, batch_size: int, device: str, folder: StudyFolder) -> str:
    """Return the kernels that the runs of a study will use. `auto` is measured for `spec`, or read from the study."""
    stored = folder.config().get("kernels") if folder.exists else None
    name = stored or run_config.kernels or DEFAULT_KERNELS
    return kernels_or_plain(resolve_kernels(name, spec, device, batch_size, run_config.compile_net))


def epoch_seconds(
    spec: Spec, recipe: Recipe, images: tuple[int, int], device: str, run_config: RunConfig, kernels: str
) -> float:
    """Return the seconds of an epoch, from timed steps of the run itself.

    Args:
        spec: The network.
        recipe: Batch size and optimiser.
        images: Number of training and of validation images.
        device: Device that trains the network.
        run_config: Threads, and whether networks are compiled and steps captured as CUDA graphs.
        kernels: Kernels of the run, see `settled_kernels`.
    """
    step, validation = time_steps(
        spec,
        recipe,
        device,
        run_config.threads,
        kernels=kernels,
        compile_net=run_config.compile_net,
        cuda_graph=run_config.cuda_graph,
        steps=TIMED_STEPS,
    )
    training_images, validation_images = images
    return step * math.ceil(training_images / recipe.batch_size) + validation * validation_images / recipe.batch_size


def estimate_seconds(
    runs: Sequence[PlannedRun],
    images: Callable[[PlannedRun], int],
    device: str,
    run_config: RunConfig,
    folder: StudyFolder,
) -> float:
    """Estimate the training time of all `runs` in seconds, if they run one after the other.

    The cheapest step and the most expensive one of up to `MAX_TIMED_MACS` are timed. Between the two the time is
    interpolated linearly in the macs; above them it is proportional to the macs.

    Args:
        runs: The runs.
        images: Function that returns the number of training images of a run.
        device: Device that trains them.
        run_config: Kernels and threads of the runs.
        folder: Their study, which may exist already.
    """
    recipes = {(run.spec, run.recipe.batch_size): run.recipe for run in runs}
    macs = {(spec, batch): cost(spec).macs * batch for spec, batch in recipes}
    steps = sorted(macs, key=lambda step: macs[step])
    kernels = settled_kernels(run_config, *steps[0], device, folder)
    timed = sorted({steps[0], *[step for step in steps if macs[step] <= MAX_TIMED_MACS][-1:]}, key=steps.index)
    seconds = [epoch_seconds(step[0], recipes[step], (step[1], 0), device, run_config, kernels) for step in timed]
    sizes = [float(macs[step]) for step in timed]
    total = 0.0
    for run in runs:
        x = float(macs[run.spec, run.recipe.batch_size])
        step = float(np.interp(x, sizes, seconds)) if x <= sizes[-1] else seconds[-1] * x / sizes[-1]
        steps_of_epoch = math.ceil(images(run) / run.recipe.batch_size)
        total += START_SECONDS + run.recipe.epochs * steps_of_epoch * step * (1 + VALIDATION_SHARE)
    return total
