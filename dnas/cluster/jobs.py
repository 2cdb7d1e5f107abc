"""Statements of a worker: heartbeats, claims, messages about its jobs, and their checkpoints."""

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from dnas.cluster.database import Cursor, Database
from dnas.executors.lease import LeaseLost


@dataclass(frozen=True)
class Heartbeat:
    """State of a worker at its last heartbeat.

    Attributes:
        jobs: the jobs that the worker still owns, key -> attempt.
        proposes: whether it owns the proposer's lease.
        done: how the study ended; None while it runs.
    """

    jobs: dict[str, int]
    proposes: bool
    done: str | None


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in the shared storage: epochs planned and trained, its name, and its validation error."""

    planned: int
    epoch: int
    name: str
    val_error: float | None


# --- the worker ---------------------------------------------------------------------------------------------------


def beat(database: Database, slots: int) -> Heartbeat:
    """Extend the expiry of everything that this worker owns, and return its state.

    slots: number of jobs that it can run at once.
    """
    mine = (database.study, database.owner)

    def work(cursor: Cursor) -> Heartbeat:
        database.read_clock(cursor)
        database.touch(cursor)
        lease = cursor.execute(
            f"UPDATE dnas_leases SET expires = {database.expires()} WHERE study = %s AND owner = %s RETURNING 1", mine
        ).fetchone()
        cursor.execute(
            f"""INSERT INTO dnas_hosts VALUES (%s, %s, %s, %s, {database.expires()})
            ON CONFLICT (study, owner) DO UPDATE SET expires = excluded.expires""",
            (*mine, database.host, slots),
        )
        jobs = cursor.execute(
            f"""UPDATE dnas_jobs SET expires = {database.expires()}
            WHERE study = %s AND owner = %s AND state = 'claimed' RETURNING key, attempt""",
            mine,
        ).fetchall()
        done = cursor.execute("SELECT done FROM dnas_studies WHERE name = %s", (database.study,)).fetchone()
        return Heartbeat(dict(jobs), lease is not None, done[0] if done else "removed from the database")

    return database.run(work)


def leave(database: Database) -> None:
    """Return this worker's jobs to the queue and release its leases, so that no other worker has to wait for expiry.

    There is a single attempt. If it fails, the rows expire.
    """
    mine = (database.study, database.owner)
    try:
        connection = psycopg.connect(**database.address.arguments, autocommit=True)  # type: ignore[arg-type]
        with connection, connection.transaction(), connection.cursor() as cursor:
            cursor.execute("DELETE FROM dnas_leases WHERE study = %s AND owner = %s", mine)
            cursor.execute("DELETE FROM dnas_hosts WHERE study = %s AND owner = %s", mine)
            cursor.execute(
                """UPDATE dnas_jobs SET state = 'queued', owner = NULL, host = NULL, expires = NULL
                WHERE study = %s AND owner = %s AND state = 'claimed'""",
                mine,
            )
    except psycopg.Error:
        return


# --- jobs ---------------------------------------------------------------------------------------------------------


def claim(database: Database, known: Iterable[str]) -> tuple[str, int, dict[str, Any]] | None:
    """Claim the first job of the queue; return its key, attempt and values. known: keys that this worker runs."""
    known = list(known)
    claimed_before = """SELECT key, attempt, job FROM dnas_jobs
        WHERE study = %s AND owner = %s AND state = 'claimed' AND key <> ALL(%s) LIMIT 1"""
    claim_first = f"""UPDATE dnas_jobs SET state = 'claimed', owner = %s, host = %s, expires = {database.expires()}
        WHERE study = %s AND state = 'queued' AND key = (SELECT key FROM dnas_jobs
            WHERE study = %s AND state = 'queued' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING key, attempt, job"""

    def work(cursor: Cursor) -> tuple[str, int, dict[str, Any]] | None:
        # A claim whose connection died during COMMIT comes first.
        row = cursor.execute(claimed_before, (database.study, database.owner, known)).fetchone()
        if row is None:
            values = (database.owner, database.host, database.study, database.study)
            row = cursor.execute(claim_first, values).fetchone()
        return None if row is None else (row[0], row[1], json.loads(row[2]))

    return database.run(work)


def held_jobs(database: Database) -> dict[str, tuple[int, int | None, bool | None]]:
    """Return this worker's jobs: key -> (attempt, epoch answered last, answer)."""
    query = """SELECT key, attempt, answered, go_on FROM dnas_jobs
        WHERE study = %s AND owner = %s AND state = 'claimed'"""
    rows = database.rows(query, (database.study, database.owner))
    return {key: (attempt, answered, go_on) for key, attempt, answered, go_on in rows}


def holds(database: Database, key: str, attempt: int) -> bool:
    """Return whether this attempt at a job still belongs to this worker."""
    return held_jobs(database).get(key, (None,))[0] == attempt


# --- messages -----------------------------------------------------------------------------------------------------


def send(
    database: Database,
    key: str,
    attempt: int,
    kind: str,
    values: Mapping[str, Any],
    *,
    ends: bool = False,
    checkpoint: StoredCheckpoint | None = None,
    result: str | None = None,
    finished: bool = False,
) -> list[str]:
    """Send the proposer a message about a job.

    Args:
        database: the study's database.
        key: key of the job.
        attempt: attempt at the job that this worker runs.
        kind: kind of the message.
        values: content of the message.
        ends: whether the job ends with this message.
        checkpoint: a new checkpoint in the shared storage.
        result: folder in the shared storage with the files of the ended job.
        finished: whether the checkpoints of the job are no longer needed.

    Returns:
        Names in the shared storage that are no longer needed.

    Raises:
        LeaseLost: if the job no longer belongs to this worker.
    """
    nonce, body = uuid.uuid4().hex, json.dumps(values)

    def work(cursor: Cursor) -> list[str]:
        held = cursor.execute(
            "SELECT 1 FROM dnas_jobs WHERE study = %s AND key = %s AND attempt = %s AND owner = %s FOR UPDATE",
            (database.study, key, attempt, database.owner),
        ).fetchone()
        if held is None:
            raise lost_job(database, key)
        cursor.execute(
            """INSERT INTO dnas_messages (nonce, study, key, attempt, kind, body) VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (nonce) DO NOTHING""",
            (nonce, database.study, key, attempt, kind, body),
        )
        if ends:
            cursor.execute("UPDATE dnas_jobs SET state = 'ended' WHERE study = %s AND key = %s", (database.study, key))
        stale = _keep_checkpoint(database, cursor, key, checkpoint) if checkpoint else []
        if finished:
            query = "DELETE FROM dnas_files WHERE study = %s AND key = %s RETURNING name"
            stale += [name for (name,) in cursor.execute(query, (database.study, key)).fetchall()]
        return stale + (_keep_result(database, cursor, key, result) if result else [])

    return database.run(work)


def lost_job(database: Database, key: str) -> LeaseLost:
    """Return the error for a job that now belongs to another worker."""
    return LeaseLost(f"job {key} of study {database.study} belongs to another worker")


# --- files in the shared storage ----------------------------------------------------------------------------------


def _keep_checkpoint(database: Database, cursor: Cursor, key: str, checkpoint: StoredCheckpoint) -> list[str]:
    """Store a checkpoint's name, and return the names of checkpoints to remove.

    A job keeps its last and its best checkpoint.
    """
    planned, epoch = checkpoint.planned, checkpoint.epoch
    cursor.execute(
        """INSERT INTO dnas_files VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (study, key, planned, epoch) DO UPDATE SET name = excluded.name, error = excluded.error""",
        (database.study, key, planned, epoch, checkpoint.name, checkpoint.val_error),
    )
    stale = cursor.execute(
        """DELETE FROM dnas_files WHERE study = %(study)s AND key = %(key)s AND (planned <> %(planned)s
            OR epoch <> %(epoch)s AND epoch <> (SELECT epoch FROM dnas_files
                WHERE study = %(study)s AND key = %(key)s AND planned = %(planned)s
                ORDER BY error NULLS LAST, epoch LIMIT 1)) RETURNING name""",
        {"study": database.study, "key": key, "planned": planned, "epoch": epoch},
    ).fetchall()
    return [name for (name,) in stale]


def _keep_result(database: Database, cursor: Cursor, key: str, name: str) -> list[str]:
    """Store the folder of a job's result; return the folder that it replaces."""
    replaced = cursor.execute(
        "SELECT name FROM dnas_results WHERE study = %s AND key = %s AND name <> %s", (database.study, key, name)
    ).fetchall()
    cursor.execute(
        "INSERT INTO dnas_results VALUES (%s, %s, %s) ON CONFLICT (study, key) DO UPDATE SET name = excluded.name",
        (database.study, key, name),
    )
    return [name for (name,) in replaced]


def furthest_checkpoint(database: Database, key: str, planned: int) -> tuple[int, str] | None:
    """Return the epoch and the name of a job's furthest checkpoint; None if it has none for `planned` epochs."""
    query = """SELECT epoch, name FROM dnas_files WHERE study = %s AND key = %s AND planned = %s
        ORDER BY epoch DESC LIMIT 1"""
    row = database.row(query, (database.study, key, planned))
    return None if row is None else (row[0], row[1])
