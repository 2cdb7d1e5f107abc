"""The fast dense block beside what others use: training step, inference, saved activations, peak memory.

    python benchmarks/bench_dense_block.py                          # all networks, 2 threads
    python benchmarks/bench_dense_block.py --network tiny --threads 1 --rounds 9 --compiled

Every variant trains the same network on the same random images. Variants take turns, so that a machine that slows down
slows all; a figure is the median of `--rounds` steps (the range behind it), a ratio that of two medians of one run. The
floor is the network's multiply-adds (the transitions' after pooling) at the speed of this machine's largest matrix
product, and the bytes that the fast path must move at the speed of a copy, measured in the same run; forward counts
once, backward twice.

Peers: torchvision's DenseNet, and, written here in their spirit, timm's (concatenation in the layer) and
efficient_densenet_pytorch's (BN-ReLU-Conv(1×1) of a concatenation under torch.utils.checkpoint). All have malloc as it
is; run with the environment that `--help-malloc` prints to take page faults out of the peers' times too.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnas.arch import DenseNetSpec, cost, layer_costs, parse_name
from dnas.nn import DenseNet
from dnas.nn.kernels import why_not

NETWORKS = {  # name: (spec, batch)
    "BC(100,12)": ("densenet_bc_100_12", 64),
    "plain(40,12)": ("densenet_40_12", 64),
    "BC(250,24)": ("densenet-bc:L=250,k=24", 8),
    "DenseNet-121": ("densenet121", 8),
    "tiny": ("densenet:L=10,k=4,channels=1,size=8", 128),
}
MALLOC = "MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456"


@dataclass(frozen=True)
class Variant:
    name: str
    make: Callable[[DenseNetSpec], nn.Module]
    ours: bool = False
    saves_memory: bool = False
    channels_last: bool = True
    compiled: bool = False


class PeerLayer(nn.Module):
    """A layer that concatenates what it reads; `efficient` keeps neither that nor its normalised copy."""

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
    """timm's or efficient_densenet_pytorch's arithmetic."""
    net = DenseNet(spec)
    for name, stage in list(net.features.named_children()):
        if name.startswith("denseblock"):
            setattr(net.features, name, PeerBlock(stage, efficient))
    return net


def torchvisions(spec: DenseNetSpec, memory_efficient: bool) -> nn.Module:
    """Its layers have bottlenecks; its stem is ImageNet's, and is replaced where ours is small."""
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
        Variant("ours, cpu", lambda s: DenseNet(s, kernels="cpu"), ours=True),
        Variant("ours, cpu, recompute", lambda s: DenseNet(s, kernels="cpu", memory="recompute"), True, True),
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
    """Distinct storages that autograd keeps for the backward pass, parameters and buffers apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(net.train()(x), y)
    total = sum(seen.values())
    loss.backward()
    return total


def live_bytes(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """What a step keeps, where the network itself has hooks on saved tensors (recomputation): new storages alive."""
    from tests.test_recompute import step_bytes

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
            net.train()
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(data), y).backward()
            optimizer.step()
            trained = time.perf_counter()
            net.eval()
            with torch.no_grad():
                begun = time.perf_counter()
                net(data)
                ended = time.perf_counter()
            if number:
                found[name].train.append(trained - started)
                found[name].infer.append(ended - begun)
    return found


def floor_seconds(spec: DenseNetSpec, batch: int, saved: int) -> tuple[float, float, float, float]:
    """Of a training step: its arithmetic and its bytes at this machine's speeds; and these, in GFLOP/s and GB/s."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    product = min(timed(lambda: a @ b) for _ in range(5))
    source, target = torch.randn(1 << 26), torch.empty(1 << 26)
    copy = min(timed(lambda: target.copy_(source)) for _ in range(5))
    flops, bandwidth = 2 * n**3 / product, 2 * source.nbytes / copy
    transitions = sum(layer.macs for layer in layer_costs(spec) if layer.kind == "transition")
    macs = cost(spec).macs - 0.75 * transitions
    # Each layer reads its maps forward; backward it reads them, and adds to their gradients.
    read = sum(layer.in_channels * layer.size**2 for layer in layer_costs(spec) if layer.kind == "dense") * 4 * batch
    return 3 * 2 * macs * batch / flops, (4 * read + 2 * saved) / bandwidth, flops / 1e9, bandwidth / 1e9


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes(network: str, variant: str, threads: int) -> int:
    """The most that a process of its own holds in one training step, beyond what it held before the network's."""
    command = [sys.executable, __file__, "--network", network, "--only", variant, "--peak", "--threads", str(threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(spec: DenseNetSpec, batch: int, v: Variant) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    net = v.make(spec)
    net = net.to(memory_format=torch.channels_last) if v.channels_last else net
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size)
    F.cross_entropy(net(x), torch.arange(batch) % spec.classes).backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def print_table(network: str, spec: DenseNetSpec, batch: int, threads: int, rounds: int, chosen: list[Variant]) -> None:
    found = measure(spec, batch, rounds, chosen)
    median = statistics.median
    peers = [v.name for v in chosen if not v.ours]
    best_train = min(median(found[name].train) for name in peers)
    best_infer = min(median(found[name].infer) for name in peers)
    fastest = min(peers, key=lambda name: median(found[name].train))
    print(f"\n### {network}, batch {batch}, {spec.image_size} px, {threads} threads, n = {rounds}\n")
    print("| variant | training step, ms (range) | best peer / it | inference, ms (range) | best peer / it |", end="")
    print(" saved, MB | of the fastest peer's | peak, MB |\n|---|---|---|---|---|---|---|---|")
    for v in chosen:
        m = found[v.name]
        peak = 0 if v.compiled else peak_bytes(network, v.name, threads)
        print(
            f"| {v.name} | {_range(m.train)} | {best_train / median(m.train):.2f} | {_range(m.infer)}"
            f" | {best_infer / median(m.infer):.2f} | {m.saved_bytes / 1e6:.1f}"
            f" | 1/{found[fastest].saved_bytes / m.saved_bytes:.1f} | {peak / 1e6:.0f} |",
            flush=True,
        )
    arithmetic, memory, flops, bandwidth = floor_seconds(spec, batch, found["ours, cpu"].saved_bytes)
    ours = median(found["ours, cpu"].train)
    print(
        f"\nFloor of a training step: {1e3 * arithmetic:.1f} ms of arithmetic at {flops:.0f} GFLOP/s,"
        f" {1e3 * memory:.1f} ms of memory at {bandwidth:.1f} GB/s; ours takes {ours / max(arithmetic, memory):.2f}"
        " times the larger."
    )


def _range(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--threads", type=int, default=2, help="of the tiny network always 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--only", action="append", help="a variant; several may be given")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too: minutes until its first step")
    parser.add_argument("--peak", action="store_true", help="only print the peak memory of one variant, in bytes")
    parser.add_argument("--help-malloc", action="store_true", help="print the environment that takes page faults out")
    args = parser.parse_args()
    if args.help_malloc:
        print(MALLOC)
        return
    if not args.peak:
        print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {_processor()}")
        if reason := why_not("cpu"):
            print(f"no kernels `cpu`: {reason}")
    for network in args.network or NETWORKS:
        name, batch = NETWORKS[network]
        spec, threads = parse_name(name), 1 if network == "tiny" else args.threads
        torch.set_num_threads(threads)
        chosen = [v for v in variants(spec, args.compiled) if not args.only or v.name in args.only]
        if args.peak:
            print_peak(spec, args.batch or batch, chosen[0])
        else:
            print_table(network, spec, args.batch or batch, threads, args.rounds, chosen)


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor()


if __name__ == "__main__":
    main()
