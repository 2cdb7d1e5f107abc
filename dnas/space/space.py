"""Search spaces: choices, fixed fields, and limits on cost."""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, Protocol

from dnas.arch import Cost, Spec, cost, format_name
from dnas.arch.families import Family
from dnas.errors import InputError
from dnas.formatting import html_table
from dnas.training.recipe import Recipe

LIMITS = ("params", "macs", "activation_bytes")
FIT = "fit"  # growth_rate = "fit" (for ResNets, width): the largest value that the limits allow
MAX_FITTED_WIDTH = 4_096
MAX_ENUMERATED_POINTS = 5_000  # larger spaces are sampled; computing this many costs takes less than a second
SURVEY_DRAWS = 200  # random points of a large space; its corners include the extremes of the cost
MORE_DRAWS = 2_000  # random points if some corners are no networks, so that random points must find the extremes
MAX_CACHED_SURVEYS = 32  # each holds thousands of costs


class Trial(Protocol):
    """Methods of an Optuna trial that draw values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Choice:
    """One varying value of a space.

    A choice is active if every choice named in `when` has one of the listed values. The field of an inactive choice
    keeps its fixed or default value.
    """

    name: str
    target: str  # field of the spec
    kind: str  # int, float or of
    low: float = 0
    high: float = 0
    step: float | None = None
    options: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def suggest(self, trial: Trial) -> Any:
        """Draw a value from `trial`."""
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1))
        if self.kind == "float":
            return self.decode(trial.suggest_float(self.name, self.low, self.high, step=self.step))
        return self.decode(trial.suggest_categorical(self.name, [self.encode(option) for option in self.options]))

    def encode(self, value: Any) -> Any:
        """Encode a value for samplers. Optuna's categories must be scalars, so a list becomes `6-12-24`."""
        return "-".join(map(str, value)) if isinstance(value, list | tuple) else value

    def decode(self, value: Any) -> Any:
        """Decode a value of a sampler."""
        if self.kind == "of":
            return next(option for option in self.options if self.encode(option) == value)
        return round(value, 10) if self.kind == "float" else value  # 0.3 instead of 0.30000000000000004

    def values(self) -> list[Any] | None:
        """Return all encoded values, or None if the choice is continuous."""
        if self.kind == "of":
            return [self.encode(option) for option in self.options]
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + i * self.step, 10) for i in range(count)]

    def describe(self) -> str:
        """Return the values and conditions as text for display."""
        if self.kind == "of":
            text = ", ".join(str(self.encode(option)) for option in self.options)
        else:
            text = f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step:g}" if self.step else "")
        for name, values in self.when.items():
            text += f"   (when {name} is {' or '.join(map(str, values))})"
        return text


@dataclass(frozen=True)
class Limits:
    """Upper limits on the cost of a network. `activation_bytes` is for the batch size of the recipe."""

    params: float = math.inf
    macs: float = math.inf
    activation_bytes: float = math.inf

    def excess(self, price: Cost) -> dict[str, float]:
        """Return the relative excess of `price` over each limit that it violates. Empty if it satisfies all limits."""
        over = {name: getattr(price, name) / getattr(self, name) - 1 for name in LIMITS}
        return {name: share for name, share in over.items() if share > 0}

    def stated(self) -> dict[str, float]:
        """Return the limits that are finite."""
        return {name: getattr(self, name) for name in LIMITS if getattr(self, name) < math.inf}


@dataclass(frozen=True)
class Space:
    """A search space. Samplers represent a point as encoded values by name of the choice (see `Choice.encode`)."""

    name: str
    title: str  # first comment line of the file
    text: str  # content of the file
    family: Family
    dataset: str
    fixed: Mapping[str, Any]
    choices: tuple[Choice, ...]
    limits: Limits
    recipe: Recipe
    first: tuple[Mapping[str, Any], ...]  # encoded points to evaluate first

    def _repr_html_(self) -> str:
        """Return the choices and limits as a table, for notebooks."""
        rows = [(choice.name, choice.describe()) for choice in self.choices]
        rows += [(f"{name} ≤", f"{limit:,}") for name, limit in self.limits.stated().items()]
        return f"<p><b>{escape(self.name)}</b> &nbsp; {escape(self.title)}</p>{html_table(rows)}"

    def suggest(self, trial: Trial) -> Spec:
        """Draw all active choices from `trial`, and return the network. Raises `InputError` if it does not exist."""
        values: dict[str, Any] = {}
        for choice in self.choices:
            if all(values.get(name) in allowed for name, allowed in choice.when.items()):
                values[choice.name] = choice.suggest(trial)
        return self.spec(values)

    def spec(self, values: Mapping[str, Any]) -> Spec:
        """Return the network of decoded values by name of the choice. Values of inactive choices are ignored."""
        fields: dict[str, Any] = dict(self.fixed)
        parts: dict[str, list[int]] = {}
        for choice in self.choices:
            if choice.name not in values or not self._is_active(choice, values):
                continue
            if choice.target == choice.name:
                fields[choice.target] = values[choice.name]
            else:
                parts.setdefault(choice.target, []).append(values[choice.name])
        fields |= {name: tuple(numbers) for name, numbers in parts.items()}
        return self._fitted(fields) if self.fits_width else self.family.make(fields)

    @property
    def fits_width(self) -> bool:
        """True if each network has the largest growth rate (for ResNets, width) that the limits allow."""
        return self.fixed.get(self.family.width) == FIT

    def _fitted(self, fields: dict[str, Any]) -> Spec:
        """Return the network of `fields` with the largest growth rate or width that satisfies every limit.

        If 1 already violates a limit, the network with 1 is returned. Every cost increases with the width, so bisection
        finds the largest.
        """

        def of_width(width: int) -> Spec:
            return self.family.make(fields | {self.family.width: width})

        def satisfies_limits(width: int) -> bool:
            try:
                return not self.limits.excess(self.cost(of_width(width)))
            except InputError:  # too narrow: a transition would keep no channel
                return True

        low, high = 1, 2
        while high < MAX_FITTED_WIDTH and satisfies_limits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if satisfies_limits(middle) else (low, middle)
        return of_width(low)

    def name_of(self, spec: Spec) -> str:
        """Return the name of a network for display."""
        return format_name(spec)

    def _is_active(self, choice: Choice, values: Mapping[str, Any]) -> bool:
        return all(values.get(name) in allowed for name, allowed in choice.when.items())

    def active(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the encoded values of the active choices."""
        return {
            c.name: params[c.name]
            for c in self.choices
            if c.name in params and self._is_active(c, self._decoded(params))
        }

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {choice.name: choice.decode(params[choice.name]) for choice in self.choices if choice.name in params}

    def spec_of(self, params: Mapping[str, Any]) -> Spec:
        """Return the network of encoded values."""
        return self.spec(self._decoded(params))

    def feasible(self, params: Mapping[str, Any]) -> Spec | None:
        """Return the network of encoded values if it exists and satisfies every limit, else None."""
        try:
            spec = self.spec_of(params)
        except InputError:
            return None
        return None if self.limits.excess(self.cost(spec)) else spec

    def for_data(self, channels: int, image_size: int, classes: int, augmented: bool) -> "Space":
        """Return the space for images of the loaded data set.

        Without augmentation, the dropout of the recipe applies unless the file chooses or fixes one.
        """
        fixed = {**self.fixed, "in_channels": channels, "image_size": image_size, "classes": classes}
        chosen = {choice.target for choice in self.choices}
        if not augmented and "dropout" in self.family.fields and "dropout" not in chosen:
            fixed.setdefault("dropout", self.recipe.dropout_without_augmentation)
        return dataclasses.replace(self, fixed=fixed)

    def cost(self, spec: Spec) -> Cost:
        """Return the cost of a network for the batch size of the recipe."""
        return cost(spec, self.recipe.batch_size)

    @cached_property
    def _values(self) -> tuple[list[Any] | None, ...]:
        """The values of each choice, see `Choice.values`."""
        return tuple(choice.values() for choice in self.choices)

    def size(self) -> int | None:
        """Return the number of distinct points, counting inactive choices once, or None if a choice is continuous."""
        if None in self._values:
            return None
        if not any(choice.when for choice in self.choices):
            return math.prod(len(values or []) for values in self._values)
        return self._count(0, {})

    def _count(self, index: int, values: dict[str, Any]) -> int:
        if index == len(self.choices):
            return 1
        choice = self.choices[index]
        if not self._is_active(choice, values):
            return self._count(index + 1, values)
        options = choice.values() or []
        if not any(choice.name in later.when for later in self.choices):
            return len(options) * self._count(index + 1, values)
        return sum(self._count(index + 1, values | {choice.name: choice.decode(option)}) for option in options)

    def points(self) -> Iterator[dict[str, Any]]:
        """Iterate over the encoded points of a finite space."""
        assert None not in self._values, "the space is not finite"
        names = [choice.name for choice in self.choices]
        for values in itertools.product(*[values or [] for values in self._values]):
            yield dict(zip(names, values, strict=True))

    def random_point(self, rng: random.Random) -> dict[str, Any]:
        """Draw every choice uniformly, and return the encoded point."""
        point: dict[str, Any] = {}
        for choice, values in zip(self.choices, self._values, strict=True):
            point[choice.name] = (
                rng.choice(values) if values is not None else round(rng.uniform(choice.low, choice.high), 10)
            )
        return point

    def survey(self, seed: int = 0, draws: int | None = None) -> "Survey":
        """Compute the costs of the networks of this space.

        Spaces of at most `MAX_ENUMERATED_POINTS` points are enumerated. Others are represented by their corners, which
        include the extremes of the cost, and by `draws` random points. The default is `SURVEY_DRAWS`, or `MORE_DRAWS`
        if a corner is no network. Results are cached, because the space of a study is loaded repeatedly.
        """
        key = repr((self.family, self.fixed, self.choices, self.limits, self.recipe.batch_size, seed, draws))
        if key not in _SURVEYS:
            if len(_SURVEYS) >= MAX_CACHED_SURVEYS:
                _SURVEYS.clear()
            _SURVEYS[key] = self._survey(seed, draws)
        return _SURVEYS[key]

    def _survey(self, seed: int, draws: int | None) -> "Survey":
        size = self.size()
        is_enumerated = (
            size is not None and math.prod(len(values or []) for values in self._values) <= MAX_ENUMERATED_POINTS
        )
        rng = random.Random(seed)
        costs, impossible, example = [], 0, None
        feasible = 0

        def random_points() -> Iterator[dict[str, Any]]:
            for _ in range((MORE_DRAWS if impossible else SURVEY_DRAWS) if draws is None else draws):
                yield self.random_point(rng)

        for point in self.points() if is_enumerated else itertools.chain(self._corners(rng), random_points()):
            try:
                network_cost = self.cost(self.spec_of(point))
            except InputError as error:
                impossible, example = impossible + 1, example or str(error)
                continue
            costs.append(network_cost)
            feasible += not self.limits.excess(network_cost)
        return Survey(is_enumerated, tuple(costs), feasible, impossible, example)

    def _corners(self, rng: random.Random, limit: int = 4_096) -> Iterator[dict[str, Any]]:
        """Iterate over the points at the ends of every range, or over a sample of `limit` if there are more."""
        ends: list[list[Any]] = []
        for choice, values in zip(self.choices, self._values, strict=True):
            if values is None:  # a range of real numbers
                ends.append([choice.low, choice.high])
            else:
                ends.append(list(values) if choice.kind == "of" else [values[0], values[-1]])
        names = [choice.name for choice in self.choices]
        if math.prod(map(len, ends)) <= limit:
            for combination in itertools.product(*ends):
                yield dict(zip(names, combination, strict=True))
            return
        for side in (0, -1):
            yield {name: values[side] for name, values in zip(names, ends, strict=True)}
        for _ in range(limit):
            yield {name: rng.choice(values) for name, values in zip(names, ends, strict=True)}


@dataclass(frozen=True)
class Survey:
    """Costs of the networks of a space: of all points if `whole`, else of the corners and a sample."""

    whole: bool
    costs: tuple[Cost, ...]
    feasible: int
    impossible: int
    example: str | None  # reason why one of the impossible networks does not exist

    def range(self, name: str) -> tuple[int, int]:
        """Return the smallest and the largest value of a cost."""
        values = [getattr(price, name) for price in self.costs]
        return min(values), max(values)


_SURVEYS: dict[str, Survey] = {}


def check_fits(space: Space) -> None:
    """Raise `InputError` if no network of the space accepts images of this size."""
    survey = space.survey()
    if not survey.costs:
        raise InputError(f"none of the networks of {space.name} fits these images: {survey.example}")
