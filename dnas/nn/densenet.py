"""DenseNet in plain PyTorch: the reference that any faster path must equal.

Paper: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017. Module names are torchvision's, so that
state dicts can be exchanged. What differs from torchvision: the small stem, layers without a bottleneck, connectivities
other than dense, and dropout after every convolution but the first (section 4.2; theirs follows the 3×3 only).

With `DenseNet.recompute` a training step keeps only what the layers put out, k maps each, and works out their
concatenations and normalised copies again when the backward pass needs them (Pleiss et al. 2017,
"Memory-Efficient Implementation of DenseNets", arXiv 1707.06990); see `dnas.nn.recompute`.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch.densenet import DenseNetSpec, sources_of
from dnas.arch.layer import Layer
from dnas.nn.initialise import initialise
from dnas.nn.recompute import Run, concatenated, plain, recomputed


class DenseLayer(nn.Module):
    """The composite function H of the paper: BN-ReLU-Conv(3×3), or with a bottleneck BN-ReLU-Conv(1×1) before it.

    [N, in_channels, H, W] -> [N, growth_rate, H, W]
    """

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        if bottleneck:
            width = bottleneck * growth_rate
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, growth_rate, kernel_size=3, padding=1, bias=False)
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        x = _dropout(self.conv1(self.relu1(self.norm1(x))), self)
        if self.bottleneck:
            x = _dropout(self.conv2(self.relu2(self.norm2(x))), self)
        return x


class DenseBlock(nn.Module):
    """Layers that each read the earlier ones that the connectivity grants; gives what the next stage reads of them."""

    def __init__(self, layers: list[Layer], spec: DenseNetSpec) -> None:
        super().__init__()
        for layer in layers:
            self.add_module(
                layer.name.rpartition(".")[2],
                DenseLayer(layer.in_channels, layer.out_channels, spec.bottleneck, spec.dropout),
            )
        self.reads = [sources_of(spec.connectivity, consumer) for consumer in range(1, len(layers) + 2)]

    def forward(self, x: Tensor) -> Tensor:
        return concatenated(self.maps(x, plain))

    def maps(self, x: Tensor, run: Run) -> list[Tensor]:
        """What the next stage reads, not yet concatenated: some of x and the layers' outputs."""
        sources = [x]
        for layer, read in zip(self.children(), self.reads, strict=False):
            sources.append(run(layer, [sources[i] for i in read]))
        return [sources[i] for i in self.reads[-1]]


class Transition(nn.Module):
    """BN-ReLU-Conv(1×1)-AvgPool(2×2): [N, C, H, W] -> [N, ⌊θC⌋, H // 2, W // 2]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(_dropout(self.conv(self.relu(self.norm(x))), self))


class DenseNet(nn.Module):
    """The network of a `DenseNetSpec`: images [N, C, H, W] -> logits [N, classes].

    recompute: whether training steps trade time for memory; see above. It may be set at any moment. A module's forward
        hooks then run twice a step. A compiled network takes no notice of it.
    """

    def __init__(self, spec: DenseNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute = False
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

    def forward(self, x: Tensor) -> Tensor:
        # A compiler chooses by itself what is kept and what is done again.
        if self.recompute and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._forward_recomputing(x)
        return self._classified(self.features(x))

    def _forward_recomputing(self, x: Tensor) -> Tensor:
        stages = dict(self.features.named_children())
        stem = nn.Sequential(OrderedDict((name, stages.pop(name)) for name in list(stages) if name.endswith("0")))
        maps = [recomputed(stem, [x]) if len(stem) > 1 else stem(x)]  # a convolution keeps its input, nothing else
        last = stages.pop("norm5")
        for stage in stages.values():
            maps = stage.maps(maps[0], recomputed) if isinstance(stage, DenseBlock) else [recomputed(stage, maps)]
        return recomputed(last, maps, then=self._classified)

    def _classified(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _dropout(x: Tensor, module: DenseLayer | Transition) -> Tensor:
    return F.dropout(x, module.dropout, module.training) if module.dropout else x
