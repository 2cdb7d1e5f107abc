"""The search loop: asks for networks, has an executor train them, decides who goes on, and keeps the record.

What the sampler knows is a function of the records and the event log, and a worker repeats the epochs of its checkpoint
to the driver before it goes on: so a search that is killed anywhere and run again (with one worker) ends as if it had
not been.
"""

import math
import os
import platform
import socket
import subprocess
from collections import deque
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import FrozenTrial

from dnas import __version__
from dnas.arch import DenseNetSpec
from dnas.data import Dataset, load_dataset
from dnas.errors import InputError
from dnas.executors.local import LocalExecutor
from dnas.executors.worker import Job, Message
from dnas.files import DiskFull
from dnas.recipe import Recipe
from dnas.sampler import Exhausted, Proposal, distributions_json, propose, told
from dnas.space import Space
from dnas.stopping import goes_on, rungs
from dnas.study import StudyFolder, TrialRecord, history_digest, new_record, now
from dnas.train import check_device

SAME_ERRORS = 3  # so many identical errors in a row stop the search
LOST_WORKERS = 3  # so often a trial whose process died is gone on with
ENDED = ("complete", "stopped", "infeasible", "failed")


@dataclass(frozen=True)
class Options:
    """What the command says of a search. `data` are arguments of `load_dataset`; `retrain` is K of the best."""

    space: Space
    study: str
    trials: int
    data: dict[str, Any]
    seed: int = 0
    objective: str = "val_error"
    stopping: str = "asha"
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    compile_net: bool = False
    retrain: int = 0
    retrain_seeds: int = 1
    command: str = ""


@dataclass
class Outcome:
    """How a search ended: `stopped_by` is None where it did what was asked, else why it did not."""

    trials: int
    exhausted: bool = False
    stopped_by: str | None = None


class Executor(Protocol):
    """Carries trials and decides nothing; `dnas.executors.local.LocalExecutor` is one."""

    @property
    def running(self) -> list[str]: ...
    def start(self, job: Job) -> None: ...
    def wait(self, timeout: float) -> list[tuple[str, Message]]: ...
    def answer(self, key: str, go_on: bool) -> None: ...
    def stop(self) -> None: ...


class Show(Protocol):
    """What the loop tells whoever watches."""

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def began(self, record: TrialRecord) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...
    def ended(self, record: TrialRecord) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class _Loop:
    folder: StudyFolder
    options: Options
    space: Space
    recipe: Recipe
    data: Dataset
    device: str
    show: Show
    executor: Executor
    records: dict[int, TrialRecord] = field(default_factory=dict)
    reports: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)  # number -> epoch -> its report event


def search(options: Options, show: Show, executor: Executor | None = None) -> Outcome:
    """Begins a study or goes on with it, until `options.trials` networks have been trained; then retrains the best.

    executor: processes of this host, unless given. `InputError` where the study on disk was made with other inputs.
    KeyboardInterrupt leaves it ready to go on.
    """
    folder = StudyFolder(Path("studies") / options.study)
    device = check_device(options.device)
    if folder.exists:
        _check_same(folder, options, None)  # before the data are read, which can take long
    data = load_dataset(**options.data, progress=show.note)  # on the CPU: only workers train
    space = options.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    _check_fits(space)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        if folder.exists:
            _check_same(folder, options, data)
        else:
            folder.create(_config(options, space, data, device))
        executor = executor or LocalExecutor(data.name)
        loop = _Loop(folder, options, space, space.recipe, data, device, show, executor)
        try:
            _open(loop)
            config = folder.config() | {"command": options.command, "trials": options.trials}
            folder.write_config(config)
            outcome = _run_trials(loop)
            if outcome.stopped_by is None and options.retrain:
                _retrain(loop)
        finally:
            executor.stop()
    return outcome


def _check_fits(space: Space) -> None:
    survey = space.survey()
    if not survey.costs:
        raise InputError(f"none of the networks of {space.name} fits these images: {survey.example}")


# --- the study's frozen inputs ------------------------------------------------------------------------------------


def _config(options: Options, space: Space, data: Dataset, device: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": options.study,
        "created": now(),
        "command": options.command,
        "trials": options.trials,
        "seed": options.seed,
        "objective": options.objective,
        "sampler": "tpe",
        "stopping": options.stopping,
        "device": device,
        "threads": options.threads,
        "host": socket.gethostname(),
        "commit": git_commit(),
        "space": {"name": space.name, "title": space.title, "text": space.text},
        "limits": space.limits.stated(),
        "recipe": space.recipe.to_dict(),
        "data": data.describe(),
        "versions": versions(),
    }
    config["data"] |= {"source": options.data["name"], "root": str(options.data.get("data_root") or "")}
    return _without_none(config)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _check_same(folder: StudyFolder, options: Options, data: Dataset | None) -> None:
    """`InputError` where the study was begun with other inputs; of the recipe, the epochs may grow. Without `data`,
    what can be told without them."""
    config, space = folder.config(), options.space
    then, here = config["recipe"], space.recipe.to_dict()
    keys = [key for key in then if key != "epochs" and then[key] != here.get(key)]
    pairs: list[tuple[str, Any, Any]] = [
        ("limits", _stated(config["limits"]), _stated(space.limits.stated())),
        ("objective", config["objective"], options.objective),
        ("seed", config["seed"], options.seed),
        ("stopping", config["stopping"], options.stopping),
        ("recipe", _stated({key: then[key] for key in keys}), _stated({key: here.get(key) for key in keys})),
    ]
    if config["space"]["name"] != space.name:
        pairs = [("space", config["space"]["name"], space.name)]  # the rest follows from it
    elif config["space"]["text"] != space.text:
        pairs.insert(0, ("space", "as its file was then", "as its file is"))
    if data is not None:
        facts = data.describe()
        pairs += [
            (key.replace("_", " "), config["data"].get(key, "whole"), "whole" if facts[key] is None else facts[key])
            for key in ("subset", "split_seed", "augmentation", "image_size")
        ]
        if config["data"]["title"] != data.title:
            pairs.append(("data set", config["data"]["title"], data.title))
        elif config["data"]["fingerprint"] != data.fingerprint:
            pairs.append(("data set", "as its files were then", "as its files are"))
    changed = [f"{what} {before} (now {after})" for what, before, after in pairs if before != after]
    if changed:
        raise InputError(
            f"study {folder.name} was begun with another {'; another '.join(changed)};"
            " name a new one with --study, or give what it was begun with."
        )
    if space.recipe.epochs < then["epochs"]:
        raise InputError(
            f"study {folder.name} trains for {then['epochs']} epochs, and a study's epochs only grow;"
            f" got --epochs {space.recipe.epochs}."
        )


def _stated(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "none"


@cache
def versions() -> dict[str, str]:
    """The versions that a number may depend on."""
    found = {name: metadata.version(name) for name in ("torch", "torchvision", "optuna", "numpy")}
    return found | {
        "dnas": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
    }


@cache
def git_commit() -> str | None:
    """The commit of the dnas that runs, with a `+` where files differ from it; None where it is not a checkout."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(here)]
        head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5).stdout
        dirty = subprocess.run(
            [*run, "diff", "--quiet", "HEAD"], check=False, timeout=5, capture_output=True
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if dirty else "")


# --- opening ------------------------------------------------------------------------------------------------------


def _open(loop: _Loop) -> None:
    """Reads the study and mends what a kill left between an event and its record."""
    folder = loop.folder
    if cut := folder.mend_events():
        loop.show.note(f"mended events.jsonl: its last line was torn ({cut} bytes cut)")
    events = folder.events()
    loop.records = {record.number: record for record in folder.records()}
    told_numbers = set()
    for event in events:
        match event["event"]:
            case "ask":
                number = event["number"]
                if number not in loop.records:  # killed between the event and the record
                    proposal = Proposal(event["arm"], event["params"], loop.space.spec_of(event["params"]))
                    _write_new_record(loop, number, proposal, event["history"])
            case "report":
                loop.reports.setdefault(event["number"], {})[event["epoch"]] = event
            case "tell":
                told_numbers.add(event["number"])
            case "extend":
                for number in event["trials"]:
                    loop.reports.pop(number, None)
                    told_numbers.discard(number)
                _extend_records(loop, event)
    for number, record in sorted(loop.records.items()):
        if record.state in ENDED and number not in told_numbers:  # killed between the record and its tell
            _append_tell(loop, record)
    config = folder.config()
    if loop.recipe.epochs > config["recipe"]["epochs"]:
        survivors = [
            number for number, record in sorted(loop.records.items()) if record.state in ("complete", "running")
        ]
        event = {"event": "extend", "epochs": loop.recipe.epochs, "trials": survivors}
        folder.append(event)
        for number in survivors:
            loop.reports.pop(number, None)
        _extend_records(loop, event)
    folder.write_config(config | {"recipe": loop.recipe.to_dict()})
    loop.show.opened([loop.records[number] for number in sorted(loop.records)], loop.options.trials)


def _extend_records(loop: _Loop, event: dict[str, Any]) -> None:
    """More epochs: no schedule of ours can be lengthened after the fact (each depends on the total), so survivors train
    again from the start, with the same seeds; what they had reached stays in `earlier`."""
    for number in event["trials"]:
        record = loop.records[number]
        if record.epochs_planned >= event["epochs"]:
            continue
        if record.state == "complete":
            keep = ("epochs", "val_error", "val_loss", "seconds", "weights_digest", "ended")
            record.earlier.append({key: getattr(record, key) for key in keep})
        for name in ("checkpoint.pt", "curve.csv", "norms.npz"):
            (loop.folder.trial_folder(number) / name).unlink(missing_ok=True)
        record.recipe |= {"epochs": event["epochs"]}
        record.state, record.epochs_planned, record.epochs, record.attempts = "running", event["epochs"], 0, 0
        record.val_error = record.val_loss = record.test_error = record.test_loss = None
        record.weights_digest = record.ended = None
        record.objectives = {}
        loop.folder.write_record(record)


# --- trials -------------------------------------------------------------------------------------------------------


def _run_trials(loop: _Loop) -> Outcome:
    waiting = deque(record for _, record in sorted(loop.records.items()) if record.state == "running")
    outcome = Outcome(0)
    errors: list[str] = []
    while True:
        while outcome.stopped_by is None and len(loop.executor.running) < loop.options.workers:
            if waiting:
                record = waiting.popleft()
            elif outcome.exhausted or _begun(loop) >= loop.options.trials:
                break
            else:
                try:
                    record = _ask(loop)
                except Exhausted:
                    outcome.exhausted = True
                    break
            _start(loop, record)
        if not loop.executor.running:
            break
        for key, message in loop.executor.wait(timeout=1.0):
            record = loop.records[int(key)]
            match message.kind:
                case "step":
                    loop.show.step(record, message.values["done"], message.values["total"])
                case "epoch":
                    loop.executor.answer(key, _on_epoch(loop, record, message.values))
                case "done":
                    _finish(loop, record, message.values)
                    errors.clear()
                case "lost" if record.attempts < LOST_WORKERS:
                    loop.show.note(f"trial {record.number}: {message.values['text']}; going on from its checkpoint")
                    waiting.appendleft(record)
                case _:
                    text = message.values["text"]
                    reason = message.values.get("reason", "lost worker")
                    if reason == "disk full":
                        raise DiskFull(text)  # it stays `running`: the next start goes on with it
                    _fail(loop, record, reason, text)
                    errors = [*errors, text] if reason in ("error", "input", "lost worker") else []
                    if len(errors) >= SAME_ERRORS and len(set(errors[-SAME_ERRORS:])) == 1:
                        outcome.stopped_by = (
                            f"{SAME_ERRORS} trials in a row failed alike: {text}"
                            f" (see {loop.folder.trial_folder(record.number) / 'traceback.txt'})"
                        )
    outcome.trials = _begun(loop)
    return outcome


def _begun(loop: _Loop) -> int:
    """Networks that have begun to train: what `--trials` counts."""
    return sum(record.started is not None or record.state == "running" for record in loop.records.values())


def _history(loop: _Loop) -> tuple[list[FrozenTrial], str]:
    objective = loop.options.objective
    trials, said = [], []
    for number, record in sorted(loop.records.items()):
        values = {epoch: event[objective] for epoch, event in loop.reports.get(number, {}).items()}
        trials.append(told(record, loop.space, objective, values))
        last = values[max(values)] if values else None
        said.append((number, record.state, record.objectives.get(objective, last)))
    return trials, history_digest(said)


def _ask(loop: _Loop) -> TrialRecord:
    history, digest = _history(loop)
    number = len(loop.records)
    tried = {record.digest for record in loop.records.values()}
    proposal = propose(loop.space, loop.options.seed, number, history, tried)
    loop.folder.append(
        {
            "event": "ask",
            "number": number,
            "arm": proposal.arm,
            "params": proposal.params,
            "digest": proposal.spec.digest,
            "history": digest,
        }
    )
    return _write_new_record(loop, number, proposal, digest)


def _write_new_record(loop: _Loop, number: int, proposal: Proposal, history: str) -> TrialRecord:
    price = loop.space.cost(proposal.spec)
    record = new_record(
        number,
        proposal.arm,
        proposal.params,
        proposal.spec,
        distributions=distributions_json(loop.space),
        cost=asdict(price),
        seed=[loop.options.seed, number],
        recipe=loop.recipe.to_dict(),
        data=loop.data.describe(),
        epochs_planned=loop.recipe.epochs,
        history_digest=history,
        versions=versions(),
        commit=git_commit(),
        host=socket.gethostname(),
    )
    assert not loop.space.limits.excess(price), "a network over the limits is never trained"
    loop.records[number] = record
    loop.folder.write_record(record)
    return record


def _start(loop: _Loop, record: TrialRecord) -> None:
    record.started = record.started or now()
    record.attempts += 1
    record.device, record.threads = loop.device, loop.options.threads
    loop.folder.write_record(record)
    loop.executor.start(_job(loop, record, loop.folder.trial_folder(record.number), str(record.number)))
    loop.show.began(record)


def _job(loop: _Loop, record: TrialRecord, folder: Path, key: str, *, final: bool = False) -> Job:
    return Job(
        key=key,
        folder=str(folder),
        spec=record.spec,
        recipe=record.recipe,
        data=loop.options.data,
        seed=(record.seed[0], record.seed[1]),
        device=record.device,
        threads=record.threads,
        compile_net=loop.options.compile_net,
        final=final,
    )


def _on_epoch(loop: _Loop, record: TrialRecord, row: dict[str, Any]) -> bool:
    """Notes one epoch and decides whether the trial goes on; one that a worker repeats gets the answer that it got."""
    known = loop.reports.setdefault(record.number, {})
    number = row["epoch"]
    if number not in known:
        go_on = True
        if loop.options.stopping == "asha" and number in rungs(record.epochs_planned):
            others = [
                reports[number][loop.options.objective]
                for other, reports in loop.reports.items()
                if number in reports and loop.records[other].epochs_planned == record.epochs_planned
            ]
            go_on = goes_on(row[loop.options.objective], others)
        event = {"event": "report", "number": record.number, **row, "go_on": go_on}
        loop.folder.append(event)
        known[number] = event
    record.epochs, record.val_error, record.val_loss = number, row["val_error"], row["val_loss"]
    loop.show.epoch(record, row)
    return bool(known[number]["go_on"])


def _finish(loop: _Loop, record: TrialRecord, values: dict[str, Any]) -> None:
    _take(record, values)
    record.state = "complete" if values["finished"] else "stopped"
    if record.state == "stopped":
        record.reason = f"not among the best third after {record.epochs} epochs"
    value = getattr(record, loop.options.objective)
    assert value is not None
    assert math.isfinite(value), "a diverged run ends as failed"
    record.objectives = {loop.options.objective: value}
    _end(loop, record)


def _take(record: TrialRecord, values: dict[str, Any]) -> None:
    for name in ("epochs", "val_error", "val_loss", "seconds", "peak_memory_bytes", "weights_digest"):
        setattr(record, name, values[name])


def _fail(loop: _Loop, record: TrialRecord, reason: str, text: str) -> None:
    record.state = "infeasible" if reason == "out of memory" else "failed"
    record.reason = f"{reason}: {text}"
    _end(loop, record)


def _end(loop: _Loop, record: TrialRecord) -> None:
    record.ended = now()
    loop.folder.write_record(record)
    _append_tell(loop, record)
    loop.show.ended(record)


def _append_tell(loop: _Loop, record: TrialRecord) -> None:
    value = record.objectives.get(loop.options.objective)
    loop.folder.append(
        {"event": "tell", "number": record.number, "state": record.state, "value": value, "reason": record.reason}
    )


# --- the final trainings ------------------------------------------------------------------------------------------


def _retrain(loop: _Loop) -> None:
    """Trains the best again on training and validation data with fresh seeds; only this opens the test set."""
    if not loop.data.test_size:
        raise InputError(
            f"{loop.data.title} has no held-out test set, which --retrain-best measures on;"
            " put class folders under test/."
        )
    waiting: deque[tuple[TrialRecord, Path]] = deque()
    for winner in loop.folder.best(loop.options.retrain):
        for offset in range(1, loop.options.retrain_seeds + 1):
            seed = loop.options.seed + offset
            path = loop.folder.path / "retrain" / f"{winner.number}-{seed}"
            record = _retrain_record(loop, winner, seed, path)
            if record.state == "running":
                waiting.append((record, path))
    running: dict[str, tuple[TrialRecord, Path]] = {}
    while waiting or loop.executor.running:
        while waiting and len(loop.executor.running) < loop.options.workers:
            record, path = waiting.popleft()
            record.started, record.attempts = record.started or now(), record.attempts + 1
            record.device, record.threads = loop.device, loop.options.threads
            loop.folder.write_record(record, path)
            running[path.name] = record, path
            loop.executor.start(_job(loop, record, path, path.name, final=True))
            loop.show.note(
                f"training #{record.number} ({record.network}) again with seed {record.seed[0]}, on all training data"
            )
        for key, message in loop.executor.wait(timeout=1.0):
            record, path = running[key]
            values = message.values
            match message.kind:
                case "epoch":
                    loop.executor.answer(key, True)
                case "done":
                    _take(record, values)
                    record.state, record.test_error, record.test_loss = (
                        "complete",
                        values["test_error"],
                        values["test_loss"],
                    )
                case "lost" if record.attempts < LOST_WORKERS:
                    waiting.appendleft((record, path))
                case "failed" if values["reason"] == "disk full":
                    raise DiskFull(values["text"])
                case "failed" | "lost":
                    record.state, record.reason = "failed", f"{values.get('reason', 'lost worker')}: {values['text']}"
            if record.state != "running":
                record.ended = now()
                loop.folder.write_record(record, path)
                _write_test_error(loop, record.number)
                text = f"{100 * record.test_error:.2f}% test error" if record.test_error is not None else record.reason
                loop.show.note(f"#{record.number} seed {record.seed[0]}: {text}")


def _retrain_record(loop: _Loop, winner: TrialRecord, seed: int, path: Path) -> TrialRecord:
    if (path / "record.json").exists():
        record = TrialRecord.from_json((path / "record.json").read_text())
        if record.recipe == winner.recipe:
            return record
        for old in path.iterdir():  # of fewer epochs
            old.unlink()
    return new_record(
        winner.number,
        winner.arm,
        winner.params,
        DenseNetSpec.from_dict(winner.spec),
        cost=winner.cost,
        seed=[seed, winner.number],
        recipe=winner.recipe,
        data=loop.data.with_validation_in_training().describe(),
        epochs_planned=winner.epochs_planned,
        versions=versions(),
        commit=git_commit(),
        host=socket.gethostname(),
    )


def _write_test_error(loop: _Loop, number: int) -> None:
    """The trial's own record gets the mean over its final trainings."""
    errors = [r.test_error for _, r in loop.folder.retrained() if r.number == number and r.test_error is not None]
    if errors:
        record = loop.records[number]
        record.test_error = sum(errors) / len(errors)
        loop.folder.write_record(record)


# --- the plan -----------------------------------------------------------------------------------------------------


TINY_IMAGE = 16  # pixels: on so small maps a second thread costs more in waiting than it gains


def default_threads(workers: int, image_size: int) -> int:
    """CPU threads of each training: the cores, shared out among the workers; one for tiny images."""
    return 1 if image_size <= TINY_IMAGE else max(1, cores() // workers)


def default_workers() -> int:
    """One on a small machine; on a larger one a worker for each four cores."""
    return max(1, cores() // 4)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
