"""Estimates of the remaining time of a study, for the display of a search and for `dnas status`."""

import time
from collections.abc import Callable, Mapping, Sequence

from dnas.formatting import count, duration, percent
from dnas.study.record import TrialRecord, rank

ExpectedEpochs = Callable[[int, int], float]  # (planned, done) -> epochs that a trial is expected to train still
EXPECTED_WEIGHT = 3  # ended trials that count as much as the expectation in the mean cost of a trial


def weight(record: TrialRecord) -> int:
    """Return the multiply-adds of one image, by which epochs are weighted; 1 for a run of the user's own code."""
    return record.cost.get("macs", 1)


def all_planned(planned: int, done: int) -> float:
    """Return the remaining epochs of a run that is never stopped early."""
    return planned - done


def remaining_work(
    records: Sequence[TrialRecord],
    wanted: int,
    expected: ExpectedEpochs = all_planned,
    partial: Mapping[int, float] | None = None,
) -> float:
    """Return the epochs that are left to train, weighted by the macs of each network.

    Trials that were not proposed yet are assumed to cost as much as the stopping rule lets expect, and increasingly as
    much as the ended trials did.

    Args:
        records: The trials that exist, at least one.
        wanted: Number of trials at the end.
        expected: Expected epochs of a trial under the stopping rule.
        partial: Finished fraction of the current epoch of running trials, by number.
    """
    partial = partial or {}
    work, ended = 0.0, []
    for record in records:
        if record.state == "running":
            epochs = expected(record.epochs_planned, record.epochs) - partial.get(record.number, 0.0)
            work += max(0.0, epochs) * weight(record)
        else:
            ended.append(record.epochs * weight(record))
    mean = sum(expected(record.epochs_planned, 0) * weight(record) for record in records) / len(records)
    mean = (EXPECTED_WEIGHT * mean + sum(ended)) / (EXPECTED_WEIGHT + len(ended))
    return work + max(0, wanted - len(records)) * mean


def seconds_left(
    records: Sequence[TrialRecord], wanted: int, at_once: int | None, expected: ExpectedEpochs = all_planned
) -> float | None:
    """Estimate the remaining seconds of a study from the training time so far; None before the first epoch.

    Args:
        records: Its trials.
        wanted: Number of trials at the end.
        at_once: Number of trials that run at the same time; None: as many as are running now.
        expected: Expected epochs of a trial under the stopping rule.
    """
    spent = sum(record.seconds for record in records)
    done = sum(record.epochs * weight(record) for record in records)
    if not spent or not done:
        return None
    running = sum(record.state == "running" for record in records)
    return remaining_work(records, wanted, expected) * spent / done / max(1, at_once or running)


class Progress:
    """Estimate of a search's remaining time, from the epochs trained since this process started.

    The time before the first step, in which processes start, does not count.

    Args:
        wanted: Number of trials at the end.
        expected: Expected epochs of a trial under the stopping rule.
    """

    def __init__(self, wanted: int, expected: ExpectedEpochs = all_planned) -> None:
        self.wanted, self.expected = wanted, expected
        self.records: dict[int, TrialRecord] = {}
        self.share: dict[int, float] = {}  # finished fraction of each trial's current epoch
        self._start: float | None = None  # time of the first step
        self._trained = 0.0  # epochs trained by this process, weighted by the network's macs
        self._last: dict[int, float] = {}  # last finished epoch of each trial

    def add(self, records: list[TrialRecord]) -> None:
        self.records |= {record.number: record for record in records}

    def began(self, record: TrialRecord) -> None:
        """Record the start or resumption of a run, whose earlier epochs do not count."""
        self.add([record])
        self._last[record.number] = record.epochs
        if not record.cost:
            self.step(record, 0.0)

    def ended(self, record: TrialRecord) -> None:
        """Record the end of a run. The user's own code reports no epochs, so its run counts as one."""
        self.add([record])
        if not record.cost:
            self.epoch(record)

    def step(self, record: TrialRecord, share: float) -> None:
        """Record a step of a run. share: finished fraction of its current epoch."""
        self._start = time.monotonic() if self._start is None else self._start
        self.share[record.number] = share

    def epoch(self, record: TrialRecord) -> None:
        """Count an epoch, unless a resumed worker repeats it."""
        self.share[record.number] = 0.0
        if record.epochs > self._last.get(record.number, 0) and self._start is not None:
            self._trained += weight(record)
        self._last[record.number] = max(record.epochs, self._last.get(record.number, 0))
        self._start = time.monotonic() if self._start is None else self._start

    def left(self) -> float | None:
        """Return the remaining seconds, or None before the first epoch."""
        if not self._trained or self._start is None:
            return None
        running = [record for record in self.records.values() if record.state == "running"]
        partial = {record.number: self.share.get(record.number, 0.0) for record in running}
        trained = self._trained + sum(partial[r.number] * weight(r) for r in running)
        work = remaining_work(list(self.records.values()), self.wanted, self.expected, partial)
        return work * (time.monotonic() - self._start) / trained

    def footer(self) -> str:
        best = next(iter(rank(self.records.values())), None)
        ended = sum(record.state not in ("running", "interrupted") for record in self.records.values())
        parts = [f"{ended} of {self.wanted} trials"]
        if best is not None and best.cost:
            parts.insert(0, f"best  #{best.number}  {percent(best.val_error)}  ({count(best.cost['params'])} params)")
        left = self.left()
        if left is not None and ended < self.wanted:
            parts.append(f"about {duration(left)} left")
        return "      ".join(parts)
