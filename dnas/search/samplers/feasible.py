"""Where proposals come from: the points of a space that are inside every limit and were not tried."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from dnas.arch import Cost, Spec
from dnas.errors import InputError
from dnas.search.samplers.problem import Exhausted
from dnas.space.space import Space

PLAIN_DRAWS = 300  # uniform draws before a rare region is walked in; a hundredth of a second
FIRST_STEPS, STEPS = 12, 4  # of a walk, for each choice: before its first draw, so that it forgets its start; then
REPAIRS = 60  # attempts at walking into the region
REPAIR_STEPS = 400  # of each
FINITE = 50_000  # a space of at most so many points is known to be exhausted by looking at each


class Region:
    """The feasible, untried points of `space`. Prices are remembered, so a point is priced once a search.

    tried: digests of the networks that have a trial.
    memory: activation bytes from which on this device has run out of memory, even with recomputation.
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
        """Network, cost, and by how much it is over its limits in all (0: inside; infinite: there is no such
        network)."""
        key = tuple(params[name] for name in self._names)
        found = self._known.get(key)
        if found is None:
            try:
                spec = self.space.spec_of(params)
                cost = self.space.cost(spec)
                found = spec, cost, sum(self.space.limits.excess(cost).values())
            except InputError:
                found = None, None, math.inf
            if len(self._known) >= 200_000:
                self._known.clear()
            self._known[key] = found
        return found

    def accept(self, params: Mapping[str, Any]) -> tuple[float | None, ...] | None:
        """The objectives that are known before training, where `params` may be proposed; else None."""
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
        """Draws uniformly from the region. Where fewer than one point in `PLAIN_DRAWS` is inside, by a random walk that
        changes one choice at a time and stays inside: its stationary distribution is uniform too, on what the walk can
        reach; each walk starts where a random point was brought inside, and draws that follow each other are a little
        alike. Raises `Exhausted`."""
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
                point = self._walked(point, rng, steps * len(self._names))
                if self.accept(point) is not None:
                    walk[0] = point
                    return point
                if rng.random() < 0.2:  # another part of the region, maybe
                    point = self._walk_in(rng)
            return self._whatever_is_left(rng)

        return draw

    def _walk_in(self, rng: random.Random) -> dict[str, Any]:
        for _ in range(REPAIRS):
            point = self.space.random_point(rng)
            over = self._over(point)
            for _ in range(REPAIR_STEPS):
                if over <= 0:
                    return point
                changed = self._changed(point, rng)
                now = self._over(changed)
                if now <= over:
                    point, over = changed, now
        return self._whatever_is_left(rng)

    def _walked(self, point: dict[str, Any], rng: random.Random, steps: int) -> dict[str, Any]:
        for _ in range(steps):
            changed = self._changed(point, rng)
            if self._over(changed) <= 0:
                point = changed
        return point

    def _over(self, params: Mapping[str, Any]) -> float:
        _, cost, excess = self.price(params)
        if cost is not None and cost.activation_bytes >= self.memory:
            excess += cost.activation_bytes / self.memory
        return excess

    def _changed(self, point: dict[str, Any], rng: random.Random) -> dict[str, Any]:
        """`point` with one choice made anew: as likely as the way back, so that a walk is as often at one point as at
        another. Half of the changes of a number are to one near it, of which more stay inside."""
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

    def _whatever_is_left(self, rng: random.Random) -> dict[str, Any]:
        counts = [len(values) if values is not None else 0 for values in self._values]
        if all(counts) and math.prod(counts) <= FINITE:
            left = [point for point in self.space.points() if self.accept(point) is not None]
            if left:
                return rng.choice(left)
        raise Exhausted
