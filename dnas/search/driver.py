"""The search loop: asks for networks, has an executor train them, decides which trials continue, and keeps the record.

The sampler and the stopping rule see a fold of the event log (`state`) and nothing else, and a worker repeats
the epochs of its checkpoint to the driver before it resumes. A search that is killed anywhere and restarted (with one
worker) therefore ends with the same result as an uninterrupted one.
"""

import math
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dnas.errors import InputError
from dnas.executors.job import make_job, take
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.executors.runner import Trainings
from dnas.executors.worker import Job
from dnas.search.proposals import Exhausted, Proposal, Region, make_sampler, propose
from dnas.search.samplers.tpe import distributions_json
from dnas.search.state import ENDED, History
from dnas.space.space import Space
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder
from dnas.study.provenance import git_commit, versions
from dnas.study.record import TrialRecord, new_record


def check_fits(space: Space) -> None:
    """`InputError` where no network of the space can look at these images."""
    survey = space.survey()
    if not survey.costs:
        raise InputError(f"none of the networks of {space.name} fits these images: {survey.example}")


@dataclass
class Driver(Trainings):
    """The one owner of a study while it runs. data: `Dataset.describe()`."""

    folder: StudyFolder
    config: SearchConfig
    space: Space
    data: Mapping[str, Any]
    show: Show
    executor: Executor

    def __post_init__(self) -> None:
        super().__init__()
        config = self.config
        self.run_config = config.run
        self.history = History(config.objectives, config.stopping, self.space.recipe.epochs)
        self.region = Region(self.space, config.objectives)
        self.sampler = make_sampler(config.sampler)

    # --- opening ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Reads the study and mends what a kill left between an event and its record."""
        folder, epochs = self.folder, self.space.recipe.epochs
        if cut := folder.mend_events():
            self.show.note(f"mended events.jsonl: its last line was torn ({cut} bytes cut)")
        events = folder.events()
        self.records = {record.number: record for record in folder.records()}
        if events:
            self.history.epochs = next((e["epochs"] for e in events if "epochs" in e), epochs)
        widened = [event["params"] for event in events if event["event"] == "widen"]
        for event in events:
            if event["event"] == "ask" and event["number"] not in self.records:  # killed between event and record
                params = dict(event["params"])
                for later in widened:  # the space may have grown since
                    params |= later.get(str(event["number"]), {})
                proposal = Proposal(event["arm"], params, self.space.spec_of(params))
                self._write_new_record(event["number"], proposal, event["history"], event.get("epochs", epochs))
            if event["event"] == "extend":
                self._extend_records(event)
            self.history.apply(event)
        for number, record in sorted(self.records.items()):
            self.region.tried.add(record.digest)
            self._reconcile(number, record)
        if epochs > self.history.epochs:
            survivors = [n for n, record in sorted(self.records.items()) if record.state in ("complete", "running")]
            event = {"event": "extend", "epochs": epochs, "trials": survivors}
            self.emit(event)
            self._extend_records(event)
        self.freeze({"recipe": self.space.recipe.to_dict()})
        self.waiting = deque(record for _, record in sorted(self.records.items()) if record.state == "running")
        self.show.opened([self.records[number] for number in sorted(self.records)], self.config.trials)

    def _reconcile(self, number: int, record: TrialRecord) -> None:
        """Brings a record and the events about it together, whichever of the two a kill left behind."""
        trial = self.history.trials[number]
        if record.state in ENDED and trial.state not in ENDED:  # between the record and its tell
            self._emit_tell(record)
        elif record.state == "paused" and trial.state == "running" and not trial.go_on:  # and its pause
            self.emit({"event": "pause", "number": number})
        elif record.state == "paused" and trial.state == "running":  # between a promotion and its record
            record.state, record.ended, record.reason = "running", None, None
            self.folder.write_record(record)
        if record.state == "running" and trial.curve:
            last = trial.curve[trial.furthest]
            record.epochs, record.val_error, record.val_loss = trial.furthest, last["val_error"], last["val_loss"]
            record.seconds = sum(one.get("seconds", 0.0) for one in trial.curve.values())
        record.recompute, record.latency = trial.recompute, trial.latency

    def _extend_records(self, event: Mapping[str, Any]) -> None:
        """More epochs: no schedule of ours can be lengthened after the fact (each depends on the total), so survivors
        train again from the start, with the same seeds; what they had reached stays in `earlier`."""
        for number in event["trials"]:
            record = self.records[number]
            if record.epochs_planned >= event["epochs"]:
                continue
            if record.state == "complete":
                keep = ("epochs", "val_error", "val_loss", "seconds", "weights_digest", "ended")
                record.earlier.append({key: getattr(record, key) for key in keep})
            for name in ("checkpoint.pt", "curve.csv", "norms.npz"):
                (self.folder.trial_folder(number) / name).unlink(missing_ok=True)
            record.recipe |= {"epochs": event["epochs"]}
            record.state, record.epochs_planned, record.epochs, record.attempts = "running", event["epochs"], 0, 0
            record.val_error = record.val_loss = record.test_error = record.test_loss = None
            record.weights_digest = record.ended = None
            record.objectives = {}
            self.folder.write_record(record)

    def freeze(self, values: Mapping[str, Any]) -> None:
        """Writes `values` into study.toml, where they differ from what it says."""
        config = self.folder.config()
        changed = {**config, **values}
        if changed != config:
            self.folder.write_config(changed)

    def emit(self, event: Mapping[str, Any]) -> None:
        """Appends an event to the log, and takes it in."""
        self.folder.append(event)
        self.history.apply(event)

    # --- the loop ---------------------------------------------------------------------------------------------

    def _next(self, outcome: Outcome) -> TrialRecord | None:
        """What is to be trained next: what was interrupted, what deserves to go on, a new network, or nothing."""
        if self.waiting:
            return self.waiting.popleft()
        number = self.history.promotable()
        if number is not None and str(number) in self.executor.running:
            return None  # it was told to stop, and others fell behind it before its worker ended: once that is heard
        if number is not None:
            self.emit({"event": "promote", "number": number})
            record = self.records[number]
            record.state, record.ended, record.reason = "running", None, None
            self.folder.write_record(record)
            return record
        if outcome.exhausted or len(self.history.trials) >= self.config.trials:
            return None
        try:
            return self._ask()
        except Exhausted:
            outcome.exhausted = True
            return None

    def _ask(self) -> TrialRecord:
        config, number, seen = self.config, len(self.history.trials), self.history.digest
        proposal = propose(self.region, self.history, self.sampler, config.control, config.seed)
        price = self.space.cost(proposal.spec)
        epochs = self.space.recipe.epochs
        self.emit(
            {
                "event": "ask",
                "number": number,
                "arm": proposal.arm,
                "params": proposal.params,
                "digest": proposal.spec.digest,
                "cost": asdict(price),
                "epochs": epochs,
                "history": seen,
            }
        )
        self.region.tried.add(proposal.spec.digest)
        return self._write_new_record(number, proposal, seen, epochs)

    def _write_new_record(self, number: int, proposal: Proposal, history: str, epochs: int) -> TrialRecord:
        price = self.space.cost(proposal.spec)
        record = new_record(
            number,
            proposal.arm,
            proposal.params,
            proposal.spec,
            network=self.space.name_of(proposal.spec),
            distributions=distributions_json(self.space.choices),
            cost=asdict(price),
            seed=[self.config.seed, number],
            recipe=self.space.recipe.to_dict() | {"epochs": epochs},
            data=dict(self.data),
            epochs_planned=epochs,
            history_digest=history,
            versions=versions(),
            commit=git_commit(),
            host=socket.gethostname(),
        )
        assert not self.space.limits.excess(price), "a network over the limits is never trained"
        self.records[number] = record
        self.folder.write_record(record)
        return record

    def _job(self, record: TrialRecord) -> Job:
        folder = self.folder.trial_folder(record.number)
        timed = "latency" in self.config.objectives and self.history.trials[record.number].latency is None
        return make_job(self.run_config, record, folder, str(record.number), latency=timed)

    def _on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None:
        if values.get("latency") is not None and record.latency is None:
            record.latency = values["latency"]
            self.emit({"event": "measured", "number": record.number, "latency": record.latency})

    def _on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        """Notes one epoch and decides whether the trial goes on; one that a worker repeats gets the answer that it
        got."""
        trial, epoch = self.history.trials[record.number], row["epoch"]
        if epoch > trial.furthest:
            go_on = self.history.decide(record.number, row)
            self.emit({"event": "report", "number": record.number, **row, "go_on": go_on})
        record.epochs, record.val_error, record.val_loss = epoch, row["val_error"], row["val_loss"]
        record.seconds = sum(one["seconds"] for number, one in trial.curve.items() if number <= epoch)
        self.show.epoch(record, row)
        return epoch < trial.furthest or trial.go_on

    def _finish(self, record: TrialRecord, values: dict[str, Any]) -> None:
        take(record, values)
        if not values["finished"] and self.history.ladder.pauses:
            record.state = "paused"
            record.reason = f"not among the best third after {record.epochs} epochs"
            record.ended = self.folder.now()
            self.folder.write_record(record)
            self.emit({"event": "pause", "number": record.number})
            self._leave(record)
            return
        record.state = "complete" if values["finished"] else "stopped"
        if record.state == "stopped":
            record.reason = f"worse than the median after {record.epochs} epochs"
        found: dict[str, Any] = {
            **record.cost,
            "latency": record.latency,
            "val_error": record.val_error,
            "val_loss": record.val_loss,
        }
        record.objectives = {name: found[name] for name in self.config.objectives}
        assert all(map(math.isfinite, record.objectives.values())), "a diverged run ends as failed"
        self._end(record)

    def _emit_tell(self, record: TrialRecord) -> None:
        self.emit(
            {
                "event": "tell",
                "number": record.number,
                "state": record.state,
                "values": record.objectives,
                "reason": record.reason,
            }
        )
