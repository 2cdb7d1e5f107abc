"""Study definitions: `studies/<name>.toml` sets the defaults of `dnas search --study <name>`.

A file with a `base` defines an ablation instead: see `dnas.ablation.parse`.
"""

from pathlib import Path
from typing import Any

from dnas.errors import InputError, did_you_mean
from dnas.io import read_toml
from dnas.space.parse import shipped_folders
from dnas.study.folder import check_study_name

# Keys of a definition, which are also names of options, and the types of their values.
KEYS: dict[str, type] = {
    "space": str,
    "trials": int,
    "dataset": str,
    "recipe": str,
    "epochs": int,
    "objective": str,
    "sampler": str,
    "control": float,
    "stopping": str,
    "timeout": float,
    "subset": int,
    "retrain_best": int,
    "retrain_seeds": int,
    "seed": int,
}
MINIMUM = {"seed": 0, "control": 0}  # the minimum of other numbers is 1


def read_defaults(study: str | None) -> dict[str, Any]:
    """Return the options that the definition of a study sets; none if the study has no definition.

    Raises:
        InputError: The name is invalid, the file defines an ablation, or it has unknown keys or invalid values.
    """
    if study is None:
        return {}
    check_study_name(study)
    path = definition_files().get(study)
    if path is None:
        return {}
    values = read_toml(path)
    if is_ablation(values):
        raise InputError(f"{path} defines an ablation, not a search; use `dnas ablate {study}`, or another --study.")
    problems = []
    for key, value in values.items():
        if key not in KEYS:
            problems.append(f"{key}: a study definition has no such key.{did_you_mean(key, KEYS)}")
        elif type(value) is not KEYS[key] and not (KEYS[key] is float and type(value) is int):
            kind = {str: "text", int: "a whole number", float: "a number"}[KEYS[key]]
            problems.append(f"{key}: expected {kind}, but got {value!r}.")
        elif isinstance(value, int | float) and value < MINIMUM.get(key, 1):
            problems.append(f"{key}: expected a positive number, but got {value!r}.")
    if problems:
        raise InputError(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems))
    return values


def definition_files() -> dict[str, Path]:
    """Return the path of every definition, by name; the current folder takes precedence."""
    paths: dict[str, Path] = {}
    for folder in shipped_folders("studies"):
        for path in sorted(folder.glob("*.toml")):
            paths.setdefault(path.stem, path)
    return paths


def is_ablation(values: dict[str, Any]) -> bool:
    """Return True if a definition defines an ablation."""
    return "base" in values
