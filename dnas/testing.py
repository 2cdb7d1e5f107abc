"""Contract of network families, which the tests of dnas and of plugins check.

from dnas.testing import check_family

def test_family():
    check_family(FAMILY)
"""

import dataclasses
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch import FAMILIES, Family, Spec, cost, format_name, layer_costs, parse_name, spec_from_dict
from dnas.arch.validation import field_types
from dnas.errors import InputError
from dnas.nn import build

BATCH = 3
FACTS = {"in_channels": (1, 3), "image_size": (8, 9, 11, 16), "classes": (2, 10)}


def check_family(family: Family, values: Mapping[str, Sequence[Any]] | None = None, networks: int = 24) -> None:
    """Check that random networks of a family keep the contract of `check_spec`, and that digests tell them apart.

    Whole numbers are drawn from 1 to 4 and the default, and tuples have one to three of them. Other fields have their
    default. Draws that the spec refuses are left out.

    Args:
        family: A family that dnas knows by its name: a shipped one, or one of an installed package.
        values: Values to draw from, by field.
        networks: Number of networks to draw.

    Raises:
        AssertionError: The contract is broken. The message names the network.
    """
    name = family.spec.family
    _check(FAMILIES.get(name) == family, f"the family {name!r} is not installed as an entry point of dnas.families")
    rng = random.Random(0)
    drawn = [_draw(family, {**FACTS, **(values or {})}, rng) for _ in range(networks)]
    specs = [spec for spec in drawn if spec is not None]
    _check(bool(specs), f"none of {networks} random networks of {name!r} exists; pass `values` that exist")
    same: dict[str, Spec] = {}
    for spec in specs:
        check_spec(spec)
        twin = same.setdefault(spec.digest, spec)
        _check(_structure(twin) == _structure(spec), f"{twin} and {spec} differ, but have the same digest")
    _check(len(same) > 1 or networks == 1, f"all random networks of {name!r} have the same digest")


def _draw(family: Family, values: Mapping[str, Sequence[Any]], rng: random.Random) -> Spec | None:
    """Draw a network, or None if it does not exist."""
    types, drawn = field_types(family.spec), {}
    for f in dataclasses.fields(family.spec):
        low = f.metadata.get("minimum", 1)
        numbers = range(low, low + 4)
        has_default = f.default is not dataclasses.MISSING
        if f.name in values:
            drawn[f.name] = rng.choice(values[f.name])
        elif tuple[int, ...] in types[f.name] and not (has_default and rng.random() < 0.3):
            drawn[f.name] = tuple(rng.choices(numbers, k=rng.randint(1, 3)))
        elif int in types[f.name]:
            drawn[f.name] = rng.choice([*numbers, *[f.default] * has_default])
    try:
        return family.make(drawn)
    except InputError:
        return None


def _structure(spec: Spec) -> tuple[Any, ...]:
    """Return what two specs of the same network have in common."""
    return list(spec.layers()), layer_costs(spec), repr(build(spec))


def check_spec(spec: Spec, prepare: Callable[[nn.Module], object] = lambda net: None) -> None:
    """Check that a spec equals its network: costs, names, plain values and shapes.

    Args:
        spec: The network.
        prepare: Called with the module before its training step is measured.

    Raises:
        AssertionError: The contract is broken. The message names the network.
    """
    values = json.loads(json.dumps(spec.to_dict()))
    _check(spec_from_dict(values) == spec, f"{spec} is not restored from {values}")
    _check(spec_from_dict(values).digest == spec.digest, f"the digest of {spec} changes when it is read from JSON")
    name = format_name(spec)
    _check(parse_name(name) == spec, f"{spec} has the name {name!r}, which is the name of {parse_name(name)}")
    _check(spec.depth >= 1 and bool(spec.title), f"{spec} has no depth or no title")
    price, layers = cost(spec, BATCH), layer_costs(spec, BATCH)
    channels = {"input": spec.in_channels}
    for layer in spec.layers():
        for source in layer.sources:
            _check(channels.get(source.layer) == source.channels, f"{name}: {layer.name} reads {source}")
        channels[layer.name] = layer.out_channels
    net = build(spec)
    x = torch.randn(BATCH, spec.in_channels, spec.image_size, spec.image_size)
    y = torch.arange(BATCH) % spec.classes
    macs, shape = _macs_and_shape(net, x[:1])
    _check(shape == (1, spec.classes), f"{name}: the logits of an image are {list(shape)}, not [1, {spec.classes}]")
    prepare(net)
    measured = {
        "params": sum(parameter.numel() for parameter in net.parameters()),
        "macs": macs,
        "activation_bytes": _saved_bytes(net, x, y),
    }
    for measure, value in measured.items():
        stated, added = getattr(price, measure), sum(getattr(layer, measure) for layer in layers)
        _check(stated == value, f"{name}: its cost states {stated:,} {measure}, but the module has {value:,}")
        _check(added == stated, f"{name}: the {measure} of its layers add up to {added:,}, not to {stated:,}")


def _check(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text + ".")


def _macs_and_shape(net: nn.Module, x: Tensor) -> tuple[int, tuple[int, ...]]:
    """Count the multiply-adds of all convolutions and linear layers for one image, and return the output's shape."""
    total = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += module.weight.numel() * math.prod(output.shape[2:])
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() * math.prod(output.shape[1:-1])

    hooks = [module.register_forward_hook(count) for module in net.modules()]
    with torch.no_grad():
        shape = tuple(net.eval()(x).shape)
    for hook in hooks:
        hook.remove()
    return total, shape


def _saved_bytes(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the bytes of distinct storages that autograd keeps, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.nbytes():
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(net.train()(x), y)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    return total
