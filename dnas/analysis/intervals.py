"""Interval estimates, exact tests and corrections for multiple testing.

scipy and pandas are imported at the first use. Their imports take half a second each, and the summary that a search
prints does not need them.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from dnas.errors import InputError

Z95 = 1.959963984540054  # normal quantile of a two-sided interval at 95%
UNBOUNDED = (-math.inf, math.inf)
TIE = 1e-9  # sums that differ by less than this share of Σ|d| differ by rounding alone
EXACT_UP_TO = 20  # pairs for which all 2^n sign assignments are counted
SIGN_DRAWS = 99_999  # random sign assignments for more pairs
RESAMPLES = 9_999  # bootstrap resamples


# --- Student's t --------------------------------------------------------------------------------------------------


def t_quantile(freedom: float, alpha: float = 0.05) -> float:
    """Critical value of a two-sided t test at level `alpha`: the 1 - α/2 quantile for `freedom` degrees of freedom."""
    from scipy import special

    return float(special.stdtrit(freedom, 1 - alpha / 2))


def t_half_width(deviation: float, count: int, alpha: float = 0.05) -> float:
    """Half the width of Student's t interval for the mean of `count` values with the given standard deviation."""
    return t_quantile(count - 1, alpha) * deviation / math.sqrt(count)


def t_interval(values: Sequence[float] | np.ndarray, alpha: float = 0.05) -> tuple[float, float]:
    """Student's t interval for the mean at 1 - α, exact for normally distributed values.

    It is unbounded for fewer than two values, and a point if all values are equal.
    """
    d = np.asarray(values, dtype=float)
    if len(d) < 2:
        return UNBOUNDED
    half = t_half_width(deviation(d), len(d), alpha)
    return float(d.mean()) - half, float(d.mean()) + half


def welch_interval(first: np.ndarray, second: np.ndarray, alpha: float = 0.05) -> tuple[float, float]:
    """Welch's interval for the difference of two means at 1 - α.

    scipy's version warns if the values of one sample are all equal.
    """
    parts = [values.var(ddof=1) / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (first, second), strict=True))
    half = t_quantile(freedom, alpha) * math.sqrt(sum(parts))
    centre = first.mean() - second.mean()
    return float(centre - half), float(centre + half)


def deviation(values: np.ndarray) -> float:
    """Sample standard deviation (n - 1), 0 if all values are equal but for rounding, NaN for fewer than two."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return 0.0 if spread <= TIE * float(np.abs(values).max(initial=0.0)) else spread


# --- proportions --------------------------------------------------------------------------------------------------


def standard_error(error: float, size: int) -> float:
    """Binomial standard error √(p(1 - p)/n) of an error `p` (fraction) measured on `n` images."""
    _check_proportion(error, size)
    return math.sqrt(error * (1 - error) / size)


def wilson_interval(error: float, size: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) for an error (fraction) measured on `size` images; 95% by default."""
    _check_proportion(error, size)
    centre = (error + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(error * (1 - error) / size + z**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _check_proportion(error: float, size: int) -> None:
    if not 0 <= error <= 1:
        raise InputError(f"`0 <= error <= 1` must hold (a fraction, not a percentage), but got error={error!r}.")
    if size < 1:
        raise InputError(f"`size >= 1` must hold (number of classified images), but got size={size!r}.")


# --- bootstrap ----------------------------------------------------------------------------------------------------


def percentile_interval(samples: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval over the first axis of bootstrap samples [draws, ...]."""
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    return low, high


def bootstrap_interval(differences: Sequence[float] | np.ndarray, alpha: float = 0.05) -> tuple[float, float]:
    """Equal-tailed bootstrap-t interval for the mean at 1 - α.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 12.5: mean - q_(1-α/2)·se to
    mean - q_(α/2)·se, where q are quantiles of (mean* - mean) / se* over resamples of the pairs.

    It is studentized because n is small. At 95% and n = 5 to 8 it covered 91% to 96% for normal, heavy-tailed, skewed
    and rounded differences; percentile and BCa intervals covered 77% to 92%; the t interval was as good for symmetric
    differences but covered 88% to 90% for skewed ones (benchmarks/results/ablation_stats.md). A resample of one
    repeated value has se* = 0 and a pivot of ±∞. If such pivots reach a quantile, as happens with few pairs of errors
    on few images, too little varies to resample, and Student's interval is returned. The interval is unbounded for
    fewer than two pairs, and a point if all differences are equal.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or deviation(d) == 0:
        return t_interval(d, alpha)
    shares = _resamples(len(d))
    centred = d - d.mean()
    means = shares @ centred
    variances = np.maximum(shares @ centred**2 - means**2, 0.0)
    scale = np.abs(centred).max()
    one_value = variances <= (TIE * scale) ** 2 + 1e-14 * scale**2
    means[np.abs(means) <= TIE * scale] = 0.0
    errors = np.sqrt(np.where(one_value, 1.0, variances) / (len(d) - 1))
    pivots = np.where(one_value & (means != 0), np.copysign(math.inf, means), means / errors)
    low, high = np.quantile(pivots, [alpha / 2, 1 - alpha / 2], method="inverted_cdf")
    if not (math.isfinite(low) and math.isfinite(high)):
        return t_interval(d, alpha)
    error = deviation(d) / math.sqrt(len(d))
    return float(d.mean() - high * error), float(d.mean() - low * error)


@functools.lru_cache(maxsize=32)
def _resamples(n: int) -> np.ndarray:
    """Share of each value in each resample, [RESAMPLES, n], from a fixed seed."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


# --- tests --------------------------------------------------------------------------------------------------------


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p value of the sign-flip test for a distribution that is symmetric about 0.

    It is the share of the 2^n sign assignments of d_1 .. d_n for which |Σ ±d_i| is at least as large as observed
    (Fisher 1935, "The Design of Experiments", section 21).

    For more than `EXACT_UP_TO` pairs it is (1 + b) / (1 + `SIGN_DRAWS`), where b counts the random assignments (fixed
    seed) that are as extreme. The observed signs count as one of them, which makes it a valid p value too (Phipson and
    Smyth 2010). Sums that are equal but for rounding count as equal. Zeros take either sign equally often, so they stay
    and tie. The p value of no pairs is 1.
    """
    d = np.asarray(differences, dtype=float)
    if not len(d):
        return 1.0
    least = abs(d.sum()) - TIE * np.abs(d).sum()
    if len(d) > EXACT_UP_TO:
        flips = np.random.default_rng(0).integers(0, 2, (SIGN_DRAWS, len(d)), dtype=np.int8)
        return float((1 + np.count_nonzero(np.abs(flips @ (2 * d) - d.sum()) >= least)) / (1 + SIGN_DRAWS))
    sums = d[:1]  # the first sign is fixed, because flipping all signs leaves |sum| unchanged
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= least))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted by Holm's step-down method (1979). A None stays None and is not counted."""
    known = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (value, index) in enumerate(known):
        floor = max(floor, min(1.0, (len(known) - rank) * value))
        adjusted[index] = floor
    return adjusted


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis. Equal values share the mean of their ranks."""
    import pandas as pd

    return pd.DataFrame(np.atleast_2d(values)).rank(axis=1).to_numpy().reshape(values.shape)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, NaN where either side is constant (scipy's version warns)."""
    x, y = mean_ranks(x), mean_ranks(y)
    spread = x.std(axis=-1) * y.std(axis=-1)
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    return np.divide((x * y).mean(axis=-1), spread, out=np.full(spread.shape, math.nan), where=spread > 0)
