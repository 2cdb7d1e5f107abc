"""Tests of studies on a real Ray cluster of one node, which runs one trial at a time."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from dnas.errors import InputError
from dnas.executors.ray_tune import RayExecutor
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from tests.support.analytic import Silent
from tests.support.commands import Command
from tests.support.patience import patience
from tests.support.postgres import Server
from tests.support.ray_nodes import PATIENCE, Nodes
from tests.support.ray_searches import (
    ENVIRONMENT,
    arguments,
    events,
    finished,
    first_epochs_were_kept,
    joined,
    on_ray,
    small,
    wait_until,
)
from tests.support.studies import equal_but_times, events_but_times

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray with one node")]  # all tests share one cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes(cpus=1)
    yield cluster
    cluster.stop()


@pytest.fixture
def address(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from joined(nodes, monkeypatch, cpus=1)


def test_study_is_the_same_on_every_executor(
    address: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen trials run one at a time, with pauses and promotions: in local processes, on Ray, and by a worker on
    PostgreSQL with its own folder. Records and logs are equal except for times and hosts.

    Ray's shared storage holds at most the last two checkpoints of a trial. Tune does not rewrite the state of all its
    trials at each checkpoint.
    """
    options = small(16, epochs=8, workers=1)
    monkeypatch.chdir(tmp_path)
    search(replace(options, study="local"), Silent())
    shared = tmp_path / "shared"
    checkpoints, states = [], set()

    class Watching(Silent):
        def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
            counts = Counter(path.parent for path in shared.rglob("checkpoint_*"))
            checkpoints.append(max(counts.values(), default=0))
            states.update(path.stat().st_mtime_ns for path in shared.rglob("experiment_state*"))

    search(replace(options, study="ray"), Watching(), RayExecutor("ray", address, shared=shared))
    assert 1 <= max(checkpoints) <= 2
    assert len(states) <= 1
    far = tmp_path / "far"
    far.mkdir()
    worker = Command(
        *("worker", "s", "--space", "digits_bc", "--trials", "16", "--epochs", "8"),
        *("--subset", "100", "--workers", "1"),
        *("--shared", str(tmp_path / "files"), "--mirror", "none"),
        *("--kernels", "plain"),  # conftest.py sets the same kernels for this process
        folder=far,
        environment=ENVIRONMENT | {"DNAS_STORAGE": server.database("same")},
        merge=True,
    )
    out, _ = worker.communicate(patience(3 * PATIENCE))
    assert worker.returncode == 0, out
    local = StudyFolder(Path("studies/local"))
    assert {"pause", "promote"} <= {event["event"] for event in local.events()}
    for other in (StudyFolder(Path("studies/ray")), StudyFolder(far / "studies/s")):
        pairs = zip(equal_but_times(other.records()), equal_but_times(local.records()), strict=True)
        differing = [{key: (a[key], b[key]) for key in a if a[key] != b[key]} for a, b in pairs]
        assert differing == [{}] * 16
        assert events_but_times(other.events()) == events_but_times(local.events())
        for record in other.records():
            for name in ("checkpoint.pt", "curve.csv", "norms.npz"):
                assert (other.trial_folder(record.number) / name).exists()
    assert not list(shared.rglob("checkpoint.pt")), "fetched files are removed from the shared storage"


def test_killed_driver_resumes_from_the_shared_storage(address: str, tmp_path: Path) -> None:
    trials, epochs = 3, 6
    run = arguments(
        address, str(tmp_path / "shared"), "--trials", str(trials), "--epochs", str(epochs), "--workers", "1"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "dnas", *run],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: any(e["event"] == "report" and e["number"] == 1 and e["epoch"] == 3 for e in events(tmp_path)))
    process.kill()
    process.wait()
    assert not (tmp_path / "studies/s/trials/1/checkpoint.pt").exists(), "the checkpoint is only in the shared storage"
    resumed = Command(*run, folder=tmp_path, environment=ENVIRONMENT)
    out, errors = resumed.communicate(patience(2 * PATIENCE))
    assert resumed.returncode == 0, out + errors
    records = finished(tmp_path, trials, epochs)
    assert first_epochs_were_kept(tmp_path, 1, 2), "the first epochs were not retrained"
    assert records[1].attempts == 2


def test_interrupt_stops_the_search(address: str, tmp_path: Path) -> None:
    run = arguments(address, str(tmp_path / "shared"), "--trials", "50", "--epochs", "3")
    process = Command(*run, folder=tmp_path, environment=ENVIRONMENT, merge=True)
    wait_until(lambda: any(event["event"] == "report" for event in events(tmp_path)))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=patience(PATIENCE))
    assert process.returncode == 130
    assert "Run the same command to resume" in out


@pytest.mark.parametrize(
    ("body", "reason", "losses", "traceback"),
    [
        ("fail", "error: ValueError: no good", 0, "ValueError: no good"),
        ("die", "lost worker: its process was ended by SIGKILL", 4, None),
        ("crash", "crash: its process was ended by SIGABRT 2 times; this network crashes torch", 1, None),
    ],
)
def test_trial_that_fails_on_a_node_or_ends_its_process_has_failed(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    reason: str,
    losses: int,
    traceback: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    on_ray(address, small(1, epochs=2, workers=1), tmp_path / "shared", body=f"tests.support.ray_bodies:{body}")
    (record,) = StudyFolder(Path("studies/s")).records()
    assert (record.state, record.losses) == ("failed", losses)
    assert str(record.reason).startswith(reason)
    file = Path("studies/s/trials/0/traceback.txt")
    assert (file.read_text() if file.exists() else None) == traceback


def test_trial_larger_than_any_node_is_rejected_at_once(address: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no node of the cluster has 64 CPUs for a trial: the largest has \d+; give a"
    ):
        RayExecutor("s", address, cpus=64, shared=tmp_path)


def test_other_version_of_ray_is_reported_in_one_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(
        InputError, match=rf"the cluster has Ray {version}, Python .*, this machine Ray 2\.0\.0, Python"
    ):
        RayExecutor("s", address, shared=tmp_path)
