"""Where kernels stand in for the modules of a dense block, and where only the modules themselves are right.

`run_block` looks at a block's modules as they are at that moment, and runs them by kernels where the result is the same
function: the same outputs, gradients, running statistics and random numbers drawn. All else, hooks and frozen weights
and transformations, is for the modules; `fallback_reason` names the reason.
"""

import operator
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dnas.nn.kernels.reference import BlockShape, DenseBlockFunction, Kernels, Running, layout_of
from dnas.nn.layers import DenseBlock, DenseLayer, Transition


class _Unfit(Exception):
    """Why a block is for the plain path."""


class _Parts:
    """A block and what follows it, found to be what kernels can stand in for.

    To look at all of it takes longer than a small block's work, so what has been looked at is written down, and
    `are_unchanged` compares.

    norms and weights are in the order of execution. means, variances and counts: the running ones of each norm.
    """

    def __init__(self, block: nn.Module, after: nn.Module) -> None:
        self.norms: list[nn.BatchNorm2d] = []
        self.weights: list[Tensor] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.has_bottleneck: list[bool] = []
        self._modules: list[nn.Module] = []
        self._look_at(block, of=DenseBlock)
        for layer in block.children():
            self._add_layer(layer)
        if isinstance(after, nn.BatchNorm2d):
            self._add_norm(after)
        else:
            self._look_at(after, of=Transition)
            assert isinstance(after, Transition)
            self._add_norm(after.norm)
            for module in (after.relu, after.conv, after.pool):
                self._look_at(module)
        self._take_as_one(block)
        self._write_down(block, after)

    def _look_at(self, module: nn.Module, of: type[nn.Module] | None = None) -> None:
        if is_touched(module):
            raise _Unfit("hooks, or a forward of its own")
        if of is not None and type(module) is not of:
            raise _Unfit(f"a {type(module).__name__} in the place of a {of.__name__}")
        self._modules.append(module)

    def _add_layer(self, layer: nn.Module) -> None:
        self._look_at(layer, of=DenseLayer)
        assert isinstance(layer, DenseLayer)
        inside = list(layer.children())
        if len(inside) != (6 if layer.bottleneck else 3):
            raise _Unfit("a layer of other parts")
        self.has_bottleneck.append(len(inside) == 6)
        for norm, relu, convolution in zip(inside[::3], inside[1::3], inside[2::3], strict=True):
            self._add_norm(norm)
            self._look_at(relu, of=nn.ReLU)
            self._add_convolution(convolution, kernel=3 if convolution is inside[-1] else 1)

    def _add_norm(self, norm: nn.Module) -> None:
        self._look_at(norm, of=nn.BatchNorm2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias, count = norm.weight, norm.bias, norm.num_batches_tracked
        if weight is None or bias is None or norm.running_mean is None or norm.running_var is None or count is None:
            raise _Unfit("a batch norm without weights or running statistics")
        if not norm.track_running_stats or not isinstance(norm.momentum, float):
            raise _Unfit("a batch norm whose running statistics rest, or are plain means")
        like = weight.shape, weight.dtype, weight.device
        for tensor in (weight, bias, norm.running_mean, norm.running_var):
            if not tensor.is_contiguous() or (tensor.shape, tensor.dtype, tensor.device) != like:
                raise _Unfit("a batch norm whose tensors are scattered in memory, or of several kinds")
        if (count.shape, count.dtype, count.device) != ((), torch.int64, weight.device):
            raise _Unfit("a batch norm that counts in another way")
        self.norms.append(norm)
        self.weights.extend((weight, bias))
        self.means.append(norm.running_mean)
        self.variances.append(norm.running_var)
        self.counts.append(count)

    def _add_convolution(self, convolution: nn.Module, kernel: int) -> None:
        self._look_at(convolution, of=nn.Conv2d)
        assert isinstance(convolution, nn.Conv2d)
        geometry = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        if (
            convolution.weight is None
            or convolution.weight.shape[2:] != (kernel, kernel)
            or geometry != ((1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
            or convolution.padding_mode != "zeros"
            or convolution.bias is not None
        ):
            raise _Unfit("a convolution of another shape")
        self.weights.append(convolution.weight)

    def _take_as_one(self, block: nn.Module) -> None:
        """What all the modules and tensors have in common."""
        layers = [layer for layer in block.children() if isinstance(layer, DenseLayer)]
        if not layers:
            raise _Unfit("no layers")
        first = self.norms[0]
        self.training, self.eps, self.dropout = block.training, first.eps, layers[0].dropout
        if any((layer.dropout, layer.training) != (self.dropout, self.training) for layer in layers):
            raise _Unfit("layers that differ in dropout or mode")
        if any((norm.training, norm.eps) != (self.training, self.eps) for norm in self.norms):
            raise _Unfit("batch norms of several modes")
        self.momentum = first.momentum if len({norm.momentum for norm in self.norms}) == 1 else None
        tensors = [*self.weights, *self.means, *self.variances]
        kinds = {(type(tensor), tensor.dtype, tensor.device) for tensor in tensors}
        self.dtype, self.device = tensors[0].dtype, tensors[0].device
        if not kinds <= {(kind, self.dtype, self.device) for kind in (Tensor, nn.Parameter)}:
            raise _Unfit("tensors of several kinds")
        trainable = {weight.requires_grad for weight in self.weights}
        self.any_trainable, self.all_trainable = True in trainable, trainable == {True}

    def _write_down(self, block: nn.Module, after: nn.Module) -> None:
        self._after = after
        self._modules.remove(block)  # `_KNOWN` is to forget it when nobody else remembers it
        modules = (block, *self._modules)
        self._attributes = [module.__dict__ for module in modules]
        self._attributes_then = [dict(attributes) for attributes in self._attributes]
        self._classes_then = [type(module) for module in self._modules]
        self._hooks = [hooks for module in modules for hooks in _hooks_of(module)]
        self._registers = [
            register for module in modules for register in (module._modules, module._parameters, module._buffers)
        ]
        self._registered_then = self._registered()
        self._tensors = [*self.weights, *self.means, *self.variances, *self.counts]
        self._facts_then = self._facts()
        self._shapes: dict[tuple[Any, ...], BlockShape] = {}

    def _registered(self) -> list[Any]:
        return [value for register in self._registers for value in register.values()]

    def _facts(self) -> list[tuple[Any, ...]]:
        return [(each.shape, each.stride(), each.dtype, each.device, each.requires_grad) for each in self._tensors]

    def are_unchanged(self, after: nn.Module) -> bool:
        """Whether every module's attributes, hooks, submodules and tensors, and what tensors are like, are still what
        they were."""
        registered = self._registered()
        return (
            after is self._after
            and not any(self._hooks)
            and len(registered) == len(self._registered_then)
            and all(map(operator.is_, registered, self._registered_then))
            and [type(module) for module in self._modules] == self._classes_then
            and self._facts() == self._facts_then
            and self._have_attributes_of_then()
        )

    def _have_attributes_of_then(self) -> bool:
        try:
            return self._attributes == self._attributes_then
        except Exception:  # somebody's attribute that cannot be compared with what it was
            return False

    def shape(self, reads: Sequence[tuple[int, ...]], channels: int, end: str) -> BlockShape:
        """The block in numbers, for an input of so many channels; `_Unfit` where weights do not fit together."""
        key = tuple(reads), channels, end
        if key not in self._shapes:
            self._shapes[key] = self._fitting_shape(*key)
        return self._shapes[key]

    def _fitting_shape(self, reads: tuple[tuple[int, ...], ...], channels: int, end: str) -> BlockShape:
        convolutions = (weight for weight in self.weights if weight.dim() == 4)
        sources, widths = [channels], []
        for has_bottleneck in self.has_bottleneck:
            widths.append(len(next(convolutions)) if has_bottleneck else 0)
            sources.append(len(next(convolutions)))
        if len(reads) != len(sources) or any(not set(read) <= set(range(own + 1)) for own, read in enumerate(reads)):
            raise _Unfit("connections of other layers")
        dropout = self.dropout if self.training else 0.0
        shape = BlockShape(tuple(sources), reads, tuple(widths), end, dropout, self.eps)
        fitting: list[tuple[int, ...]] = []
        for layer, (width, made) in enumerate(zip(widths, sources[1:], strict=True)):
            seen = shape.seen(layer)
            if width:
                fitting += [(seen,), (seen,), (width, seen, 1, 1), (width,), (width,), (made, width, 3, 3)]
            else:
                fitting += [(seen,), (seen,), (made, seen, 3, 3)]
        fitting += [(shape.seen(shape.layers),)] * 2
        if [tuple(weight.shape) for weight in self.weights] != fitting:
            raise _Unfit("weights that do not fit together")
        return shape


# Of each block what it was found to be with its own parameters. Others, as `functional_call` lends them, are not kept:
# whole graphs may hang on them.
_KNOWN: "WeakKeyDictionary[nn.Module, _Parts]" = WeakKeyDictionary()


def _parts(block: nn.Module, after: nn.Module) -> _Parts:
    known = _KNOWN.get(block)
    if known is None or type(block) is not DenseBlock or not known.are_unchanged(after):
        known = _Parts(block, after)
        if all(isinstance(weight, nn.Parameter) for weight in known.weights):
            _KNOWN[block] = known
    return known


def run_block(
    kernels: Kernels, block: DenseBlock, after: nn.Module, end: str, x: Tensor, recompute: bool = False
) -> Tensor | None:
    """What a block's layers and max(norm, 0) of the consumer after them make of x; None where only the modules
    themselves are right.

    after: the batch norm that follows, or the transition. end: as in `BlockShape`.
    recompute: the outputs of the bottlenecks are not kept, but worked out again.
    """
    try:
        parts = _parts(block, after)
        _check(parts, kernels, x)
        if end == "pool" and min(x.shape[2:]) < 2:
            raise _Unfit("maps too small to pool")
        shape = parts.shape(block.reads, x.shape[1], end)
    except _Unfit:
        return None
    if not parts.training:
        return kernels.infer(shape, x, parts.weights, parts.means, parts.variances)
    masks = list(drawn_masks(shape, x, parts.weights)) if shape.dropout else []
    running = None
    if kernels.updates and parts.momentum is not None:
        running = Running(parts.means, parts.variances, parts.counts, parts.momentum)
    output, statistics = DenseBlockFunction.apply(kernels, shape, recompute, running, masks, x, *parts.weights)
    if running is None:
        _update_running(shape, parts, statistics, x.numel() // x.shape[1])
    return output


def fallback_reason(kernels: Kernels, block: DenseBlock, after: nn.Module, x: Tensor) -> str:
    """Why `run_block` leaves a block to its modules; empty where it does not."""
    try:
        parts = _parts(block, after)
        _check(parts, kernels, x)
        parts.shape(block.reads, x.shape[1], "relu")
    except _Unfit as reason:
        return str(reason)
    return ""


def is_touched(module: nn.Module) -> bool:
    """Whether something looks at what goes in or out of this module, or stands in its place."""
    return any(_hooks_of(module)) or "forward" in module.__dict__ or module._compiled_call_impl is not None


def _hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


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
    if type(x) not in (Tensor, nn.Parameter) or parts.dtype != of_weights or parts.device != x.device:
        raise _Unfit("tensors of several kinds")
    if torch.is_grad_enabled():
        if parts.training:
            if not parts.all_trainable:
                raise _Unfit("frozen weights")
        elif x.requires_grad or parts.any_trainable:
            raise _Unfit("gradients in evaluation mode")
    if parts.training and x.numel() == x.shape[1]:
        raise _Unfit("one value a channel")
    if reason := kernels.unsupported_reason(x, parts.weights):
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


@torch.no_grad()
def _update_running(shape: BlockShape, parts: _Parts, statistics: Tensor, values: int) -> None:
    """As each norm would by itself: towards the batch's mean and unbiased variance, once a step."""
    order, counts = _order_of_norms(shape, statistics.device)
    seen = statistics[:, order].to(parts.dtype)
    seen[1] *= values / (values - 1)
    seen_means, seen_variances = seen[0].split(counts), seen[1].split(counts)
    momenta = [norm.momentum for norm in parts.norms]
    for momentum in set(momenta):
        assert momentum is not None
        chosen = [index for index, own in enumerate(momenta) if own == momentum]
        torch._foreach_lerp_([parts.means[i] for i in chosen], [seen_means[i] for i in chosen], momentum)
        torch._foreach_lerp_([parts.variances[i] for i in chosen], [seen_variances[i] for i in chosen], momentum)
    torch._foreach_add_(parts.counts, 1)


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
