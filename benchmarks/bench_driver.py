"""Overhead of dnas per trial, with everything written to disk, as a study grows.

    python benchmarks/bench_driver.py --trials 2000

Runs a search of `cifar_bc` through the real loop (proposals, event log, records, decisions), with training runs
simulated by a formula with 10 reports each. Compares it with plain Optuna and the same TPE by ask and tell, with the
study in memory, in a journal file and in SQLite. Prints milliseconds per trial (median and maximum of 20 trials) at
several sizes.
"""

import argparse
import contextlib
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import optuna

from dnas.arch import DenseNetSpec, cost
from dnas.executors.runner import TrialRunner
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.strategy.distributions import distributions
from dnas.strategy.driver import Driver
from dnas.study.config import RunConfig, SearchConfig
from dnas.study.folder import StudyFolder, read_study
from dnas.study.record import TrialRecord

REPORTS = 10
DATA = {
    "name": "cifar10",
    "title": "CIFAR-10",
    "classes": 10,
    "channels": 3,
    "image_size": 32,
    "fingerprint": "0" * 64,
    "train_size": 45_000,
    "val_size": 5_000,
}


def errors(params: int) -> list[float]:
    """Return a curve that falls to a floor, which is lower for larger networks."""
    floor = 0.03 + 100 / params
    return [floor + (0.9 - floor) * 0.6**epoch for epoch in range(1, REPORTS + 1)]


class Formula:
    """Executor of simulated training runs that take no time."""

    def __init__(self) -> None:
        self.queue: list[tuple[str, Message]] = []
        self.key: str | None = None
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    @property
    def running(self) -> list[str]:
        return [] if self.key is None else [self.key]

    @property
    def workers(self) -> int:
        return 1

    @property
    def queued(self) -> set[str]:
        return set()

    def room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        self.key = job.key
        rows = [
            {
                "epoch": n,
                "train_loss": e,
                "train_error": e,
                "val_loss": 2 * e,
                "val_error": e,
                "learning_rate": 0.1,
                "seconds": 1.0,
            }
            for n, e in enumerate(errors(job.params), 1)
        ]
        done = {
            "finished": True,
            "epochs": REPORTS,
            "val_error": rows[-1]["val_error"],
            "val_loss": 0.1,
            "seconds": 1.0,
        }
        done |= {"peak_memory_bytes": 1, "weights_digest": "0"}
        self.queue = [(job.key, Message("epoch", row)) for row in rows] + [(job.key, Message("done", done))]

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        key, message = self.queue.pop(0)
        if message.kind == "done":
            self.key = None
        return [(key, message)]

    def answer(self, key: str, go_on: bool) -> None:
        assert go_on

    def kill(self, key: str) -> None: ...
    def clock(self) -> float:
        return time.monotonic()

    def stop(self) -> None: ...


class Watch:
    """Display that records the times at which trials end."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def opened(self, records: list[TrialRecord], wanted: int) -> None: ...
    def began(self, record: TrialRecord) -> None: ...
    def step(self, record: TrialRecord, done: int, total: int) -> None: ...
    def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None: ...
    def ended(self, record: TrialRecord) -> None:
        self.ends.append(time.perf_counter())

    def note(self, text: str) -> None: ...


def ours(sampler: str, trials: int) -> list[float]:
    """Return the seconds of each trial with dnas."""
    folder, watch = StudyFolder(Path("studies") / sampler), Watch()
    space = load_space("cifar_bc", epochs=REPORTS)
    config = SearchConfig(space, sampler, trials, RunConfig(DATA), sampler=sampler, stopping="none")
    folder.path.mkdir(parents=True)
    folder.create({"name": sampler, "recipe": space.recipe.to_dict()})
    driver = Driver(folder, config, space, DATA, watch)
    driver.open()
    watch.ends = [time.perf_counter()]
    TrialRunner(driver, Formula(), watch).run()
    return [after - before for before, after in zip(watch.ends, watch.ends[1:], strict=False)]


def plain_optuna(storage: Any, trials: int) -> list[float]:
    space, seconds = load_space("cifar_bc"), []
    sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_ei_candidates=64, seed=0)
    study = optuna.create_study(storage=storage, sampler=sampler)
    for _ in range(trials):
        began = time.perf_counter()
        trial = study.ask(fixed_distributions=distributions(space.choices))
        spec: DenseNetSpec = space.spec_of(trial.params)
        curve = errors(cost(spec).params)
        for epoch, error in enumerate(curve, 1):
            trial.report(error, epoch)
        study.tell(trial, curve[-1])
        seconds.append(time.perf_counter() - began)
    return seconds


def row(name: str, seconds: list[float], sizes: list[int]) -> str:
    cells = []
    for size in sizes:
        last = [1000 * s for s in seconds[max(0, size - 20) : size]]
        cells.append(f"{median(last):.1f} ({max(last):.0f})" if len(seconds) >= size else "")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--samplers", default="gp,tpe,random")
    parser.add_argument("--peers", default="memory,journal,sqlite")
    parser.add_argument("--peer-trials", type=int, default=1000)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sizes = [size for size in (10, 100, 500, 1000, 2000, 5000, 10_000) if size <= args.trials]
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        print(f"{platform.machine()}, {os.cpu_count()} cores (shared), Python {platform.python_version()},", end=" ")
        print(f"optuna {optuna.__version__}; ms per trial: median (maximum) of the last 20 of that many trials\n")
        print("| | " + " | ".join(f"{size:,}" for size in sizes) + " |\n|---|" + "---|" * len(sizes))
        for sampler in filter(None, args.samplers.split(",")):
            print(row(f"dnas, {sampler}, everything written", ours(sampler, args.trials), sizes), flush=True)
        storages = {
            "memory": lambda: None,
            "journal": lambda: optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("journal")),
            "sqlite": lambda: "sqlite:///optuna.db",
        }
        for name in filter(None, args.peers.split(",")):
            print(row(f"optuna, TPE, {name}", plain_optuna(storages[name](), args.peer_trials), sizes), flush=True)
        for sampler in args.samplers.split(",")[-1:]:
            times = []
            for _ in range(3):
                began = time.perf_counter()
                frame = read_study(Path("studies") / sampler)
                times.append(time.perf_counter() - began)
            print(f"\n{len(frame):,} trials are read into a data frame in {median(times):.2f} s (median of 3)")


if __name__ == "__main__":
    main()
