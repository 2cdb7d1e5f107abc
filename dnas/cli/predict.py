"""`dnas predict`: classify images with a trained network."""

import argparse
import sys
from pathlib import Path

from dnas.cli.output import print_json
from dnas.cli.parser import add_json, add_network_source, file_path, whole_number

SUMMARY = "classify images with a trained network"
EXAMPLES = """  dnas predict studies/runs/pets-densenet-L-40-k-12-s0 cat.jpg dog.png
  dnas predict pets --trial 17 --top 1 --json photos/*.jpg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_source(parser)
    parser.add_argument("images", nargs="+", type=file_path, metavar="IMAGE", help="image files")
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:0 (default: cuda if available, else cpu)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--top", type=whole_number(1), default=3, metavar="N", help="most probable classes to print (default: 3)"
    )
    add_json(output)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 for success, 2 if an image cannot be read."""
    from dnas.study.folder import checkpoint_of
    from dnas.training.defaults import check_device_here

    source, trial, top, as_json = args.source, args.trial, int(args.top), bool(args.json)
    files: list[Path] = args.images
    check_device_here(args.device)
    checkpoint_of(source, trial)  # before torch is imported
    from dnas.export import load_trained, predict
    from dnas.training.devices import check_device

    rows, unread = [], []
    for file, result in predict(load_trained(source, trial), files, check_device(args.device)):
        if isinstance(result, str):
            unread.append({"image": str(file), "reason": result})
            print(f"dnas: {result}", file=sys.stderr)
            continue
        classes = sorted(result.items(), key=lambda pair: -pair[1])[:top]
        rows.append({"image": str(file), "classes": [{"name": name, "probability": p} for name, p in classes]})
        if not as_json:
            print("  ".join([str(file), *(f"{name} {100 * p:.2f}%" for name, p in classes)]), flush=True)
    if as_json:
        print_json({"images": rows, "unread": unread})
    return 2 if unread else 0
