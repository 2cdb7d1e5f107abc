"""The C++ kernels as a shared library: compiled at first use by this machine's compiler, and kept in a folder.

A library's name is a digest of the sources, the compiler and its flags, what of this processor the flags make use of,
and torch's version: nodes of a cluster that share the folder but not the processor have libraries of their own. Beside
each lies its checksum, and one that is not whole is built again. Of several processes one builds, the others wait.
"""

import atexit
import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from dnas.io import write_atomic

HERE = Path(__file__).parent / "csrc"
SOURCE = "dense_block.cpp"
BASE_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math"]
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 300  # at most

log = logging.getLogger(__name__)


class CannotBuild(Exception):
    """Why this machine has no C++ kernels: one line."""


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """The kernels, from the cache or built now. `CannotBuild` where there is no compiler, or it fails."""
    command = [*find_compiler(), *BASE_FLAGS, *processor_flags()]
    path = library_in(cache_folder(), command)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuild(f"the library does not load: {error}") from None


def cache_folder() -> Path:
    """$DNAS_KERNELS, else ~/.cache/dnas/kernels."""
    return Path(os.environ.get("DNAS_KERNELS") or "~/.cache/dnas/kernels").expanduser()


def find_compiler() -> list[str]:
    """$CXX, or the first compiler there is, as a command."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CannotBuild(f"there is no C++ compiler here ({' '.join(chosen) or ', '.join(COMPILERS)})")


def processor_flags() -> list[str]:
    """Flags for the vectors that this processor has; none where that cannot be told."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return vector_flags(set(line.split()))
    return []


def vector_flags(features: set[str]) -> list[str]:
    if not {"avx2", "fma"} <= features:
        return []
    if not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
        return ["-mavx2", "-mfma"]
    return ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


def library_in(folder: Path, command: list[str]) -> Path:
    """The library that `command` makes of the sources, whole, in `folder`, or in a temporary one where that cannot be
    written to."""
    name = library_name(command)
    path = folder / name
    if is_whole(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{name}.lock").open("w")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="dnas-kernels-"))
        atexit.register(_remove, folder, os.getpid())
        lock = (folder / f"{name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / name
        if not is_whole(path):
            _build(command, path)
    return path


def library_name(command: list[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")]):
        digest.update(source.name.encode() + source.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    digest.update("\0".join([*command, version, platform.machine(), torch.__version__]).encode())
    return f"dense_block-{digest.hexdigest()[:24]}.so"


def is_whole(path: Path) -> bool:
    """Whether the library is there, as it was built: a damaged one could end the process when it is loaded."""
    with suppress(OSError):
        return _checksum(path) == path.with_suffix(".sha256").read_text(encoding="utf-8")
    return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _build(command: list[str], path: Path) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [*command, str(HERE / SOURCE), "-o", str(beside)],
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            log.warning("%s failed:\n%s", shlex.join(command), done.stderr.strip())
            said = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
            raise CannotBuild(f"the compiler {command[0]} failed: {said.strip()}")
        beside.replace(path)
        write_atomic(path.with_suffix(".sha256"), _checksum(path))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"the compiler {command[0]} failed: {error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not in a child that was forked from it
        shutil.rmtree(folder, ignore_errors=True)
