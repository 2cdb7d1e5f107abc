"""Searches from Python: the same studies as from the command line, and the refusals."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dnas
from dnas.api.interruption import Paused, SearchStopped
from dnas.api.options import SearchOptions
from dnas.cli import main
from dnas.errors import InputError
from dnas.executors.process import Message
from dnas.space.parse import load_space
from dnas.study.folder import StudyFolder
from tests.support.analytic import AnalyticExecutor

SPACE = {
    "family": "densenet",
    "dataset": "digits",
    "fixed": {"block_layers": [1, 1]},
    "choose": {"growth_rate": {"int": [2, 4]}, "bottleneck": [0, 2], "compression": {"of": [0.5, 1.0]}},
    "limits": {"params": 5_000},
    "recipe": {"name": "fast", "epochs": 6},
    "title": "Twelve small networks",
}
TOML = """\
# Twelve small networks
family = "densenet"
dataset = "digits"
[fixed]
block_layers = [1, 1]
[choose]
growth_rate = { int = [2, 4] }
bottleneck = { of = [0, 2] }
compression = { of = [0.5, 1.0] }
[limits]
params = 5_000
[recipe]
name = "fast"
epochs = 6
"""


@pytest.fixture
def analytic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.strategy.run.LocalExecutor", lambda workers, devices: AnalyticExecutor())


def log_of(study: str) -> list[str]:
    """Return the events of a study without their times."""
    lines = Path("studies", study, "events.jsonl").read_text().splitlines()
    return [json.dumps({key: value for key, value in json.loads(line).items() if key != "time"}) for line in lines]


def config_of(study: str) -> dict[str, Any]:
    config = StudyFolder(Path("studies", study)).config()
    return {key: value for key, value in config.items() if key not in ("name", "created")}


def test_space_in_python_is_that_of_the_file() -> None:
    Path("mine.toml").write_text(TOML)
    written, read = dnas.Space("mine", **SPACE), load_space("mine.toml")
    for field in ("name", "title", "family", "dataset", "fixed", "choices", "limits", "recipe", "first"):
        assert getattr(written, field) == getattr(read, field)
    Path("again.toml").write_text(written.text)  # the text that a study stores
    assert load_space("again.toml").choices == read.choices


def test_python_and_command_write_the_same_study(analytic: None, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--trials 5 --objective val_loss,params --sampler tpe --control 0.2 --seed 3 --subset 200 --epochs 6"
    assert main(f"search --space tiny --study command {options} --workers 1 --mirror none".split()) == 0
    study = dnas.search(
        "tiny", study="python", trials=5, objectives=("val_loss", "params"), sampler="tpe", control=0.2, seed=3,
        subset=200, epochs=6, workers=1, mirror="none",
    )  # fmt: skip
    assert log_of("python") == log_of("command")
    assert len(log_of("python")) > 30
    assert config_of("python") == config_of("command")
    assert study.best is not None
    assert len(study.trials) == 5


def test_every_option_of_a_search_is_an_argument() -> None:
    names = set(inspect.signature(dnas.search).parameters)
    assert set(SearchOptions.__dataclass_fields__) - {"command", "objective"} <= names
    assert {"objectives", "train", "progress"} <= names


def test_space_in_python_is_searched_and_resumed(analytic: None) -> None:
    space = dnas.Space("mine", **SPACE)
    dnas.search(space, trials=2, subset=200, mirror="none", progress=False)
    study = dnas.search(space, trials=4, subset=200, mirror="none", progress=False)
    assert len(study.trials) == 4
    assert study.config["space"]["text"] == space.text
    assert not study.replay().differences
    Path("mine.toml").write_text(TOML)
    command = "search --space mine.toml --study mine --trials 5 --mirror none -q"
    assert main(command.split()) == 0  # the same value
    with pytest.raises(InputError, match=r"another version of the space file"):
        dnas.search(dnas.Space("mine", **{**SPACE, "fixed": {"block_layers": [1, 2]}}), trials=6, progress=False)


def test_changes_to_a_space_object_are_kept(analytic: None) -> None:
    space = load_space("tiny", epochs=7, limits={"params": 3_000})
    study = dnas.search(space, trials=1, subset=200, mirror="none", progress=False)
    assert (study.config["recipe"]["epochs"], study.config["limits"]) == (7, {"params": 3_000})
    study = dnas.search(space, trials=1, study="b", epochs=5, subset=200, mirror="none", progress=False)
    assert study.config["recipe"]["epochs"] == 5


def test_progress_is_shown_unless_it_is_switched_off(analytic: None, capsys: pytest.CaptureFixture[str]) -> None:
    dnas.search("tiny", trials=1, subset=200, mirror="none", progress=False)
    assert capsys.readouterr().out == ""
    dnas.search("tiny", trials=2, subset=200, mirror="none")
    out = capsys.readouterr().out
    assert "12 networks" in out
    assert "trial  #1  complete" in out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dnas.search("nope", trials=1), "no search space 'nope'; there are"),
        (lambda: dnas.search("tiny"), "needs trials=N, the number of networks"),
        (lambda: dnas.search("tiny", trials=1, retrain_seeds=2), "retrain_seeds is for retrain_best=K"),
        (lambda: dnas.search("tiny", trials=1, objectives=("val_eror",)), "val_eror"),
        (lambda: dnas.search("tiny", trials=1, classes=10), "give train="),
        (lambda: dnas.search("tiny", trials=1, train="f"), "train must be a function of (spec, seed, report), but got"),
        (lambda: dnas.search("tiny", trials=1, train=print, dataset="digits"), "dataset='digits' is for networks"),
        (lambda: dnas.search("tiny", trials=1, train=print), "give shape=(channels, size, size) and classes="),
        (lambda: dnas.search("tiny", trials=1, train=print, shape=(1, 8, 8)), "shape and classes belong together"),
        (lambda: dnas.search("tiny", trials=1, train=print, shape=(1, 8, 9), classes=2), "square images"),
        (lambda: dnas.Space("s", choose=4), "choose must be a dict"),  # type: ignore[arg-type]
        (lambda: dnas.Space("s", choose={"growth": [1, 2]}), "has no such field; did you mean growth_rate"),
        (lambda: dnas.Space("s", choose={"growth_rate": [None]}), "a value that no space file can hold"),
        (lambda: dnas.open_study("nope"), "no study 'nope'; there are none yet"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)
    assert not Path("studies").exists()  # nothing was begun
    assert error.value._render_traceback_() == [f"InputError: {error.value}"]  # what a notebook shows


def test_interruption_pauses_and_the_same_call_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(job: object, epoch: int) -> Message | None:
        if len(StudyFolder(Path("studies/tiny")).records()) == 2:
            raise KeyboardInterrupt
        return None

    def search() -> dnas.Study:
        return dnas.search("tiny", trials=3, subset=200, workers=1, mirror="none", progress=False)

    monkeypatch.setattr("dnas.strategy.run.LocalExecutor", lambda workers, devices: AnalyticExecutor(interrupted))
    with pytest.raises(Paused, match="paused after 2 trials; every finished epoch is saved in studies/tiny/") as paused:
        search()
    assert paused.value._render_traceback_() == [str(paused.value)]
    monkeypatch.setattr("dnas.strategy.run.LocalExecutor", lambda workers, devices: AnalyticExecutor())
    assert len(search().trials) == 3


def test_search_that_stops_itself_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: object, epoch: int) -> Message:
        return Message("failed", {"reason": "error", "text": "no such kernel"})

    monkeypatch.setattr("dnas.strategy.run.LocalExecutor", lambda workers, devices: AnalyticExecutor(broken))
    with pytest.raises(SearchStopped, match="tiny stopped: 3 trials in a row failed with the same error: no such"):
        dnas.search("tiny", trials=5, subset=200, mirror="none", progress=False)


def test_public_names_are_the_same_for_type_checkers() -> None:
    tree = Path(dnas.__file__).read_text()
    block = tree[tree.index("if TYPE_CHECKING:") : tree.index("_HOMES")]
    typed = {line.split(" as ")[1] for part in block.splitlines() if " as " in part for line in part.split(", ")}
    assert typed == set(dnas.__all__) - {"__version__"}
    for name in dnas.__all__:
        assert getattr(dnas, name) is not None
    assert (Path(dnas.__file__).parent / "py.typed").exists()


def test_functions_are_not_hidden_by_packages_of_the_same_name() -> None:
    """`import dnas.NAME` would replace a public function by a package."""
    code = "import dnas.strategy.run, dnas.api.searches, dnas; assert callable(dnas.search)"
    subprocess.run([sys.executable, "-c", code], check=True)
    folders = {path.stem for path in Path(dnas.__file__).parent.iterdir()}
    assert not folders & set(dnas.__all__)
