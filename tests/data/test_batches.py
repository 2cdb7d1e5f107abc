"""Tests of batches: augmentation, order of the images, and images that are streamed from files."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnas.data import load_dataset
from dnas.data.augment import mirror, padding, shift
from dnas.data.pixels import fitting_workers
from dnas.errors import InputError
from tests.support.data_files import write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def epoch(data, batch_size=16, seed=0):
    batches = list(data.train_batches(batch_size, seeded(seed)))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_shift_crops_each_window_from_the_zero_padded_image():
    images = torch.randn(20, 3, 9, 9, generator=seeded())
    offsets = torch.randint(0, 5, (20, 2), generator=seeded(1))
    got = shift(images, 2, offsets)
    for image, (top, left), window in zip(images, offsets.tolist(), got, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)))
        np.testing.assert_array_equal(window.numpy(), padded[:, top : top + 9, left : left + 9])


def test_mirror_flips_only_the_marked_images():
    images = torch.randn(4, 1, 3, 5, generator=seeded())
    got = mirror(images, torch.tensor([True, False, True, False]))
    assert torch.equal(got[0], images[0].flip(2))
    assert torch.equal(got[1], images[1])


def test_padding_is_proportional_to_the_image_size():
    assert [padding(size) for size in (4, 8, 32, 64, 224)] == [1, 1, 4, 8, 28]


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop+flip"])
def test_epoch_contains_every_training_image_once_with_its_label(tmp_path, augmentation):
    write_folder(tmp_path / "set", "train", ["a", "b"], 60, 16)
    data = load_dataset(f"folder:{tmp_path / 'set'}", image_size=16, augmentation=augmentation)
    originals = torch.cat([x for x, _ in data.batches("train")])
    labels = torch.cat([y for _, y in data.batches("train")])
    flips = [False, True] if augmentation == "crop+flip" else [False]
    corners = [(i, j) for i in range(5) for j in range(5)] if augmentation != "none" else [(2, 2)]
    views = {}  # every allowed view, built the slow way
    for n, image in enumerate(originals.numpy()):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        for top, left in corners:
            for flip in flips:
                view = padded[:, top : top + 16, left : left + 16]
                views[(view[:, :, ::-1] if flip else view).tobytes()] = (n, top, left, flip)
    x, y = epoch(data)
    shown = [views[image.numpy().tobytes()] for image in x]  # KeyError: no window of a training image
    index = [n for n, *_ in shown]
    assert sorted(index) == list(range(data.train_size))
    assert index != sorted(index)
    assert torch.equal(y, labels[index])
    for axis in (1, 2):  # every shift occurs, including the largest
        assert {view[axis] for view in shown} == {corner[axis - 1] for corner in corners}
    if augmentation == "crop+flip":
        assert 0.3 < np.mean([flip for *_, flip in shown]) < 0.7


def test_batches_depend_only_on_the_generator():
    data = load_dataset("digits", subset=100)
    generator = seeded(7)
    first = list(data.train_batches(32, generator))
    state = generator.get_state()
    second = list(data.train_batches(32, generator))
    assert not torch.equal(first[0][0], second[0][0])
    torch.manual_seed(99)
    generator.set_state(state)
    repeat = list(data.train_batches(32, generator))
    assert all(
        torch.equal(a, b) for one, two in zip(second, repeat, strict=True) for a, b in zip(one, two, strict=True)
    )
    # The order is the same for every augmentation, and so is what the epoch takes from the generator.
    plain, generator = replace(data, augmentation="none"), seeded(7)
    assert torch.equal(torch.cat([y for _, y in plain.train_batches(32, generator)]), torch.cat([y for _, y in first]))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(("batch_size", "sizes"), [(45, [45, 45]), (89, [89]), (88, [88, 2]), (500, [90])])
def test_last_batch_of_one_image_is_omitted(batch_size, sizes):
    data = load_dataset("digits", subset=100)
    assert data.train_size == 90
    assert [len(y) for _, y in data.train_batches(batch_size, seeded())] == sizes
    assert data.steps_per_epoch(batch_size) == len(sizes)
    with pytest.raises(InputError, match="batch_size must be at least 1, but got 0"):
        data.train_batches(0, seeded())


def test_parts_are_complete_and_in_order():
    data = load_dataset("digits", subset=101)
    for part, index in (("train", data.train_index), ("val", data.val_index)):
        x, y = (torch.cat(tensors) for tensors in zip(*data.batches(part, 7), strict=True))
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert torch.equal(y, data.labels[index])
        expected = (data.pixels.images[index].float() / 255 - data.mean[0]) / data.std[0]
        torch.testing.assert_close(x, expected)
    with pytest.raises(InputError, match="train, val or test, but got 'valid'"):
        data.batches("valid")


def test_constant_channel_is_not_divided_by_zero(tmp_path):
    from PIL import Image

    for i, path in enumerate(write_folder(tmp_path, "train", ["a", "b"], 4, 8)):
        Image.new("RGB", (8, 8), (10 * i, 7, 0)).save(path)
    data = load_dataset(f"folder:{tmp_path}", image_size=8)
    x = torch.cat([x for x, _ in data.batches("train")])
    assert x.isfinite().all()
    assert abs(x[:, 1:]).max() < 1e-4


@pytest.fixture
def stream(tmp_path):
    write_folder(tmp_path / "set", "train", ["a", "b"], 12, 110)
    return load_dataset(f"folder:{tmp_path / 'set'}", image_size=100)


def test_stream_does_not_depend_on_the_number_of_workers(stream):
    assert stream.augmentation == "resized-crop+flip"
    before = torch.get_rng_state()
    alone, two = (epoch(replace(stream, workers=n), 5) for n in (0, 2))
    assert torch.equal(alone[0], two[0])
    assert torch.equal(alone[1], two[1])
    assert torch.equal(torch.get_rng_state(), before)
    # An image's crop does not depend on its batch either.
    assert torch.equal(epoch(replace(stream, workers=0), 11)[0], alone[0])
    assert not torch.equal(epoch(replace(stream, workers=0), 5, seed=1)[0], alone[0])


def test_stream_draws_new_crops_in_every_epoch(stream):
    generator = seeded()
    views = []
    for _ in range(2):
        batches = list(replace(stream, workers=0).train_batches(22, generator))
        order = torch.argsort(torch.cat([y for _, y in batches]), stable=True)
        views.append(torch.cat([x for x, _ in batches])[order])
    same = (views[0][:, None] == views[1][None]).flatten(2).all(2)
    assert not same.any()


def test_equal_images_get_different_crops(tmp_path):
    paths = write_folder(tmp_path / "set", "train", ["a", "b"], 8, 110)
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    data = replace(load_dataset(f"folder:{tmp_path / 'set'}", image_size=100), workers=0)
    x, _ = epoch(data)
    assert len({image.numpy().tobytes() for image in x}) == data.train_size


@pytest.mark.parametrize("workers", [0, 2])
def test_file_that_breaks_during_training_is_named_in_one_line(stream, workers, tmp_path):
    broken = tmp_path / "set" / "train" / stream.pixels.source.files.paths[stream.train_index[3]]
    broken.write_bytes(b"no image any more")
    with pytest.raises(InputError) as caught:
        list(replace(stream, workers=workers).train_batches(8, seeded()))
    assert str(caught.value).startswith(f"cannot read the image {broken} (")
    assert "\n" not in str(caught.value)


def test_crops_of_a_stream_are_windows_of_its_centre_crop(stream):
    data = replace(stream, augmentation="crop", workers=0)
    x, _ = epoch(data)
    centre = torch.cat([x for x, _ in data.batches("train")])
    pad = padding(100)
    inner = centre[:, :, 40:60, 40:60]  # visible for every shift
    hits = 0
    for image in x:
        windows = image.unfold(1, 20, 1).unfold(2, 20, 1)[:, 40 - pad : 41 + pad, 40 - pad : 41 + pad]
        equal = (windows[None] == inner[:, :, None, None]).all(1).all(-1).all(-1)
        hits += int(equal.sum() == 1)
    assert hits == data.train_size


def test_stored_images_can_be_streamed_larger():
    data = load_dataset("digits", image_size=100, subset=20)
    assert data.augmentation == "crop"
    assert [tuple(x.shape) for x, _ in data.train_batches(10, seeded())] == [(10, 1, 100, 100)]
    assert sum(len(y) for _, y in data.batches("test")) == 359


def test_decoding_processes_fit_into_the_shared_memory(monkeypatch):
    """A container often has 64 MB. Each process prepares two batches, and two more are in use."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64))
    with pytest.warns(
        UserWarning, match=r"/dev/shm has room for the batches of 2 of 7 decoding processes only; .*shm-size"
    ):
        assert fitting_workers(7, 10) == 2
    with pytest.warns(UserWarning, match="of 0 of 7"):
        assert fitting_workers(7, 50) == 0
    assert fitting_workers(7, 4) == 7
    monkeypatch.undo()
    monkeypatch.setattr("dnas.data.pixels.SHARED_MEMORY", "/no/such/folder")
    assert fitting_workers(7, 10**9) == 7


def test_a_stream_without_shared_memory_decodes_in_its_own_process(stream, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr("dnas.data.pixels.DataLoader", None)
    with pytest.warns(UserWarning, match="decoding processes only"):
        assert list(replace(stream, workers=2).train_batches(8, seeded()))
