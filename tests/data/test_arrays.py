"""Tests of data sets from arrays: .npz files, and `dnas.Images`."""

import numpy as np
import pytest
import torch

import dnas
from dnas.data import load_dataset
from dnas.data.catalog import data_info
from dnas.data.summary import summarize
from dnas.errors import InputError


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DNAS_DATA", str(tmp_path / "data"))


def noise(count, *shape, kind=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, (count, *shape)).astype(kind)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


Y = np.arange(60) % 3


@pytest.fixture
def file(tmp_path):
    return tmp_path / "set.npz"


def test_arrays_without_parts(file):
    x = noise(60, 8, 8)
    name = save(file, x=x, y=Y)
    found = summarize(name)
    data = load_dataset(name)
    assert (data.train_size, data.val_size, data.test_size) == (49, 5, 6)
    assert (found.train_size, found.val_size, found.test_size, found.whole) == (49, 5, 6, True)
    assert (data.channels, data.image_size, data.size_rule, data.class_names) == (1, 8, "as stored", ("0", "1", "2"))
    assert data.name == f"npz:{file}"
    held_out = data.open_test()[0].images.numpy()
    assert len({x.tobytes() for x in [*data.pixels.images.numpy(), *held_out]}) == 60
    known = {image.tobytes(): label for image, label in zip(x, Y, strict=True)}
    assert [known[image.numpy().tobytes()] for image in data.pixels.images] == data.labels.tolist()
    save(file, x=x, y=Y)
    assert load_dataset(name).fingerprint == data.fingerprint, "times do not matter"
    save(file, x=x[::-1], y=Y[::-1])
    assert load_dataset(name).fingerprint == data.fingerprint, "the order does not matter"
    x[0, 0, 0] ^= 1
    save(file, x=x, y=Y)
    assert load_dataset(name).fingerprint != data.fingerprint


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "medmnist"])
def test_colour_arrays_with_parts(file, layout):
    x = noise(60, 12, 10, 3)
    stored = x.transpose(0, 3, 1, 2) if layout == "nchw" else x
    if layout == "medmnist":
        names = {"train_images": stored, "train_labels": Y[:, None].astype(np.uint8)}
        names |= {"val_images": x[:6], "val_labels": Y[:6, None], "test_images": x[:4], "test_labels": Y[:4, None]}
        sizes = (60, 6, 4)
    else:
        names, sizes = {"x_train": stored, "y_train": Y, "x_test": stored[:4], "y_test": Y[:4]}, (54, 6, 4)
    data = load_dataset(save(file, **names), image_size=8)
    assert (data.channels, data.train_size, data.val_size, data.test_size) == (3, *sizes)
    assert data.size_rule == "shorter side resized to 8 (bilinear, antialiased), centre crop"
    if layout == "medmnist":
        assert data.val_index.tolist() == list(range(60, 66))
    assert next(data.batches("test"))[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize("kind", [np.uint16, np.float32, np.float64])
def test_wide_arrays_are_mapped_by_the_levels_of_training(file, kind):
    x = noise(60, 8, 8, kind=kind, high=4096)
    x[0, 0, 0], x[1, 0, 0] = 0, 4095
    test = np.full((2, 8, 8), 9000, dtype=kind)
    data = load_dataset(save(file, x_train=x, y_train=Y, x_test=test, y_test=Y[:2]))
    assert data.levels == (0.0, 4095.0)
    np.testing.assert_array_equal(data.pixels.images[:, 0], np.rint(x.astype(float) * (255 / 4095)).astype(np.uint8))
    assert (data.open_test()[0].images == 255).all()
    assert load_dataset(f"npz:{file}", levels=(0.0, 9000.0)).levels == (0.0, 9000.0)


def test_large_arrays_are_streamed(file):
    x = noise(12, 100, 100)
    name = save(file, x_train=x, y_train=Y[:12])
    assert data_info(name).image_size is None
    data = load_dataset(name, image_size=100, augmentation="none")
    (batch, labels), *_ = data.train_batches(4, torch.Generator())
    assert (tuple(batch.shape), len(labels)) == ((4, 1, 100, 100), 4)


def test_groups_of_arrays(file):
    groups = np.arange(60) // 4
    name = save(file, x=noise(60, 8, 8), y=Y, groups=groups)
    data = load_dataset(name)
    patient = {image.tobytes(): group for image, group in zip(noise(60, 8, 8), groups, strict=True)}
    index = (data.train_index, data.val_index)
    sides = [{patient[data.pixels.images[i].numpy().tobytes()] for i in part} for part in index]
    sides.append({patient[image.numpy().tobytes()] for image in data.open_test()[0].images})
    assert sum(map(len, sides)) == len(set().union(*sides)) == 15
    found = summarize(name)
    assert (found.train_size, found.val_size, found.test_size) == (data.train_size, data.val_size, data.test_size)
    stated = [{"x_train": noise(60, 8, 8), "y_train": Y, "groups": np.arange(60) // size} for size in (4, 5)]
    assert len({load_dataset(save(file, **arrays)).fingerprint for arrays in stated}) == 2


def test_names_of_classes(file):
    x = noise(60, 8, 8)
    assert load_dataset(save(file, x=x, y=np.array(["b", "a", "c"])[Y])).class_names == ("a", "b", "c")
    data = load_dataset(save(file, x=x, y=Y, classes=["cat", "dog", "ant"]))
    assert data.class_names == ("cat", "dog", "ant")
    several = load_dataset(save(file, x=x, y=np.eye(3, dtype=int)[Y] | np.eye(3, dtype=int)[Y[::-1]]))
    assert (several.multilabel, several.class_names) == (True, ("0", "1", "2"))


X = noise(60, 8, 8)
MISTAKES = [
    ({"a": X}, "needs the arrays x_train and y_train, or x and y, but it has a."),
    ({"x": X}, "has the array x, but no y; add it"),
    ({"x": X, "y": Y, "x_test": X, "y_test": Y}, "has the array x beside x_test; rename x to x_train"),
    ({"x": X, "y": Y[:-1]}, "y of {0} has the shape (59,); it must be one label for each of 60 images"),
    ({"x": X, "y": Y + 0.5}, "y of {0} has the type float64; labels are whole numbers or texts"),
    ({"x": X, "y": np.stack([Y, Y], axis=1)}, "y of {0} has several labels per image, which must be 0 or 1"),
    ({"x": X, "y": Y, "classes": ["a", "b"]}, "y of {0} has the label 2, but the classes are 0, 1"),
    ({"x": X, "y": Y, "classes": ["a", "a"]}, "classes of {0} must be a list of different texts"),
    (
        {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1},
        "y_test of {0} has the label 3, but the classes are 0, 1",
    ),
    ({"x": X, "y": Y, "groups": Y[:5]}, "groups of {0} has the shape (5,); it must be one group for each of 60 images"),
    ({"x": X.astype(int), "y": Y}, "x of {0} has the type int64; convert it to uint8, uint16 or float32"),
    (
        {"x": X[:, :, :, None, None], "y": Y},
        "x of {0} has the shape (60, 8, 8, 1, 1); it must be (n, h, w), (n, h, w, c)",
    ),
    ({"x": noise(60, 8, 8, 2), "y": Y}, "x of {0} has the shape (60, 8, 8, 2); it must be (n, h, w), (n, h, w, c) or"),
    ({"x": noise(60, 3, 8, 3), "y": Y}, "has the shape (60, 3, 8, 3), which could be (n, c, h, w) or (n, h, w, c)"),
    ({"x": X[:0], "y": Y[:0]}, "x of {0} is empty, with the shape (0, 8, 8)"),
    ({"x": np.where(X > 250, np.nan, X), "y": Y}, "60 images are broken: cannot read the image {0}/x["),
    ({"x": np.array([None] * 60), "y": Y}, "x of {0} has the shape (60,)"),
    ({"x": X, "y": Y * 0}, "{0} has only one class, '0'"),
    (
        {"x_train": X, "y_train": Y, "groups": Y, "x_test": X, "y_test": Y, "groups_test": Y},
        "{0} has the group '0' in two splits, train and test",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), MISTAKES)
def test_mistakes_are_reported_in_one_line(file, arrays, message):
    with pytest.raises(InputError) as caught:
        load_dataset(save(file, **arrays))
    assert message.format(file).split("60 images")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz(file):
    with pytest.raises(InputError, match=r"cannot read .*set.npz \(No such file or directory\); name an .npz file"):
        load_dataset(f"npz:{file}")
    file.write_text("text")
    with pytest.raises(InputError, match=r"set.npz is not an .npz file \("):
        load_dataset(f"npz:{file}")
    with pytest.raises(InputError, match=r"no data set 'a/b.npz'; for a file of images, write npz:a/b.npz"):
        data_info("a/b.npz")


# --- data in memory ---


def test_images_in_memory_become_a_file_once(tmp_path):
    held = dnas.Images(X, Y, classes=["a", "b", "c"], name="spots")
    source = held.source()
    path = tmp_path / "data" / "images" / f"spots-{held.fingerprint[:12]}.npz"
    assert source == f"npz:{path}"
    inode = path.stat().st_ino
    assert dnas.Images(torch.from_numpy(X), Y.tolist(), classes=("a", "b", "c"), name="spots").source() == source
    assert path.stat().st_ino == inode, "written once"
    assert repr(held) == "Images('spots', 60 training images of 3 classes)"
    assert load_dataset(source).class_names == ("a", "b", "c")
    assert dnas.Images(X, Y, groups=Y, name="spots").source() != source


def test_images_of_a_torch_dataset_are_read_once():
    class Items(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return 60

        def __getitem__(self, i):
            Items.reads += 1
            return torch.from_numpy(X[i, None]).float() / 255, int(Y[i])

    data = load_dataset(dnas.Images(Items(), test=(X[:5].astype(np.float32)[:, None] / 255, Y[:5])).source())
    assert Items.reads == 60
    assert (data.channels, data.train_size, data.val_size, data.test_size) == (1, 54, 6, 5)
    np.testing.assert_array_equal(data.pixels.images.numpy()[:, 0], X)


class Endless(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return X[0], 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Endless(),), {}, "Endless has no length; give a Dataset with __len__, or arrays"),
        ((X,), {}, r"Images needs labels: give Images\(x, y\), or a Dataset of pairs"),
        (([X[0], (X[1], 1)],), {}, r"item 0 of list is no pair \(image, label\)"),
        (([(X[0], 1), (X[0, 1:], 1)],), {}, r"image 1 of list has the shape \(7, 8\), but image 0 has \(8, 8\)"),
        ((X, Y), {"test": (X,)}, r"test must be \(x, y\), \(x, y, groups\) or a Dataset"),
        ((X, Y), {"test": (X, Y + 1)}, "y_test of dnas.Images has the label 3, but the classes are 0, 1, 2"),
        ((X.astype(int) - 1, Y), {}, "x of dnas.Images has the type int64; convert it to uint8"),
        ((X, Y), {"name": "a/b"}, "the name of images must be a file name, but got 'a/b'"),
        (([X[0], X[0, 1:]], [0, 1]), {}, "images of different sizes do not fit"),
    ],
)
def test_images_that_are_none(arguments, options, message):
    with pytest.raises(InputError, match=message):
        dnas.Images(*arguments, **options)
