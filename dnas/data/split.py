"""Stratified choices that are equal on every machine.

Only the raw 64-bit stream of PCG64 is used. numpy guarantees that stream for all versions, but not the shuffles that
are built on it.
"""

import math

import numpy as np

from dnas.data.catalog import tenth

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


def order_by_seed(count: int, seed: int) -> np.ndarray:
    """Return the numbers below `count`, in the order in which `seed` considers groups for the validation part."""
    return np.argsort(np.random.PCG64([seed, VALIDATION]).random_raw(count), kind="stable")


def tenth_of_groups(labels: np.ndarray, groups: np.ndarray, order: np.ndarray, spare: int) -> np.ndarray:
    """Choose whole groups with about a tenth of the images of each class, ascending positions; empty if impossible.

    Groups are considered in `order`. One is chosen if this brings the counts of classes and of images nearer to a tenth
    of all, in the sum of squared relative distances. A class that has no image yet then receives its smallest group.

    Args:
        labels: int64 [N], or 0 and 1 [N, classes].
        groups: Name of each image's group, [N].
        order: Numbers of the groups, which are sorted by name.
        spare: Groups of each class that are left. A class with too few groups is not chosen.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    members = labels if labels.ndim == 2 else (labels[:, None] == np.unique(labels)).astype(np.int64)
    members = np.column_stack([members, np.ones(len(labels), dtype=np.int64)])
    sizes = np.zeros((len(names), members.shape[1]), dtype=np.int64)
    np.add.at(sizes, numbers, members)
    totals, left = sizes.sum(axis=0), (sizes > 0).sum(axis=0)
    chosen, count = np.zeros(len(names), dtype=bool), np.zeros_like(totals)

    def may_be_chosen(group: int) -> bool:
        return bool((left[sizes[group] > 0] > spare).all())

    def choose_group(group: int) -> None:
        nonlocal count, left
        chosen[group], count, left = True, count + sizes[group], left - (sizes[group] > 0)

    def change(group: int) -> float:  # of the distance from a tenth; fsum is exact, hence equal on every machine
        classes = np.flatnonzero(sizes[group])
        size, total = sizes[group, classes], totals[classes]
        return math.fsum((size * (20 * count[classes] - 2 * total + 10 * size) / (total * total)).tolist())

    for group in order:
        if may_be_chosen(group) and change(group) < 0:
            choose_group(group)
    for number in range(members.shape[1]):
        if totals[number] and not count[number]:
            candidates = [group for group in order if sizes[group, number] and may_be_chosen(group)]
            if candidates:
                choose_group(min(candidates, key=lambda group: sizes[group, -1]))
    return np.flatnonzero(chosen[numbers])
