"""Functional ANOVA of a random forest: share of the error's variance due to each choice and each pair of choices.

Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014. A tree is
constant on boxes, so its marginals and their variances are exact sums over its leaves.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.intervals import percentile_interval
from dnas.analysis.trees import Trees
from dnas.errors import InputError
from dnas.space.space import Choice

TREES = 64
RESAMPLED_TREES = 16  # trees of each forest of the bootstrap and of the nulls
LEAF = 3  # minimum number of trials per leaf; with 1, the trees fit the noise of seeds as effects of high order
TREE_TRIALS = 1_000  # maximum number of trials per tree, which bounds the time for thousands of trials
CELLS = 64  # number of cells of a continuous choice
LEAST_TRIALS = 10
BELIEVABLE = 0.25  # minimum R² out of bag for shares that are worth reading
BOOTSTRAPS, ROUNDS = 100, 10
REST = "three and more choices"


@dataclass(frozen=True)
class Axis:
    """One side of the box: the values of a choice, all equally likely.

    ordered: The values are numbers, so a tree splits between them. Otherwise it separates one value from the others.
    """

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
        """Return the index of `value` (the nearest one for numbers), or -1 for an inactive choice (None or NaN)."""
        if value is None or value != value:
            return -1
        if self.ordered:
            return int(np.argmin(np.abs(np.asarray(self.values, dtype=float) - float(value))))
        if value not in self.values:
            raise InputError(f"a trial has {self.name} = {value!r}, which is not a value of the space.")
        return self.values.index(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Shares:
    """Shares of a forest's variance over the box. single: [k]. pair: [k, k], symmetric, 0 on the diagonal."""

    single: np.ndarray
    pair: np.ndarray

    @property
    def rest(self) -> float:
        """Share due to neither single choices nor pairs."""
        return max(0.0, float(1 - self.single.sum() - np.triu(self.pair).sum()))


class Forest:
    """A random forest over the box of `axes`, fitted to trials.

    Args:
        axes: The k axes.
        cells: Index of each trial's value on each axis, [n, k]. -1 if the choice is inactive. Such a value has no
            effect, so it is drawn at random, from which the forest learns that it has none.
        errors: Error of each trial, [n].
        trees: Number of trees.
        seed: Seed of the trees and of the draws.
        leaf: Minimum number of trials per leaf.
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
        self.axes = tuple(axes)
        self.errors = np.asarray(errors, dtype=float)
        rng = np.random.default_rng(seed)
        self._cells = _filled(cells, axes, rng)
        n = len(self.errors)
        drawn = rng.integers(n, size=(trees, min(n, TREE_TRIALS)))
        self._drawn = np.stack([np.bincount(indices, minlength=n) for indices in drawn])
        values, ordered = [axis.values for axis in axes], [axis.ordered for axis in axes]
        self._trees = Trees(values, ordered, self._cells, self.errors, self._drawn, leaf, rng)

    @cached_property
    def r2(self) -> float:
        """R² of the prediction of each trial by the trees that were not fitted to it (out of bag).

        1 is perfect, 0 is no better than the mean, and it can be negative.
        """
        predicted, out_of_bag = self._trees.predict(self._cells), self._drawn == 0
        known = out_of_bag.any(axis=0)
        mean = (predicted * out_of_bag).sum(axis=0)[known] / out_of_bag.sum(axis=0)[known]
        actual = self.errors[known]
        return float(1 - ((actual - mean) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())

    def predict(self, cells: np.ndarray) -> np.ndarray:
        """Predict the error at each row of `cells`."""
        predicted: np.ndarray = self._trees.predict(cells).mean(axis=0)
        return predicted

    @cached_property
    def shares(self) -> Shares:
        """Mean over the trees of the shares of each tree's variance, as in the paper.

        A tree with a single leaf has no variance and is left out.
        """
        return self._boxes.shares(1e-12 * max(1e-12, self.errors.var()))

    def marginal(self, *axes: int) -> np.ndarray:
        """Return the mean predicted error over all other choices at each value of one or two axes, [v] or [v, w]."""
        return self._boxes.marginal(*axes)

    def additive(self, cells: np.ndarray) -> np.ndarray:
        """Predict the error at each row of `cells` from the effects of single choices, without interactions."""
        effects, mean = [self.marginal(a) for a in range(len(self.axes))], self._boxes.mean
        total: np.ndarray = mean + sum(effect[cells[:, a]] - mean for a, effect in enumerate(effects))
        return total

    @cached_property
    def _boxes(self) -> "_Boxes":
        return _Boxes([len(axis.values) for axis in self.axes], self._trees)


class _Boxes:
    """Leaves of a forest's trees, as boxes. All cells of an axis have the same weight."""

    def __init__(self, sizes: Sequence[int], trees: Trees) -> None:
        self._ends = np.cumsum(sizes, dtype=int)
        self._starts = self._ends - np.array(sizes, dtype=int)
        # Share of each axis that each leaf includes, [leaves, axes].
        share = np.add.reduceat(trees.inside, self._starts, axis=1, dtype=float) / sizes
        volume = share.prod(axis=1)
        means = np.bincount(trees.owner, trees.means * volume)
        deviation = trees.means - means[trees.owner]
        self.mean = float(means.mean())
        self._variances = np.bincount(trees.owner, deviation**2 * volume)
        self._mass = deviation * volume
        # Per leaf and cell of an axis: whether the leaf includes the cell, divided by the leaf's share of that axis.
        self._reach = trees.inside / np.repeat(share, sizes, axis=1)
        self._weight = np.repeat(1 / np.asarray(sizes), sizes)  # [cells]
        self._leaves = np.bincount(trees.owner)  # per tree

    def marginal(self, *axes: int) -> np.ndarray:
        """Return the marginal of one or two axes, [v] or [v, w]."""
        first, *rest = (self._reach[:, self._starts[axis] : self._ends[axis]] for axis in axes)
        total = (first * self._mass[:, None]).T @ rest[0] if rest else self._mass @ first
        marginal: np.ndarray = self.mean + total / len(self._leaves)
        return marginal

    def shares(self, least_variance: float) -> Shares:
        """Return the mean shares of the trees with more than a least variance."""
        k, last = len(self._starts), np.cumsum(self._leaves)
        single, pair, count = np.zeros(k), np.zeros((k, k)), 0
        reach = self._reach * np.sqrt(self._weight)
        for first, leaves, variance in zip(last - self._leaves, self._leaves, self._variances, strict=True):
            if variance <= least_variance:
                continue
            part = reach[first : first + leaves]
            mass = self._mass[first : first + leaves]
            alone = np.add.reduceat((mass @ part) ** 2, self._starts)
            both = (
                (part * mass[:, None]).T @ part
            ) ** 2  # marginals of all pairs, squared and weighted, [cells, cells]
            joint = np.add.reduceat(np.add.reduceat(both, self._starts, axis=0), self._starts, axis=1)
            single += alone / variance
            pair += np.maximum(joint - alone[:, None] - alone, 0) / variance
            count += 1
        np.fill_diagonal(pair, 0)
        return Shares(single / max(1, count), pair / max(1, count))


def _filled(cells: np.ndarray, axes: Sequence[Axis], rng: np.random.Generator) -> np.ndarray:
    drawn = np.column_stack([rng.integers(len(axis.values), size=len(cells)) for axis in axes])
    filled: np.ndarray = np.where(cells < 0, drawn, cells)
    return filled


@dataclass(frozen=True)
class Fanova:
    """Result of `fanova`.

    Attributes:
        effects: One row per choice and per pair, largest share first, and the rest of the variance (`REST`) last. The
            columns are choice, other ("" for a single choice), share, low, high (95%), null and clear.
        r2: R² of the forest, out of bag.
        trials: Number of trials.
        ceiling: Value at which errors were clipped, if any.
        forest: Forest fitted to all trials.
    """

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
    """Decompose the variance of the error over the box of `axes` into choices, pairs and effects of higher order.

    The interval of a share consists of percentiles over resamples of the trials, widened to include the share. The null
    is the mean share by chance. For a single choice, its values are shuffled among the trials. For a pair, errors are
    rebuilt from the single effects and shuffled residuals (Freedman and Lane 1983), because a forest finds interactions
    in a sum too. A share is clear if low > null.

    Args:
        axes: The k axes.
        cells: Index of each trial's value on each axis, [n, k], as for `Forest`.
        errors: Error of each trial, [n]. Lower is better.
        ceiling: Clip errors above this value, so that the variance is due to differences below it. This is the cutoff
            of the reference implementation. Hutter et al. clip at the error of a default.
        bootstraps: Number of resamples.
        rounds: Number of rounds of shuffling for the null.
        seed: Seed of all draws.

    Raises:
        InputError: With fewer than 10 trials, with equal errors, or if no choice varies.
    """
    cells, values = np.asarray(cells), np.asarray(errors, dtype=float)
    check_enough(axes, cells, values)
    if ceiling is not None:
        values = np.minimum(values, ceiling)
    varied = [a for a in range(len(axes)) if len(np.unique(cells[:, a])) > 1]
    axes, cells = tuple(axes[a] for a in varied), cells[:, varied]
    rng = np.random.default_rng(seed)

    def refit(new_cells: np.ndarray, new_errors: np.ndarray) -> Forest:
        number = int(rng.integers(2**31))
        return Forest(axes, new_cells, new_errors, trees=RESAMPLED_TREES, seed=number)

    forest = Forest(axes, cells, values, seed=seed)
    samples = []
    for _ in range(bootstraps):
        drawn = rng.integers(len(values), size=len(values))
        samples.append(_row(refit(cells[drawn], values[drawn]).shares))
    low, high = percentile_interval(samples)
    share = _row(forest.shares)
    null = np.append(_nulls(forest, cells, refit, rounds, rng), np.nan)
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
    """Raise `InputError` if the trials are too few to fit a forest, or do not vary."""
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


def _nulls(forest: Forest, cells: np.ndarray, refit: Any, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Return the mean share by chance of each choice, then of each pair. refit: Fits a forest to cells and errors."""
    errors, upper = forest.errors, np.triu_indices(cells.shape[1], 1)
    filled = _filled(cells, forest.axes, rng)
    additive = forest.additive(filled)
    single, pair = [], []
    for _ in range(rounds):
        shares = []
        for a in range(cells.shape[1]):
            shuffled = cells.copy()
            shuffled[:, a] = rng.permutation(cells[:, a])
            shares.append(refit(shuffled, errors).shares.single[a])
        single.append(shares)
        pair.append(refit(cells, additive + rng.permutation(errors - additive)).shares.pair[upper])
    return np.concatenate([np.mean(single, axis=0), np.mean(pair, axis=0)])
