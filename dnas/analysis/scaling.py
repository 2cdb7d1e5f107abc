"""Error against cost for several families of networks, and how much less one needs for the same error (Figure 4).

The reading: each family's mean errors are fitted by a curve that never rises with the cost; where the curves of two
families share a range of errors, the ratio of the costs at which they reach an error is averaged over that range
(geometrically). Its interval is a bootstrap over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from dnas.analysis.intervals import t_half_width, wilson_interval
from dnas.errors import InputError

Verdict = Literal["holds", "does not hold", "cannot tell"]
DRAWS = 2000  # of the bootstrap
ROUNDING = 1e-9  # of a log ratio: no closer to 0 is it told from it
LEVELS = 101  # errors in the shared range at which two curves are compared


@dataclass(frozen=True)
class Sized:
    """One network of a family: its cost, its errors (fractions) by seed, their mean and a 95% interval of it.

    interval: `t` is Student's, over the seeds, whose deviation is taken to be no less than what rounding to whole
    images makes (1/√12 of one); `Wilson` is that of one error on `images` images, which says nothing of what another
    seed would give; `none` where neither is known.
    """

    group: str
    network: str
    cost: float
    errors: dict[int, float]
    mean: float
    low: float
    high: float
    interval: Literal["t", "Wilson", "none"]


def sized(
    frame: pd.DataFrame, cost: str = "params", error: str = "val_error", images: int | None = None
) -> list[Sized]:
    """Each network of `frame`, by group in the order in which they come and ascending in cost.

    frame: one row per run, with group, network, seed, and the columns `cost` and `error`; runs without an error are
    left out. images: those that each error was measured on.
    """
    networks = []
    known = frame[pd.to_numeric(frame[error]).notna()]
    for group in dict.fromkeys(known["group"]):
        rows = known[known["group"] == group].sort_values([cost, "network"])
        for network, some in rows.groupby("network", sort=False):
            errors = {int(seed): float(value) for seed, value in zip(some["seed"], some[error], strict=True)}
            networks.append(_sized(group, str(network), float(some[cost].iloc[0]), errors, images))
    return networks


def _sized(group: str, network: str, cost: float, errors: dict[int, float], images: int | None) -> Sized:
    values = np.array(list(errors.values()))
    mean = float(values.mean())
    if len(values) > 1:
        spread = max(float(values.std(ddof=1)), 1 / (images * math.sqrt(12)) if images else 0.0)
        half = t_half_width(spread, len(values))
        return Sized(group, network, cost, errors, mean, max(0.0, mean - half), min(1.0, mean + half), "t")
    if images:
        low, high = wilson_interval(mean, images)
        return Sized(group, network, cost, errors, mean, low, high, "Wilson")
    return Sized(group, network, cost, errors, mean, mean, mean, "none")


@dataclass(frozen=True)
class Fit:
    """An error that never rises with the cost: `errors` at ascending `costs`, between them linear in log cost."""

    costs: np.ndarray
    errors: np.ndarray

    def cost_at(self, error: float) -> float:
        """The least cost at which the curve is down to `error`; infinite where it never is. At or above the error of
        the cheapest network the cost of that one: what would cost less was not measured."""
        if error < self.errors[-1]:
            return math.inf
        after = int(np.argmax(self.errors <= error))
        if after == 0:
            return float(self.costs[0])
        (x0, x1), (y0, y1) = np.log(self.costs[after - 1 : after + 1]), self.errors[after - 1 : after + 1]
        return float(np.exp(x0 + (y0 - error) / (y0 - y1) * (x1 - x0)))


def monotone_fit(costs: Sequence[float], errors: Sequence[float], weights: Sequence[float] | None = None) -> Fit:
    """The weighted least-squares fit among the errors that never rise with the cost (pool adjacent violators).

    Networks of one cost are one point. `InputError` for a cost that is not positive, and for nothing at all.
    """
    x, y = np.asarray(costs, dtype=float), np.asarray(errors, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if not len(x) or not (x > 0).all():
        raise InputError(f"a fit needs at least one network, and costs above 0, but got {x.tolist()}.")
    at, where = np.unique(x, return_inverse=True)
    total = np.bincount(where, w)
    means = np.bincount(where, w * y) / total
    return Fit(at, isotonic_regression(means, weights=total, increasing=False).x)


def fit_of(networks: Sequence[Sized]) -> Fit:
    """`monotone_fit` of the mean errors of one family, each weighted by its number of seeds."""
    return monotone_fit([n.cost for n in networks], [n.mean for n in networks], [len(n.errors) for n in networks])


def log_ratio(first: Fit, second: Fit) -> float:
    """log(cost of `first` / cost of `second`) at equal error: the mean over the range of errors that both reach.

    inf where the best of `first` is worse than the worst of `second`, -inf the other way round.
    """
    low, high = shared_errors(first, second)
    if low > high:
        return math.inf if first.errors[-1] > second.errors[0] else -math.inf
    if low == high:
        return math.log(first.cost_at(low) / second.cost_at(low))
    levels = low + (high - low) * (np.arange(LEVELS) + 0.5) / LEVELS  # on no level piece of either curve
    x, y = (np.interp(levels, fit.errors[::-1], np.log(fit.costs)[::-1]) for fit in (first, second))
    return float(np.mean(x - y))


def shared_errors(first: Fit, second: Fit) -> tuple[float, float]:
    """The lowest and highest error that both curves reach; the first is above the second where there is none."""
    return max(first.errors[-1], second.errors[-1]), min(first.errors[0], second.errors[0])


@dataclass(frozen=True)
class IsoError:
    """Ratio of the costs that networks of `first` and `second` need for the same error.

    ratio: None where no error is reached by both; `bound` then is the ratio that the measured costs bound it by, from
    below where `first` never gets as good (`beyond` is 1), from above where `second` does not (-1).
    low, high: the 95% interval by the bootstrap over seeds, 0 or infinite where that has no end; None for one seed.
    p: two-sided, of a ratio of 1: twice the share of draws on the other side of it (at least 2/(draws + 1)).
    range: the errors over which it was averaged. at: one of them, and the costs of both there, whose ratio is nearest.
    """

    first: str
    second: str
    cost: str
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    range: tuple[float, float] | None
    at: tuple[float, float, float] | None
    beyond: int = 0
    bound: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Verdict on the claim that `second` needs less of the cost, by the 95% interval."""
        if self.low is None or self.high is None or self.low <= 1 <= self.high:
            return "cannot tell"
        return "holds" if self.low > 1 else "does not hold"

    def sentence(self) -> str:
        """The reading in words: "the same error with 2.9 times fewer params, 95% interval 2.4 to 3.4"."""
        if self.ratio is None:
            assert self.bound is not None
            if self.beyond > 0:
                text = f"no network of {self.first} gets as low as the worst of {self.second}:"
                text += f" more than {times(self.bound)} times fewer {self.cost}, as far as was measured"
            else:
                text = f"no network of {self.second} gets as low as the worst of {self.first}:"
                text += f" at equal error it needs more than {times(1 / self.bound)} times the {self.cost}"
            return f"{text}; the curves share no error, so a ratio cannot be said"
        ratio, low, high = self.ratio, self.low, self.high
        fewer = ratio >= 1
        if not fewer:
            ratio = 1 / ratio
            low, high = (None, None) if low is None or high is None else (_inverse(high), _inverse(low))
        text = f"the same error with {times(ratio)} times {'fewer' if fewer else 'more'} {self.cost}"
        if low is None or high is None:
            return f"{text}; one seed each has no interval"
        if low == 0 and high == math.inf:
            return f"{text}, 95% interval unbounded on both sides"
        if high == math.inf:
            return f"{text}, 95% interval from {times(low)} upwards"
        if low == 0:
            return f"{text}, 95% interval up to {times(high)}"
        return f"{text}, 95% interval {times(low)} to {times(high)}"


def times(ratio: float) -> str:
    """2.937 as `2.9`, 12.4 as `12`."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _inverse(ratio: float) -> float:
    return math.inf if ratio == 0 else 0.0 if ratio == math.inf else 1 / ratio


def iso_error(
    networks: Sequence[Sized], first: str, second: str, cost: str = "params", seed: int = 0, draws: int = DRAWS
) -> IsoError:
    """The iso-error reading of family `first` against `second`: above 1, `second` does with less.

    The bootstrap moves each network's mean by the mean of as many residuals as it has seeds, drawn with replacement
    from those of all networks of both families: three seeds of one network alone know too little of the spread. A
    residual is scaled by √(n / (n - 1)) for n seeds, and by √(p(1 - p)) of the network that it is of and goes to, as
    the noise of an error p is. It is for the split and the networks at hand: another split, or other sizes, move the
    ratio too.
    """
    families = {name: [n for n in networks if n.group == name] for name in (first, second)}
    for name, some in families.items():
        if not some:
            raise InputError(f"no network of {name} has an error yet.")
    fits = {name: fit_of(some) for name, some in families.items()}
    value = log_ratio(fits[first], fits[second])
    low = high = p = None
    residuals = _residuals([*families[first], *families[second]])
    if len(residuals):
        ratios = _bootstrap(families[first], families[second], residuals, seed, draws)
        low, high = (float(np.exp(np.quantile(ratios, q, method="inverted_cdf"))) for q in (0.025, 0.975))
        tail = min(int((ratios <= ROUNDING).sum()), int((ratios >= -ROUNDING).sum()))
        p = min(1.0, 2 * (tail + 1) / (draws + 1))
    if not math.isfinite(value):
        costs = [[n.cost for n in some] for some in families.values()]
        beyond = 1 if value > 0 else -1
        bound = max(costs[0]) / min(costs[1]) if beyond > 0 else min(costs[0]) / max(costs[1])
        return IsoError(first, second, cost, None, low, high, p, None, None, beyond, bound)
    span = shared_errors(fits[first], fits[second])
    return IsoError(
        first, second, cost, math.exp(value), low, high, p, span, _nearest(fits, first, second, span, value)
    )


def _nearest(
    fits: Mapping[str, Fit], first: str, second: str, span: tuple[float, float], value: float
) -> tuple[float, float, float]:
    """(error, cost of first, cost of second) where the ratio is nearest to the mean one; of equals, mid-range."""
    levels = [(e, fits[first].cost_at(e), fits[second].cost_at(e)) for e in np.linspace(*span, LEVELS)]
    middle = sum(span) / 2
    return min(levels, key=lambda one: (round(abs(math.log(one[1] / one[2]) - value), 6), abs(one[0] - middle)))


def _scale(mean: float) -> float:
    return math.sqrt(max(mean * (1 - mean), 1e-6))


def _residuals(networks: Sequence[Sized]) -> np.ndarray:
    residuals = [
        (error - n.mean) * math.sqrt(len(n.errors) / (len(n.errors) - 1)) / _scale(n.mean)
        for n in networks
        if len(n.errors) > 1
        for error in n.errors.values()
    ]
    return np.array(residuals)


def _bootstrap(
    first: Sequence[Sized], second: Sequence[Sized], residuals: np.ndarray, seed: int, draws: int
) -> np.ndarray:
    """`log_ratio` of `draws` draws."""
    rng = np.random.default_rng(seed)
    moved = []
    for n in (*first, *second):
        noise = rng.choice(residuals, (draws, len(n.errors))).mean(axis=1) * _scale(n.mean)
        moved.append(np.clip(n.mean + noise, 0.0, 1.0))
    means = np.array(moved).T
    costs = [[n.cost for n in some] for some in (first, second)]
    weights = [[len(n.errors) for n in some] for some in (first, second)]
    cut = len(first)
    return np.array(
        [
            log_ratio(monotone_fit(costs[0], row[:cut], weights[0]), monotone_fit(costs[1], row[cut:], weights[1]))
            for row in means
        ]
    )
