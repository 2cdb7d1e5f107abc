"""`dnas export`: write a trained network as safetensors or ONNX."""

import argparse
from pathlib import Path

from dnas.cli.output import progress_line
from dnas.cli.parser import add_network_source, file_path

SUMMARY = "write a trained network as safetensors or ONNX"
EXAMPLES = """  dnas export digits_bc -o best.safetensors
  dnas export digits_bc --trial 17 -o network.onnx"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_source(parser)
    parser.add_argument_group("output").add_argument(
        "-o", "--out", type=file_path, required=True, metavar="FILE", help="file to write: .safetensors or .onnx"
    )


def run(args: argparse.Namespace) -> int:
    from dnas.io import NETWORK_FORMATS, check_format
    from dnas.study.folder import checkpoint_of

    out: Path = args.out
    check_format(out, NETWORK_FORMATS)
    checkpoint_of(args.source, args.trial)  # before torch is imported
    with progress_line() as show:
        show(f"writing {out}")
        from dnas.export import describe_interface, load_trained, write_network

        trained = load_trained(args.source, args.trial)
        check = write_network(trained, out)
    print(f"written to {out}")
    for name, text in {**describe_interface(trained), "checked": check}.items():
        print(f"{name:9s} {text}")
    return 0
