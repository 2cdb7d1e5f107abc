"""Where kernels stand in for the modules of a dense block, and where only the modules themselves are right.

`run_block` looks at a block's modules as they are at that moment, and runs them by kernels where the result is the same
function: the same outputs, gradients, running statistics and random numbers drawn. All else, hooks and frozen weights
and transformations, is for the modules; `why_plain` names the reason.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dnas.nn.dense_block import BlockShape, DenseBlockFunction, Kernels, Running, layout_of


class _Unfit(Exception):
    """Why a block is for the plain path."""


class _Parts(NamedTuple):
    """Of a block and its last norm: each layer's convolutions; the norms and the weights in the order of execution."""

    layers: list[list[nn.Conv2d]]
    norms: list[nn.BatchNorm2d]
    weights: list[Tensor]
    dropout: float


def run_block(
    kernels: Kernels,
    block: nn.Module,
    reads: Sequence[tuple[int, ...]],
    after: nn.Module,
    end: str,
    x: Tensor,
    recompute: bool = False,
) -> Tensor | None:
    """What a block's layers and max(norm, 0) of the consumer after them make of x; None where only the modules
    themselves are right.

    block: its children are the layers, each with norm1, relu1, conv1 and perhaps norm2, relu2, conv2. reads: as in
        `BlockShape`. after: the batch norm that follows, or a module with it as `norm`. end: as in `BlockShape`.
    recompute: the outputs of the bottlenecks are not kept, but worked out again.
    """
    try:
        parts = _parts(block, after)
        _check(parts, kernels, x)
        if end == "pool" and min(x.shape[2:]) < 2:
            raise _Unfit("maps too small to pool")
    except _Unfit:
        return None
    training, eps = parts.norms[0].training, parts.norms[0].eps
    sources = (x.shape[1], *(layer[-1].out_channels for layer in parts.layers))
    widths = tuple(layer[0].out_channels if len(layer) == 2 else 0 for layer in parts.layers)
    shape = BlockShape(sources, tuple(reads), widths, end, parts.dropout if training else 0.0, eps)
    means, variances = _running(parts.norms)
    if not training:
        return kernels.infer(shape, x, parts.weights, means, variances)
    masks = list(drawn_masks(shape, x, parts.weights)) if shape.dropout else []
    momentum = parts.norms[0].momentum
    assert momentum is not None
    alike = all(norm.momentum == momentum for norm in parts.norms)
    running = Running(means, variances, momentum) if kernels.updates and alike else None
    output, statistics = DenseBlockFunction.apply(kernels, shape, recompute, running, masks, x, *parts.weights)
    if running is None:
        _update_running(shape, parts.norms, statistics, x.numel() // x.shape[1])
    batches = [norm._buffers["num_batches_tracked"] for norm in parts.norms]
    torch._foreach_add_([count for count in batches if count is not None], 1)
    return output


def why_plain(kernels: Kernels, block: nn.Module, after: nn.Module, x: Tensor) -> str:
    """Why `run_block` leaves a block to its modules; empty where it does not."""
    try:
        _check(_parts(block, after), kernels, x)
    except _Unfit as reason:
        return str(reason)
    return ""


def _parts(block: nn.Module, after: nn.Module) -> _Parts:
    found = _Parts([], [], [], next((layer.dropout for layer in block.children()), 0.0))  # type: ignore[arg-type]
    _check_untouched(block)
    for layer in block._modules.values():
        assert layer is not None
        _check_untouched(layer)
        if layer.dropout != found.dropout or layer.training != block.training:
            raise _Unfit("layers that differ in dropout or mode")
        inside = list(layer._modules.values())
        if len(inside) not in (3, 6):
            raise _Unfit("a layer of other parts")
        found.layers.append([])
        for norm, relu, convolution in zip(inside[::3], inside[1::3], inside[2::3], strict=True):
            _add_norm(norm, found)
            if type(relu) is not nn.ReLU:
                raise _Unfit("an activation other than ReLU")
            _check_untouched(relu)
            _add_convolution(convolution, found, kernel=3 if convolution is inside[-1] else 1)
    if type(after) is not nn.BatchNorm2d:
        for module in (after, *after._modules.values()):
            _check_untouched(module)
        after = after.norm  # type: ignore[assignment]
    _add_norm(after, found)
    return found


def _add_norm(norm: nn.Module | None, found: _Parts) -> None:
    if type(norm) is not nn.BatchNorm2d:
        raise _Unfit("a norm other than BatchNorm2d")
    _check_untouched(norm)
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    if weight is None or bias is None or norm.running_mean is None or norm.running_var is None:
        raise _Unfit("a batch norm without weights or running statistics")
    if norm.momentum is None:
        raise _Unfit("a batch norm whose running statistics are plain means")
    for tensor in (weight, bias, norm.running_mean, norm.running_var):
        if not tensor.is_contiguous() or tensor.dtype != weight.dtype or tensor.device != weight.device:
            raise _Unfit("a batch norm whose tensors are scattered in memory, or of several kinds")
    if found.norms and (norm.training, norm.eps) != (found.norms[0].training, found.norms[0].eps):
        raise _Unfit("batch norms of several modes")
    found.norms.append(norm)
    found.weights.extend((weight, bias))


def _add_convolution(convolution: nn.Module | None, found: _Parts, kernel: int) -> None:
    if type(convolution) is not nn.Conv2d:
        raise _Unfit("a convolution other than Conv2d")
    _check_untouched(convolution)
    weight = convolution._parameters["weight"]
    geometry = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    if (
        weight is None
        or weight.shape[2:] != (kernel, kernel)
        or geometry != ((1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
        or convolution.padding_mode != "zeros"
        or convolution._parameters["bias"] is not None
    ):
        raise _Unfit("a convolution of another shape")
    found.layers[-1].append(convolution)
    found.weights.append(weight)


def _check_untouched(module: nn.Module | None) -> None:
    if module is None or is_touched(module):
        raise _Unfit("hooks, or a forward of its own")


def is_touched(module: nn.Module) -> bool:
    """Whether something looks at what goes in or out of this module, or stands in its place."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
    )


def _check(parts: _Parts, kernels: Kernels, x: Tensor) -> None:
    """Raises `_Unfit` where what surrounds the block is for the modules: they give the error, or the other result."""
    if is_traced_or_transformed() or nn.modules.module._has_any_global_hook():
        raise _Unfit("a trace, a transformation or global hooks")
    of_weights = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        if not kernels.mixed or x.dtype != torch.get_autocast_dtype(x.device.type):
            raise _Unfit("autocast")
        of_weights = torch.float32
    if x.dim() != 4 or not x.numel():
        raise _Unfit("no maps")
    for tensor, dtype in ((x, x.dtype), *((weight, of_weights) for weight in parts.weights)):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype != dtype or tensor.device != x.device:
            raise _Unfit("tensors of several kinds")
    if torch.is_grad_enabled():
        if parts.norms[0].training:
            if not all(weight.requires_grad for weight in parts.weights):
                raise _Unfit("frozen weights")
        elif x.requires_grad or any(weight.requires_grad for weight in parts.weights):
            raise _Unfit("gradients in evaluation mode")
    if parts.norms[0].training and x.numel() == x.shape[1]:
        raise _Unfit("one value a channel")
    if reason := kernels.why_not(x, parts.weights):
        raise _Unfit(reason)


def is_traced_or_transformed() -> bool:
    """Whether torch.compile, export, a trace, torch.func or forward-mode differentiation looks on."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def drawn_masks(shape: BlockShape, x: Tensor, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """The masks that the modules would draw from torch's generator now, in the order of execution. It is drawn in the
    order in which maps lie in memory, so their layout matters."""
    layouts = [layout_of(x)]
    for layer, own in enumerate(shape.weights_of(weights)[:-1]):
        read = {layouts[source] for source in shape.reads[layer]}
        layout = read.pop() if len(read) == 1 else torch.contiguous_format  # as torch.cat does
        for weight in own[2::3]:
            if weight.shape[1] == 1:
                layout = torch.contiguous_format  # what a norm makes of a single map lies so, whichever its strides
            if layout_of(weight) == torch.channels_last:
                layout = torch.channels_last
            size = x.shape[0], weight.shape[0], *x.shape[2:]
            drawn = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
            yield drawn.bernoulli_(1 - shape.dropout).bool()
        layouts.append(layout)


def _running(norms: Sequence[nn.BatchNorm2d]) -> tuple[list[Tensor], list[Tensor]]:
    return [norm._buffers["running_mean"] for norm in norms], [norm._buffers["running_var"] for norm in norms]  # type: ignore[misc]


@torch.no_grad()
def _update_running(shape: BlockShape, norms: Sequence[nn.BatchNorm2d], statistics: Tensor, values: int) -> None:
    """As each norm would by itself: towards the batch's mean and unbiased variance, once a step."""
    means, variances = _running(norms)
    order, counts = _order_of_norms(shape, statistics.device)
    seen = statistics[:, order].to(means[0].dtype)
    seen[1] *= values / (values - 1)
    seen_means, seen_variances = seen[0].split(counts), seen[1].split(counts)
    for momentum in {norm.momentum for norm in norms}:
        assert momentum is not None
        chosen = [index for index, norm in enumerate(norms) if norm.momentum == momentum]
        torch._foreach_lerp_([means[i] for i in chosen], [seen_means[i] for i in chosen], momentum)
        torch._foreach_lerp_([variances[i] for i in chosen], [seen_variances[i] for i in chosen], momentum)


@lru_cache(maxsize=256)
def _order_of_norms(shape: BlockShape, device: torch.device) -> tuple[Tensor, list[int]]:
    """Of each norm in the order of execution the channels that it sees, one after the other, and how many they are."""
    seen: list[list[int]] = []
    for consumer, read in enumerate(shape.reads):
        seen.append([channel for source in read for channel in range(*shape.starts[source : source + 2])])
        if consumer < shape.layers and shape.widths[consumer]:
            seen.append(list(range(*shape.inner[consumer : consumer + 2])))
    order = torch.tensor([channel for channels in seen for channel in channels], device=device)
    return order, [len(channels) for channels in seen]
