"""Limits on the size of files and functions, and code that must be in a single module."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_layers import FILES, PACKAGE, parsed

pytestmark = pytest.mark.xdist_group("source")  # each file is parsed once
LONGEST_FILE, LONGEST_FUNCTION = 650, 80


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(parsed(path)))


def functions() -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of each function, its docstring included."""
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}: {node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_too_long_to_be_read() -> None:
    assert {name: lines for name, lines in functions() if lines > LONGEST_FUNCTION} == {}


def test_one_module_interprets_the_event_log() -> None:
    """Kinds of events are compared or matched in one module, which the others call."""
    kinds = {"ask", "report", "tell", "pause", "promote", "again", "extend", "widen"}
    interpreters = set()
    for path in FILES:
        for node in nodes(path):
            parts: list[ast.AST] = []
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchValue):
                parts = [node.value]
            if any(isinstance(part, ast.Constant) and part.value in kinds for part in parts):
                interpreters.add(path.relative_to(PACKAGE).as_posix())
    assert interpreters == {"strategy/state.py"}
