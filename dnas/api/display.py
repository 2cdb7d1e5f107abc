"""Display of a running search: a live table on a terminal, otherwise one line per finished trial."""

import io
import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dnas.api.progress import ExpectedEpochs, Progress, all_planned
from dnas.formatting import count, duration, percent, several
from dnas.study.record import STATES, TrialRecord, rank

WITH_REASONS = ("failed", "infeasible")
ROWS = 12  # largest number of rows of the live table
NOTEBOOK_WIDTH = 110  # characters of the table in a notebook
NOTEBOOK_SECONDS = 0.5  # shortest time between two versions of it
BAR = 8  # characters of the bar of a running trial
WIDE = 100  # characters from which a terminal has room for all columns
COLUMNS = {"#": 4, "state": 11, "val error": 9, "params": 7, "macs": 8, "epochs": 7, "": BAR, "seconds": 7}  # widths
OWN_COLUMNS = {"#": 4, "state": 11, "result": 20, "": BAR, "seconds": 7}  # for runs of the user's own code
ONLY_WIDE = ("macs", "seconds")
FACTS_OF_DATA = ("channels", "size", "classes")  # in names of networks
STYLES = {
    "complete": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "paused": "dim",
    "stopped": "dim",
    "failed": "red",
    "infeasible": "yellow",
}


def state_counts(records: list[TrialRecord]) -> str:
    """Format the number of trials in each state, with reasons of failures: `7 complete, 2 failed (2 diverged)`."""
    parts = []
    for state in ("complete", *(state for state in (*STATES, "interrupted") if state != "complete")):
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


def result(record: TrialRecord) -> str:
    """Format the validation error of a network, or the metric of the user's own code."""
    if record.cost:
        return percent(record.val_error)
    return ", ".join(f"{name} {value:.4g}" for name, value in record.objectives.items()) or "–"


class PlainLines:
    """Display with one line per finished trial, for logs and pipes. Two or more spaces separate the fields."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.expected: ExpectedEpochs = all_planned
        self.progress = Progress(0)

    def opened(self, records: list[TrialRecord], wanted: int) -> None:
        self.progress = Progress(wanted, self.expected)
        self.progress.add(records)

    def began(self, record: TrialRecord) -> None:
        self.progress.began(record)
        if self.verbose:
            self._print(f"began  #{record.number}  {record.called}")

    def step(self, record: TrialRecord, done: int, total: int) -> None:
        self.progress.step(record, done / total)

    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
        self.progress.epoch(record)
        if self.verbose:
            self._print(
                f"epoch  #{record.number}  {record.epochs}/{record.epochs_planned}  {percent(record.val_error)}"
            )

    def ended(self, record: TrialRecord) -> None:
        self.progress.ended(record)
        if not self.quiet:
            left = self.progress.left()
            remaining = (
                f"  about {duration(left)} left" if left and self.progress.wanted > len(self.progress.records) else ""
            )
            reason = f"  ({record.reason})" if record.state in ("failed", "infeasible") else ""
            epochs = f"{record.epochs}/{record.epochs_planned} epochs"
            cost = f"  {count(record.cost['params'])} params  {epochs}" if record.cost else ""
            self._print(
                f"{'trial' if record.cost else 'run'}  #{record.number}  {record.state}  {result(record)}{cost}"
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
        self.expected: ExpectedEpochs = all_planned
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
        self.progress = Progress(wanted, self.expected)
        self.progress.add(records)

    def began(self, record: TrialRecord) -> None:
        self.progress.began(record)

    def step(self, record: TrialRecord, done: int, total: int) -> None:
        self.progress.step(record, done / total)

    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
        self.progress.epoch(record)

    def ended(self, record: TrialRecord) -> None:
        self.progress.ended(record)

    def note(self, text: str) -> None:
        self.live.console.print(Text(text, style="dim"))

    def _render(self) -> Group | Text:
        if not self.progress.records:
            return Text("")
        return Group(self.table(ROWS), Text(self.progress.footer(), no_wrap=True, overflow="ellipsis"))

    def table(self, rows: int) -> Table:
        """Return a table of the running trials and those that ended last, with at most `rows` rows.

        Every trial takes one line. The columns keep their widths, and a narrow terminal has fewer of them.
        """
        own = not any(record.cost for record in self.progress.records.values())  # the user's own code
        columns = {
            name: width
            for name, width in (OWN_COLUMNS if own else COLUMNS).items()
            if self.console.width >= WIDE or name not in ONLY_WIDE
        }
        called = "run" if own else "network"
        columns[called] = max(10, self.console.width - sum(columns.values()) - len(columns))
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        for name, width in columns.items():
            left = name in ("state", called, "")
            table.add_column(name, justify="left" if left else "right", width=width, no_wrap=True, overflow="ellipsis")
        records = sorted(self.progress.records.values(), key=lambda record: (record.state == "running", record.number))
        best = next(iter(rank(self.progress.records.values())), None)
        names = short_names([record.called for record in records])
        for record, name in list(zip(records, names, strict=True))[-rows:]:
            is_running = record.state == "running"
            share = (record.epochs + self.progress.share.get(record.number, 0.0)) / record.epochs_planned
            filled = round(BAR * min(1.0, share))
            reason = f"{record.reason}  " if record.state in WITH_REASONS and record.reason else ""
            texts = {
                "#": str(record.number),
                "state": record.state,
                "val error": percent(record.val_error),
                "result": result(record),
                "params": count(record.cost.get("params", 0)),
                "macs": count(record.cost.get("macs", 0)),
                "epochs": f"{record.epochs}/{record.epochs_planned}",
                "": f"{'━' * filled}{'─' * (BAR - filled)}" if is_running else "",
                "seconds": f"{record.seconds:.1f}" if record.seconds else "",
                called: reason + name,
            }
            style = "bold green" if record is best and not own else STYLES[record.state]
            table.add_row(*(Text(texts[column]) for column in columns), style=style)
        return table


def short_names(names: Sequence[str]) -> list[str]:
    """Return names of networks without the facts of the data (such as `size=8`) that all of them share."""
    parts = [name.replace(":", ":,", 1).split(",") for name in names]
    shared = {
        part
        for part in set().union(*parts)
        if part.partition("=")[0] in FACTS_OF_DATA and all(part in p for p in parts)
    }
    return [",".join(part for part in p if part not in shared).replace(":,", ":", 1).rstrip(":") for p in parts]


class NotebookTable(LiveTable):
    """The live table as an output of a notebook's cell, which is replaced while the runs progress."""

    def __init__(self) -> None:
        console = Console(
            width=NOTEBOOK_WIDTH,
            record=True,
            file=io.StringIO(),
            force_terminal=True,
            force_jupyter=False,
            markup=False,
            highlight=False,
        )
        super().__init__(console)
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, which dnas does not use
        self._handle: Any = None
        self._shown = -math.inf  # time at which the output was last replaced

    def __enter__(self) -> "NotebookTable":
        from IPython.display import HTML, display

        self._handle = display(HTML(""), display_id=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress.records:
            self._replace(self.table(len(self.progress.records)))

    def opened(self, records: list[TrialRecord], wanted: int) -> None:
        super().opened(records, wanted)
        self._refresh()

    def step(self, record: TrialRecord, done: int, total: int) -> None:
        super().step(record, done, total)
        self._refresh()

    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
        super().epoch(record, row)
        self._refresh()

    def ended(self, record: TrialRecord) -> None:
        super().ended(record)
        self._refresh()

    def note(self, text: str) -> None:
        print(text)

    def _refresh(self) -> None:
        if time.monotonic() - self._shown >= NOTEBOOK_SECONDS:
            self._shown = time.monotonic()
            self._replace(self._render())

    def _replace(self, content: Any) -> None:
        from IPython.display import HTML

        self.console.print(content)
        text = self.console.export_html(inline_styles=True, code_format='<pre style="line-height:1.3">{code}</pre>')
        self._handle.update(HTML(text))


def in_notebook() -> bool:
    """Return True in a notebook, whose cells show HTML."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def make_display(quiet: bool, verbose: bool, expected: ExpectedEpochs = all_planned) -> PlainLines | LiveTable:
    """Return the display for the standard output. expected: Expected epochs of a trial, for the remaining time."""
    display: PlainLines | LiveTable
    if quiet or verbose:
        display = PlainLines(quiet, verbose)
    elif in_notebook():
        display = NotebookTable()
    elif sys.stdout.isatty():
        display = LiveTable(Console(markup=False, highlight=False))
    else:
        display = PlainLines()
    display.expected = expected
    return display
