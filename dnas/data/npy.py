"""Headers of the arrays in an .npz file, read without the arrays."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = ("x_train", "x", "train_images")  # arrays that may hold the training images


def headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each array of an .npz file, by name.

    Raises `OSError`, `ValueError` or `zipfile.BadZipFile` if it is no such file.
    """
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(member)
                found[name.removesuffix(".npy")] = (shape, kind)
    return found


def image_axes(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return channels, height and width of images (n, h, w), (n, h, w, c) or (n, c, h, w), where c is 1 or 3.

    None if the shape is another one, or could be two of them.
    """
    if len(shape) == 3:
        return 1, shape[1], shape[2]
    if len(shape) != 4 or (shape[1] in (1, 3)) == (shape[3] in (1, 3)):
        return None
    return (shape[1], shape[2], shape[3]) if shape[1] in (1, 3) else (shape[3], shape[1], shape[2])


def stored_side(file: Path, largest: int) -> int | None:
    """Return the side in pixels of the square images in `file` of at most `largest` pixels; None for others.

    A file that cannot be read is reported when its images are listed, so that the studies of a lost file still open.
    """
    try:
        arrays = headers(file)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    for name in IMAGES:
        if name in arrays:
            axes = image_axes(arrays[name][0])
            return axes[1] if axes and axes[1] == axes[2] <= largest else None
    return None
