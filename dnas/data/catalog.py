"""The data sets there are and what is fixed about each. Imports no torch: the command line asks here first."""

from dataclasses import dataclass
from pathlib import Path

from dnas.errors import InputError, unknown

AUGMENTATIONS = ("none", "crop", "crop+flip", "resized-crop+flip")

RESIDENT_IMAGE_SIZE = 96
"""Images of at most this many pixels a side are decoded once and kept; larger ones are decoded as they are used."""


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data set before any file is read; `None` where only the files tell."""

    name: str
    title: str
    classes: int | None
    channels: int | None
    image_size: int | None  # pixels a side, as the data set stores or usually presents them
    augmentation: str  # one of AUGMENTATIONS
    paper_epochs: int
    paper_batch_size: int
    test_size: int | None = None  # images in the test part: the official one, or for the digits the fifth held out


_KNOWN = (
    DataInfo("digits", "Digits", 10, 1, 8, "crop", 300, 64, 359),
    DataInfo("cifar10", "CIFAR-10", 10, 3, 32, "crop+flip", 300, 64, 10_000),
    DataInfo("cifar100", "CIFAR-100", 100, 3, 32, "crop+flip", 300, 64, 10_000),
    DataInfo("svhn", "SVHN", 10, 3, 32, "none", 40, 64, 26_032),
    DataInfo("svhn:train", "SVHN without its extra images", 10, 3, 32, "none", 40, 64, 26_032),
    DataInfo("imagenet", "ImageNet", 1000, 3, 224, "resized-crop+flip", 90, 256, 50_000),
)

DATASETS: dict[str, DataInfo] = {info.name: info for info in _KNOWN}


def data_info(name: str) -> DataInfo:
    """The facts about the data set `name`: a key of `DATASETS`, or `folder:PATH` for class folders of images.

    Raises InputError for a name that is neither, and for `folder:` without a path.
    """
    if name.startswith("folder:"):
        path = name.removeprefix("folder:").strip()
        if not path:
            raise InputError(f"{name!r} names no path; write folder:PATH, where PATH/train holds one folder a class")
        return DataInfo(name, Path(path).expanduser().absolute().name or path, None, None, None, "crop+flip", 300, 64)
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, "folder:PATH"])
    return DATASETS[name]


def choose_image_size(info: DataInfo, asked: int | None, stem: str) -> int:
    """Pixels a side: as `asked`, else the data set's own, else what suits the network's `stem`."""
    if asked is not None:
        if asked < 1:
            raise InputError(f"image_size must be at least 1 pixel, not {asked}")
        return asked
    if stem not in ("small", "imagenet"):
        raise unknown("stem", stem, ("small", "imagenet"))
    return info.image_size or (224 if stem == "imagenet" else 32)


def choose_augmentation(info: DataInfo, image_size: int, asked: str = "auto") -> str:
    """One of AUGMENTATIONS for images of `image_size`: as `asked`, or for "auto" the data set's own.

    Raises InputError for an unknown name, and for resized-crop+flip on images that are kept decoded: they are too
    small to cut a tenth out of, and the larger original is gone.
    """
    resident = image_size <= RESIDENT_IMAGE_SIZE
    if asked == "auto":
        if info.name in DATASETS and not (resident and info.augmentation == "resized-crop+flip"):
            return info.augmentation
        return "crop+flip" if resident else "resized-crop+flip"
    if asked not in AUGMENTATIONS:
        raise unknown("augmentation", asked, ("auto", *AUGMENTATIONS))
    if resident and asked == "resized-crop+flip":
        raise InputError(
            f"resized-crop+flip needs image_size above {RESIDENT_IMAGE_SIZE}, not {image_size}; use crop+flip"
        )
    return asked
