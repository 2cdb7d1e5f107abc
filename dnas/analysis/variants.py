"""Variants of an ablation: errors over seeds, learning curves, and cell means of factors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.intervals import t_half_width


def over_seeds(values: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Return one row per variant: variant, n, mean, sd, low, high (t interval of the mean), least, most.

    values: Errors, indexed by seed, with one column per variant. Variants without a value have n = 0. With one seed the
    interval is NaN.
    """
    rows = [{"variant": name, **_mean(values[name].dropna().to_numpy(float), alpha)} for name in values.columns]
    return pd.DataFrame(rows, columns=["variant", "n", "mean", "sd", "low", "high", "least", "most"])


def _mean(errors: np.ndarray, alpha: float) -> dict[str, Any]:
    n = len(errors)
    if n == 0:
        return {"n": 0} | dict.fromkeys(("mean", "sd", "low", "high", "least", "most"), math.nan)
    mean, sd = float(errors.mean()), float(errors.std(ddof=1)) if n > 1 else math.nan
    half = t_half_width(sd, n, alpha) if n > 1 else math.nan
    ends = {"low": mean - half, "high": mean + half, "least": float(errors.min()), "most": float(errors.max())}
    return {"n": n, "mean": mean, "sd": sd, **ends}


def curve_bands(curves: pd.DataFrame, groups: Mapping[int, str]) -> pd.DataFrame:
    """Return the mean and range of the validation error, with one row per variant and epoch.

    The columns are variant, epoch, mean, low, high (range over runs) and n.
    curves: As returned by `learning_curves`. groups: Variant of each complete run, by number.
    """
    rows = curves[curves["number"].isin(list(groups))].dropna(subset=["val_error"])
    rows = rows.assign(variant=rows["number"].map(groups), val_error=rows["val_error"].astype(float))
    bands = rows.groupby(["variant", "epoch"], sort=True)["val_error"].agg(["mean", "min", "max", "count"])
    return bands.rename(columns={"min": "low", "max": "high", "count": "n"}).reset_index()


def cell_means(values: pd.DataFrame, levels: Mapping[str, Mapping[str, Any]], alpha: float = 0.05) -> pd.DataFrame:
    """Compute the mean error at each pair of levels of two factors, averaged over the other factors within a seed.

    Args:
        values: Errors, indexed by seed, with one column per variant.
        levels: Level of each factor, by variant and factor.
        alpha: Level of the intervals.

    Returns:
        One row per cell: x_factor, x_level, line_factor, line_level, n (seeds with all variants of the cell), mean,
        low and high (t interval over seeds).
    """
    names = [name for name in values.columns if name in levels]
    factors = list(dict.fromkeys(factor for name in names for factor in levels[name]))
    rows = []
    for x, line in itertools.combinations(factors, 2):
        for a, b in itertools.product(_levels(levels, names, x), _levels(levels, names, line)):
            cell = [n for n in names if levels[n].get(x) == a and levels[n].get(line) == b]
            if cell:
                summary = _mean(values[cell].mean(axis=1, skipna=False).dropna().to_numpy(float), alpha)
                place = {"x_factor": x, "x_level": a, "line_factor": line, "line_level": b}
                rows.append(place | {key: summary[key] for key in ("n", "mean", "low", "high")})
    columns = ["x_factor", "x_level", "line_factor", "line_level", "n", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"x_level": object, "line_level": object})


def _levels(levels: Mapping[str, Mapping[str, Any]], names: Sequence[str], factor: str) -> list[Any]:
    return list(dict.fromkeys(levels[name][factor] for name in names if factor in levels[name]))
