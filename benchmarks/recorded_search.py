"""A search over recorded networks in the real loop: proposals, event log, records and decisions."""

import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recorded import CHOICES, Table, row_of
from dnas.api.display import PlainLines
from dnas.arch import Cost
from dnas.arch.families import FAMILIES
from dnas.executors.runner import TrialRunner
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.space.space import Limits, Space
from dnas.strategy.driver import Driver
from dnas.study.config import RunConfig, SearchConfig
from dnas.study.folder import StudyFolder


@dataclass(frozen=True)
class Cell:
    """A recorded network with the interface that the search loop needs."""

    row: int

    @property
    def digest(self) -> str:
        return f"{self.row:016d}"

    def to_dict(self) -> dict[str, Any]:
        return {"row": self.row}


@dataclass(frozen=True)
class RecordedSpace(Space):
    """The table as a search space. Its points are rows, and its only cost is the number of parameters."""

    table: Table | None = None

    def spec_of(self, params: Mapping[str, Any]) -> Cell:  # type: ignore[override]
        return Cell(row_of(params))

    def cost(self, spec: Cell) -> Cost:  # type: ignore[override]
        assert self.table is not None
        return Cost(round(1e6 * self.table.params[spec.row]), 0, 0, 1)

    def name_of(self, spec: Cell) -> str:  # type: ignore[override]
        return f"row {spec.row}"


class Recorded:
    """Executor that looks up results. `measure` returns the error of a row. A run has one epoch and takes no time."""

    def __init__(self, measure: Callable[[int], float]) -> None:
        self._measure = measure
        self._said: deque[tuple[str, Message]] = deque()

    @property
    def running(self) -> list[str]:
        return [key for key, _ in self._said][:1]

    @property
    def workers(self) -> int:
        return 1

    @property
    def queued(self) -> set[str]:
        return set()

    def room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        error = self._measure(job.spec["row"])
        row = {"epoch": 1, "train_loss": 0.0, "train_error": 0.0, "val_loss": 0.0, "val_error": error}
        done = {"finished": True, "epochs": 1, "val_error": error, "val_loss": 0.0, "seconds": 0.0}
        done |= {"peak_memory_bytes": 0, "weights_digest": ""}
        self._said += [
            (job.key, Message("epoch", row | {"learning_rate": 0.0, "seconds": 0.0})),
            (job.key, Message("done", done)),
        ]

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        return [self._said.popleft()]

    def answer(self, key: str, go_on: bool) -> None: ...
    def kill(self, key: str) -> None: ...
    def clock(self) -> float:
        return 0.0

    def stop(self) -> None: ...


def search_recorded(table: Table, sampler: str, run: int, evaluations: int, measure: Callable[[int], float]) -> None:
    """Run a complete search by dnas with one worker. `run` is the study's seed."""
    recipe = load_space("cifar_bc", epochs=1).recipe
    family = FAMILIES["densenet"]
    space = RecordedSpace(table.name, table.name, "", family, "cifar10", {}, CHOICES, Limits(), recipe, (), table)
    settings = RunConfig({}, kernels="plain")
    config = SearchConfig(space, "recorded", evaluations, settings, seed=run, sampler=sampler, stopping="none")
    with tempfile.TemporaryDirectory() as place:
        folder = StudyFolder(Path(place))
        folder.create({"name": "recorded", "recipe": recipe.to_dict()})
        show = PlainLines(quiet=True)
        driver = Driver(folder, config, space, {}, show)
        driver.open()
        TrialRunner(driver, Recorded(measure), show).run()
