"""Output of `dnas ablate`: the plan as JSON, and the comparisons with their verdicts."""

import math
from collections.abc import Sequence
from typing import Any

from dnas.ablation.plan import Plan
from dnas.ablation.results import Ablation
from dnas.analysis.metrics import Metric
from dnas.analysis.paired import Comparison
from dnas.analysis.pairs import pairs_needed
from dnas.api.display import state_counts
from dnas.arch import format_name
from dnas.cli.output import counts_by_state
from dnas.formatting import joined, several
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder


def plan_as_json(plan: Plan, folder: StudyFolder, config: RunConfig) -> dict[str, Any]:
    """Return the plan as plain values. A few training steps are timed to estimate `seconds`."""
    definition = plan.definition
    comparisons = len(definition.variants) - 1
    needed = pairs_needed(comparisons, definition.alpha)
    missing = plan.missing(folder)
    seconds = 0.0
    if missing:
        from dnas.batch.estimate import list_seconds

        seconds = list_seconds(missing, plan.images_of, config, folder)
    return {
        "ablation": definition.name,
        "study": plan.study,
        "question": definition.question,
        "design": definition.design,
        "held_equal": definition.equal,
        "dataset": definition.dataset,
        "measure": "test_error" if plan.final else "val_error",
        "variants": [
            {
                "name": variant.name,
                "network": format_name(variant.spec),
                "params": variant.params,
                "macs": variant.macs,
                "changes": variant.changed,
            }
            for variant in definition.variants
        ],
        "seeds": list(plan.seeds),
        "auto": plan.auto,
        "alpha": definition.alpha,
        "runs": len(plan.runs),
        "missing": len(missing),
        "workers": config.workers,
        "seconds": seconds,
        "comparisons": comparisons,
        "pairs_needed": needed,
        "can_conclude": plan.auto or len(plan.seeds) >= needed,
    }


def as_json(ablation: Ablation, stopped_by: str | None) -> dict[str, Any]:
    return {
        "ablation": ablation.name,
        "study": ablation.folder.name,
        "question": ablation.question,
        **effects_as_json(ablation),
        "states": counts_by_state(ablation.folder.records()),
        "stopped_by": stopped_by,
    }


def effects_as_json(ablation: Ablation) -> dict[str, Any]:
    """Return the comparisons, which depend on the numbers alone."""
    effects, base = ablation.effects, ablation.values[ablation.base].dropna()
    return {
        "measure": ablation.metric.key,
        "alpha": effects.alpha,
        "base": {"name": ablation.base, "mean": base.mean() if len(base) else None, "seeds": len(base)},
        "noise": effects.noise,
        "comparisons": [_comparison(comparison) for comparison in effects.comparisons],
        "factorial": None
        if ablation.factorial is None
        else [_comparison(comparison) for comparison in ablation.factorial.comparisons],
        "can_conclude": effects.can_conclude,
        "pairs": effects.pairs,
        "pairs_needed": effects.pairs_needed,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    low, high = comparison.interval
    return {
        "name": comparison.name,
        "difference": comparison.mean,
        "low": low,
        "high": high,
        "p": comparison.p,
        "p_holm": comparison.p_holm,
        "verdict": comparison.verdict,
    }


def describe_result(ablation: Ablation) -> str:
    """Return the comparisons with their intervals and verdicts, and notes on their validity."""
    effects = ablation.effects
    lines = describe_effects(ablation)
    if not effects.can_conclude:
        lines[-1] += f"; --seeds {effects.pairs_needed} adds them"
    if ablation.earlier:
        lines.append(
            f"note      seeds were added after results of {joined([*map(str, ablation.earlier)])}: p holds for a number"
            " that was fixed beforehand, or with --seeds auto"
        )
    for name, seeds in effects.left_out.items():
        if seeds:
            lines.append(f"no value  {name}: of {'seeds' if seeds[1:] else 'seed'} {joined([*map(str, seeds)])}")
    lines.append("runs      " + state_counts(ablation.folder.records()))
    lines.append(f"stored    {ablation.folder.path}/")
    lines.append(f"next      dnas report {ablation.name}")
    return "\n".join(lines)


def describe_effects(ablation: Ablation) -> list[str]:
    """Return the mean of the base, and the tables of comparisons."""
    effects, metric = ablation.effects, ablation.metric
    base = ablation.values[ablation.base].dropna()
    mean = metric.format(base.mean()) if len(base) else "no"
    spread = f" (sd {metric.amount(effects.noise).lstrip('+')})" if len(base) > 1 else ""
    lines = [
        "",
        f"base      {ablation.base}: {mean} {metric.label}, mean of {several(len(base), 'seed')}{spread}",
        *_table("against the base", effects.comparisons, effects.alpha, metric),
    ]
    if ablation.factorial is not None:
        lines += _table("by factors", ablation.factorial.comparisons, effects.alpha, metric)
    if not effects.can_conclude:
        lines.append(
            f"nothing can be concluded: {several(len(effects.comparisons), 'comparison')} with"
            f" {several(effects.pairs, 'pair')}, and {effects.pairs_needed} are needed at {effects.alpha:g}"
        )
    return lines


def _table(title: str, comparisons: Sequence[Comparison], alpha: float, metric: Metric) -> list[str]:
    def plain(difference: float) -> str:
        if math.isnan(difference):
            return "–"
        return f"{100 * difference:+.2f}" if metric.unit == "%" else f"{difference:+.3g}"

    width = max([len(title), *(len(comparison.name) for comparison in comparisons)])
    level = f"{100 * (1 - alpha):g}% interval"
    head = "points of error" if metric.unit == "%" else "difference"
    lines = [f"\n{title:{width}s}  {head:>15s}  {level:>18s}  {'p':>6s}  {'p (Holm)':>8s}  verdict"]
    for comparison in comparisons:
        low, high = comparison.interval
        interval = f"{plain(low)} to {plain(high)}" if math.isfinite(low) else "none"
        lines.append(
            f"{comparison.name:{width}s}  {plain(comparison.mean):>15s}  {interval:>18s}"
            f"  {comparison.p:6.3f}  {comparison.p_holm:8.3f}  {comparison.verdict}"
        )
    return [*lines, ""] if comparisons else []
