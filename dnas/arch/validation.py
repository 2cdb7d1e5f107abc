"""Specs as plain values, and the checks of their fields: what the families of networks share."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STEMS = ("small", "imagenet")


def check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number, but got {value!r}.")
    if value < least:
        raise InputError(f"`{name} >= {least}` must hold, but got {name}={value}.")


def check_real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be a number, but got {value!r}.")
    return float(value)


def check_stem(stem: object) -> None:
    if stem not in STEMS:
        raise InputError(f"stem must be one of {', '.join(STEMS)}, but got {stem!r}.")


def nearest_depths(name: str, depth: int, fixed: int, period: int) -> InputError:
    """What is wrong with a depth that is not `fixed` and a multiple of `period` from 1 on."""
    count = (depth - fixed) // period
    lower = fixed + max(1, count) * period
    near = [lower] if count < 1 else [lower, lower + period]
    return InputError(
        f"a {name} of depth {depth} does not exist: `(depth - {fixed}) % {period} == 0` must hold"
        f"{'' if count >= 1 else f' with depth >= {lower}'}; the nearest"
        f" {'depths are' if len(near) > 1 else 'depth is'} {' and '.join(map(str, near))}."
    )


def read_fields(cls: "type[DataclassInstance]", values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the spec `cls` that `to_plain` wrote; `InputError` where there is none of that name."""
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in names and key != "family":
            raise InputError(f"{cls.__name__} has no field {key!r}.{did_you_mean(key, names)}")
    return {key: values[key] for key in values if key in names}


def to_plain(spec: "DataclassInstance") -> dict[str, Any]:
    """Plain values for JSON, the family's name among them."""
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def digest_of(normal_form: Mapping[str, Any]) -> str:
    """16 hex digits that name a network."""
    return hashlib.sha256(json.dumps(normal_form, sort_keys=True).encode()).hexdigest()[:16]
