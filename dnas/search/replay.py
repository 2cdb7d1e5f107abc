"""`dnas replay`: everything that a study decided, decided again from its records."""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnas.arch import spec_from_dict
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.search.proposals import Exhausted, Region, make_sampler, propose
from dnas.search.state import ENDED, History
from dnas.study.config import DEFAULTS, data_arguments_of, objectives_of, space_of
from dnas.study.folder import StudyFolder
from dnas.training.checkpoint import Epoch
from dnas.training.devices import check_device
from dnas.training.fit import fit
from dnas.training.recipe import Recipe


@dataclass
class Replay:
    """What was decided again, and where it came out otherwise, a line each."""

    proposals: int = 0
    decisions: int = 0
    differences: list[str] = field(default_factory=list)


def replay(folder: StudyFolder, on_event: Callable[[int, int], None] = lambda done, total: None) -> Replay:
    """Proposes every trial of a study again, and decides again who goes on, from the log alone; then compares the log
    with the records. A difference has a cause: another version of dnas or of a library, or files that were changed."""
    config = DEFAULTS | folder.config()
    events = folder.events()
    records = {record.number: record for record in folder.records()}
    tables = next((event["before"] for event in events if event["event"] == "widen"), config)
    objectives = objectives_of(config)
    history = History(objectives, config["stopping"], next((e["epochs"] for e in events if "epochs" in e), 1))
    space = space_of(config | tables)
    region, sampler = Region(space, objectives), make_sampler(config["sampler"])
    found = Replay()
    last_tell = {event["number"]: index for index, event in enumerate(events, 1) if event["event"] == "tell"}

    def differs(number: int, what: str, then: Any, now: Any) -> None:
        found.differences.append(f"trial {number}: {what} was {then}, and is {now} now")

    for done, event in enumerate(events, 1):
        on_event(done, len(events))
        number = event.get("number", -1)
        match event["event"]:
            case "ask":
                found.proposals += 1
                if event["history"] != history.digest:
                    differs(number, "the history that its proposal saw", event["history"], history.digest)
                try:
                    proposal = propose(region, history, sampler, config["control"], config["seed"])
                    if (proposal.arm, proposal.params) != (event["arm"], event["params"]):
                        differs(number, "the proposal", _said(event["params"]), _said(proposal.params))
                except Exhausted:
                    differs(number, "the proposal", _said(event["params"]), "that nothing is left to try")
                region.tried.add(event["digest"])
                _compare_record(found, records, event)
            case "report":
                found.decisions += 1
                go_on = history.decide(number, event)
                if go_on != event["go_on"]:
                    words = {True: "to go on", False: "to stop"}
                    differs(number, f"the decision after epoch {event['epoch']}", words[event["go_on"]], words[go_on])
            case "promote":
                found.decisions += 1
                if (best := history.promotable()) != number:
                    differs(number, "the promotion", f"that of trial {number}", f"that of trial {best}")
            case "tell":
                record = records.get(number)
                if record is None or record.state not in ENDED or last_tell[number] != done:
                    pass  # it has no record, which is said elsewhere; or it went on since
                elif (record.state, record.objectives) != (event["state"], event["values"]):
                    differs(
                        number, "its end", _end(event["state"], event["values"]), _end(record.state, record.objectives)
                    )
            case "widen":
                space = space_of(config | {"space": event["space"], "limits": event["limits"]})
                region = Region(space, objectives)
                region.tried = {trial.digest for trial in history.trials.values()}
        history.apply(event)
    found.differences += [
        f"trial {number}: it has a record, but no proposal in the log"
        for number in records.keys() - history.trials.keys()
    ]
    return found


def _end(state: str, values: dict[str, float]) -> str:
    return " ".join([state, *(f"{name}={value}" for name, value in values.items())])


def _said(params: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items())


def _compare_record(found: Replay, records: dict[int, Any], event: dict[str, Any]) -> None:
    number = event["number"]
    if number not in records:
        found.differences.append(f"trial {number}: it was proposed, but has no record")
    elif records[number].digest != event["digest"]:
        found.differences.append(
            f"trial {number}: its record is of network {records[number].digest}, its proposal of {event['digest']}"
        )


@dataclass(frozen=True)
class Again:
    """One trial's training, repeated: `first` is the first epoch that differs (None: none does)."""

    epochs: int
    first: int | None
    then: str
    now: str
    same_weights: bool | None  # None where the record has no digest of them


def train_again(
    folder: StudyFolder, number: int, device: str | None = None, on_epoch: Callable[[Epoch], None] = lambda epoch: None
) -> Again:
    """Trains trial `number` again, up to where it came, and compares every epoch's loss and error with the log's.

    On the CPU of one kind of machine, with the same versions and threads, they are equal bit for bit.
    """
    import torch

    records = {record.number: record for record in folder.records()}
    if number not in records:
        raise InputError(f"study {folder.name} has no trial {number}; there are {len(records)}, from 0 on.")
    record = records[number]
    reports = [event for event in folder.events() if event["event"] == "report" and event["number"] == number]
    reports = (
        reports[-record.epochs :] if record.epochs else []
    )  # those before the epochs were raised are of another run
    if not reports:
        raise InputError(f"trial {number} of {folder.name} finished no epoch ({record.state}): nothing to compare.")
    config = DEFAULTS | folder.config()
    device = check_device(device or record.device)
    torch.set_num_threads(record.threads)
    data = load_dataset(**data_arguments_of(config), device=device)
    if data.fingerprint != record.data["fingerprint"]:
        raise InputError(f"the images of {data.title} are not those that trial {number} was trained on.")
    seen: list[Epoch] = []

    def report(epoch: Epoch) -> bool:
        seen.append(epoch)
        on_epoch(epoch)
        return epoch.epoch < record.epochs

    with tempfile.TemporaryDirectory() as scratch:
        result = fit(
            spec_from_dict(record.spec),
            data,
            Recipe.from_dict(record.recipe),
            seed=(record.seed[0], record.seed[1]),
            device=device,
            folder=Path(scratch),
            recompute=record.recompute,
            kernels=record.kernels or "plain",
            report=report,
        )
    keys = ("train_loss", "train_error", "val_loss", "val_error")
    for then, epoch in zip(reports, seen, strict=False):
        now = dataclasses.asdict(epoch)
        if any(then[key] != now[key] for key in keys):
            texts = [", ".join(f"{key} {row[key]:.9g}" for key in keys) for row in (then, now)]
            return Again(len(seen), epoch.epoch, texts[0], texts[1], None)
    same = None if record.weights_digest is None else result.weights_digest == record.weights_digest
    return Again(len(seen), None, "", "", same)
