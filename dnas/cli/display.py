"""Display of a running search: a live table on a terminal, otherwise one line per finished trial."""

import sys
import time
from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dnas.formatting import count, duration, percent, several
from dnas.study.record import STATES, TrialRecord, rank

WITH_REASONS = ("failed", "infeasible")
ROWS = 12  # largest number of rows of the live table
STYLES = {
    "complete": "green",
    "running": "cyan",
    "paused": "dim",
    "stopped": "dim",
    "failed": "red",
    "infeasible": "yellow",
}


def state_counts(records: list[TrialRecord]) -> str:
    """Format the number of trials in each state, with reasons of failures: `7 complete, 2 failed (2 diverged)`."""
    parts = []
    for state in ("complete", *(state for state in STATES if state != "complete")):
        in_state = [record for record in records if record.state == state]
        if in_state:
            reasons = Counter(r.reason.split(":")[0] for r in in_state if r.reason) if state in WITH_REASONS else {}
            counts = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
            parts.append(f"{len(in_state)} {state}" + f" ({counts})" * bool(counts))
    return ", ".join(parts) or "none started"


def state_lines(records: list[TrialRecord]) -> list[str]:
    """Return lines on the states of trials, their training time, and their recoveries from errors."""
    lines = [f"{state_counts(records)}; {duration(sum(r.seconds for r in records))} of training"]
    recomputed, lost = sum(r.recompute for r in records), sum(r.losses for r in records)
    if recomputed:
        lines.append(f"{several(recomputed, 'trial')} ran out of memory and continued with recomputed activations")
    if lost:
        lines.append(f"{several(lost, 'worker')} lost; their trials resumed from their checkpoints")
    return lines


class Progress:
    """Estimate of a search's remaining time, from the epochs trained since this process started."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.records: dict[int, TrialRecord] = {}
        self.share: dict[int, float] = {}  # finished fraction of each trial's current epoch
        self._start = time.monotonic()
        self._trained = 0.0  # epochs trained by this process, weighted by the network's macs
        self._last: dict[int, float] = {}  # last finished epoch of each trial

    def add(self, records: list[TrialRecord]) -> None:
        self.records |= {record.number: record for record in records}

    def began(self, record: TrialRecord) -> None:
        """Record the start or resumption of a run, whose earlier epochs do not count."""
        self.add([record])
        self._last[record.number] = record.epochs

    def epoch(self, record: TrialRecord) -> None:
        """Count an epoch, unless a resumed worker repeats it."""
        if record.epochs > self._last.get(record.number, 0):
            self._trained += record.cost["macs"]
            self._last[record.number] = record.epochs

    def left(self) -> float | None:
        """Return the remaining seconds, or None before the first epoch.

        Trials that were not proposed yet are assumed to cost as much as the average of the others.
        """
        if not self._trained:
            return None
        records = list(self.records.values())
        running = sum((r.epochs_planned - r.epochs) * r.cost["macs"] for r in records if r.state == "running")
        ended = [r.epochs * r.cost["macs"] for r in records if r.state != "running"]
        planned = [r.epochs_planned * r.cost["macs"] for r in records]
        mean = sum(ended) / len(ended) if ended else sum(planned) / len(planned)
        work = running + max(0, self.wanted - len(records)) * mean
        return work * (time.monotonic() - self._start) / self._trained

    def footer(self) -> str:
        best = next(iter(rank(self.records.values())), None)
        ended = sum(record.state != "running" for record in self.records.values())
        parts = [f"{ended} of {self.wanted} trials"]
        if best is not None:
            parts.insert(0, f"best  #{best.number}  {percent(best.val_error)}  ({count(best.cost['params'])} params)")
        left = self.left()
        if left is not None and ended < self.wanted:
            parts.append(f"about {duration(left)} left")
        return "      ".join(parts)


class PlainLines:
    """Display with one line per finished trial, for logs and pipes. Two or more spaces separate the fields."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.progress = Progress(0)

    def opened(self, records: list[TrialRecord], wanted: int) -> None:
        self.progress = Progress(wanted)
        self.progress.add(records)

    def began(self, record: TrialRecord) -> None:
        self.progress.began(record)
        if self.verbose:
            self._print(f"began  #{record.number}  {record.called}")

    def step(self, record: TrialRecord, done: int, total: int) -> None:
        pass

    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
        self.progress.epoch(record)
        if self.verbose:
            self._print(
                f"epoch  #{record.number}  {record.epochs}/{record.epochs_planned}  {percent(record.val_error)}"
            )

    def ended(self, record: TrialRecord) -> None:
        if not self.quiet:
            left = self.progress.left()
            remaining = (
                f"  about {duration(left)} left" if left and self.progress.wanted > len(self.progress.records) else ""
            )
            reason = f"  ({record.reason})" if record.state in ("failed", "infeasible") else ""
            self._print(
                f"trial  #{record.number}  {record.state}  {percent(record.val_error)}"
                f"  {count(record.cost['params'])} params  {record.epochs}/{record.epochs_planned} epochs"
                f"  {record.seconds:.1f} s  {record.called}{reason}{remaining}"
            )

    def note(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        print(text, flush=True)

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class LiveTable:
    """Display on a terminal: a table of running and recently ended trials, the best trial, and the remaining time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(0)
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=True)

    def __enter__(self) -> "LiveTable":
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(None, None, None)
        if self.progress.records:
            self.console.print(self.table(len(self.progress.records)))

    def opened(self, records: list[TrialRecord], wanted: int) -> None:
        self.progress = Progress(wanted)
        self.progress.add(records)

    def began(self, record: TrialRecord) -> None:
        self.progress.began(record)

    def step(self, record: TrialRecord, done: int, total: int) -> None:
        self.progress.share[record.number] = done / total

    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
        self.progress.epoch(record)
        self.progress.share[record.number] = 0.0

    def ended(self, record: TrialRecord) -> None:
        self.progress.add([record])

    def note(self, text: str) -> None:
        self.live.console.print(Text(text, style="dim"))

    def _render(self) -> Group:
        return Group(self.table(ROWS), Text(self.progress.footer()))

    def table(self, rows: int) -> Table:
        """Return a table of the running trials and those that ended last, with at most `rows` rows."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
        for name in ("#", "state", "val error", "params", "macs", "epochs", "seconds", "network"):
            table.add_column(
                name, justify="left" if name in ("state", "network") else "right", no_wrap=name != "network"
            )
        records = sorted(self.progress.records.values(), key=lambda record: (record.state == "running", record.number))
        best = next(iter(rank(self.progress.records.values())), None)
        for record in records[-rows:]:
            bar = ""
            if record.state == "running":
                share = (record.epochs + self.progress.share.get(record.number, 0.0)) / record.epochs_planned
                filled = round(12 * min(1.0, share))
                bar = f"  {'━' * filled}{'─' * (12 - filled)}"
            style = "bold green" if record is best else STYLES[record.state]
            reason = f"  {record.reason}" if record.state in ("failed", "infeasible") else ""
            table.add_row(
                str(record.number),
                record.state,
                percent(record.val_error),
                count(record.cost["params"]),
                count(record.cost["macs"]),
                f"{record.epochs}/{record.epochs_planned}",
                f"{record.seconds:.1f}" if record.seconds else "",
                Text(record.called + reason + bar),
                style=style,
            )
        return table


def make_display(quiet: bool, verbose: bool) -> PlainLines | LiveTable:
    console = Console(markup=False, highlight=False)
    if sys.stdout.isatty() and not quiet and not verbose:
        return LiveTable(console)
    return PlainLines(quiet, verbose)
