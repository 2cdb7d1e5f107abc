"""Tests of data sets that the package `datasets` has saved to disk."""

import sys

import numpy as np
import pytest

from dnas.data import images, load_dataset
from dnas.data.summary import summarize
from dnas.errors import InputError
from tests.support.data_files import noise


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets \(.*\); install it by pip install 'dnas\[hf\]'"):
        summarize(f"hf:{tmp_path}")


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self):
        self.datasets = pytest.importorskip("datasets")

    def table(self, count, labels, label="label", image="image", channels=3, **more):
        columns = {image: [noise(i, 8, channels) for i in range(count)], label: labels, **more}
        return self.datasets.Dataset.from_dict(columns).cast_column(image, self.datasets.Image())

    def load(self, data, folder, **options):
        data.save_to_disk(folder)
        return load_dataset(f"hf:{folder}", image_size=8, **options)

    def test_splits_become_parts(self, tmp_path, monkeypatch):
        names = self.datasets.ClassLabel(names=["zebra", "ant"])
        parts = {"train": 20, "validation": 6, "test": 4}
        data = self.datasets.DatasetDict(
            {name: self.table(n, [i % 2 for i in range(n)]).cast_column("label", names) for name, n in parts.items()}
        )
        loaded = self.load(data, tmp_path / "set")
        assert (loaded.train_size, loaded.val_size, loaded.test_size) == (20, 6, 4)
        assert (loaded.class_names, loaded.labels[:4].tolist()) == (("zebra", "ant"), [0, 1, 0, 1])
        index = loaded.train_index.tolist()
        np.testing.assert_array_equal(
            loaded.pixels.images[index[3]].permute(1, 2, 0), np.asarray(noise(3, 8)), "encoded without loss"
        )
        monkeypatch.setattr(images, "read_image", None)
        found = summarize(f"hf:{tmp_path / 'set'}", image_size=8)
        assert (found.train_size, found.val_size, found.test_size) == (20, 6, 4)
        again = load_dataset(f"hf:{tmp_path / 'set'}", image_size=8)
        assert again.fingerprint == loaded.fingerprint, "from the cache"

    def test_a_plain_data_set_has_a_tenth_held_out_in_whole_groups(self, tmp_path):
        labels = [["cat", "dog"][i % 2] for i in range(60)]
        loaded = self.load(self.table(60, labels, channels=1, group=[i // 3 for i in range(60)]), tmp_path / "set")
        assert (loaded.channels, loaded.class_names) == (1, ("cat", "dog"))
        assert loaded.groups == (60 - loaded.test_size) // 3
        assert loaded.test_size % 3 == loaded.val_size % 3 == 0

    def test_lists_are_several_labels_and_numbers_are_sorted_by_value(self, tmp_path):
        several = self.load(
            self.table(30, [[[], ["a"], ["a", "b"]][i % 3] for i in range(30)], "labels"), tmp_path / "a"
        )
        assert (several.multilabel, several.class_names) == (True, ("a", "b"))
        numbers = self.load(self.table(33, [i % 11 for i in range(33)]), tmp_path / "b")
        assert numbers.class_names == tuple(map(str, range(11)))

    def test_mistakes_are_reported_in_one_line(self, tmp_path):
        table = self.table(8, [i % 2 for i in range(8)])
        cases = [
            (table.rename_column("label", "kind"), "has no column of labels; one must be a ClassLabel feature, or cal"),
            (
                table.remove_columns("image"),
                "has no column of images; one must be an Image feature, but the columns are",
            ),
            (self.datasets.DatasetDict({"dev": table}), "has the split 'dev'; splits must be called train, validation"),
            (self.table(4, [None, 1, 0, 1]), "has the label None; labels are classes, texts or whole numbers"),
        ]
        for number, (data, message) in enumerate(cases):
            with pytest.raises(InputError, match=message) as caught:
                self.load(data, tmp_path / str(number))
            assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match=r"cannot read .*nowhere \(.*\); name a folder that Dataset.save_to_disk"):
            load_dataset(f"hf:{tmp_path}/nowhere")
