"""The runs of a study as trackers show them, from the event log and the files of the trials."""

import csv
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dnas.strategy.mirroring import LogReader, stamp
from dnas.strategy.state import ENDED
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord

RESULTS = ("val_error", "val_loss", "test_error", "test_loss", "latency", "seconds", "peak_memory_bytes")
COSTS = ("params", "macs", "activation_bytes")
FACTS = ("network", "digest", "arm", "state", "reason", "device", "host", "commit", "weights_digest")
Value = bool | int | float | str


@dataclass(frozen=True)
class Point:
    """The numbers of one epoch. time: in seconds since 1970, without the pauses of the trial."""

    epoch: int
    time: float
    values: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """One trial or final run.

    Attributes:
        key: Folder of the run below the study's: "12", or "retrain/12-0".
        name: Name for people.
        state: State of its record.
        closed: True if no more points are expected; a paused trial is closed in the last pass.
        inputs: Choices of the trial, fields of the network and of the recipe.
        costs: Exact costs of the network.
        points: The finished epochs.
        results: Final results, by the names `final_val_error`, `test_error`, ... Empty before the end.
        facts: Name of the network, state, reason, machine, ...
        start: Time of the start, in seconds since 1970.
        end: Time of the end, or None.
        epochs: Planned number of epochs.
    """

    key: str
    name: str
    state: str
    closed: bool
    inputs: dict[str, Value]
    costs: dict[str, float]
    points: tuple[Point, ...]
    results: dict[str, float]
    facts: dict[str, str]
    start: float
    end: float | None
    epochs: int

    @property
    def fingerprint(self) -> str:
        """Digest of everything that a tracker shows of the run."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrackedStudy:
    """Facts of a study that trackers show beside its runs. identity: distinguishes studies of one name."""

    name: str
    identity: str
    inputs: dict[str, Value]
    start: float

    @classmethod
    def of(cls, folder: StudyFolder) -> "TrackedStudy":
        config = folder.config()
        key = json.dumps([folder.name, config["created"], config["seed"]])
        shown = {name: value for name, value in config.items() if name not in ("runs", "space", "ablation")}
        shown |= {"space": config["space"]["name"], "title": config["space"].get("title")}
        identity = hashlib.sha256(key.encode()).hexdigest()[:12]
        return cls(folder.name, identity, _flat(shown), _seconds(config["created"]))

    def id_of(self, *parts: object) -> str:
        """Return an identifier of 16 characters for a part of this study."""
        return hashlib.sha256(json.dumps([self.identity, *parts]).encode()).hexdigest()[:16]


class Source:
    """Finds the runs that changed since the last call."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.study = TrackedStudy.of(folder)
        self._log = LogReader(folder.path / "events.jsonl")
        self._stamps: dict[str, Any] = {}
        self._seen: dict[str, TrackedRun] = {}

    def changed(self, last: bool = False) -> Iterator[TrackedRun]:
        """Yield each run that is new or has changed. A run whose files are damaged or half written is left out.

        last: no later pass follows, so that paused trials are closed.
        """
        self._log.read()
        for key in self._keys():
            path = self.folder.path / ("" if key.startswith("retrain") else "trials") / key
            trial = self._log.trials.get(int(key)) if key.isdecimal() else None
            version = (stamp(path / "record.json"), stamp(path / "curve.csv"), trial and (trial.last, trial.furthest))
            paused = last and key in self._seen and not self._seen[key].closed
            if self._stamps.get(key) == version and not paused:
                continue
            with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                record = TrialRecord.from_json((path / "record.json").read_text(encoding="utf-8"))
                rows = list(trial.curve.items()) if trial is not None else _read_curve(path / "curve.csv")
                start = record.started if trial is None else trial.asked
                run = _run_of(key, self.study, record, rows, start, last)
                if run != self._seen.get(key):
                    yield run
                self._seen[key], self._stamps[key] = run, version

    def _keys(self) -> list[str]:
        """Return the folders of all runs, in order."""
        trials, finals = (_folders(self.folder.path / name) for name in ("trials", "retrain"))
        numbers = sorted(int(name) for name in trials if name.isdecimal())
        return [*map(str, numbers), *(f"retrain/{name}" for name in sorted(finals))]


def _folders(path: Path) -> list[str]:
    return os.listdir(path) if path.is_dir() else []  # noqa: PTH208, as pathlib is much slower


def _run_of(
    key: str,
    study: TrackedStudy,
    record: TrialRecord,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    started: str | None,
    last: bool,
) -> TrackedRun:
    start = study.start if started is None else _seconds(started)
    points, spent = [], 0.0
    for epoch, row in sorted(rows, key=lambda pair: pair[0]):
        spent += row.get("seconds") or 0.0
        points.append(Point(epoch, start + spent, _numbers(row)))
    ended = record.state in ENDED
    results = _numbers({name: getattr(record, name) for name in RESULTS} | record.metrics) if ended else {}
    of_epochs = {name for point in points for name in point.values}
    facts = {name: getattr(record, name) for name in FACTS} | {"seed": json.dumps(record.seed)} | record.versions
    name = f"final run {key.removeprefix('retrain/')}" if key.startswith("retrain") else f"#{record.number}"
    return TrackedRun(
        key=key,
        name=f"{study.name} {record.params.get('key', name)}",
        state=record.state,
        closed=ended or (last and record.state == "paused"),
        inputs=_flat({**record.params, "spec": record.spec, "recipe": record.recipe}),
        costs=_numbers({name: record.cost.get(name) for name in COSTS}),
        points=tuple(points),
        results={f"final_{name}" if name in of_epochs else name: value for name, value in results.items()},
        facts={name: str(value) for name, value in facts.items() if value is not None},
        start=start,
        end=_seconds(record.ended) if record.ended and record.state != "running" else None,
        epochs=record.epochs_planned,
    )


def _read_curve(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read the epochs of a run without events, such as one of an ablation."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    return [(int(row.pop("epoch")), row) for row in rows]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among `values`."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Flatten nested tables to names such as `recipe.epochs`. A list becomes text."""
    flat: dict[str, Value] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value if isinstance(value, Value) else json.dumps(value)
    return flat


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
