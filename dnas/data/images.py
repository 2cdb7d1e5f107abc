"""Image files: list class folders, decode images to 8 bits and resize them to one size."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dnas.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled image files under `root`: relative POSIX paths in data set order, and labels [N] int64."""

    root: Path
    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # bytes and mtime in ns of each file
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: np.ndarray) -> "ImageFiles":
        """Return the files at `positions`, in that order."""
        return ImageFiles(
            self.root,
            tuple(self.paths[i] for i in positions),
            tuple(self.stamps[i] for i in positions),
            self.labels[positions],
            self.class_names,
        )

    def digest(self) -> str:
        """Return a hex sha256 that changes when a file is added, removed or rewritten."""
        lines = (f"{path}\0{size}\0{mtime}\n" for path, (size, mtime) in zip(self.paths, self.stamps, strict=True))
        return _sha256(self.class_names, lines)

    def fingerprint(self) -> str:
        """Return a hex sha256 of class names, relative paths and sizes, independent of the folder's location."""
        lines = (f"{path}\0{size}\n" for path, (size, _) in zip(self.paths, self.stamps, strict=True))
        return _sha256(self.class_names, lines)

    def read(self, position: int, channels: int) -> Image.Image:
        """Read the image at `position` with 8 bits per channel. An `InputError` names a file that cannot be read."""
        path = self.root / self.paths[position]
        try:
            return read_image(path, channels)
        except Exception as error:  # Pillow raises many types for damaged files
            raise InputError(f"cannot read the image {path} ({_reason(error)}); repair or delete it.") from error


def _sha256(class_names: tuple[str, ...], lines: Iterable[str]) -> str:
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for line in lines:
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _scan(folder: str, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (relative path, (bytes, mtime in ns)) of every image under `folder` that is not hidden."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _scan(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(ENDINGS):
                stat = entry.stat()
                yield prefix + entry.name, (stat.st_size, stat.st_mtime_ns)


def _class_folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _list(root: Path, folders: list[str], class_names: tuple[str, ...]) -> ImageFiles:
    stamped: list[tuple[str, tuple[int, int]]] = []
    labels: list[int] = []
    for name in folders:
        images = sorted(_scan(str(root / name), f"{name}/"))
        stamped += images
        labels += [class_names.index(name)] * len(images)
    return ImageFiles(
        root,
        tuple(path for path, _ in stamped),
        tuple(stamp for _, stamp in stamped),
        np.array(labels, dtype=np.int64),
        class_names,
    )


def list_training_images(folder: Path) -> ImageFiles:
    """List the images under `folder`/train: one folder per class, with images at any depth. Ignores hidden files.

    Raises `InputError` for any other layout, for fewer than two classes, and for a class with fewer than two images
    (one to train on and one to validate on).
    """
    root = folder / "train"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; name a folder that contains train/ with one folder per class.")
    if not root.is_dir():
        raise InputError(f"{folder} has no folder train/; put the class folders under {root}, one folder per class.")
    names = tuple(_class_folders(root))
    if not names:
        raise InputError(f"{root} has no class folders; put the images of each class into a separate folder.")
    files = _list(root, list(names), names)
    counts = np.bincount(files.labels, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            raise InputError(f"the class folder {root / name} contains no images; fill it or delete it.")
    if len(names) == 1:
        raise InputError(f"{root} has only one class, {names[0]!r}; classification needs at least two class folders.")
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            raise InputError(
                f"the class folder {root / name} has {count} image; a class needs at least 2, "
                "one to train on and one to validate on."
            )
    return files


def list_test_images(folder: Path, class_names: tuple[str, ...]) -> ImageFiles | None:
    """List the held-out images under `folder`/test, else `folder`/val; None if there is neither. Opens no image.

    Raises `InputError` for class folders that train/ does not have, and for a folder without labelled images.
    """
    root = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if root is None:
        return None
    folders = _class_folders(root)
    unknown = [name for name in folders if name not in set(class_names)]
    if unknown:
        raise InputError(
            f"{root} has the class folder {unknown[0]!r}, which {folder / 'train'} does not have; "
            f"use the class folders of train/ in {root.name}/, or move it away."
        )
    files = _list(root, folders, class_names)
    if not len(files):
        raise InputError(f"{root} has no images in class folders; use the class folders of train/, or move it away.")
    return files


def read_image(path: Path, channels: int) -> Image.Image:
    """Read an image in mode L for 1 channel or RGB for 3. Alpha is dropped, and an EXIF rotation is ignored."""
    with Image.open(path) as image:
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known range")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
            return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("L" if channels == 1 else "RGB")
        if channels == 1 and image.mode in GREY_MODES:
            return image.convert("L")
        plain = image.convert("RGBA") if image.mode in ("P", "PA") else image  # a palette may contain transparency
        colour = plain.convert("RGB")
        return colour if channels == 3 else colour.convert("L")


def count_channels(files: ImageFiles) -> int:
    """Return 1 if every image is stored as grey, else 3. Reads headers only, up to the first colour image."""

    def grey(path: str) -> bool:
        try:
            with Image.open(files.root / path) as image:
                return image.mode in GREY_MODES
        except Exception:  # decoding will report a broken image
            return True

    return 1 if all(grey(path) for path in files.paths) else 3


def fit(image: Image.Image, shorter: int, side: int) -> Image.Image:
    """Resize the shorter side to `shorter` pixels (antialiased), and crop the centre `side` x `side` pixels."""
    width, height = image.size
    if min(width, height) != shorter:
        size = (shorter, shorter * height // width) if width <= height else (shorter * width // height, shorter)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if image.size == (side, side):
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_array(image: Image.Image) -> np.ndarray:
    """Convert an image to uint8 [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(count: int, work: Callable[[int], None], verb: str, progress: Progress) -> None:
    """Call `work(i)` for i below `count` on a few threads, and report progress every two seconds.

    An `InputError` of `work` counts as one broken image. At the end one `InputError` names the first three of them.
    """
    broken: list[tuple[int, InputError]] = []

    def run(start: int) -> int:
        stop = min(start + 64, count)
        for i in range(start, stop):
            try:
                work(i)
            except InputError as error:
                broken.append((i, error))
        return stop - start

    done, reported = 0, time.monotonic()
    progress(f"{verb} {count:,} images")
    with ThreadPoolExecutor(min(8, cpus())) as pool:
        for finished in pool.map(run, range(0, count, 64)):
            done += finished
            if time.monotonic() - reported > 2 and done < count:
                reported = time.monotonic()
                progress(f"{verb} {done:,} of {count:,} images")
    if len(broken) == 1:
        raise broken[0][1]
    if broken:
        broken.sort(key=lambda pair: pair[0])
        first = "; ".join(str(error).rstrip(".") for _, error in broken[:3])
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InputError(f"{len(broken)} images are broken: {first}{more}.")


def decode(
    count: int, read: Callable[[int], Image.Image], channels: int, image_size: int, progress: Progress
) -> tuple[np.ndarray, bool]:
    """Decode the images that `read` returns.

    Returns uint8 [count, channels, image_size, image_size], and whether any image was resized.
    """
    images = np.empty((count, channels, image_size, image_size), dtype=np.uint8)
    resized = np.zeros(count, dtype=bool)

    def work(i: int) -> None:
        image = read(i)
        resized[i] = image.size != (image_size, image_size)
        images[i] = to_array(fit(image, image_size, image_size))

    for_each(count, work, "decoding", progress)
    return images, bool(resized.any())
