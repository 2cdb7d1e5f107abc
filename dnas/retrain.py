"""The final trainings: the best again, on training and validation data, from fresh seeds. They open the test set."""

import socket
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.arch import spec_from_dict
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.files import DiskFull
from dnas.inputs import git_commit, versions
from dnas.jobs import make_job, take
from dnas.study import TrialRecord, new_record
from dnas.wording import percent

if TYPE_CHECKING:
    from dnas.search import Driver

LOST_WORKERS = 3  # so often a training whose process died is gone on with


def retrain_best(driver: "Driver", data: Dataset) -> None:
    """Trains the best `options.retrain` again, from `options.retrain_seeds` seeds each; what is done stays."""
    if not data.test_size:
        raise InputError(
            f"{data.title} has no held-out test set, which --retrain-best measures on; put class folders under test/."
        )
    options, folder, executor = driver.options, driver.folder, driver.executor
    waiting: deque[tuple[TrialRecord, Path]] = deque()
    for winner in folder.best(options.retrain):
        for offset in range(1, options.retrain_seeds + 1):
            seed = options.seed + offset
            path = folder.path / "retrain" / f"{winner.number}-{seed}"
            record = _record(data, winner, seed, path)
            if record.state == "running":
                waiting.append((record, path))
        _write_test_error(driver, winner.number)  # a kill may have come before it
    running: dict[str, tuple[TrialRecord, Path]] = {}
    while waiting or executor.running:
        while waiting and len(executor.running) < min(options.workers, executor.workers):
            record, path = waiting[0]
            if not executor.room(make_job(options, record, path, path.name, final=True)):
                break
            waiting.popleft()
            record.started, record.attempts = record.started or folder.now(), record.attempts + 1
            record.threads = options.threads
            folder.write_record(record, path)
            running[path.name] = record, path
            executor.start(make_job(options, record, path, path.name, final=True))
            driver.show.note(
                f"training #{record.number} ({record.network}) again with seed {record.seed[0]}, on all training data"
            )
        for key, message in executor.wait(timeout=1.0):
            record, path = running[key]
            values = message.values
            match message.kind:
                case "started":
                    record.device, record.host = values["device"], values.get("host", record.host)
                case "epoch":
                    executor.answer(key, True)
                case "done":
                    take(record, values)
                    record.state, record.test_error, record.test_loss = (
                        "complete",
                        values["test_error"],
                        values["test_loss"],
                    )
                case "lost" if values.get("restarted"):
                    record.losses += 1
                    if record.losses >= LOST_WORKERS:
                        executor.kill(key)
                        record.state, record.reason = "failed", f"lost worker: {values['text']}"
                case "lost" if record.losses + 1 < LOST_WORKERS:
                    record.losses += 1
                    waiting.appendleft((record, path))
                case "failed" if values["reason"] == "disk full":
                    raise DiskFull(values["text"])
                case "failed" if values["reason"] == "out of memory" and not record.recompute:
                    record.recompute = True
                    waiting.appendleft((record, path))
                case "failed" | "lost":
                    record.state, record.reason = "failed", f"{values.get('reason', 'lost worker')}: {values['text']}"
            if record.state != "running":
                record.ended = folder.now()
                folder.write_record(record, path)
                _write_test_error(driver, record.number)
                text = f"{percent(record.test_error)} test error" if record.test_error is not None else record.reason
                driver.show.note(f"#{record.number} seed {record.seed[0]}: {text}")


def _record(data: Dataset, winner: TrialRecord, seed: int, path: Path) -> TrialRecord:
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
