"""Bayesian optimisation with a Gaussian process: the trials so far give a mean and a spread for every untried point,
and the one that promises the largest improvement is proposed.

The kernel is an analysis of variance: the effects of single choices, of pairs, and of all together, each with a share
that the data decide (Duvenaud et al. 2011, "Additive Gaussian processes"). Costs that are exact before training are not
modelled: the acquisition takes them as they are.
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

from dnas.search.samplers.nsga2 import comparable
from dnas.search.samplers.problem import Problem, Told
from dnas.space.pareto import nondominated_ranks
from dnas.space.space import Choice

STARTUP = 10  # random trials before there is a model
POINTS = 200  # trials in the model at most: the best of them, and some of all the others
BEST = 0.7  # the share of the best
PENDING = 100  # running trials that it heeds, the last to begin: of a thousand, most end before the next look
FIT_POINTS = 100  # trials that the hyperparameters are fitted to at most
FIT_EVERY = 0.1  # they are fitted again when there are this share more trials
UNIFORM = 250  # candidates drawn from the whole space, where most of it is inside the limits
PROBES = 12  # of these are looked at to see whether it is
DRAWN = 4  # candidates drawn by the problem, which knows where a rare feasible region is
CROSSED = 150  # that mix two earlier trials
PARENTS = 10  # best trials whose mutants are candidates
MUTANTS = 25  # of each
CLIMBS = 2  # rounds in which the neighbours of the most promising candidates become candidates
CLIMBERS = 4  # of which there are so many
LOOKS = 250  # candidates that are priced for one proposal at most: many that promise much are over a limit
PRICED = 80  # with several objectives, before the climb; in each of its rounds half of it
LEVELS = 16  # costs between which the front is cut, of each known objective
GOOD = 0.7  # quantile of one objective above which its values are cut
SPREAD = 3.0  # times the model's standard deviation: alone it is too sure of itself to leave a local optimum
FINE = 100  # steps of a float that has none
NUGGET = 1e-6
THETA_PRIOR = (-0.4, 1.0)  # mean and deviation of log(1 / length scale), in ranges of the choice
NOISE_PRIOR = (-4.0, 1.5)  # of log(noise variance / signal variance)


def propose_gp(problem: Problem, told: Sequence[Told], rng: np.random.Generator) -> dict[str, Any]:
    """The candidate with the largest expected improvement; with several objectives, of the dominated volume.

    Trials that run are pending: they are taken to end as the model expects, so that their neighbourhood promises less.
    """
    draws = random.Random(int(rng.integers(2**63)))
    trials, values = comparable(told)
    if len(trials) < STARTUP:
        return problem.draw(draws)
    coding = Coding(problem.choices)
    points = coding.encode([trial.params for trial in trials])
    pending = coding.encode([trial.params for trial in told if trial.state == "running"][-PENDING:])
    ranks = nondominated_ranks(values)
    chosen = _relevant(ranks, POINTS)
    target = cut if len(problem.objectives) == 1 else scores_of_ranks
    targets = target(values[:, 0])
    hyper = hyperparameters(coding, points, values[:, 0], target)
    model = Process(coding, points[chosen], targets[chosen], hyper, pending)
    pool = Pool(problem, coding, np.concatenate([points, pending]))
    pool.add(coding.encode([problem.draw(draws) for _ in range(DRAWN)]))
    best = points[np.lexsort((values[:, 0], ranks))[:PARENTS]]
    pool.add(coding.mutants(best, MUTANTS, rng))
    pool.add(coding.crossed(points, CROSSED, rng))
    uniform = coding.uniform(UNIFORM, rng)
    open_ones = [pool.known(row) is not None for row in uniform[:PROBES]]
    # In a space that is mostly over its limits nearly every uniform candidate would be priced in vain.
    pool.add(uniform if np.mean(open_ones) >= 0.5 else uniform[:PROBES][open_ones])
    if len(problem.objectives) == 1:
        level = model.predict(points[chosen])[0].min()

        def promise(rows: np.ndarray) -> np.ndarray:
            mean, deviation = model.predict(rows)
            return expected_improvement(mean, SPREAD * deviation, level)

        found = _climb(pool, coding, promise)
    else:
        costs = np.log(np.maximum(values[:, 1:], 1e-12))
        volume = VolumePromise(coding, model, points, targets, costs, ranks == 0)
        found = _climb_priced(pool, coding, volume, rng)
    return problem.draw(draws) if found is None else coding.decode(found)


class Pool:
    """Candidates: rows [n, choices], each once, none of them in `taken`; and what `problem.accept` said of those that
    were looked at."""

    def __init__(self, problem: Problem, coding: "Coding", taken: np.ndarray) -> None:
        self._problem, self._coding = problem, coding
        self._seen = {row.tobytes() for row in taken}
        self._known: dict[bytes, tuple[float | None, ...] | None] = {}
        self.rows = np.empty((0, taken.shape[1]), dtype=int)

    def add(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that are new."""
        fresh = []
        for row in rows:
            key = row.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                fresh.append(row)
        new = np.array(fresh, dtype=int).reshape(-1, rows.shape[1])
        self.rows = np.concatenate([self.rows, new])
        return new

    def known(self, row: np.ndarray) -> tuple[float | None, ...] | None:
        """The known objectives of a row; None where it is refused."""
        key = row.tobytes()
        if key not in self._known:
            self._known[key] = self._problem.accept(self._coding.decode(row))
        return self._known[key]

    def first(self, order: np.ndarray, most: int) -> np.ndarray:
        """The first `most` indices in `order` that are accepted. After `LOOKS` prices only known ones count."""
        found = []
        for index in order:
            row = self.rows[index]
            if (row.tobytes() in self._known or len(self._known) < LOOKS) and self.known(row) is not None:
                found.append(index)
                if len(found) == most:
                    break
        return np.array(found, dtype=int)


def _climb(pool: Pool, coding: "Coding", promise: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    """The accepted candidate that promises most, the neighbours of the most promising ones among them."""
    for row in pool.rows[:DRAWN]:
        pool.known(row)  # so that there is always one
    scores = promise(pool.rows)
    for _ in range(CLIMBS):
        top = pool.first(np.argsort(-scores, kind="stable"), CLIMBERS)
        if len(top) == 0:
            return None
        near = pool.add(coding.neighbours(pool.rows[top]))
        if len(near):
            scores = np.concatenate([scores, promise(near)])
    top = pool.first(np.argsort(-scores, kind="stable"), 1)
    return pool.rows[top[0]] if len(top) else None


def _climb_priced(
    pool: Pool, coding: "Coding", promise: "VolumePromise", rng: np.random.Generator
) -> np.ndarray | None:
    """The same where the promise depends on the known objectives: candidates are priced before they are ranked."""
    sample = np.concatenate([np.arange(min(DRAWN, len(pool.rows))), rng.permutation(len(pool.rows))])
    chosen = [row for row in pool.rows[sample[:PRICED]] if pool.known(row) is not None]
    if not chosen:
        return None
    rows, scores = np.array(chosen), promise(np.array(chosen), pool)
    for _ in range(CLIMBS):
        near = pool.add(coding.neighbours(rows[np.argsort(-scores, kind="stable")[:CLIMBERS]]))
        near = near[rng.permutation(len(near))[: PRICED // 2]]
        near = near[[pool.known(row) is not None for row in near]]
        if len(near):
            rows, scores = np.concatenate([rows, near]), np.concatenate([scores, promise(near, pool)])
    return rows[np.argmax(scores)]


# --- points as numbers ----------------------------------------------------------------------------------------------


class Coding:
    """Points as rows of indices into the values of each choice. A float without a step is searched in `FINE` steps."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = choices
        self.values = [choice.values() or _fine(choice) for choice in choices]
        self.counts = np.array([len(values) for values in self.values])
        self.ordered = np.array([choice.kind != "of" for choice in choices])
        self._places = [{value: place for place, value in enumerate(values)} for values in self.values]

    def encode(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """[n, choices]"""
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
        """[count, choices]"""
        return rng.integers(self.counts, size=(count, len(self.counts)))

    def mutants(self, rows: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
        """Of each of `rows`, `each` copies with one choice drawn anew, or two."""
        copies = np.repeat(rows, each, axis=0)
        fresh = self.uniform(len(copies), rng)
        places = np.arange(len(copies))
        for redrawn in (places, places[rng.random(len(copies)) < 0.5]):
            which = rng.integers(len(self.choices), size=len(redrawn))
            copies[redrawn, which] = fresh[redrawn, which]
        return copies

    def crossed(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Mixtures of two of `rows`, each choice from either [count, choices]."""
        mothers, fathers = rows[rng.integers(len(rows), size=(2, count))]
        return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)

    def neighbours(self, rows: np.ndarray) -> np.ndarray:
        """All that differ from one of `rows` in one choice: in a categorical anyhow, in a number by a step or two."""
        found = []
        for i, (count, ordered) in enumerate(zip(self.counts, self.ordered, strict=True)):
            for row in rows:
                others = np.array(
                    [j for j in range(count) if j != row[i] and (not ordered or abs(j - row[i]) <= 2)], int
                )
                near = np.repeat(row[None], len(others), axis=0)
                near[:, i] = others
                found.append(near)
        return np.concatenate(found)


def distances(counts: np.ndarray, ordered: np.ndarray) -> list[np.ndarray]:
    """Of each choice, between its values [values, values]: a number's as a share of its range; 1 between categories."""
    tables = []
    for count, number in zip(counts, ordered, strict=True):
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        tables.append(apart / max(count - 1, 1) if number else (apart > 0).astype(float))
    return tables


def _fine(choice: Choice) -> list[float]:
    return [round(float(value), 10) for value in np.linspace(choice.low, choice.high, FINE + 1)]


# --- what is modelled -----------------------------------------------------------------------------------------------


def _relevant(ranks: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most so many trials: the best, and some of the others, evenly over their order."""
    order = np.argsort(ranks, kind="stable")
    if len(order) <= most:
        return np.sort(order)
    best = int(BEST * most)
    others = np.linspace(best, len(order) - 1, most - best).round().astype(int)
    return np.sort(np.concatenate([order[:best], order[others]]))


def cut(values: np.ndarray) -> np.ndarray:
    """Values with the worst ones cut at the quantile `GOOD` and standardised [n]: how bad a bad network is says little
    of where the good ones are, and would be most of the variance."""
    kept = np.minimum(values, np.quantile(values, GOOD))
    deviation = kept.std()
    return (kept - kept.mean()) / deviation if deviation > 0 else np.zeros(len(values))


def scores_of_ranks(values: np.ndarray) -> np.ndarray:
    """Normal scores of the values' ranks [n]: for several objectives, where a small network of a large error may be on
    the front and must not be cut."""
    return ndtri((rankdata(values) - 0.5) / len(values))


@dataclass(frozen=True)
class Hyper:
    """theta: inverse length scale of each choice. weights: shares of single choices, pairs, and all together. noise:
    variance over the signal's."""

    theta: np.ndarray
    weights: np.ndarray
    noise: float


def hyperparameters(
    coding: Coding, points: np.ndarray, values: np.ndarray, target: Callable[[np.ndarray], np.ndarray]
) -> Hyper:
    """Fitted to the first trials up to a number that grows in steps, so that most proposals find them in a cache; which
    does not change them."""
    count = STARTUP
    while count + max(2, int(count * FIT_EVERY)) <= len(points):
        count += max(2, int(count * FIT_EVERY))
    few = _relevant(rankdata(values[:count], method="ordinal"), FIT_POINTS)
    return _fit(
        points[few].tobytes(),
        target(values[:count])[few].tobytes(),
        coding.counts.tobytes(),
        coding.ordered.tobytes(),
    )


@functools.lru_cache(maxsize=64)
def _fit(points: bytes, targets: bytes, counts: bytes, ordered: bytes) -> Hyper:
    """The hyperparameters with the largest posterior density. All arguments are bytes, to be looked up by."""
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
    """Minus the log posterior density of the hyperparameters, less a constant, and its gradient. Mean and variance of
    the signal are at their best values for each of them."""
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
    away = (x - means) / deviations
    return value + 0.5 * away @ away, gradient + away / deviations


def _single(apart: np.ndarray, ordered: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlations by each choice alone [choices, n, m], and their derivatives by log theta."""
    both = [_correlation(table, number, scale) for table, number, scale in zip(apart, ordered, theta, strict=True)]
    return np.array([kernel for kernel, _ in both]), np.array([slope for _, slope in both])


def _correlation(apart: np.ndarray, ordered: bool, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Matérn 5/2 of an ordered choice, exp(-theta) between two categories; and the derivative by log theta."""
    scaled = apart * theta * (np.sqrt(5) if ordered else 1)
    plain = np.exp(-scaled)
    if ordered:
        return (1 + scaled + scaled**2 / 3) * plain, -(scaled**2) / 3 * (1 + scaled) * plain
    return plain, -scaled * plain


class Process:
    """A Gaussian process with a constant mean. `pending` points [k, choices] are known to be measured but not how: they
    lower the spread, and leave the mean as it is (as when each is told what the model expects)."""

    def __init__(
        self, coding: Coding, points: np.ndarray, targets: np.ndarray, hyper: Hyper, pending: np.ndarray
    ) -> None:
        self._shares = hyper.weights
        # The correlations are sums over the choices of tables at the two points' values, so products of matrices.
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
        """Between the process's own points and `rows` [n, choices]: [points, n]."""
        choices = rows.shape[1]
        chosen = np.zeros((len(rows), self._tables[0].shape[1]))
        chosen[np.arange(len(rows))[:, None], self._starts + rows] = 1
        total, squares, logarithms = (table @ chosen.T for table in self._tables)
        pairs = (total**2 - squares) / max(choices * (choices - 1), 1)
        return self._shares[0] / choices * total + self._shares[1] * pairs + self._shares[2] * np.exp(logarithms)

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the signal at `rows` [n, choices]: [n] each."""
        kernel = self._kernel(rows)
        half = solve_triangular(self._lower, kernel, lower=True)
        explained = np.einsum("ij,ij->j", half, half)
        mean = self._mean + kernel[: len(self._weights)].T @ self._weights
        return mean, np.sqrt(self._variance * np.maximum(1 - explained, 1e-9))


# --- what is promised -----------------------------------------------------------------------------------------------


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, level: np.ndarray | float) -> np.ndarray:
    """Of normal variables below `level` (broadcast)."""
    z = (level - mean) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))


class VolumePromise:
    """Expected improvement of the hypervolume of candidates in a pool. Only the first objective is uncertain; what is
    known before training counts as it is, and what is measured and smooth, like latency, as a model of its own expects.
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
        self._targets, self._costs = targets, costs  # [t]; [t, k], logarithms
        self._front = front  # [t]
        self._models: dict[int, Process] = {}

    def __call__(self, rows: np.ndarray, pool: Pool) -> np.ndarray:
        """[n], for `rows` that were accepted."""
        known = [pool.known(row) or () for row in rows]
        own = np.array([[np.nan if v is None else np.log(max(v, 1e-12)) for v in values[1:]] for values in known])
        for column in np.flatnonzero(np.isnan(own).any(axis=0)):
            own[:, column] = self._cost_model(int(column)).predict(rows)[0]
        mean, deviation = self._model.predict(rows)
        return volume_improvement(mean, deviation, own, self._targets, self._costs, self._front)

    def _cost_model(self, column: int) -> Process:
        if column not in self._models:
            values = self._costs[:, column]
            chosen = _relevant(np.arange(len(values)), POINTS)
            hyper = hyperparameters(self._coding, self._points, values, lambda v: v - v.mean())
            nothing = self._points[:0]
            self._models[column] = Process(self._coding, self._points[chosen], values[chosen], hyper, nothing)
        return self._models[column]


def volume_improvement(
    mean: np.ndarray,
    deviation: np.ndarray,
    costs: np.ndarray,
    targets: np.ndarray,
    table: np.ndarray,
    front: np.ndarray,
) -> np.ndarray:
    """Expected growth of the volume that is dominated [n], of candidates whose first value is normal and whose `costs`
    [n, k] are exact, over trials with `targets` [t] and costs `table` [t, k]; no other dominates those in `front`."""
    worst = targets.max()
    axes = []  # of each cost, the edges of the cells
    for column, all_of in zip(table[front].T, table.T, strict=True):
        edges = np.unique(np.quantile(column, np.linspace(0, 1, LEVELS), method="nearest"))
        low, high = all_of.min(), all_of.max()
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
    # The part of each cell that lies above the candidate's own costs.
    shares = np.ones((len(mean), len(lows)))
    for k, (_, _, reach) in enumerate(axes):
        shares *= np.clip(highs[None, :, k] - np.maximum(lows[None, :, k], costs[:, None, k]), 0, None) / reach
    gains = expected_improvement(mean[:, None], deviation[:, None], levels[None])
    return np.sum(shares * gains, axis=1)
