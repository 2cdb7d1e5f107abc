"""Pareto arithmetic on points whose values are all minimised: fronts, crowding distance and hypervolume."""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


def nondominated_ranks(values: np.ndarray) -> np.ndarray:
    """Return the front number [n] of each row of `values` [n, m] (minimised, finite).

    Front 0 holds the rows that no other row dominates, front 1 the rows that only front 0 dominates, and so on. Equal
    rows share a front. One row dominates another if it is no worse in every column and better in at least one (Deb et
    al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II", section III-A).
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    ranks = np.zeros(count, dtype=int)
    if count == 0 or values.shape[1] == 1:
        return np.unique(values[:, 0], return_inverse=True)[1] if count else ranks
    if values.shape[1] == 2:
        return _ranks_of_two(values)
    no_worse, better = np.ones((count, count), dtype=bool), np.zeros((count, count), dtype=bool)
    for column in values.T:  # one column at a time: an array [n, n, m] would not fit the cache
        no_worse &= column[:, None] <= column[None, :]
        better |= column[:, None] < column[None, :]
    dominates = no_worse & better  # [i, j]: i dominates j
    dominators = dominates.sum(axis=0)  # number of remaining rows that dominate each row
    rank, remaining = 0, np.ones(count, dtype=bool)
    while remaining.any():
        front = remaining & (dominators == 0)
        ranks[front] = rank
        remaining &= ~front
        dominators -= dominates[front].sum(axis=0)
        rank += 1
    return ranks


def _ranks_of_two(values: np.ndarray) -> np.ndarray:
    """Rank rows of two columns [n, 2] by a sweep, without pairwise comparison (Jensen 2003).

    Rows are visited in order of the first column, then the second. A row belongs to the first front whose last row has
    a greater second value. Equal rows share a rank.
    """
    order = np.lexsort((values[:, 1], values[:, 0]))
    ranks = np.zeros(len(values), dtype=int)
    last_seconds: list[float] = []  # second value of the last row of each front, ascending
    previous: tuple[float, float] | None = None
    rank = 0
    for index, (first, second) in zip(order.tolist(), values[order].tolist(), strict=True):
        if (first, second) != previous:
            rank = bisect_right(last_seconds, second)
            last_seconds[rank : rank + 1] = [second]
            previous = (first, second)
        ranks[index] = rank
    return ranks


def crowding(values: np.ndarray) -> np.ndarray:
    """Return the crowding distance [n] of the rows of `values` [n, m], which form one front.

    The distance is the sum over objectives of the gap between a row's two neighbours, as a fraction of the range. The
    rows at the ends of an objective are infinitely far (Deb et al. 2002, section III-B).
    """
    values = np.asarray(values, dtype=float)
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0 and len(values) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def hypervolume(values: np.ndarray, reference: Sequence[float] | np.ndarray) -> float:
    """Return the volume that the rows of `values` [n, m] dominate below `reference` [m].

    Rows that are not below the reference in every column add nothing. The result is exact. The algorithm slices along
    the last objective and is intended for two or three objectives.
    """
    values, corner = np.asarray(values, dtype=float).reshape(-1, len(reference)), np.asarray(reference, dtype=float)
    values = values[np.all(values < corner, axis=1)]
    if len(values) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(corner[0] - values[:, 0].min())
    if values.shape[1] == 2:
        ordered = values[np.lexsort((values[:, 1], values[:, 0]))]
        floor = np.minimum.accumulate(np.concatenate([[corner[1]], ordered[:, 1]]))
        return float(np.sum((corner[0] - ordered[:, 0]) * (floor[:-1] - floor[1:])))
    ordered = values[np.argsort(values[:, -1], kind="stable")]
    heights = np.diff(np.append(ordered[:, -1], corner[-1]))
    return float(
        sum(height * hypervolume(ordered[: i + 1, :-1], corner[:-1]) for i, height in enumerate(heights) if height > 0)
    )
