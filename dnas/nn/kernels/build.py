"""Build the C++ kernels as a shared library with this machine's compiler at first use, and cache it.

The name of a library is a digest of the sources, the compiler and its flags, which include the processor's vector
extensions, and the version of torch. Nodes of a cluster that share the cache folder but not the processor thus have
separate libraries. A checksum is stored with each library, and a damaged one is rebuilt. If several processes need the
same library, one builds it and the others wait.
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

from dnas.io import expanded, write_atomic
from dnas.machine import NO_COMPILER, find_compiler

HERE = Path(__file__).parent / "csrc"
SOURCE = "dense_block.cpp"
BASE_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math"]
BUILD_TIMEOUT_SECONDS = 300

log = logging.getLogger(__name__)


class CannotBuild(Exception):
    """The C++ kernels cannot be built; the message is the reason in one line."""


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL:
    """Load the kernels from the cache, or build them. Raises `CannotBuild` if there is no compiler or it fails."""
    command = [*compiler(), *BASE_FLAGS, *processor_flags()]
    path = library_in(cache_folder(), command)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuild(f"the library does not load: {error}") from None


def cache_folder() -> Path:
    """Return $DNAS_KERNELS, else ~/.cache/dnas/kernels."""
    return expanded(os.environ.get("DNAS_KERNELS") or "~/.cache/dnas/kernels")


def compiler() -> list[str]:
    """Return the compiler as a command."""
    command = find_compiler()
    if command is None:
        raise CannotBuild(NO_COMPILER)
    return command


def processor_flags() -> list[str]:
    """Return compiler flags for the vector extensions of this processor; empty if they are unknown."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return vector_flags(set(line.split()))
    return []


def vector_flags(features: set[str]) -> list[str]:
    """Return compiler flags for the `flags` of /proc/cpuinfo."""
    if not {"avx2", "fma"} <= features:
        return []
    if not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
        return ["-mavx2", "-mfma"]
    return ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]


def library_in(folder: Path, command: list[str]) -> Path:
    """Return the path of the library that `command` builds, after building it if necessary.

    If `folder` is not writable, the library is built in a temporary folder.
    """
    name = library_name(command)
    path = folder / name
    if is_intact(path):
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
        if not is_intact(path):
            _build(command, path)
    return path


def library_name(command: list[str]) -> str:
    """Return the file name of the library, a digest of everything that it depends on."""
    digest = hashlib.sha256()
    for source in sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")]):
        digest.update(source.name.encode() + source.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    digest.update("\0".join([*command, version, platform.machine(), torch.__version__]).encode())
    return f"dense_block-{digest.hexdigest()[:24]}.so"


def is_intact(path: Path) -> bool:
    """Return whether the library exists and is intact. Loading a damaged one could crash the process."""
    with suppress(OSError):
        return _checksum(path) == path.with_suffix(".sha256").read_text(encoding="utf-8")
    return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _build(command: list[str], path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        compilation = subprocess.run(
            [*command, str(HERE / SOURCE), "-o", str(temporary)],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_SECONDS,
            check=False,
        )
        if compilation.returncode:
            log.warning("%s failed:\n%s", shlex.join(command), compilation.stderr.strip())
            errors = (line.strip() for line in compilation.stderr.splitlines() if "error" in line)
            raise CannotBuild(f"the compiler {command[0]} failed: {next(errors, f'status {compilation.returncode}')}")
        temporary.replace(path)
        write_atomic(path.with_suffix(".sha256"), _checksum(path))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"the compiler {command[0]} failed: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
