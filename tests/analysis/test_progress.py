"""Progress of a search: results computed by hand, and error rates in simulations."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from dnas.analysis import Front
from dnas.analysis.importance import importance
from dnas.analysis.progress import (
    attainment,
    best_so_far,
    compare_distributions,
    distribution,
    fidelity,
    timeline,
)
from dnas.errors import InputError
from dnas.study.record import TrialRecord


def record(number: int, state: str, error: float | None, arm: str = "sampler", **values: object) -> TrialRecord:
    made = TrialRecord(
        number,
        state,
        arm,
        val_error=error,
        cost={"macs": 100},
        data={"train_size": 10},
        epochs=2,
        seconds=3.0,
        ended=f"2026-01-01T00:00:{number:02d}+00:00",
    )
    return dataclasses.replace(made, **values)  # type: ignore[arg-type]


def test_best_so_far_counts_trials_and_costs_of_each_arm_separately() -> None:
    records = [
        record(0, "failed", None),
        record(1, "complete", 0.3),
        record(2, "complete", 0.1, "control"),
        record(3, "stopped", 0.05),  # its error was measured before the schedule ended
        record(4, "complete", 0.4),
        record(5, "complete", 0.2, "first"),
        record(6, "running", 0.01),
    ]
    found = best_so_far(records)
    search, control = (found[found["arm"] == arm] for arm in ("search", "control"))
    assert search["trials"].tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(search["error"], [np.nan, 0.3, 0.3, 0.3, 0.2])
    assert search["seconds"].tolist() == [3, 6, 9, 12, 15]
    assert search["macs"].tolist() == [6000 * n for n in range(1, 6)]  # 3 · 100 macs · 10 images · 2 epochs
    assert control[["trials", "error"]].values.tolist() == [[1, 0.1]]


def test_trials_count_in_the_order_of_their_ends() -> None:
    late = record(0, "complete", 0.1, ended="2026-01-01T00:01:00+00:00")
    found = best_so_far([late, record(1, "complete", 0.5)])
    assert found["error"].tolist() == [0.5, 0.1]


def test_distribution_has_the_shares_and_a_band_with_nominal_coverage() -> None:
    found = distribution([0.3, 0.1, 0.2, 0.2])
    assert found.error.tolist() == [0.1, 0.2, 0.3]
    assert found.share.tolist() == [0.25, 0.75, 1.0]
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.n == 4
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):  # half of a uniform distribution is below 0.5
        sample = distribution(rng.random(60))
        at = np.searchsorted(sample.error, 0.5, side="right") - 1
        inside += sample.low[at] <= 0.5 <= sample.high[at]
    assert 0.88 <= inside / 200 <= 0.99
    with pytest.raises(InputError, match="needs a trial with an error"):
        distribution([float("nan")])


def test_two_spaces_are_compared_pair_by_pair() -> None:
    found = compare_distributions([0.1, 0.2, 0.3], [0.25, 0.4])
    assert found.better == pytest.approx(5 / 6)  # all pairs except 0.3 and 0.25
    assert found.ks == pytest.approx(2 / 3)
    assert found.p > 0.05
    assert compare_distributions(np.linspace(0, 1, 40), np.linspace(1, 2, 40)).p < 1e-6
    with pytest.raises(InputError, match="each has a trial"):
        compare_distributions([], [0.1])


def curves_of(table: list[list[float]], states: list[str] | None = None) -> pd.DataFrame:
    rows = [
        {"number": n, "state": (states or ["complete"] * len(table))[n], "epoch": e, "val_error": value}
        for n, curve in enumerate(table)
        for e, value in enumerate(curve, 1)
    ]
    return pd.DataFrame(rows)


def test_fidelity_is_the_rank_correlation_with_the_last_epoch() -> None:
    table = [[0.5, 0.1, 0.1], [0.4, 0.2, 0.2], [0.3, 0.3, 0.3], [0.2, 0.4, 0.5], [0.1, 0.5, 0.4]]
    stopped = [*table, [0.0, 0.9]]
    found = fidelity(curves_of(stopped, ["complete"] * 5 + ["stopped"]))
    assert found["epoch"].tolist() == [1, 2, 3]
    assert found["rho"].tolist() == pytest.approx([-0.9, 0.9, 1.0])
    assert found["n"].tolist() == [5, 5, 5]
    z, spread = np.arctanh(0.9), np.sqrt((1 + 0.81 / 2) / 2)
    assert found["low"][1] == pytest.approx(np.tanh(z - 1.96 * spread))
    assert found["high"][1] == pytest.approx(np.tanh(z + 1.96 * spread))
    assert fidelity(curves_of([])).empty
    level = fidelity(curves_of([[0.1, 0.1], [0.1, 0.2], [0.1, 0.3]]))
    assert np.isnan(level["rho"][0])
    assert level["low"].isna().all()  # three networks are too few for an interval


def test_timeline_has_one_lane_per_concurrent_trial() -> None:
    def event(kind: str, number: int, second: int) -> dict[str, object]:
        return {"event": kind, "number": number, "time": f"2026-01-01T00:00:{second:02d}+00:00"}

    events = [
        event("ask", 0, 10),
        event("ask", 1, 12),
        event("pause", 0, 15),
        event("ask", 2, 15),
        event("tell", 2, 20),
        event("promote", 0, 21),
        event("tell", 1, 22),
        event("tell", 0, 25),
        event("ask", 3, 26),
        event("report", 3, 29),
    ]
    records = [record(0, "complete", 0.1), record(1, "failed", None), record(2, "complete", 0.2)]
    found = timeline([*records, record(3, "running", None)], events)
    assert found.values.tolist() == [
        [0, "paused", 0, 0.0, 5.0],
        [1, "failed", 1, 2.0, 12.0],
        [2, "complete", 0, 5.0, 10.0],
        [0, "complete", 0, 11.0, 15.0],
        [3, "running", 0, 16.0, 19.0],
    ]
    assert timeline(records, []).empty


def test_attainment_is_the_error_that_one_half_and_all_searches_reached() -> None:
    fronts = [
        Front(pd.DataFrame({"params": [1, 3], "val_error": [0.5, 0.1]})),
        Front(pd.DataFrame({"params": [2], "val_error": [0.3]})),
        Front(pd.DataFrame({"params": [1, 4], "val_error": [0.4, 0.2]})),
    ]
    found = attainment(fronts)
    assert found["params"].tolist() == [1, 2, 3, 4]
    assert found["best"].tolist() == [0.4, 0.3, 0.1, 0.1]
    assert found["median"].tolist() == [0.5, 0.4, 0.3, 0.2]
    assert found["worst"].tolist() == [np.inf, 0.5, 0.4, 0.3]
    # The median of two searches is the error that both reached.
    assert attainment(fronts[:2])["median"].tolist() == [np.inf, 0.5, 0.3]
    with pytest.raises(InputError, match="needs a front"):
        attainment([])


def test_importance_finds_the_decisive_choice() -> None:
    rng = np.random.default_rng(1)
    params = pd.DataFrame(
        {
            "k": rng.integers(1, 5, 200),
            "theta": rng.random(200),
            "connect": rng.choice(["dense", "none"], 200),
            "same": 1,
        }
    )
    found = importance(params, params["k"] + 0.01 * rng.random(200))
    assert found["choice"].tolist()[0] == "k"
    assert set(found["choice"]) == {"k", "theta", "connect"}
    assert found["share"].sum() == pytest.approx(1)
    first = found.iloc[0]
    assert first["share"] > 0.6
    assert first["low"] > first["null"]
    assert (found["low"] <= found["share"]).all()


def test_importance_ignores_differences_among_the_worst() -> None:
    rng = np.random.default_rng(2)
    params = pd.DataFrame({"k": rng.integers(1, 5, 300), "theta": rng.integers(1, 5, 300)})
    errors = np.where(params["k"] == 1, 0.1, 0.5 + 0.1 * params["theta"]) + 0.01 * rng.random(300)
    found = importance(params, errors).set_index("choice")["share"]
    assert found["k"] > 0.8  # theta affects only the order of the worst


def test_importance_of_random_errors_is_not_above_its_null() -> None:
    above = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        params = pd.DataFrame({"a": rng.integers(0, 4, 80), "b": rng.integers(0, 4, 80)})
        found = importance(params, rng.random(80), seed=seed)
        above += int((found["low"] > found["null"]).any())
    assert above <= 4


def test_importance_of_too_few_trials_or_choices_is_refused() -> None:
    with pytest.raises(InputError, match="at least 10 trials"):
        importance(pd.DataFrame({"a": range(9)}), np.arange(9))
    with pytest.raises(InputError, match="0 such choices"):
        importance(pd.DataFrame({"a": [1] * 20}), np.arange(20))
