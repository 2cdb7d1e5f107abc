"""The paper's statements about feature reuse (section 5, "Feature Reuse"), as four measurements with verdicts.

w(s, l) is the mean |w| of l's first convolution over the channels that s produces (`feature_reuse` without
normalisation). Only connected pairs count. Each statement is a number with a 95% interval (percentile bootstrap,
`DRAWS` draws from a fixed seed) and a bar. It holds if the interval is above the bar, does not hold if it is below, and
is inconclusive otherwise, or if there is too little to resample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dnas.analysis.intervals import spearman
from dnas.analysis.reuse import block_shapes, check_same_pairs, matrices
from dnas.analysis.weight_norms import NormHistory

DRAWS = 2000
LEAST_UNITS = 3  # minimum number of layers or sources for resampling

Verdict = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Observation:
    """One statement of the paper, with its measured value and verdict.

    Attributes:
        letter: (a) to (d).
        claim: The statement.
        measure: Name of the measured quantity.
        value: Mean over the networks.
        low: Lower end of its interval. NaN if there is none.
        high: Upper end of its interval.
        bar: Value with which the verdict compares the interval.
        untrained: Value for the untrained networks. None if it was not measured.
        units: Number of layers or sources resampled in each network.
        networks: Number of networks.
        verdict: Whether the statement holds.
    """

    letter: str
    claim: str
    measure: str
    value: float
    low: float
    high: float
    bar: float
    untrained: float | None
    units: int
    networks: int
    verdict: Verdict


def effective_share(weights: np.ndarray) -> float:
    """Return the effective number of sources divided by their number S: exp(H(p)) / S with p = w / Σw.

    It is 1 if all sources have the same weight, and 1 / S if one source has all the weight.
    """
    weights = weights[np.isfinite(weights)]
    if not weights.sum() > 0:
        return float("nan")
    p = weights / weights.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()) / len(p))


def _effective_shares(weights: np.ndarray) -> np.ndarray:
    """Return `effective_share` of each row of finite weights."""
    total = weights.sum(axis=1, keepdims=True)
    p = np.divide(weights, total, out=np.full(weights.shape, math.nan), where=total > 0)
    terms = p * np.log(p, out=np.zeros(p.shape), where=p > 0)
    return np.exp(-terms.sum(axis=1)) / weights.shape[1]


def observe(histories: NormHistory | Sequence[NormHistory]) -> tuple[Observation, ...]:
    """Measure the four observations for one network, or several seeds of one spec, after the last epoch of each.

    In (a) and (b) even noise on all sources has a large value. Compare it with the value of the untrained networks,
    which spread their weights almost evenly. The bar refutes only a concentration on few sources.

    (a) "All layers spread their weights over many inputs within the same block": the mean over the dense layers with
        at least two sources of `effective_share`; the bar is one half. Resampled: networks, and layers in each.
    (b) "The weights of the transition layers also spread their weight across all layers within the preceding dense
        block": the mean over the transitions of `effective_share`; the bar is one half. Resampled: networks, and the
        sources of each transition, as there are few transitions.
    (c) "The layers within the second and third dense block consistently assign the least weight to the outputs of the
        transition layer": of the dense layers after the first block that read the block's input and something else,
        the share whose least weight is the input's; the bar is one half ("consistently": in most layers; by chance, the
        share is about the mean of 1 / S). Resampled: networks, and layers in each.
    (d) "A concentration towards final feature-maps" in the classifier: Spearman's rank correlation of w(s, classifier)
        with s = 0 (the block's input) .. m (its last layer); the bar is 0. Resampled: networks, and the sources.
    """
    histories = [histories] if isinstance(histories, NormHistory) else list(histories)
    check_same_pairs(histories)
    shapes = block_shapes(histories[0].pairs)
    trained = [matrices(h.pairs, h.reuse[-1], shapes) for h in histories]
    before = [matrices(h.pairs, h.reuse[0], shapes) for h in histories] if all(h.epochs for h in histories) else None
    return tuple(
        _observation(letter, claim, measure, bar, sample, trained, before)
        for letter, claim, measure, bar, sample in (
            ("a", "layers spread their weights over their block's outputs", "effective share of sources", 0.5, _layers),
            ("b", "transitions spread theirs too", "effective share of sources", 0.5, _transitions),
            ("c", "later blocks give the transition's output the least weight", "share of layers", 0.5, _least),
            ("d", "the classifier favours late feature-maps", "rank correlation with depth", 0.0, _late),
        )
    )


@dataclass(frozen=True)
class _Sample:
    """Data of one network.

    sizes: Sizes of the groups to resample.
    values: Returns the values of resamples, given the indices [resamples, size] of each group.
    """

    sizes: tuple[int, ...]
    values: Callable[[list[np.ndarray]], np.ndarray]

    @property
    def units(self) -> int:
        return sum(self.sizes)

    def observed(self) -> float:
        return float(self.values([np.arange(size)[None] for size in self.sizes])[0]) if self.units else float("nan")

    def draw(self, rng: np.random.Generator) -> list[np.ndarray]:
        return [rng.integers(size, size=size) for size in self.sizes]


def _of_layers(values: list[float]) -> _Sample:
    known = np.array(values, dtype=float)
    known = known[np.isfinite(known)]
    return _Sample((len(known),), lambda chosen: known[chosen[0]].mean(axis=1))


def _layers(blocks: list[np.ndarray]) -> _Sample:
    columns = [column for block in blocks for column in block[:, :-1].T]
    return _of_layers([effective_share(column) for column in columns if np.isfinite(column).sum() > 1])


def _transitions(blocks: list[np.ndarray]) -> _Sample:
    columns = [column[np.isfinite(column)] for column in (block[:, -1] for block in blocks[:-1])]
    columns = [column for column in columns if len(column) > 1]

    def values(chosen: list[np.ndarray]) -> np.ndarray:
        resamples = [column[indices] for column, indices in zip(columns, chosen, strict=True)]
        return np.mean([_effective_shares(resample) for resample in resamples], axis=0)

    return _Sample(tuple(map(len, columns)), values)


def _least(blocks: list[np.ndarray]) -> _Sample:
    columns = [column for block in blocks[1:] for column in block[:, :-1].T]
    return _of_layers(
        [
            float(column[0] < np.nanmin(column[1:]))
            for column in columns
            if np.isfinite(column[0]) and np.isfinite(column[1:]).any()
        ]
    )


def _late(blocks: list[np.ndarray]) -> _Sample:
    column = blocks[-1][:, -1]
    depth = np.flatnonzero(np.isfinite(column))
    ranked = column[depth]

    def values(chosen: list[np.ndarray]) -> np.ndarray:
        return spearman(depth[chosen[0]], ranked[chosen[0]])

    return _Sample((len(depth),), values)


def _observation(
    letter: str,
    claim: str,
    measure: str,
    bar: float,
    sample: Callable[[list[np.ndarray]], _Sample],
    trained: list[list[np.ndarray]],
    before: list[list[np.ndarray]] | None,
) -> Observation:
    samples = [sample(blocks) for blocks in trained]
    units = min(network.units for network in samples)
    value = float(np.mean([network.observed() for network in samples]))
    low, high = _interval(samples) if units >= LEAST_UNITS else (np.nan, np.nan)
    verdict: Verdict = "cannot tell"
    if low > bar:
        verdict = "holds"
    elif high < bar:
        verdict = "does not hold"
    untrained = float(np.mean([sample(blocks).observed() for blocks in before])) if before is not None else None
    return Observation(letter, claim, measure, value, low, high, bar, untrained, units, len(trained), verdict)


def _interval(samples: list[_Sample]) -> tuple[float, float]:
    means = _means_of_one(samples[0]) if len(samples) == 1 else _means_of_networks(samples)
    if not np.isfinite(means).any():
        return math.nan, math.nan
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def _means_of_one(sample: _Sample) -> np.ndarray:
    """Resample one network. The draws are those of `_means_of_networks`, made in a single call."""
    sizes = np.array(sample.sizes)
    indices = np.random.default_rng(0).integers(np.repeat(sizes, sizes), size=(DRAWS, sample.units))
    return sample.values(np.split(indices, np.cumsum(sizes)[:-1], axis=1))


def _means_of_networks(samples: list[_Sample]) -> np.ndarray:
    rng = np.random.default_rng(0)
    networks, chosen = [], []
    for _ in range(DRAWS):
        networks.append(rng.integers(len(samples), size=len(samples)))
        chosen += [samples[network].draw(rng) for network in networks[-1]]
    drawn = np.ravel(networks)
    values = np.empty(len(drawn))
    for network in set(drawn.tolist()):
        places = np.flatnonzero(drawn == network)
        groups = zip(*(chosen[place] for place in places), strict=True)
        values[places] = samples[network].values([np.stack(group) for group in groups])
    return values.reshape(DRAWS, len(samples)).mean(axis=1)
