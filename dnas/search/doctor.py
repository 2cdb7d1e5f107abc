"""`dnas doctor`: finds what a crash, a full disk or a stray hand left in a study, and mends it from what is whole.

The event log is what a search goes on from, so records are made again from it, curves and norms from the checkpoints,
and the mirror from all of it. Nothing that could be the only copy of a result is deleted: what is of no use where it is
moves to `studies/<name>/lost/`. What a search mends by itself at its start (a record that its last event has not caught
up with, an interrupted trial) is not damage.
"""

import csv
import fcntl
import io
import json
import sqlite3
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError
from dnas.executors.lease import EXPIRY_SECONDS, Lease, LeaseHeld, is_dead, read_lease
from dnas.executors.lease import NAME as LEASE
from dnas.formatting import joined, several
from dnas.io import remove_torn
from dnas.search.optuna_mirror import NAME as MIRROR
from dnas.search.optuna_mirror import mirror_agrees, remove_mirror, sync_mirror
from dnas.search.state import ENDED, OldLog, SearchState, Trial, record_of, with_changes
from dnas.study.config import DEFAULTS, check_proposed, objectives_of, space_of
from dnas.study.folder import StudyFolder
from dnas.study.record import STATES, TrialRecord

if TYPE_CHECKING:
    from dnas.training.checkpoint import Epoch

BAD_RECORD = (OSError, ValueError, TypeError, AttributeError)  # what reading a damaged record.json may raise
BAD_EVENT = (KeyError, ValueError, TypeError, AttributeError, AssertionError, IndexError)  # taking an event in
NOT_TOLD = ("peak memory", "versions", "commit", "host")  # of a record, what nothing else holds


@dataclass(frozen=True)
class Finding:
    """Something damaged: `mended` says what was done about it, and is empty where nothing was."""

    what: str
    where: str
    mended: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.mended}" if self.mended else "")


def diagnose(folder: StudyFolder, mend: bool) -> list[Finding]:
    """What is damaged in a study, and with `mend` is not any more. `InputError` where it runs and is to be mended, and
    for a list of runs, which has no log that could contradict its records."""
    with suppress(tomllib.TOMLDecodeError, OSError, UnicodeDecodeError):
        check_proposed(tomllib.loads((folder.path / "study.toml").read_text(encoding="utf-8")))
    with folder.lock() if mend else nullcontext():
        return _Doctor(folder, mend, busy=not mend and is_running(folder)).look()


def is_running(folder: StudyFolder) -> bool:
    """Whether a driver holds the study's lock."""
    try:
        with (folder.path / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@dataclass
class _Doctor:
    folder: StudyFolder
    mend: bool
    busy: bool
    findings: list[Finding] = field(default_factory=list)
    config: dict[str, Any] | None = None  # None where study.toml says nothing
    state: SearchState | None = None  # None where the log cannot be followed to its end

    def look(self) -> list[Finding]:
        self._config()
        self._log()
        if not self.busy:
            self._leftovers()
            self._leases()
        if self.state is not None:
            self._strays()
            for number, trial in sorted(self.state.trials.items()):
                self._record(number, trial)
        self._final_records()
        for path in self._folders():
            self._training(path)
        if not self.busy and self.config is not None and self.state is not None:
            self._mirror()
        return self.findings

    # what a finding does

    def _found(self, what: str, where: Path, done: str = "", act: Callable[[], object] | None = None) -> None:
        """Notes a finding, and mends it with `act` if that is wanted; `done` says what that did."""
        if act is not None and self.mend:
            act()
        self.findings.append(Finding(what, str(where), done if act is not None and self.mend else ""))

    def _aside(self, path: Path) -> Path:
        """Where `path` goes in lost/: a place that is free."""
        place = self.folder.path / "lost" / path.relative_to(self.folder.path)
        found, count = place, 1
        while found.exists():
            found, count = place.with_name(f"{place.name}.{count}"), count + 1
        return found

    def _set_aside(self, what: str, path: Path, so: str) -> None:
        place = self._aside(path)

        def act() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)

        self._found(what, path, f"moved to {place}; {so}", act)

    def _folders(self) -> list[Path]:
        """The folder of every training, final ones too."""
        return sorted(
            path for kind in ("trials", "retrain") for path in self.folder.path.glob(f"{kind}/*") if path.is_dir()
        )

    # study.toml and the log

    def _config(self) -> None:
        path = self.folder.path / "study.toml"
        try:
            config = DEFAULTS | self.folder.config()
            space_of(config)
            config["created"], config["seed"], config["stopping"]
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            text = str(error).removeprefix(f"{path} is damaged: ").rstrip(".") if str(error) else type(error).__name__
            text = f"{text} is missing" if isinstance(error, KeyError) else text
            self._found(f"is damaged ({text}); nothing else holds what it says", path)
            return
        self.config = config

    def _log(self) -> None:
        path = self.folder.path / "events.jsonl"
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content) and not self.busy:
            torn = len(content) - len(whole)
            self._found("its last line is torn", path, f"cut off ({torn} bytes)", self.folder.mend_events)
        events: list[tuple[int, dict[str, Any]]] = []
        sound = True
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or not isinstance(event["event"], str):
                    raise ValueError
                events.append((number, event))
            except (ValueError, KeyError):
                self._found(f"line {number} cannot be read, and what it said cannot be known", path)
                sound = False
        if not events and any(self.folder.path.glob("trials/*/record.json")):
            what = "has no events" if path.exists() else "is missing"
            self._found(f"{what}, though there are trials: no search can go on from their records alone", path)
            sound = False
        if sound and self.config is not None:
            self._follow(events, path)

    def _follow(self, events: list[tuple[int, dict[str, Any]]], path: Path) -> None:
        """Fold the log into `state`."""
        assert self.config is not None
        only_events = [event for _, event in events]
        changes = with_changes(self.config, only_events)  # study.toml may not have caught up
        self.config |= {key: changes[key] for key in ("space", "limits")}
        config = self.config
        epochs = config["recipe"]["epochs"]
        state = SearchState.of_events(only_events, objectives_of(config), config["stopping"], epochs)
        for line, event in events:
            try:
                state.apply(event)
            except OldLog:
                return  # its study can be reported, and not resumed
            except BAD_EVENT as error:
                text = f"{event['event']}: {type(error).__name__ if isinstance(error, AssertionError) else error}"
                self._found(f"line {line} does not follow from those before it ({text})", path)
                return
        self.state = state

    # what kills leave behind

    def _leftovers(self) -> None:
        for path in (self.folder.path, *self._folders()):
            if left := list(path.glob(".*.[0-9]*")):
                what = f"{several(len(left), 'file')} of interrupted writes ({joined(sorted(p.name for p in left))})"
                self._found(what, path, "removed", partial(remove_torn, path))

    def _leases(self) -> None:
        """Leases of processes that are gone: this one holds the study's lock, so no driver is there to own them."""
        left = {path: info for path in self._folders() if (info := read_lease(path)) is not None}
        if any(is_dead(info) is None for info in left.values()):
            time.sleep(EXPIRY_SECONDS)  # on another host only the beat tells
        for path, info in left.items():
            dead = is_dead(info)
            if dead is None:
                dead = read_lease(path) == info
            if not dead:
                self._found(f"{info} still trains it, though no search runs; end that process", path / LEASE)
                continue
            holder = str(info) if info.owner else "nobody knows whom"
            done = "removed; the next `dnas search` goes on with its training"
            self._found(f"is held by {holder}, which is gone", path / LEASE, done, partial(_free, path))

    def _strays(self) -> None:
        assert self.state is not None
        for path in sorted(self.folder.path.glob("trials/*")):
            known = path.name.isdecimal() and str(int(path.name)) == path.name and int(path.name) in self.state.trials
            if path.is_dir() and not known and not self.busy:
                self._set_aside("the log asks for no such trial", path, "no search can go on with it")

    # records

    def _record(self, number: int, trial: Trial) -> None:
        path = self.folder.trial_folder(number) / "record.json"
        record = _read(path)
        if record is None:
            what = "is damaged" if path.exists() else "is missing"
            if not path.exists() and self.busy:
                return
        elif not self.busy and (contradiction := _contradiction(record, trial)):
            what = contradiction
        else:
            return
        try:
            again, lost = self._remade(number, trial, record)
        except (InputError, *BAD_EVENT) as error:
            self._found(f"{what}, and cannot be made again from the log ({error})", path)
            return

        def act() -> None:
            if path.exists():
                place = self._aside(path)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
            self.folder.write_record(again)

        gone = f"; {joined(lost)} could not be recovered" if lost else ""
        self._found(what, path, f"made again from the log{gone}", act)

    def _remade(self, number: int, trial: Trial, old: TrialRecord | None) -> tuple[TrialRecord, list[str]]:
        """A trial's record as the log tells it, and what of it could not be recovered. What else an `old` record says
        is kept, if it is of this trial."""
        assert self.config is not None
        config, tables = self.config, trial.tables or {}
        space = space_of(config | {key: tables[key] for key in ("space", "limits") if key in tables})
        checkpoint = _content(self.folder.trial_folder(number) / "checkpoint.pt")
        made = record_of(
            trial,
            space,
            trial.asked_params,
            config["seed"],
            data=self._data(checkpoint),
            device=config.get("device", "cpu"),
            threads=config.get("threads", 1),
            started=trial.asked,
        )
        if made.digest != trial.digest:
            raise InputError("the space would make another network of its choices")
        if old is not None and (old.number != number or old.digest != made.digest):
            old = None
        lost = list(NOT_TOLD)
        if old is not None:
            kept = ("device", "threads", "started", "attempts", "losses", "earlier", "versions", "commit", "host")
            made = replace(made, **{name: getattr(old, name) for name in (*kept, "peak_memory_bytes", "data")})
            lost.clear()
        if trial.state == "paused":
            made.reason = old.reason if old is not None and old.state == "paused" else None
            lost += ["its reason"] if made.reason is None else []
        if trial.state in ("complete", "stopped", "paused"):
            made.weights_digest = self._weights_digest(number, checkpoint, made.epochs)
            if old is not None and (old.state, old.epochs) == (made.state, made.epochs):
                made.weights_digest = made.weights_digest or old.weights_digest
            lost += ["weights digest"] if made.weights_digest is None else []
        if trial.state == "complete":
            errors = [
                r.test_error for r in self._finals(number) if r.recipe == made.recipe and r.test_error is not None
            ]
            made.test_error = sum(errors) / len(errors) if errors else None
        return made, lost

    def _data(self, checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
        """`Dataset.describe()` as the trial's checkpoint, another record, or study.toml holds it."""
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
        found = (_read(path) for path in sorted(self.folder.path.glob(f"retrain/{number}-*/record.json")))
        return [record for record in found if record is not None]

    def _final_records(self) -> None:
        for path in sorted(self.folder.path.glob("retrain/*/record.json")):
            if _read(path) is None:
                self._set_aside("is damaged", path, "the next `dnas search --retrain-best` makes it again")

    # what a training wrote

    def _training(self, path: Path) -> None:
        record = _read(path / "record.json")
        state = record.state if record is not None else "running"
        if self.busy and state not in ENDED:
            return
        checkpoint = _content(path / "checkpoint.pt")
        trouble = "is damaged" if checkpoint is None else ""
        if checkpoint is not None and record is not None and record.spec:
            same = checkpoint["spec"] == record.spec and list(checkpoint["seed"]) == list(record.seed)
            trouble = "" if same else "is of another training"
        if trouble and (path / "checkpoint.pt").exists():
            again = state in ("running", "paused")
            so = "its training begins again" if again else "the weights are lost, the results in record.json stand"
            self._set_aside(trouble, path / "checkpoint.pt", so)
            checkpoint = None
        if checkpoint is not None and checkpoint["curve"]:
            self._beside_checkpoint(path, checkpoint)
        elif not trouble or not (path / "checkpoint.pt").exists():
            self._without_checkpoint(path)

    def _beside_checkpoint(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        from dnas.training.checkpoint import Epoch, load_run, write_curve, write_norms

        curve = [Epoch(**row) for row in checkpoint["curve"]]
        if (what := _differs(path / "curve.csv", _curve_text(curve))) is not None:
            done = "written again from the checkpoint"
            self._found(what, path / "curve.csv", done, lambda: write_curve(path / "curve.csv", curve))
        if (what := _norms_differ(path / "norms.npz", checkpoint["norms"])) is not None:
            done = "written again from the checkpoint"
            act = lambda: write_norms(path / "norms.npz", load_run(path / "checkpoint.pt"))  # noqa: E731
            self._found(what, path / "norms.npz", done, act)

    def _without_checkpoint(self, path: Path) -> None:
        """A curve is in the log, too; norms are in no other place."""
        from dnas.training.checkpoint import Epoch, write_curve

        if (path / "curve.csv").exists() and not _is_curve(path / "curve.csv"):
            number = int(path.name) if path.parent.name == "trials" and path.name.isdecimal() else -1
            names = [f.name for f in fields(Epoch)]
            trial = self.state.trials.get(number) if self.state is not None else None
            rows = [row for _, row in sorted(trial.curve.items())] if trial is not None else []
            if rows and all(name in row for row in rows for name in names):
                curve = [Epoch(**{name: row[name] for name in names}) for row in rows]
                done = "written again from the log"
                self._found("is damaged", path / "curve.csv", done, lambda: write_curve(path / "curve.csv", curve))
            else:
                self._set_aside("is damaged", path / "curve.csv", "no other copy is there")
        if (path / "norms.npz").exists() and _arrays(path / "norms.npz") is None:
            self._set_aside("is damaged", path / "norms.npz", "no other copy is there")

    # the mirror

    def _mirror(self) -> None:
        path = self.folder.path / MIRROR
        if not path.exists():
            return
        try:
            if mirror_agrees(self.folder):
                return
        except sqlite3.Error as error:
            self._found(f"cannot be looked at ({error})", path)
            return

        def act() -> None:
            remove_mirror(self.folder)
            sync_mirror(self.folder)

        self._found("does not say what the records say", path, "made again", act)


# --- what files say -----------------------------------------------------------------------------------------------


def _read(path: Path) -> TrialRecord | None:
    """A record; None where there is none that can be read."""
    try:
        record = TrialRecord.from_json(path.read_text(encoding="utf-8"))
    except BAD_RECORD:
        return None
    kinds = (record.state in STATES, isinstance(record.params, dict), isinstance(record.epochs, int))
    return record if all(kinds) else None


def _contradiction(record: TrialRecord, trial: Trial) -> str | None:
    """What a record says that cannot be so where the log is right; None where a kill may have left the two so, which
    the next search brings together."""
    if (record.number, record.digest) != (trial.number, trial.digest) or record.params != trial.asked_params:
        return "is of another network than the log asks for"
    if record.epochs_planned not in trial.planned:
        return f"is of {record.epochs_planned} epochs, the log of {trial.epochs}"
    if record.epochs_planned != trial.epochs:
        return None  # more epochs, which have not reached the record
    here, there = f"{record.state} after epoch {record.epochs}", f"{trial.state} after epoch {trial.furthest}"
    text = f"says {here}, the log {there}"
    last = trial.curve.get(trial.furthest, {})
    if record.state != trial.state:
        # Between a record and its tell or pause, or between a promotion and its record.
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
            return f"says a validation error of {record.val_error}, the log {last.get('val_error')}"
    if trial.objectives is not None and record.state == trial.state and record.objectives != trial.objectives:
        return f"says {record.objectives}, the log {trial.objectives}"
    return None


def _content(path: Path) -> dict[str, Any] | None:
    """A checkpoint's content; None where there is none that can be read."""
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
    """curve.csv as `dnas.training.fit` writes it."""
    from dnas.training.checkpoint import write_curve

    with tempfile.TemporaryDirectory() as folder:
        write_curve(Path(folder) / "curve.csv", curve)
        return (Path(folder) / "curve.csv").read_bytes()


def _differs(path: Path, wanted: bytes) -> str | None:
    if not path.exists():
        return "is missing"
    return None if path.read_bytes() == wanted else "does not say what the checkpoint says"


def _is_curve(path: Path) -> bool:
    """Whether a curve.csv is whole: a row for each epoch, counted from 1, and every cell a number or empty."""
    from dnas.training.checkpoint import Epoch

    try:
        content = path.read_bytes().decode()
        rows = list(csv.reader(io.StringIO(content, newline="")))
        for number, row in enumerate(rows[1:], 1):
            if len(row) != len(rows[0]) or int(row[0]) != number:
                return False
            [float(cell) for cell in row if cell]
    except (ValueError, csv.Error, IndexError):
        return False
    return bool(rows) and rows[0] == [f.name for f in fields(Epoch)] and content.endswith("\n")


def _arrays(path: Path) -> dict[str, Any] | None:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _norms_differ(path: Path, norms: Mapping[str, Any]) -> str | None:
    import numpy as np

    if not path.exists():
        return "is missing"
    arrays = _arrays(path)
    if arrays is None or not {"names", "numel", "l2", "pairs", "reuse"} <= set(arrays):
        return "is damaged"
    same = list(arrays["names"]) == list(norms["names"]) and all(
        name in arrays and np.array_equal(arrays[name], norms[name].numpy(), equal_nan=True)
        for name in ("l2", "reuse", "l1", "gradient")
        if name in norms  # runs that dnas 0.1 began lack some
    )
    return None if same else "does not say what the checkpoint says"


def _free(path: Path) -> None:
    """Takes a dead holder's lease, and gives it back: so nobody's who came in between is removed."""
    with suppress(LeaseHeld):
        Lease.take(path, 0, 1.0, expiry_seconds=0.1).release()
