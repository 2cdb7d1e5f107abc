"""A study shared by several hosts: its local folder, and its configuration and data from the database."""

import json
import tomllib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from dnas.cluster import proposer, queries
from dnas.cluster.database import Database
from dnas.data import Dataset, load_dataset
from dnas.errors import InputError
from dnas.executors.shared_storage import SharedStorage
from dnas.formatting import first_line, redact
from dnas.io import write_atomic
from dnas.space.objectives import extra_metrics
from dnas.space.space import check_fits
from dnas.strategy.state import ENDED
from dnas.study.config import (
    UNLIMITED_WORKERS,
    SearchConfig,
    check_objectives,
    data_arguments_of,
    frozen_inputs,
    objectives_of,
    space_of,
)
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from dnas.training.metrics import check_measurable

FILES = ("checkpoint.pt", "curve.csv", "norms.npz", "traceback.txt")


# --- the study ----------------------------------------------------------------------------------------------------


class StoredStudy(StudyFolder):
    """Local copy of a study that is stored in a database. Each write goes to the database before the local file."""

    def __init__(self, path: Path, database: Database, shared: SharedStorage, note: Callable[[str], None]) -> None:
        super().__init__(path)
        self.database, self.shared, self.note = database, shared, note
        self._events = 0

    def sync(self) -> None:
        """Make the local config, log and records equal to the database's."""
        row = queries.read_study(self.database)
        if row is None:
            raise queries.missing_study(self.database)
        id, text, _ = row
        if self.exists and self.config().get("storage", {}).get("id") != id:
            raise InputError(
                f"{self.path} is another study than the {self.name} in {self.database}; move it away, or start in"
                " another folder."
            )
        lines = queries.read_events(self.database)
        write_atomic(self.path / "study.toml", text)
        write_atomic(self.path / "events.jsonl", "".join(f"{line}\n" for line in lines))
        records = queries.read_records(self.database)
        for name, body in records.items():
            write_atomic(self.path / name, body)
        for path in (*self.path.glob("trials/*/record.json"), *self.path.glob("retrain/*/record.json")):
            if path.relative_to(self.path).as_posix() not in records:
                path.unlink()  # the database was restored to an earlier state
        self._events = len(lines)

    def now(self) -> str:
        return self.database.now()

    def write_config(self, config: Mapping[str, Any]) -> None:
        proposer.write_config(self.database, tomli_w.dumps(config, multiline_strings=True))
        super().write_config(config)

    def append(self, event: Mapping[str, Any]) -> None:
        line = proposer.append_event(self.database, self._events, event)
        self._events += 1
        super().append(json.loads(line))  # the line includes the database's time

    def write_record(self, record: TrialRecord, folder: Path | None = None) -> None:
        folder = folder or self.trial_folder(record.number)
        ended = None if record.state == "running" else folder.name
        path = (folder / "record.json").relative_to(self.path).as_posix()
        proposer.write_record(self.database, path, record.to_json(), ended)
        super().write_record(record, folder)
        if record.state in ENDED:
            try:
                self.publish(record, folder.name)
            except Exception as error:  # retried at the end of the study
                self.note(f"cannot write record {folder.name} to {self.shared}: {first_line(error)}")

    def publish(self, record: TrialRecord, key: str) -> None:
        """Write an ended trial's record to the shared storage unless it is there."""
        name = f"{self.name}/records/{key}-{record.epochs_planned}.json"
        if self.shared.create(name, record.to_json().encode()):
            return
        other = TrialRecord.from_json(self.shared.read(name) or b"{}")
        if (other.state, other.digest, other.weights_digest) != (record.state, record.digest, record.weights_digest):
            self.note(f"{self.shared} holds another record of {key}, {other.state}; the one in the database counts")

    def clear_up(self) -> None:
        """Publish the records that are missing from the shared storage and remove the ended trials' checkpoints."""
        ended = {str(record.number): record for record in self.records() if record.state in ENDED}
        ended |= {path.name: record for path, record in self.retrained() if record.state in ENDED}
        published = set(self.shared.names(f"{self.name}/records"))
        for key, record in ended.items():
            if f"{key}-{record.epochs_planned}.json" not in published:
                self.publish(record, key)
        for key in proposer.checkpointed_keys(self.database):
            if key in ended:
                self.shared.remove(f"{self.name}/checkpoints/{key}")
                proposer.forget_checkpoints(self.database, key)

    def pull(self) -> None:
        """Rebuild the local folder from the database, with the files of every ended training run."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.sync()
        for key, name in queries.read_results(self.database).items():
            folder = self.path / ("retrain" if "-" in key else "trials") / key
            source = folder / ".from"  # the result that the local files were copied from
            if source.exists() and source.read_text() == name:
                continue
            stored = self.shared.names(name)
            for file in FILES:
                if file not in stored or not self.shared.get(f"{name}/{file}", folder / file):
                    (folder / file).unlink(missing_ok=True)
            write_atomic(source, name)


def create_study(
    database: Database, shared: SharedStorage, options: SearchConfig, device: str, note: Callable[[str], None]
) -> None:
    """Create the study in the database unless another host has created it meanwhile.

    Args:
        database: the study's database.
        shared: storage for checkpoints and results that all hosts see.
        options: settings of the search, as given on the command line.
        device: kind of device that trains, `cpu` or `cuda`.
        note: receives messages for the user.
    """
    data = load_dataset(**options.run.data, progress=note)
    space = options.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    check_fits(space)
    check_objectives(space, options.objectives)
    check_measurable(data, extra_metrics(options.objectives))
    id = uuid.uuid4().hex
    config = frozen_inputs(options, space, data.describe(), device)
    config["data"]["root"] = ""  # each host has its own
    config.pop("workers", None)  # each host has its own number
    config["created"] = database.now()
    config["retrain"] = {"best": options.retrain, "seeds": options.retrain_seeds}
    secret = redact(shared.address) != shared.address
    config["storage"] = {"id": id, "shared": "" if secret else shared.address}
    shared.write(f"{options.study}/{id}", b"")  # first, so that the study never exists without it
    queries.create_study(database, id, tomli_w.dumps(config, multiline_strings=True))


def read_config(database: Database) -> dict[str, Any]:
    """Return the study's configuration; raise `InputError` if the study does not exist."""
    row = queries.read_study(database)
    if row is None:
        raise queries.missing_study(database)
    return tomllib.loads(row[1])


def shared_of(config: Mapping[str, Any], address: str | None) -> SharedStorage:
    """Return the study's shared storage as this host sees it; raise `InputError` if `address` is another one."""
    name, id = config["name"], config["storage"]["id"]
    address = address or config["storage"]["shared"]
    if not address:
        raise InputError(
            f"the address of the shared storage of study {name} contains a secret and is not stored; give it as"
            " --shared URL."
        )
    shared = SharedStorage(address)
    shared.check()
    if shared.read(f"{name}/{id}") is None:
        raise InputError(
            f"{shared} is not the shared storage of study {name}, which is"
            f" {config['storage']['shared'] or 'at an address that contains a secret'}; all hosts must use the same"
            " one."
        )
    return shared


def options_of(config: Mapping[str, Any], host: SearchConfig) -> SearchConfig:
    """Return the study's options on this host. host: options of this host (data root, device, timeout, mirror)."""
    return replace(
        host,
        run=replace(
            host.run,
            data=data_arguments_of(config) | {"data_root": host.run.data["data_root"]},
            workers=UNLIMITED_WORKERS,
            threads=config["threads"],
        ),
        space=space_of(config),
        study=config["name"],
        trials=config["trials"],
        seed=config["seed"],
        objectives=objectives_of(config),
        sampler=config["sampler"],
        control=config["control"],
        stopping=config["stopping"],
        retrain=config["retrain"]["best"],
        retrain_seeds=config["retrain"]["seeds"],
    )


def load_data(config: Mapping[str, Any], options: SearchConfig, note: Callable[[str], None]) -> Dataset:
    """Load this host's copy of the study's data; raise `InputError` if its files are others."""
    data = load_dataset(**options.run.data, progress=note)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise InputError(
            f"{data.title} on this host has other files than study {config['name']} was started with (fingerprint"
            f" {data.fingerprint}, not {config['data']['fingerprint']}); give the folder of the same data: --data-root."
        )
    return data
