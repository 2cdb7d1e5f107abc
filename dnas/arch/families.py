"""Table of the network families and the fields by which their size is varied."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dnas.arch.densenet import DenseNetSpec
from dnas.arch.resnet import ResNetSpec
from dnas.errors import InputError, unknown

Spec = DenseNetSpec | ResNetSpec


@dataclass(frozen=True)
class Family:
    """A family of networks and the roles of its fields.

    spec: Class of its specs.
    layers: Field with the layers of each block.
    count: Argument of `of_depth` for the number of blocks.
    width: Field that determines the width of the network. Its value is one number, or one per block.
    """

    spec: type[DenseNetSpec] | type[ResNetSpec]
    layers: str
    count: str
    width: str

    @property
    def fields(self) -> set[str]:
        """All fields that describe a network: those of its spec, and `depth` and `count` for equal blocks."""
        return {f.name for f in fields(self.spec) if f.init} | {"depth", self.count}

    def make(self, values: Mapping[str, Any]) -> Spec:
        """Build the spec from values of `fields`."""
        values = dict(values)
        return self.spec.of_depth(values.pop("depth"), **values) if "depth" in values else self.spec(**values)


FAMILIES = {
    "densenet": Family(DenseNetSpec, layers="block_layers", count="blocks", width="growth_rate"),
    "resnet": Family(ResNetSpec, layers="stage_units", count="stages", width="width"),
}


def family_of(name: object) -> Family:
    """Return the family of this name, or raise `InputError`."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise unknown("family of networks", str(name), FAMILIES)
    return FAMILIES[name]


def spec_from_dict(values: Mapping[str, Any]) -> Spec:
    """Return the spec from the values of `to_dict`. Values without a `family` describe a DenseNet."""
    if not isinstance(values, Mapping):
        raise InputError(f"a network must be a table of its fields, but got {values!r}.")
    return family_of(values.get("family", "densenet")).spec.from_dict(values)
