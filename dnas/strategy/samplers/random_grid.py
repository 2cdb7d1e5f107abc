"""Samplers that do not learn: uniform random draws and a grid."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnas.space.space import Choice
from dnas.strategy.samplers.problem import Exhausted, Problem, Told

FLOAT_VALUES = 5  # grid values of a float without a step
MAX_REFUSALS = 200_000  # refusals in a row after which a grid counts as exhausted; they take several seconds


def propose_random(problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
    """Draw uniformly from the points that `problem.accept` accepts."""
    return problem.draw(random.Random(int(rng.integers(2**63))))


def propose_grid(problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
    """Propose the grid point after the latest trial, skipping points that `problem.accept` refuses.

    Points are in the cyclic order of `Grid`, so that any trial on the grid can be the starting position. `rng` is not
    used.
    """
    grid = Grid(problem.choices)
    indices = (grid.index(trial.params) for trial in sorted(told, key=lambda trial: -trial.number))
    start = next((index + 1 for index in indices if index is not None), 0)
    for step in range(min(grid.size, MAX_REFUSALS)):
        point = grid.point((start + step) % grid.size)
        if problem.accept(point) is not None:
            return point
    raise Exhausted


class Grid:
    """All combinations of the choices' values, numbered so that the first ones are spread over the space.

    The grid is the group Z_n1 × … × Z_nd. The order follows the cyclic subgroup of a generator (m1, …, md), each mi
    coprime to ni, coset by coset. Within a coset, any ni consecutive points contain each value of choice i once. Points
    are not enumerated; number and point are computed from each other by the Chinese remainder theorem.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self._names = [choice.name for choice in choices]
        self._values = [grid_values(choice) for choice in choices]
        counts = [len(values) for values in self._values]
        self.size = math.prod(counts)
        # Choices with the same number of values need different steps, or they would always change together.
        self._steps = [_unit(count, number) for number, count in enumerate(counts)]
        # Entry i is the combined period of the first i choices.
        self._periods = list(itertools.accumulate(counts, math.lcm, initial=1))
        self._shifts = [math.gcd(period, count) for period, count in zip(self._periods, counts, strict=False)]

    def point(self, index: int) -> dict[str, Any]:
        """Return the point with number `index`, from 0 to `size` - 1."""
        coset, position = divmod(index, self._periods[-1])
        point = {}
        for name, values, step, shifts in zip(self._names, self._values, self._steps, self._shifts, strict=True):
            coset, shift = divmod(coset, shifts)
            point[name] = values[step * (position + shift) % len(values)]
        return point

    def index(self, point: Mapping[str, Any]) -> int | None:
        """Return the number of `point`, or None if it is not on the grid."""
        position, coset, cosets = 0, 0, 1
        for i, (name, values) in enumerate(zip(self._names, self._values, strict=True)):
            if point.get(name) not in values:
                return None
            count, period, shifts = len(values), self._periods[i], self._shifts[i]
            reached = values.index(point[name]) * pow(self._steps[i], -1, count) % count  # position + shift, mod count
            shift = (reached - position) % shifts
            # The position is known modulo `period`; now also modulo `count`.
            turns = (reached - shift - position) // shifts * pow(period // shifts, -1, count // shifts)
            position += period * (turns % (count // shifts))
            coset, cosets = coset + cosets * shift, cosets * shifts
        return coset * self._periods[-1] + position


def grid_values(choice: Choice) -> list[Any]:
    """Return the values of a choice on the grid, in the form used by the sampler."""
    values = choice.values()
    if values is None:
        values = [round(float(value), 10) for value in np.linspace(choice.low, choice.high, FLOAT_VALUES)]
    return values


def _unit(count: int, number: int) -> int:
    """Return the integer below `count` that is coprime to it, at cyclic index `number`; 1 if `count` is 1."""
    units = [step for step in range(1, count) if math.gcd(step, count) == 1] or [1]
    return units[number % len(units)]
