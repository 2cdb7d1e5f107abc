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
    """Lets the kernels `name` run the dense blocks of `net`, or those that this machine has in their place; other
    families have none."""
    if isinstance(net, DenseNet):
        net.kernels = kernels_here(name)


def kernels_here(name: str) -> str:
    """`name`; `plain` where this machine cannot run them, and the log says why."""
    if reason := why_not(name):
        log.warning("dense blocks run on the plain path, not by the kernels %s: %s", name, reason)
        return "plain"
    return name


__all__ = ["FAMILIES", "DenseNet", "ResNet", "build", "kernels_here", "use_kernels"]
