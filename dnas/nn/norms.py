"""The sizes of a network's weights, measured while it trains: no later analysis can recover them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnas.arch import DenseNetSpec, Spec


@dataclass(frozen=True)
class Norms:
    """One moment's norms. l2[i] is ‖W‖₂ of the parameter `names[i]`; reuse[j] the mean |w| of the first convolution
    (or the classifier) of `pairs[j] = (source layer, consumer layer)` over the input channels that the source made;
    a network without dense connections has no pairs."""

    names: tuple[str, ...]
    l2: tuple[float, ...]
    pairs: tuple[tuple[str, str], ...]
    reuse: tuple[float, ...]


@torch.no_grad()
def measure_norms(net: nn.Module, spec: Spec) -> Norms:
    """The norms of every parameter, and how strongly each layer draws on each earlier one (paper, Figure 5)."""
    parameters = dict(net.named_parameters())
    l2 = torch.stack([parameter.detach().float().norm() for parameter in parameters.values()])
    pairs: list[tuple[str, str]] = []
    reuse: list[Tensor] = []
    for layer in spec.layers() if isinstance(spec, DenseNetSpec) else ():
        if layer.kind == "stem":
            continue
        weight = parameters[_reading_weight(layer.name, layer.kind)].detach().float()
        by_channel = weight.abs().mean(dim=tuple(d for d in range(weight.ndim) if d != 1))
        for source, part in zip(layer.sources, by_channel.split([s.channels for s in layer.sources]), strict=True):
            pairs.append((source.layer, layer.name))
            reuse.append(part.mean())
    return Norms(
        tuple(parameters), tuple(l2.tolist()), tuple(pairs), tuple(torch.stack(reuse).tolist() if reuse else ())
    )


def _reading_weight(name: str, kind: str) -> str:
    """The parameter that reads a layer's concatenated input."""
    match kind:
        case "dense":
            return f"features.{name}.conv1.weight"
        case "transition":
            return f"features.{name}.conv.weight"
        case _:
            return f"{name}.weight"
