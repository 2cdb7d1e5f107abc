"""Seconds per epoch and peak memory of training runs on CIFAR-10 with augmentation and the recipe `paper`.

    python benchmarks/bench_train.py --dataset cifar10 --device cuda --epochs 3
    python benchmarks/bench_train.py --dataset cifar10 --device cuda --epochs 3 --kernels triton --cuda-graph

The first epoch, in which a GPU chooses its kernels, is not counted. Prints a Markdown table.
"""

import argparse
import platform
import statistics

import torch

from dnas.data import load_dataset
from dnas.data.catalog import data_info
from dnas.nn import resolve_kernels
from dnas.training.devices import check_device
from dnas.training.fit import fit
from dnas.training.recipe import make_recipe
from dnas.training.single import spec_for_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--network", default="densenet_40_12")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--subset", type=int)
    parser.add_argument("--kernels", default="plain")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graph", action="store_true")
    args = parser.parse_args()
    device = check_device(args.device)
    data = load_dataset(args.dataset, subset=args.subset, device=device)
    recipe = make_recipe("paper", data_info(args.dataset))
    spec = spec_for_data(args.network, data, recipe)
    seconds: list[float] = []
    result = fit(
        spec,
        data,
        recipe,
        seed=(0, 0),
        device=device,
        compile_net=args.compile,
        cuda_graph=args.cuda_graph,
        kernels=resolve_kernels(args.kernels, spec, device, recipe.batch_size, args.compile),
        report=lambda epoch: seconds.append(epoch.seconds) or len(seconds) < args.epochs,  # type: ignore[func-returns-value]
    )
    counted = seconds[1:] or seconds
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{platform.machine()} CPU"
    print("| network | device | torch | images per epoch | seconds per epoch, median (range), n | peak memory |")
    print("|---|---|---|---|---|---|")
    how = f", {args.kernels}" * (args.kernels != "plain") + ", compiled" * args.compile
    how += ", CUDA graph" * args.cuda_graph
    print(
        f"| {args.network}{how} | {name} | {torch.__version__} | {data.train_size:,}"
        f" | {statistics.median(counted):.1f} ({min(counted):.1f} to {max(counted):.1f}), {len(counted)}"
        f" | {result.peak_memory_bytes / 1e9:.2f} GB |"
    )


if __name__ == "__main__":
    main()
