"""A dense block and the consumer after it as one function, whose memory is linear in depth without recomputation.

The mean and variance of a feature map are the same for all its consumers; only γ and β differ. Each map is therefore
written once, and its statistics are computed once. A consumer reads its sources, applies

    z = max(a·x + b, 0),  a = γ/σ,  b = β − mean·a,  σ = √(var + ε),

and its convolution. Nothing is concatenated, and z is not kept. The backward pass needs the block's input, the maps,
and the outputs of the bottlenecks' 1×1 convolutions (with recomputation only the maps).

The backward pass visits the consumers from last to first. dz is the gradient of the input of a consumer's convolution,
masked where z = 0. For each channel the consumers accumulate G = Σ γ·dz, and

    dβ = Σ dz,  dγ = Σ dz·(x − mean)/σ    (sums over the batch and its pixels, M values).

When all consumers have been visited, the gradient of the map is

    dx = (G − mean(G) − (x − mean)/σ · mean(G·(x − mean)/σ))/σ,  mean(G) = Σ γ·dβ / M,  mean(G·…) = Σ γ·dγ / M.

The sums of batch norm's backward pass are thus sums over consumers of quantities that each consumer computes anyway.

This module contains the algorithm in stock operations (`ref`, for any dtype and device) and the autograd function.
`dnas.nn.kernels.dispatch` decides which modules it can replace, and `dnas.nn.kernels` has the table of all kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_DIMS = (0, 2, 3)  # sums of a channel are taken over images and pixels
BROADCAST = (1, -1, 1, 1)  # view of one number per channel as a factor of maps


@dataclass(frozen=True)
class BlockShape:
    """The shape of a block and its last consumer.

    sources: Channels of the block's input, followed by the output channels of each layer.
    reads: Sources that each consumer reads, ascending. The consumers are the layers and the module after the block.
    widths: Width of each layer's bottleneck; 0 for layers without one.
    end: Operation of the last consumer on max(a·x + b, 0). `pool`: averages of 2×2 pixels, [N, C, H // 2, W // 2];
        `mean`: mean over all pixels, [N, C]; `relu`: none, [N, C, H, W].
    dropout: Dropout rate after each convolution.
    eps: ε of every batch norm.
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
        """First channel of each source among the channels of the block, followed by their total number."""
        return _running_sums(self.sources)

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """First channel of each bottleneck in `statistics`, where bottlenecks follow the sources."""
        return tuple(self.starts[-1] + start for start in _running_sums(self.widths))

    def seen(self, consumer: int) -> int:
        """Return the number of channels that a consumer (from 0) reads."""
        return sum(self.sources[source] for source in self.reads[consumer])

    def weights_of(self, tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Group tensors by consumer: γ, β, W of each layer (twice with a bottleneck), and γ, β of the last consumer."""
        counts = [6 if width else 3 for width in self.widths] + [2]
        stops = _running_sums(counts)
        return [tensors[start : start + count] for start, count in zip(stops, counts, strict=False)]


def _running_sums(values: Sequence[int]) -> tuple[int, ...]:
    sums = [0]
    for value in values:
        sums.append(sums[-1] + value)
    return tuple(sums)


class Running(NamedTuple):
    """Running statistics of the batch norms of a block in the order of execution.

    `counts` are the numbers of steps (int64), and `momentum` is shared by all norms.
    """

    means: Sequence[Tensor]
    variances: Sequence[Tensor]
    counts: Sequence[Tensor | None]
    momentum: float


class Kernels(NamedTuple):
    """An implementation of dense blocks.

    forward(shape, x, weights, masks, recompute) -> output, statistics, kept
    backward(shape, x, weights, masks, statistics, kept, gradient) -> gradient of x, gradients of weights
    infer(shape, x, weights, means, variances) -> output, with the running statistics of each norm
    unsupported_reason(x, weights) -> why these tensors are not supported; empty if they are

    masks: Dropout masks of all convolutions in the order of execution (True: kept), or empty.
    statistics: [2, channels], mean and biased variance of each channel of the sources, then of the bottlenecks.
    kept: Further tensors that `backward` needs.
    mixed: Supports autocast, with x in its dtype and weights in float32.
    updates: `forward` takes a `Running` as its last argument and updates the running statistics.
    """

    forward: Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]
    backward: Callable[..., tuple[Tensor, list[Tensor]]]
    infer: Callable[..., Tensor]
    unsupported_reason: Callable[..., str]
    mixed: bool = False
    updates: bool = False


# --- algorithm in stock operations -------------------------------------------------------------------------------


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
    for layer, w in enumerate(layers):
        z = _normalised(shape, layer, sources, statistics, w)
        output = _dropout(_convolved(z, w[2]), next(dropped, None), shape.dropout)
        if shape.widths[layer]:
            _measure(output, statistics, shape.inner[layer])
            if not recompute:
                bottlenecks.append(output)
            z = _normalised_bottleneck(shape, layer, output, statistics, w)
            output = _dropout(_convolved(z, w[5]), next(dropped, None), shape.dropout)
        sources[layer + 1].copy_(output)
        _measure(output, statistics, shape.starts[layer + 1])
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
    remaining_masks = list(masks)
    *layers, last = shape.weights_of(weights)
    z = _normalised(shape, shape.layers, sources, statistics, last)
    gradients = [totals.add(shape.layers, sources, z, _end_backward(shape, z, gradient), last[0])]
    for layer in reversed(range(shape.layers)):
        w, width = layers[layer], shape.widths[layer]
        start = shape.starts[layer + 1]
        dy = totals.through_norm(totals.gradients[layer + 1], sources[layer + 1], start)
        z = _normalised(shape, layer, sources, statistics, w)
        if not width:
            dy = _dropout(dy, remaining_masks.pop() if masks else None, shape.dropout)
            dz, dw = _convolution_backward(dy, z, w[2])
            gradients.append([*totals.add(layer, sources, z, dz, w[0]), dw])
            continue
        outer, inner = (remaining_masks.pop(), remaining_masks.pop()) if masks else (None, None)
        y = bottlenecks.pop() if bottlenecks else _dropout(_convolved(z, w[2]), inner, shape.dropout)
        z2 = _normalised_bottleneck(shape, layer, y, statistics, w)
        dz2, dw2 = _convolution_backward(_dropout(dy, outer, shape.dropout), z2, w[5])
        start = shape.inner[layer]
        dy, dgamma2, dbeta2 = totals.norm_backward(y, z2, dz2, w[3], start)
        dy = _dropout(totals.through_norm(dy, y, start), inner, shape.dropout)
        dz, dw = _convolution_backward(dy, z, w[2])
        gradients.append([*totals.add(layer, sources, z, dz, w[0]), dw, dgamma2, dbeta2, dw2])
    dx.copy_(totals.through_norm(dx, x, 0))
    return dx, [tensor for group in reversed(gradients) for tensor in group]


class _Totals:
    """Accumulated sums over the consumers of each channel: G, Σ γ·dβ and Σ γ·σ·dγ."""

    def __init__(self, shape: BlockShape, gradients: list[Tensor], statistics: Tensor) -> None:
        self.shape, self.gradients = shape, gradients  # gradients: G of each source
        self.mean, self.scale = statistics[0], (statistics[1] + shape.eps).rsqrt()
        self.beta_sums, self.gamma_sums = torch.zeros_like(self.mean), torch.zeros_like(self.mean)

    def add(self, consumer: int, sources: list[Tensor], z: Tensor, dz: Tensor, gamma: Tensor) -> list[Tensor]:
        """Add the gradients of one consumer for all its sources, and return its [dγ, dβ]."""
        shape, pairs, first = self.shape, [], 0
        for source in shape.reads[consumer]:
            part = slice(first, first := first + shape.sources[source])
            start = shape.starts[source]
            scaled, dgamma, dbeta = self.norm_backward(sources[source], z[:, part], dz[:, part], gamma[part], start)
            self.gradients[source].add_(scaled)
            pairs.append((dgamma, dbeta))
        return [torch.cat(parts) for parts in zip(*pairs, strict=True)]

    def norm_backward(
        self, x: Tensor, z: Tensor, dz: Tensor, gamma: Tensor, start: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return γ·dz, dγ and dβ of one consumer of the channels from `start` on; dz is not masked yet."""
        part = slice(start, start + x.shape[1])
        dz = dz.masked_fill(z <= 0, 0)
        dbeta = dz.sum(CHANNEL_DIMS)
        products = (dz * (x - self.mean[part].view(BROADCAST))).sum(CHANNEL_DIMS)
        self.beta_sums[part] += gamma * dbeta
        self.gamma_sums[part] += gamma * products
        return dz * gamma.view(BROADCAST), products * self.scale[part], dbeta

    def through_norm(self, gradient: Tensor, x: Tensor, start: int) -> Tensor:
        """Return dx of the channels from `start` on, after all their consumers have been added."""
        part, values = slice(start, start + x.shape[1]), x.numel() // x.shape[1]
        scale = self.scale[part]
        mean_term, scale_term = self.beta_sums[part] / values, self.gamma_sums[part] * scale.square() / values
        centred = x - self.mean[part].view(BROADCAST)
        return (gradient - mean_term.view(BROADCAST) - centred * scale_term.view(BROADCAST)) * scale.view(BROADCAST)


def _infer(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    sources = [x]
    running = iter(zip(means, variances, strict=True))
    *layers, last = shape.weights_of(weights)
    for layer, w in enumerate(layers):
        scale, shift = _affine(*next(running), w[0], w[1], shape.eps)
        z = _affine_relu(_read(shape, layer, sources), scale, shift)
        if not shape.widths[layer]:
            sources.append(_convolved(z, w[2]))
            continue
        scale, shift = _affine(*next(running), w[3], w[4], shape.eps)  # folded into the convolution before it
        y = F.conv2d(z, w[2] * scale.view(-1, 1, 1, 1), shift).relu_()
        sources.append(_convolved(y, w[5]))
    scale, shift = _affine(*next(running), last[0], last[1], shape.eps)
    return _ended(shape, _affine_relu(_read(shape, shape.layers, sources), scale, shift))


def differentiable(shape: BlockShape, x: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Compute the block in operations that can be differentiated any number of times."""

    def norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=shape.eps))

    sources = [x]
    dropped = iter(masks)
    *layers, last = shape.weights_of(weights)
    for layer, w in enumerate(layers):
        output = _read(shape, layer, sources)
        for gamma, beta, weight in zip(w[::3], w[1::3], w[2::3], strict=True):
            output = _dropout(_convolved(norm(output, gamma, beta), weight), next(dropped, None), shape.dropout)
        sources.append(output)
    return _ended(shape, norm(_read(shape, shape.layers, sources), *last))


def _sources(shape: BlockShape, x: Tensor, maps: Tensor) -> list[Tensor]:
    """Return the block's input and a view of each layer's part of `maps`."""
    return [x, *maps.split(shape.sources[1:], dim=1)]


def _read(shape: BlockShape, consumer: int, sources: list[Tensor]) -> Tensor:
    parts = [sources[source] for source in shape.reads[consumer]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _measure(x: Tensor, statistics: Tensor, start: int) -> None:
    """Store mean and variance of the channels of x from position `start` on."""
    var, mean = torch.var_mean(x, CHANNEL_DIMS, correction=0)
    part = slice(start, start + x.shape[1])
    statistics[0, part], statistics[1, part] = mean, var


def _normalised(
    shape: BlockShape, consumer: int, sources: list[Tensor], statistics: Tensor, weights: Sequence[Tensor]
) -> Tensor:
    """Return z for the sources of a consumer."""
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
    return torch.addcmul(shift.view(BROADCAST), x, scale.view(BROADCAST)).relu_()


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
    """Return the memory layout that torch chooses for the output of a convolution of `tensors`.

    It is channels_last if the strides of any of them are.
    """
    last = any(_has_channels_last(tensor) for tensor in tensors if tensor.dim() == 4)
    return torch.channels_last if last else torch.contiguous_format


def _has_channels_last(x: Tensor) -> bool:
    """Follow torch's decision, also for sizes of 1, whose strides fit both layouts."""
    minimum = 0
    for dim in (1, 3, 2, 0):
        if x.stride(dim) < minimum or x.stride(dim) == 0 or (dim == 0 and minimum == x.stride(1)):
            return False
        minimum = x.stride(dim) * max(x.shape[dim], 1)
    return True


REF = Kernels(_forward, _backward, _infer, lambda x, weights: "")


# --- autograd --------------------------------------------------------------------------------------------------------


class DenseBlockFunction(torch.autograd.Function):
    """Dense block as a function (x, weights) -> (output, statistics), the latter without gradient."""

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
        running_argument = (running,) if kernels.updates else ()
        output, statistics, kept = kernels.forward(shape, x, weights, masks, recompute, *running_argument)
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
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            inputs = [tensor for tensor in (x, *weights) if tensor.requires_grad]
            output = differentiable(ctx.shape, x, weights, masks)
            gradients = iter(torch.autograd.grad(output, inputs, gradient, create_graph=True))
            return (None,) * 5 + tuple(next(gradients) if tensor.requires_grad else None for tensor in (x, *weights))
        dx, dweights = ctx.kernels.backward(ctx.shape, x, weights, masks, statistics, kept, gradient)
        return None, None, None, None, None, dx, *dweights
