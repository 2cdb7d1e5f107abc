"""`dnas compare`: compare variants by numbers that exist."""

import argparse
from pathlib import Path

from dnas.cli.output import command_line, print_json
from dnas.cli.parser import add_json, file_path

SUMMARY = "compare variants by the numbers of a CSV file, in pairs, as an ablation does"
EXAMPLES = """  dnas compare runs.csv --base A                        # columns variant, seed, value
  dnas compare runs.csv --base A --metric accuracy --maximize --out ~/page
  dnas compare reports/digits_connectivity/numbers.csv --base dense --error-rate"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=file_path, metavar="FILE", help="CSV file with the columns variant, seed and a metric"
    )
    group = parser.add_argument_group("comparison")
    group.add_argument("--base", required=True, metavar="NAME", help="variant that the others are compared with")
    group.add_argument(
        "--metric", metavar="COLUMN", help="column of the metric (default: the only further column, or value)"
    )
    group.add_argument("--maximize", action="store_true", help="larger values are better (default: smaller ones)")
    group.add_argument(
        "--error-rate", action="store_true", help="the metric is a fraction of errors: show it in percent"
    )
    group.add_argument(
        "--alpha", type=float, default=0.05, metavar="A", help="level of the tests together (default: 0.05)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=file_path, metavar="FOLDER", help="write the page of an ablation to this folder")
    add_json(output)


def run(args: argparse.Namespace) -> int:
    path: Path = args.file
    out: Path | None = args.out
    from dnas.ablation.numbers import compare_numbers
    from dnas.cli import ablate_text as text
    from dnas.errors import InputError

    if args.maximize and args.error_rate:
        raise InputError("--maximize and --error-rate exclude each other: fewer errors are better.")
    ablation = compare_numbers(
        path,
        args.base,
        metric=args.metric,
        maximize=args.maximize,
        error_rate=args.error_rate,
        alpha=args.alpha,
        command=command_line(),
    )
    page = None
    if out is not None:
        from dnas.report.ablation import write_analysed

        page = write_analysed(ablation, out)
    if args.json:
        print_json({"file": str(path), **text.effects_as_json(ablation), "page": None if page is None else str(page)})
        return 0
    print("\n".join(text.describe_effects(ablation)))
    if page is not None:
        print(f"page      {page}")
    return 0
