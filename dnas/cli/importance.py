"""`dnas importance`: estimate the importance of each choice in a search."""

import argparse

from dnas.cli.output import console_or_pipe, print_json
from dnas.cli.parser import add_json, file_path, whole_number
from dnas.errors import unknown

SUMMARY = "estimate how much each choice and pair of choices matters, with intervals"
EXAMPLES = """  dnas importance digits_bc
  dnas importance digits_bc --epoch 3 --out importance.csv     # includes trials that were stopped early
  dnas importance digits_bc --by spec --out importance.svg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a search's name, or the path of its folder")
    add = parser.add_argument_group("analysis").add_argument
    add(
        "--by",
        default="choices",
        metavar="KIND",
        help="what explains the error: choices of the space, or spec: depth, params, macs and the network's fields"
        " (default: choices)",
    )
    add(
        "--epoch",
        type=whole_number(1),
        metavar="N",
        help="compare all trials after epoch N, including those stopped later (default: complete trials only)",
    )
    add(
        "--bootstraps",
        type=whole_number(20),
        default=100,
        metavar="N",
        help="bootstrap resamples of the trials, for the intervals (default: 100)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--pairs",
        type=whole_number(0),
        default=6,
        metavar="N",
        help="number of pairs of choices to print (default: 6)",
    )
    output.add_argument(
        "--out",
        type=file_path,
        metavar="FILE",
        help="write all effects to a .csv, or the figure to a .svg, .png or .pdf",
    )
    add_json(output)


def run(args: argparse.Namespace) -> int:
    by, epoch, pairs, out, bootstraps = args.by, args.epoch, args.pairs, args.out, args.bootstraps
    from dnas.study.folder import find_study

    folder = find_study(args.study)  # before the slow imports
    from dnas.analysis.importance import CHOICES, SPEC

    if by not in (CHOICES, SPEC):
        raise unknown("kind of importance", by, (CHOICES, SPEC))
    if out is not None and out.suffix != ".csv":
        from dnas.io import check_format

        check_format(out)
    from dnas.analysis.evidence import effects_frame, read_evidence
    from dnas.analysis.importance import importance
    from dnas.cli import importance_text as text

    evidence = read_evidence(folder, by, epoch)
    overall, best = (evidence.fanova(only_best, bootstraps) for only_best in (False, True))
    effects = effects_frame(overall, best, importance(evidence.params, evidence.errors.tolist()))
    if out is not None:
        text.write(out, effects, overall, best)
    if args.json:
        print_json(text.as_json(evidence, overall, best, effects))
        return 0
    console = console_or_pipe()
    console.print(text.head(evidence, folder))
    console.print(text.table(effects, pairs))
    for line in text.notes(evidence, overall, best, folder, by):
        console.print(line, soft_wrap=True)
    if out is not None:
        console.print(f"written to {out}")
    return 0
