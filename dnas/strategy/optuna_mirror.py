"""Mirror of a study in Optuna's own schema, for optuna-dashboard and other programs that read Optuna studies.

    optuna-dashboard sqlite:///studies/<name>/study.db

While a search runs, a separate thread builds the mirror from the event log and the records. dnas never reads it, and it
can be rebuilt at any time. After each pass it equals a mirror built from scratch: a trial's rows are a function of its
record and its events, and the rows of a trial that changed are rewritten.

| dnas | Optuna | reason |
|---|---|---|
| running | RUNNING | |
| paused | PRUNED | Optuna has no such state; a promotion changes it back to RUNNING |
| stopped | PRUNED | |
| complete | COMPLETE | more epochs change it back to RUNNING |
| infeasible, failed | FAIL | the attribute `reason` holds the cause |

Optuna itself never changes a trial that has ended, so that readers may cache such trials. They show a resumed trial as
running only after the page of optuna-dashboard is reloaded, or after another call of `optuna.load_study`.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError
from dnas.strategy.mirroring import Keeper, LogReader, stamp
from dnas.strategy.optuna_storage import (
    IDENTITY,
    cause_of,
    check_url,
    described,
    is_sound,
    local_storage,
    named_storage,
    shown_url,
)
from dnas.strategy.state import Trial, before_changes
from dnas.study.config import DEFAULTS, objectives_of
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

NO_MIRROR = "none"
NAME = "study.db"
OPENING_SECONDS = 30.0  # time limit for connecting to a database
CLOSING_SECONDS = 10.0  # time limit for the last pass, at the end of a search
FINGERPRINT = "dnas:fingerprint"  # system attribute of a trial, which dashboards do not show
CHUNK = 500  # trials per statement, as databases limit the number of variables
STATES = {
    "running": "RUNNING",
    "paused": "PRUNED",
    "stopped": "PRUNED",
    "complete": "COMPLETE",
    "infeasible": "FAIL",
    "failed": "FAIL",
}


# --- while a search runs ------------------------------------------------------------------------------------------


def check_mirror(url: str) -> None:
    """Raise `InputError` if `url` is neither the URL of a storage nor `NO_MIRROR`. Does not import Optuna."""
    if url != NO_MIRROR:
        check_url(url)


@contextmanager
def open_mirror(folder: StudyFolder, url: str | None, note: Callable[[str], None]) -> Iterator[None]:
    """Keep the mirror up to date inside the `with` block, and update it a last time at the end.

    A study.db that is damaged or belongs to another study is rebuilt. Later errors are reported once, and each pass
    tries again.

    Args:
        folder: Folder of the study.
        url: URL of an Optuna storage; None for study.db in the study's folder, "none" for no mirror.
        note: Called with the text of the first later error.

    Raises:
        InputError: The storage cannot be used, or holds another study of this name.
    """
    if url == NO_MIRROR:
        yield
        return
    keeper = _Keeper(folder, url, note)
    try:
        keeper.open()
        yield
    finally:
        keeper.close()


class _Keeper:
    """A mirror that a thread keeps up to date, with the state that only the thread uses."""

    def __init__(self, folder: StudyFolder, url: str | None, note: Callable[[str], None]) -> None:
        self._folder, self._url, self._note = folder, url, note
        self._mirror: Mirror | None = None
        self._refusal: BaseException | None = None
        self._opened = threading.Event()
        self._keeper = Keeper("mirror", self._pass, self._drop, self._report)

    def open(self) -> None:
        """Start the thread. For a URL, wait until the storage is open, and raise an error if it cannot be used."""
        self._keeper.start()
        if self._url is None:
            return
        if not self._opened.wait(OPENING_SECONDS):
            raise InputError(
                f"--mirror {shown_url(self._url)} has not answered for {OPENING_SECONDS:.0f} s; check that it is"
                " running and that no firewall blocks it, or use --mirror none."
            )
        if self._refusal is not None:
            raise self._refusal

    def close(self) -> None:
        """Wait for the last pass for at most `CLOSING_SECONDS`."""
        self._keeper.close(CLOSING_SECONDS if self._url is None or self._opened.is_set() else 0.0)

    def _pass(self, last: bool) -> None:
        if self._url is not None and not self._opened.is_set():
            try:
                self._mirror = Mirror(self._folder, self._url)
            except BaseException as error:  # raised by `open`
                self._refusal = error
            self._opened.set()
        if self._refusal is not None:
            return
        if self._mirror is not None and self._mirror.is_gone():
            self._drop()
        if self._mirror is None:
            self._mirror = Mirror(self._folder, self._url)
        self._mirror.sync()

    def _drop(self) -> None:
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.close()

    def _report(self, error: Exception) -> None:
        location = self._folder.path / NAME if self._url is None else shown_url(self._url)
        self._note(f"the mirror in {location} is out of date ({cause_of(error)}); the search continues and retries")


def sync_mirror(folder: StudyFolder, storage_url: str | None = None) -> int:
    """Update the mirror in one pass; return the number of changed trials. URL None is the study's own study.db."""
    mirror = Mirror(folder, storage_url)
    try:
        return mirror.sync()
    finally:
        mirror.close()


def mirror_agrees(folder: StudyFolder) -> bool:
    """Return True if the study's own study.db matches its log and records. Nothing is changed."""
    if not is_sound(folder.path / NAME, folder.name, identity_of(folder)):
        return False
    mirror = Mirror(folder, None)
    try:
        return mirror.agrees()
    finally:
        mirror.close()


def remove_mirror(folder: StudyFolder) -> None:
    """Remove the study's own study.db and SQLite's files beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        (folder.path / f"{NAME}{suffix}").unlink(missing_ok=True)


# --- conversion of trials -----------------------------------------------------------------------------------------


def mirrored(record: TrialRecord, trial: Trial, objectives: tuple[str, ...]) -> "FrozenTrial":
    """Convert a trial to Optuna's form, from its record and its events alone."""
    from optuna.trial import FrozenTrial, TrialState

    state = TrialState[STATES[record.state]]
    values = None
    if record.state in ("complete", "stopped", "paused"):
        values = [float(_value(record, name)) for name in objectives]
    attributes: dict[str, Any] = {
        "network": record.network,
        "digest": record.digest,
        "params": record.cost["params"],
        "macs": record.cost["macs"],
        "val_error": record.val_error,
        "epochs": record.epochs,
        "seconds": record.seconds,
        "arm": record.arm,
        "reason": record.reason,
        "state": record.state,
    }
    if record.state == "running" and (reached := trial.reached()):  # the record is not written at every epoch
        attributes |= {name: reached[name] for name in ("epochs", "val_error", "seconds")}
    params = {name: value for name, value in record.params.items() if name in record.distributions}
    rows = sorted(trial.curve.items()) if len(objectives) == 1 else []
    frozen = FrozenTrial(
        number=record.number,
        trial_id=-1,
        state=state,
        value=None,
        values=values,
        params=params,
        distributions={name: _distribution(record.distributions[name]) for name in params},
        intermediate_values={epoch: float(row[objectives[0]]) for epoch, row in rows},
        datetime_start=_local(record.started or trial.asked or ""),
        datetime_complete=_local(record.ended or trial.last or "") if state.is_finished() else None,
        user_attrs={name: value for name, value in attributes.items() if value is not None},
        system_attrs={},
    )
    frozen.system_attrs[FINGERPRINT] = _fingerprint(frozen, record.distributions)
    return frozen


def _value(record: TrialRecord, name: str) -> float:
    """Return an objective's value, for a paused trial the last known one."""
    if name in record.objectives:
        return record.objectives[name]
    value = record.measured(name)
    if value is None:
        raise ValueError(f"trial {record.number} is {record.state} without {name}")
    return float(value)


@cache
def _distribution(text: str) -> "BaseDistribution":
    from optuna.distributions import json_to_distribution

    return json_to_distribution(text)


def _local(moment: str) -> datetime:
    """Convert a timestamp to local time without a time zone, as Optuna stores it."""
    return datetime.fromisoformat(moment).astimezone().replace(tzinfo=None)


def _fingerprint(trial: "FrozenTrial", distributions: Mapping[str, str]) -> str:
    content = (
        trial.state.name,
        trial.values,
        trial.params,
        [distributions[name] for name in trial.params],
        list(trial.intermediate_values.items()),
        trial.user_attrs,
        str(trial.datetime_start),
        str(trial.datetime_complete),
    )
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def identity_of(folder: StudyFolder) -> dict[str, Any]:
    """Return the fields that distinguish studies of one name, with the space that the study started with."""
    config = first = folder.config()
    with (
        suppress(FileNotFoundError, ValueError, KeyError, TypeError),
        (folder.path / "events.jsonl").open("rb") as file,
    ):
        first = before_changes(config, (json.loads(line) for line in file if b'"before"' in line))
    return {"created": config["created"], "seed": config["seed"], "space": first["space"]["name"]}


# --- the database -------------------------------------------------------------------------------------------------


class Mirror:
    """An open mirror, at the `url` of an Optuna storage or, if it is None, in the study's own study.db.

    Optuna's storage API cannot change a trial that has ended, and executes one statement per value. Rows are therefore
    written through its table definitions, with one transaction per pass.
    """

    def __init__(self, folder: StudyFolder, url: str | None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # keep the terminal for the search's output
        self.folder, self.objectives = folder, objectives_of(DEFAULTS | folder.config())
        identity = identity_of(folder)
        self._path = (folder.path / NAME).resolve() if url is None else None
        self._inode = 0
        self._log = LogReader(folder.path / "events.jsonl")
        self._stamps: dict[int, tuple[int, ...] | None] = {}
        self._known: dict[int, tuple[int, str]] = {}  # number -> (Optuna's trial id, fingerprint)
        if url is not None:
            self._storage = named_storage(url)
        else:
            assert self._path is not None
            if self._path.exists() and not is_sound(self._path, folder.name, identity):
                remove_mirror(folder)
            self._storage = local_storage(self._path)
            self._inode = self._path.stat().st_ino
        try:
            self._study_id = self._open_study(identity, url)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def is_gone(self) -> bool:
        """Return True if study.db was removed or replaced since it was opened."""
        try:
            return self._path is not None and self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _open_study(self, identity: Mapping[str, Any], url: str | None) -> int:
        """Return the study's id in the database; create the study if it is missing."""
        from optuna.storages._rdb import models
        from optuna.study import StudyDirection
        from sqlalchemy.exc import SQLAlchemyError
        from sqlalchemy.orm import Session

        name = self.folder.name
        try:
            with Session(self._storage.engine) as session, session.begin():
                study = models.StudyModel.find_by_name(name, session)
                if study is None:
                    study = models.StudyModel(
                        study_name=name,
                        directions=[
                            models.StudyDirectionModel(objective=index, direction=StudyDirection.MINIMIZE)
                            for index in range(len(self.objectives))
                        ],
                        user_attributes=[models.StudyUserAttributeModel(key=IDENTITY, value_json=json.dumps(identity))],
                        system_attributes=[
                            models.StudySystemAttributeModel(
                                key="study:metric_names", value_json=json.dumps(self.objectives)
                            )
                        ],
                    )
                    session.add(study)
                    session.flush()
                attributes = {attribute.key: json.loads(attribute.value_json) for attribute in study.user_attributes}
                if attributes.get(IDENTITY) != identity:
                    raise InputError(
                        f"--mirror {shown_url(url or '')} holds another study called {name}"
                        f" ({described(attributes.get(IDENTITY))});"
                        " name another database, or remove that study from it."
                    )
                study_id: int = study.study_id  # type: ignore[assignment]
                self._known = self._read_known(session, study_id)
                return study_id
        except SQLAlchemyError as error:
            if url is None:
                raise
            raise InputError(f"--mirror {shown_url(url)} cannot be written: {cause_of(error)}.") from None

    def _read_known(self, session: Any, study_id: int) -> dict[int, tuple[int, str]]:
        """Read the id and fingerprint of each trial. If two rows share a number, the second is replaced."""
        from optuna.storages._rdb import models

        trial, attribute = models.TrialModel, models.TrialSystemAttributeModel
        rows = (
            session.query(trial.trial_id, trial.number, attribute.value_json)
            .outerjoin(attribute, (attribute.trial_id == trial.trial_id) & (attribute.key == FINGERPRINT))
            .filter(trial.study_id == study_id)
        )
        known: dict[int, tuple[int, str]] = {}
        for trial_id, number, value in rows:
            key = number if number is not None and number not in known else -1 - trial_id  # not a trial number
            known[key] = trial_id, json.loads(value) if value else ""
        return known

    def sync(self) -> int:
        """Update the database from the log and the records; return the number of changed trials."""
        changed = {number: trial for number, trial in self._changed().items() if not self._has(number, trial)}
        changed |= {number: None for number in self._known if number not in self._log.trials}
        # Optuna lists trials by id and takes the position in the list as the number. When a trial is inserted, those
        # with higher numbers are therefore reinserted after it.
        added = [n for n, trial in changed.items() if trial is not None and n not in self._known]
        behind = {n for n in self._known if added and n > min(added)}
        for number, trial in self._read(behind - set(changed)).items():
            changed[number] = trial
        if changed:
            try:
                self._write(changed, behind)
            except BaseException:
                self._stamps.clear()  # the next pass rereads these trials
                raise
        return len(changed)

    def agrees(self) -> bool:
        """Return True if every row matches the records, fingerprints aside."""
        self._log.read()
        wanted = [trial for _, trial in sorted(self._read(self._log.trials).items()) if trial is not None]
        stored = self._storage.get_all_trials(self._study_id)
        for trial in (*wanted, *stored):
            trial._trial_id = -1
        names = self._storage.get_study_system_attrs(self._study_id).get("study:metric_names")
        directions = len(self._storage.get_study_directions(self._study_id))
        return stored == wanted and names == list(self.objectives) and directions == len(self.objectives)

    def _has(self, number: int, trial: "FrozenTrial | None") -> bool:
        known = self._known.get(number)
        return known is None if trial is None else known is not None and known[1] == trial.system_attrs[FINGERPRINT]

    def _changed(self) -> dict[int, "FrozenTrial | None"]:
        """Return the trials with new events or a new record since the last pass."""
        touched = self._log.read()
        for number in self._log.trials:
            current = stamp(self.folder.trial_folder(number) / "record.json")
            if number not in self._stamps or self._stamps[number] != current:
                self._stamps[number] = current
                touched.add(number)
        return self._read(touched)

    def _read(self, numbers: Iterable[int]) -> dict[int, "FrozenTrial | None"]:
        """Convert trials to Optuna's form; None for a trial without a readable record."""
        converted: dict[int, FrozenTrial | None] = {}
        for number in sorted(numbers):
            converted[number] = None
            with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged, or not written yet
                text = (self.folder.trial_folder(number) / "record.json").read_text(encoding="utf-8")
                record = TrialRecord.from_json(text)
                if record.number == number:
                    converted[number] = mirrored(record, self._log.trials[number], self.objectives)
        return converted

    def _write(self, changed: Mapping[int, "FrozenTrial | None"], behind: set[int]) -> None:
        """Replace the rows of the `changed` trials, or delete them (None). Trials in `behind` receive new ids."""
        from optuna.storages._rdb import models
        from sqlalchemy import delete, insert
        from sqlalchemy.orm import Session

        known = dict(self._known)
        with Session(self._storage.engine) as session, session.begin():
            removed = [known.pop(n)[0] for n in changed if n in known and (changed[n] is None or n in behind)]
            kept = [known[number][0] for number in changed if number in known]
            parts = (
                models.TrialParamModel,
                models.TrialValueModel,
                models.TrialIntermediateValueModel,
                models.TrialUserAttributeModel,
            )
            for ids in _chunks([*removed, *kept]):
                for part in parts:
                    session.execute(delete(part).where(part.trial_id.in_(ids)))
            attribute = models.TrialSystemAttributeModel  # keep attributes set by other programs
            for ids in _chunks(kept):
                ours = attribute.trial_id.in_(ids) & (attribute.key == FINGERPRINT)
                session.execute(delete(attribute).where(ours))
            for ids in _chunks(removed):
                for part in (attribute, models.TrialHeartbeatModel, models.TrialModel):
                    session.execute(delete(part).where(part.trial_id.in_(ids)))
            rows: dict[Any, Any] = {
                row.trial_id: row
                for ids in _chunks(kept)
                for row in session.query(models.TrialModel).filter(models.TrialModel.trial_id.in_(ids))
            }
            content: dict[Any, list[dict[str, Any]]] = {part: [] for part in (*parts, attribute)}
            pairs = []
            for number, trial in sorted(changed.items()):
                if trial is None:
                    continue
                row = rows[known[number][0]] if number in known else models.TrialModel(study_id=self._study_id)
                row.number, row.state = number, trial.state
                row.datetime_start, row.datetime_complete = trial.datetime_start, trial.datetime_complete
                pairs.append((row, trial))
            for row, _ in pairs:
                if row.trial_id is None:
                    session.add(row)
            session.flush()
            for row, trial in pairs:
                known[trial.number] = int(row.trial_id), trial.system_attrs[FINGERPRINT]
                for part, values in _parts(trial).items():
                    content[part] += [{"trial_id": row.trial_id, **value} for value in values]
            for part, values in content.items():
                if values:
                    session.execute(insert(part), values)
        self._known = known


def _parts(trial: "FrozenTrial") -> dict[Any, list[dict[str, Any]]]:
    """Return a trial's rows for each of Optuna's tables, without the trial id."""
    from optuna.storages._rdb import models

    values, curve = [], []
    for index, value in enumerate(trial.values or []):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        values.append({"objective": index, "value": stored, "value_type": kind})
    for epoch, value in trial.intermediate_values.items():
        step_value, step_kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        curve.append({"step": epoch, "intermediate_value": step_value, "intermediate_value_type": step_kind})
    return {
        models.TrialParamModel: [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": _distribution_text(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ],
        models.TrialValueModel: values,
        models.TrialIntermediateValueModel: curve,
        models.TrialUserAttributeModel: [
            {"key": name, "value_json": json.dumps(value)} for name, value in trial.user_attrs.items()
        ],
        models.TrialSystemAttributeModel: [
            {"key": name, "value_json": json.dumps(value)} for name, value in trial.system_attrs.items()
        ],
    }


def _distribution_text(distribution: "BaseDistribution") -> str:
    from optuna.distributions import distribution_to_json

    return distribution_to_json(distribution)


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]
