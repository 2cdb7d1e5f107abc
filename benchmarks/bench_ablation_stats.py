"""Validity of an ablation's statistics: coverage, error rates, power, and the savings of `--seeds auto`.

    python benchmarks/bench_ablation_stats.py > benchmarks/results/ablation_stats.md

Runs `dnas.analysis.intervals`, `dnas.analysis.paired` and `dnas.analysis.sequential` on simulated differences with
fixed seeds. Prints Markdown.
"""

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy
from scipy import special, stats

from dnas.analysis import sequential as race
from dnas.analysis.intervals import bootstrap_interval, holm, sign_flip_p, t_interval
from dnas.analysis.paired import detectable_difference

Shape = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, Shape] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails (t, 3 degrees)": lambda rng, size: rng.standard_t(3, size=size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1,
    "whole images (normal, sd 1 image, rounded)": lambda rng, size: np.round(rng.normal(size=size)),
    "whole images (sd 2)": lambda rng, size: np.round(2 * rng.normal(size=size)),
}
SPENDING: dict[str, Callable[[float, float], float]] = {  # (t, level) -> share of the level
    "t": lambda t, level: t,
    "t^1.5": lambda t, level: t**1.5,
    "t^2": lambda t, level: t**2,
    "t^3": lambda t, level: t**3,
    "Pocock-like": lambda t, level: math.log(1 + (math.e - 1) * t),
    "O'Brien-Fleming-like": lambda t, level: (
        2 * float(stats.norm.sf(stats.norm.ppf(1 - level / 2) / math.sqrt(t))) / level
    ),
}


def percent(share: float, number: int) -> str:
    """Format a share in percent with its standard error."""
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / number):.1f}"


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def covered(intervals: Sequence[tuple[float, float]], true: float = 0.0) -> float:
    return float(np.mean([low <= true <= high for low, high in intervals]))


def coverage(number: int) -> None:
    head("differences", "pairs", "bootstrap-t (ours)", "Student's t", "percentile", "BCa", "width of ours over t's")
    for name, shape in SHAPES.items():
        for pairs in (5, 6, 7, 8, 12, 20):
            draws = shape(np.random.default_rng(pairs), (number, pairs))
            ours, students = [bootstrap_interval(d) for d in draws], [t_interval(d) for d in draws]
            others = []
            for method in ("percentile", "BCa"):
                some = draws[: number // 4]
                some = some[np.ptp(some, axis=1) > 0]  # scipy's BCa fails if all values are equal
                found = stats.bootstrap(
                    (some,), np.mean, axis=-1, n_resamples=999, batch=50, method=method, rng=np.random.default_rng(0)
                ).confidence_interval
                others.append(covered(list(zip(found.low, found.high, strict=True))))
            widths = [np.median([high - low for low, high in some]) for some in (ours, students)]
            row(
                name,
                pairs,
                percent(covered(ours), number),
                f"{100 * covered(students):.1f}",
                *(f"{100 * share:.1f}" for share in others),
                f"{widths[0] / widths[1]:.2f}",
            )


def error_rates(number: int) -> None:
    head("errors of a run", "comparisons", "pairs", "any false verdict", "of t at 5%, not corrected")
    for name in list(SHAPES)[:4]:
        for comparisons, pairs in ((1, 6), (1, 8), (3, 6), (3, 7), (3, 10), (6, 8), (6, 12)):
            rng = np.random.default_rng(comparisons)
            ours, naive = 0, 0
            for _ in range(number):
                runs = SHAPES[name](rng, (pairs, comparisons + 1))
                differences = (runs[:, 1:] - runs[:, :1]).T
                adjusted = holm([sign_flip_p(d) for d in differences])
                ours += min(p for p in adjusted if p is not None) <= 0.05
                naive += not all(low <= 0 <= high for low, high in map(t_interval, differences))
            row(name, comparisons, pairs, percent(ours / number, number), f"{100 * naive / number:.1f}")


def power(number: int) -> None:
    head(
        "comparisons",
        "pairs",
        "detectable, in sd of a difference",
        "found there",
        "by the plain formula",
        "found there",
    )
    for comparisons in (1, 3, 6):
        for pairs in (6, 7, 8, 9, 10, 12, 16):
            size, cells = detectable_difference(1.0, pairs, comparisons), []
            critical = stats.t.ppf(1 - 0.025 / comparisons, pairs - 1)
            plain = float(special.nctdtrinc(pairs - 1, 0.2, critical)) / math.sqrt(pairs)
            draws = np.random.default_rng(pairs).normal(size=(number if pairs < 16 else number // 4, pairs))
            for shift in (size, plain) if size < math.inf else ():
                found = float(np.mean([sign_flip_p(d + shift) <= 0.05 / comparisons for d in draws]))
                cells += [f"{shift:.2f}", percent(found, len(draws))]
            row(comparisons, pairs, *(cells or ["none", "–", "–", "–"]))


def peeking(number: int) -> None:
    head("differences", "most", "race", "t interval after each pair from 5", "sign-flip p <= 5% after each pair")
    for name in list(SHAPES)[:2]:
        for most in (8, 12, 16):
            draws = SHAPES[name](np.random.default_rng(most), (number, most))
            ours = np.mean([race.stop(d, 0.05, most).decided for d in draws])
            some = draws[: number // 4]
            peeks = [any(not low <= 0 <= high for low, high in (t_interval(d[:n]) for n in looks(most))) for d in some]
            flips = [any(sign_flip_p(d[:n]) <= 0.05 for n in looks(most)) for d in some[: len(some) // 4]]
            row(name, most, percent(float(ours), number), f"{100 * np.mean(peeks):.1f}", f"{100 * np.mean(flips):.1f}")


def looks(most: int) -> Iterator[int]:
    return iter(range(5, most + 1))


def spending(number: int) -> None:
    shifts = (0.0, 0.8, 1.2, 1.6, 2.5)
    head("most", "comparisons", "spent by t of the most", *(f"shift {shift:g}" for shift in shifts))
    original_spent = race.spent
    for most, comparisons in ((12, 1), (12, 3), (16, 3)):
        draws = np.random.default_rng(5).normal(size=(number, most))
        level = 0.05 / comparisons
        for name, function in SPENDING.items():
            race.spent = lambda pairs, most, function=function, level=level: function(pairs / most, level)
            cells = []
            for shift in shifts:
                ends = [race.stop(d + shift, level, most) for d in draws]
                cells.append(f"{100 * np.mean([e.decided for e in ends]):.1f}, {np.mean([e.pairs for e in ends]):.1f}")
            row(most, comparisons, name, *cells)
        cells = [f"{100 * np.mean([sign_flip_p(d + s) <= level for d in draws]):.1f}, {most}" for s in shifts]
        row(most, comparisons, f"one look, at {most}", *cells)
    race.spent = original_spent


def race_intervals(number: int) -> None:
    head("differences", "shift", "pairs at the end", "decided", "interval covers", "Student's at the end covers")
    for name in list(SHAPES)[:4]:
        for shift in (0.0, 1.0, 2.0):
            draws = SHAPES[name](np.random.default_rng(9), (number, 12)) + shift
            if "skewed" in name:  # a difference of two such errors
                draws -= SHAPES[name](np.random.default_rng(10), (number, 12))
            found = [race.run_race(d, 1, 0.05, 12) for d in draws]
            students = [t_interval(d[: r.pairs]) for d, r in zip(draws, found, strict=True)]
            row(
                name,
                f"{shift:g}",
                f"{np.mean([r.pairs for r in found]):.1f}",
                f"{100 * np.mean([r.decided for r in found]):.1f}",
                percent(covered([r.interval for r in found], shift), number),
                f"{100 * covered(students, shift):.1f}",
            )


def studies(number: int) -> None:
    """Simulate studies of three variants, each shifted by a multiple of the sd of a difference."""
    head(
        "shifts", "most", "pairs with auto", "found with auto", "any false", "found with all pairs, Holm", "Bonferroni"
    )
    for shifts in ((0, 0, 0), (0, 0, 2), (1, 1, 1), (1, 2, 3)):
        for most in (9, 12):
            rng, used, found, false, fixed, plain = np.random.default_rng(most), 0, 0, 0, 0, 0
            real = sum(shift > 0 for shift in shifts)
            for _ in range(number):
                runs = rng.normal(size=(most, 4))
                differences = (runs[:, 1:] - runs[:, :1]).T / math.sqrt(2) + np.array(shifts)[:, None]
                ends = [race.stop(d, 0.05 / 3, most) for d in differences]
                used += sum(end.pairs for end in ends)
                found += sum(end.decided for end, shift in zip(ends, shifts, strict=True) if shift)
                false += any(end.decided for end, shift in zip(ends, shifts, strict=True) if not shift)
                raw = [sign_flip_p(d) for d in differences]
                adjusted = holm([*raw])
                fixed += sum(p <= 0.05 for p, shift in zip(adjusted, shifts, strict=True) if shift and p is not None)
                plain += sum(p <= 0.05 / 3 for p, shift in zip(raw, shifts, strict=True) if shift)
            row(
                ", ".join(map(str, shifts)),
                most,
                f"{used / number / 3:.1f}",
                f"{100 * found / number / real:.1f}" if real else "–",
                percent(false / number, number) if real < 3 else "–",
                *(f"{100 * some / number / real:.1f}" if real else "–" for some in (fixed, plain)),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--simulations",
        type=int,
        default=2000,
        help="simulations per row, fewer if the page says so (default: 2000)",
    )
    number = parser.parse_args().simulations
    print(
        f"""# Validity of an ablation's statistics

    python benchmarks/bench_ablation_stats.py > benchmarks/results/ablation_stats.md

{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, scipy \
{scipy.__version__}, {time.strftime("%Y-%m-%d")}; fixed seeds.
All numbers are percentages unless another unit is given, ± the standard error of the simulation.

## Coverage of the 95% intervals

{number} simulations per row. Percentile and BCa are scipy's, with 999 resamples, on a quarter of the simulations.
"""
    )
    coverage(number)
    print(
        f"""
## False verdicts without a difference

All variants equal the base. The error of a run has the distribution in the first column, and all variants are compared
with the same runs of the base. Sign-flip p with Holm, at 5%; {number} studies per row.
"""
    )
    error_rates(number)
    print(
        f"""
## Smallest detectable effect

Normal differences, shifted by `detectable_difference` at 80% power. A difference is found if p is at or below 5%
divided by the number of comparisons. The plain formula is noncentral t at that level, without regard to the discrete
levels of signs. {number} simulations per row, a quarter of them for 16 pairs.
"""
    )
    power(number)
    print(
        f"""
## Testing after each pair

No difference, one comparison, at most the given number of pairs; {number} simulations per row for the race, a quarter
of them for t, and a sixteenth for p.
"""
    )
    peeking(number)
    print(
        f"""
## Spending of the level

Percentage found, and the mean number of pairs at the end. Normal differences, shifts in their sd; {number // 8}
simulations each.
"""
    )
    spending(number // 8)
    print(f"\n## Intervals of the race\n\nOne comparison, at most 12 pairs; {number // 8} simulations per row.\n")
    race_intervals(number // 8)
    print(
        f"""
## A study with `--seeds auto`

Three variants with shifts in sd of a difference, and one base for all; {number // 4} studies per row. Pairs: the mean
per comparison.
"""
    )
    studies(number // 4)


if __name__ == "__main__":
    main()
