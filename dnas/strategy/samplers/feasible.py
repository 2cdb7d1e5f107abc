"""The region of proposals: the untried points of a space that are inside every limit."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from dnas.arch import Cost, Spec
from dnas.errors import InputError
from dnas.space.space import Space
from dnas.strategy.samplers.problem import Exhausted

PLAIN_DRAWS = 300  # uniform draws before the random walk is used; they take about 10 ms
FIRST_STEPS = 12  # steps per choice before the first draw of a walk, so that it forgets its start
STEPS = 4  # steps per choice between later draws of a walk
REPAIRS = 60  # attempts to walk into the region
REPAIR_STEPS = 400  # steps of each attempt
FINITE = 50_000  # spaces of up to this number of points are enumerated to prove that they are exhausted


class Region:
    """The feasible, untried points of `space`. Costs are cached, so that each point is evaluated once per search.

    tried: digests of the networks that have a trial.
    memory: activation bytes at which the device has run out of memory, even with recomputation.
    """

    def __init__(self, space: Space, objectives: tuple[str, ...]) -> None:
        self.space, self.objectives = space, objectives
        self.tried: set[str] = set()
        self.memory = math.inf
        self._names = [choice.name for choice in space.choices]
        self._values = [choice.values() for choice in space.choices]
        self._places = [{value: place for place, value in enumerate(values or [])} for values in self._values]
        self._known: dict[tuple[Any, ...], tuple[Spec | None, Cost | None, float]] = {}

    def price(self, params: Mapping[str, Any]) -> tuple[Spec | None, Cost | None, float]:
        """Return the network, its cost, and its total excess over the limits.

        The excess is 0 inside the limits, and infinite if there is no such network.
        """
        key = tuple(params[name] for name in self._names)
        price = self._known.get(key)
        if price is None:
            try:
                spec = self.space.spec_of(params)
                cost = self.space.cost(spec)
                price = spec, cost, sum(self.space.limits.excess(cost).values())
            except InputError:
                price = None, None, math.inf
            if len(self._known) >= 200_000:
                self._known.clear()
            self._known[key] = price
        return price

    def accept(self, params: Mapping[str, Any]) -> tuple[float | None, ...] | None:
        """Return the objectives known before training if `params` may be proposed, else None."""
        spec, cost, excess = self.price(params)
        if spec is None or cost is None or excess > 0 or cost.activation_bytes >= self.memory:
            return None
        if spec.digest in self.tried:
            return None
        return tuple(getattr(cost, name, None) for name in self.objectives)

    def spec(self, params: Mapping[str, Any]) -> Spec:
        spec, _, _ = self.price(params)
        assert spec is not None
        return spec

    def drawer(self) -> Callable[[random.Random], dict[str, Any]]:
        """Return a function that draws uniformly from the region, and raises `Exhausted` if it is empty.

        If fewer than one point in `PLAIN_DRAWS` is inside, points are drawn by a random walk that changes one choice at
        a time and stays inside. Its stationary distribution is also uniform, on the points that the walk can reach.
        Each walk starts at a random point that was moved into the region, and consecutive draws are weakly correlated.
        """
        walk: list[dict[str, Any]] = []

        def draw(rng: random.Random) -> dict[str, Any]:
            if not walk:
                for _ in range(PLAIN_DRAWS):
                    point = self.space.random_point(rng)
                    if self.accept(point) is not None:
                        return point
                walk.append(self._walk_in(rng))
                steps = FIRST_STEPS
            else:
                steps = STEPS
            point = walk[0]
            for _ in range(200):
                point = self._walk(point, rng, steps * len(self._names))
                if self.accept(point) is not None:
                    walk[0] = point
                    return point
                if rng.random() < 0.2:  # possibly in another part of the region
                    point = self._walk_in(rng)
            return self._draw_remaining(rng)

        return draw

    def _walk_in(self, rng: random.Random) -> dict[str, Any]:
        for _ in range(REPAIRS):
            point = self.space.random_point(rng)
            excess = self._excess(point)
            for _ in range(REPAIR_STEPS):
                if excess <= 0:
                    return point
                changed = self._change(point, rng)
                new_excess = self._excess(changed)
                if new_excess <= excess:
                    point, excess = changed, new_excess
        return self._draw_remaining(rng)

    def _walk(self, point: dict[str, Any], rng: random.Random, steps: int) -> dict[str, Any]:
        for _ in range(steps):
            changed = self._change(point, rng)
            if self._excess(changed) <= 0:
                point = changed
        return point

    def _excess(self, params: Mapping[str, Any]) -> float:
        _, cost, excess = self.price(params)
        if cost is not None and cost.activation_bytes >= self.memory:
            excess += cost.activation_bytes / self.memory
        return excess

    def _change(self, point: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        """Redraw one choice of `point`.

        The reverse change is equally likely, so that a walk visits all points equally often. Half of the changes of a
        number are to nearby values, which are more often inside the limits.
        """
        index = rng.randrange(len(self._names))
        name, choice, values = self._names[index], self.space.choices[index], self._values[index]
        near = choice.kind != "of" and rng.random() < 0.5
        if values is None:
            if not near:
                return point | {name: round(rng.uniform(choice.low, choice.high), 10)}
            reach = (choice.high - choice.low) / 2 ** rng.randrange(1, 8)
            value = round(point[name] + rng.uniform(-reach, reach), 10)
            return point | {name: value} if choice.low <= value <= choice.high else point
        if not near:
            return point | {name: rng.choice(values)}
        reach = 2 ** rng.randrange(max(1, (len(values) - 1).bit_length()))
        place = self._places[index][point[name]] + rng.randint(-reach, reach)
        return point | {name: values[place]} if 0 <= place < len(values) else point

    def _draw_remaining(self, rng: random.Random) -> dict[str, Any]:
        counts = [len(values) if values is not None else 0 for values in self._values]
        if all(counts) and math.prod(counts) <= FINITE:
            remaining = [point for point in self.space.points() if self.accept(point) is not None]
            if remaining:
                return rng.choice(remaining)
        raise Exhausted
