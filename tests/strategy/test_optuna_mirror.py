"""Mirror in Optuna's schema: after each pass it equals one built from scratch and matches the records."""

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from dnas.errors import InputError
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.strategy import mirroring
from dnas.strategy import optuna_mirror as mirror
from dnas.strategy.optuna_mirror import FINGERPRINT, Mirror, mirror_agrees, open_mirror, sync_mirror
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from tests.support.analytic import AnalyticExecutor, Silent, search_config
from tests.support.patience import patience


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def opened() -> Iterator[Mirror]:
    """Open the mirror of the study `s` for the duration of the test."""
    search(search_config(0, mirror="none"), Silent(), AnalyticExecutor())
    opened = Mirror(study(), None)
    yield opened
    opened.close()


def study(name: str = "s") -> StudyFolder:
    return StudyFolder(Path("studies") / name)


def trials(url: str = "sqlite:///studies/s/study.db", name: str = "s") -> list[FrozenTrial]:
    """Read a mirror's trials as dashboards do, without Optuna's cache and without ids."""
    storage = optuna.storages.RDBStorage(url)
    mirrored = storage.get_all_trials(storage.get_study_id_from_name(name))
    storage.remove_session()
    storage.engine.dispose()
    for trial in mirrored:
        trial._trial_id = -1
    return mirrored


def check_equals_rebuilt(shared: str = "sqlite:///studies/s/study.db") -> None:
    """Check that the mirror equals one built from scratch."""
    Path("scratch.db").unlink(missing_ok=True)
    sync_mirror(study(), "sqlite:///scratch.db")
    assert trials(shared) == trials("sqlite:///scratch.db")
    assert [trial.number for trial in trials(shared)] == [record.number for record in study().records()]


def tables() -> dict[str, int]:
    """Return the number of rows in each table of the study's own mirror."""
    with sqlite3.connect("studies/s/study.db") as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}


class Watched(AnalyticExecutor):
    """Update and check the mirror before some messages, and collect the states of every trial."""

    def __init__(self, opened: Mirror, every: int = 1, **rest: Any) -> None:
        super().__init__(**rest)
        self.opened, self.every, self.count = opened, every, 0
        self.states: dict[int, list[str]] = {}

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        self.count += 1
        if self.count % self.every == 0:
            self.opened.sync()
            assert self.opened.agrees()
            for record in study().records():
                seen = self.states.setdefault(record.number, [])
                if not seen or seen[-1] != record.state:
                    seen.append(record.state)
        [(key, message)] = super().wait(timeout)
        if key in self.jobs:
            self.jobs[key] = self.jobs.pop(key)  # round robin
        return [(key, message)]


def trouble(job: Job, epoch: int) -> Message | None:
    """Make every fifth trial diverge and some others run out of memory."""
    number = int(job.key)
    if epoch == 2 and number % 5 == 4:
        return Message("failed", {"reason": "diverged", "text": "the training loss is nan"})
    if epoch == 1 and number % 7 == 5:
        return Message("failed", {"reason": "out of memory", "text": "9 GiB"})
    return None


def test_mirror_equals_one_built_from_scratch_after_each_pass(opened: Mirror) -> None:
    short = Watched(opened, every=5, trouble=trouble)
    search(search_config(16, workers=3, mirror="none"), Silent(), short)
    opened.sync()
    check_equals_rebuilt()
    assert any(seen[i : i + 2] == ["paused", "running"] for seen in short.states.values() for i in range(len(seen)))
    assert {record.state for record in study().records()} == {"complete", "paused", "failed", "infeasible"}
    before = trials()
    long = Watched(opened, every=20, trouble=trouble)
    search(search_config(18, load_space("digits_bc", epochs=24), workers=2, mirror="none"), Silent(), long)
    assert any(seen[0] == "running" and before[n].state == TrialState.COMPLETE for n, seen in long.states.items()), (
        "complete trials resume"
    )
    opened.sync()
    check_equals_rebuilt()
    rows = tables()
    sync_mirror(study())
    assert tables() == rows
    shutil.copy("studies/s/study.db", "grown.db")
    Path("studies/s/study.db").unlink()
    sync_mirror(study())
    assert tables() == rows, "no stale rows remain"


def test_mirror_holds_several_objectives(opened: Mirror) -> None:
    shutil.rmtree("studies/s")
    watched: list[Mirror] = []

    class Later(Watched):
        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            if not watched:
                watched.append(Mirror(study(), None))
                self.opened = watched[0]
            return super().wait(timeout)

    config = search_config(12, objectives=("val_error", "params"), workers=2, mirror="none")
    search(config, Silent(), Later(opened, every=7, trouble=trouble))
    watched[0].sync()
    watched[0].close()
    check_equals_rebuilt()
    loaded = optuna.load_study(study_name="s", storage="sqlite:///studies/s/study.db")
    assert loaded.metric_names == ["val_error", "params"]
    assert len(loaded.directions) == 2
    for record, trial in zip(study().records(), loaded.trials, strict=True):
        assert trial.intermediate_values == {}, "Optuna has none with several objectives"
        if record.state == "complete":
            assert trial.values == [record.val_error, record.cost["params"]]
    assert loaded.best_trials


def test_mirror_matches_the_records() -> None:
    search(search_config(14), Silent(), AnalyticExecutor(trouble))
    loaded = optuna.load_study(study_name="s", storage="sqlite:///studies/s/study.db")
    records = study().records()
    assert loaded.metric_names == ["val_error"]
    assert loaded.direction == optuna.study.StudyDirection.MINIMIZE
    states = {"complete": "COMPLETE", "paused": "PRUNED", "failed": "FAIL", "infeasible": "FAIL"}
    assert {record.state for record in records} == set(states)
    for record, trial in zip(records, loaded.trials, strict=True):
        assert trial.number == record.number
        assert trial.params == record.params
        assert list(trial.params) == list(record.params)
        assert {n: optuna.distributions.distribution_to_json(d) for n, d in trial.distributions.items()} == (
            record.distributions
        )
        assert trial.state.name == states[record.state]
        assert trial.values == ([record.val_error] if record.state in ("complete", "paused") else None)
        assert list(trial.intermediate_values) == list(range(1, record.epochs + 1))
        attributes = {
            name: getattr(record, name) for name in ("network", "digest", "epochs", "seconds", "arm", "state")
        }
        attributes |= {"params": record.cost["params"], "macs": record.cost["macs"]}
        attributes |= {
            name: getattr(record, name) for name in ("val_error", "reason") if getattr(record, name) is not None
        }
        assert trial.user_attrs == attributes
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
    assert "diverged: the training loss is nan" in [trial.user_attrs.get("reason") for trial in loaded.trials]
    best = study().best(1)[0]
    assert loaded.best_trial.number == best.number
    assert loaded.best_value == best.val_error
    assert loaded.best_params == best.params


def test_running_trial_shows_its_epochs(opened: Mirror) -> None:
    class Stopping(AnalyticExecutor):
        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            if self.seconds == 5:
                raise KeyboardInterrupt
            return super().wait(timeout)

    with pytest.raises(KeyboardInterrupt):
        search(search_config(1, mirror="none"), Silent(), Stopping())
    opened.sync()
    [trial] = trials()
    assert trial.state == TrialState.RUNNING
    assert list(trial.intermediate_values) == [1, 2, 3, 4, 5]
    assert (trial.user_attrs["epochs"], trial.user_attrs["seconds"]) == (5, 5.0)
    assert trial.user_attrs["val_error"] == trial.intermediate_values[5]
    assert study().records()[0].epochs == 0, "its record is not yet updated"
    search(search_config(1, mirror="none"), Silent(), AnalyticExecutor())
    with pytest.raises(KeyboardInterrupt):
        search(search_config(1, load_space("digits_bc", epochs=24), mirror="none"), Silent(), Stopping())
    opened.sync()
    [trial] = trials()
    assert trial.state == TrialState.RUNNING
    assert list(trial.intermediate_values) == [1, 2, 3, 4, 5], "more epochs restart the curve"


def test_only_changed_trials_are_read_and_written(opened: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    search(search_config(6, mirror="none"), Silent(), AnalyticExecutor())
    assert opened.sync() == 6
    read: list[str] = []
    whole = TrialRecord.from_json
    monkeypatch.setattr(TrialRecord, "from_json", lambda text: (read.append(text), whole(text))[1])
    assert opened.sync() == 0
    assert read == []
    record = whole((study().trial_folder(2) / "record.json").read_text())
    study().write_record(dataclasses.replace(record, seconds=99.0))
    assert opened.sync() == 1
    assert len(read) == 1
    assert trials()[2].user_attrs["seconds"] == 99.0
    study().write_record(dataclasses.replace(record, seconds=99.0))
    assert opened.sync() == 0, "unchanged content"
    check_equals_rebuilt()
    assert sync_mirror(study()) == 0, "another process recognises the rows by their fingerprints"


def test_trial_without_a_readable_record_is_left_out_until_it_has_one(opened: Mirror) -> None:
    search(search_config(6, mirror="none"), Silent(), AnalyticExecutor())
    opened.sync()
    whole = study().records()[2]
    path = study().trial_folder(2) / "record.json"
    path.write_text("{")
    opened.sync()
    assert [trial.number for trial in trials()] == [0, 1, 3, 4, 5]
    study().write_record(whole)
    opened.sync()
    check_equals_rebuilt()
    with sqlite3.connect("studies/s/study.db") as connection:
        numbers = connection.execute("SELECT number FROM trials ORDER BY trial_id").fetchall()
    assert numbers == [(n,) for n in range(6)], "Optuna takes the position in the list as the number"


def test_foreign_trials_are_removed_and_foreign_attributes_are_kept() -> None:
    search(search_config(5, mirror="none"), Silent(), AnalyticExecutor())
    url = "sqlite:///shared.db"
    sync_mirror(study(), url)
    loaded = optuna.load_study(study_name="s", storage=url)
    loaded.ask().suggest_int("growth_rate", 4, 16, step=4)
    with sqlite3.connect("shared.db") as connection:
        connection.execute("UPDATE trials SET number = 1 WHERE number = 3")
        connection.execute("INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (1, 'note', '1')")
    record = study().records()[0]
    study().write_record(dataclasses.replace(record, seconds=99.0))
    sync_mirror(study(), url)
    mirrored = trials(url)
    assert mirrored[0].system_attrs.pop("note") == 1
    sync_mirror(study(), "sqlite:///scratch.db")
    assert mirrored == trials("sqlite:///scratch.db")


def test_several_studies_share_a_database() -> None:
    url = "sqlite:///shared.db"
    for name in ("a", "b"):
        search(dataclasses.replace(search_config(3), study=name, mirror=url), Silent(), AnalyticExecutor())
        assert not (study(name).path / "study.db").exists()
    assert sorted(optuna.get_all_study_names(url)) == ["a", "b"]
    for name in ("a", "b"):
        assert [t.values for t in trials(url, name)] == [[r.val_error] for r in study(name).records()]


# --- opening ---


def error_of(url: str, seed: int = 0) -> str:
    executor = AnalyticExecutor()
    with pytest.raises(InputError) as error:
        search(search_config(2, seed=seed, mirror=url), Silent(), executor)
    assert executor.started == [], "before any training"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "--mirror must be the URL of a storage, such as sqlite:///<file> or"),
        ("sqlite:///a{b.db", "--mirror must be the URL of a storage"),
        ("oracular://me@here/x", "oracular://me@here/x names a kind of database that SQLAlchemy does not know"),
        ("sqlite:////no/such/folder/x.db", "x.db cannot be reached: unable to open database file; start it, or give"),
        ("mysql+nodriver://me@here/x", "names a kind of database that SQLAlchemy does not know"),
    ],
)
def test_unusable_storage_is_rejected(url: str, message: str) -> None:
    assert message in error_of(url)


def test_missing_driver_is_named_without_showing_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    message = error_of("postgresql+psycopg://me:sesame@127.0.0.1:1/x")
    assert message == (
        "--mirror postgresql+psycopg://me:***@127.0.0.1:1/x needs a package that is not installed:"
        " pip install 'psycopg[binary]'."
    )
    assert "//127.0.0.1:1/x?password=*** needs" in error_of("postgresql+psycopg://127.0.0.1:1/x?password=sesame")
    for password in ("ses ame", "ses'ame", "ses@me/", 'ses"ame'):
        assert "//me:***@127.0.0.1:1/x needs" in error_of(f"postgresql+psycopg://me:{password}@127.0.0.1:1/x")


def test_unresponsive_database_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(mirror, "OPENING_SECONDS", 0.2)
    monkeypatch.setattr(mirror, "named_storage", lambda url: ended.wait(patience(30)))
    began = time.monotonic()
    message = error_of("postgresql://me:sesame@here/x")
    ended.set()
    assert time.monotonic() - began < patience(10)
    assert "postgresql://me:***@here/x has not answered for 0 s" in message


def test_another_study_of_the_same_name_is_rejected() -> None:
    url = "sqlite:///shared.db"
    search(search_config(2, mirror=url), Silent(), AnalyticExecutor())
    before = trials(url)
    shutil.rmtree("studies/s")
    assert "holds another study called s (of the space digits_bc, seed 0, created 20" in error_of(url, seed=1)
    assert trials(url) == before
    shutil.rmtree("studies/s")
    optuna.delete_study(study_name="s", storage=url)
    optuna.create_study(study_name="s", storage=url, direction="minimize")
    assert "holds another study called s (not created by dnas); name another database" in error_of(url)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished study of four trials, with its mirror."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        search(search_config(4), Silent(), AnalyticExecutor())
        assert mirror_agrees(study())
    return folder / "studies/s"


@pytest.mark.parametrize("damage", ["text", "torn", "empty", "tables", "name", "identity", "pages"])
def test_own_mirror_that_is_damaged_or_of_another_study_is_rebuilt(damage: str, finished: Path) -> None:
    shutil.copytree(finished, "studies/s")
    path = Path("studies/s/study.db")
    content = path.read_bytes()
    match damage:
        case "text":
            path.write_text("not a database\n" * 100)
        case "torn":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "pages":
            path.write_bytes(content[:8192] + b"\xff" * 16384 + content[24576:])
        case "tables" | "name" | "identity":
            with sqlite3.connect(path) as connection:
                connection.execute(
                    {
                        "tables": "DROP TABLE study_user_attributes",
                        "name": "UPDATE studies SET study_name = 'other'",
                        "identity": "UPDATE study_user_attributes SET value_json = '{}'",
                    }[damage]
                )
            connection.close()
    damaged = path.read_bytes()
    assert not mirror_agrees(study())
    assert path.read_bytes() == damaged, "a check changes nothing"
    show = Silent()
    search(search_config(4), show, AnalyticExecutor())
    assert show.notes == []
    assert mirror_agrees(study())
    check_equals_rebuilt()
    assert optuna.get_all_study_names("sqlite:///studies/s/study.db") == ["s"]


def test_locked_mirror_is_not_treated_as_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    search(search_config(3), Silent(), AnalyticExecutor())
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **(k | {"timeout": 0.01})))
    inode = Path("studies/s/study.db").stat().st_ino
    other = connect("studies/s/study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    show = Silent()
    search(search_config(5), show, AnalyticExecutor())
    other.close()
    assert show.notes == [
        "the mirror in studies/s/study.db is out of date (database is locked); the search continues and retries"
    ]
    assert Path("studies/s/study.db").stat().st_ino == inode
    sync_mirror(study())
    check_equals_rebuilt()


def test_mirror_none_writes_no_mirror() -> None:
    search(search_config(2, mirror="none"), Silent(), AnalyticExecutor())
    assert not Path("studies/s/study.db").exists()


# --- during a search ---


def test_mirror_is_updated_during_the_search_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(mirroring, "MAX_TIME_SHARE", 1.0)
    search(search_config(3, mirror="none"), Silent(), AnalyticExecutor())
    with open_mirror(study(), None, lambda text: None):
        assert soon(lambda: Path("studies/s/study.db").exists() and len(trials()) == 3)
        search(search_config(4, mirror="none"), Silent(), AnalyticExecutor())
        assert soon(lambda: len(trials()) == 4)
        Path("studies/s/study.db").unlink()
        assert soon(lambda: Path("studies/s/study.db").exists() and len(trials()) == 4), "rebuilt"
        monkeypatch.setattr(mirroring, "EVERY_SECONDS", 60.0)
        time.sleep(0.1)
        search(search_config(5, mirror="none"), Silent(), AnalyticExecutor())
    assert len(trials()) == 5, "the last pass"
    assert not [thread for thread in threading.enumerate() if thread.name == "mirror"]


def test_writes_during_the_last_pass_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    search(search_config(1, mirror="none"), Silent(), AnalyticExecutor())
    seen, proceed = threading.Event(), threading.Event()
    sync = Mirror.sync

    def held(self: Mirror) -> int:
        changed = sync(self)
        seen.set()
        proceed.wait(30)
        return changed

    monkeypatch.setattr(Mirror, "sync", held)
    with open_mirror(study(), None, lambda text: None):
        assert seen.wait(30)
        search(search_config(2, mirror="none"), Silent(), AnalyticExecutor())
        threading.Timer(0.2, proceed.set).start()  # after the end is requested
    assert len(trials()) == 2


def soon(condition: Any) -> bool:
    began = time.monotonic()
    while time.monotonic() - began < patience(30):
        try:
            if condition():
                return True
        except Exception:  # not complete yet
            pass
        time.sleep(0.01)
    return False


def test_interrupted_search_leaves_the_mirror_up_to_date() -> None:
    class Stopping(AnalyticExecutor):
        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            if self.seconds == 20:
                raise KeyboardInterrupt
            return super().wait(timeout)

    with pytest.raises(KeyboardInterrupt):
        search(search_config(5), Silent(), Stopping())
    assert [trial.state.name for trial in trials()] == ["COMPLETE", "PRUNED", "RUNNING"]
    check_equals_rebuilt()


@pytest.mark.parametrize("url", [None, "sqlite:///shared.db"])
def test_later_error_is_reported_once_and_retried(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(mirroring, "MAX_TIME_SHARE", 1.0)
    search(search_config(3, mirror="none"), Silent(), AnalyticExecutor())
    notes: list[str] = []
    tried: list[int] = []
    write = Mirror._write

    def full(self: Mirror, *rest: Any) -> None:
        tried.append(1)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Mirror, "_write", full)
    with open_mirror(study(), url, notes.append):
        assert soon(lambda: len(tried) > 3)
        assert notes == [
            f"the mirror in {url or 'studies/s/study.db'} is out of date (database or disk is full);"
            " the search continues and retries"
        ]
        monkeypatch.setattr(Mirror, "_write", write)
    check_equals_rebuilt(url or "sqlite:///studies/s/study.db")
    assert len(notes) == 1


def test_mirror_uses_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    search(search_config(3, mirror="none"), Silent(), AnalyticExecutor())
    monkeypatch.setattr(mirroring, "EVERY_SECONDS", 0.0)
    spent: list[float] = []

    def slow(self: Mirror) -> int:
        time.sleep(0.05)
        spent.append(0.05)
        return 0

    monkeypatch.setattr(Mirror, "sync", slow)
    began = time.monotonic()
    with open_mirror(study(), None, lambda text: None):
        time.sleep(2.5)
    assert 1 < len(spent) <= 2 + (time.monotonic() - began) * mirroring.MAX_TIME_SHARE / 0.05


def test_end_does_not_wait_for_a_hanging_database(monkeypatch: pytest.MonkeyPatch) -> None:
    search(search_config(2, mirror="none"), Silent(), AnalyticExecutor())
    ended, notes = threading.Event(), list[str]()
    monkeypatch.setattr(mirror, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(Mirror, "sync", lambda self: ended.wait(patience(30)))
    began = time.monotonic()
    with open_mirror(study(), None, notes.append):
        pass
    assert time.monotonic() - began < patience(10)
    ended.set()
    assert "its last pass took too long" in notes[0]


def test_importing_the_mirror_does_not_import_optuna_or_sqlalchemy() -> None:
    heavy = "('optuna', 'sqlalchemy', 'torch')"
    code = f"import sys, dnas.strategy.optuna_mirror; print([m for m in {heavy} if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_fingerprint_covers_the_whole_content_of_a_row(opened: Mirror) -> None:
    search(search_config(2, mirror="none"), Silent(), AnalyticExecutor())
    opened.sync()
    record = study().records()[1]
    log = Path("studies/s/events.jsonl")
    seen = {trials()[1].system_attrs[FINGERPRINT]}
    changes: list[dict[str, Any]] = [
        {"state": "stopped"},
        {"objectives": {"val_error": 0.5}},
        {"params": record.params | {"growth_rate": 4 if record.params["growth_rate"] != 4 else 8}},
        {"network": "another"},
        {"started": "2026-01-02T03:04:05+00:00"},
        {"ended": "2027-01-02T03:04:05+00:00"},
        {
            "distributions": record.distributions
            | {"growth_rate": record.distributions["growth_rate"].replace("16", "20")}
        },
    ]
    for change in changes:
        study().write_record(dataclasses.replace(record, **change))
        assert opened.sync() == 1, change
        seen.add(trials()[1].system_attrs[FINGERPRINT])
    study().write_record(record)
    opened.sync()
    last = [json.loads(line) for line in log.read_text().splitlines() if '"report"' in line][-1]
    study().append({key: value for key, value in last.items() if key != "time"} | {"epoch": 13})
    assert opened.sync() == 1
    seen.add(trials()[1].system_attrs[FINGERPRINT])
    assert len(seen) == 2 + len(changes)
    check_equals_rebuilt()
