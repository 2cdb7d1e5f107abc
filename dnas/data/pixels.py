"""Sources of pixels: images resident in memory, or streamed from files as they are used."""

import math
import multiprocessing
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dnas.data.cache import cache_key, known_once
from dnas.data.catalog import RESIDENT_IMAGE_SIZE
from dnas.data.images import Progress, cpus, fit, for_each, to_array, without_far_ends
from dnas.data.listing import ImageReader
from dnas.errors import InputError
from dnas.io import shorten_socket_paths

SHARED_MEMORY = "/dev/shm"  # where decoding processes put their batches
PREFETCHED = 2  # batches per decoding process
STATISTICS_IMAGES = 2000  # at most this many images of a streamed part are used to measure mean and std


def mean_and_std(sums: np.ndarray, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, for pixels in [0, 1].

    The std is at least one grey step (1/255), so that a constant channel is not divided by zero.

    Args:
        sums: [N, C, 2], the sum and the sum of squares of the 8-bit pixels of each image.
        pixels: Number of pixels per image.
    """
    n = len(sums) * pixels
    means, stds = [], []
    for total, squares in sums.sum(axis=0).tolist():  # integers are exact, hence equal on every machine
        means.append(total / n / 255)
        stds.append(max(math.sqrt((n * squares - total * total) / (n * n)), 1.0) / 255)
    return tuple(means), tuple(stds)


@dataclass(frozen=True, eq=False)
class Resident:
    """Decoded images kept in memory: uint8 [N, C, H, W] on the device (on the CPU, a memory map of the cache)."""

    images: Tensor
    sums: np.ndarray  # int64 [N, C, 2], see `mean_and_std`

    def batches(self, groups: list[Tensor], epoch: int | None, workers: int | None) -> Iterator[Tensor]:
        """Yield the images of each group of positions. There are no random crops, so `epoch` has no effect."""
        for group in groups:
            yield self.images[group]

    def statistics(self, positions: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std per channel of all images at `positions`."""
        return mean_and_std(self.sums[positions], self.images.shape[2] * self.images.shape[3])


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Decoded images, uint8 [N, C, H, W], that are streamed at a larger size."""

    images: np.ndarray

    def read(self, position: int, channels: int) -> Image.Image:
        pixels = np.asarray(self.images[position])
        return Image.fromarray(pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@dataclass(frozen=True, eq=False)
class _Read(TorchDataset[Tensor | str]):
    """Map a list of positions to images uint8 [N, C, H, W], or to the message of an `InputError`. Runs in workers."""

    source: ImageReader | StoredImages
    channels: int
    image_size: int
    epoch: int | None

    def __getitem__(self, positions: list[int]) -> Tensor | str:
        if not positions:  # the slice of the last batch is empty for this process
            return torch.empty((0, self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        try:
            return torch.from_numpy(np.stack([self.one(i) for i in positions]))
        except InputError as error:  # returned, because torch would add the worker's traceback to a raised error
            return str(error)

    def one(self, position: int) -> np.ndarray:
        image, side = self.source.read(position, self.channels), self.image_size
        if self.epoch is None:
            return centre_of(image, side)
        from torchvision.transforms import v2

        # The transform draws from torch's global generator, which is seeded for this image and then restored.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self.epoch, position]).generate_state(1, np.uint64)[0]) >> 1)
            return to_array(v2.RandomResizedCrop(side)(image))


def centre_of(image: Image.Image, image_size: int) -> np.ndarray:
    """Return the centre of a streamed image, uint8 [C, image_size, image_size], as in validation."""
    from torchvision.transforms import v2  # takes a second to import, and only streams need it

    resized = v2.functional.resize(without_far_ends(image), [margin(image_size)])
    return to_array(v2.functional.center_crop(resized, [image_size]))


def as_evaluated(image: Image.Image, image_size: int) -> np.ndarray:
    """Bring an image to one size as in validation; uint8 [C, image_size, image_size]."""
    resident = image_size <= RESIDENT_IMAGE_SIZE
    return to_array(fit(image, image_size, image_size)) if resident else centre_of(image, image_size)


def margin(image_size: int) -> int:
    """Return the shorter side to which a streamed image is resized before its centre crop: 256 for 224."""
    return image_size * 256 // 224


def default_workers() -> int:
    """Return the number of decoding processes: 0 on one or two processors and in a daemonic process."""
    return 0 if cpus() <= 2 or multiprocessing.current_process().daemon else min(8, cpus() - 1)


def fitting_workers(workers: int, batch_bytes: int) -> int:
    """Return how many of `workers` processes can hand over batches through /dev/shm at the same time.

    In a container it often has 64 MB. When it is full, the processes die and the training would wait for ever.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not a Linux system
        return workers
    # Each process prepares PREFETCHED batches; two more are in use.
    fitting = max(0, min(workers, (free // max(1, batch_bytes) - 2) // PREFETCHED))
    if fitting < workers:
        warnings.warn(  # shown once, and not in every epoch
            f"{SHARED_MEMORY} has room for the batches of {fitting} of {workers} decoding processes only;"
            " in a container, give it more with --shm-size=2g",
            stacklevel=2,
        )
    return fitting


@dataclass(frozen=True, eq=False)
class Stream:
    """Images too large to keep, decoded as they are used."""

    source: ImageReader | StoredImages
    channels: int
    image_size: int
    pin: bool  # page-locked batches, for transfers to a GPU
    identity: str  # digest of the listing, which determines the images
    cache: Path
    progress: Progress = field(repr=False)

    def batches(self, groups: list[Tensor], epoch: int | None, workers: int | None) -> Iterator[Tensor]:
        """Yield the images of each group of positions: centre crops, or random resized crops with an `epoch` number.

        A crop depends only on the epoch number and the image's position, and not on the number of workers.
        """
        read = _Read(self.source, self.channels, self.image_size, epoch)
        lists = [group.tolist() for group in groups]
        workers = default_workers() if workers is None else workers
        if workers:
            largest = max(map(len, lists), default=0) * self.channels * self.image_size**2
            workers = fitting_workers(workers, largest)
            shorten_socket_paths()
        results: Iterator[Tensor | str]
        if workers:
            # Without its own generator, the loader would draw a seed from torch's global one.
            results = iter(
                DataLoader(
                    read,
                    batch_size=None,
                    sampler=lists,
                    num_workers=workers,
                    prefetch_factor=PREFETCHED,
                    pin_memory=self.pin,
                    generator=torch.Generator(),
                )
            )
        else:
            results = (read[positions] for positions in lists)
        for result in results:
            if isinstance(result, str):
                raise InputError(result)
            yield result

    def statistics(self, positions: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std per channel of the centre crops of at most `STATISTICS_IMAGES` images, evenly spaced."""
        count = min(len(positions), STATISTICS_IMAGES)
        sample = positions[np.arange(count) * len(positions) // count]
        read = _Read(self.source, self.channels, self.image_size, None)

        def measure() -> list[tuple[float, ...]]:
            sums = np.empty((count, self.channels, 2), dtype=np.int64)

            def work(i: int) -> None:
                wide = read.one(int(sample[i])).astype(np.int64)
                sums[i, :, 0], sums[i, :, 1] = wide.sum(axis=(1, 2)), (wide * wide).sum(axis=(1, 2))

            for_each(count, work, "measuring mean and std on", self.progress)
            return list(mean_and_std(sums, self.image_size**2))

        key = cache_key("statistics", self.identity, self.channels, self.image_size, sample.tolist())
        mean, std = known_once(self.cache, key, measure, self.progress)
        return tuple(mean), tuple(std)


Pixels = Resident | Stream
Opener = Callable[[], tuple[Pixels, Tensor]]
