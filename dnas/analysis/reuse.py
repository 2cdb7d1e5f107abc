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
    """Feature reuse of one dense block of m layers.

    Attributes:
        number: Number of the block.
        sources: Names of the sources: the block's input, then its layers.
        targets: Names of the targets: the layers, then the transition or classifier that follows the block.
        values: Reuse of each source (row) by each target (column), [m + 1, m + 1]. NaN if they are not connected.
        unclear: Whether a connected cell does not differ from the untrained network, [m + 1, m + 1].
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
    """Feature reuse of all blocks of one spec.

    Attributes:
        blocks: The blocks. Their values are means over the networks.
        normalise: Normalisation of the values (see `feature_reuse`).
        epoch: Epoch of the weights (0: untrained). None if the last epochs of several networks differ.
        networks: Number of networks (seeds).
    """

    blocks: tuple[BlockReuse, ...]
    normalise: str
    epoch: int | None
    networks: int

    def strongest(self) -> dict[str, int]:
        """Count the dense layers by the source on which they rely most.

        The source is the block's `input`, the layer just `before`, or `another`. Layers with one source do not count.
        """
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
    """Compute the matrix of the paper's Figure 5 for each dense block.

    Let W be the weights of l's first convolution (or the classifier's matrix), and C_s its input channels that s
    produces. Then a(s, l) is the mean of |w| over W[:, C_s]. The value of a cell is, by `normalise`,

        column   a(s, l) / max over s' of a(s', l): the source on which a layer relies most is 1
        block    a(s, l) / max over s', l' of a(s', l') in the block
        none     a(s, l)

    The values of several networks are averaged.

    The normalisation of the paper is unclear. Its caption says "average L1 norm (normalized by number of input
    feature-maps)", which is a(s, l) up to a factor that depends only on l, while the published colours range from 0 to
    1. The authors did not state the divisor, nor whether it is per layer or per block (github.com/liuzhuang13/DenseNet,
    issues 26 and 53; Lyken17/SparseNet, issue 9, which also subtracts the minimum). `column` does not depend on that
    factor. Nothing is subtracted, so 0 means no weight at all.

    A cell is `unclear` if its value v does not differ from the untrained one u. With several networks, this is if the
    95% interval of the mean of the differences v - u, paired by network (Student's t), contains 0. With one network, it
    is if v is within the 95% interval of the untrained values of its block (Student's t, from the cells whose column
    has several sources). The intervals are not corrected for the number of cells: one in twenty cells that training did
    not change is not marked. Without untrained values no cell is marked.

    Args:
        histories: Norms of one network, or of several seeds of one spec.
        epoch: Epoch of the weights. Defaults to the last epoch of each network.
        normalise: Normalisation, one of `NORMALISATIONS`.

    Raises:
        InputError: If there are no dense blocks, the specs differ, or a network did not reach the epoch.
    """
    histories = [histories] if isinstance(histories, NormHistory) else list(histories)
    if normalise not in NORMALISATIONS:
        raise unknown("normalisation", normalise, NORMALISATIONS)
    check_same_pairs(histories)
    for history in histories:
        if epoch is not None and not 0 <= epoch <= history.epochs:
            raise InputError(f"there is no epoch {epoch}: the network was trained for {history.epochs} epochs.")
    ends = {history.epochs if epoch is None else epoch for history in histories}
    shapes = block_shapes(histories[0].pairs)
    trained = [matrices(h.pairs, h.reuse[h.epochs if epoch is None else epoch], shapes, normalise) for h in histories]
    before = [matrices(h.pairs, h.reuse[0], shapes, normalise) for h in histories]
    has_null = all(history.epochs for history in histories)
    blocks = []
    for index, (number, sources, targets) in enumerate(shapes):
        values = np.stack([network_matrices[index] for network_matrices in trained])
        null = np.stack([network_matrices[index] for network_matrices in before])
        unclear = _unclear(values, null) if has_null else np.zeros(values.shape[1:], dtype=bool)
        blocks.append(BlockReuse(number, sources, targets, values.mean(axis=0), unclear))
    return Reuse(tuple(blocks), normalise, ends.pop() if len(ends) == 1 else None, len(histories))


def _unclear(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return the unclear cells, [S, T], from the trained and untrained values, [networks, S, T]."""
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
    # The only source of a column is always the maximum, with or without training.
    return connected & (~several | (np.abs(values[0] - cells.mean()) <= reach))


def check_same_pairs(histories: Sequence[NormHistory]) -> None:
    """Raise `InputError` unless all histories are of one spec with dense blocks."""
    if not histories:
        raise InputError("feature reuse needs a network.")
    if not any(consumer.startswith("denseblock") for _, consumer in histories[0].pairs):
        raise InputError(
            "feature reuse needs dense blocks, but this network has none;"
            " use `dnas plot weight-norms` or `dnas plot gradients`."
        )
    for history in histories[1:]:
        if history.pairs != histories[0].pairs or history.names != histories[0].names:
            raise InputError("the networks have different specs; feature reuse compares several seeds of one network.")


def block_shapes(pairs: Sequence[tuple[str, str]]) -> list[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """Return (number, sources, targets) of each dense block, from the (source, consumer) pairs of a network."""
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
    """Arrange the values of connections as one matrix per block.

    Args:
        pairs: (source, consumer) of each connection.
        cells: Value of each connection, [Q].
        shapes: (number, sources, targets) of each block, as returned by `block_shapes`.
        normalise: Normalisation, one of `NORMALISATIONS`.

    Returns:
        A matrix [sources, targets] for each block. NaN if they are not connected.
    """
    value_of = dict(zip(pairs, cells, strict=True))
    matrices = []
    for _, sources, targets in shapes:
        matrix = np.array(
            [[value_of.get((source, target), np.nan) for target in targets] for source in sources], dtype=float
        )
        if normalise != "none":
            largest = np.nanmax(matrix, axis=0 if normalise == "column" else None, keepdims=True)
            matrix = np.divide(matrix, largest, out=np.where(np.isnan(matrix), np.nan, 0.0), where=largest > 0)
        matrices.append(matrix)
    return matrices
