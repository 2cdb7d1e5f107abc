"""Studies whose trainings are listed beforehand, not proposed: the figures of the paper, ablations.

Such a study is a folder like any other, without an event log: nothing is decided between two trainings,
so the list in study.toml and the records say everything. A run is known by its key. The same call again trains what is
missing; one with more runs adds them; a run that is there and would be another now is refused.
"""

import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dnas.arch import Spec, cost, format_name
from dnas.data import Dataset, load_dataset
from dnas.errors import InputError
from dnas.executors.job import make_job, take_result
from dnas.executors.local import LocalExecutor
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.executors.runner import COUNTED_ERRORS, TrialRunner
from dnas.executors.worker import Job
from dnas.formatting import percent
from dnas.nn.kernels import check_kernels
from dnas.study.config import LIST, RunConfig
from dnas.study.folder import StudyFolder, read_study
from dnas.study.provenance import git_commit, versions
from dnas.study.record import TrialRecord, new_record, now
from dnas.training.devices import list_devices
from dnas.training.recipe import Recipe

ARM = "listed"


@dataclass(frozen=True)
class PlannedRun:
    """One training. key: its name in the study; group: what it is compared as, such as a family or a variant.

    seed: [study seed, number] of `fit.stream_seed`; runs of one pair share chance as far as their networks let
    them. data: where its data differ from the study's, as arguments of `load_dataset`.
    """

    key: str
    group: str
    spec: Spec
    recipe: Recipe
    seed: tuple[int, int]
    data: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """What study.toml says of it; of a run that is there, all of this must stay."""
        return {
            "key": self.key,
            "group": self.group,
            "network": format_name(self.spec),
            "digest": self.spec.digest,
            "seed": list(self.seed),
            "recipe": self.recipe.to_dict(),
            "data": dict(self.data),
        }


def train_runs(
    study: str,
    title: str,
    runs: Sequence[PlannedRun],
    run_config: RunConfig,
    show: Show,
    executor: Executor | None = None,
    *,
    final: bool = False,
    command: str = "",
    about: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains those of `runs` that studies/<study>/ does not hold yet, and gives how that ended.

    executor: processes of this host, unless given. final: trains on the validation part too and then opens the test
    set, so that what is measured is `test_error`. about: further tables for study.toml. `InputError` where
    the study was begun otherwise. KeyboardInterrupt leaves it ready to go on. What failed through no fault of its
    network is trained again.
    """
    check_runs(study, runs)
    if run_config.kernels is not None:
        check_kernels(run_config.kernels)  # before there is a folder
    folder = StudyFolder(Path("studies") / study)
    devices = list_devices(run_config.device) if executor is None else (run_config.device,)
    if folder.exists:
        check_same_runs(folder, runs, final)  # before the data are read, which can take long
    facts = _describe(runs, run_config, final, show)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        config = _config(folder, title, runs, run_config, facts, final, devices[0].partition(":")[0], command)
        config |= about or {}
        if not folder.exists or folder.config() != config:
            folder.write_config(config)
        numbers = {row["key"]: number for number, row in enumerate(config["runs"])}
        executor = executor or LocalExecutor(run_config.workers, devices)
        source = ListedRuns(folder, run_config, {numbers[run.key]: run for run in runs}, facts, show, final)
        try:
            source.open()
            return TrialRunner(source, executor, show).run()
        finally:
            executor.stop()


def read_runs(study: str | Path) -> pd.DataFrame:
    """`read_study` of a study of this kind, with key, group, seed (the study seed), recipe and final (whether
    `test_error` is what was measured) of each run that has been begun."""
    from dnas.study.folder import find_study

    folder = find_study(study)
    config = folder.config()
    if config.get("kind") != LIST:
        raise InputError(f"study {folder.name} was proposed by a search; a list of runs is needed here.")
    frame, rows = read_study(folder.path), config["runs"]
    if frame.empty:
        return frame
    listed = pd.DataFrame([rows[number] for number in frame["number"]], index=frame.index)
    listed["seed"] = [seed[0] for seed in listed["seed"]]
    listed["final"] = config["objective"] == "test_error"
    return frame.assign(**{name: listed[name] for name in ("key", "group", "seed", "final")})


def check_runs(study: str, runs: Sequence[PlannedRun]) -> None:
    """`InputError` for an empty list and for two runs with one key."""
    if not runs:
        raise InputError(f"study {study} would have no run.")
    seen: set[str] = set()
    for run in runs:
        if run.key in seen:
            raise InputError(f"two runs of study {study} are called {run.key!r}; a key names one.")
        seen.add(run.key)


def check_same_runs(folder: StudyFolder, runs: Iterable[PlannedRun], final: bool) -> None:
    """`InputError` where the study in `folder` is a search, or has one of the runs with other inputs."""
    config = folder.config()
    other = f"name another study, or remove {folder.path}/"
    if config.get("kind") != LIST:
        raise InputError(f"study {folder.name} is there already, and was proposed by a search; {other}.")
    if (config["objective"] == "test_error") != final:
        part = "test" if not final else "validation"
        raise InputError(f"study {folder.name} was begun to measure on the {part} part; {other}.")
    known = {row["key"]: row for row in config["runs"]}
    for run in runs:
        then, here = known.get(run.key), run.row()
        if then is None or then == here:
            continue
        name = next(name for name in here if then.get(name) != here[name])
        before, after = then.get(name), here[name]
        if isinstance(after, dict):
            keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
            before, after = ({key: some.get(key) for key in keys} for some in (before, after))
        raise InputError(
            f"run {run.key} of study {folder.name} was begun with another {name}: {_said(before)} (now {_said(after)});"
            f" {other}."
        )


def _said(value: Any) -> str:
    return ", ".join(f"{key}={one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def _describe(runs: Iterable[PlannedRun], run_config: RunConfig, final: bool, show: Show) -> dict[str, dict[str, Any]]:
    """Key of a run -> `Dataset.describe()` of what it trains on."""
    found: dict[str, dict[str, Any]] = {}
    read: dict[str, Dataset] = {}
    for run in runs:
        arguments = run_config.data | dict(run.data)
        name = repr(sorted(arguments.items()))
        if name not in read:
            data = load_dataset(**arguments, progress=show.note)
            if final and not data.test_size:
                raise InputError(f"{data.title} has no held-out test set, which these runs are to be measured on.")
            read[name] = data.with_validation_in_training() if final else data
        data = read[name]
        has = (data.channels, data.image_size, data.classes)
        if (run.spec.in_channels, run.spec.image_size, run.spec.classes) != has:
            raise InputError(
                f"run {run.key}: its network is for {run.spec.in_channels} channels, {run.spec.image_size} pixels and"
                f" {run.spec.classes} classes, but {data.title} has {has[0]}, {has[1]} and {has[2]}."
            )
        found[run.key] = data.describe()
    return found


def _config(
    folder: StudyFolder,
    title: str,
    runs: Sequence[PlannedRun],
    run_config: RunConfig,
    facts: Mapping[str, Mapping[str, Any]],
    final: bool,
    device: str,
    command: str,
) -> dict[str, Any]:
    """What study.toml is to hold: of a study that is there, its own with the runs that are new."""
    data = {key: value for key, value in facts[runs[0].key].items() if value is not None}
    data |= {"source": run_config.data["name"], "root": str(run_config.data.get("data_root") or "")}
    if folder.exists:
        config = folder.config()
        for name in ("fingerprint", "split_seed", "subset", "image_size"):
            if name not in runs[0].data and config["data"].get(name) != data.get(name):
                what = "as its files were then" if name == "fingerprint" else f"{name} {config['data'].get(name)}"
                raise InputError(
                    f"study {folder.name} was begun with other data: {what}; name another study, or remove"
                    f" {folder.path}/."
                )
        known = {row["key"] for row in config["runs"]}
        rows = [*config["runs"], *(run.row() for run in runs if run.key not in known)]
        return config | {"runs": rows, "trials": len(rows), "command": command or config["command"]}
    return {
        "name": folder.name,
        "kind": LIST,
        "created": now(),
        "command": command,
        "trials": len(runs),
        "seed": runs[0].seed[0],
        "objective": "test_error" if final else "val_error",
        "sampler": LIST,
        "stopping": "none",
        "device": device,
        "threads": run_config.threads,
        "host": socket.gethostname(),
        **({"commit": git_commit()} if git_commit() else {}),
        "space": {"name": LIST, "title": title, "text": ""},
        "limits": {},
        "recipe": runs[0].recipe.to_dict(),
        "data": data,
        "versions": versions(),
        "runs": [run.row() for run in runs],
    }


class ListedRuns:
    """The `Source` of such a study.

    runs: number -> run.
    facts: key of a run -> `Dataset.describe()`.
    """

    def __init__(
        self,
        folder: StudyFolder,
        run_config: RunConfig,
        runs: Mapping[int, PlannedRun],
        facts: Mapping[str, Mapping[str, Any]],
        show: Show,
        final: bool = False,
    ) -> None:
        self.folder, self.run_config, self.show = folder, run_config, show
        self.runs, self.facts, self.final = runs, facts, final
        self.records: dict[int, TrialRecord] = {}
        self._interrupted: deque[TrialRecord] = deque()
        self._planned: deque[int] = deque()
        self._seconds: dict[int, dict[int, float]] = {}  # number -> epoch -> seconds

    def open(self) -> None:
        """Read the records. Interrupted runs come first, then runs without a record, in the order of the list."""
        self.records = {record.number: record for record in self.folder.records() if record.number in self.runs}
        for record in self.records.values():
            if record.state == "failed" and (record.reason or "").split(":")[0] in COUNTED_ERRORS:
                record.state, record.reason, record.ended = "running", None, None
                self.folder.write_record(record)
            if record.state == "running":
                self._catch_up(record)
                self._interrupted.append(record)
        self._planned = deque(number for number in self.runs if number not in self.records)
        self.show.opened([self.records[number] for number in sorted(self.records)], len(self.runs))

    def _catch_up(self, record: TrialRecord) -> None:
        """Take the epochs of an interrupted run from its curve: its record is as old as its start."""
        path = self.folder.trial_folder(record.number)
        if not (path / "curve.csv").is_file() or not (path / "checkpoint.pt").is_file():
            return
        curve = self.folder.curve(path)
        self._seconds[record.number] = dict(zip(curve["epoch"].tolist(), curve["seconds"].tolist(), strict=True))
        record.epochs, record.seconds = len(curve), float(curve["seconds"].sum())

    def next(self, running: list[str]) -> TrialRecord | None:
        if self._interrupted:
            return self._interrupted.popleft()
        return self._new_record(self._planned.popleft()) if self._planned else None

    def _new_record(self, number: int) -> TrialRecord:
        run = self.runs[number]
        record = new_record(
            number,
            ARM,
            {"key": run.key, "group": run.group},
            run.spec,
            cost=asdict(cost(run.spec, run.recipe.batch_size)),
            seed=list(run.seed),
            recipe=run.recipe.to_dict(),
            data=dict(self.facts[run.key]),
            epochs_planned=run.recipe.epochs,
            versions=versions(),
            commit=git_commit(),
            host=socket.gethostname(),
        )
        self.records[number] = record
        self.folder.write_record(record)
        return record

    def job(self, record: TrialRecord) -> Job:
        run_config = replace(self.run_config, data=self.run_config.data | dict(self.runs[record.number].data))
        folder = self.folder.trial_folder(record.number)
        return make_job(run_config, record, folder, str(record.number), final=self.final)

    def on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None: ...

    def on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        times = self._seconds.setdefault(record.number, {})
        times[row["epoch"]] = row["seconds"]
        record.epochs, record.val_error, record.val_loss = row["epoch"], row["val_error"], row["val_loss"]
        record.seconds = sum(seconds for epoch, seconds in times.items() if epoch <= row["epoch"])
        return True

    def on_result(self, record: TrialRecord, values: dict[str, Any]) -> None:
        take_result(record, values)
        record.state = "complete"
        if self.final:
            record.test_error, record.test_loss = values["test_error"], values["test_loss"]
            record.objectives = {"test_error": values["test_error"]}
        else:
            record.objectives = {"val_error": values["val_error"]}

    def on_retry(self, record: TrialRecord, reason: str, *, recompute: bool = False) -> None: ...

    def on_end(self, record: TrialRecord) -> None:
        if record.test_error is not None:
            self.show.note(f"#{record.number}: {percent(record.test_error)} test error")
