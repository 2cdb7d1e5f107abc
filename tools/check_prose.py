"""Report patterns of unidiomatic English in docstrings, comments, messages, names of functions, pages and C++ comments.

    python tools/check_prose.py [--count] [FILE ...]

The exit status is 1 if a pattern is found. The section "English" of CONTRIBUTING.md lists the patterns.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HEADLESS = re.compile(r"\s*(What|Which|Where|Whether|Who|Whom|Whose|How|When)\b")
PATTERNS = {
    "go on": r"\b(go|goes|going|gone|went) on\b",
    "again": r"\b(made|make|makes|begun|begins|begin|began|trained|worked out|written|drawn|read) again\b",
    "heed": r"\b(heeds?|heeded|hears?)\b",
    "trainings": r"\btrainings\b|\ba training\b(?! (run|part|set|step|epoch|image|loss|error|batch|job|curve))",
    "gives": r"\bgives\b",
    "carry": r"\b(carry|carries|carried|carrying) (trials|jobs|runs|trainings|one|them)\b",
    "a row a": r"\b(a|one) (row|line|process|column|point|file|folder|page|figure|value) (a|an|each)\b",
    "so many": r"\bso (many|often|long)\b",
    "lies": r"\b(lies|stands)\b",
    "whoever": r"\b(whoever|whatever|whichever)\b",
    "mend": r"\b(mend|mends|mended|mending)\b|\b(the|a|this|which|by) laws?\b",
    "nobody": r"\b(nobody|somebody)\b",
    "just when": r"\bjust (when|where)\b",
}
COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PATTERNS.items()}
OPENING = re.compile(r"^#\s*(those of|that of|of them|of those)\b", re.IGNORECASE)
# Words that are used in their own sense, and files that quote the patterns.
FOLDERS = ("benchmarks", "deploy", "dnas", "docs", "search_spaces", "tests", "tools")
EXEMPT = {"tools/check_prose.py", "CONTRIBUTING.md", "LICENSE"}


def python_texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, kind, text) of each docstring, comment, message and function name of a Python file."""
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(id(first.value))
        if isinstance(node, ast.FunctionDef):
            yield node.lineno, "name", node.name.replace("_", " ")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings:
                yield node.lineno, "docstring", node.value
            elif " " in node.value:
                yield node.lineno, "message", node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "comment", token.string


def texts(path: Path) -> Iterator[tuple[int, str, str]]:
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from python_texts(source)
        return
    for number, line in enumerate(source.splitlines(), 1):
        if path.suffix in (".cpp", ".h"):
            _, mark, line = line.partition("//")
            if not mark:
                continue
        yield number, "text", line


def problems(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, pattern, matched text) for each pattern in a file."""
    for line, kind, text in texts(path):
        if kind == "docstring" and (match := HEADLESS.match(text)):
            yield line, "headless", match.group().strip()
        if kind == "comment" and (match := OPENING.match(text)):
            yield line, "opening", match.group()
        for name, pattern in COMPILED.items():
            for match in pattern.finditer(text):
                yield line + text.count("\n", 0, match.start()) * (kind == "docstring"), name, match.group()


def sources() -> list[Path]:
    """Return the files that are checked. Runs and reports beside them are not."""
    kinds = {".py", ".md", ".j2", ".cpp", ".h", ".toml", ".sh", ".yaml"}
    paths = [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*"))]
    paths += [path for pattern in ("*", "studies/*", "reports/*") for path in sorted(Path().glob(pattern))]
    return [path for path in paths if path.suffix in kinds and path.is_file() and str(path) not in EXEMPT]


def main(arguments: list[str]) -> int:
    count = "--count" in arguments
    paths = [Path(name) for name in arguments if not name.startswith("--")] or sources()
    matches = [(path, *problem) for path in paths if path.exists() for problem in problems(path)]
    if count:
        for name, number in Counter(pattern for _, _, pattern, _ in matches).most_common():
            print(f"{number:5d}  {name}")
        for path, number in Counter(path for path, *_ in matches).most_common():
            print(f"{number:5d}  {path}")
    else:
        for path, line, pattern, text in matches:
            print(f"{path}:{line}: {pattern}: {text!r}")
    return int(bool(matches))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
