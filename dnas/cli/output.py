"""Output of commands: JSON for programs, text for people."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200  # characters per line if the output is not a terminal


def print_json(value: Any) -> None:
    """Print `value` as JSON, with null for NaN and infinity, which JSON lacks."""
    import json

    print(json.dumps(as_finite(value), indent=1, allow_nan=False))


def as_finite(value: Any) -> Any:
    """Replace NaN and infinity by None in nested dicts and lists, and dict keys of any type by text."""
    if isinstance(value, Mapping):
        return {str(key): as_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_finite(item) for item in value]
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counts_by_state(records: Iterable[Any]) -> dict[str, int]:
    """Count the trials in each state, leaving out states without trials."""
    from collections import Counter

    return dict(Counter(record.state for record in records))


def console_or_pipe() -> "Console":
    """Return a console as wide as the terminal, or of `PIPE_WIDTH` characters if there is none."""
    import sys

    from rich.console import Console

    # Names and commands of users may contain square brackets, which are not markup.
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, highlight=False)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Context with a function that shows a text in the last line of the terminal, until the end of the context.

    Without a terminal nothing is shown.
    """
    import sys

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)  # replaces the line

    try:
        yield show
    finally:
        show("")


def printer(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a line at once, or one that prints nothing."""
    return (lambda text: None) if quiet else (lambda text: print(text, flush=True))


def report_interruption(folder: object) -> int:
    """Print how to resume after Ctrl-C, and return the exit status. folder: folder of the finished epochs."""
    from dnas.api.interruption import resume_hint

    print(f"\nstopped; {resume_hint(folder)}:\n  {command_line()}")
    return 130


def command_line(storage: str | None = None) -> str:
    """Return the command as it was given, without passwords. storage: a database URL among its arguments."""
    import shlex
    import sys

    from dnas.formatting import redact

    arguments = sys.argv[1:]
    if storage:
        from dnas.cluster.address import Address

        arguments = [argument.replace(storage, str(Address(storage))) for argument in arguments]
    return redact(shlex.join(["dnas", *arguments]))
