"""`dnas eval`: measure the error of a trained network on a part of its data."""

import argparse

from dnas.cli.output import print_json
from dnas.cli.parser import DATA_ROOT, add_json, add_network_source, file_path

SUMMARY = "measure a trained network's error"
EXAMPLES = """  dnas eval studies/runs/digits-densenet-bc-L-16-k-8-s0
  dnas eval digits_bc --trial 17 --part val"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_source(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--part",
        default="val",
        choices=["train", "val", "test"],
        help="part of the data to measure on; `test` opens the test set (default: val)",
    )
    data.add_argument("--dataset", metavar="NAME", help="data set to measure on (default: the training data set)")
    data.add_argument("--data-root", type=file_path, metavar="FOLDER", help=DATA_ROOT)
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:0 (default: cuda if available, else cpu)"
    )
    add_json(parser.add_argument_group("output"))


def run(args: argparse.Namespace) -> int:
    from dnas.data import load_dataset
    from dnas.export import load_trained
    from dnas.formatting import percent
    from dnas.training.devices import check_device
    from dnas.training.evaluate import evaluate

    source, trial, part, dataset, data_root = args.source, args.trial, args.part, args.dataset, args.data_root
    device = check_device(args.device)
    trained = load_trained(source, trial)
    data = load_dataset(**trained.data_arguments(dataset, data_root), device=device)
    data = trained.prepared(data, same=dataset is None)
    loss, error = evaluate(trained.run.net.to(device), data, part, device)
    images = {"train": data.train_size, "val": data.val_size, "test": data.test_size}[part]
    if args.json:
        print_json({"part": part, "images": images, "error": error, "loss": loss, "dataset": data.name})
    else:
        print(f"{percent(error)} error, loss {loss:.4f} on the {part} part of {data.title} ({images:,} images)")
    return 0
