"""Path from one network of a space to another, one choice at a time, which attributes the gain to the changes.

Fawcett and Hoos, "Analysing differences between algorithm configurations through ablation", Journal of Heuristics 2016,
start from the source and repeatedly apply the change that improves most, until the target is reached. A model of the
error replaces the runs: Biedenkapp et al., "Efficient parameter importance analysis via ablation with surrogates",
AAAI 2017.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.fanova import BOOTSTRAPS, RESAMPLED_TREES, Forest, check_enough
from dnas.analysis.importance import Evidence
from dnas.analysis.intervals import percentile_interval, t_half_width
from dnas.arch import Cost, Spec
from dnas.errors import InputError
from dnas.space.space import Choice, Space


@dataclass(frozen=True)
class Node:
    """One network on the path.

    Attributes:
        params: Choices of the network, as the sampler stores them.
        spec: The network.
        cost: Its cost.
        changes: (choice, before, after) of the step that leads to it. Several if one is impossible without the
            others. Empty for the source.
        excess: Relative excess over each exceeded limit, by limit. A search would not have trained such a network.
    """

    params: Mapping[str, Any]
    spec: Spec
    cost: Cost
    changes: tuple[tuple[str, Any, Any], ...]
    excess: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """An error, or its difference from the preceding network, with its 95% interval.

    NaN if it is unknown, and for the difference of the source.
    """

    value: float
    low: float
    high: float


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Path:
    """A path between two networks, with its predicted errors.

    Attributes:
        nodes: The networks, from the source to the target.
        predicted: Error of each node, as predicted by the forest.
        change: Predicted difference of each node from the preceding one.
        r2: R² of the forest, out of bag.
        trials: Number of trials that the forest was fitted to.
        measured: Error of a node in the search (one seed), by its index.
    """

    nodes: tuple[Node, ...]
    predicted: tuple[Estimate, ...]
    change: tuple[Estimate, ...]
    r2: float
    trials: int
    measured: Mapping[int, float]


@dataclass(frozen=True)
class Trained:
    """Errors of the path's networks when trained.

    values: Fractions, indexed by seed, with one column per node. NaN if a run failed or is missing.
    """

    values: pd.DataFrame

    @property
    def seeds(self) -> int:
        return len(self.values)

    @property
    def errors(self) -> tuple[Estimate, ...]:
        """Mean error of each node over the seeds. No interval extends below 0."""
        estimates = [_of_seeds(self.values[place]) for place in self.values]
        return tuple(
            dataclasses.replace(estimate, low=0.0 if estimate.low < 0 else estimate.low) for estimate in estimates
        )

    @property
    def changes(self) -> tuple[Estimate, ...]:
        """Mean difference of each node from the preceding one, paired by seed. NaN for the first node."""
        return (NOTHING, *(_of_seeds(column) for _, column in self.values.diff(axis=1).iloc[:, 1:].items()))

    @property
    def whole(self) -> Estimate:
        """Difference of the last node from the first."""
        return _of_seeds(self.values.iloc[:, -1] - self.values.iloc[:, 0])


def _of_seeds(values: "pd.Series[Any]") -> Estimate:
    """Return the mean with its 95% interval (Student's t). One seed has no interval."""
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return NOTHING
    mean = float(known.mean())
    if len(known) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = t_half_width(float(known.std(ddof=1)), len(known))
    return Estimate(mean, mean - half, mean + half)


def find_path(
    evidence: Evidence,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> Path:
    """Find the path that takes, at each step, the change with the lowest error as predicted by a forest.

    The intervals are percentiles over forests of resampled trials, widened to include the prediction itself. They are
    intervals of the predicted mean error, not of the error of one run, and do not account for the order having been
    chosen by the same trials.

    Args:
        evidence: Trials of the search.
        source: Choices of the first network, as the sampler stores them.
        target: Choices of the last network.
        bootstraps: Number of forests of resampled trials.
        seed: Seed of the forests and of the resampling.

    Raises:
        InputError: If the networks are the same, or the trials are too few.
    """
    space, cells = evidence.space, evidence.cells
    check_enough(evidence.axes, cells, evidence.errors)
    forest = Forest(evidence.axes, cells, evidence.errors, seed=seed)

    def predict(points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return forest.predict(_cells(evidence, points))

    nodes = greedy_path(space, source, target, predict)
    places = _cells(evidence, [node.params for node in nodes])
    predictions = forest.predict(places)
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(bootstraps):
        drawn = rng.integers(len(cells), size=len(cells))
        resampled = Forest(
            evidence.axes, cells[drawn], evidence.errors[drawn], trees=RESAMPLED_TREES, seed=int(rng.integers(2**31))
        )
        samples.append(resampled.predict(places))
    digests = dict(zip(map(_digest_of(space), evidence.params.to_dict("records")), evidence.errors, strict=True))
    return Path(
        nodes,
        _estimates(predictions, np.array(samples)),
        (NOTHING, *_estimates(np.diff(predictions), np.diff(samples, axis=1))),
        forest.r2,
        len(cells),
        {i: float(digests[n.spec.digest]) for i, n in enumerate(nodes) if n.spec.digest in digests},
    )


def greedy_path(space: Space, source: Mapping[str, Any], target: Mapping[str, Any], predict: Any) -> tuple[Node, ...]:
    """Return the nodes from `source` to `target`. Each step has the lowest predicted error.

    A step changes one choice. If the choice is conditional, the choices named by its `when` change with it as far as
    needed. If no network with one more change exists, two choices change together, and so on. Networks within the
    limits of the space are preferred to networks that exceed one, on which the forest was not fitted.

    Args:
        space: The space of both networks.
        source: Choices of the first network, as the sampler stores them.
        target: Choices of the last network.
        predict: Function from a list of n points to their errors, [n].

    Raises:
        InputError: If both networks are the same.
    """
    ends = [space.spec_of(point).digest for point in (source, target)]
    if ends[0] == ends[1]:
        raise InputError(f"a path needs two different networks, but both are {space.name_of(space.spec_of(target))}.")
    state = _whole(space, source, target)
    goal = _whole(space, target, state)
    nodes = [_node(space, state, ())]
    while nodes[-1].spec.digest != ends[1]:
        steps = _steps(space, state, goal)
        steps = [step for step in steps if not step.excess] or steps
        errors = predict([step.params for step in steps])
        nodes.append(steps[int(np.argmin(errors))])
        state = dict(nodes[-1].params)
    return tuple(nodes)


def _whole(space: Space, point: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every choice of the space, from `point` where the choice is active.

    An inactive choice takes the value of `other`, if it is active there. When it becomes active it already has that
    value and needs no separate step.
    """
    active, active_in_other = space.active(point), space.active(other)
    complete = {}
    for choice in space.choices:
        values = choice.values()
        default = point.get(choice.name, values[0] if values else choice.low)
        complete[choice.name] = active.get(choice.name, active_in_other.get(choice.name, default))
    return complete


def _steps(space: Space, state: Mapping[str, Any], goal: Mapping[str, Any]) -> list[Node]:
    """Return the networks that one step can reach, with the smallest number of joint changes that reaches any."""
    open_choices = [choice for choice in space.choices if state[choice.name] != goal[choice.name]]
    digest = space.spec_of(state).digest
    for size in range(1, len(open_choices) + 1):
        nodes: dict[frozenset[str], Node] = {}
        for chosen in itertools.combinations(open_choices, size):
            names = frozenset().union(*(_with_conditions(space, choice.name, state, goal) for choice in chosen))
            if names in nodes:
                continue
            point = {**state, **{name: goal[name] for name in names}}
            before, after = space.active(state), space.active(point)
            changes = tuple(
                (c.name, before.get(c.name), after.get(c.name))
                for c in space.choices
                if before.get(c.name) != after.get(c.name)
            )
            try:
                node = _node(space, point, changes)
            except InputError:
                continue  # these changes alone do not yield a network
            if node.spec.digest != digest:
                nodes[names] = node
        if nodes:
            return list(nodes.values())
    raise AssertionError("all changes together yield the target, which is a network")


def _with_conditions(space: Space, name: str, state: Mapping[str, Any], goal: Mapping[str, Any]) -> set[str]:
    """Return a choice and the choices that must change with it to make it active."""
    conditions = next(choice.when for choice in space.choices if choice.name == name)
    needed = {name}
    if name not in space.active(state):
        for other in conditions:
            if state[other] != goal[other]:
                needed |= _with_conditions(space, other, state, goal)
    return needed


def _node(space: Space, params: Mapping[str, Any], changes: tuple[tuple[str, Any, Any], ...]) -> Node:
    spec = space.spec_of(params)
    cost = space.cost(spec)
    return Node(dict(params), spec, cost, changes, space.limits.excess(cost))


def _cells(evidence: Evidence, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[axis.cell(point[axis.name]) for axis in evidence.axes] for point in points])


def _digest_of(space: Space) -> Any:
    def digest(row: Mapping[str, Any]) -> str:
        active = {name: value for name, value in row.items() if value is not None and value == value}
        return space.spec_of(active).digest

    return digest


def _estimates(values: np.ndarray, samples: np.ndarray) -> tuple[Estimate, ...]:
    low, high = percentile_interval(samples)
    return tuple(
        Estimate(float(v), float(min(v, a)), float(max(v, b))) for v, a, b in zip(values, low, high, strict=True)
    )


def params_of(space: Space, spec: Spec) -> dict[str, Any]:
    """Return the choices that make `spec` in `space`, as the sampler stores them.

    Raises:
        InputError: If `spec` is not a network of the space.
    """
    values: dict[str, Any] = {}
    for choice in space.choices:
        values[choice.name] = getattr(spec, choice.target)
        if choice.target != choice.name:  # an element of a list: block_layers_1, _2, ...
            place = int(choice.name.rpartition("_")[2]) - 1
            elements = values[choice.name]
            elements = elements if isinstance(elements, tuple) else (elements,) * (place + 1)
            if place >= len(elements):
                raise InputError(f"{space.name_of(spec)} has no {choice.name}, which space {space.name} chooses.")
            values[choice.name] = elements[place]
    params = {}
    for choice in space.choices:
        if not all(values[other] in allowed for other, allowed in choice.when.items()):
            continue
        params[choice.name] = choice.encode(values[choice.name])
        if not _allows(choice, params[choice.name]):
            raise InputError(
                f"{space.name_of(spec)} is not a network of space {space.name}: {choice.name} is"
                f" {params[choice.name]}, which is not in {choice.describe()}."
            )
    decoded = space.spec_of(params)
    if decoded.digest != spec.digest:
        theirs, ours = decoded.to_dict(), spec.to_dict()
        name = next((key for key in ours if ours[key] != theirs.get(key)), "family")
        raise InputError(
            f"{space.name_of(spec)} is not a network of space {space.name}: it has {name} = {ours.get(name)}, but"
            f" networks of the space have {theirs.get(name)}."
        )
    return params


def _allows(choice: Choice, value: Any) -> bool:
    values = choice.values()
    if values is None:
        return isinstance(value, int | float) and choice.low <= value <= choice.high
    return any(value == allowed or _near(value, allowed) for allowed in values)


def _near(value: Any, other: Any) -> bool:
    return isinstance(value, float) and isinstance(other, float) and abs(value - other) < 1e-9


def path_frame(path: Path, trained: Trained | None = None) -> pd.DataFrame:
    """Return one row per network: step, choice, from, to, params, macs, over (the exceeded limits), predicted, change
    and measured. With `trained`, also trained and trained_change.

    Each estimate has two more columns, such as predicted_low and predicted_high.
    """
    rows = []
    for i, node in enumerate(path.nodes):
        row: dict[str, Any] = {
            "step": i,
            "choice": ", ".join(name for name, _, _ in node.changes),
            "from": ", ".join("" if before is None else str(before) for _, before, _ in node.changes),
            "to": ", ".join("" if after is None else str(after) for _, _, after in node.changes),
            "params": node.cost.params,
            "macs": node.cost.macs,
            "over": ", ".join(node.excess),
            **_three("predicted", path.predicted[i]),
            **_three("change", path.change[i]),
            "measured": path.measured.get(i, math.nan),
        }
        if trained is not None:
            row |= _three("trained", trained.errors[i]) | _three("trained_change", trained.changes[i])
        rows.append(row)
    return pd.DataFrame(rows)


def _three(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
