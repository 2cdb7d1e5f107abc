"""Steady-state NSGA-II, and what it shares with the model: the values of unfinished trials made comparable."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnas.search.samplers.problem import Problem, Told
from dnas.space.pareto import crowding, nondominated_ranks
from dnas.space.space import Choice

POPULATION = 20  # also the number of random trials before there are parents
CROSSOVER = 0.9  # of the children; the others are mutants of one parent
REDRAWS = 200  # children refused in a row, before a random point is taken


def propose_nsga2(problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
    """A child of two good trials: binary tournaments on (front, crowding), uniform crossover, mutation.

    NSGA-II (Deb et al. 2002) without generations: the population is the best `POPULATION` of all trials so far, so any
    number of workers can ask at any time. With one objective the front is the rank.
    """
    trials, values = comparable(told)
    if len(trials) >= POPULATION:
        ranks = nondominated_ranks(values)
        near = np.flatnonzero(ranks <= np.sort(ranks)[POPULATION - 1])  # the fronts that the population reaches into
        apart = np.zeros(len(near))
        for front in np.unique(ranks[near]):
            apart[ranks[near] == front] = crowding(values[near][ranks[near] == front])
        best = near[np.lexsort((-apart, ranks[near]))[:POPULATION]]  # a place in it is what a tournament compares
        for _ in range(REDRAWS):
            mother, father = (trials[best[rng.integers(len(best), size=2).min()]].params for _ in range(2))
            child: Mapping[str, Any] = mother
            if rng.random() < CROSSOVER:
                child = crossover(problem.choices, mother, father, rng)
            child = mutate(problem.choices, child, rng)
            if problem.accept(child) is not None:
                return child
    return problem.draw(random.Random(int(rng.integers(2**63))))


def crossover(
    choices: Sequence[Choice], mother: Mapping[str, Any], father: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Each choice from one parent or the other, with equal chances."""
    sides = rng.random(len(choices)) < 0.5
    return {c.name: (mother if side else father)[c.name] for c, side in zip(choices, sides, strict=True)}


def mutate(choices: Sequence[Choice], point: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """`point` with one choice made anew, or more: each further one with a chance of 1 in their number."""
    changed = rng.random(len(choices)) < 1 / len(choices)
    changed[rng.integers(len(choices))] = True
    return {
        c.name: _other(c, point[c.name], rng) if new else point[c.name] for c, new in zip(choices, changed, strict=True)
    }


def _other(choice: Choice, value: Any, rng: np.random.Generator) -> Any:
    """Another value of the choice, any with the same chance; the same where there is no other."""
    values = choice.values()
    if values is None:
        return round(choice.low + rng.random() * (choice.high - choice.low), 10)
    others = [other for other in values if other != value]
    return others[rng.integers(len(others))] if others else value


def comparable(told: Sequence[Told]) -> tuple[list[Told], np.ndarray]:
    """The trials that tell something of the final values, and these values [n, m].

    Trials that run or whose values are not known are left out. What a paused or stopped trial had after an epoch is
    made an estimate of its final value: times the median ratio of final value to value after that epoch, over the
    trials that got further (those that are not complete themselves with their estimates). Where none got further it
    stays as it is.
    """
    known = [
        (trial, trial.values)
        for trial in told
        if trial.state in ("complete", "failed", "paused", "stopped")
        and trial.values is not None
        and not any(map(math.isnan, trial.values))
    ]
    final = {trial.number: values[0] for trial, values in known if trial.state in ("complete", "failed")}
    further = [trial for trial, _ in known if trial.state == "complete"]
    ratios: dict[int, float] = {}
    partial = [(trial, values) for trial, values in known if trial.number not in final]
    # From the furthest on, so that those further have their estimates.
    for trial, values in sorted(partial, key=lambda pair: (-pair[0].epoch, pair[0].number)):
        if trial.epoch not in ratios:
            seen = [final[other.number] / other.curve[trial.epoch] for other in further if other.curve.get(trial.epoch)]
            seen = [ratio for ratio in seen if np.isfinite(ratio)]
            ratios[trial.epoch] = float(np.median(seen)) if seen else 1.0
        final[trial.number] = values[0] * ratios[trial.epoch]
        further.append(trial)
    rows = [(final[trial.number], *values[1:]) for trial, values in known]
    return [trial for trial, _ in known], np.array(rows, dtype=float)
