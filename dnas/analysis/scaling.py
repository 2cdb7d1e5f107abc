"""Error against cost for several families of networks, and the ratio of their costs at equal error (Figure 4).

Each family's mean errors are fitted by a curve that never rises with the cost. If the curves of two families share a
range of errors, the ratio of the costs at equal error is averaged over that range (geometrically). Its interval is a
bootstrap over seeds.
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
DRAWS = 2000  # bootstrap draws
ROUNDING = 1e-9  # log ratios closer to 0 than this count as 0
LEVELS = 101  # errors in the shared range at which two curves are compared


@dataclass(frozen=True)
class Sized:
    """One network of a family, with its errors over seeds.

    Attributes:
        group: Name of the family.
        network: Name of the network.
        cost: Its cost.
        errors: Error (fraction) by seed.
        mean: Mean error.
        low: Lower end of the 95% interval of the mean.
        high: Upper end of the interval.
        interval: Kind of the interval. `t` is Student's over the seeds, with a standard deviation of at least 1/√12 of
            an image, the effect of rounding to whole images. `Wilson` is the interval of one error on a number of
            images, which does not cover the variation between seeds. `none` if neither is known.
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
    """Collect the networks of `frame`, grouped by family in the order of the frame, ascending in cost.

    Args:
        frame: One row per run, with columns group, network, seed, `cost` and `error`. Runs without an error are left
            out.
        cost: Column of the cost.
        error: Column of the error (a fraction).
        images: Number of images on which each error was measured, if known.
    """
    networks = []
    known = frame[pd.to_numeric(frame[error]).notna()]
    for group in dict.fromkeys(known["group"]):
        rows = known[known["group"] == group].sort_values([cost, "network"])
        for network, runs in rows.groupby("network", sort=False):
            errors = {int(seed): float(value) for seed, value in zip(runs["seed"], runs[error], strict=True)}
            networks.append(_sized(group, str(network), float(runs[cost].iloc[0]), errors, images))
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
    """Error that never rises with the cost: `errors` at ascending `costs`, with linear interpolation in log cost."""

    costs: np.ndarray
    errors: np.ndarray

    def cost_at(self, error: float) -> float:
        """Return the lowest cost at which the curve reaches `error`, or infinity if it never does.

        At or above the error of the cheapest network, it is the cost of that network, because nothing cheaper was
        measured.
        """
        if error < self.errors[-1]:
            return math.inf
        after = int(np.argmax(self.errors <= error))
        if after == 0:
            return float(self.costs[0])
        (x0, x1), (y0, y1) = np.log(self.costs[after - 1 : after + 1]), self.errors[after - 1 : after + 1]
        return float(np.exp(x0 + (y0 - error) / (y0 - y1) * (x1 - x0)))


def monotone_fit(costs: Sequence[float], errors: Sequence[float], weights: Sequence[float] | None = None) -> Fit:
    """Fit errors that never rise with the cost by weighted least squares (pool adjacent violators).

    Networks of equal cost are one point. Raises `InputError` if a cost is not positive, or there is no network.
    """
    return _monotone_fits(costs, np.asarray([errors], dtype=float), weights)[0]


def _monotone_fits(costs: Sequence[float], errors: np.ndarray, weights: Sequence[float] | None) -> list[Fit]:
    """Return `monotone_fit` of each row of `errors`."""
    x = np.asarray(costs, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    if not len(x) or not (x > 0).all():
        raise InputError(f"a fit needs at least one network, and costs above 0, but got {x.tolist()}.")
    unique_costs, indices = np.unique(x, return_inverse=True)
    total = np.bincount(indices, w)
    means = np.array([np.bincount(indices, w * y) for y in errors]) / total

    def fitted(row: np.ndarray) -> np.ndarray:
        if (np.diff(row) < 0).all():  # errors that always fall are their own fit
            return row
        return isotonic_regression(row, weights=total, increasing=False).x

    return [Fit(unique_costs, fitted(row)) for row in means]


def fit_of(networks: Sequence[Sized]) -> Fit:
    """Fit the mean errors of one family by `monotone_fit`, each weighted by its number of seeds."""
    return monotone_fit([n.cost for n in networks], [n.mean for n in networks], [len(n.errors) for n in networks])


def log_ratio(first: Fit, second: Fit) -> float:
    """Return the mean of log(cost of `first` / cost of `second`) at equal error, over the errors that both reach.

    inf if the best of `first` is worse than the worst of `second`, and -inf in the opposite case.
    """
    low, high = shared_errors(first, second)
    if low > high:
        return math.inf if first.errors[-1] > second.errors[0] else -math.inf
    if low == high:
        return math.log(first.cost_at(low) / second.cost_at(low))
    levels = low + (high - low) * (np.arange(LEVELS) + 0.5) / LEVELS  # avoids the flat parts of both curves
    x, y = (np.interp(levels, fit.errors[::-1], np.log(fit.costs)[::-1]) for fit in (first, second))
    return float(np.mean(x - y))


def shared_errors(first: Fit, second: Fit) -> tuple[float, float]:
    """Return the lowest and highest error that both curves reach. The first exceeds the second if there is none."""
    return max(first.errors[-1], second.errors[-1]), min(first.errors[0], second.errors[0])


@dataclass(frozen=True)
class IsoError:
    """Ratio of the costs that networks of `first` and `second` need for the same error.

    Attributes:
        first: Name of the first family.
        second: Name of the second family.
        cost: Name of the cost.
        ratio: The ratio. None if no error is reached by both.
        low: Lower end of the 95% interval by the bootstrap over seeds. 0 if unbounded, None for one seed.
        high: Upper end of the interval. Infinite if unbounded, None for one seed.
        p: Two-sided p value of a ratio of 1: twice the share of draws beyond it, at least 2/(draws + 1).
        range: Range of errors over which the ratio was averaged.
        at: An error within the range, and the costs of both families there, whose ratio is closest to the mean.
        beyond: 1 if `first` never reaches the errors of `second`, -1 in the opposite case, else 0.
        bound: Bound of the ratio by the measured costs if there is no ratio: a lower bound if `beyond` is 1, an upper
            bound if it is -1.
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
        """Return the result as text: "the same error with 2.9 times fewer params, 95% interval 2.4 to 3.4"."""
        if self.ratio is None:
            assert self.bound is not None
            if self.beyond > 0:
                text = f"no network of {self.first} gets as low as the worst of {self.second}:"
                text += f" more than {times(self.bound)} times fewer {self.cost}, as far as was measured"
            else:
                text = f"no network of {self.second} gets as low as the worst of {self.first}:"
                text += f" at equal error it needs more than {times(1 / self.bound)} times the {self.cost}"
            return f"{text}; the curves share no error, so there is no ratio"
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
    """Format a ratio: 2.937 as `2.9`, 12.4 as `12`."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _inverse(ratio: float) -> float:
    return math.inf if ratio == 0 else 0.0 if ratio == math.inf else 1 / ratio


def iso_error(
    networks: Sequence[Sized], first: str, second: str, cost: str = "params", seed: int = 0, draws: int = DRAWS
) -> IsoError:
    """Compare the costs of two families at equal error. A ratio above 1 means that `second` needs less.

    The bootstrap shifts each network's mean by the mean of n residuals for its n seeds. They are drawn with replacement
    from the residuals of all networks of both families, because a few seeds of one network estimate the spread poorly.
    A residual is scaled by √(n / (n - 1)), and from the √(p(1 - p)) of its network's error p to that of the network it
    is applied to. The interval is conditional on the split and the networks: another split, or other sizes, change the
    ratio too.

    Args:
        networks: Networks of both families, as returned by `sized`.
        first: Name of the first family.
        second: Name of the second family.
        cost: Name of the cost.
        seed: Seed of the bootstrap.
        draws: Number of bootstrap draws.

    Raises:
        InputError: If a family has no network with an error.
    """
    families = {name: [n for n in networks if n.group == name] for name in (first, second)}
    for name, members in families.items():
        if not members:
            raise InputError(f"no network of {name} has an error yet.")
    fits = {name: fit_of(members) for name, members in families.items()}
    value = log_ratio(fits[first], fits[second])
    low = high = p = None
    residuals = _residuals([*families[first], *families[second]])
    if len(residuals):
        ratios = _bootstrap(families[first], families[second], residuals, seed, draws)
        low, high = (float(np.exp(np.quantile(ratios, q, method="inverted_cdf"))) for q in (0.025, 0.975))
        tail = min(int((ratios <= ROUNDING).sum()), int((ratios >= -ROUNDING).sum()))
        p = min(1.0, 2 * (tail + 1) / (draws + 1))
    if not math.isfinite(value):
        costs = [[n.cost for n in members] for members in families.values()]
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
    """Return the (error, first cost, second cost) with the ratio closest to the mean; ties go to the middle error."""
    levels = [(e, fits[first].cost_at(e), fits[second].cost_at(e)) for e in np.linspace(*span, LEVELS)]
    middle = sum(span) / 2
    return min(levels, key=lambda level: (round(abs(math.log(level[1] / level[2]) - value), 6), abs(level[0] - middle)))


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
    """Return the `log_ratio` of each bootstrap draw."""
    rng = np.random.default_rng(seed)
    moved = []
    for n in (*first, *second):
        noise = rng.choice(residuals, (draws, len(n.errors))).mean(axis=1) * _scale(n.mean)
        moved.append(np.clip(n.mean + noise, 0.0, 1.0))
    means = np.array(moved).T
    costs = [[n.cost for n in family] for family in (first, second)]
    weights = [[len(n.errors) for n in family] for family in (first, second)]
    cut = len(first)
    fits = (_monotone_fits(costs[0], means[:, :cut], weights[0]), _monotone_fits(costs[1], means[:, cut:], weights[1]))
    return np.array([log_ratio(*pair) for pair in zip(*fits, strict=True)])
