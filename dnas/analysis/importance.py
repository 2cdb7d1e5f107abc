"""Which choices mattered for ending among the best: PED-ANOVA, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dnas.errors import InputError

BEST_SHARE = 0.1  # of the trials: the region whose choices are compared with all
LEAST_BEST = 4  # trials in it, at least
BOOTSTRAPS = 500


def importance(
    params: pd.DataFrame, errors: Sequence[float], best_share: float = BEST_SHARE, seed: int = 0
) -> pd.DataFrame:
    """How much each choice decides whether a network is among the best `best_share` (at least 4 trials).

    params: a row a trial, a column a choice, as the sampler holds it (numbers, or text for a category). errors: their
    validation errors, lower is better. Of each choice the Pearson divergence Σ_v p_all(v) (p_best(v)/p_all(v) - 1)²
    between how often a value v occurs among the best and among all, each smoothed by half a count a value; numbers of
    more than 8 values are cut into 8 bins at their quantiles. Shares: divided by the sum over all choices (Watanabe,
    Bansal and Hutter 2023, "PED-ANOVA", equation 14, in one dimension and for histograms).

    A row a choice, the greatest first: choice, share, low, high (95%, percentile bootstrap over trials), and null: the
    mean share when the errors are shuffled, which is what chance makes of a choice that matters nothing. It says
    nothing about values that the search never tried, and a sampler tries what it takes for good more often.
    `InputError` with fewer than 10 trials.
    """
    values = np.asarray(errors, dtype=float)
    known = np.isfinite(values)
    params, values = params[known].reset_index(drop=True), values[known]
    varied = [column for column in params if params[column].nunique(dropna=False) > 1]
    if len(values) < 10 or not varied:
        raise InputError(
            f"importance needs at least 10 trials with an error and a choice that varies, but got {len(values)} trials"
            f" and {len(varied)} such choices."
        )
    codes = [_codes(params[column]) for column in varied]
    best = max(LEAST_BEST, round(best_share * len(values)))
    rng = np.random.default_rng(seed)
    shares = _shares(codes, values, best, rng)
    samples, nulls = [], []
    for _ in range(BOOTSTRAPS):
        drawn = rng.integers(len(values), size=len(values))
        samples.append(_shares([code[drawn] for code in codes], values[drawn], best, rng))
        nulls.append(_shares(codes, rng.permutation(values), best, rng))
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    found = pd.DataFrame({"choice": varied, "share": shares, "low": low, "high": high, "null": np.mean(nulls, axis=0)})
    return found.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def _codes(column: "pd.Series[Any]") -> np.ndarray:
    if column.nunique(dropna=False) > 8 and pd.api.types.is_numeric_dtype(column):
        column = pd.qcut(column, 8, duplicates="drop")
    return np.asarray(pd.factorize(column, sort=False)[0] + 1)


def _shares(codes: list[np.ndarray], errors: np.ndarray, best: int, rng: np.random.Generator) -> np.ndarray:
    order = np.lexsort((rng.random(len(errors)), errors))[:best]  # of equal errors, any
    found = np.array([_divergence(code, code[order]) for code in codes])
    total = found.sum()
    return found / total if total > 0 else np.full(len(codes), 1 / len(codes))


def _divergence(every: np.ndarray, best: np.ndarray) -> float:
    size = int(every.max()) + 1
    present = np.bincount(every, minlength=size) > 0
    p_all, p_best = (
        (np.bincount(codes, minlength=size)[present] + 0.5) / (len(codes) + 0.5 * present.sum())
        for codes in (every, best)
    )
    return float((p_all * (p_best / p_all - 1) ** 2).sum())
