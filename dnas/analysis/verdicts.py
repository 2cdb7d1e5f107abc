"""Conclusions of comparisons in sentences. The numbers come from `dnas.analysis.paired`."""

import math

from dnas.analysis.metrics import METRICS
from dnas.analysis.paired import Comparison, Effects
from dnas.formatting import joined, p_value, points, several

CONCLUDED = ("fewer errors", "more errors")


def sentence(found: Comparison, effects: Effects) -> str:
    """Direction, size in percentage points, interval, adjusted p and pairs; where nothing can be concluded, that."""
    if not found.seeds:
        return f"Nothing can be said of {found.name}: no seed has all that it is compared from."
    text = _numbers(found, effects)
    if found.verdict == "too few seeds":
        against = f"{found.name} against {effects.base}" if found.kind == "variant" else found.name
        return f"{against}: {text}. Nothing follows from it: {_law(effects)}, and it has {len(found.seeds)}."
    fewer, more, unknown = _subject(found, effects)
    also = (
        f" In this fraction of the design it can't be told from {joined(list(found.aliases))}." if found.aliases else ""
    )
    if found.verdict in CONCLUDED:
        return f"{fewer if found.verdict == 'fewer errors' else more}: {text}.{also}"
    said = f"{unknown}: {text}.{also}"
    if not any(found.differences):
        return f"{said} No pair differed."
    low, high = found.interval
    if low > 0 or high < 0:
        said += " The interval is of this comparison alone; after correction for all of them it is no evidence."
    if math.isfinite(found.detectable):
        said += (
            f" That is no proof of no effect: one smaller than {_size(found.detectable)} points would be missed more"
            " often than one time in five."
        )
    return said


def _subject(found: Comparison, effects: Effects) -> tuple[str, str, str]:
    """Beginning of the sentence for fewer errors, more errors, and no conclusion."""
    name, base = found.name, effects.base
    if found.kind == "interaction":
        return (
            f"{name}: together they make fewer errors than their effects alone add up to",
            f"{name}: together they make more errors than their effects alone add up to",
            f"{name}: whether their effects add up can't be told",
        )
    if found.kind == "main effect":
        return (
            f"{name} makes fewer errors, averaged over the other factors",
            f"{name} makes more errors, averaged over the other factors",
            f"{name}: no difference can be told, averaged over the other factors",
        )
    return (
        f"{name} makes fewer errors than {base}",
        f"{name} makes more errors than {base}",
        f"{name} can't be told from {base}",
    )


def _numbers(found: Comparison, effects: Effects) -> str:
    text = f"{points(found.mean)} percentage points of {METRICS[effects.measure].label}, "
    if len(found.seeds) == 1:
        return text + "of one pair, which has no interval"
    text += f"the mean of {several(len(found.seeds), 'pair')} ({interval_words(found, effects)}"
    if found.verdict == "too few seeds":  # no differences could have made its p small
        return text + ")"
    text += f"; {p_value(found.p_holm)}"
    number = len(effects.comparisons)
    if raced(effects):
        return text + (f" in the race, corrected for {number} comparisons)" if number > 1 else " in the race)")
    return text + (f" after Holm's correction for {number} comparisons)" if number > 1 else ")")


def raced(effects: Effects) -> bool:
    """True if seeds were added while comparisons were undecided (`dnas.analysis.sequential`)."""
    return any(found.race_interval is not None for found in effects.comparisons)


def interval_words(found: Comparison, effects: Effects) -> str:
    """Of a race: the interval that holds although seeds were added until it was decided."""
    low, high = (points(end) if math.isfinite(end) else ("−∞" if end < 0 else "+∞") for end in found.interval)
    return f"{level(effects)} interval {'of the race ' if found.race_interval else ''}{low} to {high}"


def level(effects: Effects) -> str:
    """Of the intervals: 95% for an alpha of 0.05."""
    return f"{100 * (1 - effects.alpha):.3g}%"


def needed(effects: Effects) -> str:
    """3 comparisons need 7 pairs at 5%, and there are 4; where they have different numbers: 4 to 6."""
    counts = [len(found.seeds) for found in effects.comparisons] or [0]
    least, most = min(counts), max(counts)
    there = str(least) if least == most else f"{least} to {most}"
    return f"{_law(effects)}, and there {'is' if there == '1' else 'are'} {there}"


def _law(effects: Effects) -> str:
    number, pairs = len(effects.comparisons), several(effects.pairs_needed, "pair")
    verb = f"need{'s' if number == 1 else ''}"
    if raced(effects):
        return f"the race of {several(number, 'comparison')} decides none before {pairs} at {100 * effects.alpha:.3g}%"
    return f"{several(number, 'comparison')} {verb} {pairs} at {100 * effects.alpha:.3g}%"


def answer(effects: Effects, sizes: bool = True, untold: bool = True) -> str:
    """All comparisons in one sentence: who makes fewer errors, who more, and who can't be told from the base.

    sizes: with the mean differences. untold: beside findings, with what can't be told.
    """
    found = sorted((c for c in effects.comparisons if c.seeds), key=lambda c: c.mean)
    if not found:
        return "Nothing can be compared yet"
    if all(c.verdict == "too few seeds" for c in found):
        return f"Too few seeds to conclude: {needed(effects)}"
    parts = []
    for verdict in CONCLUDED:
        some = [f"{c.name} ({points(c.mean)} points)" if sizes else c.name for c in found if c.verdict == verdict]
        if some:
            parts.append(f"{joined(some)} {'make' if len(some) > 1 else 'makes'} {verdict}")
    unknown = joined([c.name for c in effects.comparisons if c.verdict not in CONCLUDED] or [""])
    if found[0].kind != "variant":
        parts = [
            joined(
                [f"{c.name} ({points(c.mean)} points)" if sizes else c.name for c in found if c.verdict in CONCLUDED]
            )
        ]
        if not parts[0]:
            return "No effect can be told from zero"
        return f"Told from zero: {parts[0]}"
    if not parts:
        return f"{unknown} can't be told from {effects.base}"
    rest = f"; of {unknown} this study can't tell" if unknown and untold else ""
    return f"{joined(parts)} than {effects.base}{rest}"


def short(effects: Effects, letters: int = 88) -> str:
    """`answer`, or where it is too long for a title less of it, or only how many there are of each."""
    for text in (answer(effects), answer(effects, sizes=False), answer(effects, untold=False)):
        if len(text) <= letters:
            return text
    count = {verdict: sum(c.verdict == verdict for c in effects.comparisons) for verdict in CONCLUDED}
    rest = len(effects.comparisons) - sum(count.values())
    number = several(len(effects.comparisons), "comparison")
    if not any(count.values()):
        return f"None of {number} can be told from zero"
    return f"Of {number}: {count['fewer errors']} with fewer errors, {count['more errors']} with more, {rest} untold"


def _size(difference: float) -> str:
    return f"{100 * abs(difference):.2f}"
