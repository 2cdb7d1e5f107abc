"""Causal reuse: error gained by a network if one layer no longer receives the channels of another."""

import csv
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dnas.analysis.intervals import spearman
from dnas.analysis.reuse import BlockReuse, Reuse, block_shapes, matrices
from dnas.arch import DenseNetSpec
from dnas.data import Dataset
from dnas.errors import InputError
from dnas.io import complete_lines
from dnas.training.checkpoint import digest_of_weights
from dnas.training.evaluate import evaluate
from dnas.training.norms import reading_weight

FIELDS = ("block", "source", "target", "error", "loss", "weights", "data", "images")
LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class CausalReuse:
    """Error and loss gained by cutting each connection of a network.

    Attributes:
        shapes: (number, sources, targets) of each block.
        error: Validation error (fraction) of the intact network.
        loss: Mean cross entropy (nats) of the intact network.
        images: Number of validation images.
        error_gained: Increase of the error without the channels of the source in the target, for each block in the
            form of `BlockReuse.values`, [m + 1, m + 1]. NaN if they are not connected.
        loss_gained: Increase of the loss, in the same form.
    """

    shapes: tuple[tuple[int, tuple[str, ...], tuple[str, ...]], ...]
    error: float
    loss: float
    images: int
    error_gained: tuple[np.ndarray, ...]
    loss_gained: tuple[np.ndarray, ...]

    def as_reuse(self, what: str = "error_gained") -> Reuse:
        """Return the gains in the form of `feature_reuse`, with no cell marked as unclear."""
        blocks = zip(self.shapes, getattr(self, what), strict=True)
        reuse_blocks = (BlockReuse(*shape, values, np.zeros(values.shape, dtype=bool)) for shape, values in blocks)
        return Reuse(tuple(reuse_blocks), "none", None, 1)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ over `cells` cells, with its 95% interval. NaN if either side is constant.

    The interval is a percentile bootstrap over cells. It is too narrow if the cells of a layer are correlated.
    """

    rho: float
    low: float
    high: float
    cells: int


def causal_reuse(
    net: nn.Module,
    spec: DenseNetSpec,
    data: Dataset,
    *,
    device: str = "cpu",
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CausalReuse:
    """Cut one connection s -> l at a time, and measure the error on the validation part.

    The weights with which l's first convolution (or the classifier's matrix) reads the channels of s are set to zero,
    and restored afterwards. This has the same effect as zeroing the channels after the norm and ReLU of l. All other
    readers of s receive them as before, and nothing is retrained.

    Args:
        net: The trained network.
        spec: Its spec.
        data: Data set whose validation part is used.
        device: Device to evaluate on.
        cache: CSV file with one row per measurement, from which an interrupted run resumes.
        progress: Called with the number of finished connections and their total.

    Raises:
        InputError: If there is no validation part, or the cache is of other weights or other images.
    """
    if not data.val_size:
        raise InputError(f"{data.title} has no validation part, on which the error is measured.")
    layers = [layer for layer in spec.layers() if layer.kind != "stem"]
    cells = [(layer, source.layer) for layer in layers for source in layer.sources]
    shapes = block_shapes([(source, layer.name) for layer, source in cells])
    key = {
        "weights": digest_of_weights(net.state_dict())[:16],
        "data": data.fingerprint[:16],
        "images": f"{data.val_size}-{hashlib.sha256(data.val_index.cpu().numpy().tobytes()).hexdigest()[:8]}",
    }
    known = _read(cache, key)
    net = net.to(device).eval()
    parameters = dict(net.named_parameters())

    def measure(block: int, source: str, target: str, cut: Tensor) -> None:
        if (source, target) in known:
            return
        kept = cut.clone()
        cut.zero_()
        try:
            loss, error = evaluate(net, data, "val", device)
        finally:
            cut.copy_(kept)
        known[source, target] = error, loss
        if cache is not None:
            _append(cache, {"block": block, "source": source, "target": target, "error": error, "loss": loss, **key})

    measure(0, "", "", torch.empty(0))
    done = 0
    progress(done, len(cells))
    for layer in layers:
        weight, start = parameters[reading_weight(layer.name, layer.kind)].detach(), 0
        for source in layer.sources:
            measure(layer.block, source.layer, layer.name, weight[:, start : start + source.channels])
            start, done = start + source.channels, done + 1
            progress(done, len(cells))
    error, loss = known["", ""]
    pairs = [(source, layer.name) for layer, source in cells]
    errors = matrices(pairs, np.array([known[pair][0] - error for pair in pairs]), shapes)
    losses = matrices(pairs, np.array([known[pair][1] - loss for pair in pairs]), shapes)
    return CausalReuse(tuple(shapes), error, loss, data.val_size, tuple(errors), tuple(losses))


def with_fewer_images(data: Dataset, images: int) -> Dataset:
    """Restrict `data` to at most `images` validation images, chosen at random with a fixed seed."""
    chosen = torch.randperm(data.val_size, generator=torch.Generator().manual_seed(0))[:images]
    return replace(data, val_index=data.val_index[chosen.sort().values])


def correlate(causal: CausalReuse, weights: Reuse, what: str = "error_gained") -> RankCorrelation:
    """Return Spearman's ρ between weights and the error (or loss) gained by cutting, over the cells of all blocks."""
    gained = np.concatenate([block.ravel() for block in getattr(causal, what)])
    values = np.concatenate([block.values.ravel() for block in weights.blocks])
    both = np.isfinite(gained) & np.isfinite(values)
    x, y = values[both], gained[both]
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return RankCorrelation(math.nan, math.nan, math.nan, len(x))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(x), size=(DRAWS, len(x)))
    low, high = np.nanpercentile(spearman(x[drawn], y[drawn]), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return RankCorrelation(float(spearman(x, y)), float(low), float(high), len(x))


def _read(cache: Path | None, key: dict[str, str]) -> dict[tuple[str, str], tuple[float, float]]:
    if cache is None or not cache.exists():
        return {}
    known = {}
    content = cache.read_text(encoding="utf-8")
    complete = complete_lines(content)
    for row in csv.DictReader(complete.splitlines()):
        if set(row) != set(FIELDS):
            raise InputError(f"{cache} is not a table of causal reuse; name another file, or remove that one.")
        if {name: row[name] for name in key} != key:
            raise InputError(f"{cache} is of another network or other images; name another file, or remove that one.")
        known[row["source"], row["target"]] = float(row["error"]), float(row["loss"])
    if len(complete) < len(content):
        cache.write_text(complete, encoding="utf-8")
    return known


def _append(cache: Path, row: dict[str, object]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    fresh = not cache.exists() or not cache.stat().st_size
    with cache.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)
