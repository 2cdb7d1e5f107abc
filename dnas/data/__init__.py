"""Data sets: the catalog, which does not import torch, and images as batches (`load_dataset`, `Dataset`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnas.data.dataset import Dataset
    from dnas.data.load import load_dataset

__all__ = ["Dataset", "load_dataset"]


def __getattr__(name: str) -> Any:
    # torch is imported at the first use, so that `dnas.data.catalog` remains quick to import for the command line.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dnas.data import load

    return getattr(load, name)
