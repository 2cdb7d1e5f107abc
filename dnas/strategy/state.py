"""State of a study, folded from its event log. No other module interprets the kinds of events.

The sampler and the stopping rule depend on this state alone. A resumed search therefore makes the same decisions, and
`dnas replay` can recompute each of them.

| event | keys | meaning |
|---|---|---|
| ask | number, arm, params, digest, cost, epochs, history | a trial was proposed |
| measured | number, latency | its network was timed |
| report | number, epoch, go_on, losses and errors | it finished an epoch |
| pause | number | it stopped, and may be promoted later |
| promote | number | it resumes after a pause |
| tell | number, state, values, reason | it ended |
| again | number, reason, recompute | it restarts after a lost worker or a full memory |
| extend | epochs, trials | these trials restart, for more epochs |
| widen | space, limits, before, trials, params | the space grew; params of earlier trials at the new choices |

Other kinds, such as notes, change nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from dnas.errors import InputError
from dnas.space.objectives import WORST
from dnas.space.space import Space
from dnas.strategy.samplers.problem import Told
from dnas.strategy.stopping import Ladder
from dnas.study.record import TrialRecord, new_record
from dnas.training.metrics import metrics_in

Event = Mapping[str, Any]

ENDED = ("complete", "stopped", "infeasible", "failed")
PENALISED = ("diverged", "timeout")  # failures that depend on the network: samplers see the worst value
NOT_OF_EPOCH = ("event", "time", "number", "go_on")  # keys of a report beside its epoch's numbers


class OldLog(InputError):
    """A log of dnas 0.1, which lacks the information needed to resume."""

    def __init__(self) -> None:
        super().__init__(
            "This study was started by dnas 0.1, whose log lacks the information needed to resume."
            " Its report can be written, but a search needs a new name: --study."
        )


@dataclass
class Trial:
    """One trial as its events describe it.

    `asked_params` are the params at its proposal, in the space of `tables` (None for the current space). `params` also
    include the choices that were added later. `epochs` is the total number of epochs to train, and `planned` holds
    every such number so far. `curve` maps each epoch since the last restart to its losses and errors.
    """

    number: int
    arm: str
    params: dict[str, Any]
    digest: str
    cost: dict[str, int]
    epochs: int
    asked: str | None = None  # time of its proposal
    history: str | None = None  # digest of the state that its proposal saw
    state: str = "running"
    reason: str | None = None
    latency: float | None = None  # seconds
    curve: dict[int, dict[str, Any]] = field(default_factory=dict)
    furthest: int = 0  # last epoch reported
    go_on: bool = True  # decision after that epoch
    recompute: bool = False
    losses: int = 0  # workers lost
    ended: str | None = None  # time of its last tell or pause
    objectives: dict[str, float] | None = None  # of its tell
    earlier: list[dict[str, Any]] = field(default_factory=list)  # results before the epochs were raised
    tables: Mapping[str, Any] | None = None
    last: str | None = None  # time of its last event

    def __post_init__(self) -> None:
        self.asked_params = self.params
        self.planned = {self.epochs}

    def seconds(self, epoch: int | None = None) -> float:
        """Return the training time in seconds up to an epoch (default: the last)."""
        rows = self.curve.items()
        return sum((row.get("seconds") or 0.0 for number, row in rows if epoch is None or number <= epoch), 0.0)

    def reached(self) -> dict[str, Any]:
        """Return the record's epochs, errors, metrics and seconds; empty before the first finished epoch."""
        if not self.curve:
            return {}
        last = self.curve[self.furthest]
        errors = {"val_error": last.get("val_error"), "val_loss": last.get("val_loss")}
        metrics = {"metrics": metrics} if (metrics := metrics_in(last)) else {}
        return {"epochs": self.furthest, **errors, **metrics, "seconds": self.seconds()}


def record_of(trial: Trial, space: Space, params: dict[str, Any], study_seed: int, **facts: Any) -> TrialRecord:
    """Derive the record of a trial from its events.

    Args:
        trial: The trial.
        space: The space that `params` belong to, either the current one or the one at the proposal.
        params: `trial.params` or `trial.asked_params`.
        study_seed: Seed of the study.
        facts: Fields that no event holds, such as `data`, `host` and `versions`.
    """
    from dnas.strategy.distributions import distributions_json  # imports optuna

    spec = space.spec_of(params)
    return new_record(
        trial.number,
        trial.arm,
        params,
        spec,
        network=space.name_of(spec),
        distributions=distributions_json(space.choices),
        cost=dict(trial.cost),
        seed=[study_seed, trial.number],
        recipe=space.recipe.to_dict() | {"epochs": trial.epochs},
        epochs_planned=trial.epochs,
        history_digest=trial.history,
        state=trial.state,
        reason=trial.reason,
        recompute=trial.recompute,
        latency=trial.latency,
        losses=trial.losses,
        earlier=list(trial.earlier),
        ended=trial.ended,
        objectives=dict(trial.objectives or {}),
        **trial.reached(),
        **facts,
    )


class TrialLog:
    """The trials of an event log. Folding is cheap, since `SearchState` handles samplers and stopping rules."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.trials: dict[int, Trial] = {}

    def apply(self, event: Event) -> set[int]:
        """Apply an event and return the numbers of the trials that it changed.

        Raises:
            OldLog: The log is of dnas 0.1.
            KeyError: The event names a trial that was not proposed, or lacks a key.
        """
        kind = event["event"]
        if kind == "ask":
            self._ask(event)
        elif kind == "extend":
            self._extend(event)
        elif kind == "widen":
            return self._widen(event)
        elif "number" in event:
            self._change(self.trials[event["number"]], kind, event)
        touched = set(event["trials"]) if kind == "extend" else {event["number"]} if "number" in event else set()
        for number in touched:
            self.trials[number].last = event.get("time")
        return touched

    def _ask(self, event: Event) -> None:
        if "cost" not in event:
            raise OldLog
        number, epochs = event["number"], event.get("epochs", self.epochs)
        trial = Trial(number, event.get("arm", "sampler"), event["params"], event["digest"], event["cost"], epochs)
        trial.asked, trial.history = event.get("time"), event.get("history")
        self.trials[number] = trial

    def _change(self, trial: Trial, kind: str, event: Event) -> None:
        match kind:
            case "measured":
                trial.latency = event["latency"]
            case "report":
                trial.curve[event["epoch"]] = {key: event[key] for key in event if key not in NOT_OF_EPOCH}
                trial.furthest, trial.go_on = event["epoch"], event["go_on"]
            case "pause":
                trial.state, trial.ended = "paused", event.get("time")
            case "promote":
                trial.state, trial.go_on, trial.ended, trial.objectives = "running", True, None, None
            case "tell":
                trial.state, trial.reason, trial.ended = event["state"], event.get("reason"), event.get("time")
                trial.objectives = event.get("values")
            case "again":
                trial.recompute |= bool(event.get("recompute"))
                trial.losses += str(event.get("reason", "")).startswith("lost worker")

    def _extend(self, event: Event) -> None:
        self.epochs = event["epochs"]
        for number in event["trials"]:
            trial = self.trials[number]
            if trial.state == "complete":
                trial.earlier.append(trial.reached() | {"weights_digest": None, "ended": trial.ended})
            trial.state, trial.epochs, trial.reason = "running", event["epochs"], None
            trial.ended, trial.objectives = None, None
            trial.curve, trial.furthest, trial.go_on = {}, 0, True
            trial.planned.add(event["epochs"])

    def _widen(self, event: Event) -> set[int]:
        for trial in self.trials.values():
            trial.tables = trial.tables or event.get("before")
        for number, params in event["params"].items():
            trial = self.trials[int(number)]
            trial.params = {**trial.params, **params}
        return {int(number) for number in event["params"]}


class Visitor:
    """Callbacks of `SearchState.fold`, each called before the event is applied to the state."""

    def on_ask(self, state: "SearchState", event: Event) -> None: ...
    def on_report(self, state: "SearchState", event: Event) -> None: ...
    def on_promote(self, state: "SearchState", event: Event) -> None: ...
    def on_tell(self, state: "SearchState", event: Event) -> None: ...
    def on_widen(self, state: "SearchState", event: Event) -> None: ...
    def on_event(self, state: "SearchState", event: Event) -> None:
        """Handle any event, before the callback of its kind."""


class SearchState:
    """State of a study as the sampler and the stopping rule see it. `digest` identifies the events folded so far."""

    def __init__(self, objectives: tuple[str, ...], stopping: str, epochs: int) -> None:
        self.objectives, self.stopping = objectives, stopping
        self.digest = "0" * 16
        self.memory: int | None = None  # activation bytes that did not fit on this device
        self._log = TrialLog(epochs)
        self._ladders: dict[int, Ladder] = {}
        self._told: list[Told] = []
        self._changed: set[int] = set()

    @classmethod
    def of_events(cls, events: Sequence[Event], objectives: tuple[str, ...], stopping: str, epochs: int) -> Self:
        """Return the state before the first of `events`. `epochs` is used only if `events` is empty."""
        return cls(objectives, stopping, next((event["epochs"] for event in events if "epochs" in event), epochs))

    def fold(self, events: Iterable[Event], visitor: Visitor | None = None) -> Self:
        """Apply events in order, and call `visitor` before each."""
        for event in events:
            if visitor is not None:
                visitor.on_event(self, event)
                if (callback := getattr(visitor, f"on_{event['event']}", None)) is not None:
                    callback(self, event)
            self.apply(event)
        return self

    @property
    def trials(self) -> dict[int, Trial]:
        return self._log.trials

    @property
    def epochs(self) -> int:
        """Planned epochs of a new trial."""
        return self._log.epochs

    @property
    def ladder(self) -> Ladder:
        """Stopping rule for the current number of epochs."""
        return self._ladder(self.epochs)

    def _ladder(self, epochs: int) -> Ladder:
        if epochs not in self._ladders:
            self._ladders[epochs] = Ladder(self.stopping, epochs, several=len(self.objectives) > 1)
        return self._ladders[epochs]

    # for samplers

    def told(self) -> list[Told]:
        """Return every trial as a sampler sees it, by number."""
        for number in sorted(self._changed):
            told = self._told_of(self.trials[number])
            if number < len(self._told):
                self._told[number] = told
            else:
                assert number == len(self._told), "trials are numbered without gaps"
                self._told.append(told)
        self._changed.clear()
        return self._told

    def _told_of(self, trial: Trial) -> Told:
        first = self.objectives[0]
        curve = {epoch: report[first] for epoch, report in trial.curve.items()}
        values: tuple[float, ...] | None = None
        if trial.state == "failed" and trial.reason is not None and trial.reason.split(":")[0] in PENALISED:
            values = self._values(trial, WORST[first]) if first in WORST else None
        elif trial.state not in ("failed", "infeasible") and curve:
            values = self._values(trial, curve[trial.furthest])
        return Told(trial.number, trial.params, trial.state, values, trial.furthest, trial.epochs, curve)

    def _values(self, trial: Trial, first: float) -> tuple[float, ...] | None:
        """Return the objectives of a trial whose first objective is `first`; None while its latency is unknown."""
        rest = [trial.latency if name == "latency" else trial.cost[name] for name in self.objectives[1:]]
        return None if None in rest else (float(first), *(float(value) for value in rest if value is not None))

    def _size(self, values: tuple[float, ...]) -> float | None:
        return values[1] if len(values) > 1 else None

    # decisions, which leave the state unchanged

    def decide(self, number: int, report: Event) -> bool:
        """Return True if trial `number` continues after the epoch of `report`."""
        trial = self.trials[number]
        values = self._values(trial, report[self.objectives[0]])
        assert values is not None, "a latency is measured before the first epoch"
        return self._ladder(trial.epochs).decide(number, report["epoch"], values, self._size(values))

    def promotable(self) -> int | None:
        """Return the number of the paused trial to resume now, if any."""
        return self.ladder.promotable() if self.ladder.pauses else None

    # events

    def apply(self, event: Event) -> None:
        """Apply one event; see the table in the module docstring.

        Raises:
            OldLog: The log is of dnas 0.1.
            ValueError: A trial's number is not the next one.
        """
        kind = event["event"]
        if kind == "ask" and event["number"] != len(self.trials):
            raise ValueError(f"trial {event['number']} is proposed after {len(self.trials)} trials")
        self._changed |= self._log.apply(event)
        match kind:
            case "ask":
                self._link(kind, event["number"], event["digest"])
            case "measured":
                self._link(kind, event["number"], event["latency"])
            case "report":
                self._report(self.trials[event["number"]], event)
            case "pause":
                self._link(kind, event["number"])
            case "promote":
                trial = self.trials[event["number"]]
                self._ladder(trial.epochs).promote(trial.number)
                self._link(kind, trial.number)
            case "tell":
                self._tell(self.trials[event["number"]])
            case "extend":
                self._link(kind, event["epochs"], *event["trials"])
            case "widen":
                self._link(kind, event["space"]["text"], event["limits"])

    def _report(self, trial: Trial, event: Event) -> None:
        epoch, first = event["epoch"], self.objectives[0]
        values = self._values(trial, event[first])
        assert values is not None
        self._ladder(trial.epochs).note(trial.number, epoch, values, self._size(values), event["go_on"])
        self._link("report", trial.number, epoch, event[first])

    def _tell(self, trial: Trial) -> None:
        if trial.state in ("failed", "infeasible"):
            self._ladder(trial.epochs).forget(trial.number)
        if trial.state == "infeasible":
            needed = trial.cost["activation_bytes"]
            self.memory = needed if self.memory is None else min(self.memory, needed)
        self._link("tell", trial.number, trial.state)

    def _link(self, *facts: Any) -> None:
        """Extend the digest, a hash chain with a constant cost per event."""
        text = json.dumps([self.digest, *facts])
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]


# --- single facts of a log ----------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A period in which a trial was trained. `state` at its end is paused, ended or running."""

    number: int
    start: str
    end: str | None
    state: str


def with_changes(config: Mapping[str, Any], events: Iterable[Event]) -> dict[str, Any]:
    """Return a study's config with the space, limits and epochs that its log changed."""
    changed = dict(config)
    for event in events:
        if event["event"] == "widen":
            changed |= {key: event[key] for key in ("space", "limits") if key in event}
        elif event["event"] == "extend":
            changed["recipe"] = config["recipe"] | {"epochs": event["epochs"]}
    return changed


def before_changes(config: Mapping[str, Any], events: Iterable[Event]) -> dict[str, Any]:
    """Return a study's config with the space and limits that it started with."""
    return {**config, **next((event["before"] for event in events if event["event"] == "widen"), {})}


def stages(config: Mapping[str, Any], events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return the inputs of a study at its start and after each extension.

    In each of them `trials` is the number of trials that were proposed before the next extension, and `running` the
    number of them that had not ended or paused. The last one has the planned number of trials.
    """
    events = list(events)
    log = TrialLog(config["recipe"]["epochs"])
    current = before_changes(config, events)
    first = next((event["epochs"] for event in events if "epochs" in event), log.epochs)
    current["recipe"] = config["recipe"] | {"epochs": first}
    before = []
    for event in events:
        changed = with_changes(current, [event])
        if changed != current and log.trials:
            running = sum(trial.state == "running" for trial in log.trials.values())
            before.append({**current, "trials": len(log.trials), "running": running})
        current = changed
        log.apply(event)
    return [*before, {**current, "trials": max(len(log.trials), config["trials"]), "running": 0}]


def reports_of(events: Iterable[Event], number: int) -> list[Event]:
    """Return the reports of a trial, including those from before its epochs were raised."""
    return [event for event in events if event["event"] == "report" and event["number"] == number]


def last_tells(events: Iterable[Event]) -> dict[int, Event]:
    """Map each trial that ended to its last tell."""
    return {event["number"]: event for event in events if event["event"] == "tell"}


def stop_epochs(events: Iterable[Event], *, whole_log: bool = False) -> set[int]:
    """Return the epochs after which trials were stopped or paused.

    whole_log: include epochs from before the study's epochs were last raised, when schedules were shorter.
    """
    epochs: set[int] = set()
    for event in events:
        if event["event"] == "extend" and not whole_log:
            epochs.clear()
        elif event["event"] == "report" and not event.get("go_on", True):
            epochs.add(int(event["epoch"]))
    return epochs


def count_pauses(events: Iterable[Event]) -> tuple[int, int]:
    """Return the numbers of pauses and of promotions."""
    kinds = [event["event"] for event in events]
    return kinds.count("pause"), kinds.count("promote")


def training_spans(events: Iterable[Event]) -> list[Span]:
    """Return the periods in which trials were trained, sorted by their ends.

    A period is from a proposal or promotion to a pause or an end.
    """
    spans: list[Span] = []
    starts: dict[int, str] = {}
    last: str | None = None
    for event in events:
        if "time" not in event or "number" not in event:
            continue
        number, last = event["number"], event["time"]
        kind = event["event"]
        if kind in ("ask", "promote"):
            starts.setdefault(number, last)
        elif kind in ("pause", "tell") and number in starts:
            spans.append(Span(number, starts.pop(number), last, "paused" if kind == "pause" else "ended"))
    return spans + [Span(number, start, last, "running") for number, start in starts.items()]
