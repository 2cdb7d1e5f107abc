"""Tests of the stopping rules, on hand-made values and on parametric curves with a simulated clock."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_stopping import Curve, compare, interval, planted, simulate
from dnas.errors import InputError
from dnas.strategy.stopping import REDUCTION, STOPPINGS, Ladder, _PlainRung, brackets, check_stopping, rungs
from dnas.strategy.stratified_rung import StratifiedRung

SEEDS = range(30)


def decide_and_note(ladder: Ladder, number: int, epoch: int, *values: float) -> bool:
    """Decide about a report and note it, as the search does, and return the decision."""
    size = values[1] if len(values) > 1 else None
    continues = ladder.decide(number, epoch, values, size)
    ladder.note(number, epoch, values, size, continues)
    return continues


def curves(seed: int, trials: int, epochs: int = 27) -> list[Curve]:
    return planted(seed, trials, epochs).curves[:trials]


# --- one objective ------------------------------------------------------------------------------------------------


def test_rungs_are_at_a_ninth_and_a_third_but_not_before_the_third_epoch() -> None:
    assert [rungs(epochs) for epochs in (40, 27, 12, 9, 4, 3, 1)] == [(5, 14), (3, 9), (4,), (3,), (), (), ()]
    assert Ladder("asha", 27, several=False).rungs == Ladder("hyperband", 27, several=True).rungs == (3, 9)
    assert Ladder("median", 27, several=False).rungs == tuple(range(3, 27))
    assert Ladder("none", 27, several=True).rungs == Ladder("median", 3, several=False).rungs == ()
    assert [Ladder(name, 9, several=False).pauses for name in STOPPINGS] == [True, True, False, False]


def test_best_third_continues_and_paused_trials_are_promoted_as_others_arrive() -> None:
    ladder = Ladder("asha", 27, several=False)
    assert decide_and_note(ladder, 0, 1, 0.99), "there is no rung at this epoch"
    assert decide_and_note(ladder, 0, 2, 0.98)
    assert decide_and_note(ladder, 0, 3, 0.5), "the first trial has no competitor"
    assert not decide_and_note(ladder, 1, 3, 0.6)
    assert decide_and_note(ladder, 2, 3, 0.4)
    assert not decide_and_note(ladder, 3, 3, 0.7)
    assert not decide_and_note(ladder, 4, 3, 0.45), "one of five passes, and has passed already"
    assert ladder.promotable() is None
    assert not decide_and_note(ladder, 5, 3, 0.8)
    assert ladder.promotable() == 4, "two of six pass"
    ladder.promote(4)
    assert ladder.promotable() is None, "trial 0 ranks third and is running anyway"
    for number in range(6, 12):
        assert not decide_and_note(ladder, number, 3, 0.9 + number / 100)
    assert ladder.promotable() == 1, "four of twelve pass"


def test_best_trial_of_the_highest_rung_is_promoted_first() -> None:
    ladder = Ladder("asha", 27, several=False)
    for number in range(9):
        ladder.note(number, 3, (0.1 * (number + 1),), None, number < 3)
    assert ladder.promotable() is None
    for number in (2, 0, 1):
        ladder.note(number, 9, (0.1 * (number + 1),), None, False)
    for number in range(9, 12):
        ladder.note(number, 3, (0.05 + number / 1000,), None, False)
    assert ladder.promotable() == 0, "at epoch 9, although trial 9 has a lower error at epoch 3"
    ladder.promote(0)
    assert ladder.promotable() == 9, "at epoch 3"
    ladder.promote(9)
    assert ladder.promotable() == 10


def test_lower_number_wins_a_tie() -> None:
    ladder = Ladder("asha", 9, several=False)
    assert decide_and_note(ladder, 1, 3, 0.5)
    assert not decide_and_note(ladder, 2, 3, 0.5)
    assert decide_and_note(ladder, 0, 3, 0.5)


def test_every_trial_of_the_best_third_has_passed_at_the_end() -> None:
    all_curves = curves(0, 90)
    run = simulate(Ladder("asha", 27, several=False), all_curves, several=False)
    for rung, next_epoch in ((3, 9), (9, 27)):
        members = sorted((all_curves[n].errors[rung - 1], n) for n, epoch in run.reached.items() if epoch >= rung)
        best = {number for _, number in members[: len(members) // REDUCTION]}
        assert best <= {number for number, epoch in run.reached.items() if epoch >= next_epoch}
    assert 0.25 < run.epochs / (90 * 27) < 0.35, "1/9 + 1/3 * 2/9 + 1/9 * 2/3 = 0.26"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_promoted_trial_resumes_at_the_epoch_after_its_pause(name: str, several: bool) -> None:
    runs = [simulate(Ladder(name, 27, several=several), curves(seed, 90), several=several) for seed in range(4)]
    resumed = [one for run in runs for one in run.resumed]
    assert len(resumed) >= 10
    assert {paused for _, paused, _ in resumed} == {3, 9}
    assert all(next_epoch == paused + 1 for _, paused, next_epoch in resumed)


def test_hyperband_brackets_spend_about_equal_epochs() -> None:
    assert brackets(27) == (((3, 9), 9), ((9,), 5), ((), 3))
    assert brackets(12) == (((4,), 3), ((), 2))
    assert brackets(2) == (((), 1),)
    ladder = Ladder("hyperband", 27, several=False)
    first_rungs = [next((epoch for epoch in (3, 9) if has_rung(ladder, number, epoch)), 27) for number in range(2, 36)]
    assert [first_rungs.count(epoch) for epoch in (3, 9, 27)] == [18, 10, 6]
    assert {3, 9} <= set(first_rungs[:4]), "brackets alternate within a cycle"
    assert first_rungs[:17] == first_rungs[17:]


def has_rung(ladder: Ladder, number: int, epoch: int) -> bool:
    """Return whether the bracket of trial `number` compares trials at `epoch`."""
    ladder = copy.deepcopy(ladder)
    for other in range(17):
        ladder.note(other + 17 * 9, epoch, (0.1,), None, True)
    return not ladder.decide(number, epoch, (0.9,), None)


def test_hyperband_compares_trials_within_a_bracket_only() -> None:
    ladder = Ladder("hyperband", 27, several=False)
    assert decide_and_note(ladder, 0, 3, 0.1)  # in the bracket with rungs 3 and 9
    assert decide_and_note(ladder, 0, 9, 0.1)
    assert decide_and_note(ladder, 1, 9, 0.9), "the first trial in the bracket with rung 9"
    assert not decide_and_note(ladder, 2, 3, 0.9)
    assert decide_and_note(ladder, 3, 9, 0.99), "in the bracket without rungs"


def test_median_rule_compares_the_best_value_with_the_median_of_running_averages() -> None:
    ladder = Ladder("median", 9, several=False)
    for number, level in enumerate((0.1, 0.2, 0.3, 0.4, 0.5)):
        for epoch in range(1, 10):
            if number == 4:
                assert ladder.decide(9, epoch, (0.99,), None), "fewer than five trials have completed"
            # The running average equals the level after epoch 3, and is a quarter lower after epoch 4.
            ladder.note(number, epoch, (level + 0.1 * (2 - epoch) if epoch <= 3 else 0.0,), None, True)
    assert ladder.decide(9, 3, (0.3,), None)
    assert not ladder.decide(9, 3, (0.301,), None)
    assert not ladder.decide(9, 4, (0.226,), None)
    assert ladder.decide(9, 4, (0.224,), None)
    assert ladder.decide(9, 2, (0.99,), None)
    assert ladder.decide(9, 9, (0.99,), None)
    ladder.note(9, 1, (0.2,), None, True)
    assert ladder.decide(9, 3, (0.9,), None), "its best value is 0.2"
    assert ladder.promotable() is None
    ladder.note(5, 1, (0.05,), None, True)
    ladder.note(5, 2, (0.05,), None, True)
    ladder.note(5, 3, (0.05,), None, False)  # stopped: its epochs up to here still count
    assert not ladder.decide(8, 3, (0.26,), None)
    assert ladder.decide(8, 3, (0.25,), None)
    assert not ladder.decide(8, 4, (0.226,), None)
    assert ladder.decide(8, 4, (0.224,), None)
    ladder.forget(5)
    assert ladder.decide(8, 3, (0.3,), None)
    ladder.forget(0)
    assert ladder.decide(8, 3, (0.9,), None), "four trials are too few"


def test_median_rule_never_resumes_and_keeps_the_best_trial() -> None:
    all_curves = curves(2, 60)
    run = simulate(Ladder("median", 27, several=False), all_curves, several=False)
    best = min(range(60), key=lambda number: all_curves[number].errors[-1])
    assert run.reached[best] == 27
    assert not run.resumed
    assert 5 < sum(epoch < 27 for epoch in run.reached.values()) < 55


# --- several objectives -------------------------------------------------------------------------------------------


def test_best_third_by_error_continues_among_equal_sizes() -> None:
    one, many = Ladder("asha", 9, several=False), Ladder("asha", 9, several=True)
    for number, error in enumerate(np.random.default_rng(0).random(60)):
        assert decide_and_note(one, number, 3, error) == decide_and_note(many, number, 3, error, 1000.0)
        assert one.promotable() == many.promotable()


def test_best_third_of_each_size_group_continues() -> None:
    """Among 48 trials larger networks are worse. Multi-objective ASHA without strata stops all but small ones."""
    stratified, plain = Ladder("asha", 9, several=True), Ladder("asha", 9, several=True, strata=1)
    rng, passed = np.random.default_rng(1), {}
    for number in rng.permutation(48):
        values = (0.2 + 0.01 * number + 0.002 * rng.random(), 1000.0 * 1.1**number)
        for ladder in (stratified, plain):
            if decide_and_note(ladder, int(number), 3, *values):
                passed.setdefault(ladder, set()).add(int(number))
            while (best := ladder.promotable()) is not None:
                ladder.promote(best)
                passed.setdefault(ladder, set()).add(best)
    counts = np.bincount([number // 12 for number in passed[stratified]], minlength=4)
    assert all(4 <= count <= 8 for count in counts), counts
    assert sum(number >= 24 for number in passed[plain]) <= 4, "without strata only the first large trials pass"


def test_trend_of_error_over_size_does_not_affect_decisions() -> None:
    """Adding a linear trend of the error over log size, of any slope, changes no decision."""
    rng = np.random.default_rng(2)
    sizes, errors = 10 ** rng.uniform(4, 6, 80), rng.random(80)
    ladders = {slope: Ladder("asha", 9, several=True) for slope in (0.0, 0.3, -0.2)}
    for number in range(80):
        decided = set()
        for slope, ladder in ladders.items():
            values = (float(errors[number] + slope * math.log(sizes[number])), float(sizes[number]))
            if number < 40:  # at first the groups have too few trials to fit a line
                ladder.note(number, 3, values, values[1], False)
            else:
                decided.add((decide_and_note(ladder, number, 3, *values), ladder.promotable()))
        assert len(decided) <= 1


def test_smallest_network_continues_regardless_of_its_error() -> None:
    ladder = Ladder("asha", 9, several=True)
    for number, size in enumerate(np.random.default_rng(3).permutation(60)):
        decide_and_note(ladder, number, 3, 0.1 + number / 1000, 100.0 + float(size))
    assert ladder.decide(99, 3, (0.99, 99.5), 99.5)
    assert not ladder.decide(99, 3, (0.99, 100.5), 100.5)


def test_best_rank_across_size_groups_is_promoted_first() -> None:
    ladder = Ladder("asha", 9, several=True, strata=2)
    for number in range(24):  # 0 to 11 are small; four of each twelve pass
        size = 10.0 + number // 12
        ladder.note(number, 3, (0.1 + 0.01 * number, size), size, number < 2)
    promoted = []
    while (best := ladder.promotable()) is not None:
        promoted.append(best)
        ladder.promote(best)
    assert promoted == [12, 13, 2, 14, 3, 15]


def test_third_objective_is_ranked_by_front() -> None:
    """Of nine equal sizes three pass. The trial with the worst error but the lowest latency is on the first front."""
    ladder = Ladder("asha", 9, several=True)
    for number in range(8):
        ladder.note(number, 3, (0.1 * (number + 1), 5.0, 1.0 + number), 5.0, False)
    assert ladder.decide(8, 3, (0.95, 5.0, 0.5), 5.0)
    assert not ladder.decide(8, 3, (0.95, 5.0, 9.5), 5.0)
    assert ladder.decide(8, 3, (0.25, 5.0, 2.5), 5.0)
    assert not ladder.decide(8, 3, (0.45, 5.0, 4.5), 5.0)


@pytest.mark.slow
def test_large_slow_starter_survives_only_with_strata() -> None:
    """The planted network is on the final front, but starts behind smaller networks (see `planted`)."""
    survivals = {1: 0, 4: 0}
    for seed in SEEDS:
        scene = planted(seed)
        assert scene.planted is not None
        size, error = scene.curves[scene.planted].size, scene.curves[scene.planted].errors[-1]
        assert not any(c.size <= size and c.errors[-1] < error for c in scene.curves[: scene.trials]), "on the front"
        early = sorted(c.errors[2] for c in scene.curves[: scene.trials])
        assert scene.curves[scene.planted].errors[2] > early[len(early) // 2], "slow"
        for strata in survivals:
            ladder = Ladder("asha", 27, several=True, strata=strata)
            run = simulate(ladder, scene.curves[: scene.trials], several=True)
            survivals[strata] += run.reached[scene.planted] == 27
    assert survivals[4] >= 28
    assert survivals[1] <= 10


@pytest.mark.slow
def test_half_the_epochs_reach_the_hypervolume_of_a_search_without_stopping() -> None:
    """The rule spends half the epochs of a search without stopping. The hypervolumes of complete trials are equal when
    the 95% interval of their mean ratio, paired by seed, is within 1% of one. Half the epochs without a rule lose more.
    """

    def ratios(name: str) -> tuple[list[float], list[float], list[float]]:
        outcomes = [
            compare(lambda epochs: Ladder(name, epochs, several=True), planted(seed), several=True) for seed in SEEDS
        ]
        return [o.volume_at_half for o in outcomes], [o.volume for o in outcomes], [o.share for o in outcomes]

    at_half, volumes, shares = ratios("asha")
    mean, half_width = interval(at_half)
    assert mean - half_width > 0.99
    assert mean + half_width < 1.01
    assert np.mean(volumes) > 0.985
    assert max(shares) < 0.5
    mean, half_width = interval(ratios("none")[0])
    assert mean + half_width < 0.98


# --- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "several"), [(n, s) for n in STOPPINGS for s in (False, True) if (n, s) != ("median", True)]
)
def test_decisions_have_no_side_effects_and_depend_on_events_alone(name: str, several: bool) -> None:
    run = simulate(Ladder(name, 27, several=several), curves(3, 40), several=several)
    ladder, second = (Ladder(name, 27, several=several) for _ in range(2))
    for event in run.events:
        if event[0] == "promote":
            assert ladder.promotable() == event[1]
            ladder.promote(event[1])
            second.promote(event[1])
            continue
        _, number, epoch, values, size, continues = event
        before = state(ladder)
        assert ladder.decide(number, epoch, values, size) == continues
        assert ladder.decide(999, epoch, (0.0, 1.0)[: len(values)], 1.0 if several else None) in (True, False)
        ladder.promotable()
        assert state(ladder) == before
        ladder.note(number, epoch, values, size, continues)
        second.note(number, epoch, values, size, continues)  # without `decide`, which changes nothing
    assert state(ladder) == state(second)
    assert ladder.promotable() == second.promotable()


def state(ladder: Ladder) -> bytes:
    """Serialise a ladder without the answers that it caches until the next event."""
    ladder = copy.deepcopy(ladder)
    for bracket in ladder._rungs:
        for rung in bracket.values():
            rung._waiting = None
    return pickle.dumps(ladder)


@pytest.mark.parametrize("several", [False, True])
def test_forgotten_trial_is_neither_counted_nor_promoted(several: bool) -> None:
    """The remaining trials are treated as if the forgotten one had never existed."""
    rng = np.random.default_rng(4)
    reports = [
        (float(e), float(s))[: 1 + several] for e, s in zip(rng.random(50), rng.integers(5, 15, 50), strict=True)
    ]
    ladder, reference = (Ladder("asha", 9, several=several) for _ in range(2))
    for number, values in enumerate(reports):
        ladder.note(number, 3, values, values[1] if several else None, number % 5 == 0)
        if number % 4:
            reference.note(number, 3, values, values[1] if several else None, number % 5 == 0)
    for number in range(0, 50, 4):
        ladder.forget(number)
    promoted = []
    while (best := ladder.promotable()) is not None:
        assert best == reference.promotable()
        promoted.append(best)
        ladder.promote(best)
        reference.promote(best)
    assert reference.promotable() is None
    assert len(promoted) >= 5
    assert not any(number % 4 == 0 for number in promoted)
    decide_and_note(ladder, 4, 3, *reports[4])  # a forgotten trial may report once more


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", STOPPINGS)
@pytest.mark.parametrize("epochs", [1, 3, 5, 27])
def test_smallest_search_completes_a_trial(name: str, several: bool, epochs: int) -> None:
    if name == "median" and several:
        return
    for trials in (1, 2, 3):
        all_curves = curves(5, trials + 1, epochs)[:trials]
        run = simulate(Ladder(name, epochs, several=several), all_curves, several=several)
        assert run.complete(all_curves)
        if epochs <= 3:
            assert len(run.complete(all_curves)) == trials, "without rungs every trial completes"


def test_value_that_is_not_finite_is_rejected() -> None:
    ladder = Ladder("asha", 9, several=False)
    for value in (math.nan, math.inf):
        with pytest.raises(AssertionError, match="has failed and is never compared"):
            ladder.decide(0, 1, (value,), None)
        with pytest.raises(AssertionError, match="has failed and is never compared"):
            ladder.note(0, 1, (value,), None, True)
    ladder.note(0, 1, (0.5,), None, True)
    with pytest.raises(AssertionError, match="recorded once"):
        ladder.note(0, 1, (0.5,), None, True)
    with pytest.raises(AssertionError, match="within size groups"):
        Ladder("asha", 9, several=True).decide(0, 3, (0.5, 10.0), None)


def test_unsupported_rule_is_rejected() -> None:
    with pytest.raises(InputError, match="--stopping median supports a single objective only"):
        check_stopping("median", several=True)
    with pytest.raises(InputError, match=r"one of asha, hyperband, median, none, but got 'ahsa'\. Did you mean asha"):
        Ladder("ahsa", 9, several=False)
    for name in STOPPINGS:
        check_stopping(name, several=False)


STEPS = st.tuples(st.sampled_from(["add", "add", "add", "pause", "promote", "remove"]), st.integers(0, 9))


@given(st.lists(STEPS, min_size=20, max_size=80))
def test_sorted_rung_of_one_objective_decides_like_the_general_rung(steps: list[tuple[str, int]]) -> None:
    """Values repeat, so ties occur too."""
    plain, general = _PlainRung(), StratifiedRung(1, REDUCTION)
    members: list[int] = []
    paused: set[int] = set()
    for number, (step, pick) in enumerate(steps):
        values = (pick / 4,)
        if step == "add":
            assert plain.would_pass(number, values) == general.would_pass(number, values)
            members.append(number)
            plain.add(number, values)
            general.add(number, values)
        elif members:
            chosen = members[pick % len(members)]
            if step == "remove":
                members.remove(chosen)
                paused.discard(chosen)
                plain.remove(chosen)
                general.remove(chosen)
            elif (step == "pause") != (chosen in paused):
                paused ^= {chosen}
                plain.set_paused(chosen, step == "pause")
                general.set_paused(chosen, step == "pause")
        assert plain.waiting() == general.waiting()
