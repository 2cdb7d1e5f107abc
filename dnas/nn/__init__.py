"""torch modules, one file a family."""

from collections.abc import Callable

from torch import nn

from dnas.arch import DenseNetSpec
from dnas.nn.densenet import DenseNet

FAMILIES: dict[str, Callable[[DenseNetSpec], nn.Module]] = {"densenet": DenseNet}


def build(spec: DenseNetSpec) -> nn.Module:
    """The network that `spec` describes, freshly initialised from torch's global generator.

    It maps images [N, in_channels, image_size, image_size] to logits [N, classes].
    """
    return FAMILIES[spec.family](spec)


__all__ = ["FAMILIES", "DenseNet", "build"]
