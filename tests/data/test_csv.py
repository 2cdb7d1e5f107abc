"""Tests of data sets from a CSV file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dnas.data import images, load_dataset
from dnas.data.listing import held_out_units
from dnas.data.summary import summarize
from dnas.data.table import list_csv
from dnas.errors import InputError
from tests.support.data_files import noise


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))


def write(folder, rows, header="path,label", channels=3):
    """Write distinct images and a CSV file of `rows`, whose first cell is the path of an image."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        path = folder / (row.split(",")[0] or "none.png")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(number, 8, channels).save(path)
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "labels.csv"


def load(file, **options):
    return load_dataset(f"csv:{file}", image_size=8, **options)


def rows_of(count, ending="", labels="ab"):
    return [f"pics/{i:03}.png,{labels[i % len(labels)]}{ending.format(i=i)}" for i in range(count)]


def pictures(data, part):
    plain = replace(data, mean=(0.0,) * data.channels, std=(1.0,) * data.channels)
    return {x.numpy().tobytes() for batch, _ in plain.batches(part) for x in batch}


def test_a_tenth_of_a_plain_list_is_held_out_for_any_order_of_rows(tmp_path):
    rows = rows_of(60)
    messages = []
    data = load(write(tmp_path / "here", rows), progress=messages.append)
    assert (data.train_size, data.val_size, data.test_size) == (49, 5, 6)
    assert (data.class_names, data.title, data.name) == (("a", "b"), "labels.csv", f"csv:{tmp_path}/here/labels.csv")
    assert "held out as the test part: 6 images, a tenth, chosen by their contents" in messages
    write(tmp_path / "here", rows[::-1])
    other = load(tmp_path / "here" / "labels.csv")
    assert other.fingerprint == data.fingerprint
    assert all(pictures(other, part) == pictures(data, part) for part in ("train", "val", "test"))
    write(tmp_path / "here", [*rows[:-1], rows[-1].replace("b", "a")])
    assert load(tmp_path / "here" / "labels.csv").fingerprint != data.fingerprint


def test_the_column_split_states_the_parts(tmp_path, monkeypatch):
    splits = ["train"] * 7 + ["Val", "validation", "test"]
    rows = [f"{i:02}.png,{'ab'[i % 2]},note {i},{splits[i % 10]}" for i in range(20)]
    file = write(tmp_path, rows, "path,label,remark,split")
    monkeypatch.setattr(images, "read_image", None)
    found = summarize(f"csv:{file}", image_size=8)
    assert (found.train_size, found.val_size, found.test_size, found.whole) == (14, 4, 2, False)
    monkeypatch.undo()
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    data, other_seed = load(file), load(file, split_seed=7)
    assert (data.train_size, data.val_size, data.test_size) == (14, 4, 2)
    assert pictures(data, "val") == pictures(other_seed, "val")
    assert not pictures(data, "val") & pictures(data, "train")
    assert torch.bincount(load(file, subset=8).labels).tolist() == [4, 4]
    moved = write(tmp_path, [row.replace("Val", "train") for row in rows], "path,label,remark,split")
    assert load(moved).fingerprint != data.fingerprint


def test_no_group_is_on_both_sides_of_a_split(tmp_path):
    rows = rows_of(300, ",patient {i}", "abc")
    rows = [f"{row.rsplit(' ', 1)[0]} {i // 3 % 40}" for i, row in enumerate(rows)]
    file = write(tmp_path, rows, "path,label,group")
    train, test = list_csv(file)
    assert test is None
    groups = dict(zip(train.paths, train.groups.tolist(), strict=True))
    held_out = {groups[train.paths[i]] for i in held_out_units(train)}
    data, other = load(file), load(file, split_seed=1)
    assert (data.groups, data.test_size) == (40 - len(held_out), sum(groups[path] in held_out for path in train.paths))
    found = summarize(f"csv:{file}", image_size=8)
    assert (found.train_size, found.val_size, found.test_size) == (data.train_size, data.val_size, data.test_size)
    by_picture = {noise(i, 8).tobytes(): group for i, group in enumerate(groups.values())}
    sides = []
    for split in (data, other):
        sides.append({})
        for part in ("train", "val", "test"):
            sides[-1][part] = {by_picture[p] for p in raw_pictures(split, part)}
        train_side, val_side, test_side = sides[-1].values()
        assert len(train_side | val_side | test_side) == len(train_side) + len(val_side) + len(test_side) == 40
        counts = np.bincount(split.labels[split.val_index])
        assert set(counts.tolist()) <= set(range(8, 13)), "each class has about a tenth"
    assert sides[0]["val"] != sides[1]["val"]
    assert sides[0]["test"] == sides[1]["test"]


def raw_pictures(data, part):
    if part == "test":
        return {x.permute(1, 2, 0).contiguous().numpy().tobytes() for x in data.open_test()[0].images}
    index = data.train_index if part == "train" else data.val_index
    return {data.pixels.images[i].permute(1, 2, 0).contiguous().numpy().tobytes() for i in index}


def test_a_class_in_a_single_group_stays_in_training_and_is_reported(tmp_path):
    rows = [f"{row},{i // 4}" for i, row in enumerate(rows_of(40))]
    rows += [f"rare{i}.png,c,rare" for i in range(4)]
    messages = []
    data = load(write(tmp_path, rows, "path,label,group"), progress=messages.append)
    assert "not in the validation part: 1 class (c)" in messages
    assert (data.labels[data.train_index] == 2).sum() == 4


def test_several_labels_per_image(tmp_path):
    labels = ["cat;dog", "dog|bird", "", "cat", "bird", "dog"]
    rows = [f"{i:03}.png,{labels[i % 6]}" for i in range(120)]
    data = load(write(tmp_path, rows))
    assert data.class_names == ("bird", "cat", "dog")
    assert data.multilabel
    assert data.describe()["multilabel"] is True
    assert (data.train_size + data.val_size + data.test_size, data.labels.shape[1]) == (120, 3)
    assert 8 <= data.val_size <= 14
    assert data.labels[data.val_index].sum(dim=0).min() >= 2
    assert (data.labels.sum(dim=1) == 0).any()
    wider = data.with_classes(("ant", "bird", "cat", "dog"))
    assert torch.equal(wider.labels, torch.cat([torch.zeros_like(data.labels[:, :1]), data.labels], dim=1))


def test_wide_grey_images_keep_their_levels(tmp_path):
    from PIL import Image

    for i in range(20):
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 50 + i).save(tmp_path / f"{i}.png")
    file = write(tmp_path, [f"{i}.png,{'ab'[i % 2]}" for i in range(20)])
    data = load(file)
    assert (data.channels, data.levels[0] < 20, data.levels[1] > 3150) == (1, True, True)


MISTAKES = [
    ("path,class", [], "has no column 'label'; its first line must name the columns path and label, and optionally sp"),
    ("", [], "has no column 'path'; its first line must name"),
    ("path,label,label", [], "has the column 'label' twice; rename one of them"),
    ("path,label", [], "labels.csv lists no images"),
    ("path,label", ["0.png,a", "1.png,a"], "has only one class, 'a'; classification needs at least two"),
    (
        "path,label",
        ["0.png,a,b"],
        "line 2 of {0} has 3 cells, but the first line has 2; quote cells that contain a comma",
    ),
    ("path,label", ["0.png,a", "./0.png,b"], "has the image 0.png twice, in lines 2 and 3; remove one line"),
    ("path,label", ["0.png,a", "1.png,"], "line 3 of {0} has no label; name the class of the image"),
    ("path,label", ["0.png,a;a", "1.png,b"], "line 2 of {0} has the same label twice: a, a"),
    ("path,label", ["0.png,a", ",b"], "line 3 of {0} has no path; name an image file"),
    (
        "path,label",
        ["0.png,a", "1.png,b"],
        "the class 'a' of {0} has 1 image; a class needs at least 3, to train on, va",
    ),
    ("path,label,split", ["0.png,a,dev"], "line 2 of {0} has the split 'dev'; it must be train, val or test"),
    (
        "path,label,split",
        ["0.png,a,train", "1.png,b,train", "2.png,c,test"],
        "line 4 of {0} has the label 'c', which no",
    ),
    ("path,label,group", ["0.png,a,x", "1.png,b,"], "line 3 of {0} has no group; name one, such as a number"),
    ("path,label,group", ["0.png,a,x", "1.png,b,x"], "has too few groups to hold out test images; use more groups"),
    (
        "path,label,split,group",
        ["0.png,a,train,p7", "1.png,b,train,p8", "2.png,a,test,p7"],
        "{0} has the group 'p7' in two splits, train and test; a group belongs to a single split",
    ),
]


@pytest.mark.parametrize(("header", "rows", "message"), MISTAKES)
def test_mistakes_are_reported_in_one_line(tmp_path, header, rows, message):
    file = write(tmp_path, [row for row in rows if row], header)
    with pytest.raises(InputError) as caught:
        load(file)
    assert message.format(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_images_are_named(tmp_path):
    file = write(tmp_path, rows_of(12))
    (tmp_path / "pics" / "003.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"cannot read the image {tmp_path}/pics/003.png \("):
        load(file)
    (tmp_path / "pics" / "003.png").unlink()
    with pytest.raises(
        InputError, match=rf"cannot read the image {tmp_path}/pics/003.png of line 5 of {file} \(No such"
    ):
        summarize(f"csv:{file}")
    with pytest.raises(InputError, match=r"cannot read .*nowhere.csv \(No such file or directory\); name a CSV file"):
        load(tmp_path / "nowhere.csv")
