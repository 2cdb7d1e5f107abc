"""MLflow and W&B without a network: stores on disk, a local server, offline runs, and 50 kills."""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from dnas.space.parse import load_space
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from dnas.track.keep import open_trackers, track
from dnas.track.mlflow_runs import MLflow
from dnas.track.source import Source, TrackedStudy
from dnas.track.targets import Target
from dnas.track.wandb_runs import WandB
from tests.support.analytic import AnalyticExecutor, Silent, search_config
from tests.support.patience import patience, wait_until
from tests.support.trackers import Points, in_mlflow, in_tensorboard, in_wandb, logged, wandb_records

pytestmark = pytest.mark.slow  # importing MLflow takes 4 s of processor time

KILLS = 50


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
    }.items():
        monkeypatch.setenv(name, value)


def study() -> StudyFolder:
    return StudyFolder(Path("studies/s"))


def files() -> str:
    """Return the URI of a store in the test's folder. It is absolute, as MLflow keeps stores by their URI."""
    return (Path.cwd() / "mlruns").as_uri()


def run(trials: int, epochs: int = 12, stopping: str = "asha") -> None:
    config = search_config(trials, load_space("digits_bc", epochs=epochs), mirror="none", stopping=stopping)
    search(config, Silent(), AnalyticExecutor())


def check(points: Points) -> None:
    """Check that a tracker holds exactly the points of the log."""
    assert points == logged(study())


def test_mlflow_holds_nested_runs_with_everything() -> None:
    from mlflow.tracking import MlflowClient

    target = Target("mlflow", files())
    run(3)
    assert track(study(), target) == 3
    check(in_mlflow(files()))
    assert track(study(), target) == 0
    run(5)
    track(study(), target)
    check(in_mlflow(files()))
    client = MlflowClient(tracking_uri=files())
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("dnas").experiment_id])}
    parent, first, record = runs["s"], runs["s #0"], study().records()[0]
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.data.params["growth_rate"] == str(record.params["growth_rate"])
    assert first.data.params["name"] == record.network
    assert first.data.metrics["params"] == record.cost["params"]
    assert first.data.metrics["final_val_error"] == record.val_error
    assert (first.data.tags["dnas.state"], first.info.status) == (record.state, "FINISHED")
    statuses = {record.state: runs[f"s #{record.number}"].info.status for record in study().records()}
    assert statuses == {"complete": "FINISHED", "paused": "SCHEDULED"}
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "report")] == ["report/index.html"]


def test_mlflow_replaces_runs_whose_epochs_were_raised() -> None:
    run(1, 12, "none")
    track(study(), Target("mlflow", files()))
    run(1, 24, "none")
    track(study(), Target("mlflow", files()))
    assert [epoch for epoch, _ in in_mlflow(files())["0"]["val_error"]] == list(range(1, 25))


@pytest.mark.parametrize("key", ["0", "study", "new"])
def test_run_whose_facts_a_kill_left_empty_does_not_break_mlflow(key: str) -> None:
    """MLflow truncates meta.yaml before it writes the new state of a run."""
    from mlflow.tracking import MlflowClient

    run(2)
    target = Target("mlflow", files())
    track(study(), target)
    identity = TrackedStudy.of(study()).identity
    (experiment,) = {tag.parents[2] for tag in Path("mlruns").glob("*/*/tags/dnas.run")}
    if key == "new":
        folder = experiment / ("0" * 32)
        folder.mkdir()
    else:
        (folder,) = (
            tag.parents[1] for tag in experiment.glob("*/tags/dnas.run") if tag.read_text() == f"{identity}/{key}"
        )
    (folder / "meta.yaml").write_text("")
    track(study(), target)
    check(in_mlflow(files()))
    runs = MlflowClient(tracking_uri=files()).search_runs([experiment.name])
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs} - {None}
    assert parents <= {run.info.run_id for run in runs}, "trials are nested under the run for the study"
    assert len(runs) == 3


def test_metric_file_that_a_kill_left_empty_does_not_break_mlflow() -> None:
    run(1)
    track(study(), Target("mlflow", files()))
    tag = next(tag for tag in Path("mlruns").glob("*/*/tags/dnas.run") if tag.read_text().endswith("/0"))
    (tag.parent / "dnas.fingerprint").unlink()
    (tag.parents[1] / "metrics" / "val_loss").write_text("")
    track(study(), Target("mlflow", files()))
    check(in_mlflow(files()))


def test_mlflow_server_that_starts_late_receives_everything() -> None:
    """The search continues without the server, reports that once, and the server is filled when it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri, notes = f"http://127.0.0.1:{port}", list[str]()
    with open_trackers(study(), [Target("mlflow", uri)], notes.append):
        run(3)
    assert notes == [
        f"mlflow:{uri} is out of date (its server does not answer); the search continues and retries, and"
        f" `dnas track s mlflow:{uri}` completes it later"
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///m.db", "--port", str(port)]
    with Path("server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: answers(f"{uri}/health"), "the server of MLflow")
        track(study(), Target("mlflow", uri))
        check(in_mlflow(uri))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(patience(60))


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def test_wandb_offline_holds_grouped_runs_with_everything() -> None:
    target = Target("wandb", "team/densenets")
    run(3)
    assert track(study(), target) == 3
    check(in_wandb(Path("wandb")))
    assert track(study(), target) == 0
    run(5)
    track(study(), target)
    check(in_wandb(Path("wandb")))
    found, artifacts = {}, []
    for path in Path("wandb").glob("offline-run-*/run-*.wandb"):
        records = wandb_records(path)
        found |= {record.run.display_name: record.run for record in records if record.HasField("run")}
        artifacts += [record.request.log_artifact.artifact.name for record in records if record.HasField("request")]
        artifacts += [record.artifact.name for record in records if record.HasField("artifact")]
    assert found.keys() == {"s", *(f"s #{number}" for number in range(5))}
    assert {(run.run_group, run.project, run.entity) for run in found.values()} == {("s", "densenets", "team")}
    config = {item.key: item.value_json for item in found["s #0"].config.update}
    assert config["params"] == str(float(study().records()[0].cost["params"]))
    assert any(name.startswith("report-") for name in artifacts)


def test_wandb_rewrites_a_run_that_returns_to_an_earlier_state() -> None:
    """A paused trial is promoted, its process is killed, and the trial is paused again with the same content."""
    run(1)
    target = Target("wandb", "densenets")
    track(study(), target)
    source = Source(study())
    tracker = WandB(target.place, source.study, study().path / "trackers" / f"{target.slug}.json")
    (paused,) = source.changed(last=True)
    tracker.write(dataclasses.replace(paused, state="running", points=()))
    tracker.close()
    track(study(), target)
    check(in_wandb(Path("wandb")))


CHILD = """
import math, os, random, signal, sys, time
from pathlib import Path
import dnas, dnas.track.mlflow_runs, dnas.track.tensorboard_files, dnas.track.wandb_runs
import mlflow.tracking, tensorboard.plugins.hparams.api_pb2, wandb
from dnas.strategy import mirroring
mirroring.EVERY_SECONDS, mirroring.MAX_TIME_SHARE = 0.0, 1.0
TRACKERS = ["tensorboard:tb", "mlflow:" + sys.argv[3], "wandb:p"]

def search(name, trackers, seconds, opened=lambda: None):
    options = {"shape": (1, 8, 8), "classes": 10, "epochs": 9, "mirror": "none", "track": trackers}
    with dnas.create_study("tiny", study=name, trials=12, **options) as study:
        opened()
        while (trial := study.ask()) is not None:
            for epoch in range(1, trial.epochs + 1):
                time.sleep(random.uniform(0, seconds) * (epoch > trial.start))
                error = 0.02 + 0.3 / math.log(trial.cost["params"]) + math.exp(-epoch) / 2
                if not trial.report(epoch, val_error=error, val_loss=2 * error, seconds=1.5):
                    break
            study.tell(trial)

def finished():
    return [path.read_text() for path in Path("studies/s/trackers").glob("wandb-*.json")]

search("warm", [], 0.0)  # imports everything
for kill in range(int(sys.argv[2])):
    random.seed(f"{sys.argv[1]} {kill}")
    pause, before, limit = random.uniform(0.0, 4.0), finished(), time.monotonic() + 30
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.setsid()  # a group of its own, as signals to the group of a killed child would end this process
        search("s", TRACKERS, 2.0, lambda: os.write(writer, b"."))
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)  # its study is open, and its trackers start
    os.close(reader)
    while kill % 5 == 0 and finished() == before and time.monotonic() < limit:  # W&B needs seconds for its first run
        time.sleep(0.05)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_50_kills_leave_no_point_doubled_or_missing() -> None:
    """Kill a search that writes to three trackers at random moments. Then bring them up to date once."""
    seed = random.randrange(10**6)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(seed), str(KILLS), files()], stdout=subprocess.PIPE, text=True
    )
    statuses = child.stdout.split()
    assert child.returncode == 0
    assert len(statuses) == KILLS
    print(f"seed {seed}: {statuses.count('9')} of {KILLS} children were killed before they ended")
    assert statuses.count("9") > KILLS / 2
    read: dict[str, Callable[[], Points]] = {
        "tensorboard:tb": lambda: in_tensorboard(Path("tb/s")),
        f"mlflow:{files()}": lambda: in_mlflow(files()),
        "wandb:p": lambda: in_wandb(Path("wandb")),
    }
    wait_until(lambda: not wandb_services(), "the end of W&B's processes")
    expected = logged(study())
    assert sum(len(curves["val_error"]) for curves in expected.values()) >= KILLS / 2, "points of the search"
    for name, points in read.items():
        if name.startswith("mlflow"):
            MLflow(files(), TrackedStudy.of(study()))  # removes a file that MLflow cannot read
        before = points()
        assert sum(len(curves.get("val_error", ())) for curves in before.values()) > 0, f"{name} was written to"
        track(study(), Target(*name.split(":", 1)))
        found = points()
        assert found.keys() == expected.keys(), (seed, name)
        for key, curves in expected.items():
            assert found[key].keys() == curves.keys(), (seed, name, key)
            for metric, curve in curves.items():
                assert [epoch for epoch, _ in found[key][metric]] == [epoch for epoch, _ in curve], (seed, name, key)
                values = [value for _, value in curve]
                assert [value for _, value in found[key][metric]] == pytest.approx(values), (seed, name, key)


def wandb_services() -> list[str]:
    """Return the W&B processes that work in this folder."""
    here, found = Path.cwd(), list[str]()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"wandb-core" in (path / "cmdline").read_bytes() and (path / "cwd").readlink() == here:
                found.append(path.name)
    return found
