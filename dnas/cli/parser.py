"""Argument types, and the groups of options that several commands share."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from dnas.errors import InputError, did_you_mean

Group: TypeAlias = "argparse.ArgumentParser | argparse._ArgumentGroup"

STUDY = "a study's name, or the path of its folder"
DEVICE = "device to train on: cpu, cuda or cuda:0 (default: cuda if available, else cpu)"
DATA_ROOT = "folder of the data sets (default: $DNAS_DATA, else ~/.cache/dnas/data)"
JSON = "print JSON (documented in docs/json.md) instead of text"


class Command(Protocol):
    """Interface of the modules of `dnas.cli` that implement a command."""

    SUMMARY: str
    EXAMPLES: str

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """Argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (try `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            kind = str(action.metavar).lower()
            names = [choice.dest for choice in action._choices_actions]  # without former names
            near = did_you_mean(value, names)
            self.error(f"no {kind} {value!r}" + (f".{near}" if near else f"; there are {', '.join(names)}."))
        super()._check_value(action, value)


def add_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """Add a parser whose help ends with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


# --- argument types -----------------------------------------------------------------------------------------------


def file_path(text: str) -> Path:
    """Read an argument that is a path. The shell leaves the `~` of `--out=~/page` to the program."""
    from dnas.io import expanded

    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole_number(minimum: int) -> Callable[[str], int]:
    """Return the type of an argument that is an integer of at least `minimum`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {minimum}, but got {text!r}"
            ) from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, but got {value}")
        return value

    return read


def positive_number(text: str) -> float:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, but got {text!r}")
    return int(value) if value == int(value) else value


def size_limit(text: str) -> float:
    """Read a positive number with an optional suffix, as dnas prints it: 100k, 1.2M or 3G."""
    units = {"k": 10**3, "M": 10**6, "G": 10**9}
    if text[-1:] in units:
        value = round(positive_number(text[:-1].strip()) * units[text[-1]], 6)
        return int(value) if value == int(value) else value
    return positive_number(text)


def number_within(low: float, high: float) -> Callable[[str], float]:
    """Return the type of an argument that is a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, but got {text!r}")
        return value

    return read


def zero_or_positive(text: str) -> float:
    return 0.0 if text.strip("0.") == "" and text else positive_number(text)


def fraction(text: str) -> float:
    """Read a fraction from 0 (included) to 1 (excluded)."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction of at least 0 and below 1, but got {text!r}")
    return value


# --- shared arguments and option groups ---------------------------------------------------------------------------


def add_study(parser: Group, help: str = STUDY) -> None:
    parser.add_argument("study", metavar="STUDY", help=help)


def add_network_sources(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for one or more studies or checkpoints, whose networks differ in their seeds only."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="STUDY_OR_CHECKPOINT",
        help="a study (its name or folder) or a checkpoint file; give several for one network from different seeds",
    )
    _add_trial(parser)


def add_network_source(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for one study or checkpoint."""
    parser.add_argument(
        "source", metavar="STUDY_OR_CHECKPOINT", help="a study (its name or folder) or a checkpoint file"
    )
    _add_trial(parser)


def _add_trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trial", type=whole_number(0), metavar="N", help="trial of the study to use (default: the best)"
    )


def add_training_options(group: Group, recipe: str | None) -> None:
    """Add the options for the recipe and changes to it. recipe: the default; None if a study or space sets it."""
    default = recipe or "the space's"
    add = group.add_argument
    add("--recipe", default=recipe, metavar="NAME", help=f"training recipe: paper or fast (default: {default})")
    add("--epochs", type=whole_number(1), metavar="N", help="epochs of each run (default: the recipe's)")
    add("--batch-size", type=whole_number(2), metavar="N", help="images per batch (default: the recipe's)")
    add("--learning-rate", type=positive_number, metavar="X", help="initial learning rate (default: the recipe's)")
    add("--seed", type=whole_number(0), metavar="N", help="random seed of proposals and training (default: 0)")


def add_data_options(group: Group) -> None:
    """Add the options for loading and preparing the images, except --dataset, which each command adds itself."""
    add = group.add_argument
    add("--data-root", type=file_path, metavar="FOLDER", help=DATA_ROOT)
    add("--subset", type=whole_number(1), metavar="N", help="train on a stratified subset of N images (default: all)")
    add("--split-seed", type=whole_number(0), default=0, metavar="N", help="seed of the validation split (default: 0)")
    add(
        "--image-size",
        type=whole_number(1),
        metavar="PIXELS",
        help="side to which images are resized (default: the data set's)",
    )
    add(
        "--augment",
        default="auto",
        metavar="KIND",
        help="data augmentation: auto (the data set's), none, crop, crop+flip or resized-crop+flip (default: auto)",
    )


def add_threads_and_device(group: Group) -> None:
    add = group.add_argument
    add("--threads", type=whole_number(1), metavar="N", help="CPU threads per run (default: cores / workers)")
    add("--device", default="auto", metavar="NAME", help=DEVICE)


def add_compile_options(group: Group) -> None:
    add = group.add_argument
    add("--compile", action="store_true", help="compile the network with torch.compile: slow start, faster on a GPU")
    add(
        "--cuda-graph",
        action="store_true",
        help="execute each training step as one CUDA graph (not yet tested on a GPU)",
    )


def add_kernels(group: Group) -> None:
    group.add_argument(
        "--kernels",
        metavar="NAME",
        help="kernels of the dense blocks: plain (PyTorch modules), ref (recomputing reference), cpu (C++), triton"
        " (CUDA), or auto, which measures them (default: the study's, else auto)",
    )


def add_timeout(group: Group) -> None:
    group.add_argument(
        "--timeout", type=positive_number, metavar="SECONDS", help="time limit per run, in seconds (default: none)"
    )


def add_executor_options(group: Group) -> None:
    """Add the choice between local processes and Ray, and the options of Ray."""
    add = group.add_argument
    add(
        "--executor",
        default="local",
        metavar="NAME",
        help="where runs are executed: local (processes of this machine) or ray (default: local)",
    )
    add(
        "--ray-address",
        metavar="HOST:PORT",
        help="Ray cluster to connect to, or auto for the cluster of this machine (default: start a local one)",
    )
    add(
        "--gpus-per-trial",
        type=zero_or_positive,
        metavar="X",
        help="GPUs per run on Ray; 0.5 lets two runs share a GPU (default: 1 if the cluster has GPUs, else 0)",
    )
    add(
        "--cpus-per-trial",
        type=positive_number,
        metavar="X",
        help="CPUs per run on Ray (default: the value of --threads)",
    )
    add(
        "--shared",
        metavar="URL",
        help="storage for checkpoints on Ray: a folder that all nodes can access, or s3://... (default: in the study)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for executing a list of runs."""
    group = parser.add_argument_group("execution")
    add_workers(group)
    add_threads_and_device(group)
    add_timeout(group)
    group.add_argument("--data-root", type=file_path, metavar="FOLDER", help=DATA_ROOT)
    add_kernels(group)
    add_executor_options(group)
    add_dry_run(group)


def add_workers(group: Group) -> None:
    group.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="runs executed in parallel (default: depends on the cores and the image size)",
    )


def add_dry_run(group: Group) -> None:
    group.add_argument("--dry-run", action="store_true", help="print the plan (networks, cost, time, disk) and exit")


def add_verbosity(group: Group) -> None:
    group.add_argument("-q", "--quiet", action="store_true", help="print the result only")
    group.add_argument("-v", "--verbose", action="store_true", help="print one line per epoch")


def add_json(group: Group) -> None:
    group.add_argument("--json", action="store_true", help=JSON)


def add_figure_output(parser: argparse.ArgumentParser) -> None:
    """Add the options for the file, the size and the text of a figure."""
    add = parser.add_argument_group("output").add_argument
    add(
        "-o",
        "--out",
        type=file_path,
        metavar="FILE",
        help="figure to write: .svg, .png or .pdf (default: STUDY-FIGURE.svg in this folder; .pdf for --style paper)",
    )
    add(
        "--style",
        choices=("page", "paper", "slides"),
        default="page",
        help="page (8.2 in wide, text of 9.5 pt), paper (3.25 in, 8 pt, no title) or slides (10 in, 16 pt)"
        " (default: page)",
    )
    add("--width", type=number_within(1.5, 60), metavar="INCHES", help="width of the figure (default: the style's)")
    add(
        "--title",
        action=argparse.BooleanOptionalAction,
        help="draw the title, which states the finding, or leave it out (default: the style's)",
    )
    add(
        "--dpi",
        type=number_within(30, 2400),
        default=144,
        metavar="N",
        help="pixels per inch of a .png file, and of heatmaps in other files (default: 144)",
    )
