"""Resizing of networks to equal parameters or multiply-adds, for fair comparisons.

Parameters grow with the square of the growth rate, so the nearest integer growth rate misses a target by some percent.
Some layers may therefore add one map more than the others (`DenseNetSpec.wider_layers`). The search first selects a
number of evenly spread wider layers. If that is too coarse, as in a network of few layers, it selects individual
layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from dnas.arch.cost import cost
from dnas.arch.densenet import DenseNetSpec, evenly_spread
from dnas.arch.families import FAMILIES
from dnas.arch.spec import Spec
from dnas.errors import InputError

MEASURES = ("params", "macs")
TOLERANCE = 0.002  # relative difference at which the search stops, in favour of the simplest network
EXHAUSTIVE_LAYERS = 10  # up to this many layers, every set of wider layers is tried
MAX_RATE = 4_096


def residual(spec: Spec, measure: str, target: int) -> float:
    """Return the difference of `spec` from `target` in `measure` (`params` or `macs`), as a fraction of `target`."""
    return float((getattr(cost(spec), measure) - target) / target)


def resize(spec: Spec, measure: str, target: int) -> Spec:
    """Return the network nearest to `target` in `measure` that differs from `spec` only in its growth rates.

    For a ResNet, only the widths differ. The rates of all blocks change by the same number. The stem follows them
    unless the spec states its width. `residual` returns the remaining difference.

    With more than `EXHAUSTIVE_LAYERS` layers, the search over sets of wider layers is greedy, so a nearer network may
    exist.

    Args:
        spec: The network to resize.
        measure: `params` or `macs`.
        target: Desired value of the measure.

    Raises:
        InputError: If the measure is unknown.
    """
    if measure not in MEASURES:
        raise InputError(f"networks can be matched in {' or '.join(MEASURES)}, but not in {measure!r}.")

    def distance(candidate: Spec) -> float:
        return abs(residual(candidate, measure, target))

    below = _largest_below(lambda rate: _with_rate(spec, rate), measure, target)
    candidates = [_with_rate(spec, below), _with_rate(spec, below + 1)]
    if isinstance(spec, DenseNetSpec):
        # Both rates are starting points: the stem grows with the rate too, so widening layers does not reach rate + 1.
        uniform = [candidate for candidate in candidates if isinstance(candidate, DenseNetSpec)]
        widened = [_best_count(candidate, measure, target) for candidate in uniform]
        if min(map(distance, widened)) > TOLERANCE:
            improved = [_improved(candidate, measure, target) for candidate in widened]
            if min(map(distance, improved)) > TOLERANCE and sum(spec.block_layers) <= EXHAUSTIVE_LAYERS:
                improved = [other for candidate in uniform for other in _all_sets(candidate)]
            widened = improved
        candidates += widened
    return min(candidates, key=distance)


def _with_rate(spec: Spec, lowest: int) -> Spec:
    """Return `spec` with its rates shifted so that the lowest is `lowest`, and without wider layers."""
    width = FAMILIES[spec.family].width
    rates = getattr(spec, width)
    moved: Any = tuple(rate - min(rates) + lowest for rate in rates) if isinstance(rates, tuple) else lowest
    changes: dict[str, Any] = {width: moved} | ({"wider_layers": 0} if isinstance(spec, DenseNetSpec) else {})
    return replace(spec, **changes)


def _largest_below(make: Callable[[int], Spec], measure: str, target: int) -> int:
    """Return the largest rate whose network does not exceed `target`, or 1 if all networks do."""
    low, high = 1, 2
    while high < MAX_RATE and residual(make(high), measure, target) <= 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if residual(make(middle), measure, target) <= 0 else (low, middle)
    return low


def _best_count(spec: DenseNetSpec, measure: str, target: int) -> DenseNetSpec:
    """Return `spec` with the number of evenly spread wider layers that is nearest to `target`."""
    options = (replace(spec, wider_layers=count) for count in range(sum(spec.block_layers)))
    return min(options, key=lambda other: abs(residual(other, measure, target)))


def _improved(spec: DenseNetSpec, measure: str, target: int) -> DenseNetSpec:
    """Exchange, add or remove one wider layer at a time, as long as that reduces the distance to `target`."""
    while abs(residual(spec, measure, target)) > TOLERANCE:
        nearest = min(_neighbours(spec), key=lambda other: abs(residual(other, measure, target)), default=spec)
        if abs(residual(nearest, measure, target)) >= abs(residual(spec, measure, target)):
            break
        spec = nearest
    return spec


def _all_sets(spec: DenseNetSpec) -> Iterator[DenseNetSpec]:
    layers = sum(spec.block_layers)
    for count in range(layers):
        for numbers in combinations(range(1, layers + 1), count):
            yield replace(spec, wider_layers=numbers)


def _neighbours(spec: DenseNetSpec) -> Iterator[DenseNetSpec]:
    layers, wider = sum(spec.block_layers), spec.wider_layers
    current = set(evenly_spread(wider, layers) if isinstance(wider, int) else wider)
    others = set(range(1, layers + 1)) - current
    changes = [({a}, {b}) for a in sorted(current) for b in sorted(others)]
    changes += [({a}, set()) for a in sorted(current)] + [(set(), {b}) for b in sorted(others)]
    for removed, added in changes:
        if len(numbers := current - removed | added) < layers:
            yield replace(spec, wider_layers=tuple(numbers))
