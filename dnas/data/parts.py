"""Parts of a data set on disk: found, counted and identified without torch, and without decoding an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dnas.data import split
from dnas.data.arrays import list_npz
from dnas.data.cache import cache_key, known_once
from dnas.data.catalog import DataInfo, check_subset, is_local, local_path, tenth
from dnas.data.images import BrokenImages, Progress
from dnas.data.listing import (
    Contents,
    ImageFiles,
    held_out_units,
    hold_out,
    is_stratified,
    list_test_images,
    list_training_images,
    test_counts,
    validation_positions,
)
from dnas.data.location import cache_folder, data_folder
from dnas.data.sources import NamedPart, imagenet_folder
from dnas.data.table import list_csv
from dnas.errors import InputError
from dnas.io import write_atomic


def list_parts(name: str, path: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """List the training images and the test images of own data. The first may be `whole`. Opens no image.

    Args:
        name: Name of the data set, which starts with one of `LOCAL_KINDS`, or `imagenet`.
        path: The folder or the file.

    Raises:
        InputError: If the data have another form.
    """
    kind = name.partition(":")[0]
    if kind == "csv":
        return list_csv(path)
    if kind == "npz":
        return list_npz(path)
    if kind == "hf":
        from dnas.data.hugging_face import list_hugging_face

        return list_hugging_face(path)
    train = list_training_images(path)
    return train, None if train.whole else list_test_images(path, train.class_names)


def find_parts(
    info: DataInfo, root: Path, cache: Path, progress: Progress
) -> tuple[ImageFiles | NamedPart, ImageFiles | NamedPart | None, int]:
    """Return the training part, the test part (None if there is none) and the number of test images."""
    if not is_local(info.name) and info.name != "imagenet":
        return NamedPart(info.name, "train", root), NamedPart(info.name, "test", root), info.test_size or 0
    path = imagenet_folder(root, progress) if info.name == "imagenet" else local_path(info.name)
    train, test = list_parts(info.name, path)
    if train.whole:
        key = cache_key("digests", train.listing_digest())
        with list_of_broken_images(cache):
            digests = known_once(cache, key, lambda: train.read_digests(progress), progress)
        train, test = hold_out(train, digests)
        if not len(test):
            raise InputError(
                f"{path} has too few groups to hold out test images; use more groups, or state the parts of the images."
            )
    return train, test, len(test) if test else 0


def read_contents(files: ImageFiles, cache: Path, progress: Progress) -> Contents:
    """Read every file once; again only after paths, sizes, times or inodes have changed."""
    key = cache_key("contents", files.listing_digest())
    with list_of_broken_images(cache):
        stored = known_once(cache, key, lambda: asdict(files.read_contents(progress)), progress)
    return Contents(**stored | {"levels": stored["levels"] and tuple(stored["levels"])})


def facts_of_files(info: DataInfo, data_root: Path | None) -> dict[str, Any]:
    """Return the number of classes and channels of own data, whose contents are read once."""
    cache = cache_folder()
    train, _, _ = find_parts(info, data_folder(data_root), cache, lambda text: None)
    assert isinstance(train, ImageFiles)
    channels = read_contents(train, cache, lambda text: None).channels
    return {"classes": len(train.class_names), "channels": channels}


@contextmanager
def list_of_broken_images(cache: Path) -> Iterator[None]:
    """Write the full list of more than three broken images to a file in `cache` that the error names."""
    try:
        yield
    except BrokenImages as error:
        if len(error.messages) <= 3:
            raise
        path = cache / f"broken-images-{cache_key(error.messages)[:8]}.txt"
        try:
            write_atomic(path, "\n".join(error.messages) + "\n")
        except OSError:  # the cache is not writable
            raise error from None
        raise BrokenImages(error.messages, path) from None


def count_images(name: str, subset: int | None, split_seed: int) -> tuple[int, int, int, int, bool]:
    """Count the images of own data, without reading one.

    Args:
        name: Name of the data set, such as `folder:PATH`.
        subset: Number of training images to use; None is all.
        split_seed: Seed of the validation split.

    Returns:
        The numbers of classes, of training, validation and test images, and whether a test part is held out.

    Raises:
        InputError: If the data have another form, or too few images for `subset`.
    """
    files, test = list_parts(name, local_path(name))
    classes, images, whole, test_size = len(files.class_names), len(files), files.whole, len(test or ())
    if whole and is_stratified(files):
        test_size = int(test_counts(files.labels).sum())
    elif whole:
        held_out = held_out_units(files)
        test_size, files = len(held_out), files.take(np.setdiff1d(np.arange(images), held_out))
    images -= test_size if whole else 0
    if subset is not None:
        check_subset(subset, images, classes)
        images = subset
    if is_stratified(files) and files.validation is None:
        val_size = tenth(images, classes)
    else:
        val_size = len(validation_positions(files, choose_subset(files, subset, split_seed), split_seed))
    return classes, images - val_size, val_size, test_size, whole


def choose_subset(files: ImageFiles, subset: int | None, seed: int) -> np.ndarray:
    """Return the positions in use, ascending: all, or a stratified `subset` with at least two images per class.

    If the data set states a validation part, at least one of the two is in each part. Images with several labels are
    not stratified.
    """
    if subset is None:
        return np.arange(len(files))
    check_subset(subset, len(files), len(files.class_names))
    strata = files.labels if files.labels.ndim == 1 else np.zeros(len(files), dtype=np.int64)
    minimum = 2
    if files.validation is not None:
        strata, minimum = 2 * strata + files.validation, 1
    return split.choose(strata, subset, seed, split.SUBSET, minimum=minimum, spare=0)
