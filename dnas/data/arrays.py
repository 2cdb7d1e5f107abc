"""Images in arrays: .npz files, and data in memory that become such a file."""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnas.data.images import Levels
from dnas.data.listing import ImageFiles, Stamp
from dnas.data.location import data_folder
from dnas.data.npy import headers, image_axes
from dnas.data.table import Row, check_groups, check_labels
from dnas.errors import InputError, os_reason
from dnas.formatting import joined, several
from dnas.io import write_atomic

# Names of the arrays of images, labels and groups, by part. The last column is that of MedMNIST's files.
PARTS = {
    "train": (("x_train", "y_train", "groups"), ("x", "y", "groups"), ("train_images", "train_labels", "groups")),
    "val": (("x_val", "y_val", "groups_val"), ("val_images", "val_labels", "groups_val")),
    "test": (("x_test", "y_test", "groups_test"), ("test_images", "test_labels", "groups_test")),
}
CLASSES = "classes"  # array of the classes' names


@dataclass
class _File:
    """The arrays of an .npz file, each read when it is first used, and once."""

    path: Path
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def stamp(self) -> Stamp:
        stat = self.path.stat()
        return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    @cached_property
    def headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        try:
            return headers(self.path)
        except OSError as error:
            raise InputError(f"cannot read {self.path} ({os_reason(error)}); name an .npz file.") from error
        except (ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} is not an .npz file ({error}); write it by numpy.savez.") from None

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            try:
                with np.load(self.path, allow_pickle=False) as archive:
                    self.arrays[key] = archive[key]
            except OSError as error:
                raise InputError(f"cannot read {self.path} ({os_reason(error)}); name an .npz file.") from error
            except (ValueError, zipfile.BadZipFile, EOFError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"cannot read the array {key} of {self.path} ({reason}); write it anew.") from None
        return self.arrays[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "arrays": {}}


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageFiles):
    """Images in arrays of an .npz file. The path of image 17 of `x_train` is `x_train[17]`."""

    file: _File = field(default_factory=lambda: _File(Path()), repr=False)

    def pixels(self, position: int) -> np.ndarray:
        """Return the pixels of an image as they are stored, [H, W] or [H, W, 3]."""
        key, _, row = self.paths[position].partition("[")
        array = self.file[key]
        pixels = array[int(row[:-1])]
        if array.ndim == 4:
            pixels = pixels.transpose(1, 2, 0) if array.shape[1] in (1, 3) else pixels
        return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels

    def content(self, position: int) -> bytes:
        pixels = self.pixels(position)
        return f"{pixels.shape} {pixels.dtype.str} ".encode() + pixels.tobytes()

    def examine(self, content: bytes, position: int) -> tuple[bool, bool, bool, Levels | None]:
        pixels = self.pixels(position)
        extent = None
        if pixels.dtype != np.uint8:
            finite = pixels[np.isfinite(pixels)]
            extent = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return pixels.ndim == 2, False, False, extent

    def image(self, position: int, channels: int, levels: Levels | None) -> Image.Image:
        pixels = self.pixels(position)
        if pixels.dtype != np.uint8:
            if not np.isfinite(pixels).all():
                raise ValueError("some of its pixels are not finite")
            low, high = levels or (0.0, 65535.0)
            wide = np.clip(pixels.astype(np.float64), low, high) - low
            pixels = np.rint(wide * (255 / max(high - low, 1e-300))).astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(pixels)).convert("L" if channels == 1 else "RGB")


def list_npz(path: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """List the images of an .npz file: the part to train and validate on, and the test part.

    Reads labels and groups, and only the shapes of the images. Raises `InputError` for other arrays.
    """
    return _listed(_File(path))


def _listed(file: _File) -> tuple[ImageFiles, ImageFiles | None]:
    path = file.path
    keys = {part: _keys(file, part) for part in PARTS}
    if keys["train"] is None:
        have = joined(sorted(file.headers)) if file.headers else "none"
        raise InputError(f"{path} needs the arrays x_train and y_train, or x and y, but it has {have}.")
    whole = keys["train"][0] == "x"
    if whole and (keys["val"] or keys["test"]):
        raise InputError(
            f"{path} has the array x beside {(keys['val'] or keys['test'] or ('',))[0]}; rename x to x_train."
        )
    labels = {part: _labels(file, names) for part, names in keys.items() if names}
    class_names, numbers = _classes(file, labels["train"], keys["train"][1])
    parts: dict[str, ArrayImages] = {}
    for part, names in keys.items():
        if names:
            known = labels[part] if labels[part].ndim == 2 else _numbered(file, names[1], labels[part], numbers)
            if known.ndim == 2 and known.shape[1] != len(class_names):
                raise InputError(
                    f"{names[1]} of {path} has {known.shape[1]} labels per image, but {keys['train'][1]} has"
                    f" {len(class_names)}."
                )
            parts[part] = _part(file, names, known, class_names)
    _check_shared_groups(parts, path)
    train = parts["train"]
    if "val" in parts:
        train = _joined(train, parts["val"])
    train = replace(train, whole=whole, notes=_notes(train, keys["train"][1]))
    check_labels(train, path)
    return train, parts.get("test")


def _keys(file: _File, part: str) -> tuple[str, str, str] | None:
    for names in PARTS[part]:
        present = [name for name in names[:2] if name in file.headers]
        if len(present) == 1:
            missing = next(name for name in names if name not in present)
            raise InputError(f"{file.path} has the array {present[0]}, but no {missing}; add it.")
        if present:
            return names
    return None


def _labels(file: _File, names: tuple[str, str, str]) -> np.ndarray:
    """Return the labels of a part: numbers or texts [N], or 0 and 1 [N, classes]. Raises `InputError` for others."""
    images, key, _ = names
    shape, kind = file.headers[images]
    if image_axes(shape) is None:
        if len(shape) == 4 and shape[1] in (1, 3):
            raise InputError(
                f"{images} of {file.path} has the shape {shape}, which could be (n, c, h, w) or (n, h, w, c); give"
                f" images in one channel as (n, h, w)."
            )
        raise InputError(
            f"{images} of {file.path} has the shape {shape}; it must be (n, h, w), (n, h, w, c) or (n, c, h, w), where"
            " c is 1 or 3."
        )
    if kind != np.uint8 and kind.kind != "f" and not (kind.kind == "u" and kind.itemsize == 2):
        raise InputError(f"{images} of {file.path} has the type {kind}; convert it to uint8, uint16 or float32.")
    if 0 in shape:
        raise InputError(f"{images} of {file.path} is empty, with the shape {shape}.")
    labels = file[key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != shape[0]:
        raise InputError(
            f"{key} of {file.path} has the shape {labels.shape}; it must be one label for each of {shape[0]} images."
        )
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise InputError(f"{key} of {file.path} has several labels per image, which must be 0 or 1.")
        return labels.astype(np.int64)
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubU":
        raise InputError(f"{key} of {file.path} has the type {labels.dtype}; labels are whole numbers or texts.")
    return labels.astype(np.int64) if labels.dtype.kind != "U" else labels


def _classes(file: _File, labels: np.ndarray, key: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the names of the classes, and the number of the class of each label."""
    names = file[CLASSES] if CLASSES in file.headers else None
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) < len(names)):
        raise InputError(f"classes of {file.path} must be a list of different texts.")
    if labels.ndim == 2:
        if names is not None and len(names) != labels.shape[1]:
            raise InputError(
                f"{file.path} has {several(len(names), 'class', 'classes')}, but {key} has {labels.shape[1]} columns."
            )
        texts = names.tolist() if names is not None else [str(number) for number in range(labels.shape[1])]
        return tuple(texts), {}
    if names is None:
        values = np.unique(labels).tolist()
        return tuple(map(str, values)), {value: number for number, value in enumerate(values)}
    texts = names.tolist()
    numbers = {value: number for number, value in enumerate(texts)} if labels.dtype.kind == "U" else None
    return tuple(texts), numbers or {number: number for number in range(len(texts))}


def _numbered(file: _File, key: str, labels: np.ndarray, numbers: Mapping[Any, int]) -> np.ndarray:
    values, positions = np.unique(labels, return_inverse=True)
    unknown = [value for value in values.tolist() if value not in numbers]
    if unknown:
        shown = ", ".join(map(repr, list(numbers)[:5])) + (", ..." if len(numbers) > 5 else "")
        raise InputError(f"{key} of {file.path} has the label {unknown[0]!r}, but the classes are {shown}.")
    return np.array([numbers[value] for value in values.tolist()], dtype=np.int64)[positions]


def _part(file: _File, names: tuple[str, str, str], labels: np.ndarray, class_names: tuple[str, ...]) -> ArrayImages:
    images, _, key = names
    groups = None
    if key in file.headers:
        groups = file[key]
        if groups.shape != (len(labels),):
            raise InputError(
                f"{key} of {file.path} has the shape {groups.shape}; it must be one group for each of"
                f" {len(labels)} images."
            )
        groups = groups.astype(str)
    paths = tuple(f"{images}[{i}]" for i in range(len(labels)))
    return ArrayImages(file.path, paths, (file.stamp,) * len(labels), labels, class_names, groups=groups, file=file)


def _check_shared_groups(parts: Mapping[str, ArrayImages], path: Path) -> None:
    rows = [
        Row("", "", (), part, group)
        for part, images in parts.items()
        if images.groups is not None
        for group in np.unique(images.groups).tolist()
    ]
    check_groups(rows, path)


def _joined(train: ArrayImages, val: ArrayImages) -> ArrayImages:
    """Return training and validation images in one part."""
    groups = None
    if train.groups is not None and val.groups is not None:
        groups = np.concatenate([train.groups, val.groups])
    return replace(
        train,
        paths=train.paths + val.paths,
        stamps=train.stamps + val.stamps,
        labels=np.concatenate([train.labels, val.labels]),
        groups=groups,
        validation=np.arange(len(train) + len(val)) >= len(train),
    )


def _notes(train: ArrayImages, key: str) -> tuple[str, ...]:
    if train.labels.ndim == 2 and (train.labels.sum(axis=1) == 1).all():
        return (
            f"every row of {key} has exactly one label; give numbers of classes, of shape (n,), to train with cross"
            " entropy instead of one binary decision per class",
        )
    return ()


# --- data in memory -----------------------------------------------------------------------------------------------


class Images:
    """Images and labels in memory, as a data set for `dataset=`.

    They are written once to a file in the data folder ($DNAS_DATA), named by their contents, so that worker processes,
    resumed studies and replays read them from there.

    Args:
        x: Images (n, h, w), (n, h, w, c) or (n, c, h, w) with 1 or 3 channels, as a NumPy array or a torch tensor:
            whole numbers of 8 or 16 bits, or floats. Or a `torch.utils.data.Dataset` of pairs (image, label), which is
            read once.
        y: Labels: whole numbers or texts (n,), or 0 and 1 of shape (n, classes) if an image has several labels.
        test: Held-out images as (x, y), (x, y, groups) or a Dataset (default: a tenth of `x`, chosen by contents).
        groups: One group per image, such as the patient. No group is on both sides of a split.
        classes: Names of the classes, by number (default: the labels).
        name: Start of the file's name, and title of the data.

    Raises:
        InputError: If the arrays do not belong together, or are no images.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        test: Any = None,
        groups: Any = None,
        classes: Sequence[str] | None = None,
        name: str = "images",
    ) -> None:
        if not name or any(sign in name for sign in "/:\\\0"):
            raise InputError(f"the name of images must be a file name, but got {name!r}.")
        self.name = name
        part = "_train" if test is not None else ""
        self.arrays = _named(x, y, groups, part, "groups")
        if test is not None:
            held_out = [*test] if isinstance(test, tuple | list) else [test, None]
            if not 2 <= len(held_out) <= 3:
                raise InputError("test must be (x, y), (x, y, groups) or a Dataset.")
            test_x, test_y, test_groups = [*held_out, None][:3]
            self.arrays |= _named(test_x, test_y, test_groups, "_test", "groups_test")
        if classes is not None:
            self.arrays[CLASSES] = np.array([str(name) for name in classes])
        file = _File(Path("dnas.Images"), self.arrays)
        file.headers = {key: (array.shape, array.dtype) for key, array in self.arrays.items()}
        file.stamp = (0, 0, 0, 0)
        self._parts = _listed(file)

    def __repr__(self) -> str:
        train, test = self._parts
        classes = several(len(train.class_names), "class", "classes")
        held_out = f" and {len(test):,} test" if test else ""
        return f"Images({self.name!r}, {len(train):,} training{held_out} images of {classes})"

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of all arrays."""
        digest = hashlib.sha256()
        for key in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[key])
            digest.update(f"{key} {array.shape} {array.dtype.str} ".encode() + array.tobytes())
        return digest.hexdigest()

    def source(self) -> str:
        """Write the file if it is missing, and return the name of the data set, `npz:` and its absolute path."""
        path = (data_folder(None) / "images" / f"{self.name}-{self.fingerprint[:12]}.npz").absolute()
        if not path.is_file():
            buffer = io.BytesIO()
            np.savez(buffer, **self.arrays)  # type: ignore[arg-type]
            write_atomic(path, buffer.getvalue())
        return f"npz:{path}"


def _named(x: Any, y: Any, groups: Any, part: str, groups_key: str) -> dict[str, np.ndarray]:
    """Return the arrays of one part by their names in the file."""
    if y is None:
        x, y = _items(x)
    images, labels = _array(x), _array(y)
    if images.dtype == object or labels.dtype == object:
        raise InputError(
            "x and y must be arrays of numbers, such as NumPy arrays; images of different sizes do not fit."
        )
    if images.dtype.kind == "b":
        images = images.astype(np.uint8) * 255
    elif images.dtype.kind in "iu" and images.size and images.min() >= 0 and images.max() <= np.iinfo(np.uint16).max:
        images = images.astype(np.uint8 if images.dtype == np.uint8 or images.max() <= 255 else np.uint16)
    arrays = {f"x{part}": images, f"y{part}": labels}
    return arrays if groups is None else arrays | {groups_key: _array(groups).astype(str)}


def _array(values: Any) -> np.ndarray:
    """Return a NumPy array of an array, a tensor on any device, or a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        return np.asarray(values)
    except ValueError:
        return np.empty(0, dtype=object)


def _items(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read every item (image, label) of a `torch.utils.data.Dataset` once."""
    if not hasattr(data, "__getitem__") or isinstance(data, np.ndarray) or hasattr(data, "detach"):
        raise InputError("Images needs labels: give Images(x, y), or a Dataset of pairs (image, label).")
    try:
        count = len(data)
    except TypeError:
        raise InputError(f"{type(data).__name__} has no length; give a Dataset with __len__, or arrays.") from None
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for number in range(count):
        item = data[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {number} of {type(data).__name__} is no pair (image, label).")
        image = _array(item[0])
        if images and image.shape != images[0].shape:
            raise InputError(
                f"image {number} of {type(data).__name__} has the shape {image.shape}, but image 0 has"
                f" {images[0].shape}; resize them to one size."
            )
        images.append(image)
        labels.append(_array(item[1]))
    if not images:
        raise InputError(f"{type(data).__name__} has no items.")
    return np.stack(images), np.stack(labels)
