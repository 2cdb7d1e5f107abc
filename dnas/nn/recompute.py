"""Recompute activations in the backward pass instead of keeping them.

The arithmetic and its order are unchanged, so outputs, gradients and statistics are equal bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, list[Tensor]], Tensor]  # applies a module to the concatenation of its inputs


def plain(module: nn.Module, maps: list[Tensor]) -> Tensor:
    """Apply a module to the concatenation of `maps`."""
    return module(concatenated(maps))


def recomputed(module: nn.Module, maps: list[Tensor], finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return `finish(module(concatenation of maps))`, for which autograd keeps only `maps`."""

    def run(maps: list[Tensor]) -> Tensor:
        output = plain(module, maps)
        return output if finish is None else finish(output)

    return _TwiceRun(run, module, maps)()


class _TwiceRun:
    """A function that counts its saved tensors and recreates them by a second run in the backward pass.

    The graph is that of the first run, so gradients are summed in the same order as without recomputation.
    torch.utils.checkpoint is not used because norms would update their statistics twice (pytorch#96136), and because it
    imports the compiler.
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
        self._recomputed: dict[int, Tensor] = {}

    def __call__(self) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(self._number, self._unpack):
            return self._run(self._maps)

    def _number(self, _tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _unpack(self, number: int) -> Tensor:
        if number not in self._recomputed:
            self._run_again()
        return self._recomputed.pop(number)

    def _run_again(self) -> None:
        self._recomputed = {}
        maps = [x.detach().requires_grad_(x.requires_grad) for x in self._maps]
        with (
            suppress(_Complete),
            torch.enable_grad(),
            self._autocast,
            _random_state(self._device, self._random),
            _frozen_statistics(self._norms),
            torch.autograd.graph.saved_tensors_hooks(self._keep, _never),
        ):
            self._run(maps)

    def _keep(self, tensor: Tensor) -> None:
        self._recomputed[len(self._recomputed)] = tensor.detach()
        if len(self._recomputed) == self._count:
            raise _Complete  # only the last convolution is left, whose output is not needed


class _Complete(Exception):
    """All saved tensors have been recomputed."""


def _never(_packed: object) -> Tensor:
    raise AssertionError("the second run has no backward pass")


def _get_random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def _random_state(device: torch.device, state: Tensor | None) -> Iterator[None]:
    """Set the random stream to `state` inside the context, and restore it afterwards. None does nothing."""
    if state is None:
        yield
        return
    current = _get_random_state(device)
    _set_random_state(device, state)
    try:
        yield
    finally:
        _set_random_state(device, current)


@contextmanager
def _frozen_statistics(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Let norms update temporary statistics, because their own already include this batch.

    Norms without running statistics would save fewer tensors than in the first run.
    """
    originals = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, originals, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, torch.zeros_like(buffer))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def concatenated(maps: list[Tensor]) -> Tensor:
    """Concatenate maps along the channels; a single tensor is not copied."""
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
