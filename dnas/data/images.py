"""Image files: read with 8 bits per channel as viewers show them, and resized to one size."""

import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from dnas.errors import InputError

# The endings of Pillow's formats, except vector graphics, videos and formats that need another program.
ENDINGS = (
    *(".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc"),
    *(".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc"),
    *(".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp"),
    *(".xbm", ".xpm"),
)
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # grey with more than 8 bits
GREY_MODES = ("1", "L", "LA", "La", *WIDE_MODES)
LARGEST_16_BIT = 65535.0
WHITE = 255
LONGEST_RATIO = 16  # of the sides of an image that is resized as a whole
LEAST_SHARE = 20  # an image that uses less than this part of the range from black to white is reported
# Formats whose further frames are thumbnails, sizes or layers of the same picture.
ONE_PICTURE = ("MPO", "ICO", "CUR", "ICNS", "PSD")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # a scan of 10,000 pixels is no attack

Progress = Callable[[str], None]
Levels = tuple[float, float]  # the values of a wide image that become black and white


def read_image(file: Path | IO[bytes], channels: int, levels: Levels | None = None) -> Image.Image:
    """Read an image as viewers show it, with 8 bits per channel.

    An EXIF orientation is applied, in every format. Transparent pixels are composed onto white. Of a file with several
    frames, the first is read.

    Args:
        file: A path or an open file.
        channels: 1 for mode L, or 3 for RGB.
        levels: Values that become black and white, for grey images of more than 8 bits (default: 0 and 65,535).

    Raises:
        Exception: Pillow raises many types for damaged files.
    """
    with Image.open(file) as image:
        image.load()
        with suppress(Exception):  # viewers ignore EXIF data that they cannot read, too
            ImageOps.exif_transpose(image, in_place=True)
        grey = image.mode in GREY_MODES
        if image.mode in WIDE_MODES:
            plain = _narrow(image, levels or (0.0, LARGEST_16_BIT))
        else:
            plain = _on_white(image) if image.has_transparency_data else image
        if channels == 1:
            return plain.convert("L") if grey else plain.convert("RGB").convert("L")
        return plain.convert("RGB")


def _narrow(image: Image.Image, levels: Levels) -> Image.Image:
    """Map grey values linearly from `levels` to 0 and 255; values outside of them become black or white."""
    low, high = levels
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are not finite")
    narrow = np.rint((np.clip(values, low, high) - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        narrow[values == transparent] = WHITE
    return Image.fromarray(narrow)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # converts to LA only
        image = image.convert("LA")
    ground = Image.new("RGBA", image.size, (WHITE,) * 4)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def wide_extent(file: IO[bytes]) -> Levels:
    """Return the lowest and the highest finite value of a grey image of more than 8 bits."""
    with Image.open(file) as image:
        values = np.asarray(image).astype(np.float64)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def has_further_frames(image: Image.Image) -> bool:
    """Return whether an opened image holds further pictures, such as the frames of an animation or pages."""
    return image.format not in ONE_PICTURE and bool(getattr(image, "is_animated", False))


def is_cut_to_8_bits(image: Image.Image) -> bool:
    """Return whether an opened image has more than 8 bits per colour, of which Pillow keeps the upper 8."""
    return image.mode not in WIDE_MODES and any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def without_far_ends(image: Image.Image) -> Image.Image:
    """Cut off the ends of an image that is over `LONGEST_RATIO` times as long as wide. A centre crop loses them anyway.

    Resizing the shorter side of 1 x 40,000 pixels to 96 would take gigabytes.
    """
    short, long = min(image.size), max(image.size)
    if long <= LONGEST_RATIO * short:
        return image
    start = (long - LONGEST_RATIO * short) // 2
    stop = start + LONGEST_RATIO * short
    wide = image.width > image.height
    return image.crop((start, 0, stop, image.height) if wide else (0, start, image.width, stop))


def fit(image: Image.Image, shorter: int, side: int) -> Image.Image:
    """Resize the shorter side to `shorter` pixels (antialiased), and crop the centre `side` x `side` pixels."""
    image = without_far_ends(image)
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


class BrokenImages(InputError):
    """Images that cannot be read. messages: one per image; the error names the first three."""

    def __init__(self, messages: list[str], listed_in: Path | None = None) -> None:
        self.messages = messages
        text = messages[0]
        if len(messages) > 1:
            first = "; ".join(message.rstrip(".") for message in messages[:3])
            more = f"; and {len(messages) - 3} more" if len(messages) > 3 else ""
            text = f"{len(messages)} images are broken: {first}{more}."
        super().__init__(text + (f" All of them are listed in {listed_in}." if listed_in else ""))


def for_each(count: int, work: Callable[[int], None], verb: str, progress: Progress) -> None:
    """Call `work(i)` for i below `count` on a few threads, and report progress every two seconds.

    An `InputError` of `work` counts as one broken image. At the end a `BrokenImages` lists all of them.
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
    if broken:
        broken.sort(key=lambda pair: pair[0])
        raise BrokenImages([str(error) for _, error in broken])


def decode(
    count: int, read: Callable[[int], Image.Image], channels: int, image_size: int, progress: Progress
) -> tuple[np.ndarray, bool, np.ndarray]:
    """Decode the images that `read` returns.

    Returns uint8 [count, channels, image_size, image_size], whether any image was resized, and the `extent` of each
    image as it was read, uint8 [count].
    """
    images = np.empty((count, channels, image_size, image_size), dtype=np.uint8)
    extents = np.zeros(count, dtype=np.uint8)
    resized = np.zeros(count, dtype=bool)

    def work(i: int) -> None:
        image = read(i)
        extents[i] = extent(image)
        resized[i] = image.size != (image_size, image_size)
        images[i] = to_array(fit(image, image_size, image_size))

    for_each(count, work, "decoding", progress)
    return images, bool(resized.any()), extents


def extent(image: Image.Image) -> int:
    """Return the difference between the highest and the lowest value of an image, over all channels."""
    bands = image.getextrema()
    pairs = bands if isinstance(bands[0], tuple) else (bands,)
    return int(max(high for _, high in pairs) - min(low for low, _ in pairs))


def notes_on_extents(extents: np.ndarray, where: str) -> tuple[str, ...]:
    """Return sentences on images without contrast. extents: of each image, [N]. where: the folder of the images."""
    constant, dark = int((extents == 0).sum()), int(((extents > 0) & (extents <= 255 // LEAST_SHARE)).sum())
    notes = []
    if constant:
        notes.append(
            f"constant images: {constant} of {len(extents)} under {where}; if they are drawn in white on a transparent"
            " ground, compose them onto another ground first"
        )
    if dark:
        notes.append(
            f"images with less than a twentieth of the range from black to white: {dark} of {len(extents)} under"
            f" {where}; check their bit depth"
        )
    return tuple(notes)
