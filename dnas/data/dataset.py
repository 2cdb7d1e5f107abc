"""Data set that is split and ready for training."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dnas.data.augment import mirror, padding, shift
from dnas.data.pixels import Opener, Pixels
from dnas.errors import InputError

TEST_HINTS = {
    "folder": "put class folders under test/ beside train/",
    "csv": "give test images in the column split",
    "hf": "save a DatasetDict with a split test",
    "npz": "add the arrays x_test and y_test",
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with training, validation and held-out test part.

    `mean` and `std` are per channel, for pixels in [0, 1], measured on the training part alone.
    """

    name: str
    title: str
    classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size: int  # pixels per side
    size_rule: str  # how images were brought to image_size
    fingerprint: str  # hex sha256 of the training files' contents, independent of location and split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str
    levels: tuple[float, float] | None  # values that are black and white in grey images of more than 8 bits
    test_size: int  # images; 0 if there is no test part
    subset: int | None
    split_seed: int
    device: torch.device
    # On the device: int64 [train_size + val_size], or 0 and 1 [train_size + val_size, classes] for several labels.
    labels: Tensor = field(repr=False)
    train_index: Tensor = field(repr=False)  # int64 positions, ascending, on the CPU
    val_index: Tensor = field(repr=False)
    pixels: Pixels = field(repr=False)
    open_test: Opener | None = field(repr=False)
    groups: int | None = None  # number of groups that no split divides; None without groups
    test_part: str | None = None  # source of the test part of images without parts; None if the data set has parts
    workers: int | None = None  # processes that decode a stream; None for a default that suits the machine
    # (rank, count): `train_batches` yields slice `rank` of `count` nearly equal slices of each batch, and draws equal
    # random numbers for every rank. `batches` yields every `count`-th batch, starting with batch `rank`.
    share: tuple[int, int] = (0, 1)

    @property
    def multilabel(self) -> bool:
        """Return whether an image has any number of the classes as its labels, rather than one class."""
        return self.labels.ndim == 2

    @property
    def train_size(self) -> int:
        """Images in the training part."""
        return len(self.train_index)

    @property
    def val_size(self) -> int:
        """Images in the validation part."""
        return len(self.val_index)

    def describe(self) -> dict[str, Any]:
        """Return the properties that identify the data set, as JSON values."""
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
            **({"levels": list(self.levels)} if self.levels else {}),
            **({"test_part": self.test_part} if self.test_part else {}),
            **({"groups": self.groups} if self.groups else {}),
            **({"multilabel": True} if self.multilabel else {}),
        }

    def with_classes(self, class_names: tuple[str, ...]) -> "Dataset":
        """Return the data with the classes of a network, matched by name: labels become positions in `class_names`.

        Raises `InputError` if a class of this data set is not among `class_names`.
        """
        if self.class_names == class_names:
            return self

        def renumbered(labels: Tensor) -> Tensor:
            if labels.ndim == 1:
                return numbers.to(labels.device)[labels]
            wide = labels.new_zeros((len(labels), len(class_names)))
            return wide.index_copy_(1, numbers.to(labels.device), labels)

        missing = [name for name in self.class_names if name not in class_names]
        if missing:
            known = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
            raise InputError(
                f"{self.title} has the class {missing[0]!r}, but the network was trained on the classes {known};"
                " rename or remove the classes that it does not know."
            )
        numbers = torch.tensor([class_names.index(name) for name in self.class_names])
        opener = self.open_test

        def open_test() -> tuple[Pixels, Tensor]:
            assert opener is not None
            pixels, labels = opener()
            return pixels, renumbered(labels)

        return replace(
            self,
            classes=len(class_names),
            class_names=class_names,
            labels=renumbered(self.labels),
            open_test=open_test if opener is not None else None,
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches per epoch. A smaller last batch counts unless it is a single image."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but got {batch_size}.")
        return self.train_size // batch_size + (self.train_size % batch_size > 1)

    def train_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over one epoch of the training part, shuffled, augmented and normalised.

        All random numbers of the epoch are drawn from `generator` in this call, before the first batch, and their
        number does not depend on the augmentation. An epoch can thus be repeated from the generator's state at its
        start. A last batch of one image is omitted because batch norm needs two.

        Yields:
            x float32 [N, C, H, W] and y int64 [N], or [N, classes] if images have several labels.
        """
        steps = self.steps_per_epoch(batch_size)
        n, pad = self.train_size, padding(self.image_size)
        source = generator.device
        order = torch.randperm(n, generator=generator, device=source).cpu()
        offsets = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator, device=source).to(self.device)
        flips = torch.randint(0, 2, (n,), generator=generator, device=source).bool().to(self.device)
        number = int(torch.randint(0, 2**62, (), generator=generator, device=source))
        positions = self.train_index[order].to(self.device)
        parts = [self._slice(start, min(start + batch_size, n)) for start in range(0, steps * batch_size, batch_size)]
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
        """Iterate over every image of a part once, in stored order and without augmentation.

        Yields (x, y) as `train_batches` does. Only the part "test" opens the test files. Raises `InputError` if the
        data set does not have the part.
        """
        if part not in ("train", "val", "test"):
            raise InputError(f"part must be train, val or test, but got {part!r}.")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but got {batch_size}.")
        if part == "test":
            if self.open_test is None:
                raise InputError(
                    f"{self.name} has no test set; {TEST_HINTS.get(self.name.partition(':')[0], 'add one')}."
                )
            pixels, labels = self.open_test()
            index = torch.arange(len(labels))
        else:
            pixels, labels = self.pixels, self.labels
            index = self.train_index if part == "train" else self.val_index
            if not len(index):
                raise InputError(f"the {part} part of {self.name} is empty: its images are in the training part.")
        rank, ranks = self.share
        groups = list(index.to(self.device).split(batch_size))[rank::ranks]
        return self._normalised(pixels, labels, groups, None)

    def with_validation_in_training(self) -> "Dataset":
        """Return the data with the validation part merged into the training part, whose mean and std are recomputed."""
        merged = torch.cat([self.train_index, self.val_index]).sort().values
        mean, std = self.pixels.statistics(merged.numpy())
        return replace(self, mean=mean, std=std, train_index=merged, val_index=merged[:0])

    def _slice(self, start: int, stop: int) -> slice:
        """Return this share's slice of the batch `start:stop`."""
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
