"""Tests of studies with a list of runs: each missing run is trained once, and a kill does not affect the result."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dnas.arch import parse_name
from dnas.batch.planned import PlannedRun, read_runs
from dnas.batch.runs import train_runs
from dnas.cli import main
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.executors.protocol import Outcome
from dnas.executors.worker import Message
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from dnas.training.recipe import make_recipe
from tests.support.analytic import AnalyticExecutor, Silent, Trouble, curve
from tests.support.commands import Command
from tests.support.pages import draw_only
from tests.support.patience import wait_until
from tests.support.studies import equal_but_times

RECIPE = make_recipe("fast", data_info("digits"), epochs=3)
RUN_CONFIG = RunConfig({"name": "digits", "subset": 200})
NETWORKS = {"plain": "densenet:L=7,k=4", "bc": "densenet-bc:L=10,k=4"}


def planned(seeds: int = 2, **changes: Any) -> list[PlannedRun]:
    return [
        PlannedRun(
            f"{group}-{seed}",
            group,
            parse_name(f"{name},channels=1,size=8"),
            dataclasses.replace(RECIPE, **changes),
            (seed, 0),
        )
        for seed in range(seeds)
        for group, name in NETWORKS.items()
    ]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(runs: list[PlannedRun], executor: AnalyticExecutor | None = None, **changes: Any) -> Outcome:
    return train_runs("s", "Two networks", runs, RUN_CONFIG, Silent(), executor or AnalyticExecutor(), **changes)


def records() -> list[TrialRecord]:
    return StudyFolder(Path("studies/s")).records()


def test_every_run_is_trained_once_and_read_with_its_group_and_seed() -> None:
    executor = AnalyticExecutor()
    assert train(planned(), executor) == Outcome(4)
    assert [job.seed for job in executor.started] == [(0, 0), (0, 0), (1, 0), (1, 0)]
    frame = read_runs("s")
    assert frame["key"].tolist() == ["plain-0", "bc-0", "plain-1", "bc-1"]
    assert frame["group"].tolist() == ["plain", "bc", "plain", "bc"]
    assert frame["seed"].tolist() == [0, 0, 1, 1]
    assert frame["state"].eq("complete").all()
    assert not frame["final"].any()
    assert frame["val_error"].tolist() == [curve(run.spec, 3)[-1] for run in planned()]
    second = AnalyticExecutor()
    assert train(planned(), second) == Outcome(4)
    assert second.started == []


def test_more_runs_are_added_and_fewer_remove_none() -> None:
    train(planned(1))
    before = equal_but_times(records())
    executor = AnalyticExecutor()
    train(planned(3), executor)
    assert [job.seed[0] for job in executor.started] == [1, 1, 2, 2]
    assert equal_but_times(records())[:2] == before
    assert StudyFolder(Path("studies/s")).config()["trials"] == 6
    train(planned(2))
    assert len(records()) == 6


class Interrupting(AnalyticExecutor):
    """Interrupt the driver, as Ctrl-C does, before its `left`-th message."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().wait(timeout)


@pytest.mark.parametrize("left", range(1, 17))
def test_interruption_before_any_message_does_not_affect_the_result(left: int) -> None:
    train(planned())
    whole = equal_but_times(records())
    StudyFolder(Path("studies/s")).path.rename("studies/whole")
    with pytest.raises(KeyboardInterrupt):
        train(planned(), Interrupting(left))
    train(planned())
    resumed = equal_but_times(records())
    for record in (*whole, *resumed):
        record.pop("attempts")
    assert resumed == whole


def send_once(message: Message) -> Trouble:
    """Send `message` once, instead of the second epoch of the first run."""
    left = [message]
    return lambda job, epoch: left.pop() if left and epoch == 2 else None


def test_run_resumes_after_a_lost_worker_and_after_running_out_of_memory() -> None:
    train(planned(), AnalyticExecutor(send_once(Message("lost", {"text": "gone"}))))
    assert [(record.state, record.losses) for record in records()] == [("complete", 1), *[("complete", 0)] * 3]
    StudyFolder(Path("studies/s")).path.rename("studies/lost")
    train(planned(), AnalyticExecutor(send_once(Message("failed", {"reason": "out of memory", "text": "full"}))))
    assert [(record.state, record.recompute) for record in records()] == [
        ("complete", True),
        *[("complete", False)] * 3,
    ]


def test_diverged_run_is_kept_and_run_with_an_error_is_retried() -> None:
    def failures(reason: str) -> Trouble:
        return lambda job, epoch: Message("failed", {"reason": reason, "text": "x"}) if job.key in "02" else None

    train(planned(), AnalyticExecutor(failures("diverged")))
    assert [record.state for record in records()] == ["failed", "complete", "failed", "complete"]
    executor = AnalyticExecutor()
    train(planned(), executor)
    assert executor.started == []
    StudyFolder(Path("studies/s")).path.rename("studies/diverged")
    train(planned(), AnalyticExecutor(failures("error")))
    executor = AnalyticExecutor()
    train(planned(), executor)
    assert [job.key for job in executor.started] == ["0", "2"]
    assert {record.state for record in records()} == {"complete"}


def test_three_identical_errors_stop_the_study() -> None:
    executor = AnalyticExecutor(lambda job, epoch: Message("failed", {"reason": "error", "text": "no such file"}))
    outcome = train(planned(3), executor)
    assert outcome.stopped_by is not None
    assert "3 trials in a row failed with the same error: no such file" in outcome.stopped_by
    assert len(executor.started) == 3


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "needs at least one run"),
        ([planned()[0], planned()[0]], "two runs of study s have the key 'plain-0'"),
        (planned(epochs=4), "another recipe: epochs=3 .now epochs=4."),
        ([dataclasses.replace(planned()[0], seed=(7, 0))], "another seed: .0, 0. .now .7, 0.."),
        ([dataclasses.replace(planned()[0], data={"split_seed": 1})], "another data"),
        ([dataclasses.replace(planned()[0], key="x", spec=parse_name("densenet:L=7,k=4"))], "its network is for 3"),
    ],
)
def test_invalid_runs_are_rejected_in_one_line(runs: list[PlannedRun], message: str) -> None:
    train(planned())
    with pytest.raises(InputError, match=message):
        train(runs)


def test_other_data_and_another_kind_of_study_are_rejected() -> None:
    train(planned())
    with pytest.raises(InputError, match="started with other data: subset 200"):
        train_runs("s", "", planned(), RunConfig({"name": "digits", "subset": 300}), Silent(), AnalyticExecutor())
    with pytest.raises(InputError, match="started to measure on the validation part"):
        train(planned(), final=True)
    text = Path("studies/s/study.toml").read_text()
    Path("studies/s/study.toml").write_text(text.replace('kind = "list"\n', ""))
    with pytest.raises(InputError, match="was proposed by a search"):
        train(planned())
    with pytest.raises(InputError, match="this needs a list of runs"):
        read_runs("s")


def test_study_commands_support_a_list_of_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch, "error", "learning_curves")
    train(planned(), command="dnas reproduce fig")
    assert main(["status", "s"]) == 0
    output = capsys.readouterr().out
    assert "Two networks" in output
    assert "4 of 4 trials" in output
    assert "seeds 0, 1" in output
    assert main(["report", "s"]) == 0
    capsys.readouterr()
    for command in (
        ["replay", "s"],
        ["doctor", "s"],
        ["extend", "s", "--max-params", "9"],
        ["search", "--study", "s", "--trials", "9"],
    ):
        assert main(command) == 2
        assert "`dnas status s` shows the command that trains the missing runs" in capsys.readouterr().err


# --- real runs -----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from tests.support.analytic import Silent
from tests.batch.test_runs import RUN_CONFIG, planned
from dnas.batch.runs import train_runs
train_runs("s", "t", planned(1, epochs=6), RUN_CONFIG, Silent(), final="final" in sys.argv)
"""


def start(*arguments: str) -> Command:
    return Command(*arguments, code=SCRIPT)


@pytest.mark.slow
def test_killed_study_resumes_with_an_identical_result() -> None:
    assert start().wait() == 0
    whole = [(record.val_error, record.weights_digest, record.epochs) for record in records()]
    assert len(whole) == 2
    StudyFolder(Path("studies/s")).path.rename("studies/whole")
    process = start()
    checkpoint = Path("studies/s/trials/1/checkpoint.pt")
    wait_until(checkpoint.exists, "the first checkpoint of trial 1")
    process.kill()
    process.wait()
    assert {record.state for record in records()} == {"complete", "running"}
    assert start().wait() == 0
    assert [(record.val_error, record.weights_digest, record.epochs) for record in records()] == whole
    assert records()[1].attempts == 2
    assert main(["eval", "s", "--trial", "1"]) == 0


def test_final_runs_train_on_all_images_and_evaluate_on_the_test_set() -> None:
    assert start("final").wait() == 0
    frame = read_runs("s")
    assert frame["final"].all()
    assert frame["test_error"].between(0, 1).all()
    assert frame["val_error"].isna().all()
    assert records()[0].data["val_size"] == 0
    assert main(["status", "s"]) == 0
