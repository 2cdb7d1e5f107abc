"""Checkpoints of a training run, and the files derived from them: curve.csv and norms.npz."""

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from dnas.arch import Spec, spec_from_dict
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.formatting import several
from dnas.io import write_atomic
from dnas.nn import build
from dnas.training.metrics import metrics_in
from dnas.training.norms import Norms
from dnas.training.recipe import Recipe

CHECKPOINT_FORMAT = "dnas-checkpoint-1"


@dataclass(frozen=True)
class Epoch:
    """One row of a curve.

    `epoch` counts from 1. Errors are fractions and losses are mean cross entropy in nats. `train_*` are means over the
    batches of the epoch, measured while the weights change. `val_*` are None without a validation part. `metrics` are
    those that the study asks for, by name: see `dnas.training.metrics`.
    """

    epoch: int
    train_loss: float
    train_error: float
    val_loss: float | None
    val_error: float | None
    learning_rate: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the values by name, each metric with its own name."""
        values = {name: getattr(self, name) for name in EPOCH_KEYS}
        return values | dict(self.metrics)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Rebuild an epoch from `row()`."""
        return cls(**{name: row[name] for name in EPOCH_KEYS}, metrics=metrics_in(row))


EPOCH_KEYS = tuple(item.name for item in fields(Epoch) if item.name != "metrics")


@dataclass
class Run:
    """A network with the settings and the history of its training run."""

    spec: Spec
    recipe: Recipe
    data: dict[str, Any]  # Dataset.describe()
    seed: tuple[int, int]
    net: nn.Module
    curve: list[Epoch] = field(default_factory=list)
    norms: list[Norms] = field(default_factory=list)  # the first one is measured before training
    seconds: float = 0.0


@dataclass
class TrainState:
    """All state of a training run that a checkpoint stores, besides torch's global random generators."""

    run: Run
    optimizer: torch.optim.SGD
    generator: torch.Generator  # order and augmentation of the images


def weights_digest(net: nn.Module) -> str:
    """Return the sha256 of all parameters and buffers. It is equal if and only if networks are equal bit for bit."""
    return digest_of_weights(net.state_dict())


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the `weights_digest` of a state dict, such as the `weights` of a checkpoint."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- files -------------------------------------------------------------------------------------------------------


def write_history(folder: Path, run: Run, guard: Callable[[], None]) -> None:
    """Write curve.csv and norms.npz, calling `guard` before each."""
    guard()
    write_curve(folder / "curve.csv", run.curve)
    guard()
    write_norms(folder / "norms.npz", run)


def write_curve(path: Path, curve: list[Epoch]) -> None:
    """Write one row per epoch. The columns are the keys of `Epoch.row`, and None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(curve[-1].row()), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(epoch.row() for epoch in curve)
    write_atomic(path, text.getvalue())


def write_norms(path: Path, run: Run) -> None:
    """Write the norms of all epochs as an .npz file; the first row is measured before training.

    Arrays: `names` [P], `numel` [P], `l2`, `l1` and `gradient` [epochs + 1, P], `pairs` [Q, 2] (source, consumer) and
    `reuse` [epochs + 1, Q], see `dnas.training.norms.Norms`. `l1` and `gradient` are NaN if not measured.
    """
    sizes = {name: parameter.numel() for name, parameter in run.net.named_parameters()}
    plain = _norms_to_plain(run.norms)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array(plain["names"]),
        numel=np.array([sizes[name] for name in plain["names"]]),
        pairs=np.array(plain["pairs"], dtype=str).reshape(-1, 2),
        **{key: plain[key].numpy() for key in ("l2", "reuse", "l1", "gradient")},
    )
    write_atomic(path, buffer.getvalue())


# --- checkpoints -------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, state: TrainState) -> None:
    """Write all that `fit` needs to resume, as tensors and plain values, in one atomic step."""
    run = state.run
    random = {"data": state.generator.get_state(), "global": torch.get_rng_state()}
    if next(run.net.parameters()).is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(next(run.net.parameters()).device)
    content = {
        "format": CHECKPOINT_FORMAT,
        "spec": run.spec.to_dict(),
        "recipe": run.recipe.to_dict(),
        "data": run.data,
        "seed": list(run.seed),
        "curve": [epoch.row() for epoch in run.curve],
        "norms": _norms_to_plain(run.norms),
        "seconds": run.seconds,
        "weights": {name: tensor.detach().cpu() for name, tensor in run.net.state_dict().items()},
        "optimizer": state.optimizer.state_dict(),
        "random": random,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that dnas has written.

    Raises `InputError` if the file is missing, truncated, or no such checkpoint. A pickle that would run code is
    refused and never run.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a dnas checkpoint, or it is truncated ({path.stat().st_size:,} bytes).")
    try:
        # torch does not verify the archive's checksums: a flipped bit would be loaded as a weight.
        with zipfile.ZipFile(path) as archive:
            is_intact = archive.testzip() is None
        content = torch.load(path, map_location="cpu", weights_only=True) if is_intact else None
    except Exception:  # a damaged archive or a foreign pickle raises one of many types
        content = None
    if content is None:
        raise InputError(f"{path} is not a dnas checkpoint, or it is damaged.")
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a dnas checkpoint ({CHECKPOINT_FORMAT}).")
    return content


def check_same_run(path: Path, spec: Spec, recipe: Recipe, data: Dataset, seed: tuple[int, int]) -> dict[str, Any]:
    """Read the checkpoint at `path`. An `InputError` lists the settings in which it differs from this run."""
    content, facts = read_checkpoint(path), data.describe()
    unweighted = {"class_weights": "none"}
    stored = {**content["spec"], **unweighted, **content["recipe"], "seed": tuple(content["seed"])}
    now = {**spec.to_dict(), **unweighted, **recipe.to_dict(), "seed": tuple(seed)}
    for key in ("fingerprint", "subset", "split_seed", "augmentation", "train_size"):
        stored[key], now[key] = content["data"][key], facts[key]
    different = [key for key in now if stored.get(key) != now[key]]
    changed = [f"{key}={stored.get(key)} (now {now[key]})" for key in different]
    if different == ["epochs"]:
        raise InputError(
            f"{path} belongs to another run, of {several(stored['epochs'], 'epoch')} (now {now['epochs']}). Learning"
            " rates depend on the number of epochs, so none can be added; choose another folder (--out), or remove that"
            " one."
        )
    if changed:
        raise InputError(
            f"{path} belongs to another run, with {', '.join(changed)}; choose another folder, or remove that one."
        )
    return content


def load_run(path: Path) -> Run:
    """Load the run of a checkpoint; its network has the stored weights and is in evaluation mode on the CPU."""
    content = read_checkpoint(path)
    run = Run(
        spec_from_dict(content["spec"]),
        Recipe.from_dict(content["recipe"]),
        content["data"],
        (content["seed"][0], content["seed"][1]),
        build(spec_from_dict(content["spec"])),
    )
    _restore_history(run, content)
    return replace(run, net=run.net.to(memory_format=torch.channels_last).eval())


def restore(state: TrainState, content: dict[str, Any]) -> None:
    """Load the content of a checkpoint into `state`, and restore torch's global random generators."""
    _restore_history(state.run, content)
    state.optimizer.load_state_dict(content["optimizer"])
    state.generator.set_state(content["random"]["data"])
    torch.set_rng_state(content["random"]["global"])
    parameter = next(state.run.net.parameters())
    if parameter.is_cuda and "cuda" in content["random"]:
        torch.cuda.set_rng_state(content["random"]["cuda"], parameter.device)


def _restore_history(run: Run, content: dict[str, Any]) -> None:
    run.net.load_state_dict(content["weights"])
    run.curve = [Epoch.from_row(row) for row in content["curve"]]
    run.norms = _norms_from_plain(content["norms"])
    run.seconds = content["seconds"]


def _norms_to_plain(history: list[Norms]) -> dict[str, Any]:
    return {
        "names": list(history[0].names),
        "pairs": [list(pair) for pair in history[0].pairs],
        "l2": torch.tensor([norms.l2 for norms in history], dtype=torch.float64),
        "reuse": torch.tensor([norms.reuse for norms in history], dtype=torch.float64),
        "l1": _rows([norms.l1 for norms in history], len(history[0].names)),
        "gradient": _rows([norms.gradient for norms in history], len(history[0].names)),
    }


def _rows(rows: list[tuple[float, ...]], size: int) -> Tensor:
    """Stack rows into [epochs + 1, size]; an empty row becomes NaN."""
    return torch.tensor([row or (math.nan,) * size for row in rows], dtype=torch.float64)


def _norms_from_plain(plain: dict[str, Any]) -> list[Norms]:
    names, pairs = tuple(plain["names"]), tuple((source, consumer) for source, consumer in plain["pairs"])
    empty = torch.full_like(plain["l2"], math.nan)  # runs started by dnas 0.1 did not measure these
    measured = (plain[key].tolist() for key in ("l2", "reuse"))
    later = (plain.get(key, empty).tolist() for key in ("l1", "gradient"))
    return [
        Norms(names, tuple(l2), pairs, tuple(reuse), *(() if all(map(math.isnan, row)) else tuple(row) for row in rest))
        for l2, reuse, *rest in zip(*measured, *later, strict=True)
    ]
