"""Saturation of the driver: the real loop with many workers on a simulated clock.

    python benchmarks/simulate_cluster.py --workers 1000 --trials 100000 --sampler random --seconds 10
    python benchmarks/simulate_cluster.py --report

Training runs are formulas that take simulated time, per epoch in proportion to the network's macs (`--seconds` is the
time of a full run of the mean network). The loop itself (proposals, decisions, events and records on disk) takes real
CPU time of this machine, which advances the simulated clock as well. A message that arrives while the driver is busy
waits, and so does the GPU that sent it. Every run appends a line to --kept.
"""

import argparse
import contextlib
import datetime
import heapq
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "simulation.md"
ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 9  # with one rung, after epoch 3


class Simulated:
    """Executor with `workers` simulated GPUs. `now` is the driver's time on the simulated clock."""

    def __init__(self, workers: int, seconds: float, mean_macs: float) -> None:
        self.workers = workers
        self.now = 0.0
        self.busy = 0.0  # GPU seconds spent on training
        self.waits: list[float] = []  # seconds that messages waited for the driver
        self._per_mac = seconds / EPOCHS / mean_macs
        self._jobs: dict[str, Any] = {}
        self._heap: list[tuple[float, str, int]] = []
        self._stopped: list[tuple[str, Any]] = []  # ended by an answer, to be reported by the next `wait`
        self._real = time.process_time()

    @property
    def running(self) -> list[str]:
        return list(self._jobs)

    @property
    def queued(self) -> set[str]:
        return set()

    def room(self, job: Any) -> bool:
        return True

    def clock(self) -> float:
        return self._driver()

    def _driver(self) -> float:
        """Advance the clock by the driver's CPU time since the last call, and return the time."""
        real = time.process_time()
        self.now += real - self._real
        self._real = real
        return self.now

    def start(self, job: Any) -> None:
        from dnas.arch import DenseNetSpec, cost

        macs = cost(DenseNetSpec.from_dict(job.spec)).macs
        begin = 3 if job.attempt > 1 else 0  # a promoted trial resumes after its rung
        self._jobs[job.key] = [begin, macs * self._per_mac, job]
        self._epoch(job.key, self._driver())

    def _epoch(self, key: str, at: float) -> None:
        job = self._jobs[key]
        job[0] += 1
        self.busy += job[1]
        heapq.heappush(self._heap, (at + job[1], key, job[0]))

    def wait(self, timeout: float) -> list[tuple[str, Any]]:
        from dnas.executors.worker import Message

        if self._stopped:
            messages, self._stopped = self._stopped, []
            return messages
        now = self._driver()
        at, key, epoch = heapq.heappop(self._heap)
        self.now = max(now, at)
        self.waits.append(self.now - at)
        error = self._error(key, epoch)
        row = {"epoch": epoch, "train_loss": error, "train_error": error, "val_loss": 2 * error, "val_error": error}
        return [(key, Message("epoch", row | {"learning_rate": 0.1, "seconds": self._jobs[key][1]}))] + (
            [(key, self._done(key, epoch, True))] if epoch == EPOCHS else []
        )

    def _error(self, key: str, epoch: int) -> float:
        params = self._jobs[key][2].params
        return 0.03 + 1000 / params + 0.9 * 0.6**epoch + int(key) % 97 / 10_000

    def _done(self, key: str, epoch: int, finished: bool) -> Any:
        from dnas.executors.worker import Message

        error = self._error(key, epoch)
        del self._jobs[key]
        values = {"finished": finished, "epochs": epoch, "val_error": error, "val_loss": 2 * error}
        return Message("done", values | {"seconds": 1.0, "peak_memory_bytes": 1, "weights_digest": "0"})

    def answer(self, key: str, go_on: bool) -> None:
        if key not in self._jobs or self._jobs[key][0] == EPOCHS:
            return
        if go_on:
            self._epoch(key, self._driver())
        else:
            self._stopped.append((key, self._done(key, self._jobs[key][0], False)))

    def kill(self, key: str) -> None:
        raise AssertionError("the simulation kills no run")

    def stop(self) -> None: ...


def simulate(workers: int, trials: int, sampler: str, seconds: float) -> dict[str, Any]:
    from benchmarks.bench_driver import DATA
    from dnas.executors.runner import TrialRunner
    from dnas.space.parse import load_space
    from dnas.strategy.driver import Driver
    from dnas.study.config import RunConfig, SearchConfig
    from dnas.study.folder import StudyFolder
    from tests.support.analytic import Silent

    space = load_space("cifar_bc", epochs=EPOCHS)
    space = space.for_data(3, 32, 10, augmented=True)
    mean = statistics.fmean(c.macs for c in space.survey().costs if not space.limits.excess(c))
    executor = Simulated(workers, seconds, mean)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = StudyFolder(Path("studies/s"))
        run = RunConfig({"name": "cifar10"}, workers=workers)
        config = SearchConfig(space, "s", trials, run, sampler=sampler)
        folder.path.mkdir(parents=True)
        folder.create({"name": "s", "trials": trials})
        driver = Driver(folder, config, space, DATA, Silent())
        driver.open()
        began = time.process_time()
        TrialRunner(driver, executor, Silent()).run()
        real = time.process_time() - began
        states = [record.state for record in driver.records.values()]
        events = sum(1 for _ in (folder.path / "events.jsonl").open())
    waits = sorted(executor.waits)
    return {
        "workers": workers,
        "trials": trials,
        "sampler": sampler,
        "seconds": seconds,
        "driver_seconds": real,
        "events": events,
        "makespan": executor.now,
        "used": executor.busy / (workers * executor.now),
        "wait_median": waits[len(waits) // 2],
        "wait_worst": waits[-1],
        "complete": states.count("complete"),
        "paused": states.count("paused"),
    }


def page(kept: list[dict[str, Any]]) -> str:
    machine = f"{platform.machine()}, {os.cpu_count()} cores shared with other work, Python {platform.python_version()}"
    lines = [
        "# Saturation of the driver with a thousand GPUs",
        "",
        "    python benchmarks/simulate_cluster.py --workers 1000 --trials 100000 --sampler random --seconds 10",
        "",
        "The real loop (proposals, decisions, log and records on disk) on a simulated clock. Training runs are",
        f"simulated by formulas of {EPOCHS} epochs with a rung after three, on cifar_bc. The loop itself takes CPU",
        "time of this machine and advances the simulated clock; n = 1 run per row.",
        f"{machine}, {datetime.date.today()}.",
        "",
        "Used: share of the GPUs' time spent on training. Wait: time from the end of an epoch on a GPU until the",
        "driver receives it.",
        "",
        "| sampler | GPUs | trials | full training time | driver, ms per trial | used | wait, median | wait, worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in kept:
        lines.append(
            f"| {row['sampler']} | {row['workers']:,} | {row['trials']:,} | {row['seconds']:g} s"
            f" | {1000 * row['driver_seconds'] / row['trials']:.1f} | {100 * row['used']:.1f}%"
            f" | {row['wait_median']:.3f} s | {row['wait_worst']:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--sampler", default="random")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="time of a full run of the mean network (default: 10)"
    )
    parser.add_argument("--kept", type=Path, default=Path("simulation.jsonl"))
    parser.add_argument("--report", action="store_true", help="write the table without simulating")
    options = parser.parse_args()
    options.kept = options.kept.absolute()
    if not options.report:
        row = simulate(options.workers, options.trials, options.sampler, options.seconds)
        print(row)
        with options.kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
    RESULTS.write_text(page([json.loads(line) for line in options.kept.read_text().splitlines()]))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
