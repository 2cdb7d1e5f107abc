"""Cost of waiting threads: a training step with spinning and passive OpenMP threads, with and without other load.

    python benchmarks/bench_threads.py

Each variant runs in its own process, in turn (A B C A B C ...). The load is two busy Python processes. Prints a
Markdown table with medians over the rounds and the ratio to one thread in the same round.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys

STEP = """
import sys, time, statistics, torch, torch.nn.functional as F
from dnas.arch import parse_name
from dnas.nn import build
torch.set_num_threads(int(sys.argv[1]))
spec = parse_name(sys.argv[2])
net = build(spec).to(memory_format=torch.channels_last)
x = torch.randn(64, spec.in_channels, spec.image_size, spec.image_size).contiguous(memory_format=torch.channels_last)
y = torch.arange(64) % 10
times = []
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    F.cross_entropy(net(x), y).backward()
    times.append(time.perf_counter() - began)
print(statistics.median(times[1:]))
"""
VARIANTS = {
    "1 thread": ("1", {}),
    "2 threads, spinning (OpenMP's default)": ("2", {}),
    "2 threads, passive (dnas)": ("2", {"OMP_WAIT_POLICY": "PASSIVE"}),
}
NETWORKS = {"densenet-bc:L=22,k=8,size=8,channels=1": 10, "densenet-bc:L=40,k=12": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import torch

    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; n = {args.rounds} rounds\n")
    print("| network | machine | variant | ms per step, median (range) | ratio to 1 thread |")
    print("|---|---|---|---|---|")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    for network, steps in NETWORKS.items():
        for load in (0, 2):
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
            try:
                measured: dict[str, list[float]] = {}
                for _ in range(args.rounds):
                    for name, (threads, environment) in VARIANTS.items():
                        run = [sys.executable, "-c", STEP, threads, network, str(steps)]
                        out = subprocess.run(run, env=clean | environment, capture_output=True, text=True, check=True)
                        measured.setdefault(name, []).append(1000 * float(out.stdout))
            finally:
                for process in busy:
                    process.kill()
            for name, times in measured.items():
                ratio = statistics.median(a / b for a, b in zip(times, measured["1 thread"], strict=True))
                spread = f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
                beside = f"beside {load} busy processes" if load else "quiet"
                print(f"| `{network}` | {beside} | {name} | {spread} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
