"""Tests of `dnas doctor`: each damage is repaired, and the search then ends as if the study had never been damaged."""

import dataclasses
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnas.cli import main
from dnas.data import load_dataset
from dnas.executors.lease import Lease, read_lease
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.strategy import doctor
from dnas.strategy.doctor import Finding, diagnose
from dnas.strategy.optuna_mirror import mirror_agrees
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from dnas.training.checkpoint import load_run, weights_digest
from dnas.training.fit import fit
from dnas.training.recipe import Recipe
from tests.support.analytic import AnalyticExecutor, Silent, search_config

pytestmark = pytest.mark.xdist_group("doctor")  # its studies are made once

COMPLETE, PAUSED, FAILED, RUNNING = 0, 2, 4, 9  # trial numbers, by state, in the study that `interrupted` returns


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def diverge(job: Job, epoch: int) -> Message | None:
    if epoch == 2 and int(job.key) == FAILED:
        return Message("failed", {"reason": "diverged", "text": "the training loss is nan"})
    return None


class Interrupting(AnalyticExecutor):
    """Interrupt the driver, as Ctrl-C does, in the middle of trial `RUNNING`."""

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        if self.last.get(str(RUNNING), {}).get("epoch") == 2:
            raise KeyboardInterrupt
        return super().wait(timeout)


def make_interrupted() -> None:
    """Make a study of ten trials, at least one in each state, whose last trial was interrupted after two epochs."""
    with pytest.raises(KeyboardInterrupt):
        search(search_config(12), Silent(), Interrupting(diverge))
    states = {record.number: record.state for record in study().records()}
    assert [states[n] for n in (COMPLETE, PAUSED, FAILED, RUNNING)] == ["complete", "paused", "failed", "running"]
    assert max(states) == RUNNING


def study() -> StudyFolder:
    return StudyFolder(Path("studies/s"))


def resume_search() -> list[dict[str, Any]]:
    """Resume the search and return the reproducible fields of its records."""
    search(search_config(12, mirror="none"), Silent(), AnalyticExecutor(diverge))
    names = ("number", "state", "arm", "params", "digest", "val_error", "val_loss", "objectives", "epochs", "seed")
    names += ("weights_digest", "history_digest", "recipe", "distributions", "cost", "network", "seconds", "data")
    return [{name: getattr(record, name) for name in names} for record in study().records()]


def rewrite(number: int, **changes: Any) -> None:
    path = study().trial_folder(number) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def record_file(number: int) -> Path:
    return study().trial_folder(number) / "record.json"


def log_path() -> Path:
    return study().path / "events.jsonl"


def execute_sql(statement: str) -> None:
    connection = sqlite3.connect(study().path / "study.db")
    with connection:
        connection.execute(statement)
    connection.close()


def exited_process_id() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def write_dead_lease(number: int, **changes: Any) -> None:
    """Write the lease that a killed worker leaves behind."""
    lease = Lease.take(study().trial_folder(number), 1)
    content = json.loads(lease.path.read_text())
    lease.release()
    lease.path.write_text(json.dumps(content | {"pid": exited_process_id()} | changes))


def curve_text(number: int, epochs: int) -> str:
    names = ["epoch", "train_loss", "train_error", "val_loss", "val_error", "learning_rate", "seconds"]
    events = [e for e in study().events() if e["event"] == "report" and e["number"] == number][:epochs]
    return "".join(",".join(map(str, row)) + "\r\n" for row in [names, *([e[name] for name in names] for e in events)])


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# Fields that cannot be recovered, by kind of damage. Only the damaged record held them; the record of a failed run
# counts no epochs, so its seconds are lost too.
UNRECOVERABLE: dict[str, set[str]] = {
    "record of a complete trial": {"weights_digest"},
    "record of a paused trial": {"weights_digest"},
    "record of a failed trial": {"seconds"},
    "missing folder": {"seconds"},
    "an older record": {"weights_digest"},
    "fewer epochs": {"weights_digest"},
}

# Comparing the mirror takes longer than all other checks, so other damages are repaired in a study without one.
WITH_MIRROR = (
    *("record of a complete trial", "missing folder", "a stray trial"),
    *("a changed row of the mirror", "a mirror that is no database", "a mirror that is behind"),
)

# A function that damages the study, and the expected (path, description, repair) of each finding.
Damage = tuple[Callable[[], object], list[tuple[str, str, str]]]
DAMAGES: dict[str, Damage] = {
    "torn line": (
        lambda: log_path().open("ab").write(b'{"time": "20'),
        [("events.jsonl", "its last line is torn", "cut off (12 bytes)")],
    ),
    "leftovers": (
        lambda: [write(study().path / name, "x") for name in (".study.toml.17", "trials/9/.record.json.17")],
        [
            ("", "1 file of interrupted writes (.study.toml.17)", "removed"),
            ("trials/9", "1 file of interrupted writes (.record.json.17)", "removed"),
        ],
    ),
    "record of a running trial": (
        lambda: write(record_file(RUNNING), "{"),
        [
            (
                "trials/9/record.json",
                "is damaged",
                "rebuilt from the log; peak memory, versions, commit and host could",
            )
        ],
    ),
    "record of a complete trial": (
        lambda: write(record_file(COMPLETE), b"\xff\x00"),
        [("trials/0/record.json", "is damaged", "versions, commit, host and weights digest could not be recovered")],
    ),
    "record of a paused trial": (
        lambda: write(record_file(PAUSED), "[]"),
        [("trials/2/record.json", "is damaged", "commit, host, reason and weights digest could not be recovered")],
    ),
    "record of a failed trial": (
        lambda: write(record_file(FAILED), '{"number": 4, "state": "odd"}'),
        [("trials/4/record.json", "is damaged", "rebuilt from the log")],
    ),
    "missing record": (
        lambda: record_file(RUNNING).unlink(),
        [("trials/9/record.json", "is missing", "rebuilt from the log")],
    ),
    "missing folder": (
        lambda: shutil.rmtree(study().trial_folder(FAILED)),
        [("trials/4/record.json", "is missing", "rebuilt from the log")],
    ),
    "an older record": (
        lambda: rewrite(COMPLETE, state="running", epochs=0, val_error=None, val_loss=None, objectives={}, ended=None),
        [("trials/0/record.json", "is running after epoch 0, but complete after epoch 12 in the log", "rebuilt")],
    ),
    "epochs missing from the log": (
        lambda: rewrite(RUNNING, epochs=7, val_error=0.1),
        [("trials/9/record.json", "is running after epoch 7, but running after epoch 2 in the log", "rebuilt")],
    ),
    "completed too early": (
        lambda: rewrite(RUNNING, state="complete", epochs=2, objectives={"val_error": 0.1}),
        [("trials/9/record.json", "is complete after epoch 2, but running after epoch 2 in the log", "rebuilt")],
    ),
    "fewer epochs": (
        lambda: rewrite(COMPLETE, epochs=11, weights_digest=None),
        [("trials/0/record.json", "is complete after epoch 11, but complete after epoch 12 in the log", "rebuilt")],
    ),
    "another error": (
        lambda: rewrite(COMPLETE, val_error=0.0),
        [("trials/0/record.json", "has a validation error of 0.0, but 0.", "rebuilt")],
    ),
    "other objectives": (
        lambda: rewrite(COMPLETE, objectives={"val_error": 0.0}),
        [("trials/0/record.json", "has objectives {'val_error': 0.0}, but {'val_error': 0.", "rebuilt")],
    ),
    "other epochs": (
        lambda: rewrite(RUNNING, epochs_planned=99),
        [("trials/9/record.json", "plans 99 epochs, but 12 in the log", "rebuilt")],
    ),
    "another trial's record": (
        lambda: shutil.copy(record_file(COMPLETE), record_file(RUNNING)),
        [("trials/9/record.json", "describes another network than the log", "rebuilt")],
    ),
    "a stray trial": (
        lambda: shutil.copytree(study().trial_folder(COMPLETE), study().trial_folder(10)),
        [("trials/10", "the log has no such trial", "moved to studies/s/lost/trials/10; no search can resume it")],
    ),
    "a stray folder": (
        lambda: write(study().path / "trials/007/record.json", "{}"),
        [("trials/007", "the log has no such trial", "moved to studies/s/lost/trials/007")],
    ),
    "a dead lease": (
        lambda: write_dead_lease(RUNNING),
        [("trials/9/lease.json", "which has ended", "removed; the next `dnas search` resumes its run")],
    ),
    "a torn lease": (
        lambda: write(study().trial_folder(RUNNING) / "lease.json", "{"),
        [("trials/9/lease.json", "is held by an unknown process, which has ended", "removed")],
    ),
    "a lease of another host": (
        lambda: write_dead_lease(RUNNING, host="elsewhere"),
        [("trials/9/lease.json", "on elsewhere, since", "removed")],
    ),
    "a changed row of the mirror": (
        lambda: execute_sql("UPDATE trial_values SET value = 0.5 WHERE trial_id = 1"),
        [("study.db", "does not match the records", "rebuilt")],
    ),
    "a mirror that is no database": (
        lambda: write(study().path / "study.db", "text"),
        [("study.db", "does not match the records", "rebuilt")],
    ),
    "a mirror that is behind": (
        lambda: execute_sql("DELETE FROM trials WHERE number = 9"),
        [("study.db", "does not match the records", "rebuilt")],
    ),
    "a torn curve": (
        lambda: write(study().trial_folder(COMPLETE) / "curve.csv", curve_text(COMPLETE, 12)[:-30]),
        [("trials/0/curve.csv", "is damaged", "rewritten from the log")],
    ),
    "a curve without events": (
        lambda: write(study().path / "retrain/0-1/curve.csv", "epoch"),
        [("retrain/0-1/curve.csv", "is damaged", "moved to studies/s/lost/retrain/0-1/curve.csv")],
    ),
    "torn norms": (
        lambda: write(study().trial_folder(COMPLETE) / "norms.npz", b"PK"),
        [("trials/0/norms.npz", "is damaged", "moved to studies/s/lost/trials/0/norms.npz; there is no other copy")],
    ),
    "a torn checkpoint": (
        lambda: write(study().trial_folder(RUNNING) / "checkpoint.pt", b"PK"),
        [("trials/9/checkpoint.pt", "is damaged", "its run restarts")],
    ),
    "a torn checkpoint of a complete trial": (
        lambda: write(study().trial_folder(COMPLETE) / "checkpoint.pt", b"PK"),
        [("trials/0/checkpoint.pt", "is damaged", "the weights are lost, the results in record.json remain valid")],
    ),
    "a torn record of a final run": (
        lambda: write(study().path / "retrain/0-1/record.json", "{"),
        [("retrain/0-1/record.json", "is damaged", "the next `dnas search --retrain-best` repeats its run")],
    ),
}


def content_of(path: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and p.name != "lock"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """An interrupted study, and the records after its search has been resumed."""
    folder, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    os.chdir(folder)
    try:
        make_interrupted()
        shutil.copytree("studies/s", "kept")
        return folder / "kept", resume_search()
    finally:
        os.chdir(before)


@pytest.fixture
def interrupted(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    """The study of `make_interrupted` in the folder of the test."""
    shutil.copytree(whole[0], "studies/s")


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_repaired_and_the_search_ends_as_if_undamaged(
    name: str, whole: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EXPIRY_SECONDS", 0.05)
    shutil.copytree(whole[0], "studies/s")
    if name not in WITH_MIRROR:
        (study().path / "study.db").unlink()
    damage, expected = DAMAGES[name]
    damage()
    before = content_of(study().path)

    findings = diagnose(study(), repair=False)
    assert content_of(study().path) == before, "a dry run changes nothing"
    # Repairing a record or moving a trial also makes the mirror outdated.
    reported = [
        finding
        for finding in findings
        if name.startswith(("a changed row", "a mirror")) or not finding.path.endswith(".db")
    ]
    assert [(f.path, f.repair) for f in reported] == [
        (str(study().path / where) if where else "studies/s", "") for where, _, _ in expected
    ]
    for finding, (_, what, _) in zip(reported, expected, strict=True):
        assert what in finding.problem

    repaired = diagnose(study(), repair=True)
    reported = [finding for finding in repaired if len(repaired) == len(expected) or not finding.path.endswith(".db")]
    for finding, (_, what, repair) in zip(reported, expected, strict=True):
        assert what in finding.problem
        assert repair in finding.repair
    assert diagnose(study(), repair=True) == [], "the second run has nothing to repair"
    assert name not in WITH_MIRROR or mirror_agrees(study())
    after = content_of(study().path)
    kept = {content for path, content in after.items()}
    for path, content in before.items():
        leftover = Path(path).name.startswith(".") or path.endswith(("lease.json", "study.db", "events.jsonl"))
        replaced = path.endswith("curve.csv")
        assert leftover or replaced or content in kept, f"{path} is kept somewhere"
    assert after["events.jsonl"] == (whole[0] / "events.jsonl").read_bytes()
    ended = resume_search()
    for record, other in zip(ended, whole[1], strict=True):
        lost = UNRECOVERABLE.get(name, set()) if record["number"] in (COMPLETE, PAUSED, FAILED) else set()
        for key in set(record) - lost:
            assert record[key] == other[key], (record["number"], key)


@pytest.mark.usefixtures("interrupted")
def test_undamaged_study_has_no_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(study(), repair=True) == []
    assert doctor_command() == 0
    assert capsys.readouterr().out == "ok\n1 interrupted trial to be resumed by the next `dnas search`\n"
    search(search_config(12), Silent(), AnalyticExecutor(diverge))
    assert diagnose(study(), repair=True) == []
    search(search_config(13, load_space("digits_bc", epochs=24)), Silent(), AnalyticExecutor(diverge))
    assert diagnose(study(), repair=True) == [], "after an extension to more epochs"


def doctor_command(dry_run: bool = False) -> int:
    return main(["doctor", "s", *(["--dry-run"] if dry_run else [])])


@pytest.mark.slow
def test_kill_at_any_write_leaves_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diagnose a copy of the study before each of the driver's writes, as a kill at that point would leave it."""
    seen: list[str] = []
    states: set[tuple[str, str]] = set()
    append, write_record = StudyFolder.append, StudyFolder.write_record

    def check(what: str, state: str = "") -> None:
        shutil.rmtree("studies/killed", ignore_errors=True)
        shutil.copytree("studies/s", "studies/killed")
        findings = diagnose(StudyFolder(Path("studies/killed")), repair=False)
        # Between an ask and its first write a record is missing. Both the doctor and the search create it.
        assert [finding.problem for finding in findings] in ([], ["is missing"]), (what, state)
        seen.extend(finding.problem for finding in findings)
        states.add((what, state))

    def appended(self: StudyFolder, event: Any) -> None:
        check(event["event"], event.get("state", ""))
        append(self, event)

    def written(self: StudyFolder, record: TrialRecord, folder: Path | None = None) -> None:
        check("record", record.state)
        write_record(self, record, folder)

    monkeypatch.setattr(StudyFolder, "append", appended)
    monkeypatch.setattr(StudyFolder, "write_record", written)
    for trials, space in ((10, load_space("digits_bc")), (11, load_space("digits_bc", epochs=24))):
        search(search_config(trials, space, mirror="none"), Silent(), AnalyticExecutor(diverge))
    assert len(seen) == 11
    assert states >= {("tell", "complete"), ("tell", "failed"), ("pause", ""), ("extend", ""), ("record", "running")}
    assert states >= {("promote", ""), ("record", "paused"), ("record", "complete"), ("report", ""), ("ask", "")}


def test_record_of_an_extended_trial_is_rebuilt() -> None:
    search(search_config(5), Silent(), AnalyticExecutor())
    search(search_config(5, load_space("digits_bc", epochs=24)), Silent(), AnalyticExecutor())
    whole = study().records()[COMPLETE]
    write(record_file(COMPLETE), "{")
    assert diagnose(study(), repair=True)[0].problem == "is damaged"
    rebuilt = study().records()[COMPLETE]
    assert (rebuilt.state, rebuilt.epochs, rebuilt.epochs_planned, rebuilt.val_error) == (
        "complete",
        24,
        24,
        whole.val_error,
    )
    assert rebuilt.recipe == whole.recipe
    assert [e["val_error"] for e in rebuilt.earlier] == [e["val_error"] for e in whole.earlier]
    assert [e["epochs"] for e in rebuilt.earlier] == [12]


@pytest.mark.usefixtures("interrupted")
def test_rebuilt_record_keeps_fields_that_are_not_in_the_log() -> None:
    whole = study().records()[COMPLETE]
    rewrite(COMPLETE, epochs=11, peak_memory_bytes=4711, host="there", attempts=3)
    assert diagnose(study(), repair=True)[0].path == str(record_file(COMPLETE))
    rebuilt = study().records()[COMPLETE]
    assert (rebuilt.peak_memory_bytes, rebuilt.host, rebuilt.attempts) == (4711, "there", 3)
    assert (rebuilt.epochs, rebuilt.versions, rebuilt.started) == (12, whole.versions, whole.started)


def test_mean_test_error_is_recovered_from_the_final_runs() -> None:
    class Measuring(AnalyticExecutor):
        def _result(self, row: dict[str, Any], finished: bool) -> dict[str, Any]:
            return super()._result(row, finished) | {"test_error": 0.125, "test_loss": 0.5}

    search(search_config(2, retrain=1, retrain_seeds=2), Silent(), Measuring())
    best = study().best(1)[0]
    assert best.test_error == 0.125
    write(record_file(best.number), "{")
    assert diagnose(study(), repair=True)[0].repair
    assert study().records()[best.number].test_error == 0.125


# --- checkpoints ---


def trained(number: int, epochs: int = 2) -> Path:
    """Train a trial for `epochs` real epochs and return its folder."""
    record, folder = study().records()[number], study().trial_folder(number)
    fit(
        record.network_spec,
        load_dataset("digits", subset=200),
        Recipe.from_dict(record.recipe),
        seed=(record.seed[0], record.seed[1]),
        folder=folder,
        report=lambda epoch: epoch.epoch < epochs,
    )
    assert diagnose(study(), repair=True) == []
    return folder


@pytest.fixture(scope="module")
def histories(whole: tuple[Path, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two copies of the interrupted study. Its last trial has been trained for one and for two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(whole[0], "studies/s")
        (study().path / "study.db").unlink()
        trained(RUNNING, epochs=1)
        shutil.copytree("studies/s", "one")
        trained(RUNNING)
    return folder / "one", folder / "studies/s"


@pytest.mark.parametrize("how", ["missing", "torn", "older", "empty"])
@pytest.mark.parametrize("name", ["curve.csv", "norms.npz"])
def test_curve_and_norms_are_rewritten_from_the_checkpoint(name: str, how: str, histories: tuple[Path, Path]) -> None:
    shutil.copytree(histories[1], "studies/s")
    file = study().trial_folder(RUNNING) / name
    good = file.read_bytes()
    match how:
        case "missing":
            file.unlink()
        case "torn":
            file.write_bytes(good[: len(good) * 2 // 3])
        case "older":
            file.write_bytes((histories[0] / f"trials/{RUNNING}" / name).read_bytes())
        case "empty":
            file.write_bytes(b"")
    [finding] = diagnose(study(), repair=True)
    assert finding.path == str(file)
    assert finding.repair == "rewritten from the checkpoint"
    if name == "curve.csv":
        assert file.read_bytes() == good
    else:
        with np.load(file) as arrays:
            assert arrays["l2"].shape[0] == 3
    assert diagnose(study(), repair=True) == []


def test_checkpoint_of_another_run_is_moved_aside(histories: tuple[Path, Path]) -> None:
    shutil.copytree(histories[0], "studies/s")
    folder = study().trial_folder(RUNNING)
    content = (folder / "checkpoint.pt").read_bytes()
    (study().trial_folder(COMPLETE) / "checkpoint.pt").write_bytes(content)
    [finding] = diagnose(study(), repair=True)
    assert finding.problem == "belongs to another run"
    assert (study().path / "lost/trials/0/checkpoint.pt").read_bytes() == content
    assert diagnose(study(), repair=True) == []


def test_damaged_checkpoint_is_moved_aside_and_the_trial_restarts(histories: tuple[Path, Path]) -> None:
    shutil.copytree(histories[1], "studies/s")
    folder = study().trial_folder(RUNNING)
    digest = weights_digest(load_run(folder / "checkpoint.pt").net)
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.pt").write_bytes(content)
    [finding] = diagnose(study(), repair=True)
    assert finding.repair == "moved to studies/s/lost/trials/9/checkpoint.pt; its run restarts"
    trained(RUNNING)
    assert weights_digest(load_run(folder / "checkpoint.pt").net) == digest


def test_weights_digest_is_recovered_from_the_checkpoint() -> None:
    """The log of the trial has the epochs of its checkpoint."""
    search(search_config(1, load_space("digits_bc", epochs=2)), Silent(), AnalyticExecutor())
    folder = trained(0)
    digest = weights_digest(load_run(folder / "checkpoint.pt").net)
    write(record_file(0), "{")
    config = study().config()
    # The statistics in the checkpoint take precedence over study.toml.
    study().write_config(config | {"data": config["data"] | {"mean": [0.0]}})
    diagnose(study(), repair=True)
    assert study().records()[0].weights_digest == digest
    assert study().records()[0].data == load_dataset("digits", subset=200).describe()


# --- damage that cannot be repaired ---


def check_not_repaired(capsys: pytest.CaptureFixture[str], where: str, what: str) -> None:
    before = content_of(study().path)
    [finding] = diagnose(study(), repair=True)
    assert finding.path == f"studies/s/{where}"
    assert what in finding.problem
    assert finding.repair == ""
    assert content_of(study().path) == before
    assert doctor_command() == 1
    assert what in capsys.readouterr().out


@pytest.mark.parametrize("line", [b"{\n", b"\xff\xfe\n", b"17\n", b"{}\n"])
@pytest.mark.usefixtures("interrupted")
def test_damaged_line_inside_the_log_is_not_repaired(line: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    lines = log_path().read_bytes().splitlines(keepends=True)
    log_path().write_bytes(b"".join([*lines[:40], line, *lines[41:]]))
    check_not_repaired(capsys, "events.jsonl", "line 41 is unreadable, and its content cannot be recovered")


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.usefixtures("interrupted")
def test_missing_or_duplicate_ask_is_reported(number: int, copies: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = log_path().read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"ask"' in line and json.loads(line)["number"] == number)
    log_path().write_bytes(b"".join([*lines[:place], *[lines[place]] * copies, *lines[place + 1 :]]))
    check_not_repaired(capsys, "events.jsonl", "contradicts the lines before it")


@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.usefixtures("interrupted")
def test_trials_without_a_log_are_not_moved(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    log_path().unlink() if how == "missing" else log_path().write_bytes(b"")
    check_not_repaired(capsys, "events.jsonl", "a search cannot resume from their records alone")


@pytest.mark.parametrize("text", ["seed = = 3", "\x00", "", 'name = "s"'])
@pytest.mark.usefixtures("interrupted")
def test_damaged_study_toml_is_reported(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (study().path / "study.toml").write_text(text)
    check_not_repaired(capsys, "study.toml", "there is no other copy of its content")


@pytest.mark.usefixtures("interrupted")
def test_study_toml_without_a_space_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    config = study().config()
    study().write_config(config | {"space": {"name": "digits_bc", "title": "x"}})
    check_not_repaired(capsys, "study.toml", "is damaged ('text' is missing); there is no other copy of its content")


@pytest.mark.usefixtures("interrupted")
def test_live_worker_without_a_driver_is_reported() -> None:
    with Lease.take(study().trial_folder(RUNNING), 1):
        [finding] = diagnose(study(), repair=True)
        assert f"process {os.getpid()} on {socket.gethostname()}" in finding.problem
        assert "still training it" in finding.problem
        assert finding.repair == ""
        assert read_lease(study().trial_folder(RUNNING)) is not None


# --- the command ---


@pytest.mark.usefixtures("interrupted")
def test_running_study_is_diagnosed_but_not_repaired(capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(RUNNING, epochs=7)  # the driver may be about to append these epochs to the log
    write(study().trial_folder(RUNNING) / ".record.json.17", "x")
    with study().lock():
        assert doctor_command() == 2
        assert "is being run by another process" in capsys.readouterr().err
        assert doctor_command(dry_run=True) == 0
        assert capsys.readouterr().out == "study s is running; files that it is writing are not checked\nok\n"
        write(record_file(COMPLETE), "{")
        assert doctor_command(dry_run=True) == 1
    assert "trials/0/record.json: is damaged" in capsys.readouterr().out


@pytest.mark.usefixtures("interrupted")
def test_command_prints_findings_and_repairs(capsys: pytest.CaptureFixture[str]) -> None:
    with log_path().open("ab") as file:
        file.write(b"{")
    assert doctor_command(dry_run=True) == 1
    assert capsys.readouterr().out.splitlines()[0] == "studies/s/events.jsonl: its last line is torn"
    assert doctor_command() == 0
    assert capsys.readouterr().out.splitlines()[0] == "studies/s/events.jsonl: its last line is torn; cut off (1 bytes)"
    assert str(Finding("a", "b")) == "b: a"


@pytest.mark.usefixtures("interrupted")
def test_study_of_dnas_0_1_is_left_unchanged() -> None:
    """Its log lacks the costs, and a search cannot resume it."""
    events = [{k: v for k, v in event.items() if k != "cost"} for event in study().events()]
    log_path().write_text("".join(json.dumps(event) + "\n" for event in events))
    rewrite(COMPLETE, epochs=11)
    assert diagnose(study(), repair=True) == []


@pytest.mark.usefixtures("interrupted")
def test_record_from_before_the_space_was_widened_is_rebuilt() -> None:
    extend = pytest.importorskip("dnas.strategy.extend").extend
    whole = study().records()[COMPLETE]
    text = load_space("digits_bc").text.replace("[4, 16], step = 4", "[4, 24], step = 4")
    Path("wider.toml").write_text(text)
    wider = load_space("wider.toml")
    extend(study(), wider, wider.limits.stated())
    assert mirror_agrees(study()), "the name of the space does not matter to the mirror"
    write(record_file(COMPLETE), "{")
    assert diagnose(study(), repair=True)[0].repair
    rebuilt = study().records()[COMPLETE]
    assert (rebuilt.distributions, rebuilt.digest) == (whole.distributions, whole.digest)
    assert dataclasses.replace(rebuilt, weights_digest=whole.weights_digest).val_error == whole.val_error
