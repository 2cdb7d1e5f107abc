"""Functional ANOVA of a random forest: how much of the error's variance over a space each choice and each pair makes.

Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014. A tree is
constant on boxes, so that its marginals, and the variances of them, are exact sums over its leaves.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.intervals import percentile_interval
from dnas.errors import InputError
from dnas.space.space import Choice

TREES = 64
RESAMPLED_TREES = 16  # of each forest of the bootstrap and of the nulls, which only spread round the one of `TREES`
LEAF = 3  # trials in a leaf, at least: with 1, the trees take a seed's noise for effects of high order
TREE_TRIALS = 1_000  # that a tree is given at most, so that the time of thousands of trials stays bounded
CELLS = 64  # that a number without steps is cut into
LEAST_TRIALS = 10
BELIEVABLE = 0.25  # of R² out of bag: a forest that predicts unseen trials worse says little of the space
BOOTSTRAPS, ROUNDS = 100, 10
REST = "three and more choices"


@dataclass(frozen=True)
class Axis:
    """One side of the box: the values that a choice can have, each as likely as any other. ordered: they are numbers,
    so that a tree may cut between them; otherwise it takes one out."""

    name: str
    values: tuple[Any, ...]
    ordered: bool

    @classmethod
    def of(cls, choice: Choice) -> "Axis":
        values = choice.values()
        if values is None:
            width = (choice.high - choice.low) / CELLS
            values = [choice.low + (i + 0.5) * width for i in range(CELLS)]
        return cls(choice.name, tuple(values), all(_is_number(value) for value in values))

    def cell(self, value: Any) -> int:
        """The place of `value`, of a number the nearest one's; -1 for None or NaN: the choice was not made."""
        if value is None or value != value:
            return -1
        if self.ordered:
            return int(np.argmin(np.abs(np.asarray(self.values, dtype=float) - float(value))))
        if value not in self.values:
            raise InputError(f"a trial has {self.name} = {value!r}, which the space does not know.")
        return self.values.index(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Shares:
    """Of a forest, as shares of its variance over the box. single: [k]; pair: [k, k], symmetric, 0 on the diagonal."""

    single: np.ndarray
    pair: np.ndarray

    @property
    def rest(self) -> float:
        """Share due to neither single choices nor pairs."""
        return max(0.0, float(1 - self.single.sum() - np.triu(self.pair).sum()))


class Forest:
    """A random forest over the box of `axes`, fitted to trials.

    cells: [n, k], the place of each trial's value on each axis, -1 where its choice was not made. Such a value changes
    nothing, so it is drawn at random, which is what teaches the forest that. errors: [n]. leaf: trials in each leaf.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        cells: np.ndarray,
        errors: np.ndarray,
        *,
        trees: int = TREES,
        seed: int = 0,
        leaf: int = LEAF,
    ) -> None:
        import sklearn
        from sklearn.tree import DecisionTreeRegressor

        self.box = _Box(tuple(axes))
        self.errors = np.asarray(errors, dtype=float)
        rng = np.random.default_rng(seed)
        self._inputs = self.box.inputs(_filled(cells, axes, rng))
        n = len(self.errors)
        # One by one and unchecked: sklearn's forest of so small trees spends most of its time on their parameters.
        drawn = [rng.integers(n, size=min(n, TREE_TRIALS)) for _ in range(trees)]
        self._given = [np.bincount(one, minlength=n).astype(float) for one in drawn]
        numbers = rng.integers(2**31, size=trees).tolist()
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            self._trees = [
                DecisionTreeRegressor(min_samples_leaf=leaf, random_state=number)
                .fit(self._inputs, self.errors, sample_weight=given, check_input=False)
                .tree_
                for number, given in zip(numbers, self._given, strict=True)
            ]

    @cached_property
    def r2(self) -> float:
        """R² of each trial's prediction by the trees that were not given it (out of bag): 1 is perfect, 0 no better
        than the mean of all, and it can be below."""
        predicted = np.column_stack([tree.predict(self._inputs)[:, 0] for tree in self._trees])
        out = np.column_stack(self._given) == 0
        known = out.any(axis=1)
        mean = (predicted * out).sum(axis=1)[known] / out.sum(axis=1)[known]
        actual = self.errors[known]
        return float(1 - ((actual - mean) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())

    def predict(self, cells: np.ndarray) -> np.ndarray:
        """The error at each row of `cells`."""
        inputs = self.box.inputs(cells)
        predicted: np.ndarray = np.mean([tree.predict(inputs)[:, 0] for tree in self._trees], axis=0)
        return predicted

    @cached_property
    def shares(self) -> Shares:
        """The mean over the trees of each one's shares of its own variance, as in the paper. A tree of one leaf has
        none, and is left out."""
        tree_shares = [tree.shares() for tree in self._boxes if tree.variance > 1e-12 * max(1e-12, self.errors.var())]
        if not tree_shares:
            k = len(self.box.axes)
            return Shares(np.zeros(k), np.zeros((k, k)))
        return Shares(
            np.mean([one.single for one in tree_shares], axis=0), np.mean([one.pair for one in tree_shares], axis=0)
        )

    def marginal(self, *axes: int) -> np.ndarray:
        """The mean predicted error over all other choices, at each value of one axis, or of two: [v] or [v, w]."""
        marginal: np.ndarray = np.mean([tree.mean + tree.marginal(*axes) for tree in self._boxes], axis=0)
        return marginal

    def additive(self, cells: np.ndarray) -> np.ndarray:
        """At each row of `cells`, what the single choices make of the error, without their interactions."""
        effects = [self.marginal(a) for a in range(len(self.box.axes))]
        mean = np.mean([tree.mean for tree in self._boxes])
        total: np.ndarray = mean + sum(effect[cells[:, a]] - mean for a, effect in enumerate(effects))
        return total

    @cached_property
    def _boxes(self) -> "list[_Boxes]":
        return [_Boxes(self.box, tree) for tree in self._trees]


class _Box:
    """All axes' cells in one row. column: an input of the forest, one for an ordered axis, one a value for others."""

    def __init__(self, axes: tuple[Axis, ...]) -> None:
        self.axes = axes
        sizes = [len(axis.values) for axis in axes]
        self.starts = np.cumsum([0, *sizes])
        self.weight = np.repeat([1 / size for size in sizes], sizes)  # [cells]
        self.member = np.zeros((len(axes), int(self.starts[-1])))  # [axes, cells]
        columns, owned = [], []
        for a, axis in enumerate(axes):
            members = self.of(a)
            self.member[a, members] = 1
            inputs = [np.asarray(axis.values, dtype=float)] if axis.ordered else list(np.eye(len(axis.values)))
            for values in inputs:
                row, owner = np.zeros(self.starts[-1]), np.zeros(self.starts[-1], dtype=bool)
                row[members], owner[members] = values, True
                columns.append(row)
                owned.append(owner)
        self.columns, self.owned = np.array(columns), np.array(owned)  # [columns, cells]

    def of(self, axis: int) -> slice:
        return slice(int(self.starts[axis]), int(self.starts[axis + 1]))

    def inputs(self, cells: np.ndarray) -> np.ndarray:
        """[n, columns], as trees take them: what the forest sees of `cells`."""
        places = cells + self.starts[:-1]
        # A row's cells, one of each axis; a column is 0 in those of other axes.
        return np.ascontiguousarray(self.columns[:, places].sum(axis=2).T, dtype=np.float32)


class _Boxes:
    """A tree's leaves as boxes."""

    def __init__(self, box: _Box, tree: Any) -> None:
        inside = np.ones((tree.node_count, box.columns.shape[1]), dtype=bool)
        level = np.array([0])
        while len(level := level[tree.feature[level] >= 0]):
            column, left, right = tree.feature[level], tree.children_left[level], tree.children_right[level]
            below = box.columns[column] <= tree.threshold[level][:, None]
            other = ~box.owned[column]
            inside[left] = inside[level] & (below | other)
            inside[right] = inside[level] & (~below | other)
            level = np.concatenate([left, right])
        leaves = tree.feature < 0
        side = (inside[leaves] * box.weight) @ box.member.T  # [leaves, axes]: the share of each axis
        volume = side.prod(axis=1)
        values = tree.value[leaves, 0, 0]
        self.box = box
        self.mean = float(values @ volume)
        self.variance = float((values - self.mean) ** 2 @ volume)
        # Of a leaf, at each cell of an axis, the share of the rest of the box that it fills, by the axis's own side.
        self._reach = inside[leaves] / (side @ box.member)
        self._mass = (values - self.mean) * volume

    def marginal(self, *axes: int) -> np.ndarray:
        """Of one axis or two, less the mean."""
        first, *rest = (self._reach[:, self.box.of(axis)] for axis in axes)
        marginal: np.ndarray = (first * self._mass[:, None]).T @ rest[0] if rest else self._mass @ first
        return marginal

    def shares(self) -> Shares:
        weight, member = self.box.weight, self.box.member
        single = member @ (weight * (self._mass @ self._reach) ** 2)
        both = (self._reach * self._mass[:, None]).T @ self._reach  # [cells, cells]: the marginals of all pairs
        pair = member @ (both**2 * np.outer(weight, weight)) @ member.T - single[:, None] - single[None, :]
        np.fill_diagonal(pair, 0)
        return Shares(single / self.variance, np.maximum(pair, 0) / self.variance)


def _filled(cells: np.ndarray, axes: Sequence[Axis], rng: np.random.Generator) -> np.ndarray:
    drawn = np.column_stack([rng.integers(len(axis.values), size=len(cells)) for axis in axes])
    filled: np.ndarray = np.where(cells < 0, drawn, cells)
    return filled


@dataclass(frozen=True)
class Fanova:
    """effects: one row per choice and per pair, the greatest first, and last the rest of the variance (`REST`):
    choice, other ("" for a single one), share, low, high (95%), null, clear. r2: out of bag; ceiling: what greater
    errors were set to, None where none was; forest: the one of all trials, whose marginals can be drawn."""

    effects: pd.DataFrame
    r2: float
    trials: int
    ceiling: float | None
    forest: Forest

    @property
    def believable(self) -> bool:
        return self.r2 >= BELIEVABLE

    @property
    def single(self) -> float:
        """Share due to single choices."""
        return float(self.forest.shares.single.sum())

    @property
    def pairs(self) -> float:
        return float(np.triu(self.forest.shares.pair).sum())


def fanova(
    axes: Sequence[Axis],
    cells: np.ndarray,
    errors: Sequence[float] | np.ndarray,
    *,
    ceiling: float | None = None,
    bootstraps: int = BOOTSTRAPS,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Fanova:
    """The variance of the error over the box of `axes`, split up by choices, pairs, and what is of higher order.

    cells: [n, k], as `Forest` takes them. errors: [n], lower is better. ceiling: errors above it count as it, so that
    the variance is of what happens below (the reference implementation's cutoffs; Hutter et al. cap at a default's).

    low, high: percentiles over `bootstraps` resamples of the trials, widened to hold the share itself. null: the mean
    share over `rounds` of what chance makes; of a single choice where its own values are shuffled among the trials; of
    a pair where the errors are rebuilt from the single effects and the shuffled residuals (Freedman and Lane 1983), as
    a forest sees interactions in a sum too. clear: low > null. `InputError` with fewer than 10 trials, with equal
    errors, and where no choice varies.
    """
    cells, values = np.asarray(cells), np.asarray(errors, dtype=float)
    check_enough(axes, cells, values)
    if ceiling is not None:
        values = np.minimum(values, ceiling)
    varied = [a for a in range(len(axes)) if len(np.unique(cells[:, a])) > 1]
    axes, cells = tuple(axes[a] for a in varied), cells[:, varied]
    rng = np.random.default_rng(seed)

    def again(some_cells: np.ndarray, some_errors: np.ndarray) -> Forest:
        number = int(rng.integers(2**31))
        return Forest(axes, some_cells, some_errors, trees=RESAMPLED_TREES, seed=number)

    forest = Forest(axes, cells, values, seed=seed)
    samples = []
    for _ in range(bootstraps):
        drawn = rng.integers(len(values), size=len(values))
        samples.append(_row(again(cells[drawn], values[drawn]).shares))
    low, high = percentile_interval(samples)
    share = _row(forest.shares)
    null = np.append(_nulls(forest, cells, again, rounds, rng), np.nan)
    names = [axis.name for axis in axes]
    pairs = list(itertools.combinations(names, 2))
    frame = pd.DataFrame(
        {
            "choice": [*names, *(first for first, _ in pairs), REST],
            "other": [*([""] * len(names)), *(second for _, second in pairs), ""],
            "share": share,
            "low": np.minimum(low, share),
            "high": np.maximum(high, share),
            "null": null,
            "clear": low > null,
        }
    )
    rest = frame["choice"] == REST
    ordered = frame[~rest].sort_values("share", ascending=False, kind="stable")
    effects = pd.concat([ordered, frame[rest]], ignore_index=True)
    return Fanova(effects, forest.r2, len(values), ceiling, forest)


def check_enough(axes: Sequence[Axis], cells: np.ndarray, errors: np.ndarray) -> None:
    """`InputError` for what no forest can learn from."""
    varied = sum(len(np.unique(cells[:, a])) > 1 for a in range(len(axes))) if len(cells) else 0
    if len(errors) < LEAST_TRIALS or not varied:
        raise InputError(
            f"importance needs at least {LEAST_TRIALS} trials with an error and a choice that varies, but got"
            f" {len(errors)} trials and {varied} such choices."
        )
    if errors.min() == errors.max():
        raise InputError(f"importance needs errors that differ, but all {len(errors)} trials have {errors[0]:.4g}.")


def _row(shares: Shares) -> np.ndarray:
    return np.concatenate([shares.single, shares.pair[np.triu_indices(len(shares.single), 1)], [shares.rest]])


def _nulls(forest: Forest, cells: np.ndarray, again: Any, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Of each choice, then of each pair: the mean share where it has none."""
    errors, upper = forest.errors, np.triu_indices(cells.shape[1], 1)
    filled = _filled(cells, forest.box.axes, rng)
    additive = forest.additive(filled)
    single, pair = [], []
    for _ in range(rounds):
        shares = []
        for a in range(cells.shape[1]):
            shuffled = cells.copy()
            shuffled[:, a] = rng.permutation(cells[:, a])
            shares.append(again(shuffled, errors).shares.single[a])
        single.append(shares)
        pair.append(again(cells, additive + rng.permutation(errors - additive)).shares.pair[upper])
    return np.concatenate([np.mean(single, axis=0), np.mean(pair, axis=0)])
