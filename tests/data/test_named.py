"""Tests of CIFAR, SVHN and ImageNet, read from small files in their formats."""

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, imagenet

from dnas.data import load_dataset
from dnas.data.files import FILES
from dnas.errors import InputError
from tests.support.data_files import write_cifar, write_folder, write_imagenet_archives, write_svhn


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Provide a separate cache and data root, and no network."""
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DNAS_DATA", str(tmp_path / "data"))

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    root = tmp_path / "data"
    root.mkdir()
    return root


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar_archive(root, reader, monkeypatch):
    """Write a small archive in the official layout, and set torchvision's checksums to match it."""
    fine = reader is CIFAR100
    folder = root / reader.base_folder
    classes = 100 if fine else 10
    counts = {"train": 300, "test": 100} if fine else {f"data_batch_{i}": 20 for i in range(1, 6)} | {"test_batch": 30}
    meta = (reader.meta["filename"], reader.meta["key"])
    write_cifar(folder, counts, meta, "fine_labels" if fine else "labels", classes)
    files = {part: [[f, md5(folder / f)] for f, *_ in getattr(reader, f"{part}_list")] for part in ("train", "test")}
    with tarfile.open(root / reader.filename, "w:gz") as tar:
        tar.add(folder, reader.base_folder)
    monkeypatch.setattr(reader, "train_list", files["train"])
    monkeypatch.setattr(reader, "test_list", files["test"])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(folder / meta[0])})
    monkeypatch.setattr(reader, "tgz_md5", md5(root / reader.filename))
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "reader", "sizes"), [("cifar10", CIFAR10, (90, 10, 30)), ("cifar100", CIFAR100, (200, 100, 100))]
)
def test_cifar_from_its_archive(alone, monkeypatch, name, reader, sizes):
    cifar_archive(alone, reader, monkeypatch)
    data = load_dataset(name)
    assert (data.train_size, data.val_size, data.test_size) == (*sizes[:2], 10_000)
    assert data.class_names == tuple(f"class{i}" for i in range(data.classes))
    assert (data.channels, data.image_size, data.size_rule, data.augmentation) == (3, 32, "as stored", "crop+flip")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(data.pixels.images[:20], pixels)  # the pickles hold R, G and B planes
    assert sum(len(y) for _, y in data.batches("test")) == sizes[2]
    # The second load reads the cache, and training never opens the test file.
    folder = alone / reader.base_folder
    monkeypatch.setattr(reader, "__init__", None)
    (folder / reader.test_list[0][0]).unlink()
    reloaded = load_dataset(name)
    assert reloaded.fingerprint == data.fingerprint
    assert len(list(reloaded.train_batches(16, torch.Generator()))) == reloaded.steps_per_epoch(16)


def test_file_names_equal_those_of_torchvision():
    for name, reader in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        for part in ("train", "test"):
            files = [reader.meta["filename"], *(f for f, _ in getattr(reader, f"{part}_list"))]
            assert [f"{reader.base_folder}/{file}" for file in files] == list(FILES[name, part])
    assert FILES["svhn", "train"] == tuple(SVHN.split_list[split][1] for split in ("train", "extra"))


def test_svhn_with_and_without_extra(alone, monkeypatch):
    for split, count, value in (("train", 40, 10), ("extra", 60, 20), ("test", 20, 30)):
        path = alone / f"{split}_32x32.mat"
        write_svhn(path, count, value)
        monkeypatch.setitem(SVHN.split_list, split, ["http://nowhere", path.name, md5(path)])
    data = load_dataset("svhn")
    assert (data.train_size, data.val_size, data.augmentation) == (90, 10, "none")
    assert np.bincount(data.pixels.images[:, 0, 0, 0]).tolist()[10::10] == [40, 60]
    assert data.labels[:11].tolist() == [*range(10), 0]  # the file's 10 is the digit 0
    assert len(load_dataset("svhn:train").labels) == 40
    x, y = next(data.batches("test"))
    assert (tuple(x.shape), len(y)) == ((20, 3, 32, 32), 20)
    # All pixels of a training image are 10 or 20, so mean and std can be computed directly.
    train = data.pixels.images[data.train_index].float() / 255
    assert data.mean == pytest.approx(train.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(train.std((0, 2, 3), correction=0).tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat and extra_32x32.mat"),
        ("svhn:train", "train_32x32.mat"),
    ],
)
def test_without_a_network_the_missing_file_is_named(alone, name, wanted):
    messages = []
    with pytest.raises(InputError) as caught:
        load_dataset(name, progress=messages.append)
    assert str(caught.value).endswith(f"(<urlopen error no route to host>); put {wanted} into {alone}.")
    assert "\n" not in str(caught.value)
    assert messages[0].startswith("downloading ")


def test_data_root_comes_before_the_environment(tmp_path):
    with pytest.raises(InputError, match=f"into {tmp_path / 'elsewhere'}"):
        load_dataset("cifar10", data_root=tmp_path / "elsewhere")


WNIDS = ["n01440764", "n02102040", "n03000684"]


def test_imagenet_from_class_folders(alone):
    write_folder(alone / "imagenet", "train", WNIDS, 4, 120, ending="JPEG")
    write_folder(alone / "imagenet", "val", WNIDS, 1, 120, ending="JPEG")
    data = load_dataset("imagenet")
    assert (data.title, data.classes, data.class_names) == ("ImageNet", 3, tuple(WNIDS))
    assert (data.image_size, data.augmentation, data.test_size) == (224, "resized-crop+flip", 3)
    x, _ = next(data.train_batches(3, torch.Generator()))
    assert x.shape == (3, 3, 224, 224)
    small = load_dataset("imagenet", image_size=32)
    assert (small.augmentation, tuple(small.pixels.images.shape)) == ("crop+flip", (12, 3, 32, 32))


def test_imagenet_from_its_archives(alone, monkeypatch):
    folder = alone / "imagenet"
    write_imagenet_archives(folder, WNIDS, 3, 40)
    for part, (file, _) in imagenet.ARCHIVE_META.items():
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (file, md5(folder / file)))
    data = load_dataset("imagenet", image_size=40)
    assert (data.train_size, data.val_size, data.test_size) == (6, 3, 3)
    assert [y.tolist() for _, y in data.batches("test")] == [[0, 1, 2]]
    # A process killed while unpacking leaves an archive of one class in train/.
    (folder / "train" / f"{WNIDS[1]}.tar").write_bytes(b"")
    with pytest.raises(InputError, match=f"interrupted; delete {folder / 'train'}"):
        load_dataset("imagenet", image_size=40)


def test_without_imagenet_the_three_archives_are_named(alone):
    with pytest.raises(InputError) as caught:
        load_dataset("imagenet")
    names = "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz"
    assert f"put {names} into {alone / 'imagenet'}" in str(caught.value)
    (alone / "imagenet").mkdir()
    for name in names.split(", "):
        (alone / "imagenet" / name).write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"cannot unpack ImageNet \(.*ILSVRC2012_devkit_t12") as caught:
        load_dataset("imagenet")
    assert "\n" not in str(caught.value)
