"""Optuna's TPE with candidates filtered by the cost model and by earlier trials before the acquisition is maximised."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dnas.space.space import Choice
from dnas.strategy.distributions import distributions
from dnas.strategy.samplers.problem import Problem, Told

STARTUP_TRIALS = 10
CANDIDATES = 64  # more than Optuna's 24, since many candidates exceed a limit or were tried
FEW_ACCEPTED = 16  # with fewer accepted candidates, random draws are added
EXTRA_DRAWS = 24  # number of random draws that are added


class ProposeTPE:
    """The TPE `Sampler`. It caches earlier trials in Optuna's form; a proposal depends on the arguments alone."""

    def __init__(self) -> None:
        self._frozen: dict[int, tuple[Told, FrozenTrial]] = {}
        self._choices: tuple[Choice, ...] = ()
        self._internal: dict[int, dict[str, float]] = {}  # number -> params in Optuna's internal representation

    def __call__(self, problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
        seeds = rng.integers(2**32, size=2)
        draws = random.Random(int(seeds[1]))
        space = distributions(problem.choices)
        if problem.choices != self._choices:  # the space was widened
            self._choices, self._frozen, self._internal = problem.choices, {}, {}
        trials = [self._trial(trial, space, len(problem.objectives)) for trial in told]
        ended = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        open_space = {name: space[name] for name in sorted(space) if not space[name].single()}
        if ended < STARTUP_TRIALS or not open_space:
            return problem.draw(draws)
        sampler = _FilteredTPE(problem, space, int(seeds[0]), draws, self._internal)
        return sampler.propose(_study(trials, len(problem.objectives), sampler), open_space)

    def _trial(self, told: Told, space: dict[str, BaseDistribution], objectives: int) -> FrozenTrial:
        known = self._frozen.get(told.number)
        if known is None or known[0] is not told:
            self._frozen[told.number] = known = (told, frozen_trial(told, space, objectives))
        return known[1]


def frozen_trial(told: Told, space: dict[str, BaseDistribution], objectives: int) -> FrozenTrial:
    """Convert an earlier trial to Optuna's form.

    With several objectives Optuna does not support pruned trials with values. A paused trial is then passed as complete
    with its last values, which can only make it look worse than its final result.
    """
    state, values, curve = TrialState.FAIL, None, {}
    match told.state:
        case "running":
            state = TrialState.RUNNING
        case "complete" | "failed" if told.values is not None:
            state, values = TrialState.COMPLETE, list(told.values)
        case "paused" | "stopped" if told.values is not None:
            if objectives == 1:
                state, curve = TrialState.PRUNED, dict(told.curve)
            else:
                state, values = TrialState.COMPLETE, list(told.values)
        case "infeasible" if objectives == 1:
            state = TrialState.PRUNED  # without a report, so that it ranks last
    frozen = FrozenTrial(
        number=told.number,
        trial_id=told.number,
        state=state,
        value=None,
        values=values,
        params=dict(told.params),
        distributions=space,
        intermediate_values=curve,
        datetime_start=None,
        datetime_complete=None,
        user_attrs={},
        system_attrs={},
    )
    assert values is None or all(map(math.isfinite, values)), "values must be finite"
    return frozen


class _Trials(InMemoryStorage):
    """Storage of given trials, so that creating a study is cheap for any number of trials."""

    trials: list[FrozenTrial]

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        # The trials are read-only, so that they need not be copied.
        return self.trials if states is None else [trial for trial in self.trials if trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Ignore attributes, which the sampler writes only for other processes."""


def _study(trials: list[FrozenTrial], objectives: int, sampler: TPESampler) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # keep the terminal for the search's output
    storage = _Trials()
    storage.trials = trials
    storage.create_new_study([StudyDirection.MINIMIZE] * objectives, "search")
    return Study("search", storage, sampler)


class _FilteredTPE(TPESampler):
    """TPE for one proposal, in which candidates that the problem refuses are never chosen.

    If most candidates are refused, because the limits exclude most of the space, accepted random draws are added.
    """

    def __init__(
        self,
        problem: Problem,
        space: dict[str, BaseDistribution],
        seed: int,
        draws: random.Random,
        internal: dict[int, dict[str, float]],
    ) -> None:
        # All arguments are explicit, since the defaults changed in Optuna 5.0.
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
        return self.complete(chosen) if self._drawn is None else self._drawn

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        # Each trial is converted once. Converting thousands at every proposal would take a third of the time.
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
        accepted = np.array(
            [
                self._problem.accept(self.complete({name: column[i] for name, column in columns.items()})) is not None
                for i in range(len(values))
            ]
        )
        values = np.where(accepted, values, -np.inf)
        if accepted.sum() < FEW_ACCEPTED:
            drawn = [self._problem.draw(self._draws) for _ in range(EXTRA_DRAWS)]
            internal = {
                name: np.array([self._dnas_space[name].to_internal_repr(point[name]) for point in drawn])
                for name in samples
            }
            scores = super()._compute_acquisition_func(internal, mpe_below, mpe_above)
            best = int(np.argmax(scores))
            if scores[best] > values.max():
                self._drawn = drawn[best]
        return values

    def complete(self, params: dict[str, Any]) -> dict[str, Any]:
        """Add the choices with a single value, which the model does not sample, to `params`."""
        completed = dict(params)
        for name in itertools.filterfalse(completed.__contains__, self._dnas_space):
            single = self._dnas_space[name]
            assert single.single()
            completed[name] = single.choices[0] if isinstance(single, CategoricalDistribution) else single.low  # type: ignore[attr-defined]
        return {name: completed[name] for name in self._dnas_space}
