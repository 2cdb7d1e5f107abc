"""Statements of the proposer, the one worker of a study that proposes networks and writes the event log.

Every write locks the row of the proposer's lease first and raises `LeaseLost` if the lease belongs to another worker.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dnas.cluster.database import Cursor, Database, server_time, time_text
from dnas.cluster.tables import LIVE
from dnas.executors.lease import LeaseLost

T = TypeVar("T")


@dataclass(frozen=True)
class StoredMessage:
    """A worker's message about a job, as stored in the database."""

    id: int
    key: str
    attempt: int
    kind: str
    values: dict[str, Any]


# --- the lease ----------------------------------------------------------------------------------------------------


def take_lease(database: Database) -> bool:
    """Take the proposer's lease if it is free, if its owner is dead, or if this worker owns it; return the success."""
    database.run(database.touch)
    query = f"""
        INSERT INTO dnas_leases SELECT name, 'proposer', %s, %s, {database.expires()} FROM dnas_studies
        WHERE name = %s AND done IS NULL
        ON CONFLICT (study, role) DO UPDATE SET owner = excluded.owner, host = excluded.host,
            expires = excluded.expires
        WHERE dnas_leases.owner = excluded.owner OR {database.expired("dnas_leases")}
        RETURNING owner"""
    return database.row(query, (database.owner, database.host, database.study)) is not None


def release_lease(database: Database) -> None:
    database.execute("DELETE FROM dnas_leases WHERE study = %s AND owner = %s", (database.study, database.owner))


def run_fenced(database: Database, work: Callable[[Cursor], T]) -> T:
    """Execute `work` in a transaction that locks the lease; raise `LeaseLost` if another worker owns it."""

    def fenced(cursor: Cursor) -> T:
        query = "SELECT 1 FROM dnas_leases WHERE study = %s AND owner = %s AND role = 'proposer' FOR UPDATE"
        if cursor.execute(query, (database.study, database.owner)).fetchone() is None:
            raise LeaseLost(f"another host proposes for study {database.study}")
        return work(cursor)

    return database.run(fenced)


# --- the study ----------------------------------------------------------------------------------------------------


def append_event(database: Database, seq: int, event: Mapping[str, Any]) -> str:
    """Store `event` with the database's time as line number `seq` of the log; return the line."""
    line: str | None = None

    def work(cursor: Cursor) -> str:
        nonlocal line
        line = line or json.dumps({"time": time_text(server_time(cursor)), **event})
        row = cursor.execute(
            "SELECT line FROM dnas_events WHERE study = %s AND seq = %s", (database.study, seq)
        ).fetchone()
        if row is None:
            cursor.execute("INSERT INTO dnas_events VALUES (%s, %s, %s)", (database.study, seq, line))
        elif row[0] != line:  # an equal line is from this very call, whose connection died during COMMIT
            raise LeaseLost(f"another host has written event {seq} of study {database.study}")
        return line

    return run_fenced(database, work)


def write_config(database: Database, text: str) -> None:
    query = "UPDATE dnas_studies SET config = %s WHERE name = %s"
    run_fenced(database, lambda cursor: cursor.execute(query, (text, database.study)))


def write_record(database: Database, path: str, body: str, ended: str | None) -> None:
    """Store a record, and in the same transaction delete the job that ended with it.

    Args:
        path: path of the record in the study folder.
        body: the record as JSON text.
        ended: key of the job that ended; None if the trial continues.
    """

    def work(cursor: Cursor) -> None:
        cursor.execute(
            "INSERT INTO dnas_records VALUES (%s, %s, %s) ON CONFLICT (study, path) DO UPDATE SET body = %s",
            (database.study, path, body, body),
        )
        if ended is not None:
            _delete_jobs(database, cursor, [ended])

    run_fenced(database, work)


def finish_study(database: Database, done: str) -> None:
    """Mark the study as done with the text `done` and delete the remaining jobs, which ends them on their workers."""

    def work(cursor: Cursor) -> None:
        cursor.execute("UPDATE dnas_studies SET done = %s WHERE name = %s", (done, database.study))
        cursor.execute("DELETE FROM dnas_jobs WHERE study = %s", (database.study,))
        cursor.execute("DELETE FROM dnas_messages WHERE study = %s", (database.study,))

    run_fenced(database, work)


# --- jobs ---------------------------------------------------------------------------------------------------------


def queue_job(database: Database, key: str, attempt: int, job: Mapping[str, Any], *, replace: bool) -> int:
    """Queue a job, or adopt the existing job of this key.

    Args:
        key: key of the job.
        attempt: number of this attempt at the job.
        job: the job as plain values.
        replace: whether an existing job has ended and been handled. Otherwise it was queued by an earlier proposer and
            is adopted if it trains the same network in the same way.

    Returns:
        The attempt under which the job is stored.
    """

    def work(cursor: Cursor) -> int:
        row = cursor.execute(
            "SELECT attempt, job FROM dnas_jobs WHERE study = %s AND key = %s FOR UPDATE", (database.study, key)
        ).fetchone()
        if row is not None:
            repeated = row[0] == attempt  # this very call, whose connection died during COMMIT
            if repeated or (not replace and _training_of(json.loads(row[1])) == _training_of(job)):
                return int(row[0])
            _delete_jobs(database, cursor, [key])
        cursor.execute(
            "INSERT INTO dnas_jobs (study, key, attempt, job, state) VALUES (%s, %s, %s, %s, 'queued')",
            (database.study, key, attempt, json.dumps(job)),
        )
        return attempt

    return run_fenced(database, work)


def delete_jobs(database: Database, keys: Iterable[str]) -> None:
    """Delete jobs with their messages; their workers stop them at the next heartbeat."""
    run_fenced(database, lambda cursor: _delete_jobs(database, cursor, keys))


def _delete_jobs(database: Database, cursor: Cursor, keys: Iterable[str]) -> None:
    keys = list(keys)
    cursor.execute("DELETE FROM dnas_jobs WHERE study = %s AND key = ANY(%s)", (database.study, keys))
    cursor.execute("DELETE FROM dnas_messages WHERE study = %s AND key = ANY(%s)", (database.study, keys))


def expire_jobs(database: Database) -> list[tuple[str, int, str]]:
    """Delete the jobs of dead workers; return the key, attempt and host of each."""
    database.run(database.touch)
    query = f"""
        DELETE FROM dnas_jobs WHERE study = %s AND state = 'claimed' AND {database.expired("dnas_jobs")}
        RETURNING key, attempt, host"""

    def work(cursor: Cursor) -> list[tuple[str, int, str]]:
        jobs = cursor.execute(query, (database.study,)).fetchall()
        _delete_jobs(database, cursor, [key for key, _, _ in jobs])
        return jobs

    return run_fenced(database, work)


def queued_keys(database: Database) -> set[str]:
    """Return the keys of the jobs that no worker has claimed."""
    query = "SELECT key FROM dnas_jobs WHERE study = %s AND state = 'queued'"
    return {key for (key,) in database.rows(query, (database.study,))}


def count_slots(database: Database) -> int:
    """Return the number of jobs that all living workers can run at once."""
    query = f"SELECT coalesce(sum(slots), 0) FROM dnas_hosts WHERE study = %s AND {LIVE}"
    row = database.row(query, (database.study,))
    return int(row[0]) if row else 0


def count_jobs(database: Database) -> int:
    """Return the number of jobs that are queued, or claimed by a living or a dead worker."""
    query = "SELECT count(*) FROM dnas_jobs WHERE study = %s AND state IN ('queued', 'claimed')"
    row = database.row(query, (database.study,))
    return int(row[0]) if row else 0


# --- messages -----------------------------------------------------------------------------------------------------


def read_messages(database: Database) -> list[StoredMessage]:
    """Return the messages that have not been handled, in order."""
    query = "SELECT id, key, attempt, kind, body FROM dnas_messages WHERE study = %s ORDER BY id"
    rows = database.rows(query, (database.study,))
    return [StoredMessage(id, key, attempt, kind, json.loads(body)) for id, key, attempt, kind, body in rows]


def delete_messages(database: Database, ids: Iterable[int]) -> None:
    """Delete messages that have been handled."""
    ids = list(ids)
    run_fenced(database, lambda cursor: cursor.execute("DELETE FROM dnas_messages WHERE id = ANY(%s)", (ids,)))


def answer_epoch(database: Database, message: StoredMessage, go_on: bool) -> None:
    """Answer an `epoch` message with whether the job continues, and delete the message."""
    answer = "UPDATE dnas_jobs SET answered = %s, go_on = %s WHERE study = %s AND key = %s AND attempt = %s"
    epoch = message.values["epoch"]

    def work(cursor: Cursor) -> None:
        cursor.execute(answer, (epoch, go_on, database.study, message.key, message.attempt))
        cursor.execute("DELETE FROM dnas_messages WHERE id = %s", (message.id,))

    run_fenced(database, work)


# --- checkpoints --------------------------------------------------------------------------------------------------


def checkpointed_keys(database: Database) -> list[str]:
    """Return the keys of the jobs that have checkpoints in the shared storage."""
    query = "SELECT DISTINCT key FROM dnas_files WHERE study = %s"
    return [key for (key,) in database.rows(query, (database.study,))]


def forget_checkpoints(database: Database, key: str) -> None:
    query = "DELETE FROM dnas_files WHERE study = %s AND key = %s"
    run_fenced(database, lambda cursor: cursor.execute(query, (database.study, key)))


def _training_of(job: Mapping[str, Any]) -> str:
    """Return the part of a job that determines its result, without host and attempt."""
    return json.dumps([job[name] for name in ("spec", "recipe", "seed", "final", "recompute")], sort_keys=True)
