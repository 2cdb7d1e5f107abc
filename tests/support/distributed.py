"""Runs of several processes, in a module that a process imports fast."""

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dnas.arch import parse_name
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.training.checkpoint import Epoch
from dnas.training.distributed import ALONE, Group, SyncBatchNorm2d, join_group
from dnas.training.fit import Diverged, fit
from dnas.training.recipe import make_recipe

BOTTLENECK = "densenet-bc:layers=2-1,k=2,theta=0.5,channels=1,size=8"
CASES: dict[str, dict[str, Any]] = {  # with 270 training images
    "bottleneck": {"name": BOTTLENECK, "batch_size": 64},  # the last batch has 14
    # The last batch has slices of 1 and 2.
    "uneven": {"name": "densenet:layers=2-1,k=4,channels=1,size=8", "batch_size": 89},
    "empty": {"name": BOTTLENECK, "batch_size": 67},  # of the last batch of 2, the first of three slices is empty
    "empty, recomputed": {"name": BOTTLENECK, "batch_size": 67, "recompute": True},
    "dropped units": {"name": "resnet-b:units=2-2,width=4,drop=0.6,channels=1,size=8", "batch_size": 67},
    "whole": {"name": BOTTLENECK, "batch_size": 64, "validate": False},
}
SEED = (3, 1)
WORLDS = {
    2: ("bottleneck", "uneven", "whole"),
    3: ("empty", "empty, recomputed", "dropped units"),
}


class Float64Dataset(Dataset):
    """A data set whose images are float64."""

    def _normalised(self, *arguments: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.double(), y) for x, y in super()._normalised(*arguments))


def float64_digits() -> Dataset:
    digits = load_dataset("digits", subset=300)
    return Float64Dataset(**{field.name: getattr(digits, field.name) for field in dataclasses.fields(digits)})


def plan(epochs: int = 2, **changes: Any) -> Any:
    recipe = make_recipe("fast", data_info("digits"), epochs=epochs, **changes)
    return dataclasses.replace(recipe, label_smoothing=0.1)


def train(case: str, group: Group = ALONE, epochs: int = 2, **more: Any) -> dict[str, Any]:
    """Train a case, and return all results of the run by name."""
    options = dict(CASES[case])
    spec, batch_size = parse_name(options.pop("name")), options.pop("batch_size")
    validate = options.pop("validate", True)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        data = float64_digits() if validate else float64_digits().with_validation_in_training()
        result = fit(spec, data, plan(epochs, batch_size=batch_size), seed=SEED, group=group, **options, **more)
    finally:
        torch.set_default_dtype(dtype)
    results = {f"state {name}": value for name, value in result.run.net.state_dict().items()}
    for row in result.run.curve:
        values = dataclasses.asdict(row) | {"seconds": 0.0}
        results |= {f"epoch {row.epoch} {key}": value for key, value in values.items()}
    return results | {"norms": result.run.norms[-1].l2, "digest": result.weights_digest}


def run_all_cases(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    group = join_group("cpu")
    results: dict[str, Any] = {case: train(case, group) for case in WORLDS[group.world]}
    reported: list[int] = []

    def report(epoch: Epoch) -> bool:
        reported.append(epoch.epoch)
        return group.world == 3 or epoch.epoch < 1

    folder = args.folder / ("run" if group.is_first else "never")
    results["resumed"] = train("bottleneck", group, 3, folder=folder, report=report)
    results["reported"] = reported
    if group.world == 2:
        Group.synchronise_norms, kept = lambda self, net: None, Group.synchronise_norms  # type: ignore[method-assign]
        results["local statistics"] = train("bottleneck", group)
        Group.synchronise_norms = kept  # type: ignore[method-assign]
        try:
            fit(
                parse_name(BOTTLENECK),
                load_dataset("digits", subset=300),
                plan(learning_rate=1e30),
                seed=SEED,
                group=group,
            )
        except Diverged as error:
            results["diverged"] = str(error)
        dropout = parse_name(BOTTLENECK + ",dropout=0.5")
        data = load_dataset("digits", subset=300)
        for number in (0, 1):
            results[f"dropout {number}"] = fit(dropout, data, plan(1), seed=SEED, group=group).weights_digest
    results["sum"] = group.sum(torch.tensor([group.rank, 1]))
    results["max"] = group.max(group.rank, "cpu")
    results["norm"] = norm_in_bf16(group)
    torch.save(results, args.folder / f"{group.world}-{group.rank}.pt")
    group.leave()
    return 0


def norm_in_bf16(group: Group | None, ranks: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a norm with bf16 maps and float32 weights, as under autocast on a GPU.

    With two images, one of three slices is empty. Returns the output of this slice, and its gradients of x, weight and
    bias.
    """
    torch.manual_seed(0)
    x, norm = (5 + torch.randn(2, 4, 3, 3)).bfloat16(), nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    target = torch.randn(2, 4, 3, 3)
    part = slice(0, 2)
    if group is not None:
        norm = SyncBatchNorm2d.of(norm)
        part = slice(2 * group.rank // group.world, 2 * (group.rank + 1) // group.world)
    x = x[part].clone().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    (y.float() * target[part]).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return y.detach().float(), x.grad.float(), norm.weight.grad, norm.bias.grad


def fail(args: argparse.Namespace) -> int:
    if int(os.environ["RANK"]) == args.rank:
        print("discarded")
        print("the cause", file=sys.stderr, flush=True)
        match args.how:
            case "error":
                raise ZeroDivisionError
            case "input":
                raise InputError("`N > 0` must hold.")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "status":
                return 1
    join_group("cpu")  # waits for the failed process
    return 0
