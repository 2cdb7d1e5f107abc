"""Rounds of `--seeds auto`: seeds are added to a comparison only while it is undecided (`dnas.analysis.sequential`).

The runs of a seed follow from the results of the seeds before it. A resumed study therefore ends like an uninterrupted
one, and no other state is stored.
"""

from collections.abc import Callable, Sequence

from dnas.ablation.plan import Plan, planned
from dnas.ablation.results import read_values
from dnas.analysis.sequential import first_look, undecided
from dnas.batch.planned import PlannedRun
from dnas.formatting import duration, joined, several
from dnas.study.folder import StudyFolder


def train_rounds(
    plan: Plan,
    folder: StudyFolder,
    train: Callable[[Sequence[PlannedRun]], str | None],
    budget: float | None,
    note: Callable[[str], None],
) -> str | None:
    """Train seed after seed until each comparison is decided, the seeds are used up, or the budget is spent.

    Args:
        plan: The plan, with the maximum number of seeds.
        folder: The study.
        train: Trains a list of runs, which grows from call to call. Returns the reason if it stopped early.
        budget: Seconds of training after which no further seed is started. None for no limit.
        note: Receives progress messages.

    Returns:
        The reason why training stopped early, or None.
    """
    definition, max_seeds = plan.definition, len(plan.seeds)
    others = [variant.name for variant in definition.variants[1:]]
    first = first_look(len(others), definition.alpha, max_seeds)  # no comparison can be decided by fewer pairs
    runs: list[PlannedRun] = []
    open_names: Sequence[str] = others
    for begin, end in [(0, first), *((seed, seed + 1) for seed in range(first, max_seeds))]:
        if begin:
            values = read_values(folder).loc[lambda frame, begin=begin: frame.index < begin]
            still_open = undecided(values, definition.base.name, definition.alpha, max_seeds)
            if decided := [name for name in open_names if name not in still_open]:
                note(f"{joined(decided)}: decided with {several(begin, 'pair')}")
            open_names = [name for name in open_names if name in still_open]  # a decision is never revoked
        if not open_names:
            return None
        spent = sum(record.seconds for record in folder.records()) if folder.exists else 0.0
        if budget is not None and begin and spent >= budget:
            return (
                f"{duration(spent)} of training exceed --budget {duration(budget)}; undecided: {joined([*open_names])}"
            )
        variants = [v for v in definition.variants if v is definition.base or v.name in open_names]
        runs += planned(variants, range(begin, end))
        if {run.key for run in runs} <= _complete_keys(folder):
            continue
        if stopped_by := train(runs):
            return stopped_by
    return None


def _complete_keys(folder: StudyFolder) -> set[str]:
    if not folder.exists:
        return set()
    return {str(record.params["key"]) for record in folder.records() if record.state == "complete"}
