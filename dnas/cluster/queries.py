"""Create, reopen and read a study in the database. Any process may execute these statements."""

from dnas.cluster.database import Database
from dnas.errors import InputError, did_you_mean


def list_studies(database: Database) -> list[str]:
    return [name for (name,) in database.rows("SELECT name FROM dnas_studies ORDER BY 1")]


def read_study(database: Database) -> tuple[str, str, str | None] | None:
    """Return the study's id, its config and its `done` text; None if the study does not exist."""
    row = database.row("SELECT id, config, done FROM dnas_studies WHERE name = %s", (database.study,))
    return None if row is None else (row[0], row[1], row[2])


def missing_study(database: Database) -> InputError:
    """Return the error for a study that is not in the database."""
    known = list_studies(database)
    return InputError(
        f"no study {database.study!r} in {database}; there are {', '.join(known) or 'none yet'}."
        f"{did_you_mean(database.study, known)} To create one, give --space and --trials."
    )


def create_study(database: Database, id: str, config: str) -> None:
    """Create the study unless another host has created it."""
    query = """INSERT INTO dnas_studies VALUES (%s, %s, %s, NULL, clock_timestamp(), '-infinity')
        ON CONFLICT DO NOTHING"""
    database.execute(query, (database.study, id, config))


def reopen_study(database: Database, config: str) -> None:
    """Continue a finished study with another `config`."""
    query = "UPDATE dnas_studies SET config = %s, done = NULL WHERE name = %s AND done IS NOT NULL"
    database.execute(query, (config, database.study))


def read_events(database: Database) -> list[str]:
    """Return the lines of the event log, in order."""
    query = "SELECT line FROM dnas_events WHERE study = %s ORDER BY seq"
    return [line for (line,) in database.rows(query, (database.study,))]


def read_records(database: Database) -> dict[str, str]:
    """Return the records: path in the study folder -> JSON text."""
    return dict(database.rows("SELECT path, body FROM dnas_records WHERE study = %s", (database.study,)))


def read_results(database: Database) -> dict[str, str]:
    """Return the results of finished jobs: key -> folder in the shared storage with its files."""
    return dict(database.rows("SELECT key, name FROM dnas_results WHERE study = %s", (database.study,)))
