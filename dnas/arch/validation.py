"""Checks and conversions of spec fields that all network families share."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STEMS = ("small", "imagenet")


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


def read_fields(cls: "type[DataclassInstance]", values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the spec class from the values of `to_plain`. Unknown fields raise `InputError`."""
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in names and key != "family":
            raise InputError(f"{cls.__name__} has no field {key!r}.{did_you_mean(key, names)}")
    return {key: values[key] for key in values if key in names}


def to_plain(spec: "DataclassInstance") -> dict[str, Any]:
    """Convert a spec to plain values for JSON, including the name of the family."""
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def digest_of(normal_form: Mapping[str, Any]) -> str:
    """Return 16 hex digits that identify a network."""
    return hashlib.sha256(json.dumps(normal_form, sort_keys=True).encode()).hexdigest()[:16]
