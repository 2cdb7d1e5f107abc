"""Errors that a user can correct, with suggestions for misspelled names.

The command line prints an `InputError` as one line and exits with status 2. Any other exception is a defect of dnas and
keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The input is invalid. The message states the constraint, the value, and how to correct it."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows instead of the traceback."""
        return [f"{type(self).__name__}: {self}"]


def os_reason(error: OSError) -> str:
    """Return the reason that the operating system states, without the path."""
    return error.strerror or str(error) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean cifar_bc?"`, or an empty string if no known name is similar."""
    matches = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not among the known names of its kind."""
    known = sorted(known)
    return InputError(f"no {kind} {name!r}; there are {', '.join(known) or 'none'}.{did_you_mean(name, known)}")


def several_problems(where: str, problems: list[str]) -> InputError:
    """Return the error for the file `where` that lists all its problems, at least one."""
    if len(problems) == 1:
        return InputError(f"{where} has a problem: {problems[0]}")
    return InputError(f"{where} has {len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems))
