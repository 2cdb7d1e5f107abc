"""`dnas worker`: train for a study that several machines share through a PostgreSQL database."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.cli.output import command_line
from dnas.cli.parser import Group
from dnas.cli.search import add_search_options
from dnas.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import closing

    from dnas.cluster.database import Database
    from dnas.study.config import SearchConfig

SUMMARY = "train for a study that several machines share, through a PostgreSQL database"
EXAMPLES = """  export DNAS_STORAGE=postgresql://me:secret@db.example/dnas    # keeps the password off the command line
  dnas worker digits --space digits_bc --trials 30 --shared /mnt/dnas    # the first machine creates the study
  dnas worker digits                                            # any other machine, at any time
  dnas worker digits --storage postgresql://me@db.example/dnas --workers 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    study = parser.add_argument_group("study")
    parser.add_argument(
        "study", metavar="STUDY", help="the study's name; studies/STUDY.toml sets the defaults of a new study"
    )
    add_storage_options(study)
    add_search_options(parser, study)


def add_storage_options(group: Group) -> None:
    group.add_argument(
        "--storage", metavar="URL", help="database: postgresql://USER@HOST/DATABASE (default: $DNAS_STORAGE)"
    )
    group.add_argument(
        "--shared",
        metavar="URL",
        help="storage for checkpoints: a folder that all machines can access, or s3://... (default: the study's)",
    )


def open_database(
    study: str, url: str | None, shared: str | None, note: "Callable[[str], None]"
) -> "tuple[closing[Database], str | None]":
    """Return the database as a context manager, and `shared` with an absolute path.

    Args:
        study: Name of the study.
        url: Address of the database; None means $DNAS_STORAGE.
        shared: Shared storage, a folder or a URL.
        note: Receives messages for the user.

    Raises:
        InputError: The name is invalid, no database was given, or it cannot be used.
    """
    from contextlib import closing

    from dnas.cluster.address import parts_of
    from dnas.io import expanded
    from dnas.study.folder import check_study_name

    check_study_name(study)
    url = url or os.environ.get("DNAS_STORAGE")
    if not url:
        raise InputError("no database was given; use --storage postgresql://USER@HOST/DATABASE, or set $DNAS_STORAGE.")
    parts_of(url)  # before psycopg is imported
    from dnas.cluster.database import Database

    if shared is not None and "://" not in shared:
        shared = os.path.normpath(expanded(shared).absolute())
    return closing(Database(url, study, note)), shared


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if the study is complete, 1 if it was stopped, 130 after Ctrl-C."""
    import signal
    from functools import partial

    from dnas.api.display import make_display
    from dnas.training.defaults import check_device_here, default_workers

    # Schedulers end a job by SIGTERM: its trials are returned to the queue, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_device_here(args.device)
    study, workers, quiet = args.study, args.workers or default_workers(), bool(args.quiet)
    display = make_display(quiet, args.verbose)
    connection, shared_url = open_database(study, args.storage, args.shared, display.note)
    from dnas.api.opening import opening
    from dnas.cli.search_text import closing
    from dnas.cluster import queries
    from dnas.cluster.study import StoredStudy, create_study, load_data, options_of, read_config, shared_of
    from dnas.cluster.worker import COMPLETE, Worker
    from dnas.executors.local import LocalExecutor
    from dnas.executors.shared_storage import SharedStorage
    from dnas.formatting import several
    from dnas.strategy.stopping import expected_epochs
    from dnas.training.devices import list_devices
    from dnas.training.forkserver import start_forkserver

    with connection as database:
        devices = list_devices(args.device)
        requested = _config(args, database)
        if queries.read_study(database) is None:
            if shared_url is None:
                raise InputError(
                    "a new study needs --shared, a folder that all machines can access, or a URL such as s3://..."
                )
            shared = SharedStorage(shared_url)
            shared.check()
            create_study(database, shared, requested, devices[0].partition(":")[0], display.note)
        stored = read_config(database)
        start_forkserver()
        config = options_of(stored, requested)
        folder = StoredStudy(Path("studies", study), database, shared_of(stored, shared_url), display.note)
        display.expected = partial(expected_epochs, config.stopping)
        data = load_data(stored, config, display.note)
        if not quiet:
            print(opening(config, workers))
        worker = Worker(folder, config, data, display, LocalExecutor(workers, devices), workers)
        try:
            end = worker.run()
        except KeyboardInterrupt:
            print(
                f"\nstopped; every finished epoch is saved in {folder.shared}, and other workers continue the study."
                f" Run the same command to rejoin it:\n  {command_line(args.storage)}"
            )
            return 130
    if worker.outcome is not None:
        print(closing(study, worker.outcome, config.trials))
    else:
        state = "is complete" if end == COMPLETE else f"was stopped: {end}"
        print(f"study {study} {state}; {several(worker.trained, 'run')} on this machine\nnext      dnas pull {study}")
    return 0 if end == COMPLETE else 1


def _config(args: argparse.Namespace, database: "Database") -> "SearchConfig":
    """Return the configuration that this machine requests.

    It defines a new study. For an existing study it must agree with the stored configuration, except that more trials
    or epochs reopen a complete study.
    """
    import tomllib

    import tomli_w

    from dnas.api.options import SearchOptions, complete, make_config
    from dnas.cluster import queries
    from dnas.cluster.worker import COMPLETE
    from dnas.study.config import check_same

    stored, options = queries.read_study(database), SearchOptions.of(vars(args))
    if stored is None:
        if options.with_defaults().space is None:
            raise queries.missing_study(database)
        return make_config(complete(options), args.study, {})
    existing, end = tomllib.loads(stored[1]), stored[2]
    for name in ("subset", "image_size"):
        if (value := getattr(args, name)) not in (None, existing["data"].get(name)):
            raise InputError(
                f"study {args.study} was started with {name} {existing['data'].get(name)}, but got {value}."
            )
    options = dataclasses.replace(options, trials=max(args.trials or 0, existing["trials"]))
    config = make_config(options, args.study, existing)
    check_same(args.study, existing, config)
    changes = {"trials": config.trials, "recipe": existing["recipe"] | {"epochs": config.space.recipe.epochs}}
    if existing | changes != existing and end is None:
        raise InputError(
            f"study {args.study} is running with {existing['trials']} trials of {existing['recipe']['epochs']} epochs;"
            " raise them after it has ended."
        )
    if end is not None and (existing | changes != existing or end != COMPLETE):
        queries.reopen_study(database, tomli_w.dumps(existing | changes, multiline_strings=True))
    return config
