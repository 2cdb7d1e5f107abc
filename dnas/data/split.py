"""Stratified choices that are the same on every machine.

Only the raw 64-bit stream of PCG64 is used: numpy promises that stream for ever, and promises nothing about the
shuffles it builds upon it.
"""

import numpy as np

VALIDATION, SUBSET = 0, 1  # one random stream for each purpose, so that the two choices are independent


def apportion(sizes: np.ndarray, count: int, least: int, spare: int) -> np.ndarray:
    """How many of `count` come out of each class: in proportion to `sizes` and `count` in all.

    Every class gives at least `least` and keeps at least `spare`. What proportion leaves over goes to the classes
    that are furthest below their share, the first of equals. `count` must lie within what the bounds allow.
    """
    total, most = int(sizes.sum()), sizes - spare
    counts = np.clip(sizes * count // total, least, most)

    def short() -> np.ndarray:  # how far each class is below its share, in units of 1/total: exact in integers
        return sizes * count - counts * total

    smallest = np.iinfo(np.int64).min
    while counts.sum() < count:
        counts[np.argmax(np.where(counts < most, short(), smallest))] += 1
    while counts.sum() > count:
        counts[np.argmax(np.where(counts > least, -short(), smallest))] -= 1
    return counts


def choose(labels: np.ndarray, count: int, seed: int, purpose: int, least: int, spare: int) -> np.ndarray:
    """A stratified choice of `count` positions out of `labels` [N], ascending; `apportion` says how many a class."""
    keys = np.random.PCG64([seed, purpose]).random_raw(len(labels))
    names, sizes = np.unique(labels, return_counts=True)
    counts = apportion(sizes.astype(np.int64), count, least, spare)
    chosen = []
    for name, k in zip(names, counts, strict=True):
        members = np.flatnonzero(labels == name)
        chosen.append(members[np.argsort(keys[members], kind="stable")[:k]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def validation(labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions of the validation part: a tenth of `labels`, at least one a class, one a class left to train on."""
    count = max((len(labels) + 5) // 10, len(np.unique(labels)))
    return choose(labels, count, seed, VALIDATION, least=1, spare=1)
