"""Response time of the command line, and speed of the cost model.

    python benchmarks/bench_cost.py

Times whole processes, each paired with `python -c pass` in the same run to cancel the machine's speed. Medians of 11
with the range. Prints a Markdown table.
"""

import os
import platform
import random
import statistics
import subprocess
import sys
import time

from dnas.arch import DenseNetSpec, cost

RUNS = 11


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def until_torch(arguments: str) -> list[str]:
    """Return a command that runs dnas until it imports torch, by when it has printed its plan."""
    code = f"import sys; sys.modules['torch'] = None; from dnas.cli import main; main({arguments.split()})"
    return [sys.executable, "-c", code]


def pricing() -> float:
    rng = random.Random(0)
    specs = [
        DenseNetSpec(
            tuple(rng.randint(1, 48) for _ in range(3)),
            growth_rate=rng.randint(4, 48),
            compression=rng.randint(3, 10) / 10,
            bottleneck=rng.choice([0, 4]),
            connectivity=rng.choice(["dense", "log", "none", f"window:{rng.randint(1, 30)}"]),
        )
        for _ in range(10_000)
    ]
    began = time.perf_counter()
    for spec in specs:
        cost(spec)
    return time.perf_counter() - began


def main() -> None:
    python = [sys.executable, "-c", "pass"]
    commands = {
        "dnas --help": [sys.executable, "-m", "dnas.cli", "--help"],
        "dnas cost densenet121": [sys.executable, "-m", "dnas.cli", "cost", "densenet121"],
        "dnas cost densenet_bc_190_40 --layers --json": [
            *(sys.executable, "-m", "dnas.cli", "cost", "densenet_bc_190_40", "--layers", "--json")
        ],
        **{
            f"dnas {arguments}, refused": [sys.executable, "-m", "dnas.cli", *arguments.split()]
            for arguments in (
                "search --space tiny --trials 9 --device gpu",
                "search --space tiny --trials 9 --subset 3",
                "ablate digits_dropout --subset 3",
            )
        },
        **{
            f"dnas {arguments}, until its plan is printed": until_torch(arguments)
            for arguments in (
                "search --space tiny --trials 9 --dry-run",
                "search --space cifar_bc --trials 200 --dry-run",
                "ablate digits_dropout --dry-run",
            )
        },
    }
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; n = {RUNS}\n")
    print("| command | median (range), seconds | above an empty Python | ratio to an empty Python |")
    print("|---|---|---|---|")
    for name, command in commands.items():
        pairs = [(seconds(command), seconds(python)) for _ in range(RUNS)]
        times = [ours for ours, _ in pairs]
        ratio = statistics.median(ours / empty for ours, empty in pairs)
        above = statistics.median(ours - empty for ours, empty in pairs)
        median = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        print(f"| {name} | {median} | {above:.2f} | {ratio:.1f} |", flush=True)
    times = [pricing() for _ in range(RUNS)]
    median = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
    print(f"| 10,000 random specs priced | {median} | – | – |")


if __name__ == "__main__":
    main()
