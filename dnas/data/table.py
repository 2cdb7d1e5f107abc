"""Lists of labelled images in a CSV file."""

import csv
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dnas.data.listing import ImageFiles, Stamp
from dnas.errors import InputError, did_you_mean, os_reason
from dnas.formatting import several
from dnas.io import read_text

COLUMNS = ("path", "label", "split", "group")
SEPARATORS = ";|"  # between the labels of one image
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"} | {
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Row:
    """One labelled image. where: the row in a message, such as `line 7`."""

    where: str
    path: str
    labels: tuple[str, ...]
    split: str = ""
    group: str | None = None


def list_csv(file: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """List the images of a CSV file: the part to train and validate on, and the test part.

    Raises `InputError` for another format, missing images, and parts that share a group.
    """
    try:
        text = read_text(file)
    except OSError as error:
        raise InputError(f"cannot read {file} ({os_reason(error)}); name a CSV file.") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    first_lines: dict[str, int] = {}
    try:
        columns = _columns(file, next(reader, []))
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            row = _row(f"line {reader.line_num} of {file}", columns, cells)
            if row.path in first_lines:
                raise InputError(
                    f"{file} has the image {row.path} twice, in lines {first_lines[row.path]} and {reader.line_num};"
                    f" remove one line, and write several labels as a{SEPARATORS[0]}b."
                )
            first_lines[row.path] = reader.line_num
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{file} is not CSV: {error} in line {reader.line_num}.") from None
    stamps = {row.path: _stamp_of(file, row) for row in rows}
    train, test = parts_of(rows, file, file.parent)
    return _stamped(train, stamps), test and _stamped(test, stamps)


def _columns(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the position of each known column."""
    names = [name.strip() for name in header]
    for name in COLUMNS[:2]:
        if name not in names:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            raise InputError(
                f"{file} has no column {name!r}; its first line must name the columns path and label, and optionally"
                f" split and group, but it is {shown or 'empty'!r}.{did_you_mean(name, names)}"
            )
    repeated = [name for name in COLUMNS if names.count(name) > 1]
    if repeated:
        raise InputError(f"{file} has the column {repeated[0]!r} twice; rename one of them.")
    return {name: names.index(name) for name in COLUMNS if name in names} | {"": len(names)}


def _row(where: str, columns: Mapping[str, int], cells: Sequence[str]) -> Row:
    if len(cells) != columns[""]:
        raise InputError(
            f"{where} has {several(len(cells), 'cell')}, but the first line has {columns['']}; quote cells that contain"
            " a comma."
        )
    path = cells[columns["path"]].strip()
    if not path:
        raise InputError(f"{where} has no path; name an image file.")
    text = unicodedata.normalize("NFC", cells[columns["label"]])
    for separator in SEPARATORS[1:]:
        text = text.replace(separator, SEPARATORS[0])
    labels = tuple(label.strip() for label in text.split(SEPARATORS[0]) if label.strip())
    split = ""
    if "split" in columns:
        written = cells[columns["split"]].strip()
        split = SPLITS.get(written.lower(), "")
        if not split:
            raise InputError(f"{where} has the split {written!r}; it must be train, val or test.")
    group = None
    if "group" in columns:
        group = cells[columns["group"]].strip()
        if not group:
            raise InputError(f"{where} has no group; name one, such as a number that no other image has.")
    return Row(where, os.path.normpath(path), labels, split, group)


def _stamp_of(file: Path, row: Row) -> Stamp:
    path = file.parent / row.path
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(
            f"cannot read the image {path} of {row.where} ({os_reason(error)}); paths are relative to the folder of the"
            " CSV file."
        ) from error
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def _stamped(files: ImageFiles, stamps: Mapping[str, Stamp]) -> ImageFiles:
    return replace(files, stamps=tuple(stamps[path] for path in files.paths))


# --- parts, for each kind of data that names them -----------------------------------------------------------------


def parts_of(
    rows: Sequence[Row], source: Path, root: Path, classes: Sequence[str] = ()
) -> tuple[ImageFiles, ImageFiles | None]:
    """Return the training and validation images in one part, and the test part; each is sorted by path.

    Args:
        rows: All images.
        source: File or folder to name in a message.
        root: Folder in which the paths start.
        classes: Order of the classes; classes without a training image are left out (default: sorted by name).

    Raises:
        InputError: Labels, splits or groups contradict each other.
    """
    if not rows:
        raise InputError(f"{source} lists no images.")
    by_path = sorted(rows, key=lambda row: row.path)
    kept = [row for row in by_path if row.split != "test"]
    test = [row for row in by_path if row.split == "test"]
    multilabel = any(len(row.labels) > 1 for row in rows)
    for row in rows:
        if not row.labels and not multilabel:
            raise InputError(f"{row.where} has no label; name the class of the image.")
        if len(set(row.labels)) < len(row.labels):
            raise InputError(f"{row.where} has the same label twice: {', '.join(row.labels)}.")
    used = {label for row in kept if row.split in ("", "train") for label in row.labels}
    class_names = tuple(name for name in classes if name in used) or tuple(sorted(used))
    for row in by_path:
        for label in row.labels:
            if label not in class_names:
                raise InputError(f"{row.where} has the label {label!r}, which no training image has; check its name.")
    check_groups(rows, source)
    train = _part(kept, root, class_names, multilabel)
    if any(row.split for row in rows):
        if any(row.split == "val" for row in rows):
            train = replace(train, validation=np.array([row.split == "val" for row in kept]))
    else:
        train = replace(train, whole=True)
    check_labels(train, source)
    return train, _part(test, root, class_names, multilabel) if test else None


def _part(rows: Sequence[Row], root: Path, class_names: tuple[str, ...], multilabel: bool) -> ImageFiles:
    numbers = {name: number for number, name in enumerate(class_names)}
    if multilabel:
        labels = np.zeros((len(rows), len(class_names)), dtype=np.int64)
        for i, row in enumerate(rows):
            labels[i, [numbers[label] for label in row.labels]] = 1
    else:
        labels = np.array([numbers[row.labels[0]] for row in rows], dtype=np.int64)
    groups = np.array([row.group for row in rows], dtype=str) if rows and rows[0].group is not None else None
    paths = tuple(Path(row.path).as_posix() for row in rows)
    return ImageFiles(root, paths, ((0, 0, 0, 0),) * len(rows), labels, class_names, groups=groups)


def check_groups(rows: Sequence[Row], source: Path) -> None:
    """Raise `InputError` if a group is in two splits."""
    splits: dict[str, str] = {}
    for row in rows:
        if row.group is not None and splits.setdefault(row.group, row.split) != row.split:
            raise InputError(
                f"{source} has the group {row.group!r} in two splits, {splits[row.group]} and {row.split}; a group"
                " belongs to a single split."
            )


def check_labels(train: ImageFiles, source: Path) -> None:
    """Raise `InputError` if there are too few classes, or too few images of a class, to train and validate on."""
    names = train.class_names
    if len(names) < 2:
        only = f"only one class, {names[0]!r}" if names else "no class"
        raise InputError(f"{source} has {only}; classification needs at least two classes.")
    if train.labels.ndim == 2 or train.groups is not None or train.validation is not None:
        return
    least, purposes = (3, "train on, validate on and test on") if train.whole else (2, "train on and validate on")
    for name, count in zip(names, np.bincount(train.labels, minlength=len(names)).tolist(), strict=True):
        if count < least:
            raise InputError(
                f"the class {name!r} of {source} has {several(count, 'image')}; a class needs at least {least}, to"
                f" {purposes}."
            )
