"""The families of networks, and how each is varied: the table that every other module goes by."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dnas.arch.densenet import DenseNetSpec
from dnas.arch.resnet import ResNetSpec
from dnas.errors import InputError, unknown

Spec = DenseNetSpec | ResNetSpec


@dataclass(frozen=True)
class Family:
    """spec: its class. layers: the field with the layers of each block. count: what `of_depth` calls the number of
    blocks. width: the field that makes the network wider, one number or one a block."""

    spec: type[DenseNetSpec] | type[ResNetSpec]
    layers: str
    count: str
    width: str

    @property
    def fields(self) -> set[str]:
        """What may be said of a network: its spec's fields, and a depth with equal blocks in place of their layers."""
        return {f.name for f in fields(self.spec) if f.init} | {"depth", self.count}

    def make(self, values: Mapping[str, Any]) -> Spec:
        """The network of these `fields`."""
        values = dict(values)
        return self.spec.of_depth(values.pop("depth"), **values) if "depth" in values else self.spec(**values)


FAMILIES = {
    "densenet": Family(DenseNetSpec, layers="block_layers", count="blocks", width="growth_rate"),
    "resnet": Family(ResNetSpec, layers="stage_units", count="stages", width="width"),
}


def family_of(name: object) -> Family:
    if not isinstance(name, str) or name not in FAMILIES:
        raise unknown("family of networks", str(name), FAMILIES)
    return FAMILIES[name]


def spec_from_dict(values: Mapping[str, Any]) -> Spec:
    """The spec that its `to_dict` wrote; without a `family` it is a DenseNet's."""
    if not isinstance(values, Mapping):
        raise InputError(f"a network must be a table of its fields, but got {values!r}.")
    return family_of(values.get("family", "densenet")).spec.from_dict(values)
