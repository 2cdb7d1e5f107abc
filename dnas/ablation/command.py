"""Parts of an ablation of the user's own command: its placeholders, its factors, and the metric that it prints.

    python train.py --lr {lr} --width {width} --seed {seed}

The command is split like a shell command line first, and the values are substituted into its arguments after that. A
value therefore is always part of one argument, and no shell interprets it. `sh -c '...'` is a command like any other.
"""

import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.errors import InputError, did_you_mean
from dnas.executors.command import RunFailed
from dnas.formatting import joined

NAME = r"[A-Za-z_][\w.-]*"
PLACEHOLDER = re.compile(r"\{\{(" + NAME + r")\}\}|\{(" + NAME + r")\}")  # {{name}} is the literal {name}
SEED, FOLDER = "seed", "folder"
JSON = "json:"
RESERVED = ("variant", "seed")  # the other columns of numbers.csv


# --- factors and placeholders -------------------------------------------------------------------------------------


def read_factors(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse factors such as `lr=0.1,0.01`. The first level is the base's.

    Raises:
        InputError: A factor has no name, fewer than two levels, a level twice, or occurs twice.
    """
    factors: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or not re.fullmatch(NAME, name):
            raise InputError(f"--factor must read NAME=LEVEL,LEVEL, such as lr=0.1,0.01, but got {text!r}.")
        if name in factors:
            raise InputError(f"--factor {name} is given twice; list all its levels in one, such as {name}=A,B,C.")
        factors[name] = tuple(value.strip() for value in values.split(","))
    check_levels(factors)
    return factors


def check_levels(factors: Mapping[str, Sequence[Any]]) -> None:
    """Raise `InputError` unless there are factors, each with a usable name and at least two different levels."""
    if not factors:
        raise InputError("an ablation needs a factor with at least two levels, such as lr=0.1,0.01.")
    for name, levels in factors.items():
        if name in (SEED, FOLDER):
            raise InputError(f"a factor cannot be called {name}, which each run has of its own; rename it.")
        if not re.fullmatch(NAME, name):
            raise InputError(f"a factor's name starts with a letter and has no spaces, but got {name!r}.")
        texts = [str(level) for level in levels]
        if "" in texts:
            raise InputError(f"factor {name} has an empty level; its levels are {', '.join(map(repr, texts))}.")
        if len(texts) < 2:
            raise InputError(
                f"factor {name} has {len(texts)} level, {texts[0]}; give the base's level and at least one other."
                if texts
                else f"factor {name} has no levels; give the base's level and at least one other."
            )
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise InputError(f"factor {name} has the level {twice} twice; each level must occur once.")


def placeholders(text: str) -> list[str]:
    """Return the names in braces, in order, each once."""
    return list(dict.fromkeys(match[2] for match in PLACEHOLDER.finditer(text) if match[2]))


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Replace the placeholders of a text by their values."""
    return PLACEHOLDER.sub(lambda match: "{" + match[1] + "}" if match[1] else str(values[match[2]]), text)


def split_command(text: str, factors: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Split a command into its arguments, in which the placeholders remain, and check it before the first run.

    Raises:
        InputError: Quotes are not closed, the program does not exist, or placeholders and factors do not match.
    """
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--command cannot be split into arguments ({str(error).lower()}): {text}") from None
    if not arguments:
        raise InputError("--command is empty; give a program with its arguments.")
    names = {name for argument in arguments for name in placeholders(argument)}
    known = (SEED, FOLDER, *factors)
    for name in sorted(names):
        if name not in known:
            raise InputError(
                f"--command has {{{name}}}, which no --factor fills.{did_you_mean(name, known)} Add --factor"
                f" {name}=A,B, or write {{{{{name}}}}} for the text {{{name}}}."
            )
    if unused := [name for name in factors if name not in names]:
        raise InputError(
            f"--factor {unused[0]} is not used: --command has no {{{unused[0]}}}, so all its levels would be the same"
            " run; add it, or leave the factor out."
        )
    if SEED not in names:
        raise InputError(
            "--command has no {seed}, so its runs cannot be paired by seed; add it, such as --seed {seed}, or start the"
            " command with `env SEED={seed}`."
        )
    program = fill(arguments[0], {name: levels[0] for name, levels in factors.items()} | {SEED: 0, FOLDER: "."})
    if shutil.which(program) is None:
        raise InputError(f"no program {program!r} can be run; give its path, or the name of a program on the PATH.")
    return tuple(arguments)


# --- metrics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """A metric on standard output: the only group of a regular expression, at its last match.

    text: The expression.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.text, re.MULTILINE).groups
        except re.error as error:
            raise InputError(f"--metric '{self.text}' is no regular expression: {error}.") from None
        if groups != 1:
            number = "no group" if not groups else f"{groups} groups, so its value would be ambiguous"
            raise InputError(
                f"--metric '{self.text}' has {number}; put the number, and nothing else, in (...), such as"
                " 'val_err=([-+.0-9e]+)'. A group (?:...) does not count."
            )

    @property
    def name(self) -> str:
        """Name of the group, or else the last word before it."""
        words = re.findall(r"[A-Za-z_]\w*", re.sub(r"\\.", " ", self._before))
        names = [*words, *re.compile(self.text).groupindex]
        return "value" if not names or names[-1] in RESERVED else names[-1]

    @property
    def _before(self) -> str:
        """The part of the expression before its group."""
        escaped = in_set = False
        for place, letter in enumerate(self.text):
            if escaped or letter == "\\":
                escaped = not escaped
            elif in_set or letter == "[":
                in_set = letter != "]"
            elif letter == "(" and re.match(r"\((?!\?)|\(\?P<", self.text[place:]):
                return self.text[:place]
        return ""

    def read(self, output: str, values: Mapping[str, Any], began: float) -> float:
        """Return the metric. values: values of the placeholders. began: time of the start of the run.

        Raises:
            RunFailed: Nothing matches, or the last match is not the whole of a finite number.
        """
        last = None
        for match in re.finditer(self.text, output, re.MULTILINE):
            last = match
        self._check_later(output, last.end() if last is not None else 0)
        if last is None:
            raise RunFailed("error", f"no metric: the output does not match '{self.text}'")
        text = (last[1] or "").rstrip(".")  # of a sentence
        line = next(iter(last[0].strip().splitlines()), "")
        if re.match(r"[eE][-+]?\d|\.?\d|[xX]", output[last.end(1) :]):
            rest = re.match(r"\S*", output[last.end(1) :])
            whole = text + (rest[0] if rest is not None else "")
            raise RunFailed(
                "error", f"--metric '{self.text}' ends inside the number {whole}; use a group such as ([-+.0-9e]+)"
            )
        return finite(text, f"printed {line!r}")

    def _check_later(self, output: str, end: int) -> None:
        """Fail if, after the last match, the text before the group is followed by a number that does not match."""
        if not self._before:
            return
        try:
            later = re.compile(rf"(?:{self._before})\s*([-+]?(?:nan|inf(?:inity)?)\b|[-+][.\d]\S*)", re.I | re.M)
        except re.error:  # the group is inside another one
            return
        if found := later.search(output, end):
            finite(found[1], f"printed {found[0].strip()!r}")
            raise RunFailed("error", f"printed {found[0].strip()!r}, which --metric '{self.text}' does not match")


@dataclass(frozen=True)
class Written:
    """A metric in a JSON file that the run writes.

    path: The file, with placeholders. key: Key of the number; dots separate the keys of nested objects.
    """

    path: str
    key: str

    @property
    def name(self) -> str:
        return "value" if self.key in RESERVED else self.key

    @property
    def text(self) -> str:
        return f"{JSON}{self.path}:{self.key}"

    def read(self, output: str, values: Mapping[str, Any], began: float) -> float:
        """Return the metric, as `Printed.read` does. A file that is older than the run does not count."""
        path = Path(fill(self.path, values))
        if not path.is_file() or path.stat().st_mtime < began - 1:  # some file systems store whole seconds
            raise RunFailed("error", f"no metric: the run did not write {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFailed("error", f"{path} is no JSON file: {error}") from None
        for key in (self.key,) if isinstance(content, dict) and self.key in content else self.key.split("."):
            if not isinstance(content, dict) or key not in content:
                raise RunFailed("error", f"no metric: {path} has no key {self.key!r}")
            content = content[key]
        return finite(content, f"wrote {self.key} = {content!r}")


Source = Printed | Written


def read_metric(text: str, factors: Mapping[str, Any], workers: int) -> Source:
    """Parse --metric: a regular expression, or `json:PATH:KEY`.

    Raises:
        InputError: The expression has not exactly one group, or runs at the same time would write the same file.
    """
    if not text.startswith(JSON):
        return Printed(text)
    path, _, key = text.removeprefix(JSON).rpartition(":")
    if not path or not key:
        raise InputError(f"--metric {text} must read json:PATH:KEY, such as json:{{folder}}/results.json:val_err.")
    names = placeholders(path)
    if wrong := [name for name in names if name not in (SEED, FOLDER, *factors)]:
        raise InputError(f"--metric has {{{wrong[0]}}}, which is no factor.{did_you_mean(wrong[0], factors)}")
    missing = [name for name in (SEED, *factors) if name not in names]
    if workers > 1 and FOLDER not in names and missing:
        listed = joined([f"{{{name}}}" for name in missing])
        raise InputError(
            f"--metric reads {path}, which runs at the same time would both write: it lacks {listed}; use"
            " {folder} in it, the folder of each run, or --workers 1."
        )
    return Written(path, key)


def finite(value: Any, what: str) -> float:
    """Return a value as a float.

    Raises:
        RunFailed: It is no number ("error"), or it is infinite or NaN ("diverged").
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool):
        raise RunFailed("error", f"{what}, which is no number")
    if not math.isfinite(number):
        raise RunFailed("diverged", f"{what}, which is not finite")
    return number
