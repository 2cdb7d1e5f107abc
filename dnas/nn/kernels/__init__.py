"""Kernels that run dense blocks, selected by name. `dnas.nn.kernels.reference.Kernels` defines their interface."""

from dnas.errors import InputError
from dnas.nn.kernels import triton_block
from dnas.nn.kernels.build import CannotBuild, load_library
from dnas.nn.kernels.cpu import CPU
from dnas.nn.kernels.reference import REF, Kernels

# `plain` runs the modules themselves. `auto` is a request that `dnas.nn.resolve_kernels` settles before training.
NAMES = ("plain", "ref", "cpu", "triton", "auto")
_TABLE = {"plain": None, "ref": REF, "cpu": CPU, "triton": triton_block.TRITON}


def load_kernels(name: str) -> Kernels | None:
    """Return the kernels of a name, or None for `plain`."""
    return _TABLE[name]


def unavailable_reason(name: str) -> str:
    """Return one line on why this machine cannot run these kernels; empty if it can.

    Builds the C++ kernels if they are not in the cache.
    """
    if name == "cpu":
        try:
            load_library()
        except CannotBuild as reason:
            return str(reason)
    return triton_block.unavailable_reason() if name == "triton" else ""


def check_kernels(name: str) -> None:
    """Raise `InputError` if there are no kernels of this name or this machine cannot run them.

    The message lists the kernels that this machine can run and the reason why it cannot run these.
    """
    if name not in NAMES:
        raise InputError(f"kernels must be one of {', '.join(NAMES)}, but got {name!r}.")
    if reason := unavailable_reason(name):
        available = [other for other in NAMES if other != name and not unavailable_reason(other)]
        raise InputError(f"this machine runs the kernels {', '.join(available)}, but not {name}: {reason}.")
