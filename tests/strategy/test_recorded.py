"""Studies that earlier code recorded resume, replay and report the same. See tests/data/recorded/README.md."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnas.cli import main
from dnas.machine import COMPILERS
from dnas.study.folder import StudyFolder
from dnas.training.checkpoint import digest_of_weights, read_checkpoint
from tests.support.studies import equal_but_times, events_but_times

RECORDED = Path(__file__).resolve().parents[1] / "data" / "recorded"
MACHINE = json.loads((RECORDED / "machine.json").read_text())
SEARCH = "search --space tiny --study recorded --trials 9 --epochs 5 --objective val_error,params --seed 3 --workers 1"
ABLATE = "ablate small.toml --seeds 2 --epochs 3 -q"
TRAIN = "train densenet-bc:L=16,k=4,dropout=0.2 --dataset digits --epochs 6 --out run"

pytestmark = pytest.mark.skipif(  # the recorded networks were trained by the C++ kernels
    not any(map(shutil.which, COMPILERS)), reason="no C++ compiler on this machine"
)


def is_recorded_machine() -> bool:
    """Return whether training on this machine reproduces the recorded bits: equal processor, equal libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    machine = {
        "processor": model[1] if model else "",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
        "numpy": np.__version__,
    }
    return machine.items() <= MACHINE.items()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    for archive in RECORDED.glob("*.tar.xz"):
        with tarfile.open(archive) as tar:
            tar.extractall(folder / archive.name.partition(".")[0], filter="data")
    return folder


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path) -> Path:
    return shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)


def records(study: Path) -> list[dict[str, Any]]:
    """Return a study's records without times, attempts, and the code and system that wrote them."""
    rows = equal_but_times(StudyFolder(study).records())
    return [{key: row[key] for key in row.keys() - {"attempts", "versions"}} for row in rows]


def curve(path: Path) -> list[str]:
    """Return the rows of a curve.csv without the last column, the seconds."""
    return [row.rpartition(",")[0] for row in path.read_text().splitlines()]


def assert_same_trials(whole: Path, resumed: Path) -> None:
    """Compare records and curves: bit for bit on the machine that recorded them."""
    assert {record["state"] for record in records(resumed)} == {"complete"}
    assert [record["epochs"] for record in records(resumed)] == [record["epochs"] for record in records(whole)]
    if is_recorded_machine():
        assert records(resumed) == records(whole)
        for path in whole.glob("trials/*/curve.csv"):
            assert curve(resumed / path.relative_to(whole)) == curve(path)


@pytest.mark.slow
def test_recorded_search_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "search" / "cut")
    before = events_but_times(StudyFolder(Path("studies/recorded")).events())
    assert main(SEARCH.split()) == 0
    events = events_but_times(StudyFolder(Path("studies/recorded")).events())
    expected = events_but_times(StudyFolder(folder / "search/whole/studies/recorded").events())
    assert events[: len(before)] == before == expected[: len(before)]
    assert [event["number"] for event in events if event["event"] == "ask"] == list(range(9))
    shape = [(event["event"], event.get("number"), event.get("epoch")) for event in events]
    assert shape == [(event["event"], event.get("number"), event.get("epoch")) for event in expected]
    if is_recorded_machine():
        assert events == expected
    assert_same_trials(folder / "search/whole/studies/recorded", Path("studies/recorded"))


def test_recorded_search_replays_and_reports_the_same_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder / "search" / "whole")
    best = min(record.val_error for record in StudyFolder(Path("studies/recorded")).records() if record.val_error)
    assert main(["replay", "recorded"]) == 0
    assert capsys.readouterr().out.startswith("9 proposals and 45 decisions ")
    assert main(["status", "recorded"]) == 0
    assert "9 complete" in capsys.readouterr().out
    assert main(["report", "recorded"]) == 0
    assert f"{100 * best:.2f}" in Path("reports/recorded/index.html").read_text()


def test_recorded_ablation_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "ablation" / "cut")
    assert main(ABLATE.split()) == 0
    assert_same_trials(folder / "ablation/whole/studies/small", Path("studies/small"))


def test_recorded_run_directory_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "train" / "cut")
    monkeypatch.setattr("dnas.api.train_network.DEFAULT_KERNELS", "auto")  # the default of the command line
    before = Path("run/curve.csv").read_text()
    assert main(TRAIN.split()) == 0
    assert Path("run/curve.csv").read_text().startswith(before)
    expected = curve(folder / "train/whole/run/curve.csv")
    assert len(curve(Path("run/curve.csv"))) == len(expected)
    if is_recorded_machine():
        assert curve(Path("run/curve.csv")) == expected
        weights = read_checkpoint(Path("run/checkpoint.pt"))["weights"]
        assert digest_of_weights(weights) == MACHINE["weights_digest_of_train"]
