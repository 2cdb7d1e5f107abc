"""Records of trials: everything that is known of one training run."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from dnas.arch import Spec, format_name, spec_from_dict

if TYPE_CHECKING:
    pass

STATES = ("running", "paused", "complete", "stopped", "infeasible", "failed")
ARMS = ("first", "sampler", "control")


@dataclass
class TrialRecord:
    """All that is known of one training; complete in itself.

    errors are fractions, losses nats, `seconds` the time spent in finished epochs, `peak_memory_bytes` as
    `dnas.training.devices.peak_memory_bytes`. `epochs` counts the finished ones, `epochs_planned` those of the recipe.
    """

    number: int
    state: str = "running"
    arm: str = "sampler"
    params: dict[str, Any] = field(default_factory=dict)  # the choices made, as the sampler holds them
    distributions: dict[str, str] = field(default_factory=dict)  # optuna's JSON for each
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
    kernels: str | None = None  # what ran its dense blocks; None of records from before there was a choice: plain
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
    history_digest: str | None = None  # of what the sampler had been told when it proposed this
    latency: float | None = None  # seconds of a forward pass of one image, where it is an objective
    recompute: bool = False  # whether it ran out of memory, and went on with recomputed activations
    attempts: int = 0  # how often its training was started or gone on with
    losses: int = 0  # how often its worker was lost, and it went on from its checkpoint
    earlier: list[dict[str, Any]] = field(default_factory=list)  # results before the study's epochs were raised
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    host: str = ""
    started: str | None = None
    ended: str | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls(**{key: value for key, value in json.loads(text).items() if key in FIELDS})

    @property
    def called(self) -> str:
        """A listed run's key, else its network's name."""
        return str(self.params.get("key", self.network))

    @property
    def network_spec(self) -> Spec:
        return spec_from_dict(self.spec)


FIELDS = frozenset(f.name for f in dataclasses.fields(TrialRecord))


def rank(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, the best first: by the objective's value at the last epoch, of equals the one with the
    fewest params, of these the first. With several objectives, by the first of them, then the next."""
    complete = [record for record in records if record.state == "complete" and record.objectives]
    return sorted(complete, key=lambda r: (*r.objectives.values(), r.cost["params"], r.number))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_record(number: int, arm: str, params: dict[str, Any], spec: Spec, **rest: Any) -> TrialRecord:
    values = {"network": format_name(spec)} | rest if "network" not in rest else rest
    return TrialRecord(number, arm=arm, params=params, spec=spec.to_dict(), digest=spec.digest, **values)
