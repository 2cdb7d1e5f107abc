"""Conversion of the arguments of `dnas search` and `dnas worker` to the configuration of a search."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.cli.execution import Execution
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.io import read_toml
from dnas.space.objectives import read_objectives
from dnas.space.parse import load_space, space_path
from dnas.space.space import Space
from dnas.study.commands import is_same_source, study_name
from dnas.study.config import RunConfig, SearchConfig, data_arguments_of, space_of
from dnas.study.definition import read_defaults
from dnas.study.folder import StudyFolder
from dnas.training.defaults import default_threads, default_workers


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments, with defaults from the definition of the study."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    return argparse.Namespace(**vars(args) | read_defaults(args.study) | given)


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments, with defaults from the definition of the study. Raises `InputError` for simple mistakes."""
    given, args = args, with_defaults(args)
    if args.trials is None:
        raise InputError(f"`dnas {args.command}` needs --trials N, the number of networks to train.")
    if args.dataset is not None:
        data_info(args.dataset)
    if given.retrain_seeds is not None and args.retrain_best is None:
        raise InputError("--retrain-seeds is for --retrain-best K, the number of networks to retrain.")
    if args.command == "search":
        Execution.of(args)
    return args


def default_study(args: argparse.Namespace) -> str:
    """Return the name of the study of a command without --study: the space's, and the data's if they differ."""
    space = Path(args.space or "none").stem
    if args.space is None or args.dataset is None:
        return space
    earlier = StudyFolder(Path("studies") / space)  # older versions left out the data
    if earlier.exists and is_same_source(earlier.config(), args.dataset):
        return space
    return study_name(space, args.dataset, str(read_toml(space_path(args.space)).get("dataset")))


def make_config(args: argparse.Namespace, study: str, existing: Mapping[str, Any]) -> SearchConfig:
    """Return the configuration of a search.

    Args:
        args: The arguments, see `complete`.
        study: Name of the study.
        existing: Content of its study.toml, for options that are not given; empty for a new study.
    """
    from dnas.search.proposals import DEFAULT_SAMPLER, check_sampler
    from dnas.search.stopping import check_stopping

    space = _space(args, existing)
    objectives = read_objectives(args.objective or existing.get("objective", "val_error"))
    sampler = args.sampler or existing.get("sampler", DEFAULT_SAMPLER)
    stopping = args.stopping or existing.get("stopping", "asha")
    check_sampler(sampler, objectives)
    check_stopping(stopping, len(objectives) > 1)
    workers = args.workers or default_workers()
    data = _data_arguments(args, space, existing)
    side = data["image_size"] or space.fixed.get("image_size", 32)
    return SearchConfig(
        space=space,
        study=study,
        trials=args.trials,
        run=RunConfig(
            data=data,
            workers=workers,
            threads=args.threads or default_threads(workers, side),
            device=args.device,
            timeout=args.timeout,
            compile_net=args.compile,
            cuda_graph=args.cuda_graph,
            kernels=args.kernels,
        ),
        seed=existing.get("seed", 0) if args.seed is None else args.seed,
        objectives=objectives,
        sampler=sampler,
        control=existing.get("control", 0.0) if args.control is None else float(args.control),
        stopping=stopping,
        mirror=args.mirror,
        retrain=args.retrain_best or 0,
        retrain_seeds=args.retrain_seeds or 1,
    )


def _space(args: argparse.Namespace, existing: Mapping[str, Any]) -> Space:
    limits = {key: value for key, value in (("params", args.max_params), ("macs", args.max_macs)) if value is not None}
    overrides = {
        "dataset": args.dataset,
        "recipe": args.recipe,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
    }
    if existing:
        overrides["epochs"] = args.epochs or existing["recipe"]["epochs"]  # an earlier command may have raised them
        overrides["dataset"] = args.dataset or existing["data"]["source"]
        limits = limits or existing["limits"]
    if args.space is not None:
        return load_space(args.space, limits=limits, **overrides)
    if not existing:
        raise InputError(f"`dnas {args.command}` needs --space NAME: see `dnas spaces`.")
    space = space_of({**existing, "limits": existing["limits"] | limits})
    return dataclasses.replace(space, recipe=dataclasses.replace(space.recipe, epochs=overrides["epochs"]))


def _data_arguments(args: argparse.Namespace, space: Space, existing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_dataset`. An existing study keeps those that are not given."""
    given = {
        "data_root": args.data_root,
        "image_size": args.image_size,
        "subset": args.subset,
        "split_seed": args.split_seed,
        "augmentation": args.augment,
    }
    defaults = dict.fromkeys(given) | {"split_seed": 0, "augmentation": "auto"}
    if existing:
        defaults |= data_arguments_of(existing)
    given = {name: value for name, value in given.items() if value is not None}
    return defaults | given | {"name": space.dataset, "stem": str(space.fixed.get("stem", "small"))}
