"""Validity of an ablation: the limits of its conclusions, one line per limit."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dnas.ablation.results import Ablation, is_external
from dnas.analysis.verdicts import level, needed, raced
from dnas.formatting import count, joined, several
from dnas.report.nas_checklist import confounders
from dnas.report.validity import Check
from dnas.study.record import TrialRecord


def checks(a: Ablation, records: Sequence[TrialRecord]) -> list[Check]:
    if is_external(a.config):
        results = [_seeds(a), _own_pairing(a), _correction(a), _noise(a)]
        if a.folder.exists:
            results += [_left_out(a, records), _failures(records)]
        return [check for check in results if check is not None]
    results = [
        _seeds(a),
        _pairing(a, records),
        _equal(a),
        _aliases(a),
        _correction(a),
        _noise(a),
        _split(a, records),
        _selection(a, records),
        _recipe(a, records),
        _left_out(a, records),
        _failures(records),
        _same_machine(records),
    ]
    return [check for check in results if check is not None]


def _seeds(a: Ablation) -> Check:
    e = a.effects
    number, pairs = len(e.comparisons), max((len(comparison.seeds) for comparison in e.comparisons), default=0)
    min_p = 2.0 ** (1 - pairs)
    if not pairs:
        body = "No seed has complete runs of both the base and another variant yet."
    elif raced(e):
        max_seeds = a.config.get("ablation", {}).get("most", "unknown")
        body = (
            f"The number of seeds was not fixed beforehand (--seeds auto): seeds were added to a comparison only while"
            f" it was undecided, up to {max_seeds}. Repeated tests at {100 * e.alpha:g}% would be wrong far more often."
            " Here each look spends only part of that error (a group-sequential sign-flip test with error spending, Lan"
            " and DeMets 1983), so p and the intervals are valid whenever a comparison stopped. An effect whose"
            " comparison stopped early is overestimated: rely on the interval rather than on the mean."
        )
    else:
        body = (
            f"With {several(pairs, 'pair')} the smallest possible p of the exact test is 2^(1−{pairs}) = {min_p:.3g}."
            f" Holm's correction multiplies the smallest p of {several(number, 'comparison')} by {number}:"
            f" {min(1.0, number * min_p):.3g}, which must not exceed {e.alpha:g}."
        )
    for comparison in e.comparisons:
        if math.isfinite(comparison.detectable):
            body += (
                f"\n{comparison.name}: {several(len(comparison.seeds), 'pair')} detect a difference of"
                f" {a.metric.amount(comparison.detectable).lstrip('+')} with 80% power."
            )
    if a.earlier:
        counts = joined([str(count) for count in a.earlier])
        text = f"Seeds were added after results with {counts} seeds were available: p is too small"
        body += (
            "\nThe test is exact for a number of seeds that was fixed beforehand. Adding seeds after a look at the"
            " results raises the rate of false findings; --seeds auto adds seeds by a rule that accounts for this."
        )
        return Check("mind", text, body)
    if e.can_conclude:
        return Check("fine", f"Enough seeds for a conclusion: {needed(e)}", body)
    return Check("mind", f"Too few seeds for a conclusion: {needed(e)}", body)


def _of_pairs(a: Ablation, records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, TrialRecord]]:
    """Return (run of the base, run of the variant) of each pair that is compared."""
    by = {(record.params.get("group"), record.seed[0]): record for record in records if record.seed}
    return [
        (by[a.base, seed], by[comparison.name, seed])
        for comparison in a.effects.comparisons
        for seed in comparison.seeds
        if (a.base, seed) in by and (comparison.name, seed) in by
    ]


def _pairing(a: Ablation, records: Sequence[TrialRecord]) -> Check | None:
    pairs = _of_pairs(a, records)
    if not pairs:
        return None
    differing = [
        (before, after)
        for before, after in pairs
        if list(before.seed) != list(after.seed)
        or any(before.data.get(key) != after.data.get(key) for key in ("fingerprint", "split_seed", "train_size"))
    ]
    body = (
        "The seed determines the validation split, the order of the images, their augmentation and the random stream"
        " of the initial weights. Variation that both runs of a pair share cancels in their difference. Networks of"
        " different shapes draw different weights from the same stream, so part of the variation remains."
        f" Checked in the records of {several(len(pairs), 'pair')}: seed, split seed, data fingerprint and number of"
        " training images."
    )
    if differing:
        keys = joined([str(after.params.get("key")) for _, after in differing[:5]])
        return Check("mind", f"{several(len(differing), 'pair')} of {len(pairs)} differ in seed or data: {keys}", body)
    return Check("fine", f"Both runs of each of {several(len(pairs), 'pair')} have the same seed, split and data", body)


def _own_pairing(a: Ablation) -> Check | None:
    pairs = sum(len(comparison.seeds) for comparison in a.effects.comparisons)
    if not pairs:
        return None
    return Check(
        "fact",
        f"Both runs of each of {several(pairs, 'pair')} have the same seed",
        f"{'dnas passed the seed on, and' if a.folder.exists else 'The file names the seeds; dnas'} cannot see what a"
        " seed determines. The runs of one seed are a pair if the seed sets"
        " the data split, the order of the data and the initial values in all variants, and if only the factors differ:"
        " not the training budget, the machine or the data.",
    )


def _equal(a: Ablation) -> Check:
    sizes = [variant.params for variant in a.networks]
    between = f"from {count(min(sizes))} to {count(max(sizes))} params"
    if a.equal in ("", "none", "nothing"):
        if max(sizes) == min(sizes):
            return Check("fact", "All variants have the same number of params", "No width had to be solved for.")
        return Check(
            "mind",
            f"Sizes were not held equal: the variants have {between}",
            'Differences may be due to size. With equal = "params" in the study file the width of each variant is'
            " solved so that all variants have the same size.",
        )
    known = [(variant.name, variant.residual) for variant in a.networks if variant.residual is not None]
    others = [(name, miss) for name, miss in known if name != a.base]
    if not others:
        return Check("mind", f"Equal {a.equal} was requested, but no residual was recorded", "")
    tolerance = float(a.config.get("ablation", {}).get("tolerance", 0.01))
    worst, largest = max(others, key=lambda deviation: abs(deviation[1]))
    target = "the base's estimated training time" if a.equal == "seconds" else f"the base's {a.equal}"
    body = "\n".join(f"{name}: {_signed(miss)} of {target}" for name, miss in others)
    if a.equal == "seconds":
        body += f"\nThe numbers of epochs were chosen for equal time; the variants have {between}."
    line = f"Equal {a.equal}: the largest residual is {_signed(largest)} ({worst})"
    kept = abs(largest) <= tolerance
    if a.equal == "seconds" and not a.config.get("ablation", {}).get("timed_kernels"):
        line = "Equal seconds were estimated from other steps than the study trained"
        body += (
            "\nThis study was planned by a version of dnas that timed the plain modules, although training used the"
            f" kernels {a.config.get('kernels', 'plain')}. The training times may differ; see the seconds of the runs."
        )
        return Check("mind", line, body)
    return Check("fine" if kept else "mind", f"{line}, {'within' if kept else 'above'} {100 * tolerance:g}%", body)


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}%".replace("-", "\u2212")


def _aliases(a: Ablation) -> Check | None:
    """List the effects that a fractional design confounds."""
    table = a.config.get("ablation", {})
    if "relation" not in table:
        return None
    aliases = table.get("aliases") or []
    lines = [str(one) for one in (aliases.values() if isinstance(aliases, dict) else aliases)]
    return Check(
        "mind",
        f"A fraction of the factorial design, of resolution {table.get('resolution', 'unknown')}",
        f"Defining relation: {table['relation']}. The effects in each line are confounded:\n" + "\n".join(lines),
    )


def _correction(a: Ablation) -> Check:
    e = a.effects
    number = len(e.comparisons)
    line = f"p is exact, and corrected for {several(number, 'comparison')}" if number > 1 else "p is exact"
    body = (
        "Two-sided sign-flip test: without a difference, the sign of each pair would be random, so the mean is compared"
        " with the means under all sign patterns. No distribution is assumed."
    )
    if raced(e):
        body += (
            f" Bonferroni's correction divides {100 * e.alpha:g}% among the comparisons, so that their intervals"
            " hold simultaneously. Main effects and interactions are not tested, since the comparisons determine the"
            " number of seeds."
        )
        return Check("fact", line, body)
    if number > 1:
        body += (
            " Holm's correction limits the probability of any false finding among all comparisons with the base to"
            f" {100 * e.alpha:g}%."
        )
    body += (
        f" The {level(e)} intervals apply to each comparison alone. They are computed by the t distribution, which"
        " assumes normal differences, and by bootstrap-t, which resamples the pairs."
    )
    if a.factorial is not None and a.factorial.comparisons:
        body += (
            f" The design's {several(len(a.factorial.comparisons), 'effect')} (main effects and interactions) are"
            " corrected separately."
        )
    return Check("fact", line, body)


def _noise(a: Ablation) -> Check | None:
    e = a.effects
    if not math.isfinite(e.noise):
        return None
    d = a.config.get("data", {})
    size = d.get("val_size" if e.metric.key == "val_error" else "test_size")
    value = "error" if e.metric.is_error else e.metric.label
    body = f"The standard deviation of the base's {value} over seeds, shown as the band in the forest plot. Smaller"
    body += " differences cannot be detected by a single run of each variant."
    if isinstance(size, int) and size:
        body += f" One image of {size:,} is {100 / size:.2f} points."
    noise = e.metric.amount(e.noise).lstrip("+")
    return Check("fact", f"The {value} of {a.base} varies by {noise} between seeds", body)


def _split(a: Ablation, records: Sequence[TrialRecord]) -> Check:
    d = a.config.get("data", {})
    names = {"train_size": "training", "val_size": "validation", "test_size": "test"}
    sizes = " / ".join(f"{d[key]:,} {word}" for key, word in names.items() if isinstance(d.get(key), int))
    splits = sorted({record.data["split_seed"] for record in records if record.data.get("split_seed") is not None})
    line = f"Split: {sizes} images" if sizes else "Split: sizes not recorded"
    if len(splits) > 1:
        line += f", drawn separately for each of {len(splits)} seeds"
    body = f"Stratified by class. Split seeds: {', '.join(map(str, splits)) or 'unknown'}."
    if d.get("subset") is not None:
        body += f" Only {d['subset']:,} of the training files were used."
    body += f" Images: {d.get('size_rule', 'as stored')}; augmentation: {d.get('augmentation', 'unknown')}."
    return Check("fact", line, body)


def _selection(a: Ablation, records: Sequence[TrialRecord]) -> Check:
    body = "Each run is represented by its error after the last epoch, not by the lowest of all epochs."
    if a.metric.key == "test_error":
        return Check(
            "fact",
            "Measured on the test images, after training on the validation images too",
            f"{body} Selecting a variant by this table means selecting on the test set.",
        )
    opened = [record for record in records if record.test_error is not None]
    if opened:
        return Check("mind", f"The test images were used by {several(len(opened), 'run')}", body)
    return Check("fine", "Measured on validation images; the test images were not used", body)


def _recipe(a: Ablation, records: Sequence[TrialRecord]) -> Check | None:
    known = [record.recipe for record in records if record.recipe]
    if not known:
        return None
    keys = sorted({key for recipe in known for key in recipe})
    differ = [key for key in keys if len({repr(recipe.get(key)) for recipe in known}) > 1]
    requested = {key.removeprefix("recipe.") for variant in a.networks for key in variant.changed}
    extra = [key for key in differ if key not in requested and (key, a.equal) != ("epochs", "seconds")]
    body = "The recipe was not tuned for each variant. Some variants may be better with another learning rate or more"
    body += " epochs."
    if extra:
        return Check("mind", f"The recipes differ in {joined(extra)}, which is not a factor of the study", body)
    if differ == ["epochs"] and a.equal == "seconds":
        return Check("fact", "One recipe, except for the epochs, which were chosen for equal training time", body)
    if differ:
        return Check("fact", f"One recipe, except for {joined(differ)}, as defined by the study", body)
    epochs = {record.epochs_planned for record in records}
    length = f", {several(epochs.pop(), 'epoch')}" if len(epochs) == 1 else ""
    return Check("fact", f"One recipe for all variants{length}", body)


def missing(a: Ablation, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return one row per planned run without an error: key, variant, seed, state, why."""
    record_of = {record.params.get("key"): record for record in records}
    rows = []
    for run in a.config.get("runs", []):
        record = record_of.get(run["key"])
        if record is not None and record.state == "complete":
            continue
        state = record.state if record is not None else "not started"
        reason = record.reason if record is not None else None
        rows.append(
            {"key": run["key"], "variant": run["group"], "seed": run["seed"][0], "state": state, "why": reason or state}
        )
    return rows


def _left_out(a: Ablation, records: Sequence[TrialRecord]) -> Check:
    rows = missing(a, records)
    total = len(a.config.get("runs", []))
    if not rows:
        return Check("fine", f"All {total} runs are complete", "Every seed has a run of the base and of each variant.")
    base = sorted({row["seed"] for row in rows if row["variant"] == a.base})
    body = "\n".join(f"{row['key']}: {row['why']}" for row in rows[:20])
    if len(rows) > 20:
        body += f"\nand {len(rows) - 20} more, in the table of all runs."
    if base:
        seeds = f"seed{'s' * (len(base) > 1)} {joined(list(map(str, base)))}"
        body += f"\nThe run of the base is missing, so {seeds} cannot be used in any comparison."
    value = "error" if a.metric.is_error else a.metric.label
    verb, their = ("has", "its pair is") if len(rows) == 1 else ("have", "their pairs are")
    return Check("mind", f"{several(len(rows), 'run')} of {total} {verb} no {value}; {their} left out", body)


def _failures(records: Sequence[TrialRecord]) -> Check | None:
    bad = [record for record in records if record.state in ("failed", "infeasible")]
    if not records:
        return None
    if not bad:
        return Check(
            "fine", "No run failed", "None diverged, ran out of memory, took too long, or ended with an error."
        )
    reasons = Counter((r.reason or "no reason was recorded").partition(":")[0].strip() for r in bad)
    by = Counter(str(record.params.get("group")) for record in bad)
    counts = joined([f"{number} × {reason}" for reason, number in reasons.most_common()])
    body = f"By variant: {joined([f'{name} {number}' for name, number in by.most_common()])}. A variant that fails from"
    body += " some seeds looks better than it is, since only successful runs are compared."
    return Check("mind", f"{several(len(bad), 'run')} of {len(records)} failed: {counts}", body)


def _same_machine(records: Sequence[TrialRecord]) -> Check | None:
    if not records:
        return None
    differences = confounders(records)
    if not differences:
        return Check("fine", "All runs used one host, device type, commit and version of each library", "")
    body = "\n".join(f"{name}: {', '.join(values)}" for name, values in differences.items())
    return Check("mind", f"The runs used different {joined(list(differences))}", body)
