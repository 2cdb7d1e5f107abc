"""Readers of the named data sets."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dnas.data.catalog import DATASETS
from dnas.data.files import ARCHIVES, FILES, stamps
from dnas.data.images import Progress
from dnas.data.split import choose
from dnas.errors import InputError

_IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")


@dataclass(frozen=True)
class NamedPart:
    """The `part` ("train" or "test") of a data set that is read completely: digits, CIFAR or SVHN."""

    name: str
    part: str
    root: Path

    def stamps(self) -> list[tuple[str, int, int]] | None:
        """Return (file, bytes, mtime in ns) of each of its files; None if files are missing, and for the digits."""
        return stamps(self.name, self.part, self.root)

    def read(self, progress: Progress) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Read images uint8 [N, C, H, W], labels int64 [N] and class names. Missing files are downloaded.

        If a download fails, an `InputError` names the file and the folder to put it into.
        """
        if self.name == "digits":
            return _digits(self.part)
        from http.client import HTTPException
        from tarfile import TarError

        title = DATASETS[self.name].title
        if self.stamps() is None:
            progress(f"downloading {title} into {self.root}")
        try:
            images, labels, names = self._cifar() if self.name in ARCHIVES else self._svhn()
        except (OSError, RuntimeError, EOFError, TarError, HTTPException) as error:
            required_files = ARCHIVES.get(self.name) or " and ".join(FILES[self.name, self.part])
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{title} is missing and cannot be downloaded ({reason}); put {required_files} into {self.root}."
            ) from error
        return np.ascontiguousarray(images), labels, names

    def _cifar(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        from torchvision.datasets import CIFAR10, CIFAR100

        reader = CIFAR10 if self.name == "cifar10" else CIFAR100
        data = reader(str(self.root), train=self.part == "train", download=True)
        return data.data.transpose(0, 3, 1, 2), np.array(data.targets, dtype=np.int64), tuple(data.classes)

    def _svhn(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        from torchvision.datasets import SVHN

        splits = [file.removesuffix("_32x32.mat") for file in FILES[self.name, self.part]]
        read = [SVHN(str(self.root), split=split, download=True) for split in splits]
        images = np.concatenate([data.data for data in read])
        labels = np.concatenate([data.labels for data in read]).astype(np.int64)
        return images, labels, tuple(str(digit) for digit in range(10))


def _digits(part: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read scikit-learn's digits. They have no test part, so a fifth is held out, identical for every split_seed."""
    pixels, labels = _digits_table()
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = labels.astype(np.int64)
    test = choose(labels, (len(labels) + 2) // 5, seed=0, purpose=2, minimum=1, spare=1)
    chosen = test if part == "test" else np.setdiff1d(np.arange(len(labels)), test)
    return images[chosen], labels[chosen], tuple(str(digit) for digit in range(10))


def _digits_table() -> tuple[np.ndarray, np.ndarray]:
    """Return the data of `sklearn.datasets.load_digits`, from its file if possible: the import takes over a second."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data, data.target


def imagenet_folder(root: Path, progress: Progress) -> Path:
    """Return the folder with ImageNet's train/ and val/. Unpacks the official archives in it if train/ is missing.

    Raises `InputError` if neither exists, and after an earlier unpacking that was interrupted.
    """
    folder = root / "imagenet"
    names = ", ".join(_IMAGENET_ARCHIVES)
    if not (folder / "train").is_dir():
        if not all((folder / name).is_file() for name in _IMAGENET_ARCHIVES):
            raise InputError(f"ImageNet is missing; put {names} into {folder}, or class folders under train/ and val/.")
        from tarfile import TarError

        from torchvision.datasets import imagenet

        progress(f"unpacking ImageNet in {folder}")
        try:
            imagenet.parse_devkit_archive(str(folder))
            imagenet.parse_train_archive(str(folder))
            if not (folder / "val").is_dir():
                imagenet.parse_val_archive(str(folder))
        except (OSError, RuntimeError, EOFError, TarError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"cannot unpack ImageNet ({reason}); put new copies of {names} into {folder}.") from error
    # torchvision unpacks in place, so an interrupted unpacking looks almost complete.
    for part, leftover in (("train", "*.tar"), ("val", "*.JPEG")):
        if next((folder / part).glob(leftover), None) is not None:
            raise InputError(f"the unpacking of ImageNet was interrupted; delete {folder / part} and start again.")
    return folder
