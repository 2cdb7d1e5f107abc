"""Overhead of Ray per trial, and scaling of a study, on a cluster of several nodes on this machine.

    python benchmarks/bench_cluster.py                  # everything, about half an hour
    python benchmarks/bench_cluster.py --part overhead  # an empty objective, compared with Ray Tune's OptunaSearch
    python benchmarks/bench_cluster.py --part scale     # an objective that sleeps, on 1, 2 and 4 nodes

Every trial runs through dnas's loop, Ray Tune, an actor and its own process, and writes a checkpoint. Only the
training is replaced by a sleep. The results are stored in --kept, and `--report` writes the page from them.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from dnas.executors.worker import Job, Message

RESULTS = Path(__file__).parent / "results" / "cluster.md"
ROOT = Path(__file__).resolve().parent.parent
NOTHING, AT_ONCE, REPEATS = 40, 2, 3  # overhead: trials per run, trials at once, runs
TRIALS, SLEEP_SECONDS, SLOTS = 1000, 0.5, 3  # scale: trials, seconds that each sleeps, trials at once per node
NODES = (1, 2, 4)


def sleep(job: Job, send: Callable[[Message], None], ask: Callable[[Message], bool]) -> None:
    """Replacement of `run_job`: one epoch that sleeps for `learning_rate` seconds."""
    send(Message("started", {"device": job.device, "latency": None, "resident_bytes": 0}))
    time.sleep(job.recipe["learning_rate"])
    Path(job.folder, "checkpoint.pt").write_bytes(bytes(1000))
    row: dict[str, Any] = {"epoch": 1, "train_loss": 1.0, "train_error": 0.5, "val_loss": 1.0, "val_error": 0.5}
    row |= {"learning_rate": 0.1, "seconds": job.recipe["learning_rate"]}
    ask(Message("epoch", row))
    done = {"finished": True, "epochs": 1, "val_error": 0.5, "val_loss": 1.0, "seconds": row["seconds"]}
    send(Message("done", done | {"peak_memory_bytes": 1, "weights_digest": "0"}))


@contextlib.contextmanager
def cluster(nodes: int, slots: int) -> Iterator[str]:
    """Start a Ray cluster of `nodes` nodes with `slots` CPUs each and a head without trials, and yield its address."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # nodes import this file
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(nodes):
            ray_cluster.add_node(num_cpus=slots)
        ray_cluster.wait_for_nodes()
        yield ray_cluster.address
    finally:
        ray_cluster.shutdown()


def through_dnas(address: str, trials: int, seconds: float, workers: int) -> tuple[float, list[float]]:
    """Return the seconds from the first ask of a study to its last tell, and to each of its tells."""
    from dnas.executors.ray_tune import RayExecutor
    from dnas.strategy.run import search
    from tests.support.analytic import Silent, search_config

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        executor = RayExecutor("s", address, shared=Path(folder, "shared"), body="benchmarks.bench_cluster:sleep")
        chosen = search_config(trials, sampler="random", stopping="none", workers=workers, mirror="none")
        chosen = _with_recipe(chosen, epochs=1, learning_rate=seconds)
        ends: list[float] = []
        starts: list[float] = []

        class Watch(Silent):
            def began(self, record: Any) -> None:
                starts.append(time.monotonic())

            def ended(self, record: Any) -> None:
                assert record.state == "complete", record.reason
                ends.append(time.monotonic())

        search(chosen, Watch(), executor)
        assert len(ends) == trials
        return ends[-1] - starts[0], [end - starts[0] for end in ends]


def _with_recipe(chosen: Any, **values: Any) -> Any:
    import dataclasses

    space = chosen.space
    return dataclasses.replace(
        chosen, space=dataclasses.replace(space, recipe=dataclasses.replace(space.recipe, **values))
    )


def through_optuna_search(address: str, trials: int, workers: int) -> float:
    """Return the seconds of `Tuner.fit` with Ray Tune's OptunaSearch, used as in its documentation."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from dnas.executors.ray_tune import connect

    def nothing(config: dict[str, Any]) -> None:
        tune.report({"val_error": 0.5})

    connect(address)
    try:
        with tempfile.TemporaryDirectory() as folder:
            space = {name: tune.choice(list(range(10))) for name in "abcdef"}
            tuner = tune.Tuner(
                tune.with_resources(nothing, {"cpu": 1}),
                param_space=space,
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(metric="val_error", mode="min"),
                    num_samples=trials,
                    max_concurrent_trials=workers,
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            )
            began = time.monotonic()
            results = tuner.fit()
            assert len(results) == trials
            assert not results.errors
            return time.monotonic() - began
    finally:
        ray.shutdown()


def measure_overhead() -> dict[str, list[float]]:
    """Measure the seconds per trial of an empty objective, `AT_ONCE` at once, without and with the start."""
    seconds: dict[str, list[float]] = {"dnas": [], "dnas, with its start": [], "OptunaSearch": []}
    for _ in range(REPEATS):
        with cluster(AT_ONCE, 1) as address:
            total, ends = through_dnas(address, NOTHING, 0.0, AT_ONCE)
            warm = ends[NOTHING // 4 :]
            seconds["dnas"].append((warm[-1] - warm[0]) / (len(warm) - 1))
            seconds["dnas, with its start"].append(total / NOTHING)
        with cluster(AT_ONCE, 1) as address:
            seconds["OptunaSearch"].append(through_optuna_search(address, NOTHING, AT_ONCE) / NOTHING)
        print({name: round(values[-1], 3) for name, values in seconds.items()}, flush=True)
    return seconds


def measure_scale() -> list[dict[str, float]]:
    rows = []
    for nodes in NODES:
        with cluster(nodes, SLOTS) as address:
            total, ends = through_dnas(address, TRIALS, SLEEP_SECONDS, nodes * SLOTS)
        ideal = TRIALS * SLEEP_SECONDS / (nodes * SLOTS)
        skipped = TRIALS // 20  # these wait for the actors' imports
        steady = (TRIALS - 1 - skipped) * SLEEP_SECONDS / (nodes * SLOTS) / (ends[-1] - ends[skipped])
        rows.append({"nodes": nodes, "whole": total, "ideal": ideal, "steady": steady})
        print(rows[-1], flush=True)
    return rows


def page(kept: dict[str, Any]) -> str:
    overhead = kept["overhead"]
    optuna = statistics.median(overhead["OptunaSearch"])
    lines = [
        "# Ray: overhead per trial, and scaling over nodes",
        "",
        "    python benchmarks/bench_cluster.py",
        "",
        f"{kept['machine']}. All nodes are raylets on this machine.",
        "",
        f"## An objective that does nothing, {AT_ONCE} at once",
        "",
        f"Seconds per trial, n = {len(overhead['dnas'])} runs of {NOTHING} trials each, in turn. dnas: from one end",
        "to the next, after the first quarter, with a process and a checkpoint per trial. With its",
        "start: from the first proposal, including the actors' import of torch. OptunaSearch: the whole of `fit`, with",
        "a new actor per trial, which is its default.",
        "",
        "| | median | from | to | of OptunaSearch |",
        "|---|---|---|---|---|",
    ]
    for name, values in overhead.items():
        middle = statistics.median(values)
        lines.append(f"| {name} | {middle:.2f} | {min(values):.2f} | {max(values):.2f} | {middle / optuna:.2f} |")
    if "scale" not in kept:
        return (
            "\n".join([*lines, "", "How a study scales over 1, 2 and 4 nodes (`--part scale`): not measured yet."])
            + "\n"
        )
    lines += [
        "",
        f"## An objective that sleeps {SLEEP_SECONDS:g} s, {TRIALS:,} trials, {SLOTS} at once per node",
        "",
        "Efficiency: the ideal time (all sleeps, divided by the number of trials at once) over the measured time,",
        "n = 1 run each. Steady: without the first twentieth of the trials, which wait for the actors to start. All",
        "nodes share the machine's cores. If the seconds per trial do not change with more nodes, the cores are",
        "saturated, not the study.",
        "",
        "| nodes | trials at once | seconds per trial | efficiency | steady |",
        "|---|---|---|---|---|",
    ]
    for row in kept["scale"]:
        lines.append(
            f"| {row['nodes']} | {row['nodes'] * SLOTS} | {row['whole'] / TRIALS:.2f}"
            f" | {100 * row['ideal'] / row['whole']:.1f}% | {100 * row['steady']:.1f}% |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("overhead", "scale"))
    parser.add_argument(
        "--kept", type=Path, default=Path("cluster.json"), help="file of the results (default: cluster.json)"
    )
    parser.add_argument("--report", action="store_true", help="write the page from --kept without measuring")
    options = parser.parse_args()
    options.kept = options.kept.absolute()
    kept = json.loads(options.kept.read_text()) if options.kept.exists() else {}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch", "optuna"))
    kept["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores shared with other work, Python {platform.python_version()},"
        f" {versions}, {datetime.date.today()}"
    )
    if not options.report:
        if options.part in (None, "overhead"):
            kept["overhead"] = measure_overhead()
        if options.part in (None, "scale"):
            kept["scale"] = measure_scale()
        options.kept.write_text(json.dumps(kept))
    if "overhead" in kept:
        RESULTS.write_text(page(kept))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
