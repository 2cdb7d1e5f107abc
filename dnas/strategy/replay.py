"""Replay of a study for `dnas replay`: recompute its decisions from the log, or retrain one trial."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnas.arch import spec_from_dict
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.space.objectives import extra_metrics
from dnas.strategy.proposals import Exhausted, Region, make_sampler, propose
from dnas.strategy.state import ENDED, Event, SearchState, Visitor, before_changes, last_tells, reports_of
from dnas.study.config import DEFAULTS, data_arguments_of, objectives_of, space_of
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from dnas.training.checkpoint import Epoch
from dnas.training.devices import check_device
from dnas.training.fit import fit
from dnas.training.recipe import Recipe


@dataclass
class Replay:
    """Numbers of recomputed proposals and decisions, and the differences from the log, one per line."""

    proposals: int = 0
    decisions: int = 0
    differences: list[str] = field(default_factory=list)

    def add_difference(self, number: int, subject: str, recorded: Any, recomputed: Any) -> None:
        self.differences.append(f"trial {number}: {subject} was {recorded}, but is now {recomputed}")


def replay(folder: StudyFolder, on_event: Callable[[int, int], None] = lambda done, total: None) -> Replay:
    """Recompute every proposal and decision of a study from its log alone, then compare the log with the records.

    Differences are caused by another version of dnas or of a library, or by files that were changed.

    Args:
        folder: The study.
        on_event: Called after each event with the number of replayed events and the number of all events.
    """
    config, events = DEFAULTS | folder.config(), folder.events()
    replayer = _Replayer(config, events, {record.number: record for record in folder.records()}, on_event)
    state = SearchState.of_events(events, objectives_of(config), config["stopping"], 1).fold(events, replayer)
    replayer.result.differences += [
        f"trial {number}: has a record, but no proposal in the log"
        for number in replayer.records.keys() - state.trials.keys()
    ]
    return replayer.result


class _Replayer(Visitor):
    """Visitor that compares each event with the decision that follows from the state before it."""

    def __init__(
        self,
        config: dict[str, Any],
        events: Sequence[Event],
        records: dict[int, TrialRecord],
        on_event: Callable[[int, int], None],
    ) -> None:
        self.config, self.records, self.result = config, records, Replay()
        self.objectives = objectives_of(config)
        self.region = Region(space_of(before_changes(config, events)), self.objectives)
        self.sampler = make_sampler(config["sampler"])
        self._on_event, self._done, self._total = on_event, 0, len(events)
        self._last_tells = last_tells(events)

    def on_event(self, state: SearchState, event: Event) -> None:
        self._done += 1
        self._on_event(self._done, self._total)

    def on_ask(self, state: SearchState, event: Event) -> None:
        result, number, config = self.result, event["number"], self.config
        result.proposals += 1
        if event["history"] != state.digest:
            result.add_difference(number, "the history of its proposal", event["history"], state.digest)
        try:
            proposal = propose(self.region, state, self.sampler, config["control"], config["seed"])
            if (proposal.arm, proposal.params) != (event["arm"], event["params"]):
                result.add_difference(number, "the proposal", _listed(event["params"]), _listed(proposal.params))
        except Exhausted:
            result.add_difference(number, "the proposal", _listed(event["params"]), "that no network is left to try")
        self.region.tried.add(event["digest"])
        if number not in self.records:
            result.differences.append(f"trial {number}: was proposed, but has no record")
        elif self.records[number].digest != event["digest"]:
            result.differences.append(
                f"trial {number}: its record is of network {self.records[number].digest}, but its proposal of"
                f" {event['digest']}"
            )

    def on_report(self, state: SearchState, event: Event) -> None:
        self.result.decisions += 1
        go_on = state.decide(event["number"], event)
        if go_on != event["go_on"]:
            names = {True: "to continue", False: "to stop"}
            subject = f"the decision after epoch {event['epoch']}"
            self.result.add_difference(event["number"], subject, names[event["go_on"]], names[go_on])

    def on_promote(self, state: SearchState, event: Event) -> None:
        self.result.decisions += 1
        number, best = event["number"], state.promotable()
        if best != number:
            self.result.add_difference(number, "the promotion", f"of trial {number}", f"of trial {best}")

    def on_tell(self, state: SearchState, event: Event) -> None:
        record = self.records.get(event["number"])
        if record is None or record.state not in ENDED or self._last_tells[event["number"]] is not event:
            return  # `on_ask` reports missing records; the other trials continued after this event
        if (record.state, record.objectives) != (event["state"], event["values"]):
            before, now = _end(event["state"], event["values"]), _end(record.state, record.objectives)
            self.result.add_difference(event["number"], "its end", before, now)

    def on_widen(self, state: SearchState, event: Event) -> None:
        space = space_of(self.config | {"space": event["space"], "limits": event["limits"]})
        self.region = Region(space, self.objectives)
        self.region.tried = {trial.digest for trial in state.trials.values()}


def _end(state: str, values: dict[str, float]) -> str:
    return " ".join([state, *(f"{name}={value}" for name, value in values.items())])


def _listed(params: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items())


@dataclass(frozen=True)
class Retrained:
    """Comparison of a retrained trial with its log. `first` is the first epoch that differs, or None."""

    epochs: int
    first: int | None
    recorded: str
    recomputed: str
    same_weights: bool | None  # None if the record has no digest of them


def retrain_trial(
    folder: StudyFolder, number: int, device: str | None = None, on_epoch: Callable[[Epoch], None] = lambda epoch: None
) -> Retrained:
    """Retrain a trial up to its last epoch, and compare the loss and error of every epoch with the log's.

    On the same kind of CPU, with the same versions and threads, they are bit-identical.

    Args:
        folder: The study.
        number: The trial.
        device: Device to train on (default: the record's device).
        on_epoch: Receives each epoch.

    Raises:
        InputError: There is no such trial, it finished no epoch, or the images differ.
    """
    import torch

    records = {record.number: record for record in folder.records()}
    if number not in records:
        raise InputError(f"study {folder.name} has no trial {number}; it has {len(records)} trials, numbered from 0.")
    record = records[number]
    reports = reports_of(folder.events(), number)
    # Earlier reports belong to a run before the epochs were raised.
    reports = reports[-record.epochs :] if record.epochs else []
    if not reports:
        raise InputError(
            f"trial {number} of {folder.name} finished no epoch ({record.state}); there is nothing to compare."
        )
    config = DEFAULTS | folder.config()
    device = check_device(device or record.device)
    torch.set_num_threads(record.threads)
    data = load_dataset(**data_arguments_of(config), device=device)
    if data.fingerprint != record.data["fingerprint"]:
        raise InputError(f"the images of {data.title} differ from those that trial {number} was trained on.")
    metrics = extra_metrics(objectives_of(config))
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
            metrics=metrics,
            report=report,
        )
    keys = ("train_loss", "train_error", "val_loss", "val_error", *metrics)
    for recorded, epoch in zip(reports, seen, strict=False):
        recomputed = epoch.row()
        if any(recorded[key] != recomputed[key] for key in keys):
            texts = [", ".join(f"{key} {row[key]:.9g}" for key in keys) for row in (recorded, recomputed)]
            return Retrained(len(seen), epoch.epoch, texts[0], texts[1], None)
    same = None if record.weights_digest is None else result.weights_digest == record.weights_digest
    return Retrained(len(seen), None, "", "", same)
