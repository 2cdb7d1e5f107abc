"""An ablation's file, `studies/<name>.toml`: a base network, what is changed of it, and what is held equal.

    question = "Does compression help a network of a given size?"
    dataset = "digits"
    design = "one-at-a-time"              # factorial, fractional, or list: [[variants]] in place of [factors]
    equal = "params"                      # nothing, params, macs or seconds
    tolerance = 0.01                      # of params or macs
    seeds = 7                             # or [0, 1, 5], or "auto"
    alpha = 0.05

    [base]
    network = "densenet-b:L=22,k=6"       # and, or in its place, fields of the spec
    [recipe]
    name = "fast"
    epochs = 10
    [data]                                # subset, image_size, augmentation
    [factors]                             # fields of the spec, recipe.FIELD, data.FIELD; the base's level too
    compression = [1.0, 0.5]
    recipe.weight_decay = [1e-4, 1e-3]
    [names]                               # what some of the variants are called
    BC = { compression = 0.5 }

What [base] states is held: with `L=22` a network with a bottleneck has fewer layers, with `layers=6-6-6` it is deeper.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dnas.ablation.design import (
    DESIGNS,
    Fraction,
    best_fraction,
    check_two_levels,
    factorial,
    one_at_a_time,
    read_generators,
)
from dnas.arch import FAMILIES, Spec, cost, format_name, parse_name
from dnas.arch.families import Family, family_of
from dnas.arch.matching import residual, resize
from dnas.arch.names import stated_fields
from dnas.data.catalog import DataInfo, choose_augmentation, choose_image_size, data_info
from dnas.errors import InputError, did_you_mean, several_problems, unknown
from dnas.formatting import several
from dnas.space.parse import check_keys
from dnas.study.definition import definition_files, is_ablation, read_toml
from dnas.study.folder import check_study_name
from dnas.training.recipe import RECIPE_KEYS, Recipe, make_recipe

EQUAL = ("nothing", "params", "macs", "seconds")
SIZES = ("params", "macs")  # what is held equal by solving for the width
KEYS = (
    *("question", "dataset", "design", "equal", "tolerance", "seeds", "alpha", "fraction", "generators"),
    *("base", "recipe", "data", "factors", "variants", "names"),
)
DATA_KEYS = ("subset", "image_size", "augmentation")
BASE = "base"
AUTO = "auto"
MOST_VARIANTS = 512


@dataclass(frozen=True)
class Variant:
    """One network and how it is trained. levels: of each factor. data: arguments of `load_dataset` that the study sets.

    residual: how far its params or macs are from the base's, as a share of the base's, where they are held equal; where
    training seconds are, how far the epochs that it gets are from taking the base's time. changed: field -> value of
    all that differs from the base, `recipe.FIELD` and `data.FIELD` too.
    """

    name: str
    levels: Mapping[str, Any]
    spec: Spec
    recipe: Recipe
    data: Mapping[str, Any]
    params: int
    macs: int
    residual: float | None
    changed: Mapping[str, Any]


@dataclass(frozen=True)
class Definition:
    """An ablation as its file says. levels: factor -> its levels, the base's first; {} of a list. seeds: "auto" where
    they are added as they are needed. variants: the base first."""

    name: str
    title: str
    text: str
    question: str
    dataset: str
    design: str
    equal: str
    tolerance: float
    seeds: tuple[int, ...] | str
    alpha: float
    levels: Mapping[str, tuple[Any, ...]]
    fraction: Fraction | None
    variants: tuple[Variant, ...]

    @property
    def base(self) -> Variant:
        return self.variants[0]


def ablation_files() -> dict[str, Path]:
    """Every ablation's file that can be found, by name; one that is not TOML is left out."""
    found = {}
    for name, path in definition_files().items():
        try:
            values = read_toml(path)
        except InputError:
            continue
        if is_ablation(values):
            found[name] = path
    return found


def load_definition(name: str, **overrides: Any) -> Definition:
    """The ablation called `name`, or at the path `name` where it ends with `.toml`; `InputError` with all its problems.

    overrides: `seeds` (as in the file), `dataset`, `epochs`, `subset`; None leaves it as it is.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no study file {name}.")
    else:
        found = definition_files().get(name)
        if found is None:
            raise unknown("ablation", name, ablation_files())
        path = found
    text = path.read_text(encoding="utf-8")
    if not is_ablation(read_toml(path)):
        raise InputError(
            f"{path} is no ablation's: it has no [base]. What it defines is run by `dnas search --study {path.stem}`;"
            f" the ablations here are {', '.join(sorted(ablation_files())) or 'none'}."
        )
    return parse_definition(read_toml(path), text, check_study_name(path.stem), str(path), **overrides)


def parse_definition(content: Mapping[str, Any], text: str, name: str, where: str, **overrides: Any) -> Definition:
    """Checks a file's `content`; every problem is reported at once."""
    return _Reader(content, overrides).read(text, name, where)


class _Reader:
    """Reads one file; what is wrong gathers in `problems`."""

    def __init__(self, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        self.content, self.overrides = content, overrides
        self.problems: list[str] = []
        self.family = FAMILIES["densenet"]
        self.info: DataInfo | None = None
        self.fields: dict[str, Any] = {}  # of the base, as `Family.make` takes them
        self.recipe: dict[str, Any] = {}
        self.data: dict[str, Any] = {}

    def read(self, text: str, name: str, where: str) -> Definition:
        content, problems = self.content, self.problems
        check_keys(content, KEYS, "", problems)
        question = self._value("question", "", str, lambda v: True, "text")
        if not question:
            problems.append('question: say what the study asks, such as question = "Does compression help?".')
        design = self._one_of("design", "one-at-a-time", DESIGNS)
        equal = self._one_of("equal", "nothing", EQUAL)
        tolerance = self._value("tolerance", 0.01, float, lambda v: 0 <= v < 1, "`0 <= tolerance < 1` must hold")
        alpha = self._value("alpha", 0.05, float, lambda v: 0 < v < 1, "`0 < alpha < 1` must hold")
        seeds = self._seeds()
        said = len(problems)  # what follows depends on nothing above
        self._read_data()
        base_name = self._read_base()
        if len(problems) == said:
            self._settle_dropout()
        levels: dict[str, tuple[Any, ...]] = {}
        fraction: Fraction | None = None
        named: dict[str, dict[str, Any]] = {}
        variants: tuple[Variant, ...] = ()
        if len(problems) == said and design == "list":
            named = {base_name: {}, **self._listed(base_name, equal)}
        elif len(problems) == said:
            levels = self._levels(equal)
            if len(problems) == said and design == "fractional":
                fraction = self._fraction(levels)
            if len(problems) == said:
                named = self._name(design, levels, fraction, base_name)
        if len(problems) == said:
            variants = self._variants(named, equal, tolerance)
        if problems:
            raise several_problems(where, problems)
        title = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")), name)
        return Definition(
            name=name,
            title=title,
            text=text,
            question=question,
            dataset=self.dataset,
            design=design,
            equal=equal,
            tolerance=tolerance,
            seeds=seeds,
            alpha=alpha,
            levels=levels,
            fraction=fraction,
            variants=variants,
        )

    # --- what is stated -------------------------------------------------------------------------------------------

    def _value(self, key: str, default: Any, kind: type, holds: Callable[[Any], bool], law: str) -> Any:
        value = self.content.get(key, default)
        right = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if not right or not holds(value):
            self.problems.append(f"{key}: {law if right or kind is float else f'expected {law}'}, but got {value!r}.")
            return default
        return kind(value)

    def _one_of(self, key: str, default: str, known: Sequence[str]) -> str:
        value = self.content.get(key, default)
        if value not in known:
            self.problems.append(f"{key}: {unknown(key, str(value), known)}")
            return default
        return str(value)

    def _seeds(self) -> tuple[int, ...] | str:
        asked = self.overrides.get("seeds")
        try:
            return read_seeds(self.content.get("seeds", 7) if asked is None else asked)
        except InputError as error:
            self.problems.append(f"seeds: {error}")
            return ()

    def _table(self, key: str) -> dict[str, Any]:
        value = self.content.get(key, {})
        if not isinstance(value, dict):
            self.problems.append(f"{key} must be a table, but got {value!r}.")
            return {}
        return dict(value)

    def _read_data(self) -> None:
        """The data set, and what the study says of it and of the recipe."""
        dataset = self.overrides.get("dataset") or self.content.get("dataset")
        self.dataset = str(dataset)
        if not isinstance(dataset, str):
            self.problems.append("dataset: a data set's name must be given, such as cifar10.")
        else:
            try:
                self.info = data_info(dataset)
            except InputError as error:
                self.problems.append(f"dataset: {error}")
        if self.info is not None and (self.info.classes is None or self.info.channels is None):
            self.info = dataclasses.replace(self.info, **_facts(self.info, self.overrides.get("data_root")))
        table = self._table("data")
        check_keys(table, DATA_KEYS, "[data] ", self.problems)
        subset = self.overrides.get("subset")
        self.data = {key: table[key] for key in DATA_KEYS if key in table} | ({"subset": subset} if subset else {})
        table = self._table("recipe")
        check_keys(table, RECIPE_KEYS, "[recipe] ", self.problems)
        epochs = self.overrides.get("epochs")
        self.recipe = {"name": "fast"} | table | ({"epochs": epochs} if epochs else {})
        if self.info is not None:
            self._try("[data] ", lambda: self._data({}))
            if self.recipe.keys() <= RECIPE_KEYS:
                self._try("[recipe] ", lambda: self._recipe({}))

    def _try(self, where: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or None where it is a problem."""
        try:
            return make()
        except InputError as error:
            self.problems.append(f"{where}{error}")
            return None

    def _read_base(self) -> str:
        """Fills in the base's fields; its name."""
        table = self._table("base")
        name, network = table.pop("name", BASE), table.pop("network", None)
        if not isinstance(name, str) or not name.strip():
            self.problems.append(f"[base] name: expected text, but got {name!r}.")
            name = BASE
        if network is not None:
            spec = self._try("[base] network: ", lambda: parse_name(str(network)))
            if spec is None:
                return name
            self.family = FAMILIES[spec.family]
            self.fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.init}
            if "depth" in stated_fields(str(network)):
                layers = self.fields.pop(self.family.layers)
                self.fields |= {"depth": spec.depth, self.family.count: len(layers)}
            if "dropout" in self.fields and "dropout" not in stated_fields(str(network)):
                del self.fields["dropout"]
        elif "family" in table:
            self.family = self._try("[base] family: ", lambda: family_of(table["family"])) or self.family
        table.pop("family", None)
        for key in table:
            self._check_field(key, "[base] ")
        own = {key: _frozen(value) for key, value in table.items()}
        if own.keys() <= self.family.fields:
            self.fields = self._try("[base] ", lambda: _changed(self.fields, own, self.family)) or {}
        return name

    def _check_field(self, name: str, where: str) -> bool:
        """Whether `name` may be said of a network of this family; notes the problem where not."""
        if name in ("in_channels", "classes", "image_size"):
            way = "; it is data.image_size" if name == "image_size" else ""
            self.problems.append(f"{where}{name}: the data set settles it{way}.")
            return False
        if name not in self.family.fields:
            spec = self.family.spec.__name__
            self.problems.append(f"{where}{name}: {spec} has no such field.{did_you_mean(name, self.family.fields)}")
            return False
        return True

    def _settle_dropout(self) -> None:
        """Without augmentation a base that states no dropout has the recipe's, and so have all variants."""
        if "dropout" in self.family.fields and "dropout" not in self.fields:
            augmented = self._data({})["augmentation"] != "none"
            self.fields["dropout"] = 0.0 if augmented else self._recipe({}).dropout_without_augmentation
        self._try("[base] ", lambda: self._spec({}))

    # --- one variant ----------------------------------------------------------------------------------------------

    def _spec(self, changes: Mapping[str, Any]) -> Spec:
        """The base with `changes`, factor -> level, for the study's images."""
        assert self.info is not None
        own = {key: value for key, value in changes.items() if "." not in key}
        facts = {
            "in_channels": self.info.channels,
            "classes": self.info.classes,
            "image_size": self._data(changes)["image_size"],
        }
        try:
            return self.family.make(_changed(self.fields, own, self.family) | facts)
        except TypeError as error:
            raise InputError(f"{self.family.spec.__name__}: {error}.") from None

    def _recipe(self, changes: Mapping[str, Any]) -> Recipe:
        assert self.info is not None
        values = self.recipe | _part("recipe", changes)
        name = values.pop("name")
        return make_recipe(str(name), self.info, **values)

    def _data(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What is said of the data, the rest as the data set has it."""
        assert self.info is not None
        values = self.data | _part("data", changes)
        for key in ("subset", "image_size"):
            value = values.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"`{key} >= 1` must hold, but got {key}={value!r}.")
        side = choose_image_size(self.info, values.get("image_size"), str(self.fields.get("stem", "small")))
        augmentation = choose_augmentation(self.info, side, str(values.get("augmentation", "auto")))
        return {"subset": values.get("subset"), "image_size": side, "augmentation": augmentation}

    def _own(self, factor: str) -> Any:
        """The base's level of a factor."""
        part, _, key = factor.rpartition(".")
        if part == "recipe":
            return getattr(self._recipe({}), key)
        if part == "data":
            return self._data({})[key]
        spec = self._spec({})
        if factor == self.family.count:
            return len(getattr(spec, self.family.layers))
        return spec.stem_width if factor == "stem_channels" else getattr(spec, factor)

    def _identity(self, changes: Mapping[str, Any]) -> tuple[Any, ...]:
        return identity(self._spec(changes), self._recipe(changes), self._data(changes))

    # --- the design -----------------------------------------------------------------------------------------------

    def _levels(self, equal: str) -> dict[str, tuple[Any, ...]]:
        """Factor -> its levels, the base's first."""
        if "variants" in self.content:
            self.problems.append('[[variants]] goes with design = "list"; [factors] says what others change.')
        table = self._table("factors")
        factors = _flat(table)
        if not factors:
            self.problems.append("[factors] is empty: a study needs at least one, such as compression = [1.0, 0.5].")
        levels = {}
        for name, given in factors.items():
            where = f"[factors] {name}: "
            if not self._check_factor(name, where, equal):
                continue
            if not isinstance(given, list) or len(given) < 2:
                self.problems.append(where + f"expected a list of at least two levels, but got {given!r}.")
                continue
            values = [_frozen(value) for value in given]
            if len({repr(value) for value in values}) < len(values):
                self.problems.append(where + f"it names a level twice: {given}.")
                continue
            own = self._own(name)
            if own not in values:
                way = f"state one of them in [{name.partition('.')[0] if '.' in name else 'base'}]"
                said = "none" if own is None else repr(own)
                self.problems.append(where + f"its levels {given} leave out the base's own, {said}; add it, or {way}.")
                continue
            wrong = False
            for value in values:
                try:
                    self._identity({name: value})
                except InputError as error:
                    self.problems.append(f"[factors] {name} = {_plain(value)!r}: {error}")
                    wrong = True
            if wrong:
                continue
            if len({self._identity({name: value}) for value in values}) == 1:
                self.problems.append(where + f"nothing uses it: at {given} the runs are the same{self._why(name)}.")
            levels[name] = (own, *(value for value in values if value != own))
        return levels

    def _why(self, name: str) -> str:
        blocks = len(getattr(self._spec({}), self.family.layers))
        match name:
            case "compression" if blocks == 1:
                return ", since a network of one block has no transition"
            case "recipe.warmup" | "recipe.milestones":
                return f", since the schedule is {self._recipe({}).schedule}"
            case "recipe.dropout_without_augmentation":
                return "; dropout is a factor of its own"
        return ""

    def _check_factor(self, name: str, where: str, equal: str) -> bool:
        part, dot, key = name.rpartition(".")
        if dot and part not in ("recipe", "data"):
            self.problems.append(where + "a factor is a field of the spec, recipe.FIELD or data.FIELD.")
            return False
        if part == "recipe":
            known: Sequence[str] = sorted(RECIPE_KEYS)
        elif part == "data":
            known = DATA_KEYS
            if key == "split_seed":
                self.problems.append(where + "each pair has a split of its own, by its seed.")
                return False
        elif not self._check_field(name, where):
            return False
        if dot and key not in known:
            self.problems.append(where + f"there is no such key of {part}.{did_you_mean(key, known)}")
            return False
        solved = {"params": {self.family.width, "wider_layers"}, "seconds": {"recipe.epochs"}}
        solved["macs"] = solved["params"]
        if name in solved.get(equal, set()):
            self.problems.append(
                where + f'with equal = "{equal}" it is solved for in each variant, and its levels would be lost; leave'
                ' it out, or say equal = "nothing".'
            )
            return False
        return True

    def _listed(self, base: str, equal: str) -> dict[str, dict[str, Any]]:
        """Name -> changes of each of [[variants]]."""
        if "factors" in self.content:
            self.problems.append("[factors] goes with the other designs; a list has [[variants]].")
        entries = self.content.get("variants", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
            self.problems.append("variants must be an array of at least one table: [[variants]].")
            return {}
        found: dict[str, dict[str, Any]] = {}
        for number, entry in enumerate(entries, 1):
            name = entry.get("name")
            where = f"[[variants]] {number}: "
            if not isinstance(name, str) or not name.strip():
                self.problems.append(where + f"it needs a name, but got {name!r}.")
                continue
            if name == base or name in found:
                self.problems.append(where + f"there are two variants called {name!r}; a name stands for one.")
                continue
            changes = {key: _frozen(value) for key, value in _flat(entry).items() if key != "name"}
            where = f"[[variants]] {name}: "
            if not changes:
                self.problems.append(where + "it changes nothing; say what differs from the base.")
            if all(self._check_factor(key, where + f"{key}: ", equal) for key in changes):
                self._try(where, partial(self._identity, changes))
            found[name] = changes
        return found

    def _fraction(self, levels: Mapping[str, tuple[Any, ...]]) -> Fraction | None:
        share, generators = self.content.get("fraction"), self.content.get("generators")
        try:
            check_two_levels(levels)
        except InputError as error:
            self.problems.append(f"design: {error}")
            return None
        if generators is not None:
            if share is not None:
                self.problems.append("fraction and generators say the same thing; keep one.")
            elif not isinstance(generators, list) or not all(isinstance(one, str) for one in generators):
                self.problems.append(f'generators: expected a list such as ["C = A * B"], but got {generators!r}.')
            else:
                return self._try("generators: ", lambda: read_generators(list(levels), generators))
            return None
        shares = {f"1/{2**p}": p for p in range(1, len(levels))}
        if share is not None and share not in shares:
            self.problems.append(f"fraction: expected one of {', '.join(shares)} as text, but got {share!r}.")
            return None
        return self._try("fraction: ", lambda: best_fraction(list(levels), shares[share or "1/2"]))

    def _name(
        self, design: str, levels: Mapping[str, tuple[Any, ...]], fraction: Fraction | None, base: str
    ) -> dict[str, dict[str, Any]]:
        """Name -> level of each factor, of each variant of the design; the base first."""
        number = 1
        for values in levels.values():
            number *= len(values)
        if design == "factorial" and number > MOST_VARIANTS:
            self.problems.append(
                f"design: the factorial has {number:,} variants, more than {MOST_VARIANTS}; use fewer levels, or"
                ' design = "fractional" or "one-at-a-time".'
            )
            return {}
        if fraction is not None:
            cells = list(fraction.combinations(levels))
        else:
            cells = list(one_at_a_time(levels) if design == "one-at-a-time" else factorial(levels))
        own = {name: values[0] for name, values in levels.items()}
        given = self._given_names(own)
        found: dict[str, dict[str, Any]] = {}
        for cell in cells:
            changes = {name: value for name, value in cell.items() if value != own[name]}
            spoken = " ".join(f"{name}={_said(value)}" for name, value in changes.items()) or base
            called = next((name for name, levels in given.items() if levels == changes), None)
            if called in found or (called is None and spoken in found):
                self.problems.append(f"[names] {called or spoken}: two variants would have this name.")
            found[called or spoken] = cell
        for name, changes in given.items():
            if name not in found:
                said = ", ".join(f"{key}={_said(value)}" for key, value in changes.items()) or "the base itself"
                self.problems.append(f"[names] {name}: no variant of the design has {said}.")
        return found

    def _given_names(self, own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        found = {}
        for name, given in self._table("names").items():
            if not isinstance(given, dict):
                self.problems.append(f"[names] {name}: expected the levels that differ, {{ FACTOR = LEVEL }}.")
                continue
            levels = {key: _frozen(value) for key, value in _flat(given).items()}
            check_keys(levels, own, f"[names] {name}: ", self.problems)
            found[name] = {key: value for key, value in levels.items() if value != own.get(key)}
        return {name: changes for name, changes in found.items() if changes}

    # --- the variants ---------------------------------------------------------------------------------------------

    def _variants(self, named: Mapping[str, Mapping[str, Any]], equal: str, tolerance: float) -> tuple[Variant, ...]:
        found: dict[str, Variant] = {}
        target = None
        for name, levels in named.items():
            try:
                spec, recipe, data = self._spec(levels), self._recipe(levels), self._data(levels)
                base = next(iter(found.values()), None)
                miss = 0.0 if equal != "nothing" else None
                if equal in SIZES:
                    target = target or getattr(cost(spec), equal)
                    if base is not None:
                        spec = resize(spec, equal, target)
                    miss = residual(spec, equal, target)
            except InputError as error:
                self.problems.append(f"variant {name}: {error}")
                continue
            if equal in SIZES and miss is not None and abs(miss) > tolerance:
                self.problems.append(
                    f"variant {name}: equal {equal} within {100 * tolerance:g}% can't be reached: the nearest network,"
                    f" {format_name(spec)}, has {getattr(cost(spec), equal):,}, {100 * abs(miss):.1f}%"
                    f" {'more' if miss > 0 else 'fewer'} than the base's {target:,}; raise tolerance, or take a larger"
                    " base."
                )
            price = cost(spec, recipe.batch_size)
            variant = Variant(name, dict(levels), spec, recipe, data, price.params, price.macs, miss, {})
            found[name] = dataclasses.replace(variant, changed=differences(variant, base or variant))
        known: dict[tuple[Any, ...], str] = {}
        for name, variant in found.items():
            same = known.setdefault(identity(variant.spec, variant.recipe, variant.data), name)
            if same != name:
                self.problems.append(
                    f"variants {same} and {name} are the same run, {format_name(variant.spec)}; leave one of them out."
                )
        return tuple(found.values())


def read_seeds(value: Any) -> tuple[int, ...] | str:
    """The seeds of a number of them (0, 1, ...), of a list, or `auto`."""
    if value == AUTO:
        return AUTO
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 2:
            raise InputError(
                f"`seeds >= 2` must hold, but got seeds={value}: {several(value, 'pair')} can't say how much a"
                " difference varies; 7 let 3 comparisons conclude."
            )
        return tuple(range(value))
    if isinstance(value, list | tuple) and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        seeds = tuple(dict.fromkeys(value))
        if len(seeds) < len(value):
            raise InputError(f"a seed is named twice: {list(value)}.")
        if any(seed < 0 for seed in seeds):
            raise InputError(f"a seed must not be negative, but got {list(value)}.")
        if len(seeds) < 2:
            raise InputError(
                f"`seeds >= 2` must hold, but got {several(len(seeds), 'seed')}: one pair can't say how much a"
                " difference varies; 7 let 3 comparisons conclude."
            )
        return seeds
    raise InputError(f'expected a number of seeds, a list of them, or "auto", but got {value!r}.')


def differences(variant: Variant, base: Variant) -> dict[str, Any]:
    """Field -> the variant's value, of all that differs from the base: a depth with equal blocks in its layers."""
    found: dict[str, Any] = {}
    one, other = variant.spec.to_dict(), base.spec.to_dict()
    found |= {key: value for key, value in one.items() if value != other.get(key)}
    one, other = variant.recipe.to_dict(), base.recipe.to_dict()
    found |= {f"recipe.{key}": value for key, value in one.items() if value != other[key]}
    return found | {f"data.{key}": value for key, value in variant.data.items() if value != base.data[key]}


def identity(spec: Spec, recipe: Recipe, data: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for two runs of one seed just when they are the same: what a schedule or a finished spec does not use, and
    names, are left out."""
    values = dataclasses.asdict(recipe)
    unused = {"name", "dropout_without_augmentation", "warmup" if recipe.schedule == "steps" else "milestones"}
    kept = tuple((key, value) for key, value in values.items() if key not in unused)
    return spec.family, spec.digest, kept, tuple(sorted(data.items(), key=lambda pair: pair[0]))


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Fields for `Family.make`: layers and a depth with equal blocks exclude each other, and the later one counts."""
    values = dict(values)
    if family.layers in changes:
        values.pop("depth", None)
        values.pop(family.count, None)
    elif family.layers in values and {"depth", family.count} & changes.keys():
        spec = family.make(values)
        values |= {"depth": spec.depth, family.count: len(values.pop(family.layers))}
    return values | dict(changes)


def _part(part: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in changes.items() if key.startswith(f"{part}.")}


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML reads `recipe.epochs = ...` as a table in the table; `"recipe.epochs" = ...` says the same."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _said(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _facts(info: DataInfo, data_root: Path | None) -> dict[str, Any]:
    """What only a folder's files tell."""
    from dnas.data import load_dataset

    data = load_dataset(info.name, data_root=data_root)
    return {"classes": data.classes, "channels": data.channels}
