"""Ablations, for `dnas ablate` and `dnas.ablate`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.api.execution import Execution, check_machine
from dnas.api.interruption import SearchStopped, pausing, with_keywords
from dnas.api.study import Study
from dnas.errors import InputError
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder, check_study_name

if TYPE_CHECKING:
    from dnas.ablation.plan import Plan
    from dnas.batch.planned import PlannedRun


@dataclass(frozen=True)
class PreparedAblation:
    """An ablation whose options were checked. Nothing has been written yet.

    file: the ablation's name or file, as it was given.
    """

    plan: "Plan"
    folder: StudyFolder
    config: RunConfig
    execution: Execution
    file: str

    def timed(self) -> "PreparedAblation":
        """Return the ablation with the epochs that hold training seconds equal. Times a few steps."""
        from dnas.ablation.plan import with_equal_seconds

        return dataclasses.replace(self, plan=with_equal_seconds(self.plan, self.folder, self.config))

    def run(self, note: Callable[[str], None]) -> str | None:
        """Train the missing runs, and return the reason for an early stop, if any. note: receives messages."""
        from dnas.ablation.auto_seeds import train_rounds
        from dnas.ablation.plan import frozen_table

        plan, config = self.plan, self.config
        title = f"{plan.definition.name}: {plan.definition.question}"
        about = {"ablation": frozen_table(plan) | {"file": self.file}}
        if plan.kernels is not None:
            config = dataclasses.replace(config, kernels=plan.kernels)

        def train(runs: "Sequence[PlannedRun]") -> str | None:
            return self.execution.train(plan.study, title, runs, config, final=plan.final, about=about).stopped_by

        if not plan.auto:
            return train(plan.runs)
        return train_rounds(plan, self.folder, train, plan.budget, note)


def prepare(
    name: str,
    execution: Execution,
    *,
    study: str | None = None,
    seeds: int | str | None = None,
    max_seeds: int | None = None,
    budget: float | None = None,
    final: bool = False,
    epochs: int | None = None,
    dataset: str | None = None,
    subset: int | None = None,
    data_root: Path | None = None,
    dry_run: bool = False,
) -> PreparedAblation:
    """Check the options of an ablation, without torch unless they name a device or kernels.

    Args:
        name: An ablation of studies/, or a file that ends with .toml.
        execution: Options for executing the runs.
        study: Name of the study (default: the ablation's).
        dry_run: The ablation will only be planned, so another process may be running the study.

    Raises:
        InputError: The options cannot be used.
    """
    from dnas.ablation.parse import load_definition
    from dnas.ablation.plan import begun_ablation, make_plan
    from dnas.batch.planned import check_runs, check_same_runs

    definition = load_definition(name, seeds=seeds, dataset=dataset, epochs=epochs, subset=subset, data_root=data_root)
    folder = StudyFolder(Path("studies") / check_study_name(study or definition.name))
    begun_ablation(folder, definition)
    side = max(variant.spec.image_size for variant in definition.variants)
    config = execution.run_config({"name": definition.dataset, "data_root": data_root}, side)
    check_machine(execution.device, execution.kernels, execution.executor)
    plan = make_plan(
        definition, folder, config, final=final, max_seeds=max_seeds, budget=budget, asked=seeds is not None
    )
    check_runs(plan.study, plan.runs)
    if folder.exists:
        check_same_runs(folder, plan.runs, plan.final)
        if not dry_run:
            with folder.lock():  # refuses a study that another process is running
                pass
    return PreparedAblation(plan, folder, config, execution, name)


@with_keywords
def ablate(
    what: str | Path | Callable[..., Any],
    factors: Mapping[str, Sequence[Any]] | None = None,
    *,
    study: str | None = None,
    seeds: int | str | Sequence[int] | None = None,
    max_seeds: int | None = None,
    budget: float | None = None,
    final: bool = False,
    epochs: int | None = None,
    dataset: str | None = None,
    subset: int | None = None,
    data_root: str | Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    timeout: float | None = None,
    kernels: str | None = None,
    metric: str | None = None,
    maximize: bool = False,
    error_rate: bool = False,
    design: str = "one-at-a-time",
    alpha: float = 0.05,
    question: str = "",
    progress: bool = True,
) -> Study:
    """Compare variants in pairs of seeds, or resume a comparison, and return its study.

    `study.verdicts` has the comparisons, and `study.report()` writes the page.

    Args:
        what: Name or file of an ablation of networks; or a function of your own, called as
            `function(seed=..., **levels)`, which returns a number, or a dict with `metric`.
        factors: With a function: levels of each factor, the base's first.
        study: Name of the study (default: the name of the ablation or function).
        seeds: Seeds per variant; for ablations of networks also "auto", for functions also a list of seeds.
        max_seeds, budget, final, epochs, dataset, subset, data_root, workers, threads, device, timeout, kernels: For
            ablations of networks: the options of `dnas ablate`, whose help describes them.
        metric, maximize, error_rate, design, alpha, question: For a function: see
            `dnas.ablation.function.ablate_function`.
        progress: Show the progress.

    Raises:
        InputError: An argument is invalid, or the study was started with other ones.
        KeyboardInterrupt: The runs were interrupted; the same call resumes them.
    """
    given = locals()
    if callable(what):
        return _ablate_function(given)
    return _ablate_networks(given)


OF_NETWORKS = ("max_seeds", "budget", "final", "epochs", "dataset", "subset", "data_root")
OF_EXECUTION = ("workers", "threads", "device", "timeout", "kernels")
OF_FUNCTIONS = ("factors", "metric", "maximize", "error_rate", "design", "alpha", "question")
DEFAULTS = {"final": False, "device": "auto", "maximize": False, "error_rate": False, "question": ""}
DEFAULTS |= {"design": "one-at-a-time", "alpha": 0.05}


def _refuse(given: Mapping[str, Any], names: Sequence[str], owner: str) -> None:
    for name in names:
        if given[name] != DEFAULTS.get(name):
            raise InputError(f"{name}={given[name]!r} is for {owner}; leave it out.")


def _ablate_function(given: Mapping[str, Any]) -> Study:
    from dnas.ablation.function import ablate_function
    from dnas.api.display import make_display

    _refuse(given, (*OF_NETWORKS, *OF_EXECUTION), "ablations of networks")
    if not given["factors"]:
        raise InputError("an ablation of a function needs factors, such as factors={'width': [16, 32]}.")
    names = ("metric", "maximize", "error_rate", "design", "alpha", "question", "study", "seeds")
    function, display = given["what"], make_display(quiet=not given["progress"], verbose=False)
    name = given["study"] or str(getattr(function, "__name__", type(function).__name__)).strip("<>_")
    with pausing(StudyFolder(Path("studies") / name)), display:
        result = ablate_function(function, given["factors"], show=display, **{name: given[name] for name in names})
    return Study(result.folder)


def _ablate_networks(given: Mapping[str, Any]) -> Study:
    from dnas.ablation.plan import describe_plan

    _refuse(given, OF_FUNCTIONS, "ablations of a function")
    seeds, progress = given["seeds"], given["progress"]
    if not (seeds is None or isinstance(seeds, int | str)):
        raise InputError(f'seeds must be a number or "auto" for an ablation of networks, but got {seeds!r}.')
    values = {name: given[name] for name in OF_NETWORKS}
    values["data_root"] = None if values["data_root"] is None else Path(values["data_root"])
    execution = Execution(**{name: given[name] for name in OF_EXECUTION}, quiet=not progress)
    prepared = prepare(str(given["what"]), execution, study=given["study"], seeds=seeds, **values)
    if progress:
        print(describe_plan(prepared.plan, prepared.folder, prepared.config), flush=True)
    if prepared.plan.needs_timing:
        prepared = prepared.timed()
    with pausing(prepared.folder):
        stopped_by = prepared.run(print if progress else lambda text: None)
    if stopped_by:
        raise SearchStopped(f"study {prepared.folder.name} stopped: {stopped_by}")
    return Study(prepared.folder)
