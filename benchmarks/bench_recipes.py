"""Comparison of schedules by epochs to a given validation error on CIFAR-10, from which the recipe `fast` was chosen.

    python benchmarks/bench_recipes.py --dataset folder:PATH --subset 10000 --epochs 8 --seeds 2

Trains one small DenseNet-BC with each candidate and prints a table: final validation error (mean and range over seeds)
and the first epoch whose mean is at most each target. Selection uses the validation part; the test set is not used.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from dnas.arch import cost, parse_name
from dnas.data import load_dataset
from dnas.data.catalog import data_info
from dnas.training.fit import fit
from dnas.training.recipe import make_recipe

CANDIDATES = {
    "steps, lr 0.1, wd 1e-4 (paper)": {"name": "paper"},
    "one-cycle, lr 0.1, wd 5e-4": {"name": "fast", "learning_rate": 0.1, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "one-cycle, lr 0.2, wd 5e-4": {"name": "fast", "learning_rate": 0.2, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "one-cycle, lr 0.4, wd 5e-4": {"name": "fast", "learning_rate": 0.4, "weight_decay": 5e-4, "label_smoothing": 0.0},
    "one-cycle, lr 0.2, wd 1e-4": {"name": "fast", "learning_rate": 0.2, "weight_decay": 1e-4, "label_smoothing": 0.0},
    "one-cycle, lr 0.2, wd 5e-4, ls 0.1": {
        "name": "fast",
        "learning_rate": 0.2,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--network", default="densenet-bc:L=22,k=12")
    parser.add_argument("--subset", type=int)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append each curve to this file as a line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_dataset(args.dataset, subset=args.subset, device=args.device)
    spec = parse_name(args.network)
    print(f"{args.network}: {cost(spec).params:,} params; {data.train_size:,} training, {data.val_size:,} validation")
    print(f"torch {torch.__version__}, {args.device}, {args.epochs} epochs, {args.seeds} seeds per candidate\n")
    curves: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        for label, candidate in CANDIDATES.items():
            changes = {key: value for key, value in candidate.items() if key != "name"}
            recipe = make_recipe(str(candidate["name"]), data_info("cifar10"), epochs=args.epochs, **changes)
            result = fit(spec, data, recipe, seed=(seed, 0), device=args.device)
            errors = [epoch.val_error for epoch in result.run.curve if epoch.val_error is not None]
            curves.setdefault(label, []).append(errors)
            print(f"  seed {seed}  {label:38s} {' '.join(f'{100 * error:5.1f}' for error in errors)}", flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps({"candidate": label, "seed": seed, "val_error": errors}) + "\n")
    print(f"\n| candidate | final val error, mean (min to max of {args.seeds}) | first epoch at most 60% / 50% / 45% |")
    print("|---|---|---|")
    for label, runs in curves.items():
        final = [100 * run[-1] for run in runs]
        means = [statistics.mean(values) for values in zip(*runs, strict=True)]
        first = [next((str(i) for i, mean in enumerate(means, 1) if mean <= goal), "–") for goal in (0.6, 0.5, 0.45)]
        print(
            f"| {label} | {statistics.mean(final):.1f}% ({min(final):.1f} to {max(final):.1f}) | {' / '.join(first)} |"
        )


if __name__ == "__main__":
    main()
