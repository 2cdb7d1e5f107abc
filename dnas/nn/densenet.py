"""DenseNet in plain PyTorch, the reference that any faster path must equal.

Paper: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017. Modules have torchvision's names, so that
state dicts are interchangeable. Differences to torchvision: the small stem, layers without a bottleneck, other
connectivities than dense, and dropout after every convolution except the first (section 4.2; torchvision applies it
after the 3×3 convolution only).

Kernels other than `plain` run each block and the norm after it as one function that keeps no concatenation and no
normalised copy (`dnas.nn.kernels.reference`). It is the same function of the same modules, to rounding. Transitions
then pool before their convolution, which is equal because both are linear, and takes a quarter of the work. Blocks that
the kernels do not support (hooks inside, frozen weights, autocast and so on, see
`dnas.nn.kernels.dispatch.fallback_reason`) run their modules; the other blocks are not affected.

With memory "recompute", a training step keeps only the outputs of the layers, k maps each. Concatenations and
normalised copies are recomputed in the backward pass (Pleiss et al. 2017, "Memory-Efficient Implementation of
DenseNets", arXiv 1707.06990); see `dnas.nn.recompute`. Kernels keep equally little, and recompute only the outputs of
the bottlenecks.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch.densenet import DenseNetSpec
from dnas.errors import InputError
from dnas.nn.init import initialise
from dnas.nn.kernels import check_kernels, load_kernels
from dnas.nn.kernels.dispatch import is_touched, is_traced_or_transformed, run_block
from dnas.nn.kernels.reference import Kernels, layout_of
from dnas.nn.layers import DenseBlock, Transition
from dnas.nn.recompute import recomputed

MEMORY = ("linear", "recompute")


def rename_old_keys(net: nn.Module, state: dict[str, Any], *others: Any) -> None:
    """Rename the keys of torchvision's files of 2017 (`norm.1`), and of a `DataParallel` (`module.`), in place."""
    prefix = "module." if state and all(key.startswith("module.") for key in state) else ""
    for key in list(state):
        name = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key.removeprefix(prefix))
        if name != key:
            state[name] = state.pop(key)


class DenseNet(nn.Module):
    """The network of a `DenseNetSpec`: images [N, C, H, W] -> logits [N, classes].

    Args:
        spec: The network.
        kernels: Kernels of the dense blocks: `plain` (the modules), `ref`, `cpu` or `triton`. May be changed at any
            time. Resolve `auto` by `dnas.nn.resolve_kernels` first.
        memory: `recompute` makes training steps trade time for memory, see above. On the plain path, forward hooks of
            modules then run twice per step. A compiled network ignores it. May be changed at any time; the attribute
            `recompute` is the same as a bool.

    Raises:
        InputError: If this machine cannot run the kernels.
    """

    def __init__(self, spec: DenseNetSpec, kernels: str = "plain", memory: str = "linear") -> None:
        super().__init__()
        self.spec = spec
        self.kernels, self.memory = kernels, memory
        layers = list(spec.layers())
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.stem == "small":
            stem["conv0"] = nn.Conv2d(spec.in_channels, spec.stem_width, kernel_size=3, padding=1, bias=False)
        else:
            stem["conv0"] = nn.Conv2d(spec.in_channels, spec.stem_width, kernel_size=7, stride=2, padding=3, bias=False)
            stem["norm0"] = nn.BatchNorm2d(spec.stem_width)
            stem["relu0"] = nn.ReLU(inplace=True)
            stem["pool0"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.features = nn.Sequential(stem)
        for number in range(1, spec.blocks + 1):
            block = [layer for layer in layers if layer.kind == "dense" and layer.block == number]
            self.features.add_module(f"denseblock{number}", DenseBlock(block, spec))
            after = next(layer for layer in layers if layer.block == number and layer.kind != "dense")
            if after.kind == "transition":
                self.features.add_module(after.name, Transition(after.in_channels, after.out_channels, spec.dropout))
            else:
                self.features.add_module("norm5", nn.BatchNorm2d(after.in_channels))
                self.classifier = nn.Linear(after.in_channels, spec.classes)
        initialise(self)
        self.register_load_state_dict_pre_hook(rename_old_keys)

    @property
    def kernels(self) -> str:
        return self._kernels

    @kernels.setter
    def kernels(self, name: str) -> None:
        if name == "auto":
            raise InputError("a network cannot measure its own kernels 'auto'; call dnas.nn.resolve_kernels first.")
        check_kernels(name)
        self._kernels = name

    @property
    def memory(self) -> str:
        return self._memory

    @memory.setter
    def memory(self, name: str) -> None:
        if name not in MEMORY:
            raise InputError(f"memory must be one of {', '.join(MEMORY)}, but got {name!r}.")
        self._memory = name

    @property
    def recompute(self) -> bool:
        return self._memory == "recompute"

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._memory = "recompute" if value else "linear"

    def forward(self, x: Tensor) -> Tensor:
        # A compiler decides by itself what to keep and what to recompute.
        recompute = self.recompute and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernels = None
        if self._kernels != "plain" and not is_traced_or_transformed() and not is_touched(self.features):
            kernels = load_kernels(self._kernels)
        if kernels is None and not recompute:
            return self._classify(self.features(x))
        return self._forward_by_block(x, kernels, recompute)

    def _forward_by_block(self, x: Tensor, kernels: Kernels | None, recompute: bool) -> Tensor:
        stages = dict(self.features.named_children())
        stem = [stages.pop(name) for name in list(stages) if name.endswith("0")]
        if recompute and len(stem) > 1:  # a single convolution keeps only its input
            x = recomputed(nn.Sequential(*stem), [x])
        else:
            for module in stem:
                x = module(x)
        for block, after in _pairs(stages):
            output = None if kernels is None else self._run_kernels(kernels, block, after, x)
            if output is not None:
                x = output
            elif not recompute:
                x = after(block(x))
                x = self._classify(x) if isinstance(after, nn.BatchNorm2d) else x
            else:
                finish = self._classify if isinstance(after, nn.BatchNorm2d) else None
                x = recomputed(after, block.maps(x, recomputed), finish)
        return x

    def _run_kernels(self, kernels: Kernels, block: DenseBlock, after: nn.Module, x: Tensor) -> Tensor | None:
        """Run a block and the module after it by `kernels`; None if they do not support it."""
        if not isinstance(after, Transition):
            pooled = run_block(kernels, block, after, "mean", x, self.recompute)
            return None if pooled is None else self.classifier(pooled)
        if not after.is_linear_after_relu():
            return None
        if after.dropout and after.training:  # the dropout mask is applied between the convolution and the pool
            z = run_block(kernels, block, after, "relu", x, self.recompute)
            if z is None:
                return None
            output = _pointwise(after.conv, z)
            # The mask is drawn in the memory layout of the plain path. `contiguous` would keep strides of single
            # channels.
            copy = torch.empty_like(output, memory_format=layout_of(x, after.conv.weight))
            return after.pool(F.dropout(copy.copy_(output), after.dropout))
        pooled = run_block(kernels, block, after, "pool", x, self.recompute)
        return None if pooled is None else _pointwise(after.conv, pooled)

    def _classify(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _pairs(stages: dict[str, nn.Module]) -> Iterator[tuple[DenseBlock, nn.Module]]:
    """Yield each block with the module that follows it."""
    for block, after in pairwise(stages.values()):
        if isinstance(block, DenseBlock):
            yield block, after


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1×1 convolution, as a matrix product if the maps are stored channel by channel.

    Its gradients are matrix products too. torch's convolution would copy such maps.
    """
    channels_first = x.transpose(0, 1)
    if not channels_first.is_contiguous() or conv.bias is not None:
        return conv(x)
    output = torch.mm(conv.weight.flatten(1), channels_first.flatten(1))
    return output.view(-1, *channels_first.shape[1:]).transpose(0, 1)
