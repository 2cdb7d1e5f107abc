"""Tests of studies on a real Ray cluster of two nodes with private folders. A node is killed."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnas.cli import main
from dnas.errors import InputError
from dnas.executors import ray_tune
from dnas.executors.ray_tune import RayExecutor, connect
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from dnas.training.checkpoint import digest_of_weights, read_checkpoint
from tests.support.analytic import Silent
from tests.support.commands import Command
from tests.support.patience import patience
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

pytestmark = pytest.mark.xdist_group("ray with two nodes")  # all tests share one cluster


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Start an S3 server and return the environment variables that select it."""
    from moto.server import ThreadedMotoServer  # takes a second

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    yield names | {"AWS_DEFAULT_REGION": "us-east-1"}
    server.stop()


@pytest.fixture(scope="module")
def nodes(s3: dict[str, str]) -> Iterator[Nodes]:
    cluster = Nodes(**s3)
    cluster.add("one")
    cluster.add("two")
    yield cluster
    cluster.stop()


@pytest.fixture
def address(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from joined(nodes, monkeypatch, cpus=2)


@pytest.mark.slow
def test_nodes_may_share_only_an_object_store(
    address: str, s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    monkeypatch.chdir(tmp_path)
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="dnas")
    options = small(4, epochs=7, workers=2)
    on_ray(address, options, "s3://dnas/checkpoints")
    records = StudyFolder(Path("studies/s")).records()
    assert {record.state for record in records} <= {"complete", "paused"}
    for record in records:
        folder = Path("studies/s/trials") / str(record.number)
        assert digest_of_weights(read_checkpoint(folder / "checkpoint.pt")["weights"]) == record.weights_digest
        assert len((folder / "curve.csv").read_text().splitlines()) == 1 + record.epochs
    objects = boto3.client("s3").list_objects_v2(Bucket="dnas").get("Contents", [])
    assert [item["Key"] for item in objects if item["Size"]] == []


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_node_loses_no_trial(address: str, nodes: Nodes, tmp_path: Path) -> None:
    """A node is killed in the middle of a trial. The trial resumes on another node from its last epoch."""
    epochs = 40
    process = Command(
        *arguments(address, str(tmp_path / "shared"), "--trials", "2", "--epochs", str(epochs), "--workers", "2"),
        folder=tmp_path,
        environment=ENVIRONMENT,
        merge=True,
    )
    try:
        reached = lambda: {e["number"] for e in events(tmp_path) if e["event"] == "report" and e["epoch"] >= 3}  # noqa: E731
        wait_until(lambda: len(reached()) == 2, "epoch 3 of both trials")
        nodes.kill("one")
        nodes.add("three")
        out, _ = process.communicate(timeout=patience(2 * PATIENCE))
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, out
    records = finished(tmp_path, 2, epochs)
    assert sum(record.losses for record in records) >= 1
    assert all(first_epochs_were_kept(tmp_path, record.number, 2) for record in records)
    retries = [event for event in events(tmp_path) if event["event"] == "again"]
    assert all("lost worker" in event["reason"] for event in retries)
    assert retries
    alone = tmp_path / "alone"
    alone.mkdir()
    local = arguments(address, "", "--trials", "2", "--epochs", str(epochs), "--workers", "1")
    for option in ("--executor", "--ray-address", "--shared"):
        del local[local.index(option) : local.index(option) + 2]
    assert Command(*local, folder=alone, environment=ENVIRONMENT).wait(patience(2 * PATIENCE)) == 0
    expected = {r.digest: r.weights_digest for r in finished(alone, 2, epochs)}
    shared_networks = [r for r in records if r.digest in expected]
    assert shared_networks, "the first network does not depend on the order of events"
    assert all(expected[r.digest] == r.weights_digest for r in shared_networks if r.seed == [0, r.number])


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trial_over_its_time_limit_is_ended(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = small(3, epochs=400, workers=2, timeout=3.0, stopping="none")
    study = threading.Thread(target=on_ray, args=(address, options, tmp_path / "shared"), daemon=True)
    study.start()
    study.join(patience(2 * PATIENCE))
    assert not study.is_alive(), "the third trial starts after one of the first two has been ended"
    records = StudyFolder(Path("studies/s")).records()
    assert [record.state for record in records] == ["failed"] * 3
    assert all(str(record.reason).startswith("timeout: ") for record in records)


@pytest.mark.slow
def test_trials_share_a_gpu_and_stay_within_the_cluster(
    nodes: Nodes, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray only counts the GPU, which does not exist. The jobs sleep."""
    monkeypatch.chdir(tmp_path)
    nodes.add("gpu", cpus=4, gpus=1)
    try:
        connect(address)
        wait_until(lambda: any(node.get("GPU") for node in ray_tune._nodes()))
        executor = RayExecutor(
            "s", address, gpus=0.5, cpus=1, shared=tmp_path / "shared", body="tests.support.ray_bodies:nap"
        )
        assert executor.workers == 2
        search(small(4, epochs=1, stopping="none", workers=9, device="cuda"), Silent(), executor)
        spans = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("studies/s/trials/*/curve.csv"))]
        assert len(spans) == 4
        assert {span["gpu"] for span in spans} == {"0"}
        most_at_once = max(sum(b["from"] <= a["from"] < b["to"] for b in spans) for a in spans)
        assert most_at_once == 2
        with pytest.raises(InputError, match=r"no node of the cluster has 2 GPUs for a trial: the largest has 1"):
            RayExecutor("s", address, gpus=2, shared=tmp_path / "shared")
    finally:
        nodes.kill("gpu")


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray answers at 127.0.0.1:1: Connection refused"),
        ("nowhere.invalid:6379", "no Ray answers at nowhere.invalid:6379: "),
        ("here", "--ray-address needs host:port or auto, but got 'here'"),
        ("ray://127.0.0.1:10001", "dnas runs on a node of the cluster, not through Ray's client"),
    ],
)
def test_address_without_ray_is_reported_in_one_line(address: str, message: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        RayExecutor("s", address, shared=tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < patience(10)


def test_server_other_than_ray_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One server sends nothing, and one uses another protocol."""
    monkeypatch.setattr(ray_tune, "CONNECT_SECONDS", 1.0)
    for answer, message in ((b"", "no Ray"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a Ray head node")):
        with socket.create_server(("127.0.0.1", 0)) as server:
            done = threading.Event()

            def serve(server: socket.socket = server, answer: bytes = answer, done: threading.Event = done) -> None:
                line, _ = server.accept()
                with line:
                    if answer:
                        line.sendall(answer)
                    done.wait(patience(PATIENCE))

            threading.Thread(target=serve, daemon=True).start()
            began = time.monotonic()
            try:
                with pytest.raises(InputError, match=message):  # Ray's own client would retry for minutes
                    ray_tune._check_answers(f"127.0.0.1:{server.getsockname()[1]}")
            finally:
                done.set()
            assert time.monotonic() - began < patience(10)


def test_folder_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"this host cannot write to .*file"):
        RayExecutor("s", "127.0.0.1:1", shared=tmp_path / "file")


def test_options_of_ray_need_the_ray_executor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--space", "tiny", "--trials", "1", "--gpus-per-trial", "0.5"]) == 2
    assert capsys.readouterr().err == "dnas: --gpus-per-trial is for --executor ray, but the executor is local.\n"
