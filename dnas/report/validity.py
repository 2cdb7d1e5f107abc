"""Validity of a search: the limits of its numbers, one line per limit."""

import math
import statistics
from collections import Counter
from dataclasses import dataclass

import numpy as np

from dnas import formatting as words
from dnas.analysis.control import ArmComparison, dominance
from dnas.analysis.metrics import METRICS
from dnas.analysis.progress import fidelity
from dnas.formatting import percent
from dnas.report.data import Study, listed, objective_of, value
from dnas.strategy.state import count_pauses, stop_epochs


@dataclass(frozen=True)
class Check:
    """One line of the section "Validity".

    Attributes:
        mark: `fine`, `mind` (it limits the conclusions) or `fact`.
        line: The line itself.
        body: Explanation that opens with the line, one paragraph per line of text.
        figure: Stem of a figure that opens with the line.
    """

    mark: str
    line: str
    body: str
    figure: str = ""


def checks(s: Study) -> list[Check]:
    if not s.records:
        return [_split(s)]
    results = [
        _selection(s),
        _seeds(s),
        _chance(s),
        _split(s),
        _test(s),
        _control(s),
        _stopping(s),
        _fidelity(s),
        _failures(s),
    ]
    results.append(_comparison(s))
    return [check for check in results if check is not None]


def _selection(s: Study) -> Check:
    first, rest = METRICS[s.objectives[0]].label, s.objectives[1:]
    body = (
        f"Each trial is represented by its {first} after the last epoch, not by the lowest of all epochs. Ties are"
        f" broken by the {'lower ' + listed(rest[:1]) if rest and rest[0] != 'params' else 'number of params'}, then by"
        " the order of the trials. Only trials that ran to the end can be selected."
    )
    if rest:
        body += (
            f"\nThe search minimised {listed(s.objectives)} equally. The best network is named by the first of these;"
            f" which network of the front is the right choice depends on the cost of {listed(rest)}."
        )
    return Check("fine", f"The best network has the lowest {first} after its last epoch", body)


def _seeds(s: Study) -> Check:
    number = len(s.of("complete"))
    seeds = {tuple(r.seed[:1]) for r in s.retrained if r.test_error is not None}
    body = (
        "Every network was trained once, from one seed (n = 1). Another initialisation or order of the images would"
        " change each error."
    )
    if number > 1:
        body += (
            f" The best of {words.several(number, 'complete trial')} was selected by its low error, which is partly"
            " chance: its validation error is optimistically biased, and the bias grows with the number of trials."
        )
    if seeds:
        body += (
            f" The best networks were retrained from {words.several(len(seeds), 'seed')}; their test errors above lack"
            " this bias."
        )
    else:
        body += (
            " Before comparing the best networks with others, retrain them from new seeds and test them once"
            " (`dnas search --retrain-best`)."
        )
    return Check(
        "mind" if not seeds else "fact",
        "One seed per network" + (f"; the best of {number} trials is optimistically biased" if number > 1 else ""),
        body + f" Study seed {s.config.get('seed', 'unknown')}; trial i uses the stream (seed, i).",
    )


def _chance(s: Study) -> Check | None:
    if s.floor is None:
        return None
    complete = [r for r in s.of("complete") if r.val_error is not None]
    inside = [r for r in complete if r.val_error is not None and r.val_error <= s.floor.high and r is not s.best]
    line = f"Sampling error of {s.floor.size:,} validation images: {percent(s.floor.low)} to {percent(s.floor.high)}"
    body = (
        f"The best network's error of {percent(s.floor.error)} has a binomial standard error of"
        f" {100 * s.floor.standard_error:.2f} points and a Wilson 95% interval of {percent(s.floor.low)} to"
        f" {percent(s.floor.high)}, shown as the band in the figure. "
    )
    if len(complete) > 1:
        body += (
            f"{len(inside)} of the {len(complete) - 1} other complete {'network' if len(complete) == 2 else 'networks'}"
            f" {'is' if len(inside) == 1 else 'are'} inside this interval and cannot be distinguished from the best"
            " network by this study. "
            if inside
            else f"None of the {words.several(len(complete) - 1, 'other complete network')} is inside this interval. "
        )
    body += "The interval does not include the variation between training seeds."
    return Check("mind" if inside else "fact", line, body)


def _split(s: Study) -> Check:
    d = s.data
    sizes = [f"{d[key]:,} {word}" for key, word in _PARTS.items() if isinstance(d.get(key), int)]
    line = "Split: " + (" / ".join(sizes) + " images" if sizes else "sizes not recorded")
    seed = d.get("split_seed", s.config.get("split_seed", "unknown"))
    body = f"Drawn once with split seed {seed}, stratified by class, and used by every trial."
    if d.get("subset") is not None:
        body += f" Only {d['subset']:,} of the training files were used."
    body += f" Images: {d.get('size_rule', 'as stored')}; augmentation: {d.get('augmentation', 'unknown')}."
    return Check("fact", line, body)


_PARTS = {"train_size": "training", "val_size": "validation", "test_size": "test"}


def _test(s: Study) -> Check:
    opened = [r for r in s.retrained if r.test_error is not None]
    tested = [r for r in s.records if r.test_error is not None]
    if not opened and not tested:
        return Check(
            "fine",
            "The test images were not used",
            "No network was selected, stopped or evaluated on them, so they can still provide one unbiased estimate.",
        )
    numbers = sorted({r.number for r in [*opened, *tested]})
    return Check(
        "fine" if len(numbers) == 1 else "mind",
        f"The test images were used for {words.several(len(numbers), 'network')}: "
        + words.joined([f"#{n}" for n in numbers]),
        "They were used after the selection on validation images. Selecting among the tested networks by test error"
        " would bias the test error too.",
    )


def _control(s: Study) -> Check:
    drawn = [record for record in s.records if record.arm == "control"]
    if not drawn and s.config.get("sampler") == "random":
        return Check("fact", "Every network was drawn at random", "There is no sampler to compare with a control arm.")
    if not drawn:
        return Check(
            "mind",
            "There is no control arm (--control 0.15), so it is unknown whether the sampler beats random search",
            "With --control 0.15, 15% of the networks are drawn at random, spread evenly over the search, and this line"
            " compares them with those of the sampler.",
        )
    arms, first = s.arms, s.objectives[0]
    if arms.beats is None or arms.p is None or arms.difference is None or arms.best is None:
        return Check(
            "mind",
            f"Random control: {words.several(len(drawn), 'trial')}, not enough for a comparison yet",
            f"Both arms need trials that finished epoch {arms.epoch}: the sampler has {len(arms.sampler)} and the"
            f" control {len(arms.control)}.",
        )
    sizes = f"{len(arms.sampler)} trials against {len(arms.control)}"
    mark = "fine" if arms.clear and arms.beats > 0.5 else "mind"
    line = f"{arms.verdict[:-1]}; {sizes})"
    return Check(mark, line, "\n".join(_control_body(s, arms, first)), "control_arm")


def _control_body(s: Study, arms: ArmComparison, first: str) -> list[str]:
    assert arms.best is not None
    assert arms.difference is not None
    assert arms.detectable is not None
    n, m = len(arms.sampler), len(arms.control)
    unit, factor = METRICS[first].difference_unit, METRICS[first].scale
    when = "the last one, since no trial was stopped early"
    if any(record.epochs_planned > arms.epoch for record in s.records):
        when = "the first at which trials were stopped or paused, so that no trial was selected by this value"
    means = [sum(part.values()) / len(part) for part in (arms.sampler, arms.control)]
    interval = (
        f"Welch 95% interval {_signed(factor * arms.interval[0])} to {_signed(factor * arms.interval[1])}"
        if arms.interval
        else "no interval, which needs two trials of each arm and values that differ"
    )
    text = [
        f"The arms are compared by the {METRICS[first].label} after epoch {arms.epoch}, {when}. The sampler's {n}"
        f" trials have a mean of {value(means[0], first)}, the {m} random trials {value(means[1], first)}: a difference"
        f" of {_signed(factor * arms.difference)} {unit} ({interval}). The best of {words.several(arms.draws, 'trial')}"
        f" has {value(arms.best[0], first)} on average with the sampler, and {value(arms.best[1], first)} at random.",
        f"In {arms.beats:.0%} of all pairs of a sampler trial and a random trial the former is better, with ties"
        " counted as half (Mann-Whitney test, two-sided)."
        f" With {n} and {m} trials, a share of 1/2 + 2.80/√(12·{n}·{m}/({n} + {m})) = {arms.detectable:.0%} or more is"
        " detected with 80% power (Noether 1987)" + ("." if arms.enough else ", which exceeds 100%: run more trials."),
    ]
    if len(s.objectives) > 1:
        text.append(_control_of_several(s, arms))
    lost = Counter(r.arm for r in s.records if r.state in ("failed", "infeasible") and r.epochs < arms.epoch)
    notes = [
        "A sampler's trials depend on the earlier ones, so p is an approximation. Its first trials, which are drawn at"
        " random too, count as its own. Networks named in the space file are in neither arm."
    ]
    if any(record.epochs_planned > arms.epoch for record in s.records):
        notes.append("The order of networks by an early error only approximates their final order.")
    if s.best is not None and s.best.arm == "control":
        notes.append(f"The best network of the study, #{s.best.number}, was drawn at random.")
    if lost["sampler"] or lost["control"]:
        notes.append(
            f"{words.several(lost['sampler'], 'trial')} of the sampler and {lost['control']} of the control arm failed"
            " before that epoch and are not counted."
        )
    return [*text, " ".join(notes)]


def _control_of_several(s: Study, arms: ArmComparison) -> str:
    """Compare the arms in all objectives, because a sampler that also searches for small networks has higher errors."""
    records = {record.number: record for record in s.records}
    rows = [
        [
            [value, *(objective_of(records[number], name) or math.nan for name in s.objectives[1:])]
            for number, value in part.items()
        ]
        for part in (arms.sampler, arms.control)
    ]
    ahead, behind = dominance(np.array(rows[0]), np.array(rows[1]))
    cost = s.objectives[1]
    middles = [statistics.median(row[1] for row in part) for part in rows]
    name, verb = METRICS[cost].label, "are" if METRICS[cost].plural else "is"
    return (
        f"The sampler also minimised {listed(s.objectives[1:])}, which the {METRICS[s.objectives[0]].label} alone does"
        f" not show: its median {name} {verb} {value(middles[0], cost)}, the control's {value(middles[1], cost)}. Its"
        f" network dominates the random one (no worse in any objective and better in one) in {ahead:.0%} of the pairs,"
        f" and is dominated in {behind:.0%}."
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


_RULES = {
    "asha": (
        "ASHA",
        "Successive halving: at each rung the best third continues. The others are paused, and promoted later if they"
        " enter the best third as more trials arrive.",
    ),
    "hyperband": (
        "Hyperband",
        "Several brackets of successive halving with different first rungs: at each rung the best third of a bracket"
        " continues. The others are paused, and promoted later if they enter the best third as more trials arrive.",
    ),
    "median": (
        "median rule",
        "A trial is stopped permanently if its best value so far is worse than the median of the running averages of"
        " finished trials at the same epoch.",
    ),
}


def _stopping(s: Study) -> Check:
    rule = str(s.config.get("stopping", "none"))
    if rule == "none":
        return Check("fact", "No early stopping", "Every trial was planned to run for all its epochs.")
    name, body = _RULES.get(rule, (rule, ""))
    stopped, paused = s.of("stopped"), s.of("paused")
    pauses, promotions = count_pauses(s.events)
    pauses = max(pauses, len(paused))
    counts = [f"{words.several(len(stopped), 'trial')} stopped"] if stopped else []
    if pauses:
        counts += [words.several(pauses, "pause"), words.several(promotions, "promotion")]
    line = f"Early stopping ({name}): {words.joined(counts) if counts else 'no trial was stopped'}"
    if len(s.objectives) > 1:
        body += " With several objectives a trial is compared with networks of about the same size."
    for word, records, after in (("Stopped", stopped, ""), ("Paused now", paused, ", and may be promoted")):
        by_epoch = Counter(record.epochs for record in records)
        if by_epoch:
            parts = [f"{number} after {words.several(epochs, 'epoch')}" for epochs, number in sorted(by_epoch.items())]
            body += f"\n{word}: {words.joined(parts)}{after}."
    if stopped or paused:
        planned = sum(record.epochs_planned for record in s.records)
        body += (
            " Their errors belong to an unfinished schedule, so they are not on the front, and slow learners among them"
            f" may be missed. {sum(record.epochs for record in s.records):,} of {planned:,} epochs were trained."
        )
    return Check("fact", line, body.strip())


def _fidelity(s: Study) -> Check | None:
    """Check that early errors rank networks like final errors, which early stopping relies on."""
    rhos = fidelity(s.curves)
    early = rhos[(rhos["epoch"] < rhos["epoch"].max()) & rhos["rho"].notna()] if len(rhos) else rhos
    if early.empty:
        return None
    rungs = sorted(stop_epochs(s.events, whole_log=True))
    at_rungs = early[early["epoch"].isin(rungs)] if rungs else early
    row = (at_rungs if len(at_rungs) else early).iloc[0 if rungs else len(early) // 2]
    last, n = int(rhos["epoch"].max()), int(row["n"])
    position = "the first rung" if len(at_rungs) and rungs else "half of the schedule"
    bounds = f", 95% interval {row['low']:.2f} to {row['high']:.2f}" if math.isfinite(row["low"]) else ""
    is_clear = math.isfinite(row["low"]) and row["low"] > 0.5
    return Check(
        "fact" if is_clear else "mind",
        f"Rank correlation of epoch {int(row['epoch'])} ({position}) with epoch {last}: ρ = {row['rho']:.2f}",
        f"Spearman's rank correlation over {words.several(n, 'complete trial')}{bounds}; 1 means the same order, 0 no"
        " relation. Only trials that ran to the end are included; if poor trials were stopped, the remaining networks"
        " are similar, which lowers the correlation.",
        "fidelity",
    )


def _failures(s: Study) -> Check:
    bad = s.of("failed", "infeasible")
    body = _rescued(s)
    if not bad:
        line = "No trial failed"
        text = "None diverged, ran out of memory, took too long, or ended with an error."
        if body:
            line += "; some recovered from an error"
            text = "None diverged, took too long, or ended with an error."
        return Check("fine", line, "\n".join([text, *body]))
    reasons = Counter((r.reason or "no reason was recorded").partition(":")[0].strip() for r in bad)
    listed = [f"{number} × {reason}" for reason, number in reasons.most_common()]
    text = "The table shows the full reasons. Regions of the space whose networks fail were not searched."
    known = [f"{reason}: {_FAILURES[reason]}." for reason in reasons if reason in _FAILURES]
    return Check(
        "mind",
        f"{words.several(len(bad), 'trial')} of {len(s.records)} failed: {words.joined(listed)}",
        "\n".join([text, *known, *body]),
    )


# Explanation of each reason to fail.
_FAILURES = {
    "diverged": "the loss was not finite; the sampler received the worst possible error",
    "timeout": "longer than --timeout; the sampler received the worst possible error",
    "out of memory": "even with recomputed activations and exclusive use of the device; networks that need as much"
    " memory were no longer proposed",
    "lost worker": "its process died or froze several times without finishing an epoch",
    "crash": "a signal such as SIGSEGV ended its process twice: native code crashes on this network",
    "error": "an exception; see traceback.txt in the trial's folder",
}


def _rescued(s: Study) -> list[str]:
    """Describe trials that recovered from an error, one sentence for each kind of error."""
    sentences = []
    recomputed = [record for record in s.records if record.recompute]
    if recomputed:
        succeeded = [record for record in recomputed if record.state not in ("failed", "infeasible")]
        sentences.append(
            f"{words.several(len(recomputed), 'trial')} ran out of memory and continued with recomputed activations,"
            f" which does not change results; {len(succeeded)} of these did not fail again"
            f" ({words.joined([f'#{record.number}' for record in recomputed])})."
        )
    losses = sum(record.losses for record in s.records)
    if losses:
        affected = [f"#{record.number}" for record in s.records if record.losses]
        sentences.append(
            f"{words.several(losses, 'worker was', 'workers were')} lost; the trials resumed from their checkpoints"
            f" ({words.joined(affected)})."
        )
    return sentences


def _comparison(s: Study) -> Check | None:
    if not len(s.published):
        return None
    return Check(
        "mind",
        "Published points are not directly comparable",
        "They are test errors from Table 2 of the paper, after training on all training images with the paper's"
        " schedule. The errors of this study are validation errors after its own recipe.",
    )
