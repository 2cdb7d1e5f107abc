"""Inputs and outputs of every sampler, as plain values on which alone a proposal depends."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dnas.space.space import Choice

if TYPE_CHECKING:
    import numpy as np


class Exhausted(Exception):
    """No untried network inside the limits is left."""


@dataclass(frozen=True)
class Told:
    """An earlier trial, in the form that samplers receive.

    values: one value per objective, minimised. A running or paused trial has its last known values, and a run that
        diverged or timed out has the worst ones. None if nothing is known: no finished epoch, infeasible, or an error
        in the code. Values may be compared with those of other trials at the same `epoch`.
    """

    number: int
    params: Mapping[str, Any]  # every choice of the space, in the form used by the sampler
    state: str  # running, paused, complete, stopped, infeasible, failed
    values: tuple[float, ...] | None
    epoch: int  # epoch after which `values` was measured
    epochs: int  # planned number of epochs
    curve: Mapping[int, float] = field(default_factory=dict)  # first objective after each reported epoch


@dataclass(frozen=True)
class Problem:
    """The points that may be proposed.

    accept: returns the objectives of a point that is inside every limit and untried (one value per objective, None for
        those that must be measured), and None for any other point.
    draw: draws uniformly from the accepted points; raises `Exhausted` if there are none.
    """

    choices: tuple[Choice, ...]
    objectives: tuple[str, ...]
    accept: Callable[[Mapping[str, Any]], tuple[float | None, ...] | None]
    draw: Callable[[random.Random], dict[str, Any]]


class Sampler(Protocol):
    """Function that proposes the params of the next trial, an accepted point, from its arguments alone."""

    def __call__(self, problem: Problem, told: Sequence[Told], rng: "np.random.Generator") -> dict[str, Any]: ...
