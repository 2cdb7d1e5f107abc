"""Search spaces: the choices, the fixed fields, and the limits on cost."""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dnas.arch import Cost, Spec, cost, format_name
from dnas.arch.families import Family
from dnas.errors import InputError
from dnas.training.recipe import Recipe

LIMITS = ("params", "macs", "activation_bytes")
FIT = "fit"  # growth_rate = "fit" (of ResNets width): the largest that the limits allow
LARGEST_WIDTH = 4_096
ENUMERABLE = 5_000  # a space of at most so many points is looked at whole: under a second of pricing


class Trial(Protocol):
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Choice:
    """One thing that varies. `kind` is `int`, `float` or `of`; `when` maps another choice's name to the values under
    which this one is made; outside of them the field keeps its fixed or default value."""

    name: str
    target: str  # the field of the spec
    kind: str
    low: float = 0
    high: float = 0
    step: float | None = None
    options: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def suggest(self, trial: Trial) -> Any:
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1))
        if self.kind == "float":
            return self.decode(trial.suggest_float(self.name, self.low, self.high, step=self.step))
        return self.decode(trial.suggest_categorical(self.name, [self.encode(option) for option in self.options]))

    def encode(self, value: Any) -> Any:
        """A value as the sampler holds it: optuna's categories must be scalars, so a list becomes `6-12-24`."""
        return "-".join(map(str, value)) if isinstance(value, list | tuple) else value

    def decode(self, value: Any) -> Any:
        """What the sampler's `value` means."""
        if self.kind == "of":
            return next(option for option in self.options if self.encode(option) == value)
        return round(value, 10) if self.kind == "float" else value  # 0.30000000000000004 is not what the file says

    def values(self) -> list[Any] | None:
        """Every value, as the sampler holds it; None where they are not finitely many."""
        if self.kind == "of":
            return [self.encode(option) for option in self.options]
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + i * self.step, 10) for i in range(count)]

    def describe(self) -> str:
        if self.kind == "of":
            text = ", ".join(str(self.encode(option)) for option in self.options)
        else:
            text = f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step:g}" if self.step else "")
        for name, values in self.when.items():
            text += f"   (when {name} is {' or '.join(map(str, values))})"
        return text


@dataclass(frozen=True)
class Limits:
    """The most that a network may cost; `activation_bytes` at the recipe's batch size."""

    params: float = math.inf
    macs: float = math.inf
    activation_bytes: float = math.inf

    def excess(self, price: Cost) -> dict[str, float]:
        """By how much, relative to the limit, `price` is over each limit that it breaks: {} where it is inside all."""
        over = {name: getattr(price, name) / getattr(self, name) - 1 for name in LIMITS}
        return {name: share for name, share in over.items() if share > 0}

    def stated(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) < math.inf}


@dataclass(frozen=True)
class Space:
    name: str
    title: str  # the file's first comment line
    text: str  # the file as it was
    family: Family
    dataset: str
    fixed: Mapping[str, Any]
    choices: tuple[Choice, ...]
    limits: Limits
    recipe: Recipe
    first: tuple[Mapping[str, Any], ...]  # as the sampler holds them

    def suggest(self, trial: Trial) -> Spec:
        """Makes the choices through `trial` and gives the network. `InputError` where no such network exists."""
        values: dict[str, Any] = {}
        for choice in self.choices:
            if all(values.get(name) in allowed for name, allowed in choice.when.items()):
                values[choice.name] = choice.suggest(trial)
        return self.spec(values)

    def spec(self, values: Mapping[str, Any]) -> Spec:
        """The network of decoded `values`, one for each choice made; others are ignored where `when` shuts them out."""
        fields: dict[str, Any] = dict(self.fixed)
        parts: dict[str, list[int]] = {}
        for choice in self.choices:
            if choice.name not in values or not self._made(choice, values):
                continue
            if choice.target == choice.name:
                fields[choice.target] = values[choice.name]
            else:
                parts.setdefault(choice.target, []).append(values[choice.name])
        fields |= {name: tuple(numbers) for name, numbers in parts.items()}
        return self._fitted(fields) if self.fits_width else self.family.make(fields)

    @property
    def fits_width(self) -> bool:
        """Whether each network gets the largest growth rate (of ResNets: width) that the limits allow."""
        return self.fixed.get(self.family.width) == FIT

    def _fitted(self, fields: dict[str, Any]) -> Spec:
        """The network of `fields` with the largest growth rate or width inside every limit; where even 1 is over one,
        that with 1, which is over it too. Every cost rises with it, so bisection finds it."""

        def of_width(width: int) -> Spec:
            return self.family.make(fields | {self.family.width: width})

        def inside(width: int) -> bool:
            try:
                return not self.limits.excess(self.cost(of_width(width)))
            except InputError:  # so narrow that a transition would keep no channel
                return True

        low, high = 1, 2
        while high < LARGEST_WIDTH and inside(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if inside(middle) else (low, middle)
        return of_width(low)

    def name_of(self, spec: Spec) -> str:
        """What people call the network."""
        return format_name(spec)

    def _made(self, choice: Choice, values: Mapping[str, Any]) -> bool:
        return all(values.get(name) in allowed for name, allowed in choice.when.items())

    def active(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the sampler's `params` that were used: the ones that no `when` shuts out."""
        return {
            c.name: params[c.name] for c in self.choices if c.name in params and self._made(c, self._decoded(params))
        }

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {choice.name: choice.decode(params[choice.name]) for choice in self.choices if choice.name in params}

    def spec_of(self, params: Mapping[str, Any]) -> Spec:
        """The network of the sampler's `params` (lists encoded as text)."""
        return self.spec(self._decoded(params))

    def feasible(self, params: Mapping[str, Any]) -> Spec | None:
        """The network of `params` if it exists and is inside every limit."""
        try:
            spec = self.spec_of(params)
        except InputError:
            return None
        return None if self.limits.excess(self.cost(spec)) else spec

    def for_data(self, channels: int, image_size: int, classes: int, augmented: bool) -> "Space":
        """The same space for images as the data set really has them; without augmentation, networks whose dropout the
        file neither chooses nor fixes get the recipe's."""
        fixed = {**self.fixed, "in_channels": channels, "image_size": image_size, "classes": classes}
        chosen = {choice.target for choice in self.choices}
        if not augmented and "dropout" in self.family.fields and "dropout" not in chosen:
            fixed.setdefault("dropout", self.recipe.dropout_without_augmentation)
        return dataclasses.replace(self, fixed=fixed)

    def cost(self, spec: Spec) -> Cost:
        return cost(spec, self.recipe.batch_size)

    def size(self) -> int | None:
        """How many points the choices span (a choice that its `when` shuts out multiplies nothing); None: endless."""
        if any(choice.values() is None for choice in self.choices):
            return None
        if not any(choice.when for choice in self.choices):
            return math.prod(len(choice.values() or []) for choice in self.choices)
        return self._count(0, {})

    def _count(self, index: int, values: dict[str, Any]) -> int:
        if index == len(self.choices):
            return 1
        choice = self.choices[index]
        if not self._made(choice, values):
            return self._count(index + 1, values)
        options = choice.values() or []
        if not any(choice.name in later.when for later in self.choices):
            return len(options) * self._count(index + 1, values)
        return sum(self._count(index + 1, values | {choice.name: choice.decode(option)}) for option in options)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of a finite space, as the sampler holds it."""
        options = [choice.values() for choice in self.choices]
        assert all(values is not None for values in options), "the space is endless"
        names = [choice.name for choice in self.choices]
        for values in itertools.product(*[values or [] for values in options]):
            yield dict(zip(names, values, strict=True))

    def random_point(self, rng: random.Random) -> dict[str, Any]:
        """A uniform draw of every choice, as the sampler holds it."""
        point: dict[str, Any] = {}
        for choice in self.choices:
            values = choice.values()
            point[choice.name] = (
                rng.choice(values) if values is not None else round(rng.uniform(choice.low, choice.high), 10)
            )
        return point

    def survey(self, seed: int = 0, draws: int = 2_000) -> "Survey":
        """What the networks of this space cost: all of them where they are at most `ENUMERABLE`, else the corners,
        where the cost's extremes lie, and a random sample. Equal networks are looked at once: a study's space is read
        again by whoever reads the study, and thousands of networks take a tenth of a second."""
        asked = repr((self.family, self.fixed, self.choices, self.limits, self.recipe.batch_size, seed, draws))
        if asked not in _SURVEYS:
            if len(_SURVEYS) >= SURVEYS:
                _SURVEYS.clear()
            _SURVEYS[asked] = self._survey(seed, draws)
        return _SURVEYS[asked]

    def _survey(self, seed: int, draws: int) -> "Survey":
        size = self.size()
        whole = size is not None and math.prod(len(c.values() or []) for c in self.choices) <= ENUMERABLE
        rng = random.Random(seed)
        if whole:
            points: Iterator[dict[str, Any]] = self.points()
        else:
            points = itertools.chain(self._corners(rng), (self.random_point(rng) for _ in range(draws)))
        costs, impossible, nearest = [], 0, None
        feasible = 0
        for point in points:
            try:
                price = self.cost(self.spec_of(point))
            except InputError as error:
                impossible, nearest = impossible + 1, nearest or str(error)
                continue
            costs.append(price)
            feasible += not self.limits.excess(price)
        return Survey(whole, tuple(costs), feasible, impossible, nearest)

    def _corners(self, rng: random.Random, most: int = 4_096) -> Iterator[dict[str, Any]]:
        ends = []
        for choice in self.choices:
            values = choice.values()
            ends.append(values if choice.kind == "of" and values else [choice.low, choice.high])
        ends = [[int(v) if c.kind == "int" else v for v in e] for c, e in zip(self.choices, ends, strict=True)]
        # an int range's last value may lie below `high` when the step does not divide it
        for index, choice in enumerate(self.choices):
            values = choice.values()
            if choice.kind != "of" and values:
                ends[index] = [values[0], values[-1]]
        names = [choice.name for choice in self.choices]
        if math.prod(map(len, ends)) <= most:
            for combination in itertools.product(*ends):
                yield dict(zip(names, combination, strict=True))
            return
        for side in (0, -1):
            yield {name: values[side] for name, values in zip(names, ends, strict=True)}
        for _ in range(most):
            yield {name: rng.choice(values) for name, values in zip(names, ends, strict=True)}


@dataclass(frozen=True)
class Survey:
    """What `Space.survey` saw. `whole`: every point; else a sample with the corners."""

    whole: bool
    costs: tuple[Cost, ...]
    feasible: int
    impossible: int
    example: str | None  # why one of the impossible ones is so

    def range(self, name: str) -> tuple[int, int]:
        values = [getattr(price, name) for price in self.costs]
        return min(values), max(values)


SURVEYS = 32  # of thousands of costs each
_SURVEYS: dict[str, Survey] = {}
