"""Ablations from Python: those of networks, as the command trains them, and those of a function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dnas
from dnas.api.interruption import Paused, SearchStopped
from dnas.cli import main
from dnas.errors import InputError
from dnas.executors.process import Message
from dnas.study.folder import StudyFolder
from tests.support.analytic import AnalyticExecutor, Trouble

ABLATION = """\
question = "Do fewer connections make more errors?"
dataset = "digits"
design = "one-at-a-time"
equal = "params"
seeds = 6

[base]
name = "dense"
network = "densenet-bc:layers=2-2,k=4"

[factors]
connectivity = ["dense", "none"]

[recipe]
name = "fast"
epochs = 2

[data]
subset = 200
"""


@pytest.fixture
def analytic(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trouble], None]:
    Path("mine.toml").write_text(ABLATION)

    def use(trouble: Trouble) -> None:
        monkeypatch.setattr("dnas.batch.runs.LocalExecutor", lambda workers, devices: AnalyticExecutor(trouble))

    use(lambda job, epoch: None)
    return use


def records_of(study: str) -> list[dict[str, Any]]:
    timed = ("started", "ended")
    records = StudyFolder(Path("studies", study)).records()
    return [{key: value for key, value in vars(record).items() if key not in timed} for record in records]


def test_python_and_command_write_the_same_ablation(analytic: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "mine.toml", "--study", "command", "--seeds", "7", "--workers", "1", "--threads", "1"]) == 0
    study = dnas.ablate("mine.toml", study="python", seeds=7, workers=1, threads=1)
    assert records_of("python") == records_of("command")
    assert len(records_of("python")) == 14
    config = {key: value for key, value in study.config.items() if key not in ("name", "created")}
    command = StudyFolder(Path("studies/command")).config()
    assert config == {key: value for key, value in command.items() if key not in ("name", "created")}
    verdicts = study.verdicts
    assert list(verdicts["name"]) == ["connectivity=none"]
    assert verdicts["verdict"][0] in study._repr_html_()
    assert "2 variants" in capsys.readouterr().out


def test_interrupted_ablation_resumes_by_the_same_call(analytic: Callable[[Trouble], None]) -> None:
    def interrupted(job: object, epoch: int) -> Message | None:
        if len(StudyFolder(Path("studies/mine")).records()) == 3:
            raise KeyboardInterrupt
        return None

    analytic(interrupted)
    with pytest.raises(Paused, match="Run the same call again to resume"):
        dnas.ablate("mine.toml", workers=1, progress=False)
    analytic(lambda job, epoch: None)
    assert len(dnas.ablate("mine.toml", workers=1, progress=False).trials) == 12


def test_ablation_that_stops_itself_says_why(analytic: Callable[[Trouble], None]) -> None:
    analytic(lambda job, epoch: Message("failed", {"reason": "error", "text": "no such kernel"}))
    with pytest.raises(SearchStopped, match="study mine stopped: 3 trials in a row failed with the same error"):
        dnas.ablate("mine.toml", progress=False)


def error(seed: int, width: int) -> float:
    return 1 / width + 0.001 * (seed * 7 % 5)


def test_function_is_ablated(capsys: pytest.CaptureFixture[str]) -> None:
    study = dnas.ablate(error, {"width": [16, 32]}, seeds=7, metric=None)
    assert study.name == "error"
    assert study.verdicts["difference"][0] == pytest.approx(1 / 32 - 1 / 16)
    assert "run" in capsys.readouterr().out
    assert study.report().exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dnas.ablate("nope"), "nope"),
        (lambda: dnas.ablate("mine.toml", factors={"a": [1, 2]}), "is for ablations of a function"),
        (lambda: dnas.ablate("mine.toml", seeds=[1, 2]), 'seeds must be a number or "auto"'),
        (lambda: dnas.ablate("mine.toml", budget=5), "budget requires seeds auto"),
        (lambda: dnas.ablate(error), "needs factors, such as"),
        (lambda: dnas.ablate(error, {"width": [1, 2]}, epochs=3), "epochs=3 is for ablations of networks"),
        (lambda: dnas.ablate(error, {"depth": [1, 2]}), "error must take seed and depth as keywords"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(analytic: object, call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not Path("studies").exists()
