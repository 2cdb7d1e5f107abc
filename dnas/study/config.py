"""Configuration of a study: inputs of a command, the inputs frozen in `study.toml`, and checks of later commands."""

import dataclasses
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.space.objectives import PRICED
from dnas.space.parse import parse_space
from dnas.space.space import Limits, Space
from dnas.study.provenance import git_commit, versions
from dnas.study.record import now
from dnas.training.recipe import Recipe

LIST = "list"  # `kind` of a study whose runs are listed beforehand: see dnas.batch.runs
DEFAULTS: dict[str, Any] = {"objective": "val_error", "sampler": "tpe", "control": 0.0}  # for studies of dnas 0.1
DEFAULT_SAMPLER = "gp"  # benchmarks/results/search.md
UNLIMITED_WORKERS = 10**6  # number of runs at once, which only the size of a cluster limits


@dataclass(frozen=True)
class RunConfig:
    """Settings of training runs that are independent of the networks.

    data: arguments of `load_dataset`.
    workers: number of parallel training runs.
    threads: CPU threads of each run.
    timeout: time limit per run in seconds; None for no limit.
    kernels: a name of `dnas.nn.kernels`, or `auto`; None for the study's kernels (`DEFAULT_KERNELS` for a new study).
    ray: `address`, `shared`, `cpus_per_trial` and `gpus_per_trial` of runs on a Ray cluster; None for this machine.
    """

    data: dict[str, Any]
    workers: int = 1
    threads: int = 1
    device: str = "cpu"
    timeout: float | None = None
    compile_net: bool = False
    cuda_graph: bool = False
    kernels: str | None = None
    ray: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    trials: total number of trials to start.
    control: fraction of proposals drawn at random as a control group.
    retrain: number of best trials to retrain on all training data, each from `retrain_seeds` seeds.
    mirror: storage URL of the Optuna database that mirrors the study, or `none`; None for the default file.
    """

    space: Space
    study: str
    trials: int
    run: RunConfig
    seed: int = 0
    objectives: tuple[str, ...] = ("val_error",)
    sampler: str = "tpe"
    control: float = 0.0
    stopping: str = "asha"
    retrain: int = 0
    retrain_seeds: int = 1
    mirror: str | None = None


def frozen_inputs(search: SearchConfig, space: Space, data: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return the content of `study.toml`. data: `Dataset.describe()`."""
    config: dict[str, Any] = {
        "name": search.study,
        "created": now(),
        "trials": search.trials,
        "seed": search.seed,
        "objective": ",".join(search.objectives),
        "sampler": search.sampler,
        "control": search.control,
        "stopping": search.stopping,
        "device": device,
        **run_facts(search.run),
        "host": socket.gethostname(),
        "commit": git_commit(),
        "space": {"name": space.name, "title": space.title, "text": space.text},
        "limits": space.limits.stated(),
        "recipe": space.recipe.to_dict(),
        "data": dict(data),
        "versions": versions(),
    }
    config["data"] |= {"source": search.run.data["name"], "root": str(search.run.data.get("data_root") or "")}
    return without_none(config)


def run_facts(run: RunConfig) -> dict[str, Any]:
    """Return the settings of runs that study.toml holds; None for those that it does not state."""
    return {
        "workers": run.workers if run.workers < UNLIMITED_WORKERS else None,
        "threads": run.threads,
        "timeout": run.timeout,
        "compile": run.compile_net or None,
        "cuda_graph": run.cuda_graph or None,
        "ray": None if run.ray is None else dict(run.ray),
    }


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Remove None values, recursively, because TOML has no null."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def objectives_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(config.get("objective", DEFAULTS["objective"]).split(","))


def check_proposed(config: Mapping[str, Any]) -> None:
    """Raise `InputError` for a list of runs, which has no space and no proposals."""
    if config.get("kind") == LIST:
        raise InputError(
            f"study {config['name']} is a list of {len(config['runs'])} runs, which no search proposed;"
            f" `dnas status {config['name']}` shows the command that trains the missing runs."
        )


def space_of(config: Mapping[str, Any], check: bool = True) -> Space:
    """Rebuild the space of a study from its frozen inputs, without the space's file. check: As for `parse_space`."""
    check_proposed(config)
    table, data = config["space"], config["data"]
    space = parse_space(
        table["text"],
        table["name"],
        f"the space of study {config['name']}",
        check,
        dataset=data["source"],
        limits=config["limits"],
        recipe=config["recipe"]["name"],
    )
    space = dataclasses.replace(
        space, limits=Limits(**config["limits"]), recipe=Recipe.from_dict(config["recipe"]), title=table["title"]
    )
    return space.for_data(
        data["channels"], data["image_size"], data["classes"], augmented=data["augmentation"] != "none"
    )


def data_arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `load_dataset` that load a study's data."""
    data = config["data"]
    return {
        "name": data["source"],
        "data_root": Path(data["root"]) if data["root"] else None,
        "image_size": data["image_size"],
        "stem": str(space_of(config).fixed.get("stem", "small")),
        "subset": data.get("subset"),
        "split_seed": data["split_seed"],
        "augmentation": data["augmentation"],
    }


def check_objectives(space: Space, objectives: tuple[str, ...]) -> None:
    """Raise `InputError` if all networks inside the limits have the same value of an objective."""
    for name in objectives:
        if name not in PRICED:
            continue
        if space.fits_width and name in space.limits.stated():
            raise InputError(
                f'{name} is an objective, and {space.family.width} = "fit" makes every network of {space.name} as large'
                f" as the limit {name} <= {space.limits.stated()[name]:,} allows; leave one of them out."
            )
        low, high = space.survey().range(name)
        limit = space.limits.stated().get(name)
        if low == high or (limit is not None and low == limit):
            raise InputError(
                f"{name} is an objective, but every network of {space.name} inside the limits has {name} = {low:,};"
                f" leave {name} out of --objective, or raise the limit."
            )


def check_same(name: str, stored: Mapping[str, Any], search: SearchConfig, data: Any = None) -> None:
    """Check that a study continues with the inputs that it was started with. The epochs of the recipe may grow.

    Args:
        name: Name of the study, for messages.
        stored: Content of its study.toml.
        search: Requested configuration.
        data: Requested `Dataset`; None skips the checks that need it.

    Raises:
        InputError: An input differs, or the epochs were lowered.
    """
    config, space = DEFAULTS | dict(stored), search.space
    check_proposed(config)
    frozen, current = config["recipe"], space.recipe.to_dict()
    listed = {*frozen, "class_weights"}  # which studies with equal weights do not state
    keys = [key for key in sorted(listed) if key != "epochs" and frozen.get(key) != current.get(key)]
    pairs: list[tuple[str, Any, Any]] = [
        ("limits", _stated(config["limits"]), _stated(space.limits.stated())),
        ("objective", config["objective"], ",".join(search.objectives)),
        ("seed", config["seed"], search.seed),
        ("sampler", config["sampler"], search.sampler),
        ("control", config["control"], search.control),
        ("stopping", config["stopping"], search.stopping),
        ("recipe", _stated({key: frozen.get(key) for key in keys}), _stated({key: current.get(key) for key in keys})),
    ]
    if config["space"]["name"] != space.name:
        pairs = [("space", config["space"]["name"], space.name)]  # the other differences follow from it
    elif tomllib.loads(config["space"]["text"]) != tomllib.loads(space.text):  # comments may change
        pairs.insert(0, ("version", "of the space file", f"changed; use `dnas extend {name}` to widen it"))
    title, current_title = config["data"]["title"], data_info(search.run.data["name"]).title
    if title != current_title:
        pairs.append(("data set", title, current_title))
    if data is not None:
        facts = data.describe()
        pairs += [
            (key.replace("_", " "), config["data"].get(key, "whole"), "whole" if facts[key] is None else facts[key])
            for key in ("subset", "split_seed", "augmentation", "image_size")
        ]
        if title == current_title and config["data"]["fingerprint"] != data.fingerprint:
            pairs.append(("version", "of the data files", "changed"))
    changed = [f"{item} {before} (now {after})" for item, before, after in pairs if before != after]
    if changed:
        raise InputError(
            f"study {name} was started with another {'; another '.join(changed)};"
            " name a new study with --study, or use the original values."
        )
    if space.recipe.epochs < frozen["epochs"]:
        raise InputError(
            f"study {name} trains for {frozen['epochs']} epochs, and a study's epochs can only be raised,"
            f" but got --epochs {space.recipe.epochs}."
        )


def _stated(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "none"
