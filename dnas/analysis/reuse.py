"""Feature reuse: how strongly each layer draws on each earlier one of its block (the paper's Figure 5)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dnas.analysis.intervals import t_quantile
from dnas.analysis.weight_norms import NormHistory
from dnas.errors import InputError, unknown

NORMALISATIONS = ("column", "block", "none")


@dataclass(frozen=True)
class BlockReuse:
    """One dense block of m layers. values [m + 1, m + 1]: row s is the source (0: the block's input, s: its s-th
    layer), column l - 1 the target (l = 1 .. m: its layers, last: what follows); not a number where l reads no s.
    unclear [m + 1, m + 1]: whether a connected cell does not differ from the untrained network.
    """

    number: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: np.ndarray
    unclear: np.ndarray

    @property
    def follower(self) -> str:
        """`transition` or `classifier`."""
        return self.targets[-1].rstrip("0123456789")


@dataclass(frozen=True)
class Reuse:
    """The blocks of one spec, the mean over its `networks` (as many seeds), after epoch `epoch` (0: untrained; None:
    of several, each after its own last)."""

    blocks: tuple[BlockReuse, ...]
    normalise: str
    epoch: int | None
    networks: int

    def strongest(self) -> dict[str, int]:
        """Of the dense layers that read several sources, how many draw most on their block's `input`, on the layer just
        `before`, and on `another`."""
        counts = {"input": 0, "before": 0, "another": 0}
        for block in self.blocks:
            for column, values in enumerate(block.values.T[:-1]):
                if np.isfinite(values).sum() > 1:
                    strongest_source = int(np.nanargmax(values))
                    counts["before" if strongest_source == column else "another" if strongest_source else "input"] += 1
        return counts

    def frame(self) -> pd.DataFrame:
        """Return one row per connected cell: block, source, target, value, unclear."""
        rows = [
            (b.number, b.sources[s], b.targets[t], b.values[s, t], bool(b.unclear[s, t]))
            for b in self.blocks
            for t in range(len(b.targets))
            for s in range(len(b.sources))
            if np.isfinite(b.values[s, t])
        ]
        return pd.DataFrame(rows, columns=["block", "source", "target", "value", "unclear"])


def feature_reuse(
    histories: NormHistory | Sequence[NormHistory], *, epoch: int | None = None, normalise: str = "column"
) -> Reuse:
    """The matrix of Figure 5 for each dense block, of one network or of several of the same spec.

    With W the weights of l's first convolution (of the classifier its matrix), and C_s the input channels of it that s
    made, a(s, l) is the mean of |w| over W[:, C_s]. The value of a cell is, by `normalise`,

        column   a(s, l) / max over s' of a(s', l): which of its sources a layer draws on most
        block    a(s, l) / max over s', l' of a(s', l') in the block
        none     a(s, l)

    and over several networks the mean of their values.

    What is disputed: the caption says "average L1 norm (normalized by number of input feature-maps)", which is a(s, l)
    but for a factor that only l decides, while the published colours go from 0 to 1. The authors did not say what they
    divided by, nor whether per layer or per block (github.com/liuzhuang13/DenseNet, issues 26 and 53;
    Lyken17/SparseNet, issue 9, where the least is subtracted too). `column` does not depend on that factor; nothing is
    subtracted here, so that 0 means no weight at all.

    A cell is `unclear` where the same networks untrained have much the same value u: with several, where the 95%
    interval of the mean of the paired differences v - u (Student's t, a network and its own start being a pair)
    contains 0; with one, where v is within the 95% interval of the untrained values of its block (mean and standard
    deviation of those cells whose column has several sources; Student's t). It is a cell's own interval, corrected for
    nothing: of the cells in which training changed nothing, one in twenty is not marked. Where nothing was measured
    before the training, no cell is marked; at epoch 0 each is.

    epoch: None is each network's last. Raises `InputError` where there are no dense blocks, where the networks are not
    of one spec, and where an epoch was not reached.
    """
    histories = [histories] if isinstance(histories, NormHistory) else list(histories)
    if normalise not in NORMALISATIONS:
        raise unknown("normalisation", normalise, NORMALISATIONS)
    check_same_pairs(histories)
    for history in histories:
        if epoch is not None and not 0 <= epoch <= history.epochs:
            raise InputError(f"the network was trained for {history.epochs} epochs; there is no epoch {epoch}.")
    ends = {history.epochs if epoch is None else epoch for history in histories}
    shapes = block_shapes(histories[0].pairs)
    trained = [matrices(h.pairs, h.reuse[h.epochs if epoch is None else epoch], shapes, normalise) for h in histories]
    before = [matrices(h.pairs, h.reuse[0], shapes, normalise) for h in histories]
    has_null = all(history.epochs for history in histories)
    blocks = []
    for index, (number, sources, targets) in enumerate(shapes):
        values = np.stack([of[index] for of in trained])
        null = np.stack([of[index] for of in before])
        unclear = _unclear(values, null) if has_null else np.zeros(values.shape[1:], dtype=bool)
        blocks.append(BlockReuse(number, sources, targets, values.mean(axis=0), unclear))
    return Reuse(tuple(blocks), normalise, ends.pop() if len(ends) == 1 else None, len(histories))


def _unclear(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """[networks, S, T] twice -> [S, T]."""
    connected = np.isfinite(values[0])
    if len(values) > 1:
        change = values - null
        mean, error = change.mean(axis=0), change.std(axis=0, ddof=1) / np.sqrt(len(change))
        reach = t_quantile(len(change) - 1) * error
        return connected & (np.abs(mean) <= reach)
    several = connected & (connected.sum(axis=0) > 1)
    cells = null[0][several]
    if len(cells) < 2:
        return connected
    reach = t_quantile(len(cells) - 1) * cells.std(ddof=1)
    # The only source of a column is always its greatest, with or without training.
    return connected & (~several | (np.abs(values[0] - cells.mean()) <= reach))


def check_same_pairs(histories: Sequence[NormHistory]) -> None:
    """`InputError` unless all are of one spec, with dense blocks."""
    if not histories:
        raise InputError("feature reuse needs a network.")
    if not any(consumer.startswith("denseblock") for _, consumer in histories[0].pairs):
        raise InputError(
            "feature reuse is of dense blocks, and this network has none;"
            " of it there are `dnas plot weight-norms` and `dnas plot gradients`."
        )
    for history in histories[1:]:
        if history.pairs != histories[0].pairs or history.names != histories[0].names:
            raise InputError("the networks are of different specs; feature reuse is of several seeds of one network.")


def block_shapes(pairs: Sequence[tuple[str, str]]) -> list[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """(number, sources, targets) of each dense block, from the (source, consumer) pairs of a network."""
    layers: dict[int, list[str]] = {}
    inputs: dict[int, str] = {}
    followers: list[str] = []
    for source, consumer in pairs:
        match = re.fullmatch(r"denseblock(\d+)\.denselayer\d+", consumer)
        if match is None:
            if consumer not in followers:
                followers.append(consumer)
            continue
        number = int(match[1])
        inputs.setdefault(number, source)  # the first layer has no other source
        if consumer not in layers.setdefault(number, []):
            layers[number].append(consumer)
    return [
        (number, (inputs[number], *layers[number]), (*layers[number], follower))
        for number, follower in zip(layers, followers, strict=True)
    ]


def matrices(
    pairs: Sequence[tuple[str, str]],
    cells: np.ndarray,
    shapes: Sequence[tuple[int, tuple[str, ...], tuple[str, ...]]],
    normalise: str = "none",
) -> list[np.ndarray]:
    """cells [Q], one for each pair -> for each block [sources, targets], not a number where there is no pair."""
    at = dict(zip(pairs, cells, strict=True))
    matrices = []
    for _, sources, targets in shapes:
        matrix = np.array([[at.get((source, target), np.nan) for target in targets] for source in sources], dtype=float)
        if normalise != "none":
            largest = np.nanmax(matrix, axis=0 if normalise == "column" else None, keepdims=True)
            matrix = np.divide(matrix, largest, out=np.where(np.isnan(matrix), np.nan, 0.0), where=largest > 0)
        matrices.append(matrix)
    return matrices
