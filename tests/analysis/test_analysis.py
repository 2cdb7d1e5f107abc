"""The numbers of `dnas.analysis`: invariants, and values computed by hand."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from dnas import formatting as words
from dnas.analysis import (
    NormHistory,
    cost_by_part,
    gradient_norms,
    leads_from,
    learning_curves,
    noise_floor,
    pareto_front,
    published,
    read_norms,
    standard_error,
    wilson_interval,
    within_reach,
)
from dnas.analysis.control import (
    compare_arms,
    decision_epoch,
    detectable,
    dominance,
    expected_best,
    values_at,
)
from dnas.analysis.curves import error_curves
from dnas.analysis.weight_norms import weight_norms, weight_sizes
from dnas.arch import PRESETS, DenseNetSpec, Spec, cost, parse_name
from dnas.errors import InputError
from dnas.nn import build
from dnas.study.folder import read_study
from tests.support.specs import any_specs
from tests.support.studies import make_study, plain_norms

FEW = [0.1, 0.1, 0.2, 0.25, 0.5, math.nan]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["complete", "complete", "stopped", "failed"]), st.integers(1, 6), st.sampled_from(FEW)
        ),
        max_size=15,
    )
)
def test_front_contains_the_trials_that_no_trial_dominates(rows: list[tuple[str, int, float]]) -> None:
    frame = pd.DataFrame(
        [{"number": i, "state": s, "params": p, "val_error": e, "network": "n"} for i, (s, p, e) in enumerate(rows)]
    )
    able = [(i, p, e) for i, (s, p, e) in enumerate(rows) if s == "complete" and not math.isnan(e)]
    expected = {i for i, p, e in able if not any(q <= p and f <= e and (q < p or f < e) for _, q, f in able)}
    front = pareto_front(frame)
    assert set(front.numbers) == expected
    assert front.trials["params"].tolist() == sorted(front.trials["params"])


def test_a_front_needs_its_columns() -> None:
    with pytest.raises(InputError, match="needs the column params"):
        pareto_front(pd.DataFrame({"number": [1], "state": ["complete"]}))


def test_the_noise_floor_is_binomial() -> None:
    floor = noise_floor(0.06, 5000)
    assert floor.standard_error == standard_error(0.06, 5000) == pytest.approx(math.sqrt(0.06 * 0.94 / 5000))
    assert (floor.low, floor.high) == wilson_interval(0.06, 5000)
    assert noise_floor(0.0, 100).high > 0.03  # 100 images without an error leave uncertainty


@pytest.mark.parametrize(("error", "size", "constraint"), [(5.9, 100, "0 <= error <= 1"), (0.1, 0, "size >= 1")])
def test_noise_floor_of_invalid_arguments_is_refused(error: float, size: int, constraint: str) -> None:
    with pytest.raises(InputError, match=constraint):
        noise_floor(error, size)


def test_published_points_equal_table_2() -> None:
    c10 = published("cifar10")
    row = c10[(c10["method"] == "DenseNet-BC (k=12)") & c10["augmented"]].iloc[0]
    assert (row["depth"], row["params"], row["test_error"]) == (100, 800_000, 0.0451)
    assert c10[(c10["method"] == "DenseNet (k=24)") & ~c10["augmented"]]["test_error"].tolist() == [0.0583]
    assert published("cifar100")["test_error"].min() == 0.1718
    assert not published("svhn")["augmented"].any()
    assert published("svhn")["test_error"].min() == 0.0159
    assert published("digits").empty
    assert list(published("digits")) == list(c10)


def test_only_published_networks_of_similar_size_are_selected() -> None:
    near = within_reach(published("cifar10"), pd.DataFrame({"params": [300_000, 900_000]}))
    assert near["params"].max() <= 3_600_000
    assert near["params"].min() >= 75_000
    assert len(near)
    assert within_reach(published("cifar10"), pd.DataFrame()).empty


@given(any_specs())
@settings(max_examples=25, deadline=None)
def test_costs_of_the_parts_add_up_to_the_network(spec: Spec) -> None:
    parts, whole = cost_by_part(spec), cost(spec)
    assert (parts["params"].sum(), parts["macs"].sum()) == (whole.params, whole.macs)
    assert parts["params_share"].sum() == pytest.approx(1)
    assert parts["part"].tolist()[0] == "stem"
    if isinstance(spec, DenseNetSpec):
        assert len(parts) == 2 * spec.blocks + 1
    else:
        stages = [f"stage {stage}" for stage in range(1, spec.stages + 1)]
        assert parts["part"].tolist() == ["stem", *stages, "classifier"]
        assert parts["layers"].tolist() == [1, *spec.stage_units, 1]


# --- weight norms -------------------------------------------------------------------------------------------------


def test_rms_of_a_layer_covers_all_its_weights() -> None:
    names = (
        "classifier.weight",  # the order is restored
        "features.conv0.weight",
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock1.denselayer1.conv1.weight",
        "features.denseblock1.denselayer1.conv2.weight",
        "features.denseblock1.denselayer10.conv1.weight",
        "features.denseblock1.denselayer2.conv1.weight",
        "features.transition1.conv.weight",
        "features.denseblock2.denselayer1.conv1.weight",
    )
    numel = np.array([4, 9, 5, 16, 9, 4, 4, 25, 4])
    start = np.array([2.0, 3.0, 99.0, 3.0, 4.0, 2.0, 2.0, 5.0, 0.0])
    norms = weight_norms(NormHistory(names, numel, np.stack([start, start * 2]), (), np.empty((2, 0))))
    assert norms.layers == (
        "stem",
        "denseblock1.denselayer1",
        "denseblock1.denselayer2",
        "denseblock1.denselayer10",
        "transition1",
        "denseblock2.denselayer1",
        "classifier",
    )
    assert norms.epochs == (0, 1)
    # conv1 and conv2 together: sqrt((3² + 4²) / (16 + 9)) = 1
    assert norms.values[:, 0].tolist() == pytest.approx([1, 1, 1, 1, 1, 0, 1])
    assert norms.ratio[:, 1].tolist() == pytest.approx([2, 2, 2, 2, 2, math.nan, 2], nan_ok=True)


def test_row_of_a_residual_unit_includes_its_shortcut() -> None:
    names = (
        "features.stage1.unit10.conv1.weight",
        "features.stage1.unit2.conv1.weight",
        "features.stage1.unit2.norm1.weight",
        "features.stage2.unit1.conv1.weight",
        "features.stage2.unit1.conv2.weight",
        "features.stage2.unit1.shortcut.weight",
    )
    start = np.array([[2.0, 4.0, 99.0, 2.0, 3.0, 6.0]])
    norms = weight_norms(NormHistory(names, np.array([4, 4, 1, 9, 20, 20]), start, (), np.empty((1, 0))))
    assert norms.layers == ("stage1.unit2", "stage1.unit10", "stage2.unit1")
    assert norms.values[:, 0].tolist() == pytest.approx([2, 1, 1])  # sqrt((2² + 3² + 6²) / 49)


def test_names_without_a_weight_are_refused() -> None:
    history = NormHistory(("features.norm5.weight",), np.array([3]), np.ones((2, 1)), (), np.empty((2, 0)))
    with pytest.raises(InputError, match="no name is one of their weights"):
        weight_norms(history)


@given(any_specs())
@example(parse_name("resnet:units=1-1,width=4-4"))  # the shortcut is needed for the stride only
@settings(max_examples=30, deadline=None)
def test_sizes_of_weights_equal_those_of_the_module(spec: Spec) -> None:
    real = {name: p.numel() for name, p in build(spec).named_parameters() if p.ndim > 1}
    assert weight_sizes(spec) == real


def test_each_kind_of_norm_reads_its_parameters() -> None:
    names = (
        "features.conv0.weight",
        "features.norm0.weight",
        "features.norm0.bias",
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock1.denselayer1.conv1.weight",
        "features.denseblock1.denselayer1.norm2.weight",
        "features.denseblock1.denselayer1.conv2.weight",
        "features.norm5.weight",
        "classifier.weight",
        "classifier.bias",
    )
    numel = np.array([4, 2, 2, 1, 2, 3, 6, 5, 10, 10])
    l2 = np.arange(1.0, 11)[None]
    past = NormHistory(names, numel, l2, (), np.empty((1, 0)), l1=3 * l2, gradient=7 * l2)
    layers = ("stem", "denseblock1.denselayer1", "classifier")
    rms, l1, gamma = (weight_norms(past, kind) for kind in ("rms", "l1", "gamma"))
    assert rms.layers == l1.layers == gamma.layers == layers
    dense = math.sqrt((5**2 + 7**2) / 8)
    assert rms.values[:, 0].tolist() == pytest.approx([1 / 2, dense, 9 / math.sqrt(10)])
    assert l1.values[:, 0].tolist() == pytest.approx([3 / 4, (15 + 21) / 8, 27 / 10])
    scales = [2 / math.sqrt(2), math.sqrt((4**2 + 6**2) / 4), 8 / math.sqrt(5)]
    assert gamma.values[:, 0].tolist() == pytest.approx(scales)
    assert gradient_norms(past).values[:, 0].tolist() == pytest.approx([7 / 2, 7 * dense, 63 / math.sqrt(10)])
    assert (rms.kind, gradient_norms(past).kind) == ("rms", "gradient")


def test_norms_that_were_not_measured_are_reported() -> None:
    past = NormHistory(
        ("classifier.weight", "features.norm5.weight"), np.array([1, 0]), np.ones((1, 2)), (), np.empty((1, 0))
    )
    with pytest.raises(InputError, match="L1 norms were not measured"):
        weight_norms(past, "l1")
    with pytest.raises(InputError, match="gradients were not measured"):
        gradient_norms(past)
    with pytest.raises(InputError, match="sizes of this network's batch norms"):
        weight_norms(past, "gamma")
    with pytest.raises(InputError, match="no kind of norm 'l2'; there are gamma, l1, rms"):
        weight_norms(past, "l2")


def test_norms_of_residual_units_have_one_row_per_unit() -> None:
    names = (
        "features.conv0.weight",
        "features.stage1.unit1.conv1.weight",
        "features.stage1.unit1.conv2.weight",
        "features.stage2.unit1.conv1.weight",
        "classifier.weight",
    )
    past = NormHistory(names, np.ones(5, int), np.ones((2, 5)), (), np.empty((2, 0)))
    assert weight_norms(past).layers == ("stem", "stage1.unit1", "stage2.unit1", "classifier")


def test_norms_are_read_from_the_folder_of_a_trial(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"])
    history = read_norms(study.trial_folder(0))
    assert history.l2.shape == (13, len(history.names))
    # plain_norms starts every layer at 0.1
    assert weight_norms(history).values[:, 0] == pytest.approx(0.1)
    with np.load(study.trial_folder(0) / "norms.npz") as content:
        plain = dict(content)
    (study.trial_folder(0) / "record.json").unlink()
    with pytest.raises(InputError, match=r"no record\.json"):
        read_norms(study.trial_folder(0))
    numel = np.array([weight_sizes(study_spec()).get(str(name), 1) for name in plain["names"]])
    np.savez(study.trial_folder(0) / "norms.npz", numel=numel, **plain)
    assert len(read_norms(study.trial_folder(0) / "norms.npz").numel) == len(plain["names"])


def study_spec() -> DenseNetSpec:
    return PRESETS["densenet_bc_100_12"]()


def test_norms_are_read_from_a_checkpoint(tmp_path: Path) -> None:
    import torch

    from dnas.training.checkpoint import CHECKPOINT_FORMAT

    spec = DenseNetSpec((2, 1), growth_rate=4)
    plain = plain_norms(spec, 3)
    names = [str(name) for name in plain["names"]]
    weights = {name: torch.zeros(size) for name, size in weight_sizes(spec).items()}
    norms = {"names": names, "pairs": plain["pairs"].tolist()}
    norms |= {key: torch.from_numpy(plain[key]) for key in ("l2", "reuse")}
    torch.save({"format": CHECKPOINT_FORMAT, "norms": norms, "weights": weights}, tmp_path / "checkpoint.pt")
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        assert weight_norms(read_norms(path)).values[:, 0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("content", "words_of_it"),
    [(b"", "damaged"), (b"PK\x03\x04 torn", "damaged"), (None, "no norms")],
)
def test_missing_or_damaged_norms_are_reported(tmp_path: Path, content: bytes | None, words_of_it: str) -> None:
    if content is not None:
        (tmp_path / "norms.npz").write_bytes(content)
    with pytest.raises(InputError, match=words_of_it):
        read_norms(tmp_path)


def test_norms_of_other_shapes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "norms.npz", names=np.array(["a"]), numel=[1], l2=np.ones((2, 3)), pairs=[], reuse=[])
    with pytest.raises(InputError, match=r"l2 must be \[epochs \+ 1, 1\]"):
        read_norms(tmp_path)
    np.savez(tmp_path / "norms.npz", names=np.array(["a"]), numel=[1])
    with pytest.raises(InputError, match="l2, pairs, reuse missing"):
        read_norms(tmp_path)


# --- curves -------------------------------------------------------------------------------------------------------


def test_curves_have_one_row_per_trial_and_epoch(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete", "stopped", "failed", "running"], epochs=8)
    curves = learning_curves(study)
    assert curves.groupby("number").size().to_dict() == {0: 8, 1: 2, 3: 4}
    last = curves[(curves["number"] == 0) & (curves["epoch"] == 8)]["val_error"].item()
    assert last == read_study(study.path).loc[0, "val_error"]
    assert learning_curves(make_study(tmp_path / "none", [])).empty


def test_curves_equal_the_contents_of_their_files(tmp_path: Path) -> None:
    """The files have any columns in any order, gaps, or no rows."""
    study = make_study(tmp_path / "s", ["complete"] * 5, epochs=3)
    files = [study.trial_folder(number) / "curve.csv" for number in range(5)]
    files[1].write_text("val_loss,epoch,val_error\r\n2.5,1,0.1\r\n,2,\r\n")
    files[2].write_text(files[2].read_text().partition("\n")[0] + "\n")
    files[3].unlink()
    curves = learning_curves(study)
    assert list(zip(curves["number"], curves["epoch"], strict=True)) == [
        *((0, 1), (0, 2), (0, 3), (1, 1), (1, 2)),
        *((4, 1), (4, 2), (4, 3)),
    ]
    for number in (0, 1, 4):
        alone = pd.read_csv(files[number])
        read = curves[curves["number"] == number].reset_index(drop=True)[alone.columns.intersection(curves.columns)]
        pd.testing.assert_frame_equal(read, alone[read.columns], check_exact=True)
    assert curves[curves["number"] == 1]["train_loss"].isna().all()
    assert {number: curve.tolist() for number, curve in error_curves(curves).items() if number == 1} == {1: [[1, 0.1]]}
    shuffled = error_curves(curves.sample(frac=1, random_state=0))
    assert [*shuffled] == [0, 1, 4]
    assert shuffled[4][:, 0].tolist() == [1, 2, 3]


def test_lead_starts_after_the_last_epoch_that_another_trial_won() -> None:
    errors = {1: [0.5, 0.3, 0.3, 0.2, 0.1], 2: [0.4, 0.4, 0.2, 0.2, 0.2], 3: [0.1]}
    curves = pd.DataFrame(
        [{"number": n, "epoch": e, "val_error": v} for n, row in errors.items() for e, v in enumerate(row, 1)]
    )
    assert leads_from(curves, 1) == 4
    assert leads_from(curves, 3) == 1
    assert leads_from(curves, 2) is None
    assert leads_from(curves, 9) is None


# --- the control arm ----------------------------------------------------------------------------------------------


def arms_of(sampler: list[float], control: list[float]) -> tuple[dict[int, float], dict[int, str]]:
    values = dict(enumerate([*sampler, *control]))
    return values, {number: "sampler" if number < len(sampler) else "control" for number in values}


def test_comparison_of_arms_equals_a_computation_by_hand() -> None:
    found = compare_arms(*arms_of([0.1, 0.2, 0.3, 0.4], [0.3, 0.5, 0.6, 0.6]), "val_error", 4)
    assert found.difference == pytest.approx(0.25 - 0.5)
    # Pairs: 0.1, 0.2 and 0.4 win 4, 4 and 3 of 4; 0.3 wins 3 and ties 1.
    assert found.beats == pytest.approx((4 + 4 + 3.5 + 3) / 16)
    # Welch: variances 1/60 and 0.02, each over 4: standard error 0.09574, 5.951 degrees of freedom, t = 2.4520.
    error = math.sqrt((1 / 60 + 0.02) / 4)
    theirs = stats.ttest_ind([0.1, 0.2, 0.3, 0.4], [0.3, 0.5, 0.6, 0.6], equal_var=False).confidence_interval()
    assert found.interval == pytest.approx((theirs.low, theirs.high))
    assert found.interval == pytest.approx((-0.25 - 2.4520 * error, -0.25 + 2.4520 * error), abs=2e-4)
    # The sampler's ranks add up to 1 + 2 + 3.5 + 5 = 11.5, and 18 is their expected sum.
    ranks = [1, 2, 3.5, 3.5, 5, 6, 7.5, 7.5]
    sums = [sum(way) for way in itertools.combinations(ranks, 4)]
    assert found.p == pytest.approx(sum(abs(total - 18) >= 18 - 11.5 for total in sums) / 70)
    assert (found.draws, found.best) == (4, (0.1, 0.3))


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5]), min_size=1, max_size=14),
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5]), min_size=1, max_size=14),
)
@settings(max_examples=40, deadline=None)
def test_exchanging_the_arms_mirrors_the_comparison(sampler: list[float], control: list[float]) -> None:
    one = compare_arms(*arms_of(sampler, control), "val_error", 1)
    other = compare_arms(*arms_of(control, sampler), "val_error", 1)
    assert one.beats == pytest.approx(1 - other.beats)  # type: ignore[operator]
    assert one.difference == pytest.approx(-other.difference)  # type: ignore[operator]
    assert one.p == pytest.approx(other.p)
    assert one.p is not None
    assert 0 < one.p <= 1
    assert one.best == other.best[::-1]  # type: ignore[index]
    if one.interval is not None:
        assert one.interval[0] <= one.difference <= one.interval[1]  # type: ignore[operator]


def test_p_of_many_trials_is_computed_without_enumeration() -> None:
    rng = np.random.default_rng(0)
    found = compare_arms(*arms_of(list(rng.uniform(0, 1, 60)), list(rng.uniform(0.3, 1.3, 40))), "val_error", 1)
    assert found.p is not None
    assert found.p < 0.01
    assert found.enough


def test_results_that_need_more_trials_are_none() -> None:
    none = compare_arms(*arms_of([0.1, 0.2], []), "val_error", 3)
    assert (none.beats, none.p, none.difference, none.best, none.detectable, none.enough) == (*[None] * 5, False)
    single = compare_arms(*arms_of([0.1], [0.2]), "val_error", 3)
    assert (single.interval, single.p, single.draws, single.best) == (None, 1.0, 1, (0.1, 0.2))
    alike = compare_arms(*arms_of([0.2] * 9, [0.2] * 9), "val_error", 3)
    assert (alike.interval, alike.p, alike.beats, alike.difference) == (None, 1.0, 0.5, 0.0)


def test_first_networks_of_the_space_belong_to_neither_arm() -> None:
    found = compare_arms({0: 0.1, 1: 0.2, 2: 0.3}, {0: "first", 1: "control", 2: "sampler"}, "val_error", 3)
    assert (found.sampler, found.control) == ({2: 0.3}, {1: 0.2})


def test_detectable_effect_and_sufficient_number_of_trials() -> None:
    # Noether 1987, two-sample test, solved for the probability: 0.5 + 2.8016 / sqrt(12 · 10 · 10 / 20) = 0.8617
    assert detectable(10, 10) == pytest.approx(0.8617, abs=1e-4)
    assert not compare_arms(*arms_of([0.1] * 17, [0.2] * 3), "val_error", 1).enough
    assert compare_arms(*arms_of([0.1] * 21, [0.2] * 3), "val_error", 1).enough
    assert not compare_arms(*arms_of([0.1] * 500, [0.2] * 2), "val_error", 1).enough


@given(st.lists(st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), min_size=1, max_size=7), st.data())
def test_the_expected_best_is_the_mean_over_all_draws(values: list[float], data: st.DataObject) -> None:
    draws = data.draw(st.integers(1, len(values)))
    every = [min(some) for some in itertools.combinations(values, draws)]
    assert expected_best(values, draws) == pytest.approx(sum(every) / len(every))


def test_pairs_that_dominate_are_counted() -> None:
    first, second = np.array([[0.1, 5], [0.3, 9]]), np.array([[0.1, 5], [0.2, 7]])
    # (0.1, 5) ties with the equal point and dominates (0.2, 7). Both points of `second` dominate (0.3, 9).
    assert dominance(first, second) == (0.25, 0.5)


def test_arms_are_compared_at_the_epoch_of_the_first_stop() -> None:
    reports = [{"event": "report", "number": n, "epoch": e, "go_on": e < 9} for n in (0, 1) for e in (3, 9)]
    assert decision_epoch([], [], 27) == 27
    assert decision_epoch(reports, [], 27) == 9
    assert decision_epoch([*reports, {"event": "tell", "number": 0}], [3], 27) == 3  # a part of the log is missing
    assert decision_epoch([*reports, {"event": "extend", "epochs": 60, "trials": [0]}], [], 60) == 60


def test_values_at_an_epoch_include_all_trials_that_reached_it(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete", "stopped", "paused", "failed", "running"], epochs=8)
    curves = learning_curves(study)
    assert sorted(values_at(curves, "val_error", 2)) == [0, 1, 2, 4]
    assert sorted(values_at(curves, "val_error", 4)) == [0, 4]
    assert values_at(curves, "val_loss", 8) == {0: study.records()[0].val_loss}
    assert values_at(learning_curves(make_study(tmp_path / "none", [])), "val_error", 2) == {}


# --- formatting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.count(31_234), "31.2 k"),
        (words.count(769_162), "0.77 M"),
        (words.count(15_324_406), "15.3 M"),
        (words.count(1_940_000), "1.94 M"),
        (words.count(287_929_692), "288 M"),
        (words.count(5_418_785_724), "5.42 G"),
        (words.count(999_700_000), "1.00 G"),
        (words.big(99_999), "99,999"),
        (words.big(1_234_567), "1.2·10⁶"),
        (words.big(9_990_000), "1.0·10⁷"),
        (words.several(1, "trial"), "1 trial"),
        (words.several(1200, "trial"), "1,200 trials"),
        (words.joined(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_are_formatted(text: str, expected: str) -> None:
    assert text == expected
