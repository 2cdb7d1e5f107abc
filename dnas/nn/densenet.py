"""DenseNet in plain PyTorch: the reference that any faster path must equal.

Paper: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017. Module names are torchvision's, so that
state dicts can be exchanged. What differs from torchvision: the small stem, layers without a bottleneck, connectivities
other than dense, and dropout after every convolution but the first (section 4.2; theirs follows the 3×3 only).

With `DenseNet.recompute` a training step keeps only what the layers put out, k maps each, and works out their
concatenations and normalised copies again when the backward pass needs them (Pleiss et al. 2017,
"Memory-Efficient Implementation of DenseNets", arXiv 1707.06990). It is the same arithmetic in the same order, so that
every bit of the outputs, gradients and statistics is the same.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch.densenet import DenseNetSpec, Layer, sources_of


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
        return _concatenated(self.maps(x, _plain))

    def maps(self, x: Tensor, run: "Run") -> list[Tensor]:
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
        maps = [_recomputed(stem, [x]) if len(stem) > 1 else stem(x)]  # a convolution keeps its input, nothing else
        last = stages.pop("norm5")
        for stage in stages.values():
            maps = stage.maps(maps[0], _recomputed) if isinstance(stage, DenseBlock) else [_recomputed(stage, maps)]
        return _recomputed(last, maps, then=self._classified)

    def _classified(self, x: Tensor) -> Tensor:
        x = F.relu(x, inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def initialise(net: nn.Module) -> None:
    """He et al. 2015, equation 10 (fan in) for convolutions, γ = 1 and β = 0 for norms, no bias in the classifier."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


Run = Callable[[nn.Module, list[Tensor]], Tensor]  # a module on the concatenation of what it reads


def _plain(module: nn.Module, maps: list[Tensor]) -> Tensor:
    return module(_concatenated(maps))


def _recomputed(module: nn.Module, maps: list[Tensor], then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """`then(module(concatenation of maps))`, of which autograd keeps `maps` alone."""

    def run(maps: list[Tensor]) -> Tensor:
        output = _plain(module, maps)
        return output if then is None else then(output)

    return _TwiceRun(run, module, maps)()


class _TwiceRun:
    """A function whose saved tensors are only counted, and made by a second run when the backward pass asks for one.

    The graph is the first run's, so that gradients are added up in the order in which they are without this. Not
    torch.utils.checkpoint: that lets norms update their statistics twice (pytorch#96136), and imports the compiler.
    """

    def __init__(self, run: Callable[[list[Tensor]], Tensor], module: nn.Module, maps: list[Tensor]) -> None:
        self._run = run
        self._maps = maps
        self._norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        self._device = maps[0].device
        self._random = _get_random_state(self._device) if getattr(module, "dropout", 0) else None
        self._autocast = torch.autocast(
            self._device.type,
            torch.get_autocast_dtype(self._device.type),
            torch.is_autocast_enabled(self._device.type),
            torch.is_autocast_cache_enabled(),
        )
        self._count = 0
        self._made: dict[int, Tensor] = {}

    def __call__(self) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(self._number, self._give):
            return self._run(self._maps)

    def _number(self, _tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _give(self, number: int) -> Tensor:
        if number not in self._made:
            self._run_again()
        return self._made.pop(number)

    def _run_again(self) -> None:
        self._made = {}
        maps = [x.detach().requires_grad_(x.requires_grad) for x in self._maps]
        with (
            suppress(_Enough),
            torch.enable_grad(),
            self._autocast,
            _random_state(self._device, self._random),
            _statistics_kept(self._norms),
            torch.autograd.graph.saved_tensors_hooks(self._keep, _never),
        ):
            self._run(maps)

    def _keep(self, tensor: Tensor) -> None:
        self._made[len(self._made)] = tensor.detach()
        if len(self._made) == self._count:
            raise _Enough  # what follows is the last convolution, whose output is known


class _Enough(Exception):
    """All that was asked for is there."""


def _never(_packed: object) -> Tensor:
    raise AssertionError("nobody goes backward through the second run")


def _get_random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def _random_state(device: torch.device, state: Tensor | None) -> Iterator[None]:
    """Draws again what was drawn from `state` on; the stream is then where it was. None: nothing is drawn."""
    if state is None:
        yield
        return
    now = _get_random_state(device)
    _set_random_state(device, state)
    try:
        yield
    finally:
        _set_random_state(device, now)


@contextmanager
def _statistics_kept(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Norms update statistics that are thrown away: their own have counted this batch already. (Norms without any would
    save fewer tensors than the first time.)"""
    own = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, torch.zeros_like(buffer))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def _concatenated(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)


def _dropout(x: Tensor, module: DenseLayer | Transition) -> Tensor:
    return F.dropout(x, module.dropout, module.training) if module.dropout else x
