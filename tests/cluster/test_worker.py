"""Tests of several hosts that share a PostgreSQL database, with real runs, processes and kills."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from dnas.cli import main
from dnas.cluster import queries
from dnas.cluster.database import Database
from dnas.cluster.study import StoredStudy, create_study, load_data, options_of, read_config, shared_of
from dnas.cluster.worker import Worker
from dnas.errors import InputError
from dnas.executors.local import LocalExecutor
from dnas.executors.shared_storage import SharedStorage
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.strategy.run import search
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder
from tests.support.analytic import AnalyticExecutor, Silent, search_config
from tests.support.commands import Command
from tests.support.patience import patience
from tests.support.postgres import PASSWORD, Server
from tests.support.studies import equal_but_times, events_but_times

pytestmark = pytest.mark.xdist_group("postgres")  # one server for all tests

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 150.0  # seconds to wait for an event that takes about ten
DATA = {"name": "digits", "data_root": None, "subset": 200, "split_seed": 0, "augmentation": "auto"}


@pytest.fixture
def url(server: Server) -> str:
    return server.database(f"d{uuid.uuid4().hex}")


class Quiet(Silent):
    """A display that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


class PacedExecutor(AnalyticExecutor):
    """Simulated training runs with a pause per epoch. Like real ones, they wait for the answer after each epoch."""

    def __init__(self, pause: float = 0.0, **changes: Any) -> None:
        super().__init__(**changes)
        self.pause = pause

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        if all(key in self.asked for key in self.running):
            time.sleep(min(timeout, 0.005))
            return []
        time.sleep(self.pause)
        return super().wait(timeout)


class Host:
    """A worker in a thread, with its own study folder and connection."""

    def __init__(self, url: str, shared: Path, path: Path, executor: Any, slots: int = 1, expiry: float = 4.0) -> None:
        self.show = Quiet()
        self.database = Database(url, "s", self.show.note, expiry_seconds=expiry)
        config = read_config(self.database)
        options = options_of(config, host_config())
        self.folder = StoredStudy(path / "s", self.database, shared_of(config, str(shared)), self.show.note)
        data = load_data(config, options, self.show.note)
        self.executor = executor
        self.worker = Worker(self.folder, options, data, self.show, executor, slots, beat_seconds=0.3)
        self.done: str | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.done = self.worker.run()
        except BaseException as error:
            self.error = error

    def start(self) -> "Host":
        self.thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def end(self) -> str:
        return f"{self.error!r}"

    def join(self) -> str | None:
        self.thread.join(patience(PATIENCE))
        if self.error is not None:
            raise self.error
        assert not self.thread.is_alive()
        return self.done


def host_config(**changes: Any) -> SearchConfig:
    values: dict[str, Any] = {"space": load_space("digits_bc", epochs=4), "trials": 8, "data": DATA}
    return search_config(**values | {"mirror": "none"} | changes)


def create(url: str, shared: Path, options: SearchConfig) -> None:
    database = Database(url, "s")
    create_study(database, SharedStorage(shared), options, "cpu", print)
    database.close()


def check_exactly_once(folder: StudyFolder, trials: int) -> None:
    """Check that every trial has one ask, one tell, each epoch once, and a record that agrees."""
    events = folder.events()
    proposed = [event["number"] for event in events if event["event"] == "ask"]
    assert proposed == list(range(trials))
    assert Counter(event["number"] for event in events if event["event"] == "tell") == Counter(range(trials))
    epochs = [(event["number"], event["epoch"]) for event in events if event["event"] == "report"]
    assert len(epochs) == len(set(epochs))
    records = folder.records()
    assert [record.number for record in records] == list(range(trials))
    assert {record.state for record in records} == {"complete"}
    assert set(epochs) == {(r.number, epoch) for r in records for epoch in range(1, r.epochs_planned + 1)}


# --- hosts in threads ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_produces_the_records_of_a_local_search(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = host_config(trials=6, stopping="asha", space=load_space("tiny", epochs=9), retrain=1)
    search(options, Silent(), LocalExecutor())
    create(url, tmp_path / "shared", options)
    host = Host(url, tmp_path / "shared", tmp_path / "far", LocalExecutor()).start()
    assert host.join() == "complete"
    local, far = StudyFolder(tmp_path / "studies" / "s"), StudyFolder(tmp_path / "far" / "s")
    assert equal_but_times(far.records()) == equal_but_times(local.records())
    assert events_but_times(far.events()) == events_but_times(local.events())
    finals = [equal_but_times(record for _, record in study.retrained()) for study in (far, local)]
    assert finals[0] == finals[1]
    assert finals[0][0]["test_error"] is not None
    assert {record.state for record in far.records()} == {"complete", "paused"}, "early stopping took effect"
    for number in range(6):
        for name in ("norms.npz", "checkpoint.pt"):
            assert (far.trial_folder(number) / name).exists()
        assert len(far.curve(far.trial_folder(number))) == far.records()[number].epochs
    published = sorted(path.name for path in (tmp_path / "shared/s/records").iterdir())
    final = f"{far.best()[0].number}-1"
    assert published == sorted(
        [f"{final}-9.json", *(f"{r.number}-9.json" for r in far.records() if r.state == "complete")]
    )
    assert (far.path / "retrain" / final / "checkpoint.pt").exists()
    remaining = {path.parent.name for path in (tmp_path / "shared/s/checkpoints").rglob("*.pt")}
    assert remaining == {str(r.number) for r in far.records() if r.state == "paused"}, (
        "only checkpoints of paused trials remain"
    )


@pytest.mark.slow
def test_killed_database_loses_nothing_and_repeats_nothing(server: Server, url: str, tmp_path: Path) -> None:
    create(url, tmp_path / "shared", host_config(trials=6, stopping="none", space=load_space("tiny", epochs=4)))
    hosts = [Host(url, tmp_path / "shared", tmp_path / name, Counting()).start() for name in "ab"]
    for reports in (3, 12):
        wait_until(lambda reports=reports: reported(hosts) >= reports, hosts)  # type: ignore[misc]
        server.kill()
        time.sleep(1.5)
        server.start()
    assert [host.join() for host in hosts] == ["complete", "complete"]
    (proposer,) = (host for host in hosts if host.worker.outcome is not None)
    check_exactly_once(proposer.folder, 6)
    started = Counter(key for host in hosts for key in host.executor.started)
    assert started == Counter(str(number) for number in range(6)), "no job was started twice"
    assert not any("lost" in str(event) for event in proposer.folder.events())
    notes = [note.split(" (")[0] for host in hosts for note in host.show.notes]
    assert notes.count("the database does not answer; waiting") >= 2
    assert "the database is back" in notes
    assert not any(word in note for host in hosts for note in host.show.notes for word in (PASSWORD, "s3cret"))


class Counting(LocalExecutor):
    """Local executor that records the keys of the jobs that it starts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.started: list[str] = []

    def start(self, job: Job) -> None:
        self.started.append(job.key)
        super().start(job)


def reported(hosts: list[Host]) -> int:
    """Return the largest number of epochs in the log of a host."""
    logs = [host.folder.events() for host in hosts]
    return max(sum(event["event"] == "report" for event in log) for log in logs)


def wait_until(condition: Callable[[], bool], nodes: "Iterable[Node | Host]" = ()) -> None:
    began = time.monotonic()
    while not condition():
        for node in nodes:
            assert node.alive, node.end()
        assert time.monotonic() - began < patience(PATIENCE)
        time.sleep(0.15)  # each query opens a connection, which takes CPU time from the hosts


def test_proposer_that_lost_its_lease_continues_training_and_no_job_restarts(
    server: Server, url: str, tmp_path: Path
) -> None:
    create(url, tmp_path / "shared", host_config(trials=12, stopping="none"))
    hosts = [Host(url, tmp_path / "shared", tmp_path / name, PacedExecutor(0.02), slots=2).start() for name in "ab"]
    for reports in (6, 18):
        wait_until(lambda reports=reports: reported(hosts) >= reports, hosts)  # type: ignore[misc]
        holder = server.sql("SELECT owner FROM dnas_leases", url.rpartition("/")[2])[0][0]
        other = next(host for host in hosts if host.database.owner != holder)
        server.sql(f"UPDATE dnas_leases SET owner = '{other.database.owner}'", url.rpartition("/")[2])
    assert [host.join() for host in hosts] == ["complete", "complete"]
    (last,) = (host for host in hosts if host.worker.outcome is not None)
    assert [host for host in hosts if "another host proposes now; this one continues training" in host.show.notes]
    check_exactly_once(last.folder, 12)
    started = Counter(job.key for host in hosts for job in host.executor.started)
    assert started == Counter(str(number) for number in range(12))
    assert all(host.executor.started for host in hosts), "both hosts ran jobs"


def test_worker_waits_for_unreachable_shared_storage(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(url, tmp_path / "shared", host_config(trials=1, stopping="none", space=load_space("tiny", epochs=2)))
    host = Host(url, tmp_path / "shared", tmp_path / "a", LocalExecutor())
    remaining, real = [5], SharedStorage.put

    def put(self: SharedStorage, name: str, source: Path) -> None:
        if remaining[0]:
            remaining[0] -= 1
            raise OSError("the network is down")
        real(self, name, source)

    monkeypatch.setattr(SharedStorage, "put", put)
    assert host.start().join() == "complete"
    check_exactly_once(host.folder, 1)
    assert [note for note in host.show.notes if "waiting" in note] == [
        f"cannot use {tmp_path / 'shared'}; waiting (the network is down)"
    ]


# --- hosts as processes -------------------------------------------------------------------------------------------

# The command line with an expiry of six seconds. The processes of its runs are forked from it (see
# tests/support/commands.py), and sleep in each epoch, so that runs take seconds but little of the processor.
RUN = """
import sys, time
from dnas import cli
from dnas.cluster import database, worker
from dnas.training import fit
database.EXPIRY_SECONDS, worker.BEAT_SECONDS = 6.0, 0.4
train = fit._EpochLoop.run_epoch
fit._EpochLoop.run_epoch = lambda run: time.sleep(0.15) or train(run)
raise SystemExit(cli.main(sys.argv[1:]))
"""
# Set the clock ten minutes ahead in every process of the host, and in every dnas module that uses `datetime`. Compiled
# packages crash if `datetime.datetime` itself is replaced.
AHEAD = "import time; wall = time.time; time.time = lambda: wall() + 600"
RUN_AHEAD = RUN.replace(
    "raise",
    """
import datetime, dnas.study.folder, dnas.executors.lease
class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=600)
for name, module in list(sys.modules.items()):
    if name.startswith("dnas.") and hasattr(module, "datetime"):
        module.datetime = Ahead
raise""",
)


class Node:
    """`dnas worker s` in its own process group and folder."""

    def __init__(self, folder: Path, url: str, *arguments: str, run: str = RUN, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DNAS_STORAGE": url} | environment
        command = ("worker", "s", "--workers", "1", *arguments)
        self.process: Command | subprocess.Popen[str]
        if run == RUN:
            self.process = Command(*command, code=run, folder=folder, environment=environment, merge=True)
        else:  # a new interpreter, which changes its clock at the start
            self.process = subprocess.Popen(
                [sys.executable, "-c", run, *command],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> str:
        out, _ = self.process.communicate(timeout=patience(PATIENCE))
        return out

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> bytes:
        path = self.folder / "studies/s/events.jsonl"
        return path.read_bytes() if path.exists() else b""


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    started: list[Node] = []
    yield started
    for node in started:
        if node.process.poll() is None:
            node.signal(signal.SIGKILL)
            node.process.wait()


def rows(server: Server, url: str, query: str) -> list[Any]:
    return server.sql(query, url.rpartition("/")[2])


def is_created(server: Server, url: str) -> bool:
    tables = rows(server, url, "SELECT 1 FROM pg_tables WHERE tablename = 'dnas_studies'")
    return bool(tables and rows(server, url, "SELECT 1 FROM dnas_studies"))


def claimed_by(server: Server, url: str) -> list[str]:
    """Return the workers that are in the middle of a training run."""
    query = "SELECT DISTINCT owner FROM dnas_jobs WHERE state = 'claimed' AND answered BETWEEN 1 AND 20 ORDER BY 1"
    return [owner for (owner,) in rows(server, url, query)]


def proposer(server: Server, url: str) -> str | None:
    leases = rows(server, url, "SELECT owner FROM dnas_leases")
    return leases[0][0] if leases else None


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start an S3 server; return the URL of a folder in it."""
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "hush"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/dnas"
    s3fs.S3FileSystem.clear_instance_cache()
    moto.stop()


@pytest.mark.slow
def test_nodes_with_private_folders_share_a_database_and_s3(
    server: Server,
    url: str,
    s3: str,
    nodes: list[Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first node, whose clock is ten minutes ahead, creates the study, proposes, and ends with Ctrl-C. The second
    node continues from the database alone.
    """
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text(AHEAD)
    arguments = ("--space", "tiny", "--trials", "6", "--epochs", "6", "--stopping", "none", "--shared", s3)
    clock = {"PYTHONPATH": f"{ahead}{os.pathsep}{ROOT}"}
    nodes.append(Node(tmp_path / "a", url, *arguments, "--storage", url, run=RUN_AHEAD, **clock))
    wait_until(lambda: is_created(server, url), nodes)
    nodes.append(Node(tmp_path / "b", url))
    wait_until(lambda: len(claimed_by(server, url)) == 2, nodes)
    first, second = nodes
    first.signal(signal.SIGINT)
    first_out = first.end()
    assert first.process.returncode == 130
    (living,) = rows(server, url, "SELECT owner FROM dnas_hosts")  # the first node returned its lease and jobs at once
    holders = rows(
        server, url, "SELECT owner FROM dnas_jobs WHERE state = 'claimed' UNION SELECT owner FROM dnas_leases"
    )
    assert set(holders) <= {living}
    assert "every finished epoch is saved in s3://bucket/dnas" in first_out
    assert "Run the same command to rejoin it" in first_out
    out = second.end()
    assert second.process.returncode == 0, out
    assert "best      #" in out
    study = StudyFolder(second.folder / "studies/s")
    check_exactly_once(study, 6)
    assert not any(record.losses for record in study.records()), "returned jobs do not count as lost"
    (now,) = rows(server, url, "SELECT extract(epoch FROM clock_timestamp())")[0]
    moments = [event["time"] for event in study.events()] + [r.ended for r in study.records()]
    assert max(map(seconds, moments)) <= float(now) + 1
    assert min(map(seconds, moments)) >= float(now) - patience(PATIENCE)
    import s3fs

    files = s3fs.S3FileSystem()
    assert sorted(files.ls("bucket/dnas/s/records")) == [f"bucket/dnas/s/records/{n}-6.json" for n in range(6)]
    assert not files.exists("bucket/dnas/s/checkpoints")
    assert not SharedStorage(s3).create("s/records/0-6.json", b"another"), "a record is written once"
    assert files.cat("bucket/dnas/s/records/0-6.json") == (study.trial_folder(0) / "record.json").read_bytes()

    third = tmp_path / "c"
    third.mkdir()
    monkeypatch.chdir(third)
    assert main(["pull", "s", "--storage", url]) == 0
    for path in sorted(study.path.rglob("*")):
        if path.is_file() and path.name not in ("lock", "study.db"):
            assert (third / "studies/s" / path.relative_to(study.path)).read_bytes() == path.read_bytes()
    assert main(["replay", "s"]) == 0
    assert main(["eval", "s", "--trial", "0"]) == 0
    assert main(["search", "--study", "s", "--trials", "9"]) == 2
    assert "study s is stored in a database, and this is a copy" in capsys.readouterr().err

    for text in (first_out, out, *map(str, rows(server, url, "SELECT config FROM dnas_studies"))):
        assert PASSWORD not in text
        assert "s3cret" not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes()


def seconds(moment: str | None) -> float:
    from datetime import datetime

    assert moment is not None
    return datetime.fromisoformat(moment).timestamp()


@pytest.mark.slow
def test_frozen_host_writes_nothing_more_and_killed_host_is_replaced(
    server: Server, url: str, nodes: list[Node], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    # Runs are long enough to stop both hosts in the first half of one, with jobs left for the host that wakes up.
    create(url, shared, host_config(trials=4, stopping="none", space=load_space("tiny", epochs=40)))
    nodes += [Node(tmp_path / name, url) for name in "ab"]
    wait_until(lambda: len(claimed_by(server, url)) == 2, nodes)
    before = proposer(server, url)
    held_by = {node: (node.folder / "studies/s/lock").exists() for node in nodes}  # the proposer has opened the folder
    frozen, other = sorted(nodes, key=lambda node: not held_by[node])
    frozen.signal(signal.SIGSTOP)
    wait_until(lambda: b"no heartbeat from its worker" in other.log, nodes)
    assert proposer(server, url) != before
    (lost,) = {
        event["number"] for event in StudyFolder(other.folder / "studies/s").events() if event["event"] == "again"
    }
    log, shared_files = frozen.log, files_of(shared, lost, before)
    frozen.signal(signal.SIGCONT)
    wait_until(lambda: before in claimed_by(server, url), nodes)  # it runs jobs that the other host proposed
    assert frozen.log == log
    assert files_of(shared, lost, before) <= shared_files, "the frozen host shares no files of its lost job"
    other.signal(signal.SIGKILL)  # the current proposer, in the middle of a job
    out = frozen.end()
    assert frozen.process.returncode == 0, out
    assert "another host proposes now; this one continues training" in out
    study = StudyFolder(frozen.folder / "studies/s")
    check_exactly_once(study, 4)
    assert 1 <= sum(record.losses for record in study.records()) <= 2
    assert not list((shared / "s/checkpoints").rglob("*.pt"))


def files_of(shared: Path, key: int, owner: str | None) -> set[str]:
    """Return the files of a worker's first attempt at a trial in the shared folder."""
    return {str(path) for path in (shared / "s").glob(f"*/{key}/*1-{str(owner)[:8]}*")}


# --- bad input ----------------------------------------------------------------------------------------------------


def test_unusable_input_of_a_worker_is_reported_in_one_line(
    server: Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DNAS_STORAGE", raising=False)
    (tmp_path / "file").write_text("")
    new = ["--space", "tiny", "--trials", "2"]
    storage = ["--storage", url]

    def error_of(*arguments: str) -> str:
        assert main(["worker", "s", *arguments]) == 2
        text = capsys.readouterr()
        assert text.err.count("\n") == 1
        assert "s3cret" not in text.err + text.out
        return text.err

    assert "no database was given; use --storage" in error_of(*new)
    assert "no study 's' in postgresql://owner:***@" in error_of(*storage)
    assert "`dnas worker` needs --trials N" in error_of(*storage, "--space", "tiny")
    assert "a new study needs --shared" in error_of(*storage, *new)
    assert "this host cannot write to " in error_of(*storage, *new, "--shared", str(tmp_path / "file" / "x"))
    error = error_of(*new, "--storage", url.replace("owner", "other"))
    assert "cannot reach the database postgresql://" in error
    assert "password authentication failed" in error
    assert "; check host, user, password and database." in error
    create(url, tmp_path / "shared", host_config(space=load_space("tiny", epochs=2)))
    assert "is not the shared storage of study s" in error_of(*storage, "--shared", str(tmp_path / "elsewhere"))
    assert "was started with another seed 0 (now 5)" in error_of(*storage, "--seed", "5")
    assert "was started with subset 200, but got 100" in error_of(*storage, "--subset", "100")
    assert "is running with 8 trials of 2 epochs; raise them after it has ended" in error_of(*storage, "--trials", "9")
    assert main(["pull", "other", *storage]) == 2
    assert "no study 'other' in" in capsys.readouterr().err
    (tmp_path / "studies/s").mkdir(parents=True)
    (tmp_path / "studies/s/study.toml").write_text('name = "s"\n')
    assert main(["pull", "s", *storage]) == 2
    assert "is another study than the s in" in capsys.readouterr().err


def test_other_data_are_rejected_at_the_start(url: str, tmp_path: Path) -> None:
    create(url, tmp_path / "shared", host_config())
    database = Database(url, "s")
    config = read_config(database)
    config["data"]["fingerprint"] = "0" * 64
    with pytest.raises(InputError, match="on this host has other files than study s was started with"):
        load_data(config, options_of(config, host_config()), print)
    database.close()


def test_finished_study_continues_with_more_trials_and_epochs(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(url, tmp_path / "shared", host_config(trials=3, stopping="none"))
    Host(url, tmp_path / "shared", tmp_path / "a", PacedExecutor()).start().join()
    database = Database(url, "s")
    config = read_config(database)
    config["trials"], config["recipe"]["epochs"] = 5, 6
    import tomli_w

    queries.reopen_study(database, tomli_w.dumps(config))
    database.close()
    host = Host(url, tmp_path / "shared", tmp_path / "b", PacedExecutor()).start()
    assert host.join() == "complete"
    assert [(r.state, r.epochs, len(r.earlier)) for r in host.folder.records()] == [
        *[("complete", 6, 1)] * 3,
        *[("complete", 6, 0)] * 2,
    ]
    published = sorted(path.name for path in (tmp_path / "shared/s/records").iterdir())
    assert published == ["0-4.json", "0-6.json", "1-4.json", "1-6.json", "2-4.json", "2-6.json", "3-6.json", "4-6.json"]
