"""Studies as a search would leave them, computed by a formula without training."""

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnas.arch import DenseNetSpec, cost
from dnas.space.parse import parse_space
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord, new_record

VERSIONS = {"python": "3.11.2", "torch": "2.11.0", "optuna": "5.0.0", "dnas": "0.1.0"}
SPACE_TEXT = """\
# Small DenseNets for 8×8 digits: made up for the tests.
family = "densenet"
dataset = "digits"

[choose]
growth_rate  = { int = [4, 16], step = 4 }
block_layers = { int = [1, 5], times = 3 }

[limits]
params = 60_000

[recipe]
name = "fast"
epochs = 12
"""
DATA = {
    "name": "digits",
    "title": "Digits",
    "source": "digits",
    "root": "",
    "classes": 10,
    "channels": 1,
    "image_size": 8,
    "size_rule": "as stored",
    "fingerprint": "0123456789abcdef" * 4,
    "mean": [0.3],
    "std": [0.37],
    "augmentation": "crop",
    "train_size": 1294,
    "val_size": 144,
    "test_size": 359,
    "split_seed": 0,
}


def make_study(
    path: Path,
    states: list[str],
    epochs: int = 12,
    data: dict[str, Any] | None = None,
    norms: bool = True,
    sizes: tuple[int, int] = (1, 5),
    image: tuple[int, int] = (1, 8),
    **config: Any,
) -> StudyFolder:
    """Create a study with one trial per entry of `states`.

    The arm of the first two trials is `first`, that of every seventh trial `control`. The log holds only pauses.
    """
    study = StudyFolder(path)
    data = DATA | (data or {})
    study.create(
        {
            "name": path.name,
            "created": "2026-01-02T03:04:05+00:00",
            "objective": "val_error",
            "seed": 0,
            "split_seed": 0,
            "sampler": "tpe",
            "stopping": "asha",
            "trials": len(states),
            "command": f"dnas search --space digits_bc --trials {len(states)}",
            "threads": 1,
            "device": "cpu",
            "space": {"name": "digits_bc", "title": "Small DenseNets for 8×8 digits: made up.", "text": SPACE_TEXT},
            "limits": {"params": 60_000},
            "recipe": {
                "name": "fast",
                "epochs": epochs,
                "batch_size": 64,
                "learning_rate": 0.1,
                "schedule": "one-cycle",
            },
            "data": data,
            "versions": VERSIONS,
            "commit": "f" * 40,
            "host": "test-host",
        }
        | config
    )
    rng = np.random.default_rng(0)
    for number, state in enumerate(states):
        low, high = sizes
        spec = DenseNetSpec(
            tuple(int(n) for n in rng.integers(low, high + 1, 3)),
            growth_rate=int(rng.integers(1, 5)) * 4,
            bottleneck=int(rng.choice([0, 4])),
            in_channels=image[0],
            image_size=image[1],
        )
        arm = "first" if number < 2 else "control" if number % 7 == 6 else "sampler"
        add_trial(study, number, spec, state, epochs, arm=arm, data=data, norms=norms, rng=rng)
        if state == "paused":
            study.append({"event": "report", "number": number, "epoch": max(1, epochs // 4), "go_on": False})
            study.append({"event": "pause", "number": number})
    return study


def add_trial(
    study: StudyFolder,
    number: int,
    spec: DenseNetSpec,
    state: str,
    epochs: int,
    *,
    arm: str = "sampler",
    data: dict[str, Any] = DATA,
    norms: bool = False,
    rng: np.random.Generator | None = None,
    **changes: Any,
) -> TrialRecord:
    """Write the folder of a trial. Its final error is a power of its size, and its curve falls towards it."""
    rng = rng or np.random.default_rng(number)
    costs = cost(spec)
    objective = study.config().get("objective", "val_error")
    floor = 0.35 * (costs.params / 1000) ** -0.5 * float(np.exp(rng.normal(0, 0.15)))
    done = {
        "complete": epochs,
        "stopped": max(1, epochs // 4),
        "paused": max(1, epochs // 4),
        "running": epochs // 2,
    }.get(state, 0)
    rows = []
    for epoch in range(1, done + 1):
        share = epoch / epochs
        exact = min(0.9, floor + 0.5 * math.exp(-5 * share) * float(np.exp(rng.normal(0, 0.1))))
        val = round(exact * data["val_size"]) / data["val_size"]
        rate = 0.1 * min(share / 0.3, (1 - share) / 0.7)
        rows.append(
            {
                "epoch": epoch,
                "train_loss": 2.3 * exact,
                "train_error": exact * (1 - 0.4 * share),
                "val_loss": 2.6 * exact,
                "val_error": val,
                "learning_rate": rate,
                "seconds": 1.5,
            }
        )
    folder = study.trial_folder(number)
    if rows:
        write_curve(folder, rows)
    record = new_record(
        number,
        arm,
        {"growth_rate": spec.growth_rates[0], **{f"block_layers_{i}": n for i, n in enumerate(spec.block_layers, 1)}},
        spec,
        state=state,
        cost=dataclasses.asdict(costs),
        seed=[0, number],
        data=data,
        epochs=done,
        epochs_planned=epochs,
        seconds=1.5 * done,
        val_error=rows[-1]["val_error"] if rows else None,
        val_loss=rows[-1]["val_loss"] if rows else None,
        reason={
            "failed": "diverged: the training loss is nan at step 3 of epoch 1.",
            "infeasible": "params 61,002 > 60,000",
        }.get(state),
        latency=1e-9 * costs.macs if "latency" in objective else None,
        versions=VERSIONS,
        commit="f" * 40,
        host="test-host",
        started="2026-01-02T03:04:05+00:00",
        ended=None if state == "running" else "2026-01-02T03:05:05+00:00",
    )
    record = dataclasses.replace(record, **changes)
    if state == "complete" and not record.objectives:
        known = {**record.cost, "latency": record.latency, "val_error": record.val_error, "val_loss": record.val_loss}
        record.objectives = {name: known[name] for name in objective.split(",")}
    if norms and state == "complete":
        write_norms(folder, plain_norms(spec, done))
    study.write_record(record)
    return record


def plain_norms(spec: DenseNetSpec, epochs: int) -> dict[str, np.ndarray]:
    """Return the arrays of norms.npz: weights shrink, less so in deep layers. Some biases and norms are included."""
    from dnas.analysis.weight_norms import weight_sizes

    sizes = weight_sizes(spec)
    names = [*sizes, "features.norm5.weight", "classifier.bias"]
    depth = np.linspace(0, 1, len(names))
    time = np.arange(epochs + 1)[:, None] / max(1, epochs)
    rms = 0.1 * (1 - (0.7 - 0.9 * depth) * (1 - np.exp(-3 * time)))
    l2 = rms * np.sqrt([*sizes.values(), 32, 10])
    pairs = [(s.layer, layer.name) for layer in spec.layers() if layer.kind != "stem" for s in layer.sources]
    return {"names": np.array(names), "l2": l2, "pairs": np.array(pairs), "reuse": np.ones((epochs + 1, len(pairs)))}


def write_curve(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "curve.csv", index=False)


def write_norms(folder: Path, plain: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "norms.npz", **plain)  # type: ignore[arg-type]


# Fields in which two runs of a study may differ. The commit may change while the tests run.
RUN_FIELDS = ("host", "started", "ended", "seconds", "peak_memory_bytes", "commit")


def equal_but_times(records: Iterable[TrialRecord]) -> list[dict[str, Any]]:
    """Return records without the fields that depend on the host and its speed."""
    return [
        {key: value for key, value in dataclasses.asdict(record).items() if key not in RUN_FIELDS} for record in records
    ]


def events_but_times(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key not in ("time", "seconds")} for event in events]


SEARCHED_SPACE = """\
# Small DenseNets for 8×8 digits with a choice that depends on another: made up for the tests.
family = "densenet"
dataset = "digits"

[choose]
growth_rate  = { int = [4, 16], step = 4 }
block_layers = { int = [1, 3], times = 2 }
bottleneck   = { of = [0, 4] }
compression  = { of = [0.5, 1.0], when = { bottleneck = 4 } }
connectivity = { of = ["dense", "none"] }

[limits]
params = 60_000

[recipe]
name = "fast"
epochs = 12

[[first]]
growth_rate = 4
block_layers = [1, 1]
bottleneck = 0
compression = 0.5
connectivity = "none"
"""


def search_error(params: Mapping[str, Any]) -> float:
    """Return an error that falls with width, more so without dense connections, and with the first block's depth."""
    narrow = (16 - params["growth_rate"]) / 12
    return float(
        0.05 + 0.1 * narrow + 0.2 * narrow * (params["connectivity"] == "none") - 0.01 * params["block_layers_1"]
    )


def add_search(
    path: Path,
    written: int,
    error: Callable[[Mapping[str, Any]], float],
    states: Mapping[int, str],
    **config: Any,
) -> StudyFolder:
    """Create a search of `SEARCHED_SPACE` at random points.

    Args:
        path: Folder of the study.
        written: Number of trials. The first one is the first network of the space.
        error: Returns the validation error for the params of a trial.
        states: States of the trials that are not complete, by number.
        config: Changes to study.toml.

    Returns:
        Folder of the study.
    """
    space = parse_space(SEARCHED_SPACE, "searched", "the tests' space")
    study = make_study(
        path,
        [],
        **{
            "trials": written,
            "space": {"name": space.name, "title": space.title, "text": SEARCHED_SPACE},
            **config,
        },
    )
    rng = random.Random(0)
    for number in range(written):
        params = dict(space.first[0]) if number == 0 else space.random_point(rng)
        state = states.get(number, "complete")
        value = error(params)
        outcome = {"val_error": value, "objectives": {"val_error": value}} if state == "complete" else {}
        spec = space.spec_of(params)
        assert isinstance(spec, DenseNetSpec)
        add_trial(study, number, spec, state, 12, params=params, **outcome)
    return study
