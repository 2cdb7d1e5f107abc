"""Training of one network, in this process or in several processes that share each batch."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import parent_process
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dnas.api.interruption import resume_hint
from dnas.arch import Spec, cost, format_name, parse_name
from dnas.arch.names import stated_fields
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import absolute_name, data_info
from dnas.data.summary import size_warnings
from dnas.errors import InputError
from dnas.formatting import count, duration, percent, several, size
from dnas.io import write_atomic
from dnas.nn import resolve_kernels
from dnas.nn.kernels import check_kernels
from dnas.study.commands import command as command_line
from dnas.study.provenance import git_commit, versions
from dnas.training.checkpoint import Epoch, check_same_run
from dnas.training.defaults import DEFAULT_KERNELS, cores, default_threads
from dnas.training.devices import is_out_of_memory
from dnas.training.distributed import ALONE, Group, is_loss_of_peer, is_started_by_torchrun, join_group
from dnas.training.fit import Diverged, Fit, fit
from dnas.training.launch import LOST_PEER, launch
from dnas.training.recipe import Recipe, make_recipe
from dnas.training.single import check_processes, cpu_threads, default_folder, set_cpu_threads, spec_for_data
from dnas.training.step import check_cuda_graph

WARM_UP_STEPS = 20  # the first steps are slower than the rest, so the time left is estimated after them


@dataclass(frozen=True)
class TrainConfig:
    """The network, data and settings of `dnas train`. None means the default.

    processes: Number of processes that share each batch. Each has its own GPU, unless the device is the CPU.
    out: Folder of the run.
    """

    name: str
    dataset: str
    recipe: str = "fast"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    data_root: Path | None = None
    subset: int | None = None
    split_seed: int = 0
    image_size: int | None = None
    augment: str = "auto"
    threads: int | None = None
    device: str = "auto"
    processes: int | None = None
    compile_net: bool = False
    cuda_graph: bool = False
    kernels: str | None = None
    out: Path | None = None

    def make_recipe(self) -> Recipe:
        return make_recipe(
            self.recipe,
            data_info(self.dataset),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )

    @property
    def folder(self) -> Path:
        return self.out or default_folder(self.name, self.dataset, self.seed)

    @property
    def resume_hint(self) -> str:
        return f"{resume_hint(self.folder)}."


def train_network(config: TrainConfig, debug: bool = False) -> int:
    """Train in this process, in `config.processes` new processes, or as one of the processes of torchrun.

    Returns the exit status: 0 for success, 1 for a failure, 130 after Ctrl-C.
    """
    parse_name(config.name)
    device, processes = check_processes(config.device, config.processes, config.make_recipe().batch_size)
    if config.cuda_graph:
        check_cuda_graph(device, processes, config.compile_net)
    if processes == 1:
        return _train(config, device, ALONE)
    if not is_started_by_torchrun():
        return launch(train_network, config, processes, config.resume_hint, debug)
    try:
        group = join_group(device)
        status = _train(config, device, group)
        if not status:
            group.leave()  # only after a success, since it waits for the other processes
        return status
    except Exception as error:
        if not is_loss_of_peer(error):
            raise
        if os.environ["RANK"] == "0" and parent_process() is None:  # otherwise the launching command reports it
            print(f"dnas: another process of this run has ended; {config.resume_hint}", file=sys.stderr)
        return LOST_PEER


def _train(config: TrainConfig, device: str, group: Group) -> int:
    recipe = config.make_recipe()
    write_line: Callable[..., None] = partial(print, flush=True) if group.is_first else _silent
    data = _load(config, device, group, write_line)
    set_cpu_threads(config.threads or default_threads(group.local_world, data.image_size))
    spec = spec_for_data(config.name, data, recipe)
    write_line(_opening(config, spec, data, recipe, device, group))
    kernels = group.from_first(lambda: _kernels(config, spec, recipe, device))
    stored = _write_facts(config, spec, data, recipe, device, group, kernels) if group.is_first else 0
    if stored:
        write_line(
            "already finished; nothing is left to train"
            if stored == recipe.epochs
            else f"resume  after epoch {stored} of {recipe.epochs}"
        )
    watch = _Watch(recipe.epochs, stored)
    try:
        with watch if group.is_first else nullcontext():
            result = fit(
                spec,
                data,
                recipe,
                seed=(config.seed, 0),
                device=device,
                folder=config.folder,
                compile_net=config.compile_net,
                cuda_graph=config.cuda_graph,
                kernels=kernels,
                group=group,
                report=watch.epoch,
                on_step=watch.step if group.is_first else _silent,
            )
    except KeyboardInterrupt:
        write_line(f"\nstopped; {config.resume_hint}")
        return 130
    except Diverged as error:
        print(f"dnas: diverged: {error} A lower --learning-rate may help.", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"dnas: out of memory on {device}: {error} A smaller --batch-size may help.", file=sys.stderr)
        return 1
    write_line(_closing(config.folder, data, result))
    return 0


def _silent(*_: Any) -> None:
    pass


def _load(config: TrainConfig, device: str, group: Group, note: Callable[..., None]) -> Dataset:
    named = parse_name(config.name)
    side = config.image_size or (named.image_size if "image_size" in stated_fields(config.name) else None)
    data = group.after_first(
        lambda: load_dataset(
            config.dataset,
            data_root=config.data_root,
            image_size=side,
            stem=getattr(named, "stem", "small"),
            subset=config.subset,
            split_seed=config.split_seed,
            augmentation=config.augment,
            device=device,
            progress=note,
        )
    )
    if group.local_world > 1:
        data = dataclasses.replace(data, workers=min(8, max(0, cores() // group.local_world - 1)))
    return data


def _kernels(config: TrainConfig, spec: Spec, recipe: Recipe, device: str) -> str:
    """Return the kernels of the dense blocks.

    An existing run keeps its kernels, so that it resumes bit for bit. A new run has the requested ones.
    """
    requested, folder = config.kernels, config.folder
    if requested is not None:
        check_kernels(requested)
    if (folder / "run.json").exists():
        facts = json.loads((folder / "run.json").read_text())
        recorded = str(facts.get("kernels", "plain"))
        if requested not in (None, "auto", recorded):
            raise InputError(
                f"{folder} was started with the kernels {recorded}, but got {requested}, whose results are not"
                " bit-identical; leave --kernels out, or name another folder with --out."
            )
        return recorded
    return resolve_kernels(requested or DEFAULT_KERNELS, spec, device, recipe.batch_size, config.compile_net)


def _opening(config: TrainConfig, spec: Spec, data: Dataset, recipe: Recipe, device: str, group: Group) -> str:
    price = cost(spec, recipe.batch_size)
    threads = several(cpu_threads(), "thread")
    hardware = f"{device} ({threads})"
    if group.world > 1:
        processes = f"{group.world} processes on cpu" if device == "cpu" else f"{group.world} GPUs"
        hardware = f"{processes} ({threads} each)"
    return (
        f"{format_name(spec)}   {count(price.params)} params, {count(price.macs)} macs,"
        f" {size(price.activation_bytes)} of activations per step\n"
        f"data    {data.title}, {data.train_size:,} train / {data.val_size:,} validation,"
        f" augmentation {data.augmentation}\n"
        f"train   recipe {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size},"
        f" seed {config.seed}, {hardware}\n"
        f"stored  {config.folder}/"
        + "".join(f"\nwarning {text}" for text in size_warnings(data.train_size, data.val_size, recipe.batch_size))
    )


def _write_facts(
    config: TrainConfig, spec: Spec, data: Dataset, recipe: Recipe, device: str, group: Group, kernels: str
) -> int:
    """Write run.json, and return the number of finished epochs. Raises `InputError` if the folder has another run."""
    folder, stored = config.folder, 0
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "checkpoint.pt").exists():
        content = check_same_run(folder / "checkpoint.pt", spec, recipe, data, (config.seed, 0))
        stored = len(content["curve"])
    facts = {
        "network": format_name(spec),
        "command": _command(config, device, group, kernels),
        "recipe": recipe.to_dict(),
        "data": data.describe(),
        "seed": config.seed,
        "device": device,
        "processes": group.world,
        "threads": cpu_threads(),
        "kernels": kernels,
        "versions": versions(),
        "commit": git_commit(),
    }
    write_atomic(folder / "run.json", json.dumps(facts, indent=1))
    return stored


def _command(config: TrainConfig, device: str, group: Group, kernels: str) -> str:
    """Return the command that repeats a run, also one that was started from Python."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    given = {name: value for name, value in vars(config).items() if value != fields[name]}
    given |= {
        "dataset": absolute_name(config.dataset),
        "threads": cpu_threads(),
        "device": device.partition(":")[0],
        "kernels": kernels,
        "gpus": group.world if group.world > 1 else None,
        "compile": config.compile_net,
    }
    if config.data_root is not None:
        given["data_root"] = config.data_root.absolute()
    options = {name: value for name, value in given.items() if name not in ("name", "processes", "compile_net")}
    return command_line("train", config.name, **options)


def _closing(folder: Path, data: Dataset, result: Fit) -> str:
    return (
        f"done    {percent(result.run.curve[-1].val_error)} validation error at the last epoch,"
        f" {duration(result.run.seconds)} of training, peak memory {size(result.peak_memory_bytes)}\n"
        f"weights {folder / 'checkpoint.pt'} (sha256 {result.weights_digest[:16]}…)\n"
        f"next    dnas eval {folder} --part {'test' if data.test_size else 'val'}"
    )


class _Watch:
    """Progress output: a bar on a terminal, and one line per epoch after the first `stored`, which are repeated."""

    def __init__(self, epochs: int, stored: int) -> None:
        self.epochs, self.stored = epochs, stored
        self.done = 0
        self.began = time.monotonic()
        self.trained_now = 0  # number of epochs trained by this process
        self.console = Console(markup=False, highlight=False)
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

    def left(self, epoch_fraction: float) -> str:
        """Return the remaining time as text. epoch_fraction: finished fraction of the current epoch."""
        trained = self.trained_now + epoch_fraction
        if not trained:
            return ""
        seconds = (time.monotonic() - self.began) / trained * (self.epochs - self.done - epoch_fraction)
        return f"about {duration(seconds)} left"

    def step(self, done: int, total: int) -> None:
        left = self.left(done / total) if done > WARM_UP_STEPS or self.trained_now else ""
        self.bar.update(
            self.task, completed=done, total=total, description=f"epoch {self.done + 1}/{self.epochs}", left=left
        )

    def epoch(self, epoch: Epoch) -> bool:
        self.done = epoch.epoch
        if epoch.epoch <= self.stored:
            self.began = time.monotonic()
            return True
        self.trained_now += 1
        left = f"   {self.left(0)}" if self.done < self.epochs else ""
        self.console.print(
            f"epoch {epoch.epoch:3d}/{self.epochs}   train {percent(epoch.train_error)} (loss {epoch.train_loss:.4f})"
            f"   val {percent(epoch.val_error)}"
            + (f" (loss {epoch.val_loss:.4f})" if epoch.val_loss is not None else "")
            + f"   {epoch.seconds:.1f} s{left}",
            soft_wrap=True,
        )
        return True
