"""Devices: names, memory, and out-of-memory errors."""

import ctypes
import resource
import sys
from contextlib import suppress

import torch

from dnas.errors import InputError
from dnas.training.defaults import check_device_name


def keep_memory() -> None:
    """Keep freed CPU memory in this process instead of returning it to the operating system.

    Every step allocates the same memory again. Returned memory costs a page fault per 4 KB, up to a fifth of a step.
    Has an effect with glibc only.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
            mallopt(threshold, 1 << 30)


def check_device(device: str) -> str:
    """Return `device`, or for `auto` CUDA if available. Raises `InputError` if this machine lacks the device."""
    if check_device_name(device) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, index = torch.device(device).type, torch.device(device).index
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch {torch.__version__} finds no CUDA device here; use --device cpu.")
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    return device


def list_devices(device: str) -> tuple[str, ...]:
    """Return the devices that `device` names. `cuda`, and `auto` on a machine with CUDA, name every GPU.

    Raises `InputError` if this machine does not have them.
    """
    device = check_device(device)
    if device == "cuda":
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return (device,)


OUT_OF_MEMORY = (  # parts of messages of RuntimeErrors and OSErrors without a specific type
    "out of memory",  # CUDA's
    "can't allocate memory",  # torch's on a CPU, and oneDNN's
    "not enough memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, ..._HOST_...
    "bad_alloc",
    "Cannot allocate memory",  # the operating system's
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch, CUDA, cuDNN, the operating system or Python reports that memory is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(part in str(error) for part in OUT_OF_MEMORY)


def peak_memory_bytes(device: str) -> int:
    """Return the peak memory of tensors on CUDA, or of this process on a CPU, torch itself included."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
