"""Parts of a data set on disk: found, counted and identified without torch, and without decoding an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnas.data import split
from dnas.data.arrays import list_npz
from dnas.data.cache import cache_key, known_once
from dnas.data.catalog import DataInfo, choose_augmentation, choose_image_size, data_info, is_local, local_path
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
from dnas.data.own import refuse_own
from dnas.data.sources import NamedPart, imagenet_folder
from dnas.data.table import list_csv
from dnas.errors import InputError
from dnas.formatting import several, size
from dnas.io import write_atomic

FEW_IMAGES = 100  # with fewer validation images, one image is over 1% of the error
AUGMENTED = {
    "none": "not augmented",
    "crop": "shifted at random",
    "crop+flip": "shifted and mirrored at random",
    "resized-crop+flip": "cropped and mirrored at random",
}


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
    files = None
    if images is None:
        files, test = list_parts(name, local_path(name))
        classes, images, whole, test_size = len(files.class_names), len(files), files.whole, len(test or ())
        if whole and is_stratified(files):
            test_size = int(test_counts(files.labels).sum())
        elif whole:
            held_out = held_out_units(files)
            test_size, files = len(held_out), files.take(np.setdiff1d(np.arange(images), held_out))
        images -= test_size if whole else 0
    elif not NamedPart(name, "train", data_folder(data_root)).is_here():
        missing = info.download
    if subset is not None:
        check_subset(subset, images, classes)
    used = images if subset is None else subset
    if files is None or (is_stratified(files) and files.validation is None):
        val_size = split.tenth(used, classes)
    else:
        chosen = choose_subset(files, subset, split_seed)
        val_size = len(validation_positions(files, chosen, split_seed))
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
