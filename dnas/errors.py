"""Errors that a user can mend, and the nearest names that help to.

The command line prints an `InputError` as one line and exits with status 2; every other exception is a defect of ours
and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What was given breaks a law. The message names the law, the value and the way out."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean cifar_bc?"`, or an empty string where nothing in `known` is near."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a `name` that is not among the `known` ones of its `kind`."""
    known = sorted(known)
    return InputError(f"no {kind} {name!r}; there are {', '.join(known) or 'none'}.{did_you_mean(name, known)}")


def several_problems(where: str, problems: list[str]) -> InputError:
    """The error for a file, `where`, with all its `problems`, of which there is at least one."""
    if len(problems) == 1:
        return InputError(f"{where} has a problem: {problems[0]}")
    return InputError(f"{where} has {len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems))
