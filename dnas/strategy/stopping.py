"""Stopping rules, which decide from the reported values alone which trials continue.

`asha`: asynchronous successive halving with promotion (Li et al. 2020, "A System for Massively Parallel Hyperparameter
Tuning"). `hyperband`: several such ladders in parallel, each starting at a later rung (Li et al. 2018, "Hyperband";
asynchronous as in Li et al. 2020). `median`: the median stopping rule (Golovin et al. 2017, "Google Vizier").

With several objectives a trial is compared only with trials of similar size, by the residual of its error after
regressing on size. Early in training a large network has often learnt less than a small one. Compared with all trials
it would always lose, and the search would never explore the large end of the front. The benefit is measured in
benchmarks/results/stopping.md.
"""

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dnas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from dnas.strategy.stratified_rung import StratifiedRung

STOPPINGS = ("asha", "hyperband", "median", "none")
REDUCTION = 3  # one trial in three continues past a rung
FIRST_RUNG = 3  # earliest epoch of a rung; before it the order of errors is mostly chance
STRATA = 4  # size groups within which trials with several objectives are compared
MIN_MEDIAN_TRIALS = 5  # ended trials that the median rule needs; with fewer the median is mostly chance


def check_stopping(name: str, several: bool) -> None:
    """Raise `InputError` if no rule is called `name`, or if it cannot compare trials with `several` objectives."""
    if name not in STOPPINGS:
        raise InputError(
            f"--stopping must be one of {', '.join(STOPPINGS)}, but got {name!r}.{did_you_mean(name, STOPPINGS)}"
        )
    if name == "median" and several:
        raise InputError(
            "--stopping median supports a single objective only; use asha or hyperband, which rank several, or none."
        )


def rungs(epochs: int, reduction: int = REDUCTION) -> tuple[int, ...]:
    """Return the epochs after which trials are compared: epochs/9 and epochs/3, rounded up, from `FIRST_RUNG` on."""
    candidates = {math.ceil(epochs / reduction**2), math.ceil(epochs / reduction)}
    return tuple(sorted(rung for rung in candidates if FIRST_RUNG <= rung < epochs))


LEAST_EPOCHS = next(epochs for epochs in itertools.count(1) if rungs(epochs))  # of a run that may be stopped early


def brackets(epochs: int) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Return the rungs and the number of trials per cycle of each Hyperband bracket, most aggressive first.

    A bracket with s rungs receives ceil((s_max + 1) / (s + 1) · 3^s) trials, so that all brackets spend about the same
    number of epochs (Li et al. 2018, algorithm 1). With 27 epochs there are three brackets: rungs 3 and 9 for 9 trials,
    rung 9 for 5 trials, no rung for 3 trials.
    """
    all_rungs = rungs(epochs)
    s_max = len(all_rungs)
    return tuple(
        (all_rungs[s_max - s :], math.ceil((s_max + 1) / (s + 1) * REDUCTION**s)) for s in range(s_max, -1, -1)
    )


def expected_epochs(name: str, epochs: int, done: int = 0) -> float:
    """Return the number of epochs that a trial will still train if one in `REDUCTION` passes each rung.

    Args:
        name: The rule.
        epochs: Epochs of a complete trial.
        done: Epochs that the trial has trained.
    """
    ladders = {"asha": ((rungs(epochs), 1),), "hyperband": brackets(epochs)}.get(name, (((), 1),))
    trained = 0.0
    for ladder, trials in ladders:
        alive, last = trials / sum(weight for _, weight in ladders), done
        for rung in (*(rung for rung in ladder if rung > done), epochs):
            trained += alive * (rung - last)
            alive, last = alive / REDUCTION, rung
    return trained


def _cycle(weights: Sequence[int]) -> list[int]:
    """Return the bracket of each trial of a cycle, the brackets spread evenly over the cycle.

    At every step each bracket earns its weight as credit. The bracket with the most credit (the first of equals) takes
    the trial and pays the sum of the weights.
    """
    order: list[int] = []
    credits = list(weights)
    while len(order) < sum(weights):
        richest = max(range(len(credits)), key=credits.__getitem__)
        order.append(richest)
        credits[richest] -= sum(weights)
        credits = [credit + weight for credit, weight in zip(credits, weights, strict=True)]
    return order


class Ladder:
    """State and decisions of a stopping rule for the trials of one training length.

    The state is a function of the reported events, in their order. Every objective is minimised. `values` always holds
    the same objectives: first the one measured by training, then (with several) `size`, the first that is known before
    training.

    rungs: all epochs at which the rule may decide.
    pauses: True if a stopped trial may be promoted later, False if it is stopped for good.

    The best third of the trials that reached a rung continues (rounded down, at least one). A paused trial that enters
    this third when others arrive becomes promotable. With one objective the trials with the lowest values are best.

    With several objectives the trials are split at the quantiles of size into `strata` groups of equal count, and each
    group has its own best third, ordered by front (non-dominated rank). The objectives compared are the residual error,
    above the line fitted to the group's errors over log size, and those other than size, which counts as equal within a
    group. On the same front the lowest residual error comes first. The smallest trial of all precedes the rest of its
    group, as no other trial dominates it. `strata=1` is plain multi-objective ASHA for comparison: one group, with
    every objective unchanged.

    Hyperband's brackets receive the trials in turn by number, according to their shares of a cycle (`brackets`). A
    trial is compared only within its own bracket.
    """

    def __init__(self, name: str, epochs: int, *, several: bool, strata: int = STRATA) -> None:
        check_stopping(name, several)
        self.pauses = name in ("asha", "hyperband")
        self._epochs, self._several = epochs, several
        self._medians: _Medians | None = None
        ladders = brackets(epochs) if name == "hyperband" else ((rungs(epochs) if name == "asha" else (), 1),)
        self._cycle = _cycle([weight for _, weight in ladders])
        self._rungs: list[dict[int, StratifiedRung | _PlainRung]] = [
            {epoch: _make_rung(strata if several else None) for epoch in epochs_of} for epochs_of, _ in ladders
        ]
        self.rungs = tuple(sorted({epoch for bracket in self._rungs for epoch in bracket}))
        if name == "median" and (median_rungs := rungs(epochs)):
            self._medians = _Medians()
            self.rungs = tuple(range(median_rungs[0], epochs))
        self._last: dict[int, int] = {}  # last recorded epoch of each trial
        self._paused: dict[int, int] = {}  # rung at which each paused trial waits

    def decide(self, number: int, epoch: int, values: tuple[float, ...], size: float | None) -> bool:
        """Return True if trial `number` with `values` after `epoch` would continue. The state is unchanged."""
        self._check(values, size)
        if self._medians is not None:
            return epoch not in self.rungs or self._medians.would_continue(number, epoch, values[0])
        rung = self._rung_of(number, epoch)
        return True if rung is None else rung.would_pass(number, values)

    def note(self, number: int, epoch: int, values: tuple[float, ...], size: float | None, go_on: bool) -> None:
        """Record the report of an epoch and its decision. Every epoch of a trial is recorded once, in order."""
        self._check(values, size)
        assert epoch > self._last.get(number, 0), "an epoch is recorded once"
        assert number not in self._paused, "a paused trial trains no epochs"
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
        """Return the number of the paused trial to resume now, or None if there is none.

        It is the best one of its group at the highest rung. The state is unchanged.
        """
        for epoch in reversed(self.rungs) if self.pauses else ():
            waiting = [entry for bracket in self._rungs if epoch in bracket for entry in bracket[epoch].waiting()]
            if waiting:
                return min(waiting)[1]
        return None

    def promote(self, number: int) -> None:
        """Record that a paused trial resumes."""
        rung = self._rung_of(number, self._paused.pop(number))
        assert rung is not None
        rung.set_paused(number, False)

    def forget(self, number: int) -> None:
        """Remove a trial that failed or cannot be trained. It is no longer counted or promotable."""
        self._paused.pop(number, None)
        self._last.pop(number, None)
        if self._medians is not None:
            self._medians.forget(number)
        for rung in self._bracket(number).values():
            rung.remove(number)

    def _bracket(self, number: int) -> "dict[int, StratifiedRung | _PlainRung]":
        return self._rungs[self._cycle[number % len(self._cycle)]]

    def _rung_of(self, number: int, epoch: int) -> "StratifiedRung | _PlainRung | None":
        return self._bracket(number).get(epoch)

    def _check(self, values: tuple[float, ...], size: float | None) -> None:
        assert all(math.isfinite(value) for value in values), "a diverged run has failed and is never compared"
        if self._several:
            assert size is not None, "with several objectives trials are compared within size groups"
            assert size == values[1] > 0, "the size is the second objective"


def _make_rung(strata: int | None) -> "StratifiedRung | _PlainRung":
    """Return a rung for several objectives, or for one if `strata` is None."""
    if strata is None:
        return _PlainRung()
    from dnas.strategy.stratified_rung import StratifiedRung  # imports NumPy, which a plan does not need

    return StratifiedRung(strata, REDUCTION)


class _PlainRung:
    """A rung of one objective and one group, kept sorted so that adding a trial stays cheap as the rung grows."""

    def __init__(self) -> None:
        self._order: list[tuple[float, int]] = []  # (value, number) of every trial, best first
        self._paused: list[tuple[float, int]] = []  # (value, number) of every paused trial, best first
        self._value: dict[int, float] = {}

    def would_pass(self, number: int, values: tuple[float, ...]) -> bool:
        """Return True if a trial arriving now would be in the best third. The state is unchanged."""
        return bisect_left(self._order, (values[0], number)) < max(1, (len(self._order) + 1) // REDUCTION)

    def add(self, number: int, values: tuple[float, ...]) -> None:
        self._value[number] = values[0]
        insort(self._order, (values[0], number))

    def set_paused(self, number: int, paused: bool) -> None:
        entry = (self._value[number], number)
        if paused:
            insort(self._paused, entry)
        elif (rank := _rank(self._paused, entry)) is not None:
            del self._paused[rank]

    def remove(self, number: int) -> None:
        if number not in self._value:
            return
        entry = (self._value.pop(number), number)
        for entries in (self._order, self._paused):
            if (rank := _rank(entries, entry)) is not None:
                del entries[rank]

    def waiting(self) -> list[tuple[int, int]]:
        """Return the rank and number of the best paused trial if it is in the best third."""
        if not self._paused:
            return []
        rank = bisect_left(self._order, self._paused[0])
        return [(rank, self._paused[0][1])] if rank < max(1, len(self._order) // REDUCTION) else []


def _rank(entries: list[tuple[float, int]], entry: tuple[float, int]) -> int | None:
    rank = bisect_left(entries, entry)
    return rank if rank < len(entries) and entries[rank] == entry else None


class _Medians:
    """Running averages and best values of all trials, for the median stopping rule."""

    def __init__(self) -> None:
        self._best: dict[int, float] = {}
        self._averages: dict[int, dict[int, float]] = {}  # number -> epoch -> mean of the values up to this epoch
        self._ended: dict[int, list[float]] = {}  # epoch -> sorted averages of the ended trials up to this epoch
        self._has_ended: set[int] = set()

    def would_continue(self, number: int, epoch: int, value: float) -> bool:
        """Return True if the trial's best value is no worse than the median average of ended trials at `epoch`."""
        ended = self._ended.get(epoch, [])
        if len(ended) < MIN_MEDIAN_TRIALS:
            return True
        middle = len(ended) // 2
        median = ended[middle] if len(ended) % 2 else (ended[middle - 1] + ended[middle]) / 2
        return min(value, self._best.get(number, math.inf)) <= median

    def note(self, number: int, epoch: int, value: float, ended: bool) -> None:
        averages = self._averages.setdefault(number, {})
        previous = averages[max(averages)] if averages else 0.0
        averages[epoch] = previous + (value - previous) / (len(averages) + 1)
        self._best[number] = min(value, self._best.get(number, math.inf))
        if ended:
            self._has_ended.add(number)
            for earlier, average in averages.items():
                insort(self._ended.setdefault(earlier, []), average)

    def forget(self, number: int) -> None:
        if number in self._has_ended:
            for epoch, average in self._averages[number].items():
                del self._ended[epoch][bisect_left(self._ended[epoch], average)]
            self._has_ended.remove(number)
        self._best.pop(number, None)
        self._averages.pop(number, None)
