"""Searches on the Ray cluster of a test, and checks of their studies."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from dnas.errors import InputError
from dnas.executors import ray_tune
from dnas.executors.protocol import Outcome
from dnas.executors.ray_tune import RayExecutor, connect
from dnas.space.parse import load_space
from dnas.strategy.proposals import DEFAULT_SAMPLER
from dnas.strategy.run import search
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from tests.support.analytic import Silent, search_config
from tests.support.patience import patience
from tests.support.ray_nodes import PATIENCE, QUICK, ROOT, Nodes

ENVIRONMENT = os.environ | QUICK | {"PYTHONPATH": str(ROOT)}


def small(trials: int, epochs: int, study: str = "s", **changes: Any) -> SearchConfig:
    space = load_space("digits_bc", epochs=epochs)
    data = {"name": "digits", "subset": 100}
    changes = {"sampler": DEFAULT_SAMPLER, "mirror": "none"} | changes
    return search_config(trials, space, study=study, data=data, **changes)


def joined(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, cpus: int) -> Iterator[str]:
    """Yield the address of a cluster when nodes with `cpus` CPUs have joined.

    This process is not connected to it before or after.
    """
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wait_until(lambda: connect(nodes.address) is not None)
    wait_until(lambda: sum(node.get("CPU", 0) for node in ray_tune._nodes()) >= cpus)
    ray.shutdown()
    yield nodes.address
    ray.shutdown()


def wait_until(condition: Callable[[], bool], description: str = "the condition") -> None:
    began = time.monotonic()
    while True:
        try:
            if condition():
                return
        except InputError:
            pass
        assert time.monotonic() - began < patience(PATIENCE), f"{description} is still false"
        time.sleep(0.05)


def on_ray(address: str, options: SearchConfig, shared: Path | str, **changes: Any) -> Outcome:
    return search(options, Silent(), RayExecutor(options.study, address, shared=shared, **changes))


def arguments(address: str, shared: str, *more: str) -> list[str]:
    return [
        *("search", "--space", "digits_bc", "--study", "s", "--subset", "300"),
        *("--executor", "ray", "--ray-address", address, "--shared", shared, "--stopping", "none", *more),
    ]


def events(folder: Path) -> list[dict[str, Any]]:
    return StudyFolder(folder / "studies" / "s").events()


def finished(folder: Path, trials: int, epochs: int) -> list[TrialRecord]:
    """Return the records after checking that each trial completed exactly once and each epoch was decided once."""
    records = StudyFolder(folder / "studies" / "s").records()
    assert [(r.number, r.state, r.epochs) for r in records] == [(n, "complete", epochs) for n in range(trials)]
    completed = [event["number"] for event in events(folder) if event["event"] == "tell"]
    assert sorted(completed) == list(range(trials))
    reports = [(event["number"], event["epoch"]) for event in events(folder) if event["event"] == "report"]
    assert sorted(reports) == [(n, epoch) for n in range(trials) for epoch in range(1, epochs + 1)]
    return records


def first_epochs_were_kept(folder: Path, number: int, epochs: int) -> bool:
    """Return whether a trial's first epochs were trained once: the curve has the seconds that were first reported."""
    rows = (folder / "studies/s/trials" / str(number) / "curve.csv").read_text().splitlines()[1:]
    reported = {e["epoch"]: e["seconds"] for e in events(folder) if e["event"] == "report" and e["number"] == number}
    return [float(row.rsplit(",", 1)[1]) for row in rows[:epochs]] == [reported[n] for n in range(1, epochs + 1)]
