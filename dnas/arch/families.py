"""Table of the network families and the fields by which their size is varied."""

import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from dnas.arch import densenet_cost, resnet_cost
from dnas.arch.densenet import DenseNetSpec
from dnas.arch.layer import Layer
from dnas.arch.plugins import Registry
from dnas.arch.resnet import ResNetSpec
from dnas.arch.spec import Spec
from dnas.arch.terms import Terms
from dnas.errors import InputError, unknown


@dataclass(frozen=True)
class Family:
    """A family of networks: its specs, their costs and their modules, and the roles of their fields.

    spec: Class of its specs.
    layers: Field with the layers of each block.
    width: Field that determines the width of the network. Its value is one number, or one per block.
    layer_terms: Returns the terms of the cost of one layer of a spec.
    build: Returns the module of a spec, initialised from torch's global generator, or the import path of such a
        function or class. It maps images [N, in_channels, image_size, image_size] to logits [N, classes].
    network_terms: Returns terms that add up to the whole network. None adds up all layers.
    count: Argument of the spec's `of_depth` for the number of blocks. Specs without `of_depth` are not made by depth.
    """

    spec: type[Spec]
    layers: str
    width: str
    layer_terms: Callable[[Any, Layer], Terms]
    build: Callable[[Any], Any] | str
    network_terms: Callable[[Any], Iterable[Terms]] | None = None
    count: str = "blocks"

    @property
    def has_depth(self) -> bool:
        """True if networks can be made by depth L."""
        return hasattr(self.spec, "of_depth")

    @property
    def fields(self) -> set[str]:
        """All fields that describe a network: those of its spec, and `depth` and `count` for equal blocks."""
        return {f.name for f in fields(self.spec)} | ({"depth", self.count} if self.has_depth else set())

    def make(self, values: Mapping[str, Any]) -> Spec:
        """Build the spec from values of `fields`."""
        values = dict(values)
        if "depth" in values:
            return self.spec.of_depth(values.pop("depth"), **values)  # type: ignore[attr-defined]
        required = [f.name for f in fields(self.spec) if f.default is MISSING and f.default_factory is MISSING]
        if missing := [name for name in required if name not in values]:
            raise InputError(f"{self.spec.__name__} needs a value of {' and '.join(missing)}.")
        return self.spec(**values)

    def terms(self, spec: Spec) -> Iterable[Terms]:
        """Return terms that add up to the cost of the whole network."""
        if self.network_terms is not None:
            return self.network_terms(spec)
        return (self.layer_terms(spec, layer) for layer in spec.layers())

    def module(self, spec: Spec) -> Any:
        """Build the `nn.Module` of a spec."""
        return (pkgutil.resolve_name(self.build) if isinstance(self.build, str) else self.build)(spec)


def _problem(name: str, family: object) -> str:
    """Return why an object cannot be the family `name`, or an empty string."""
    if not isinstance(family, Family):
        return f"it is {family!r}, and not a dnas.arch.Family"
    spec = family.spec
    if not (isinstance(spec, type) and issubclass(spec, Spec)):
        return f"its spec, {spec!r}, does not derive from dnas.arch.Spec"
    if getattr(spec, "family", None) != name or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return f"{spec.__name__}.family is {getattr(spec, 'family', None)!r}, and must be the lower-case name"
    missing = {family.layers, family.width} - family.fields
    return f"{spec.__name__} has no field {', '.join(sorted(missing))}" if missing else ""


FAMILIES: Registry[Family] = Registry(
    "dnas.families",
    {
        "densenet": Family(
            DenseNetSpec,
            layers="block_layers",
            width="growth_rate",
            layer_terms=densenet_cost.layer_terms,
            build="dnas.nn.densenet:DenseNet",
            network_terms=densenet_cost.network_terms,
        ),
        "resnet": Family(
            ResNetSpec,
            layers="stage_units",
            width="width",
            layer_terms=resnet_cost.layer_terms,
            build="dnas.nn.resnet:ResNet",
            network_terms=resnet_cost.network_terms,
            count="stages",
        ),
    },
    _problem,
)


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
