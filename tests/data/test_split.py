"""Tests of the catalog, of splits and subsets, and of digits."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from dnas.data import load_dataset, sources
from dnas.data.catalog import DATASETS, choose_augmentation, choose_image_size, data_info
from dnas.data.split import SUBSET, apportion, choose, validation
from dnas.errors import InputError


def parts(data):
    return set(data.train_index.tolist()), set(data.val_index.tolist())


def test_the_catalog_imports_no_torch():
    code = "import sys, dnas.data.catalog; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_catalog_holds_the_epochs_and_batch_sizes_of_the_paper():
    assert {name: (i.paper_epochs, i.paper_batch_size) for name, i in DATASETS.items()} == {
        "digits": (300, 64),
        "cifar10": (300, 64),
        "cifar100": (300, 64),
        "svhn": (40, 64),
        "svhn:train": (40, 64),
        "imagenet": (90, 256),
    }


def test_data_info_of_folders_and_unknown_names():
    info = data_info("folder:~/pictures/pets")
    assert (info.title, info.classes, info.channels, info.image_size) == ("pets", None, None, None)
    with pytest.raises(InputError, match="Did you mean cifar10"):
        data_info("cifar-10")
    with pytest.raises(InputError, match="has no path"):
        data_info("folder:")


def test_default_sizes_and_augmentations():
    folder = data_info("folder:x")
    assert [choose_image_size(folder, None, stem) for stem in ("small", "imagenet")] == [32, 224]
    assert choose_image_size(data_info("cifar10"), None, "imagenet") == 32
    assert [choose_augmentation(folder, size) for size in (96, 97)] == ["crop+flip", "resized-crop+flip"]
    assert [choose_augmentation(data_info("imagenet"), size) for size in (64, 224)] == [
        "crop+flip",
        "resized-crop+flip",
    ]
    assert choose_augmentation(data_info("svhn"), 128) == "none"
    with pytest.raises(InputError, match="image_size above 96, but got 32"):
        choose_augmentation(folder, 32, "resized-crop+flip")
    with pytest.raises(InputError, match=r"no augmentation 'flip'"):
        choose_augmentation(folder, 32, "flip")
    with pytest.raises(InputError, match="at least 1 pixel, but got 0"):
        choose_image_size(folder, 0, "small")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=2, max_size=12), st.data())
def test_apportion_sums_to_the_count_and_is_near_each_share(sizes, data):
    sizes = np.array(sizes)
    minimum, spare = data.draw(st.sampled_from([(1, 1), (2, 0)]))
    count = data.draw(st.integers(minimum * len(sizes), int((sizes - spare).sum())))
    counts = apportion(sizes, count, minimum, spare)
    assert counts.sum() == count
    assert (counts >= minimum).all()
    assert (counts <= sizes - spare).all()
    share = sizes * count / sizes.sum()
    assume((share >= minimum).all())
    assume((share <= sizes - spare).all())
    assert (abs(counts - share) < 1).all()


def test_apportion_keeps_the_spare_images():
    assert apportion(np.array([2, 60]), 60, 1, 1).tolist() == [1, 59]


def test_choice_is_equal_on_every_machine():
    # Golden numbers. If they changed, old records would refer to another validation part.
    labels = np.arange(1000) % 10
    assert validation(labels, 0)[:8].tolist() == GOLDEN_VALIDATION
    assert choose(labels, 20, 3, SUBSET, 2, 0)[:8].tolist() == GOLDEN_SUBSET


GOLDEN_VALIDATION = [2, 3, 11, 20, 48, 59, 69, 88]
GOLDEN_SUBSET = [14, 34, 122, 123, 323, 355, 380, 451]


def test_digits_are_split_into_disjoint_parts():
    data, reloaded, other = load_dataset("digits"), load_dataset("digits"), load_dataset("digits", split_seed=1)
    assert (data.train_size, data.val_size, data.test_size) == (1294, 144, 359)
    assert sum(len(y) for _, y in data.batches("test")) == 359
    train, val = parts(data)
    assert not train & val
    assert train | val == set(range(1797 - 359))
    assert parts(reloaded) == (train, val)
    assert parts(other)[1] != val
    labels = data.labels.numpy()
    share = np.bincount(labels) / 10
    assert (abs(np.bincount(labels[data.val_index]) - share) < 1).all()
    # The held-out part is equal for every split_seed and shares no image with training.
    held = [torch.cat([x for x, _ in replace_scale(d).batches("test")]) for d in (data, other)]
    assert torch.equal(*held)
    seen = {x.numpy().tobytes() for x in data.pixels.images}
    images = data.open_test()[0].images
    assert sum(x.numpy().tobytes() in seen for x in images) <= 1  # two digits may be drawn alike


def test_digits_equal_those_of_scikit_learn(monkeypatch):
    """Both paths return the data of `load_digits`: reading its file, and calling it if the file is not found."""
    known = load_digits()
    read = [sources._digits_table()]
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    read.append(sources._digits_table())
    for pixels, labels in read:
        np.testing.assert_array_equal(pixels, known.data)
        np.testing.assert_array_equal(labels, known.target)


def replace_scale(data):
    from dataclasses import replace

    return replace(data, mean=(0.0,), std=(1.0,))


def test_split_depends_only_on_split_seed():
    base = parts(load_dataset("digits"))
    torch.manual_seed(123)
    np.random.seed(5)
    assert parts(load_dataset("digits", augmentation="none", stem="imagenet", image_size=12)) == base
    with pytest.raises(InputError, match="split_seed must not be negative"):
        load_dataset("digits", split_seed=-1)


@pytest.mark.parametrize("count", [20, 101, 1000, 1438])
def test_subset_is_exact_and_stratified(count):
    data = load_dataset("digits", subset=count)
    assert data.train_size + data.val_size == count == len(data.labels)
    counts = np.bincount(data.labels.numpy(), minlength=10)
    assert counts.max() - counts.min() <= 0.05 * counts.max() + 1
    assert len(set(data.labels[data.val_index].tolist())) == 10
    assert data.fingerprint == load_dataset("digits").fingerprint


@pytest.mark.parametrize("count", [19, 1439])
def test_subset_out_of_bounds_is_refused(count):
    with pytest.raises(InputError, match=rf"between 20 \(two images per class\) and 1438 \(all\), but got {count}"):
        load_dataset("digits", subset=count)


def test_normalisation_is_measured_only_on_the_training_part():
    data = load_dataset("digits", subset=40)
    x = torch.cat([x for x, _ in data.batches("train")])
    assert abs(x.mean()) < 1e-5
    assert abs(x.std(correction=0) - 1) < 1e-5
    both = torch.cat([x, *(x for x, _ in data.batches("val"))])
    assert abs(both.mean()) > 1e-4
    whole = data.with_validation_in_training()
    assert (whole.train_size, whole.val_size) == (40, 0)
    assert whole.mean != data.mean
    assert abs(torch.cat([x for x, _ in whole.batches("train")]).mean()) < 1e-5
    with pytest.raises(InputError, match="the val part of digits is empty"):
        whole.batches("val")


def test_description_is_json():
    facts = load_dataset("digits").describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["class_names"] == [str(i) for i in range(10)]
    assert (facts["image_size"], facts["size_rule"], facts["augmentation"]) == (8, "as stored", "crop")
    assert len(facts["fingerprint"]) == 64


def test_digits_at_another_size():
    data = load_dataset("digits", image_size=32, subset=30)
    assert data.pixels.images.shape == (30, 1, 32, 32)
    assert data.size_rule == "shorter side resized to 32 (bilinear, antialiased), centre crop"
    x, _ = next(data.batches("test", 7))
    assert x.shape == (7, 1, 32, 32)
