"""Optuna's TPE, its candidates filtered by the cost model, and by what was tried, before the acquisition chooses."""

import itertools
import math
import random
from collections.abc import Sequence
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
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dnas.search.samplers.problem import Problem, Told
from dnas.space.space import Choice

STARTUP_TRIALS = 10
CANDIDATES = 64  # twice and more optuna's 24: many are over a limit, or were tried
FEW, DRAWN = 16, 24  # where fewer of them are taken, so many draws from what is left are weighed too


def distributions(choices: Sequence[Choice]) -> dict[str, BaseDistribution]:
    """The space in optuna's terms. Choices that a `when` may shut out are among them: the sampler always sees all."""
    found: dict[str, BaseDistribution] = {}
    for choice in choices:
        if choice.kind == "int":
            found[choice.name] = IntDistribution(int(choice.low), int(choice.high), step=int(choice.step or 1))
        elif choice.kind == "float":
            found[choice.name] = FloatDistribution(choice.low, choice.high, step=choice.step)
        else:
            found[choice.name] = CategoricalDistribution([choice.encode(option) for option in choice.options])
    return found


def distributions_json(choices: Sequence[Choice]) -> dict[str, str]:
    return {name: distribution_to_json(distribution) for name, distribution in distributions(choices).items()}


class ProposeTPE:
    """The `Sampler`. It remembers earlier trials in optuna's form, and nothing else: a proposal is a function of the
    arguments."""

    def __init__(self) -> None:
        self._frozen: dict[int, tuple[Told, FrozenTrial]] = {}
        self._choices: tuple[Choice, ...] = ()
        self._internal: dict[int, dict[str, float]] = {}  # of each trial, its params as optuna's model sees them

    def __call__(self, problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
        words = rng.integers(2**32, size=2)
        draws = random.Random(int(words[1]))
        space = distributions(problem.choices)
        if problem.choices != self._choices:  # the space was widened
            self._choices, self._frozen, self._internal = problem.choices, {}, {}
        trials = [self._trial(one, space, len(problem.objectives)) for one in told]
        ended = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        open_space = {name: space[name] for name in sorted(space) if not space[name].single()}
        if ended < STARTUP_TRIALS or not open_space:
            return problem.draw(draws)
        sampler = _FilteredTPE(problem, space, int(words[0]), draws, self._internal)
        return sampler.propose(_study(trials, len(problem.objectives), sampler), open_space)

    def _trial(self, one: Told, space: dict[str, BaseDistribution], objectives: int) -> FrozenTrial:
        known = self._frozen.get(one.number)
        if known is None or known[0] is not one:
            self._frozen[one.number] = known = (one, frozen_trial(one, space, objectives))
        return known[1]


def frozen_trial(one: Told, space: dict[str, BaseDistribution], objectives: int) -> FrozenTrial:
    """An earlier trial in optuna's terms: the table of states in the design notes.

    With several objectives optuna knows no pruned trial with a value, so one that was paused is told as complete with
    the last values that it had: they can only make it look worse than it would have become.
    """
    state, values, curve = TrialState.FAIL, None, {}
    match one.state:
        case "running":
            state = TrialState.RUNNING
        case "complete" | "failed" if one.values is not None:
            state, values = TrialState.COMPLETE, list(one.values)
        case "paused" | "stopped" if one.values is not None:
            if objectives == 1:
                state, curve = TrialState.PRUNED, dict(one.curve)
            else:
                state, values = TrialState.COMPLETE, list(one.values)
        case "infeasible" if objectives == 1:
            state = TrialState.PRUNED  # without a report: behind every other
    trial = FrozenTrial(
        number=one.number,
        trial_id=one.number,
        state=state,
        value=None,
        values=values,
        params=dict(one.params),
        distributions=space,
        intermediate_values=curve,
        datetime_start=None,
        datetime_complete=None,
        user_attrs={},
        system_attrs={},
    )
    assert values is None or all(map(math.isfinite, values)), "a NaN is never told"
    return trial


class _Trials(InMemoryStorage):
    """A storage of given trials: a study over it costs nothing to make, however many they are."""

    trials: list[FrozenTrial]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Any = None
    ) -> list[FrozenTrial]:  # read only, so never copied
        return self.trials if states is None else [trial for trial in self.trials if trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Nobody else reads what the sampler shares with other processes."""


def _study(trials: list[FrozenTrial], objectives: int, sampler: TPESampler) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the terminal is the search's own
    storage = _Trials()
    storage.trials = trials
    storage.create_new_study([StudyDirection.MINIMIZE] * objectives, "search")
    return Study("search", storage, sampler)


class _FilteredTPE(TPESampler):
    """TPE for one proposal: candidates that the problem turns down cannot win the acquisition. Where it turns down most
    of them (the limits leave little of the space), draws from what it takes are weighed beside them."""

    def __init__(
        self,
        problem: Problem,
        space: dict[str, BaseDistribution],
        seed: int,
        draws: random.Random,
        internal: dict[int, dict[str, float]],
    ) -> None:
        # Every argument explicitly: the defaults changed in optuna 5.0.
        super().__init__(
            n_startup_trials=STARTUP_TRIALS,
            n_ei_candidates=CANDIDATES,
            multivariate=True,
            group=False,
            constant_liar=True,
            seed=seed,
        )
        self._problem, self._dnas_space, self._draws = problem, space, draws
        self._internal = internal
        self._drawn: dict[str, Any] | None = None

    def propose(self, study: Study, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        chosen = self.sample_relative(study, create_trial(state=TrialState.RUNNING), search_space)
        return self.whole(chosen) if self._drawn is None else self._drawn

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        # Each trial is translated once: for thousands, at every proposal, that would be a third of the time.
        for trial in trials:
            if trial.number not in self._internal:
                self._internal[trial.number] = {
                    name: space.to_internal_repr(trial.params[name]) for name, space in self._dnas_space.items()
                }
        rows = [self._internal[trial.number] for trial in trials]
        return {name: np.array([row[name] for row in rows], dtype=float) for name in search_space}

    def _compute_acquisition_func(self, samples: dict[str, np.ndarray], mpe_below: Any, mpe_above: Any) -> np.ndarray:
        values = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        columns = {
            name: [self._dnas_space[name].to_external_repr(float(value)) for value in column]
            for name, column in samples.items()
        }
        taken = np.array(
            [
                self._problem.accept(self.whole({name: column[i] for name, column in columns.items()})) is not None
                for i in range(len(values))
            ]
        )
        values = np.where(taken, values, -np.inf)
        if taken.sum() < FEW:
            drawn = [self._problem.draw(self._draws) for _ in range(DRAWN)]
            internal = {
                name: np.array([self._dnas_space[name].to_internal_repr(point[name]) for point in drawn])
                for name in samples
            }
            scores = super()._compute_acquisition_func(internal, mpe_below, mpe_above)
            best = int(np.argmax(scores))
            if scores[best] > values.max():
                self._drawn = drawn[best]
        return values

    def whole(self, params: dict[str, Any]) -> dict[str, Any]:
        """`params` with the choices of a single value, which the model is never asked for."""
        found = dict(params)
        for name in itertools.filterfalse(found.__contains__, self._dnas_space):
            single = self._dnas_space[name]
            assert single.single()
            found[name] = single.choices[0] if isinstance(single, CategoricalDistribution) else single.low  # type: ignore[attr-defined]
        return {name: found[name] for name in self._dnas_space}
