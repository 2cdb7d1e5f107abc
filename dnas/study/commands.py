"""Command lines that repeat or resume a study, from its frozen inputs.

They do not depend on who started the study, so a study that was started from Python has them too. Values that depend on
the machine, such as its number of cores, are always stated. The other options are stated if they differ from their
defaults.
"""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dnas.data.catalog import (
    absolute_name,
    choose_augmentation,
    choose_image_size,
    data_info,
    is_local,
    local_path,
)
from dnas.formatting import joined, several
from dnas.io import read_text
from dnas.space.parse import shipped_folders
from dnas.study.config import DEFAULT_SAMPLER, DEFAULTS, LIST
from dnas.study.definition import read_defaults
from dnas.training.defaults import TINY_IMAGE
from dnas.training.recipe import make_recipe

DEFAULT_SEARCH = {
    "seed": 0,
    "objective": "val_error",
    "sampler": DEFAULT_SAMPLER,
    "control": 0.0,
    "stopping": "asha",
    "retrain_seeds": 1,
}
RECIPE_OPTIONS = ("epochs", "batch_size", "learning_rate")
LIMIT_OPTIONS = ("params", "macs")
DEFAULT_SEEDS, DEFAULT_MAX_SEEDS = 7, 20  # of an ablation
END = "END_OF_FILE"  # delimits a file in a script


@dataclass(frozen=True)
class Script:
    """Shell commands that repeat a study, in an empty folder.

    steps: The commands, and files to write, in order.
    notes: Sentences on what the commands cannot repeat.
    """

    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.steps)


def command(*words: str, **options: Any) -> str:
    """Return a command line, quoted for a shell. Options that are None or False are left out, True is a flag."""
    parts = ["dnas", *words]
    for name, value in options.items():
        if value is True:
            parts.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


def study_name(space: str, dataset: str, space_dataset: str) -> str:
    """Return the default name of a study: its space, and its data if they are not the data of the space's file."""
    if dataset == space_dataset:
        return space
    if is_local(dataset):
        path = local_path(dataset)
        name = path.name if dataset.startswith(("folder:", "hf:")) else path.stem
    else:
        name = dataset
    slug = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-")
    return f"{space}_{slug or 'folder'}"


def is_same_source(config: Mapping[str, Any], dataset: str) -> bool:
    """Return True if a study's data set is `dataset`, or was loaded from its path."""
    return _source(config) == absolute_name(dataset)


def search_script(stages: Sequence[Mapping[str, Any]], project: Path) -> Script:
    """Return the commands that repeat a search.

    Args:
        stages: Inputs of the study, before and after each of its extensions: see `dnas.strategy.state.stages`.
        project: Folder in which the study's relative paths start.
    """
    first, *rest = stages
    steps, content = _space_file(first["space"], first)
    space = _space_name(first["space"], steps)
    options = _first_options(first, content, project)
    if not rest:
        options |= _retraining(first)
    steps.append(command("search", space=space, **options))
    before = first
    for number, stage in enumerate(rest, 1):
        if (stage["space"], stage["limits"]) != (before["space"], before["limits"]):
            steps += _extension(before, stage)
        retraining = _retraining(stage) if number == len(rest) else {}
        epochs = stage["recipe"]["epochs"] if stage["recipe"] != before["recipe"] else None
        if epochs or retraining or stage["trials"] > before["trials"]:
            steps.append(_continuation(stage, epochs, retraining, project))
        before = stage
    return Script(tuple(steps), tuple(_notes(stages)))


def resume_command(config: Mapping[str, Any], project: Path) -> str | None:
    """Return the command that resumes a study in its own folder; None if a Python program must do it."""
    if "storage" in config:
        return command("worker", config["name"], storage="URL")
    if config.get("kind") == LIST:
        lines = list_script(config, project, resume=True).steps
        return lines[-1] if lines else config.get("command") or None
    return _continuation(config, None, _retraining(config), project)


def list_script(config: Mapping[str, Any], project: Path, resume: bool = False) -> Script:
    """Return the commands that repeat an ablation or a reproduction; none for other lists of runs.

    resume: Name the file of the ablation as it was given, and do not repeat earlier numbers of seeds.
    """
    name = config["name"]
    if "metric" in config.get("ablation", {}):  # of the user's own code
        note = "The runs were started from Python: the same call of dnas.ablate repeats them."
        return Script((config["command"],)) if "command" in config else Script(notes=(note,))
    if "ablation" in config:
        return _ablation_script(config, project, resume)
    if name.startswith("reproduce_"):
        target, _, budget = name.removeprefix("reproduce_").rpartition("_")
        seeds = len({run["seed"][0] for run in config["runs"]})
        return Script((command("reproduce", target, budget=budget, seeds=seeds, **_execution(config, project)),))
    return Script()


# --- searches -----------------------------------------------------------------------------------------------------


def _first_options(config: Mapping[str, Any], content: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return the options of the command that starts a search, without --space. content: the space file."""
    config = DEFAULTS | dict(config)
    data, recipe = config["data"], config["recipe"]
    source, space_source = _source(config), content.get("dataset")
    name = study_name(config["space"]["name"], source, str(space_source))
    stem = str(content.get("fixed", {}).get("stem", "small"))
    info = data_info(source)
    expected = _file_recipe(content, recipe["name"], source)
    limits = content.get("limits", {})
    values = {
        "study": config["name"],
        "trials": config["trials"],
        "dataset": source,
        "recipe": recipe["name"],
        **{key: recipe[key] for key in RECIPE_OPTIONS},
        **{f"max_{key}": config["limits"].get(key) for key in LIMIT_OPTIONS},
        **{key: config[key] for key in DEFAULT_SEARCH if key in config},
        "subset": data.get("subset"),
        "split_seed": data["split_seed"],
        "image_size": data["image_size"],
        "augment": data["augmentation"],
    }
    defaults = {
        **DEFAULT_SEARCH,
        "study": name,
        "dataset": space_source,
        "recipe": content.get("recipe", {}).get("name", "fast"),
        **{key: expected[key] for key in RECIPE_OPTIONS},
        **{f"max_{key}": limits.get(key) for key in LIMIT_OPTIONS},
        "split_seed": 0,
        "image_size": choose_image_size(info, None, stem),
        "augment": choose_augmentation(info, data["image_size"]),
    }
    defined = read_defaults(config["name"]) if name != config["name"] else {}
    chosen = {key: value for key, value in values.items() if key in defined or value != defaults.get(key)}
    return chosen | _execution(config, project)


def _continuation(config: Mapping[str, Any], epochs: int | None, more: Mapping[str, Any], project: Path) -> str:
    """Return the command that continues a search. An existing study keeps its other inputs."""
    options: dict[str, Any] = {"study": config["name"], "trials": config["trials"], "epochs": epochs}
    if "epochs" in read_defaults(config["name"]):  # the definition would lower them
        options["epochs"] = config["recipe"]["epochs"]
    return command("search", **options, **more, **_execution(config, project))


def _extension(before: Mapping[str, Any], stage: Mapping[str, Any]) -> list[str]:
    """Return the steps that widen the space of a study."""
    file, content, base = list[str](), {"limits": before["limits"]}, None
    if stage["space"]["text"] != before["space"]["text"]:
        file, content = _space_file(stage["space"], {**stage, "recipe": {}})
        base = _space_name(stage["space"], file)
    raised = {
        f"max_{key}": stage["limits"].get(key)
        for key in LIMIT_OPTIONS
        if stage["limits"].get(key) != content.get("limits", {}).get(key)
    }
    return [*file, command("extend", stage["name"], space=base, **raised)]


def _retraining(config: Mapping[str, Any]) -> dict[str, Any]:
    retrain = config.get("retrain") or {}
    best, seeds = retrain.get("best") or None, retrain.get("seeds", 1)
    return {"retrain_best": best, "retrain_seeds": seeds if seeds != 1 else None} if best else {}


def _execution(config: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return the options for executing the runs of a study."""
    threads, side, ray = config.get("threads"), config.get("data", {}).get("image_size", 0), config.get("ray")
    root = config.get("data", {}).get("root")
    return {
        "data_root": project / root if root else None,
        "workers": config.get("workers"),
        "threads": None if threads == 1 and side <= TINY_IMAGE else threads,
        "device": config.get("device") if ray is None or config.get("device") == "cpu" else None,  # Ray finds GPUs
        "timeout": config.get("timeout"),
        "compile": config.get("compile", False),
        "cuda_graph": config.get("cuda_graph", False),
        "kernels": config.get("kernels"),
        **({} if ray is None else _ray_options(ray)),
    }


def _ray_options(ray: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "executor": "ray",
        "ray_address": ray.get("address"),
        "cpus_per_trial": ray.get("cpus_per_trial"),
        "gpus_per_trial": ray.get("gpus_per_trial"),
        "shared": ray.get("shared"),
    }


def _source(config: Mapping[str, Any]) -> str:
    """Return the name of a study's data set. The path of own data is absolute."""
    data = config["data"]
    return str(data["name"] if is_local(data["source"]) else data["source"])


def _notes(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    running = [several(stage["running"], "trial") for stage in stages[:-1] if stage["running"]]
    if running:
        notes.append(
            f"{joined(running)} had not ended when the study was extended. The commands train such trials to their"
            " end first, so later events may differ."
        )
    workers = stages[-1].get("workers")
    if workers != 1:
        text = f"{workers} trials ran at once" if workers else "Several trials may have run at once"
        notes.append(f"{text}, so their order, and the proposals that depend on it, may differ.")
    return notes


# --- files of spaces and ablations --------------------------------------------------------------------------------


def _space_file(table: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the step that writes the file of a space, none for a shipped one, and the file's content.

    Settings of the study that no option can change are written into the file.
    """
    text, content = table["text"], tomllib.loads(table["text"])
    changes: dict[str, Any] = {}
    recipe, limits = config["recipe"], config["limits"]
    if recipe:
        expected = _file_recipe(content, recipe["name"], _source(config))
        different = {key: recipe[key] for key in recipe if recipe[key] != expected.get(key)}
        if different.keys() - set(RECIPE_OPTIONS):
            changes["recipe"] = {"name": recipe["name"]} | content.get("recipe", {}) | different
    stated = content.get("limits", {})
    if any(stated.get(key) != limits.get(key) for key in {*stated, *limits} if not _can_set(key, limits)):
        changes["limits"] = dict(limits)
    if changes:
        content |= changes
        text = f"# {table['title']}\n{tomli_w.dumps(content)}"
    elif text == _shipped("search_spaces", table["name"]):
        return [], content
    return [_write(f"{table['name']}.toml", text)], content


def _can_set(key: str, limits: Mapping[str, Any]) -> bool:
    """Return True if an option can set a limit. No option removes one."""
    return key in LIMIT_OPTIONS and key in limits


def _space_name(table: Mapping[str, Any], file: Sequence[str]) -> str:
    return f"{table['name']}.toml" if file else str(table["name"])


def _file_recipe(content: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    """Return the recipe of a file with the named recipe instead of its own."""
    changes = {key: value for key, value in content.get("recipe", {}).items() if key != "name"}
    return make_recipe(name, data_info(source), **changes).to_dict()


def _shipped(kind: str, name: str) -> str | None:
    """Return the text of a file of dnas, which every folder can name."""
    paths = (folder / f"{name}.toml" for folder in shipped_folders(kind)[1:])
    return next((read_text(path) for path in paths if path.is_file()), None)


def _write(name: str, text: str) -> str:
    """Return the shell command that writes a file, byte for byte."""
    if not text.endswith("\n") or END in text.splitlines():
        return f"printf %s {shlex.quote(text)} > {shlex.quote(name)}"
    return f"cat > {shlex.quote(name)} <<'{END}'\n{text}{END}"


# --- ablations ----------------------------------------------------------------------------------------------------


def _ablation_script(config: Mapping[str, Any], project: Path, resume: bool) -> Script:
    table = config["ablation"]
    title, end = config["space"]["title"], f": {table['question']}"
    name = title.removesuffix(end) if title.endswith(end) else config["name"]
    text, content = table["text"], tomllib.loads(table["text"])
    seeds, earlier = table["seeds"], tuple(table.get("earlier", ()))
    written = content.get("seeds", DEFAULT_SEEDS)
    steps, counts = [], [seeds]
    if seeds != "auto" and seeds == list(range(len(seeds))):
        counts = [*earlier, len(seeds)]
    elif seeds not in ("auto", written):
        content["seeds"] = written = seeds
        text = f"# {name}\n{tomli_w.dumps(content)}"
    if resume:
        counts, given = [written], table.get("file", name)
    elif text == _shipped("studies", name):
        given = name
    else:
        given = f"{name}.toml"
        steps.append(_write(given, text))
    recipe = _file_recipe(content, content.get("recipe", {}).get("name", "fast"), _source(config))
    epochs, subset = table["variants"][0]["epochs"], config["runs"][0]["data"].get("subset")
    maximum = table.get("most", DEFAULT_MAX_SEEDS)
    options = {
        "study": config["name"] if config["name"] != name else None,
        "final": config["objective"] == "test_error",
        "epochs": epochs if epochs != recipe["epochs"] else None,
        "dataset": _source(config) if _source(config) != content.get("dataset") else None,
        "subset": subset if subset != content.get("data", {}).get("subset") else None,
        **_execution(config, project),
    }
    for count in counts:
        asked = None if count == written else count
        steps.append(
            command(
                *("ablate", given),
                seeds=None if isinstance(asked, list) else asked,
                max_seeds=maximum if maximum != DEFAULT_MAX_SEEDS else None,
                budget=table.get("budget"),
                **options,
            )
        )
    note = "The epochs of the variants follow from timings, which another machine repeats differently."
    return Script(tuple(steps), (note,) if table["equal"] == "seconds" else ())
