"""Which trials are worth going on with: decisions on numbers alone.

`asha`: asynchronous successive halving with promotion (Li et al. 2020, "A System for Massively Parallel Hyperparameter
Tuning"). `hyperband`: several such ladders side by side that begin at later and later rungs (Li et al. 2018,
"Hyperband"; asynchronous as in Li et al. 2020). `median`: the median stopping rule (Golovin et al. 2017, "Google
Vizier").

With several objectives a trial is compared with those of about its own size only, and by its error less what its size
explains: early in training a large network has often learnt less than a small one, so against all it would always lose,
and the large end of the front would never be seen. What that is worth: benchmarks/results/stopping.md.
"""

import copy
import math
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from dnas.errors import InputError, did_you_mean
from dnas.space.pareto import nondominated_ranks

STOPPINGS = ("asha", "hyperband", "median", "none")
REDUCTION = 3  # one in three goes on past a rung
FIRST_RUNG = 3  # earlier than this the order of errors is mostly chance
STRATA = 4  # groups of size within which trials with several objectives are compared
TREND_NEEDS = 6  # trials of a group: a line through fewer follows their noise
MEDIAN_NEEDS = 5  # ended trials: the median of fewer is mostly chance


def check_stopping(name: str, several: bool) -> None:
    """`InputError` where no rule is called `name`, or where it cannot compare trials with `several` objectives."""
    if name not in STOPPINGS:
        raise InputError(
            f"--stopping must be one of {', '.join(STOPPINGS)}, but got {name!r}.{did_you_mean(name, STOPPINGS)}"
        )
    if name == "median" and several:
        raise InputError(
            "--stopping median needs a single objective, for several values have no median;"
            " use asha or hyperband, which rank them, or none."
        )


def rungs(epochs: int, reduction: int = REDUCTION) -> tuple[int, ...]:
    """The epochs after which trials are compared: epochs/9 and epochs/3, rounded up; none before `FIRST_RUNG`."""
    found = {math.ceil(epochs / reduction**2), math.ceil(epochs / reduction)}
    return tuple(sorted(rung for rung in found if FIRST_RUNG <= rung < epochs))


def brackets(epochs: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Hyperband's brackets, the most aggressive first: the rungs of each, and how many trials of a cycle it gets.

    With s rungs a bracket gets ceil((s_max + 1) / (s + 1) · 3^s) trials, so that all spend about as many epochs (Li et
    al. 2018, algorithm 1). For 27 epochs: rungs 3 and 9 for 9 trials, rung 9 for 5, none for 3.
    """
    every = rungs(epochs)
    most = len(every)
    return tuple(
        (every[most - left :], math.ceil((most + 1) / (left + 1) * REDUCTION**left)) for left in range(most, -1, -1)
    )


def _cycle(weights: Sequence[int]) -> list[int]:
    """Which bracket each trial of a cycle goes to, the brackets spread evenly over it: at every step each gains its
    weight, and the richest (the first of equals) takes the trial and pays for it with the sum of the weights."""
    order: list[int] = []
    wealth = list(weights)
    while len(order) < sum(weights):
        richest = max(range(len(wealth)), key=wealth.__getitem__)
        order.append(richest)
        wealth[richest] -= sum(weights)
        wealth = [have + gain for have, gain in zip(wealth, weights, strict=True)]
    return order


class Ladder:
    """What a stopping rule knows of the trials of one training length, and what it decides.

    Fed with events in order; its state is a function of them alone. Every objective is minimised, and `values` has the
    same ones every time: first the one that training measures, then (with several) `size`, the first that is known
    before it.

    rungs: every epoch at which something may be decided.
    pauses: whether a trial that is stopped may be promoted later, or is stopped for good.

    At a rung the best third of those that reached it goes on (rounded down, at least one), and a paused trial that
    comes into that third when others arrive is promotable. With one objective the best have the least value.

    With several, the trials are split at the quantiles of size into `strata` groups of equal number, and each has
    its best third, in order of front (non-dominated rank). Compared are the error for its size, which is what lies over
    the line through the group's errors against log size, and the objectives other than size, in which all of a group
    count as equal; on the same front the least error for its size comes first. The smallest of all comes before the
    rest of its group: whatever its error, no other dominates it. `strata=1` is plain multi-objective ASHA, to compare
    with: one group, every objective as it is.

    Hyperband's brackets take the trials in turn by their numbers, each its share of every cycle (`brackets`), and a
    trial is compared within its own bracket only.
    """

    def __init__(self, name: str, epochs: int, *, several: bool, strata: int = STRATA) -> None:
        check_stopping(name, several)
        self.pauses = name in ("asha", "hyperband")
        self._epochs, self._several = epochs, several
        self._medians: _Medians | None = None
        found = brackets(epochs) if name == "hyperband" else ((rungs(epochs) if name == "asha" else (), 1),)
        self._cycle = _cycle([weight for _, weight in found])
        self._rungs: list[dict[int, _Rung | _PlainRung]] = [
            {epoch: _Rung(strata) if several else _PlainRung() for epoch in epochs_of} for epochs_of, _ in found
        ]
        self.rungs = tuple(sorted({epoch for bracket in self._rungs for epoch in bracket}))
        if name == "median" and (every := rungs(epochs)):
            self._medians = _Medians()
            self.rungs = tuple(range(every[0], epochs))
        self._last: dict[int, int] = {}  # the last epoch noted of each trial
        self._paused: dict[int, int] = {}  # the rung at which each paused trial waits

    def decide(self, number: int, epoch: int, values: tuple[float, ...], size: float | None) -> bool:
        """Whether trial `number`, having `values` after `epoch`, would go on. Changes nothing."""
        self._check(values, size)
        if self._medians is not None:
            return epoch not in self.rungs or self._medians.goes_on(number, epoch, values[0])
        rung = self._rung_of(number, epoch)
        return True if rung is None else rung.would_pass(number, values)

    def note(self, number: int, epoch: int, values: tuple[float, ...], size: float | None, go_on: bool) -> None:
        """Records an epoch's report and what was decided: every epoch of a trial, once and in order."""
        self._check(values, size)
        assert epoch > self._last.get(number, 0), "an epoch is noted once"
        assert number not in self._paused, "a paused trial trains no epoch"
        self._last[number] = epoch
        if self._medians is not None:
            self._medians.note(number, epoch, values[0], ended=not go_on or epoch == self._epochs)
        rung = self._rung_of(number, epoch)
        if rung is not None:
            rung.add(number, values)
            if not go_on:
                rung.set_paused(number, True)
                self._paused[number] = epoch

    def promotable(self) -> int | None:
        """The paused trial that should go on now, if any: of the highest rung, the best placed in its group. Changes
        nothing."""
        for epoch in reversed(self.rungs) if self.pauses else ():
            waiting = [one for bracket in self._rungs if epoch in bracket for one in bracket[epoch].waiting()]
            if waiting:
                return min(waiting)[1]
        return None

    def promote(self, number: int) -> None:
        """A paused trial goes on."""
        rung = self._rung_of(number, self._paused.pop(number))
        assert rung is not None
        rung.set_paused(number, False)

    def forget(self, number: int) -> None:
        """A trial failed or cannot be trained: it is never promotable, and no longer counted."""
        self._paused.pop(number, None)
        self._last.pop(number, None)
        if self._medians is not None:
            self._medians.forget(number)
        for rung in self._bracket(number).values():
            rung.remove(number)

    def _bracket(self, number: int) -> "dict[int, _Rung | _PlainRung]":
        return self._rungs[self._cycle[number % len(self._cycle)]]

    def _rung_of(self, number: int, epoch: int) -> "_Rung | _PlainRung | None":
        return self._bracket(number).get(epoch)

    def _check(self, values: tuple[float, ...], size: float | None) -> None:
        assert all(math.isfinite(value) for value in values), "a run that diverged is failed, and never compared"
        if self._several:
            assert size is not None, "with several objectives trials are compared within groups of size"
            assert size == values[1] > 0, "the size is the second objective"


class _Rung:
    """The trials that reached one rung, a row each in order of arrival. Its arrays are replaced, never written into."""

    def __init__(self, strata: int) -> None:
        self._count = strata
        self._numbers = np.empty(0, dtype=int)
        self._values = np.empty((0, 0))
        self._paused = np.empty(0, dtype=bool)
        self._strata = np.empty(0, dtype=int)
        self._waiting: list[tuple[int, int]] | None = None  # what `waiting` found since the last change

    def add(self, number: int, values: tuple[float, ...]) -> None:
        row = np.array([values], dtype=float)
        self._values = row if len(self._values) == 0 else np.concatenate([self._values, row])
        self._numbers = np.append(self._numbers, number)
        self._paused = np.append(self._paused, False)
        self._stratify()

    def would_pass(self, number: int, values: tuple[float, ...]) -> bool:
        """Whether a trial that came now would be among the best third of its group. Changes nothing."""
        then = copy.copy(self)  # shallow: the arrays are replaced, and never written into
        then.add(number, values)
        return then.passes(number)

    def set_paused(self, number: int, paused: bool) -> None:
        self._paused = np.where(self._numbers == number, paused, self._paused)
        self._waiting = None

    def remove(self, number: int) -> None:
        keep = self._numbers != number
        self._numbers, self._values, self._paused = self._numbers[keep], self._values[keep], self._paused[keep]
        self._stratify()

    def _stratify(self) -> None:
        """Splits all at the quantiles of size; those of one size stay together."""
        self._waiting, count = None, len(self._numbers)
        if self._count == 1 or count == 0:
            self._strata = np.zeros(count, dtype=int)
            return
        ordered = np.sort(self._values[:, 1])
        edges = ordered[[stratum * count // self._count for stratum in range(1, self._count)]]
        self._strata = np.searchsorted(edges, self._values[:, 1], side="right")

    def passes(self, number: int) -> bool:
        """Whether a trial is among the best third of its group."""
        row = int(np.flatnonzero(self._numbers == number)[0])
        return row in self._best_third(int(self._strata[row]))

    def waiting(self) -> list[tuple[int, int]]:
        """Of each group, the place and the number of the best paused trial that is among its best third."""
        if self._waiting is None:
            self._waiting = []
            for stratum in np.unique(self._strata[self._paused]):
                best = self._best_third(int(stratum))
                places = np.flatnonzero(self._paused[best])
                if len(places):
                    self._waiting.append((int(places[0]), int(self._numbers[best[places[0]]])))
        return self._waiting

    def _best_third(self, stratum: int) -> np.ndarray:
        """Rows of those in a group that go on, the best first."""
        rows = np.flatnonzero(self._strata == stratum)
        values = self._values[rows]
        smallest = np.zeros(len(rows), dtype=bool)
        if self._count > 1:
            sizes = values[:, 1]
            smallest = sizes == self._values[:, 1].min()
            values = np.column_stack([_for_its_size(values[:, 0], np.log(sizes)), values[:, 2:]])
        fronts = nondominated_ranks(values) if values.shape[1] > 1 else np.zeros(len(rows))
        order = np.lexsort((self._numbers[rows], values[:, 0], fronts))
        end = np.flatnonzero(smallest[order])[:1]  # of several that are the smallest, the best
        order = np.concatenate([order[end], np.delete(order, end)])
        return rows[order[: max(1, len(rows) // REDUCTION)]]


class _PlainRung:
    """A `_Rung` of one objective and one group, which is sorted as it grows: a trial costs the same, however many came
    before it."""

    def __init__(self) -> None:
        self._order: list[tuple[float, int]] = []  # value and number of all, the best first
        self._paused: list[tuple[float, int]] = []  # those of them that are paused
        self._value: dict[int, float] = {}

    def would_pass(self, number: int, values: tuple[float, ...]) -> bool:
        """Whether a trial that came now would be among the best third. Changes nothing."""
        return bisect_left(self._order, (values[0], number)) < max(1, (len(self._order) + 1) // REDUCTION)

    def add(self, number: int, values: tuple[float, ...]) -> None:
        self._value[number] = values[0]
        insort(self._order, (values[0], number))

    def set_paused(self, number: int, paused: bool) -> None:
        one = (self._value[number], number)
        if paused:
            insort(self._paused, one)
        elif (place := _place(self._paused, one)) is not None:
            del self._paused[place]

    def remove(self, number: int) -> None:
        if number not in self._value:
            return
        one = (self._value.pop(number), number)
        for ordered in (self._order, self._paused):
            if (place := _place(ordered, one)) is not None:
                del ordered[place]

    def waiting(self) -> list[tuple[int, int]]:
        """The place and the number of the best paused trial, if it is among the best third."""
        if not self._paused:
            return []
        place = bisect_left(self._order, self._paused[0])
        return [(place, self._paused[0][1])] if place < max(1, len(self._order) // REDUCTION) else []


def _place(ordered: list[tuple[float, int]], one: tuple[float, int]) -> int | None:
    place = bisect_left(ordered, one)
    return place if place < len(ordered) and ordered[place] == one else None


def _for_its_size(errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What of `errors` [n] lies above the least-squares line over `sizes` [n]; the errors themselves where there are
    too few for a line, or all are of one size."""
    away = sizes - sizes.mean()
    spread = np.sum(away**2)
    if len(errors) < TREND_NEEDS or spread < 1e-12:
        return errors
    above = errors - errors.mean() - away * (np.sum(away * errors) / spread)
    return np.round(above, 9)  # so that the last bits, which differ between machines, decide nothing


class _Medians:
    """Running averages of the trials that have ended, and the curves of those that have not."""

    def __init__(self) -> None:
        self._best: dict[int, float] = {}
        self._averages: dict[int, dict[int, float]] = {}  # number -> epoch -> mean of its values up to it
        self._ended: dict[int, list[float]] = {}  # epoch -> what the ended trials averaged up to it, in order
        self._has_ended: set[int] = set()

    def goes_on(self, number: int, epoch: int, value: float) -> bool:
        """Whether the best of the trial so far is no worse than the median of what ended trials averaged by then."""
        ended = self._ended.get(epoch, [])
        if len(ended) < MEDIAN_NEEDS:
            return True
        middle = len(ended) // 2
        median = ended[middle] if len(ended) % 2 else (ended[middle - 1] + ended[middle]) / 2
        return min(value, self._best.get(number, math.inf)) <= median

    def note(self, number: int, epoch: int, value: float, ended: bool) -> None:
        averages = self._averages.setdefault(number, {})
        before = averages[max(averages)] if averages else 0.0
        averages[epoch] = before + (value - before) / (len(averages) + 1)
        self._best[number] = min(value, self._best.get(number, math.inf))
        if ended:
            self._has_ended.add(number)
            for then, average in averages.items():
                insort(self._ended.setdefault(then, []), average)

    def forget(self, number: int) -> None:
        if number in self._has_ended:
            for epoch, average in self._averages[number].items():
                del self._ended[epoch][bisect_left(self._ended[epoch], average)]
            self._has_ended.remove(number)
        self._best.pop(number, None)
        self._averages.pop(number, None)
