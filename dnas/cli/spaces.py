"""`dnas spaces`: list the search spaces, show one in detail, or start a new one."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.cli.output import print_json
from dnas.cli.parser import add_json
from dnas.errors import InputError

if TYPE_CHECKING:
    from dnas.space.space import Space

SUMMARY = "list the search spaces, show one, or start a new one"
EXAMPLES = """  dnas spaces
  dnas spaces show cifar_bc
  dnas spaces new my_space --dataset folder:~/pictures"""
COSTS = ("params", "macs", "activation_bytes")
FACTS_OF_DATA = ("in_channels", "image_size", "classes")  # set by the data set, not by the space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=["show", "new"],
        help="show the space NAME, or write the template search_spaces/NAME.toml, instead of the list",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a space's name, or a file that ends with .toml")
    group = parser.add_argument_group("template of a new space")
    group.add_argument(
        "--family",
        metavar="NAME",
        help="family of its networks: densenet, resnet, or that of a plugin (default: densenet)",
    )
    group.add_argument("--dataset", metavar="DATA", help="data set that its networks are trained on (default: cifar10)")
    add_json(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    action, name, as_json = args.action, args.name, bool(args.json)
    if action != "new":
        for option in ("family", "dataset"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} applies to `dnas spaces new` only.")
    if action is None:
        _list(as_json)
        return 0
    if name is None:
        raise InputError(f"`dnas spaces {action}` needs a space's name: see `dnas spaces`.")
    if action == "new":
        path = _write_template(name, args.family or "densenet", args.dataset or "cifar10")
        if as_json:
            print_json({"name": path.stem, "path": str(path)})
        else:
            print(f"wrote   {path}\nnext    dnas spaces show {shlex.quote(path.stem)}")
        return 0
    from dnas.space.parse import load_space

    space = load_space(name)
    if as_json:
        print_json(space_as_json(space))
    else:
        print(describe_space(space))
    return 0


def _write_template(name: str, family: str, dataset: str) -> Path:
    from dnas.io import write_atomic
    from dnas.space.template import space_template
    from dnas.study.folder import check_study_name

    path = Path("search_spaces", check_study_name(name.removesuffix(".toml"), "space") + ".toml")
    if path.exists():
        raise InputError(f"{path} exists; choose another name, or edit it.")
    text = space_template(path.stem, family, dataset)
    write_atomic(path, text)
    return path


def _list(as_json: bool) -> None:
    from dnas.io import read_text
    from dnas.space.parse import space_files

    titles = {}
    for name, path in sorted(space_files().items()):
        try:
            titles[name] = (read_text(path).partition("\n")[0].lstrip("# ").strip(), str(path))
        except (InputError, OSError) as error:  # the other spaces can still be used
            titles[name] = (f"(cannot be read: {error})", str(path))
    if as_json:
        print_json([{"name": name, "title": title, "path": path} for name, (title, path) in titles.items()])
        return
    width = max(map(len, titles), default=0)
    for name, (title, _) in titles.items():
        print(f"{name:{width}s}   {title}")


def space_as_json(space: "Space") -> dict[str, Any]:
    survey, recipe = space.survey(), space.recipe
    return {
        "name": space.name,
        "title": space.title,
        "choices": {choice.name: choice.describe() for choice in space.choices},
        "fixed": _stated(space),
        "limits": space.limits.stated(),
        "dataset": space.dataset,
        "recipe": recipe.to_dict(),
        "networks": space.size(),
        "networks_inside_limits": survey.feasible if survey.whole else None,
        "surveyed": len(survey.costs),
        "impossible": survey.impossible,
        **{name: list(survey.range(name)) for name in COSTS},
    }


def _stated(space: "Space") -> dict[str, Any]:
    """Return the fixed values that the space itself states."""
    return {key: value for key, value in space.fixed.items() if key not in FACTS_OF_DATA}


def describe_space(space: "Space") -> str:
    from dnas.formatting import count, size

    survey, networks, recipe = space.survey(), space.size(), space.recipe
    width = max(len(choice.name) for choice in space.choices)
    fixed = ", ".join(f"{key} = {value}" for key, value in _stated(space).items()) or "nothing"
    lines = [
        f"{space.name}   {space.title}",
        "",
        *(f"  {choice.name:{width}s}   {choice.describe()}" for choice in space.choices),
        "",
        f"fixed     {fixed}",
        f"data      {space.dataset}; recipe {recipe.name}, {recipe.epochs} epochs of batch {recipe.batch_size}",
        f"size      {f'{networks:,} networks' if networks is not None else 'infinite'}",
    ]
    for name in COSTS:
        form = size if name == "activation_bytes" else count
        low, high = survey.range(name)
        limit = space.limits.stated().get(name)
        suffix = f"   limit {form(limit)}" if limit is not None else ""
        lines.append(f"{name.replace('_', ' '):17s} {form(low)} to {form(high)}{suffix}")
    if survey.whole:
        lines.append(f"(of all networks; {survey.feasible:,} are inside the limits)")
    else:
        lines.append(
            f"(of its extremes and a sample, {len(survey.costs):,} networks; every proposal is inside the limits)"
        )
    if survey.impossible:
        lines.append(f"{survey.impossible} of these points are not valid networks, for example: {survey.example}")
    return "\n".join(lines)
