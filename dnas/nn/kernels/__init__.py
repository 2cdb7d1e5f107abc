"""The kernels that can run dense blocks, by name."""

from dnas.errors import InputError
from dnas.nn.dense_block import REF, Kernels

NAMES = ("plain", "ref", "auto")


def load_kernels(name: str) -> Kernels | None:
    """None for `plain`: the modules themselves."""
    return REF if name == "ref" else None


def check_kernels(name: str) -> None:
    """`InputError` where this machine cannot run them: says which it can, and why not these."""
    if name not in NAMES:
        raise InputError(f"kernels must be one of {', '.join(NAMES)}, but got {name!r}.")
