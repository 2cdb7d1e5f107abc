"""Proposals: optuna's TPE, whose candidates are filtered by the cost model, and by what was tried, before it chooses.

The proposal of trial n is a function of the space, the study's seed, n, and what the sampler was told before: so a
study that was interrupted proposes what it would have proposed (with one worker), and nothing of optuna's needs saving.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from dnas.arch import DenseNetSpec
from dnas.space import Space
from dnas.study import TrialRecord

STARTUP_TRIALS = 10
CANDIDATES = 64  # twice and more optuna's 24: many are over a limit, or were tried
DRAWS = 50_000  # random draws before a space is called exhausted; about a second
FINITE = 50_000  # a space of at most so many points is known to be exhausted by looking at each
WORST = {"val_error": 1.0, "val_loss": 100.0}


class Exhausted(Exception):
    """No network inside the limits is left to try."""


@dataclass(frozen=True)
class Proposal:
    arm: str
    params: dict[str, Any]  # every choice of the space, as the sampler holds it
    spec: DenseNetSpec


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space in optuna's terms. Choices that a `when` may shut out are among them: the sampler always sees all."""
    found: dict[str, BaseDistribution] = {}
    for choice in space.choices:
        if choice.kind == "int":
            found[choice.name] = IntDistribution(int(choice.low), int(choice.high), step=int(choice.step or 1))
        elif choice.kind == "float":
            found[choice.name] = FloatDistribution(choice.low, choice.high, step=choice.step)
        else:
            found[choice.name] = CategoricalDistribution([choice.encode(option) for option in choice.options])
    return found


def distributions_json(space: Space) -> dict[str, str]:
    return {name: distribution_to_json(distribution) for name, distribution in distributions(space).items()}


def propose(space: Space, seed: int, number: int, history: Sequence[FrozenTrial], tried: set[str]) -> Proposal:
    """The next network: inside every limit, and not among the digests `tried`. Raises `Exhausted`.

    history: what the sampler is told, from `told`, one a record, in the order of their numbers.
    """
    accept = _Acceptance(space, tried)
    if number < len(space.first):
        spec = accept(space.first[number])
        if spec is not None:
            return Proposal("first", dict(space.first[number]), spec)
    sampler = FilteredTPE(distributions(space), seed, number, accept, _random_draw(space, accept))
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the terminal is the search's own
    study = optuna.create_study(storage=None, sampler=sampler, direction="minimize")
    study.add_trials(history)
    trial = study.ask(fixed_distributions=distributions(space))
    spec = accept(trial.params)
    assert spec is not None, "the sampler proposed what it was to filter"
    return Proposal("sampler", dict(trial.params), spec)


def told(record: TrialRecord, space: Space, objective: str, reports: dict[int, float]) -> FrozenTrial:
    """What the sampler is told of a record: the table of states in the design notes.

    reports: the objective after each epoch.
    """
    value: float | None = None
    match record.state:
        case "running":
            state = TrialState.RUNNING
        case "complete":
            state, value = TrialState.COMPLETE, record.objectives[objective]
        case "stopped":
            state = TrialState.PRUNED
        case "failed" if record.reason and record.reason.startswith("diverged"):
            state, value = TrialState.COMPLETE, WORST[objective]
        case "infeasible":
            state, reports = TrialState.PRUNED, {}  # without a report: behind every other
        case _:
            state = TrialState.FAIL  # a defect of the code says nothing of the network
    return create_trial(
        state=state,
        value=value,
        params=record.params,
        distributions=distributions(space),
        intermediate_values=reports if state == TrialState.PRUNED else {},
    )


class _Acceptance:
    """Whether a point is inside every limit and untried; remembers what it priced."""

    def __init__(self, space: Space, tried: set[str]) -> None:
        self._space, self._tried = space, tried
        self._known: dict[tuple[Any, ...], DenseNetSpec | None] = {}

    def __call__(self, params: Mapping[str, Any]) -> DenseNetSpec | None:
        key = tuple(params[choice.name] for choice in self._space.choices)
        if key not in self._known:
            spec = self._space.feasible(params)
            self._known[key] = spec if spec is not None and spec.digest not in self._tried else None
        return self._known[key]


def _random_draw(space: Space, accept: _Acceptance) -> Callable[[random.Random], dict[str, Any]]:
    def draw(rng: random.Random) -> dict[str, Any]:
        for _ in range(DRAWS):
            point = space.random_point(rng)
            if accept(point) is not None:
                return point
        counts = [len(choice.values() or []) for choice in space.choices]
        if all(counts) and math.prod(counts) <= FINITE:
            left = [point for point in space.points() if accept(point) is not None]
            if left:
                return rng.choice(left)
        raise Exhausted

    return draw


class FilteredTPE(TPESampler):
    """TPE for one proposal. Candidates that `accept` turns down cannot win the acquisition; where all are turned down,
    and before `STARTUP_TRIALS` results are in, the draw is random among those that it takes."""

    def __init__(
        self,
        space: dict[str, BaseDistribution],
        seed: int,
        number: int,
        accept: Callable[[dict[str, Any]], DenseNetSpec | None],
        draw: Callable[[random.Random], dict[str, Any]],
    ) -> None:
        # Every argument explicitly: the defaults changed in optuna 5.0.
        words = np.random.SeedSequence([seed, number]).generate_state(2)
        super().__init__(
            n_startup_trials=STARTUP_TRIALS,
            n_ei_candidates=CANDIDATES,
            multivariate=True,
            group=False,
            constant_liar=True,
            seed=int(words[0]),
        )
        self._dnas_space, self._dnas_accept, self._dnas_draw = space, accept, draw
        self._dnas_random = random.Random(int(words[1]))
        self._dnas_none_left = False

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {
            name: self._dnas_space[name] for name in sorted(self._dnas_space) if not self._dnas_space[name].single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params = super().sample_relative(study, trial, search_space)
        if not params or self._dnas_none_left:
            drawn = self._dnas_draw(self._dnas_random)
            params = {name: drawn[name] for name in search_space}
        return params

    def _compute_acquisition_func(self, samples: dict[str, np.ndarray], mpe_below: Any, mpe_above: Any) -> np.ndarray:
        values = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        taken = np.array(
            [self._takes({name: column[i] for name, column in samples.items()}) for i in range(len(values))]
        )
        self._dnas_none_left = not taken.any()
        return np.where(taken, values, -np.inf)

    def _takes(self, internal: dict[str, Any]) -> bool:
        params = {name: self._dnas_space[name].to_external_repr(float(value)) for name, value in internal.items()}
        for name in itertools.filterfalse(params.__contains__, self._dnas_space):
            single = self._dnas_space[name]
            assert single.single()
            params[name] = single.choices[0] if isinstance(single, CategoricalDistribution) else single.low  # type: ignore[attr-defined]
        return self._dnas_accept(params) is not None
