"""The Triton kernels as functions of tensors on CUDA: float32, or bfloat16 with weights in either, as under autocast.

Two launches a convolution forward and four backward, small sums over tiles included; none waits for the device.

All maps of a block, its input's too, lie in one buffer [channels, pitch]: a channel's pixels of all images one after
the other, so that what a layer makes is contiguous, and every row begins aligned whatever the growth rate. Gradients of
maps have a buffer like it in float32. A product of float32 is made of three in TF32, which leaves an error of about
1e-6. Tile sizes depend on sizes alone, never on a measurement: equal inputs give equal bits.

A CUDA graph may hold the launches (`step`): what a first call makes, compiled kernels and tables of channels, no
later one makes again. A graph reads the tables where they lay when it was captured; the caches below hold those of more
networks than one training runs.

The logic is tested through Triton's interpreter (TRITON_INTERPRET=1, on the CPU, float32), and every kernel is compiled
for a GPU in the suite. How fast they are on a GPU has not been measured yet.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnas.nn.kernels.reference import BlockShape, Kernels

DTYPES = torch.float32, torch.bfloat16
ALIGNED = 16  # values: Triton loads vectors from rows whose pitch is a multiple of it
PIXELS = 128  # of a tile
TILES = 256  # whose sums are added up at a time
# Of the kernels with products: enough threads that nothing spills from registers, and what fits in 99 KiB of memory
# shared by a program's threads, which every GPU since 2020 has.
PRODUCT = {"num_warps": 8, "num_stages": 2}
PROGRAMS = 512  # at least, where there are as many tiles: several for each of a GPU's multiprocessors


def unavailable_reason() -> str:
    """Why this machine cannot run them, in one line; empty where it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed (it comes with PyTorch for CUDA on Linux)"
    if not _interprets() and not torch.cuda.is_available():
        return "there is no CUDA device"
    return ""


def _unsupported_reason(x: Tensor, weights: Sequence[Tensor]) -> str:
    if x.dtype not in DTYPES or x.device.type != ("cpu" if _interprets() else "cuda"):
        return f"kernels `triton` are for float32 and bfloat16 on CUDA, and not for {x.dtype} on {x.device.type}"
    return unavailable_reason()


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _forward(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor], recompute: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    with torch.cuda.device_of(x):
        call = _Call(shape, x)
        maps = call.empty(shape.starts[-1])
        statistics = torch.empty(2, shape.inner[-1], dtype=torch.float32, device=x.device)
        rows, every = _Rows.of(maps, statistics[:, : shape.starts[-1]]), call.reads()
        call.copy_input(maps, x)
        call.measure(rows.part(0, shape.sources[0]))
        kept = [maps]
        of_convolution = _channels_first(masks)
        *layers, last = shape.weights_of(weights)
        for layer, own in enumerate(layers):
            source, reads = rows, every[layer]
            if width := shape.widths[layer]:
                here = slice(shape.inner[layer], shape.inner[layer + 1])
                made = _Rows.of(call.empty(width), statistics[:, here])
                call.convolve(source, reads, own[:3], next(of_convolution, None), made, measured=True)
                source, reads = made, call.identity(width)
                if not recompute:
                    kept.append(made.values)
            made = rows.part(shape.starts[layer + 1], shape.starts[layer + 2])
            call.convolve(source, reads, own[-3:], next(of_convolution, None), made, measured=True)
        return call.end(rows, every[-1], last), statistics, tuple(kept)


def _backward(
    shape: BlockShape,
    x: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    statistics: Tensor,
    kept: Sequence[Tensor],
    gradient: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    with torch.cuda.device_of(x):
        call = _Call(shape, x)
        maps, *bottlenecks = kept
        kept_of = dict(zip((layer for layer, width in enumerate(shape.widths) if width), bottlenecks, strict=False))
        channels, every = shape.starts[-1], call.reads()
        sums = torch.zeros_like(statistics)
        # The last consumer writes the gradients of what it reads, those before add to them.
        g = (call.empty if len(every[-1]) == channels else call.zeros)(channels, torch.float32)
        rows = _Rows.of(maps, statistics[:, :channels], g, sums[:, :channels])
        of_convolution = list(_channels_first(masks))
        *layers, last = shape.weights_of(weights)
        found = [call.end_backward(rows, every[-1], last, gradient)]
        for layer in reversed(range(shape.layers)):
            own, width = layers[layer], shape.widths[layer]
            made = rows.part(shape.starts[layer + 1], shape.starts[layer + 2])
            outer = of_convolution.pop() if masks else None
            if not width:
                found.append(call.convolve_backward(made, outer, own, rows, every[layer], add=True))
                continue
            inner = of_convolution.pop() if masks else None
            here = slice(shape.inner[layer], shape.inner[layer + 1])
            y = kept_of.get(layer)
            values = call.empty(width) if y is None else y
            between = _Rows.of(values, statistics[:, here], call.empty(width, torch.float32), sums[:, here])
            if y is None:
                call.convolve(rows, every[layer], own[:3], inner, between, measured=False)
            second = call.convolve_backward(made, outer, own[3:], between, call.identity(width), add=False)
            found.append(call.convolve_backward(between, inner, own[:3], rows, every[layer], add=True) + second)
        dx = call.input_gradient(rows.part(0, shape.sources[0]))
        return dx, [tensor for own in reversed(found) for tensor in own]


def _infer(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    """Norms are applied where maps are read, in the convolution's own launch: there is nothing to gain by folding."""
    with torch.cuda.device_of(x):
        call = _Call(shape, x, running=True)
        maps, every = call.empty(shape.starts[-1]), call.reads()
        call.copy_input(maps, x)
        running = zip(means, variances, strict=True)
        *layers, last = shape.weights_of(weights)
        for layer, own in enumerate(layers):
            source, reads = _Rows(maps, *next(running)), every[layer]
            if width := shape.widths[layer]:
                y = call.empty(width)
                call.convolve(source, reads, own[:3], None, source._replace(values=y), measured=False)
                source, reads = _Rows(y, *next(running)), call.identity(width)
            made = source._replace(values=maps[shape.starts[layer + 1] : shape.starts[layer + 2]])
            call.convolve(source, reads, own[-3:], None, made, measured=False)
        return call.end(_Rows(maps, *next(running)), every[-1], last)


TRITON = Kernels(_forward, _backward, _infer, _unsupported_reason, mixed=True)


class _Rows(NamedTuple):
    """Channels, a row each: values [channels, pitch], mean and biased variance, and for the backward pass the gradient
    [channels, pitch] in float32, Σ γ·dβ and Σ γ·dγ over the consumers so far."""

    values: Tensor
    mean: Tensor
    variance: Tensor
    gradient: Tensor | None = None
    of_beta: Tensor | None = None
    of_gamma: Tensor | None = None

    @staticmethod
    def of(values: Tensor, statistics: Tensor, gradient: Tensor | None = None, sums: Tensor | None = None) -> "_Rows":
        of_beta, of_gamma = (None, None) if sums is None else (sums[0], sums[1])
        return _Rows(values, statistics[0], statistics[1], gradient, of_beta, of_gamma)

    def part(self, start: int, stop: int) -> "_Rows":
        return _Rows(*(None if tensor is None else tensor[start:stop] for tensor in self))  # type: ignore[arg-type]


class _Call:
    """The sizes of one call, and the launches."""

    def __init__(self, shape: BlockShape, x: Tensor, running: bool = False) -> None:
        from dnas.nn.kernels import triton_kernels  # triton is there on Linux alone, and slow to import

        self.kernels: Any = triton_kernels
        self.shape, self.dtype, self.device, self.running = shape, x.dtype, x.device, running
        self.images, _, self.height, self.width = x.shape
        self.values = self.images * self.height * self.width
        self.pitch = -(-self.values // ALIGNED) * ALIGNED
        self.tiles = -(-self.values // PIXELS)

    def empty(self, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(channels, self.pitch, dtype=dtype or self.dtype, device=self.device)

    def zeros(self, channels: int, dtype: torch.dtype) -> Tensor:
        return self.empty(channels, dtype).zero_()

    def sums(self, channels: int, count: int = 2) -> list[Tensor]:
        """One number a channel and tile, some times."""
        return list(torch.empty(count, channels, self.tiles, dtype=torch.float32, device=self.device))

    def reads(self) -> tuple[Tensor, ...]:
        return _rows_read(self.shape, self.device)

    def identity(self, channels: int) -> Tensor:
        return _identity(channels, self.device)

    def copy_input(self, maps: Tensor, x: Tensor) -> None:
        rows = maps[: x.shape[1], : self.values]
        rows.view(x.shape[1], self.images, self.height, self.width).copy_(x.transpose(0, 1))

    def measure(self, rows: _Rows) -> None:
        variance, mean = torch.var_mean(rows.values[:, : self.values].float(), 1, correction=0)
        rows.mean.copy_(mean)
        rows.variance.copy_(variance)

    def convolve(
        self,
        source: _Rows,
        reads: Tensor,
        weights: Sequence[Tensor],
        mask: Tensor | None,
        made: _Rows,
        measured: bool,
    ) -> None:
        """made = dropout of the convolution of what is read, normalised, and its statistics where they are measured."""
        gamma, beta, weight = weights
        weight = _regular(weight)
        outs = weight.shape[0]
        tile_mean, tile_square = self.sums(outs) if measured else (source.mean, source.mean)
        size = _size(outs, 128)
        self.kernels.convolve[(self.tiles, -(-outs // size))](
            source.values, reads, source.mean, source.variance, gamma, beta, weight, _or(mask, source.mean),
            made.values, tile_mean, tile_square,
            len(reads), outs, self.values, self.pitch, self.height, self.width, *_strides(weight),
            self.shape.eps, self.mask_scale,
            TAPS=_taps(weight), MASKED=mask is not None, MEASURED=measured, RUNNING=self.running,
            PIXELS=PIXELS, CHANNELS=32, OUTS=size, **PRODUCT,
        )  # fmt: skip
        if measured:
            self.kernels.merge_statistics[(outs,)](
                tile_mean, tile_square, made.mean, made.variance, self.tiles, self.values, PIXELS=PIXELS, TILES=TILES
            )

    def convolve_backward(
        self, made: _Rows, mask: Tensor | None, weights: Sequence[Tensor], source: _Rows, reads: Tensor, add: bool
    ) -> list[Tensor]:
        """dγ, dβ and dW of one convolution and the norm before it; gives the source's gradients their part."""
        gamma, beta, weight = weights
        weight = _regular(weight)
        outs, channels = weight.shape[:2]
        sums = self.sums(channels)
        of_made = *_gradients(made), _or(mask, source.mean)
        of_source = source.values, reads, source.mean, source.variance, gamma, beta
        sizes = channels, outs, self.values, self.pitch, self.height, self.width
        size = _size(channels, 64)
        self.kernels.convolve_backward_input[(self.tiles, -(-channels // size))](
            *of_made, weight, *of_source, source.gradient, *sums, *sizes, *_strides(weight), self.shape.eps,
            self.mask_scale, TAPS=_taps(weight), MASKED=mask is not None, ADD=add,
            PIXELS=PIXELS, CHANNELS=size, OUTS=_size(outs, 32), **PRODUCT,
        )  # fmt: skip
        of_outs = _size(outs, 64 if self.dtype == torch.bfloat16 else 32)
        programs = -(-channels // size) * -(-outs // of_outs)
        splits = min(self.tiles, -(-PROGRAMS // (programs * _taps(weight))))
        tiles_a_split = -(-self.tiles // splits)
        splits = -(-self.tiles // tiles_a_split)
        split_dw = torch.empty(
            splits, outs, *weight.shape[2:], channels, dtype=torch.float32, device=self.device
        )  # channels last, as the network's weights are in training
        self.kernels.convolve_backward_weight[(splits, programs, _taps(weight))](
            *of_made, *of_source, split_dw, *sizes, tiles_a_split * PIXELS, self.shape.eps, self.mask_scale,
            TAPS=_taps(weight), MASKED=mask is not None, PIXELS=64, CHANNELS=size, OUTS=of_outs, **PRODUCT,
        )  # fmt: skip
        dw = split_dw.sum(0).permute(0, 3, 1, 2).to(weight.dtype)
        return [*self.sum_norm(sums, reads, source, gamma, beta), dw]

    def sum_norm(self, sums: list[Tensor], reads: Tensor, source: _Rows, gamma: Tensor, beta: Tensor) -> list[Tensor]:
        dgamma, dbeta = torch.empty_like(gamma), torch.empty_like(beta)
        self.kernels.sum_norm[(len(reads),)](
            *sums, reads, source.variance, gamma, source.of_beta, source.of_gamma, dgamma, dbeta, self.tiles,
            self.shape.eps, TILES=TILES,
        )  # fmt: skip
        return [dgamma, dbeta]

    def end(self, source: _Rows, reads: Tensor, weights: Sequence[Tensor]) -> Tensor:
        rows_out, columns_out, down, right = self.window()
        channels = len(reads)
        out = torch.empty(channels, self.images, rows_out, columns_out, dtype=self.dtype, device=self.device)
        out_values = out[0].numel()
        size = _size(channels, 32)
        self.kernels.end[(-(-out_values // PIXELS), -(-channels // size))](
            source.values, reads, source.mean, source.variance, *weights, out, channels, out_values, self.pitch,
            self.height, self.width, rows_out, columns_out, down, right, self.shape.eps,
            RUNNING=self.running, PIXELS=PIXELS, CHANNELS=size,
        )  # fmt: skip
        out = out.transpose(0, 1)
        return out.flatten(1) if self.shape.end == "mean" else out

    def end_backward(self, source: _Rows, reads: Tensor, weights: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        window, channels = self.window(), len(reads)
        sums, size = self.sums(channels), _size(channels, 32)
        self.kernels.end_backward[(self.tiles, -(-channels // size))](
            gradient.transpose(0, 1).contiguous(), source.values, reads, source.mean, source.variance, *weights,
            source.gradient, *sums, channels, self.values, self.images * window[0] * window[1], self.pitch,
            self.height, self.width, *window, self.shape.eps,
            ADD=channels < len(source.values), PIXELS=PIXELS, CHANNELS=size,
        )  # fmt: skip
        return self.sum_norm(sums, reads, source, *weights)

    def input_gradient(self, rows: _Rows) -> Tensor:
        channels = len(rows.values)
        dx = torch.empty(channels, self.images, self.height, self.width, dtype=self.dtype, device=self.device)
        size = _size(channels, 32)
        self.kernels.input_gradient[(self.tiles, -(-channels // size))](
            *_gradients(rows), dx, channels, self.values, self.pitch, self.shape.eps, PIXELS=PIXELS, CHANNELS=size
        )
        return dx.transpose(0, 1)

    def window(self) -> tuple[int, int, int, int]:
        """Rows and columns of the output, and how many rows and columns of the maps each is the mean of."""
        match self.shape.end:
            case "pool":
                return self.height // 2, self.width // 2, 2, 2
            case "mean":
                return 1, 1, self.height, self.width
            case _:
                return self.height, self.width, 1, 1

    @property
    def mask_scale(self) -> float:
        return 1 / (1 - self.shape.dropout)


def _gradients(rows: _Rows) -> tuple[Tensor | None, ...]:
    return rows.values, rows.gradient, rows.mean, rows.variance, rows.of_beta, rows.of_gamma


def _channels_first(masks: Sequence[Tensor]) -> Any:
    """As [maps, N, H, W] in memory, a byte each."""
    return (mask.transpose(0, 1).contiguous().view(torch.uint8) for mask in masks)


def _or(mask: Tensor | None, other: Tensor) -> Tensor:
    """A launch takes a pointer where there is no mask too; nothing is read from it."""
    return other if mask is None else mask


def _size(count: int, most: int) -> int:
    """Of a tile along channels: the power of two that holds them, from 16 on, as tensor cores take them."""
    return min(most, max(16, 1 << (count - 1).bit_length()))


def _regular(weight: Tensor) -> Tensor:
    """With taps that lie evenly apart."""
    return weight if weight.stride(2) == weight.shape[3] * weight.stride(3) else weight.contiguous()


def _strides(weight: Tensor) -> tuple[int, int, int]:
    of_out, of_in, _, of_tap = weight.stride()
    return of_out, of_in, of_tap


def _taps(weight: Tensor) -> int:
    return weight.shape[2] * weight.shape[3]


@lru_cache(maxsize=256)
def _rows_read(shape: BlockShape, device: torch.device) -> tuple[Tensor, ...]:
    """Of each consumer the rows that it reads, as views of one tensor."""
    found = [[c for source in read for c in range(*shape.starts[source : source + 2])] for read in shape.reads]
    whole = torch.tensor([c for read in found for c in read], dtype=torch.int32, device=device)
    stops = list(accumulate(map(len, found)))
    return tuple(whole[stop - len(read) : stop] for stop, read in zip(stops, found, strict=True))


@lru_cache(maxsize=256)
def _identity(channels: int, device: torch.device) -> Tensor:
    return torch.arange(channels, dtype=torch.int32, device=device)
