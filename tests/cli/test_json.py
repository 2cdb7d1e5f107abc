"""Tests of `--json`, whose keys docs/json.md documents, and of options that do not apply."""

import json
import re
from pathlib import Path

import pytest

from dnas.cli import main
from tests.support.studies import make_study

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json.md"


def documented(command: str) -> set[str]:
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {command}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| (\w+) \|", section, re.MULTILINE)) - {"key"}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("cost", ["cost", "densenet_40_12"]),
        ("spaces show", ["spaces", "show", "tiny"]),
        ("status", ["status", "tiny"]),
        ("doctor", ["doctor", "tiny", "--dry-run"]),
    ],
)
def test_json_keys_are_documented(
    command: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_study(Path("studies/tiny"), ["complete"], epochs=5)
    main([*arguments, "--json"])
    assert set(json.loads(capsys.readouterr().out)) == documented(command)


def test_options_of_another_mode_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["replay", "x", "--device", "cpu"], "--device needs --trial"),
        (["path", "x", "--workers", "2"], "--workers is for training the path"),
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
