"""Data that dnas never reads: images of a study whose networks a user's own code trains.

Such a study stores the data set as `own:CHANNELSxSIZExSIZE,CLASSES`, which determines the shape of its networks.
"""

import re
from typing import Any

from dnas.errors import InputError

OWN = "own:"
TITLE = "own data"
SOURCE = re.compile(r"own:(\d+)x(\d+)x(\d+),(\d+)")


def own_source(shape: tuple[int, int, int], classes: int) -> str:
    """Return the name of a data set of images of `shape`, which is (channels, height, width).

    Raises:
        InputError: The images are not square, or a number is not positive.
    """
    if len(shape) != 3 or min(*shape, classes) < 1 or shape[1] != shape[2]:
        raise InputError(
            "shape must be (channels, size, size) with square images, and classes at least 1, but got"
            f" shape={tuple(shape)!r} and classes={classes!r}."
        )
    return f"{OWN}{shape[0]}x{shape[1]}x{shape[2]},{classes}"


def own_facts(source: str) -> tuple[int, int, int]:
    """Return channels, size and classes. Raises `InputError` if `source` has another form."""
    match = SOURCE.fullmatch(source)
    if match is None:
        raise InputError(f"{source!r} is no description of own data; write it as own:3x32x32,10.")
    channels, size, _, classes = map(int, match.groups())
    return channels, size, classes


def describe_own(source: str, val_size: int | None) -> dict[str, Any]:
    """Return the description that `Dataset.describe` returns for data that dnas reads.

    val_size: number of validation images, for the noise floor of a report; None if unknown.
    """
    channels, size, classes = own_facts(source)
    return {
        "name": source,
        "title": TITLE,
        "classes": classes,
        "channels": channels,
        "image_size": size,
        "fingerprint": "",
        "augmentation": "none",
        "val_size": val_size,
        "subset": None,
        "split_seed": 0,
    }


def refuse_own(name: str) -> None:
    """Raise `InputError` if `name` is data that only the user's own code can read."""
    if name.startswith(OWN):
        raise InputError(
            "the networks of this study are trained by code of its user, which dnas cannot start; continue it from"
            " Python, with dnas.open_study(...).ask() or dnas.search(..., train=...)."
        )
