"""Ask and tell, and searches whose networks a function of the user trains."""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dnas
from dnas.api.interruption import SearchStopped
from dnas.cli import main
from dnas.errors import InputError
from dnas.strategy.asktell import AskedTrial
from tests.api.test_searches import log_of

IMAGES: dict[str, Any] = {"shape": (1, 8, 8), "classes": 10, "epochs": 9, "mirror": "none"}


def error_of(spec: Any, epoch: int) -> float:
    """Return a validation error that is lower for larger networks and later epochs."""
    return 0.02 + 0.3 / math.log(dnas.cost(spec).params) + math.exp(-epoch)


def train(spec: Any, seed: int, report: Callable[..., bool]) -> dict[str, float]:
    for epoch in range(1, 10):
        if not report(epoch, val_error=error_of(spec, epoch), val_loss=2 * error_of(spec, epoch), seconds=1):
            break
    return {"val_error": error_of(spec, epoch)}


def study_of(trials: int = 6, **changes: Any) -> dnas.Study:
    return dnas.create_study("tiny", trials=trials, **IMAGES | changes)


def finish(study: dnas.Study, trial: AskedTrial) -> None:
    for epoch in range(1, trial.epochs + 1):
        if not trial.report(epoch, val_error=error_of(trial.spec, epoch), val_loss=0.5, seconds=1):
            break
    study.tell(trial)


def test_a_loop_of_ones_own_searches() -> None:
    with study_of(trials=6) as study:
        specs = []
        while (trial := study.ask()) is not None:
            assert trial.folder.is_dir()
            specs.append(trial.spec)
            finish(study, trial)
    assert len(study.trials) == 6
    states = study.trials["state"].value_counts()
    assert states["complete"] + states.get("paused", 0) == 6
    assert states.get("paused", 0) > 0  # ASHA pauses trials of one's own too
    assert not study.replay().differences
    best = study.best
    assert best is not None
    assert best.val_error == min(record.val_error for record in study.records if record.state == "complete")
    assert main(["doctor", "tiny"]) == 0
    assert main(["report", "tiny"]) == 0
    assert "own data" in Path("reports/tiny/index.html").read_text()


def test_ask_and_tell_repeats_exactly_after_interruptions() -> None:
    """Drop trials, and reopen the study, at every third step: the log is that of an uninterrupted loop."""
    with study_of(study="whole") as whole:
        while (trial := whole.ask()) is not None:
            finish(whole, trial)
    study, steps = study_of(study="broken"), 0
    while True:
        trial = study.ask()
        if trial is None:
            break
        for epoch in range(1, trial.epochs + 1):
            steps += 1
            if steps % 3 == 0:  # the loop forgets the trial
                number = trial.number
                del trial
                gc.collect()
                if steps % 2 == 0:  # and its process ends
                    study.close()
                    study = dnas.open_study("broken")
                trial = study.ask()
                assert trial is not None
                assert trial.number == number
            if not trial.report(epoch, val_error=error_of(trial.spec, epoch), val_loss=0.5, seconds=1):
                break
        study.tell(trial)
    study.close()
    assert steps > 20
    assert log_of("broken") == log_of("whole")


KILLED = """
import os, dnas
study = dnas.create_study("tiny", trials=3, shape=(1, 8, 8), classes=10, epochs=9, mirror="none", stopping="none")
trial = study.ask()
trial.report(1, val_error=0.5)
os.kill(os.getpid(), 9)
"""


def test_trial_of_a_killed_process_is_asked_again() -> None:
    subprocess.run([sys.executable, "-c", KILLED], check=False, env=os.environ)
    study = study_of(trials=3, stopping="none")
    trial = study.ask()
    assert trial is not None
    assert (trial.number, trial.start) == (0, 1)
    assert trial.report(1, val_error=0.9)  # an epoch is recorded once
    assert study.records[0].val_error == 0.9
    assert [line for line in log_of("tiny") if "report" in line].__len__() == 1
    study.close()


def test_trial_that_was_stopped_is_not_asked_again() -> None:
    """The process ended between the decision of the stopping rule and the trial's end."""
    study = study_of(trials=6)
    while (trial := study.ask()) is not None:
        epochs = range(1, trial.epochs + 1)
        if not all(trial.report(epoch, val_error=error_of(trial.spec, epoch), seconds=1) for epoch in epochs):
            break
        study.tell(trial)
    assert trial is not None
    number = trial.number
    study.close()
    del trial
    with study_of(trials=6) as study:
        following = study.ask()
        assert following is not None
        assert following.number != number
        assert study.records[number].state == "paused"
    assert not study.replay().differences


def test_several_trials_are_open_at_once() -> None:
    with study_of(trials=3, stopping="none") as study:
        trials = [study.ask(), study.ask(), study.ask()]
        assert study.ask() is None
        for trial in reversed(trials):
            assert trial is not None
            study.tell(trial, 0.1 * (trial.number + 1))  # a single result, without epochs
    assert study.trials["val_error"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert len({trial.seed for trial in trials if trial}) == 3


def test_failed_trial_is_recorded_with_its_reason() -> None:
    with study_of(trials=2, stopping="none") as study:
        trial = study.ask()
        assert trial is not None
        record = study.tell(trial, failed="the GPU caught fire")
        assert (record.state, record.reason) == ("failed", "error: the GPU caught fire")
        other = study.ask()
        assert other is not None
        assert other.number == 1


def test_latency_objective_is_reported_first() -> None:
    with study_of(trials=1, objectives="val_error,latency", stopping="none") as study:
        trial = study.ask()
        assert trial is not None
        with pytest.raises(InputError, match="call report_latency"):
            study.tell(trial, 0.5)
        trial.report_latency(0.25)
        assert study.tell(trial, 0.5).objectives == {"val_error": 0.5, "latency": 0.25}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda study, trial: trial.report(0, val_error=0.5), "epoch must be from 1 to 9, but got 0"),
        (lambda study, trial: trial.report(1.0, val_error=0.5), "epoch must be from 1 to 9, but got 1.0"),
        (lambda study, trial: trial.report(1, val_error=math.nan), "must be a number from 0 to 1, but got nan"),
        (lambda study, trial: trial.report(1, val_error=7), "val_error must be a number from 0 to 1, but got 7"),
        (lambda study, trial: trial.report(1, val_loss=0.5), "val_error must be a number from 0 to 1, but got None"),
        (lambda study, trial: trial.report(1, val_error="0.5"), "but got '0.5'"),
        (lambda study, trial: study.tell(trial), "trial 0 has no result; pass val_error= to tell, or failed="),
        (
            lambda study, trial: (trial.report(1, val_error=0.5), study.tell(trial)),
            "has reported 1 of 9 epochs; report the rest, or pass failed= to tell",
        ),
        (
            lambda study, trial: (trial.report(9, val_error=0.5), study.tell(trial, 0.4)),
            "reported val_error=0.5 after epoch 9, but 0.4 was told",
        ),
        (
            lambda study, trial: (study.tell(trial, 0.5), study.tell(trial, 0.5)),
            "trial 0 is not open; the open trials are none",
        ),
    ],
)  # fmt: skip
def test_wrong_results_are_refused_and_change_nothing(act: Callable[[Any, Any], object], message: str) -> None:
    with study_of(trials=2, stopping="none") as study:
        trial = study.ask()
        with pytest.raises(InputError) as error:
            act(study, trial)
        assert message in str(error.value)
    assert not study.replay().differences


def test_study_cannot_be_asked_from_two_processes() -> None:
    with study_of():
        code = "import dnas; dnas.open_study('tiny').ask()"
        end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "study tiny is being run by another process" in end.stderr
    assert dnas.open_study("tiny").ask() is not None


def test_function_trains_the_networks_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    study = dnas.search("tiny", trials=6, train=train, validation_images=200, **IMAGES)
    assert "trial  #5" in capsys.readouterr().out
    with study_of(study="loop", validation_images=200) as loop:
        while (trial := loop.ask()) is not None:
            loop.tell(trial, **train(trial.spec, trial.seed, trial.report))
    assert log_of("tiny") == log_of("loop")
    assert study.config["data"]["val_size"] == 200
    assert not study.replay().differences


def test_function_that_raises_fails_its_trial_and_stops_the_search() -> None:
    def broken(spec: Any, seed: int, report: Any) -> float:
        if spec.growth_rate > 2:
            raise RuntimeError("no space left\non device")
        return 0.5

    with pytest.raises(SearchStopped, match="3 trials in a row failed with the same error: RuntimeError: no"):
        dnas.search("tiny", trials=12, train=broken, progress=False, stopping="none", **IMAGES)
    study = dnas.open_study("tiny")
    failed = [record for record in study.records if record.state == "failed"]
    assert failed[0].reason == "error: RuntimeError: no space left"
    assert "in broken" in (study.path / "trials" / str(failed[0].number) / "traceback.txt").read_text()


def test_errors_that_are_not_in_a_row_do_not_stop_the_search() -> None:
    calls = iter(range(8))

    def sometimes(spec: Any, seed: int, report: Any) -> float:
        if next(calls) % 2:
            raise RuntimeError("now and then")
        return 0.5

    study = dnas.search("tiny", trials=8, train=sometimes, progress=False, stopping="none", **IMAGES)
    assert study.trials["state"].value_counts().to_dict() == {"complete": 4, "failed": 4}


def test_tracker_that_cannot_be_opened_leaves_the_study_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise InputError("no such server")

    with monkeypatch.context() as patch:
        patch.setattr("dnas.api.searches.open_trackers", refuse)
        with pytest.raises(InputError, match="no such server") as refused:
            study_of()
    with study_of() as study:
        assert study.ask() is not None
    assert refused.traceback, "a notebook keeps the frames of the last error, and so the study's objects"


def test_wrong_result_of_a_function_fails_its_trial() -> None:
    with pytest.raises(SearchStopped, match="returned 'accuracy'; a result has val_error and val_loss"):
        dnas.search("tiny", trials=4, train=lambda *_: {"accuracy": 1}, progress=False, **IMAGES)


def test_interrupted_function_is_started_again() -> None:
    def interrupted(spec: Any, seed: int, report: Any) -> float:
        report(1, val_error=0.5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="paused after 1 trials"):
        dnas.search("tiny", trials=2, train=interrupted, progress=False, **IMAGES)
    study = dnas.search("tiny", trials=2, train=train, progress=False, **IMAGES)
    assert study.records[0].state == "complete"


def test_commands_refuse_a_study_that_dnas_does_not_train(capsys: pytest.CaptureFixture[str]) -> None:
    dnas.search("tiny", trials=1, train=train, progress=False, **IMAGES)
    assert main(["search", "--study", "tiny", "--trials", "2"]) == 2
    assert "continue it from Python" in capsys.readouterr().err
    assert main(["replay", "tiny"]) == 0
    assert main(["replay", "tiny", "--trial", "0"]) == 2
    assert main(["status", "tiny"]) == 0
