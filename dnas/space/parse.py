"""Parser of search spaces in TOML files. All problems of a file are reported together."""

import dataclasses
import math
import random
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dnas.arch import FAMILIES
from dnas.arch.families import Family, family_of
from dnas.data.catalog import data_info
from dnas.errors import InputError, did_you_mean, several_problems, unknown
from dnas.io import parse_toml, read_text
from dnas.space.space import FIT, LIMITS, Choice, Limits, Space, Survey
from dnas.training.recipe import RECIPE_KEYS, RECIPES, Recipe, make_recipe

__all__ = ["Choice", "Limits", "Space", "load_space", "parse_space", "shipped_folders", "space_files"]

KEYS = ("family", "dataset", "fixed", "choose", "limits", "recipe", "first")
CHOICE_KEYS = ("int", "float", "of", "step", "times", "when")


# --- reading ------------------------------------------------------------------------------------------------------


def shipped_folders(kind: str) -> list[Path]:
    """Return the folders to search for `search_spaces` or `studies`: the current folder, then those of dnas."""
    package = Path(__file__).parents[1]
    return [Path(kind), package / "shipped" / kind, package.parent / kind]


def space_files() -> dict[str, Path]:
    """Return the files of all spaces by name. Files in the current folder take precedence."""
    files: dict[str, Path] = {}
    for folder in shipped_folders("search_spaces"):
        for path in sorted(folder.glob("*.toml")):
            files.setdefault(path.stem, path)
    return files


def load_space(name: str, **overrides: Any) -> Space:
    """Load the space called `name`, or the file `name` if it ends with `.toml`.

    Args:
        name: Name of a space or path of a file.
        overrides: `dataset`, `recipe` (a name), `limits` (a mapping), and fields of the recipe. None keeps the value of
            the file.

    Raises:
        InputError: With all problems of the file.
    """
    path = space_path(name)
    return parse_space(read_text(path), path.stem, str(path), **overrides)


def space_path(name: str) -> Path:
    """Return the path of the space called `name`, or of the file `name` if it ends with `.toml`."""
    files = space_files()
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise InputError(f"no space file {name}.")
        return Path(name)
    if name not in files:
        raise unknown("search space", name, files)
    return files[name]


def parse_space(text: str, name: str, where: str, check: bool = True, **overrides: Any) -> Space:
    """Parse the text of a space file.

    Args:
        text: Content of the file.
        name: Name of the space.
        where: Name of the file in the `InputError` that lists all problems.
        check: Whether to check that its networks exist, some of them within the limits. A study's space was checked.
        overrides: Values that replace those of the file: dataset, limits and recipe.
    """
    content = parse_toml(text, where)
    problems: list[str] = []
    check_keys(content, KEYS, "", problems)
    family = FAMILIES["densenet"]
    try:
        family = family_of(content.get("family", "densenet"))
    except InputError as error:
        problems.append(f"family: {error}")
    dataset = overrides.get("dataset") or content.get("dataset")
    info = None
    if not isinstance(dataset, str):
        problems.append("dataset: the name of a data set is required, such as cifar10.")
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
    given = {*fixed, *(choice.target for choice in choices)}
    if not problems and not given & {"depth", family.layers}:
        alternative = ", or depth" if family.has_depth else ""
        problems.append(f"the depth of the networks is missing: choose or fix {family.layers}{alternative}.")
    limits = _read_limits(tables["limits"] | (overrides.get("limits") or {}), problems)
    if fixed.get(family.width) == FIT and not limits.stated():
        problems.append(f'[fixed] {family.width} = "{FIT}" needs a limit to fit to; state one under [limits].')
    if info is not None:
        # The data set determines the shape of the images, unless the file chooses or fixes it.
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
        if check:
            problems += _check_networks(space, overrides.get("limits") or {})
        if not problems:
            return space
    raise several_problems(where, problems)


def check_keys(table: Mapping[str, Any], known: Collection[str], where: str, problems: list[str]) -> None:
    """Add each key of `table` that is not `known` to `problems`."""
    for key in table:
        if key not in known:
            problems.append(f"{where}{key}: there is no such key.{did_you_mean(key, known)}")


def _no_field(name: str, family: Family) -> str:
    hint = did_you_mean(name, family.fields)
    return f"{family.spec.__name__} has no such field" + (f";{hint.replace('Did', 'did')}" if hint else ".")


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
            problems.append(where + "it is also in [fixed]; keep only one.")
        if not isinstance(given, dict):
            problems.append(where + "expected { int = [low, high] }, { float = [low, high] } or { of = [...] }.")
            continue
        check_keys(given, CHOICE_KEYS, where, problems)
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
                where + f"times must be a positive number of {family.count}, for {family.layers} or {family.width}"
                f" only, but got {times!r}."
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
                problems.append(f"[choose] {choice.name}: when names {other!r}, which must come before it.")
            else:
                possible = names[other].values()
                for value in values:
                    if possible is not None and names[other].encode(value) not in possible:
                        problems.append(
                            f"[choose] {choice.name}: when {other} = {value!r}, but {other} never has that value."
                        )
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
            problems.append(where + f"of lists a value twice: {options}.")
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
            where + f"int requires whole numbers, but got {ends!r}{'' if step is None else f' and step={step!r}'}."
        )
        return None
    if step is not None and (not _number(step) or step <= 0):
        problems.append(where + f"`step > 0` must hold, but got step={step!r}.")
        return None
    # The end of the range for samplers is the last value that the steps reach.
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
            problems.append(f"[limits] {name}: expected a positive number, but got {_toml(value)}.")
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
    points = []
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
                is_valid = (
                    encoded in possible if possible is not None else _number(value) and part.low <= value <= part.high
                )
                if not is_valid:
                    problems.append(where + f"{part.name}={value!r} is outside of {part.describe()}.")
                point[part.name] = encoded
        points.append(point)
    return tuple(points)


def _check_networks(space: Space, options: Mapping[str, float]) -> list[str]:
    """Return the problems that only the networks reveal: impossible networks, and limits that none satisfies.

    Raises `InputError` if no network satisfies one of `options`, the limits that the file does not state.
    """
    survey = space.survey()
    if not survey.costs:
        return [f"none of its networks exists: {survey.example}"]
    problems = []
    if survey.whole and survey.impossible:
        problems.append(f"{survey.impossible} of its {space.size()} networks do not exist, such as: {survey.example}")
    if not survey.feasible and not _some_draw_is_feasible(space, survey):
        for name, limit in space.limits.stated().items():
            smallest = survey.range(name)[0]
            if smallest > limit and name in options:
                raise InputError(
                    f"--max-{name} {limit:,}: no network of {space.name} is as small; the smallest has"
                    f" {smallest:,} {name}."
                )
            if smallest > limit:
                problems.append(
                    f"[limits] {name}: no network satisfies {name} <= {limit:,}; the smallest has {smallest:,}."
                )
        if not problems:
            problems.append(f"[limits] no network satisfies all of {', '.join(space.limits.stated())} at once.")
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
