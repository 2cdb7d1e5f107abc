"""Proposals of networks, each a function of the space, the study's seed, the trial's number and the earlier results.

A resumed study therefore makes the same proposals as an uninterrupted one, and no sampler state is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from dnas.arch import Spec
from dnas.strategy.samplers import SAMPLERS, check_sampler, make_sampler
from dnas.strategy.samplers.feasible import Region
from dnas.strategy.samplers.problem import Exhausted, Problem, Sampler, Told
from dnas.strategy.state import SearchState
from dnas.study.config import DEFAULT_SAMPLER

__all__ = [
    "DEFAULT_SAMPLER",
    "SAMPLERS",
    "Exhausted",
    "Problem",
    "Proposal",
    "Region",
    "Told",
    "check_sampler",
    "is_control",
    "make_sampler",
    "propose",
]

_ARM_STREAM = 1  # number of the control arm's separate random stream


@dataclass(frozen=True)
class Proposal:
    arm: str  # first, sampler, control
    params: dict[str, Any]  # every choice of the space, in the form used by the sampler
    spec: Spec


def is_control(number: int, share: float) -> bool:
    """Return True if trial `number` belongs to the control arm, an evenly spread fraction `share` of all trials."""
    return int((number + 1) * share + 1e-9) > int(number * share + 1e-9)


def propose(region: Region, state: SearchState, sampler: Sampler, control: float, seed: int) -> Proposal:
    """Propose the next network, which is untried and inside all limits. Raises `Exhausted` if there is none."""
    number, space = len(state.trials), region.space
    region.memory = float("inf") if state.memory is None else state.memory
    if number < len(space.first) and region.accept(space.first[number]) is not None:
        return Proposal("first", dict(space.first[number]), region.spec(space.first[number]))
    problem = Problem(space.choices, region.objectives, region.accept, region.drawer())
    arm = "control" if is_control(number, control) else "sampler"
    if arm == "control":
        params = make_sampler("random")(problem, [], np.random.default_rng([seed, number, _ARM_STREAM]))
    else:
        with _one_thread():
            params = sampler(problem, state.told(), np.random.default_rng([seed, number]))
    assert region.accept(params) is not None, "the sampler proposed a network that is not accepted"
    return Proposal(arm, params, region.spec(params))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run linear algebra in one thread.

    On a busy machine several threads mostly wait for each other: a proposal took twelve times as long. In addition, the
    last bits of a sum must not depend on the number of cores of the driver's machine.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # slow, as it examines all loaded libraries
