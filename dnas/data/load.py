"""Loader of data sets by name: finds the files, decodes or streams the images, and splits them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnas.data.cache import Decoded, cache_key, decoded_once, known_once, measured
from dnas.data.catalog import (
    RESIDENT_IMAGE_SIZE,
    absolute_name,
    choose_augmentation,
    choose_image_size,
    data_info,
)
from dnas.data.dataset import Dataset
from dnas.data.images import Levels, Progress, decode, extent, for_each, notes_on_extents
from dnas.data.listing import Contents, ImageFiles, ImageReader, is_stratified, validation_positions
from dnas.data.location import cache_folder, data_folder
from dnas.data.own import refuse_own
from dnas.data.parts import choose_subset, find_parts, list_of_broken_images, read_contents
from dnas.data.pixels import Pixels, Resident, StoredImages, Stream, margin
from dnas.data.sources import NamedPart
from dnas.errors import InputError
from dnas.formatting import several

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
    levels: Levels | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Dataset:
    """Load the data set `name`, split it, and measure its mean and standard deviation.

    Decoded images are cached in $DNAS_CACHE (default: ~/.cache/dnas/arrays).

    Args:
        name: A key of `catalog.DATASETS`, or own data: `folder:PATH`, `csv:FILE`, `npz:FILE` or `hf:FOLDER`.
        data_root: Folder of the data files (default: $DNAS_DATA, else ~/.cache/dnas/data).
        image_size: Pixels per side (default: the size of the data set; for a folder, a size that suits `stem`).
        stem: Stem of the network, `small` or `imagenet`.
        subset: Number of training files to use, chosen by stratification before the split (default: all).
        split_seed: Seed that alone selects the stratified tenth of the training files used for validation.
        augmentation: One of `catalog.AUGMENTATIONS`, or `auto` for the default of the data set.
        levels: Values that become black and white in grey images of more than 8 bits (default: the lowest and the
            highest value in the training files).
        device: Device that holds the labels, and the images if they are kept decoded.
        progress: Receives one sentence before and during slow work such as downloads, and one on files that were left
            out or look wrong.

    Raises:
        InputError: If an argument or a file of the data set is invalid.
    """
    refuse_own(name)
    info = data_info(name)
    side = choose_image_size(info, image_size, stem)
    augmentation = choose_augmentation(info, side, augmentation)
    if split_seed < 0:
        raise InputError(f"split_seed must not be negative, but got {split_seed}.")
    reader = _Reader(side, torch.device(device), cache_folder(), progress or _ignore)
    train, test, test_size = find_parts(info, data_folder(data_root), reader.cache, reader.progress)
    whole = isinstance(train, ImageFiles) and bool(train.held_out)
    if whole:
        reader.progress(f"held out as the test part: {several(test_size, 'image')}, {_choice(train)}")
    labelled = reader.labelled(train, info.channels, levels)
    files = labelled.files
    used = choose_subset(files, subset, split_seed)
    validation = reader.validation(files, used, split_seed)
    train_index = np.setdiff1d(np.arange(len(used)), validation)
    pixels, size_rule, notes = reader.training_pixels(labelled, used, keep_all=subset is None)
    for note in notes:
        reader.progress(note)
    mean, std = pixels.statistics(train_index)
    return Dataset(
        name=absolute_name(name),
        title=info.title,
        classes=len(files.class_names),
        class_names=files.class_names,
        channels=labelled.channels,
        image_size=side,
        size_rule=size_rule,
        fingerprint=labelled.fingerprint,
        mean=mean,
        std=std,
        augmentation=augmentation,
        levels=labelled.levels,
        test_size=test_size,
        test_part=_held_out(info.name, files) if whole else None,
        groups=None if files.groups is None else len(np.unique(files.groups[used])),
        subset=subset,
        split_seed=split_seed,
        device=reader.device,
        labels=torch.from_numpy(files.labels[used]).to(reader.device),
        train_index=torch.from_numpy(train_index),
        val_index=torch.from_numpy(validation),
        pixels=pixels,
        open_test=None if test is None else partial(reader.open_test, test, labelled.channels, labelled.levels),
    )


def _ignore(text: str) -> None:
    pass


def _choice(part: ImageFiles | NamedPart) -> str:
    """Return the choice of the test part of images without parts, in a sentence."""
    assert isinstance(part, ImageFiles)
    if part.groups is not None:
        return "a tenth, in whole groups"
    return f"a tenth, chosen by their {'contents' if is_stratified(part) else 'names'}"


def _held_out(name: str, files: ImageFiles) -> str:
    """Return the source of the test part of images without parts, for the description of the data."""
    what = "class folders" if name.startswith("folder:") else "images"
    return _choice(files).replace("a tenth", f"a tenth of the {what}").replace("their ", "")


@dataclass(frozen=True, eq=False)
class _Labelled:
    """A training part, from which the images in use are selected, and the source of its images."""

    files: ImageFiles  # without paths for a named part
    fingerprint: str
    channels: int
    source: Decoded | ImageFiles
    levels: Levels | None = None
    notes: tuple[str, ...] = ()


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

    def labelled(self, part: ImageFiles | NamedPart, channels: int | None, levels: Levels | None) -> _Labelled:
        """Read the labels of the training part. Files that will be streamed are not decoded yet."""
        if isinstance(part, NamedPart):
            decoded = self.named(part, self.image_size if self.is_resident else None)
            files = ImageFiles(part.root, (), (), decoded.labels, decoded.class_names)
            return _Labelled(files, decoded.fingerprint, decoded.images.shape[1], decoded)
        contents = read_contents(part, self.cache, self.progress)
        channels, levels = channels or contents.channels, levels or contents.levels
        notes = part.notes + contents.notes(part.root)
        if self.is_resident:
            decoded = self.decoded(part, contents, channels, levels)
            notes += decoded.notes
            fingerprint = part.fingerprint(decoded.fingerprint)
            return _Labelled(part, fingerprint, channels, decoded, levels, notes)
        return _Labelled(part, part.fingerprint(contents.digest), channels, part, levels, notes)

    def validation(self, files: ImageFiles, used: np.ndarray, seed: int) -> np.ndarray:
        """Return `validation_positions`, and report classes of which groups or stated parts leave none in them."""
        chosen = validation_positions(files, used, seed)
        if files.groups is not None or files.validation is not None:
            labels = files.labels[used][chosen]
            counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(files.class_names))
            missing = [name for name, count in zip(files.class_names, counts.tolist(), strict=True) if not count]
            if missing:
                few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                self.progress(f"not in the validation part: {several(len(missing), 'class', 'classes')} ({few})")
        return chosen

    def training_pixels(self, part: _Labelled, used: np.ndarray, keep_all: bool) -> tuple[Pixels, str, tuple[str, ...]]:
        """Return the pixels of the images at `used`, how they are brought to one size, and notes on the images.

        keep_all: Whether `used` is the complete part, so that resident images need no copy.
        """
        if self.is_resident:
            assert isinstance(part.source, Decoded)
            rule = f"shorter side resized to {self.image_size} (bilinear, antialiased), centre crop"
            pixels = self._resident(part.source, None if keep_all else used)
            return pixels, rule if part.source.resized else "as stored", part.notes
        rule = f"shorter side resized to {margin(self.image_size)} (bilinear, antialiased), centre crop of"
        rule = f"{rule} {self.image_size}"
        identity = cache_key(part.fingerprint, part.levels, used.tolist())
        if isinstance(part.source, Decoded):
            return self._stream(StoredImages(part.source.images[used]), identity, part.channels), rule, part.notes
        reader = ImageReader(part.source.take(used), part.levels)
        notes = self._check(reader, identity, part.channels)
        return self._stream(reader, identity, part.channels), rule, part.notes + notes

    def open_test(self, part: ImageFiles | NamedPart, channels: int, levels: Levels | None) -> tuple[Pixels, Tensor]:
        """Open the test files, and return their pixels and labels [N]."""
        if isinstance(part, NamedPart):
            decoded = self.named(part, self.image_size if self.is_resident else None)
            if self.is_resident:
                return self._resident(decoded, None), torch.from_numpy(decoded.labels).to(self.device)
            pixels = self._stream(StoredImages(decoded.images), decoded.fingerprint, channels)
            return pixels, torch.from_numpy(decoded.labels).to(self.device)
        contents = read_contents(part, self.cache, self.progress)
        for note in part.notes + contents.notes(part.root):
            self.progress(note)
        labels = torch.from_numpy(part.labels).to(self.device)
        if self.is_resident:
            return self._resident(self.decoded(part, contents, channels, levels), None), labels
        identity = cache_key(contents.digest, levels)
        return self._stream(ImageReader(part, levels), identity, channels), labels

    def decoded(self, files: ImageFiles, contents: Contents, channels: int, levels: Levels | None) -> Decoded:
        """Return all images of class folders at the size in use, from the cache if the same contents are in it."""
        key = cache_key("files", contents.digest, self.image_size, channels, levels)

        def compute() -> Decoded:
            read = partial(ImageReader(files, levels).read, channels=channels)
            with list_of_broken_images(self.cache):
                images, resized, extents = decode(len(files), read, channels, self.image_size, self.progress)
            notes = notes_on_extents(extents, str(files.root))
            return measured(images, files.labels, files.class_names, resized, notes)

        return decoded_once(self.cache, key, compute, self.progress)

    def named(self, part: NamedPart, image_size: int | None) -> Decoded:
        """Return all images of a named part at `image_size` (None: as stored), from the cache if they are in it."""
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

    def _stream(self, source: ImageReader | StoredImages, identity: str, channels: int) -> Stream:
        pin = self.device.type == "cuda"
        return Stream(source, channels, self.image_size, pin, identity, self.cache, self.progress)

    def _check(self, reader: ImageReader, identity: str, channels: int) -> tuple[str, ...]:
        """Read every image of a small streamed folder once, so that a broken one is reported before training.

        Returns sentences on images without contrast.
        """
        files = reader.files
        if len(files) > MAX_CHECKED_IMAGES:
            return ()
        extents = np.zeros(len(files), dtype=np.uint8)

        def work(i: int) -> None:
            extents[i] = extent(reader.read(i, channels))

        def check() -> tuple[str, ...]:
            with list_of_broken_images(self.cache):
                for_each(len(files), work, "checking", self.progress)
            return notes_on_extents(extents, str(files.root))

        return tuple(known_once(self.cache, cache_key("checked", identity, channels), check, self.progress))


def _decode_named(part: NamedPart, image_size: int | None, progress: Progress) -> Decoded:
    images, labels, class_names = part.read(progress)
    resized = image_size is not None and images.shape[2:] != (image_size, image_size)
    if resized:
        assert image_size is not None
        channels = images.shape[1]
        read = partial(StoredImages(images).read, channels=channels)
        images, _, _ = decode(len(images), read, channels, image_size, progress)
    return measured(images, labels, class_names, resized)
