"""Importance in a search: exact sums of fANOVA, null distributions, intervals, and `dnas importance`."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dnas.analysis.evidence import read_evidence
from dnas.analysis.fanova import CELLS, REST, Axis, Fanova, Forest, fanova
from dnas.analysis.importance import SPEC, evidence
from dnas.analysis.trees import Trees
from dnas.cli import main
from dnas.errors import InputError
from dnas.figures import plot_fanova, plot_interactions, title
from dnas.study.config import LIST
from dnas.study.folder import StudyFolder
from tests.support.forests import shrink_forests
from tests.support.studies import add_search, search_error

AXES = (
    Axis("k", (4, 8, 12, 16), True),
    Axis("layers", (1, 2, 5), True),
    Axis("connect", ("dense", "log", "none"), False),
)
BITS = (Axis("a", (0, 1), True), Axis("b", (0, 1), True))


@pytest.fixture
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_forests(monkeypatch)


def every_point(axes: tuple[Axis, ...]) -> np.ndarray:
    return np.array(list(itertools.product(*(range(len(axis.values)) for axis in axes))))


def shares_of(found: Fanova) -> dict[tuple[str, str], float]:
    return {(row.choice, row.other): row.share for row in found.effects.itertuples()}


def test_shares_of_a_tree_equal_those_of_its_predictions_at_every_point() -> None:
    rng = np.random.default_rng(3)
    cells = np.column_stack([rng.integers(len(axis.values), size=60) for axis in AXES])
    forest = Forest(AXES, cells, rng.random(60) + cells[:, 0] * (cells[:, 2] == 1), trees=1, leaf=1)
    points = every_point(AXES)
    cube = forest.predict(points).reshape(4, 3, 3)
    total = cube.var()
    means = [cube.mean(axis=tuple(j for j in range(3) if j != i)) for i in range(3)]
    np.testing.assert_allclose(forest.shares.single, [mean.var() / total for mean in means])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = cube.mean(axis=3 - i - j)
        np.testing.assert_allclose(
            forest.shares.pair[i, j], (both.var() - means[i].var() - means[j].var()) / total, atol=1e-12
        )
        np.testing.assert_allclose(forest.marginal(i, j), both)
    np.testing.assert_allclose(forest.marginal(1), means[1])
    assert forest.shares.rest == pytest.approx(1 - forest.shares.single.sum() - np.triu(forest.shares.pair).sum())
    # of the additive part, computed by hand
    alone = cube.mean() + sum(mean[points[:, i]] - cube.mean() for i, mean in enumerate(means))
    np.testing.assert_allclose(forest.additive(points), alone)


def test_trees_are_those_of_scikit_learn() -> None:
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(0)
    values, ordered = [(8, 4, 16, 12), (0.1, 0.2, 0.5), ("dense", "log", "none")], [True, True, False]
    cells = np.column_stack([rng.integers(len(axis), size=90) for axis in values])
    errors = cells[:, 0] * (cells[:, 2] == 1) + rng.random(90)  # no two splits are equally good
    counts = rng.multinomial(90, np.full(90, 1 / 90), size=5)
    points = np.array(list(itertools.product(range(4), range(3), range(3))))
    predicted = Trees(values, ordered, cells, errors, counts, 3, rng).predict(points)

    def inputs(rows: np.ndarray) -> np.ndarray:
        return np.column_stack(
            [np.array(values[0])[rows[:, 0]], np.array(values[1])[rows[:, 1]], np.eye(3)[rows[:, 2]]]
        )

    for row, weights in zip(predicted, counts, strict=True):
        tree = DecisionTreeRegressor(min_samples_leaf=3).fit(inputs(cells), errors, sample_weight=weights)
        np.testing.assert_allclose(row, tree.predict(inputs(points)), rtol=1e-9)


def test_a_tie_between_choices_is_broken_at_random() -> None:
    cells = np.repeat([[0, 0], [1, 1]], 10, axis=0)  # the choices cannot be distinguished
    shares = Forest(BITS, cells, cells[:, 0].astype(float), trees=200).shares
    np.testing.assert_allclose(shares.single, [0.5, 0.5], atol=0.15)


def test_a_sum_has_the_variances_of_its_terms_and_no_interaction() -> None:
    cells = np.tile(every_point(BITS), (20, 1))
    found = fanova(BITS, cells, cells[:, 0] + 2.0 * cells[:, 1], bootstraps=20, rounds=2)
    shares = shares_of(found)
    assert shares["a", ""] == pytest.approx(0.2, abs=0.01)  # variances 1/4 and 4/4 of 5/4
    assert shares["b", ""] == pytest.approx(0.8, abs=0.01)
    assert shares["a", "b"] == pytest.approx(0, abs=1e-9)
    assert found.r2 == pytest.approx(1, abs=0.01)
    assert (found.single, found.pairs) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_exclusive_or_is_an_interaction_only() -> None:
    cells = np.tile(every_point((*BITS, Axis("idle", (0, 1, 2), True))), (12, 1))
    rng = np.random.default_rng(0)
    errors = (cells[:, 0] ^ cells[:, 1]) + 0.05 * rng.random(len(cells))
    found = fanova((*BITS, Axis("idle", (0, 1, 2), True)), cells, errors, bootstraps=30, rounds=3)
    first = found.effects.iloc[0]
    assert (first.choice, first.other) == ("a", "b")
    assert first.share > 0.95
    assert first.clear
    assert first.low > 0.9
    single = found.effects[(found.effects["other"] == "") & (found.effects["choice"] != REST)]
    assert (single["share"] < 0.02).all()


@pytest.mark.usefixtures("small_forests")
def test_choice_without_an_effect_is_not_distinguishable_from_chance() -> None:
    false, seen = 0, 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        cells = np.column_stack([rng.integers(len(axis.values), size=80) for axis in AXES])
        found = fanova(AXES, cells, cells[:, 0] + rng.normal(size=80), bootstraps=30, rounds=3, seed=seed)
        effects = found.effects.set_index(["choice", "other"])
        idle = effects.loc[[("layers", ""), ("connect", "")]]
        assert (idle["low"] < 0.05).all()
        assert (idle["null"] > 0).all()
        seen += bool(effects.loc[("k", "")]["clear"])
        false += int(effects["clear"].sum()) - bool(effects.loc[("k", "")]["clear"])
    assert seen == 6
    assert false <= 2  # of 30 tests, which are two choices without effect and three pairs for each of six seeds


def test_intervals_contain_the_share_and_narrow_with_more_trials() -> None:
    widths = []
    for trials in (40, 300):
        rng = np.random.default_rng(1)
        cells = np.column_stack([rng.integers(len(axis.values), size=trials) for axis in AXES])
        found = fanova(AXES, cells, cells[:, 0] + rng.normal(size=trials), bootstraps=30, rounds=1).effects
        assert ((found["low"] <= found["share"]) & (found["share"] <= found["high"])).all()
        first = found.set_index(["choice", "other"]).loc[("k", "")]
        assert first["low"] < first["share"] < first["high"]
        widths.append(first["high"] - first["low"])
    assert widths[1] < widths[0] / 2


def test_shares_for_the_best_tenth_ignore_differences_among_the_worst() -> None:
    rng = np.random.default_rng(2)
    cells = np.column_stack([rng.integers(4, size=300), rng.integers(3, size=300)])
    # Only k = 4 leads to the best networks. The layers determine the order of the others and most of the variance.
    errors = np.where(cells[:, 0] == 0, 0.1, 0.2 + 0.3 * cells[:, 1]) + 0.01 * rng.random(300)
    every = shares_of(fanova(AXES[:2], cells, errors, bootstraps=20, rounds=1))
    ceiling = float(np.sort(errors)[30])
    best = shares_of(fanova(AXES[:2], cells, errors, ceiling=ceiling, bootstraps=20, rounds=1))
    assert every["layers", ""] > every["k", ""]
    assert best["k", ""] > 0.5 > 0.2 > best["layers", ""]


def test_inactive_choice_has_no_effect() -> None:
    axes = (Axis("bottleneck", (0, 4), True), Axis("width", (1, 2, 3, 4), True))
    rng = np.random.default_rng(5)
    cells = np.column_stack([rng.integers(2, size=200), rng.integers(4, size=200)])
    errors = np.where(cells[:, 0] == 1, 1.0 + cells[:, 1], 0.0)
    cells[cells[:, 0] == 0, 1] = -1
    forest = Forest(axes, cells, errors)
    assert np.ptp(forest.marginal(0, 1)[0]) < 0.1  # without a bottleneck the width has no effect
    np.testing.assert_allclose(forest.marginal(0, 1)[1], [1, 2, 3, 4], atol=0.3)


def test_single_effects_agree_with_optuna() -> None:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = np.random.default_rng(0)
    x = rng.random((120, 3))
    y = 2 * x[:, 0] + x[:, 1] + 4 * (x[:, 0] - 0.5) * (x[:, 2] - 0.5) + 0.05 * rng.normal(size=120)
    study = optuna.create_study()
    sides = {f"x{i}": FloatDistribution(0, 1) for i in range(3)}
    for row, value in zip(x, y, strict=True):
        params = {f"x{i}": v for i, v in enumerate(row)}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=sides, value=value))
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        theirs = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), normalize=False)
    axes = tuple(Axis(f"x{i}", tuple((np.arange(CELLS) + 0.5) / CELLS), True) for i in range(3))
    cells = np.column_stack([[axis.cell(value) for value in x[:, i]] for i, axis in enumerate(axes)])
    ours = Forest(axes, cells, y, leaf=1).shares.single
    np.testing.assert_allclose(ours, [theirs[f"x{i}"] for i in range(3)], atol=0.02)


def test_too_few_trials_or_choices_are_refused() -> None:
    cells = every_point(BITS)
    with pytest.raises(InputError, match="at least 10 trials with an error and a choice that varies, but got 4 trials"):
        fanova(BITS, cells, np.arange(4))
    with pytest.raises(InputError, match="12 trials and 0 such choices"):
        fanova(BITS, np.zeros((12, 2), dtype=int), np.arange(12))
    with pytest.raises(InputError, match=r"all 12 trials have 0.5"):
        fanova(BITS, np.tile(cells, (3, 1)), np.full(12, 0.5))


# --- of a study ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return add_search(tmp_path_factory.mktemp("of") / "made", 90, search_error, {80: "stopped", 85: "failed"})


def test_evidence_contains_the_complete_trials_and_counts_the_others(study: StudyFolder) -> None:
    found = read_evidence(study)
    assert len(found.errors) == 88
    assert found.left_out == {"stopped": 1, "failed": 1}
    assert {80, 85}.isdisjoint(found.numbers)
    record = study.records()[0]
    assert found.errors[0] == record.val_error
    made = found.params["compression"].notna()
    assert (made == (found.params["bottleneck"] == 4)).all()  # without a bottleneck the compression is inactive
    columns = [axis.name for axis in found.axes]
    at = columns.index("compression")
    assert ((found.cells[:, at] == -1) == ~made).all()


def test_evidence_after_an_epoch_includes_trials_stopped_later(study: StudyFolder) -> None:
    found = read_evidence(study, epoch=3)  # stopped trials of `add_trial` have a quarter of 12 epochs
    assert 80 in found.numbers
    assert 85 not in found.numbers
    with pytest.raises(InputError, match="has been trained for 13 epochs"):
        read_evidence(study, epoch=13)


def test_evidence_by_spec_has_the_properties_of_the_network(study: StudyFolder) -> None:
    found = evidence(study.config(), study.records(), by=SPEC)
    names = {axis.name for axis in found.axes}
    assert {"depth", "params", "macs", "growth_rate", "block_layers_1", "connectivity"} <= names
    assert "image_size" not in names  # equal for all networks
    assert (found.cells >= 0).all()
    assert max(len(axis.values) for axis in found.axes) <= 16


@pytest.mark.usefixtures("small_forests")
def test_the_command_prints_the_importance(
    study: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "effects.csv"
    assert main(["importance", str(study.path), "--bootstraps", "20", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "validation error of 88 trials after their last epoch; left out: 1 failed, 1 stopped" in text
    assert "growth_rate × connectivity" in text
    assert "`--epoch 3` compares all trials that reached that epoch" in text
    assert "over all are not reliable" not in text
    frame = pd.read_csv(out, keep_default_na=False)
    assert set(zip(frame["of"], frame["method"], strict=True)) == {
        ("all", "fANOVA"),
        ("best tenth", "fANOVA"),
        ("best tenth", "PED-ANOVA"),
    }
    every = frame[frame["of"] == "all"]
    assert every["share"].astype(float).sum() == pytest.approx(1, abs=1e-6)
    assert main(["importance", str(study.path), "--bootstraps", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trials"] == 88
    assert told["r2"]["all"] > 0.5
    rows = {(row["choice"], row["other"]): row for row in told["effects"] if row["of"] == "all"}
    assert rows["growth_rate", ""]["clear"]
    assert rows["growth_rate", "connectivity"]["clear"]
    assert rows[REST, ""]["null"] is None


@pytest.mark.usefixtures("small_forests")
def test_the_command_reports_that_shares_of_noise_are_unreliable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    made = add_search(tmp_path / "noise", 30, lambda params: float(rng.random()), {}, trials=40)
    assert main(["importance", str(made.path), "--bootstraps", "20"]) == 0
    text = capsys.readouterr().out
    assert "the fANOVA shares over all and for the best tenth are not reliable" in text
    assert "the search is not complete: 30 of 40 trials have ended" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{few}"], "needs at least 10 trials"),
        (["{equal}"], "needs errors that differ"),
        (["{listed}"], "is a list of 0 runs, which no search proposed"),
        (["{few}", "--by", "layers"], "no kind of importance 'layers'; there are choices, spec"),
        (["{few}", "--out", "x.gif"], "must end with .svg, .png or .pdf"),
        (["nothing"], "no study 'nothing'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {
        "few": add_search(tmp_path / "few", 9, search_error, {}),
        "equal": add_search(tmp_path / "equal", 12, lambda params: 0.5, {}),
        "listed": add_search(tmp_path / "listed", 0, search_error, {}, kind=LIST, runs=[]),
    }
    words = [word.format(**{name: folder.path for name, folder in folders.items()}) for word in arguments]
    assert main(["importance", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# --- the figures --------------------------------------------------------------------------------------------------


def test_the_figures_state_the_result(study: StudyFolder) -> None:
    found = read_evidence(study)
    whole, best = found.fanova(False, 20, 1), found.fanova(True, 20, 1)
    figure = plot_fanova(whole, best)
    first = whole.effects.iloc[0]
    assert title(figure) == f"{first['choice']} explains the largest part of the error's variance: {first['share']:.0%}"
    left, right = figure.axes
    shown = [text.get_text() for text in left.get_yticklabels()]
    bars = {text: bar.get_width() for text, bar in zip(shown, left.patches, strict=True)}
    assert bars["growth_rate"] == pytest.approx(100 * shares_of(whole)["growth_rate", ""])
    assert right.get_title(loc="left").startswith(f"for the best tenth: R² {best.r2:.2f}")
    matrix = plot_interactions(whole)
    assert title(matrix).startswith("growth_rate × connectivity interact beyond chance: ")
    texts = {text.get_text() for text in matrix.axes[0].texts}
    assert f"{100 * shares_of(whole)['growth_rate', 'connectivity']:.1f}" in texts
    doubtful = Fanova(whole.effects, 0.1, whole.trials, None, whole.forest)
    assert "Too few trials to assess these shares" in title(plot_fanova(doubtful))
    assert "Too few trials to assess interactions" in title(plot_interactions(doubtful))
