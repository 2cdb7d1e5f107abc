"""Estimates of training time for `--dry-run`, from a few timed steps."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dnas.arch import Spec, cost
from dnas.batch.forecast import Forecast
from dnas.batch.planned import PlannedRun
from dnas.formatting import duration, several
from dnas.nn import kernels_or_plain, resolve_kernels
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.training.defaults import DEFAULT_KERNELS, cores
from dnas.training.devices import check_device, list_devices
from dnas.training.fit import time_steps
from dnas.training.recipe import Recipe

TIMED_STEPS = 3
START_SECONDS = 2.0  # time from the start of a run to its first step
MAX_TIMED_MACS = 2e10  # multiply-adds of the largest step that is timed; the time of larger steps is extrapolated
VALIDATION_SHARE = 1 / 27  # validation time per epoch: a ninth as many images, at a third of the work


def describe_time(forecast: Forecast) -> str:
    """Estimate the time of a search, from a few timed steps of its median network."""
    config, space, data = forecast.config, forecast.space, forecast.data
    if not forecast.longest:
        return "time      none: nothing is left to train"
    device = check_device(config.run.device)
    folder = StudyFolder(Path("studies") / config.study)
    recipe, spec = space.recipe, forecast.typical
    if device == "cpu":  # a step of a large network would take longer to time than the reader waits
        batch = max(2, min(recipe.batch_size, int(MAX_TIMED_MACS / cost(spec).macs)))
        recipe = dataclasses.replace(recipe, batch_size=batch)
    kernels = settled_kernels(config.run, spec, recipe.batch_size, device, folder)
    epoch = epoch_seconds(spec, recipe, (data.train_size, data.val_size), device, config.run, kernels)
    at_once = runs_at_once(config.run, device, forecast.runs)
    shortest, longest = (
        (runs * space.recipe.epochs * epoch + math.ceil(runs) * START_SECONDS) / at_once
        for runs in (forecast.shortest, forecast.longest)
    )
    early = f"about {duration(shortest)} with early stopping, at most " if shortest < longest else "about "
    return (
        f"time      {early}{duration(longest)}, {several(at_once, 'run')} at once\n"
        f"          (from {TIMED_STEPS} timed steps of the median network on {device}, kernels {kernels})"
    )


def describe_list_time(
    runs: Sequence[PlannedRun],
    images: Callable[[PlannedRun], int],
    run_config: RunConfig,
    folder: StudyFolder,
    at_most: bool = False,
) -> str:
    """Estimate the time of a list of runs, see `list_seconds`. at_most: Some runs may turn out to be superfluous."""
    if not runs:
        return "time      none: nothing is left to train"
    device = list_devices(run_config.device)[0]
    at_once = runs_at_once(run_config, device, len(runs))
    return (
        f"time      {'at most ' if at_most else ''}about {duration(list_seconds(runs, images, run_config, folder))},"
        f" {several(at_once, 'run')} at once ({several(run_config.threads, 'thread')} each, {device.partition(':')[0]})"
    )


def list_seconds(
    runs: Sequence[PlannedRun], images: Callable[[PlannedRun], int], run_config: RunConfig, folder: StudyFolder
) -> float:
    """Return the estimated seconds of a list of runs, of which several run at once.

    Args:
        runs: The runs.
        images: Function that returns the number of training images of a run.
        run_config: Device, workers, kernels and threads of the runs.
        folder: Their study, which may exist already.
    """
    if not runs:
        return 0.0
    device = list_devices(run_config.device)[0]
    return estimate_seconds(runs, images, device, run_config, folder) / runs_at_once(run_config, device, len(runs))


def runs_at_once(run_config: RunConfig, device: str, runs: int) -> int:
    """Return the number of runs that train at full speed at the same time."""
    limit = cores() // run_config.threads if device == "cpu" else run_config.workers
    return max(1, min(run_config.workers, limit, runs))


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
