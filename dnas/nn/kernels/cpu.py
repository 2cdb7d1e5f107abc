"""C++ kernels as functions of tensors: float32 on the CPU, one call per block and direction.

The structures mirror those of dense_block.cpp. Calls release the GIL.
"""

from array import array
from collections.abc import Sequence
from ctypes import Array, Structure, addressof, byref, c_double, c_int64, c_void_p
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from dnas.nn.kernels.build import load_library
from dnas.nn.kernels.reference import BlockShape, Kernels, Running

ENDS = {"pool": 0, "mean": 1, "relu": 2}
NORM_WORDS, CONVOLUTION_WORDS = 7, 6  # 64-bit words of a NormTensors, and of a Weight with its mask


class _Block(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("images", "height", "width", "x_channels", "layers", "end")),
        *((name, c_int64) for name in ("x_of_image", "x_of_channel", "x_of_pixel", "threads")),
        ("eps", c_double),
        ("mask_scale", c_double),
        ("momentum", c_double),
        ("consumers", c_void_p),
        *((name, c_void_p) for name in ("x", "maps", "bottlenecks", "mean", "variance", "out", "gradient", "dx")),
    ]


def _forward(
    shape: BlockShape,
    x: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    recompute: bool,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    call = _Call(shape, x, weights, masks, running=running)
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
    call = _Call(shape, x, weights, (), running=Running(means, variances, [None] * len(means), 0.0))
    out = _empty_output(shape, x)
    call.fill((), None, out=out)
    call("dnas_infer")
    return out


def _unsupported_reason(x: Tensor, weights: Sequence[Tensor]) -> str:
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return f"kernels `cpu` support float32 on the CPU, but not {x.dtype} on {x.device.type}"
    return ""


CPU = Kernels(_forward, _backward, _infer, _unsupported_reason, updates=True)


class _Call:
    """Arguments of one call: the description of a block, and the tensors that it points to."""

    def __init__(
        self,
        shape: BlockShape,
        x: Tensor,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        backward: bool = False,
        running: Running | None = None,
    ) -> None:
        strides = _strides(x)
        self.x = x if strides else x.contiguous()
        self.weights = [weight if _is_regular(weight) else weight.contiguous() for weight in weights]
        # [maps, N, H, W], the layout of maps in the kernels
        self.masks = [mask.transpose(0, 1).contiguous() for mask in masks]
        self.gradients = [torch.empty_like(weight) for weight in self.weights] if backward else []
        self.dx = torch.empty_like(self.x) if backward else self.x
        self.template = _template(shape)
        self.consumers = _consumers(self.template, self.weights, self.gradients, running, self.masks)
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
            running.momentum if running else 0.0,
            self.consumers.buffer_info()[0],
            self.x.data_ptr(),
            dx=self.dx.data_ptr(),
        )

    def fill(
        self,
        kept: Sequence[Tensor],
        statistics: Tensor | None,
        out: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """Set the addresses of the tensors that the call reads and writes."""
        maps, bottlenecks = (*kept, None, None)[:2]
        mean, variance = (None, None) if statistics is None else statistics
        self.tensors = maps, bottlenecks, statistics, out, gradient
        block = self.block
        block.maps, block.bottlenecks = _address(maps), _address(bottlenecks)
        block.mean, block.variance = _address(mean), _address(variance)
        block.out, block.gradient = _address(out), _address(gradient)

    def __call__(self, name: str) -> None:
        if getattr(load_library(), name)(byref(self.block)):
            raise MemoryError("not enough memory for a dense block")


def _empty_output(shape: BlockShape, x: Tensor) -> Tensor:
    images, channels, (height, width) = x.shape[0], shape.seen(shape.layers), x.shape[2:]
    if shape.end == "mean":
        return x.new_empty(channels, images).t()
    size = (height // 2, width // 2) if shape.end == "pool" else (height, width)
    return x.new_empty(channels, images, *size).transpose(0, 1)


def _channels_first(gradient: Tensor) -> Tensor:
    """Return the gradient stored as [channels, images, ...]."""
    return gradient.transpose(0, 1).contiguous()


def _strides(x: Tensor) -> tuple[int, int, int] | None:
    """Return the strides of images, channels and pixels of x [N, C, H, W] in NCHW, NHWC or CNHW; None for others."""
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    if x.is_contiguous():
        return channels * pixels, pixels, 1
    if x.is_contiguous(memory_format=torch.channels_last):
        return channels * pixels, 1, channels
    if x.transpose(0, 1).is_contiguous():
        return pixels, images * pixels, 1
    return None


def _is_regular(weight: Tensor) -> bool:
    """Return whether a weight is dense in memory with evenly spaced kernel taps."""
    if weight.dim() == 1:
        return weight.is_contiguous()
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _consumers(
    template: "_Template",
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    running: Running | None,
    masks: Sequence[Tensor],
) -> "array[int]":
    """Return the `Consumer` structures of all consumers, one after another."""
    words = template.words[:]
    for place, weight in zip(template.weights, weights, strict=True):
        words[place] = weight.data_ptr()
        if weight.dim() == 4:
            words[place + 2], words[place + 3], _, words[place + 4] = weight.stride()
    if gradients:
        for place, gap, gradient in zip(template.weights, template.to_gradient, gradients, strict=True):
            words[place + gap] = gradient.data_ptr()
    if running is not None:
        statistics = zip(template.statistics, running.means, running.variances, running.counts, strict=True)
        for place, mean, variance, count in statistics:
            words[place], words[place + 1], words[place + 2] = mean.data_ptr(), variance.data_ptr(), _address(count)
    for place, mask in zip(template.masks, masks, strict=bool(masks)):
        words[place] = mask.data_ptr()
    return words


class _Template(NamedTuple):
    """The `Consumer` structures of a block as 64-bit words, and the positions of addresses that differ between calls.

    The words contain everything that depends on the shape only; other addresses are 0. A template must outlive its
    calls.
    """

    words: "array[int]"
    weights: list[int]  # position of each weight, in the order of execution
    to_gradient: list[int]  # distance of its gradient from each weight
    statistics: list[int]  # position of the running mean of each norm
    masks: list[int]  # position of the mask of each convolution
    reads: "list[Array[c_int64]]"  # channel lists that `words` points to


@lru_cache(maxsize=256)
def _template(shape: BlockShape) -> _Template:
    template = _Template(array("q"), [], [], [], [], [])
    words = template.words

    def add_norm() -> None:
        template.weights.extend((len(words), len(words) + 1))
        template.to_gradient.extend((2, 2))
        template.statistics.append(len(words) + 4)
        words.extend(repeat(0, NORM_WORDS))

    def add_convolution() -> None:
        template.weights.append(len(words))
        template.to_gradient.append(1)
        template.masks.append(len(words) + CONVOLUTION_WORDS - 1)
        words.extend(repeat(0, CONVOLUTION_WORDS))

    for index, read in enumerate(shape.reads):
        channels = [c for source in read for c in range(shape.starts[source], shape.starts[source + 1])]
        template.reads.append((c_int64 * len(channels))(*channels))
        words.extend((len(channels), addressof(template.reads[-1])))
        add_norm()
        if index == shape.layers:
            break
        words.append(shape.widths[index])
        add_convolution()
        if shape.widths[index]:
            add_norm()
            add_convolution()
        else:
            words.extend(repeat(0, NORM_WORDS + CONVOLUTION_WORDS))
        words.append(shape.sources[index + 1])
    words.extend(repeat(0, 2 + NORM_WORDS + 2 * CONVOLUTION_WORDS))  # members that the last consumer does not use
    return template
