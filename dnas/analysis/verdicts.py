"""Conclusions of comparisons in sentences. The numbers come from `dnas.analysis.paired`."""

import math

from dnas.analysis.paired import Comparison, Effects
from dnas.formatting import joined, p_value, several

IMPROVED, IMPAIRED = ("fewer errors", "better"), ("more errors", "worse")
CONCLUDED = (*IMPROVED, *IMPAIRED)


def sentence(comparison: Comparison, effects: Effects) -> str:
    """State direction, size, interval, adjusted p and pairs, or why nothing can be concluded."""
    if not comparison.seeds:
        return f"{comparison.name} cannot be compared: no seed has all the runs that the comparison needs."
    text = _numbers(comparison, effects)
    if comparison.verdict == "too few seeds":
        against = f"{comparison.name} against {effects.base}" if comparison.kind == "variant" else comparison.name
        needed_pairs = f"{_requirement(effects)}, and it has {len(comparison.seeds)}"
        return f"{against}: {text}. Too few seeds to conclude: {needed_pairs}."
    fewer, more, unknown = _subject(comparison, effects)
    also = ""
    if comparison.aliases:
        also = f" In this fraction of the design it cannot be distinguished from {joined(list(comparison.aliases))}."
    if comparison.verdict in CONCLUDED:
        return f"{fewer if comparison.verdict in IMPROVED else more}: {text}.{also}"
    verdict = f"{unknown}: {text}.{also}"
    if not any(comparison.differences):
        return f"{verdict} No pair differed."
    low, high = comparison.interval
    if low > 0 or high < 0:
        verdict += " The interval is for this comparison alone. Corrected for all comparisons, it is not evidence."
    if math.isfinite(comparison.detectable):
        verdict += (
            f" This does not rule out an effect: one smaller than {_size(comparison, effects)} would be missed"
            " more often than one time in five."
        )
    return verdict


def _subject(comparison: Comparison, effects: Effects) -> tuple[str, str, str]:
    """Return the beginning of the sentence for an improvement, the contrary, and no conclusion."""
    name, base = comparison.name, effects.base
    improved, impaired = _verb(effects, IMPROVED), _verb(effects, IMPAIRED)
    if comparison.kind == "interaction":
        improved, impaired = _verb(effects, IMPROVED, several=True), _verb(effects, IMPAIRED, several=True)
        return (
            f"{name}: together they {improved} than their effects alone add up to",
            f"{name}: together they {impaired} than their effects alone add up to",
            f"{name}: it cannot be decided whether their effects add up",
        )
    if comparison.kind == "main effect":
        return (
            f"{name} {improved}, averaged over the other factors",
            f"{name} {impaired}, averaged over the other factors",
            f"{name}: no difference can be detected, averaged over the other factors",
        )
    return (
        f"{name} {improved} than {base}",
        f"{name} {impaired} than {base}",
        f"{name} cannot be distinguished from {base}",
    )


def _verb(effects: Effects, verdicts: tuple[str, str], several: bool = False) -> str:
    """Return "makes fewer errors" or "is better" for `IMPROVED`, and their contraries for `IMPAIRED`."""
    if effects.metric.is_error:
        return f"{'make' if several else 'makes'} {verdicts[0]}"
    return f"{'are' if several else 'is'} {verdicts[1]}"


def _numbers(comparison: Comparison, effects: Effects) -> str:
    metric = effects.metric
    unit = "percentage points of" if metric.unit == "%" else "of"
    text = f"{metric.difference(comparison.mean)} {unit} {metric.label}, "
    if len(comparison.seeds) == 1:
        return text + "of one pair, which has no interval"
    text += f"the mean of {several(len(comparison.seeds), 'pair')} ({interval_words(comparison, effects)}"
    if comparison.verdict == "too few seeds":  # p cannot be small with this number of pairs
        return text + ")"
    text += f"; {p_value(comparison.p_holm)}"
    number = len(effects.comparisons)
    if raced(effects):
        return text + (f" in the race, corrected for {number} comparisons)" if number > 1 else " in the race)")
    return text + (f" after Holm's correction for {number} comparisons)" if number > 1 else ")")


def raced(effects: Effects) -> bool:
    """True if seeds were added while comparisons were undecided (`dnas.analysis.sequential`)."""
    return any(comparison.race_interval is not None for comparison in effects.comparisons)


def interval_words(comparison: Comparison, effects: Effects) -> str:
    """Return the interval in words: for a race, the one that remains valid although seeds were added until then."""
    if comparison.race_interval is None and not any(map(math.isfinite, comparison.interval)):
        return "no interval"
    text = effects.metric.difference
    low, high = (text(end) if math.isfinite(end) else ("−∞" if end < 0 else "+∞") for end in comparison.interval)
    return f"{level(effects)} interval {'of the race ' if comparison.race_interval else ''}{low} to {high}"


def level(effects: Effects) -> str:
    """Return the confidence level of the intervals: "95%" for an alpha of 0.05."""
    return f"{100 * (1 - effects.alpha):.3g}%"


def needed(effects: Effects) -> str:
    """Return "3 comparisons need 7 pairs at 5%, and there are 4", or "4 to 6" if their numbers of pairs differ."""
    counts = [len(comparison.seeds) for comparison in effects.comparisons] or [0]
    fewest, largest = min(counts), max(counts)
    available = str(fewest) if fewest == largest else f"{fewest} to {largest}"
    return f"{_requirement(effects)}, and there {'is' if available == '1' else 'are'} {available}"


def _requirement(effects: Effects) -> str:
    number, pairs = len(effects.comparisons), several(effects.pairs_needed, "pair")
    verb = f"need{'s' if number == 1 else ''}"
    if raced(effects):
        return f"the race of {several(number, 'comparison')} decides none before {pairs} at {100 * effects.alpha:.3g}%"
    return f"{several(number, 'comparison')} {verb} {pairs} at {100 * effects.alpha:.3g}%"


def answer(effects: Effects, sizes: bool = True, inconclusive: bool = True) -> str:
    """Summarise all comparisons in one sentence: better, worse, and no difference from the base.

    sizes: include the mean differences. inconclusive: after the conclusions, list the comparisons without one.
    """
    compared = best_first(effects)
    if not compared:
        return "Nothing can be compared yet"
    if all(c.verdict == "too few seeds" for c in compared):
        return f"Too few seeds to conclude: {needed(effects)}"
    named = {c.name: f"{c.name} ({effects.metric.amount(c.mean)})" if sizes else c.name for c in compared}
    parts = []
    for verdicts in (IMPROVED, IMPAIRED):
        concluded = [named[c.name] for c in compared if c.verdict in verdicts]
        if concluded:
            parts.append(f"{joined(concluded)} {_verb(effects, verdicts, several=len(concluded) > 1)}")
    unknown = [c.name for c in effects.comparisons if c.verdict not in CONCLUDED]
    if compared[0].kind != "variant":
        parts = [joined([named[c.name] for c in compared if c.verdict in CONCLUDED])]
        if not parts[0]:
            return "No effect can be distinguished from zero"
        return f"Different from zero: {parts[0]}"
    if not parts:
        return f"{joined(unknown)} cannot be distinguished from {effects.base}"
    rest = f"; {joined(unknown)} {'are' if len(unknown) > 1 else 'is'} inconclusive" if unknown and inconclusive else ""
    return f"{joined(parts)} than {effects.base}{rest}"


def best_first(effects: Effects) -> list[Comparison]:
    """Return the comparisons that have a pair, the largest improvement first."""
    return sorted((c for c in effects.comparisons if c.seeds), key=lambda c: c.mean * effects.metric.sign)


def short(effects: Effects, letters: int = 88) -> str:
    """Shorten `answer` to the length of a title: without sizes, without inconclusive comparisons, or counts alone."""
    for text in (answer(effects), answer(effects, sizes=False), answer(effects, inconclusive=False)):
        if len(text) <= letters:
            return text
    improved, impaired = (sum(c.verdict in verdicts for c in effects.comparisons) for verdicts in (IMPROVED, IMPAIRED))
    rest = len(effects.comparisons) - improved - impaired
    number = several(len(effects.comparisons), "comparison")
    if not improved + impaired:
        return f"None of {number} can be distinguished from zero"
    if effects.metric.is_error:
        return f"Of {number}: {improved} with fewer errors, {impaired} with more, {rest} inconclusive"
    return f"Of {number}: {improved} better, {impaired} worse, {rest} inconclusive"


def _size(comparison: Comparison, effects: Effects) -> str:
    return effects.metric.amount(comparison.detectable).lstrip("+")
