"""The kernels that can run dense blocks, by name; see `dnas.nn.kernels.reference.Kernels` for what they are."""

from dnas.errors import InputError
from dnas.nn.kernels.build import CannotBuild, load_library
from dnas.nn.kernels.cpu import CPU
from dnas.nn.kernels.reference import REF, Kernels
from dnas.nn.kernels.triton_block import TRITON, why_none

# plain: the modules themselves; auto: what `dnas.nn.kernels.autotune` measures to be the fastest.
NAMES = ("plain", "ref", "cpu", "triton", "auto")
_TABLE = {"plain": None, "ref": REF, "cpu": CPU, "triton": TRITON}


def load_kernels(name: str) -> Kernels | None:
    """None for `plain`."""
    return _TABLE[name]


def why_not(name: str) -> str:
    """Why this machine cannot run them, in one line; empty where it can. Builds what there is to build."""
    if name == "cpu":
        try:
            load_library()
        except CannotBuild as reason:
            return str(reason)
    return why_none() if name == "triton" else ""


def check_kernels(name: str) -> None:
    """`InputError` where there are no such kernels, or this machine cannot run them: says which it can, and why not
    these."""
    if name not in NAMES:
        raise InputError(f"kernels must be one of {', '.join(NAMES)}, but got {name!r}.")
    if reason := why_not(name):
        able = [other for other in NAMES if other != name and not why_not(other)]
        raise InputError(f"this machine runs the kernels {', '.join(able)}, but not {name}: {reason}.")
