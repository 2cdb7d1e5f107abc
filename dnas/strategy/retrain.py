"""Final runs: retrain the best trials on training and validation data with new seeds, and measure the test error."""

import socket
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.arch import spec_from_dict
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.executors.job import make_job, take_result
from dnas.executors.process import Job
from dnas.executors.protocol import Executor, Show
from dnas.executors.runner import TrialRunner
from dnas.formatting import percent
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder
from dnas.study.provenance import git_commit, versions
from dnas.study.record import TrialRecord, new_record


def retrain_best(
    folder: StudyFolder, config: SearchConfig, data: Dataset, executor: Executor, show: Show
) -> str | None:
    """Retrain the best `config.retrain` trials, each with `config.retrain_seeds` seeds.

    Final runs that are complete are kept. Returns the reason for an early stop, if any.

    Raises:
        InputError: The data have no test set.
    """
    if not data.test_size:
        raise InputError(
            f"{data.title} has no held-out test set, which --retrain-best needs; put class folders under test/."
        )
    return TrialRunner(FinalRuns(folder, config, data), executor, _Notes(show)).run().stopped_by


class FinalRuns:
    """The `Source` of a search's final runs. The key of a run, which also names its folder, is `<trial>-<seed>`."""

    def __init__(self, folder: StudyFolder, config: SearchConfig, data: Dataset) -> None:
        self.folder, self.run_config = folder, config.run
        self.records: dict[str, TrialRecord] = {}
        for winner in folder.best(config.retrain):
            for offset in range(1, config.retrain_seeds + 1):
                seed = config.seed + offset
                record = _open_record(data, winner, seed, folder.path / "retrain" / f"{winner.number}-{seed}")
                if record.state == "running":
                    self.records[_key(record)] = record
            _write_test_error(folder, winner.number)  # missing after a kill
        self._waiting = deque(self.records.values())

    def next(self, running: list[str]) -> TrialRecord | None:
        return self._waiting.popleft() if self._waiting else None

    def job(self, record: TrialRecord) -> Job:
        key = _key(record)
        return make_job(self.run_config, record, self.folder.path / "retrain" / key, key, final=True)

    def on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None: ...

    def on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        record.epochs = row["epoch"]
        return True

    def on_result(self, record: TrialRecord, values: dict[str, Any]) -> None:
        take_result(record, values)
        record.state = "complete"
        record.test_error, record.test_loss = values["test_error"], values["test_loss"]

    def on_retry(self, record: TrialRecord, reason: str, *, recompute: bool = False) -> None: ...

    def on_end(self, record: TrialRecord) -> None:
        _write_test_error(self.folder, record.number)


def _key(record: TrialRecord) -> str:
    return f"{record.number}-{record.seed[0]}"


class _Notes:
    """Observer that shows final runs as notes, because they have no validation error and are not trials."""

    def __init__(self, show: Show) -> None:
        self.note = show.note

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...

    def began(self, record: TrialRecord) -> None:
        self.note(f"retraining #{record.number} ({record.network}) with seed {record.seed[0]}, on all training data")

    def ended(self, record: TrialRecord) -> None:
        text = f"{percent(record.test_error)} test error" if record.test_error is not None else record.reason
        self.note(f"#{record.number} seed {record.seed[0]}: {text}")


def _open_record(data: Dataset, winner: TrialRecord, seed: int, path: Path) -> TrialRecord:
    if (path / "record.json").exists():
        record = TrialRecord.from_json((path / "record.json").read_text())
        if record.recipe == winner.recipe:
            return record
        # Remove the files of a run with fewer epochs. The record is last, since without it the others would seem to
        # belong to this run.
        for file in sorted(path.iterdir(), key=lambda file: file.name == "record.json"):
            file.unlink()
    return new_record(
        winner.number,
        winner.arm,
        winner.params,
        spec_from_dict(winner.spec),
        cost=winner.cost,
        seed=[seed, winner.number],
        recipe=winner.recipe,
        data=data.with_validation_in_training().describe(),
        epochs_planned=winner.epochs_planned,
        recompute=winner.recompute,
        versions=versions(),
        commit=git_commit(),
        host=socket.gethostname(),
    )


def _write_test_error(folder: StudyFolder, number: int) -> None:
    """Write the mean test error of a trial's final runs into the trial's own record."""
    record = TrialRecord.from_json((folder.trial_folder(number) / "record.json").read_text())
    finals = [final for _, final in folder.retrained() if final.number == number]
    errors = [f.test_error for f in finals if f.recipe == record.recipe and f.test_error is not None]
    if errors and record.test_error != sum(errors) / len(errors):
        record.test_error = sum(errors) / len(errors)
        folder.write_record(record)
