"""An ablation's variants side by side: errors over seeds, learning curves, and cell means of its factors."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.intervals import t_half_width


def over_seeds(values: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Return one row per column of `values` (indexed by seed, one column per variant): variant, n, mean, sd, low, high
    (the t interval of the mean, of one seed NaN), least, most. Variants without a value have n = 0."""
    rows = [{"variant": name, **_mean(values[name].dropna().to_numpy(float), alpha)} for name in values.columns]
    return pd.DataFrame(rows, columns=["variant", "n", "mean", "sd", "low", "high", "least", "most"])


def _mean(some: np.ndarray, alpha: float) -> dict[str, Any]:
    n = len(some)
    if n == 0:
        return {"n": 0} | dict.fromkeys(("mean", "sd", "low", "high", "least", "most"), math.nan)
    mean, sd = float(some.mean()), float(some.std(ddof=1)) if n > 1 else math.nan
    half = t_half_width(sd, n, alpha) if n > 1 else math.nan
    ends = {"low": mean - half, "high": mean + half, "least": float(some.min()), "most": float(some.max())}
    return {"n": n, "mean": mean, "sd": sd, **ends}


def curve_bands(curves: pd.DataFrame, groups: Mapping[int, str]) -> pd.DataFrame:
    """Return one row per variant and epoch: variant, epoch, mean, low, high (the range over runs) of the validation
    error, n.

    curves: as `learning_curves`. groups: number of a complete run -> its variant.
    """
    some = curves[curves["number"].isin(list(groups))].dropna(subset=["val_error"])
    some = some.assign(variant=some["number"].map(groups), val_error=some["val_error"].astype(float))
    bands = some.groupby(["variant", "epoch"], sort=True)["val_error"].agg(["mean", "min", "max", "count"])
    return bands.rename(columns={"min": "low", "max": "high", "count": "n"}).reset_index()


def cell_means(values: pd.DataFrame, levels: Mapping[str, Mapping[str, Any]], alpha: float = 0.05) -> pd.DataFrame:
    """For each two factors the mean error at each pair of their levels, averaged over the other factors within a seed.

    values: indexed by seed, one column per variant; levels: variant -> factor -> level. One row per cell: x_factor,
    x_level, line_factor, line_level, n (seeds that have all of the cell's variants), mean, low, high (t interval over
    seeds).
    """
    names = [name for name in values.columns if name in levels]
    factors = list(dict.fromkeys(factor for name in names for factor in levels[name]))
    rows = []
    for x, line in itertools.combinations(factors, 2):
        for a, b in itertools.product(_levels(levels, names, x), _levels(levels, names, line)):
            cell = [n for n in names if levels[n].get(x) == a and levels[n].get(line) == b]
            if cell:
                summary = _mean(values[cell].mean(axis=1, skipna=False).dropna().to_numpy(float), alpha)
                where = {"x_factor": x, "x_level": a, "line_factor": line, "line_level": b}
                rows.append(where | {key: summary[key] for key in ("n", "mean", "low", "high")})
    columns = ["x_factor", "x_level", "line_factor", "line_level", "n", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"x_level": object, "line_level": object})


def _levels(levels: Mapping[str, Mapping[str, Any]], names: Sequence[str], factor: str) -> list[Any]:
    return list(dict.fromkeys(levels[name][factor] for name in names if factor in levels[name]))
