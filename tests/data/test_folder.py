"""Tests of data sets from image folders: reading, fingerprints and the cache."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dnas.data import cache, images, load_dataset
from dnas.data.images import fit, to_array
from dnas.data.summary import summarize
from dnas.errors import InputError
from tests.support.data_files import noise, write_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DNAS_CACHE", str(folder))
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Return a list that records the path of every image that is decoded."""
    paths = []

    def counted(path, channels, levels, read=images.read_image):
        paths.append(path)
        return read(path, channels, levels)

    monkeypatch.setattr(images, "read_image", counted)
    return paths


def load(folder, **options):
    return load_dataset(f"folder:{folder}", **options)


def raw(data):
    """Return all decoded pixels [N, C, H, W]."""
    return data.pixels.images.numpy()


def test_grey_28_pixel_images_for_a_32_pixel_network(tmp_path):
    paths = write_folder(tmp_path, "train", ["0", "1", "2"], 4, 28, channels=1)
    data = load(tmp_path)
    assert (data.channels, data.classes, data.class_names, data.image_size) == (1, 3, ("0", "1", "2"), 32)
    assert data.size_rule == "shorter side resized to 32 (bilinear, antialiased), centre crop"
    assert (data.train_size, data.val_size, data.test_size) == (9, 3, 0)
    expected = np.asarray(Image.open(paths[0]).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(raw(data)[0, 0], expected)
    with pytest.raises(InputError, match="has no test set"):
        data.batches("test")


def test_200_classes_of_64_pixel_jpegs_deep_in_their_class_folders(tmp_path):
    names = [f"n{i:04}" for i in range(200)]
    for path in write_folder(tmp_path, "train", names, 3, 64, ending="JPEG"):
        (path.parent / "images").mkdir(exist_ok=True)
        path.rename(path.parent / "images" / path.name)
    write_folder(tmp_path, "val", names[:20], 1, 64, ending="JPEG")
    data = load(tmp_path, image_size=64)
    assert (data.classes, data.channels, data.train_size, data.val_size, data.test_size) == (200, 3, 400, 200, 20)
    assert data.size_rule == "as stored"
    assert sorted(data.labels[data.val_index].tolist()) == list(range(200))
    x, y = next(data.batches("test"))
    assert x.shape == (20, 3, 64, 64)
    assert y.tolist() == list(range(20))


def test_224_pixel_images_are_streamed(tmp_path, reads):
    write_folder(tmp_path, "train", ["cat", "dog"], 5, 224, ending="jpg")
    write_folder(tmp_path, "test", ["dog"], 1, 300, ending="jpg")
    data = load(tmp_path, stem="imagenet", augmentation="crop+flip")
    assert (data.image_size, data.train_size, data.val_size, data.test_size) == (224, 8, 2, 1)
    assert data.size_rule == "shorter side resized to 256 (bilinear, antialiased), centre crop of 224"
    assert len(reads) == 10 + 8  # every image checked once, the training part measured once
    x = torch.cat([x for x, _ in data.batches("train")])
    assert x.shape == (8, 3, 224, 224)
    assert abs(x.mean()) < 1e-3
    assert abs(x.std() - 1) < 0.05
    before = len(reads)
    reloaded = load(tmp_path, stem="imagenet")
    assert len(reads) == before
    assert (reloaded.mean, reloaded.std, reloaded.fingerprint) == (data.mean, data.std, data.fingerprint)
    x, y = next(reloaded.batches("test"))
    assert (tuple(x.shape), y.tolist()) == ((1, 3, 224, 224), [1])


def test_a_streamed_subset_reads_only_its_own_images(tmp_path, reads):
    write_folder(tmp_path, "train", ["a", "b"], 30, 100)
    data = load(tmp_path, image_size=100, subset=10)
    list(data.batches("val"))
    list(replace(data, workers=0).train_batches(4, torch.Generator()))
    assert data.train_size + data.val_size == 10
    assert len(set(reads)) == 10


@pytest.mark.parametrize("size", [32, 100])
def test_one_colour_image_makes_the_set_colour(tmp_path, size):
    paths = write_folder(tmp_path, "train", ["a", "b"], 3, size, channels=1)
    assert load(tmp_path, image_size=size).channels == 1
    noise(0, size).save(paths[-1])
    data = load(tmp_path, image_size=size)
    assert data.channels == 3
    x, _ = next(replace(data, mean=(0.0,) * 3, std=(1.0,) * 3).batches("train"))
    assert torch.equal(x[0, 0], x[0, 1])  # a grey one, in three channels


def test_test_images_take_the_channels_of_training(tmp_path):
    write_folder(tmp_path, "train", ["a", "b"], 3, 16, channels=1)
    write_folder(tmp_path, "test", ["a"], 2, 16, channels=3)
    x, _ = next(load(tmp_path, image_size=16).batches("test"))
    assert x.shape == (2, 1, 16, 16)


def test_shorter_side_is_resized_and_centre_is_kept():
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = 200
    for pixels in (stripes, stripes.transpose(1, 0, 2)):
        out = np.asarray(fit(Image.fromarray(pixels), 10, 10))
        assert out.shape == (10, 10, 3)
        assert out[1:9, 1:9].min() == 200
        assert np.asarray(fit(Image.fromarray(pixels), 60, 60))[3:57, 3:57].min() == 200
    same = noise(0, 12)
    assert fit(same, 12, 12) is same


def test_hidden_and_other_files_are_ignored(tmp_path):
    write_folder(tmp_path, "train", ["a", "b"], 2, 8)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "list.txt").write_text("a b")
    (tmp_path / "train" / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "train" / "a" / "._000.png").write_text("x")
    data = load(tmp_path, image_size=8)
    assert (data.class_names, len(data.labels)) == (("a", "b"), 4)


def empty(folder):
    (folder / "train" / "c").mkdir()
    (folder / "train" / "c" / "notes.txt").write_text("no image")


def broken(*names):
    def breaks(folder):
        for name in names:
            (folder / "train" / name).write_bytes((folder / "train" / name).read_bytes()[:60])

    return breaks


MISTAKES = [
    (shutil.rmtree, "there is no folder {0}; name a folder that contains one folder per class"),
    (lambda f: (f / "train").rename(f / "Train"), "{0} has no folder train/, but Train/; name the folder of the"),
    (lambda f: (f / "train").rename(f / "pics"), "{0} has only one class, 'pics'; if its folders are the classes, wri"),
    (lambda f: [shutil.rmtree(f / "train" / c) for c in "ab"], "{0}/train has no class folders"),
    (empty, "the class folder {0}/train/c contains no images"),
    (lambda f: shutil.rmtree(f / "train" / "a"), "{0}/train has only one class, 'b'"),
    (lambda f: [p.unlink() for p in sorted((f / "train" / "b").iterdir())[1:]], "{0}/train/b has 1 image; a class"),
    (broken("a/001.png"), "cannot read the image {0}/train/a/001.png ("),
    (broken("a/001.png", "b/000.png", "b/001.png", "b/002.png"), "4 images are broken: cannot read the image {0}/"),
    (lambda f: write_folder(f, "test", ["a", "zebra"], 1, 8), "{0}/test has the class folder 'zebra', which"),
    (lambda f: (f / "val").mkdir(), "{0}/val has no images in class folders"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
@pytest.mark.parametrize("size", [8, 100])
def test_mistakes_are_reported_in_one_line(tmp_path, spoil, message, size):
    folder = tmp_path / "set"
    write_folder(folder, "train", ["a", "b"], 3, 8)
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load(folder, image_size=size)
    assert message.format(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    if "4 images" in message:
        assert "; and 1 more. All of them are listed in " in str(caught.value)
        assert all(name in str(caught.value) for name in ("a/001.png", "b/000.png", "b/001.png"))


# --- class folders without train/ and test/ ---


def test_a_tenth_of_plain_class_folders_is_held_out(tmp_path):
    write_folder(tmp_path / "set", "", ["a", "b"], 30, 8)
    messages = []
    data = load(tmp_path / "set", image_size=8, progress=messages.append)
    assert (data.train_size, data.val_size, data.test_size) == (49, 5, 6)
    assert "held out as the test part: 6 images, a tenth, chosen by their contents" in messages
    assert data.describe()["test_part"] == "a tenth of the class folders, chosen by contents"
    assert "test_part" not in load_dataset("digits").describe()
    assert next(data.batches("test"))[1].tolist() == [0] * 3 + [1] * 3
    for path in sorted((tmp_path / "set" / "b").iterdir())[2:]:
        path.unlink()
    with pytest.raises(InputError, match=r"a class needs at least 3, to train on, validate on and test on\."):
        load(tmp_path / "set", image_size=8)


def test_the_parts_follow_from_contents_and_not_from_names(tmp_path):
    paths = write_folder(tmp_path / "here", "", ["a", "b"], 30, 8)
    for number, path in enumerate(paths):
        copy = tmp_path / "there" / path.parent.name / f"{97 * number % 61:02}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    here, there = load(tmp_path / "here", image_size=8), load(tmp_path / "there", image_size=8)
    assert here.fingerprint == there.fingerprint
    for part in ("train", "val", "test"):
        assert torch.equal(next(here.batches(part))[0], next(there.batches(part))[0])
    images = {part: {x.numpy().tobytes() for x in next(here.batches(part))[0]} for part in ("train", "val", "test")}
    assert len(images["train"] | images["val"] | images["test"]) == 60, "no image is in two parts"
    other_split = load(tmp_path / "here", image_size=8, split_seed=1)
    other_split = replace(other_split, mean=here.mean, std=here.std)
    assert {x.numpy().tobytes() for x in next(other_split.batches("test"))[0]} == images["test"]


def test_a_changed_test_image_changes_the_fingerprint(tmp_path):
    paths = write_folder(tmp_path / "set", "", ["a", "b"], 5, 8)
    first, streamed = load(tmp_path / "set", image_size=8), load(tmp_path / "set", image_size=100)
    pixels, _ = first.open_test()
    (held_out,) = (path for path in paths if np.array_equal(to_array(Image.open(path)), pixels.images[0]))
    for seed in range(100):  # until the changed image is held out again, since its contents decide
        noise(10**7 + seed, 8).save(held_out)
        second = load(tmp_path / "set", image_size=8)
        if np.array_equal(raw(second), raw(first)):
            break
    assert np.array_equal(raw(second), raw(first))
    assert second.fingerprint != first.fingerprint
    assert load(tmp_path / "set", image_size=100).fingerprint != streamed.fingerprint


def test_a_part_of_a_data_set_is_answered_with_the_right_path(tmp_path):
    write_folder(tmp_path / "set", "train", ["a", "b"], 3, 8)
    write_folder(tmp_path / "set", "test", ["a", "b"], 3, 8)
    for part in ("train", "test"):
        with pytest.raises(InputError, match="one part of a data set; name the folder that contains it") as caught:
            load(tmp_path / "set" / part)
        assert str(caught.value).endswith(f": folder:{tmp_path}/set.")


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path / "set", "", ["bus", "train"], 5, 8)
    assert load(tmp_path / "set", image_size=8).class_names == ("bus", "train")


@pytest.mark.parametrize("part", ["train", ""])
def test_a_summary_equals_the_loaded_data(tmp_path, reads, part):
    write_folder(tmp_path / "set", part, ["a", "b", "c"], 15, 16)
    if part:
        write_folder(tmp_path / "set", "test", ["a"], 2, 16)
    summary = summarize(f"folder:{tmp_path}/set", subset=20, image_size=8)
    assert not reads
    complete = summarize(f"folder:{tmp_path}/set", image_size=8)
    assert not reads
    data, complete_data = (load(tmp_path / "set", subset=subset, image_size=8) for subset in (20, None))
    for name in ("title", "classes", "train_size", "val_size", "test_size", "image_size", "augmentation"):
        assert getattr(summary, name) == getattr(data, name), name
        assert getattr(complete, name) == getattr(complete_data, name), name
    assert summary.describe() == (
        f"set: 3 classes, 17 training and 3 validation images"
        f"{'' if part else ' (5 more are held out as the test part)'} resized to 8×8, shifted and mirrored at random"
    )
    with pytest.raises(InputError, match="subset must be between 6"):
        summarize(f"folder:{tmp_path}/set", subset=5)


@pytest.mark.parametrize("size", [8, 100])
def test_test_files_are_read_only_for_the_test_part(tmp_path, reads, size):
    write_folder(tmp_path, "train", ["a", "b"], 10, 8)
    for path in write_folder(tmp_path, "test", ["a", "b"], 2, 8):
        path.write_bytes(b"poison")
    write_folder(tmp_path, "val", ["a"], 1, 8)  # test/ comes before val/
    data = load(tmp_path, image_size=size)
    list(data.train_batches(4, torch.Generator()))
    list(data.batches("val"))
    data.with_validation_in_training().describe()
    assert data.test_size == 4
    assert not [path for path in reads if "test" in path.parts]
    with pytest.raises(InputError, match=r"/test/a/000\.png"):
        list(data.batches("test"))


def test_a_second_load_decodes_nothing(tmp_path, reads):
    write_folder(tmp_path, "train", ["a", "b"], 5, 8)
    write_folder(tmp_path, "test", ["a", "b"], 2, 8)
    messages = []
    first = load(tmp_path, image_size=8, progress=messages.append)
    assert len(reads) == 10
    assert messages == ["reading 10 images", "decoding 10 images"]
    list(first.batches("test"))
    assert len(reads) == 14
    second = load(tmp_path, image_size=8, split_seed=3, progress=messages.append)
    list(second.batches("test"))
    assert len(reads) == 14
    assert messages[2:] == ["reading 4 images", "decoding 4 images"]
    np.testing.assert_array_equal(raw(second), raw(first))
    assert second.fingerprint == first.fingerprint


def test_changed_file_is_decoded_again(tmp_path):
    path = write_folder(tmp_path, "train", ["a", "b"], 3, 8, ending="bmp")[0]  # every bmp has the same size
    first = load(tmp_path, image_size=8)
    stat = path.stat()
    Image.new("RGB", (8, 8), "white").save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = load(tmp_path, image_size=8)
    assert raw(second)[0].min() == 255
    assert raw(first)[0].min() < 255  # the earlier entry stays as it was
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize("size", [8, 100])
def test_fingerprint_depends_on_contents_and_not_on_location(tmp_path, size):
    write_folder(tmp_path / "here", "train", ["a", "b"], 5, 8)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    first = load(tmp_path / "here", image_size=size)
    second = load(tmp_path / "there", image_size=size, subset=6, split_seed=9)
    assert first.fingerprint == second.fingerprint
    (tmp_path / "there" / "train" / "b").rename(tmp_path / "there" / "train" / "c")
    assert load(tmp_path / "there", image_size=size).fingerprint != first.fingerprint


def entries(own_cache):
    """Return the decoded parts in the cache, and temporary files."""
    return [path for path in own_cache.iterdir() if path.is_dir() or path.name.startswith(".")]


def test_killed_process_leaves_no_partial_entry(tmp_path, own_cache, monkeypatch):
    write_folder(tmp_path / "set", "train", ["a", "b"], 3, 8)

    def killed(*args):
        raise KeyboardInterrupt

    for step in ("write_text", "replace"):  # between the files, and before the entry is renamed
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, killed)
            with pytest.raises(KeyboardInterrupt):
                load(tmp_path / "set", image_size=8)
        assert entries(own_cache) == []
    assert len(load(tmp_path / "set", image_size=8).labels) == 6


def test_damaged_entry_is_rewritten(tmp_path, own_cache, reads):
    write_folder(tmp_path / "set", "train", ["a", "b"], 3, 8)
    first = raw(load(tmp_path / "set", image_size=8)).copy()
    stored = next(own_cache.glob("*/images.npy"))
    stored.write_bytes(stored.read_bytes()[:200])
    for _ in range(2):
        np.testing.assert_array_equal(raw(load(tmp_path / "set", image_size=8)), first)
    assert len(reads) == 12


def test_the_first_of_two_writers_wins(tmp_path):
    decoded = cache.measured(np.zeros((2, 1, 4, 4), dtype=np.uint8), np.arange(2), ("a", "b"), False)
    entries = []
    for _ in range(2):
        cache._write(tmp_path / "entry", decoded)
        entries.append((tmp_path / "entry" / "images.npy").stat().st_ino)
    assert entries[0] == entries[1]


def test_concurrent_loads_share_one_entry(tmp_path, own_cache):
    write_folder(tmp_path / "set", "train", ["a", "b"], 20, 8)
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(lambda _: load(tmp_path / "set", image_size=8), range(6)))
    assert all(np.array_equal(raw(data), raw(loaded[0])) for data in loaded)
    assert len(entries(own_cache)) == 1


@pytest.mark.parametrize("size", [8, 100])
def test_loading_continues_without_a_writable_cache(tmp_path, own_cache, size):
    write_folder(tmp_path / "set", "train", ["a", "b"], 3, 8)
    own_cache.write_text("a file where the folder should be")
    messages = []
    data = load(tmp_path / "set", image_size=size, progress=messages.append)
    assert len(list(data.train_batches(2, torch.Generator()))) == 2
    assert any(line.startswith(f"cannot write the cache {own_cache} (") for line in messages)


def test_full_disk_leaves_no_partial_entry(tmp_path, own_cache, monkeypatch):
    write_folder(tmp_path / "set", "train", ["a", "b"], 3, 8)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    messages = []
    assert len(load(tmp_path / "set", image_size=8, progress=messages.append).labels) == 6
    assert "No space left on device" in messages[-1]
    assert entries(own_cache) == []
