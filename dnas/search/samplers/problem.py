"""What every sampler is given, and what it gives back: plain values, so that a proposal is a function of them alone."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dnas.space.space import Choice


class Exhausted(Exception):
    """No network inside the limits is left to try."""


@dataclass(frozen=True)
class Told:
    """One earlier trial as a sampler sees it.

    values: one for each objective, minimised; of a trial that runs or was paused, the last that is known of it. A run
    that diverged or timed out has the worst. None where nothing is known: not one epoch yet, infeasible, or a defect
    of the code. What a trial has at `epoch` may be compared with others at that epoch.
    """

    number: int
    params: Mapping[str, Any]  # every choice of the space, as the sampler holds it
    state: str  # running, paused, complete, stopped, infeasible, failed
    values: tuple[float, ...] | None
    epoch: int  # after which `values` was measured
    epochs: int  # to be trained in all
    curve: Mapping[int, float] = field(default_factory=dict)  # the first objective after each epoch that was reported


@dataclass(frozen=True)
class Problem:
    """What may be proposed.

    accept: the known objectives of a point that is inside every limit and untried (one value an objective, None where
    only training can tell), else None.
    draw: a uniform draw among the points that `accept` takes; raises `Exhausted`.
    """

    choices: tuple[Choice, ...]
    objectives: tuple[str, ...]
    accept: Callable[[Mapping[str, Any]], tuple[float | None, ...] | None]
    draw: Callable[[random.Random], dict[str, Any]]


class Sampler(Protocol):
    """Proposes the params of the next trial, which `problem.accept` takes: a function of its arguments alone."""

    def __call__(self, problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]: ...
