"""Record learning curves for replaying stopping rules: random networks of digits_bc, each trained to its end.

    python benchmarks/record_curves.py --networks 250

Appends one row per epoch to benchmarks/data/digits_curves.csv as each network ends. A second run continues with the
missing networks. The networks are distinct uniform draws within the space's limits, each trained from seed (0,
number) with one thread, as `dnas search` would train it.
"""

import argparse
import csv
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

from dnas.arch import DenseNetSpec
from dnas.arch.names import format_name
from dnas.space.parse import load_space
from dnas.space.space import Space

CURVES = Path(__file__).resolve().parent / "data" / "digits_curves.csv"
COLUMNS = ("number", "network", "params", "macs", "seed", "epoch", "val_error", "val_loss")
SEED = 0


def networks(space: Space, wanted: int) -> Iterator[DenseNetSpec]:
    """Return `wanted` distinct networks within the limits, always the same ones in the same order."""
    rng, seen = random.Random(SEED), set()
    while len(seen) < wanted:
        spec = space.feasible(space.random_point(rng))
        if spec is not None and spec.digest not in seen:
            seen.add(spec.digest)
            yield spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=250)
    parser.add_argument("--out", type=Path, default=CURVES)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from dnas.data import load_dataset
    from dnas.training.fit import fit

    torch.set_num_threads(1)
    data = load_dataset("digits")
    space = load_space("digits_bc")
    space = space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    done: set[int] = set()
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            done = {int(row["number"]) for row in csv.DictReader(file)}  # the rows of a network are contiguous
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    began = time.monotonic()
    for number, spec in enumerate(networks(space, args.networks)):
        if number in done:
            continue
        price = space.cost(spec)
        curve = fit(spec, data, space.recipe, seed=(SEED, number)).run.curve
        facts = f'{number},"{format_name(spec)}",{price.params},{price.macs},{SEED}'
        rows = [f"{facts},{row.epoch},{row.val_error:.5f},{row.val_loss:.4f}\n" for row in curve]
        with args.out.open("a", encoding="utf-8") as file:
            file.write("".join(rows))
        seconds = time.monotonic() - began
        print(f"{number:>4}  {100 * curve[-1].val_error:5.2f}%  {price.params:>6} params  {seconds:7.0f} s", flush=True)


if __name__ == "__main__":
    main()
