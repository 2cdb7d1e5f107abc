"""Find and repair damage in a study for `dnas doctor`, after a crash, a full disk or a manual change.

A search resumes from the event log, so that records are rebuilt from it, curves and norms from the checkpoints, and the
mirror from all of them. Nothing that could be the only copy of a result is deleted: unusable files are moved to
`studies/<name>/lost/`. States that a search repairs by itself when it starts (a record that is older than its last
event, an interrupted trial) are not damage.
"""

import csv
import io
import json
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError
from dnas.executors.lease import EXPIRY_SECONDS, Lease, LeaseHeld, is_dead, read_lease
from dnas.executors.lease import NAME as LEASE
from dnas.formatting import joined, several
from dnas.io import complete_lines, read_toml, remove_torn
from dnas.strategy.optuna_mirror import NAME as MIRROR
from dnas.strategy.optuna_mirror import mirror_agrees, remove_mirror, sync_mirror
from dnas.strategy.state import ENDED, OldLog, SearchState, Trial, record_of, with_changes
from dnas.study.config import DEFAULTS, check_proposed, objectives_of, space_of
from dnas.study.folder import StudyFolder
from dnas.study.record import STATES, TrialRecord

if TYPE_CHECKING:
    from dnas.training.checkpoint import Epoch

BAD_RECORD = (OSError, ValueError, TypeError, AttributeError)  # errors from reading a damaged record.json
BAD_EVENT = (
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    IndexError,
)  # errors from applying a damaged event
ONLY_IN_RECORD = ("peak memory", "versions", "commit", "host")  # content of a record without another copy


@dataclass(frozen=True)
class Finding:
    """A damaged file or folder. `repair` describes the repair, and is empty if there was none."""

    problem: str
    path: str
    repair: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f"; {self.repair}" if self.repair else "")


def diagnose(folder: StudyFolder, repair: bool) -> list[Finding]:
    """Return the damage in a study, and repair it if `repair` is True.

    Raises:
        InputError: The study is running and should be repaired, or it is a list of runs, which has no log to compare
            its records with.
    """
    config = None
    with suppress(InputError, OSError):  # a damaged study.toml is a finding
        config = read_toml(folder.path / "study.toml")
    if config is not None:
        check_proposed(config)
    with folder.lock() if repair else nullcontext():
        return _Doctor(folder, repair, busy=not repair and folder.is_running).examine()


@dataclass
class _Doctor:
    folder: StudyFolder
    repair: bool
    busy: bool
    findings: list[Finding] = field(default_factory=list)
    config: dict[str, Any] | None = None  # None if study.toml is damaged
    state: SearchState | None = None  # None if the log cannot be replayed to its end

    def examine(self) -> list[Finding]:
        self._check_config()
        self._check_log()
        if not self.busy:
            self._check_leftovers()
            self._check_leases()
        if self.state is not None:
            self._check_strays()
            for number, trial in sorted(self.state.trials.items()):
                self._check_record(number, trial)
        self._check_final_records()
        for path in self._folders():
            self._check_run_files(path)
        if not self.busy and self.config is not None and self.state is not None:
            self._check_mirror()
        return self.findings

    # findings and repairs

    def _report(self, problem: str, path: Path, repair: str = "", act: Callable[[], object] | None = None) -> None:
        """Record a finding; when repairing, call `act`, whose effect `repair` describes."""
        if act is not None and self.repair:
            act()
        self.findings.append(Finding(problem, str(path), repair if act is not None and self.repair else ""))

    def _aside(self, path: Path) -> Path:
        """Return an unused path in lost/ for `path`."""
        target = self.folder.path / "lost" / path.relative_to(self.folder.path)
        unused, count = target, 1
        while unused.exists():
            unused, count = target.with_name(f"{target.name}.{count}"), count + 1
        return unused

    def _set_aside(self, problem: str, path: Path, consequence: str) -> None:
        target = self._aside(path)

        def act() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

        self._report(problem, path, f"moved to {target}; {consequence}", act)

    def _folders(self) -> list[Path]:
        """Return the folder of every run, including final runs."""
        return sorted(
            path for kind in ("trials", "retrain") for path in self.folder.path.glob(f"{kind}/*") if path.is_dir()
        )

    # study.toml and the log

    def _check_config(self) -> None:
        path = self.folder.path / "study.toml"
        try:
            config = DEFAULTS | self.folder.config()
            space_of(config)
            config["created"], config["seed"], config["stopping"]
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            text = str(error).removeprefix(f"{path} is damaged: ").rstrip(".") if str(error) else type(error).__name__
            text = f"{text} is missing" if isinstance(error, KeyError) else text
            self._report(f"is damaged ({text}); there is no other copy of its content", path)
            return
        self.config = config

    def _check_log(self) -> None:
        path = self.folder.path / "events.jsonl"
        content = path.read_bytes() if path.exists() else b""
        complete = complete_lines(content)
        if len(complete) < len(content) and not self.busy:
            torn = len(content) - len(complete)
            self._report("its last line is torn", path, f"cut off ({torn} bytes)", self.folder.repair_events)
        events: list[tuple[int, dict[str, Any]]] = []
        sound = True
        for number, line in enumerate(complete.split(b"\n")[:-1], 1):
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or not isinstance(event["event"], str):
                    raise ValueError
                events.append((number, event))
            except (ValueError, KeyError):
                self._report(f"line {number} is unreadable, and its content cannot be recovered", path)
                sound = False
        if not events and any(self.folder.path.glob("trials/*/record.json")):
            problem = "has no events" if path.exists() else "is missing"
            self._report(f"{problem}, although there are trials: a search cannot resume from their records alone", path)
            sound = False
        if sound and self.config is not None:
            self._replay(events, path)

    def _replay(self, events: list[tuple[int, dict[str, Any]]], path: Path) -> None:
        """Replay the log into `state`."""
        assert self.config is not None
        only_events = [event for _, event in events]
        changes = with_changes(self.config, only_events)  # study.toml may be older than the log
        self.config |= {key: changes[key] for key in ("space", "limits")}
        config = self.config
        epochs = config["recipe"]["epochs"]
        state = SearchState.of_events(only_events, objectives_of(config), config["stopping"], epochs)
        for line, event in events:
            try:
                state.apply(event)
            except OldLog:
                return  # its study can be reported but not resumed
            except BAD_EVENT as error:
                text = f"{event['event']}: {type(error).__name__ if isinstance(error, AssertionError) else error}"
                self._report(f"line {line} contradicts the lines before it ({text})", path)
                return
        self.state = state

    # leftovers of kills

    def _check_leftovers(self) -> None:
        for path in (self.folder.path, *self._folders()):
            if torn := list(path.glob(".*.[0-9]*")):
                problem = f"{several(len(torn), 'file')} of interrupted writes ({joined(sorted(p.name for p in torn))})"
                self._report(problem, path, "removed", partial(remove_torn, path))

    def _check_leases(self) -> None:
        """Check for leases without a process. This process holds the study's lock, so that no driver owns them."""
        leases = {path: info for path in self._folders() if (info := read_lease(path)) is not None}
        if any(is_dead(info) is None for info in leases.values()):
            time.sleep(EXPIRY_SECONDS)  # on another host only the heartbeat shows whether it is alive
        for path, info in leases.items():
            dead = is_dead(info)
            if dead is None:
                dead = read_lease(path) == info
            if not dead:
                self._report(
                    f"{info} is still training it, although no search is running; end that process", path / LEASE
                )
                continue
            holder = str(info) if info.owner else "an unknown process"
            repair = "removed; the next `dnas search` resumes its run"
            self._report(f"is held by {holder}, which has ended", path / LEASE, repair, partial(_free, path))

    def _check_strays(self) -> None:
        assert self.state is not None
        for path in sorted(self.folder.path.glob("trials/*")):
            known = path.name.isdecimal() and str(int(path.name)) == path.name and int(path.name) in self.state.trials
            if path.is_dir() and not known and not self.busy:
                self._set_aside("the log has no such trial", path, "no search can resume it")

    # records

    def _check_record(self, number: int, trial: Trial) -> None:
        path = self.folder.trial_folder(number) / "record.json"
        record = _read(path)
        if record is None:
            problem = "is damaged" if path.exists() else "is missing"
            if not path.exists() and self.busy:
                return
        elif not self.busy and (contradiction := _contradiction(record, trial)):
            problem = contradiction
        else:
            return
        try:
            rebuilt, lost = self._rebuild_record(number, trial, record)
        except (InputError, *BAD_EVENT) as error:
            self._report(f"{problem}, and cannot be rebuilt from the log ({error})", path)
            return

        def act() -> None:
            if path.exists():
                target = self._aside(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            self.folder.write_record(rebuilt)

        losses = f"; {joined(lost)} could not be recovered" if lost else ""
        self._report(problem, path, f"rebuilt from the log{losses}", act)

    def _rebuild_record(self, number: int, trial: Trial, old: TrialRecord | None) -> tuple[TrialRecord, list[str]]:
        """Rebuild a trial's record from the log; return it with the names of the fields that are lost.

        Fields that the log lacks are copied from an `old` record of this trial.
        """
        assert self.config is not None
        config, tables = self.config, trial.tables or {}
        space = space_of(config | {key: tables[key] for key in ("space", "limits") if key in tables})
        checkpoint = _content(self.folder.trial_folder(number) / "checkpoint.pt")
        rebuilt = record_of(
            trial,
            space,
            trial.asked_params,
            config["seed"],
            data=self._data(checkpoint),
            device=config.get("device", "cpu"),
            threads=config.get("threads", 1),
            started=trial.asked,
        )
        if rebuilt.digest != trial.digest:
            raise InputError("its choices now lead to another network")
        if old is not None and (old.number != number or old.digest != rebuilt.digest):
            old = None
        lost = list(ONLY_IN_RECORD)
        if old is not None:
            kept = ("device", "threads", "started", "attempts", "losses", "earlier", "versions", "commit", "host")
            rebuilt = replace(rebuilt, **{name: getattr(old, name) for name in (*kept, "peak_memory_bytes", "data")})
            lost.clear()
        if trial.state == "paused":
            rebuilt.reason = old.reason if old is not None and old.state == "paused" else None
            lost += ["reason"] if rebuilt.reason is None else []
        if trial.state in ("complete", "stopped", "paused"):
            rebuilt.weights_digest = self._weights_digest(number, checkpoint, rebuilt.epochs)
            if old is not None and (old.state, old.epochs) == (rebuilt.state, rebuilt.epochs):
                rebuilt.weights_digest = rebuilt.weights_digest or old.weights_digest
            lost += ["weights digest"] if rebuilt.weights_digest is None else []
        if trial.state == "complete":
            errors = [
                r.test_error for r in self._finals(number) if r.recipe == rebuilt.recipe and r.test_error is not None
            ]
            rebuilt.test_error = sum(errors) / len(errors) if errors else None
        return rebuilt, lost

    def _data(self, checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return `Dataset.describe()` from the trial's checkpoint, another record, or study.toml."""
        assert self.config is not None
        if checkpoint is not None:
            return dict(checkpoint["data"])
        for path in sorted(self.folder.path.glob("trials/*/record.json")):
            if (other := _read(path)) is not None and other.data:
                return other.data
        return {key: value for key, value in self.config["data"].items() if key not in ("source", "root")}

    def _weights_digest(self, number: int, checkpoint: Mapping[str, Any] | None, epochs: int) -> str | None:
        if checkpoint is None or len(checkpoint["curve"]) != epochs:
            return None
        from dnas.training.checkpoint import load_run, weights_digest

        with suppress(RuntimeError, KeyError, TypeError, ValueError):
            return weights_digest(load_run(self.folder.trial_folder(number) / "checkpoint.pt").net)
        return None

    def _finals(self, number: int) -> list[TrialRecord]:
        records = (_read(path) for path in sorted(self.folder.path.glob(f"retrain/{number}-*/record.json")))
        return [record for record in records if record is not None]

    def _check_final_records(self) -> None:
        for path in sorted(self.folder.path.glob("retrain/*/record.json")):
            if _read(path) is None:
                self._set_aside("is damaged", path, "the next `dnas search --retrain-best` repeats its run")

    # a run's other files

    def _check_run_files(self, path: Path) -> None:
        record = _read(path / "record.json")
        state = record.state if record is not None else "running"
        if self.busy and state not in ENDED:
            return
        checkpoint = _content(path / "checkpoint.pt")
        problem = "is damaged" if checkpoint is None else ""
        if checkpoint is not None and record is not None and record.spec:
            same = checkpoint["spec"] == record.spec and list(checkpoint["seed"]) == list(record.seed)
            problem = "" if same else "belongs to another run"
        if problem and (path / "checkpoint.pt").exists():
            restarts = state in ("running", "paused")
            consequence = (
                "its run restarts" if restarts else "the weights are lost, the results in record.json remain valid"
            )
            self._set_aside(problem, path / "checkpoint.pt", consequence)
            checkpoint = None
        if checkpoint is not None and checkpoint["curve"]:
            self._check_against_checkpoint(path, checkpoint)
        elif not problem or not (path / "checkpoint.pt").exists():
            self._check_without_checkpoint(path)

    def _check_against_checkpoint(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        from dnas.training.checkpoint import Epoch, load_run, write_curve, write_norms

        curve = [Epoch.from_row(row) for row in checkpoint["curve"]]
        repair = "rewritten from the checkpoint"
        if (problem := _compare_curve(path / "curve.csv", _curve_text(curve))) is not None:
            self._report(problem, path / "curve.csv", repair, lambda: write_curve(path / "curve.csv", curve))
        if (problem := _compare_norms(path / "norms.npz", checkpoint["norms"])) is not None:
            act = lambda: write_norms(path / "norms.npz", load_run(path / "checkpoint.pt"))  # noqa: E731
            self._report(problem, path / "norms.npz", repair, act)

    def _check_without_checkpoint(self, path: Path) -> None:
        """Check a curve, which is also in the log, and norms, which have no other copy."""
        from dnas.training.checkpoint import EPOCH_KEYS, Epoch, write_curve

        if (path / "curve.csv").exists() and not _is_curve(path / "curve.csv"):
            number = int(path.name) if path.parent.name == "trials" and path.name.isdecimal() else -1
            trial = self.state.trials.get(number) if self.state is not None else None
            rows = [row for _, row in sorted(trial.curve.items())] if trial is not None else []
            if rows and all(name in row for row in rows for name in EPOCH_KEYS):
                curve = [Epoch.from_row(row) for row in rows]
                repair = "rewritten from the log"
                self._report("is damaged", path / "curve.csv", repair, lambda: write_curve(path / "curve.csv", curve))
            else:
                self._set_aside("is damaged", path / "curve.csv", "there is no other copy")
        if (path / "norms.npz").exists() and _arrays(path / "norms.npz") is None:
            self._set_aside("is damaged", path / "norms.npz", "there is no other copy")

    # the mirror

    def _check_mirror(self) -> None:
        path = self.folder.path / MIRROR
        if not path.exists():
            return
        try:
            if mirror_agrees(self.folder):
                return
        except sqlite3.Error as error:
            self._report(f"cannot be read ({error})", path)
            return

        def act() -> None:
            remove_mirror(self.folder)
            sync_mirror(self.folder)

        self._report("does not match the records", path, "rebuilt", act)


# --- content of files ---------------------------------------------------------------------------------------------


def _read(path: Path) -> TrialRecord | None:
    """Read a record; return None if it is missing or unreadable."""
    try:
        record = TrialRecord.from_json(path.read_text(encoding="utf-8"))
    except BAD_RECORD:
        return None
    kinds = (record.state in STATES, isinstance(record.params, dict), isinstance(record.epochs, int))
    return record if all(kinds) else None


def _contradiction(record: TrialRecord, trial: Trial) -> str | None:
    """Describe how a record contradicts the log; return None if they agree or a kill explains the difference.

    The next search repairs the differences that a kill can leave.
    """
    if (record.number, record.digest) != (trial.number, trial.digest) or record.params != trial.asked_params:
        return "describes another network than the log"
    if record.epochs_planned not in trial.planned:
        return f"plans {record.epochs_planned} epochs, but {trial.epochs} in the log"
    if record.epochs_planned != trial.epochs:
        return None  # the epochs were raised, and the record is older
    text = f"is {record.state} after epoch {record.epochs}, but {trial.state} after epoch {trial.furthest} in the log"
    last = trial.curve.get(trial.furthest, {})
    if record.state != trial.state:
        # A kill between a record and its tell or pause, or between a promotion and its record.
        if trial.state != "running" or record.state == "running":
            return text
        if record.state == "complete" and trial.furthest != trial.epochs:
            return text
    if record.epochs > trial.furthest:
        return text
    if record.state in ("complete", "stopped", "paused"):
        if record.epochs != trial.furthest:
            return text
        if record.val_error != last.get("val_error"):
            return f"has a validation error of {record.val_error}, but {last.get('val_error')} in the log"
    if trial.objectives is not None and record.state == trial.state and record.objectives != trial.objectives:
        return f"has objectives {record.objectives}, but {trial.objectives} in the log"
    return None


def _content(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; return None if it is missing or unreadable."""
    if not path.exists():
        return None
    from dnas.training.checkpoint import read_checkpoint

    try:
        content = read_checkpoint(path)
        content["spec"], content["seed"], content["data"], content["curve"], content["norms"], content["weights"]
    except (InputError, KeyError):
        return None
    return content


def _curve_text(curve: "list[Epoch]") -> bytes:
    """Return the content of curve.csv as `dnas.training.fit` writes it."""
    from dnas.training.checkpoint import write_curve

    with tempfile.TemporaryDirectory() as folder:
        write_curve(Path(folder) / "curve.csv", curve)
        return (Path(folder) / "curve.csv").read_bytes()


def _compare_curve(path: Path, expected: bytes) -> str | None:
    if not path.exists():
        return "is missing"
    return None if path.read_bytes() == expected else "does not match the checkpoint"


def _is_curve(path: Path) -> bool:
    """Return True if curve.csv has one row per epoch, counted from 1, and only numbers or empty cells."""
    from dnas.training.checkpoint import EPOCH_KEYS
    from dnas.training.metrics import metrics_in

    try:
        content = path.read_bytes().decode()
        rows = list(csv.reader(io.StringIO(content, newline="")))
        for number, row in enumerate(rows[1:], 1):
            if len(row) != len(rows[0]) or int(row[0]) != number:
                return False
            [float(cell) for cell in row if cell]
    except (ValueError, csv.Error, IndexError):
        return False
    heads = [*EPOCH_KEYS, *metrics_in(dict.fromkeys(rows[0]))] if rows else []
    return bool(rows) and rows[0] == heads and content.endswith("\n")


def _arrays(path: Path) -> dict[str, Any] | None:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _compare_norms(path: Path, norms: Mapping[str, Any]) -> str | None:
    import numpy as np

    if not path.exists():
        return "is missing"
    arrays = _arrays(path)
    if arrays is None or not {"names", "numel", "l2", "pairs", "reuse"} <= set(arrays):
        return "is damaged"
    same = list(arrays["names"]) == list(norms["names"]) and all(
        name in arrays and np.array_equal(arrays[name], norms[name].numpy(), equal_nan=True)
        for name in ("l2", "reuse", "l1", "gradient")
        if name in norms  # runs started by dnas 0.1 lack some
    )
    return None if same else "does not match the checkpoint"


def _free(path: Path) -> None:
    """Remove a dead holder's lease by taking and releasing it, so that a lease taken meanwhile is kept."""
    with suppress(LeaseHeld):
        Lease.take(path, 0, 1.0, expiry_seconds=0.1).release()
