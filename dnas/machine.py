"""Facts about this machine that are certain without torch, whose import takes seconds."""

import os
import shlex
import shutil
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
NO_COMPILER = f"there is no C++ compiler here ($CXX, or one of {', '.join(COMPILERS)})"
NO_TRITON = "the package triton is not installed (it comes with PyTorch for CUDA on Linux)"
NO_DEVICE = "there is no CUDA device"
# Files of systems with a CUDA device: NVIDIA's driver, Windows (WSL), Jetson, and AMD's driver, which torch calls CUDA.
GPU_FILES = ("dev/nvidia*", "proc/driver/nvidia", "dev/dxg", "dev/nvhost*", "dev/nvmap", "dev/nvgpu*", "dev/kfd")
# Files of systems on which the number of CUDA devices is not the number of GPUs; the last ones are instances of a GPU.
UNCOUNTED_FILES = (*GPU_FILES[2:], "proc/driver/nvidia/capabilities/gpu*/mig/gi*")


def find_compiler() -> list[str] | None:
    """Return $CXX, or the first available C++ compiler, as a command; None if there is none."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    commands = [chosen] if chosen else [[name] for name in COMPILERS]
    return next((command for command in commands if shutil.which(command[0])), None)


def cuda_devices(root: Path = Path("/"), driver: str = "libcuda.so.1") -> int | None:
    """Return the number of CUDA devices of this machine, or None if only torch can tell.

    root: Root of the file system.
    driver: Library of NVIDIA's driver.
    """
    if sys.platform == "darwin":
        return 0
    if not sys.platform.startswith("linux"):
        return None
    if not any(any(root.glob(pattern)) for pattern in GPU_FILES):
        return None if _loads(driver) else 0  # the driver can create its files at its first use
    if "CUDA_VISIBLE_DEVICES" in os.environ or any(any(root.glob(pattern)) for pattern in UNCOUNTED_FILES):
        return None
    gpus = len(list(root.glob("proc/driver/nvidia/gpus/*")))
    nodes = sum(path.name.removeprefix("nvidia").isdigit() for path in root.glob("dev/nvidia*"))
    return max(gpus, nodes) if gpus else None


def _loads(library: str) -> bool:
    import ctypes

    with suppress(OSError):
        ctypes.CDLL(library)
        return True
    return False


def missing_for_kernels(name: str) -> str | None:
    """Return one line on why this machine certainly cannot run the kernels of this name."""
    if name == "cpu" and find_compiler() is None:
        return NO_COMPILER
    if name == "triton" and find_spec("triton") is None:
        return NO_TRITON
    if name == "triton" and os.environ.get("TRITON_INTERPRET") != "1" and cuda_devices() == 0:
        return NO_DEVICE
    return None
