"""Stratified choices that are equal on every machine.

Only the raw 64-bit stream of PCG64 is used. numpy guarantees that stream for all versions, but not the shuffles that
are built on it.
"""

import numpy as np

VALIDATION, SUBSET = 0, 1  # one random stream per purpose, so that the two choices are independent


def apportion(sizes: np.ndarray, count: int, minimum: int, spare: int) -> np.ndarray:
    """Distribute `count` images over classes of `sizes` [classes] in proportion; the result sums to `count`.

    At least `minimum` images are taken from every class, and at least `spare` are left in it. Remainders go to the
    classes that are furthest below their share, and among equals to the first. `count` must be within these bounds.
    """
    total, limits = int(sizes.sum()), sizes - spare
    counts = np.clip(sizes * count // total, minimum, limits)

    def deficits() -> np.ndarray:  # distance of each class below its share, in units of 1/total: exact in integers
        return sizes * count - counts * total

    smallest = np.iinfo(np.int64).min
    while counts.sum() < count:
        counts[np.argmax(np.where(counts < limits, deficits(), smallest))] += 1
    while counts.sum() > count:
        counts[np.argmax(np.where(counts > minimum, -deficits(), smallest))] -= 1
    return counts


def choose(labels: np.ndarray, count: int, seed: int, purpose: int, minimum: int, spare: int) -> np.ndarray:
    """Choose `count` positions of `labels` [N], ascending and stratified by `apportion`."""
    keys = np.random.PCG64([seed, purpose]).random_raw(len(labels))
    names, sizes = np.unique(labels, return_counts=True)
    counts = apportion(sizes.astype(np.int64), count, minimum, spare)
    chosen = []
    for name, k in zip(names, counts, strict=True):
        members = np.flatnonzero(labels == name)
        chosen.append(members[np.argsort(keys[members], kind="stable")[:k]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def validation(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the positions of the validation part: a tenth of `labels`, at least one per class, one per class left."""
    count = tenth(len(labels), len(np.unique(labels)))
    return choose(labels, count, seed, VALIDATION, minimum=1, spare=1)


def tenth(images: int, classes: int) -> int:
    """Return the number of images in a part that is a tenth of all, with at least one image per class."""
    return max((images + 5) // 10, classes)
