"""`--seeds auto`: seeds are added to a comparison only while it is undecided (`dnas.analysis.sequential`).

Which runs a seed gets follows from the results of the seeds before it, so that going on is the same as not having been
interrupted, and nothing else need be kept.
"""

from collections.abc import Callable, Sequence

from dnas.ablation.plan import Plan, planned
from dnas.ablation.results import read_values
from dnas.analysis.sequential import first_look, undecided
from dnas.batch.runs import PlannedRun
from dnas.formatting import duration, joined, several
from dnas.study.folder import StudyFolder


def train_rounds(
    plan: Plan,
    folder: StudyFolder,
    train: Callable[[Sequence[PlannedRun]], str | None],
    budget: float | None,
    note: Callable[[str], None],
) -> str | None:
    """Trains seeds until each comparison is decided, the most seeds are there, or `budget` seconds of training are
    spent; why it stopped early, if it did. train: `train_runs` of a list that only grows."""
    definition, most = plan.definition, len(plan.seeds)
    others = [variant.name for variant in definition.variants[1:]]
    first = first_look(len(others), definition.alpha, most)  # fewer decide nothing
    runs: list[PlannedRun] = []
    open_: Sequence[str] = others
    for begin, end in [(0, first), *((seed, seed + 1) for seed in range(first, most))]:
        if begin:
            values = read_values(folder).loc[lambda frame, begin=begin: frame.index < begin]
            now = undecided(values, definition.base.name, definition.alpha, most)
            if decided := [name for name in open_ if name not in now]:
                note(f"{joined(decided)}: decided with {several(begin, 'pair')}")
            open_ = [name for name in open_ if name in now]  # what was decided stays so
        if not open_:
            return None
        spent = sum(record.seconds for record in folder.records()) if folder.exists else 0.0
        if budget is not None and begin and spent >= budget:
            return f"{duration(spent)} of training, and --budget is {duration(budget)}; open: {joined([*open_])}"
        chosen = [variant for variant in definition.variants if variant is definition.base or variant.name in open_]
        runs += planned(chosen, range(begin, end))
        if {run.key for run in runs} <= _complete(folder):
            continue
        if stopped_by := train(runs):
            return stopped_by
    return None


def _complete(folder: StudyFolder) -> set[str]:
    if not folder.exists:
        return set()
    return {str(record.params["key"]) for record in folder.records() if record.state == "complete"}
