"""Files of the named data sets under the data root."""

from pathlib import Path

_CIFAR10, _CIFAR100 = "cifar-10-batches-py", "cifar-100-python"

# Files under the data root from which each part of a data set is read.
FILES: dict[tuple[str, str], tuple[str, ...]] = {
    ("cifar10", "train"): (f"{_CIFAR10}/batches.meta", *(f"{_CIFAR10}/data_batch_{i}" for i in range(1, 6))),
    ("cifar10", "test"): (f"{_CIFAR10}/batches.meta", f"{_CIFAR10}/test_batch"),
    ("cifar100", "train"): (f"{_CIFAR100}/meta", f"{_CIFAR100}/train"),
    ("cifar100", "test"): (f"{_CIFAR100}/meta", f"{_CIFAR100}/test"),
    ("svhn", "train"): ("train_32x32.mat", "extra_32x32.mat"),
    ("svhn", "test"): ("test_32x32.mat",),
    ("svhn:train", "train"): ("train_32x32.mat",),
    ("svhn:train", "test"): ("test_32x32.mat",),
}

# Archives that a user without network access puts under the data root.
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def stamps(name: str, part: str, root: Path) -> list[tuple[str, int, int]] | None:
    """Return (file, bytes, mtime in ns) of each file of a part; None if files are missing, and for the digits."""
    try:
        stats = [(file, (root / file).stat()) for file in FILES[name, part]]
    except (OSError, KeyError):
        return None
    return [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def is_here(name: str, root: Path) -> bool:
    """Return whether the training files of a data set, or the archive that contains them, exist under `root`."""
    return name == "digits" or stamps(name, "train", root) is not None or (root / ARCHIVES.get(name, "")).is_file()
