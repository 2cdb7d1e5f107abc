"""A shared study: its folder, its configuration, and its data, as kept in the database and the shared folder."""

import json
import tomllib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from dnas.cluster.database import Storage
from dnas.data import Dataset, load_dataset
from dnas.errors import InputError
from dnas.executors.shared_storage import Shared
from dnas.formatting import redact
from dnas.io import write_atomic
from dnas.search.driver import check_fits
from dnas.search.state import ENDED
from dnas.study.config import SearchConfig, check_objectives, data_arguments_of, frozen_inputs, objectives_of, space_of
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord

FILES = ("checkpoint.pt", "curve.csv", "norms.npz", "traceback.txt")
ANY_NUMBER = 10**6  # of trainings at once: as many as the workers take


# --- the study ----------------------------------------------------------------------------------------------------


class StoredStudy(StudyFolder):
    """A study folder whose truth is in a database: each write goes there first, and then into the local files."""

    def __init__(self, path: Path, storage: Storage, shared: Shared, note: Callable[[str], None]) -> None:
        super().__init__(path)
        self.storage, self.shared, self.note = storage, shared, note
        self._events = 0

    def sync(self) -> None:
        """Makes the local config, log and records what the database holds."""
        found = self.storage.read()
        if found is None:
            raise self.storage.missing()
        id, text, _ = found
        if self.exists and self.config().get("storage", {}).get("id") != id:
            raise InputError(
                f"{self.path} is another study than the {self.name} in {self.storage}; move it away, or start in"
                " another folder."
            )
        lines = self.storage.events()
        write_atomic(self.path / "study.toml", text)
        write_atomic(self.path / "events.jsonl", "".join(f"{line}\n" for line in lines))
        records = self.storage.records()
        for name, body in records.items():
            write_atomic(self.path / name, body)
        for path in (*self.path.glob("trials/*/record.json"), *self.path.glob("retrain/*/record.json")):
            if path.relative_to(self.path).as_posix() not in records:
                path.unlink()  # of a database that was set back
        self._events = len(lines)

    def now(self) -> str:
        return self.storage.now()

    def write_config(self, config: Mapping[str, Any]) -> None:
        self.storage.write_config(tomli_w.dumps(config, multiline_strings=True))
        super().write_config(config)

    def append(self, event: Mapping[str, Any]) -> None:
        line = self.storage.append(self._events, event)
        self._events += 1
        super().append(json.loads(line))  # its time comes with it

    def write_record(self, record: TrialRecord, folder: Path | None = None) -> None:
        folder = folder or self.trial_folder(record.number)
        key = None if record.state == "running" else folder.name
        body = record.to_json()
        self.storage.write_record((folder / "record.json").relative_to(self.path).as_posix(), body, key)
        super().write_record(record, folder)
        if record.state in ENDED:
            try:
                self.publish(record, folder.name)
            except Exception as error:  # the study's end tries again
                self.note(f"record {folder.name} could not be put into {self.shared}: {_line(error)}")

    def publish(self, record: TrialRecord, key: str) -> None:
        """Puts an ended trial's record into the shared folder, where there is none of it."""
        name = f"{self.name}/records/{key}-{record.epochs_planned}.json"
        if self.shared.create(name, record.to_json().encode()):
            return
        there = TrialRecord.from_json(self.shared.read(name) or b"{}")
        if (there.state, there.digest, there.weights_digest) != (record.state, record.digest, record.weights_digest):
            self.note(f"{self.shared} holds another record of {key}, {there.state}; the one in the database counts")

    def clear_up(self) -> None:
        """At the end: every record is in the shared folder, and no checkpoint but those of paused trials."""
        ended = {str(record.number): record for record in self.records() if record.state in ENDED}
        ended |= {path.name: record for path, record in self.retrained() if record.state in ENDED}
        there = set(self.shared.names(f"{self.name}/records"))
        for key, record in ended.items():
            if f"{key}-{record.epochs_planned}.json" not in there:
                self.publish(record, key)
        for key in self.storage.checkpointed():
            if key in ended:
                self.shared.remove(f"{self.name}/checkpoints/{key}")
                self.storage.forget_checkpoints(key)

    def pull(self) -> None:
        """Rebuilds the folder: what the database holds, and the files of every training that ended."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.sync()
        for key, name in self.storage.results().items():
            folder = self.path / ("retrain" if "-" in key else "trials") / key
            mark = folder / ".from"  # which of its results this one is
            if mark.exists() and mark.read_text() == name:
                continue
            there = self.shared.names(name)
            for file in FILES:
                if file not in there or not self.shared.get(f"{name}/{file}", folder / file):
                    (folder / file).unlink(missing_ok=True)
            write_atomic(mark, name)


def begin(storage: Storage, shared: Shared, options: SearchConfig, device: str, note: Callable[[str], None]) -> None:
    """Begins the study in the database, unless another host has by now."""
    data = load_dataset(**options.run.data, progress=note)
    space = options.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    check_fits(space)
    check_objectives(space, options.objectives)
    id = uuid.uuid4().hex
    config = frozen_inputs(options, space, data.describe(), device)
    config["data"]["root"] = ""  # each host has its own
    config["created"] = storage.now()
    config["retrain"] = {"best": options.retrain, "seeds": options.retrain_seeds}
    secret = redact(shared.address) != shared.address
    config["storage"] = {"id": id, "shared": "" if secret else shared.address}
    shared.write(f"{options.study}/{id}", b"")  # before the study is there: it is never without
    storage.create(id, tomli_w.dumps(config, multiline_strings=True))


def read_config(storage: Storage) -> dict[str, Any]:
    found = storage.read()
    if found is None:
        raise storage.missing()
    return tomllib.loads(found[1])


def shared_of(config: Mapping[str, Any], given: str | None) -> Shared:
    """The shared folder of a study in a database, as this host sees it; `InputError` where it is another one."""
    name, id = config["name"], config["storage"]["id"]
    address = given or config["storage"]["shared"]
    if not address:
        raise InputError(f"the address of the shared folder of {name} holds a secret, so give it: --shared URL.")
    shared = Shared(address)
    shared.check()
    if shared.read(f"{name}/{id}") is None:
        raise InputError(
            f"{shared} is not the shared folder of study {name}, which lies at"
            f" {config['storage']['shared'] or 'an address that holds a secret'}; all hosts must see the same one."
        )
    return shared


def options_of(config: Mapping[str, Any], own: SearchConfig) -> SearchConfig:
    """The study as it was begun, on this host. own: what is the host's (data root, device, timeout, mirror)."""
    return replace(
        own,
        run=replace(
            own.run,
            data=data_arguments_of(config) | {"data_root": own.run.data["data_root"]},
            workers=ANY_NUMBER,
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
        command=config["command"],
    )


def load_data(config: Mapping[str, Any], options: SearchConfig, note: Callable[[str], None]) -> Dataset:
    """This host's copy of the study's data; `InputError` where it is another."""
    data = load_dataset(**options.run.data, progress=note)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise InputError(
            f"{data.title} on this host has other files than study {config['name']} was begun with (fingerprint"
            f" {data.fingerprint}, not {config['data']['fingerprint']}); give it the same data: --data-root."
        )
    return data


def _line(error: BaseException) -> str:
    return redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
