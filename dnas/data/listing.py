"""List the image files of class folders, and read their contents once."""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from dnas.data import images as image_files
from dnas.data import split
from dnas.data.images import ENDINGS, GREY_MODES, WIDE_MODES, Levels, Progress, for_each
from dnas.errors import InputError, os_reason
from dnas.formatting import several

SYSTEM_FILES = ("thumbs.db", "desktop.ini")
PART_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")  # names of folders, not of classes
READER_VERSION = 2  # increased whenever reading an image changes, so that its pixels count as other data

Stamp = tuple[int, int, int, int]  # bytes, mtime and ctime in ns, inode


@dataclass(frozen=True)
class Contents:
    """Facts about the contents of image files, from one pass over all of them."""

    digest: str  # hex sha256 of labels, class names and the bytes of the files, in order
    channels: int  # 1 if every image is grey, else 3
    levels: Levels | None  # lowest and highest value of the grey images with more than 8 bits; None: there are none
    frames: int  # images with further frames
    cut: int  # colour images with more than 8 bits per channel

    def notes(self, where: Path) -> tuple[str, ...]:
        """Return sentences on what is lost of the images under `where`."""
        notes = []
        if self.frames:
            notes.append(
                f"several frames or pages, of which the first is used: {several(self.frames, 'image')} under {where}"
            )
        if self.cut:
            notes.append(
                f"16 bits per colour, of which the upper 8 are used: {several(self.cut, 'image')} under {where}"
            )
        return tuple(notes)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled images of a part of a data set, in order. Subclasses read images that are not files.

    Attributes:
        root: Folder of the files, or the file that contains the images.
        paths: Relative POSIX paths, or names of the images in the file.
        labels: int64 [N], or 0 and 1 of type int64 [N, classes] if an image has several labels.
        held_out: Hex sha256 of the images that `hold_out` has taken away; empty if there are none.
        groups: Names of the images' groups, [N]. All images of a group are on the same side of every split.
        validation: bool [N], true for the images of a validation part that the data set states.
        whole: The images have no parts, so that a test part is still to be taken from them.
    """

    root: Path
    paths: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())  # sentences on files that were left out
    held_out: str = ""
    groups: np.ndarray | None = None
    validation: np.ndarray | None = None
    whole: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> "ImageFiles":
        """Return the files at `positions`, in that order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in positions),
            stamps=tuple(self.stamps[i] for i in positions),
            labels=self.labels[positions],
            groups=None if self.groups is None else self.groups[positions],
            validation=None if self.validation is None else self.validation[positions],
        )

    def listing_digest(self) -> str:
        """Return a hex sha256 of paths and stamps. The contents are reread only if it changes."""
        digest = hashlib.sha256(json.dumps([READER_VERSION, os.fspath(self.root), self.class_names]).encode())
        for path, stamp in zip(self.paths, self.stamps, strict=True):
            digest.update(f"{path}\0{stamp}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def fingerprint(self, digest: str) -> str:
        """Return a hex sha256 that identifies a data set and its parts. digest: of the training images."""
        parts = [digest, self.held_out]
        if self.groups is not None:
            parts.append(hashlib.sha256("\n".join(self.groups.tolist()).encode()).hexdigest())
        if self.validation is not None:
            parts.append(hashlib.sha256(self.validation.tobytes()).hexdigest())
        return hashlib.sha256(" ".join(parts).encode()).hexdigest() if any(parts[1:]) else digest

    def read_digests(self, progress: Progress) -> list[str]:
        """Return the hex sha256 of each file's bytes."""
        digests = [""] * len(self)

        def work(i: int) -> None:
            digests[i] = hashlib.sha256(self.content(i)).hexdigest()

        for_each(len(self), work, "identifying", progress)
        return digests

    def content(self, position: int) -> bytes:
        """Return the bytes that identify an image."""
        path = self.root / self.paths[position]
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the image {path} ({os_reason(error)}); repair or delete it.") from error

    def examine(self, content: bytes, position: int) -> tuple[bool, bool, bool, Levels | None]:
        """Return whether an image is grey, has further frames, is cut to 8 bits, and the extent of a wide image."""
        with Image.open(BytesIO(content)) as image:
            grey, wide = image.mode in GREY_MODES, image.mode in WIDE_MODES
            cut, frames = image_files.is_cut_to_8_bits(image), image_files.has_further_frames(image)
        return grey, frames, cut, image_files.wide_extent(BytesIO(content)) if wide else None

    def image(self, position: int, channels: int, levels: Levels | None) -> Image.Image:
        """Return an image with 8 bits per channel, see `dnas.data.images.read_image`."""
        return image_files.read_image(self.root / self.paths[position], channels, levels)

    def read_contents(self, progress: Progress) -> Contents:
        """Read every file once. An `InputError` names files that the operating system cannot read."""
        digests = [b""] * len(self)
        grey, frames, cut = (np.zeros(len(self), dtype=bool) for _ in range(3))
        extents: list[Levels | None] = [None] * len(self)

        def work(i: int) -> None:
            content = self.content(i)
            digests[i] = hashlib.sha256(content).digest()
            try:
                grey[i], frames[i], cut[i], extents[i] = self.examine(content, i)
            except Exception:  # Pillow raises many types; decoding reports a damaged image
                grey[i] = True

        for_each(len(self), work, "reading", progress)
        total = hashlib.sha256(json.dumps([READER_VERSION, self.class_names]).encode())
        for label, digest in zip(self.labels.astype("<i4"), digests, strict=True):
            total.update(label.tobytes() + digest)
        known = [extent for extent in extents if extent is not None]
        levels = (min(low for low, _ in known), max(high for _, high in known)) if known else None
        return Contents(total.hexdigest(), 1 if grey.all() else 3, levels, int(frames.sum()), int(cut.sum()))


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Image files with the levels of their wide images."""

    files: ImageFiles
    levels: Levels | None

    def read(self, position: int, channels: int) -> Image.Image:
        """Read the image at `position` with 8 bits per channel. An `InputError` names a file that cannot be read."""
        path = self.files.root / self.files.paths[position]
        try:
            return self.files.image(position, channels, self.levels)
        except Exception as error:  # Pillow raises many types for damaged files
            reason = os_reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
            raise InputError(
                f"cannot read the image {path} ({reason.splitlines()[0]}); repair or delete it."
            ) from error


# --- listing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """Files found under class folders: images with their stamps, and the endings of all other files."""

    images: list[tuple[str, Stamp]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def add(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> None:
        """Add the files under `folder` that are not hidden. above: device and inode of the folders that contain it."""
        with _readable(folder):
            stat = Path(folder).stat()
            this = (stat.st_dev, stat.st_ino)
            if this in above:
                raise InputError(f"the link {folder} leads back to a folder that contains it; delete the link.")
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES:
                continue
            with _readable(entry.path):
                is_folder = entry.is_dir()
            if is_folder:
                self.add(entry.path, f"{prefix}{entry.name}/", (*above, this))
            elif entry.name.lower().endswith(ENDINGS):
                self.images.append((prefix + entry.name, _stamp(entry)))
            else:
                self.others[Path(entry.name).suffix.lower() or "no ending"] += 1


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Convert an error of the operating system to an `InputError` that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path} ({os_reason(error)}); check the path and its rights.") from error


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        stat = entry.stat()
    except OSError:  # a dangling link: reading the image reports it
        return (0, 0, 0, 0)
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def _class_folders(root: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the folders of the classes by class name, sorted, and sentences on files beside them.

    Class names are in Unicode's composed form (NFC), because systems store the same name in different forms.
    """
    folders: dict[str, str] = {}
    beside = 0
    with _readable(root):
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                path = Path(entry.path)
                if path.is_symlink() and not path.exists():
                    raise InputError(
                        f"{path} is a link to {path.readlink()}, which does not exist; restore it or delete the link."
                    )
                beside += entry.name.lower().endswith(ENDINGS)
                continue
            try:
                name = unicodedata.normalize("NFC", os.fsencode(entry.name).decode("utf-8"))
            except UnicodeDecodeError:
                raise InputError(
                    f"the name of the class folder {os.fsencode(entry.path)!r} is not UTF-8; rename it."
                ) from None
            if name in folders:
                raise InputError(f"{root} has two class folders named {name!r}, in two Unicode forms; merge them.")
            folders[name] = entry.name
    notes = (f"left out: {several(beside, 'image')} beside the class folders of {root}",) if beside else ()
    return dict(sorted(folders.items())), notes


def _list(root: Path, folders: dict[str, str], class_names: tuple[str, ...], notes: tuple[str, ...]) -> ImageFiles:
    images: list[tuple[str, Stamp]] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for name, folder in folders.items():
        scan = _Scan()
        scan.add(str(root / folder), f"{folder}/")
        scan.images.sort()
        images += scan.images
        others += scan.others
        labels += [class_names.index(name)] * len(scan.images)
    if others:
        endings = ", ".join(ending for ending, _ in others.most_common(5))
        notes += (f"left out: {several(others.total(), 'file')} under {root} that Pillow does not read ({endings})",)
    return ImageFiles(
        root,
        tuple(path for path, _ in images),
        tuple(stamp for _, stamp in images),
        np.array(labels, dtype=np.int64),
        class_names,
        notes,
    )


def list_training_images(folder: Path) -> ImageFiles:
    """List the images under `folder`/train, or of `folder` itself: one folder per class, with images at any depth.

    In the second case, the `root` of the result is `folder`, and a test part is still to be taken: see `hold_out`.
    Ignores hidden files.

    Raises `InputError` for any other layout, for fewer than two classes, and for a class with too few images (one to
    train on, one to validate on, and one to test on if there is no folder for the test part).
    """
    with _readable(folder):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; name a folder that contains one folder per class.")
        root = folder if _is_flat(folder) else folder / "train"
    folders, notes = _class_folders(root)
    names = tuple(folders)
    if root == folder:
        _check_flat(folder, names)
    if not names:
        raise InputError(f"{root} has no class folders; put the images of each class into a separate folder.")
    files = _list(root, folders, names, notes)
    counts = np.bincount(files.labels, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count == 0:
            raise InputError(f"the class folder {root / name} contains no images; fill it or delete it.")
    if len(names) == 1:
        raise InputError(f"{root} has only one class, {names[0]!r}; classification needs at least two class folders.")
    least, purposes = (3, "train on, validate on and test on") if root == folder else (2, "train on and validate on")
    for name, count in zip(names, counts, strict=True):
        if count < least:
            raise InputError(
                f"the class folder {root / name} has {several(int(count), 'image')}; a class needs at least {least}, to"
                f" {purposes}."
            )
    return replace(files, whole=root == folder)


def _is_flat(folder: Path) -> bool:
    """Return whether the class folders are in `folder` itself. One of the classes may be called `train`."""
    if not (folder / "train").is_dir():
        return True
    return not _folders(folder / "train") and any(path.name not in PART_NAMES for path in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _check_flat(folder: Path, names: Sequence[str]) -> None:
    """Raise `InputError` if `folder`, which has no folder train/, is a part of a data set or holds parts."""
    above = folder.parent
    if names and (folder.name == "train" or (folder.name in PART_NAMES and (above / "train").is_dir())):
        raise InputError(f"{folder} is one part of a data set; name the folder that contains it: folder:{above}.")
    parts = [f"{name}/" for name in names if name.lower() in PART_NAMES and _folders(folder / name)]
    if parts:
        raise InputError(
            f"{folder} has no folder train/, but {' and '.join(parts)}; name the folder of the training images train/,"
            " and one of held-out images test/."
        )
    if len(names) == 1 and len(_folders(folder / names[0])) > 1:
        raise InputError(
            f"{folder} has only one class, {names[0]!r}; if its folders are the classes, write"
            f" folder:{folder / names[0]}."
        )


def test_counts(labels: np.ndarray) -> np.ndarray:
    """Return the number of images of each class that a `hold_out` without groups takes.

    In total it is a tenth, with at least one image per class.
    """
    sizes = np.bincount(labels)
    return split.apportion(sizes, split.tenth(len(labels), len(sizes)), minimum=1, spare=2)


def hold_out(files: ImageFiles, digests: Sequence[str]) -> tuple[ImageFiles, ImageFiles]:
    """Split images without parts into training and test images, each in the order of the contents.

    The test part consists of the images of each class with the lowest digests. The split thus depends neither on the
    names of files nor on their order, and an added image leaves the others in their parts, except about one per class.
    Groups, and images with several labels, are chosen by `held_out_units`.

    Args:
        files: All images.
        digests: Digest of each image's bytes.
    """
    labels = files.labels.tolist()
    positions = np.array(sorted(range(len(files)), key=lambda i: (labels[i], digests[i], files.paths[i])))
    if is_stratified(files):
        sizes, counts = np.bincount(labels), test_counts(files.labels)
        is_test = np.concatenate([np.arange(size) < count for size, count in zip(sizes, counts, strict=True)])
    else:
        is_test = np.isin(positions, held_out_units(files))
    test = positions[is_test]
    identity = hashlib.sha256("\n".join(f"{labels[i]} {digests[i]}" for i in test).encode()).hexdigest()
    train = replace(files.take(positions[~is_test]), held_out=identity, whole=False)
    return train, replace(files.take(test), notes=(), whole=False)


def is_stratified(files: ImageFiles) -> bool:
    """Return whether splits choose single images by class, rather than groups or images with several labels."""
    return files.groups is None and files.labels.ndim == 1


def held_out_units(files: ImageFiles) -> np.ndarray:
    """Return the positions of the test part of images without parts that are not stratified by class.

    Groups, or else images, are considered in the order of the sha256 of their names. The choice depends on names and
    labels alone, and is known before an image is read.
    """
    units = np.array(files.paths) if files.groups is None else files.groups
    names: list[str] = np.unique(units).tolist()
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode(errors="surrogateescape")).digest())
    return split.tenth_of_groups(files.labels, units, np.array(order), spare=2)


def validation_positions(files: ImageFiles, used: np.ndarray, seed: int) -> np.ndarray:
    """Return the positions within `used` of the validation part, as the data set states it or chosen by `seed`.

    Raises `InputError` if there are too few groups.
    """
    labels = files.labels[used]
    if files.validation is not None:
        return np.flatnonzero(files.validation[used])
    if is_stratified(files):
        return split.validation(labels, seed)
    units = np.array(files.paths)[used] if files.groups is None else files.groups[used]
    chosen = split.tenth_of_groups(labels, units, split.order_by_seed(len(np.unique(units)), seed), spare=1)
    if not len(chosen):
        raise InputError(
            f"{files.root} has {several(len(np.unique(units)), 'group')} of training images, which cannot be split into"
            " training and validation groups; use more groups, or leave them out."
        )
    return chosen


def list_test_images(folder: Path, class_names: tuple[str, ...]) -> ImageFiles | None:
    """List the held-out images under `folder`/test, else `folder`/val; None if there is neither. Opens no image.

    Raises `InputError` for class folders that train/ does not have, and for a folder without labelled images.
    """
    root = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if root is None:
        return None
    folders, notes = _class_folders(root)
    unknown = [name for name in folders if name not in set(class_names)]
    if unknown:
        raise InputError(
            f"{root} has the class folder {unknown[0]!r}, which {folder / 'train'} does not have; "
            f"use the class folders of train/ in {root.name}/, or move it away."
        )
    files = _list(root, folders, class_names, notes)
    if not len(files):
        raise InputError(f"{root} has no images in class folders; use the class folders of train/, or move it away.")
    return files
