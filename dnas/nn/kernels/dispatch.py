"""Decide whether kernels can run a dense block, or whether its modules must.

`run_block` inspects the modules of a block at every call. It runs kernels if the result is the same function with equal
outputs, gradients, running statistics and random numbers. In all other cases, such as hooks, frozen weights and
transformations, the modules run, and `fallback_reason` returns the reason.
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
    """The kernels do not support a block; the message is the reason."""


class _Parts:
    """The tensors of a block and the module after it, which kernels can run.

    Inspecting all modules takes longer than running a small block. Their state is therefore recorded, and
    `are_unchanged` compares it with the current state.

    norms, weights: Modules and parameters in the order of execution.
    means, variances, counts: Running statistics of each norm.
    """

    def __init__(self, block: nn.Module, after: nn.Module) -> None:
        self.norms: list[nn.BatchNorm2d] = []
        self.weights: list[Tensor] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.has_bottleneck: list[bool] = []
        self._modules: list[nn.Module] = []
        self._inspect(block, expected=DenseBlock)
        for layer in block.children():
            self._add_layer(layer)
        if isinstance(after, nn.BatchNorm2d):
            self._add_norm(after)
        else:
            self._inspect(after, expected=Transition)
            assert isinstance(after, Transition)
            self._add_norm(after.norm)
            for module in (after.relu, after.conv, after.pool):
                self._inspect(module)
        self._find_common_properties(block)
        self._record(block, after)

    def _inspect(self, module: nn.Module, expected: type[nn.Module] | None = None) -> None:
        if is_touched(module):
            raise _Unfit("hooks, or a replaced forward method")
        if expected is not None and type(module) is not expected:
            raise _Unfit(f"a {type(module).__name__} instead of a {expected.__name__}")
        self._modules.append(module)

    def _add_layer(self, layer: nn.Module) -> None:
        self._inspect(layer, expected=DenseLayer)
        assert isinstance(layer, DenseLayer)
        modules = list(layer.children())
        if len(modules) != (6 if layer.bottleneck else 3):
            raise _Unfit("a layer with other modules")
        self.has_bottleneck.append(len(modules) == 6)
        for norm, relu, convolution in zip(modules[::3], modules[1::3], modules[2::3], strict=True):
            self._add_norm(norm)
            self._inspect(relu, expected=nn.ReLU)
            self._add_convolution(convolution, kernel=3 if convolution is modules[-1] else 1)

    def _add_norm(self, norm: nn.Module) -> None:
        self._inspect(norm, expected=nn.BatchNorm2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias, count = norm.weight, norm.bias, norm.num_batches_tracked
        if weight is None or bias is None or norm.running_mean is None or norm.running_var is None or count is None:
            raise _Unfit("a batch norm without weights or running statistics")
        if not norm.track_running_stats or not isinstance(norm.momentum, float):
            raise _Unfit("a batch norm whose running statistics are frozen or cumulative averages")
        expected = weight.shape, weight.dtype, weight.device
        for tensor in (weight, bias, norm.running_mean, norm.running_var):
            if not tensor.is_contiguous() or (tensor.shape, tensor.dtype, tensor.device) != expected:
                raise _Unfit("a batch norm whose tensors are not contiguous or differ in type")
        if (count.shape, count.dtype, count.device) != ((), torch.int64, weight.device):
            raise _Unfit("a batch norm with another type of step counter")
        self.norms.append(norm)
        self.weights.extend((weight, bias))
        self.means.append(norm.running_mean)
        self.variances.append(norm.running_var)
        self.counts.append(count)

    def _add_convolution(self, convolution: nn.Module, kernel: int) -> None:
        self._inspect(convolution, expected=nn.Conv2d)
        assert isinstance(convolution, nn.Conv2d)
        geometry = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        if (
            convolution.weight is None
            or convolution.weight.shape[2:] != (kernel, kernel)
            or geometry != ((1, 1), (kernel // 2, kernel // 2), (1, 1), 1)
            or convolution.padding_mode != "zeros"
            or convolution.bias is not None
        ):
            raise _Unfit("a convolution with another geometry")
        self.weights.append(convolution.weight)

    def _find_common_properties(self, block: nn.Module) -> None:
        """Set the properties that all modules and tensors must share."""
        layers = [layer for layer in block.children() if isinstance(layer, DenseLayer)]
        if not layers:
            raise _Unfit("no layers")
        first = self.norms[0]
        self.training, self.eps, self.dropout = block.training, first.eps, layers[0].dropout
        if any((layer.dropout, layer.training) != (self.dropout, self.training) for layer in layers):
            raise _Unfit("layers that differ in dropout or mode")
        if any((norm.training, norm.eps) != (self.training, self.eps) for norm in self.norms):
            raise _Unfit("batch norms that differ in mode or eps")
        self.momentum = first.momentum if len({norm.momentum for norm in self.norms}) == 1 else None
        tensors = [*self.weights, *self.means, *self.variances]
        kinds = {(type(tensor), tensor.dtype, tensor.device) for tensor in tensors}
        self.dtype, self.device = tensors[0].dtype, tensors[0].device
        if not kinds <= {(kind, self.dtype, self.device) for kind in (Tensor, nn.Parameter)}:
            raise _Unfit("tensors of several kinds")
        trainable = {weight.requires_grad for weight in self.weights}
        self.any_trainable, self.all_trainable = True in trainable, trainable == {True}

    def _record(self, block: nn.Module, after: nn.Module) -> None:
        """Record the state of all modules and tensors for `are_unchanged`."""
        self._after = after
        self._modules.remove(block)  # a reference would keep the block alive in `_PARTS_OF_BLOCKS`
        modules = (block, *self._modules)
        self._attributes = [module.__dict__ for module in modules]
        self._recorded_attributes = [dict(attributes) for attributes in self._attributes]
        self._recorded_classes = [type(module) for module in self._modules]
        self._hooks = [hooks for module in modules for hooks in _hooks_of(module)]
        self._registers = [
            register for module in modules for register in (module._modules, module._parameters, module._buffers)
        ]
        self._recorded_registered = self._registered()
        self._tensors = [*self.weights, *self.means, *self.variances, *self.counts]
        self._recorded_facts = self._facts()
        self._shapes: dict[tuple[Any, ...], BlockShape] = {}

    def _registered(self) -> list[Any]:
        return [value for register in self._registers for value in register.values()]

    def _facts(self) -> list[tuple[Any, ...]]:
        return [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in self._tensors]

    def are_unchanged(self, after: nn.Module) -> bool:
        """Return whether attributes, hooks, submodules and tensors of every module equal the recorded ones."""
        registered = self._registered()
        return (
            after is self._after
            and not any(self._hooks)
            and len(registered) == len(self._recorded_registered)
            and all(map(operator.is_, registered, self._recorded_registered))
            and [type(module) for module in self._modules] == self._recorded_classes
            and self._facts() == self._recorded_facts
            and self._attributes_are_unchanged()
        )

    def _attributes_are_unchanged(self) -> bool:
        try:
            return self._attributes == self._recorded_attributes
        except Exception:  # a user's attribute that does not support comparison
            return False

    def shape(self, reads: Sequence[tuple[int, ...]], channels: int, end: str) -> BlockShape:
        """Return the shape of the block for an input of `channels`. Raises `_Unfit` if the weights do not match it."""
        key = tuple(reads), channels, end
        if key not in self._shapes:
            self._shapes[key] = self._make_shape(*key)
        return self._shapes[key]

    def _make_shape(self, reads: tuple[tuple[int, ...], ...], channels: int, end: str) -> BlockShape:
        convolutions = (weight for weight in self.weights if weight.dim() == 4)
        sources, widths = [channels], []
        for has_bottleneck in self.has_bottleneck:
            widths.append(len(next(convolutions)) if has_bottleneck else 0)
            sources.append(len(next(convolutions)))
        if len(reads) != len(sources) or any(not set(read) <= set(range(i + 1)) for i, read in enumerate(reads)):
            raise _Unfit("connections that do not match the layers")
        dropout = self.dropout if self.training else 0.0
        shape = BlockShape(tuple(sources), reads, tuple(widths), end, dropout, self.eps)
        expected: list[tuple[int, ...]] = []
        for layer, (width, outputs) in enumerate(zip(widths, sources[1:], strict=True)):
            seen = shape.seen(layer)
            if width:
                expected += [(seen,), (seen,), (width, seen, 1, 1), (width,), (width,), (outputs, width, 3, 3)]
            else:
                expected += [(seen,), (seen,), (outputs, seen, 3, 3)]
        expected += [(shape.seen(shape.layers),)] * 2
        if [tuple(weight.shape) for weight in self.weights] != expected:
            raise _Unfit("weights whose shapes do not match")
        return shape


# Parts of each block that was run with its own parameters. Tensors that `functional_call` passes are not kept, because
# they may refer to large graphs.
_PARTS_OF_BLOCKS: "WeakKeyDictionary[nn.Module, _Parts]" = WeakKeyDictionary()


def _parts(block: nn.Module, after: nn.Module) -> _Parts:
    parts = _PARTS_OF_BLOCKS.get(block)
    if parts is None or type(block) is not DenseBlock or not parts.are_unchanged(after):
        parts = _Parts(block, after)
        if all(isinstance(weight, nn.Parameter) for weight in parts.weights):
            _PARTS_OF_BLOCKS[block] = parts
    return parts


def run_block(
    kernels: Kernels, block: DenseBlock, after: nn.Module, end: str, x: Tensor, recompute: bool = False
) -> Tensor | None:
    """Run the layers of a block, and norm and ReLU of the module after it.

    Args:
        kernels: Kernels that run the block.
        block: The dense block.
        after: The batch norm or the transition that follows.
        end: See `BlockShape`.
        x: Input of the block [N, C, H, W].
        recompute: Recompute the outputs of the bottlenecks in the backward pass instead of keeping them.

    Returns:
        The output as `end` defines it, or None if the modules must run.
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
    """Return why `run_block` leaves a block to its modules; empty if the kernels run it."""
    try:
        parts = _parts(block, after)
        _check(parts, kernels, x)
        parts.shape(block.reads, x.shape[1], "relu")
    except _Unfit as reason:
        return str(reason)
    return ""


def is_touched(module: nn.Module) -> bool:
    """Return whether hooks observe this module, or its forward method is replaced or compiled."""
    return any(_hooks_of(module)) or "forward" in module.__dict__ or module._compiled_call_impl is not None


def _hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def _check(parts: _Parts, kernels: Kernels, x: Tensor) -> None:
    """Raise `_Unfit` if the modules must run in this context. They raise the error, or return another result."""
    if is_traced_or_transformed() or nn.modules.module._has_any_global_hook():
        raise _Unfit("a trace, a transformation or global hooks")
    weight_dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        if not kernels.mixed or x.dtype != torch.get_autocast_dtype(x.device.type):
            raise _Unfit("autocast")
        weight_dtype = torch.float32
    if x.dim() != 4 or not x.numel():
        raise _Unfit("an empty input, or one without four dimensions")
    if type(x) not in (Tensor, nn.Parameter) or parts.dtype != weight_dtype or parts.device != x.device:
        raise _Unfit("tensors of several kinds")
    if torch.is_grad_enabled():
        if parts.training:
            if not parts.all_trainable:
                raise _Unfit("frozen weights")
        elif x.requires_grad or parts.any_trainable:
            raise _Unfit("gradients in evaluation mode")
    if parts.training and x.numel() == x.shape[1]:
        raise _Unfit("a single value per channel")
    if reason := kernels.unsupported_reason(x, parts.weights):
        raise _Unfit(reason)


def is_traced_or_transformed() -> bool:
    """Return whether torch.compile, export, a trace, torch.func or forward-mode differentiation is active."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def drawn_masks(shape: BlockShape, x: Tensor, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Draw the dropout masks that the modules would draw from torch's generator, in the order of execution.

    Numbers are drawn in the order of the maps in memory, so each mask has the layout that the maps would have.
    """
    layouts = [layout_of(x)]
    for layer, layer_weights in enumerate(shape.weights_of(weights)[:-1]):
        read = {layouts[source] for source in shape.reads[layer]}
        layout = read.pop() if len(read) == 1 else torch.contiguous_format  # as torch.cat does
        for weight in layer_weights[2::3]:
            if weight.shape[1] == 1:
                layout = torch.contiguous_format  # a norm's output of a single map, for any strides
            if layout_of(weight) == torch.channels_last:
                layout = torch.channels_last
            size = x.shape[0], weight.shape[0], *x.shape[2:]
            drawn = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
            yield drawn.bernoulli_(1 - shape.dropout).bool()
        layouts.append(layout)


@torch.no_grad()
def _update_running(shape: BlockShape, parts: _Parts, statistics: Tensor, values: int) -> None:
    """Update running statistics once per step, as each norm would, by the mean and unbiased variance of the batch."""
    order, counts = _order_of_norms(shape, statistics.device)
    seen = statistics[:, order].to(parts.dtype)
    seen[1] *= values / (values - 1)
    seen_means, seen_variances = seen[0].split(counts), seen[1].split(counts)
    momenta = [norm.momentum for norm in parts.norms]
    for momentum in set(momenta):
        assert momentum is not None
        chosen = [index for index, other in enumerate(momenta) if other == momentum]
        torch._foreach_lerp_([parts.means[i] for i in chosen], [seen_means[i] for i in chosen], momentum)
        torch._foreach_lerp_([parts.variances[i] for i in chosen], [seen_variances[i] for i in chosen], momentum)
    torch._foreach_add_(parts.counts, 1)


@lru_cache(maxsize=256)
def _order_of_norms(shape: BlockShape, device: torch.device) -> tuple[Tensor, list[int]]:
    """Return the channels that each norm reads, concatenated in the order of execution, and their number per norm."""
    seen: list[list[int]] = []
    for consumer, read in enumerate(shape.reads):
        seen.append([channel for source in read for channel in range(*shape.starts[source : source + 2])])
        if consumer < shape.layers and shape.widths[consumer]:
            seen.append(list(range(*shape.inner[consumer : consumer + 2])))
    order = torch.tensor([channel for channels in seen for channel in channels], device=device)
    return order, [len(channels) for channels in seen]
