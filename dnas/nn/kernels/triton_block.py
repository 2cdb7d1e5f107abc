"""Triton kernels as functions of tensors on CUDA.

Supported are float32, and bfloat16 with weights in either type, as under autocast. A convolution takes two launches in
the forward pass and four in the backward pass, including small sums over tiles. None of them waits for the device.

All maps of a block, including its input, are in one buffer [channels, pitch]. A row holds the pixels of all images of
one channel. The output of a layer is therefore contiguous, and every row is aligned for every growth rate. The
gradients of maps have an equal buffer in float32. A float32 product consists of three TF32 products, which leaves an
error of about 1e-6. Tile sizes depend only on the shape and never on a measurement, so equal inputs produce equal bits.

A CUDA graph can capture the launches (`dnas.training.step`). Compiled kernels and tables of channels are created by the
first call and reused by later ones. A graph reads the tables at the addresses of its capture, so the caches below are
larger than the number of networks in one run.

The logic is tested in Triton's interpreter (TRITON_INTERPRET=1, on the CPU, float32), and the tests compile every
kernel for a GPU. The speed on a GPU has not been measured yet.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnas.machine import NO_DEVICE, NO_TRITON
from dnas.nn.kernels.reference import BlockShape, Kernels

DTYPES = torch.float32, torch.bfloat16
PITCH_MULTIPLE = 16  # values: Triton uses vector loads if the pitch of rows is a multiple of this
PIXELS = 128  # pixels per tile
TILES = 256  # number of tiles whose sums are added in one step
# Launch options of kernels with products: enough threads to avoid register spills, within the 99 KiB of shared memory
# that every GPU since 2020 has.
PRODUCT_OPTIONS = {"num_warps": 8, "num_stages": 2}
MIN_PROGRAMS = 512  # smallest number of programs per launch if there are enough tiles: several per multiprocessor


def unavailable_reason() -> str:
    """Return one line on why this machine cannot run the kernels; empty if it can."""
    if find_spec("triton") is None:
        return NO_TRITON
    if not _interprets() and not torch.cuda.is_available():
        return NO_DEVICE
    return ""


def _unsupported_reason(x: Tensor, weights: Sequence[Tensor]) -> str:
    if x.dtype not in DTYPES or x.device.type != ("cpu" if _interprets() else "cuda"):
        return f"kernels `triton` support float32 and bfloat16 on CUDA, but not {x.dtype} on {x.device.type}"
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
        rows, all_reads = _Rows.of(maps, statistics[:, : shape.starts[-1]]), call.reads()
        call.copy_input(maps, x)
        call.measure(rows.part(0, shape.sources[0]))
        kept = [maps]
        remaining_masks = _channels_first(masks)
        *layers, last = shape.weights_of(weights)
        for layer, w in enumerate(layers):
            source, reads = rows, all_reads[layer]
            if width := shape.widths[layer]:
                part = slice(shape.inner[layer], shape.inner[layer + 1])
                target = _Rows.of(call.empty(width), statistics[:, part])
                call.convolve(source, reads, w[:3], next(remaining_masks, None), target, measured=True)
                source, reads = target, call.identity(width)
                if not recompute:
                    kept.append(target.values)
            target = rows.part(shape.starts[layer + 1], shape.starts[layer + 2])
            call.convolve(source, reads, w[-3:], next(remaining_masks, None), target, measured=True)
        return call.end(rows, all_reads[-1], last), statistics, tuple(kept)


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
        channels, all_reads = shape.starts[-1], call.reads()
        sums = torch.zeros_like(statistics)
        # The last consumer writes the gradients of its sources, and earlier consumers add to them.
        g = (call.empty if len(all_reads[-1]) == channels else call.zeros)(channels, torch.float32)
        rows = _Rows.of(maps, statistics[:, :channels], g, sums[:, :channels])
        remaining_masks = list(_channels_first(masks))
        *layers, last = shape.weights_of(weights)
        gradients = [call.end_backward(rows, all_reads[-1], last, gradient)]
        for layer in reversed(range(shape.layers)):
            w, width = layers[layer], shape.widths[layer]
            target = rows.part(shape.starts[layer + 1], shape.starts[layer + 2])
            outer = remaining_masks.pop() if masks else None
            if not width:
                gradients.append(call.convolve_backward(target, outer, w, rows, all_reads[layer], add=True))
                continue
            inner = remaining_masks.pop() if masks else None
            part = slice(shape.inner[layer], shape.inner[layer + 1])
            y = kept_of.get(layer)
            values = call.empty(width) if y is None else y
            between = _Rows.of(values, statistics[:, part], call.empty(width, torch.float32), sums[:, part])
            if y is None:
                call.convolve(rows, all_reads[layer], w[:3], inner, between, measured=False)
            second = call.convolve_backward(target, outer, w[3:], between, call.identity(width), add=False)
            gradients.append(call.convolve_backward(between, inner, w[:3], rows, all_reads[layer], add=True) + second)
        dx = call.input_gradient(rows.part(0, shape.sources[0]))
        return dx, [tensor for group in reversed(gradients) for tensor in group]


def _infer(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    """Run a block in evaluation mode. Convolutions apply norms when they read maps, so folding would save nothing."""
    with torch.cuda.device_of(x):
        call = _Call(shape, x, running=True)
        maps, all_reads = call.empty(shape.starts[-1]), call.reads()
        call.copy_input(maps, x)
        running = zip(means, variances, strict=True)
        *layers, last = shape.weights_of(weights)
        for layer, w in enumerate(layers):
            source, reads = _Rows(maps, *next(running)), all_reads[layer]
            if width := shape.widths[layer]:
                y = call.empty(width)
                call.convolve(source, reads, w[:3], None, source._replace(values=y), measured=False)
                source, reads = _Rows(y, *next(running)), call.identity(width)
            target = source._replace(values=maps[shape.starts[layer + 1] : shape.starts[layer + 2]])
            call.convolve(source, reads, w[-3:], None, target, measured=False)
        return call.end(_Rows(maps, *next(running)), all_reads[-1], last)


TRITON = Kernels(_forward, _backward, _infer, _unsupported_reason, mixed=True)


class _Rows(NamedTuple):
    """Channels as rows.

    values: [channels, pitch].
    mean, variance: [channels], the variance is biased.
    gradient: [channels, pitch] in float32, for the backward pass.
    of_beta, of_gamma: [channels], Σ γ·dβ and Σ γ·dγ over the consumers so far.
    """

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
    """The sizes of one call, and its kernel launches."""

    def __init__(self, shape: BlockShape, x: Tensor, running: bool = False) -> None:
        from dnas.nn.kernels import triton_kernels  # triton exists on Linux only and is slow to import

        self.kernels: Any = triton_kernels
        self.shape, self.dtype, self.device, self.running = shape, x.dtype, x.device, running
        self.images, _, self.height, self.width = x.shape
        self.values = self.images * self.height * self.width
        self.pitch = -(-self.values // PITCH_MULTIPLE) * PITCH_MULTIPLE
        self.tiles = -(-self.values // PIXELS)

    def empty(self, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(channels, self.pitch, dtype=dtype or self.dtype, device=self.device)

    def zeros(self, channels: int, dtype: torch.dtype) -> Tensor:
        return self.empty(channels, dtype).zero_()

    def sums(self, channels: int, count: int = 2) -> list[Tensor]:
        """Return `count` buffers [channels, tiles] for partial sums."""
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
        target: _Rows,
        measured: bool,
    ) -> None:
        """Write the convolution of the normalised sources, after dropout and optionally its statistics to `target`."""
        gamma, beta, weight = weights
        weight = _regular(weight)
        outs = weight.shape[0]
        tile_mean, tile_square = self.sums(outs) if measured else (source.mean, source.mean)
        size = _size(outs, 128)
        self.kernels.convolve[(self.tiles, -(-outs // size))](
            source.values, reads, source.mean, source.variance, gamma, beta, weight, _or(mask, source.mean),
            target.values, tile_mean, tile_square,
            len(reads), outs, self.values, self.pitch, self.height, self.width, *_strides(weight),
            self.shape.eps, self.mask_scale,
            TAPS=_taps(weight), MASKED=mask is not None, MEASURED=measured, RUNNING=self.running,
            PIXELS=PIXELS, CHANNELS=32, OUTS=size, **PRODUCT_OPTIONS,
        )  # fmt: skip
        if measured:
            self.kernels.merge_statistics[(outs,)](
                tile_mean,
                tile_square,
                target.mean,
                target.variance,
                self.tiles,
                self.values,
                PIXELS=PIXELS,
                TILES=TILES,
            )

    def convolve_backward(
        self, target: _Rows, mask: Tensor | None, weights: Sequence[Tensor], source: _Rows, reads: Tensor, add: bool
    ) -> list[Tensor]:
        """Return dγ, dβ and dW of a convolution and the norm before it, and add to the gradients of its sources."""
        gamma, beta, weight = weights
        weight = _regular(weight)
        outs, channels = weight.shape[:2]
        sums = self.sums(channels)
        target_arguments = *_gradients(target), _or(mask, source.mean)
        of_source = source.values, reads, source.mean, source.variance, gamma, beta
        sizes = channels, outs, self.values, self.pitch, self.height, self.width
        size = _size(channels, 64)
        self.kernels.convolve_backward_input[(self.tiles, -(-channels // size))](
            *target_arguments, weight, *of_source, source.gradient, *sums, *sizes, *_strides(weight), self.shape.eps,
            self.mask_scale, TAPS=_taps(weight), MASKED=mask is not None, ADD=add,
            PIXELS=PIXELS, CHANNELS=size, OUTS=_size(outs, 32), **PRODUCT_OPTIONS,
        )  # fmt: skip
        of_outs = _size(outs, 64 if self.dtype == torch.bfloat16 else 32)
        programs = -(-channels // size) * -(-outs // of_outs)
        splits = min(self.tiles, -(-MIN_PROGRAMS // (programs * _taps(weight))))
        tiles_per_split = -(-self.tiles // splits)
        splits = -(-self.tiles // tiles_per_split)
        split_dw = torch.empty(
            splits, outs, *weight.shape[2:], channels, dtype=torch.float32, device=self.device
        )  # channels last, like the network's weights in training
        self.kernels.convolve_backward_weight[(splits, programs, _taps(weight))](
            *target_arguments, *of_source, split_dw, *sizes, tiles_per_split * PIXELS, self.shape.eps, self.mask_scale,
            TAPS=_taps(weight), MASKED=mask is not None, PIXELS=64, CHANNELS=size, OUTS=of_outs, **PRODUCT_OPTIONS,
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
        """Return rows and columns of the output, and of the window of maps that each output averages."""
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
    """Yield the masks as bytes stored in the order [maps, N, H, W]."""
    return (mask.transpose(0, 1).contiguous().view(torch.uint8) for mask in masks)


def _or(mask: Tensor | None, other: Tensor) -> Tensor:
    """Return the mask, or another tensor as a pointer that the kernel does not read."""
    return other if mask is None else mask


def _size(count: int, limit: int) -> int:
    """Return the tile size along channels: a power of two, at least 16 as tensor cores require, at most `limit`."""
    return min(limit, max(16, 1 << (count - 1).bit_length()))


def _regular(weight: Tensor) -> Tensor:
    """Return the weight with evenly spaced kernel taps."""
    return weight if weight.stride(2) == weight.shape[3] * weight.stride(3) else weight.contiguous()


def _strides(weight: Tensor) -> tuple[int, int, int]:
    of_out, of_in, _, of_tap = weight.stride()
    return of_out, of_in, of_tap


def _taps(weight: Tensor) -> int:
    return weight.shape[2] * weight.shape[3]


@lru_cache(maxsize=256)
def _rows_read(shape: BlockShape, device: torch.device) -> tuple[Tensor, ...]:
    """Return the rows that each consumer reads, as views of one tensor."""
    reads = [[c for source in read for c in range(*shape.starts[source : source + 2])] for read in shape.reads]
    rows = torch.tensor([c for read in reads for c in read], dtype=torch.int32, device=device)
    stops = list(accumulate(map(len, reads)))
    return tuple(rows[stop - len(read) : stop] for stop, read in zip(stops, reads, strict=True))


@lru_cache(maxsize=256)
def _identity(channels: int, device: torch.device) -> Tensor:
    return torch.arange(channels, dtype=torch.int32, device=device)
