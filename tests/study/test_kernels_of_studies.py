"""Tests of the kernels of a study: resolved once, recorded and kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from dnas.arch import DenseNetSpec, parse_name
from dnas.cli import main
from dnas.errors import InputError
from dnas.executors.runner import measured_kernels
from dnas.executors.worker import Job, Message
from dnas.nn import kernels_or_plain
from dnas.nn.kernels import unavailable_reason
from dnas.strategy.run import search
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.study.record import new_record
from dnas.training.checkpoint import digest_of_weights, read_checkpoint
from dnas.training.defaults import DEFAULT_KERNELS
from tests.support.analytic import AnalyticExecutor, Silent, search_config

CHANGES: dict[str, Any] = {"data": {"name": "digits"}, "mirror": "none"}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(trials: int, **changes: Any) -> AnalyticExecutor:
    executor = AnalyticExecutor()
    search(search_config(trials, **CHANGES | {"stopping": "none"} | changes), Silent(), executor)
    return executor


def recorded_kernels() -> str:
    return str(StudyFolder(Path("studies/s")).config()["kernels"])


def test_study_keeps_its_kernels_and_every_record_holds_them() -> None:
    executor = run(2, kernels="ref")
    assert [job.kernels for job in executor.started] == ["ref", "ref"]
    assert recorded_kernels() == "ref"
    assert [job.kernels for job in run(3).started] == ["ref"], "a study keeps its kernels if none are requested"
    assert [job.kernels for job in run(4, kernels="auto").started] == ["ref"]
    assert [record.kernels for record in StudyFolder(Path("studies/s")).records()] == ["ref"] * 4
    with pytest.raises(InputError, match=r"started with the kernels ref \(now plain\)"):
        run(5, kernels="plain")


def test_auto_is_resolved_once_by_the_first_network(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[DenseNetSpec, str, int]] = []

    def choose(make_net: object, spec: DenseNetSpec, device: str, batch: int) -> str:
        requests.append((spec, device, batch))
        return "ref"

    monkeypatch.setattr("dnas.nn.fastest_kernels", choose)
    executor = run(3, kernels="auto")
    assert [job.kernels for job in executor.started] == ["ref"] * 3
    first = StudyFolder(Path("studies/s")).records()[0]
    assert requests == [(first.network_spec, "cpu", first.recipe["batch_size"])]
    run(4, kernels="auto")
    assert len(requests) == 1
    assert recorded_kernels() == "ref"


def test_default_is_the_fastest_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.executors.runner.DEFAULT_KERNELS", DEFAULT_KERNELS)
    monkeypatch.setattr("dnas.api.train_network.DEFAULT_KERNELS", DEFAULT_KERNELS)
    monkeypatch.setattr("dnas.nn.fastest_kernels", lambda *args: "ref")
    assert [job.kernels for job in run(1).started] == ["ref"]
    assert [job.kernels for job in run(1, study="compiled", compile_net=True).started] == ["plain"]
    command = ["train", "densenet:L=7,k=2", "--dataset", "digits", "--subset", "100", "--epochs", "1", "--out"]
    assert main([*command, "eager"]) == 0
    assert json.loads(Path("eager/run.json").read_text())["kernels"] == "ref"


def test_record_holds_the_kernels_of_a_host_without_a_compiler() -> None:
    class Bare(AnalyticExecutor):
        def start(self, job: Job) -> None:
            super().start(job)
            self.jobs[job.key].appendleft(Message("started", {"device": "cpu", "kernels": "plain"}))

    search(search_config(2, kernels="ref", **CHANGES), Silent(), Bare())
    assert recorded_kernels() == "ref"
    assert [record.kernels for record in StudyFolder(Path("studies/s")).records()] == ["plain"] * 2


def test_unavailable_kernels_fall_back_to_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.nn.unavailable_reason", lambda name: "there is no compiler" if name == "cpu" else "")
    assert [kernels_or_plain(name) for name in ("plain", "ref", "cpu")] == ["plain", "ref", "plain"]


def test_residual_networks_use_plain_kernels() -> None:
    run_config = RunConfig({"name": "digits"}, kernels="auto")
    record = new_record(0, "first", {}, parse_name("resnet:L=8,width=4"), recipe={"batch_size": 64})
    assert measured_kernels(run_config, record) == "plain"


def test_study_without_recorded_kernels_resumes_with_plain_ones() -> None:
    """Neither its record nor its study has an entry for kernels."""
    run(2)
    folder = StudyFolder(Path("studies/s"))
    config = folder.config()
    del config["kernels"]
    folder.write_config(config)
    for record in folder.records():
        path = folder.trial_folder(record.number) / "record.json"
        values = json.loads(path.read_text())
        del values["kernels"]
        path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"kernels plain \(now ref\)"):
        run(3, kernels="ref")
    assert [job.kernels for job in run(3, kernels="auto").started] == ["plain"]


def test_unknown_kernels_are_rejected_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--space", "digits_bc", "--trials", "1", "--kernels", "fast"]) == 2
    assert main(["train", "densenet:L=7,k=2", "--dataset", "digits", "--kernels", "fast"]) == 2
    error = capsys.readouterr().err
    assert error.count("kernels must be one of plain, ref, cpu") == 2
    assert error.count("\n") == 2
    assert not Path("studies").exists(), "no study is created"


@pytest.mark.parametrize("kernels", ["ref", "cpu"])
def test_repeated_run_is_bit_identical(kernels: str, capsys: pytest.CaptureFixture[str]) -> None:
    if unavailable_reason(kernels):
        pytest.skip(unavailable_reason(kernels))
    command = ["train", "densenet-bc:L=10,k=4", "--dataset", "digits", "--subset", "200", "--augment", "none"]
    command += ["--epochs", "2", "--threads", "1", "--kernels"]

    def digest(name: str) -> str:
        return digest_of_weights(read_checkpoint(Path(name, "checkpoint.pt"))["weights"])

    assert main([*command, kernels, "--out", "whole"]) == 0
    assert main([*command, kernels, "--out", "repeated"]) == 0
    assert digest("whole") == digest("repeated")
    assert json.loads(Path("whole/run.json").read_text())["kernels"] == kernels
    assert main([*command, "plain", "--out", "whole"]) == 2
    assert f"started with the kernels {kernels}, but got plain" in capsys.readouterr().err
    assert main([*command, "plain", "--out", "plain"]) == 0
    assert digest("plain") != digest("whole"), "kernels differ in rounding, so the requested ones were used"
