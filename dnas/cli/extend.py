"""`dnas extend`: widen the space of a study."""

import argparse

from dnas.cli.parser import add_study, size_limit
from dnas.errors import InputError

SUMMARY = "widen a study's space; its trials stay valid"
EXAMPLES = """  dnas extend digits_bc --space wider.toml
  dnas extend digits_bc --max-params 100_000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add = parser.add_argument_group("search").add_argument
    add(
        "--space",
        metavar="NAME",
        help="the wider space: a name, or a file that ends with .toml (default: the study's space)",
    )
    add("--max-params", type=size_limit, metavar="N", help="a higher limit on parameters, such as 100k or 1.2M")
    add("--max-macs", type=size_limit, metavar="N", help="a higher limit on multiply-adds per image")


def run(args: argparse.Namespace) -> int:
    from dnas.study.folder import find_study

    limits = {key: value for key, value in (("params", args.max_params), ("macs", args.max_macs)) if value is not None}
    name: str | None = args.space
    folder = find_study(args.study)
    from dnas.space.parse import load_space
    from dnas.strategy.extend import extend
    from dnas.study.config import space_of

    config = folder.config()
    if name is None and not limits:
        raise InputError("`dnas extend` needs the wider space or a higher limit: --space, --max-params or --max-macs.")
    if name is None:
        wider, limits = space_of(config), config["limits"] | limits
    else:
        wider = load_space(name, limits=limits, dataset=config["data"]["source"])
        limits = wider.limits.stated()
    changes = extend(folder, wider, limits)
    if not changes:
        print(f"study {folder.name} has that space already; nothing changed")
        return 0
    print("\n".join(changes))
    print(f"next  dnas search --study {folder.name} --trials N")
    return 0
