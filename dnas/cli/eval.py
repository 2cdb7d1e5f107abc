"""`dnas eval`: measure the error of a trained network on a part of its data."""

import argparse
from collections.abc import Sequence
from typing import Any

from dnas.cli.output import print_json
from dnas.cli.parser import DATA_ROOT, add_json, add_network_source, file_path

SUMMARY = "measure a trained network's error, in total and by class"
EXAMPLES = """  dnas eval studies/runs/digits-densenet-bc-L-16-k-8-s0
  dnas eval digits_bc --trial 17 --part val"""
SHOWN_CLASSES = 20  # largest number of classes whose confusion matrix is printed
WORST_CLASSES = 10  # of more classes, those with the highest errors are printed


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
    from dnas.study.folder import checkpoint_of
    from dnas.training.defaults import check_device_here

    check_device_here(args.device)
    checkpoint_of(args.source, args.trial)  # before torch is imported
    from dnas.data import load_dataset
    from dnas.export import load_trained
    from dnas.formatting import percent
    from dnas.training.devices import check_device
    from dnas.training.evaluate import evaluate_classes

    source, trial, part, dataset, data_root = args.source, args.trial, args.part, args.dataset, args.data_root
    device = check_device(args.device)
    trained = load_trained(source, trial)
    data = load_dataset(**trained.data_arguments(dataset, data_root), device=device)
    data = trained.prepared(data, same=dataset is None)
    loss, error, confusion = evaluate_classes(trained.run.net.to(device), data, part, device)
    if data.multilabel:
        images, classes = sum(map(sum, confusion[0])), errors_by_label(data.class_names, confusion)
    else:
        images, classes = sum(map(sum, confusion)), errors_by_class(data.class_names, confusion)
    if args.json:
        result = {"part": part, "images": images, "error": error, "loss": loss, "dataset": data.name}
        print_json(result | {"classes": classes, "confusion": confusion})
        return 0
    print(f"{percent(error)} error, loss {loss:.4f} on the {part} part of {data.title} ({images:,} images)\n")
    if data.multilabel:
        print("\n".join(label_lines(classes)))
    else:
        print("\n".join(matrix_lines(classes, confusion) if data.classes <= SHOWN_CLASSES else worst_lines(classes)))
    return 0


def errors_by_label(names: Sequence[str], confusion: Sequence[Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    """Return the name of each label, the number of images that have it, and the kinds of its error.

    `error` is the fraction of wrong images, `missed` the number of images with the label that are predicted without it,
    and `added` the number of images without it that are predicted with it.
    """
    rows = []
    for name, ((right_without, added), (missed, right_with)) in zip(names, confusion, strict=True):
        images = right_without + added + missed + right_with
        row = {"name": name, "images": missed + right_with, "error": (missed + added) / images}
        rows.append(row | {"missed": missed, "added": added})
    return rows


def label_lines(labels: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of labels as text."""
    from dnas.formatting import percent

    width = max(len("label"), *(len(row["name"]) for row in labels))
    lines = [f"{'label':{width}s}   images    error   missed    added"]
    return lines + [
        f"{row['name']:{width}s}  {row['images']:7,d}  {percent(row['error']):>7s}"
        f"  {row['missed']:7,d}  {row['added']:7,d}"
        for row in labels
    ]


def errors_by_class(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return name, number of images and error of each class. The error of a class without images is None."""
    return [
        {"name": name, "images": sum(row), "error": 1 - row[i] / sum(row) if sum(row) else None}
        for i, (name, row) in enumerate(zip(names, confusion, strict=True))
    ]


def matrix_lines(classes: Sequence[dict[str, Any]], confusion: Sequence[Sequence[int]]) -> list[str]:
    """Return the confusion matrix as text, one row per true class, with the images and the error of each class."""
    from dnas.formatting import percent

    numbers = [str(number) for number in range(len(classes))]
    names = [
        row["name"] if row["name"] == number else f"{number} {row['name']}"
        for number, row in zip(numbers, classes, strict=True)
    ]
    cells = [[str(count) if count else "." for count in row] for row in confusion]
    width = max(len(cell) for row in [numbers, *cells] for cell in row)
    left = max(len("class"), *map(len, names))
    lines = [
        f"{'':{left}s}  predicted as",
        f"{'class':{left}s}  {'  '.join(f'{n:>{width}s}' for n in numbers)}   images    error",
    ]
    for name, row, facts in zip(names, cells, classes, strict=True):
        counts = "  ".join(f"{cell:>{width}s}" for cell in row)
        lines.append(f"{name:{left}s}  {counts}  {facts['images']:7,d}  {percent(facts['error']):>7s}")
    return lines


def worst_lines(classes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the classes with the highest errors as text."""
    from dnas.formatting import percent

    worst = sorted((row for row in classes if row["images"]), key=lambda row: -row["error"])[:WORST_CLASSES]
    width = max(len(row["name"]) for row in worst)
    lines = [f"the {len(worst)} classes with the highest errors (all: --json)"]
    return lines + [f"{row['name']:{width}s}  {row['images']:7,d} images  {percent(row['error']):>7s}" for row in worst]
