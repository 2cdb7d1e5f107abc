"""Activations that are worked out again in the backward pass, and not kept.

It is the same arithmetic in the same order, so that every bit of the outputs, gradients and statistics is the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, list[Tensor]], Tensor]  # a module on the concatenation of what it reads


def plain(module: nn.Module, maps: list[Tensor]) -> Tensor:
    return module(concatenated(maps))


def recomputed(module: nn.Module, maps: list[Tensor], then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """`then(module(concatenation of maps))`, of which autograd keeps `maps` alone."""

    def run(maps: list[Tensor]) -> Tensor:
        output = plain(module, maps)
        return output if then is None else then(output)

    return _TwiceRun(run, module, maps)()


class _TwiceRun:
    """A function whose saved tensors are only counted, and made by a second run when the backward pass asks for one.

    The graph is the first run's, so that gradients are added up in the order in which they are without this. Not
    torch.utils.checkpoint: that lets norms update their statistics twice (pytorch#96136), and imports the compiler.
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
        self._made: dict[int, Tensor] = {}

    def __call__(self) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(self._number, self._give):
            return self._run(self._maps)

    def _number(self, _tensor: Tensor) -> int:
        self._count += 1
        return self._count - 1

    def _give(self, number: int) -> Tensor:
        if number not in self._made:
            self._run_again()
        return self._made.pop(number)

    def _run_again(self) -> None:
        self._made = {}
        maps = [x.detach().requires_grad_(x.requires_grad) for x in self._maps]
        with (
            suppress(_Enough),
            torch.enable_grad(),
            self._autocast,
            _random_state(self._device, self._random),
            _statistics_kept(self._norms),
            torch.autograd.graph.saved_tensors_hooks(self._keep, _never),
        ):
            self._run(maps)

    def _keep(self, tensor: Tensor) -> None:
        self._made[len(self._made)] = tensor.detach()
        if len(self._made) == self._count:
            raise _Enough  # what follows is the last convolution, whose output is known


class _Enough(Exception):
    """All that was asked for is there."""


def _never(_packed: object) -> Tensor:
    raise AssertionError("nobody goes backward through the second run")


def _get_random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def _random_state(device: torch.device, state: Tensor | None) -> Iterator[None]:
    """Draws again what was drawn from `state` on; the stream is then where it was. None: nothing is drawn."""
    if state is None:
        yield
        return
    now = _get_random_state(device)
    _set_random_state(device, state)
    try:
        yield
    finally:
        _set_random_state(device, now)


@contextmanager
def _statistics_kept(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Norms update statistics that are thrown away: their own have counted this batch already. (Norms without any would
    save fewer tensors than the first time.)"""
    own = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, torch.zeros_like(buffer))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def concatenated(maps: list[Tensor]) -> Tensor:
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
