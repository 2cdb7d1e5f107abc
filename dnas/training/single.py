"""`dnas train`: one network to the end, in this process, or in several that share each batch."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
import time
from contextlib import nullcontext
from functools import partial
from multiprocessing.process import parent_process
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dnas.arch import FAMILIES, Spec, cost, format_name, parse_name
from dnas.arch.names import stated_fields
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.formatting import count, duration, percent, several, size
from dnas.io import write_atomic
from dnas.nn import resolve_kernels
from dnas.nn.kernels import check_kernels
from dnas.study.provenance import git_commit, versions
from dnas.training.checkpoint import Epoch, check_same_run
from dnas.training.defaults import DEFAULT_KERNELS, cores, default_threads
from dnas.training.devices import check_device, is_out_of_memory
from dnas.training.distributed import ALONE, Group, is_loss_of_peer, is_started_by_torchrun, join_group
from dnas.training.fit import Diverged, fit
from dnas.training.launch import LOST_PEER, launch
from dnas.training.recipe import Recipe, make_recipe
from dnas.training.step import check_cuda_graph


def spec_for_data(name: str, data: Dataset, recipe: Recipe) -> Spec:
    """The network `name` for a data set, which settles classes, channels and image size; without augmentation a
    DenseNet gets the recipe's dropout, unless its name states one. `InputError` where its name states something else.
    """
    spec, stated = parse_name(name), stated_fields(name)
    facts: dict[str, Any] = {"in_channels": data.channels, "image_size": data.image_size, "classes": data.classes}
    for field, value in facts.items():
        if field in stated and getattr(spec, field) != value:
            raise InputError(f"{name!r} states {field}={getattr(spec, field)}, but {data.title} has {value}.")
    if data.augmentation == "none" and "dropout" not in stated and "dropout" in FAMILIES[spec.family].fields:
        facts["dropout"] = recipe.dropout_without_augmentation
    return dataclasses.replace(spec, **facts)


def default_folder(name: str, dataset: str, seed: int) -> Path:
    """studies/runs/<data>-<network>-s<seed>"""
    words = [Path(dataset.removeprefix("folder:")).name if dataset.startswith("folder:") else dataset, name, f"s{seed}"]
    return Path("studies/runs") / "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-") for word in words)


def check_processes(device: str, gpus: int | None, batch_size: int) -> tuple[str, int]:
    """The device of this process, checked, and how many processes train together: what torchrun says where it started
    this one, else `gpus`. `InputError` where there are not so many devices, or images in a batch."""
    named, device = device, check_device(device)
    started = is_started_by_torchrun()
    count = int(os.environ["WORLD_SIZE"]) if started else gpus or 1
    if started and gpus not in (None, count):
        raise InputError(f"--gpus {gpus}: torchrun started {count} processes; leave --gpus out.")
    if count == 1:
        return device, 1
    given = f"torchrun's {count} processes" if started else f"--gpus {count}"
    if device == "cpu" and named == "auto" and not started:
        raise InputError(
            f"{given}: torch {torch.__version__} finds no CUDA device here; --device cpu takes {count} processes on it."
        )
    if batch_size < count:
        raise InputError(f"{given}: a batch of {batch_size} cannot be shared out; give --batch-size {count} or more.")
    if device == "cpu":
        return device, count
    if torch.device(device).index is not None:
        raise InputError(f"{given}: --device {device} is a single GPU; give --device cuda.")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started else count
    if here > torch.cuda.device_count():
        raise InputError(
            f"{given}: this machine has {several(torch.cuda.device_count(), 'CUDA device')}; give at most so many."
        )
    return (f"cuda:{os.environ['LOCAL_RANK']}" if started else device), count


def train_one(args: argparse.Namespace) -> int:
    """Trains in this process; in `args.gpus` new ones; or, started by torchrun, as one of its processes."""
    parse_name(args.name)
    batch_size = _recipe(args).batch_size
    device, count = check_processes(args.device, args.gpus, batch_size)
    if args.cuda_graph:
        check_cuda_graph(device, count, args.compile)
    folder = args.out or default_folder(args.name, args.dataset, args.seed)
    go_on = f"every finished epoch is saved in {folder}/. The same command goes on from there."
    if count == 1:
        return _train(args, device, folder, go_on, ALONE)
    if not is_started_by_torchrun():
        return launch(train_one, args, count, go_on, args.debug)
    try:
        group = join_group(device)
        status = _train(args, device, folder, go_on, group)
        if not status:
            group.leave()  # after trouble not: that would wait for the others
        return status
    except Exception as error:
        if not is_loss_of_peer(error):
            raise
        if os.environ["RANK"] == "0" and parent_process() is None:  # or the launching command says it
            print(f"dnas: a process of this training is gone; {go_on}", file=sys.stderr)
        return LOST_PEER


def _recipe(args: argparse.Namespace) -> Recipe:
    return make_recipe(
        args.recipe,
        data_info(args.dataset),
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )


def _kernels(asked: str | None, compiled: bool, spec: Spec, recipe: Recipe, device: str, folder: Path) -> str:
    """What runs the dense blocks: as the run in `folder` was begun, so that it goes on bit for bit; else as asked."""
    if asked is not None:
        check_kernels(asked)
    facts = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
    begun = facts.get("kernels", "plain") if facts else None
    if begun is not None and asked not in (None, "auto", begun):
        raise InputError(
            f"{folder} was begun with the kernels {begun} (now {asked}), which are not the same bit for bit; leave"
            " --kernels out, or name another folder."
        )
    if begun is not None:
        return str(begun)
    return resolve_kernels(asked or DEFAULT_KERNELS, spec, device, recipe.batch_size, compiled)


def _train(args: argparse.Namespace, device: str, folder: Path, go_on: str, group: Group) -> int:
    named = parse_name(args.name)
    recipe = _recipe(args)
    side = args.image_size or (named.image_size if "image_size" in stated_fields(args.name) else None)
    say = partial(print, flush=True) if group.is_first else _silent
    data = group.after_first(
        lambda: load_dataset(
            args.dataset,
            data_root=args.data_root,
            image_size=side,
            stem=named.stem,
            subset=args.subset,
            split_seed=args.split_seed,
            augmentation=args.augment,
            device=device,
            progress=say,
        )
    )
    if group.local_world > 1:
        data = dataclasses.replace(data, workers=min(8, max(0, cores() // group.local_world - 1)))
    torch.set_num_threads(args.threads or default_threads(group.local_world, data.image_size))
    spec = spec_for_data(args.name, data, recipe)
    price = cost(spec, recipe.batch_size)
    where = f"{device} ({several(torch.get_num_threads(), 'thread')})"
    if group.world > 1:
        many = f"{group.world} processes on cpu" if device == "cpu" else f"{group.world} GPUs"
        where = f"{many} ({several(torch.get_num_threads(), 'thread')} each)"
    say(
        f"{format_name(spec)}   {count(price.params)} params, {count(price.macs)} macs,"
        f" {size(price.activation_bytes)} of activations a step\n"
        f"data    {data.title}, {data.train_size:,} train / {data.val_size:,} validation,"
        f" augmentation {data.augmentation}\n"
        f"train   recipe {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size},"
        f" seed {args.seed}, {where}\n"
        f"stored  {folder}/"
    )
    kernels = group.from_first(lambda: _kernels(args.kernels, args.compile, spec, recipe, device, folder))
    if group.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.pt").exists():
            check_same_run(folder / "checkpoint.pt", spec, recipe, data, (args.seed, 0))
        facts = {
            "network": format_name(spec),
            "command": shlex.join(["dnas", *sys.argv[1:]]),
            "recipe": recipe.to_dict(),
            "data": data.describe(),
            "seed": args.seed,
            "device": device,
            "processes": group.world,
            "threads": torch.get_num_threads(),
            "kernels": kernels,
            "versions": versions(),
            "commit": git_commit(),
        }
        write_atomic(folder / "run.json", json.dumps(facts, indent=1))
    watch = _Watch(recipe.epochs)
    try:
        with watch if group.is_first else nullcontext():
            result = fit(
                spec,
                data,
                recipe,
                seed=(args.seed, 0),
                device=device,
                folder=folder,
                compile_net=args.compile,
                cuda_graph=args.cuda_graph,
                kernels=kernels,
                group=group,
                report=watch.epoch,
                on_step=watch.step if group.is_first else _silent,
            )
    except KeyboardInterrupt:
        say(f"\nstopped; {go_on}")
        return 130
    except Diverged as error:
        print(f"dnas: diverged: {error} A lower --learning-rate may help.", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"dnas: out of memory on {device}: {error} A smaller --batch-size may help.", file=sys.stderr)
        return 1
    say(
        f"done    {percent(result.run.curve[-1].val_error)} validation error at the last epoch,"
        f" {duration(result.run.seconds)} of training, peak memory {size(result.peak_memory_bytes)}\n"
        f"weights {folder / 'checkpoint.pt'} (sha256 {result.weights_digest[:16]}…)\n"
        f"next    dnas eval {folder} --part {'test' if data.test_size else 'val'}"
    )
    return 0


def _silent(*words: Any) -> None:
    pass


class _Watch:
    """A bar on a terminal, and a line an epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.done = 0
        self.began = time.monotonic()
        self.new = 0.0  # epochs trained now, not those that a resumed run repeats
        self.console = Console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("epoch 1", total=1.0, left="")

    def __enter__(self) -> "_Watch":
        if self.console.is_terminal:
            self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.bar.__exit__(None, None, None)

    def left(self, share: float) -> str:
        if not self.new + share:
            return ""
        seconds = (time.monotonic() - self.began) / (self.new + share) * (self.epochs - self.done - share)
        return f"about {duration(seconds)} left"

    def step(self, done: int, total: int) -> None:
        # the first steps are slower than the rest, so an estimate waits for some of them
        left = self.left(done / total) if done > 20 or self.new else ""
        self.bar.update(
            self.task, completed=done, total=total, description=f"epoch {self.done + 1}/{self.epochs}", left=left
        )

    def epoch(self, epoch: Epoch) -> bool:
        resumed = self.new == 0 and time.monotonic() - self.began < 0.8 * epoch.seconds
        self.done = epoch.epoch
        if not resumed:
            self.new += 1
        else:
            self.began = time.monotonic()
        left = f"   {self.left(0)}" if self.new and self.done < self.epochs else ""
        self.console.print(
            f"epoch {epoch.epoch:3d}/{self.epochs}   train {percent(epoch.train_error)} (loss {epoch.train_loss:.4f})"
            f"   val {percent(epoch.val_error)}"
            + (f" (loss {epoch.val_loss:.4f})" if epoch.val_loss is not None else "")
            + f"   {epoch.seconds:.1f} s{'   (before)' if resumed else ''}{left}",
            highlight=False,
            soft_wrap=True,
        )
        return True
