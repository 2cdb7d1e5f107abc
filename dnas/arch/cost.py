"""Cost model of networks: arithmetic without torch or tensors, in microseconds per network.

Conventions:

- `params` counts every learned number.
- `macs` counts the multiply-adds of the convolutions and the linear layer for one image. As in published numbers, a
  transition's convolution is counted before its pooling.
- `activation_bytes` counts the distinct float32 tensors that autograd keeps for the backward pass of one training step
  with cross entropy, with the plain modules of `dnas.nn` on a CPU at the stated batch size. Parameters and running
  statistics are not included.

The conventions are the same for every family, whose terms `Family.layer_terms` returns.
"""

from dataclasses import dataclass

from dnas.arch.families import FAMILIES
from dnas.arch.spec import Spec
from dnas.arch.terms import FLOAT_BYTES, Terms

__all__ = ["DEFAULT_BATCH", "FLOAT_BYTES", "Cost", "LayerCost", "cost", "layer_costs"]

DEFAULT_BATCH = 64  # batch size of the paper


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters, multiply-adds for one image, and activation bytes of a training step on `batch` images."""

    params: int
    macs: int
    activation_bytes: int
    batch: int


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Cost and shape of one layer. `size` is the side of its convolutions' output in pixels."""

    name: str
    kind: str
    in_channels: int
    out_channels: int
    size: int
    params: int
    macs: int
    activation_bytes: int


def cost(spec: Spec, batch: int = DEFAULT_BATCH) -> Cost:
    """Return the cost of a network. For the shipped families, the time does not depend on its depth."""
    params = macs = kept = once = extra = 0
    for terms in FAMILIES[spec.family].terms(spec):
        params += terms.params
        macs += terms.macs
        kept += terms.kept
        once += terms.once
        extra += terms.kept_bytes
    return Cost(params, macs, Terms(params, macs, kept, once, extra).activation_bytes(batch), batch)


def layer_costs(spec: Spec, batch: int = DEFAULT_BATCH) -> list[LayerCost]:
    """Return the cost of each layer in the order of execution. The costs add up to `cost(spec, batch)`."""
    costs, family = [], FAMILIES[spec.family]
    for layer in spec.layers():
        terms = family.layer_terms(spec, layer)
        costs.append(
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
    return costs
