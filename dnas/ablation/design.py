"""Designs of experiments: the combinations of factor levels that an ablation trains.

Regular two-level fractions follow Box, Hunter and Hunter, "Statistics for Experimenters" (1978), chapter 12. Factors
are letters that are multiplied, and the base's level is +1. Every word of the defining relation is therefore +1 at the
base, and each fraction contains the base.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnas.errors import InputError

DESIGNS = ("one-at-a-time", "factorial", "fractional", "list")
TIMES = " × "

Levels = Mapping[str, Sequence[Any]]  # levels of each factor, the base's first
Word = frozenset[str]  # a product of factors


def one_at_a_time(levels: Levels) -> Iterator[dict[str, Any]]:
    """Yield the base, then each other level of each factor alone."""
    base = {name: values[0] for name, values in levels.items()}
    yield base
    for name, values in levels.items():
        for value in values[1:]:
            yield base | {name: value}


def factorial(levels: Levels) -> Iterator[dict[str, Any]]:
    """Yield every combination, the base first. The first factor varies fastest."""
    names = list(levels)
    for values in itertools.product(*(levels[name] for name in reversed(names))):
        cell = dict(zip(reversed(names), values, strict=True))
        yield {name: cell[name] for name in names}


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction of a factorial design.

    Attributes:
        factors: Names of the factors.
        generators: Product of other factors that determines the level of a factor, by factor.
    """

    factors: tuple[str, ...]
    generators: Mapping[str, Word]

    @property
    def words(self) -> tuple[Word, ...]:
        """The defining relation without I: all products of its generating words, the shortest first."""
        generating = [frozenset({name}) | word for name, word in self.generators.items()]
        subsets = (
            subset for size in range(1, len(generating) + 1) for subset in itertools.combinations(generating, size)
        )
        return self._sorted({_product(subset) for subset in subsets})

    @property
    def resolution(self) -> int:
        """Length of the shortest word.

        At resolution 3 a main effect is confounded with an interaction of two factors, at 4 such interactions are
        confounded with one another, and at 5 neither is the case.
        """
        return min(len(word) for word in self.words)

    @property
    def cells(self) -> int:
        return int(2 ** (len(self.factors) - len(self.generators)))

    def aliases(self, effect: Word) -> tuple[Word, ...]:
        """Return the effects that are confounded with `effect` (its products with the words), the shortest first."""
        return self._sorted({effect ^ word for word in self.words})

    def confounded(self) -> list[str]:
        """Describe each set of confounded main effects and two-factor interactions, one line per set.

        The shortest aliases of a main effect are listed even if they are longer than two factors.
        """
        lines, seen = [], set[Word]()
        mains = [frozenset({name}) for name in self.factors]
        pairs = [frozenset(pair) for pair in itertools.combinations(self.factors, 2)]
        for effect in (*mains, *pairs):
            if effect in seen:
                continue
            aliases = self.aliases(effect)
            shortest = len(aliases[0])
            shown = [alias for alias in aliases if len(alias) <= max(2, shortest if len(effect) == 1 else 0)]
            seen |= {effect, *shown}
            if shown:
                lines.append(" = ".join(self.text(word) for word in (effect, *shown)))
        return lines

    def relation(self) -> str:
        """Return the defining relation with the names of the factors, such as `I = A × B × C`."""
        return " = ".join(["I", *(self.text(word) for word in self.words)])

    def text(self, word: Word) -> str:
        """Return a product of factors as text, such as `A × B`."""
        return TIMES.join(sorted(word, key=self.factors.index))

    def _sorted(self, words: set[Word]) -> tuple[Word, ...]:
        """Return words by length, then by the order of their factors."""
        return tuple(sorted(words, key=lambda word: (len(word), sorted(self.factors.index(name) for name in word))))

    def combinations(self, levels: Levels) -> Iterator[dict[str, Any]]:
        """Yield the cells of the fraction, the base first."""
        free = [name for name in self.factors if name not in self.generators]
        for signs in factorial(dict.fromkeys(free, (1, -1))):
            for name, word in self.generators.items():
                signs[name] = 1
                for factor in word:
                    signs[name] *= signs[factor]
            yield {name: levels[name][0 if signs[name] > 0 else 1] for name in self.factors}


def _product(words: Sequence[Word]) -> Word:
    product: Word = frozenset()
    for word in words:
        product ^= word
    return product


def check_two_levels(levels: Levels) -> None:
    """Raise `InputError` if there is no regular two-level fraction of these factors."""
    counts = {name: len(values) for name, values in levels.items() if len(values) != 2}
    if counts:
        listed = ", ".join(f"{name} has {number}" for name, number in counts.items())
        raise InputError(
            f"a fractional design needs two levels of each factor, but {listed}; keep two of them, or use"
            ' design = "factorial" or "one-at-a-time".'
        )
    if len(levels) < 3:
        raise InputError(
            f"a fractional design needs at least 3 factors, but got {len(levels)}: in half of a smaller design every"
            ' main effect is confounded with another one; use design = "factorial".'
        )


def best_fraction(factors: Sequence[str], halvings: int) -> Fraction:
    """Return the 2^-halvings fraction with the highest resolution and, among those, the least aberration.

    Least aberration means the fewest short words (Fries and Hunter 1980). Ties go to the first fraction.

    Raises:
        InputError: If no such fraction keeps the main effects apart.
    """
    free, generated = tuple(factors[: len(factors) - halvings]), tuple(factors[len(factors) - halvings :])
    if 2 ** len(free) <= len(factors):
        possible = next(p for p in range(len(factors), -1, -1) if 2 ** (len(factors) - p) > len(factors))
        raise InputError(
            f"{2 ** len(free)} variants cannot separate {len(factors)} main effects; the smallest fraction is"
            f" 1/{2**possible}, {2 ** (len(factors) - possible)} variants."
        )
    products = [frozenset(names) for size in range(len(free), 1, -1) for names in itertools.combinations(free, size)]

    def rank(fraction: Fraction) -> list[int]:
        lengths = [len(word) for word in fraction.words]
        return [lengths.count(length) for length in range(1, len(factors) + 1)]

    candidates = (
        Fraction(tuple(factors), dict(zip(generated, words, strict=True)))
        for words in itertools.combinations(products, halvings)
    )
    return min(candidates, key=rank)


def read_generators(factors: Sequence[str], texts: Sequence[str]) -> Fraction:
    """Parse generators such as `dropout = bottleneck * compression`, and return their fraction."""
    generators: dict[str, Word] = {}
    for text in texts:
        name, equals, product = (part.strip() for part in text.partition("="))
        names = [part.strip() for part in product.replace("×", "*").split("*")]
        unknown = [factor for factor in (name, *names) if factor not in factors]
        if not equals or unknown:
            raise InputError(
                f"{text!r} must read `FACTOR = FACTOR * FACTOR` with the names of factors: {', '.join(factors)}."
            )
        if name in generators:
            raise InputError(f"{text!r}: {name} has a generator already.")
        if name in names or len(set(names)) < len(names):
            raise InputError(f"{text!r} names a factor twice.")
        generators[name] = frozenset(names)
    for name, word in generators.items():
        if both := word & generators.keys():
            raise InputError(f"the generator of {name} names {', '.join(sorted(both))}, which has a generator itself.")
    fraction = Fraction(tuple(factors), generators)
    if not fraction.words:
        raise InputError("generators must contain at least one generator, such as `C = A * B`.")
    if fraction.resolution < 3:
        short = " = ".join(["I", fraction.text(fraction.words[0])])
        raise InputError(
            f"the generators imply {short}, which confounds main effects with each other: resolution"
            f" {fraction.resolution}, and at least 3 is needed; remove generators to use the best fraction."
        )
    return fraction
