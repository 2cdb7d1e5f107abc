"""Devices: their names, their memory, and the errors of a full one."""

import ctypes
import resource
import sys
from contextlib import suppress

import torch

from dnas.errors import InputError


def keep_memory() -> None:
    """From now on this process keeps the CPU memory that it has once got: every step asks for the same again, and what
    was given back costs a page fault for every 4 KB, up to a fifth of a step. For glibc; does nothing elsewhere.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: in malloc.h
            mallopt(threshold, 1 << 30)


def check_device(device: str) -> str:
    """`device`, or for `auto` CUDA where there is one; `InputError` where it is not on this machine."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        raise InputError(f"there is no device {device!r}; give cpu, cuda or cuda:0.") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"dnas trains on cpu and cuda, but got --device {device}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch {torch.__version__} finds no CUDA device here; use --device cpu.")
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    return device


def list_devices(device: str) -> tuple[str, ...]:
    """The devices that `device` names, checked by `check_device`: `cuda`, and `auto` where there is one, are every GPU
    of this machine."""
    device = check_device(device)
    if device == "cuda":
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return (device,)


OUT_OF_MEMORY = (  # in the messages of RuntimeErrors and OSErrors that have no type of their own
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
    """Whether `error` is torch's, CUDA's, cuDNN's, the system's or Python's word for a full memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in OUT_OF_MEMORY)


def peak_memory_bytes(device: str) -> int:
    """On CUDA the most that tensors held; on a CPU the most that this process held, torch itself included."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
