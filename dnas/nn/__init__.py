"""torch modules, one file a family."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from dnas.arch import Spec
from dnas.nn.densenet import DenseNet
from dnas.nn.kernels import why_not
from dnas.nn.resnet import ResNet

log = logging.getLogger(__name__)

FAMILIES: dict[str, Callable[[Any], nn.Module]] = {"densenet": DenseNet, "resnet": ResNet}


def build(spec: Spec) -> nn.Module:
    """The network that `spec` describes, freshly initialised from torch's global generator.

    It maps images [N, in_channels, image_size, image_size] to logits [N, classes].
    """
    return FAMILIES[spec.family](spec)


def use_kernels(net: nn.Module, name: str) -> None:
    """Lets the kernels `name` run the dense blocks of `net`. Where this machine cannot, the log says why, and the
    modules do; other families have none."""
    if not isinstance(net, DenseNet):
        return
    if reason := why_not(name):
        log.warning("dense blocks run on the plain path, not by the kernels %s: %s", name, reason)
        name = "plain"
    net.kernels = name


__all__ = ["FAMILIES", "DenseNet", "ResNet", "build", "use_kernels"]
