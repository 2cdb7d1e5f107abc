"""Folder of a study: plain files, written atomically so that a kill leaves either the old or the new version.

    studies/<name>/study.toml                  the frozen inputs
    studies/<name>/events.jsonl                all events in order, which are the sampler's history
    studies/<name>/trials/<number>/            record.json, curve.csv, norms.npz, checkpoint.pt, traceback.txt
    studies/<name>/retrain/<trial>-<seed>/     the same files for final runs

An event is appended before the record that it changes is written, except for a tell, which follows its record. When a
study is opened, each can therefore be repaired from the other. This module imports neither torch nor optuna.
"""

import csv
import fcntl
import json
import os
import re
import socket
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import tomli_w

from dnas.errors import InputError, did_you_mean
from dnas.io import complete_lines, read_text, room_for, write_atomic

if TYPE_CHECKING:
    import pandas as pd
from dnas.study.record import TrialRecord, now, rank

LOCK_ATTEMPTS, LOCK_SECONDS = 5, 0.05  # number of attempts to lock a study, and the time between them


class StudyHeld(InputError):
    """Another process of this host is running the study in this folder."""


def check_study_name(name: str, kind: str = "study") -> str:
    """Return `name`; raise `InputError` if it is not a valid name of a study, or of another `kind` of file."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or ".." in name:
        raise InputError(f"a {kind}'s name is letters, digits, `.`, `_` and `-` (no `/`, no `..`), but got {name!r}.")
    return name


def studies_folder() -> Path:
    return Path("studies")


def find_study(name: str | Path) -> "StudyFolder":
    """Return the study called `name` in ./studies, or at the path `name`. Raises `InputError` if there is none."""
    path = Path(name)
    if (path / "study.toml").is_file():
        return StudyFolder(path)
    path = studies_folder() / name
    if (path / "study.toml").is_file():
        return StudyFolder(path)
    known = sorted(file.parent.name for file in studies_folder().glob("*/study.toml"))
    raise InputError(
        f"no study {str(name)!r}; there are {', '.join(known) or 'none yet'} in {studies_folder().absolute()}."
        f"{did_you_mean(str(name), known)}"
    )


class StudyFolder:
    """Folder of one study."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name

    @property
    def project(self) -> Path:
        """The folder that contains `studies/`, from which relative paths of a study start."""
        return self.path.absolute().parent.parent

    @property
    def exists(self) -> bool:
        return (self.path / "study.toml").is_file()

    def create(self, config: Mapping[str, Any]) -> None:
        self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_atomic(self.path / "study.toml", tomli_w.dumps(config, multiline_strings=True))

    def config(self) -> dict[str, Any]:
        """Read the frozen inputs: name, space (name and file content), limits, objective, recipe, data, seed, ..."""
        try:
            return tomllib.loads(read_text(self.path / "study.toml"))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{self.path / 'study.toml'} is damaged: {error}.") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the study for one driver. The operating system releases the lock when the process ends."""
        with (self.path / "lock").open("a+") as file:
            if not _take_lock(file):
                file.seek(0)
                raise StudyHeld(
                    f"study {self.name} is being run by another process ({file.read().strip() or 'unknown'});"
                    " wait for it, or end it and rerun the command."
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}")
            file.flush()
            yield

    @property
    def is_running(self) -> bool:
        """True if a driver holds the study's lock."""
        try:
            with (self.path / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def now(self) -> str:
        """Return the time for events and records."""
        return now()

    # events

    def append(self, event: Mapping[str, Any]) -> None:
        path = self.path / "events.jsonl"
        with room_for(path), path.open("ab") as file:
            file.write(json.dumps({"time": self.now(), **event}).encode() + b"\n")

    def repair_events(self) -> int:
        """Cut off a last line that a kill or a full disk left torn; return the number of bytes removed."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return 0
        content = path.read_bytes()
        complete = complete_lines(content)
        if len(complete) < len(content):
            write_atomic(path, complete)
        return len(content) - len(complete)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the log, without a torn last line."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        lines = complete_lines(path.read_bytes()).decode().splitlines()
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is damaged: {error}.") from None

    # records

    def trial_folder(self, number: int) -> Path:
        return self.path / "trials" / str(number)

    def write_record(self, record: TrialRecord, folder: Path | None = None) -> None:
        write_atomic((folder or self.trial_folder(record.number)) / "record.json", record.to_json())

    def records(self) -> list[TrialRecord]:
        """Return the records of all trials, sorted by number."""
        return sorted(_read_records(self._record_files()), key=lambda record: record.number)

    def catch_up(self, record: TrialRecord, folder: Path | None = None) -> None:
        """Read the finished epochs of a running trial from its curve, which is newer than its record."""
        path = (folder or self.trial_folder(record.number)) / "curve.csv"
        if record.state != "running" or not path.is_file():
            return
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if len(rows) > record.epochs:
            record.epochs, record.seconds = len(rows), sum(float(row["seconds"]) for row in rows)
            record.val_error = float(error) if (error := rows[-1]["val_error"]) else None

    def _record_files(self) -> Iterator[str]:
        """Yield the paths of the trials' records, unordered. They are strings because pathlib is much slower."""
        trials = self.path / "trials"
        if trials.is_dir():
            with os.scandir(trials) as entries:
                for entry in entries:
                    path = f"{entry.path}/record.json"
                    if os.path.exists(path):  # noqa: PTH110
                        yield path

    def retrained(self) -> list[tuple[Path, TrialRecord]]:
        """Return the folder and record of every final run."""
        paths = sorted(self.path.glob("retrain/*/record.json"))
        return [(path.parent, record) for path, record in zip(paths, _read_records(paths), strict=True)]

    def best(self, count: int = 1) -> list[TrialRecord]:
        """Return the best complete trials, best first, in the order of `rank`."""
        return rank(self.records())[:count]

    def curve(self, folder: Path) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_csv(folder / "curve.csv")


def _take_lock(file: IO[str]) -> bool:
    """Lock a file, and return False if another process holds it. `is_running` holds it for an instant."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_SECONDS)
        else:
            return True
    return False


def _read_records(paths: Iterable[str | Path]) -> list[TrialRecord]:
    records = []
    for path in paths:
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read()
        try:
            records.append(TrialRecord.from_json(text))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}.") from None
    return records


def checkpoint_of(source: str | Path, trial: int | None = None) -> Path:
    """Return the path of the checkpoint that `source` names.

    Args:
        source: A checkpoint file, the folder of a run, or the name or folder of a study.
        trial: Trial of the study (default: the best).

    Raises:
        InputError: There is no such checkpoint, or `trial` was given for a file.
    """
    path = Path(source)
    if path.is_file():
        if trial is not None:
            raise InputError(f"--trial requires a study, but {path} is a file.")
        return path
    if (path / "checkpoint.pt").is_file():
        return path / "checkpoint.pt"
    if path.suffix == ".pt":
        raise InputError(f"no checkpoint at {path}.")
    folder = find_study(source)
    return _trial_checkpoint(folder, trial)


def _trial_checkpoint(folder: "StudyFolder", trial: int | None) -> Path:
    if trial is None:
        best = folder.best()
        if not best:
            raise InputError(f"study {folder.name} has no complete trial yet; choose one with --trial.")
        trial = best[0].number
    path = folder.trial_folder(trial) / "checkpoint.pt"
    if not path.is_file():
        numbers = [record.number for record in folder.records()]
        if trial not in numbers:
            last = f"its trials are 0 to {numbers[-1]}" if numbers else "it has none"
            raise InputError(f"study {folder.name} has no trial {trial}; {last}.")
        raise InputError(f"trial {trial} of study {folder.name} has no checkpoint, because it has finished no epoch.")
    return path


def read_study(name: str | Path) -> "pd.DataFrame":
    """Read a study into a table with one row per trial.

    The columns are number, state, arm, network, digest, params, macs, activation_bytes, val_error, val_loss, test_error
    (errors are fractions, losses nats), epochs, epochs_planned, seconds, peak_memory_bytes, latency (seconds), reason,
    a column for each further metric that the study asks for, and `choice_<name>` for each choice of the space.
    """
    import pandas as pd

    rows = []
    for record in find_study(name).records():
        rows.append(
            {
                "number": record.number,
                "state": record.state,
                "arm": record.arm,
                "network": record.network,
                "digest": record.digest,
                "params": record.cost.get("params"),
                "macs": record.cost.get("macs"),
                "activation_bytes": record.cost.get("activation_bytes"),
                "val_error": record.val_error,
                "val_loss": record.val_loss,
                "test_error": record.test_error,
                "epochs": record.epochs,
                "epochs_planned": record.epochs_planned,
                "seconds": record.seconds,
                "peak_memory_bytes": record.peak_memory_bytes,
                "latency": record.latency,
                **record.metrics,
                "reason": record.reason,
                **{f"choice_{key}": value for key, value in record.params.items()},
            }
        )
    return pd.DataFrame(rows)
