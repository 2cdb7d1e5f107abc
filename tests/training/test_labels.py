"""Tests of training with several labels per image and with class weights."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

import dnas
from dnas.cli import main
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.training.distributed import ALONE
from dnas.training.evaluate import evaluate, evaluate_classes
from dnas.training.fit import _criterion, class_weights
from dnas.training.recipe import Recipe, make_recipe
from tests.support.data_files import noise

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-0.5, 3.0, -2.0]])


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DNAS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def images(count):
    """Return images whose left half is bright for label 0, and whose right half is bright for label 1."""
    labels = np.random.default_rng(0).integers(0, 2, (count, 2))
    x = np.random.default_rng(1).integers(0, 60, (count, 8, 8))
    x[:, :, :4] += 180 * labels[:, :1, None]
    x[:, :, 4:] += 180 * labels[:, 1:, None]
    return x.astype(np.uint8), labels


def stub(labels):
    labels = torch.as_tensor(labels)
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    return SimpleNamespace(
        labels=labels, train_index=torch.arange(len(labels)), classes=classes, multilabel=labels.ndim == 2
    )


def test_recipes_without_class_weights_are_written_as_before():
    plain = Recipe("fast", 3)
    assert "class_weights" not in plain.to_dict()
    assert Recipe.from_dict(plain.to_dict()) == plain
    balanced = Recipe("fast", 3, class_weights="balanced")
    assert Recipe.from_dict(json.loads(json.dumps(balanced.to_dict()))) == balanced
    with pytest.raises(InputError, match="class_weights must be one of none, balanced, but got 'yes'"):
        Recipe("fast", 3, class_weights="yes")


def test_balanced_weights_have_a_mean_of_one_over_the_training_images():
    data = stub([0] * 6 + [1] * 3 + [2])
    weights = class_weights(Recipe("fast", 1, class_weights="balanced"), data)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights[data.labels].mean() == pytest.approx(1)
    assert class_weights(Recipe("fast", 1), data) is None
    several = class_weights(Recipe("fast", 1, class_weights="balanced"), stub([[1, 0], [0, 0], [0, 1], [0, 1]]))
    assert several.tolist() == pytest.approx([3, 1])


def test_the_loss_of_a_class_is_multiplied_by_its_weight():
    y, weights = torch.tensor([0, 2]), torch.tensor([0.5, 1.0, 3.0])
    each = functional.cross_entropy(LOGITS, y, reduction="none")
    assert _criterion(Recipe("fast", 1), ALONE, weights)(LOGITS, y, 2) == pytest.approx(
        (0.5 * each[0] + 3 * each[1]) / 2
    )
    assert torch.equal(_criterion(Recipe("fast", 1), ALONE, None)(LOGITS, y, 2), functional.cross_entropy(LOGITS, y))


def test_the_loss_of_several_labels_is_their_mean_binary_cross_entropy():
    y = torch.tensor([[1, 0, 1], [0, 0, 0]])
    p = LOGITS.sigmoid().double()
    each = -(y * p.log() + (1 - y) * (1 - p).log())
    assert _criterion(Recipe("fast", 1), ALONE, None)(LOGITS, y, 2).item() == pytest.approx(each.mean().item())
    weighted = each * torch.where(y == 1, torch.tensor([2.0, 1.0, 5.0]), torch.tensor(1.0))
    loss = _criterion(Recipe("fast", 1), ALONE, torch.tensor([2.0, 1.0, 5.0]))(LOGITS, y, 2)
    assert loss.item() == pytest.approx(weighted.mean().item())
    smooth = 0.8 * y + 0.1
    expected = functional.binary_cross_entropy_with_logits(LOGITS, smooth)
    assert _criterion(Recipe("fast", 1, label_smoothing=0.2), ALONE, None)(LOGITS, y, 2) == pytest.approx(expected)


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3]


def test_the_error_of_several_labels_is_the_fraction_of_wrong_labels():
    y = torch.tensor([[1, 1, 1], [0, 0, 1]])
    data = SimpleNamespace(multilabel=True, classes=3, batches=lambda part, size: [(LOGITS[:, None, None], y)])
    loss, error = evaluate(Fixed(), data, "val")
    assert error == pytest.approx(3 / 6)
    assert loss == pytest.approx(functional.binary_cross_entropy_with_logits(LOGITS, y.float()).item())
    assert evaluate_classes(Fixed(), data, "val")[2] == [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, 0], [1, 1]]]


def test_a_run_on_several_labels_from_training_to_prediction(capsys):
    x, y = images(300)
    source = dnas.Images(x, y, classes=["left", "right"]).source()
    train = "train densenet-bc:layers=2,k=6 --epochs 6 --batch-size 20 --learning-rate 0.2 --augment none --out run"
    assert main([*train.split(), "--dataset", source]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--part", "test", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["error"] < 0.1, "a network that guesses is wrong for half of the labels"
    assert [row["name"] for row in result["classes"]] == ["left", "right"]
    assert all(sum(map(sum, table)) == result["images"] for table in result["confusion"])
    assert main(["eval", "run"]) == 0
    assert "label   images    error   missed    added\nleft" in capsys.readouterr().out
    noise(0, 8, 1).point(lambda value: 230).save("both.png")
    assert main(["predict", "run", "both.png", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    assert all(entry["probability"] > 0.5 for entry in row["classes"]), "labels do not exclude each other"
    one = dnas.Images(x, y[:, 0], classes=["left", "right"]).source()
    assert main(["eval", "run", "--dataset", one]) == 2
    assert "is a network for several labels per image, but images-" in capsys.readouterr().err


def test_a_run_with_other_class_weights_is_another_run(capsys):
    from dnas.data.catalog import data_info
    from dnas.training.fit import fit

    x, y = images(60)
    data = load_dataset(dnas.Images(x, y[:, 0]).source())
    spec = dnas.parse_name("densenet-bc:layers=1,k=2,channels=1,size=8,classes=2")
    recipes = [make_recipe("fast", data_info("digits"), epochs=1, class_weights=kind) for kind in ("none", "balanced")]
    from pathlib import Path

    digests = [
        fit(spec, data, recipe, seed=(0, 0), folder=Path(recipe.class_weights)).weights_digest for recipe in recipes
    ]
    assert digests[0] != digests[1]
    for recipe, other in (recipes, recipes[::-1]):
        with pytest.raises(InputError, match=f"with class_weights={other.class_weights} \\(now {recipe.class_weights}"):
            fit(spec, data, recipe, seed=(0, 0), folder=Path(other.class_weights))
