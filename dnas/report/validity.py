"""Can I believe it: what limits the numbers of a study, a line each."""

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


@dataclass(frozen=True)
class Check:
    """One line of "Can I believe it". mark: `fine`, `mind` (it limits what the numbers say) or `fact`."""

    mark: str
    line: str
    body: str  # a paragraph a line
    figure: str = ""  # the stem of one that opens with it


def checks(s: Study) -> list[Check]:
    if not s.records:
        return [_split(s)]
    found = [
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
    found.append(_comparison(s))
    return [check for check in found if check is not None]


def _selection(s: Study) -> Check:
    first, rest = METRICS[s.objectives[0]].label, s.objectives[1:]
    body = (
        f"Each trial counts with its {first} after the last epoch, not with the lowest of all epochs. Of equal ones the"
        f" one with the {'lower ' + listed(rest[:1]) if rest and rest[0] != 'params' else 'fewest params'} is named,"
        f" then the earlier. Only trials that ran to the end can be chosen."
    )
    if rest:
        body += (
            f"\nThe search minimised {listed(s.objectives)} alike, and the first of them names the best: which network"
            f" of the front is the right one depends on what {listed(rest)} may cost."
        )
    return Check("fine", f"The best network has the lowest {first} after its last epoch", body)


def _seeds(s: Study) -> Check:
    number = len(s.of("complete"))
    seeds = {tuple(r.seed[:1]) for r in s.retrained if r.test_error is not None}
    body = (
        "Every network was trained once, from one seed (n = 1): another initialisation and another order of the images"
        " would move each error."
    )
    if number > 1:
        body += (
            f" The best of {words.several(number, 'complete trial')} was chosen because its error is low, and part of"
            " that is luck: its validation error is optimistically biased, the more so the more trials there are."
        )
    if seeds:
        body += (
            f" The winners were trained again from {words.several(len(seeds), 'seed')}: their test errors above are"
            " free of that bias."
        )
    else:
        body += " Train the winners again from new seeds, and test them once, before you compare them with anything."
    return Check(
        "mind" if not seeds else "fact",
        "One seed a network" + (", and the best of many is flattered" if number > 1 else ""),
        body + f" Study seed {s.config.get('seed', 'unknown')}; trial i draws from (seed, i).",
    )


def _chance(s: Study) -> Check | None:
    if s.floor is None:
        return None
    complete = [r for r in s.of("complete") if r.val_error is not None]
    inside = [r for r in complete if r.val_error is not None and r.val_error <= s.floor.high and r is not s.best]
    line = f"Chance in {s.floor.size:,} validation images alone: {percent(s.floor.low)} to {percent(s.floor.high)}"
    body = (
        f"The best network's error of {percent(s.floor.error)} has a binomial standard error of"
        f" {100 * s.floor.standard_error:.2f} points and a Wilson 95% interval of {percent(s.floor.low)} to"
        f" {percent(s.floor.high)}: the band in the figure. "
    )
    if len(complete) > 1:
        body += (
            f"{len(inside)} of the {len(complete) - 1} other complete {'network' if len(complete) == 2 else 'networks'}"
            f" {'lies' if len(inside) == 1 else 'lie'} inside it; this study can't tell"
            f" {'that one' if len(inside) == 1 else 'those'} from the best. "
            if inside
            else f"None of the {words.several(len(complete) - 1, 'other complete network')} lies inside it. "
        )
    body += "What the seed of a training adds is not in this interval."
    return Check("mind" if inside else "fact", line, body)


def _split(s: Study) -> Check:
    d = s.data
    sizes = [f"{d[key]:,} {word}" for key, word in _PARTS.items() if isinstance(d.get(key), int)]
    line = "Split: " + (" / ".join(sizes) + " images" if sizes else "its sizes were not written down")
    seed = d.get("split_seed", s.config.get("split_seed", "unknown"))
    body = f"Drawn once, stratified by class, with split seed {seed}, and the same for every trial."
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
            "The test images were not opened",
            "No network was chosen, stopped or judged by them: they can still give an unbiased answer, once.",
        )
    numbers = sorted({r.number for r in [*opened, *tested]})
    return Check(
        "fine" if len(numbers) == 1 else "mind",
        f"The test images were opened for {words.several(len(numbers), 'network')}: "
        + words.joined([f"#{n}" for n in numbers]),
        "After the choice was made on validation. Choosing among the tested networks by test error would spend the test"
        " part.",
    )


def _control(s: Study) -> Check:
    drawn = [record for record in s.records if record.arm == "control"]
    if not drawn and s.config.get("sampler") == "random":
        return Check(
            "fact", "Every network was drawn at random", "So there is no sampler to compare with a control arm."
        )
    if not drawn:
        return Check(
            "mind",
            "There was no control arm (--control 0.15): whether the sampler beats chance is not known",
            "With --control 0.15, 15% of a search's networks are drawn at random, spread evenly over it, and this line"
            " compares them with the sampler's.",
        )
    arms, first = s.arms, s.objectives[0]
    if arms.beats is None or arms.p is None or arms.difference is None or arms.best is None:
        return Check(
            "mind",
            f"Random control: {words.several(len(drawn), 'trial')}, and nothing to compare yet",
            f"Both arms need trials that finished epoch {arms.epoch}: the sampler has {len(arms.sampler)} and the"
            f" control {len(arms.control)}.",
        )
    numbers = f"{arms.beats:.0%} of pairs ({_p(arms.p)}; {len(arms.sampler)} trials against {len(arms.control)})"
    shown = arms.enough and arms.p < 0.05
    if not arms.enough:
        mark, line = "mind", f"Too few trials to tell the sampler from chance: it beats a random trial in {numbers}"
    elif not shown:
        mark, line = "mind", f"The sampler was not shown to beat chance: it beats a random trial in {numbers}"
    elif arms.beats > 0.5:
        mark, line = "fine", f"The sampler beats chance: its trial beats a random one in {numbers}"
    else:
        mark, line = "mind", f"The sampler did worse than chance: its trial beats a random one in {numbers}"
    return Check(mark, line, "\n".join(_control_body(s, arms, first)), "control_arm")


def _control_body(s: Study, arms: ArmComparison, first: str) -> list[str]:
    assert arms.best is not None
    assert arms.difference is not None
    assert arms.detectable is not None
    n, m = len(arms.sampler), len(arms.control)
    unit, factor = METRICS[first].difference_unit, METRICS[first].scale
    when = "the last one, for no trial was stopped early"
    if any(record.epochs_planned > arms.epoch for record in s.records):
        when = "the first at which trials were stopped or paused: all that got there have it, and none was chosen by it"
    means = [sum(part.values()) / len(part) for part in (arms.sampler, arms.control)]
    interval = (
        f"Welch 95% interval {_signed(factor * arms.interval[0])} to {_signed(factor * arms.interval[1])}"
        if arms.interval
        else "no interval: it needs two trials of each arm, and values that differ"
    )
    text = [
        f"Compared is the {METRICS[first].label} after epoch {arms.epoch}, {when}. The sampler's {n} trials have a mean"
        f" of {value(means[0], first)}, the {m} drawn at random {value(means[1], first)}: a difference of"
        f" {_signed(factor * arms.difference)} {unit} ({interval}). Of {words.several(arms.draws, 'trial')}, the best"
        f" of the sampler's has {value(arms.best[0], first)} on average, of the random ones"
        f" {value(arms.best[1], first)}.",
        f"In {arms.beats:.0%} of all pairs of a trial of the sampler's and a random one the sampler's is better, ties"
        " counted as half (Mann and Whitney, two-sided)."
        f" With {n} and {m} trials only a share of 1/2 + 2.80/√(12·{n}·{m}/({n} + {m})) = {arms.detectable:.0%} or more"
        " would be found four times in five"
        + (" (Noether 1987)." if arms.enough else " (Noether 1987), and there is none above 100%: run more trials."),
    ]
    if len(s.objectives) > 1:
        text.append(_control_of_several(s, arms))
    lost = Counter(r.arm for r in s.records if r.state in ("failed", "infeasible") and r.epochs < arms.epoch)
    notes = [
        "A sampler's trials follow from the earlier ones, so they are not independent, and p is an approximation; its"
        " first ones are drawn at random too, and count as its own. Networks given first are in neither arm."
    ]
    if any(record.epochs_planned > arms.epoch for record in s.records):
        notes.append("An early error orders networks only roughly as the last one does.")
    if s.best is not None and s.best.arm == "control":
        notes.append(f"The best network of the study, #{s.best.number}, is one that was drawn at random.")
    if lost["sampler"] or lost["control"]:
        notes.append(
            f"{words.several(lost['sampler'], 'trial')} of the sampler's and {lost['control']} of the control's failed"
            " before that epoch and are not counted."
        )
    return [*text, " ".join(notes)]


def _control_of_several(s: Study, arms: ArmComparison) -> str:
    """With several objectives the trained one alone undersells a sampler that also sought small networks."""
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
        f"The sampler sought low {listed(s.objectives[1:])} too, which the {METRICS[s.objectives[0]].label} alone does"
        f" not show: its median {name} {verb} {value(middles[0], cost)}, the control's {value(middles[1], cost)}. In"
        f" {ahead:.0%} of the pairs its network is no worse in any objective and better in one, in {behind:.0%} the"
        " random one is."
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(p: float) -> str:
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.2g}"


_RULES = {
    "asha": (
        "ASHA",
        "Successive halving: at a rung the best third goes on. The others are paused there, and promoted when further"
        " trials bring them into the best third.",
    ),
    "hyperband": (
        "Hyperband",
        "Several ladders of successive halving side by side, some of which begin late: at a rung the best third of a"
        " ladder goes on, the others are paused, and promoted when further trials bring them into the best third.",
    ),
    "median": (
        "median rule",
        "A trial is stopped for good when its best value so far is worse than the median of what ended trials had on"
        " average by the same epoch.",
    ),
}


def _stopping(s: Study) -> Check:
    rule = str(s.config.get("stopping", "none"))
    if rule == "none":
        return Check("fact", "No early stopping", "Every trial was meant to run through all its epochs.")
    name, body = _RULES.get(rule, (rule, ""))
    stopped, paused = s.of("stopped"), s.of("paused")
    promotions = sum(event["event"] == "promote" for event in s.events)
    pauses = max(sum(event["event"] == "pause" for event in s.events), len(paused))
    said = [f"{words.several(len(stopped), 'trial')} stopped"] if stopped else []
    if pauses:
        said += [words.several(pauses, "pause"), words.several(promotions, "promotion")]
    line = f"Early stopping ({name}): {words.joined(said) if said else 'no trial was stopped'}"
    if len(s.objectives) > 1:
        body += " With several objectives a trial is compared with those of about its own size."
    for word, some, after in (("Stopped", stopped, ""), ("Paused now", paused, ", and may be promoted")):
        when = Counter(record.epochs for record in some)
        if when:
            listed = [f"{number} after {words.several(epochs, 'epoch')}" for epochs, number in sorted(when.items())]
            body += f"\n{word}: {words.joined(listed)}{after}."
    if stopped or paused:
        planned = sum(record.epochs_planned for record in s.records)
        body += (
            " Their errors are those of an unfinished schedule, so they are not on the front, and a late riser among"
            f" them is lost. {sum(record.epochs for record in s.records):,} of {planned:,} epochs were trained."
        )
    return Check("fact", line, body.strip())


def _fidelity(s: Study) -> Check | None:
    """Whether an early error ranks networks as the last one does: what early stopping rests on."""
    found = fidelity(s.curves)
    early = found[(found["epoch"] < found["epoch"].max()) & found["rho"].notna()] if len(found) else found
    if early.empty:
        return None
    rungs = sorted({event["epoch"] for event in s.events if event["event"] == "report" and not event["go_on"]})
    at = early[early["epoch"].isin(rungs)] if rungs else early
    row = (at if len(at) else early).iloc[0 if rungs else len(early) // 2]
    last, n = int(found["epoch"].max()), int(row["n"])
    where = "the first rung" if len(at) and rungs else "half of the schedule"
    bounds = f", 95% interval {row['low']:.2f} to {row['high']:.2f}" if math.isfinite(row["low"]) else ""
    sure = math.isfinite(row["low"]) and row["low"] > 0.5
    return Check(
        "fact" if sure else "mind",
        f"Epoch {int(row['epoch'])}, {where}, ranks networks as epoch {last} does with ρ = {row['rho']:.2f}",
        f"Spearman's rank correlation over {words.several(n, 'complete trial')}{bounds}. 1 is the same order, 0 none."
        " Only trials that went to the end are in it, so where bad ones were stopped it is of networks that are alike.",
        "fidelity",
    )


def _failures(s: Study) -> Check:
    bad = s.of("failed", "infeasible")
    body = _rescued(s)
    if not bad:
        line = "No trial failed"
        text = "None diverged, ran out of memory, took too long, or ended with an error."
        if body:
            line += ", and some were rescued"
            text = "None diverged, took too long, or ended with an error."
        return Check("fine", line, "\n".join([text, *body]))
    reasons = Counter((r.reason or "no reason was written down").partition(":")[0].strip() for r in bad)
    listed = [f"{number} × {reason}" for reason, number in reasons.most_common()]
    text = "They are in the table with the whole reason. A region of the space that fails is one that was not searched."
    known = [f"{reason}: {_FAILURES[reason]}." for reason in reasons if reason in _FAILURES]
    return Check(
        "mind",
        f"{words.several(len(bad), 'trial')} of {len(s.records)} failed: {words.joined(listed)}",
        "\n".join([text, *known, *body]),
    )


# What a search makes of each way to fail.
_FAILURES = {
    "diverged": "a loss was no number; the sampler was told the worst error",
    "timeout": "longer than --timeout allowed; the sampler was told the worst error",
    "out of memory": "even with recomputed activations and the device to itself; networks that need as much were not"
    " proposed again",
    "lost worker": "its process died or froze several times without finishing an epoch",
    "crash": "a signal such as SIGSEGV ended its process twice: native code crashes on this network",
    "error": "an exception; its traceback.txt lies in the trial's folder",
}


def _rescued(s: Study) -> list[str]:
    """Trials that met with an accident and went on, a sentence a kind."""
    found = []
    recomputed = [record for record in s.records if record.recompute]
    if recomputed:
        again = [record for record in recomputed if record.state not in ("failed", "infeasible")]
        found.append(
            f"{words.several(len(recomputed), 'trial')} ran out of memory and went on with recomputed activations,"
            f" which changes no result: {words.several(len(again), 'of them', 'of them')} did not fail again"
            f" ({words.joined([f'#{record.number}' for record in recomputed])})."
        )
    losses = sum(record.losses for record in s.records)
    if losses:
        hit = [f"#{record.number}" for record in s.records if record.losses]
        found.append(
            f"{words.several(losses, 'worker was', 'workers were')} lost; the trials went on from their checkpoints"
            f" ({words.joined(hit)})."
        )
    return found


def _comparison(s: Study) -> Check | None:
    if not len(s.published):
        return None
    return Check(
        "mind",
        "Published points are no like-for-like comparison",
        "They are test errors of the paper's Table 2, after training on all training images for the paper's epochs; the"
        " study's are validation errors after its own recipe.",
    )
