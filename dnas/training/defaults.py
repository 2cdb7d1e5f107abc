"""Default settings of training runs, which mostly depend on the machine."""

import os
import re

from dnas.errors import InputError, did_you_mean
from dnas.machine import cuda_devices, missing_for_kernels

KERNELS = ("plain", "ref", "cpu", "triton", "auto")  # the names of `dnas.nn.kernels`, which imports torch
DEFAULT_KERNELS = "auto"  # kernels of a new study or run
TINY_IMAGE = 16  # side in pixels up to which one thread is used, since a second one waits longer than it computes


def default_threads(workers: int, image_size: int) -> int:
    """Return the CPU threads of each run: an equal share of the cores, or one for tiny images."""
    return 1 if image_size <= TINY_IMAGE else max(1, cores() // workers)


def default_workers() -> int:
    """Return the number of runs at a time: one on a small machine, else one per four cores."""
    return max(1, cores() // 4)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_device_name(device: str) -> str:
    """Return `device`; raise `InputError` if it is no name of a device that trains. This machine may lack it."""
    if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", device):
        raise InputError(f"no device {device!r} to train on; give cpu, cuda or cuda:0.")
    return device


def check_device_here(device: str) -> str:
    """Return `device`; raise `InputError` if it is no name of a device, or certain that this machine lacks it."""
    kind, _, index = check_device_name(device).partition(":")
    count = cuda_devices() if kind == "cuda" else None
    if count == 0:
        raise InputError(f"--device {device}: this machine has no CUDA device; use --device cpu.")
    if count is not None and int(index or 0) >= count:
        devices = "cuda:0 only" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"--device {device}: this machine has {devices}.")
    return device


def check_kernels_name(name: str | None) -> None:
    """Raise `InputError` if there are no kernels of this name, or if this machine certainly cannot run them."""
    if name is not None and name not in KERNELS:
        raise InputError(
            f"--kernels must be one of {', '.join(KERNELS)}, but got {name!r}.{did_you_mean(name, KERNELS)}"
        )
    if name is not None and (reason := missing_for_kernels(name)):
        raise InputError(f"this machine cannot run the kernels {name}: {reason}; use --kernels auto.")
