"""Norms of weights and gradients, measured during training because no later analysis can recover them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnas.arch import DenseNetSpec, Spec

GRADIENT_STEPS = 10  # gradients are measured at the last steps of each epoch, at less than 0.1% of its time


@dataclass(frozen=True)
class Norms:
    """Norms of all parameters at one moment.

    names: [P] parameters.
    l2, l1: [P] ‖W‖₂ and ‖W‖₁ of each parameter. Runs started by dnas 0.1 have an empty `l1`.
    gradient: [P] root mean square of ‖∂loss/∂W‖₂ over the last `GRADIENT_STEPS` steps of the preceding epoch. Empty
        before the first step and in runs started by dnas 0.1.
    pairs: [Q] (source layer, consumer layer). Networks without dense blocks have no pairs.
    reuse: [Q] mean |w| of the consumer's first convolution (or the classifier) over the input channels that the source
        produced.
    """

    names: tuple[str, ...]
    l2: tuple[float, ...]
    pairs: tuple[tuple[str, str], ...]
    reuse: tuple[float, ...]
    l1: tuple[float, ...] = ()
    gradient: tuple[float, ...] = ()


@torch.no_grad()
def measure_norms(net: nn.Module, spec: Spec, gradient: tuple[float, ...] = ()) -> Norms:
    """Measure the norms of every parameter, and how strongly each layer uses each earlier one (paper, Figure 5)."""
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
    means = tuple(torch.stack(reuse).tolist()) if reuse else ()
    return Norms(tuple(parameters), tuple(l2.tolist()), tuple(pairs), means, tuple(l1.tolist()), gradient)


class GradientNorms:
    """Root mean square over steps of each parameter's ‖gradient‖₂. Only `value` waits for the device."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._squares: list[Tensor] = []

    def add(self) -> None:
        """Add the gradients of this step, which are available from `backward` until the next `zero_grad`."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._squares.append(torch.stack(torch._foreach_norm(gradients)).double().square())

    def value(self) -> tuple[float, ...]:
        """Return the root mean squares [P], or an empty tuple before the first `add`."""
        return tuple(torch.stack(self._squares).mean(0).sqrt().tolist()) if self._squares else ()


def reading_weight(name: str, kind: str) -> str:
    """Return the name of the parameter that reads a layer's concatenated input."""
    match kind:
        case "dense":
            return f"features.{name}.conv1.weight"
        case "transition":
            return f"features.{name}.conv.weight"
        case _:
            return f"{name}.weight"
