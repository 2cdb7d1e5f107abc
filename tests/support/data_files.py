"""Small data files in the formats of the real data sets."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image


def noise(seed: int, side: int, channels: int = 3) -> Image.Image:
    """Return an image of noise drawn from `seed`."""
    shape = (side, side, 3) if channels == 3 else (side, side)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_folder(
    root: Path, part: str, classes: list[str], each: int, side: int, channels: int = 3, ending: str = "png"
) -> list[Path]:
    """Write `each` distinct noise images per class under `root`/`part` and return their paths."""
    paths = []
    for c, name in enumerate(classes):
        folder = root / part / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(each):
            path = folder / f"{i:03}.{ending}"
            noise(1000 * c + i + 10**6 * (part != "train"), side, channels).save(path)
            paths.append(path)
    return paths


def write_cifar(folder: Path, files: dict[str, int], meta: tuple[str, str], label_key: str, classes: int) -> None:
    """Write pickles like those of CIFAR, with cyclic labels. files: number of random images by file name."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for file, count in files.items():
        entry = {
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            label_key: [i % classes for i in range(count)],
        }
        (folder / file).write_bytes(pickle.dumps(entry))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [f"class{i}" for i in range(classes)]}))


def write_svhn(path: Path, count: int, value: int) -> None:
    """Write a .mat file like those of SVHN: X [32, 32, 3, N] filled with `value`, y [N, 1] with 10 for the digit 0."""
    labels = np.array([[i % 10 or 10] for i in range(count)], dtype=np.uint8)
    scipy.io.savemat(path, {"X": np.full((32, 32, 3, count), value, dtype=np.uint8), "y": labels})


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def jpeg(seed: int, side: int) -> bytes:
    buffer = io.BytesIO()
    noise(seed, side).save(buffer, "JPEG")
    return buffer.getvalue()


def write_imagenet_archives(folder: Path, wnids: list[str], each: int, side: int) -> None:
    """Write the three official archives with `each` training images and one test image per class."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for c, wnid in enumerate(wnids):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(each):
                    add(tar, f"{wnid}_{i}.JPEG", jpeg(100 * c + i, side))
            add(train, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as val:
        for c in range(len(wnids)):
            add(val, f"ILSVRC2012_val_{c + 1:08}.JPEG", jpeg(10_000 + c, side))
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"]
    synsets = np.array(
        [(c + 1, wnid, f"name of {wnid}, other", "a gloss", 0, 0) for c, wnid in enumerate(wnids)],
        dtype=[(name, "O") for name in fields],
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as devkit:
        add(devkit, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{c + 1}\n" for c in range(len(wnids)))
        add(devkit, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
