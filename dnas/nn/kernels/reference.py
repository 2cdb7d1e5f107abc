"""A dense block and the consumer after it as one function, whose memory is linear in depth without recomputation.

The mean and variance of a feature map do not depend on who reads it; only γ and β do. So each map is written once and
its statistics are computed once. A consumer reads the maps that it is granted, applies

    z = max(a·x + b, 0),  a = γ/σ,  b = β − mean·a,  σ = √(var + ε),

and its convolution; nothing is concatenated, and z is not kept. What is kept for the backward pass is the block's
input, the maps, and the outputs of the bottlenecks' 1×1 convolutions (with recomputation the maps alone).

Backward, from the last consumer to the first: dz is the gradient of what a consumer's convolution reads, masked where
z = 0. Of each channel the consumers add up G = Σ γ·dz, and

    dβ = Σ dz,  dγ = Σ dz·(x − mean)/σ    (sums over the batch and its pixels, M values),

and when all of them have, the gradient of the map itself is

    dx = (G − mean(G) − (x − mean)/σ · mean(G·(x − mean)/σ))/σ,  mean(G) = Σ γ·dβ / M,  mean(G·…) = Σ γ·dγ / M:

batch norm's backward sums over consumers of sums that each makes anyway.

Here are the algorithm in stock operations (`ref`, for any dtype and device) and the autograd function. Which modules it
may stand in for is said by `dnas.nn.kernels.dispatch`. The kernels are a table: `dnas.nn.kernels` holds them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL = (0, 2, 3)  # what a channel's sums are over: images and pixels
WIDE = (1, -1, 1, 1)  # one number a channel, as a factor of maps


@dataclass(frozen=True)
class BlockShape:
    """What a block and its last consumer are, in numbers.

    sources: channels of the block's input, then of the maps that each layer makes.
    reads: of each consumer, the layers and then what follows the block, the sources that it reads, ascending.
    widths: of each layer's bottleneck; 0 where it has none.
    end: what the last consumer does with max(a·x + b, 0). `pool`: 2×2 averages, [N, C, H // 2, W // 2]; `mean`: over
        all pixels, [N, C]; `relu`: nothing, [N, C, H, W].
    dropout: rate after each convolution; eps: of every batch norm.
    """

    sources: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    end: str
    dropout: float
    eps: float

    @property
    def layers(self) -> int:
        return len(self.widths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first channel of each source among those of the block, and last the number of them all."""
        return _running_sums(self.sources)

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """The first channel of each bottleneck among `statistics`, where they follow the sources' channels."""
        return tuple(self.starts[-1] + start for start in _running_sums(self.widths))

    def seen(self, consumer: int) -> int:
        """Channels that a consumer (from 0) reads."""
        return sum(self.sources[source] for source in self.reads[consumer])

    def weights_of(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Of each consumer its own: γ, β, W of a layer and with a bottleneck γ, β, W again; γ, β of the last."""
        counts = [6 if width else 3 for width in self.widths] + [2]
        stops = _running_sums(counts)
        return [tensors[start : start + count] for start, count in zip(stops, counts, strict=False)]


def _running_sums(values: Sequence[int]) -> tuple[int, ...]:
    sums = [0]
    for value in values:
        sums.append(sums[-1] + value)
    return tuple(sums)


class Running(NamedTuple):
    """The running statistics of each batch norm of a block, in the order of execution, the steps that they have seen
    (int64), and their momentum."""

    means: Sequence[Tensor]
    variances: Sequence[Tensor]
    counts: Sequence[Tensor | None]
    momentum: float


class Kernels(NamedTuple):
    """A way to run a block. `masks` are dropout's, one for each convolution in the order of execution (True: kept), or
    none. `statistics` [2, channels]: mean and biased variance of each of the sources' channels and then of the
    bottlenecks'. `kept` are the tensors that `backward` needs besides.

    forward(shape, x, weights, masks, recompute) -> output, statistics, kept
    backward(shape, x, weights, masks, statistics, kept, gradient) -> the gradient of x, the gradients of weights
    infer(shape, x, weights, means, variances) -> output; of each batch norm the running mean and variance
    unsupported_reason(x, weights) -> why they cannot run these tensors; empty where they can
    mixed: whether they do what autocast does, with x in its type and weights in float32
    updates: whether forward, given a `Running` as its last argument, brings the running statistics up to date
    """

    forward: Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]
    backward: Callable[..., tuple[Tensor, list[Tensor]]]
    infer: Callable[..., Tensor]
    unsupported_reason: Callable[..., str]
    mixed: bool = False
    updates: bool = False


# --- the algorithm in stock operations -------------------------------------------------------------------------------


def _forward(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor], recompute: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    layout = layout_of(x)
    size = x.shape[0], shape.starts[-1] - shape.sources[0], *x.shape[2:]
    maps = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
    sources = _sources(shape, x, maps)
    statistics = x.new_empty(2, shape.inner[-1])
    _measure(x, statistics, 0)
    bottlenecks: list[Tensor] = []
    dropped = iter(masks)
    *layers, last = shape.weights_of(weights)
    for layer, own in enumerate(layers):
        z = _normalised(shape, layer, sources, statistics, own)
        made = _dropout(_convolved(z, own[2]), next(dropped, None), shape.dropout)
        if shape.widths[layer]:
            _measure(made, statistics, shape.inner[layer])
            if not recompute:
                bottlenecks.append(made)
            z = _normalised_bottleneck(shape, layer, made, statistics, own)
            made = _dropout(_convolved(z, own[5]), next(dropped, None), shape.dropout)
        sources[layer + 1].copy_(made)
        _measure(made, statistics, shape.starts[layer + 1])
    z = _normalised(shape, shape.layers, sources, statistics, last)
    return _ended(shape, z), statistics, (maps, *bottlenecks)


def _backward(
    shape: BlockShape,
    x: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    statistics: Tensor,
    kept: Sequence[Tensor],
    gradient: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    maps, *bottlenecks = kept
    sources = _sources(shape, x, maps)
    dx, dmaps = torch.zeros_like(x), torch.zeros_like(maps)
    totals = _Totals(shape, _sources(shape, dx, dmaps), statistics)
    of_convolution = list(masks)
    *layers, last = shape.weights_of(weights)
    z = _normalised(shape, shape.layers, sources, statistics, last)
    found = [totals.add(shape.layers, sources, z, _end_backward(shape, z, gradient), last[0])]
    for layer in reversed(range(shape.layers)):
        own, width = layers[layer], shape.widths[layer]
        start = shape.starts[layer + 1]
        dy = totals.through_norm(totals.of_source[layer + 1], sources[layer + 1], start)
        z = _normalised(shape, layer, sources, statistics, own)
        if not width:
            dy = _dropout(dy, of_convolution.pop() if masks else None, shape.dropout)
            dz, dw = _convolution_backward(dy, z, own[2])
            found.append([*totals.add(layer, sources, z, dz, own[0]), dw])
            continue
        outer, inner = (of_convolution.pop(), of_convolution.pop()) if masks else (None, None)
        y = bottlenecks.pop() if bottlenecks else _dropout(_convolved(z, own[2]), inner, shape.dropout)
        z2 = _normalised_bottleneck(shape, layer, y, statistics, own)
        dz2, dw2 = _convolution_backward(_dropout(dy, outer, shape.dropout), z2, own[5])
        start = shape.inner[layer]
        dy, dgamma2, dbeta2 = totals.of_norm(y, z2, dz2, own[3], start)
        dy = _dropout(totals.through_norm(dy, y, start), inner, shape.dropout)
        dz, dw = _convolution_backward(dy, z, own[2])
        found.append([*totals.add(layer, sources, z, dz, own[0]), dw, dgamma2, dbeta2, dw2])
    dx.copy_(totals.through_norm(dx, x, 0))
    return dx, [tensor for own in reversed(found) for tensor in own]


class _Totals:
    """What the consumers of each channel have added up so far: G, Σ γ·dβ and Σ γ·σ·dγ."""

    def __init__(self, shape: BlockShape, of_source: list[Tensor], statistics: Tensor) -> None:
        self.shape, self.of_source = shape, of_source
        self.mean, self.scale = statistics[0], (statistics[1] + shape.eps).rsqrt()
        self.of_beta, self.of_gamma = torch.zeros_like(self.mean), torch.zeros_like(self.mean)

    def add(self, consumer: int, sources: list[Tensor], z: Tensor, dz: Tensor, gamma: Tensor) -> list[Tensor]:
        """Takes in what a consumer says of all that it read; gives its [dγ, dβ]."""
        shape, found, first = self.shape, [], 0
        for source in shape.reads[consumer]:
            part = slice(first, first := first + shape.sources[source])
            own = dz[:, part], gamma[part], shape.starts[source]
            given, dgamma, dbeta = self.of_norm(sources[source], z[:, part], *own)
            self.of_source[source].add_(given)
            found.append((dgamma, dbeta))
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def of_norm(self, x: Tensor, z: Tensor, dz: Tensor, gamma: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """γ·dz, dγ and dβ of one consumer of the channels from `start` on, whose gradient dz is not yet masked."""
        here = slice(start, start + x.shape[1])
        dz = dz.masked_fill(z <= 0, 0)
        dbeta = dz.sum(CHANNEL)
        products = (dz * (x - self.mean[here].view(WIDE))).sum(CHANNEL)
        self.of_beta[here] += gamma * dbeta
        self.of_gamma[here] += gamma * products
        return dz * gamma.view(WIDE), products * self.scale[here], dbeta

    def through_norm(self, gradient: Tensor, x: Tensor, start: int) -> Tensor:
        """dx of the channels from `start` on, of which all consumers have been added."""
        here, values = slice(start, start + x.shape[1]), x.numel() // x.shape[1]
        scale = self.scale[here]
        of_mean, of_scale = self.of_beta[here] / values, self.of_gamma[here] * scale.square() / values
        centred = x - self.mean[here].view(WIDE)
        return (gradient - of_mean.view(WIDE) - centred * of_scale.view(WIDE)) * scale.view(WIDE)


def _infer(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    sources = [x]
    running = iter(zip(means, variances, strict=True))
    *layers, last = shape.weights_of(weights)
    for layer, own in enumerate(layers):
        scale, shift = _affine(*next(running), own[0], own[1], shape.eps)
        z = _affine_relu(_read(shape, layer, sources), scale, shift)
        if not shape.widths[layer]:
            sources.append(_convolved(z, own[2]))
            continue
        scale, shift = _affine(*next(running), own[3], own[4], shape.eps)  # folded into the convolution before it
        y = F.conv2d(z, own[2] * scale.view(-1, 1, 1, 1), shift).relu_()
        sources.append(_convolved(y, own[5]))
    scale, shift = _affine(*next(running), last[0], last[1], shape.eps)
    return _ended(shape, _affine_relu(_read(shape, shape.layers, sources), scale, shift))


def differentiable(shape: BlockShape, x: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """The same function of x and weights in operations that can be differentiated any number of times."""

    def norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=shape.eps))

    sources = [x]
    dropped = iter(masks)
    *layers, last = shape.weights_of(weights)
    for layer, own in enumerate(layers):
        made = _read(shape, layer, sources)
        for gamma, beta, weight in zip(own[::3], own[1::3], own[2::3], strict=True):
            made = _dropout(_convolved(norm(made, gamma, beta), weight), next(dropped, None), shape.dropout)
        sources.append(made)
    return _ended(shape, norm(_read(shape, shape.layers, sources), *last))


def _sources(shape: BlockShape, x: Tensor, maps: Tensor) -> list[Tensor]:
    """Views of the block's input and of each layer's part of `maps`."""
    return [x, *maps.split(shape.sources[1:], dim=1)]


def _read(shape: BlockShape, consumer: int, sources: list[Tensor]) -> Tensor:
    parts = [sources[source] for source in shape.reads[consumer]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _measure(x: Tensor, statistics: Tensor, start: int) -> None:
    """Puts mean and variance of x's channels at `start`."""
    var, mean = torch.var_mean(x, CHANNEL, correction=0)
    here = slice(start, start + x.shape[1])
    statistics[0, here], statistics[1, here] = mean, var


def _normalised(
    shape: BlockShape, consumer: int, sources: list[Tensor], statistics: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """z of what a consumer reads."""
    parts = [statistics[:, shape.starts[s] : shape.starts[s + 1]] for s in shape.reads[consumer]]
    mean, var = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return _affine_relu(_read(shape, consumer, sources), *_affine(mean, var, weights[0], weights[1], shape.eps))


def _normalised_bottleneck(
    shape: BlockShape, layer: int, y: Tensor, statistics: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    mean, var = statistics[:, shape.inner[layer] : shape.inner[layer + 1]]
    return _affine_relu(y, *_affine(mean, var, weights[3], weights[4], shape.eps))


def _affine(mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = gamma * (var + eps).rsqrt()
    return scale, beta - mean * scale


def _affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift.view(WIDE), x, scale.view(WIDE)).relu_()


def _convolved(z: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(z, weight.to(z.dtype), padding=weight.shape[2] // 2)


def _convolution_backward(dy: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    pad = weight.shape[2] // 2
    dz, dw, _ = torch.ops.aten.convolution_backward(
        dy, z, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return dz, dw


def _dropout(x: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    return x if mask is None else x * (mask.to(x.dtype) / (1 - rate))


def _ended(shape: BlockShape, z: Tensor) -> Tensor:
    match shape.end:
        case "pool":
            return F.avg_pool2d(z, 2)
        case "mean":
            return z.mean((2, 3))
        case _:
            return z


def _end_backward(shape: BlockShape, z: Tensor, gradient: Tensor) -> Tensor:
    match shape.end:
        case "pool":
            return torch.ops.aten.avg_pool2d_backward(gradient, z, [2, 2], [2, 2], [0, 0], False, True, None)
        case "mean":
            return (gradient / (z.shape[2] * z.shape[3]))[:, :, None, None].expand_as(z)
        case _:
            return gradient


def layout_of(*tensors: Tensor) -> torch.memory_format:
    """The layout that torch gives to what a convolution makes of `tensors`: channels_last where the strides of one of
    them say so."""
    last = any(_has_channels_last(tensor) for tensor in tensors if tensor.dim() == 4)
    return torch.channels_last if last else torch.contiguous_format


def _has_channels_last(x: Tensor) -> bool:
    """As torch decides it, where sizes of 1 leave both open too."""
    least = 0
    for dim in (1, 3, 2, 0):
        if x.stride(dim) < least or x.stride(dim) == 0 or (dim == 0 and least == x.stride(1)):
            return False
        least = x.stride(dim) * max(x.shape[dim], 1)
    return True


REF = Kernels(_forward, _backward, _infer, lambda x, weights: "")


# --- autograd --------------------------------------------------------------------------------------------------------


class DenseBlockFunction(torch.autograd.Function):
    """(x, weights) -> (output, statistics), the latter without gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        shape: BlockShape,
        recompute: bool,
        running: Running | None,
        masks: Sequence[Tensor],
        x: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        more = (running,) if kernels.updates else ()
        output, statistics, kept = kernels.forward(shape, x, weights, masks, recompute, *more)
        ctx.kernels, ctx.shape, ctx.counts = kernels, shape, (len(weights), len(masks))
        ctx.save_for_backward(x, *weights, *masks, statistics, *kept)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return output, statistics

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        weights, rest = rest[: ctx.counts[0]], rest[ctx.counts[0] :]
        masks, (statistics, *kept) = rest[: ctx.counts[1]], rest[ctx.counts[1] :]
        if gradient is None:
            return (None,) * (6 + len(weights))
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            asked = [tensor for tensor in (x, *weights) if tensor.requires_grad]
            output = differentiable(ctx.shape, x, weights, masks)
            found = iter(torch.autograd.grad(output, asked, gradient, create_graph=True))
            return (None,) * 5 + tuple(next(found) if tensor.requires_grad else None for tensor in (x, *weights))
        dx, dweights = ctx.kernels.backward(ctx.shape, x, weights, masks, statistics, kept, gradient)
        return None, None, None, None, None, dx, *dweights
