"""The C++ kernels as functions of tensors: float32 on the CPU, one call a block each way.

The structures mirror those of dense_block.cpp. A call lets go of Python's lock.
"""

from collections.abc import Sequence
from ctypes import POINTER, Array, Structure, addressof, byref, c_double, c_int64, c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from dnas.nn.dense_block import BlockShape, Kernels
from dnas.nn.kernels.build import load_library

ENDS = {"pool": 0, "mean": 1, "relu": 2}


class _Norm(Structure):
    _fields_ = [(name, c_void_p) for name in ("gamma", "beta", "dgamma", "dbeta", "mean", "variance")]


class _Weight(Structure):
    _fields_ = [
        ("values", c_void_p),
        ("gradient", c_void_p),
        ("of_out", c_int64),
        ("of_in", c_int64),
        ("of_tap", c_int64),
    ]


class _Consumer(Structure):
    _fields_ = [
        ("channels", c_int64),
        ("reads", c_void_p),
        ("norm1", _Norm),
        ("width", c_int64),
        ("weight1", _Weight),
        ("mask1", c_void_p),
        ("norm2", _Norm),
        ("weight2", _Weight),
        ("mask2", c_void_p),
        ("out", c_int64),
    ]


class _Block(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("images", "height", "width", "x_channels", "layers", "end")),
        *((name, c_int64) for name in ("x_of_image", "x_of_channel", "x_of_pixel", "parts")),
        ("eps", c_double),
        ("mask_scale", c_double),
        ("consumers", POINTER(_Consumer)),
        *((name, c_void_p) for name in ("x", "maps", "bottlenecks", "mean", "variance", "out", "gradient", "dx")),
    ]


def _forward(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor], recompute: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    call = _Call(shape, x, weights, masks)
    pitch = load_library().dnas_pitch(c_int64(x.numel() // x.shape[1]))
    maps = x.new_empty(shape.starts[-1] - shape.sources[0], pitch)
    widths = shape.inner[-1] - shape.starts[-1]
    kept = (maps,) if recompute or not widths else (maps, x.new_empty(widths, pitch))
    statistics = torch.empty(2, shape.inner[-1], dtype=torch.float64)
    out = _empty_output(shape, x)
    call.fill(kept, statistics, out=out)
    call("dnas_forward")
    return out, statistics, kept


def _backward(
    shape: BlockShape,
    x: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    statistics: Tensor,
    kept: Sequence[Tensor],
    gradient: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    call = _Call(shape, x, weights, masks, backward=True)
    call.fill(kept, statistics, gradient=_channels_first(gradient))
    call("dnas_backward")
    return call.dx, call.gradients


def _infer(
    shape: BlockShape, x: Tensor, weights: Sequence[Tensor], means: Sequence[Tensor], variances: Sequence[Tensor]
) -> Tensor:
    call = _Call(shape, x, weights, (), running=(means, variances))
    out = _empty_output(shape, x)
    call.fill((), None, out=out)
    call("dnas_infer")
    return out


def _why_not(x: Tensor, weights: Sequence[Tensor]) -> str:
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return f"kernels `cpu` are for float32 on the CPU, and not for {x.dtype} on {x.device.type}"
    return ""


CPU = Kernels(_forward, _backward, _infer, _why_not)


class _Call:
    """One call's description of a block, and the tensors that it points to."""

    def __init__(
        self,
        shape: BlockShape,
        x: Tensor,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        backward: bool = False,
        running: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> None:
        strides = _strides(x)
        self.x = x if strides else x.contiguous()
        self.weights = [weight if _is_regular(weight) else weight.contiguous() for weight in weights]
        # [maps, N, H, W], as the kernels have their maps
        self.masks = [mask.transpose(0, 1).contiguous() for mask in masks]
        self.gradients = [torch.empty_like(weight) for weight in self.weights] if backward else []
        self.dx = torch.empty_like(self.x) if backward else self.x
        self.consumers = self._consumers(shape, running)
        images, channels, height, width = x.shape
        self.block = _Block(
            images,
            height,
            width,
            channels,
            shape.layers,
            ENDS[shape.end],
            *(strides or (channels * height * width, height * width, 1)),
            torch.get_num_threads(),
            shape.eps,
            1 / (1 - shape.dropout),
            self.consumers,
            self.x.data_ptr(),
            dx=self.dx.data_ptr(),
        )

    def _consumers(
        self, shape: BlockShape, running: tuple[Sequence[Tensor], Sequence[Tensor]] | None
    ) -> "Array[_Consumer]":
        reads = _channels_read(shape)
        consumers = (_Consumer * (shape.layers + 1))()
        gradients: Sequence[Tensor | None] = self.gradients or [None] * len(self.weights)
        weights = iter(zip(self.weights, gradients, strict=True))
        statistics = iter(zip(*running, strict=True)) if running else None
        masks = iter(self.masks)

        def norm() -> _Norm:
            (gamma, dgamma), (beta, dbeta) = next(weights), next(weights)
            mean, variance = next(statistics) if statistics else (None, None)
            return _Norm(*map(_address, (gamma, beta, dgamma, dbeta, mean, variance)))

        def weight() -> _Weight:
            values, gradient = next(weights)
            of_out, of_in, _, of_tap = values.stride()
            return _Weight(values.data_ptr(), _address(gradient), of_out, of_in, of_tap)

        for index, consumer in enumerate(consumers):
            consumer.channels, consumer.reads = len(reads[index]), addressof(reads[index])
            consumer.norm1 = norm()
            if index == shape.layers:
                break
            consumer.width, consumer.out = shape.widths[index], shape.sources[index + 1]
            consumer.weight1, consumer.mask1 = weight(), _address(next(masks, None))
            if consumer.width:
                consumer.norm2 = norm()
                consumer.weight2, consumer.mask2 = weight(), _address(next(masks, None))
        self.reads = reads
        return consumers

    def fill(
        self,
        kept: Sequence[Tensor],
        statistics: Tensor | None,
        out: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        maps, bottlenecks = (*kept, None, None)[:2]
        mean, variance = (None, None) if statistics is None else statistics
        self.tensors = maps, bottlenecks, statistics, out, gradient
        block = self.block
        block.maps, block.bottlenecks = _address(maps), _address(bottlenecks)
        block.mean, block.variance = _address(mean), _address(variance)
        block.out, block.gradient = _address(out), _address(gradient)

    def __call__(self, name: str) -> None:
        if load_library()[name](byref(self.block)):
            raise MemoryError("not enough memory for a dense block")


def _empty_output(shape: BlockShape, x: Tensor) -> Tensor:
    images, channels, (height, width) = x.shape[0], shape.seen(shape.layers), x.shape[2:]
    if shape.end == "mean":
        return x.new_empty(channels, images).t()
    size = (height // 2, width // 2) if shape.end == "pool" else (height, width)
    return x.new_empty(channels, images, *size).transpose(0, 1)


def _channels_first(gradient: Tensor) -> Tensor:
    """As [channels, images, ...] in memory."""
    return gradient.transpose(0, 1).contiguous()


def _strides(x: Tensor) -> tuple[int, int, int] | None:
    """How far apart images, channels and pixels of x [N, C, H, W] lie, as NCHW, NHWC or CNHW; None for others."""
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    if x.is_contiguous():
        return channels * pixels, pixels, 1
    if x.is_contiguous(memory_format=torch.channels_last):
        return channels * pixels, 1, channels
    if x.transpose(0, 1).is_contiguous():
        return pixels, images * pixels, 1
    return None


def _is_regular(weight: Tensor) -> bool:
    """Whether the taps of a kernel lie evenly apart, and nothing twice."""
    if weight.dim() == 1:
        return weight.is_contiguous()
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=256)
def _channels_read(shape: BlockShape) -> "tuple[Array[c_int64], ...]":
    """Of each consumer the channels of the block that it reads."""
    found = []
    for read in shape.reads:
        channels = [c for source in read for c in range(shape.starts[source], shape.starts[source + 1])]
        found.append((c_int64 * len(channels))(*channels))
    return tuple(found)
