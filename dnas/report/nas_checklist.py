"""Best-practice checklist for an ablation, answered from its records.

The checklist is that of Lindauer and Hutter, "Best Practices for Scientific Research on Neural Architecture Search",
JMLR 21, 2020. Questions that the records do not answer are left open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dnas.ablation.results import Ablation
from dnas.analysis.verdicts import needed
from dnas.formatting import duration, joined, several
from dnas.report.tables import changed
from dnas.study.record import TrialRecord

SOURCE = "https://jmlr.org/papers/v21/20-056.html"


@dataclass(frozen=True)
class Practice:
    """One of the fourteen best practices. answer: yes, no, not applicable, or not shown (by the records)."""

    number: int
    text: str
    answer: str
    evidence: str


def checklist(a: Ablation, records: Sequence[TrialRecord]) -> list[Practice]:
    """Return the fourteen best practices in the order of the paper, paraphrased, with their answers."""
    done = [record for record in records if record.state == "complete"]
    rows = [
        ("Code of the training pipeline is available", *_code(records)),
        ("Code of the search method is available", NOT, "There was no search: the networks were listed beforehand."),
        ("The released code is the code that was used", *_as_used(records)),
        ("All methods use the same benchmark: data, splits and training", *_benchmark(a, done)),
        ("Ablations were run", YES, f"This is an ablation: {_design(a)}."),
        ("All methods use the same evaluation protocol", *_protocol(a, done)),
        ("Performance is shown as a function of compute", *_compute(done)),
        ("Compared with random sampling and random search", NOT, "There was no search."),
        ("Several runs with different seeds", *_seeds(a, done)),
        ("Tabular or surrogate benchmarks", NOT, "They replace training; every number here was measured."),
        ("Confounding factors are controlled", *_confounders(records)),
        ("How hyperparameters were tuned is reported", UNKNOWN, _tuning(a)),
        ("Resources are reported from end to end", *_resources(records)),
        ("All details of the setup are reported", *_details(a, records)),
    ]
    return [Practice(number, *row) for number, row in enumerate(rows, 1)]


YES, NO, NOT, UNKNOWN = "yes", "no", "not applicable", "not shown"


def values_of(records: Sequence[TrialRecord], name: str) -> list[Any]:
    """Return the distinct values of a field, in the order of the records. Missing values are left out."""
    return list(dict.fromkeys(value for record in records if (value := getattr(record, name)) not in (None, "")))


def software(record: TrialRecord) -> str:
    """Return the versions of a run as text, such as `dnas 0.1.0, torch 2.11.0, python 3.11.2`."""
    return ", ".join(f"{key} {record.versions[key]}" for key in ("dnas", "torch", "python") if key in record.versions)


def _code(records: Sequence[TrialRecord]) -> tuple[str, str]:
    known = {software(record) for record in records if record.versions}
    if not known or len([r for r in records if r.recipe and r.versions]) < len(records):
        return UNKNOWN, "Not every record has its recipe and versions."
    commits = values_of(records, "commit")
    text = (
        f"The pipeline is dnas ({'; '.join(sorted(known))}), and the complete recipe is in study.toml and every record."
    )
    return YES, text + (f" Commit {joined([c[:12] for c in commits])}." if commits else "")


def _as_used(records: Sequence[TrialRecord]) -> tuple[str, str]:
    commits = values_of(records, "commit")
    if not commits or any(record.commit is None for record in records):
        return UNKNOWN, "No commit was recorded: dnas did not run from a checkout."
    dirty = sum(str(record.commit).endswith("+") for record in records)
    if dirty:
        return NO, f"{several(dirty, 'run')} of {len(records)} used files that differ from their commit."
    return YES, f"Every run used an unmodified checkout of {joined([c[:12] for c in commits])}."


def _benchmark(a: Ablation, done: Sequence[TrialRecord]) -> tuple[str, str]:
    if not done:
        return UNKNOWN, "No run is complete."
    fingerprints = {record.data.get("fingerprint") for record in done}
    splits = {(record.seed[0], record.data.get("split_seed")) for record in done}
    per_seed = len(splits) == len({record.seed[0] for record in done})
    if len(fingerprints) > 1 or not per_seed:
        return NO, "The runs of one seed do not all have the same data files and the same split."
    factors = list(a.config.get("ablation", {}).get("factors", {}))
    requested = sorted({name for variant in a.variants for name in changed(a, variant)})
    solved = sorted({name for variant in a.networks for name in variant.changed} - {*requested, *factors})
    text = "The same data files (one fingerprint), and for each seed the same split, in every variant"
    text += f"; they differ in {joined(requested)}, as defined by the study" if requested else ""
    return YES, text + (f", and consequently in {joined(solved)}." if solved else ".")


def _design(a: Ablation) -> str:
    factors = a.config.get("ablation", {}).get("factors", {})
    names = f" of {joined(list(factors))}" if factors else ""
    return f"{a.design}{names}, {several(len(a.variants), 'variant')}, sizes held equal: {a.equal}"


def _protocol(a: Ablation, done: Sequence[TrialRecord]) -> tuple[str, str]:
    if not done:
        return UNKNOWN, "No run is complete."
    ended = all(record.epochs == record.epochs_planned for record in done)
    if not ended:
        return NO, "Some runs are compared before their last epoch."
    return (
        YES,
        f"Each run is represented by its {a.metric.label} after the last epoch; none was stopped early.",
    )


def _compute(done: Sequence[TrialRecord]) -> tuple[str, str]:
    if not done:
        return UNKNOWN, "No run is complete."
    return YES, "Error by epoch (the learning curves), and against params and multiply-adds, are on this page."


def _seeds(a: Ablation, done: Sequence[TrialRecord]) -> tuple[str, str]:
    seeds = sorted({record.seed[0] for record in done})
    if len(seeds) < 2:
        return NO, f"{several(len(seeds), 'seed')} with a complete run."
    if not a.effects.can_conclude:
        return NO, f"{several(len(seeds), 'seed')}, too few for any conclusion: {needed(a.effects)}."
    return YES, f"{several(len(seeds), 'seed')}, the same for all variants: {', '.join(map(str, seeds))}."


def confounders(records: Sequence[TrialRecord]) -> dict[str, list[str]]:
    """Return the properties that differ between runs without being factors of the study, with their values."""
    devices = list(dict.fromkeys(record.device.partition(":")[0] for record in records))
    properties = {
        "hosts": values_of(records, "host"),
        "devices": devices,
        "numbers of threads": values_of(records, "threads"),
        "commits": [commit[:12] for commit in values_of(records, "commit")],
        "versions": list(dict.fromkeys(software(record) for record in records if record.versions)),
    }
    return {name: [str(value) for value in values] for name, values in properties.items() if len(values) > 1}


def _confounders(records: Sequence[TrialRecord]) -> tuple[str, str]:
    if not records:
        return UNKNOWN, "There is no run."
    if any(not record.versions or not record.host for record in records):
        return UNKNOWN, "Not every record has its host and versions."
    differences = confounders(records)
    if differences:
        return NO, "The runs differ in " + joined(
            [f"{name} ({', '.join(values)})" for name, values in differences.items()]
        ) + "."
    return YES, "One host, one kind of device, one number of threads, one commit and one version of each library."


def _tuning(a: Ablation) -> str:
    text = "The records contain the recipe, but not how it was tuned: state this where you report the results."
    if a.equal in ("params", "macs"):
        text += f" The widths were solved for equal {a.equal}, independently of the errors."
    return text


def _resources(records: Sequence[TrialRecord]) -> tuple[str, str]:
    if not records:
        return UNKNOWN, "There is no run."
    seconds = sum(record.seconds for record in records)
    epochs = sum(record.epochs for record in records)
    devices = joined(sorted({record.device.partition(":")[0] for record in records}))
    return YES, (
        f"{several(len(records), 'run')}, {epochs:,} epochs, {duration(seconds)} of training on {devices},"
        " including failed runs. There was no search, and so no cost of one."
    )


def _details(a: Ablation, records: Sequence[TrialRecord]) -> tuple[str, str]:
    data = a.config.get("data", {})
    missing = [
        name
        for name, is_recorded in (
            ("the host", bool(records) and all(record.host for record in records)),
            ("the versions", bool(records) and all(record.versions for record in records)),
            ("the recipe", bool(records) and all(record.recipe for record in records)),
            ("the seeds", bool(records) and all(record.seed for record in records)),
            ("the data's fingerprint", bool(data.get("fingerprint"))),
        )
        if not is_recorded
    ]
    if missing:
        return NO, f"Missing in the records: {joined(missing)}."
    return (
        YES,
        "Recipe, seeds, data fingerprint, host, device, threads and versions are listed at the end of this page and in"
        " every record.",
    )
