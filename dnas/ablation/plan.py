"""Plan of an ablation, made before the first run: its runs, their cost, and whether they can lead to a conclusion.

torch is imported only to time steps, if training seconds are held equal.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dnas.ablation.parse import AUTO, Definition
from dnas.ablation.variants import Variant, differences, thaw
from dnas.analysis.pairs import first_look, pairs_needed
from dnas.arch import format_name
from dnas.batch.forecast import RECORD_BYTES
from dnas.batch.planned import PlannedRun
from dnas.data.summary import size_warnings, summarize
from dnas.errors import InputError
from dnas.formatting import count, joined, several, size
from dnas.study.config import LIST, RunConfig
from dnas.study.folder import StudyFolder

DEFAULT_MAX_SEEDS = 20  # for `--seeds auto`
TIMING_ROUNDS = 5  # rounds in which each variant's step is timed, if training seconds are held equal


@dataclasses.dataclass(frozen=True)
class Plan:
    """A definition with the options of the command.

    Attributes:
        definition: The parsed ablation file.
        study: Name of the study.
        seeds: The seeds. With `--seeds auto`, the maximum number of them.
        auto: Whether seeds are added as they are needed.
        final: Whether runs train on the validation images too and measure on the test images.
        sizes: Numbers of training and validation images, by the `subset` of a variant.
        earlier: Numbers of seeds with results at the times when more were requested. Adding seeds after a look at the
            results makes p too small.
        kernels: Kernels that were timed to hold training seconds equal, and that the runs must therefore use. None:
            nothing was timed.
        budget: Training seconds after which `--seeds auto` adds no seed; None: no limit.
        needs_timing: Whether the epochs of a variant are unknown until `with_equal_seconds` has timed it.
    """

    definition: Definition
    study: str
    seeds: tuple[int, ...]
    auto: bool
    final: bool
    sizes: Mapping[int | None, tuple[int, int]]
    earlier: tuple[int, ...] = ()
    kernels: str | None = None
    budget: float | None = None
    needs_timing: bool = False

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs, seed by seed, so that the first results already compare all variants."""
        return planned(self.definition.variants, self.seeds)

    def images_of(self, run: PlannedRun) -> int:
        """Return the number of training images of a run."""
        return self.sizes[run.data.get("subset")][0]

    def missing(self, folder: StudyFolder) -> list[PlannedRun]:
        """Return the runs that the study on disk has not completed."""
        records = folder.records() if folder.exists else []
        complete = {record.params.get("key") for record in records if record.state == "complete"}
        return [run for run in self.runs if run.key not in complete]


def planned(variants: Sequence[Variant], seeds: Sequence[int]) -> list[PlannedRun]:
    """Return one run for each variant and seed.

    The runs of one seed are paired: they share the split, the order of the images, their augmentation and the random
    stream that initialises the network.
    """
    return [
        PlannedRun(
            f"{variant.name}/s{seed}",
            variant.name,
            variant.spec,
            variant.recipe,
            (seed, 0),
            {"split_seed": seed} | {key: value for key, value in variant.data.items() if value is not None},
        )
        for seed in seeds
        for variant in variants
    ]


def make_plan(
    definition: Definition,
    folder: StudyFolder,
    means: RunConfig,
    *,
    final: bool = False,
    max_seeds: int | None = None,
    budget: float | None = None,
    asked: bool = True,
) -> Plan:
    """Make the plan of a new study, or of one that is continued. `with_equal_seconds` completes it.

    Args:
        definition: The parsed ablation file.
        folder: The study, which may exist already.
        means: Data, device, threads and workers.
        final: Train on the validation images too, and measure on the test images.
        max_seeds: Largest number of seeds of `--seeds auto`.
        budget: Training seconds after which `--seeds auto` adds no seed.
        asked: Whether the command named the seeds. If not, an existing study keeps its seeds.

    Raises:
        InputError: If the study was started with other settings, or if the seeds cannot lead to a conclusion.
    """
    stored = begun_ablation(folder, definition)
    seeds = _seeds(definition.seeds, stored, folder.name, max_seeds, asked)
    if budget is not None and seeds != AUTO:
        raise InputError("--budget requires --seeds auto.")
    sizes = {}
    for variant in definition.variants:
        subset = variant.data["subset"]
        if subset not in sizes:
            data = summarize(**means.data | dict(variant.data))
            sizes[subset] = (data.train_size, data.val_size)
    needs_timing = False
    if definition.equal == "seconds":
        frozen = {row["name"]: (row["epochs"], row["residual"]) for row in stored.get("variants", [])}
        definition = _with_epochs(definition, frozen)
        needs_timing = any(variant.name not in frozen for variant in definition.variants)
    max_seeds = max_seeds or stored.get("most", DEFAULT_MAX_SEEDS)
    if seeds == AUTO:
        first_look(len(definition.variants) - 1, definition.alpha, max_seeds)  # raises if these are too few
    all_seeds = range(max_seeds) if seeds == AUTO else map(int, seeds)
    earlier, before = tuple(stored.get("earlier", ())), stored.get("seeds", ())
    if seeds != AUTO and before and len(before) < len(seeds) and _has_results(folder):
        earlier = (*earlier, len(before))
    kernels = stored.get("timed_kernels")
    return Plan(
        definition,
        folder.name,
        tuple(all_seeds),
        seeds == AUTO,
        final,
        sizes,
        earlier=earlier,
        kernels=kernels,
        budget=budget,
        needs_timing=needs_timing,
    )


def _has_results(folder: StudyFolder) -> bool:
    return any(record.state == "complete" for record in folder.records())


def _seeds(
    seeds: tuple[int, ...] | str, stored: Mapping[str, Any], study: str, max_seeds: int | None, asked: bool
) -> tuple[int, ...] | str:
    """Return "auto", or all seeds of the study, including those that it already has."""
    before = stored.get("seeds")
    if before is not None and not asked:
        seeds = before if before == AUTO else (*before, *(() if seeds == AUTO else seeds))
    if before is not None and (before == AUTO) != (seeds == AUTO):
        before_text, new_text = (AUTO if value == AUTO else several(len(value), "seed") for value in (before, seeds))
        raise InputError(
            f"study {study} was started with seeds: {before_text} (now {new_text}); the number of seeds must not"
            " depend on the results, so name another study with --study."
        )
    if seeds != AUTO:
        if max_seeds is not None:
            raise InputError("--max-seeds requires --seeds auto.")
        return tuple(sorted({*(before or ()), *map(int, seeds)}))
    if max_seeds is not None and max_seeds != stored.get("most", max_seeds):
        raise InputError(
            f"study {study} was started with --max-seeds {stored['most']} (now {max_seeds}), which its stopping rule"
            " depends on; name another study with --study."
        )
    return AUTO


def begun_ablation(folder: StudyFolder, definition: Definition) -> dict[str, Any]:
    """Return the ablation table of study.toml, or {} for a new study.

    Raises:
        InputError: If the study is not an ablation, or was started with other settings or variants.
    """
    if not folder.exists:
        return {}
    config = folder.config()
    stored: dict[str, Any] | None = config.get("ablation")
    remedy = f"name another study with --study, or remove {folder.path}/"
    if config.get("kind") != LIST or stored is None:
        raise InputError(f"study {folder.name} already exists and is not an ablation; {remedy}.")
    settings = {"base": definition.base.name, "equal": definition.equal, "alpha": definition.alpha}
    for key, value in settings.items():
        if stored[key] != value:
            raise InputError(f"study {folder.name} was started with {key} {stored[key]} (now {value}); {remedy}.")
    names = {variant.name for variant in definition.variants}
    removed = [row["name"] for row in stored["variants"] if row["name"] not in names]
    if removed:
        raise InputError(
            f"study {folder.name} has {'variants' if removed[1:] else 'a variant'} that its file no longer has:"
            f" {joined(removed)}; all runs must be reported: put {'them' if removed[1:] else 'it'} back, or {remedy}."
        )
    return stored


def with_equal_seconds(plan: Plan, folder: StudyFolder, means: RunConfig) -> Plan:
    """Set the epochs of each variant so that it trains for as long as the base, if training seconds are held equal.

    Imports torch and times a few steps, once per study: an existing study keeps its epochs.
    """
    if not plan.needs_timing:
        return plan
    from dnas.batch.estimate import settled_kernels
    from dnas.training.devices import list_devices

    definition, base = plan.definition, plan.definition.base
    kernels = settled_kernels(means, base.spec, base.recipe.batch_size, list_devices(means.device)[0], folder)
    seconds = _epoch_seconds(definition.variants, plan.sizes, means, kernels)
    target = base.recipe.epochs * seconds[base.name]
    epochs = {}
    for variant in definition.variants:
        number, deviation = variant.recipe.epochs, variant.residual
        if deviation is None:
            number = max(1, round(target / seconds[variant.name]))
            deviation = number * seconds[variant.name] / target - 1
        epochs[variant.name] = (number, deviation)
    older = folder.exists and plan.kernels is None  # a version that timed the plain modules; the report says so
    return dataclasses.replace(
        plan, definition=_with_epochs(definition, epochs), kernels=None if older else kernels, needs_timing=False
    )


def _with_epochs(definition: Definition, epochs: Mapping[str, tuple[int, float]]) -> Definition:
    """Set the epochs of the named variants, and their relative deviations from the seconds of the base.

    The deviation of the others is None: their epochs are not known yet.
    """
    variants: list[Variant] = []
    for variant in definition.variants:
        number, deviation = epochs.get(variant.name, (variant.recipe.epochs, None))
        recipe = dataclasses.replace(variant.recipe, epochs=number) if variants else variant.recipe
        solved = dataclasses.replace(variant, recipe=recipe, residual=deviation)
        variants.append(dataclasses.replace(solved, changed=differences(solved, variants[0] if variants else solved)))
    return dataclasses.replace(definition, variants=tuple(variants))


def _epoch_seconds(
    variants: Sequence[Variant], sizes: Mapping[int | None, tuple[int, int]], means: RunConfig, kernels: str
) -> dict[str, float]:
    """Return the seconds of an epoch of each variant, trained by `kernels`.

    sizes: numbers of training and of validation images, by the `subset` of a variant.

    The variants are timed in turns, and the fastest turn counts, because other processes can only slow a turn down.
    """
    from dnas.batch.estimate import epoch_seconds
    from dnas.training.devices import list_devices

    device = list_devices(means.device)[0]
    rounds = [
        {
            variant.name: epoch_seconds(
                variant.spec, variant.recipe, sizes[variant.data["subset"]], device, means, kernels
            )
            for variant in variants
        }
        for _ in range(TIMING_ROUNDS)
    ]
    return {variant.name: min(seconds[variant.name] for seconds in rounds) for variant in variants}


def frozen_table(plan: Plan) -> dict[str, Any]:
    """Return the table `ablation` of study.toml."""
    assert not plan.needs_timing, "with_equal_seconds was not called"
    definition, fraction = plan.definition, plan.definition.fraction
    return {
        "question": definition.question,
        "base": definition.base.name,
        "design": definition.design,
        "equal": definition.equal,
        "tolerance": definition.tolerance,
        "alpha": definition.alpha,
        "seeds": AUTO if plan.auto else list(plan.seeds),
        **({"most": len(plan.seeds)} if plan.auto else {}),
        **({"budget": plan.budget} if plan.budget is not None else {}),
        **({"earlier": list(plan.earlier)} if plan.earlier else {}),
        **({"timed_kernels": plan.kernels} if plan.kernels else {}),
        **({"relation": fraction.relation(), "resolution": fraction.resolution} if fraction else {}),
        **({"aliases": fraction.confounded()} if fraction else {}),
        "text": definition.text,
        "factors": {name: [thaw(value) for value in values] for name, values in definition.levels.items()},
        "variants": [
            {
                "name": variant.name,
                "levels": {name: thaw(value) for name, value in variant.levels.items()},
                "network": format_name(variant.spec),
                "params": variant.params,
                "macs": variant.macs,
                **({"residual": variant.residual} if variant.residual is not None else {}),
                "epochs": variant.recipe.epochs,
                "changed": {key: thaw(value) for key, value in variant.changed.items() if value is not None},
            }
            for variant in definition.variants
        ],
    }


# --- text ---------------------------------------------------------------------------------------------------------


def describe_plan(plan: Plan, folder: StudyFolder, means: RunConfig) -> str:
    """Describe the plan without its time: design, variants with their costs, data, runs, disk and evidence."""
    definition, runs = plan.definition, plan.runs
    variants, recipe = definition.variants, definition.base.recipe
    lines = [f"{definition.name}   {definition.title}", f"question  {definition.question}"]
    lines.append(f"design    {_design(definition)}")
    if fraction := definition.fraction:
        lines.append(f"fraction  resolution {fraction.resolution}: {fraction.relation()}")
        lines += [f"{'aliases' if not number else '':10s}{line}" for number, line in enumerate(fraction.confounded())]
    width = max(len(variant.name) for variant in variants)
    name_width = max(len(format_name(variant.spec)) for variant in variants)
    for number, variant in enumerate(variants):
        settings = [f"{key.removeprefix('recipe.')}={value}" for key, value in variant.changed.items() if "." in key]
        deviation = "" if variant.residual is None or not number else f"  {100 * variant.residual:+.2f}%"
        lines.append(
            f"{'variants' if not number else '':10s}{variant.name:{width}s}  {format_name(variant.spec):{name_width}s}"
            f" {count(variant.params):>8s} params {count(variant.macs):>8s} macs{deviation}"
            f"{'  ' + ', '.join(settings) if settings else ''}"
        )
    data = [summarize(**means.data | dict(variant.data)) for variant in variants]
    lines += [
        f"{'data' if not i else '':10s}{text}" for i, text in enumerate(dict.fromkeys(d.describe() for d in data))
    ]
    lines.append(
        f"training  recipe {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size}; "
        + (
            "trained on the validation data too, measured on the test set"
            if plan.final
            else "measured on the validation data"
        )
    )
    completed = len(runs) - len(plan.missing(folder))
    lines.append(
        f"runs      {'at most ' if plan.auto else ''}{len(runs)}: {several(len(variants), 'variant')} from"
        f" {several(len(plan.seeds), 'seed')}{f'; {completed} already complete' if completed else ''}"
    )
    params = {variant.name: variant.params for variant in variants}
    disk = sum(8 * params[run.group] + RECORD_BYTES for run in runs)
    lines.append(f"disk      about {size(disk)} in studies/{plan.study}/")
    lines.append(f"evidence  {can_conclude(plan)}")
    warnings = (
        text
        for variant, facts in zip(variants, data, strict=True)
        for text in size_warnings(facts.train_size, 0 if plan.final else facts.val_size, variant.recipe.batch_size)
    )
    lines += [f"warning   {text}" for text in dict.fromkeys(warnings)]
    return "\n".join(lines)


def describe_epochs(plan: Plan) -> str:
    """Describe the epochs with which each variant trains for as long as the base."""
    base, *variants = plan.definition.variants
    width = max(len(variant.name) for variant in plan.definition.variants)
    lines = [f"{base.name:{width}s}  {base.recipe.epochs}, kernels {plan.kernels}"]
    lines += [
        f"{variant.name:{width}s}  {variant.recipe.epochs}, {100 * (variant.residual or 0):+.2f}% seconds"
        for variant in variants
    ]
    return "\n".join(f"{'' if number else 'epochs':10s}{line}" for number, line in enumerate(lines))


def _design(definition: Definition) -> str:
    held = {
        "nothing": "nothing held equal",
        "seconds": "training seconds held equal, by the epochs",
    }.get(definition.equal, f"{definition.equal} held equal within {100 * definition.tolerance:g}%, by the width")
    if not definition.levels:
        return f"a list of {several(len(definition.variants) - 1, 'variant')} and the base; {held}"
    factors = joined([f"{name} ({', '.join(map(str, values))})" for name, values in definition.levels.items()])
    return f"{definition.design} of {factors}; {held}"


def can_conclude(plan: Plan) -> str:
    """Describe whether the comparisons can lead to a conclusion: m comparisons of n pairs need m·2^(1-n) <= alpha.

    Raises:
        InputError: If the largest number of seeds of `--seeds auto` is too small.
    """
    comparisons, pairs, alpha = len(plan.definition.variants) - 1, len(plan.seeds), plan.definition.alpha
    if plan.auto:
        first = first_look(comparisons, alpha, pairs)
        return (
            f"{several(comparisons, 'comparison')}, each until it is decided (alpha {alpha:g} for all together): after"
            f" {several(first, 'pair')} at the earliest, {pairs} at most"
        )
    return evidence(comparisons, pairs, alpha)


def evidence(comparisons: int, pairs: int, alpha: float) -> str:
    """Describe whether a fixed number of pairs can lead to a conclusion."""
    needed = pairs_needed(comparisons, alpha)
    min_p = min(1.0, comparisons * 2.0 ** (1 - pairs))
    design = f"{several(comparisons, 'comparison')} with {several(pairs, 'pair')}"
    if pairs >= needed:
        return (
            f"{design}: p can fall to {min_p:.2g}, so a difference can be found at {alpha:g} ({needed} pairs suffice)"
        )
    return (
        f"INSUFFICIENT: {design} cannot reach {alpha:g}, the smallest possible p being {min_p:.2g}; {needed} pairs can:"
        f" --seeds {needed}"
    )
