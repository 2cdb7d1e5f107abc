"""Importance of a search's choices: its trials as evidence, and PED-ANOVA of being among the best."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.fanova import BOOTSTRAPS as FOREST_BOOTSTRAPS
from dnas.analysis.fanova import ROUNDS, Axis, Fanova, fanova
from dnas.analysis.intervals import percentile_interval
from dnas.errors import InputError
from dnas.space.space import Space
from dnas.study.config import objectives_of, space_of
from dnas.study.record import TrialRecord

BEST_SHARE = 0.1  # share of trials that count as the best
LEAST_BEST = 4  # minimum number of best trials
BOOTSTRAPS = 500
CHOICES, SPEC = "choices", "spec"  # importance of the sampler's choices, or of the fields of the network
FACT_CELLS = 16  # number of quantile cells of a network field with many values


@dataclass(frozen=True)
class Evidence:
    """Data from which importance is computed.

    Attributes:
        study: Name of the study.
        objective: First objective of the study.
        space: Space of the study.
        axes: Possible values of each column of `params`.
        params: One row per trial and one column per choice. None if the choice is inactive.
        errors: Value of the objective of each trial.
        numbers: Number of each trial.
        left_out: Number of trials without such a value, by state.
        epoch: Epoch after which the values were measured. None for the last one.
    """

    study: str
    objective: str
    space: Space
    axes: tuple[Axis, ...]
    params: pd.DataFrame
    errors: np.ndarray
    numbers: tuple[int, ...]
    left_out: dict[str, int]
    epoch: int | None = None

    @property
    def cells(self) -> np.ndarray:
        """Index of each value on its axis, [trials, axes]. -1 for None."""
        rows = [[axis.cell(row[axis.name]) for axis in self.axes] for row in self.params.to_dict("records")]
        return np.array(rows, dtype=int).reshape(len(rows), len(self.axes))

    @property
    def ceiling(self) -> float:
        """Lowest error above those of the best tenth, or the highest error if there is none."""
        worst = np.sort(self.errors)[best_count(len(self.errors)) - 1]
        above = self.errors[self.errors > worst]
        return float(above.min() if len(above) else worst)

    def fanova(self, best: bool = False, bootstraps: int = FOREST_BOOTSTRAPS, rounds: int = ROUNDS) -> Fanova:
        """Run functional ANOVA over all trials.

        Args:
            best: Clip errors at `ceiling`, so that the shares are of the effects within the best tenth alone.
            bootstraps: Number of resamples for the intervals.
            rounds: Number of rounds for the shares by chance.
        """
        ceiling = self.ceiling if best and len(self.errors) else None
        return fanova(self.axes, self.cells, self.errors, ceiling=ceiling, bootstraps=bootstraps, rounds=rounds)


def evidence(
    config: Mapping[str, Any],
    records: Iterable[TrialRecord],
    *,
    by: str = CHOICES,
    values: Mapping[int, float] | None = None,
    epoch: int | None = None,
) -> Evidence:
    """Collect the trials of a search as evidence.

    Args:
        config: Content of the search's study.toml.
        records: Trials of the search.
        by: `choices` for the choices of the sampler, or `spec` for the fields of the network, its depth L, params and
            macs, with all values weighted equally. Fields with many values are cut at their quantiles.
        values: Value of each trial after `epoch`, by number (`dnas.analysis.control.values_at`). By default the final
            values of complete trials, because stopped and paused trials have trained for fewer epochs.
        epoch: Epoch of `values`.
    """
    space, objective = space_of(config, check=False), objectives_of(config)[0]
    if values is None:
        values = {
            r.number: value
            for r in records
            if r.state == "complete" and (value := r.measured(objective)) is not None and np.isfinite(value)
        }
    known = [r for r in records if r.number in values and (r.params if by == CHOICES else r.spec)]
    if by == CHOICES:
        axes = tuple(Axis.of(choice) for choice in space.choices)
        active = [space.active(record.params) for record in known]
        names = [axis.name for axis in axes]
        params = pd.DataFrame([[row.get(name) for name in names] for row in active], columns=names)
    else:
        params, axes = _facts(known)
    counted = {r.number for r in known}
    return Evidence(
        str(config["name"]),
        objective,
        space,
        axes,
        params,
        np.array([values[r.number] for r in known], dtype=float),
        tuple(r.number for r in known),
        dict(Counter(r.state for r in records if r.number not in counted)),
        epoch,
    )


def best_count(trials: int, best_share: float = BEST_SHARE) -> int:
    """Number of trials in "the best tenth", at least `LEAST_BEST`."""
    return min(trials, max(LEAST_BEST, round(best_share * trials)))


def _facts(records: Sequence[TrialRecord]) -> tuple[pd.DataFrame, tuple[Axis, ...]]:
    """Return the fields that differ between the networks, and their axes."""
    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for name, value in record.network_spec.to_dict().items():
            if isinstance(value, list | tuple):
                row |= {f"{name}_{i}": element for i, element in enumerate(value, 1)}
            else:
                row[name] = value
        row |= {"depth": record.network_spec.depth, "params": record.cost["params"], "macs": record.cost["macs"]}
        rows.append(row)
    facts = pd.DataFrame(rows)
    facts = facts[[name for name in facts if facts[name].nunique() > 1]].copy()
    axes = []
    for name in facts:
        numbers = pd.api.types.is_numeric_dtype(facts[name]) and not pd.api.types.is_bool_dtype(facts[name])
        if numbers and facts[name].nunique() > FACT_CELLS:
            groups = pd.qcut(facts[name], FACT_CELLS, duplicates="drop")
            facts[name] = facts.groupby(groups, observed=True)[name].transform("median")
        values = facts[name].dropna().unique().tolist()
        axes.append(Axis(str(name), tuple(sorted(values) if numbers else values), numbers))
    return facts.astype(object).where(facts.notna(), None), tuple(axes)


def importance(
    params: pd.DataFrame, errors: Sequence[float], best_share: float = BEST_SHARE, seed: int = 0
) -> pd.DataFrame:
    """Compute the importance of each choice for being among the best trials, by PED-ANOVA.

    The importance of a choice is the Pearson divergence Σ_v p_all(v) (p_best(v)/p_all(v) - 1)² between the frequencies
    of its values v among the best and among all trials. Half a count is added to each value, and numbers with more
    than 8 values are cut into 8 bins at their quantiles. Shares are divergences divided by their sum over all choices
    (Watanabe, Bansal and Hutter 2023, "PED-ANOVA", equation 14, in one dimension and for histograms).

    The shares do not account for values that the search never tried. A sampler also tries values more often if it
    considers them good.

    Args:
        params: One row per trial and one column per choice, as the sampler stores it (numbers, or text for a category).
        errors: Validation error of each trial. Lower is better.
        best_share: Share of trials that count as the best (at least 4 trials).
        seed: Seed of all draws.

    Returns:
        One row per choice, largest share first: choice, share, low, high (95%, percentile bootstrap over trials), and
        null, the mean share with shuffled errors, which a choice without effect has by chance.

    Raises:
        InputError: With fewer than 10 trials, or if no choice varies.
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
    best = best_count(len(values), best_share)
    rng = np.random.default_rng(seed)
    shares = _shares(codes, values, best, rng)
    samples, nulls = [], []
    for _ in range(BOOTSTRAPS):
        drawn = rng.integers(len(values), size=len(values))
        samples.append(_shares([code[drawn] for code in codes], values[drawn], best, rng))
        nulls.append(_shares(codes, rng.permutation(values), best, rng))
    low, high = percentile_interval(samples)
    frame = pd.DataFrame({"choice": varied, "share": shares, "low": low, "high": high, "null": np.mean(nulls, axis=0)})
    return frame.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def _codes(column: "pd.Series[Any]") -> np.ndarray:
    if column.nunique(dropna=False) > 8 and pd.api.types.is_numeric_dtype(column):
        column = pd.qcut(column, 8, duplicates="drop")
    return np.asarray(pd.factorize(column, sort=False)[0] + 1)


def _shares(codes: list[np.ndarray], errors: np.ndarray, best: int, rng: np.random.Generator) -> np.ndarray:
    order = np.lexsort((rng.random(len(errors)), errors))[:best]  # ties are broken at random
    divergences = np.array([_divergence(code, code[order]) for code in codes])
    total = divergences.sum()
    return divergences / total if total > 0 else np.full(len(codes), 1 / len(codes))


def _divergence(all_codes: np.ndarray, best: np.ndarray) -> float:
    size = int(all_codes.max()) + 1
    present = np.bincount(all_codes, minlength=size) > 0
    p_all, p_best = (
        (np.bincount(codes, minlength=size)[present] + 0.5) / (len(codes) + 0.5 * present.sum())
        for codes in (all_codes, best)
    )
    return float((p_all * (p_best / p_all - 1) ** 2).sum())
