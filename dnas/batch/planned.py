"""Runs that are listed beforehand, and their comparison with a study on disk. Does not import torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.arch import Spec, format_name
from dnas.errors import InputError
from dnas.study.config import LIST
from dnas.study.folder import StudyFolder, find_study, read_study
from dnas.training.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PlannedRun:
    """One run of a batch.

    key: name of the run in the study.
    group: group that the run belongs to in comparisons, such as a family or a variant.
    seed: [study seed, number] of `fit.stream_seed`. Runs with the same pair share random numbers as far as their
        networks allow.
    data: arguments of `load_dataset` that differ from those of the study.
    """

    key: str
    group: str
    spec: Spec
    recipe: Recipe
    seed: tuple[int, int]
    data: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the row of study.toml. It must not change once the run is recorded."""
        return {
            "key": self.key,
            "group": self.group,
            "network": format_name(self.spec),
            "digest": self.spec.digest,
            "seed": list(self.seed),
            "recipe": self.recipe.to_dict(),
            "data": dict(self.data),
        }


def check_runs(study: str, runs: Sequence[PlannedRun]) -> None:
    """Raise `InputError` if there are no runs, or if two runs have the same key."""
    if not runs:
        raise InputError(f"study {study} needs at least one run.")
    seen: set[str] = set()
    for run in runs:
        if run.key in seen:
            raise InputError(f"two runs of study {study} have the key {run.key!r}; keys must be unique.")
        seen.add(run.key)


def check_same_runs(folder: StudyFolder, runs: Iterable[PlannedRun], final: bool) -> None:
    """Raise `InputError` if the study is a search, or holds one of the runs with other inputs."""
    config = folder.config()
    remedy = f"name another study, or remove {folder.path}/"
    if config.get("kind") != LIST:
        raise InputError(f"study {folder.name} already exists, and was proposed by a search; {remedy}.")
    if (config["objective"] == "test_error") != final:
        part = "test" if not final else "validation"
        raise InputError(f"study {folder.name} was started to measure on the {part} part; {remedy}.")
    known = {row["key"]: row for row in config["runs"]}
    for run in runs:
        recorded, current = known.get(run.key), run.row()
        if recorded is None or recorded == current:
            continue
        name = next(name for name in current if recorded.get(name) != current[name])
        before, after = recorded.get(name), current[name]
        if isinstance(after, dict):
            keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
            before, after = ({key: values.get(key) for key in keys} for values in (before, after))
        raise InputError(
            f"run {run.key} of study {folder.name} was started with another {name}: {_as_text(before)}"
            f" (now {_as_text(after)}); {remedy}."
        )


def read_runs(study: str | Path) -> "pd.DataFrame":
    """Read the started runs of a batch into a table with one row per run.

    The columns are those of `read_study`, and key, group, seed (the study seed) and final (True if `test_error` is
    measured).
    """
    import pandas as pd

    folder = find_study(study)
    config = folder.config()
    if config.get("kind") != LIST:
        raise InputError(f"study {folder.name} was proposed by a search, but this needs a list of runs.")
    frame, rows = read_study(folder.path), config["runs"]
    if frame.empty:
        return frame
    listed = pd.DataFrame([rows[number] for number in frame["number"]], index=frame.index)
    listed["seed"] = [seed[0] for seed in listed["seed"]]
    listed["final"] = config["objective"] == "test_error"
    return frame.assign(**{name: listed[name] for name in ("key", "group", "seed", "final")})


def _as_text(value: Any) -> str:
    return ", ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
