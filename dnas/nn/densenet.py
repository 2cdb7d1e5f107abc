"""DenseNet in plain PyTorch: the reference that any faster path must equal.

Paper: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017. Module names are torchvision's, so that
state dicts can be exchanged. What differs from torchvision: the small stem, layers without a bottleneck, connectivities
other than dense, and dropout after every convolution but the first (section 4.2; theirs follows the 3×3 only).

Kernels other than `plain` run each block and the norm after it as one function that keeps no concatenation and no
normalised copy (`dnas.nn.kernels.reference`): the same function of the same modules, to rounding. Transitions then pool
before their convolution: both are linear, so it is the same, and a quarter of the work. A block that they cannot stand
in for (hooks inside, frozen weights, autocast ...; see `why_plain`) is left to its modules, by itself.

With memory "recompute" a training step keeps only what the layers put out, k maps each, and works out their
concatenations and normalised copies again when the backward pass needs them (Pleiss et al. 2017,
"Memory-Efficient Implementation of DenseNets", arXiv 1707.06990); see `dnas.nn.recompute`. Kernels keep as little, and
recompute the bottlenecks' outputs alone.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

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


class DenseNet(nn.Module):
    """The network of a `DenseNetSpec`: images [N, C, H, W] -> logits [N, classes].

    kernels: what runs the dense blocks: `plain` (the modules), `ref`, `cpu` or `triton`. `InputError` where this
        machine cannot, and for `auto`, which `dnas.nn.resolve_kernels` settles.
    memory: `recompute` makes training steps trade time for memory; see above. On the plain path a module's forward
        hooks then run twice a step. A compiled network takes no notice of it. `recompute` says the same as a bool.

    Both may be set at any moment.
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

    @property
    def kernels(self) -> str:
        return self._kernels

    @kernels.setter
    def kernels(self, name: str) -> None:
        if name == "auto":
            raise InputError("A network cannot measure its own kernels 'auto'; call dnas.nn.resolve_kernels first.")
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
        # A compiler chooses by itself what is kept and what is done again.
        again = self.recompute and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernels = None
        if self._kernels != "plain" and not is_traced_or_transformed() and not is_touched(self.features):
            kernels = load_kernels(self._kernels)
        if kernels is None and not again:
            return self._classified(self.features(x))
        return self._forward_by_block(x, kernels, again)

    def _forward_by_block(self, x: Tensor, kernels: Kernels | None, again: bool) -> Tensor:
        stages = dict(self.features.named_children())
        stem = [stages.pop(name) for name in list(stages) if name.endswith("0")]
        if again and len(stem) > 1:  # a convolution keeps its input, nothing else
            x = recomputed(nn.Sequential(*stem), [x])
        else:
            for module in stem:
                x = module(x)
        for block, after in _pairs(stages):
            fast = None if kernels is None else self._fast(kernels, block, after, x)
            if fast is not None:
                x = fast
            elif not again:
                x = after(block(x))
                x = self._classified(x) if isinstance(after, nn.BatchNorm2d) else x
            else:
                then = self._classified if isinstance(after, nn.BatchNorm2d) else None
                x = recomputed(after, block.maps(x, recomputed), then)
        return x

    def _fast(self, kernels: Kernels, block: DenseBlock, after: nn.Module, x: Tensor) -> Tensor | None:
        """A block and what follows it by `kernels`; None where they cannot stand in for the modules."""
        if not isinstance(after, Transition):
            pooled = run_block(kernels, block, after, "mean", x, self.recompute)
            return None if pooled is None else self.classifier(pooled)
        if not after.is_linear_after_relu():
            return None
        if after.dropout and after.training:  # its mask lies between the convolution and the pool
            z = run_block(kernels, block, after, "relu", x, self.recompute)
            if z is None:
                return None
            made = _pointwise(after.conv, z)
            # In the plain path's layout, by which the mask is drawn. `contiguous` leaves strides of single channels.
            like = torch.empty_like(made, memory_format=layout_of(x, after.conv.weight))
            return after.pool(F.dropout(like.copy_(made), after.dropout))
        pooled = run_block(kernels, block, after, "pool", x, self.recompute)
        return None if pooled is None else _pointwise(after.conv, pooled)

    def _classified(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _pairs(stages: dict[str, nn.Module]) -> Iterator[tuple[DenseBlock, nn.Module]]:
    """Each block with what follows it."""
    for block, after in pairwise(stages.values()):
        if isinstance(block, DenseBlock):
            yield block, after


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of 1×1. Of maps that lie channel by channel it is one product of matrices, and so are its
    gradients; a convolution would copy them."""
    channels_first = x.transpose(0, 1)
    if not channels_first.is_contiguous() or conv.bias is not None:
        return conv(x)
    made = torch.mm(conv.weight.flatten(1), channels_first.flatten(1))
    return made.view(-1, *channels_first.shape[1:]).transpose(0, 1)
