"""Errors and interruptions, as Python and notebooks report them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from dnas.errors import InputError
from dnas.study.folder import StudyFolder


class SearchStopped(RuntimeError):
    """The search stopped itself, such as after the same error in several trials."""


def resume_hint(folder: object) -> str:
    """Return the text that follows "stopped; " in messages. folder: folder of the finished epochs."""
    return f"every finished epoch is saved in {folder}/. Run the same command to resume"


class Paused(KeyboardInterrupt):
    """The search was interrupted, and the same call resumes it."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows instead of the traceback."""
        return [str(self)]


@contextmanager
def pausing(folder: StudyFolder) -> Iterator[None]:
    """Context that turns Ctrl-C, or the interruption of a notebook's kernel, into `Paused`."""
    try:
        yield
    except KeyboardInterrupt:
        trials = len(folder.records()) if folder.exists else 0
        raise Paused(
            f"paused after {trials} trials; every finished epoch is saved in {folder.path}/."
            " Run the same call again to resume."
        ) from None


P = ParamSpec("P")
R = TypeVar("R")
OPTION = re.compile(r"--([a-z][a-z-]*)(?:[ =]([A-Z][A-Z]*)\b)?")  # such as --trials N


def with_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function whose `InputError`s name its keywords instead of the options of the command line."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            raise type(error)(OPTION.sub(_keyword, str(error))) from None

    return call


def _keyword(match: re.Match[str]) -> str:
    name = match[1].replace("-", "_")
    name = "objectives" if name == "objective" else name
    return f"{name}={match[2]}" if match[2] else name
