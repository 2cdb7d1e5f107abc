"""Designs of experiments: which combinations of levels are trained.

A two-level regular fraction is written as in Box, Hunter and Hunter, "Statistics for Experimenters" (1978), chapter 12:
factors are letters to multiply, the base's level is +1, so that every word of the defining relation is +1 at the base,
and the base is in each fraction.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnas.errors import InputError

DESIGNS = ("one-at-a-time", "factorial", "fractional", "list")
TIMES = " × "

Levels = Mapping[str, Sequence[Any]]  # of each factor, the base's first
Word = frozenset[str]  # a product of factors


def one_at_a_time(levels: Levels) -> Iterator[dict[str, Any]]:
    """The base, then each other level of each factor alone."""
    base = {name: values[0] for name, values in levels.items()}
    yield base
    for name, values in levels.items():
        for value in values[1:]:
            yield base | {name: value}


def factorial(levels: Levels) -> Iterator[dict[str, Any]]:
    """Every combination, the base first; the first factor varies fastest."""
    names = list(levels)
    for values in itertools.product(*(levels[name] for name in reversed(names))):
        cell = dict(zip(reversed(names), values, strict=True))
        yield {name: cell[name] for name in names}


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction. generators: factor -> the product of others that settles its level."""

    factors: tuple[str, ...]
    generators: Mapping[str, Word]

    @property
    def words(self) -> tuple[Word, ...]:
        """The defining relation without I: all products of its generating words, the shortest first."""
        own = [frozenset({name}) | word for name, word in self.generators.items()]
        found = {_product(some) for number in range(1, len(own) + 1) for some in itertools.combinations(own, number)}
        return tuple(sorted(found, key=lambda word: (len(word), self._order(word))))

    @property
    def resolution(self) -> int:
        """Length of the shortest word: at 3 a main effect is confounded with an interaction of two factors, at 4 such
        interactions with one another, at 5 neither."""
        return min(len(word) for word in self.words)

    @property
    def cells(self) -> int:
        return int(2 ** (len(self.factors) - len(self.generators)))

    def aliases(self, effect: Word) -> tuple[Word, ...]:
        """What cannot be told from `effect`: its products with the words, the shortest first."""
        found = {effect ^ word for word in self.words}
        return tuple(sorted(found, key=lambda word: (len(word), self._order(word))))

    def confounded(self) -> list[str]:
        """The main effects and interactions of two factors, each set of them that cannot be told apart in a line; a
        main effect's with what it is confounded with, however long."""
        lines, seen = [], set[Word]()
        mains = [frozenset({name}) for name in self.factors]
        pairs = [frozenset(pair) for pair in itertools.combinations(self.factors, 2)]
        for effect in (*mains, *pairs):
            if effect in seen:
                continue
            found = self.aliases(effect)
            least = len(found[0])
            shown = [alias for alias in found if len(alias) <= max(2, least if len(effect) == 1 else 0)]
            seen |= {effect, *shown}
            if shown:
                lines.append(" = ".join(self.say(word) for word in (effect, *shown)))
        return lines

    def relation(self) -> str:
        """`I = A × B × C`, with the factors' names."""
        return " = ".join(["I", *(self.say(word) for word in self.words)])

    def say(self, word: Word) -> str:
        return TIMES.join(sorted(word, key=self.factors.index))

    def _order(self, word: Word) -> tuple[int, ...]:
        return tuple(sorted(self.factors.index(name) for name in word))

    def combinations(self, levels: Levels) -> Iterator[dict[str, Any]]:
        """The cells of the fraction, the base first."""
        free = [name for name in self.factors if name not in self.generators]
        for signs in factorial(dict.fromkeys(free, (1, -1))):
            for name, word in self.generators.items():
                signs[name] = 1
                for one in word:
                    signs[name] *= signs[one]
            yield {name: levels[name][0 if signs[name] > 0 else 1] for name in self.factors}


def _product(words: Sequence[Word]) -> Word:
    found: Word = frozenset()
    for word in words:
        found ^= word
    return found


def check_two_levels(levels: Levels) -> None:
    """`InputError` where a regular two-level fraction of these factors can't be."""
    more = {name: len(values) for name, values in levels.items() if len(values) != 2}
    if more:
        many = ", ".join(f"{name} has {number}" for name, number in more.items())
        raise InputError(
            f"a fractional design needs two levels of each factor, but {many}; keep two of them, or use"
            ' design = "factorial" or "one-at-a-time".'
        )
    if len(levels) < 3:
        raise InputError(
            f"a fractional design needs at least 3 factors, but got {len(levels)}: a half of fewer has no main effect"
            ' of its own; use design = "factorial".'
        )


def best_fraction(factors: Sequence[str], halvings: int) -> Fraction:
    """The 2^-halvings fraction of the highest resolution, and of these the one with the fewest short words (least
    aberration: Fries and Hunter 1980); the first of equals. `InputError` where none keeps main effects apart."""
    free, settled = tuple(factors[: len(factors) - halvings]), tuple(factors[len(factors) - halvings :])
    if 2 ** len(free) <= len(factors):
        most = next(p for p in range(len(factors), -1, -1) if 2 ** (len(factors) - p) > len(factors))
        raise InputError(
            f"{2 ** len(free)} variants can't tell {len(factors)} main effects apart; the smallest fraction is"
            f" 1/{2**most}, {2 ** (len(factors) - most)} variants."
        )
    products = [frozenset(some) for number in range(len(free), 1, -1) for some in itertools.combinations(free, number)]

    def rank(fraction: Fraction) -> list[int]:
        lengths = [len(word) for word in fraction.words]
        return [lengths.count(length) for length in range(1, len(factors) + 1)]

    candidates = (
        Fraction(tuple(factors), dict(zip(settled, words, strict=True)))
        for words in itertools.combinations(products, halvings)
    )
    return min(candidates, key=rank)


def read_generators(factors: Sequence[str], texts: Sequence[str]) -> Fraction:
    """The fraction of generators such as `dropout = bottleneck * compression`."""
    generators: dict[str, Word] = {}
    for text in texts:
        name, equals, product = (part.strip() for part in text.partition("="))
        words = [part.strip() for part in product.replace("×", "*").split("*")]
        unknown = [word for word in (name, *words) if word not in factors]
        if not equals or unknown:
            raise InputError(
                f"{text!r} must read `FACTOR = FACTOR * FACTOR` with the names of factors: {', '.join(factors)}."
            )
        if name in generators:
            raise InputError(f"{text!r}: {name} has a generator already.")
        if name in words or len(set(words)) < len(words):
            raise InputError(f"{text!r} names a factor twice.")
        generators[name] = frozenset(words)
    for name, word in generators.items():
        if both := word & generators.keys():
            raise InputError(f"the generator of {name} names {', '.join(sorted(both))}, which has one itself.")
    fraction = Fraction(tuple(factors), generators)
    if not fraction.words:
        raise InputError("generators must name at least one, such as `C = A * B`.")
    if fraction.resolution < 3:
        short = " = ".join(["I", fraction.say(fraction.words[0])])
        raise InputError(
            f"the generators imply {short}, so that main effects can't be told apart: resolution"
            f" {fraction.resolution}, and at least 3 is needed; leave the generators out, and the best are chosen."
        )
    return fraction
