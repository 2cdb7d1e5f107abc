"""Variants of an ablation: the base with some fields changed, and its width solved if sizes are held equal."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dnas.arch import FAMILIES, Spec, cost, format_name
from dnas.arch.families import Family
from dnas.arch.matching import residual, resize
from dnas.data.catalog import DataInfo, choose_augmentation, choose_image_size
from dnas.errors import InputError
from dnas.training.recipe import Recipe, make_recipe

SIZES = ("params", "macs")  # quantities held equal by solving for the width


@dataclass(frozen=True)
class Cell:
    """One variant of a design: its name, and the level of each factor."""

    name: str
    levels: Mapping[str, Any]


@dataclass(frozen=True)
class Variant(Cell):
    """A network with its training recipe and data.

    Attributes:
        spec: The network.
        recipe: Its training recipe.
        data: Arguments of `load_dataset` that the study sets.
        params: Number of parameters.
        macs: Multiply-adds for one image.
        residual: Relative deviation from the base in the quantity held equal: params, macs, or training time as
            determined by the number of epochs. None if nothing is held equal.
        changed: Every field that differs from the base and its value, including `recipe.FIELD` and `data.FIELD`.
    """

    spec: Spec
    recipe: Recipe
    data: Mapping[str, Any]
    params: int
    macs: int
    residual: float | None
    changed: Mapping[str, Any]


@dataclass
class Base:
    """The base network, recipe and data set of an ablation, from which each variant is made by changing fields.

    Attributes:
        info: Properties of the data set. None until it is known.
        family: Family of the base network.
        fields: Fields of the base network, as `Family.make` takes them.
        recipe: Arguments of `make_recipe`.
        data: Arguments of `load_dataset` that the study sets.
    """

    info: DataInfo | None = None
    family: Family = field(default_factory=lambda: FAMILIES["densenet"])
    fields: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def spec_with(self, changes: Mapping[str, Any]) -> Spec:
        """Return the base network with `changes` (factor -> level), sized for the images of the study."""
        assert self.info is not None
        network_changes = {key: value for key, value in changes.items() if "." not in key}
        facts = {
            "in_channels": self.info.channels,
            "classes": self.info.classes,
            "image_size": self.data_with(changes)["image_size"],
        }
        try:
            return self.family.make(change_fields(self.fields, network_changes, self.family) | facts)
        except TypeError as error:
            raise InputError(f"{self.family.spec.__name__}: {error}.") from None

    def recipe_with(self, changes: Mapping[str, Any]) -> Recipe:
        assert self.info is not None
        values = self.recipe | _without_prefix("recipe", changes)
        name = values.pop("name")
        return make_recipe(str(name), self.info, **values)

    def data_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return subset, image size and augmentation, with the defaults of the data set if the study sets none."""
        assert self.info is not None
        values = self.data | _without_prefix("data", changes)
        for key in ("subset", "image_size"):
            value = values.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"`{key} >= 1` must hold, but got {key}={value!r}.")
        side = choose_image_size(self.info, values.get("image_size"), str(self.fields.get("stem", "small")))
        augmentation = choose_augmentation(self.info, side, str(values.get("augmentation", "auto")))
        return {"subset": values.get("subset"), "image_size": side, "augmentation": augmentation}

    def level_of(self, factor: str) -> Any:
        """Return the level of a factor at the base."""
        part, _, key = factor.rpartition(".")
        if part == "recipe":
            return getattr(self.recipe_with({}), key)
        if part == "data":
            return self.data_with({})[key]
        spec = self.spec_with({})
        if factor == self.family.count:
            return len(getattr(spec, self.family.layers))
        return getattr(spec, "stem_width" if factor == "stem_channels" else factor)

    def identity_with(self, changes: Mapping[str, Any]) -> tuple[Any, ...]:
        return identity(self.spec_with(changes), self.recipe_with(changes), self.data_with(changes))


def make_variants(
    base: Base, levels_of: Mapping[str, Mapping[str, Any]], equal: str, tolerance: float, problems: list[str]
) -> tuple[Variant, ...]:
    """Make the variants of a design, the base first.

    Args:
        base: The base network, recipe and data.
        levels_of: Changes of each variant, by name, the base first.
        equal: Quantity held equal: nothing, params, macs or seconds. For params and macs the width is solved.
        tolerance: Largest relative deviation from the base's params or macs.
        problems: Receives a message for each variant that cannot be made or that repeats another one.
    """
    variants: dict[str, Variant] = {}
    target = None
    for name, levels in levels_of.items():
        first = next(iter(variants.values()), None)
        try:
            spec, recipe, data = base.spec_with(levels), base.recipe_with(levels), base.data_with(levels)
            deviation = 0.0 if equal != "nothing" else None
            if equal in SIZES:
                target = target or getattr(cost(spec), equal)
                if first is not None:
                    spec = resize(spec, equal, target)
                deviation = residual(spec, equal, target)
        except InputError as error:
            problems.append(f"variant {name}: {error}")
            continue
        if equal in SIZES and deviation is not None and abs(deviation) > tolerance:
            problems.append(
                f"variant {name}: equal {equal} within {100 * tolerance:g}% cannot be reached: the nearest network,"
                f" {format_name(spec)}, has {getattr(cost(spec), equal):,}, {100 * abs(deviation):.1f}%"
                f" {'more' if deviation > 0 else 'fewer'} than the base's {target:,}; raise the tolerance or use a"
                " larger base."
            )
        costs = cost(spec, recipe.batch_size)
        variant = Variant(name, dict(levels), spec, recipe, data, costs.params, costs.macs, deviation, {})
        variants[name] = dataclasses.replace(variant, changed=differences(variant, first or variant))
    _check_distinct(variants, problems)
    return tuple(variants.values())


def _check_distinct(variants: Mapping[str, Variant], problems: list[str]) -> None:
    first_name: dict[tuple[Any, ...], str] = {}
    for name, variant in variants.items():
        earlier = first_name.setdefault(identity(variant.spec, variant.recipe, variant.data), name)
        if earlier != name:
            problems.append(
                f"variants {earlier} and {name} are the same run, {format_name(variant.spec)}; remove one of them."
            )


def differences(variant: Variant, base: Variant) -> dict[str, Any]:
    """Return each field that differs from the base, with the variant's value.

    A depth with equal blocks appears as the number of layers in each block.
    """
    changed: dict[str, Any] = {}
    values, base_values = variant.spec.to_dict(), base.spec.to_dict()
    changed |= {key: value for key, value in values.items() if value != base_values.get(key)}
    values, base_values = variant.recipe.to_dict(), base.recipe.to_dict()
    changed |= {f"recipe.{key}": value for key, value in values.items() if value != base_values[key]}
    return changed | {f"data.{key}": value for key, value in variant.data.items() if value != base.data[key]}


def identity(spec: Spec, recipe: Recipe, data: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that is equal for two runs of one seed if and only if they are the same run.

    Names, and fields that the schedule or the finished spec does not use, are left out.
    """
    values = dataclasses.asdict(recipe)
    unused = {"name", "dropout_without_augmentation", "warmup" if recipe.schedule == "steps" else "milestones"}
    used = tuple((key, value) for key, value in values.items() if key not in unused)
    return spec.family, spec.digest, used, tuple(sorted(data.items(), key=lambda pair: pair[0]))


def change_fields(values: Mapping[str, Any], changes: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return fields for `Family.make`. The layers of each block exclude a depth, and the change takes precedence."""
    values = dict(values)
    if family.layers in changes:
        values.pop("depth", None)
        values.pop(family.count, None)
    elif family.layers in values and {"depth", family.count} & changes.keys():
        spec = family.make(values)
        values |= {"depth": spec.depth, family.count: len(values.pop(family.layers))}
    return values | dict(changes)


def _without_prefix(part: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in changes.items() if key.startswith(f"{part}.")}


def freeze(value: Any) -> Any:
    """Return a list as a tuple, and any other value unchanged."""
    return tuple(value) if isinstance(value, list) else value


def thaw(value: Any) -> Any:
    """Return a tuple as a list, and any other value unchanged."""
    return list(value) if isinstance(value, tuple) else value
