"""Batches: studies whose runs are listed beforehand instead of proposed, such as the paper's figures and ablations.

A batch is a study folder without an event log. No decisions are made between runs, so that the list in study.toml and
the records are sufficient. A run is identified by its key. Another call of `train_runs` trains the missing runs, and a
longer list adds runs. A recorded run whose inputs have changed is refused.
"""

import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dnas.arch import cost
from dnas.batch.planned import PlannedRun, check_runs, check_same_runs
from dnas.data import Dataset, load_dataset
from dnas.errors import InputError
from dnas.executors.job import make_job, take_result
from dnas.executors.local import LocalExecutor
from dnas.executors.process import Job
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.executors.runner import COUNTED_ERRORS, TrialRunner
from dnas.formatting import percent
from dnas.nn.kernels import check_kernels
from dnas.study.config import LIST, RunConfig, run_facts, without_none
from dnas.study.folder import StudyFolder
from dnas.study.provenance import git_commit, versions
from dnas.study.record import TrialRecord, new_record, now
from dnas.training.devices import list_devices

ARM = "listed"


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
    """Train the runs of a batch that are missing in studies/<study>/.

    Runs that failed for a reason outside their network are retrained. After a KeyboardInterrupt the next call resumes.

    Args:
        study: Name of the study.
        title: Title of the study.
        runs: The runs.
        run_config: Settings of all runs.
        show: Observer of the runs, such as a display.
        executor: Executes the runs; by default in processes on this host.
        final: Train on training and validation data, and measure `test_error` on the test set.
        command: Command line that repeats the runs, for study.toml. Not needed for ablations and reproductions.
        about: Further tables for study.toml.

    Raises:
        InputError: The study was started with other inputs, or the runs do not fit the data.
    """
    check_runs(study, runs)
    if run_config.kernels is not None:
        check_kernels(run_config.kernels)  # before the folder is created
    folder = StudyFolder(Path("studies") / study)
    devices = list_devices(run_config.device) if executor is None else (run_config.device,)
    if folder.exists:
        check_same_runs(folder, runs, final)  # before reading the data, which can be slow
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


def _describe(runs: Iterable[PlannedRun], run_config: RunConfig, final: bool, show: Show) -> dict[str, dict[str, Any]]:
    """Return `Dataset.describe()` of the data of each run, by key."""
    descriptions: dict[str, dict[str, Any]] = {}
    loaded: dict[str, Dataset] = {}
    for run in runs:
        arguments = run_config.data | dict(run.data)
        name = repr(sorted(arguments.items()))
        if name not in loaded:
            data = load_dataset(**arguments, progress=show.note)
            if final and not data.test_size:
                raise InputError(f"{data.title} has no held-out test set to measure these runs on.")
            loaded[name] = data.with_validation_in_training() if final else data
        data = loaded[name]
        shape = (data.channels, data.image_size, data.classes)
        if (run.spec.in_channels, run.spec.image_size, run.spec.classes) != shape:
            raise InputError(
                f"run {run.key}: its network is for {run.spec.in_channels} channels, {run.spec.image_size} pixels and"
                f" {run.spec.classes} classes, but {data.title} has {shape[0]}, {shape[1]} and {shape[2]}."
            )
        descriptions[run.key] = data.describe()
    return descriptions


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
    """Return the content of study.toml; for an existing study, its content with new runs added."""
    data = {key: value for key, value in facts[runs[0].key].items() if value is not None}
    data |= {"source": run_config.data["name"], "root": str(run_config.data.get("data_root") or "")}
    if folder.exists:
        config = folder.config()
        for name in ("fingerprint", "split_seed", "subset", "image_size"):
            if name not in runs[0].data and config["data"].get(name) != data.get(name):
                difference = "its files have changed" if name == "fingerprint" else f"{name} {config['data'].get(name)}"
                raise InputError(
                    f"study {folder.name} was started with other data: {difference}; name another study, or remove"
                    f" {folder.path}/."
                )
        known = {row["key"] for row in config["runs"]}
        rows = [*config["runs"], *(run.row() for run in runs if run.key not in known)]
        changes = {"runs": rows, "trials": len(rows), **({"command": command} if command else {})}
        return without_none({**config, **changes, **run_facts(run_config)})
    return without_none(
        {
            "name": folder.name,
            "kind": LIST,
            "created": now(),
            "command": command or None,
            "trials": len(runs),
            "seed": runs[0].seed[0],
            "objective": "test_error" if final else "val_error",
            "sampler": LIST,
            "stopping": "none",
            "device": device,
            **run_facts(run_config),
            "host": socket.gethostname(),
            "commit": git_commit(),
            "space": {"name": LIST, "title": title, "text": ""},
            "limits": {},
            "recipe": runs[0].recipe.to_dict(),
            "data": data,
            "versions": versions(),
            "runs": [run.row() for run in runs],
        }
    )


class ListedRuns:
    """The `Source` of a batch.

    Args:
        folder: The study.
        run_config: Settings of all runs.
        runs: Number -> run.
        facts: Key of a run -> `Dataset.describe()`.
        show: Observer of the runs.
        final: Train on training and validation data, and measure `test_error` on the test set.
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
        """Read the finished epochs of an interrupted run from its curve, which is newer than its record."""
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
