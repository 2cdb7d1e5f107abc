"""`dnas plot` and `dnas report`: default files, styles, misspelled and former names, the browser, progress."""

import sys
from pathlib import Path

import pytest
from PIL import Image

import dnas
from dnas.cli import main
from dnas.cli.output import progress_line
from dnas.errors import InputError
from tests.support.pages import draw_only
from tests.support.studies import make_study


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_study(Path("studies/s"), ["complete"] * 2, norms=False)


def test_a_figure_without_a_file_name_is_named_after_its_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "distribution", "s"]) == 0
    assert capsys.readouterr().out.endswith("written to s-distribution.svg\n")
    assert "trials at or below" in Path("s-distribution.svg").read_text()
    assert main(["plot", "distribution", "s", "--style", "paper", "--title"]) == 0
    assert Path("s-distribution.pdf").read_bytes().startswith(b"%PDF")


def test_options_set_the_size_of_a_figure() -> None:
    assert main(["plot", "distribution", "s", "-o", "a.png", "--width", "3.25", "--dpi", "300", "--no-title"]) == 0
    assert Image.open("a.png").width == 975


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plot importence s", "dnas plot: no figure 'importence'. Did you mean importance? (try"),
        ("plot zzz s", "no figure 'zzz'; there are reuse, causal"),
        ("plot error s --width 0", "argument --width: expected a number from 1.5 to 60, but got '0'"),
        ("plot error s --dpi many", "argument --dpi: expected a number from 30 to 2400, but got 'many'"),
        ("plot error s --style poster", "argument --style: invalid choice: 'poster'"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(command.split())
    assert exit_info.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_former_names_are_accepted_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "interaction", "s"]) == 2
    assert capsys.readouterr().err.startswith(
        "dnas plot interaction is now called factor-means\ndnas: study s is not an ablation"
    )


def test_python_gets_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figure = dnas.plot("distribution", "s", style="paper")
    assert figure.get_suptitle() == ""
    with pytest.raises(InputError, match=r"no figure 'importence'; .* Did you mean importance"):
        dnas.plot("importence", "s")
    with pytest.raises(InputError, match="no style of figures 'poster'; there are page, paper, slides"):
        dnas.plot("distribution", "s", style="poster")


@pytest.mark.parametrize("found", [True, False])
def test_the_report_opens_in_the_browser(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: bool
) -> None:
    opened: list[str] = []
    draw_only(monkeypatch)
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or found)
    assert main(["report", "s", "--open"]) == 0
    page = Path("reports/s/index.html").resolve()
    assert opened == [page.as_uri()]
    assert capsys.readouterr().err == ("" if found else f"no browser was found; open {page} in one\n")


def test_progress_is_one_line_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_only(monkeypatch, "distribution")
    assert main(["report", "s"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["report", "s"]) == 0
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown == ["", "loading", "drawing figure 1 of 1: distribution", ""]
    with progress_line() as show:
        show("a step")
    assert capsys.readouterr().err == "\r\x1b[Ka step\r\x1b[K"
