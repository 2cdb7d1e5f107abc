"""Hugging Face data sets that `save_to_disk` has written."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from dnas.data.images import Levels, read_image
from dnas.data.listing import ImageFiles, Stamp
from dnas.data.table import SPLITS, Row, parts_of
from dnas.errors import InputError

IMAGE_COLUMNS, LABEL_COLUMNS, GROUP_COLUMN = ("image", "img"), ("label", "labels"), "group"


@dataclass(frozen=True, eq=False)
class HuggingFaceImages(ImageFiles):
    """Encoded images in columns of a Hugging Face data set. The path of row 17 of the split test is `test[17]`.

    columns: The undecoded column of images of each split.
    """

    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def content(self, position: int) -> bytes:
        split, _, row = self.paths[position].partition("[")
        cell = self.columns[split][int(row[:-1])]
        encoded: bytes | None = cell["bytes"]
        return Path(cell["path"]).read_bytes() if encoded is None else encoded

    def image(self, position: int, channels: int, levels: Levels | None) -> Image.Image:
        return read_image(BytesIO(self.content(position)), channels, levels)


def list_hugging_face(folder: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """List the images of a data set on disk: the part to train and validate on, and the test part.

    Decodes no image. Raises `InputError` without the package `datasets`, and for other columns and splits.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"hf:{folder} needs the package datasets ({error}); install it by pip install 'dnas[hf]'."
        ) from None
    try:
        stored = datasets.load_from_disk(str(folder))
    except Exception as error:  # the package raises many types for a folder of another form
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot read {folder} ({reason.rstrip('.')}); name a folder that Dataset.save_to_disk has written."
        ) from error
    parts = dict(stored) if isinstance(stored, datasets.DatasetDict) else {"": stored}
    unknown = [name for name in parts if name and name.lower() not in SPLITS]
    if unknown:
        raise InputError(f"{folder} has the split {unknown[0]!r}; splits must be called train, validation or test.")
    rows: list[Row] = []
    columns: dict[str, Any] = {}
    names: list[str] = []
    for split, part in parts.items():
        image, label = _columns(part.features, folder, datasets)
        names = list(getattr(_element(part.features[label]), "names", None) or names)
        columns[split or "all"] = part.cast_column(image, datasets.Image(decode=False))[image]
        groups = part[GROUP_COLUMN] if GROUP_COLUMN in part.features else [None] * len(part)
        digits = len(str(len(part)))
        for number, (value, group) in enumerate(zip(part[label], groups, strict=True)):
            where = f"row {number} of {split or 'the data'} in {folder}"
            labels = tuple(_name(entry, names, where) for entry in (value if isinstance(value, list) else [value]))
            path = f"{split or 'all'}[{number:0{digits}}]"
            rows.append(Row(where, path, labels, SPLITS.get(split.lower(), ""), None if group is None else str(group)))
    known = names or sorted({label for row in rows for label in row.labels}, key=_natural)
    train, test = parts_of(rows, folder, folder, known)
    stamp = _stamp(folder)
    return _images(train, columns, stamp), test and _images(test, columns, stamp)


def _columns(features: Mapping[str, Any], folder: Path, datasets: Any) -> tuple[str, str]:
    """Return the columns of images and of labels."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(_element(feature), datasets.ClassLabel)]
    labels = [name for name in LABEL_COLUMNS if name in features] or labels
    chosen = []
    for kind, found, usual in (("images", images, IMAGE_COLUMNS), ("labels", labels, LABEL_COLUMNS)):
        preferred = [name for name in usual if name in found] or found
        if not preferred or (len(preferred) > 1 and preferred == found and preferred[0] not in usual):
            have = ", ".join(features)
            wanted = "an Image feature" if kind == "images" else "a ClassLabel feature, or called label"
            count = "no column" if not preferred else "several columns"
            raise InputError(f"{folder} has {count} of {kind}; one must be {wanted}, but the columns are {have}.")
        chosen.append(preferred[0])
    return chosen[0], chosen[1]


def _element(feature: Any) -> Any:
    """Return the feature of the elements of a list, or the feature itself."""
    return getattr(feature, "feature", feature)


def _name(value: Any, names: list[str], where: str) -> str:
    if names and isinstance(value, int):
        if not 0 <= value < len(names):
            raise InputError(f"{where} has the label {value}, but there are {len(names)} classes.")
        return names[value]
    if value is None or isinstance(value, float | dict):
        raise InputError(f"{where} has the label {value!r}; labels are classes, texts or whole numbers.")
    return str(value)


def _natural(name: str) -> tuple[int, str]:
    """Sort whole numbers by value, before texts."""
    return (int(name), "") if name.isdecimal() else (1 << 62, name)


def _stamp(folder: Path) -> Stamp:
    stats = [path.stat() for path in sorted(folder.rglob("*.arrow"))]
    return (
        sum(stat.st_size for stat in stats),
        max((stat.st_mtime_ns for stat in stats), default=0),
        max((stat.st_ctime_ns for stat in stats), default=0),
        stats[0].st_ino if stats else 0,
    )


def _images(files: ImageFiles, columns: Mapping[str, Any], stamp: Stamp) -> HuggingFaceImages:
    values = {item.name: getattr(files, item.name) for item in fields(files)} | {"stamps": (stamp,) * len(files)}
    return HuggingFaceImages(**values, columns=columns)
