"""Steady-state NSGA-II, and comparable values of unfinished trials, which the Gaussian process also uses."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnas.space.pareto import crowding, nondominated_ranks
from dnas.space.space import Choice
from dnas.strategy.samplers.problem import Problem, Told

POPULATION = 20  # also the number of random trials before parents are selected
CROSSOVER = 0.9  # fraction of children with two parents; the others are mutants of one parent
REDRAWS = 200  # refused children in a row after which a random point is proposed


def propose_nsga2(problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
    """Propose a child of two good trials: binary tournaments on (front, crowding), uniform crossover, mutation.

    This is NSGA-II (Deb et al. 2002) without generations. The population is the best `POPULATION` of all trials so far,
    so that any number of workers can request proposals at any time. With one objective the front is the rank.
    """
    trials, values = comparable(told)
    if len(trials) >= POPULATION:
        ranks = nondominated_ranks(values)
        # Trials of all fronts that contribute to the population.
        rows = np.flatnonzero(ranks <= np.sort(ranks)[POPULATION - 1])
        distances = np.zeros(len(rows))
        for front in np.unique(ranks[rows]):
            distances[ranks[rows] == front] = crowding(values[rows][ranks[rows] == front])
        best = rows[np.lexsort((-distances, ranks[rows]))[:POPULATION]]  # best first; tournaments compare positions
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
    """Take each choice from one of the parents, with equal probability."""
    sides = rng.random(len(choices)) < 0.5
    return {c.name: (mother if side else father)[c.name] for c, side in zip(choices, sides, strict=True)}


def mutate(choices: Sequence[Choice], point: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Redraw one choice of `point`, and each further choice with probability 1 / number of choices."""
    changed = rng.random(len(choices)) < 1 / len(choices)
    changed[rng.integers(len(choices))] = True
    return {
        c.name: _other(c, point[c.name], rng) if new else point[c.name] for c, new in zip(choices, changed, strict=True)
    }


def _other(choice: Choice, value: Any, rng: np.random.Generator) -> Any:
    """Draw another value of the choice uniformly; return the same value if there is no other."""
    values = choice.values()
    if values is None:
        return round(choice.low + rng.random() * (choice.high - choice.low), 10)
    others = [other for other in values if other != value]
    return others[rng.integers(len(others))] if others else value


def comparable(told: Sequence[Told]) -> tuple[list[Told], np.ndarray]:
    """Return the trials that are informative about final values, and their values [n, m].

    Running trials and trials without known values are left out. The first value of a paused or stopped trial is
    multiplied by the median ratio of final value to value after the same epoch, over the trials that were trained
    further (whose final values may be such estimates themselves). It is unchanged if no trial was trained further.
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
    # Longest runs first, because the estimates of shorter ones depend on them.
    for trial, values in sorted(partial, key=lambda pair: (-pair[0].epoch, pair[0].number)):
        if trial.epoch not in ratios:
            observed = [
                final[other.number] / other.curve[trial.epoch] for other in further if other.curve.get(trial.epoch)
            ]
            observed = [ratio for ratio in observed if np.isfinite(ratio)]
            ratios[trial.epoch] = float(np.median(observed)) if observed else 1.0
        final[trial.number] = values[0] * ratios[trial.epoch]
        further.append(trial)
    rows = [(final[trial.number], *values[1:]) for trial, values in known]
    return [trial for trial, _ in known], np.array(rows, dtype=float)
