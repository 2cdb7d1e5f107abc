"""The data: what there is (`catalog`, without torch), and the images as batches (`load_dataset`, `Dataset`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnas.data.dataset import Dataset, load_dataset

__all__ = ["Dataset", "load_dataset"]


def __getattr__(name: str) -> Any:
    # torch is imported at the first use, so that `dnas.data.catalog` stays instant for the command line.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dnas.data import dataset

    return getattr(dataset, name)
