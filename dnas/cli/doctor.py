"""`dnas doctor`: find and repair damage in a study."""

import argparse
from contextlib import suppress

from dnas.cli.output import print_json
from dnas.cli.parser import add_json, add_study

SUMMARY = "find and repair damage in a study"
EXAMPLES = """  dnas doctor digits_bc --dry-run
  dnas doctor digits_bc"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--dry-run", action="store_true", help="report damage without repairing it")
    add_json(output)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if no damage is left, otherwise 1."""
    from dnas.errors import InputError
    from dnas.study.folder import find_study

    dry_run, as_json = bool(args.dry_run), bool(args.json)
    folder = find_study(args.study)  # before the slow imports
    from dnas.formatting import several
    from dnas.strategy.doctor import BAD_RECORD, diagnose

    running = dry_run and folder.is_running
    if running and not as_json:
        print(f"study {folder.name} is running; files that it is writing are not checked")
    findings = diagnose(folder, not dry_run)
    damaged = any(not finding.repair for finding in findings)
    interrupted = 0
    with suppress(InputError, *BAD_RECORD):
        interrupted = 0 if running else sum(record.state == "running" for record in folder.records())
    if as_json:
        rows = [
            {"path": finding.path, "problem": finding.problem, "repair": finding.repair or None} for finding in findings
        ]
        print_json({"study": folder.name, "running": running, "findings": rows, "interrupted": interrupted})
        return int(damaged)
    for finding in findings:
        print(finding)
    if not findings:
        print("ok")
    if interrupted:
        print(f"{several(interrupted, 'interrupted trial')} to be resumed by the next `dnas search`")
    return int(damaged)
