"""Who goes on: the rules on hand-made numbers, and their laws on parametric curves with a simulated clock."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_stopping import Curve, compare, interval, planted, simulate
from dnas.errors import InputError
from dnas.search.stopping import REDUCTION, STOPPINGS, Ladder, _PlainRung, _Rung, brackets, check_stopping, rungs

SEEDS = range(30)


def arrive(ladder: Ladder, number: int, epoch: int, *values: float) -> bool:
    """One report, decided and noted as the search does."""
    size = values[1] if len(values) > 1 else None
    go_on = ladder.decide(number, epoch, values, size)
    ladder.note(number, epoch, values, size, go_on)
    return go_on


def curves(seed: int, trials: int, epochs: int = 27) -> list[Curve]:
    return planted(seed, trials, epochs).curves[:trials]


# --- one objective ------------------------------------------------------------------------------------------------


def test_rungs_lie_at_a_ninth_and_a_third_and_none_before_the_third_epoch() -> None:
    assert [rungs(epochs) for epochs in (40, 27, 12, 9, 4, 3, 1)] == [(5, 14), (3, 9), (4,), (3,), (), (), ()]
    assert Ladder("asha", 27, several=False).rungs == Ladder("hyperband", 27, several=True).rungs == (3, 9)
    assert Ladder("median", 27, several=False).rungs == tuple(range(3, 27))
    assert Ladder("none", 27, several=True).rungs == Ladder("median", 3, several=False).rungs == ()
    assert [Ladder(name, 9, several=False).pauses for name in STOPPINGS] == [True, True, False, False]


def test_the_best_third_goes_on_and_the_rest_is_promoted_as_others_arrive() -> None:
    ladder = Ladder("asha", 27, several=False)
    assert arrive(ladder, 0, 1, 0.99), "there is no rung yet"
    assert arrive(ladder, 0, 2, 0.98)
    assert arrive(ladder, 0, 3, 0.5), "the first has nobody to be compared with"
    assert not arrive(ladder, 1, 3, 0.6)
    assert arrive(ladder, 2, 3, 0.4)
    assert not arrive(ladder, 3, 3, 0.7)
    assert not arrive(ladder, 4, 3, 0.45), "of five one goes on, and it has"
    assert ladder.promotable() is None
    assert not arrive(ladder, 5, 3, 0.8)
    assert ladder.promotable() == 4, "of six two go on"
    ladder.promote(4)
    assert ladder.promotable() is None, "0 is third, and runs anyway"
    for number in range(6, 12):
        assert not arrive(ladder, number, 3, 0.9 + number / 100)
    assert ladder.promotable() == 1, "of twelve four go on"


def test_the_highest_rung_is_promoted_first_and_there_the_best() -> None:
    ladder = Ladder("asha", 27, several=False)
    for number in range(9):
        ladder.note(number, 3, (0.1 * (number + 1),), None, number < 3)
    assert ladder.promotable() is None
    for number in (2, 0, 1):
        ladder.note(number, 9, (0.1 * (number + 1),), None, False)
    for number in range(9, 12):
        ladder.note(number, 3, (0.05 + number / 1000,), None, False)
    assert ladder.promotable() == 0, "of epoch 9, though 9 has less"
    ladder.promote(0)
    assert ladder.promotable() == 9, "of epoch 3"
    ladder.promote(9)
    assert ladder.promotable() == 10


def test_the_earlier_of_two_equal_trials_goes_on() -> None:
    ladder = Ladder("asha", 9, several=False)
    assert arrive(ladder, 1, 3, 0.5)
    assert not arrive(ladder, 2, 3, 0.5)
    assert arrive(ladder, 0, 3, 0.5)


def test_at_the_end_every_trial_of_the_best_third_has_gone_on() -> None:
    every = curves(0, 90)
    run = simulate(Ladder("asha", 27, several=False), every, several=False)
    for rung, following in ((3, 9), (9, 27)):
        there = sorted((every[n].errors[rung - 1], n) for n, epoch in run.reached.items() if epoch >= rung)
        best = {number for _, number in there[: len(there) // REDUCTION]}
        assert best <= {number for number, epoch in run.reached.items() if epoch >= following}
    assert 0.25 < run.epochs / (90 * 27) < 0.35, "a ninth, a third of 2/9, and a ninth of 2/3 make 0.26"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_a_paused_trial_is_promoted_from_the_epoch_it_was_paused_after(name: str, several: bool) -> None:
    runs = [simulate(Ladder(name, 27, several=several), curves(seed, 90), several=several) for seed in range(4)]
    resumed = [one for run in runs for one in run.resumed]
    assert len(resumed) >= 10
    assert {paused for _, paused, _ in resumed} == {3, 9}
    assert all(following == paused + 1 for _, paused, following in resumed)


def test_hyperbands_brackets_share_the_trials_so_that_each_spends_about_as_much() -> None:
    assert brackets(27) == (((3, 9), 9), ((9,), 5), ((), 3))
    assert brackets(12) == (((4,), 3), ((), 2))
    assert brackets(2) == (((), 1),)
    ladder = Ladder("hyperband", 27, several=False)
    begins = [next((epoch for epoch in (3, 9) if probe(ladder, number, epoch)), 27) for number in range(2, 36)]
    assert [begins.count(epoch) for epoch in (3, 9, 27)] == [18, 10, 6]
    assert {3, 9} <= set(begins[:4]), "spread over the cycle"
    assert begins[:17] == begins[17:]


def probe(ladder: Ladder, number: int, epoch: int) -> bool:
    """Whether the bracket of `number` compares trials at `epoch`: a bad one is stopped there beside a good one."""
    ladder = copy.deepcopy(ladder)
    for other in range(17):
        ladder.note(other + 17 * 9, epoch, (0.1,), None, True)
    return not ladder.decide(number, epoch, (0.9,), None)


def test_hyperband_compares_within_a_bracket_only() -> None:
    ladder = Ladder("hyperband", 27, several=False)
    assert arrive(ladder, 0, 3, 0.1)  # of the bracket with the rungs 3 and 9
    assert arrive(ladder, 0, 9, 0.1)
    assert arrive(ladder, 1, 9, 0.9), "the first of the bracket with rung 9"
    assert not arrive(ladder, 2, 3, 0.9)
    assert arrive(ladder, 3, 9, 0.99), "in the bracket without rungs"


def test_the_median_rule_compares_the_best_value_with_the_median_of_running_averages() -> None:
    ladder = Ladder("median", 9, several=False)
    for number, level in enumerate((0.1, 0.2, 0.3, 0.4, 0.5)):
        for epoch in range(1, 10):
            if number == 4:
                assert ladder.decide(9, epoch, (0.99,), None), "fewer than five have ended"
            # The running average after epoch 3 is the level, after epoch 4 a quarter lower.
            ladder.note(number, epoch, (level + 0.1 * (2 - epoch) if epoch <= 3 else 0.0,), None, True)
    assert ladder.decide(9, 3, (0.3,), None)
    assert not ladder.decide(9, 3, (0.301,), None)
    assert not ladder.decide(9, 4, (0.226,), None)
    assert ladder.decide(9, 4, (0.224,), None)
    assert ladder.decide(9, 2, (0.99,), None)
    assert ladder.decide(9, 9, (0.99,), None)
    ladder.note(9, 1, (0.2,), None, True)
    assert ladder.decide(9, 3, (0.9,), None), "its best was 0.2"
    assert ladder.promotable() is None
    ladder.note(5, 1, (0.05,), None, True)
    ladder.note(5, 2, (0.05,), None, True)
    ladder.note(5, 3, (0.05,), None, False)  # stopped: counts as far as it came
    assert not ladder.decide(8, 3, (0.26,), None)
    assert ladder.decide(8, 3, (0.25,), None)
    assert not ladder.decide(8, 4, (0.226,), None)
    assert ladder.decide(8, 4, (0.224,), None)
    ladder.forget(5)
    assert ladder.decide(8, 3, (0.3,), None)
    ladder.forget(0)
    assert ladder.decide(8, 3, (0.9,), None), "four are too few"


def test_the_median_rule_stops_for_good_and_keeps_the_best() -> None:
    every = curves(2, 60)
    run = simulate(Ladder("median", 27, several=False), every, several=False)
    best = min(range(60), key=lambda number: every[number].errors[-1])
    assert run.reached[best] == 27
    assert not run.resumed
    assert 5 < sum(epoch < 27 for epoch in run.reached.values()) < 55


# --- several objectives -------------------------------------------------------------------------------------------


def test_of_equal_size_the_best_third_by_error_goes_on() -> None:
    one, many = Ladder("asha", 9, several=False), Ladder("asha", 9, several=True)
    for number, error in enumerate(np.random.default_rng(0).random(60)):
        assert arrive(one, number, 3, error) == arrive(many, number, 3, error, 1000.0)
        assert one.promotable() == many.promotable()


def test_each_group_of_size_has_its_own_best_third() -> None:
    """48 trials, of which the larger are the worse: plain multi-objective ASHA stops all but small ones."""
    small, plain = Ladder("asha", 9, several=True), Ladder("asha", 9, several=True, strata=1)
    rng, gone = np.random.default_rng(1), {}
    for number in rng.permutation(48):
        values = (0.2 + 0.01 * number + 0.002 * rng.random(), 1000.0 * 1.1**number)
        for ladder in (small, plain):
            if arrive(ladder, int(number), 3, *values):
                gone.setdefault(ladder, set()).add(int(number))
            while (best := ladder.promotable()) is not None:
                ladder.promote(best)
                gone.setdefault(ladder, set()).add(best)
    counts = np.bincount([number // 12 for number in gone[small]], minlength=4)
    assert all(4 <= count <= 8 for count in counts), counts
    assert sum(number >= 24 for number in gone[plain]) <= 4, "only the first to arrive"


def test_what_size_explains_decides_nothing_within_a_group() -> None:
    """A trend of error over log size, whatever its slope, moves nobody: only how good each is for its size counts."""
    rng = np.random.default_rng(2)
    sizes, errors = 10 ** rng.uniform(4, 6, 80), rng.random(80)
    ladders = {slope: Ladder("asha", 9, several=True) for slope in (0.0, 0.3, -0.2)}
    for number in range(80):
        decided = set()
        for slope, ladder in ladders.items():
            values = (float(errors[number] + slope * math.log(sizes[number])), float(sizes[number]))
            if number < 40:  # the groups have too few for a line at first
                ladder.note(number, 3, values, values[1], False)
            else:
                decided.add((arrive(ladder, number, 3, *values), ladder.promotable()))
        assert len(decided) <= 1


def test_the_smallest_goes_on_whatever_its_error() -> None:
    ladder = Ladder("asha", 9, several=True)
    for number, size in enumerate(np.random.default_rng(3).permutation(60)):
        arrive(ladder, number, 3, 0.1 + number / 1000, 100.0 + float(size))
    assert ladder.decide(99, 3, (0.99, 99.5), 99.5)
    assert not ladder.decide(99, 3, (0.99, 100.5), 100.5)


def test_of_several_groups_the_best_placed_is_promoted_first() -> None:
    ladder = Ladder("asha", 9, several=True, strata=2)
    for number in range(24):  # 0 to 11 are small; of each twelve, four go on
        size = 10.0 + number // 12
        ladder.note(number, 3, (0.1 + 0.01 * number, size), size, number < 2)
    promoted = []
    while (best := ladder.promotable()) is not None:
        promoted.append(best)
        ladder.promote(best)
    assert promoted == [12, 13, 2, 14, 3, 15]


def test_a_third_objective_counts_by_front() -> None:
    """Equal sizes: of nine, three go on; the one with the worst error but the least latency is on the first front."""
    ladder = Ladder("asha", 9, several=True)
    for number in range(8):
        ladder.note(number, 3, (0.1 * (number + 1), 5.0, 1.0 + number), 5.0, False)
    assert ladder.decide(8, 3, (0.95, 5.0, 0.5), 5.0)
    assert not ladder.decide(8, 3, (0.95, 5.0, 9.5), 5.0)
    assert ladder.decide(8, 3, (0.25, 5.0, 2.5), 5.0)
    assert not ladder.decide(8, 3, (0.45, 5.0, 4.5), 5.0)


def test_a_large_slow_starter_survives_with_strata_and_not_without() -> None:
    """On the final front, and behind smaller networks early on: what was assumed stands in `planted`."""
    lived = {1: 0, 4: 0}
    for seed in SEEDS:
        scene = planted(seed)
        assert scene.planted is not None
        size, error = scene.curves[scene.planted].size, scene.curves[scene.planted].errors[-1]
        assert not any(c.size <= size and c.errors[-1] < error for c in scene.curves[: scene.trials]), "on the front"
        early = sorted(c.errors[2] for c in scene.curves[: scene.trials])
        assert scene.curves[scene.planted].errors[2] > early[len(early) // 2], "slow"
        for strata in lived:
            ladder = Ladder("asha", 27, several=True, strata=strata)
            run = simulate(ladder, scene.curves[: scene.trials], several=True)
            lived[strata] += run.reached[scene.planted] == 27
    assert lived[4] >= 28
    assert lived[1] <= 10


def test_the_hypervolume_equals_that_of_no_stopping_at_half_its_epochs() -> None:
    """Of complete trials, with half the epochs that no stopping spends. Equal: the 95% interval of the mean ratio,
    paired by seed, lies within 1% of one. Without a rule half the epochs lose more."""

    def ratios(name: str) -> tuple[list[float], list[float], list[float]]:
        made = [
            compare(lambda epochs: Ladder(name, epochs, several=True), planted(seed), several=True) for seed in SEEDS
        ]
        return [o.volume_at_half for o in made], [o.volume for o in made], [o.share for o in made]

    at_half, same, shares = ratios("asha")
    mean, half_width = interval(at_half)
    assert mean - half_width > 0.99
    assert mean + half_width < 1.01
    assert np.mean(same) > 0.985
    assert max(shares) < 0.5
    mean, half_width = interval(ratios("none")[0])
    assert mean + half_width < 0.98


# --- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "several"), [(n, s) for n in STOPPINGS for s in (False, True) if (n, s) != ("median", True)]
)
def test_deciding_changes_nothing_and_the_same_events_decide_the_same(name: str, several: bool) -> None:
    run = simulate(Ladder(name, 27, several=several), curves(3, 40), several=several)
    ladder, twin = (Ladder(name, 27, several=several) for _ in range(2))
    for event in run.events:
        if event[0] == "promote":
            assert ladder.promotable() == event[1]
            ladder.promote(event[1])
            twin.promote(event[1])
            continue
        _, number, epoch, values, size, go_on = event
        before = state(ladder)
        assert ladder.decide(number, epoch, values, size) == go_on
        assert ladder.decide(999, epoch, (0.0, 1.0)[: len(values)], 1.0 if several else None) in (True, False)
        ladder.promotable()
        assert state(ladder) == before
        ladder.note(number, epoch, values, size, go_on)
        twin.note(number, epoch, values, size, go_on)  # never asked: only what was noted counts
    assert state(ladder) == state(twin)
    assert ladder.promotable() == twin.promotable()


def state(ladder: Ladder) -> bytes:
    """All that a ladder holds, but for answers that it keeps until the next event."""
    ladder = copy.deepcopy(ladder)
    for bracket in ladder._rungs:
        for rung in bracket.values():
            rung._waiting = None
    return pickle.dumps(ladder)


@pytest.mark.parametrize("several", [False, True])
def test_a_forgotten_trial_is_neither_counted_nor_promoted(several: bool) -> None:
    """What is left decides as if it had never been there."""
    rng = np.random.default_rng(4)
    reports = [
        (float(e), float(s))[: 1 + several] for e, s in zip(rng.random(50), rng.integers(5, 15, 50), strict=True)
    ]
    ladder, never = (Ladder("asha", 9, several=several) for _ in range(2))
    for number, values in enumerate(reports):
        ladder.note(number, 3, values, values[1] if several else None, number % 5 == 0)
        if number % 4:
            never.note(number, 3, values, values[1] if several else None, number % 5 == 0)
    for number in range(0, 50, 4):
        ladder.forget(number)
    promoted = []
    while (best := ladder.promotable()) is not None:
        assert best == never.promotable()
        promoted.append(best)
        ladder.promote(best)
        never.promote(best)
    assert never.promotable() is None
    assert len(promoted) >= 5
    assert not any(number % 4 == 0 for number in promoted)
    arrive(ladder, 4, 3, *reports[4])  # it may be tried again


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", STOPPINGS)
@pytest.mark.parametrize("epochs", [1, 3, 5, 27])
def test_the_smallest_search_completes_a_trial(name: str, several: bool, epochs: int) -> None:
    if name == "median" and several:
        return
    for trials in (1, 2, 3):
        every = curves(5, trials + 1, epochs)[:trials]
        run = simulate(Ladder(name, epochs, several=several), every, several=several)
        assert run.complete(every)
        if epochs <= 3:
            assert len(run.complete(every)) == trials, "there are no rungs"


def test_a_value_that_is_not_finite_is_never_compared() -> None:
    ladder = Ladder("asha", 9, several=False)
    for value in (math.nan, math.inf):
        with pytest.raises(AssertionError, match="failed, and never compared"):
            ladder.decide(0, 1, (value,), None)
        with pytest.raises(AssertionError, match="failed, and never compared"):
            ladder.note(0, 1, (value,), None, True)
    ladder.note(0, 1, (0.5,), None, True)
    with pytest.raises(AssertionError, match="noted once"):
        ladder.note(0, 1, (0.5,), None, True)
    with pytest.raises(AssertionError, match="within groups of size"):
        Ladder("asha", 9, several=True).decide(0, 3, (0.5, 10.0), None)


def test_a_rule_that_cannot_compare_says_so() -> None:
    with pytest.raises(InputError, match="--stopping median needs a single objective"):
        check_stopping("median", several=True)
    with pytest.raises(InputError, match=r"one of asha, hyperband, median, none, but got 'ahsa'\. Did you mean asha"):
        Ladder("ahsa", 9, several=False)
    for name in STOPPINGS:
        check_stopping(name, several=False)


STEPS = st.tuples(st.sampled_from(["add", "add", "add", "pause", "promote", "remove"]), st.integers(0, 9))


@given(st.lists(STEPS, min_size=20, max_size=80))
def test_the_sorted_rung_of_one_objective_decides_as_the_general_one(steps: list[tuple[str, int]]) -> None:
    """Values repeat, so that ties are decided too."""
    plain, general = _PlainRung(), _Rung(1)
    there: list[int] = []
    paused: set[int] = set()
    for number, (step, pick) in enumerate(steps):
        values = (pick / 4,)
        if step == "add":
            assert plain.would_pass(number, values) == general.would_pass(number, values)
            there.append(number)
            plain.add(number, values)
            general.add(number, values)
        elif there:
            chosen = there[pick % len(there)]
            if step == "remove":
                there.remove(chosen)
                paused.discard(chosen)
                plain.remove(chosen)
                general.remove(chosen)
            elif (step == "pause") != (chosen in paused):
                paused ^= {chosen}
                plain.set_paused(chosen, step == "pause")
                general.set_paused(chosen, step == "pause")
        assert plain.waiting() == general.waiting()
