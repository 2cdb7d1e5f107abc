"""Tests of metrics that a study measures only if they are its objective."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnas.errors import InputError
from dnas.space.objectives import WORST, extra_metrics, read_objectives
from dnas.study.record import TrialRecord
from dnas.training.checkpoint import Epoch
from dnas.training.metrics import MEASURED, check_measurable, function_at, intervals, measure, path_of

LABELS = np.array([0, 0, 0, 1, 1, 2])
SCORES = np.array(
    [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], np.float32
)
SEVERAL, CHANCES = np.array([[1, 0], [1, 1], [0, 1]]), np.array([[0.9, 0.2], [0.4, 0.8], [0.1, 0.3]], np.float32)


def scored(labels, scores):
    return scores.max()


def test_metrics_of_classes_by_hand():
    values = measure(MEASURED, LABELS, SCORES)
    assert values["balanced_error"] == pytest.approx(1 - (2 / 3 + 1 / 2 + 1) / 3)
    # Share of the pairs of an image of the class and one of another that are in the right order; ties are half right.
    assert values["auroc_error"] == pytest.approx(1 - (8 / 9 + 6 / 8 + 1) / 3)
    assert values["f1_error"] == pytest.approx(1 - (2 * 2 / 6 + 2 * 1 / 4 + 1) / 3)


def test_metrics_of_several_labels_by_hand():
    values = measure(MEASURED, SEVERAL, CHANCES)
    assert values["balanced_error"] == pytest.approx(1 - ((1 / 2 + 1) / 2 + (1 / 2 + 1) / 2) / 2)
    assert values["auroc_error"] == pytest.approx(1 - (1 + 1) / 2)
    assert values["f1_error"] == pytest.approx(1 - (2 / 3 + 2 / 3) / 2)


def test_intervals_hold_the_value_and_leave_out_what_a_resample_lacks():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.stack([1 - (chance := np.clip(0.5 * labels + 0.6 * rng.random(200), 0, 1)), chance], axis=1)
    names = [*MEASURED, path_of(fragile)]
    found, values = intervals(names, labels, scores), measure(MEASURED, labels, scores)
    assert set(found) == set(MEASURED), "the user's function fails on resamples"
    assert all(low < values[name] < high and high - low < 0.2 for name, (low, high) in found.items())
    assert intervals(["f1_error"], np.zeros(10), np.zeros((10, 100_000))) == {}


def fragile(labels, scores):
    return 1 / (len(set(scores[:, 0])) == 200)


def test_a_class_without_an_image_does_not_change_the_others():
    absent = np.array([0, 0, 1, 1])
    scores = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1]], np.float32)
    assert measure(MEASURED, absent, scores) == dict.fromkeys(MEASURED, 0.0)


def test_one_class_in_the_validation_part_is_refused_for_auroc_alone():
    data = SimpleNamespace(
        labels=torch.tensor([0, 1, 1]), val_index=torch.tensor([1, 2]), val_size=2, classes=2, title="Spots"
    )
    check_measurable(data, ["balanced_error", "f1_error"])
    with pytest.raises(InputError, match="auroc is an objective, but the validation part of Spots has one class; use"):
        check_measurable(data, ["auroc_error"])
    data.labels = torch.tensor([[0, 1], [1, 0], [1, 0]])
    with pytest.raises(InputError, match="has no label that some images have and others lack"):
        check_measurable(data, ["auroc_error"])


def test_names_of_objectives():
    assert read_objectives("params, auroc") == ("auroc_error", "params")
    assert read_objectives("f1") == ("f1_error",)
    assert read_objectives("package.module:cost,macs") == ("package.module:cost", "macs")
    assert extra_metrics(("val_error", "params")) == ()
    assert set(MEASURED) <= set(WORST)
    with pytest.raises(InputError, match=r"needs exactly one of val_error, .*, auroc_error, f1_error, which"):
        read_objectives("auroc,f1")
    with pytest.raises(InputError, match="names auroc_error twice"):
        read_objectives("auroc,auroc_error")


def test_functions_are_named_by_their_import_path(monkeypatch):
    assert path_of(scored) == f"{__name__}:scored"
    assert function_at(path_of(scored)) is scored
    assert measure([path_of(scored)], LABELS, SCORES) == {path_of(scored): pytest.approx(0.8)}
    with pytest.raises(InputError, match=r"'.*<lambda>' cannot be imported by worker processes; define it"):
        path_of(lambda labels, scores: 0)
    with pytest.raises(InputError, match="an objective is a name or a function of labels and scores, but got 3"):
        path_of(3)


def test_functions_are_found_in_the_working_folder_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_metric.py").write_text(
        "def good(labels, scores): return 0.5\n"
        "def broken(labels, scores): return 1 / 0\n"
        "def lost(labels, scores): return float('nan')\n"
        "number = 3\n"
    )
    before = list(sys.path)
    assert measure(["own_metric:good"], LABELS, SCORES) == {"own_metric:good": 0.5}
    assert sys.path == before
    for name, message in {
        "own_metric:broken": "the objective own_metric:broken failed with ZeroDivisionError: division by zero",
        "own_metric:lost": "the objective own_metric:lost returned nan; it must return a finite number",
        "own_metric:number": "the objective own_metric:number is no function of labels and scores, but 3",
        "own_metric:none": r"cannot import the objective own_metric:none \(module 'own_metric' has no attr",
        "no_module:none": r"cannot import the objective no_module:none \(No module named 'no_module'\); give mod",
    }.items():
        with pytest.raises(InputError, match=message):
            measure([name], LABELS, SCORES)


def test_records_and_epochs_without_further_metrics_are_written_as_before():
    record = TrialRecord(0)
    assert "metrics" not in json.loads(record.to_json())
    record.metrics = {"auroc_error": 0.25}
    assert TrialRecord.from_json(record.to_json()).measured("auroc_error") == 0.25
    plain = Epoch(1, 1.0, 0.5, 1.1, 0.6, 0.1, 2.0)
    assert list(plain.row()) == [
        *("epoch", "train_loss", "train_error", "val_loss", "val_error", "learning_rate", "seconds"),
    ]
    epoch = Epoch(1, 1.0, 0.5, 1.1, 0.6, 0.1, 2.0, {"auroc_error": 0.25, "own:cost": 3.0})
    assert Epoch.from_row(epoch.row() | {"event": "report"}) == epoch
