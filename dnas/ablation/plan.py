"""What `dnas ablate` will train, what that costs, and whether it can conclude anything: said before the first run."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dnas.ablation.parse import AUTO, Definition, Variant, differences
from dnas.analysis.paired import pairs_needed
from dnas.analysis.sequential import first_look
from dnas.arch import format_name
from dnas.batch.estimate import RECORD_BYTES, estimate_seconds, seconds_per_step
from dnas.batch.runs import PlannedRun
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.formatting import count, duration, joined, several, size
from dnas.study.config import LIST, RunConfig
from dnas.study.folder import StudyFolder
from dnas.training.devices import list_devices

MOST_SEEDS = 20  # of `--seeds auto`
ROUNDS = 5  # of timed steps, where training seconds are held equal


@dataclasses.dataclass(frozen=True)
class Plan:
    """A definition, and what the command adds to it. seeds: of a study with `auto`, the most there can be. images: of
    the training part, by a variant's `subset`. earlier: numbers of seeds that the study had results of when more were
    asked for: whoever looks and then goes on tests more often than p says."""

    definition: Definition
    study: str
    seeds: tuple[int, ...]
    auto: bool
    final: bool
    images: Mapping[int | None, int]
    earlier: tuple[int, ...] = ()

    @property
    def runs(self) -> list[PlannedRun]:
        """Seed by seed, so that what is there first compares all variants."""
        return planned(self.definition.variants, self.seeds)

    def images_of(self, run: PlannedRun) -> int:
        return self.images[run.data.get("subset")]


def planned(variants: Sequence[Variant], seeds: Sequence[int]) -> list[PlannedRun]:
    """The runs of some variants from some seeds. Those of a seed are a pair: the split, the order of the images, their
    augmentation and the stream that initialises the network are the same."""
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
    most: int | None = None,
    asked: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Settles what depends on the study that is there. asked: whether the command named the seeds; without, those of
    the study stay. Loads the data; where training seconds are held equal, times steps, once in a study's life."""
    begun = begun_ablation(folder, definition)
    seeds = _seeds(definition.seeds, begun, folder.name, most, asked)
    images = {}
    for variant in definition.variants:
        subset = variant.data["subset"]
        if subset not in images:
            images[subset] = load_dataset(**means.data | dict(variant.data), progress=note).train_size
    if definition.equal == "seconds":
        definition = _equal_seconds(definition, images, means, begun)
    if seeds == AUTO:  # `InputError` where so many can't conclude anything
        first_look(len(definition.variants) - 1, definition.alpha, most or begun.get("most", MOST_SEEDS))
    every = range(most or begun.get("most", MOST_SEEDS)) if seeds == AUTO else map(int, seeds)
    earlier, before = tuple(begun.get("earlier", ())), begun.get("seeds", ())
    if seeds != AUTO and before and len(before) < len(seeds) and _has_results(folder):
        earlier = (*earlier, len(before))
    return Plan(definition, folder.name, tuple(every), seeds == AUTO, final, images, earlier)


def _has_results(folder: StudyFolder) -> bool:
    return any(record.state == "complete" for record in folder.records())


def _seeds(
    seeds: tuple[int, ...] | str, begun: Mapping[str, Any], study: str, most: int | None, asked: bool
) -> tuple[int, ...] | str:
    """`auto`, or all seeds that the study is to have: those that it has stay."""
    before = begun.get("seeds")
    if before is not None and not asked:
        seeds = before if before == AUTO else (*before, *(() if seeds == AUTO else seeds))
    if before is not None and (before == AUTO) != (seeds == AUTO):
        then, now = (AUTO if one == AUTO else several(len(one), "seed") for one in (before, seeds))
        raise InputError(
            f"study {study} was begun with seeds: {then} (now {now}); their number must not depend on what came out,"
            " so name another study with --study."
        )
    if seeds != AUTO:
        if most is not None:
            raise InputError("--max-seeds goes with --seeds auto.")
        return tuple(sorted({*(before or ()), *map(int, seeds)}))
    if most is not None and most != begun.get("most", most):
        raise InputError(
            f"study {study} was begun with --max-seeds {begun['most']} (now {most}), which its stopping rule depends"
            " on; name another study with --study."
        )
    return AUTO


def begun_ablation(folder: StudyFolder, definition: Definition) -> dict[str, Any]:
    """What study.toml says of the ablation, {} of a new one; `InputError` where the study is another."""
    if not folder.exists:
        return {}
    config = folder.config()
    begun: dict[str, Any] | None = config.get("ablation")
    other = f"name another study with --study, or remove {folder.path}/"
    if config.get("kind") != LIST or begun is None:
        raise InputError(f"study {folder.name} is there already, and is no ablation; {other}.")
    here = {"base": definition.base.name, "equal": definition.equal, "alpha": definition.alpha}
    for key, value in here.items():
        if begun[key] != value:
            raise InputError(f"study {folder.name} was begun with {key} {begun[key]} (now {value}); {other}.")
    names = {variant.name for variant in definition.variants}
    gone = [row["name"] for row in begun["variants"] if row["name"] not in names]
    if gone:
        raise InputError(
            f"study {folder.name} has {'variants' if gone[1:] else 'a variant'} that its file no longer has:"
            f" {joined(gone)}; what was run must be reported, so put {'them' if gone[1:] else 'it'} back, or {other}."
        )
    return begun


def _equal_seconds(
    definition: Definition, images: Mapping[int | None, int], means: RunConfig, begun: Mapping[str, Any]
) -> Definition:
    """Each variant with the epochs that take as long as the base's: those of the study that is there, else solved."""
    frozen = {row["name"]: row for row in begun.get("variants", [])}
    base = definition.base
    if all(variant.name in frozen for variant in definition.variants):
        seconds = {}
    else:
        seconds = _epoch_seconds(definition.variants, images, means)
    found: list[Variant] = []
    for variant in definition.variants:
        if variant.name in frozen:
            epochs, miss = frozen[variant.name]["epochs"], frozen[variant.name]["residual"]
        else:
            wanted = base.recipe.epochs * seconds[base.name]
            epochs = max(1, round(wanted / seconds[variant.name]))
            miss = epochs * seconds[variant.name] / wanted - 1
        recipe = dataclasses.replace(variant.recipe, epochs=epochs) if variant.name != base.name else variant.recipe
        new = dataclasses.replace(variant, recipe=recipe, residual=miss)
        found.append(dataclasses.replace(new, changed=differences(new, found[0] if found else new)))
    return dataclasses.replace(definition, variants=tuple(found))


def _epoch_seconds(variants: Sequence[Variant], images: Mapping[int | None, int], means: RunConfig) -> dict[str, float]:
    """Variant -> seconds of an epoch. Timed in turns, and the fastest turn counts: what else runs here slows all."""
    device = list_devices(means.device)[0]
    turns = [
        {
            variant.name: seconds_per_step(variant.spec, variant.recipe.batch_size, device, means.threads)
            for variant in variants
        }
        for _ in range(ROUNDS)
    ]
    return {
        variant.name: min(turn[variant.name] for turn in turns)
        * math.ceil(images[variant.data["subset"]] / variant.recipe.batch_size)
        for variant in variants
    }


def frozen_table(plan: Plan) -> dict[str, Any]:
    """study.toml's table `ablation`."""
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
        **({"earlier": list(plan.earlier)} if plan.earlier else {}),
        **({"relation": fraction.relation(), "resolution": fraction.resolution} if fraction else {}),
        **({"aliases": fraction.confounded()} if fraction else {}),
        "text": definition.text,
        "factors": {name: [_plain(value) for value in values] for name, values in definition.levels.items()},
        "variants": [
            {
                "name": variant.name,
                "levels": {name: _plain(value) for name, value in variant.levels.items()},
                "network": format_name(variant.spec),
                "params": variant.params,
                "macs": variant.macs,
                **({"residual": variant.residual} if variant.residual is not None else {}),
                "epochs": variant.recipe.epochs,
                "changed": {key: _plain(value) for key, value in variant.changed.items() if value is not None},
            }
            for variant in definition.variants
        ],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- in words -----------------------------------------------------------------------------------------------------


def describe_plan(plan: Plan, folder: StudyFolder, means: RunConfig) -> str:
    """The plan in some lines. Times a few steps."""
    definition, runs = plan.definition, plan.runs
    variants, recipe = definition.variants, definition.base.recipe
    lines = [f"{definition.name}   {definition.title}", f"question  {definition.question}"]
    lines.append(f"design    {_design(definition)}")
    if fraction := definition.fraction:
        lines.append(f"fraction  resolution {fraction.resolution}: {fraction.relation()}")
        lines += [f"{'aliases' if not number else '':10s}{line}" for number, line in enumerate(fraction.confounded())]
    width = max(len(variant.name) for variant in variants)
    wide = max(len(format_name(variant.spec)) for variant in variants)
    for number, variant in enumerate(variants):
        own = [f"{key.removeprefix('recipe.')}={value}" for key, value in variant.changed.items() if "." in key]
        miss = "" if variant.residual is None or not number else f"  {100 * variant.residual:+.2f}%"
        lines.append(
            f"{'variants' if not number else '':10s}{variant.name:{width}s}  {format_name(variant.spec):{wide}s}"
            f" {count(variant.params):>8s} params {count(variant.macs):>8s} macs{miss}"
            f"{'  ' + ', '.join(own) if own else ''}"
        )
    lines.append(
        f"training  {definition.dataset}: {', '.join(f'{images:,}' for images in plan.images.values())} images; recipe"
        f" {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size}; "
        + ("trained on validation data too, measured on the test set" if plan.final else "measured on validation data")
    )
    done = (
        {record.params.get("key") for record in folder.records() if record.state == "complete"}
        if folder.exists
        else set()
    )
    missing = [run for run in runs if run.key not in done]
    there = len(runs) - len(missing)
    lines.append(
        f"runs      {'at most ' if plan.auto else ''}{len(runs)}: {several(len(variants), 'variant')} from"
        f" {several(len(plan.seeds), 'seed')}{f'; {there} are there' if there else ''}"
    )
    if missing:
        device = list_devices(means.device)[0]
        seconds = estimate_seconds(missing, plan.images_of, device, means.threads) / means.workers
        lines.append(
            f"time      {'at most ' if plan.auto else ''}about {duration(seconds)},"
            f" {several(means.workers, 'training')} at once ({several(means.threads, 'thread')} each,"
            f" {device.partition(':')[0]})"
        )
    params = {variant.name: variant.params for variant in variants}
    disk = sum(8 * params[run.group] + RECORD_BYTES for run in runs)
    lines.append(f"disk      about {size(disk)} in studies/{plan.study}/")
    lines.append(f"can tell  {can_conclude(plan)}")
    return "\n".join(lines)


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
    """Whether so many comparisons with so many pairs can come to a conclusion at all: m·2^(1-n) <= alpha. `InputError`
    where the most seeds of `auto` can't."""
    comparisons, pairs, alpha = len(plan.definition.variants) - 1, len(plan.seeds), plan.definition.alpha
    if plan.auto:
        first = first_look(comparisons, alpha, pairs)
        return (
            f"{several(comparisons, 'comparison')}, each until it is decided at {alpha:g} in all: with"
            f" {several(first, 'pair')} at the earliest, {pairs} at most"
        )
    needed = pairs_needed(comparisons, alpha)
    least = min(1.0, comparisons * 2.0 ** (1 - pairs))
    what = f"{several(comparisons, 'comparison')} with {several(pairs, 'pair')}"
    if pairs >= needed:
        return f"{what}: p can fall to {least:.2g}, so a difference can be found at {alpha:g} ({needed} pairs suffice)"
    return f"NOTHING: {what} can't reach {alpha:g}, the least p being {least:.2g}; {needed} pairs can: --seeds {needed}"
