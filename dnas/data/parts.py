"""Parts of a data set on disk: found, counted and identified without torch, and without decoding an image."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnas.data import split
from dnas.data.cache import cache_key, known_once
from dnas.data.catalog import DataInfo, choose_augmentation, choose_image_size, data_info, folder_path
from dnas.data.images import BrokenImages, Progress
from dnas.data.listing import (
    Contents,
    ImageFiles,
    hold_out,
    is_whole,
    list_test_images,
    list_training_images,
    test_counts,
)
from dnas.data.own import refuse_own
from dnas.data.sources import NamedPart, imagenet_folder
from dnas.errors import InputError
from dnas.formatting import several, size
from dnas.io import expanded, write_atomic

FEW_IMAGES = 100  # with fewer validation images, one image is over 1% of the error
AUGMENTED = {
    "none": "not augmented",
    "crop": "shifted at random",
    "crop+flip": "shifted and mirrored at random",
    "resized-crop+flip": "cropped and mirrored at random",
}


def data_folder(data_root: Path | None) -> Path:
    """Return the folder of the data files."""
    return expanded(data_root or os.environ.get("DNAS_DATA") or "~/.cache/dnas/data")


def cache_folder() -> Path:
    """Return the folder of the decoded images."""
    return expanded(os.environ.get("DNAS_CACHE") or "~/.cache/dnas/arrays")


def find_parts(
    info: DataInfo, root: Path, cache: Path, progress: Progress
) -> tuple[ImageFiles | NamedPart, ImageFiles | NamedPart | None, int]:
    """Return the training part, the test part (None if there is none) and the number of test images."""
    if not info.name.startswith("folder:") and info.name != "imagenet":
        return NamedPart(info.name, "train", root), NamedPart(info.name, "test", root), info.test_size or 0
    folder = imagenet_folder(root, progress) if info.name == "imagenet" else folder_path(info.name)
    train = list_training_images(folder)
    test: ImageFiles | None
    if is_whole(train, folder):
        key = cache_key("digests", train.listing_digest())
        with list_of_broken_images(cache):
            digests = known_once(cache, key, lambda: train.read_digests(progress), progress)
        train, test = hold_out(train, digests)
    else:
        test = list_test_images(folder, train.class_names)
    return train, test, len(test) if test else 0


def read_contents(files: ImageFiles, cache: Path, progress: Progress) -> Contents:
    """Read every file once; again only after paths, sizes, times or inodes have changed."""
    key = cache_key("contents", files.listing_digest())
    with list_of_broken_images(cache):
        stored = known_once(cache, key, lambda: asdict(files.read_contents(progress)), progress)
    return Contents(**stored | {"levels": stored["levels"] and tuple(stored["levels"])})


def facts_of_files(info: DataInfo, data_root: Path | None) -> dict[str, Any]:
    """Return the number of classes and channels of a folder of images, whose contents are read once."""
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


def check_subset(subset: int, images: int, classes: int) -> None:
    """Raise `InputError` if `subset` images cannot be chosen from a training part."""
    if not 2 * classes <= subset <= images:
        raise InputError(
            f"subset must be between {2 * classes} (two images per class) and {images} (all), but got {subset}."
        )


@dataclass(frozen=True)
class Summary:
    """Facts about a data set that are known before its images are read.

    channels: None for a folder, whose images may be grey.
    missing: Bytes to download; None if the files exist.
    whole: The images have no parts, so a tenth is held out as the test part.
    """

    title: str
    classes: int
    channels: int | None
    image_size: int
    stored_size: int | None
    augmentation: str
    train_size: int
    val_size: int
    test_size: int
    missing: int | None = None
    whole: bool = False

    def describe(self) -> str:
        """Return one line: classes, numbers of images, their size, augmentation, and what is missing."""
        side = f"{self.image_size}×{self.image_size}"
        sized = f"of {side}" if self.stored_size == self.image_size else f"resized to {side}"
        test = f" ({self.test_size:,} more are held out as the test part)" if self.whole else ""
        missing = "" if self.missing is None else f"; not downloaded: {size(self.missing)}"
        return (
            f"{self.title}: {several(self.classes, 'class', 'classes')}, {self.train_size:,} training and"
            f" {self.val_size:,} validation images{test} {sized}, {AUGMENTED[self.augmentation]}{missing}"
        )


def summarize(
    name: str,
    *,
    data_root: Path | None = None,
    image_size: int | None = None,
    stem: str = "small",
    subset: int | None = None,
    split_seed: int = 0,
    augmentation: str = "auto",
) -> Summary:
    """Return what `load_dataset` would load for the same arguments, without reading an image.

    Raises:
        InputError: If an argument is invalid, or a folder of images has another layout.
    """
    refuse_own(name)
    info = data_info(name)
    side = choose_image_size(info, image_size, stem)
    augmentation = choose_augmentation(info, side, augmentation)
    classes, images, test_size, whole, missing = info.classes or 0, info.train_size, info.test_size or 0, False, None
    if images is None:
        folder = folder_path(name)
        files = list_training_images(folder)
        classes, images, whole = len(files.class_names), len(files), is_whole(files, folder)
        test = None if whole else list_test_images(folder, files.class_names)
        test_size = int(test_counts(files.labels).sum()) if whole else len(test or ())
        images -= test_size if whole else 0
    elif not NamedPart(name, "train", data_folder(data_root)).is_here():
        missing = info.download
    if subset is not None:
        check_subset(subset, images, classes)
    used = images if subset is None else subset
    val_size = split.tenth(used, classes)
    return Summary(
        info.title,
        classes,
        info.channels,
        side,
        info.image_size,
        augmentation,
        used - val_size,
        val_size,
        test_size,
        missing,
        whole,
    )


def choose_subset(labels: np.ndarray, subset: int | None, seed: int) -> np.ndarray:
    """Return the positions in use, ascending: all, or a stratified `subset` with at least two images per class."""
    if subset is None:
        return np.arange(len(labels))
    check_subset(subset, len(labels), len(np.unique(labels)))
    return split.choose(labels, subset, seed, split.SUBSET, minimum=2, spare=0)


def size_warnings(train_size: int, val_size: int, batch_size: int) -> list[str]:
    """Return sentences on sizes that are allowed, but with which training or its measurement has little meaning.

    val_size: 0 if the validation images are in the training part.
    """
    warnings = []
    if train_size < batch_size:
        warnings.append(
            f"a batch of {batch_size:,} is larger than the training part of {several(train_size, 'image')}, so an epoch"
            " is a single step; give a smaller --batch-size"
        )
    if 0 < val_size < FEW_IMAGES:
        warnings.append(
            f"the validation part has {several(val_size, 'image')} only, so one image is {100 / val_size:.2g}% of the"
            " error, and networks can hardly be told apart"
        )
    return warnings
