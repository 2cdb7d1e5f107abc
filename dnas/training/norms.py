"""The sizes of a network's weights and gradients, measured while it trains: no later analysis can recover them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnas.arch import DenseNetSpec, Spec

GRADIENT_STEPS = 10  # the last ones of an epoch, of which gradients are measured: the cost is below a thousandth


@dataclass(frozen=True)
class Norms:
    """One moment's norms. Of the parameter `names[i]`: l2[i] is ‖W‖₂, l1[i] is ‖W‖₁, gradient[i] the root mean square
    of ‖∂loss/∂W‖₂ over the last `GRADIENT_STEPS` steps of the epoch before. reuse[j] is the mean |w| of the first
    convolution (or the classifier) of `pairs[j] = (source layer, consumer layer)` over the input channels that the
    source made; networks without dense blocks have no pairs. What was not measured is empty: gradients before the first
    step, and both in runs that dnas 0.1 began."""

    names: tuple[str, ...]
    l2: tuple[float, ...]
    pairs: tuple[tuple[str, str], ...]
    reuse: tuple[float, ...]
    l1: tuple[float, ...] = ()
    gradient: tuple[float, ...] = ()


@torch.no_grad()
def measure_norms(net: nn.Module, spec: Spec, gradient: tuple[float, ...] = ()) -> Norms:
    """The norms of every parameter, and how strongly each layer draws on each earlier one (paper, Figure 5)."""
    parameters = dict(net.named_parameters())
    weights = [parameter.detach().float() for parameter in parameters.values()]
    l2 = torch.stack([weight.norm() for weight in weights])
    l1 = torch.stack([weight.abs().sum() for weight in weights])
    pairs: list[tuple[str, str]] = []
    reuse: list[Tensor] = []
    for layer in spec.layers() if isinstance(spec, DenseNetSpec) else ():
        if layer.kind == "stem":
            continue
        weight = parameters[reading_weight(layer.name, layer.kind)].detach().float()
        by_channel = weight.abs().mean(dim=tuple(d for d in range(weight.ndim) if d != 1))
        for source, part in zip(layer.sources, by_channel.split([s.channels for s in layer.sources]), strict=True):
            pairs.append((source.layer, layer.name))
            reuse.append(part.mean())
    found = tuple(torch.stack(reuse).tolist()) if reuse else ()
    return Norms(tuple(parameters), tuple(l2.tolist()), tuple(pairs), found, tuple(l1.tolist()), gradient)


class GradientNorms:
    """The root mean square over steps of each parameter's ‖gradient‖₂. It waits for no device until it is asked."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._squares: list[Tensor] = []

    def add(self) -> None:
        """Counts the gradients of this step, which are there from `backward` until the next `zero_grad`."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._squares.append(torch.stack(torch._foreach_norm(gradients)).double().square())

    def value(self) -> tuple[float, ...]:
        """[P]; empty where no step was counted."""
        return tuple(torch.stack(self._squares).mean(0).sqrt().tolist()) if self._squares else ()


def reading_weight(name: str, kind: str) -> str:
    """The parameter that reads a layer's concatenated input."""
    match kind:
        case "dense":
            return f"features.{name}.conv1.weight"
        case "transition":
            return f"features.{name}.conv.weight"
        case _:
            return f"{name}.weight"
