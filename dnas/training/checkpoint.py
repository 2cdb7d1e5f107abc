"""Checkpoints of a training run, and the files derived from them: curve.csv and norms.npz."""

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dnas.arch import Spec, spec_from_dict
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.io import write_atomic
from dnas.nn import build
from dnas.training.norms import Norms
from dnas.training.recipe import Recipe

CHECKPOINT_FORMAT = "dnas-checkpoint-1"


@dataclass(frozen=True)
class Epoch:
    """One row of a curve. `epoch` counts from 1; errors are fractions, losses mean cross entropy in nats; `train_*` are
    means over the epoch's steps, as they were seen; `val_*` are None where there is no validation part."""

    epoch: int
    train_loss: float
    train_error: float
    val_loss: float | None
    val_error: float | None
    learning_rate: float
    seconds: float


@dataclass
class Run:
    """A network and all that its training needs to go on: what a checkpoint holds."""

    spec: Spec
    recipe: Recipe
    data: dict[str, Any]  # Dataset.describe()
    seed: tuple[int, int]
    net: nn.Module
    curve: list[Epoch] = field(default_factory=list)
    norms: list[Norms] = field(default_factory=list)  # the first is of the untrained network
    seconds: float = 0.0


def weights_digest(net: nn.Module) -> str:
    """sha256 of every parameter and buffer: equal just when two networks are equal bit for bit."""
    return digest_of_weights(net.state_dict())


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """`weights_digest` of a state dict, such as a checkpoint's `weights`."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- files -------------------------------------------------------------------------------------------------------


def _write_history(folder: Path, run: Run, guard: Callable[[], None]) -> None:
    guard()
    write_curve(folder / "curve.csv", run.curve)
    guard()
    write_norms(folder / "norms.npz", run)


def write_curve(path: Path, curve: list[Epoch]) -> None:
    """A row an epoch; the columns are the fields of `Epoch`, None an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(curve[0])))
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in curve)
    write_atomic(path, text.getvalue())


def write_norms(path: Path, run: Run) -> None:
    """`names` [P], `numel` [P], `l2` [epochs + 1, P], `pairs` [Q, 2] (source, consumer), `reuse` [epochs + 1, Q]: see
    `dnas.training.norms.Norms`; the first row is of the untrained network. `l1` and `gradient` are like `l2`, and not a
    number where they were not measured."""
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


def write_checkpoint(path: Path, run: Run, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """Writes all that `fit` needs to go on: tensors and plain values only, in one atomic step."""
    random = {"data": generator.get_state(), "global": torch.get_rng_state()}
    if next(run.net.parameters()).is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(next(run.net.parameters()).device)
    content = {
        "format": CHECKPOINT_FORMAT,
        "spec": run.spec.to_dict(),
        "recipe": run.recipe.to_dict(),
        "data": run.data,
        "seed": list(run.seed),
        "curve": [asdict(epoch) for epoch in run.curve],
        "norms": _norms_to_plain(run.norms),
        "seconds": run.seconds,
        "weights": {name: tensor.detach().cpu() for name, tensor in run.net.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "random": random,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours. `InputError` where the file is missing, cut short, or anything else; a
    pickle that would run code is refused, never run."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a dnas checkpoint, or it is cut short ({path.stat().st_size:,} bytes).")
    try:
        # torch does not look at the archive's checksums: a flipped bit would be loaded as a weight.
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except Exception:  # a damaged archive, or a pickle that is not ours, can end in any of a dozen kinds
        content = None
    if content is None:
        raise InputError(f"{path} is not a dnas checkpoint, or it is damaged.")
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a dnas checkpoint ({CHECKPOINT_FORMAT}).")
    return content


def check_same_run(path: Path, spec: Spec, recipe: Recipe, data: Dataset, seed: tuple[int, int]) -> dict[str, Any]:
    """The content of the checkpoint at `path`; `InputError` with what differs where it is of another run."""
    content, facts = read_checkpoint(path), data.describe()
    before = {**content["spec"], **content["recipe"], "seed": tuple(content["seed"])}
    here = {**spec.to_dict(), **recipe.to_dict(), "seed": tuple(seed)}
    for key in ("fingerprint", "subset", "split_seed", "augmentation", "train_size"):
        before[key], here[key] = content["data"][key], facts[key]
    changed = [f"{key}={before.get(key)} (now {here[key]})" for key in here if before.get(key) != here[key]]
    if changed:
        raise InputError(
            f"{path} is of another run, with {', '.join(changed)}; name another folder, or remove that one."
        )
    return content


def load_run(path: Path) -> Run:
    """The run that a checkpoint holds: its network with its weights, in evaluation mode on the CPU."""
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


def _restore(run: Run, optimizer: torch.optim.Optimizer, generator: torch.Generator, content: dict[str, Any]) -> None:
    _restore_history(run, content)
    optimizer.load_state_dict(content["optimizer"])
    generator.set_state(content["random"]["data"])
    torch.set_rng_state(content["random"]["global"])
    parameter = next(run.net.parameters())
    if parameter.is_cuda and "cuda" in content["random"]:
        torch.cuda.set_rng_state(content["random"]["cuda"], parameter.device)


def _restore_history(run: Run, content: dict[str, Any]) -> None:
    run.net.load_state_dict(content["weights"])
    run.curve = [Epoch(**row) for row in content["curve"]]
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
    """[epochs + 1, size]; an empty row becomes not a number."""
    return torch.tensor([row or (math.nan,) * size for row in rows], dtype=torch.float64)


def _norms_from_plain(plain: dict[str, Any]) -> list[Norms]:
    names, pairs = tuple(plain["names"]), tuple((source, consumer) for source, consumer in plain["pairs"])
    empty = torch.full_like(plain["l2"], math.nan)  # what runs that dnas 0.1 began did not measure
    measured = (plain[key].tolist() for key in ("l2", "reuse"))
    later = (plain.get(key, empty).tolist() for key in ("l1", "gradient"))
    return [
        Norms(names, tuple(l2), pairs, tuple(reuse), *(() if all(map(math.isnan, row)) else tuple(row) for row in rest))
        for l2, reuse, *rest in zip(*measured, *later, strict=True)
    ]
