"""Source of a search's trials, which proposes networks, decides which trials continue, and writes their records.

The sampler and the stopping rule depend only on the state folded from the event log (`state`). A resumed worker first
repeats the epochs of its checkpoint to the driver. With one worker, a search that is killed at any moment and restarted
therefore ends with the same result as an uninterrupted one.
"""

import math
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dnas.executors.job import make_job, take_result
from dnas.executors.process import Job
from dnas.executors.protocol import Show
from dnas.space.objectives import extra_metrics
from dnas.space.space import Space
from dnas.strategy.proposals import Exhausted, Region, make_sampler, propose
from dnas.strategy.state import ENDED, SearchState, Trial, record_of
from dnas.study.config import SearchConfig, without_none
from dnas.study.folder import StudyFolder
from dnas.study.provenance import git_commit, versions
from dnas.study.record import TrialRecord
from dnas.training.metrics import metrics_in


class Driver:
    """Exclusive owner of a running study, and the `Source` of its trials.

    Args:
        folder: The study.
        config: Settings of the search.
        space: The space for the study's images; see `Space.for_data`.
        data: `Dataset.describe()`.
        show: Observer, such as a display.
    """

    def __init__(
        self, folder: StudyFolder, config: SearchConfig, space: Space, data: Mapping[str, Any], show: Show
    ) -> None:
        self.folder, self.config, self.space, self.data, self.show = folder, config, space, data, show
        self.run_config = config.run
        self.records: dict[int, TrialRecord] = {}
        self.exhausted = False  # no untried network is left
        self.state = SearchState(config.objectives, config.stopping, space.recipe.epochs)
        self.region = Region(space, config.objectives)
        self.sampler = make_sampler(config.sampler)
        self._interrupted: deque[TrialRecord] = deque()

    # --- opening ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read the study and repair what a kill left between an event and its record."""
        folder, config, epochs = self.folder, self.config, self.space.recipe.epochs
        if cut := folder.repair_events():
            self.show.note(f"repaired events.jsonl: its last line was torn ({cut} bytes cut)")
        events = folder.events()
        self.records = {record.number: record for record in folder.records()}
        self.state = SearchState.of_events(events, config.objectives, config.stopping, epochs).fold(events)
        for number, trial in self.state.trials.items():
            if number not in self.records:  # killed between event and record
                self._write_new_record(trial)
        self._extend_records()
        for number, record in sorted(self.records.items()):
            self.region.tried.add(record.digest)
            self._reconcile(number, record)
        if epochs > self.state.epochs:
            survivors = [n for n, record in sorted(self.records.items()) if record.state in ("complete", "running")]
            self.emit({"event": "extend", "epochs": epochs, "trials": survivors})
            self._extend_records()
        self.freeze({"recipe": self.space.recipe.to_dict()})
        self._interrupted = deque(record for _, record in sorted(self.records.items()) if record.state == "running")
        self.show.opened([self.records[number] for number in sorted(self.records)], config.trials)

    def _reconcile(self, number: int, record: TrialRecord) -> None:
        """Make a record and its events agree after a kill between writing one and the other."""
        trial = self.state.trials[number]
        if record.state in ENDED and trial.state not in ENDED:  # killed between the record and its tell
            self._emit_tell(record)
        elif record.state == "paused" and trial.state == "running" and not trial.go_on:  # killed before its pause
            self.emit({"event": "pause", "number": number})
        elif record.state == "paused" and trial.state == "running":  # killed between a promotion and its record
            self._resume(record)
        if record.state == "running":
            _take_progress(record, trial.reached())
        record.recompute, record.latency = trial.recompute, trial.latency

    def _extend_records(self) -> None:
        """Reset the records of trials whose epochs were raised.

        Every learning rate schedule depends on the total, so that survivors train from the start, with the same seeds.
        Their earlier results are kept in `earlier`.
        """
        for number, record in self.records.items():
            epochs = self.state.trials[number].epochs if number in self.state.trials else 0
            if record.epochs_planned >= epochs:
                continue
            if record.state == "complete":
                kept = ("epochs", "val_error", "val_loss", "seconds", "weights_digest", "ended")
                record.earlier.append({key: getattr(record, key) for key in kept})
            for name in ("checkpoint.pt", "curve.csv", "norms.npz"):
                (self.folder.trial_folder(number) / name).unlink(missing_ok=True)
            record.recipe |= {"epochs": epochs}
            record.state, record.epochs_planned, record.epochs, record.attempts = "running", epochs, 0, 0
            record.val_error = record.val_loss = record.test_error = record.test_loss = None
            record.weights_digest = record.ended = None
            record.objectives, record.metrics, record.intervals = {}, {}, {}
            self.folder.write_record(record)

    def freeze(self, values: Mapping[str, Any]) -> None:
        """Write `values` into study.toml if they differ from its content. None removes a value."""
        config = self.folder.config()
        changed = without_none({**config, **values})
        if changed != config:
            self.folder.write_config(changed)

    def emit(self, event: Mapping[str, Any]) -> None:
        """Append an event to the log, and fold it into the state."""
        self.folder.append(event)
        self.state.apply(event)

    # --- proposals --------------------------------------------------------------------------------------------

    def next(self, running: list[str]) -> TrialRecord | None:
        """Return an interrupted trial, else a promoted one, else a new one; None if there is none now."""
        if self._interrupted:
            return self._interrupted.popleft()
        number = self.state.promotable()
        if number is not None and str(number) in running:
            return None  # its worker has not stopped yet; it can be promoted once it has
        if number is not None:
            self.emit({"event": "promote", "number": number})
            self._resume(self.records[number])
            return self.records[number]
        if self.exhausted or len(self.state.trials) >= self.config.trials:
            return None
        try:
            return self._ask()
        except Exhausted:
            self.exhausted = True
            return None

    def put_back(self, record: TrialRecord) -> None:
        """Return a running trial, which nothing trains any more, to those that are started next."""
        self._interrupted.append(record)

    def _resume(self, record: TrialRecord) -> None:
        record.state, record.ended, record.reason = "running", None, None
        self.folder.write_record(record)

    def _ask(self) -> TrialRecord:
        config, number, history = self.config, len(self.state.trials), self.state.digest
        proposal = propose(self.region, self.state, self.sampler, config.control, config.seed)
        cost = self.space.cost(proposal.spec)
        assert not self.space.limits.excess(cost), "a network over the limits is never trained"
        self.emit(
            {
                "event": "ask",
                "number": number,
                "arm": proposal.arm,
                "params": proposal.params,
                "digest": proposal.spec.digest,
                "cost": asdict(cost),
                "epochs": self.space.recipe.epochs,
                "history": history,
            }
        )
        self.region.tried.add(proposal.spec.digest)
        return self._write_new_record(self.state.trials[number])

    def _write_new_record(self, trial: Trial) -> TrialRecord:
        record = record_of(
            trial,
            self.space,
            trial.params,
            self.config.seed,
            data=dict(self.data),
            versions=versions(),
            commit=git_commit(),
            host=socket.gethostname(),
        )
        self.records[trial.number] = record
        self.folder.write_record(record)
        return record

    # --- reports of runs --------------------------------------------------------------------------------------

    def job(self, record: TrialRecord) -> Job:
        timed = "latency" in self.config.objectives and self.state.trials[record.number].latency is None
        folder = self.folder.trial_folder(record.number)
        metrics = extra_metrics(self.config.objectives)
        return make_job(self.run_config, record, folder, str(record.number), latency=timed, metrics=metrics)

    def on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None:
        if values.get("latency") is not None and record.latency is None:
            record.latency = values["latency"]
            self.emit({"event": "measured", "number": record.number, "latency": record.latency})

    def on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        """Return True if a trial continues after an epoch. A repeated epoch gets its earlier decision."""
        trial, epoch = self.state.trials[record.number], row["epoch"]
        if epoch > trial.furthest:
            go_on = self.state.decide(record.number, row)
            self.emit({"event": "report", "number": record.number, **row, "go_on": go_on})
        record.epochs, record.val_error, record.val_loss = epoch, row["val_error"], row["val_loss"]
        record.metrics = metrics_in(row)
        record.seconds = trial.seconds(epoch)
        return epoch < trial.furthest or trial.go_on

    def on_result(self, record: TrialRecord, values: dict[str, Any]) -> None:
        take_result(record, values)
        if not values["finished"] and self.state.ladder.pauses:
            record.state = "paused"
            record.reason = f"not among the best third after {record.epochs} epochs"
            return
        record.state = "complete" if values["finished"] else "stopped"
        if record.state == "stopped":
            record.reason = f"worse than the median after {record.epochs} epochs"
        measured = {name: record.measured(name) for name in self.config.objectives}
        record.objectives = {name: value for name, value in measured.items() if value is not None}
        assert len(measured) == len(record.objectives), "every objective has been measured"
        assert all(map(math.isfinite, record.objectives.values())), "a diverged run ends as failed"

    def on_retry(self, record: TrialRecord, reason: str, *, recompute: bool = False) -> None:
        event = {"event": "again", "number": record.number, "reason": reason}
        self.emit(event | {"recompute": True} if recompute else event)

    def on_end(self, record: TrialRecord) -> None:
        if record.state == "paused":
            self.emit({"event": "pause", "number": record.number})
        else:
            self._emit_tell(record)

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


def _take_progress(record: TrialRecord, reached: Mapping[str, Any]) -> None:
    for name, value in reached.items():
        setattr(record, name, value)
