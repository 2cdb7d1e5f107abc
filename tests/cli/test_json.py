"""Tests of `--json`, whose keys docs/json.md documents, and of options that do not apply."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnas.cli import main, make_parser
from dnas.cli.output import print_json
from tests.support.data_files import noise
from tests.support.forests import shrink_forests
from tests.support.pages import draw_only
from tests.support.studies import add_search, search_error

pytestmark = pytest.mark.xdist_group("json")  # the fixture trains once

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json.md"
SEARCH = "search --space tiny --trials 4 --subset 200 --workers 1 --threads 1 --device cpu --kernels plain"
ABLATE = "ablate bottleneck.toml --subset 200 --workers 1 --device cpu --kernels plain"
COMMANDS = {
    "search": SEARCH,
    "status": "status tiny",
    "spaces": "spaces",
    "spaces new": "spaces new mine",
    "spaces show": "spaces show tiny",
    "doctor": "doctor tiny --dry-run",
    "replay": "replay tiny",
    "replay --trial": "replay tiny --trial 0",
    "report": "report lone",
    "ablate --dry-run": f"{ABLATE} --dry-run",
    "ablate": ABLATE,
    "compare": "compare runs.csv --base A",
    "importance": "importance searched --bootstraps 20",
    "path": "path searched",
    "verify": "verify tiny",
    "track": "track lone tensorboard:runs",
    "reproduce": "reproduce table1",
    "cost": "cost densenet_40_12",
    "eval": "eval tiny --device cpu",
    "predict": "predict tiny digit.png --device cpu",
}  # arguments by heading of docs/json.md
ABLATION = """\
question = "Does a bottleneck help?"
dataset = "digits"
design = "factorial"
equal = "nothing"
seeds = 2

[base]
network = "densenet:L=10,k=2"

[factors]
bottleneck = [0, 2]

[recipe]
name = "fast"
epochs = 1
"""


def documented(command: str) -> dict[str, set[str]]:
    """Return the documented keys of a command by heading: "" for its output, else the list whose objects have them."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {command}\n")[1].split("\n## ")[0]
    parts = ("\n" + section).split("\n### ")
    tables = {"": parts[0]} | {part.partition("\n")[0]: part for part in parts[1:]}
    return {name: set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE)) - {"key"} for name, text in tables.items()}


def printed(output: Any, names: set[str]) -> dict[str, set[str]]:
    """Return the keys of the output, or of its first object if it is a list, and of the first objects in `names`."""
    first = output[0] if isinstance(output, list) else output
    return {name: set(first[name][0] if name else first) for name in names}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained search (tiny), two computed ones (searched, lone) and an ablation's file."""
    folder = tmp_path_factory.mktemp("json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shrink_forests(patch)
        draw_only(patch)
        assert main([*SEARCH.split(), "-q"]) == 0
        add_search(Path("studies/searched"), 12, search_error, {})
        add_search(Path("studies/lone"), 1, search_error, {})
        Path("bottleneck.toml").write_text(ABLATION)
        Path("runs.csv").write_text("variant,seed,value\nA,0,1\nA,1,2\nB,0,1\nB,1,3\n")
        noise(0, 8, channels=1).save("digit.png")
        yield folder


@pytest.mark.parametrize("command", COMMANDS)
def test_json_keys_are_documented(command: str, studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMANDS[command].split(), "--json"]) == 0
    expected = documented(command)
    assert printed(json.loads(capsys.readouterr().out), set(expected)) == expected


def test_every_command_with_json_is_documented() -> None:
    (commands,) = (action.choices for action in make_parser()._actions if isinstance(action.choices, dict))
    with_json = {name for name, parser in commands.items() if "--json" in parser._option_string_actions}
    headings = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert with_json == {heading.split()[0] for heading in headings}
    assert set(headings) == set(COMMANDS)


def test_numbers_that_json_lacks_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"low": -math.inf, "rows": [np.float64("nan"), np.int64(3)]})
    assert json.loads(capsys.readouterr().out) == {"low": None, "rows": [None, 3]}


def test_options_of_another_mode_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["replay", "x", "--device", "cpu"], "--device needs --trial"),
        (["path", "x", "--workers", "2"], "--workers is an option for training the path"),
        (
            ["search", "--space", "tiny", "--trials", "1", "--retrain-seeds", "2"],
            "--retrain-seeds is for --retrain-best",
        ),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_error_for_a_misspelled_figure_has_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["plot", "importence", "x"])
    assert exit_info.value.code == 2
    assert "Did you mean importance?" in capsys.readouterr().err
