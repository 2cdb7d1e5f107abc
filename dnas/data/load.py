"""Loader of data sets by name: finds the files, decodes or streams the images, and splits them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnas.data import split
from dnas.data.cache import Decoded, cache_key, decoded_once, known_once, measured
from dnas.data.catalog import RESIDENT_IMAGE_SIZE, DataInfo, choose_augmentation, choose_image_size, data_info
from dnas.data.dataset import Dataset
from dnas.data.images import (
    ImageFiles,
    Progress,
    count_channels,
    decode,
    for_each,
    list_test_images,
    list_training_images,
)
from dnas.data.pixels import Pixels, Resident, StoredImages, Stream, margin
from dnas.data.sources import NamedPart, imagenet_folder
from dnas.errors import InputError

# Streamed folders of at most this many images are decoded once at the start, so that broken images are reported early.
MAX_CHECKED_IMAGES = 20_000


def load_dataset(
    name: str,
    *,
    data_root: Path | None = None,
    image_size: int | None = None,
    stem: str = "small",
    subset: int | None = None,
    split_seed: int = 0,
    augmentation: str = "auto",
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Dataset:
    """Load the data set `name`, split it, and measure its mean and standard deviation.

    Decoded images are cached in $DNAS_CACHE (default: ~/.cache/dnas/arrays).

    Args:
        name: A key of `catalog.DATASETS`, or `folder:PATH` for class folders of images.
        data_root: Folder of the data files (default: $DNAS_DATA, else ~/.cache/dnas/data).
        image_size: Pixels per side (default: the size of the data set; for a folder, a size that suits `stem`).
        stem: Stem of the network, `small` or `imagenet`.
        subset: Number of training files to use, chosen by stratification before the split (default: all).
        split_seed: Seed that alone selects the stratified tenth of the training files used for validation.
        augmentation: One of `catalog.AUGMENTATIONS`, or `auto` for the default of the data set.
        device: Device that holds the labels, and the images if they are kept decoded.
        progress: Receives one sentence before and during slow work such as downloads.

    Raises:
        InputError: If an argument or a file of the data set is invalid.
    """
    info = data_info(name)
    side = choose_image_size(info, image_size, stem)
    augmentation = choose_augmentation(info, side, augmentation)
    if split_seed < 0:
        raise InputError(f"split_seed must not be negative, but got {split_seed}.")
    cache = Path(os.environ.get("DNAS_CACHE") or "~/.cache/dnas/arrays").expanduser()
    root = Path(data_root or os.environ.get("DNAS_DATA") or "~/.cache/dnas/data").expanduser()
    reader = _Reader(side, torch.device(device), cache, progress or _ignore)
    train, test, test_size = _find_parts(info, root, reader.progress)

    labelled = reader.labelled(train, info.channels)
    used = _subset(labelled.labels, subset, split_seed)
    validation = split.validation(labelled.labels[used], split_seed)
    train_index = np.setdiff1d(np.arange(len(used)), validation)
    pixels, size_rule = reader.training_pixels(labelled, used, keep_all=subset is None)
    mean, std = pixels.statistics(train_index)
    return Dataset(
        name=name,
        title=info.title,
        classes=len(labelled.class_names),
        class_names=labelled.class_names,
        channels=labelled.channels,
        image_size=side,
        size_rule=size_rule,
        fingerprint=labelled.fingerprint,
        mean=mean,
        std=std,
        augmentation=augmentation,
        test_size=test_size,
        subset=subset,
        split_seed=split_seed,
        device=reader.device,
        labels=torch.from_numpy(labelled.labels[used]).to(reader.device),
        train_index=torch.from_numpy(train_index),
        val_index=torch.from_numpy(validation),
        pixels=pixels,
        open_test=None if test is None else partial(reader.open_test, test, labelled.channels),
    )


def _ignore(text: str) -> None:
    pass


def _find_parts(
    info: DataInfo, root: Path, progress: Progress
) -> tuple[ImageFiles | NamedPart, ImageFiles | NamedPart | None, int]:
    """Return the training part, the test part (None if there is none) and the number of test images."""
    if not info.name.startswith("folder:") and info.name != "imagenet":
        return NamedPart(info.name, "train", root), NamedPart(info.name, "test", root), info.test_size or 0
    if info.name == "imagenet":
        folder = imagenet_folder(root, progress)
    else:
        folder = Path(info.name.removeprefix("folder:").strip()).expanduser().absolute()
    train = list_training_images(folder)
    test = list_test_images(folder, train.class_names)
    return train, test, len(test) if test else 0


def _subset(labels: np.ndarray, subset: int | None, seed: int) -> np.ndarray:
    """Return the positions in use, ascending: all, or a stratified `subset` with at least two images per class."""
    if subset is None:
        return np.arange(len(labels))
    classes = len(np.unique(labels))
    if not 2 * classes <= subset <= len(labels):
        raise InputError(
            f"subset must be between {2 * classes} (two images per class) and {len(labels)} (all), but got {subset}."
        )
    return split.choose(labels, subset, seed, split.SUBSET, minimum=2, spare=0)


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Labels of a training part, from which the images in use are selected, and the source of its images."""

    labels: np.ndarray  # int64 [N]
    class_names: tuple[str, ...]
    fingerprint: str
    channels: int
    source: Decoded | ImageFiles


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reader of images at `image_size`. Small images are kept decoded, and others are streamed."""

    image_size: int
    device: torch.device
    cache: Path
    progress: Progress

    @property
    def is_resident(self) -> bool:
        return self.image_size <= RESIDENT_IMAGE_SIZE

    def labelled(self, part: ImageFiles | NamedPart, channels: int | None) -> _Labelled:
        """Read the labels of the training part. Files that will be streamed are not decoded yet."""
        if self.is_resident or isinstance(part, NamedPart):
            decoded = self.decoded(part, self.image_size if self.is_resident else None, channels)
            return _Labelled(decoded.labels, decoded.class_names, decoded.fingerprint, decoded.images.shape[1], decoded)
        if channels is None:
            key = cache_key("channels", part.digest())
            channels = known_once(self.cache, key, lambda: count_channels(part), self.progress)
        return _Labelled(part.labels, part.class_names, part.fingerprint(), channels, part)

    def training_pixels(self, part: _Labelled, used: np.ndarray, keep_all: bool) -> tuple[Pixels, str]:
        """Return the pixels of the images at `used`, and a sentence on how images are brought to one size.

        keep_all: Whether `used` is the complete part, so that resident images need no copy.
        """
        if self.is_resident:
            assert isinstance(part.source, Decoded)
            rule = f"shorter side resized to {self.image_size} (bilinear, antialiased), centre crop"
            pixels = self._resident(part.source, None if keep_all else used)
            return pixels, rule if part.source.resized else "as stored"
        rule = f"shorter side resized to {margin(self.image_size)} (bilinear, antialiased), centre crop of"
        rule = f"{rule} {self.image_size}"
        if isinstance(part.source, Decoded):
            identity = f"{part.fingerprint} {used.tolist()}"
            return self._stream(StoredImages(part.source.images[used]), identity, part.channels), rule
        files = part.source.take(used)
        self._check(files, part.channels)
        return self._stream(files, files.digest(), part.channels), rule

    def open_test(self, part: ImageFiles | NamedPart, channels: int) -> tuple[Pixels, Tensor]:
        """Open the test files, and return their pixels and labels [N]."""
        if self.is_resident:
            decoded = self.decoded(part, self.image_size, channels)
            return self._resident(decoded, None), torch.from_numpy(decoded.labels).to(self.device)
        source: ImageFiles | StoredImages
        if isinstance(part, NamedPart):
            decoded = self.decoded(part, None, channels)
            source, labels, identity = StoredImages(decoded.images), decoded.labels, decoded.fingerprint
        else:
            source, labels, identity = part, part.labels, part.digest()
        return self._stream(source, identity, channels), torch.from_numpy(labels).to(self.device)

    def decoded(self, part: ImageFiles | NamedPart, image_size: int | None, channels: int | None) -> Decoded:
        """Return all images of the part at `image_size` (None: as stored), from the cache if they are in it."""
        if isinstance(part, ImageFiles):
            assert image_size is not None
            key = cache_key("files", str(part.root), part.digest(), image_size, channels)
            return decoded_once(
                self.cache, key, partial(_decode_files, part, image_size, channels, self.progress), self.progress
            )
        stamps, fresh = part.stamps(), None
        if stamps is None:  # not downloaded yet
            fresh = _decode_named(part, image_size, self.progress)
            stamps = part.stamps()
        if fresh is not None and stamps is None:  # the digits have no files and are read quickly
            return fresh
        key = cache_key(part.name, part.part, str(part.root.absolute()), stamps, image_size)
        return decoded_once(
            self.cache, key, lambda: fresh or _decode_named(part, image_size, self.progress), self.progress
        )

    def _resident(self, decoded: Decoded, used: np.ndarray | None) -> Resident:
        images, sums = decoded.images, decoded.sums
        if used is not None:
            images, sums = images[used], sums[used]
        return Resident(torch.from_numpy(images).to(self.device), sums)

    def _stream(self, source: ImageFiles | StoredImages, identity: str, channels: int) -> Stream:
        pin = self.device.type == "cuda"
        return Stream(source, channels, self.image_size, pin, identity, self.cache, self.progress)

    def _check(self, files: ImageFiles, channels: int) -> None:
        """Read every image of a small streamed folder once, so that a broken one is reported before training."""
        if len(files) > MAX_CHECKED_IMAGES:
            return

        def work(i: int) -> None:
            files.read(i, channels)

        def check() -> bool:
            for_each(len(files), work, "checking", self.progress)
            return True

        known_once(self.cache, cache_key("checked", files.digest()), check, self.progress)


def _decode_files(files: ImageFiles, image_size: int, channels: int | None, progress: Progress) -> Decoded:
    channels = channels or count_channels(files)
    read = partial(files.read, channels=channels)
    images, resized = decode(len(files), read, channels, image_size, progress)
    return measured(images, files.labels, files.class_names, resized)


def _decode_named(part: NamedPart, image_size: int | None, progress: Progress) -> Decoded:
    images, labels, class_names = part.read(progress)
    resized = image_size is not None and images.shape[2:] != (image_size, image_size)
    if resized:
        assert image_size is not None
        channels = images.shape[1]
        read = partial(StoredImages(images).read, channels=channels)
        images, _ = decode(len(images), read, channels, image_size, progress)
    return measured(images, labels, class_names, resized)
