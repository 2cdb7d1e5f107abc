"""Facts about a data set that are known before its images are read, without NumPy for named data sets."""

from dataclasses import dataclass
from pathlib import Path

from dnas.data.catalog import check_subset, choose_augmentation, choose_image_size, data_info, tenth
from dnas.data.files import is_here
from dnas.data.location import data_folder
from dnas.data.own import refuse_own
from dnas.formatting import several, size

FEW_IMAGES = 100  # with fewer validation images, one image is over 1% of the error
AUGMENTED = {
    "none": "not augmented",
    "crop": "shifted at random",
    "crop+flip": "shifted and mirrored at random",
    "resized-crop+flip": "cropped and mirrored at random",
}


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
    whole, missing, test_size = False, None, info.test_size or 0
    if info.train_size is None or info.classes is None:
        from dnas.data.parts import count_images  # imports NumPy and Pillow

        classes, train_size, val_size, test_size, whole = count_images(name, subset, split_seed)
    else:
        classes, used = info.classes, info.train_size
        if not is_here(name, data_folder(data_root)):
            missing = info.download
        if subset is not None:
            check_subset(subset, used, classes)
            used = subset
        val_size = tenth(used, classes)
        train_size = used - val_size
    return Summary(
        info.title,
        classes,
        info.channels,
        side,
        info.image_size,
        augmentation,
        train_size,
        val_size,
        test_size,
        missing,
        whole,
    )


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
