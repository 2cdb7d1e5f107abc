"""One rung of a stopping rule with several objectives, which compares trials of similar size."""

import copy

import numpy as np

from dnas.space.pareto import nondominated_ranks

MIN_TREND_TRIALS = 6  # trials of a group that a regression line needs; with fewer it fits their noise


class StratifiedRung:
    """The trials that reached one rung, one row per trial in order of arrival. One in `reduction` of a group passes.

    The arrays are replaced, never modified in place.
    """

    def __init__(self, strata: int, reduction: int) -> None:
        self._count, self._reduction = strata, reduction
        self._numbers = np.empty(0, dtype=int)
        self._values = np.empty((0, 0))
        self._paused = np.empty(0, dtype=bool)
        self._strata = np.empty(0, dtype=int)
        self._waiting: list[tuple[int, int]] | None = None  # result of `waiting` since the last change

    def add(self, number: int, values: tuple[float, ...]) -> None:
        row = np.array([values], dtype=float)
        self._values = row if len(self._values) == 0 else np.concatenate([self._values, row])
        self._numbers = np.append(self._numbers, number)
        self._paused = np.append(self._paused, False)
        self._stratify()

    def would_pass(self, number: int, values: tuple[float, ...]) -> bool:
        """Return True if a trial arriving now would be in the best third of its group. The state is unchanged."""
        extended = copy.copy(self)  # shallow, as the arrays are never modified in place
        extended.add(number, values)
        return extended.passes(number)

    def set_paused(self, number: int, paused: bool) -> None:
        self._paused = np.where(self._numbers == number, paused, self._paused)
        self._waiting = None

    def remove(self, number: int) -> None:
        keep = self._numbers != number
        self._numbers, self._values, self._paused = self._numbers[keep], self._values[keep], self._paused[keep]
        self._stratify()

    def _stratify(self) -> None:
        """Split the trials at the quantiles of size. Trials of equal size stay together."""
        self._waiting, count = None, len(self._numbers)
        if self._count == 1 or count == 0:
            self._strata = np.zeros(count, dtype=int)
            return
        ordered = np.sort(self._values[:, 1])
        edges = ordered[[stratum * count // self._count for stratum in range(1, self._count)]]
        self._strata = np.searchsorted(edges, self._values[:, 1], side="right")

    def passes(self, number: int) -> bool:
        """Return True if a trial is in the best third of its group."""
        row = int(np.flatnonzero(self._numbers == number)[0])
        return row in self._best_third(int(self._strata[row]))

    def waiting(self) -> list[tuple[int, int]]:
        """Return the rank and number of the best paused trial in the best third of each group."""
        if self._waiting is None:
            self._waiting = []
            for stratum in np.unique(self._strata[self._paused]):
                best = self._best_third(int(stratum))
                places = np.flatnonzero(self._paused[best])
                if len(places):
                    self._waiting.append((int(places[0]), int(self._numbers[best[places[0]]])))
        return self._waiting

    def _best_third(self, stratum: int) -> np.ndarray:
        """Return the rows of the trials of a group that continue, best first."""
        rows = np.flatnonzero(self._strata == stratum)
        values = self._values[rows]
        smallest = np.zeros(len(rows), dtype=bool)
        if self._count > 1:
            sizes = values[:, 1]
            smallest = sizes == self._values[:, 1].min()
            values = np.column_stack([_residual_errors(values[:, 0], np.log(sizes)), values[:, 2:]])
        fronts = nondominated_ranks(values) if values.shape[1] > 1 else np.zeros(len(rows))
        order = np.lexsort((self._numbers[rows], values[:, 0], fronts))
        end = np.flatnonzero(smallest[order])[:1]  # the best of several smallest trials
        order = np.concatenate([order[end], np.delete(order, end)])
        return rows[order[: max(1, len(rows) // self._reduction)]]


def _residual_errors(errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the residuals of `errors` [n] from their least-squares line over `sizes` [n].

    The errors are returned unchanged if there are fewer than `MIN_TREND_TRIALS`, or if all have one size.
    """
    deviations = sizes - sizes.mean()
    spread = np.sum(deviations**2)
    if len(errors) < MIN_TREND_TRIALS or spread < 1e-12:
        return errors
    residuals = errors - errors.mean() - deviations * (np.sum(deviations * errors) / spread)
    return np.round(residuals, 9)  # the last bits differ between machines and must not decide
