"""Regression trees over a box of cells. All trees of a forest grow together, one level at a time.

Choices have few values, so the sums over the trials in each cell are enough to find the best split of a node exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TIED = 1e-12  # relative difference up to which two splits are equally good


@dataclass(frozen=True)
class _Level:
    """Nodes of one depth.

    Attributes:
        axis: Axis that each inner node splits, [inner].
        left: Places that belong to the left child, [inner, places]. All places of the other axes are among them.
        child: Number of each node's left child in the next level, which the right one follows, or -1 for a leaf.
        value: Mean error of each node.
    """

    axis: np.ndarray
    left: np.ndarray
    child: np.ndarray
    value: np.ndarray


class Trees:
    """Regression trees that minimise the squared error. A tie between two axes is broken at random.

    Inside, the cells of all axes are in one row of places, those of an ordered axis by value. A split of an ordered
    axis is halfway between two values that trials of the node have. A split of another axis separates one value.

    Args:
        values: Value of each cell of each axis.
        ordered: Whether each axis is ordered.
        cells: Cell of each trial on each axis, [n, k].
        errors: Error of each trial, [n].
        counts: How often each tree drew each trial, [trees, n].
        leaf: Minimum number of different trials per leaf.
        rng: Source of random numbers.

    Attributes:
        inside: Whether each leaf includes each cell, by axis, [leaves, cells].
        owner: Tree of each leaf, in ascending order, [leaves].
        means: Mean error of each leaf, [leaves].
    """

    def __init__(
        self,
        values: Sequence[Sequence[Any]],
        ordered: Sequence[bool],
        cells: np.ndarray,
        errors: np.ndarray,
        counts: np.ndarray,
        leaf: int,
        rng: np.random.Generator,
    ) -> None:
        sizes = [len(axis) for axis in values]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._first_end = sizes[0] - 1
        self._axis = np.repeat(np.arange(len(sizes)), sizes)  # of each place
        self._ordered = np.array(ordered)
        keys = [
            np.array(axis, dtype=float) if o else np.arange(len(axis)) for axis, o in zip(values, ordered, strict=True)
        ]
        self._values = np.concatenate([np.sort(axis) for axis in keys]).astype(float)
        self._place = [start + np.argsort(np.argsort(axis)) for start, axis in zip(self._starts, keys, strict=True)]
        self._leaf, self._rng, self._count = leaf, rng, len(counts)
        self._levels: list[_Level] = []
        self._grow(self._places(cells), errors, counts)

    def _places(self, cells: np.ndarray) -> np.ndarray:
        return np.column_stack([place[cells[:, axis]] for axis, place in enumerate(self._place)])

    def _grow(self, places: np.ndarray, errors: np.ndarray, counts: np.ndarray) -> None:
        center = float(errors.mean())
        node, trial = np.nonzero(counts)  # a sample is a trial of a tree
        samples = places[trial], counts[node, trial].astype(float), errors[trial] - center
        limit = TIED * float(errors.var())
        inside, owner = np.ones((self._count, len(self._axis)), dtype=bool), np.arange(self._count)
        leaves: list[tuple[np.ndarray, ...]] = []
        while len(owner):
            _, weights, deviations = samples
            weight, total = np.bincount(node, weights), np.bincount(node, weights * deviations)
            mean = total / weight
            varied = np.bincount(node, weights * deviations**2) - total * mean > limit * weight
            split = np.flatnonzero(varied & (np.bincount(node) >= 2 * self._leaf))
            node, samples = _kept(node, samples, split, len(owner))
            axis, left, good = self._best(node, samples, len(split))
            node, samples = _kept(node, samples, np.flatnonzero(good), len(split))
            axis, left, split = axis[good], left[good], split[good]
            child = np.full(len(owner), -1)
            child[split] = 2 * np.arange(len(split))
            level = _Level(axis, left, child, mean + center)
            self._levels.append(level)
            leaves.append((inside[child < 0], owner[child < 0], level.value[child < 0]))
            node = 2 * node + _is_right(level, node, samples[0])
            other = self._axis != axis[:, None]
            inside = np.stack([inside[split] & left, inside[split] & (~left | other)], axis=1).reshape(
                -1, len(self._axis)
            )
            owner = np.repeat(owner[split], 2)
        inside, owner, self.means = (np.concatenate(parts) for parts in zip(*leaves, strict=True))
        order = np.argsort(owner, kind="stable")
        self.inside, self.owner, self.means = (
            inside[order][:, np.concatenate(self._place)],
            owner[order],
            self.means[order],
        )

    def _best(
        self, node: np.ndarray, samples: tuple[np.ndarray, ...], nodes: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the axis of the best split of each node, its places on the left, and whether there is a split."""
        places, weights, deviations = samples
        size = len(self._axis)
        index = (node[:, None] * size + places).ravel()

        def by_place(part: np.ndarray | None) -> np.ndarray:
            repeated = None if part is None else np.repeat(part, places.shape[1])
            return np.bincount(index, repeated, nodes * size).reshape(nodes, size)

        def sums(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Return the sums of the samples on one side of each possible split, and of all samples of each node."""
            up_to = part.cumsum(axis=1)
            total = up_to[:, [self._first_end]]
            return np.where(self._ordered[self._axis], up_to - total * self._axis, part), total

        held = by_place(None)
        count, all_count = sums(held)
        weight, all_weight = sums(by_place(weights))
        total, all_total = sums(by_place(weights * deviations))
        possible = (count >= self._leaf) & (all_count - count >= self._leaf)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(possible, total**2 / weight + (all_total - total) ** 2 / (all_weight - weight), -np.inf)
        highest = np.maximum.reduceat(gain, self._starts, axis=1)
        best = highest.max(axis=1)
        tied = highest >= (best * (1 - TIED))[:, None]
        axis = np.where(tied, self._rng.random(tied.shape), -1).argmax(axis=1)
        here = self._axis == axis[:, None]
        gain[~here] = -np.inf
        place = gain.argmax(axis=1)
        following = ((held > 0) & here & (np.arange(size) > place[:, None])).argmax(axis=1)
        middle = (self._values[place] + self._values[following]) / 2
        before, apart = self._values <= middle[:, None], np.arange(size) != place[:, None]
        left = np.where(self._ordered[axis][:, None], before, apart) | ~here
        return axis, left, np.isfinite(best)

    def predict(self, cells: np.ndarray) -> np.ndarray:
        """Predict the error of each tree at each row of `cells`, [trees, n]."""
        n = len(cells)
        node, places = np.repeat(np.arange(self._count), n), np.tile(self._places(cells), (self._count, 1))
        predicted, index = np.empty(self._count * n), np.arange(self._count * n)
        for level in self._levels:
            child = level.child[node]
            ends = child < 0
            predicted[index[ends]] = level.value[node[ends]]
            child, places, index = child[~ends], places[~ends], index[~ends]
            node = child + _is_right(level, child // 2, places)
        return predicted.reshape(self._count, n)


def _kept(node: np.ndarray, samples: tuple[np.ndarray, ...], kept: np.ndarray, nodes: int) -> tuple[Any, Any]:
    """Return the samples of some nodes alone, with these nodes numbered from 0."""
    number = np.full(nodes, -1)
    number[kept] = np.arange(len(kept))
    node = number[node]
    inner = node >= 0
    return node[inner], tuple(part[inner] for part in samples)


def _is_right(level: _Level, inner: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return whether samples belong to the right children of their inner nodes."""
    return ~level.left[inner, places[np.arange(len(places)), level.axis[inner]]]
