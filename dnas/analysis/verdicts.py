"""What may be concluded from a comparison, and what not, in a sentence; `dnas.analysis.effects` has the numbers."""

import math

from dnas.analysis.effects import Comparison, Effects
from dnas.wording import joined, p_value, points, several

MEASURES = {"val_error": "validation error", "test_error": "test error"}
CONCLUDED = ("fewer errors", "more errors")


def sentence(found: Comparison, effects: Effects) -> str:
    """Direction, size in percentage points, interval, adjusted p and pairs; where nothing can be concluded, that."""
    if not found.seeds:
        return f"Nothing can be said of {found.name}: no seed has all that it is compared from."
    text = _numbers(found, effects)
    if found.verdict == "too few seeds":
        return f"Too few seeds to conclude: {needed(effects)}. {_subject(found, effects)[2]}: {text}."
    fewer, more, unknown = _subject(found, effects)
    if found.verdict in CONCLUDED:
        return f"{fewer if found.verdict == 'fewer errors' else more}: {text}."
    said = f"{unknown}: {text}."
    if not any(found.differences):
        return f"{said} No pair differed."
    low, high = found.t_interval
    if low > 0 or high < 0:
        said += " The interval is of this comparison alone; after correction for all of them it is no evidence."
    if math.isfinite(found.detectable):
        said += (
            f" That is no proof of no effect: one smaller than {_size(found.detectable)} points would be missed more"
            " often than one time in five."
        )
    return said


def _subject(found: Comparison, effects: Effects) -> tuple[str, str, str]:
    """How the sentence begins where there are fewer errors, more, or no telling."""
    name, base = found.name, effects.base
    if found.kind == "interaction":
        return (
            f"{name}: together they make fewer errors than their effects alone add up to",
            f"{name}: together they make more errors than their effects alone add up to",
            f"{name}: whether their effects add up can't be told",
        )
    if found.kind == "main effect":
        return (
            f"{name} makes fewer errors, whatever the other factors",
            f"{name} makes more errors, whatever the other factors",
            f"{name}: no difference can be told",
        )
    return (
        f"{name} makes fewer errors than {base}",
        f"{name} makes more errors than {base}",
        f"{name} can't be told from {base}",
    )


def _numbers(found: Comparison, effects: Effects) -> str:
    text = f"{points(found.mean)} percentage points of {MEASURES[effects.measure]}, "
    if len(found.seeds) == 1:
        return text + "of one pair, which has no interval"
    text += (
        f"the mean of {several(len(found.seeds), 'pair')} ({interval_words(found, effects)}; {p_value(found.p_holm)}"
    )
    number = len(effects.comparisons)
    return text + (f" after Holm's correction for {number} comparisons)" if number > 1 else ")")


def interval_words(found: Comparison, effects: Effects) -> str:
    low, high = found.t_interval
    return f"{level(effects)} interval {points(low)} to {points(high)}"


def level(effects: Effects) -> str:
    """Of the intervals: 95% for an alpha of 0.05."""
    return f"{100 * (1 - effects.alpha):.3g}%"


def needed(effects: Effects) -> str:
    """3 comparisons need 7 pairs at 5%, and there are 4"""
    number = len(effects.comparisons)
    need = f"{several(number, 'comparison')} need{'s' if number == 1 else ''} {several(effects.pairs_needed, 'pair')}"
    return f"{need} at {100 * effects.alpha:.3g}%, and there {'is' if effects.pairs == 1 else 'are'} {effects.pairs}"


def answer(effects: Effects) -> str:
    """All comparisons in one sentence, short enough for a title: who makes fewer errors, more, or can't be told."""
    by = {
        verdict: [c for c in effects.comparisons if c.verdict == verdict]
        for verdict in ("fewer errors", "more errors", "cannot tell", "too few seeds")
    }
    if not effects.comparisons or not any(c.seeds for c in effects.comparisons):
        return "Nothing can be compared yet"
    if len(by["too few seeds"]) == len(effects.comparisons):
        return f"Too few seeds to conclude: {needed(effects)}"
    parts = []
    for verdict in CONCLUDED:
        if by[verdict]:
            verb = "make" if len(by[verdict]) > 1 else "makes"
            parts.append(f"{joined([f'{c.name} ({points(c.mean)} points)' for c in by[verdict]])} {verb} {verdict}")
    unknown = [c.name for c in (*by["cannot tell"], *by["too few seeds"])]
    beside = "" if effects.comparisons[0].kind != "variant" else f" than {effects.base}"
    if not parts:
        if effects.comparisons[0].kind != "variant":
            return "No effect can be told from zero"
        return f"{joined(unknown)} can't be told from {effects.base}"
    return joined(parts) + beside + (f"; of {joined(unknown)} this study can't tell" if unknown else "")


def short(effects: Effects, letters: int = 88) -> str:
    """`answer`, or where it is too long for a title how many there are of each."""
    text = answer(effects)
    if len(text) <= letters:
        return text
    count = {verdict: sum(c.verdict == verdict for c in effects.comparisons) for verdict in CONCLUDED}
    rest = len(effects.comparisons) - sum(count.values())
    if not any(count.values()):
        return f"None of {several(len(effects.comparisons), 'comparison')} can be told from zero"
    return (
        f"Of {several(len(effects.comparisons), 'comparison')} {count['fewer errors']} made fewer errors,"
        f" {count['more errors']} more, {rest} can't be told"
    )


def _size(difference: float) -> str:
    return f"{100 * abs(difference):.2f}"
