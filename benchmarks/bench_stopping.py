"""Savings and losses of early stopping: the rules of `dnas.strategy.stopping` on learning curves, on a simulated clock.

    python benchmarks/bench_stopping.py > benchmarks/results/stopping.md

There are two sources of curves: parametric curves, with the assumptions in the docstring of `planted`, and training
runs recorded on digits, from benchmarks/data/digits_curves.csv (benchmarks/record_curves.py). Every rule receives the
same trials in the same order and four asynchronous workers, which prefer a promotable trial to a new one. Prints
Markdown.
"""

import argparse
import csv
import heapq
import inspect
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from dnas.space.pareto import hypervolume
from dnas.strategy.stopping import STRATA, Ladder

WORKERS = 4
EPOCHS = 27
TRIALS = 120
RECORDED = Path(__file__).resolve().parent / "data" / "digits_curves.csv"


@dataclass(frozen=True)
class Curve:
    """Errors of a trial after each epoch if it is never stopped. `size` is in params."""

    errors: tuple[float, ...]
    size: float


@dataclass
class Run:
    """Result of a simulation.

    Attributes:
        reached: last epoch of each trial.
        events: reports to the ladder, in order.
        resumed: for each promotion the trial, the epoch after which it was paused, and the epoch that it trained next.
    """

    reached: dict[int, int] = field(default_factory=dict)
    events: list[tuple[object, ...]] = field(default_factory=list)
    resumed: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return sum(self.reached.values())

    def complete(self, curves: Sequence[Curve]) -> list[int]:
        return [number for number, epoch in self.reached.items() if epoch == len(curves[number].errors)]


def simulate(
    ladder: Ladder, curves: Iterable[Curve], *, several: bool, most: float = math.inf, workers: int = WORKERS
) -> Run:
    """Simulate the training of `curves` under `ladder` on `workers`, until none is left or `most` epochs are used.

    A free worker takes the promotable trial if there is one, otherwise the next new trial, otherwise it waits. An epoch
    takes longer for a larger network.
    """
    run, curves = Run(), list(curves)
    new = iter(range(len(curves)))
    busy: list[tuple[float, int]] = []  # (when its epoch ends, number)
    paused: dict[int, int] = {}  # promoted trials that have not reported since
    clock, spent = 0.0, 0

    def train(number: int) -> None:
        heapq.heappush(busy, (clock + 1.0 + curves[number].size / 3e5, number))

    while spent < most:
        while len(busy) < workers:
            number = ladder.promotable()
            if number is not None:
                ladder.promote(number)
                run.events.append(("promote", number))
                paused[number] = run.reached[number]
            else:
                number = next(new, None)
            if number is None:
                break
            train(number)
        if not busy:
            break
        clock, number = heapq.heappop(busy)
        curve, epoch = curves[number], run.reached.get(number, 0) + 1
        values = (curve.errors[epoch - 1], curve.size) if several else (curve.errors[epoch - 1],)
        size = curve.size if several else None
        go_on = ladder.decide(number, epoch, values, size)
        ladder.note(number, epoch, values, size, go_on)
        run.events.append(("note", number, epoch, values, size, go_on))
        if number in paused:
            run.resumed.append((number, paused.pop(number), epoch))
        run.reached[number] = epoch
        spent += 1
        if go_on and epoch < len(curve.errors):
            train(number)
    return run


# --- the curves ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Trials of one seed. The first `trials` are compared. The rest are used if epochs are left.

    Attributes:
        corner: reference point of the hypervolume, in error and log10 of the size.
        planted: the trial whose survival is counted.
    """

    curves: list[Curve]
    trials: int
    corner: tuple[float, float]
    planted: int | None = None


def planted(seed: int, trials: int = TRIALS, epochs: int = EPOCHS, slower: float = 1.0) -> Scene:
    """Generate learning curves of random networks and a planted one, which is large, slow, and on the final front.

    Assumed, not measured: error(t) = floor + (start - floor)·exp(-rate·t), and noise of standard deviation 0.003;
    start is 0.9. Sizes are log-uniform from 10^4 to 10^6 params; u in [0, 1] is a network's place in that range. The
    lowest floor falls linearly from 0.30 (u = 0) to 0.08 (u = 1), and a network's floor exceeds it by |N(0, 0.05)|.
    rate·epochs falls with size as 15·(1/3)^u, times exp(N(0, 0.05)): after a ninth of the epochs the largest have gone
    43% of their way and the smallest 81%; at the end the largest lack 0.7% of it. The planted network has u = 0.9 and
    the least floor of its size less 0.005; its rate is that of its size, divided by `slower`. It comes in the middle
    half of the trials. As many more networks follow, for runs that have epochs left. The corner is the worst final
    error of the trials, and 10^6.05 params.
    """
    rng = np.random.default_rng([seed, 20])
    count = 2 * trials
    u = rng.uniform(0, 1, count)
    above = np.abs(rng.normal(0, 0.05, count))
    haste = np.exp(rng.normal(0, 0.05, count))
    number = int(rng.integers(trials // 4, 3 * trials // 4))
    u[number], above[number], haste[number] = 0.9, -0.005, 1 / slower
    floor = 0.30 - 0.22 * u + above
    rate = 15 * (1 / 3) ** u * haste / epochs
    t = np.arange(1, epochs + 1)
    errors = floor[:, None] + (0.9 - floor)[:, None] * np.exp(-rate[:, None] * t)
    errors = np.clip(errors + rng.normal(0, 0.003, errors.shape), 0, 1)
    sizes = np.round(10 ** (4 + 2 * u))
    curves = [Curve(tuple(map(float, row)), float(size)) for row, size in zip(errors, sizes, strict=True)]
    return Scene(curves, trials, (float(errors[:trials, -1].max()), 6.05), number)


def recorded(seed: int, trials: int = TRIALS, path: Path = RECORDED) -> Scene:
    """Return the runs recorded on digits in a random order.

    The corner is 10% error and 1.1 times the params of the largest network, so networks above 10% error do not count.
    """
    found: dict[int, tuple[float, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["number"]), (float(row["params"]), []))[1].append(float(row["val_error"]))
    every = [Curve(tuple(errors), size) for size, errors in found.values()]
    order = np.random.default_rng([seed, 21]).permutation(len(every))
    largest = max(curve.size for curve in every)
    return Scene([every[i] for i in order], trials, (0.10, math.log10(1.1 * largest)))


# --- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Result of a rule on one seed, relative to no stopping.

    `share` is the share of epochs. Hypervolumes are ratios and errors are differences, with the same trials, and with
    more trials but half the epochs.
    """

    share: float
    complete: int
    promoted: int
    volume: float
    volume_at_half: float
    error: float
    error_at_half: float
    survived: bool


def volume(scene: Scene, numbers: Iterable[int]) -> float:
    """Return the hypervolume of final error and log10 of size of the given trials, which must be complete."""
    points = [(scene.curves[number].errors[-1], math.log10(scene.curves[number].size)) for number in numbers]
    return hypervolume(np.array(points).reshape(-1, 2), scene.corner)


def compare(make: Callable[[int], Ladder], scene: Scene, *, several: bool) -> Outcome:
    """Compare a rule with no stopping on one scene. `make` returns a ladder for a number of epochs."""
    curves, trials = scene.curves, range(scene.trials)
    epochs = len(curves[0].errors)
    whole = scene.trials * epochs
    same = simulate(make(epochs), curves[: scene.trials], several=several)
    half = simulate(make(epochs), curves, several=several, most=whole // 2)
    ended, ended_at_half = same.complete(curves), half.complete(curves)

    def least(numbers: Iterable[int]) -> float:
        return min(curves[number].errors[-1] for number in numbers)

    return Outcome(
        same.epochs / whole,
        len(ended),
        len(same.resumed),
        volume(scene, ended) / volume(scene, trials),
        volume(scene, ended_at_half) / volume(scene, trials),
        least(ended) - least(trials),
        least(ended_at_half) - least(trials),
        scene.planted in ended,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95% interval (Student's t)."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread


# --- tables -------------------------------------------------------------------------------------------------------

HEAD = (
    "| rule | epochs | complete | promoted | hypervolume, same trials | hypervolume, half the epochs |"
    " best error, same trials, points | best error, half the epochs, points | planted survives |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line(name: str, stopping: str, scenes: Sequence[Scene], *, several: bool, strata: int = STRATA) -> None:
    found = [
        compare(lambda epochs: Ladder(stopping, epochs, several=several, strata=strata), scene, several=several)
        for scene in scenes
    ]

    def mean(key: str, scale: float = 1.0, digits: int = 3, sign: str = "") -> str:
        middle, half = interval([scale * getattr(outcome, key) for outcome in found])
        return f"{middle:{sign}.{digits}f} ± {half:.{digits}f}"

    lived = f"{sum(o.survived for o in found)} of {len(found)}" if scenes[0].planted is not None else "–"
    share = f"{np.mean([o.share for o in found]):.2f} (at most {max(o.share for o in found):.2f})"
    cells = [name, share, f"{np.mean([o.complete for o in found]):.0f}", f"{np.mean([o.promoted for o in found]):.0f}"]
    cells += [mean("volume"), mean("volume_at_half")] if several else ["–", "–"]
    cells += [mean("error", 100, 2, "+"), mean("error_at_half", 100, 2, "+"), lived]
    print(f"| {' | '.join(cells)} |", flush=True)


def tables(scenes: Sequence[Scene]) -> None:
    for several, rules in (
        (True, (("asha", STRATA), ("asha", 1), ("hyperband", STRATA), ("none", STRATA))),
        (False, (("asha", 1), ("hyperband", 1), ("median", 1), ("none", 1))),
    ):
        print(f"\n### {'Error and params' if several else 'Error alone'}\n\n{HEAD}")
        for stopping, strata in rules:
            words = {STRATA: f", {STRATA} strata", 1: ", no strata"}[strata] if several and stopping != "none" else ""
            line(stopping + words, stopping, scenes, several=several, strata=strata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    seeds = range(parser.parse_args().seeds)
    day, assumed = time.strftime("%Y-%m-%d"), inspect.cleandoc(planted.__doc__ or "").split("Assumed, not measured:")[1]
    print(
        f"""# Savings and losses of early stopping

    python benchmarks/bench_stopping.py > benchmarks/results/stopping.md

{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, {day};
{len(seeds)} seeds, {TRIALS} trials each, {WORKERS} asynchronous workers on a simulated clock. Mean ± half the 95%
interval over the seeds (Student's t).

*epochs*: share of the epochs that the same trials need without stopping. *hypervolume*: of final error and log10 of
params of the complete trials, as a ratio to that without stopping, paired by seed. It is reported for the same
trials, and for half the epochs, which are filled with new networks. *best error*: error of the best complete trial
minus that without stopping. The row `none` at half the epochs is the result of half the training without a rule.

## Parametric curves, with a planted large slow starter

Assumed, not measured:{assumed.rstrip()}"""
    )
    scenes = [planted(seed) for seed in seeds]
    tables(scenes)
    print(f"\n### Number of strata\n\nError and params, asha.\n\n{HEAD}")
    for strata in (1, 2, 3, 4, 6, 8):
        line(f"{strata} strata" if strata > 1 else "no strata", "asha", scenes, several=True, strata=strata)
    print(
        "\n### Fewer trials, other seeds, and a planted network that is slower than its size explains\n\n"
        f"Error and params, asha, {STRATA} strata.\n\n{HEAD}"
    )
    for trials in (30, 60):
        line(f"{trials} trials", "asha", [planted(seed, trials) for seed in seeds], several=True)
    line("100 other seeds", "asha", [planted(seed) for seed in range(1000, 1100)], several=True)
    for slower in (1.05, 1.1, 1.2):
        line(f"{slower} times slower", "asha", [planted(s, slower=slower) for s in seeds], several=True)
    if not RECORDED.exists():
        print(f"no {RECORDED}: record_curves.py writes it", file=sys.stderr)
        return
    every = [recorded(seed) for seed in seeds]
    count, epochs = len(every[0].curves), len(every[0].curves[0].errors)
    print(
        f"""
## Recorded curves: digits

{count} random networks of digits_bc, {epochs} epochs each, one seed per network (`benchmarks/record_curves.py`); each
seed is another order of them, so that the {TRIALS} trials of different seeds overlap and the intervals are too
narrow. The corner is 10% error and a tenth more params than the largest has. 144 validation images:
one of them is 0.69 points."""
    )
    tables(every)
    print("\n## Cost of decisions\n\nMilliseconds of CPU for one arrival at a rung: decide, note and promotable.\n")
    print("| objectives | median at 2,000 arrivals | median at 10,000 |\n|---|---|---|")
    for objectives in (1, 2, 3):
        early, late = (f"{1000 * seconds:.1f}" for seconds in seconds_to_decide(objectives))
        print(f"| {objectives} | {early} | {late} |", flush=True)


def seconds_to_decide(objectives: int) -> tuple[float, float]:
    """Return the median CPU seconds of an arrival at a rung, of the last 200 of 2,000 and of 10,000 arrivals."""
    ladder, rng, taken = Ladder("asha", EPOCHS, several=objectives > 1), np.random.default_rng(0), []
    for number in range(10_000):
        values = (rng.random(), 10 ** rng.uniform(4, 6), rng.random())[:objectives]
        size = values[1] if objectives > 1 else None
        began = time.process_time()
        ladder.note(number, ladder.rungs[0], values, size, ladder.decide(number, ladder.rungs[0], values, size))
        if (best := ladder.promotable()) is not None:
            ladder.promote(best)
        taken.append(time.process_time() - began)
    return statistics.median(taken[1_800:2_000]), statistics.median(taken[-200:])


if __name__ == "__main__":
    main()
