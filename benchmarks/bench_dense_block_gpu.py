"""Dense block on a GPU in bf16 compared with torchvision's, compiled and with CUDA graphs: step and peak memory.

    python benchmarks/bench_dense_block_gpu.py                      # BC(100,12), batches 64 and 512
    python benchmarks/bench_dense_block_gpu.py --batch 64 --rounds 9

Prints one Markdown table per batch size. The target on an H100 is 2.5 times the speed of torchvision's DenseNet,
channels-last, with torch.compile and CUDA graphs, in a quarter of its memory. Requires a CUDA device; it has not been
run on one yet.

Every variant trains the same network on the same random images, with float32 weights under autocast to bfloat16.
Variants take turns. Values are medians over rounds of the mean of `STEPS` steps, with their range. The peak is the
largest memory of tensors while a variant was built and made its first steps, including the memory of a graph, beyond
the memory before it. "CUDA graph" captures the whole step in one graph (`GraphedStep`). "reduce-overhead" uses
torch.compile's graphs of forward and backward.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.bench_dense_block import torchvisions
from dnas.arch import DenseNetSpec, parse_name
from dnas.nn import DenseNet
from dnas.training.step import GraphedStep, Step

NETWORK = "densenet_bc_100_12"
BATCHES = 64, 512
STEPS = 20  # per measured time
FIRST = 5  # untimed steps, in which networks are compiled, tuned and captured
OURS, PEERS = (
    "ours, triton, CUDA graph",
    ("torchvision, compiled, reduce-overhead", "torchvision, compiled, CUDA graph"),
)


@dataclass(frozen=True)
class Variant:
    name: str
    make: Callable[[DenseNetSpec], nn.Module]
    mode: str | None = None  # mode of torch.compile
    graph: bool = False


@dataclass
class Measured:
    peak_bytes: int
    seconds: list[float] = field(default_factory=list)  # seconds per step, one value per round


def peer(spec: DenseNetSpec) -> nn.Module:
    return torchvisions(spec, memory_efficient=False)


def triton(spec: DenseNetSpec) -> nn.Module:
    return DenseNet(spec, kernels="triton")


VARIANTS = [
    Variant("ours, triton", triton),
    Variant(OURS, triton, graph=True),
    Variant("plain modules", DenseNet),
    Variant("plain modules, CUDA graph", DenseNet, graph=True),
    Variant("torchvision", peer),
    Variant("torchvision, CUDA graph", peer, graph=True),
    Variant(PEERS[0], peer, mode="reduce-overhead"),
    Variant(PEERS[1], peer, mode="default", graph=True),
]


def make_step(v: Variant, spec: DenseNetSpec, batch: int, device: str) -> Step:
    net = v.make(spec).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    run: Any = net if v.mode is None else torch.compile(net, mode=v.mode)

    def criterion(logits: Tensor, y: Tensor, size: int) -> Tensor:
        return F.cross_entropy(logits, y)

    step = GraphedStep(run, optimizer, criterion, device, batch) if v.graph else Step(run, optimizer, criterion, device)
    step.begin_epoch()
    return step


def measure(
    spec: DenseNetSpec, batch: int, rounds: int, variants: Sequence[Variant], device: str = "cuda"
) -> dict[str, Measured]:
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in training
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size, device=device)
    x, y = x.contiguous(memory_format=torch.channels_last), torch.arange(batch, device=device) % spec.classes
    steps, found = {}, {}
    for v in variants:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[v.name] = make_step(v, spec, batch, device)
        seconds_a_step(steps[v.name], x, y, FIRST)
        found[v.name] = Measured(torch.cuda.max_memory_allocated() - before)
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].seconds.append(seconds_a_step(step, x, y, STEPS))
    for name, step in steps.items():
        assert step.loss.isfinite(), f"{name} diverged"
    return found


def seconds_a_step(step: Step, x: Tensor, y: Tensor, count: int) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step(x, y, len(y), 1e-3)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def table(batch: int, results: dict[str, Measured]) -> str:
    """Return the table, with ratios to the faster of the two peers with compilation and CUDA graphs."""
    middle = {name: statistics.median(m.seconds) for name, m in results.items()}
    best = min((name for name in PEERS if name in results), key=lambda name: middle[name], default=None)
    lines = [f"## {NETWORK}, batch {batch}, bf16, n = {len(next(iter(results.values())).seconds)}", ""]
    lines += [
        f"Ratios are to `{best}`.",
        "",
        "| variant | training step, ms (range) | times as fast | peak, MB | of it |",
    ]
    lines += ["|---|---|---|---|---|"]
    for name, m in results.items():
        row = f"| {name} | {1e3 * middle[name]:.2f} ({1e3 * min(m.seconds):.2f} to {1e3 * max(m.seconds):.2f})"
        faster, smaller = "", ""
        if best is not None:
            faster, smaller = f"{middle[best] / middle[name]:.2f}", f"{m.peak_bytes / results[best].peak_bytes:.2f}"
        lines.append(f"{row} | {faster} | {m.peak_bytes / 1e6:,.0f} | {smaller} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", help="batch size; may be repeated (default: 64 and 512)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--only", choices=[v.name for v in VARIANTS], action="append", help="measure only this variant; may be repeated"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This machine has no CUDA device; nothing was measured.")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.cuda.get_device_name()}\n")
    for batch in args.batch or BATCHES:
        chosen = [v for v in VARIANTS if not args.only or v.name in args.only]
        print(table(batch, measure(parse_name(NETWORK), batch, args.rounds, chosen)) + "\n", flush=True)


if __name__ == "__main__":
    main()
