"""PyTorch modules of all network families, one file per family."""

import logging
from functools import partial
from typing import cast

from torch import nn

from dnas.arch import DenseNetSpec, Spec
from dnas.arch.families import family_of
from dnas.nn.densenet import DenseNet
from dnas.nn.kernels import unavailable_reason
from dnas.nn.kernels.autotune import fastest_kernels
from dnas.nn.resnet import ResNet

log = logging.getLogger(__name__)


def build(spec: Spec) -> nn.Module:
    """Build the network that `spec` describes, initialised from torch's global generator.

    The network maps images [N, in_channels, image_size, image_size] to logits [N, classes].
    """
    return cast(nn.Module, family_of(spec.family).module(spec))


def resolve_kernels(name: str, spec: Spec, device: str, batch_size: int, compile_net: bool = False) -> str:
    """Return the name of the kernels that run a network. Called once, before training starts.

    Args:
        name: Requested kernels. `auto` selects the fastest for this network, device and batch size by measurement. Any
            other name is returned unchanged.
        spec: The network to train. Only DenseNets have a choice; for other families `auto` is `plain`.
        device: Device that trains the network.
        batch_size: Images per training step.
        compile_net: The network is compiled. torch.compile traces the modules, so that `auto` is `plain`.
    """
    if name != "auto":
        return name
    if compile_net or not isinstance(spec, DenseNetSpec):
        return "plain"
    return fastest_kernels(partial(DenseNet, spec), spec, device, batch_size)


def use_kernels(net: nn.Module, name: str) -> None:
    """Run the dense blocks of `net` by the kernels `name`, or by its modules if this machine lacks these kernels.

    Networks of other families have no dense blocks and are left unchanged.
    """
    if isinstance(net, DenseNet):
        net.kernels = kernels_or_plain(name)


def kernels_or_plain(name: str) -> str:
    """Return `name`, or log a warning and return `plain` if this machine cannot run these kernels."""
    if reason := unavailable_reason(name):
        log.warning("dense blocks run on the plain path, not by the kernels %s: %s", name, reason)
        return "plain"
    return name


__all__ = ["DenseNet", "ResNet", "build", "kernels_or_plain", "resolve_kernels", "use_kernels"]
