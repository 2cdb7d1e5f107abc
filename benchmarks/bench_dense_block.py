"""The fast dense block compared with other implementations: time, saved activations, peak memory.

    python benchmarks/bench_dense_block.py                          # all networks, 2 threads: results/dense_block.md
    python benchmarks/bench_dense_block.py --network tiny --threads 1 --rounds 9 --compiled
    python benchmarks/bench_dense_block.py --print                  # the table and the figure of the last measurements

Every variant trains the same network on the same random images. Variants take turns, so that a slowdown of the
machine affects all of them. A turn is one step, or for small networks as many steps as take a tenth of a second.
Values are medians of `--rounds` turns with their range, and ratios compare two medians of one run. The floor is the
larger of two times, with speeds measured in the same run: the network's multiply-adds at the speed of a large matrix
product, and the bytes that the fast path must move at the speed of a copy. Transitions are counted after pooling. The
3×3 convolutions count half, as Winograd's algorithm along one axis needs. The forward pass counts once, the backward
pass twice.

Peers: torchvision's DenseNet, and re-implementations of timm's (concatenation in the layer) and
efficient_densenet_pytorch's (BN-ReLU-Conv(1×1) of a concatenation under torch.utils.checkpoint). The script makes
malloc keep freed memory for all variants, since page faults would slow the peers most. Peak memory is measured for
one step in a separate process with the default malloc, beyond the memory of the process before the network was built.

The measurements are stored beside the results as JSON, one network at a time.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnas.arch import DenseNetSpec, cost, layer_costs, parse_name
from dnas.nn import DenseNet
from dnas.nn.kernels import unavailable_reason

NETWORKS = {  # name: (spec, batch)
    "BC(100,12)": ("densenet_bc_100_12", 64),
    "plain(40,12)": ("densenet_40_12", 64),
    "BC(250,24)": ("densenet-bc:L=250,k=24", 8),
    "DenseNet-121": ("densenet121", 8),
    "tiny": ("densenet:L=10,k=4,channels=1,size=8", 128),
}
MALLOC = {  # keep freed memory
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
TURN_SECONDS = 0.1
OURS, RECOMPUTED = "ours, cpu", "ours, cpu, recompute"
HERE = Path(__file__).parent
RESULTS, KEPT = HERE / "results" / "dense_block.md", HERE / "results" / "dense_block.json"
FIGURE = HERE.parent / "docs" / "images" / "dense_block.png"
RESULTS_HEAD = """# Speed and memory of the dense block

    python benchmarks/bench_dense_block.py --compiled

Variants take turns. A turn is one step, or for small networks as many steps as take 0.1 s. Values are medians with
ranges. `best peer / it`: time of the best variant that is not ours, divided by the variant's time. Saved: bytes that
autograd keeps for the backward pass. Peak: peak memory of one training step. Compiled variants have no peak, since
their compiler runs in the same process. No GPU has been measured."""

PATCH = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # background of numbers, over grid lines

Kept = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    name: str
    make: Callable[[DenseNetSpec], nn.Module]
    ours: bool = False
    saves_memory: bool = False
    channels_last: bool = True
    compiled: bool = False


class PeerLayer(nn.Module):
    """A layer that concatenates its inputs and, with `efficient`, keeps neither the result nor its normalised copy."""

    def __init__(self, like: nn.Module, efficient: bool) -> None:
        super().__init__()
        self.parts, self.efficient = like, efficient

    def forward(self, maps: list[Tensor]) -> Tensor:
        parts = self.parts

        def first(*maps: Tensor) -> Tensor:
            return parts.conv1(parts.relu1(parts.norm1(torch.cat(maps, 1))))

        if self.efficient and self.training and any(x.requires_grad for x in maps):
            x = checkpoint(first, *maps, use_reentrant=False)
        else:
            x = first(*maps)
        return parts.conv2(parts.relu2(parts.norm2(x))) if parts.bottleneck else x


class PeerBlock(nn.Module):
    def __init__(self, like: nn.Module, efficient: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PeerLayer(layer, efficient) for layer in like.children())

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def peer(spec: DenseNetSpec, efficient: bool) -> nn.Module:
    """Build a network with the arithmetic of timm, or of efficient_densenet_pytorch with `efficient`."""
    net = DenseNet(spec)
    for name, stage in list(net.features.named_children()):
        if name.startswith("denseblock"):
            setattr(net.features, name, PeerBlock(stage, efficient))
    return net


def torchvisions(spec: DenseNetSpec, memory_efficient: bool) -> nn.Module:
    """Build torchvision's DenseNet, which has bottlenecks. Its ImageNet stem is replaced if `spec` has a small one."""
    net = torchvision.models.DenseNet(
        growth_rate=spec.growth_rates[0],
        block_config=spec.block_layers,
        num_init_features=spec.stem_width,
        bn_size=spec.bottleneck,
        num_classes=spec.classes,
        memory_efficient=memory_efficient,
    )
    if spec.stem == "small":
        net.features.conv0 = nn.Conv2d(spec.in_channels, spec.stem_width, 3, padding=1, bias=False)
        net.features.norm0, net.features.relu0, net.features.pool0 = nn.Identity(), nn.Identity(), nn.Identity()
    return net


def variants(spec: DenseNetSpec, compiled: bool) -> list[Variant]:
    ours = [
        Variant(OURS, lambda s: DenseNet(s, kernels="cpu"), ours=True),
        Variant(RECOMPUTED, lambda s: DenseNet(s, kernels="cpu", memory="recompute"), True, True),
        Variant("ours, ref", lambda s: DenseNet(s, kernels="ref"), ours=True),
    ]
    peers = [
        Variant("plain modules, channels-last", DenseNet),
        Variant("plain modules, recompute", lambda s: DenseNet(s, memory="recompute"), saves_memory=True),
        Variant("timm's way, channels-last", lambda s: peer(s, False)),
        Variant("efficient_densenet's way", lambda s: peer(s, True), saves_memory=True),
    ]
    if spec.bottleneck and spec.compression == 0.5:
        peers += [
            Variant("torchvision", lambda s: torchvisions(s, False), channels_last=False),
            Variant("torchvision, channels-last", lambda s: torchvisions(s, False)),
            Variant("torchvision, memory_efficient", lambda s: torchvisions(s, True), saves_memory=True),
        ]
    if compiled:
        peers.append(Variant("plain modules, channels-last, compiled", DenseNet, compiled=True))
    return ours + peers


@dataclass
class Measured:
    train: list[float]
    infer: list[float]
    saved_bytes: int


def saved_bytes(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the bytes of the storages that autograd keeps for the backward pass, without parameters and buffers."""
    of_the_net = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_the_net:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(net.train()(x), y)
    total = sum(seen.values())
    loss.backward()
    return total


def live_bytes(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the bytes of new storages alive after the forward pass, for networks with their own saved-tensor hooks."""
    from tests.nn.test_recompute import step_bytes

    return step_bytes(net, x, y)[0]


def measure(spec: DenseNetSpec, batch: int, rounds: int, chosen: list[Variant]) -> dict[str, Measured]:
    torch.manual_seed(0)
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size)
    y = torch.arange(batch) % spec.classes
    nets, found = {}, {}
    for v in chosen:
        net = v.make(spec)
        net = net.to(memory_format=torch.channels_last) if v.channels_last else net
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)
        data = x.contiguous(memory_format=torch.channels_last) if v.channels_last else x
        kept = live_bytes(net, data, y) if v.saves_memory else saved_bytes(net, data, y)
        net.zero_grad(set_to_none=True)
        nets[v.name] = torch.compile(net) if v.compiled else net, optimizer, data
        found[v.name] = Measured([], [], kept)
    for number in range(rounds + 1):
        for name, (net, optimizer, data) in nets.items():

            def train(net: nn.Module = net, optimizer: torch.optim.SGD = optimizer, data: Tensor = data) -> None:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(net(data), y).backward()
                optimizer.step()

            net.train()
            trained = turn(train)
            net.eval()
            with torch.no_grad():
                inferred = turn(partial(net, data))
            if number:
                found[name].train.append(trained)
                found[name].infer.append(inferred)
    return found


def turn(work: Callable[[], object]) -> float:
    """Return the seconds of one step. For a small network, return the mean over `TURN_SECONDS`.

    The first step of a small network is not counted, since it runs with the caches of another variant.
    """
    first = timed(work)
    count = int(TURN_SECONDS / first)
    return timed(lambda: [work() for _ in range(count)]) / count if count else first


def floor_seconds(spec: DenseNetSpec, batch: int, saved: int) -> tuple[float, float, float, float]:
    """Return the floor of a training step: seconds of arithmetic and of memory, and the speeds in GFLOP/s and GB/s."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    product = min(timed(lambda: a @ b) for _ in range(5))
    source, target = torch.randn(1 << 26), torch.empty(1 << 26)
    copy = min(timed(lambda: target.copy_(source)) for _ in range(5))
    flops, bandwidth = 2 * n**3 / product, 2 * source.nbytes / copy
    transitions = sum(layer.macs for layer in layer_costs(spec) if layer.kind == "transition")
    dense = [layer for layer in layer_costs(spec) if layer.kind == "dense"]
    widths = [spec.bottleneck * layer.out_channels or layer.in_channels for layer in dense]
    of_3x3 = sum(9 * width * layer.out_channels * layer.size**2 for width, layer in zip(widths, dense, strict=True))
    macs = cost(spec).macs - 0.75 * transitions - 0.5 * of_3x3
    # Each layer reads its inputs in the forward pass. In the backward pass it reads them and adds to their gradients.
    read = sum(layer.in_channels * layer.size**2 for layer in dense) * 4 * batch
    return 3 * 2 * macs * batch / flops, (4 * read + 2 * saved) / bandwidth, flops / 1e9, bandwidth / 1e9


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes(network: str, variant: str, threads: int, batch: int) -> int:
    """Return the peak memory of one training step in a separate process, beyond its memory before the network."""
    command = [sys.executable, __file__, "--network", network, "--only", variant, "--peak", "--threads", str(threads)]
    command += ["--batch", str(batch)]
    plain = {key: value for key, value in os.environ.items() if key not in MALLOC}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=plain).stdout)


def print_peak(spec: DenseNetSpec, batch: int, v: Variant) -> None:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    net = v.make(spec)
    net = net.to(memory_format=torch.channels_last) if v.channels_last else net
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size)
    F.cross_entropy(net(x), torch.arange(batch) % spec.classes).backward()
    print(status("VmHWM") - before)


def status(key: str) -> int:
    """Return a size in bytes from the status file of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def measured(network: str, spec: DenseNetSpec, batch: int, threads: int, rounds: int, chosen: list[Variant]) -> Kept:
    """Measure a network, and return everything that the table shows, as JSON values."""
    found = measure(spec, batch, rounds, chosen)
    arithmetic, memory, flops, bandwidth = floor_seconds(spec, batch, found[OURS].saved_bytes)
    rows = {}
    for v in chosen:
        m = found[v.name]
        peak = None if v.compiled else peak_bytes(network, v.name, threads, batch)
        rows[v.name] = {"train": m.train, "infer": m.infer, "saved": m.saved_bytes, "peak": peak, "ours": v.ours}
        rows[v.name]["saves_memory"] = v.saves_memory
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {_processor()}"
    return {
        "setting": f"batch {batch}, {spec.image_size} px, {threads} thread{'s' if threads > 1 else ''}, n = {rounds}",
        "machine": f"{versions}, {os.cpu_count()} cores; {datetime.date.today()}",
        "floor": {"arithmetic": arithmetic, "memory": memory, "gflops": flops, "gbytes": bandwidth},
        "rows": rows,
    }


def table(network: str, kept: Kept) -> str:
    median = statistics.median
    rows = kept["rows"]
    peers = {name: row for name, row in rows.items() if not row["ours"]}
    train = min(median(row["train"]) for row in peers.values())
    infer = min(median(row["infer"]) for row in peers.values())
    fastest = min(peers.values(), key=lambda row: median(row["train"]))
    lines = [f"## {network}", "", f"{kept['setting']}. {kept['machine']}.", ""]
    lines += ["| variant | training step, ms (range) | best peer / it | inference, ms (range) | best peer / it |"]
    lines[-1] += " saved, MB | of the fastest peer's | peak, MB |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        peak = "" if row["peak"] is None else f"{row['peak'] / 1e6:,.0f}"
        lines.append(
            f"| {name} | {_range(row['train'])} | {train / median(row['train']):.2f} | {_range(row['infer'])}"
            f" | {infer / median(row['infer']):.2f} | {row['saved'] / 1e6:,.1f}"
            f" | 1/{fastest['saved'] / row['saved']:.1f} | {peak} |"
        )
    floor, ours = kept["floor"], median(rows[OURS]["train"])
    small = [median(row["train"]) for row in peers.values() if row["saves_memory"]]
    lines += [
        "",
        f"Floor of a training step: {1e3 * floor['arithmetic']:.1f} ms of arithmetic at {floor['gflops']:.0f} GFLOP/s,"
        f" {1e3 * floor['memory']:.1f} ms of memory at {floor['gbytes']:.1f} GB/s; ours takes"
        f" {ours / max(floor['arithmetic'], floor['memory']):.2f} times the larger.",
    ]
    if small and RECOMPUTED in rows:
        again = min(small) / median(rows[RECOMPUTED]["train"])
        lines[-1] += f" The best peer that saves memory takes {again:.2f} times as long as ours with recompute."
    return "\n".join(lines)


def _range(seconds: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"


def keep(results: dict[str, Kept]) -> None:
    KEPT.write_text(json.dumps(results, indent=1) + "\n")


def write(results: dict[str, Kept]) -> None:
    """Write the table and the figure of all measurements."""
    ordered = {name: results[name] for name in NETWORKS if name in results}
    parts = [RESULTS_HEAD, *(table(network, kept) for network, kept in ordered.items()), growth(results)]
    RESULTS.write_text("\n\n".join(part for part in parts if part) + "\n")
    figure(ordered)


def growth(results: dict[str, Kept]) -> str:
    """Return the table of saved bytes against the number of layers of a block."""
    if "growth" not in results:
        return ""
    saved = results["growth"]["rows"]
    lines = ["## Growth with depth", "", results["growth"]["setting"], "", "| layers | ours, MB | plain modules, MB |"]
    lines += ["|---|---|---|"]
    lines += [f"| {n} | {row['ours'] / 1e6:.2f} | {row['plain'] / 1e6:.2f} |" for n, row in saved.items()]
    ours = [row["ours"] for row in saved.values()]
    ratios = ", ".join(f"{after / before:.2f}" for before, after in itertools.pairwise(ours))
    return "\n".join([*lines, "", f"Doubling the layers multiplies the bytes by {ratios}."])


def measured_growth() -> Kept:
    rows = {}
    for layers in (8, 16, 32, 64):
        spec = parse_name(f"densenet-bc:layers={layers},k=12,size=16")
        x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
        saved = {kernels: saved_bytes(DenseNet(spec, kernels=kernels), x, y) for kernels in ("cpu", "plain")}
        rows[str(layers)] = {"ours": saved["cpu"], "plain": saved["plain"]}
    return {"setting": "One block, k = 12 with bottlenecks, 16 px, batch 16: what autograd keeps.", "rows": rows}


def figure(results: dict[str, Kept]) -> None:
    """Draw the time and saved bytes of each variant relative to ours, with one column per network."""
    from matplotlib.figure import Figure

    from dnas.figures.style import GREY, INK, RED

    names = list(dict.fromkeys(name for kept in results.values() for name in kept["rows"]))[::-1]
    picture = Figure(figsize=(2.5 + 2.3 * len(results), 6.4), layout="constrained")
    panels = picture.subplots(2, len(results), sharey=True, squeeze=False)
    labels = {"train": "training step, times ours", "saved": "saved for backward, times ours"}
    for column, (network, kept) in enumerate(results.items()):
        for axes, (key, label) in zip(panels[:, column], labels.items(), strict=True):
            rows = kept["rows"]
            values = {n: statistics.median(row[key]) if key == "train" else row[key] for n, row in rows.items()}
            for place, name in enumerate(names):
                if name not in values:
                    continue
                ratio = values[name] / values[OURS]
                axes.barh(place, ratio, color=RED if rows[name]["ours"] else GREY, height=0.7)
                axes.text(ratio, place, f" {ratio:.2g}", va="center", fontsize=8, color=INK, bbox=PATCH)
            axes.axvline(1, color=INK, linewidth=0.8)
            axes.set_xlim(0, 1.18 * max(value / values[OURS] for value in values.values()))
            axes.set_yticks(range(len(names)), names, fontsize=8.5)
            axes.tick_params(axis="x", labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(label, loc="left", fontsize=8.5)
        panels[0, column].set_title(network, loc="left", fontsize=10.5, color=INK)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(FIGURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument(
        "--threads", type=int, default=2, help="number of threads; the tiny network always uses 1 (default: 2)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--only", action="append", help="measure only this variant; may be repeated")
    parser.add_argument(
        "--compiled", action="store_true", help="also measure torch.compile, which takes minutes before its first step"
    )
    parser.add_argument(
        "--print", action="store_true", dest="print_only", help="print the last measurements without measuring"
    )
    parser.add_argument("--peak", action="store_true", help="print only the peak memory of one variant in bytes")
    args = parser.parse_args()
    if not args.peak and not args.print_only and any(os.environ.get(key) != value for key, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)  # read by malloc at its start
    kept: dict[str, Kept] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for network in () if args.print_only else args.network or NETWORKS:
        name, batch = NETWORKS[network]
        spec, threads = parse_name(name), 1 if network == "tiny" else args.threads
        batch = args.batch or batch
        torch.set_num_threads(threads)
        chosen = [v for v in variants(spec, args.compiled) if not args.only or v.name in args.only]
        if args.peak:
            print_peak(spec, batch, chosen[0])
            return
        if reason := unavailable_reason("cpu"):
            sys.exit(f"the kernels `cpu` are not available on this machine: {reason}")
        kept[network] = measured(network, spec, batch, threads, args.rounds, chosen)
        print(table(network, kept[network]), flush=True)
        keep(kept)
    if not args.print_only:
        kept["growth"] = measured_growth()
        keep(kept)
    write(kept)
    print(growth(kept) if not args.print_only else RESULTS.read_text())


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor()


if __name__ == "__main__":
    main()
