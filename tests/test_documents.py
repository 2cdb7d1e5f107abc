"""The Markdown files: every link and path in them resolves, and dnas accepts every command line in them."""

import dataclasses
import pkgutil
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

from dnas.ablation.parse import KEYS as ABLATION_KEYS
from dnas.arch import FAMILIES
from dnas.cli import make_parser
from dnas.space.parse import CHOICE_KEYS
from dnas.space.parse import KEYS as SPACE_KEYS
from dnas.training.recipe import RECIPE_KEYS

ROOT = Path(__file__).resolve().parent.parent
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
DOCUMENTS = [*GUIDES, *sorted(ROOT.glob("benchmarks/**/*.md")), *sorted(ROOT.glob("reports/README.md"))]
FACTS_OF_DATA = ("in_channels", "classes")  # fields that a file cannot state
FOLDERS = "dnas|tests|docs|tools|benchmarks|deploy"


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def headings_of(path: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub creates them."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_relative_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path.read_text())):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"no file {link}"
        assert not anchor or anchor in headings_of(target), f"no heading {link}"


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_named_files_exist(path: Path) -> None:
    paths = re.findall(rf"(?<![\w/.@:~-])(?:{FOLDERS})/[\w./*-]*[\w*/]", path.read_text())
    missing = [named for named in paths if not list(ROOT.glob(named.rstrip("/")))]
    assert not missing


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_named_python_objects_exist(path: Path) -> None:
    for dotted in re.findall(r"`(dnas(?:\.\w+)+)`", path.read_text()):
        pkgutil.resolve_name(dotted)


def command_lines(path: Path) -> list[str]:
    """Return the dnas commands in a file's shell blocks, without prompts, comments and redirections."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    commands = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]
    return [command for command in commands if command.startswith("dnas ")]


def test_citation_names_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


COMMANDS = [(name(path), command) for path in GUIDES for command in command_lines(path)]


def test_the_guides_contain_commands() -> None:
    assert {"README.md", "docs/search.md", "docs/ablations.md"} <= {file for file, _ in COMMANDS}


parser = cache(make_parser)


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_commands_are_accepted(file: str, command: str) -> None:
    try:
        parser().parse_args(shlex.split(command)[1:])
    except SystemExit:
        pytest.fail(f"{file}: dnas does not accept: {command}")


def reference(page: str, heading: str) -> list[tuple[str, str]]:
    """Return the keys that the tables below a heading describe, with the last column of their rows, the default."""
    text = without_blocks((ROOT / "docs" / page).read_text()).split(f"{heading}\n", 1)[1]
    text = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("|").rsplit("|", 1) for line in text.splitlines() if line.startswith("| `")]
    return [(key, row[1].strip()) for row in rows for key in re.findall(r"`[{[ ]*(\w+)[^`]*`", row[0].split("|")[0])]


@pytest.mark.parametrize(
    ("page", "heading", "keys"),
    [
        ("spaces.md", "## Format of a space file", {*SPACE_KEYS, *CHOICE_KEYS} - {"step"}),  # `step` is in other rows
        ("spaces.md", "### Fields", {f for family in FAMILIES.values() for f in family.fields} - set(FACTS_OF_DATA)),
        ("training.md", "## Recipes", RECIPE_KEYS - {"name"}),
        ("ablations.md", "## Format of an ablation file", set(ABLATION_KEYS)),
    ],
)
def test_reference_of_a_format_names_each_key_of_the_code(page: str, heading: str, keys: set[str]) -> None:
    assert {key for key, _ in reference(page, heading)} == keys


def test_reference_of_fields_states_their_defaults() -> None:
    documented = {pair for pair in reference("spaces.md", "### Fields") if re.fullmatch(r"[\d.]+|`\w+`", pair[1])}
    defaults = {
        (f.name, f"`{f.default}`" if isinstance(f.default, str) else str(f.default).removesuffix(".0"))
        for family in FAMILIES.values()
        for f in dataclasses.fields(family.spec)
        if f.default not in (dataclasses.MISSING, None)
    }
    assert len(documented) >= 10
    assert documented <= defaults
