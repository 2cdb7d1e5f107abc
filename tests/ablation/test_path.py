"""Path between two networks, one choice at a time: order, conditional choices, and `dnas path`."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dnas.ablation.path import path_of, read_trained, study_of_path
from dnas.analysis.ablation_path import Trained, find_path, greedy_path, params_of
from dnas.analysis.evidence import read_evidence
from dnas.arch import DenseNetSpec
from dnas.cli import main
from dnas.errors import InputError
from dnas.figures import plot_path, title
from dnas.space.parse import parse_space
from dnas.space.space import Space
from dnas.study.config import LIST
from dnas.study.folder import StudyFolder
from dnas.study.record import rank
from tests.support.analytic import AnalyticExecutor
from tests.support.forests import shrink_forests
from tests.support.studies import SEARCHED_SPACE, add_search, search_error

pytestmark = pytest.mark.xdist_group("path")  # its study is written once

SPACE = parse_space(SEARCHED_SPACE, "searched", "here")
FIRST = SPACE.first[0]
WIDE = {
    "growth_rate": 16,
    "block_layers_1": 3,
    "block_layers_2": 1,
    "bottleneck": 0,
    "compression": 1.0,
    "connectivity": "dense",
}


@pytest.fixture
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_forests(monkeypatch)


def by(error: Any) -> Any:
    def predict(points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.array([error(point) for point in points])

    return predict


def changes(space: Space, source: Mapping[str, Any], target: Mapping[str, Any], error: Any) -> list[Any]:
    return [node.changes for node in greedy_path(space, source, target, by(error))[1:]]


def test_the_step_that_improves_most_comes_first() -> None:
    # The start has a growth rate of 4 and no connections (error 0.34). Dense connections would save 0.20 and a growth
    # rate of 16 saves 0.30, so that it is first. After it more layers save 0.02, and dense connections nothing.
    steps = changes(SPACE, FIRST, WIDE, search_error)
    assert steps == [
        (("growth_rate", 4, 16),),
        (("block_layers_1", 1, 3),),
        (("connectivity", "none", "dense"),),
    ]
    only_connections = changes(SPACE, FIRST, WIDE, lambda point: float(point["connectivity"] == "none"))
    assert only_connections[0] == (("connectivity", "none", "dense"),)


def test_every_network_on_the_path_is_in_the_space_and_one_step_from_the_previous() -> None:
    target = WIDE | {"bottleneck": 4, "compression": 0.5, "block_layers_2": 3}
    nodes = greedy_path(SPACE, FIRST, target, by(search_error))
    assert nodes[0].spec == SPACE.spec_of(FIRST)
    assert nodes[-1].spec == SPACE.spec_of(target)
    for node in nodes:
        assert node.spec == SPACE.spec_of(node.params)
        assert node.cost == SPACE.cost(node.spec)
        assert node.spec.image_size == 8
    assert len({node.spec.digest for node in nodes}) == len(nodes)
    assert sorted(len(node.changes) for node in nodes) == [0, 1, 1, 1, 1, 2]  # the compression with its bottleneck
    assert sorted(name for node in nodes for name, _, _ in node.changes) == [
        "block_layers_1",
        "block_layers_2",
        "bottleneck",
        "compression",
        "connectivity",
        "growth_rate",
    ]


def test_a_conditional_choice_changes_with_its_condition() -> None:
    # Without a bottleneck the compression is inactive. Both change in one step.
    narrow = {**FIRST, "bottleneck": 4, "compression": 0.5}
    assert changes(SPACE, {**FIRST, "compression": 1.0}, narrow, search_error) == [
        (("bottleneck", 0, 4), ("compression", None, 0.5)),
    ]
    # In the opposite direction they change in one step, too.
    assert changes(SPACE, narrow, FIRST, search_error) == [(("bottleneck", 4, 0), ("compression", 0.5, None))]


def test_choices_that_are_invalid_alone_are_changed_together() -> None:
    # A compression of 0.1 keeps none of 4 channels, but one of 16. Space files are checked for such networks if the
    # space is small enough to be enumerated.
    narrow = tuple(
        dataclasses.replace(choice, options=(0.1, 1.0), when={}) if choice.name == "compression" else choice
        for choice in SPACE.choices
    )
    space = dataclasses.replace(SPACE, choices=narrow)
    source = {**FIRST, "compression": 1.0}
    target = {**source, "growth_rate": 16, "compression": 0.1}
    with pytest.raises(InputError):
        space.spec_of({**source, "compression": 0.1})
    steps = changes(space, source, target, lambda point: float(point["growth_rate"]))  # a larger growth rate is worse
    assert steps == [(("growth_rate", 4, 16),), (("compression", 1.0, 0.1),)]


def test_networks_over_a_limit_are_used_last_and_marked() -> None:
    limited = dataclasses.replace(SPACE, limits=dataclasses.replace(SPACE.limits, params=4_000))
    target = {**WIDE, "block_layers_1": 1, "connectivity": "dense"}
    nodes = greedy_path(limited, FIRST, target, by(search_error))
    assert [node.changes[0][0] for node in nodes[1:]] == ["connectivity", "growth_rate"]  # the growth rate is not first
    assert list(nodes[-1].excess) == ["params"]
    assert not nodes[0].excess


def test_equal_ends_are_refused() -> None:
    with pytest.raises(InputError, match="needs two different networks"):
        greedy_path(SPACE, FIRST, {**FIRST, "compression": 1.0}, by(search_error))  # the compression is inactive


def test_a_named_network_is_found_in_the_space() -> None:
    point = WIDE | {"bottleneck": 4, "compression": 0.5}
    spec = SPACE.spec_of(point)
    assert params_of(SPACE, spec) == point
    plain = SPACE.spec_of(FIRST)
    assert SPACE.spec_of(params_of(SPACE, plain)) == plain
    with pytest.raises(InputError, match=r"growth_rate is 5, which is not in 4 to 16 in steps of 4"):
        params_of(SPACE, dataclasses.replace(spec, growth_rate=5))
    with pytest.raises(InputError, match=r"it has dropout = 0.2, but networks of the space have 0.0"):
        params_of(SPACE, dataclasses.replace(spec, dropout=0.2))
    with pytest.raises(InputError, match="has no block_layers_2"):
        params_of(SPACE, DenseNetSpec((3,), growth_rate=16, in_channels=1, image_size=8))


def test_trained_steps_are_differences_within_a_seed() -> None:
    values = pd.DataFrame([[0.5, 0.4, 0.3], [0.3, 0.2, 0.2], [0.4, 0.3, np.nan]], index=[1, 2, 3])
    found = Trained(values)
    assert [round(one.value, 9) for one in found.errors] == [0.4, 0.3, 0.25]
    first, second, third = found.changes
    assert np.isnan(first.value)
    assert (second.value, second.low, second.high) == pytest.approx((-0.1, -0.1, -0.1))  # equal for all seeds
    # mean -0.05 of -0.1 and 0, sd 0.0707, t(1) 12.706: ± 12.706 · 0.0707 / √2 = 0.6353
    assert (third.value, third.low, third.high) == pytest.approx((-0.05, -0.68531, 0.58531), abs=1e-5)
    assert found.whole.value == pytest.approx(-0.15)
    alone = Trained(values.iloc[:1]).changes[1]
    assert alone.value == pytest.approx(-0.1)
    assert np.isnan(alone.low)


# --- paths of a study ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return add_search(tmp_path_factory.mktemp("of") / "made", 120, search_error, {})


def test_a_forest_predicts_the_path_of_the_formula(study: StudyFolder) -> None:
    found = read_evidence(study)
    best = rank(study.records())[0]
    path = find_path(found, FIRST, best.params, bootstraps=20)
    assert path.nodes[1].changes == (("growth_rate", 4, best.params["growth_rate"]),)
    true = [search_error(node.params) for node in path.nodes]
    predicted = [one.value for one in path.predicted]
    np.testing.assert_allclose(predicted, true, atol=0.05)
    assert path.change[1].value == pytest.approx(predicted[1] - predicted[0])
    assert path.change[1].high < 0
    assert all(one.low <= one.value <= one.high for one in path.predicted)
    assert path.measured[0] == pytest.approx(search_error(FIRST))
    assert path.measured[len(path.nodes) - 1] == best.val_error
    assert path.r2 > 0.5


@pytest.mark.usefixtures("small_forests")
def test_the_command_prints_the_steps(study: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "path.csv"
    assert main(["path", str(study.path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "growth_rate" in text
    assert "4 → 16" in text
    assert "no network of the path was trained" in text
    frame = pd.read_csv(out)
    assert frame["choice"].tolist()[1] == "growth_rate"
    assert frame["predicted_low"].le(frame["predicted"]).all()
    assert main(["path", str(study.path), "--from", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    third = study.records()[3]
    assert told["steps"][0]["params"] == third.cost["params"]
    assert told["steps"][0]["change"] is None
    name = "densenet-c:layers=1-1,k=4,theta=0.5,connect=none"
    assert path_of(study, read_evidence(study), name, 20).nodes[0].spec == SPACE.spec_of(FIRST)


def test_predicting_needs_no_torch(study: StudyFolder) -> None:
    code = (
        "import sys; from dnas.analysis import ablation_path; ablation_path.RESAMPLED_TREES = 1;"
        "from dnas.cli import main; main(['path', sys.argv[1]]); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(study.path)], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"


def test_the_figure_has_one_row_per_network(study: StudyFolder) -> None:
    path = path_of(study, read_evidence(study), None, 20)
    figure = plot_path(path)
    left, right = figure.axes
    assert title(figure).startswith("growth_rate 4 → 16 is predicted to reduce the error most, by ")
    assert [text.get_text() for text in left.get_yticklabels()][:2] == ["the first network", "growth_rate 4 → 16"]
    x = left.collections[1].get_offsets()
    np.testing.assert_allclose(np.asarray(x)[:, 0], [100 * one.value for one in path.predicted])
    assert len(np.asarray(right.collections[1].get_offsets())) == len(path.nodes) - 1
    rows = len(path.nodes)
    trained = Trained(pd.DataFrame([[0.1] * rows, [0.1] * rows]))
    assert title(plot_path(path, trained=trained)) == "No step reduced the error"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{few}"], "needs at least 10 trials"),
        (["{listed}"], "which no search proposed"),
        (["{none}"], "has no complete trial yet"),
        (["{some}", "--from", "99"], "has no trial 99"),
        (["{some}", "--from", "densenet:L=22,k=5"], "is not a network of space searched"),
        (["{some}", "--seeds", "3"], "which needs --train"),
        (["{unnamed}"], "names no [[first]] network; set the start of the path"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unnamed = {"name": "searched", "title": "Made up.", "text": SEARCHED_SPACE.partition("[[first]]")[0]}
    folders = {
        "few": add_search(tmp_path / "few", 9, search_error, {}),
        "some": add_search(tmp_path / "some", 12, search_error, {}),
        "none": add_search(tmp_path / "none", 2, search_error, {0: "running", 1: "running"}),
        "listed": add_search(tmp_path / "listed", 0, search_error, {}, kind=LIST, runs=[]),
        "unnamed": add_search(tmp_path / "unnamed", 12, search_error, {}, space=unnamed),
    }
    words = [word.format(**{name: folder.path for name, folder in folders.items()}) for word in arguments]
    assert main(["path", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("small_forests")
def test_the_networks_of_a_path_are_trained_in_pairs_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dnas.batch.runs.LocalExecutor", lambda workers, devices: AnalyticExecutor())
    recipe = {**parse_space(SEARCHED_SPACE, "searched", "here").recipe.to_dict(), "epochs": 1}
    data = {"name": "digits", "source": "digits", "subset": 120}
    made = add_search(tmp_path / "studies" / "tiny", 12, search_error, {}, recipe=recipe, data=data, seed=1)
    command = ["path", "tiny", "--train", "--device", "cpu", "--json"]
    assert main(["path", "tiny", "--train", "--seeds", "1", "--dry-run"]) == 0
    assert "from 1 seed, 1 epoch each" in capsys.readouterr().out
    assert not (tmp_path / "studies" / study_of_path(made)).exists()
    assert main([*command, "--seeds", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    trained = StudyFolder(tmp_path / "studies" / study_of_path(made))
    begun = {record.number: record.started for record in trained.records()}
    assert len(begun) == len(first["steps"])
    assert main([*command, "--seeds", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    records = trained.records()
    assert len(records) == 2 * len(first["steps"])
    assert all(record.started == begun[record.number] for record in records if record.number in begun)
    # 1 is the seed of the search, and 0 that of its split.
    assert {tuple(record.seed) for record in records} == {(2, 0), (3, 0)}
    assert {record.data["split_seed"] for record in records} == {2, 3}
    found = read_evidence(made)
    values = read_trained(made, found, path_of(made, found), 2).values
    assert values.notna().all().all()
    assert told["seeds"] == 2
    assert told["steps"][1]["trained_change"] == pytest.approx((values[1] - values[0]).mean())
