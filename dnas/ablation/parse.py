"""Parser of ablation files, `studies/<name>.toml`: a base network, the factors that vary, and what is held equal.

    question = "Does compression help a network of a given size?"
    dataset = "digits"
    design = "one-at-a-time"              # factorial, fractional, or list ([[variants]] instead of [factors])
    equal = "params"                      # nothing, params, macs or seconds
    tolerance = 0.01                      # relative, of params or macs
    seeds = 7                             # or [0, 1, 5], or "auto"
    alpha = 0.05

    [base]
    network = "densenet-b:L=22,k=6"       # a name, fields of the spec, or a name and fields that override it
    [recipe]
    name = "fast"
    epochs = 10
    [data]                                # subset, image_size, augmentation
    [factors]                             # fields of the spec, recipe.FIELD, data.FIELD; include the base's level
    compression = [1.0, 0.5]
    recipe.weight_decay = [1e-4, 1e-3]
    [names]                               # names of variants
    BC = { compression = 0.5 }

Variants keep the way in which [base] states the depth. With `L=22` a variant with a bottleneck has fewer layers. With
`layers=6-6-6` it is deeper.
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
from dnas.ablation.variants import Base, Variant, change_fields, freeze, make_variants, thaw
from dnas.arch import FAMILIES, parse_name
from dnas.arch.families import family_of
from dnas.arch.names import stated_fields
from dnas.data.catalog import data_info
from dnas.errors import InputError, did_you_mean, several_problems, unknown
from dnas.formatting import several
from dnas.io import parse_toml, read_text, read_toml
from dnas.space.parse import check_keys
from dnas.study.definition import definition_files, is_ablation
from dnas.study.folder import check_study_name
from dnas.training.recipe import RECIPE_KEYS

EQUAL = ("nothing", "params", "macs", "seconds")
KEYS = (
    *("question", "dataset", "design", "equal", "tolerance", "seeds", "alpha", "fraction", "generators"),
    *("base", "recipe", "data", "factors", "variants", "names"),
)
DATA_KEYS = ("subset", "image_size", "augmentation")
BASE = "base"
AUTO = "auto"
MAX_VARIANTS = 512
DEFAULT_SEEDS = 7


@dataclass(frozen=True)
class Definition:
    """A parsed ablation file.

    Attributes:
        name: Name of the ablation.
        title: First comment line of the file.
        text: Content of the file.
        question: Question of the study.
        dataset: Name of the data set.
        design: One of `DESIGNS`.
        equal: Quantity held equal, one of `EQUAL`.
        tolerance: Largest accepted relative deviation of that quantity.
        seeds: The seeds, or "auto" if seeds are added as they are needed.
        alpha: Level of the family of tests.
        levels: Levels of each factor, the base's first. Empty for a list of variants.
        fraction: Fraction of a fractional design, else None.
        variants: The variants, the base first.
    """

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
    """Return the path of each ablation file by name. Files that are not TOML are left out."""
    paths = {}
    for name, path in definition_files().items():
        try:
            values = read_toml(path)
        except InputError:
            continue
        if is_ablation(values):
            paths[name] = path
    return paths


def load_definition(name: str, **overrides: Any) -> Definition:
    """Load the ablation called `name`, or the file `name` if it ends with `.toml`.

    Args:
        name: Name of an ablation, or path of its file.
        overrides: `seeds` (as in the file), `dataset`, `epochs`, `subset` and `data_root`. None keeps the file's value.

    Raises:
        InputError: With all problems of the file at once.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"no study file {name}.")
    else:
        named = definition_files().get(name)
        if named is None:
            raise unknown("ablation", name, ablation_files())
        path = named
    text = read_text(path)
    values = parse_toml(text, path)
    if not is_ablation(values):
        raise InputError(
            f"{path} does not define an ablation: it has no [base]. Run it with `dnas search --study {path.stem}`;"
            f" the available ablations are {', '.join(sorted(ablation_files())) or 'none'}."
        )
    return parse_definition(values, text, check_study_name(path.stem), str(path), **overrides)


def parse_definition(content: Mapping[str, Any], text: str, name: str, where: str, **overrides: Any) -> Definition:
    """Parse and check the content of an ablation file.

    Args:
        content: The parsed TOML.
        text: The file as text, which the study keeps. Its first comment line is the title.
        name: Name of the ablation.
        where: Path of the file, for messages.
        overrides: As for `load_definition`.

    Raises:
        InputError: With all problems of the file at once.
    """
    return _Reader(content, overrides).read(text, name, where)


class _Reader:
    """Reader of one ablation file. Problems are collected in `problems`."""

    def __init__(self, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        self.content, self.overrides = content, overrides
        self.problems: list[str] = []
        self.base = Base()

    def read(self, text: str, name: str, where: str) -> Definition:
        content, problems = self.content, self.problems
        check_keys(content, KEYS, "", problems)
        question = self._value("question", "", str, lambda v: True, "text")
        if not question:
            problems.append('question: state what the study asks, such as question = "Does compression help?".')
        design = self._one_of("design", "one-at-a-time", DESIGNS)
        equal = self._one_of("equal", "nothing", EQUAL)
        tolerance = self._value("tolerance", 0.01, float, lambda v: 0 <= v < 1, "`0 <= tolerance < 1` must hold")
        alpha = self._value("alpha", 0.05, float, lambda v: 0 < v < 1, "`0 < alpha < 1` must hold")
        seeds = self._seeds()
        independent = len(problems)  # problems of values that nothing below depends on
        self._read_data()
        base_name = self._read_base()
        if len(problems) == independent:
            self._settle_dropout()
        levels: dict[str, tuple[Any, ...]] = {}
        fraction: Fraction | None = None
        named: dict[str, dict[str, Any]] = {}
        variants: tuple[Variant, ...] = ()
        if len(problems) == independent and design == "list":
            named = {base_name: {}, **self._listed(base_name, equal)}
        elif len(problems) == independent:
            levels = self._levels(equal)
            if len(problems) == independent and design == "fractional":
                fraction = self._fraction(levels)
            if len(problems) == independent:
                named = self._name_cells(design, levels, fraction, base_name)
        if len(problems) == independent:
            variants = make_variants(self.base, named, equal, tolerance, problems)
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

    # --- single values and the base -------------------------------------------------------------------------------

    def _value(self, key: str, default: Any, kind: type, holds: Callable[[Any], bool], constraint: str) -> Any:
        value = self.content.get(key, default)
        is_valid_type = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if not is_valid_type or not holds(value):
            expected = constraint if is_valid_type or kind is float else f"expected {constraint}"
            self.problems.append(f"{key}: {expected}, but got {value!r}.")
            return default
        return kind(value)

    def _one_of(self, key: str, default: str, known: Sequence[str]) -> str:
        value = self.content.get(key, default)
        if value not in known:
            self.problems.append(f"{key}: {unknown(key, str(value), known)}")
            return default
        return str(value)

    def _seeds(self) -> tuple[int, ...] | str:
        override = self.overrides.get("seeds")
        try:
            return read_seeds(self.content.get("seeds", DEFAULT_SEEDS) if override is None else override)
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
        """Read the data set and the tables [data] and [recipe] into the base."""
        base = self.base
        dataset = self.overrides.get("dataset") or self.content.get("dataset")
        self.dataset = str(dataset)
        if not isinstance(dataset, str):
            self.problems.append("dataset: name a data set, such as cifar10.")
        else:
            try:
                base.info = data_info(dataset)
            except InputError as error:
                self.problems.append(f"dataset: {error}")
        if base.info is not None and (base.info.classes is None or base.info.channels is None):
            from dnas.data.parts import facts_of_files  # imports NumPy

            base.info = dataclasses.replace(base.info, **facts_of_files(base.info, self.overrides.get("data_root")))
        table = self._table("data")
        check_keys(table, DATA_KEYS, "[data] ", self.problems)
        subset = self.overrides.get("subset")
        base.data = {key: table[key] for key in DATA_KEYS if key in table} | ({"subset": subset} if subset else {})
        table = self._table("recipe")
        check_keys(table, RECIPE_KEYS, "[recipe] ", self.problems)
        epochs = self.overrides.get("epochs")
        base.recipe = {"name": "fast"} | table | ({"epochs": epochs} if epochs else {})
        if base.info is not None:
            self._try("[data] ", lambda: base.data_with({}))
            if base.recipe.keys() <= RECIPE_KEYS:
                self._try("[recipe] ", lambda: base.recipe_with({}))

    def _try(self, where: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`. If it raises `InputError`, record the problem and return None."""
        try:
            return make()
        except InputError as error:
            self.problems.append(f"{where}{error}")
            return None

    def _read_base(self) -> str:
        """Read the table [base] into the fields of the base, and return its name."""
        base, table = self.base, self._table("base")
        name, network = table.pop("name", BASE), table.pop("network", None)
        if not isinstance(name, str) or not name.strip():
            self.problems.append(f"[base] name: expected text, but got {name!r}.")
            name = BASE
        if network is not None:
            spec = self._try("[base] network: ", lambda: parse_name(str(network)))
            if spec is None:
                return name
            base.family = FAMILIES[spec.family]
            base.fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
            if "depth" in stated_fields(str(network)):
                layers = base.fields.pop(base.family.layers)
                base.fields |= {"depth": spec.depth, base.family.count: len(layers)}
            if "dropout" in base.fields and "dropout" not in stated_fields(str(network)):
                del base.fields["dropout"]
        elif "family" in table:
            base.family = self._try("[base] family: ", lambda: family_of(table["family"])) or base.family
        table.pop("family", None)
        for key in table:
            self._check_field(key, "[base] ")
        stated = {key: freeze(value) for key, value in table.items()}
        if stated.keys() <= base.family.fields:
            base.fields = self._try("[base] ", lambda: change_fields(base.fields, stated, base.family)) or {}
        return name

    def _check_field(self, name: str, where: str) -> bool:
        """Return whether a study may set the field `name`, and record the problem if not."""
        family = self.base.family
        if name in ("in_channels", "classes", "image_size"):
            hint = "; use data.image_size" if name == "image_size" else ""
            self.problems.append(f"{where}{name}: it is set by the data set{hint}.")
            return False
        if name not in family.fields:
            spec = family.spec.__name__
            self.problems.append(f"{where}{name}: {spec} has no such field.{did_you_mean(name, family.fields)}")
            return False
        return True

    def _settle_dropout(self) -> None:
        """Set the dropout of a base that states none. Without augmentation it is that of the recipe."""
        base = self.base
        if "dropout" in base.family.fields and "dropout" not in base.fields:
            augmented = base.data_with({})["augmentation"] != "none"
            base.fields["dropout"] = 0.0 if augmented else base.recipe_with({}).dropout_without_augmentation
        self._try("[base] ", lambda: base.spec_with({}))

    # --- the design -----------------------------------------------------------------------------------------------

    def _levels(self, equal: str) -> dict[str, tuple[Any, ...]]:
        """Return the levels of each factor, the base's first."""
        if "variants" in self.content:
            self.problems.append('[[variants]] requires design = "list"; other designs use [factors].')
        factors = _flat(self._table("factors"))
        if not factors:
            self.problems.append("[factors] is empty: name at least one factor, such as compression = [1.0, 0.5].")
        levels = {}
        for name, given in factors.items():
            if self._check_factor(name, f"[factors] {name}: ", equal) and (ordered := self._levels_of(name, given)):
                levels[name] = ordered
        return levels

    def _levels_of(self, name: str, given: Any) -> tuple[Any, ...] | None:
        """Return the levels of one factor, the base's first, or None if they are invalid."""
        where = f"[factors] {name}: "
        if not isinstance(given, list) or len(given) < 2:
            self.problems.append(where + f"expected a list of at least two levels, but got {given!r}.")
            return None
        values = [freeze(value) for value in given]
        if len({repr(value) for value in values}) < len(values):
            self.problems.append(where + f"a level appears twice in {given}.")
            return None
        base_level = self.base.level_of(name)
        if base_level not in values:
            table = name.partition(".")[0] if "." in name else "base"
            shown = "none" if base_level is None else repr(base_level)
            self.problems.append(
                where + f"its levels {given} do not include the base's, {shown}; add it, or state one of them in"
                f" [{table}]."
            )
            return None
        before = len(self.problems)
        for value in values:
            self._try(f"[factors] {name} = {thaw(value)!r}: ", partial(self.base.identity_with, {name: value}))
        if len(self.problems) > before:
            return None
        if len({self.base.identity_with({name: value}) for value in values}) == 1:
            self.problems.append(where + f"it has no effect: at {given} the runs are the same{self._why_unused(name)}.")
        return (base_level, *(value for value in values if value != base_level))

    def _why_unused(self, name: str) -> str:
        blocks = len(getattr(self.base.spec_with({}), self.base.family.layers))
        match name:
            case "compression" if blocks == 1:
                return ", since a network of one block has no transition"
            case "recipe.warmup" | "recipe.milestones":
                return f", since the schedule is {self.base.recipe_with({}).schedule}"
            case "recipe.dropout_without_augmentation":
                return "; use the factor dropout"
        return ""

    def _check_factor(self, name: str, where: str, equal: str) -> bool:
        """Return whether `name` may be a factor, and record the problem if not."""
        part, dot, key = name.rpartition(".")
        if dot and part not in ("recipe", "data"):
            self.problems.append(where + "a factor is a field of the spec, recipe.FIELD or data.FIELD.")
            return False
        if part == "recipe":
            known: Sequence[str] = sorted(RECIPE_KEYS)
        elif part == "data":
            known = DATA_KEYS
            if key == "split_seed":
                self.problems.append(where + "each pair has its own split, drawn from its seed.")
                return False
        elif not self._check_field(name, where):
            return False
        if dot and key not in known:
            self.problems.append(where + f"there is no such key of {part}.{did_you_mean(key, known)}")
            return False
        solved = {"params": {self.base.family.width, "wider_layers"}, "seconds": {"recipe.epochs"}}
        solved["macs"] = solved["params"]
        if name in solved.get(equal, set()):
            self.problems.append(
                where + f'with equal = "{equal}" it is solved for each variant, which overrides its levels; remove it,'
                ' or set equal = "nothing".'
            )
            return False
        return True

    def _listed(self, base: str, equal: str) -> dict[str, dict[str, Any]]:
        """Return the changes of each of [[variants]], by name."""
        if "factors" in self.content:
            self.problems.append('[factors] requires another design; design = "list" uses [[variants]].')
        entries = self.content.get("variants", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
            self.problems.append("variants must be an array of at least one table: [[variants]].")
            return {}
        changes_of: dict[str, dict[str, Any]] = {}
        for number, entry in enumerate(entries, 1):
            name = entry.get("name")
            where = f"[[variants]] {number}: "
            if not isinstance(name, str) or not name.strip():
                self.problems.append(where + f"it needs a name, but got {name!r}.")
                continue
            if name == base or name in changes_of:
                self.problems.append(where + f"there are two variants called {name!r}; names must be unique.")
                continue
            changes = {key: freeze(value) for key, value in _flat(entry).items() if key != "name"}
            where = f"[[variants]] {name}: "
            if not changes:
                self.problems.append(where + "it changes nothing; state what differs from the base.")
            if all(self._check_factor(key, where + f"{key}: ", equal) for key in changes):
                self._try(where, partial(self.base.identity_with, changes))
            changes_of[name] = changes
        return changes_of

    def _fraction(self, levels: Mapping[str, tuple[Any, ...]]) -> Fraction | None:
        share, generators = self.content.get("fraction"), self.content.get("generators")
        try:
            check_two_levels(levels)
        except InputError as error:
            self.problems.append(f"design: {error}")
            return None
        if generators is not None:
            if share is not None:
                self.problems.append("fraction and generators exclude each other; remove one of them.")
            elif not isinstance(generators, list) or not all(isinstance(generator, str) for generator in generators):
                self.problems.append(f'generators: expected a list such as ["C = A * B"], but got {generators!r}.')
            else:
                return self._try("generators: ", lambda: read_generators(list(levels), generators))
            return None
        shares = {f"1/{2**p}": p for p in range(1, len(levels))}
        if share is not None and share not in shares:
            self.problems.append(f"fraction: expected one of {', '.join(shares)} as text, but got {share!r}.")
            return None
        return self._try("fraction: ", lambda: best_fraction(list(levels), shares[share or "1/2"]))

    def _name_cells(
        self, design: str, levels: Mapping[str, tuple[Any, ...]], fraction: Fraction | None, base: str
    ) -> dict[str, dict[str, Any]]:
        """Return the level of each factor by the name of each variant of the design, the base first."""
        number = 1
        for values in levels.values():
            number *= len(values)
        if design == "factorial" and number > MAX_VARIANTS:
            self.problems.append(
                f"design: the factorial has {number:,} variants, more than {MAX_VARIANTS}; use fewer levels, or"
                ' design = "fractional" or "one-at-a-time".'
            )
            return {}
        if fraction is not None:
            cells = list(fraction.combinations(levels))
        else:
            cells = list(one_at_a_time(levels) if design == "one-at-a-time" else factorial(levels))
        base_levels = {name: values[0] for name, values in levels.items()}
        given = self._given_names(base_levels)
        cell_of: dict[str, dict[str, Any]] = {}
        for cell in cells:
            changes = {name: value for name, value in cell.items() if value != base_levels[name]}
            default = " ".join(f"{name}={_as_text(value)}" for name, value in changes.items()) or base
            name = next((name for name, named_changes in given.items() if named_changes == changes), default)
            if name in cell_of:
                self.problems.append(f"[names] {name}: two variants would have this name.")
            cell_of[name] = cell
        for name, changes in given.items():
            if name not in cell_of:
                shown = ", ".join(f"{key}={_as_text(value)}" for key, value in changes.items()) or "the base's levels"
                self.problems.append(f"[names] {name}: no variant of the design has {shown}.")
        return cell_of

    def _given_names(self, base_levels: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        changes_of = {}
        for name, given in self._table("names").items():
            if not isinstance(given, dict):
                self.problems.append(f"[names] {name}: expected the levels that differ, {{ FACTOR = LEVEL }}.")
                continue
            levels = {key: freeze(value) for key, value in _flat(given).items()}
            check_keys(levels, base_levels, f"[names] {name}: ", self.problems)
            changes_of[name] = {key: value for key, value in levels.items() if value != base_levels.get(key)}
        return {name: changes for name, changes in changes_of.items() if changes}


def read_seeds(value: Any) -> tuple[int, ...] | str:
    """Return the seeds of a list, or the seeds 0, 1, ... of a number. "auto" is returned unchanged."""
    if value == AUTO:
        return AUTO
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 2:
            raise InputError(
                f"`seeds >= 2` must hold, but got seeds={value}: {several(value, 'pair')} cannot show how much a"
                " difference varies; 7 seeds are enough for 3 comparisons."
            )
        return tuple(range(value))
    if isinstance(value, list | tuple) and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        seeds = tuple(dict.fromkeys(value))
        if len(seeds) < len(value):
            raise InputError(f"a seed appears twice: {list(value)}.")
        if any(seed < 0 for seed in seeds):
            raise InputError(f"a seed must not be negative, but got {list(value)}.")
        if len(seeds) < 2:
            raise InputError(
                f"`seeds >= 2` must hold, but got {several(len(seeds), 'seed')}: one pair cannot show how much a"
                " difference varies; 7 seeds are enough for 3 comparisons."
            )
        return seeds
    raise InputError(f'expected a number of seeds, a list of them, or "auto", but got {value!r}.')


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested tables to dotted keys, because TOML reads `recipe.epochs = ...` as a nested table."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= (
            {f"{key}.{name}": nested_value for name, nested_value in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return flat


def _as_text(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
