"""Numbers of pairs that a comparison needs, known before any run. Imports no other package.

`dnas.analysis.paired` and `dnas.analysis.sequential` describe the two tests.
"""

import itertools
import math

from dnas.errors import InputError
from dnas.formatting import several


def pairs_needed(comparisons: int, alpha: float = 0.05) -> int:
    """Return the smallest n with m·2^(1-n) <= α for m comparisons. With fewer pairs no sign-flip test can conclude."""
    check_alpha(alpha)
    return next(n for n in itertools.count(1) if comparisons * 2.0 ** (1 - n) <= alpha)


def check_alpha(alpha: float) -> None:
    """Raise `InputError` if `alpha` is no level of a test."""
    if not 0 < alpha < 1:
        raise InputError(f"`0 < alpha < 1` must hold (the share of false verdicts), but got alpha={alpha!r}.")


def spent(pairs: int, max_pairs: int) -> float:
    """Return f, the share of a comparison's level that may be spent on its first `pairs` pairs.

    The exponent 1.5 is a compromise. Linear spending loses more of the power of a single look, and O'Brien and
    Fleming's function decides later (benchmarks/results/ablation_stats.md).
    """
    return float((pairs / max_pairs) ** 1.5)


def first_look(comparisons: int, alpha: float, max_pairs: int) -> int:
    """Return the smallest number of pairs that can decide a comparison.

    With fewer, a single sign assignment exceeds the level that may be spent. Raises `InputError` if even `max_pairs`
    pairs cannot decide it.
    """
    if max_pairs < 1 or not allowed(2.0 ** (max_pairs - 1), alpha / max(1, comparisons)):
        needed = math.ceil(1 + math.log2(max(1, comparisons) / alpha) - 1e-9)
        raise InputError(
            f"`m·2^(1 - max_pairs) <= alpha` must hold, but got {several(comparisons, 'comparison')},"
            f" max_pairs={max_pairs} and alpha={alpha:g}; allow {needed} seeds or more."
        )
    level = alpha / max(1, comparisons)
    return next(n for n in range(1, max_pairs + 1) if allowed(2.0 ** (n - 1), level * spent(n, max_pairs)))


def allowed(ways: float, share: float) -> int:
    """Return the largest number of sign assignments, out of `ways`, that is at most this share of all."""
    return math.floor(ways * share * (1 + 1e-12))
