"""Pre-activation ResNet in plain PyTorch, as `dnas.arch.resnet` describes it.

With `ResNet.recompute`, a training step keeps only the outputs of the units, and recomputes their inner activations in
the backward pass; see `dnas.nn.recompute`.
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

    With a stride, every stride-th pixel is selected first and convolved with stride 1, which is the same arithmetic. In
    torch 2.15 the backward pass of a strided 1×1 convolution writes out of bounds (channels last, AVX2, 2 to 6 input
    channels).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False)
        self.pixel_stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.pixel_stride > 1:
            x = x[:, :, :: self.pixel_stride, :: self.pixel_stride]
        return super().forward(x)


class ResidualUnit(nn.Module):
    """x + branch(x): [N, in_channels, H, W] -> [N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉].

    The branch is BN-ReLU-Conv(3×3) twice, or with a bottleneck BN-ReLU-Conv with kernels 1×1, 3×3 and 1×1.

    shares: The shortcut starts after the first BN-ReLU, too.
    projects: The shortcut is a 1×1 convolution.
    survival: Probability that a training step keeps the branch; in evaluation mode it scales the branch (Huang et al.
        2016).
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
        """Return the output of the shortcut alone."""
        return self.shortcut(self.relu1(self.norm1(x)) if self.shares else x)


class ResNet(nn.Module):
    """The network of a `ResNetSpec`: images [N, C, H, W] -> logits [N, classes].

    Stochastic depth drops a unit's branch for the whole batch, as in the paper. A dropped branch is not run, the
    statistics of its norms are not updated, and its weights have no gradient (None). A step draws one number per unit
    from torch's global CPU generator, on every device. A compiled network runs such training steps uncompiled.

    recompute: Training steps trade time for memory, see above. May be changed at any time. Forward hooks of modules
        then run twice per step. A compiled network ignores it.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute = False
        stem: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.stem == "small":
            stem["conv0"] = nn.Conv2d(spec.in_channels, spec.stem_width, kernel_size=3, padding=1, bias=False)
        else:  # without BN-ReLU, because the first unit starts with one
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
        """Draw one uniform number in [0, 1) per unit. A unit keeps its branch if its number is below its survival."""
        return torch.rand(units, dtype=torch.float64).tolist()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.spec.stochastic_depth:
            dropping = self._forward_dropping
            # Not a decorator, because that would import the compiler with this module, which takes over a second.
            return (torch.compiler.disable(dropping) if torch.compiler.is_compiling() else dropping)(x)
        return self._forward(x, [True] * len(self._units))

    def _forward_dropping(self, x: Tensor) -> Tensor:
        draws = self.draw(len(self._units))
        return self._forward(x, [draw < unit.survival for draw, unit in zip(draws, self._units, strict=True)])

    def _forward(self, x: Tensor, kept: list[bool]) -> Tensor:
        # A compiler decides by itself what to keep and what to recompute.
        recompute = self.recompute and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        run: Callable[[nn.Module, Tensor], Tensor] = _run_recomputed if recompute else _run
        for module in self._stem:
            x = module(x)
        for unit, keep in zip(self._units, kept, strict=True):
            x = run(unit, x) if keep else unit.without_branch(x)
        if recompute:
            return recomputed(self.norm, [x], finish=self._classify)
        return self._classify(self.norm(x))

    def _classify(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _run(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def _run_recomputed(module: nn.Module, x: Tensor) -> Tensor:
    return recomputed(module, [x])
