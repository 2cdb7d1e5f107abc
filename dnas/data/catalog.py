"""Known data sets and their fixed properties. Does not import torch, so that the command line starts quickly."""

from dataclasses import dataclass
from pathlib import Path

from dnas.data.own import OWN, TITLE, own_facts
from dnas.errors import InputError, unknown
from dnas.io import expanded

LOCAL_KINDS = {
    "folder": "folder:PATH, where PATH or PATH/train has one folder per class",
    "csv": "csv:FILE, where FILE has the columns path and label",
    "hf": "hf:FOLDER, where FOLDER was written by Dataset.save_to_disk of the package datasets",
    "npz": "npz:FILE, where FILE has the arrays x_train and y_train, or x and y",
}
"""Kinds of a user's own data, and their form in a sentence."""

AUGMENTATIONS = ("none", "crop", "crop+flip", "resized-crop+flip")

RESIDENT_IMAGE_SIZE = 96
"""Images of at most this many pixels per side are decoded once and kept. Larger ones are decoded when they are used."""


@dataclass(frozen=True)
class DataInfo:
    """Properties of a data set that are known before its files are read. None if they depend on the files."""

    name: str
    title: str
    classes: int | None
    channels: int | None
    image_size: int | None  # pixels per side, as stored or as commonly used
    augmentation: str  # one of AUGMENTATIONS
    paper_epochs: int
    paper_batch_size: int
    test_size: int | None = None  # images in the official test part (for the digits, in the held-out fifth)
    train_size: int | None = None  # images in the official training part
    download: int | None = None  # bytes of the training files as they are downloaded


_KNOWN = (
    DataInfo("digits", "Digits", 10, 1, 8, "crop", 300, 64, 359, 1_438),
    DataInfo("cifar10", "CIFAR-10", 10, 3, 32, "crop+flip", 300, 64, 10_000, 50_000, 170_498_071),
    DataInfo("cifar100", "CIFAR-100", 100, 3, 32, "crop+flip", 300, 64, 10_000, 50_000, 169_001_437),
    DataInfo("svhn", "SVHN", 10, 3, 32, "none", 40, 64, 26_032, 604_388, 1_511_319_396),
    DataInfo("svhn:train", "SVHN without its extra images", 10, 3, 32, "none", 40, 64, 26_032, 73_257, 182_040_794),
    DataInfo("imagenet", "ImageNet", 1000, 3, 224, "resized-crop+flip", 90, 256, 50_000, 1_281_167),
)

DATASETS: dict[str, DataInfo] = {info.name: info for info in _KNOWN}


def data_info(name: str) -> DataInfo:
    """Return the properties of a data set: a key of `DATASETS`, a kind of own data with its path, or `own:`.

    Reads no file, except the shape of the images in the file of `npz:FILE`.

    Raises `InputError` for any other name, and for `folder:` and the like without a path.
    """
    if is_local(name):
        kind, _, path = name.partition(":")
        if not path.strip():
            raise InputError(f"{name!r} has no path; write {LOCAL_KINDS[kind]}.")
        side = None
        if kind == "npz":
            from dnas.data.npy import stored_side  # imports NumPy

            side = stored_side(local_path(name), RESIDENT_IMAGE_SIZE)
        return DataInfo(name, local_path(name).name or path, None, None, side, "crop+flip", 300, 64)
    if name.startswith(OWN):
        channels, size, classes = own_facts(name)
        return DataInfo(name, TITLE, classes, channels, size, "none", 300, 64)
    if name not in DATASETS:
        endings = {".csv": "csv", ".npz": "npz"}
        kind = endings.get(Path(name).suffix.lower(), "folder")
        if "/" in name or name.startswith("~") or kind != "folder":
            what = "a folder" if kind == "folder" else "a file"
            raise InputError(f"no data set {name!r}; for {what} of images, write {kind}:{name}.")
        raise unknown("data set", name, [*DATASETS, *(form.partition(",")[0] for form in LOCAL_KINDS.values())])
    return DATASETS[name]


def is_local(name: str) -> bool:
    """Return whether `name` is a kind of own data with its path, such as `folder:PATH`."""
    return name.partition(":")[0] in LOCAL_KINDS and ":" in name


def local_path(name: str) -> Path:
    """Return the absolute path in a name such as `folder:PATH`, so that it is found from every working folder."""
    return expanded(name.partition(":")[2].strip()).absolute()


def absolute_name(name: str) -> str:
    """Return the name of a data set with an absolute path, if it has one."""
    return f"{name.partition(':')[0]}:{local_path(name)}" if is_local(name) else name


def choose_image_size(info: DataInfo, requested: int | None, stem: str) -> int:
    """Return the pixels per side: `requested`, else the size of the data set, else the usual size for `stem`."""
    if requested is not None:
        if requested < 1:
            raise InputError(f"image_size must be at least 1 pixel, but got {requested}.")
        return requested
    if stem not in ("small", "imagenet"):
        raise unknown("stem", stem, ("small", "imagenet"))
    return info.image_size or (224 if stem == "imagenet" else 32)


def choose_augmentation(info: DataInfo, image_size: int, requested: str = "auto") -> str:
    """Return one of `AUGMENTATIONS` for images of `image_size`: `requested`, or for `auto` the default of the data set.

    Raises `InputError` for an unknown name, and for resized-crop+flip on images that are kept decoded. They are too
    small to crop a tenth of, and the larger originals are not available.
    """
    resident = image_size <= RESIDENT_IMAGE_SIZE
    if requested == "auto":
        if info.name in DATASETS and not (resident and info.augmentation == "resized-crop+flip"):
            return info.augmentation
        return "crop+flip" if resident else "resized-crop+flip"
    if requested not in AUGMENTATIONS:
        raise unknown("augmentation", requested, ("auto", *AUGMENTATIONS))
    if resident and requested == "resized-crop+flip":
        raise InputError(
            f"resized-crop+flip needs image_size above {RESIDENT_IMAGE_SIZE}, but got {image_size}; use crop+flip."
        )
    return requested


def check_subset(subset: int, images: int, classes: int) -> None:
    """Raise `InputError` if `subset` images cannot be chosen from a training part."""
    if not 2 * classes <= subset <= images:
        raise InputError(
            f"subset must be between {2 * classes} (two images per class) and {images} (all), but got {subset}."
        )


def tenth(images: int, classes: int) -> int:
    """Return the number of images in a part that is a tenth of all, with at least one image per class."""
    return max((images + 5) // 10, classes)
