"""What a search minimises, and how points with several such values are compared. Arithmetic only.

Measured by training: val_error, val_loss. Known before it: params, macs, activation_bytes (at the recipe's batch size).
Measured on the device before training: latency. Every objective is minimised.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from dnas.errors import InputError, did_you_mean

TRAINED = ("val_error", "val_loss")  # a value after each epoch
PRICED = ("params", "macs", "activation_bytes")  # exact before anything is built
TIMED = ("latency",)  # seconds of a forward pass of one image, measured once a trial
OBJECTIVES = (*TRAINED, *PRICED, *TIMED)
WORST = {"val_error": 1.0, "val_loss": 100.0}  # what a run that diverged is told as


def read_objectives(text: str) -> tuple[str, ...]:
    """`val_error,params` as a tuple, what is trained first. `InputError` where one is unknown, named twice, or where
    none (or more than one) is measured by training."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(
                f"--objective must name some of {', '.join(OBJECTIVES)}, but got {name!r}."
                f"{did_you_mean(name, OBJECTIVES)}"
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"--objective names {', '.join(repeated)} twice; once is enough.")
    trained = [name for name in names if name in TRAINED]
    if len(trained) != 1:
        raise InputError(
            f"--objective needs just one of {' and '.join(TRAINED)}, which training measures, but got {text!r}."
        )
    return (*trained, *(name for name in names if name not in TRAINED))


def nondominated_ranks(values: np.ndarray) -> np.ndarray:
    """Front of each row of `values` [n, m] (minimised, finite): 0 for those that no other dominates, 1 for those that
    only front 0 dominates, and so on. Equal rows share a front.

    One row dominates another if it is no worse in every column and better in one (Deb et al. 2002, "A fast and elitist
    multiobjective genetic algorithm: NSGA-II", section III-A).
    """
    values = np.asarray(values, dtype=float)
    count = len(values)
    ranks = np.zeros(count, dtype=int)
    if count == 0 or values.shape[1] == 1:
        return np.unique(values[:, 0], return_inverse=True)[1] if count else ranks
    if values.shape[1] == 2:
        return _ranks_of_two(values)
    no_worse, better = np.ones((count, count), dtype=bool), np.zeros((count, count), dtype=bool)
    for column in values.T:  # a column at a time: [n, n, m] would not fit the cache
        no_worse &= column[:, None] <= column[None, :]
        better |= column[:, None] < column[None, :]
    dominates = no_worse & better  # [i, j]: i dominates j
    above = dominates.sum(axis=0)  # of each row, how many that are left dominate it
    front, left = 0, np.ones(count, dtype=bool)
    while left.any():
        free = left & (above == 0)
        ranks[free] = front
        left &= ~free
        above -= dominates[free].sum(axis=0)
        front += 1
    return ranks


def _ranks_of_two(values: np.ndarray) -> np.ndarray:
    """Two objectives need no pairwise comparison: in order of the first, then the second, a row's front is the first
    one whose last row has a greater second value (Jensen 2003's sweep); an equal row shares its twin's."""
    order = np.lexsort((values[:, 1], values[:, 0]))
    ranks = np.zeros(len(values), dtype=int)
    lasts: list[float] = []  # of each front, the second value of its last row: ascending
    before: tuple[float, float] | None = None
    rank = 0
    for index, (first, second) in zip(order.tolist(), values[order].tolist(), strict=True):
        if (first, second) != before:
            rank = bisect_right(lasts, second)
            lasts[rank : rank + 1] = [second]
            before = (first, second)
        ranks[index] = rank
    return ranks


def crowding(values: np.ndarray) -> np.ndarray:
    """Crowding distance of each row of `values` [n, m], which lie on one front: the sum over the objectives of the gap
    between its neighbours, as a share of the range; the ends of each are infinitely far (Deb et al. 2002, III-B)."""
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
    """The volume that the rows of `values` [n, m] dominate below `reference` [m]: rows that reach it in no column add
    nothing. Exact, by slicing along the last objective; meant for two or three."""
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
