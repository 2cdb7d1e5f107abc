"""Networks of equal size: what a fair comparison holds equal, and the papers leave out.

A whole growth rate alone misses a size by some percent, since params grow with its square. So some layers may add one
map more than the others (`DenseNetSpec.wider_layers`): how many, spread evenly, and where that is too coarse, as in a
network of few layers, which.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from dnas.arch.cost import cost
from dnas.arch.densenet import DenseNetSpec, evenly_spread
from dnas.arch.families import FAMILIES, Spec
from dnas.errors import InputError

MEASURES = ("params", "macs")
CLOSE = 0.002  # nearer than this share nothing is looked for: the simplest network that is so near is taken
FEW_LAYERS = 10  # of so many every set is tried
WIDEST = 4_096


def residual(spec: Spec, measure: str, target: int) -> float:
    """How far `spec` is from `target` in `measure` (`params` or `macs`), as a share of it; above 0: larger."""
    return float((getattr(cost(spec), measure) - target) / target)


def resize(spec: Spec, measure: str, target: int) -> Spec:
    """The network that differs from `spec` in its growth rates alone (a ResNet in its widths) and is nearest to
    `target` in `measure`, `params` or `macs`. See `residual` for how near that is.

    All blocks' rates are moved by the same number. The stem follows them where the spec leaves its width open. With
    more than 10 layers the search over sets of them is greedy, so that a nearer one may exist. `InputError` for an
    unknown measure.
    """
    if measure not in MEASURES:
        raise InputError(f"networks can be made equal in {' or '.join(MEASURES)}, but not in {measure!r}.")

    def off(one: Spec) -> float:
        return abs(residual(one, measure, target))

    below = _largest_below(lambda rate: _with_rate(spec, rate), measure, target)
    candidates = [_with_rate(spec, below), _with_rate(spec, below + 1)]
    if isinstance(spec, DenseNetSpec):
        # The stem grows with the rate too, so that the size with all layers but one wider is not yet that of rate + 1.
        whole = [one for one in candidates if isinstance(one, DenseNetSpec)]
        counted = [_best_count(one, measure, target) for one in whole]
        if min(map(off, counted)) > CLOSE:
            improved = [_improved(one, measure, target) for one in counted]
            if min(map(off, improved)) > CLOSE and sum(spec.block_layers) <= FEW_LAYERS:
                improved = [other for one in whole for other in _every(one)]
            counted = improved
        candidates += counted
    return min(candidates, key=off)


def _with_rate(spec: Spec, least: int) -> Spec:
    """`spec` with its rates moved so that the lowest is `least`, and no layer wider than the others of its block."""
    width = FAMILIES[spec.family].width
    rates = getattr(spec, width)
    moved: Any = tuple(rate - min(rates) + least for rate in rates) if isinstance(rates, tuple) else least
    changes: dict[str, Any] = {width: moved} | ({"wider_layers": 0} if isinstance(spec, DenseNetSpec) else {})
    return replace(spec, **changes)


def _largest_below(make: Callable[[int], Spec], measure: str, target: int) -> int:
    """The largest number from 1 on whose network is not above `target`; 1 where every one is."""
    low, high = 1, 2
    while high < WIDEST and residual(make(high), measure, target) <= 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if residual(make(middle), measure, target) <= 0 else (low, middle)
    return low


def _best_count(spec: DenseNetSpec, measure: str, target: int) -> DenseNetSpec:
    """`spec` with the number of wider layers, spread evenly, that is nearest to `target`."""
    options = (replace(spec, wider_layers=count) for count in range(sum(spec.block_layers)))
    return min(options, key=lambda one: abs(residual(one, measure, target)))


def _improved(spec: DenseNetSpec, measure: str, target: int) -> DenseNetSpec:
    """`spec` with one wider layer after another exchanged, added or left out while that brings it nearer."""
    while abs(residual(spec, measure, target)) > CLOSE:
        nearest = min(_neighbours(spec), key=lambda one: abs(residual(one, measure, target)), default=spec)
        if abs(residual(nearest, measure, target)) >= abs(residual(spec, measure, target)):
            break
        spec = nearest
    return spec


def _every(spec: DenseNetSpec) -> Iterator[DenseNetSpec]:
    layers = sum(spec.block_layers)
    for count in range(layers):
        for numbers in combinations(range(1, layers + 1), count):
            yield replace(spec, wider_layers=numbers)


def _neighbours(spec: DenseNetSpec) -> Iterator[DenseNetSpec]:
    layers, wider = sum(spec.block_layers), spec.wider_layers
    has = set(evenly_spread(wider, layers) if isinstance(wider, int) else wider)
    others = set(range(1, layers + 1)) - has
    changes = [({a}, {b}) for a in sorted(has) for b in sorted(others)]
    changes += [({a}, set()) for a in sorted(has)] + [(set(), {b}) for b in sorted(others)]
    for out, new in changes:
        if len(numbers := has - out | new) < layers:
            yield replace(spec, wider_layers=tuple(numbers))
