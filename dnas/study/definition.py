"""Study definitions: `studies/<name>.toml` gives the defaults of `dnas search --study <name>`.

A file there with a `base` is another kind, an ablation's: see `dnas.ablation.parse`.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Any

from dnas.errors import InputError, did_you_mean
from dnas.space.parse import shipped_folders
from dnas.study.folder import check_study_name

# key of a definition: (the option's name in the parsed arguments, its type)
KEYS: dict[str, tuple[str, type]] = {
    "space": ("space", str),
    "trials": ("trials", int),
    "dataset": ("dataset", str),
    "recipe": ("recipe", str),
    "epochs": ("epochs", int),
    "objective": ("objective", str),
    "sampler": ("sampler", str),
    "control": ("control", float),
    "stopping": ("stopping", str),
    "timeout": ("timeout", float),
    "subset": ("subset", int),
    "retrain_best": ("retrain_best", int),
    "retrain_seeds": ("retrain_seeds", int),
    "seed": ("seed", int),
}
LEAST = {"seed": 0, "control": 0}  # of the others the least is 1


def apply_definition(args: argparse.Namespace) -> None:
    """Fills what the command left open from the definition of its study, where there is one."""
    if args.study is None:
        return
    check_study_name(args.study)
    path = definition_files().get(args.study)
    if path is None:
        return
    values = read_toml(path)
    if is_ablation(values):
        raise InputError(f"{path} defines an ablation, not a search: `dnas ablate {args.study}`, or another --study.")
    problems = []
    for key, value in values.items():
        if key not in KEYS:
            problems.append(f"{key}: a study definition has no such key.{did_you_mean(key, KEYS)}")
        elif type(value) is not KEYS[key][1] and not (KEYS[key][1] is float and type(value) is int):
            kind = {str: "text", int: "a whole number", float: "a number"}[KEYS[key][1]]
            problems.append(f"{key}: expected {kind}, but got {value!r}.")
        elif isinstance(value, int | float) and value < LEAST.get(key, 1):
            problems.append(f"{key}: expected a positive number, but got {value!r}.")
        else:
            name = KEYS[key][0]
            if getattr(args, name) in (None, {"retrain_best": 0, "retrain_seeds": 1}.get(key)):
                setattr(args, name, value)
    if problems:
        raise InputError(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems))


def definition_files() -> dict[str, Path]:
    """Every definition that can be found, by name; those of the current folder come first."""
    found: dict[str, Path] = {}
    for folder in shipped_folders("studies"):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}.") from None


def is_ablation(values: dict[str, Any]) -> bool:
    """Whether a definition is an ablation's."""
    return "base" in values
