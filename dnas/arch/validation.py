"""Checks and conversions of spec fields that all network families share."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Set
from types import UnionType
from typing import Any, get_args, get_type_hints

from dnas.errors import InputError, did_you_mean

STEMS = ("small", "imagenet")
_FIELD_TYPES: dict[type[Any], dict[str, set[object]]] = {}


def check_whole(name: str, value: object, minimum: int) -> None:
    """Raise `InputError` unless the field `name` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number, but got {value!r}.")
    if value < minimum:
        raise InputError(f"`{name} >= {minimum}` must hold, but got {name}={value}.")


def check_real(name: str, value: object) -> float:
    """Return the field `name` as a float, or raise `InputError` if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number, but got {value!r}.")
    return float(value)


def field_types(cls: type[Any]) -> dict[str, set[object]]:
    """Return the fields of a spec class, with their types, such as `int` and `tuple[int, ...]`."""
    if cls not in _FIELD_TYPES:
        hints = get_type_hints(cls)
        ordered = sorted(dataclasses.fields(cls), key=lambda f: f.kw_only is True)  # the fields of the base class last
        own = {f.name: hints[f.name] for f in ordered}
        types = {name: set(get_args(hint)) if isinstance(hint, UnionType) else {hint} for name, hint in own.items()}
        _FIELD_TYPES[cls] = types
    return _FIELD_TYPES[cls]


def check_fields(spec: Any) -> None:
    """Raise `InputError` unless each field of `spec` has its type. Lists become tuples, and whole numbers floats.

    Whole numbers are at least 1, or the field's `minimum`: `field(default=0, metadata={"minimum": 0})`.
    """
    types = field_types(type(spec))
    for f in dataclasses.fields(spec):
        value, options, minimum = getattr(spec, f.name), types[f.name], f.metadata.get("minimum", 1)
        if isinstance(value, list | tuple) and tuple[int, ...] in options:
            if not value:
                raise InputError(f"{f.name} must list at least one whole number, but got {value!r}.")
            for number in value:
                check_whole(f.name, number, minimum)
            object.__setattr__(spec, f.name, tuple(value))
        elif float in options and value is not None:
            object.__setattr__(spec, f.name, check_real(f.name, value))
        elif int in options and value is not None:
            check_whole(f.name, value, minimum)
        elif type(value) not in options:
            raise InputError(f"{f.name} must be {_described(options)}, but got {value!r}.")


def _described(options: Set[object]) -> str:
    names = {tuple[int, ...]: "a list of whole numbers", str: "text", type(None): "none"}
    return " or ".join(sorted(names.get(option, getattr(option, "__name__", str(option))) for option in options))


def check_stem(stem: object) -> None:
    """Raise `InputError` if `stem` is not one of `STEMS`."""
    if stem not in STEMS:
        raise InputError(f"stem must be one of {', '.join(STEMS)}, but got {stem!r}.")


def nearest_depths(name: str, depth: int, fixed: int, period: int) -> InputError:
    """Return the error for a depth that is not `fixed` plus a positive multiple of `period`."""
    count = (depth - fixed) // period
    lower = fixed + max(1, count) * period
    near = [lower] if count < 1 else [lower, lower + period]
    return InputError(
        f"a {name} of depth {depth} does not exist: `(depth - {fixed}) % {period} == 0` must hold"
        f"{'' if count >= 1 else f' with depth >= {lower}'}; the nearest"
        f" {'depths are' if len(near) > 1 else 'depth is'} {' and '.join(map(str, near))}."
    )


def read_fields(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the spec class from the values of `to_plain`. Unknown fields raise `InputError`."""
    names = field_types(cls)
    for key in values:
        if key not in names and key != "family":
            raise InputError(f"{cls.__name__} has no field {key!r}.{did_you_mean(key, names)}")
    return {key: values[key] for key in values if key in names}


def to_plain(spec: Any) -> dict[str, Any]:
    """Convert a spec to plain values for JSON, including the name of the family."""
    values = {name: getattr(spec, name) for name in field_types(type(spec))}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return plain | {"family": spec.family}


def digest_of(normal_form: Mapping[str, Any]) -> str:
    """Return 16 hex digits that identify a network."""
    return hashlib.sha256(json.dumps(normal_form, sort_keys=True).encode()).hexdigest()[:16]
