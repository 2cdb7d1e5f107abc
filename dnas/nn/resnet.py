"""Pre-activation ResNet in plain PyTorch, as `dnas.arch.resnet` describes it.

With `ResNet.recompute` a training step keeps only what the units put out, and works out what is inside of them again
when the backward pass needs it; see `dnas.nn.recompute`.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch.resnet import ResNetSpec
from dnas.nn.init import initialise
from dnas.nn.recompute import recomputed


class PointwiseConv(nn.Conv2d):
    """1×1 convolution without bias: [N, in_channels, H, W] -> [N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉].

    A stride takes its pixels first and convolves them with stride 1, which is the same arithmetic. torch 2.15's own
    backward pass of a strided 1×1 convolution writes beyond its memory (channels last, AVX2, 2 to 6 input channels).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False)
        self.pixel_stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.pixel_stride > 1:
            x = x[:, :, :: self.pixel_stride, :: self.pixel_stride]
        return super().forward(x)


class ResidualUnit(nn.Module):
    """x + branch(x), the branch BN-ReLU-Conv(3×3) twice, or with a bottleneck BN-ReLU-Conv 1×1, 3×3, 1×1.

    shares: the shortcut, too, begins after the first BN-ReLU. projects: it is a 1×1 convolution then.
    survival: the chance that a training step keeps the branch, by which evaluation scales it (Huang et al. 2016).

    [N, in_channels, H, W] -> [N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉]
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        stride: int,
        *,
        bottleneck: bool,
        shares: bool,
        projects: bool,
        survival: float,
    ) -> None:
        super().__init__()
        self.bottleneck, self.shares, self.survival = bottleneck, shares, survival
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = (
            PointwiseConv(in_channels, width, stride)
            if bottleneck
            else nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        )
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width if bottleneck else out_channels, 3, padding=1, bias=False)
        if bottleneck:
            self.norm3 = nn.BatchNorm2d(width)
            self.relu3 = nn.ReLU(inplace=True)
            self.conv3 = PointwiseConv(width, out_channels)
        self.shortcut = PointwiseConv(in_channels, out_channels, stride) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.norm1(x))
        branch = self.conv2(self.relu2(self.norm2(self.conv1(active))))
        if self.bottleneck:
            branch = self.conv3(self.relu3(self.norm3(branch)))
        if self.survival < 1 and not self.training:
            branch = self.survival * branch
        return self.shortcut(active if self.shares else x) + branch

    def without_branch(self, x: Tensor) -> Tensor:
        """What the shortcut alone makes of x."""
        return self.shortcut(self.relu1(self.norm1(x)) if self.shares else x)


class ResNet(nn.Module):
    """The network of a `ResNetSpec`: images [N, C, H, W] -> logits [N, classes].

    Stochastic depth drops a unit's branch for the whole batch, as in the paper: it is not run, its norms' statistics
    stand still, and its weights get no gradient (None). A step draws a number for each unit from torch's global
    generator of the CPU, whatever the device; a compiled network takes its training steps uncompiled.

    recompute: whether training steps trade time for memory; see above. It may be set at any moment. A module's forward
        hooks then run twice a step. A compiled network takes no notice of it.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute = False
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.stem == "small":
            stem["conv0"] = nn.Conv2d(spec.in_channels, spec.stem_width, kernel_size=3, padding=1, bias=False)
        else:  # without BN-ReLU, which the first unit begins with
            stem["conv0"] = nn.Conv2d(spec.in_channels, spec.stem_width, kernel_size=7, stride=2, padding=3, bias=False)
            stem["pool0"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.features = nn.Sequential(stem)
        rates = iter(spec.drop_rates)
        for number, stage in enumerate(spec._stages, 1):
            units: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(1, stage.units + 1):
                first = index == 1
                units[f"unit{index}"] = ResidualUnit(
                    stage.in_channels if first else stage.out_channels,
                    stage.width,
                    stage.out_channels,
                    2 if first and number > 1 else 1,
                    bottleneck=spec.bottleneck > 0,
                    shares=first and (stage.projects or number == 1),
                    projects=first and stage.projects,
                    survival=1 - next(rates),
                )
            self.features.add_module(f"stage{number}", nn.Sequential(units))
        self.norm = nn.BatchNorm2d(stage.out_channels)
        self.classifier = nn.Linear(stage.out_channels, spec.classes)
        self._stem, self._units = (*stem.values(),), [unit for unit in self.modules() if isinstance(unit, ResidualUnit)]
        initialise(self)

    def draw(self, units: int) -> list[float]:
        """Uniform numbers in [0, 1), of which a unit's branch is kept where its own is below its survival."""
        return torch.rand(units, dtype=torch.float64).tolist()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.spec.stochastic_depth:
            dropping = self._forward_dropping
            # Not as a decorator: that would import the compiler, more than a second's work, with this module.
            return (torch.compiler.disable(dropping) if torch.compiler.is_compiling() else dropping)(x)
        return self._forward(x, [True] * len(self._units))

    def _forward_dropping(self, x: Tensor) -> Tensor:
        draws = self.draw(len(self._units))
        return self._forward(x, [draw < unit.survival for draw, unit in zip(draws, self._units, strict=True)])

    def _forward(self, x: Tensor, kept: list[bool]) -> Tensor:
        # A compiler chooses by itself what is kept and what is done again.
        again = self.recompute and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        run: Callable[[nn.Module, Tensor], Tensor] = _again if again else _once
        for module in self._stem:
            x = module(x)
        for unit, keep in zip(self._units, kept, strict=True):
            x = run(unit, x) if keep else unit.without_branch(x)
        if again:
            return recomputed(self.norm, [x], then=self._classified)
        return self._classified(self.norm(x))

    def _classified(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _once(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def _again(module: nn.Module, x: Tensor) -> Tensor:
    return recomputed(module, [x])
