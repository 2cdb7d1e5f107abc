"""Records of trials: settings and results of one training run."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from dnas.arch import Spec, format_name, spec_from_dict

STATES = ("running", "paused", "complete", "stopped", "infeasible", "failed")
ARMS = ("first", "sampler", "control")


@dataclass
class TrialRecord:
    """Self-contained record of one training run.

    Errors are fractions and losses are in nats. `seconds` is the time spent in finished epochs. `peak_memory_bytes` is
    defined in `dnas.training.devices.peak_memory_bytes`. `epochs` counts finished epochs, `epochs_planned` those of the
    recipe.
    """

    number: int
    state: str = "running"
    arm: str = "sampler"
    params: dict[str, Any] = field(default_factory=dict)  # choices, in the form used by the sampler
    distributions: dict[str, str] = field(default_factory=dict)  # Optuna's JSON of each choice
    spec: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    network: str = ""
    cost: dict[str, int] = field(default_factory=dict)  # params, macs, activation_bytes, batch
    objectives: dict[str, float] = field(default_factory=dict)
    seed: list[int] = field(default_factory=list)  # [study seed, number]: see dnas.training.fit.stream_seed
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # Dataset.describe()
    device: str = "cpu"
    threads: int = 1
    kernels: str | None = None  # kernels of the dense blocks; None in older records, which used `plain`
    val_error: float | None = None
    val_loss: float | None = None
    test_error: float | None = None
    test_loss: float | None = None
    epochs: int = 0
    epochs_planned: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    reason: str | None = None
    weights_digest: str | None = None
    history_digest: str | None = None  # digest of the results known to the sampler at the proposal
    latency: float | None = None  # seconds of a forward pass of one image, if it is an objective
    recompute: bool = False  # True after running out of memory: activations are recomputed
    attempts: int = 0  # number of starts and resumptions
    metrics: dict[str, float] = field(default_factory=dict)  # further metrics that the study asks for, by name
    intervals: dict[str, list[float]] = field(default_factory=dict)  # their 95% intervals over the validation images
    losses: int = 0  # number of resumptions after its worker was lost
    earlier: list[dict[str, Any]] = field(default_factory=list)  # results before the study's epochs were raised
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    host: str = ""
    started: str | None = None
    ended: str | None = None

    def to_json(self) -> str:
        """Return the record as JSON. Without further metrics there is no such key, as in earlier versions."""
        values = dataclasses.asdict(self)
        for name in ("metrics", "intervals"):
            if not values[name]:
                del values[name]
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls(**{key: value for key, value in json.loads(text).items() if key in FIELDS})

    @property
    def called(self) -> str:
        """The key of a listed run, or else the name of its network."""
        return str(self.params.get("key", self.network))

    def measured(self, name: str) -> float | None:
        """Return a metric or a cost of the trial by name; None if it has not been measured."""
        if name in ("val_error", "val_loss", "test_error", "test_loss", "latency"):
            value: float | None = getattr(self, name)
            return value
        return self.metrics.get(name, self.cost.get(name))

    @property
    def network_spec(self) -> Spec:
        return spec_from_dict(self.spec)


FIELDS = frozenset(f.name for f in dataclasses.fields(TrialRecord))


def rank(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the complete trials, best first.

    They are sorted by the values of the objectives at the last epoch, in order, then by params and by number.
    """
    complete = [record for record in records if record.state == "complete" and record.objectives]
    return sorted(complete, key=lambda r: (*r.objectives.values(), r.cost.get("params", 0), r.number))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_record(number: int, arm: str, params: dict[str, Any], spec: Spec, **rest: Any) -> TrialRecord:
    """Return the record of a new trial.

    Args:
        number: Number of the trial.
        arm: One of `ARMS`, or the arm of a listed run.
        params: Values of the choices.
        spec: The network. By default the record's `network` is its name.
        rest: Other fields of the record.
    """
    values = {"network": format_name(spec)} | rest if "network" not in rest else rest
    return TrialRecord(number, arm=arm, params=params, spec=spec.to_dict(), digest=spec.digest, **values)
