"""What `dnas ablate` says at its end."""

from collections.abc import Sequence

from dnas.ablation.results import Ablation
from dnas.analysis.metrics import METRICS
from dnas.analysis.paired import Comparison
from dnas.cli.display import state_counts
from dnas.formatting import joined, percent, several


def describe_result(ablation: Ablation) -> str:
    """Each comparison with its interval and verdict, and what may be concluded."""
    effects, values = ablation.effects, ablation.values
    base = values[ablation.base].dropna()
    mean = percent(base.mean()) if len(base) else "no"
    spread = f" (sd {100 * effects.noise:.2f} points)" if len(base) > 1 else ""
    measure = METRICS[ablation.measure].label
    lines = [
        "",
        f"base      {ablation.base}: {mean} {measure}, mean of {several(len(base), 'seed')}{spread}",
        *_table("against the base", effects.comparisons, effects.alpha),
    ]
    if ablation.factorial is not None:
        lines += _table("by factors", ablation.factorial.comparisons, effects.alpha)
    if not effects.can_conclude:
        lines.append(
            f"nothing can be concluded: {several(len(effects.comparisons), 'comparison')} with"
            f" {several(effects.pairs, 'pair')}, and {effects.pairs_needed} are needed at {effects.alpha:g};"
            f" --seeds {effects.pairs_needed} adds them"
        )
    if ablation.earlier:
        lines.append(
            f"mind      seeds were added after results of {joined([*map(str, ablation.earlier)])}: p holds for a number"
            " that was settled beforehand, or with --seeds auto"
        )
    for name, seeds in effects.left_out.items():
        if seeds:
            lines.append(f"no value  {name}: of {'seeds' if seeds[1:] else 'seed'} {joined([*map(str, seeds)])}")
    lines.append("runs      " + state_counts(ablation.folder.records()))
    lines.append(f"stored    {ablation.folder.path}/")
    lines.append(f"next      dnas report {ablation.name}")
    return "\n".join(lines)


def _table(title: str, comparisons: Sequence[Comparison], alpha: float) -> list[str]:
    width = max([len(title), *(len(one.name) for one in comparisons)])
    level = f"{100 * (1 - alpha):g}% interval"
    lines = [f"\n{title:{width}s}  {'points of error':>15s}  {level:>18s}  {'p':>6s}  {'p (Holm)':>8s}  verdict"]
    for one in comparisons:
        low, high = one.interval
        lines.append(
            f"{one.name:{width}s}  {100 * one.mean:+15.2f}  {f'{100 * low:+.2f} to {100 * high:+.2f}':>18s}"
            f"  {one.p:6.3f}  {one.p_holm:8.3f}  {one.verdict}"
        )
    return [*lines, ""] if comparisons else []
