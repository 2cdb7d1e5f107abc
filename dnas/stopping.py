"""Which trials are worth going on with: decisions on numbers alone."""

import math
from collections.abc import Iterable

STOPPINGS = ("asha", "none")
REDUCTION = 3  # one in three goes on past a rung
FIRST_RUNG = 3  # earlier than this the order of errors is mostly chance


def rungs(epochs: int, reduction: int = REDUCTION) -> tuple[int, ...]:
    """The epochs after which trials are compared: epochs/9 and epochs/3, rounded up; none before `FIRST_RUNG`."""
    found = {math.ceil(epochs / reduction**2), math.ceil(epochs / reduction)}
    return tuple(sorted(rung for rung in found if FIRST_RUNG <= rung < epochs))


def goes_on(value: float, others: Iterable[float], reduction: int = REDUCTION) -> bool:
    """Asynchronous successive halving: whether `value` is in the best 1/reduction of all that reached this rung so far.

    The first `reduction` to arrive go on whatever they are: there is nothing yet to compare them with.
    """
    seen = [*others, value]
    if len(seen) <= reduction:
        return True
    return sorted(seen).index(value) < math.ceil(len(seen) / reduction)
