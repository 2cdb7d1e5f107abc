"""The final trainings: the best again, on training and validation data, from fresh seeds. They open the test set."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.arch import spec_from_dict
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.executors.job import make_job, take
from dnas.executors.protocol import Outcome, Show
from dnas.executors.runner import Trainings
from dnas.executors.worker import Job
from dnas.formatting import percent
from dnas.study.provenance import git_commit, versions
from dnas.study.record import TrialRecord, new_record

if TYPE_CHECKING:
    from dnas.search.driver import Driver


def retrain_best(driver: "Driver", data: Dataset) -> str | None:
    """Trains the best `config.retrain` again, from `config.retrain_seeds` seeds each; what is done stays. Why it
    stopped early, if it did."""
    if not data.test_size:
        raise InputError(
            f"{data.title} has no held-out test set, which --retrain-best measures on; put class folders under test/."
        )
    return FinalTrainings(driver, data).run().stopped_by


class FinalTrainings(Trainings):
    """The final trainings of a search. One is known by its trial's number and its seed: `17-1`, its folder's name."""

    def __init__(self, driver: "Driver", data: Dataset) -> None:
        super().__init__()
        self.driver, self.folder, self.run_config, self.executor = (
            driver,
            driver.folder,
            driver.run_config,
            driver.executor,
        )
        self.show = _Notes(driver.show)
        self._finals: dict[str, TrialRecord] = {}
        for winner in self.folder.best(driver.config.retrain):
            for offset in range(1, driver.config.retrain_seeds + 1):
                seed = driver.config.seed + offset
                record = _opened(data, winner, seed, self.folder.path / "retrain" / f"{winner.number}-{seed}")
                if record.state == "running":
                    self._finals[self._key(record)] = record
                    self.waiting.append(record)
            _write_test_error(driver, winner.number)  # a kill may have come before it

    def _record(self, key: str) -> TrialRecord:
        return self._finals[key]

    def _key(self, record: TrialRecord) -> str:
        return f"{record.number}-{record.seed[0]}"

    def _path(self, record: TrialRecord) -> Path:
        return self.folder.path / "retrain" / self._key(record)

    def _job(self, record: TrialRecord) -> Job:
        return make_job(self.run_config, record, self._path(record), self._key(record), final=True)

    def _next(self, outcome: Outcome) -> TrialRecord | None:
        return self.waiting.popleft() if self.waiting else None

    def _on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        record.epochs = row["epoch"]
        return True

    def _finish(self, record: TrialRecord, values: dict[str, Any]) -> None:
        take(record, values)
        record.state = "complete"
        record.test_error, record.test_loss = values["test_error"], values["test_loss"]
        self._end(record)

    def _emit_tell(self, record: TrialRecord) -> None:
        _write_test_error(self.driver, record.number)


class _Notes:
    """A display of the search's trials has no place for these: it gets lines. They have no validation error."""

    def __init__(self, show: Show) -> None:
        self.note = show.note

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...

    def began(self, record: TrialRecord) -> None:
        self.note(
            f"training #{record.number} ({record.network}) again with seed {record.seed[0]}, on all training data"
        )

    def ended(self, record: TrialRecord) -> None:
        text = f"{percent(record.test_error)} test error" if record.test_error is not None else record.reason
        self.note(f"#{record.number} seed {record.seed[0]}: {text}")


def _opened(data: Dataset, winner: TrialRecord, seed: int, path: Path) -> TrialRecord:
    if (path / "record.json").exists():
        record = TrialRecord.from_json((path / "record.json").read_text())
        if record.recipe == winner.recipe:
            return record
        for old in sorted(path.iterdir(), key=lambda old: old.name == "record.json"):  # of fewer epochs
            old.unlink()  # the record last: without it the rest would be taken for this training's
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


def _write_test_error(driver: "Driver", number: int) -> None:
    """The trial's own record gets the mean over its final trainings."""
    record = driver.records[number]
    finals = [final for _, final in driver.folder.retrained() if final.number == number]
    errors = [f.test_error for f in finals if f.recipe == record.recipe and f.test_error is not None]
    if errors and record.test_error != sum(errors) / len(errors):
        record.test_error = sum(errors) / len(errors)
        driver.folder.write_record(record)
