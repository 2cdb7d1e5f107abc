"""The path from one network of a space to another, a choice at a time: which of the changes brought the gain.

Fawcett and Hoos, "Analysing differences between algorithm configurations through ablation", Journal of Heuristics 2016:
from the source, again and again the change that improves most, until the target is reached. With a model of the error
in place of runs: Biedenkapp et al., "Efficient parameter importance analysis via ablation with surrogates", AAAI 2017.
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
    """One network on the path. changes: (choice, before, after) of the step that leads to it, as the sampler holds
    them; several where one is impossible without the others; none of the source. excess: limit -> by how much, as a
    share, it is over; a search would not have trained it."""

    params: Mapping[str, Any]
    spec: Spec
    cost: Cost
    changes: tuple[tuple[str, Any, Any], ...]
    excess: Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """Of an error, or of the difference from the network before: the value and its 95% interval; not a number where
    nothing is known, and of the source's difference."""

    value: float
    low: float
    high: float


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Path:
    """predicted: of each node's error by the forest; change: of the difference from the node before. r2: the forest's,
    out of bag. measured: node's place -> its error in the search, from one seed."""

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
        """Each node's mean over the seeds; no interval goes below 0."""
        estimates = [_of_seeds(self.values[place]) for place in self.values]
        return tuple(dataclasses.replace(one, low=0.0 if one.low < 0 else one.low) for one in estimates)

    @property
    def changes(self) -> tuple[Estimate, ...]:
        """Of each node but the first, the mean difference from the one before, in pairs of a seed."""
        return (NOTHING, *(_of_seeds(column) for _, column in self.values.diff(axis=1).iloc[:, 1:].items()))

    @property
    def whole(self) -> Estimate:
        """The last node less the first."""
        return _of_seeds(self.values.iloc[:, -1] - self.values.iloc[:, 0])


def _of_seeds(values: "pd.Series[Any]") -> Estimate:
    """The mean and its 95% interval (Student's t); of one seed no interval."""
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
    """The path that a forest predicts: at each step the change with the lowest predicted error.

    source, target: params as the sampler holds them. The intervals are percentiles over forests of resampled trials,
    widened to hold the forest's own value: they are of the mean error that the model predicts, not of one training,
    and do not account for the choice of the order by the same trials. `InputError` where the networks are the same, or
    the trials too few.
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
        again = Forest(
            evidence.axes, cells[drawn], evidence.errors[drawn], trees=RESAMPLED_TREES, seed=int(rng.integers(2**31))
        )
        samples.append(again.predict(places))
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
    """The nodes from `source` to `target`. predict: points -> their errors, [n].

    A step changes one choice, and with it those that its `when` names where they must be as in the target for it to be
    made; where no network with one change more exists, two are changed together, and so on. Networks inside the
    space's limits are taken before those over one, where no trial taught the forest anything.
    """
    ends = [space.spec_of(point).digest for point in (source, target)]
    if ends[0] == ends[1]:
        raise InputError(f"the path begins where it ends: both are {space.name_of(space.spec_of(target))}.")
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
    """Every choice of `point`. One that it does not make is as in `other`, where that makes it: once it is made, it
    takes that value, so that it needs no step of its own."""
    active, there = space.active(point), space.active(other)
    whole = {}
    for choice in space.choices:
        values = choice.values()
        default = point.get(choice.name, values[0] if values else choice.low)
        whole[choice.name] = active.get(choice.name, there.get(choice.name, default))
    return whole


def _steps(space: Space, state: Mapping[str, Any], goal: Mapping[str, Any]) -> list[Node]:
    """The networks that one change leads to: of those sizes of change that lead to any, the least."""
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
                continue  # no such network
            if node.spec.digest != digest:
                nodes[names] = node
        if nodes:
            return list(nodes.values())
    raise AssertionError("the target itself is a network")


def _with_conditions(space: Space, name: str, state: Mapping[str, Any], goal: Mapping[str, Any]) -> set[str]:
    """The choice and those that must change with it so that it is made."""
    conditions = next(choice.when for choice in space.choices if choice.name == name)
    needed = {name}
    if name not in space.active(state):
        for other in conditions:
            if state[other] != goal[other]:
                needed |= _with_conditions(space, other, state, goal)
    return needed


def _node(space: Space, params: Mapping[str, Any], changes: tuple[tuple[str, Any, Any], ...]) -> Node:
    spec = space.spec_of(params)
    price = space.cost(spec)
    return Node(dict(params), spec, price, changes, space.limits.excess(price))


def _cells(evidence: Evidence, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([[axis.cell(point[axis.name]) for axis in evidence.axes] for point in points])


def _digest_of(space: Space) -> Any:
    def digest(row: Mapping[str, Any]) -> str:
        made = {name: value for name, value in row.items() if value is not None and value == value}
        return space.spec_of(made).digest

    return digest


def _estimates(values: np.ndarray, samples: np.ndarray) -> tuple[Estimate, ...]:
    low, high = percentile_interval(samples)
    return tuple(
        Estimate(float(v), float(min(v, a)), float(max(v, b))) for v, a, b in zip(values, low, high, strict=True)
    )


def params_of(space: Space, spec: Spec) -> dict[str, Any]:
    """The point of `space` that is the network `spec`, as the sampler holds it; `InputError` where none is."""
    values: dict[str, Any] = {}
    for choice in space.choices:
        values[choice.name] = getattr(spec, choice.target)
        if choice.target != choice.name:  # one of a list: block_layers_1, _2, ...
            place = int(choice.name.rpartition("_")[2]) - 1
            many = values[choice.name]
            many = many if isinstance(many, tuple) else (many,) * (place + 1)
            if place >= len(many):
                raise InputError(f"{space.name_of(spec)} has no {choice.name}, which space {space.name} chooses.")
            values[choice.name] = many[place]
    params = {}
    for choice in space.choices:
        if not all(values[other] in allowed for other, allowed in choice.when.items()):
            continue
        params[choice.name] = choice.encode(values[choice.name])
        if not _allows(choice, params[choice.name]):
            raise InputError(
                f"{space.name_of(spec)} is no network of space {space.name}: {choice.name} is {params[choice.name]},"
                f" which is not of {choice.describe()}."
            )
    decoded = space.spec_of(params)
    if decoded.digest != spec.digest:
        theirs, ours = decoded.to_dict(), spec.to_dict()
        name = next((key for key in ours if ours[key] != theirs.get(key)), "family")
        raise InputError(
            f"{space.name_of(spec)} is no network of space {space.name}: it has {name} = {ours.get(name)}, the space"
            f" {theirs.get(name)}."
        )
    return params


def _allows(choice: Choice, value: Any) -> bool:
    values = choice.values()
    if values is None:
        return isinstance(value, int | float) and choice.low <= value <= choice.high
    return any(value == one or _near(value, one) for one in values)


def _near(value: Any, other: Any) -> bool:
    return isinstance(value, float) and isinstance(other, float) and abs(value - other) < 1e-9


def path_frame(path: Path, trained: Trained | None = None) -> pd.DataFrame:
    """Return one row per network: step, choice, before, after, network's params and macs, over (limits exceeded),
    predicted, change, measured, and of trained ones trained and trained_change, each with low and high."""
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


def _three(name: str, one: Estimate) -> dict[str, float]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
