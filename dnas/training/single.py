"""Spec, folder and processes of a single run, for `dnas train`."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch

from dnas.arch import FAMILIES, Spec, parse_name
from dnas.arch.names import stated_fields
from dnas.data import Dataset
from dnas.data.catalog import is_local, local_path
from dnas.errors import InputError
from dnas.formatting import several
from dnas.training.devices import check_device
from dnas.training.distributed import is_started_by_torchrun
from dnas.training.recipe import Recipe


def spec_for_data(name: str, data: Dataset, recipe: Recipe) -> Spec:
    """Return the network `name` for a data set, which determines classes, channels and image size.

    Without augmentation a DenseNet uses the recipe's dropout, unless its name states one. Raises `InputError` if the
    name contradicts the data set.
    """
    spec, stated = parse_name(name), stated_fields(name)
    facts: dict[str, Any] = {"in_channels": data.channels, "image_size": data.image_size, "classes": data.classes}
    for field, value in facts.items():
        if field in stated and getattr(spec, field) != value:
            raise InputError(f"{name!r} states {field}={getattr(spec, field)}, but {data.title} has {value}.")
    if data.augmentation == "none" and "dropout" not in stated and "dropout" in FAMILIES[spec.family].fields:
        facts["dropout"] = recipe.dropout_without_augmentation
    return dataclasses.replace(spec, **facts)


def default_folder(name: str, dataset: str, seed: int) -> Path:
    """Return `studies/runs/<data>-<network>-s<seed>`. Own data have a digest of their path in the name."""
    runs, network = Path("studies/runs"), f"{_slug(name)}-s{seed}"
    if not is_local(dataset):
        return runs / f"{_slug(dataset)}-{network}"
    path = local_path(dataset)
    earlier = (
        runs / f"{re.sub('[^A-Za-z0-9.]+', '-', path.name[:150]).strip('-')}-{network}"
    )  # without a digest, as older versions named it
    if (earlier / "checkpoint.pt").is_file():
        return earlier
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    return runs / f"{_slug(path.name)[:40]}-{digest}-{network}"


def _slug(text: str) -> str:
    """Replace what is neither a letter, in any script, nor a digit or a dot."""
    return re.sub(r"[^\w.]+|_+", "-", text).strip("-")


def set_cpu_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def cpu_threads() -> int:
    return torch.get_num_threads()


def check_processes(device: str, gpus: int | None, batch_size: int) -> tuple[str, int]:
    """Return the device of this process and the number of processes that train together.

    The number is torchrun's if torchrun started this process, else `gpus`. Raises `InputError` if there are fewer
    devices, or fewer images in a batch.
    """
    named, device = device, check_device(device)
    started = is_started_by_torchrun()
    count = int(os.environ["WORLD_SIZE"]) if started else gpus or 1
    if started and gpus not in (None, count):
        raise InputError(f"--gpus {gpus}: torchrun started {count} processes; leave --gpus out.")
    if count == 1:
        return device, 1
    given = f"torchrun's {count} processes" if started else f"--gpus {count}"
    if device == "cpu" and named == "auto" and not started:
        raise InputError(
            f"{given}: torch {torch.__version__} finds no CUDA device here; use --device cpu to train in {count}"
            " processes on the CPU."
        )
    if batch_size < count:
        raise InputError(f"{given}: a batch of {batch_size} cannot be split; give --batch-size {count} or more.")
    if device == "cpu":
        return device, count
    if torch.device(device).index is not None:
        raise InputError(f"{given}: --device {device} is a single GPU; give --device cuda.")
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started else count
    if local_processes > torch.cuda.device_count():
        raise InputError(
            f"{given}: this machine has {several(torch.cuda.device_count(), 'CUDA device')}; give at most that number."
        )
    return (f"cuda:{os.environ['LOCAL_RANK']}" if started else device), count
