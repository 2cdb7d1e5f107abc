"""Modules of a DenseNet: dense layers, dense blocks and transitions."""

import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch.densenet import DenseNetSpec, sources_of
from dnas.arch.layer import Layer
from dnas.nn.recompute import Run, concatenated, plain


class DenseLayer(nn.Module):
    """The composite function H of the paper: BN-ReLU-Conv(3×3), preceded by BN-ReLU-Conv(1×1) with a bottleneck.

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
    """Layers that read the sources selected by the connectivity; returns the concatenated input of the next stage."""

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
        """Return the maps that the next stage reads, not yet concatenated."""
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

    def is_linear_after_relu(self) -> bool:
        """Return whether convolution and pool are unmodified, so that they may be exchanged."""
        conv, pool = self.conv, self.pool
        return (
            (type(self.relu), type(conv), type(pool)) == (nn.ReLU, nn.Conv2d, nn.AvgPool2d)
            and (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
            and (pool.kernel_size, pool.stride, pool.padding) == (2, 2, 0)
        )


def _dropout(x: Tensor, module: DenseLayer | Transition) -> Tensor:
    return F.dropout(x, module.dropout, module.training) if module.dropout else x
