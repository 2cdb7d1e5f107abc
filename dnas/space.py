"""A search space: what may vary, what is fixed, what it may cost. Read from a TOML file, checked whole before use.

`Space.suggest(trial)` is the only sampling interface: `trial` is anything with optuna's `suggest_int`, `suggest_float`
and `suggest_categorical`.
"""

import dataclasses
import itertools
import math
import random
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dnas.arch import FAMILIES, Cost, Spec, cost, format_name
from dnas.arch.families import Family, family_of
from dnas.data.catalog import data_info
from dnas.errors import InputError, did_you_mean, several_problems, unknown
from dnas.training.recipe import RECIPE_KEYS, RECIPES, Recipe, make_recipe

__all__ = ["Choice", "Limits", "Space", "load_space", "parse_space", "shipped_folders", "space_files"]

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


# --- reading ------------------------------------------------------------------------------------------------------


def shipped_folders(kind: str) -> list[Path]:
    """Where `search_spaces` or `studies` are looked for: the current folder, then what ships with dnas."""
    package = Path(__file__).parent
    return [Path(kind), package / "shipped" / kind, package.parent / kind]


def space_files() -> dict[str, Path]:
    """Every space that can be found, by name; those of the current folder come first."""
    found: dict[str, Path] = {}
    for folder in shipped_folders("search_spaces"):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def load_space(name: str, **overrides: Any) -> Space:
    """The space called `name`, or at the path `name` where it ends with `.toml`; `InputError` with all its problems.

    overrides: `dataset`, `recipe` (a name), `limits` (a mapping), and fields of the recipe; None leaves it as it is.
    """
    files = space_files()
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no space file {name}.")
    elif name in files:
        path = files[name]
    else:
        raise unknown("search space", name, files)
    return parse_space(path.read_text(encoding="utf-8"), path.stem, str(path), **overrides)


def parse_space(text: str, name: str, where: str, **overrides: Any) -> Space:
    """Reads a space file's `text`; every problem is reported at once."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}.") from None
    problems: list[str] = []
    check_keys(content, {"family", "dataset", "fixed", "choose", "limits", "recipe", "first"}, "", problems)
    family = FAMILIES["densenet"]
    try:
        family = family_of(content.get("family", "densenet"))
    except InputError as error:
        problems.append(f"family: {error}")
    dataset = overrides.get("dataset") or content.get("dataset")
    info = None
    if not isinstance(dataset, str):
        problems.append("dataset: a data set's name must be given, such as cifar10.")
    else:
        try:
            info = data_info(dataset)
        except InputError as error:
            problems.append(f"dataset: {error}")
    tables = {key: content.get(key, {}) for key in ("fixed", "choose", "limits", "recipe")}
    for key, table in list(tables.items()):
        if not isinstance(table, dict):
            problems.append(f"{key} must be a table, but got {table!r}.")
            tables[key] = {}
    fixed = _read_fixed(tables["fixed"], family, problems)
    choices = _read_choices(tables["choose"], fixed, family, problems)
    limits = _read_limits(tables["limits"] | (overrides.get("limits") or {}), problems)
    if fixed.get(family.width) == FIT and not limits.stated():
        problems.append(f'[fixed] {family.width} = "{FIT}" needs a limit to fit to; state one under [limits].')
    if info is not None:
        # What the data set settles, the networks follow; `image_size` may still be chosen or fixed.
        for field_name, value in (
            ("in_channels", info.channels),
            ("image_size", info.image_size),
            ("classes", info.classes),
        ):
            if value is not None and field_name not in {choice.target for choice in choices}:
                fixed.setdefault(field_name, value)
    recipe = _read_recipe(tables["recipe"], info, overrides, problems)
    first = _read_first(content.get("first", []), choices, problems)
    title = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")), name)
    if not problems:
        assert recipe is not None
        assert isinstance(dataset, str)
        space = Space(name, title, text, family, dataset, fixed, choices, limits, recipe, first)
        problems += _check_networks(space)
        if not problems:
            return space
    raise several_problems(where, problems)


def check_keys(table: Mapping[str, Any], known: Collection[str], where: str, problems: list[str]) -> None:
    """Adds to `problems` each key of `table` that is not `known`."""
    for key in table:
        if key not in known:
            problems.append(f"{where}{key}: there is no such key.{did_you_mean(key, known)}")


def _no_field(name: str, family: Family) -> str:
    near = did_you_mean(name, family.fields)
    return f"{family.spec.__name__} has no such field" + (f";{near.replace('Did', 'did')}" if near else ".")


def _read_fixed(table: Mapping[str, Any], family: Family, problems: list[str]) -> dict[str, Any]:
    fixed = {}
    for name, value in table.items():
        if name not in family.fields:
            problems.append(f"[fixed] {name}: {_no_field(name, family)}")
        else:
            fixed[name] = tuple(value) if isinstance(value, list) else value
    return fixed


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_choices(
    table: Mapping[str, Any], fixed: Mapping[str, Any], family: Family, problems: list[str]
) -> tuple[Choice, ...]:
    choices: list[Choice] = []
    if not table:
        problems.append("[choose] is empty: a space needs at least one choice.")
    for name, given in table.items():
        where = f"[choose] {name}: "
        if name not in family.fields:
            problems.append(where + _no_field(name, family))
            continue
        if name in fixed:
            problems.append(where + "it is in [fixed] too; keep one.")
        if not isinstance(given, dict):
            problems.append(where + "expected { int = [low, high] }, { float = [low, high] } or { of = [...] }.")
            continue
        check_keys(given, {"int", "float", "of", "step", "times", "when"}, where, problems)
        kinds = [kind for kind in ("int", "float", "of") if kind in given]
        if len(kinds) != 1:
            problems.append(where + f"expected one of int, float and of, but got {', '.join(kinds) or 'none'}.")
            continue
        choice = _read_choice(name, kinds[0], given, where, problems)
        if choice is None:
            continue
        times = given.get("times")
        if times is None:
            choices.append(choice)
        elif name not in (family.layers, family.width) or not isinstance(times, int) or times < 1:
            problems.append(
                where + f"times makes a list, one number for each of the {family.count}, of {family.layers} or"
                f" {family.width}; got {times!r}."
            )
        else:
            choices += [dataclasses.replace(choice, name=f"{name}_{i}") for i in range(1, times + 1)]
    names = {choice.name: choice for choice in choices}
    for choice in choices:
        for other, values in choice.when.items():
            if other not in names:
                problems.append(
                    f"[choose] {choice.name}: when names {other!r}, which is not a choice.{did_you_mean(other, names)}"
                )
            elif list(names).index(other) > list(names).index(choice.name):
                problems.append(f"[choose] {choice.name}: when names {other!r}, which must stand before it.")
            else:
                possible = names[other].values()
                for value in values:
                    if possible is not None and names[other].encode(value) not in possible:
                        problems.append(f"[choose] {choice.name}: when {other} = {value!r}, but {other} never is.")
    return tuple(choices)


def _read_choice(name: str, kind: str, given: Mapping[str, Any], where: str, problems: list[str]) -> Choice | None:
    when = given.get("when", {})
    if not isinstance(when, dict):
        problems.append(where + "when must be a table such as { bottleneck = 4 }.")
        when = {}
    conditions = {other: tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}
    if kind == "of":
        options = given["of"]
        if not isinstance(options, list) or not options:
            problems.append(where + f"of must list at least one value, but got {options!r}.")
            return None
        if len({str(option) for option in options}) < len(options):
            problems.append(where + f"of names a value twice: {options}.")
            return None
        return Choice(
            name, name, "of", options=tuple(tuple(o) if isinstance(o, list) else o for o in options), when=conditions
        )
    ends, step = given[kind], given.get("step")
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(_number, ends)) or ends[0] > ends[1]:
        problems.append(where + f"{kind} must be [low, high] with low <= high, but got {ends!r}.")
        return None
    if kind == "int" and not all(isinstance(number, int) for number in [*ends, *([] if step is None else [step])]):
        problems.append(
            where + f"int takes whole numbers, but got {ends!r}{'' if step is None else f' and step={step!r}'}."
        )
        return None
    if step is not None and (not _number(step) or step <= 0):
        problems.append(where + f"`step > 0` must hold, but got step={step!r}.")
        return None
    # The last value that the steps reach, so that samplers see the range as it is.
    high = ends[1]
    if step is not None:
        high = round(ends[0] + math.floor((ends[1] - ends[0]) / step + 1e-9) * step, 10)
        high = int(high) if kind == "int" else high
    return Choice(name, name, kind, low=ends[0], high=high, step=step, when=conditions)


def _read_limits(table: Mapping[str, Any], problems: list[str]) -> Limits:
    values = {}
    for name, value in table.items():
        if name not in LIMITS:
            problems.append(f"[limits] {name}: there is no such limit.{did_you_mean(name, LIMITS)}")
        elif not _number(value) or value <= 0:
            problems.append(f"[limits] {name}: expected a positive number, got {_toml(value)}.")
        else:
            values[name] = value
    return Limits(**values)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _read_recipe(
    table: Mapping[str, Any], info: Any, overrides: Mapping[str, Any], problems: list[str]
) -> Recipe | None:
    table = dict(table)
    name = overrides.get("recipe") or table.pop("name", "fast")
    table.pop("name", None)
    for key in [key for key in table if key not in RECIPE_KEYS]:
        problems.append(f"[recipe] {key}: a recipe has no such key.{did_you_mean(key, RECIPE_KEYS)}")
        del table[key]
    if name not in RECIPES:
        problems.append(f"[recipe] name: {unknown('recipe', str(name), RECIPES)}")
        return None
    if info is None:
        return None
    changes = table | {key: value for key, value in overrides.items() if key in RECIPE_KEYS and value is not None}
    try:
        return make_recipe(name, info, **changes)
    except InputError as error:
        problems.append(f"[recipe] {error}")
        return None


def _read_first(entries: Any, choices: tuple[Choice, ...], problems: list[str]) -> tuple[dict[str, Any], ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problems.append("first must be an array of tables: [[first]].")
        return ()
    found = []
    by_field: dict[str, list[Choice]] = {}
    for choice in choices:
        by_field.setdefault(choice.target, []).append(choice)
    for number, entry in enumerate(entries, 1):
        where = f"[[first]] {number}: "
        point: dict[str, Any] = {}
        for name in entry:
            if name not in by_field:
                problems.append(where + f"{name} is not chosen in this space.{did_you_mean(name, by_field)}")
        for name, parts in by_field.items():
            if name not in entry:
                if not any(part.when for part in parts):
                    problems.append(where + f"{name} is missing.")
                    continue
                point |= {part.name: (part.values() or [part.low])[0] for part in parts}
                continue
            values = entry[name] if parts[0].name != name else [entry[name]]
            if not isinstance(values, list) or len(values) != len(parts):
                problems.append(where + f"{name} needs {len(parts)} values, but got {entry[name]!r}.")
                continue
            for part, value in zip(parts, values, strict=True):
                encoded, possible = part.encode(value), part.values()
                inside = (
                    encoded in possible if possible is not None else _number(value) and part.low <= value <= part.high
                )
                if not inside:
                    problems.append(where + f"{part.name}={value!r} is outside of {part.describe()}.")
                point[part.name] = encoded
        found.append(point)
    return tuple(found)


def _check_networks(space: Space) -> list[str]:
    """What only the networks themselves can tell: impossible ones, and limits that none of them meets."""
    survey = space.survey()
    if not survey.costs:
        return [f"none of its networks exists: {survey.example}"]
    problems = []
    if survey.whole and survey.impossible:
        problems.append(f"{survey.impossible} of its {space.size()} networks do not exist, such as: {survey.example}")
    if not survey.feasible and not _some_draw_is_feasible(space, survey):
        for name, limit in space.limits.stated().items():
            least = survey.range(name)[0]
            if least > limit:
                problems.append(
                    f"[limits] {name}: nothing in the space meets {name} <= {limit:,}; the smallest has {least:,}."
                )
        if not problems:
            problems.append(f"[limits] nothing in the space meets all of {', '.join(space.limits.stated())} at once.")
    for number, point in enumerate(space.first, 1):
        try:
            space.spec_of(point)
        except InputError as error:
            problems.append(f"[[first]] {number}: {error}")
    return problems


def _some_draw_is_feasible(space: Space, survey: Survey, draws: int = 50_000) -> bool:
    if survey.whole or any(survey.range(name)[0] > limit for name, limit in space.limits.stated().items()):
        return False
    rng = random.Random(1)
    return any(space.feasible(space.random_point(rng)) for _ in range(draws))
