"""What a network costs, by arithmetic alone: no torch, no tensors, microseconds a network.

Conventions. `params`: every learned number. `macs`: multiply-adds of the convolutions and the linear layer for one
image, a transition's convolution counted before its pooling, as published. `activation_bytes`: the distinct tensors
that autograd keeps for the backward pass of one training step with cross entropy, float32, on the plain modules of
`dnas.nn` on the CPU, at the stated batch size; parameters and running statistics are not among them.

What is counted is the same for every family; how, is in a module for each.
"""

from dataclasses import dataclass
from types import ModuleType

from dnas.arch import densenet_cost, resnet_cost
from dnas.arch.families import Spec
from dnas.arch.terms import FLOAT_BYTES, Terms

__all__ = ["DEFAULT_BATCH", "FLOAT_BYTES", "Cost", "LayerCost", "cost", "layer_costs"]

DEFAULT_BATCH = 64  # the paper's

# Of each: network_terms(spec) -> Iterator[Terms], layer_terms(spec, layer) -> Terms.
_MODELS: dict[str, ModuleType] = {"densenet": densenet_cost, "resnet": resnet_cost}


@dataclass(frozen=True, slots=True)
class Cost:
    """params; macs for one image; activation_bytes of a training step at `batch` images."""

    params: int
    macs: int
    activation_bytes: int
    batch: int


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer's share of the cost, and its shape (`size`: side of its convolutions' output, pixels)."""

    name: str
    kind: str
    in_channels: int
    out_channels: int
    size: int
    params: int
    macs: int
    activation_bytes: int


def cost(spec: Spec, batch: int = DEFAULT_BATCH) -> Cost:
    """The whole network's cost, in time that does not grow with its depth."""
    params = macs = kept = once = extra = 0
    for terms in _MODELS[spec.family].network_terms(spec):
        params += terms.params
        macs += terms.macs
        kept += terms.kept
        once += terms.once
        extra += terms.kept_bytes
    return Cost(params, macs, Terms(params, macs, kept, once, extra).activation_bytes(batch), batch)


def layer_costs(spec: Spec, batch: int = DEFAULT_BATCH) -> list[LayerCost]:
    """The cost of each layer, in the order of execution; they add up to `cost(spec, batch)`."""
    found = []
    for layer in spec.layers():
        terms = _MODELS[spec.family].layer_terms(spec, layer)
        found.append(
            LayerCost(
                layer.name,
                layer.kind,
                layer.in_channels,
                layer.out_channels,
                layer.size,
                terms.params,
                terms.macs,
                terms.activation_bytes(batch),
            )
        )
    return found
