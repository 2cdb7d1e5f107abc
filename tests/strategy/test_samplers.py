"""Invariants of every sampler: deterministic, inside the limits, without duplicates. Learning samplers beat chance."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dnas.space.pareto import hypervolume, nondominated_ranks
from dnas.space.space import Choice
from dnas.strategy.samplers.gp import Coding, Process, distances, expected_improvement, propose_gp, volume_improvement
from dnas.strategy.samplers.gp import _fit as fit_hyperparameters
from dnas.strategy.samplers.gp import _misfit as misfit
from dnas.strategy.samplers.nsga2 import comparable, crossover, mutate, propose_nsga2
from dnas.strategy.samplers.problem import Exhausted, Problem, Sampler, Told
from dnas.strategy.samplers.random_grid import FLOAT_VALUES, Grid, propose_grid, propose_random

CHOICES = (
    Choice("width", "width", "int", 4, 40, 4),
    Choice("depth", "depth", "int", 2, 18, 2),
    Choice("squeeze", "squeeze", "float", 0.3, 1.0),
    Choice("dropout", "dropout", "float", 0.0, 0.4, 0.1),
    Choice("link", "link", "of", options=("dense", "log", "none")),
)
SMALL = (
    Choice("width", "width", "int", 4, 8, 1),
    Choice("share", "share", "float", 0.0, 1.0),
    Choice("link", "link", "of", options=("dense", "log", "none")),
    Choice("depth", "depth", "int", 1, 6, 1),
    Choice("one", "one", "of", options=("only",)),
)
SAMPLERS = [propose_random, propose_grid, propose_nsga2, propose_gp]
LEARNING = [propose_nsga2, propose_gp]


def size(point: Mapping[str, Any]) -> float:
    return 1_000.0 * point["width"] ** 2 * point["depth"] * point["squeeze"]


def error(point: Mapping[str, Any]) -> float:
    """Return an error that is lowest at width 28 and depth 14. Small networks need less dropout, deep ones links."""
    gap = 0.3 * ((point["width"] - 28) / 36) ** 2 + 0.2 * ((point["depth"] - 14) / 16) ** 2
    gap += 0.2 * (point["squeeze"] - 0.6) ** 2 + 0.5 * (point["dropout"] - 0.1 * (point["width"] > 20)) ** 2
    return 0.05 + gap + {"dense": 0.0, "log": 0.01, "none": 0.004 * point["depth"]}[point["link"]]


class Search:
    """A search loop that asks a sampler, measures its proposal at once and reports the value to it."""

    def __init__(
        self,
        sampler: Sampler,
        seed: int = 0,
        objectives: tuple[str, ...] = ("val_error",),
        choices: Sequence[Choice] = CHOICES,
        measure: Callable[[Mapping[str, Any]], float] = error,
        max_size: float = 2e7,
    ) -> None:
        self.sampler, self.seed, self.measure, self.max_size = sampler, seed, measure, max_size
        self.tried: set[tuple[Any, ...]] = set()
        self.told: list[Told] = []
        self.problem = Problem(tuple(choices), objectives, self.accept, self.draw)

    def accept(self, point: Mapping[str, Any]) -> tuple[float | None, ...] | None:
        assert set(point) == {choice.name for choice in self.problem.choices}
        for choice in self.problem.choices:
            values = choice.values()
            known = choice.low <= point[choice.name] <= choice.high if values is None else point[choice.name] in values
            assert known, (choice.name, point[choice.name])
        if tuple(point.values()) in self.tried or (self.max_size < math.inf and size(point) > self.max_size):
            return None
        known_values = {"params": size(point) if "params" in self.problem.objectives else 0.0}
        return tuple(known_values.get(name) for name in self.problem.objectives)

    def draw(self, rng: random.Random) -> dict[str, Any]:
        for _ in range(10_000):
            point = {}
            for choice in self.problem.choices:
                values = choice.values()
                point[choice.name] = rng.choice(values) if values else round(rng.uniform(choice.low, choice.high), 10)
            if self.accept(point) is not None:
                return point
        raise Exhausted

    def ask(self) -> dict[str, Any]:
        return self.sampler(self.problem, self.told, np.random.default_rng([self.seed, len(self.told)]))

    def tell(self, point: Mapping[str, Any], state: str = "complete") -> None:
        known = self.accept(point)
        assert known is not None, "the proposal is not acceptable"
        self.tried.add(tuple(point[choice.name] for choice in self.problem.choices))
        value = self.measure(point)
        values = (value, *(cost if cost is not None else value / 10 for cost in known[1:]))
        told = None if state == "running" else values
        self.told.append(Told(len(self.told), dict(point), state, told, 1, 1, {1: value}))

    def run(self, trials: int) -> "Search":
        while len(self.told) < trials:
            self.tell(self.ask())
        return self

    def best(self) -> float:
        return min(trial.values[0] for trial in self.told if trial.values is not None)


@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "params"), ("val_error", "params", "latency")])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_acceptable_and_depend_on_the_arguments_alone(
    sampler: Sampler, objectives: tuple[str, ...]
) -> None:
    first, second = Search(sampler, 3, objectives, max_size=4e6), Search(sampler, 3, objectives, max_size=4e6)
    for number in range(30):
        point = first.ask()
        if number % 3 == 0:  # earlier calls must not affect the proposal
            Search(sampler, 4, objectives).run(12)
            first.ask()
        assert point == second.ask()
        first.tell(point)  # checks that the point is acceptable
        second.tell(point)


@pytest.mark.parametrize("sampler", LEARNING)
def test_proposals_differ_between_generators(sampler: Sampler) -> None:
    search = Search(sampler).run(20)
    points = [sampler(search.problem, search.told, np.random.default_rng(seed)) for seed in range(8)]
    assert len({tuple(point.values()) for point in points}) > 1


@pytest.mark.parametrize("sampler", LEARNING)
def test_sampler_finds_better_networks_than_chance(sampler: Sampler) -> None:
    trials = 40 if sampler is propose_gp else 100
    results = [Search(sampler, seed).run(trials).best() for seed in range(5)]
    chance = [Search(propose_random, seed).run(trials).best() for seed in range(5)]
    assert sum(a < b for a, b in zip(results, chance, strict=True)) >= 4, (results, chance)
    assert np.mean(results) < np.mean(chance)


@pytest.mark.slow
def test_gp_comes_close_to_the_optimum() -> None:
    reached = [Search(propose_gp, seed).run(50).best() for seed in range(3)]
    assert max(reached) < 0.055, reached  # the optimum of `error` within the limit is 0.05


@pytest.mark.parametrize("sampler", [propose_nsga2, pytest.param(propose_gp, marks=pytest.mark.slow)])
def test_sampler_reaches_a_larger_hypervolume_than_chance(sampler: Sampler) -> None:
    def volume(search: Search) -> float:
        rows = [(t.values[0], math.log(t.values[1])) for t in search.told if t.values is not None]
        return hypervolume(np.array(rows), (0.6, math.log(2e7)))

    objectives = ("val_error", "params")
    trials = 50 if sampler is propose_gp else 150
    results = [volume(Search(sampler, seed, objectives).run(trials)) for seed in range(5)]
    chance = [volume(Search(propose_random, seed, objectives).run(trials)) for seed in range(5)]
    assert sum(a > b for a, b in zip(results, chance, strict=True)) >= 4, (results, chance)


def distances_by_choice(coding: Coding, rows: np.ndarray) -> np.ndarray:
    """Return the pairwise distances by choice, of shape [choices, n, n]."""
    return np.array(
        [table[np.ix_(at, at)] for table, at in zip(distances(coding.counts, coding.ordered), rows.T, strict=True)]
    )


def test_pending_points_spread_proposals() -> None:
    search = Search(propose_gp).run(25)
    alone = search.ask()
    points = [alone]
    for _ in range(6):
        search.tell(points[-1], "running")
        points.append(search.ask())
    assert len({tuple(point.values()) for point in points}) == 7
    # Without pending points, workers propose near points. Duplicates are rejected, but near points are not.
    uncoordinated = Search(propose_gp).run(25)
    crowded = []
    for _ in range(7):
        crowded.append(uncoordinated.ask())
        uncoordinated.tried.add(tuple(crowded[-1][choice.name] for choice in CHOICES))

    def spread(rows: list[dict[str, Any]]) -> float:
        return float(distances_by_choice(Coding(CHOICES), Coding(CHOICES).encode(rows)).mean())

    assert spread(points) > spread(crowded)


def test_pending_points_lower_the_deviation_but_not_the_mean() -> None:
    coding = Coding(CHOICES)
    rows = coding.uniform(30, np.random.default_rng(0))
    y = np.sin(rows[:, 0] / 2)
    hyper = fit_hyperparameters(*(array.tobytes() for array in (rows, y, coding.counts, coding.ordered)))
    point = coding.uniform(1, np.random.default_rng(1))
    without_pending = Process(coding, rows, y, hyper, point[:0]).predict(point)
    with_pending = Process(coding, rows, y, hyper, point).predict(point)
    assert with_pending[0] == pytest.approx(without_pending[0])
    assert with_pending[1] < 0.5 * without_pending[1]


def told(number: int, state: str, epoch: int, values: tuple[float, ...] | None, curve: dict[int, float]) -> Told:
    return Told(number, {"width": 4}, state, values, epoch, 10, curve)


def test_early_values_are_scaled_to_final_ones() -> None:
    trials = [
        told(0, "complete", 10, (0.2, 7.0), {3: 0.4, 10: 0.2}),
        told(1, "complete", 10, (0.1, 7.0), {3: 0.3, 10: 0.1}),
        told(2, "complete", 10, (0.3, 7.0), {3: 0.6, 10: 0.3}),
        told(3, "paused", 3, (0.5, 9.0), {3: 0.5}),
        told(4, "stopped", 1, (0.9, 9.0), {1: 0.9}),  # no longer trial has a value after epoch 1
        told(5, "failed", 2, (1.0, 9.0), {}),
    ]
    kept, values = comparable(trials)
    assert [trial.number for trial in kept] == [0, 1, 2, 3, 4, 5]
    assert values[3] == pytest.approx((0.5 * 0.5, 9.0))  # the median of 0.5, 1/3 and 0.5
    assert values[4] == pytest.approx((0.9, 9.0))
    assert values[5] == pytest.approx((1.0, 9.0))


def test_early_values_are_scaled_through_longer_incomplete_trials() -> None:
    trials = [
        told(0, "complete", 10, (0.2,), {9: 0.4, 10: 0.2}),
        told(1, "paused", 9, (0.4,), {1: 0.8, 9: 0.4}),
        told(2, "paused", 1, (0.6,), {1: 0.6}),
    ]
    values = comparable(trials)[1][:, 0]
    assert values == pytest.approx([0.2, 0.4 * 0.5, 0.6 * 0.25])


@pytest.mark.parametrize("sampler", LEARNING)
def test_values_of_paused_trials_are_scaled_before_comparison(sampler: Sampler) -> None:
    """Early values are five times the final ones, so raw values of paused trials would exceed all others. Since all
    trials follow the same curve, proposals must equal those of a search in which all are complete.
    """
    search = Search(sampler).run(24)
    early = []
    for trial in search.told:
        assert trial.values is not None
        value = trial.values[0]
        if trial.number % 2:
            early.append(Told(trial.number, trial.params, "paused", (5 * value,), 3, 10, {3: 5 * value}))
        else:
            early.append(Told(trial.number, trial.params, "complete", (value,), 10, 10, {3: 5 * value, 10: value}))
    for seed in range(4):
        complete = sampler(search.problem, search.told, np.random.default_rng(seed))
        assert sampler(search.problem, early, np.random.default_rng(seed)) == complete


@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "params")])
@pytest.mark.parametrize("sampler", LEARNING)
def test_trials_without_finite_values_do_not_affect_proposals(sampler: Sampler, objectives: tuple[str, ...]) -> None:
    search = Search(sampler, 0, objectives).run(20)
    point = search.told[0].params
    nan = (math.nan,) * len(objectives)
    useless = [
        Told(20, point, "infeasible", None, 0, 10),
        Told(21, point, "failed", None, 0, 10),
        Told(22, point, "complete", nan, 10, 10),
        Told(23, point, "paused", nan, 3, 10, {3: math.nan}),
    ]
    assert comparable(useless)[0] == []
    before = [sampler(search.problem, search.told, np.random.default_rng(seed)) for seed in range(4)]
    after = [sampler(search.problem, [*search.told, *useless], np.random.default_rng(seed)) for seed in range(4)]
    assert before == after


@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "params")])
@pytest.mark.parametrize("sampler", LEARNING)
def test_sampler_handles_equal_values_and_diverged_trials(sampler: Sampler, objectives: tuple[str, ...]) -> None:
    Search(sampler, 0, objectives, measure=lambda point: 0.1).run(16)
    Search(sampler, 0, objectives, measure=lambda point: 1.0 if point["width"] > 12 else error(point)).run(25)


@pytest.mark.parametrize("sampler", LEARNING)
def test_sampler_finds_every_point_and_then_is_exhausted(sampler: Sampler) -> None:
    choices = (Choice("width", "width", "int", 1, 5, 1), Choice("link", "link", "of", options=("a", "b", "c", "d")))
    search = Search(sampler, choices=choices, measure=lambda point: point["width"] / 10, max_size=math.inf).run(20)
    assert len(search.tried) == 20
    with pytest.raises(Exhausted):
        search.ask()


# --- the grid ---------------------------------------------------------------------------------------------------


def test_grid_proposes_each_point_once_and_is_then_exhausted() -> None:
    search = Search(propose_grid, choices=SMALL, measure=lambda point: 0.5, max_size=math.inf)
    search.run(Grid(SMALL).size)
    every = {tuple(trial.params[choice.name] for choice in SMALL) for trial in search.told}
    values = [(4, 5, 6, 7, 8), tuple(np.linspace(0, 1, FLOAT_VALUES)), ("dense", "log", "none"), range(1, 7), ("only",)]
    assert every == set(itertools.product(*values))
    with pytest.raises(Exhausted):
        search.ask()


def test_grid_omits_points_that_are_not_acceptable() -> None:
    search = Search(propose_grid, choices=CHOICES, max_size=2e5)
    with pytest.raises(Exhausted):
        search.run(10**6)
    grid = Grid(CHOICES)
    inside = [point for point in map(grid.point, range(grid.size)) if size(point) <= 2e5]
    assert len(search.told) == len(inside) > 100


@pytest.mark.parametrize("choices", [CHOICES, SMALL])
def test_grid_index_inverts_grid_point(choices: Sequence[Choice]) -> None:
    grid = Grid(choices)
    assert [grid.index(grid.point(index)) for index in range(grid.size)] == list(range(grid.size))
    assert grid.index(grid.point(0) | {"width": 5.5}) is None


def test_early_points_of_a_grid_are_spread() -> None:
    grid = Grid(CHOICES)
    for start in (0, 30, 60):
        points = [grid.point(start + i) for i in range(10)]
        for choice, count in (("width", 10), ("depth", 9), ("squeeze", 5), ("dropout", 5), ("link", 3)):
            assert len({point[choice] for point in points}) == count


def test_huge_grid_is_not_enumerated() -> None:
    choices = tuple(Choice(f"layers_{i}", "layers", "int", 1, 40, 1) for i in range(8))
    grid = Grid(choices)
    assert grid.size == 40**8
    last = grid.point(grid.size - 1)
    assert grid.index(last) == grid.size - 1


# --- components --------------------------------------------------------------------------------------------------


def test_crossover_keeps_the_parents_values_and_mutation_changes_some() -> None:
    search = Search(propose_random, choices=SMALL, max_size=math.inf)
    mother, father = search.draw(random.Random(0)), search.draw(random.Random(1))
    rng = np.random.default_rng(0)
    changes = set()
    for _ in range(200):
        child = crossover(SMALL, mother, father, rng)
        assert all(child[name] in (mother[name], father[name]) for name in child)
        mutant = mutate(SMALL, mother, rng)
        search.accept(mutant)  # checks that the values are among the choices
        changes.add(sum(mutant[name] != mother[name] for name in mother))
    assert {1, 2} <= changes


def test_point_survives_encoding_and_decoding() -> None:
    coding = Coding(CHOICES)
    search = Search(propose_random)
    for point in (search.draw(random.Random(seed)) for seed in range(50)):
        coded = coding.decode(coding.encode([point])[0])
        # A float is coded in hundredths of its range.
        assert coded.pop("squeeze") == pytest.approx(point["squeeze"], abs=0.7 / 200)
        assert coded == {name: value for name, value in point.items() if name != "squeeze"}


def test_gradient_of_the_misfit_matches_finite_differences() -> None:
    coding, rng = Coding(CHOICES), np.random.default_rng(0)
    rows = coding.uniform(25, rng)
    pairwise, y = distances_by_choice(coding, rows), rng.standard_normal(25)
    x = rng.normal(size=len(CHOICES) + 3) / 3
    _, gradient = misfit(x, pairwise, coding.ordered, y)
    for i in range(len(x)):
        step = np.zeros(len(x))
        step[i] = 1e-5
        slope = (
            misfit(x + step, pairwise, coding.ordered, y)[0] - misfit(x - step, pairwise, coding.ordered, y)[0]
        ) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_expected_improvement_matches_the_mean_of_draws() -> None:
    rng = np.random.default_rng(0)
    mean, deviation = np.array([0.2, -0.5, 1.0]), np.array([0.3, 0.1, 2.0])
    draws = mean + deviation * rng.standard_normal((200_000, 3))
    assert expected_improvement(mean, deviation, 0.0) == pytest.approx(np.maximum(-draws, 0).mean(axis=0), abs=0.01)


@pytest.mark.parametrize("costs", [1, 2])
def test_expected_volume_improvement_matches_the_mean_of_draws(costs: int) -> None:
    rng = np.random.default_rng(0)
    targets, table = rng.standard_normal(8), rng.random((8, costs))
    candidate_costs = rng.random((3, costs))
    mean, deviation = np.array([-1.0, 0.0, 0.5]), np.array([0.5, 1.0, 0.2])
    front = nondominated_ranks(np.column_stack([targets, table])) == 0
    improvements = volume_improvement(mean, deviation, candidate_costs, targets, table, front)
    ranges = table.max(axis=0) - table.min(axis=0)
    corner = np.array([targets.max(), *(table.max(axis=0) + 0.1 * ranges)])
    rows = np.column_stack([targets, table])
    before = hypervolume(rows, corner)
    for i in range(3):
        gains = []
        for draw in mean[i] + deviation[i] * rng.standard_normal(2_000):
            gains.append(hypervolume(np.vstack([rows, [draw, *candidate_costs[i]]]), corner) - before)
        assert improvements[i] == pytest.approx(np.mean(gains) / ranges.prod(), rel=0.1, abs=0.003)
