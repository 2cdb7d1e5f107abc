"""Bayesian optimisation with a Gaussian process.

The model predicts the mean and standard deviation of every untried point, and the point with the largest expected
improvement is proposed. The kernel is additive: a weighted sum of terms for single choices, for pairs and for all
choices together, with weights fitted to the data (Duvenaud et al. 2011, "Additive Gaussian processes"). Costs that are
known exactly before training are not modelled; the acquisition uses their exact values.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import lapack, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from dnas.space.pareto import nondominated_ranks
from dnas.space.space import Choice
from dnas.strategy.samplers.nsga2 import comparable
from dnas.strategy.samplers.problem import Problem, Told

STARTUP_TRIALS = 10  # random trials before the first model
MODEL_TRIALS = 200  # largest number of trials in the model: the best ones and a sample of the others
BEST_SHARE = 0.7  # fraction of the model's trials that are the best ones
MAX_PENDING = 100  # pending trials included in the model, most recent ones
FIT_TRIALS = 100  # largest number of trials that the hyperparameters are fitted to
FIT_GROWTH = 0.1  # the hyperparameters are refitted when the number of trials has grown by this fraction
UNIFORM = 250  # candidates drawn from the whole space, if most of it is inside the limits
PROBES = 12  # uniform candidates that are checked to estimate the fraction inside the limits
DRAWN = 4  # candidates drawn by `problem.draw`, which also finds rare feasible regions
CROSSED = 150  # candidates that combine two earlier trials
PARENTS = 10  # best trials, whose mutants are candidates
MUTANTS = 25  # mutants of each parent
CLIMBS = 2  # rounds of local search, which add the neighbours of the best candidates
CLIMBERS = 4  # best candidates whose neighbours are added in each round
MAX_PRICED = 250  # candidates checked per proposal, at most; many with a high expected improvement exceed a limit
PRICED = 80  # candidates checked before the local search with several objectives; half as many in each round
LEVELS = 16  # grid levels of each known objective for the hypervolume
CLIP_QUANTILE = 0.7  # values of a single objective are clipped at this quantile
SPREAD = 3.0  # factor on the model's standard deviation, which is too small to leave a local optimum
FLOAT_STEPS = 100  # steps of a float without a step
NUGGET = 1e-6
THETA_PRIOR = (-0.4, 1.0)  # mean and deviation of log(1 / length scale), in ranges of the choice
NOISE_PRIOR = (-4.0, 1.5)  # mean and deviation of log(noise variance / signal variance)


def propose_gp(problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
    """Propose the candidate with the largest expected improvement, or hypervolume improvement with several objectives.

    Running trials are pending: they are assumed to end as the model predicts, which lowers the expected improvement in
    their neighbourhood.
    """
    draws = random.Random(int(rng.integers(2**63)))
    trials, values = comparable(told)
    if len(trials) < STARTUP_TRIALS:
        return problem.draw(draws)
    coding = Coding(problem.choices)
    points = coding.encode([trial.params for trial in trials])
    pending = coding.encode([trial.params for trial in told if trial.state == "running"][-MAX_PENDING:])
    ranks = nondominated_ranks(values)
    chosen = _representative(ranks, MODEL_TRIALS)
    target = clipped if len(problem.objectives) == 1 else scores_of_ranks
    targets = target(values[:, 0])
    hyper = hyperparameters(coding, points, values[:, 0], target)
    model = Process(coding, points[chosen], targets[chosen], hyper, pending)
    pool = Pool(problem, coding, np.concatenate([points, pending]))
    pool.add(coding.encode([problem.draw(draws) for _ in range(DRAWN)]))
    best = points[np.lexsort((values[:, 0], ranks))[:PARENTS]]
    pool.add(coding.mutate(best, MUTANTS, rng))
    pool.add(coding.cross(points, CROSSED, rng))
    uniform = coding.uniform(UNIFORM, rng)
    accepted = [pool.known(row) is not None for row in uniform[:PROBES]]
    # If most of the space exceeds the limits, checking uniform candidates would be wasted work.
    pool.add(uniform if np.mean(accepted) >= 0.5 else uniform[:PROBES][accepted])
    if len(problem.objectives) == 1:
        best_mean = model.predict(points[chosen])[0].min()

        def improvement(rows: np.ndarray) -> np.ndarray:
            mean, deviation = model.predict(rows)
            return expected_improvement(mean, SPREAD * deviation, best_mean)

        proposal = _climb(pool, coding, improvement)
    else:
        costs = np.log(np.maximum(values[:, 1:], 1e-12))
        improvement_of_volume = VolumeImprovement(coding, model, points, targets, costs, ranks == 0)
        proposal = _climb_priced(pool, coding, improvement_of_volume, rng)
    return problem.draw(draws) if proposal is None else coding.decode(proposal)


class Pool:
    """Candidates, as unique rows [n, choices] that are not in `taken`, with cached results of `problem.accept`."""

    def __init__(self, problem: Problem, coding: "Coding", taken: np.ndarray) -> None:
        self._problem, self._coding = problem, coding
        self._seen = {row.tobytes() for row in taken}
        self._known: dict[bytes, tuple[float | None, ...] | None] = {}
        self.rows = np.empty((0, taken.shape[1]), dtype=int)

    def add(self, rows: np.ndarray) -> np.ndarray:
        """Add `rows`, and return those that are new."""
        added = []
        for row in rows:
            key = row.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                added.append(row)
        new = np.array(added, dtype=int).reshape(-1, rows.shape[1])
        self.rows = np.concatenate([self.rows, new])
        return new

    def known(self, row: np.ndarray) -> tuple[float | None, ...] | None:
        """Return the known objectives of a row, or None if it is refused."""
        key = row.tobytes()
        if key not in self._known:
            self._known[key] = self._problem.accept(self._coding.decode(row))
        return self._known[key]

    def first(self, order: np.ndarray, count: int) -> np.ndarray:
        """Return the first `count` accepted indices in `order`. After `MAX_PRICED` checks no new ones are checked."""
        accepted = []
        for index in order:
            row = self.rows[index]
            if (row.tobytes() in self._known or len(self._known) < MAX_PRICED) and self.known(row) is not None:
                accepted.append(index)
                if len(accepted) == count:
                    break
        return np.array(accepted, dtype=int)


def _climb(pool: Pool, coding: "Coding", improvement: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """Return the accepted candidate with the largest improvement, after a local search around the best candidates."""
    for row in pool.rows[:DRAWN]:
        pool.known(row)  # so that at least one candidate is accepted
    scores = improvement(pool.rows)
    for _ in range(CLIMBS):
        top = pool.first(np.argsort(-scores, kind="stable"), CLIMBERS)
        if len(top) == 0:
            return None
        near = pool.add(coding.neighbours(pool.rows[top]))
        if len(near):
            scores = np.concatenate([scores, improvement(near)])
    top = pool.first(np.argsort(-scores, kind="stable"), 1)
    return pool.rows[top[0]] if len(top) else None


def _climb_priced(
    pool: Pool, coding: "Coding", improvement: "VolumeImprovement", rng: np.random.Generator
) -> np.ndarray | None:
    """Do the same as `_climb` for an improvement that depends on the known objectives.

    Candidates are checked before they are ranked, which makes their known objectives available.
    """
    sample = np.concatenate([np.arange(min(DRAWN, len(pool.rows))), rng.permutation(len(pool.rows))])
    chosen = [row for row in pool.rows[sample[:PRICED]] if pool.known(row) is not None]
    if not chosen:
        return None
    rows, scores = np.array(chosen), improvement(np.array(chosen), pool)
    for _ in range(CLIMBS):
        near = pool.add(coding.neighbours(rows[np.argsort(-scores, kind="stable")[:CLIMBERS]]))
        near = near[rng.permutation(len(near))[: PRICED // 2]]
        near = near[[pool.known(row) is not None for row in near]]
        if len(near):
            rows, scores = np.concatenate([rows, near]), np.concatenate([scores, improvement(near, pool)])
    return rows[np.argmax(scores)]


# --- points as numbers ----------------------------------------------------------------------------------------------


class Coding:
    """Encodes points as rows of value indices. A float without a step has `FLOAT_STEPS` steps."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = choices
        self.values = [choice.values() or _float_values(choice) for choice in choices]
        self.counts = np.array([len(values) for values in self.values])
        self.ordered = np.array([choice.kind != "of" for choice in choices])
        self._places = [{value: place for place, value in enumerate(values)} for values in self.values]

    def encode(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the rows [n, choices] of `points`."""
        rows = np.empty((len(points), len(self.choices)), dtype=int)
        for i, (choice, places) in enumerate(zip(self.choices, self._places, strict=True)):
            if choice.values() is None:
                width = (choice.high - choice.low) or 1
                rows[:, i] = [round((p[choice.name] - choice.low) / width * (len(places) - 1)) for p in points]
            else:
                rows[:, i] = [places[p[choice.name]] for p in points]
        return rows

    def decode(self, row: np.ndarray) -> dict[str, Any]:
        return {c.name: values[i] for c, values, i in zip(self.choices, self.values, row.tolist(), strict=True)}

    def uniform(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw uniform rows [count, choices]."""
        return rng.integers(self.counts, size=(count, len(self.counts)))

    def mutate(self, rows: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
        """Return `each` copies of each of `rows`, with one or two choices redrawn."""
        copies = np.repeat(rows, each, axis=0)
        fresh = self.uniform(len(copies), rng)
        places = np.arange(len(copies))
        for redrawn in (places, places[rng.random(len(copies)) < 0.5]):
            which = rng.integers(len(self.choices), size=len(redrawn))
            copies[redrawn, which] = fresh[redrawn, which]
        return copies

    def cross(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return combinations [count, choices] of two of `rows`, with each choice from either."""
        mothers, fathers = rows[rng.integers(len(rows), size=(2, count))]
        return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)

    def neighbours(self, rows: np.ndarray) -> np.ndarray:
        """Return all rows that differ from one of `rows` in one choice, by any category or by up to two steps."""
        neighbours = []
        for i, (count, ordered) in enumerate(zip(self.counts, self.ordered, strict=True)):
            for row in rows:
                others = np.array(
                    [j for j in range(count) if j != row[i] and (not ordered or abs(j - row[i]) <= 2)], int
                )
                near = np.repeat(row[None], len(others), axis=0)
                near[:, i] = others
                neighbours.append(near)
        return np.concatenate(neighbours)


def distances(counts: np.ndarray, ordered: np.ndarray) -> list[np.ndarray]:
    """Return the distances [values, values] between the values of each choice.

    Distances between numbers are fractions of the range, and those between different categories are 1.
    """
    tables = []
    for count, number in zip(counts, ordered, strict=True):
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        tables.append(apart / max(count - 1, 1) if number else (apart > 0).astype(float))
    return tables


def _float_values(choice: Choice) -> list[float]:
    return [round(float(value), 10) for value in np.linspace(choice.low, choice.high, FLOAT_STEPS + 1)]


# --- targets and hyperparameters ------------------------------------------------------------------------------------


def _representative(ranks: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of at most `count` trials: the best ones, and others evenly spaced in the order of ranks."""
    order = np.argsort(ranks, kind="stable")
    if len(order) <= count:
        return np.sort(order)
    best = int(BEST_SHARE * count)
    others = np.linspace(best, len(order) - 1, count - best).round().astype(int)
    return np.sort(np.concatenate([order[:best], order[others]]))


def clipped(values: np.ndarray) -> np.ndarray:
    """Clip values at `CLIP_QUANTILE` and standardise them [n].

    Differences between bad networks would dominate the variance, but contain little information about the good ones.
    """
    limited = np.minimum(values, np.quantile(values, CLIP_QUANTILE))
    deviation = limited.std()
    return (limited - limited.mean()) / deviation if deviation > 0 else np.zeros(len(values))


def scores_of_ranks(values: np.ndarray) -> np.ndarray:
    """Convert values to the normal scores of their ranks [n].

    With several objectives a small network with a large error may be on the front. Its value must not be clipped.
    """
    return ndtri((rankdata(values) - 0.5) / len(values))


@dataclass(frozen=True)
class Hyper:
    """Hyperparameters of the kernel.

    theta: inverse length scale of each choice.
    weights: weights of the terms for single choices, pairs, and all choices together; they sum to 1.
    noise: ratio of noise variance to signal variance.
    """

    theta: np.ndarray
    weights: np.ndarray
    noise: float


def hyperparameters(
    coding: Coding, points: np.ndarray, values: np.ndarray, target: Callable[[np.ndarray], np.ndarray]
) -> Hyper:
    """Fit the hyperparameters to the first trials.

    Their number grows in steps, so that most proposals reuse a cached fit. The cache does not affect the result.
    """
    count = STARTUP_TRIALS
    while count + max(2, int(count * FIT_GROWTH)) <= len(points):
        count += max(2, int(count * FIT_GROWTH))
    chosen = _representative(rankdata(values[:count], method="ordinal"), FIT_TRIALS)
    return _fit(
        points[chosen].tobytes(),
        target(values[:count])[chosen].tobytes(),
        coding.counts.tobytes(),
        coding.ordered.tobytes(),
    )


@functools.lru_cache(maxsize=64)
def _fit(points: bytes, targets: bytes, counts: bytes, ordered: bytes) -> Hyper:
    """Return the hyperparameters with the largest posterior density. Arguments are bytes so that they can be hashed."""
    y, numbers = np.frombuffer(targets), np.frombuffer(ordered, dtype=bool)
    rows = np.frombuffer(points, dtype=int).reshape(len(y), len(numbers))
    tables = distances(np.frombuffer(counts, dtype=int), numbers)
    between = np.array([table[np.ix_(column, column)] for table, column in zip(tables, rows.T, strict=True)])
    choices = len(numbers)
    start = np.concatenate([np.full(choices, THETA_PRIOR[0]), [NOISE_PRIOR[0]], np.zeros(2)])
    bounds = [(-5, 3)] * choices + [(-9, 1)] + [(-4, 4)] * 2
    end = minimize(_misfit, start, (between, numbers, y), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 25})
    return _unpack(end.x, choices)


def _unpack(x: np.ndarray, choices: int) -> Hyper:
    shares = np.exp(np.append(x[choices + 1 :], 0.0))
    return Hyper(np.exp(x[:choices]), shares / shares.sum(), float(np.exp(x[choices])))


def _misfit(x: np.ndarray, apart: np.ndarray, ordered: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the negative log posterior density of the hyperparameters, up to a constant, and its gradient.

    The mean and variance of the signal are set to their optimal values.
    """
    choices, n = len(apart), len(y)
    hyper = _unpack(x, choices)
    single, slopes = _single(apart, ordered, hyper.theta)
    total = single.sum(axis=0)
    parts = [
        total / choices,
        (total**2 - np.einsum("kij,kij->ij", single, single)) / max(choices * (choices - 1), 1),
        single.prod(axis=0),
    ]
    kernel = np.einsum("k,kij->ij", hyper.weights, parts)
    kernel[np.diag_indices(n)] += hyper.noise + NUGGET
    lower, failed = lapack.dpotrf(kernel, lower=1)
    if failed:
        return 1e10, np.zeros_like(x)
    inverse = lapack.dpotri(lower, lower=1)[0]
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    ones = inverse.sum(axis=0)
    residual = y - (ones @ y) / ones.sum()
    solved = inverse @ residual
    variance = max(residual @ solved / n, 1e-12)
    value = n / 2 * np.log(variance) + np.log(np.diag(lower)).sum()
    outer = 0.5 * (inverse - np.outer(solved, solved) / variance)
    gradient = np.empty_like(x)
    for i in range(choices):
        others = (total - single[i]) / max(choices * (choices - 1) / 2, 1)
        rest = parts[2] / np.maximum(single[i], 1e-200)
        slope = hyper.weights[0] / choices + hyper.weights[1] * others + hyper.weights[2] * rest
        gradient[i] = np.vdot(outer * slope, slopes[i])
    gradient[choices] = np.trace(outer) * hyper.noise
    by_part = np.array([np.vdot(outer, part) for part in parts])
    gradient[choices + 1 :] = (hyper.weights * (by_part - by_part @ hyper.weights))[:2]
    means = np.concatenate([np.full(choices, THETA_PRIOR[0]), [NOISE_PRIOR[0]], np.zeros(2)])
    deviations = np.concatenate([np.full(choices, THETA_PRIOR[1]), [NOISE_PRIOR[1]], np.ones(2)])
    scaled = (x - means) / deviations
    return value + 0.5 * scaled @ scaled, gradient + scaled / deviations


def _single(apart: np.ndarray, ordered: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlations by each choice alone [choices, n, m] and their derivatives by log theta."""
    pairs = [_correlation(table, number, scale) for table, number, scale in zip(apart, ordered, theta, strict=True)]
    return np.array([kernel for kernel, _ in pairs]), np.array([slope for _, slope in pairs])


def _correlation(apart: np.ndarray, ordered: bool, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of one choice and its derivative by log theta.

    It is Matérn 5/2 for an ordered choice, and exp(-theta) between two categories.
    """
    scaled = apart * theta * (np.sqrt(5) if ordered else 1)
    plain = np.exp(-scaled)
    if ordered:
        return (1 + scaled + scaled**2 / 3) * plain, -(scaled**2) / 3 * (1 + scaled) * plain
    return plain, -scaled * plain


class Process:
    """A Gaussian process with a constant mean.

    `pending` points [k, choices] have no values yet. They lower the standard deviation and leave the mean unchanged, as
    if each had the value that the model predicts.
    """

    def __init__(
        self, coding: Coding, points: np.ndarray, targets: np.ndarray, hyper: Hyper, pending: np.ndarray
    ) -> None:
        self._shares = hyper.weights
        # The correlations are sums over choices of table entries at the values of two points. They are computed as
        # matrix products.
        tables = [
            _correlation(apart, ordered, theta)[0]
            for apart, ordered, theta in zip(
                distances(coding.counts, coding.ordered), coding.ordered, hyper.theta, strict=True
            )
        ]
        rows = np.concatenate([points, pending])
        self._tables = [
            np.hstack([table[column] for table, column in zip(f, rows.T, strict=True)])
            for f in (tables, [table**2 for table in tables], [np.log(np.maximum(table, 1e-200)) for table in tables])
        ]
        self._starts = np.cumsum(coding.counts) - coding.counts
        count = len(points)
        kernel = self._kernel(rows)
        kernel[np.diag_indices(len(kernel))] += hyper.noise + NUGGET
        self._lower = np.linalg.cholesky(kernel)
        lower = self._lower[:count, :count]
        ones = solve_triangular(lower, np.ones(count), lower=True)
        half = solve_triangular(lower, targets, lower=True)
        self._mean = ones @ half / (ones @ ones)
        half = half - ones * self._mean
        self._weights = solve_triangular(lower, half, lower=True, trans=1)
        self._variance = max(half @ half / count, 1e-12)

    def _kernel(self, rows: np.ndarray) -> np.ndarray:
        """Return the kernel [points, n] between the points of the process and `rows` [n, choices]."""
        choices = rows.shape[1]
        chosen = np.zeros((len(rows), self._tables[0].shape[1]))
        chosen[np.arange(len(rows))[:, None], self._starts + rows] = 1
        total, squares, logarithms = (table @ chosen.T for table in self._tables)
        pairs = (total**2 - squares) / max(choices * (choices - 1), 1)
        return self._shares[0] / choices * total + self._shares[1] * pairs + self._shares[2] * np.exp(logarithms)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean [n] and standard deviation [n] of the signal at `rows` [n, choices]."""
        kernel = self._kernel(rows)
        half = solve_triangular(self._lower, kernel, lower=True)
        explained = np.einsum("ij,ij->j", half, half)
        mean = self._mean + kernel[: len(self._weights)].T @ self._weights
        return mean, np.sqrt(self._variance * np.maximum(1 - explained, 1e-9))


# --- acquisition ----------------------------------------------------------------------------------------------------


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, level: np.ndarray | float) -> np.ndarray:
    """Return the expected improvement of normal variables below `level`; arguments are broadcast."""
    z = (level - mean) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))


class VolumeImprovement:
    """Expected hypervolume improvement of candidates in a pool.

    Only the first objective is uncertain. Objectives known before training have their exact values. Measured objectives
    such as latency have the means that separate models predict.
    """

    def __init__(
        self,
        coding: Coding,
        model: Process,
        points: np.ndarray,
        targets: np.ndarray,
        costs: np.ndarray,
        front: np.ndarray,
    ) -> None:
        self._coding, self._model, self._points = coding, model, points
        self._targets, self._costs = targets, costs  # targets [t]; logarithms of costs [t, k]
        self._front = front  # [t]
        self._models: dict[int, Process] = {}

    def __call__(self, rows: np.ndarray, pool: Pool) -> np.ndarray:
        """Return the expected improvements [n] of accepted `rows`."""
        known = [pool.known(row) or () for row in rows]
        costs = np.array([[np.nan if v is None else np.log(max(v, 1e-12)) for v in values[1:]] for values in known])
        for column in np.flatnonzero(np.isnan(costs).any(axis=0)):
            costs[:, column] = self._cost_model(int(column)).predict(rows)[0]
        mean, deviation = self._model.predict(rows)
        return volume_improvement(mean, deviation, costs, self._targets, self._costs, self._front)

    def _cost_model(self, column: int) -> Process:
        if column not in self._models:
            values = self._costs[:, column]
            chosen = _representative(np.arange(len(values)), MODEL_TRIALS)
            hyper = hyperparameters(self._coding, self._points, values, lambda v: v - v.mean())
            no_pending = self._points[:0]
            self._models[column] = Process(self._coding, self._points[chosen], values[chosen], hyper, no_pending)
        return self._models[column]


def volume_improvement(
    mean: np.ndarray,
    deviation: np.ndarray,
    costs: np.ndarray,
    targets: np.ndarray,
    table: np.ndarray,
    front: np.ndarray,
) -> np.ndarray:
    """Return the expected growth [n] of the dominated volume for each candidate.

    Args:
        mean: Mean [n] of the first objective of the candidates, which is normally distributed.
        deviation: Standard deviation [n] of the first objective.
        costs: Exact values [n, k] of the other objectives.
        targets: First objective [t] of the trials.
        table: Other objectives [t, k] of the trials.
        front: Mask [t] of the trials that no other trial dominates.
    """
    worst = targets.max()
    axes = []  # (edges of the cells, upper end, range) of each cost
    for column, values in zip(table[front].T, table.T, strict=True):
        edges = np.unique(np.quantile(column, np.linspace(0, 1, LEVELS), method="nearest"))
        low, high = values.min(), values.max()
        reach = max(high - low, 1e-9)
        axes.append((np.unique(np.concatenate([[low - reach], edges])), high + 0.1 * reach, reach))
    grids = np.meshgrid(*[edges for edges, _, _ in axes], indexing="ij")
    lows = np.stack([grid.ravel() for grid in grids], axis=1)  # [cells, k]
    highs = np.stack(
        [grid.ravel() for grid in np.meshgrid(*[np.append(edges[1:], end) for edges, end, _ in axes], indexing="ij")],
        axis=1,
    )
    inside = np.all(table[front][None] <= lows[:, None] + 1e-12, axis=2)  # [cells, front]
    levels = np.where(inside, targets[front][None], worst).min(axis=1)
    # Fraction of each cell that is above the candidate's costs.
    shares = np.ones((len(mean), len(lows)))
    for k, (_, _, reach) in enumerate(axes):
        shares *= np.clip(highs[None, :, k] - np.maximum(lows[None, :, k], costs[:, None, k]), 0, None) / reach
    gains = expected_improvement(mean[:, None], deviation[:, None], levels[None])
    return np.sum(shares * gains, axis=1)
