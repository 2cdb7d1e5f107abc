"""`dnas pull`: rebuild the folder of a shared study on this machine."""

import argparse
import sys
from pathlib import Path

from dnas.cli.worker import add_storage_options, open_database

SUMMARY = "rebuild the folder of a shared study on this machine"
EXAMPLES = """  dnas pull digits --storage postgresql://me@db.example/dnas
  dnas pull digits && dnas report digits                        # with $DNAS_STORAGE"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="the study's name")
    add_storage_options(parser.add_argument_group("study"))


def run(args: argparse.Namespace) -> int:
    study = str(args.study)
    connection, shared = open_database(study, args.storage, args.shared, lambda text: print(text, file=sys.stderr))
    from dnas.cluster.study import StoredStudy, read_config, shared_of
    from dnas.formatting import several

    with connection as database:
        folder = StoredStudy(Path("studies", study), database, shared_of(read_config(database), shared), database.note)
        folder.path.mkdir(parents=True, exist_ok=True)
        with folder.lock():
            folder.pull()
    print(f"{several(len(folder.records()), 'trial')} in studies/{study}/\nnext      dnas report {study}")
    return 0
