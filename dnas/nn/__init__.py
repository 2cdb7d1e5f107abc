"""torch modules, one file a family."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dnas.arch import Spec
from dnas.nn.densenet import DenseNet
from dnas.nn.resnet import ResNet

FAMILIES: dict[str, Callable[[Any], nn.Module]] = {"densenet": DenseNet, "resnet": ResNet}


def build(spec: Spec) -> nn.Module:
    """The network that `spec` describes, freshly initialised from torch's global generator.

    It maps images [N, in_channels, image_size, image_size] to logits [N, classes].
    """
    return FAMILIES[spec.family](spec)


__all__ = ["FAMILIES", "DenseNet", "ResNet", "build"]
