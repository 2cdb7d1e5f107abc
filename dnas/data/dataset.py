"""One data set, split and ready to train on."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dnas.data import split
from dnas.data.augment import mirror, padding, shift
from dnas.data.cache import Decoded, cache_key, decoded_once, known_once, measured
from dnas.data.catalog import RESIDENT_IMAGE_SIZE, choose_augmentation, choose_image_size, data_info
from dnas.data.images import ImageFiles, Say, count_channels, decode, for_each, list_test_images, list_training_images
from dnas.data.pixels import Opener, Pixels, Resident, StoredImages, Stream, margin
from dnas.data.sources import NamedPart, imagenet_folder
from dnas.errors import InputError

CHECKED = 20_000  # a streamed folder of at most so many images is decoded once, to name broken ones at the start


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set split into a training, a validation and a held-out test part.

    `mean` and `std` are over the channels of pixels in [0, 1], measured on the training part alone.
    """

    name: str
    title: str
    classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size: int  # pixels a side
    size_rule: str
    fingerprint: str  # hex sha256 of the training files' contents, wherever they lie and however they are split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    test_size: int  # images; 0 where there is no test part
    subset: int | None
    split_seed: int
    device: torch.device
    labels: Tensor = field(repr=False)  # int64 [train_size + val_size], on the device
    train_index: Tensor = field(repr=False)  # int64 positions, ascending, on the CPU
    val_index: Tensor = field(repr=False)
    pixels: Pixels = field(repr=False)
    open_test: Opener | None = field(repr=False)
    workers: int | None = None  # processes that decode a stream; None: as many as suit the machine
    # (r, n): `train_batches` gives the r-th (from 0) of n nearly equal slices of each batch, and draws the same chance;
    # `batches` gives every n-th batch from the r-th on.
    share: tuple[int, int] = (0, 1)

    @property
    def train_size(self) -> int:
        """Images in the training part."""
        return len(self.train_index)

    @property
    def val_size(self) -> int:
        """Images in the validation part."""
        return len(self.val_index)

    def describe(self) -> dict[str, Any]:
        """The facts for the record, ready for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "channels": self.channels,
            "image_size": self.image_size,
            "size_rule": self.size_rule,
            "fingerprint": self.fingerprint,
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": self.augmentation,
            "train_size": self.train_size,
            "val_size": self.val_size,
            "test_size": self.test_size,
            "subset": self.subset,
            "split_seed": self.split_seed,
        }

    def steps_per_epoch(self, batch_size: int) -> int:
        """How many batches `train_batches` gives: a last smaller one counts unless it is a single image."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        return self.train_size // batch_size + (self.train_size % batch_size > 1)

    def train_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of the training part, shuffled, augmented and normalised: x float32 [N, C, H, W], y int64 [N].

        All chance of the epoch is drawn from `generator` in this call, before the first batch, and the same amount
        whatever the augmentation: an epoch is repeated from the generator's state at its start. A last batch of one
        image is left out, since batch norm needs two.
        """
        steps = self.steps_per_epoch(batch_size)
        n, pad = self.train_size, padding(self.image_size)
        where = generator.device
        order = torch.randperm(n, generator=generator, device=where).cpu()
        offsets = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator, device=where).to(self.device)
        flips = torch.randint(0, 2, (n,), generator=generator, device=where).bool().to(self.device)
        number = int(torch.randint(0, 2**62, (), generator=generator, device=where))
        positions = self.train_index[order].to(self.device)
        parts = [self._own(start, min(start + batch_size, n)) for start in range(0, steps * batch_size, batch_size)]
        groups = [positions[part] for part in parts]
        epoch = number if self.augmentation == "resized-crop+flip" else None

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            batches = self._normalised(self.pixels, self.labels, groups, epoch)
            for part, (x, y) in zip(parts, batches, strict=True):
                if self.augmentation in ("crop", "crop+flip"):
                    x = shift(x, pad, offsets[part])
                if self.augmentation in ("crop+flip", "resized-crop+flip"):
                    x = mirror(x, flips[part])
                yield x, y

        return batches()

    def batches(self, part: Literal["train", "val", "test"], batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """A part in its stored order without augmentation: (x, y) as in `train_batches`, every image once.

        The test files are opened by "test" and by nothing else. Raises InputError where there is no such part.
        """
        if part not in ("train", "val", "test"):
            raise InputError(f"no part {part!r}; there are train, val, test")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        if part == "test":
            if self.open_test is None:
                raise InputError(f"{self.name} has no test set; put class folders under test/ beside train/")
            pixels, labels = self.open_test()
            index = torch.arange(len(labels))
        else:
            pixels, labels = self.pixels, self.labels
            index = self.train_index if part == "train" else self.val_index
            if not len(index):
                raise InputError(f"the {part} part of {self.name} is empty: its images are in the training part")
        rank, ranks = self.share
        groups = list(index.to(self.device).split(batch_size))[rank::ranks]
        return self._normalised(pixels, labels, groups, None)

    def with_validation_in_training(self) -> "Dataset":
        """The same data with the validation part trained on as well; mean and std are measured anew on the whole."""
        whole = torch.cat([self.train_index, self.val_index]).sort().values
        mean, std = self.pixels.statistics(whole.numpy())
        return replace(self, mean=mean, std=std, train_index=whole, val_index=whole[:0])

    def _own(self, start: int, stop: int) -> slice:
        rank, ranks = self.share
        return slice(start + (stop - start) * rank // ranks, start + (stop - start) * (rank + 1) // ranks)

    def _normalised(
        self, pixels: Pixels, labels: Tensor, groups: list[Tensor], epoch: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        mean = torch.tensor(self.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.std, device=self.device)[:, None, None]
        for group, raw in zip(groups, pixels.batches(groups, epoch, self.workers), strict=True):
            x = raw.to(self.device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
            yield x, labels[group]


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
    """The data set `name` (a key of `catalog.DATASETS`, or `folder:PATH`), split and measured.

    A tenth of the training files, stratified and chosen by `split_seed` alone, validates. `subset` takes a stratified
    part of so many training files before that. Files lie under `data_root` (else $DNAS_DATA, else ~/.cache/dnas/data),
    decoded images are kept under $DNAS_CACHE (else ~/.cache/dnas/arrays). `image_size` and `augmentation` default to
    the data set's own; for a folder `stem` ("small" or "imagenet") says which size suits. `progress` is told in plain
    sentences what takes long. Raises InputError for everything that a user can mend.
    """
    info = data_info(name)
    side = choose_image_size(info, image_size, stem)
    augmentation = choose_augmentation(info, side, augmentation)
    if split_seed < 0:
        raise InputError(f"split_seed must not be negative, and is {split_seed}")
    say = progress or _silent
    cache = Path(os.environ.get("DNAS_CACHE") or "~/.cache/dnas/arrays").expanduser()
    root = Path(data_root or os.environ.get("DNAS_DATA") or "~/.cache/dnas/data").expanduser()
    target = torch.device(device)
    resident = side <= RESIDENT_IMAGE_SIZE
    channels = info.channels

    train: ImageFiles | NamedPart
    test: ImageFiles | NamedPart | None
    if name.startswith("folder:") or name == "imagenet":
        folder = Path(name.removeprefix("folder:").strip()).expanduser().absolute()
        folder = imagenet_folder(root, say) if name == "imagenet" else folder
        train = list_training_images(folder)
        test = list_test_images(folder, train.class_names)
        test_size = len(test) if test else 0
    else:
        train, test = NamedPart(name, "train", root), NamedPart(name, "test", root)
        test_size = info.test_size or 0

    # Labels and class names first: a stream decides from them which images it needs at all.
    decoded = None
    if resident or isinstance(train, NamedPart):
        decoded = _decoded(train, side if resident else None, channels, cache, say)
        labels, class_names, fingerprint = decoded.labels, decoded.class_names, decoded.fingerprint
        channels = decoded.images.shape[1]
    else:
        assert isinstance(train, ImageFiles)
        labels, class_names, fingerprint = train.labels, train.class_names, train.fingerprint()
        if channels is None:
            files = train
            channels = known_once(cache, cache_key("channels", files.digest()), lambda: count_channels(files), say)
    used = _subset(labels, subset, split_seed)
    val = split.validation(labels[used], split_seed)

    pixels: Pixels
    if resident:
        assert decoded is not None
        pixels = _resident(decoded, None if subset is None else used, target)
        size_rule = (
            f"shorter side resized to {side} (bilinear, antialiased), centre crop" if decoded.resized else "as stored"
        )
    else:
        stream = partial(_stream, channels=channels, side=side, device=target, cache=cache, say=say)
        if decoded is not None:
            pixels = stream(StoredImages(decoded.images[used]), f"{fingerprint} {used.tolist()}")
        else:
            assert isinstance(train, ImageFiles)
            chosen = train.take(used)
            _check(chosen, channels, cache, say)
            pixels = stream(chosen, chosen.digest())
        size_rule = f"shorter side resized to {margin(side)} (bilinear, antialiased), centre crop of {side}"

    train_index = np.setdiff1d(np.arange(len(used)), val)
    mean, std = pixels.statistics(train_index)
    return Dataset(
        name=name,
        title=info.title,
        classes=len(class_names),
        class_names=class_names,
        channels=channels,
        image_size=side,
        size_rule=size_rule,
        fingerprint=fingerprint,
        mean=mean,
        std=std,
        augmentation=augmentation,
        test_size=test_size,
        subset=subset,
        split_seed=split_seed,
        device=target,
        labels=torch.from_numpy(labels[used]).to(target),
        train_index=torch.from_numpy(train_index),
        val_index=torch.from_numpy(val),
        pixels=pixels,
        open_test=None if test is None else partial(_open_test, test, side, channels, cache, target, say),
    )


def _silent(text: str) -> None:
    pass


def _subset(labels: np.ndarray, subset: int | None, seed: int) -> np.ndarray:
    """The positions in use, ascending: all, or a stratified `subset` of them with two a class at least."""
    if subset is None:
        return np.arange(len(labels))
    classes = len(np.unique(labels))
    if not 2 * classes <= subset <= len(labels):
        raise InputError(
            f"subset must lie between {2 * classes} (two images a class) and {len(labels)} (all), and is {subset}"
        )
    return split.choose(labels, subset, seed, split.SUBSET, least=2, spare=0)


def _decoded(
    part: ImageFiles | NamedPart, image_size: int | None, channels: int | None, cache: Path, say: Say
) -> Decoded:
    """All images of the part at `image_size` (None: as stored), from the cache where they are there."""
    if isinstance(part, ImageFiles):
        assert image_size is not None
        key = cache_key("files", str(part.root), part.digest(), image_size, channels)
        return decoded_once(cache, key, partial(_decode_files, part, image_size, channels, say), say)
    stamps, fresh = part.stamps(), None
    if stamps is None:  # not downloaded yet
        fresh = _decode_named(part, image_size, say)
        stamps = part.stamps()
    if fresh is not None and stamps is None:  # the digits have no files, and take no time
        return fresh
    key = cache_key(part.name, part.part, str(part.root.absolute()), stamps, image_size)
    return decoded_once(cache, key, lambda: fresh or _decode_named(part, image_size, say), say)


def _decode_files(files: ImageFiles, image_size: int, channels: int | None, say: Say) -> Decoded:
    channels = channels or count_channels(files)
    read = partial(files.read, channels=channels)
    images, resized = decode(len(files), read, channels, image_size, say)
    return measured(images, files.labels, files.class_names, resized)


def _decode_named(part: NamedPart, image_size: int | None, say: Say) -> Decoded:
    images, labels, class_names = part.read(say)
    resized = image_size is not None and images.shape[2:] != (image_size, image_size)
    if resized:
        assert image_size is not None
        channels = images.shape[1]
        read = partial(StoredImages(images).read, channels=channels)
        images, _ = decode(len(images), read, channels, image_size, say)
    return measured(images, labels, class_names, resized)


def _resident(decoded: Decoded, used: np.ndarray | None, device: torch.device) -> Resident:
    images, sums = decoded.images, decoded.sums
    if used is not None:
        images, sums = images[used], sums[used]
    return Resident(torch.from_numpy(images).to(device), sums)


def _stream(
    source: ImageFiles | StoredImages,
    identity: str,
    channels: int,
    side: int,
    device: torch.device,
    cache: Path,
    say: Say,
) -> Stream:
    return Stream(source, channels, side, device.type == "cuda", identity, cache, say)


def _check(files: ImageFiles, channels: int, cache: Path, say: Say) -> None:
    """Reads every image of a small streamed folder once, so that a broken one is named now and not in epoch 3."""
    if len(files) > CHECKED:
        return

    def work(i: int) -> None:
        files.read(i, channels)

    def check() -> bool:
        for_each(len(files), work, "checking", say)
        return True

    known_once(cache, cache_key("checked", files.digest()), check, say)


def _open_test(
    part: ImageFiles | NamedPart, side: int, channels: int, cache: Path, device: torch.device, say: Say
) -> tuple[Pixels, Tensor]:
    """Opens the test files: their pixels and labels [N]."""
    if side <= RESIDENT_IMAGE_SIZE:
        decoded = _decoded(part, side, channels, cache, say)
        return _resident(decoded, None, device), torch.from_numpy(decoded.labels).to(device)
    source: ImageFiles | StoredImages
    if isinstance(part, NamedPart):
        decoded = _decoded(part, None, channels, cache, say)
        source, labels, identity = StoredImages(decoded.images), decoded.labels, decoded.fingerprint
    else:
        source, labels, identity = part, part.labels, part.digest()
    return _stream(source, identity, channels, side, device, cache, say), torch.from_numpy(labels).to(device)
