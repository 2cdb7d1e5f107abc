"""Ablations of a function of the user's own, called in this process."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dnas.ablation.command import FOLDER, SEED, check_levels, finite
from dnas.ablation.external import make_external, run_missing, values_of_runs
from dnas.ablation.results import Ablation, read_ablation
from dnas.analysis.metrics import named_metric
from dnas.errors import InputError
from dnas.executors.command import FunctionExecutor, RunFailed
from dnas.executors.protocol import Show
from dnas.formatting import joined
from dnas.study.config import RunConfig
from dnas.study.record import TrialRecord


class Quiet:
    """An observer that shows nothing."""

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def began(self, record: TrialRecord) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...
    def note(self, text: str) -> None: ...


def ablate_function(
    function: Callable[..., Any],
    factors: Mapping[str, Sequence[Any]],
    *,
    study: str | None = None,
    seeds: int | Sequence[int] | None = None,
    metric: str | None = None,
    maximize: bool = False,
    error_rate: bool = False,
    design: str = "one-at-a-time",
    alpha: float = 0.05,
    question: str = "",
    show: Show | None = None,
) -> Ablation:
    """Call a function in pairs of seeds for each variant of a design, and return the comparisons.

    The study is stored in ./studies. The same call resumes it after an interruption: ended calls are not repeated.

    Args:
        function: Called as `function(seed=..., **levels)`. Returns a number, or a dict with the metric.
        factors: Levels of each factor: numbers, texts or truth values, the base's first.
        study: Name of the study (default: the function's name).
        seeds: A number of seeds (default: 7), or a list of them. More seeds may be added later.
        metric: Name of the metric, and its key in a dict.
        maximize: Whether larger values are better.
        error_rate: Whether the metric is a fraction of errors, shown in percent.
        design: one-at-a-time or factorial.
        alpha: Level of the family of tests.
        question: Question of the study, for its page.
        show: Observer of the runs.

    Raises:
        InputError: An argument is invalid, or the study was started with another design.
    """
    if not callable(function):
        raise InputError(f"dnas.ablate needs a function to call, but got {function!r}.")
    levels = {name: _listed(name, values) for name, values in factors.items()}
    check_levels(levels)
    name = str(getattr(function, "__name__", type(function).__name__))
    try:
        inspect.signature(function).bind(**{SEED: 0}, **{key: values[0] for key, values in levels.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must take seed and {joined(list(levels))} as keywords: {error}.") from None
    external = make_external(
        study or name.strip("<>_"),
        f"{name}()",
        {"key": metric} if metric else {},
        named_metric(metric or "value", maximize=maximize, error_rate=error_rate),
        levels,
        seeds=seeds,
        design=design,
        alpha=alpha,
        question=question,
    )
    calls, facts = {}, {}
    for key, values in values_of_runs(external).items():
        folder = values.pop(FOLDER)
        calls[key] = partial(_call, function, values, metric)
        facts[key] = {"command": f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"}
        facts[key]["folder"] = str(folder)
    outcome = run_missing(external, FunctionExecutor(calls), facts, show or Quiet(), RunConfig({}), "")
    if outcome.stopped_by:
        raise InputError(f"{outcome.stopped_by}; correct {name}, and call dnas.ablate again.")
    return read_ablation(external.folder.path)


def _listed(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"the levels of {name} must be a list, but got {values!r}.")
    if wrong := [value for value in values if not isinstance(value, bool | int | float | str)]:
        raise InputError(f"a level of {name} must be a number, a text or a truth value, but got {wrong[0]!r}.")
    return tuple(values)


def _call(function: Callable[..., Any], values: Mapping[str, Any], metric: str | None) -> float:
    """Call the function and return the metric. Raises `RunFailed` for a result that has none."""
    result = function(**values)
    if isinstance(result, Mapping):
        if metric is None and len(result) == 1:
            (result,) = result.values()
        elif metric not in result:
            listed = joined([str(key) for key in result]) or "nothing"
            wanted = "name one with metric=" if metric is None else f"it has no {metric}"
            raise RunFailed("error", f"it returned a dict of {listed}; {wanted}")
        else:
            result = result[metric]
    return finite(result, f"it returned {result!r}")
