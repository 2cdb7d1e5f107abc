"""Options of a search, and their conversion to its configuration."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.api.execution import Execution
from dnas.data.catalog import data_info
from dnas.data.own import OWN
from dnas.errors import InputError
from dnas.io import read_toml
from dnas.space.objectives import read_objectives
from dnas.space.parse import load_space, parse_space, space_path
from dnas.space.space import Limits, Space
from dnas.strategy.samplers import check_sampler
from dnas.strategy.stopping import check_stopping
from dnas.study.commands import RECIPE_OPTIONS, is_same_source, study_name
from dnas.study.config import DEFAULT_SAMPLER, RunConfig, SearchConfig, data_arguments_of, space_of
from dnas.study.definition import read_defaults
from dnas.study.folder import StudyFolder
from dnas.training.defaults import default_threads, default_workers


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of `dnas search`, `dnas worker` and `dnas.search`, whose help describes them. None: not given.

    command: name of the command, for messages.
    """

    command: str = "search"
    space: str | Path | Space | None = None
    study: str | None = None
    trials: int | None = None
    mirror: str | None = None
    track: str | Sequence[str] | None = None
    objective: str | None = None
    sampler: str | None = None
    control: float | None = None
    stopping: str | None = None
    max_params: float | None = None
    max_macs: float | None = None
    retrain_best: int | None = None
    retrain_seeds: int | None = None
    recipe: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    dataset: str | None = None
    data_root: Path | None = None
    image_size: int | None = None
    subset: int | None = None
    split_seed: int | None = None
    augment: str | None = None
    workers: int | None = None
    threads: int | None = None
    device: str = "auto"
    timeout: float | None = None
    compile: bool = False
    cuda_graph: bool = False
    kernels: str | None = None
    executor: str = "local"
    ray_address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    shared: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "SearchOptions":
        """Return the options among `values`, such as the arguments of a command."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})

    def with_defaults(self) -> "SearchOptions":
        """Return the options, with defaults from the definition of the study."""
        defaults = read_defaults(self.study)
        return dataclasses.replace(
            self, **{name: value for name, value in defaults.items() if getattr(self, name) is None}
        )


def complete(given: SearchOptions) -> SearchOptions:
    """Return the options, with defaults from the definition of the study. Raises `InputError` for simple mistakes."""
    options = given.with_defaults()
    if options.trials is None:
        raise InputError(f"`dnas {options.command}` needs --trials N, the number of networks to train.")
    if options.dataset is not None:
        data_info(options.dataset)
    if given.retrain_seeds is not None and options.retrain_best is None:
        raise InputError("--retrain-seeds is for --retrain-best K, the number of networks to retrain.")
    if options.command == "search":
        Execution.of(options)
    return options


def default_study(options: SearchOptions) -> str:
    """Return the name of the study of a command without --study: the space's, and the data's if they differ."""
    space = options.space.name if isinstance(options.space, Space) else Path(options.space or "none").stem
    if options.space is None or options.dataset is None or options.dataset.startswith(OWN):
        return space
    if isinstance(options.space, Space):
        return study_name(space, options.dataset, options.space.dataset)
    earlier = StudyFolder(Path("studies") / space)  # older versions left out the data
    if earlier.exists and is_same_source(earlier.config(), options.dataset):
        return space
    return study_name(space, options.dataset, str(read_toml(space_path(str(options.space))).get("dataset")))


def make_config(options: SearchOptions, study: str, existing: Mapping[str, Any]) -> SearchConfig:
    """Return the configuration of a search.

    Args:
        options: The options, see `complete`.
        study: Name of the study.
        existing: Content of its study.toml, for options that are not given; empty for a new study.
    """
    assert options.trials is not None
    space = _space(options, existing)
    objectives = read_objectives(options.objective or existing.get("objective", "val_error"))
    sampler = options.sampler or existing.get("sampler", DEFAULT_SAMPLER)
    stopping = options.stopping or existing.get("stopping", "asha")
    check_sampler(sampler, objectives)
    check_stopping(stopping, len(objectives) > 1)
    if options.mirror is not None:
        from dnas.strategy.optuna_mirror import check_mirror

        check_mirror(options.mirror)
    workers = options.workers or default_workers()
    data = _data_arguments(options, space, existing)
    side = data["image_size"] or space.fixed.get("image_size", 32)
    return SearchConfig(
        space=space,
        study=study,
        trials=options.trials,
        run=RunConfig(
            data=data,
            workers=workers,
            threads=options.threads or default_threads(workers, side),
            device=options.device,
            timeout=options.timeout,
            compile_net=options.compile,
            cuda_graph=options.cuda_graph,
            kernels=options.kernels,
        ),
        seed=existing.get("seed", 0) if options.seed is None else options.seed,
        objectives=objectives,
        sampler=sampler,
        control=existing.get("control", 0.0) if options.control is None else float(options.control),
        stopping=stopping,
        mirror=options.mirror,
        retrain=options.retrain_best or 0,
        retrain_seeds=options.retrain_seeds or 1,
    )


def _space(options: SearchOptions, existing: Mapping[str, Any]) -> Space:
    limits = {
        key: value for key, value in (("params", options.max_params), ("macs", options.max_macs)) if value is not None
    }
    overrides: dict[str, Any] = {
        "dataset": options.dataset,
        "recipe": options.recipe,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
    }
    if existing:
        overrides["epochs"] = options.epochs or existing["recipe"]["epochs"]  # an earlier command may have raised them
        overrides["dataset"] = options.dataset or existing["data"]["source"]
        limits = limits or existing["limits"]
    if isinstance(options.space, Space):
        return _changed(options.space, limits, overrides)
    if options.space is not None:
        return load_space(str(options.space), limits=limits, **overrides)
    if not existing:
        raise InputError(f"`dnas {options.command}` needs --space NAME: see `dnas spaces`.")
    space = space_of({**existing, "limits": existing["limits"] | limits})
    return dataclasses.replace(space, recipe=dataclasses.replace(space.recipe, epochs=overrides["epochs"]))


def _changed(space: Space, limits: dict[str, float], overrides: dict[str, Any]) -> Space:
    """Return `space` with other limits, data or recipe. `overrides`: keywords of `load_space`."""
    dataset = overrides["dataset"] or space.dataset
    stated = space.limits.stated() | limits
    parsed = parse_space(
        space.text, space.name, f"the space {space.name}", limits=stated, **overrides | {"dataset": dataset}
    )
    if overrides["recipe"] is None and dataset == space.dataset:
        given = {key: overrides[key] for key in RECIPE_OPTIONS if overrides[key] is not None}
        parsed = dataclasses.replace(parsed, recipe=dataclasses.replace(space.recipe, **given))
    return dataclasses.replace(parsed, limits=Limits(**stated), title=space.title)


def _data_arguments(options: SearchOptions, space: Space, existing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_dataset`. An existing study keeps those that are not given."""
    given = {
        "data_root": options.data_root,
        "image_size": options.image_size,
        "subset": options.subset,
        "split_seed": options.split_seed,
        "augmentation": options.augment,
    }
    defaults = dict.fromkeys(given) | {"split_seed": 0, "augmentation": "auto"}
    if existing:
        defaults |= data_arguments_of(existing)
    given = {name: value for name, value in given.items() if value is not None}
    return defaults | given | {"name": space.dataset, "stem": str(space.fixed.get("stem", "small"))}
