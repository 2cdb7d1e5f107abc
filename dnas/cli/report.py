"""`dnas report`: write the report of a study, or a comparison of several."""

import argparse
import sys
from pathlib import Path

from dnas.cli.output import print_json, progress_line
from dnas.cli.parser import add_json, file_path
from dnas.errors import InputError

SUMMARY = "write a study's report, or compare studies"
EXAMPLES = """  dnas report digits_bc
  dnas report digits_bc --open               # and opens it in the browser
  dnas report digits_bc --out ~/page
  dnas report digits_bc --formats svg,png,pdf
  dnas report digits_bc --watch              # updated while a search runs
  dnas report digits_bc digits_front         # compares studies of one data set"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study",
        metavar="STUDY",
        nargs="+",
        help="name or folder of a search or an ablation; several searches are compared",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=file_path, metavar="FOLDER", help="folder to write to (default: reports/STUDY)")
    output.add_argument(
        "--formats",
        type=_formats,
        default=("svg",),
        metavar="NAMES",
        help="files of each figure, separated by commas: svg, which is always written, png and pdf (default: svg)",
    )
    output.add_argument("--open", action="store_true", help="open the report in the default browser")
    output.add_argument("--watch", action="store_true", help="update the report for as long as the study runs")
    add_json(output)


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if name not in ("svg", "png", "pdf"):
            raise argparse.ArgumentTypeError(f"{name!r} is no format of figures; use svg, png or pdf, such as svg,pdf")
    return names


def run(args: argparse.Namespace) -> int:
    studies: list[str] = args.study
    out: Path | None = args.out
    if args.watch and args.json:
        raise InputError("--json prints one result, but --watch prints until the study ends; leave one of them out.")
    if args.watch and len(studies) > 1:
        raise InputError(f"--watch takes one study, but got {len(studies)}.")
    from dnas.study.folder import find_study

    for study in studies:  # before the slow imports
        find_study(study)
    with progress_line() as show:
        show("loading")
        from dnas.cli.quick import import_quickly

        import_quickly()
        from dnas.report import watch_report, write_comparison, write_report

        if args.watch:
            show("")
            watch_report(
                studies[0], out, lambda text: print(text, flush=True), _open if args.open else None, args.formats
            )
            return 0
        if len(studies) > 1:
            page = write_comparison(studies, out, show, args.formats)
        else:
            page = write_report(studies[0], out, show=show, formats=args.formats)
    if args.json:
        print_json({"studies": studies, "page": str(page)})
    else:
        print(f"the {'comparison' if len(studies) > 1 else 'report'} is at {page}")
    if args.open:
        _open(page)
    return 0


def _open(page: Path) -> None:
    """Open a page in the default browser, or state that there is none."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        print(f"no browser was found; open {page.resolve()} in one", file=sys.stderr)
