"""What the sampler and the stopping rule know of a study: a fold of its event log, and of nothing else.

So a search that goes on after a kill knows what it knew before, and `dnas replay` can ask at each event whether the
same would be decided again. An event is a plain dictionary; see `History.apply` for the kinds.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dnas.errors import InputError
from dnas.search.samplers.problem import Told
from dnas.search.stopping import Ladder
from dnas.space.objectives import TRAINED, WORST

ENDED = ("complete", "stopped", "infeasible", "failed")
SEVERITY = ("diverged", "timeout")  # failures that say something of the network: told as the worst


@dataclass
class Trial:
    """One trial as the events tell it."""

    number: int
    params: dict[str, Any]
    digest: str
    cost: dict[str, int]
    epochs: int  # to be trained in all
    state: str = "running"
    reason: str | None = None
    latency: float | None = None  # seconds
    curve: dict[int, dict[str, Any]] = field(default_factory=dict)  # epoch -> its report
    furthest: int = 0  # the last epoch reported
    go_on: bool = True  # what was decided there
    recompute: bool = False


class History:
    """A study so far. Fed with every event in order; `digest` names all that was fed."""

    def __init__(self, objectives: tuple[str, ...], stopping: str, epochs: int) -> None:
        self.objectives, self.stopping, self.epochs = objectives, stopping, epochs
        self.trials: dict[int, Trial] = {}
        self.digest = "0" * 16
        self.memory: int | None = None  # activation bytes that were too many for this device
        self._ladders: dict[int, Ladder] = {}
        self._told: list[Told] = []
        self._changed: set[int] = set()

    @property
    def ladder(self) -> Ladder:
        """The stopping rule of the study's present number of epochs."""
        return self._ladder(self.epochs)

    def _ladder(self, epochs: int) -> Ladder:
        if epochs not in self._ladders:
            self._ladders[epochs] = Ladder(self.stopping, epochs, several=len(self.objectives) > 1)
        return self._ladders[epochs]

    def told(self) -> list[Told]:
        """Every trial as a sampler sees it, by number."""
        for number in sorted(self._changed):
            one = self._tell_of(self.trials[number])
            if number < len(self._told):
                self._told[number] = one
            else:
                assert number == len(self._told), "trials are numbered without gaps"
                self._told.append(one)
        self._changed.clear()
        return self._told

    def _tell_of(self, trial: Trial) -> Told:
        first = self.objectives[0]
        curve = {epoch: report[first] for epoch, report in trial.curve.items()}
        values: tuple[float, ...] | None = None
        if trial.state == "failed" and trial.reason is not None and trial.reason.split(":")[0] in SEVERITY:
            values = self._values(trial, WORST[first])
        elif trial.state not in ("failed", "infeasible") and curve:
            values = self._values(trial, curve[trial.furthest])
        return Told(trial.number, trial.params, trial.state, values, trial.furthest, trial.epochs, curve)

    def _values(self, trial: Trial, first: float) -> tuple[float, ...] | None:
        """The objectives of a trial whose trained one is `first`; None where its latency is not known yet."""
        rest = [trial.latency if name == "latency" else trial.cost[name] for name in self.objectives[1:]]
        return None if None in rest else (float(first), *(float(value) for value in rest if value is not None))

    def _size(self, values: tuple[float, ...]) -> float | None:
        return values[1] if len(values) > 1 else None

    # decisions: nothing changes

    def decide(self, number: int, report: Mapping[str, Any]) -> bool:
        """Whether trial `number` goes on after the epoch that `report` tells of."""
        trial = self.trials[number]
        values = self._values(trial, report[self.objectives[0]])
        assert values is not None, "a latency is measured before the first epoch"
        return self._ladder(trial.epochs).decide(number, report["epoch"], values, self._size(values))

    def promotable(self) -> int | None:
        """The paused trial that should go on now."""
        return self.ladder.promotable() if self.ladder.pauses else None

    # events

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes an event in. Those of other kinds (a lost worker, a note) change nothing here.

        ask       number, arm, params, digest, cost, epochs
        measured  number, latency
        report    number, epoch, go_on, and the epoch's losses and errors
        pause     number: it is no longer being trained
        promote   number: it goes on
        tell      number, state, reason: its end
        again     number, recompute: it is gone on with after a loss or a full memory
        extend    epochs, trials: these begin again, for more epochs
        widen     params: number -> what the earlier trials have at the choices that are new
        """
        kind, number = event["event"], event.get("number", -1)
        match kind:
            case "ask":
                if "cost" not in event:
                    raise InputError(
                        "this study was begun by dnas 0.1, whose log says too little to go on from;"
                        " its report can be written, but a search needs a new name: --study."
                    )
                self.trials[number] = Trial(
                    number, event["params"], event["digest"], event["cost"], event.get("epochs", self.epochs)
                )
                self._link(kind, number, event["digest"])
            case "measured":
                self.trials[number].latency = event["latency"]
                self._link(kind, number, event["latency"])
            case "report":
                self._report(self.trials[number], event)
            case "pause":
                self.trials[number].state = "paused"
                self._link(kind, number)
            case "promote":
                trial = self.trials[number]
                trial.state, trial.go_on = "running", True
                self._ladder(trial.epochs).promote(trial.number)
                self._link(kind, number)
            case "tell":
                self._tell(self.trials[number], event)
            case "again":
                self.trials[number].recompute |= bool(event.get("recompute"))
            case "extend":
                self._extend(event)
            case "widen":
                for earlier, params in event["params"].items():
                    self.trials[int(earlier)].params = {**self.trials[int(earlier)].params, **params}
                    self._changed.add(int(earlier))
                self._link("widen", event["space"]["text"], event["limits"])
        if number >= 0:
            self._changed.add(number)

    def _report(self, trial: Trial, event: Mapping[str, Any]) -> None:
        epoch, first = event["epoch"], self.objectives[0]
        trial.curve[epoch] = {name: event[name] for name in (*TRAINED, "seconds") if name in event}
        trial.furthest, trial.go_on = epoch, event["go_on"]
        values = self._values(trial, event[first])
        assert values is not None
        self._ladder(trial.epochs).note(trial.number, epoch, values, self._size(values), event["go_on"])
        self._link("report", trial.number, epoch, event[first])

    def _tell(self, trial: Trial, event: Mapping[str, Any]) -> None:
        trial.state, trial.reason = event["state"], event.get("reason")
        if trial.state in ("failed", "infeasible"):
            self._ladder(trial.epochs).forget(trial.number)
        if trial.state == "infeasible":
            needed = trial.cost["activation_bytes"]
            self.memory = needed if self.memory is None else min(self.memory, needed)
        self._link("tell", trial.number, trial.state)

    def _extend(self, event: Mapping[str, Any]) -> None:
        self.epochs = event["epochs"]
        for number in event["trials"]:
            trial = self.trials[number]
            trial.state, trial.epochs, trial.reason = "running", event["epochs"], None
            trial.curve, trial.furthest, trial.go_on = {}, 0, True
            self._changed.add(number)
        self._link("extend", event["epochs"], *event["trials"])

    def _link(self, *facts: Any) -> None:
        """The digest is a chain: each event costs the same, however long the study."""
        text = json.dumps([self.digest, *facts])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
