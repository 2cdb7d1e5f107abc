"""A study in a PostgreSQL database: what several hosts without a common scheduler agree on."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg

from dnas.cluster.address import Address
from dnas.cluster.tables import LIVE, SCHEMA, TABLES
from dnas.errors import InputError, did_you_mean
from dnas.executors.lease import EXPIRY_SECONDS, LeaseLost

LONGEST_PAUSE = 2.0  # seconds between two attempts to reach a database
STARTING_SECONDS = 60.0  # so long a database may say that it is starting up

T = TypeVar("T")
Cursor = psycopg.Cursor[Any]


class Stopped(RuntimeError):
    """This process is about to end, and waits for no database any more."""


# --- one study ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beat:
    """What a heartbeat found: the jobs that are still this worker's, key -> attempt; whether it proposes; `done`."""

    jobs: dict[str, int]
    proposes: bool
    done: str | None


@dataclass(frozen=True)
class Said:
    """A message of a worker, as the proposer reads it."""

    id: int
    key: str
    attempt: int
    kind: str
    values: dict[str, Any]


class Storage:
    """One study in a database, for one worker process; each thread has its own connection.

    `InputError` where the database can't be used at all. Later, whatever goes wrong with the connection is waited for:
    noted once, and once when it is over. stop: ends all waiting with `Stopped`.
    """

    def __init__(
        self,
        url: str,
        study: str,
        note: Callable[[str], None] = lambda text: None,
        *,
        expiry_seconds: float | None = None,
    ) -> None:
        self.address, self.study, self.note = Address(url), study, note
        self.owner, self.host = uuid.uuid4().hex, socket.gethostname()
        self.expiry_seconds = expiry_seconds or EXPIRY_SECONDS
        self.stop = threading.Event()
        self._local = threading.local()
        self._open: list[psycopg.Connection[Any]] = []
        self._lock = threading.Lock()
        self._failures = 0
        self._reached = -float("inf")  # when it was reached again, by the monotonic clock
        self._moment = 0.0, 0.0  # the database's clock and the monotonic one
        try:
            self._make_tables(self._first_connection())
        except psycopg.Error as error:
            raise self._refused(error) from None
        self.run(self._tell_time)

    def __str__(self) -> str:
        return str(self.address)

    def close(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    # connections

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(**self.address.arguments, autocommit=True)  # type: ignore[arg-type]
        # A process that is frozen in a transaction must not hold its locks for ever.
        wait = int(1000 * max(1.0, self.expiry_seconds / 2))
        connection.execute(
            "SELECT set_config('idle_in_transaction_session_timeout', %s, false), set_config('timezone', 'UTC', false)",
            (str(wait),),
        )
        connection.execute(  # what is committed must outlive a crash of the database
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        with self._lock:
            self._open.append(connection)
        self._local.connection = connection
        return connection

    def _first_connection(self) -> psycopg.Connection[Any]:
        began = time.monotonic()
        while True:
            try:
                return self._connect()
            except psycopg.OperationalError as error:
                if "starting up" not in str(error) or time.monotonic() - began > STARTING_SECONDS:
                    raise InputError(
                        f"the database {self} can't be reached: {self.address.clean(error)};"
                        " check host, user, password and database."
                    ) from None
                time.sleep(0.2)

    def _connection(self) -> psycopg.Connection[Any]:
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is not None and not connection.closed:
            return connection
        if connection is not None:
            with self._lock:
                self._open.remove(connection)
            self._local.connection = None
        return self._connect()

    def run(self, work: Callable[[Cursor], T]) -> T:
        """What `work` gives, in a transaction of its own; repeated until the database has done it."""
        pause = 0.05
        while not self.stop.is_set():
            connection: psycopg.Connection[Any] | None = None
            try:
                connection = self._connection()
                with connection.transaction(), connection.cursor() as cursor:
                    result = work(cursor)
            except psycopg.Error as error:
                lost = connection is None or connection.closed
                if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and connection is not None:
                    connection.close()  # a standby, until it takes over
                elif not lost and not isinstance(error, psycopg.OperationalError):
                    raise self._refused(error) from None
                self._fail(error, lost)
                self.stop.wait(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)
                continue
            self._succeed()
            return result
        raise Stopped

    def _fail(self, error: Exception, lost: bool) -> None:
        with self._lock:
            self._failures += 1
            self._reached = time.monotonic() if lost else self._reached
            if self._failures != 2:  # one alone is a deadlock, or a short break
                return
        self.note(f"the database does not answer; waiting ({self.address.clean(error)})")

    def _succeed(self) -> None:
        if not self._failures:
            return
        with self._lock:
            failures, self._failures = self._failures, 0
        if failures >= 2:
            self.note("the database is back")

    def _refused(self, error: psycopg.Error) -> InputError:
        return InputError(f"the database {self} refused: {self.address.clean(error)}.")

    def _make_tables(self, connection: psycopg.Connection[Any]) -> None:
        def version() -> int | None:
            if connection.execute("SELECT to_regclass('dnas_schema')").fetchone() == (None,):
                return None
            row = connection.execute("SELECT max(version) FROM dnas_schema").fetchone()
            return int(row[0]) if row and row[0] is not None else None

        try:
            with connection.transaction():
                found = version()
                if found is None:
                    connection.execute("SELECT pg_advisory_xact_lock(7043017)")  # of several first ones, one makes them
                    if (found := version()) is None:
                        connection.execute(TABLES)
                        connection.execute("INSERT INTO dnas_schema VALUES (%s)", (SCHEMA,))
                        found = SCHEMA
        except psycopg.errors.InsufficientPrivilege as error:
            raise InputError(
                f"the database {self} does not let this user create tables ({self.address.clean(error)}); let its"
                " owner GRANT CREATE ON SCHEMA public, or give a database of its own."
            ) from None
        if found != SCHEMA:
            raise InputError(
                f"the database {self} holds tables of another dnas (version {found}, this one knows {SCHEMA});"
                " use the same dnas on all hosts, or another database."
            )

    # time

    def _tell_time(self, cursor: Cursor) -> None:
        self._moment = _time(cursor).timestamp(), time.monotonic()

    def clock(self) -> float:
        """The database's clock, seconds since 1970: as the last heartbeat saw it, and what has passed since."""
        then, at = self._moment
        return then + time.monotonic() - at

    def now(self) -> str:
        return _text_of(datetime.fromtimestamp(self.clock(), UTC))

    def _tick(self, cursor: Cursor) -> None:
        """Notes that a worker is heard, and whether there was a break before. Before anybody is judged."""
        cursor.execute(
            f"""UPDATE dnas_studies SET seen = clock_timestamp(), resumed = CASE
                WHEN seen + {self._expiry()} / 2 < clock_timestamp() THEN clock_timestamp() ELSE resumed END
            WHERE name = %s""",
            (self.study,),
        )

    def _dead(self, table: str) -> str:
        """SQL: whether the holder of a row of `table` is dead."""
        if time.monotonic() - self._reached < self.expiry_seconds:
            return "false"  # others may have been cut off as this process was
        unbroken = (
            f"(SELECT resumed + {self._expiry()} < clock_timestamp() FROM dnas_studies WHERE name = {table}.study)"
        )
        return f"({table}.expires < clock_timestamp() AND {unbroken})"

    def _expiry(self) -> str:
        return f"interval '{self.expiry_seconds:f} seconds'"

    def _expires(self) -> str:
        return f"clock_timestamp() + {self._expiry()}"

    # the study

    def studies(self) -> list[str]:
        return [
            name for (name,) in self.run(lambda c: c.execute("SELECT name FROM dnas_studies ORDER BY 1").fetchall())
        ]

    def read(self) -> tuple[str, str, str | None] | None:
        """The study's id, config and `done`; None where there is none."""
        query = "SELECT id, config, done FROM dnas_studies WHERE name = %s"
        row: tuple[str, str, str | None] | None = self.run(lambda c: c.execute(query, (self.study,)).fetchone())
        return row

    def missing(self) -> InputError:
        known = self.studies()
        return InputError(
            f"no study {self.study!r} in {self}; there are {', '.join(known) or 'none yet'}."
            f"{did_you_mean(self.study, known)} To begin one, give --space and --trials."
        )

    def create(self, id: str, config: str) -> None:
        """Begins the study, unless another host did."""
        query = """INSERT INTO dnas_studies VALUES (%s, %s, %s, NULL, clock_timestamp(), '-infinity')
            ON CONFLICT DO NOTHING"""
        self.run(lambda c: c.execute(query, (self.study, id, config)))

    def reopen(self, config: str) -> None:
        """Lets a study that is done go on, with `config`."""
        query = "UPDATE dnas_studies SET config = %s, done = NULL WHERE name = %s AND done IS NOT NULL"
        self.run(lambda c: c.execute(query, (config, self.study)))

    def events(self) -> list[str]:
        query = "SELECT line FROM dnas_events WHERE study = %s ORDER BY seq"
        return [line for (line,) in self.run(lambda c: c.execute(query, (self.study,)).fetchall())]

    def records(self) -> dict[str, str]:
        query = "SELECT path, body FROM dnas_records WHERE study = %s"
        return dict(self.run(lambda c: c.execute(query, (self.study,)).fetchall()))

    def results(self) -> dict[str, str]:
        """Key -> the folder with its files, in the shared folder."""
        query = "SELECT key, name FROM dnas_results WHERE study = %s"
        return dict(self.run(lambda c: c.execute(query, (self.study,)).fetchall()))

    # what only the proposer does: each holds its lease's row

    def take_lease(self) -> bool:
        """Whether this worker proposes from now on: nobody did, or who did is dead."""
        self.run(self._tick)
        query = f"""
            INSERT INTO dnas_leases SELECT name, 'proposer', %s, %s, {self._expires()} FROM dnas_studies
            WHERE name = %s AND done IS NULL
            ON CONFLICT (study, role) DO UPDATE SET owner = excluded.owner, host = excluded.host,
                expires = excluded.expires
            WHERE dnas_leases.owner = excluded.owner OR {self._dead("dnas_leases")}
            RETURNING owner"""
        return self.run(lambda c: c.execute(query, (self.owner, self.host, self.study)).fetchone()) is not None

    def release_lease(self) -> None:
        self.run(lambda c: c.execute("DELETE FROM dnas_leases WHERE study = %s AND owner = %s", self._me()))

    def _me(self) -> tuple[str, str]:
        return self.study, self.owner

    def _as_proposer(self, work: Callable[[Cursor], T]) -> T:
        """`run`, with the lease's row locked; raises `LeaseLost` where it is another's."""

        def fenced(cursor: Cursor) -> T:
            query = "SELECT 1 FROM dnas_leases WHERE study = %s AND owner = %s AND role = 'proposer' FOR UPDATE"
            if cursor.execute(query, self._me()).fetchone() is None:
                raise LeaseLost(f"another host proposes for study {self.study}")
            return work(cursor)

        return self.run(fenced)

    def append(self, seq: int, event: Mapping[str, Any]) -> str:
        """Makes `event` line number `seq` of the log, with the database's time; the line."""
        line: str | None = None

        def work(cursor: Cursor) -> str:
            nonlocal line
            line = line or json.dumps({"time": _text_of(_time(cursor)), **event})
            found = cursor.execute(
                "SELECT line FROM dnas_events WHERE study = %s AND seq = %s", (self.study, seq)
            ).fetchone()
            if found is None:
                cursor.execute("INSERT INTO dnas_events VALUES (%s, %s, %s)", (self.study, seq, line))
            elif found[0] != line:  # an equal one is ours: the connection died in its COMMIT
                raise LeaseLost(f"another host has written event {seq} of study {self.study}")
            return line

        return self._as_proposer(work)

    def write_config(self, text: str) -> None:
        query = "UPDATE dnas_studies SET config = %s WHERE name = %s"
        self._as_proposer(lambda c: c.execute(query, (text, self.study)))

    def write_record(self, path: str, body: str, ended: str | None) -> None:
        """ended: the key of the training that is over with this record; its job goes with the same commit."""

        def work(cursor: Cursor) -> None:
            cursor.execute(
                "INSERT INTO dnas_records VALUES (%s, %s, %s) ON CONFLICT (study, path) DO UPDATE SET body = %s",
                (self.study, path, body, body),
            )
            if ended is not None:
                self._drop(cursor, [ended])

        self._as_proposer(work)

    def finish(self, done: str) -> None:
        """Says that the study is done, or why it ended; whatever still runs is told so."""

        def work(cursor: Cursor) -> None:
            cursor.execute("UPDATE dnas_studies SET done = %s WHERE name = %s", (done, self.study))
            cursor.execute("DELETE FROM dnas_jobs WHERE study = %s", (self.study,))
            cursor.execute("DELETE FROM dnas_messages WHERE study = %s", (self.study,))

        self._as_proposer(work)

    def start_job(self, key: str, attempt: int, job: Mapping[str, Any], *, afresh: bool) -> int:
        """Queues a training, or adopts the one of this key that is there; the attempt that it is known by.

        afresh: the one that is there has ended, and was heard. Else it is another host's that proposed before, and is
        adopted if it trains the same.
        """

        def work(cursor: Cursor) -> int:
            row = cursor.execute(
                "SELECT attempt, job FROM dnas_jobs WHERE study = %s AND key = %s FOR UPDATE", (self.study, key)
            ).fetchone()
            if row is not None:
                mine = row[0] == attempt  # this very call, before the connection died
                if mine or (not afresh and _essence(json.loads(row[1])) == _essence(job)):
                    return int(row[0])
                self._drop(cursor, [key])
            cursor.execute(
                "INSERT INTO dnas_jobs (study, key, attempt, job, state) VALUES (%s, %s, %s, %s, 'queued')",
                (self.study, key, attempt, json.dumps(job)),
            )
            return attempt

        return self._as_proposer(work)

    def _drop(self, cursor: Cursor, keys: Iterable[str]) -> None:
        keys = list(keys)
        cursor.execute("DELETE FROM dnas_jobs WHERE study = %s AND key = ANY(%s)", (self.study, keys))
        cursor.execute("DELETE FROM dnas_messages WHERE study = %s AND key = ANY(%s)", (self.study, keys))

    def drop_jobs(self, keys: Iterable[str]) -> None:
        """Ends trainings, wherever they run, and forgets what they said."""
        self._as_proposer(lambda c: self._drop(c, keys))

    def heard(self, ids: Iterable[int]) -> None:
        """Removes messages that were handled."""
        ids = list(ids)
        self._as_proposer(lambda c: c.execute("DELETE FROM dnas_messages WHERE id = ANY(%s)", (ids,)))

    def answer(self, key: str, attempt: int, epoch: int, go_on: bool, id: int) -> None:
        def work(cursor: Cursor) -> None:
            cursor.execute(
                "UPDATE dnas_jobs SET answered = %s, go_on = %s WHERE study = %s AND key = %s AND attempt = %s",
                (epoch, go_on, self.study, key, attempt),
            )
            cursor.execute("DELETE FROM dnas_messages WHERE id = %s", (id,))

        self._as_proposer(work)

    def said(self) -> list[Said]:
        """What workers said and nobody handled, in order."""
        query = "SELECT id, key, attempt, kind, body FROM dnas_messages WHERE study = %s ORDER BY id"
        rows = self.run(lambda c: c.execute(query, (self.study,)).fetchall())
        return [Said(id, key, attempt, kind, json.loads(body)) for id, key, attempt, kind, body in rows]

    def expire(self) -> list[tuple[str, int, str]]:
        """Takes the jobs of dead workers away from them: key, attempt, host."""
        self.run(self._tick)
        query = f"""
            DELETE FROM dnas_jobs WHERE study = %s AND state = 'claimed' AND {self._dead("dnas_jobs")}
            RETURNING key, attempt, host"""

        def work(cursor: Cursor) -> list[tuple[str, int, str]]:
            found = cursor.execute(query, (self.study,)).fetchall()
            self._drop(cursor, [key for key, _, _ in found])
            return found

        return self._as_proposer(work)

    def queued(self) -> set[str]:
        query = "SELECT key FROM dnas_jobs WHERE study = %s AND state = 'queued'"
        return {key for (key,) in self.run(lambda c: c.execute(query, (self.study,)).fetchall())}

    def slots(self) -> int:
        """How many trainings the living workers take at once."""
        query = f"SELECT coalesce(sum(slots), 0) FROM dnas_hosts WHERE study = %s AND {LIVE}"
        row = self.run(lambda c: c.execute(query, (self.study,)).fetchone())
        return int(row[0]) if row else 0

    def under_way(self) -> int:
        """How many trainings are queued or claimed, by the living or the dead."""
        query = "SELECT count(*) FROM dnas_jobs WHERE study = %s AND state IN ('queued', 'claimed')"
        row = self.run(lambda c: c.execute(query, (self.study,)).fetchone())
        return int(row[0]) if row else 0

    def checkpointed(self) -> list[str]:
        """The keys with checkpoints in the shared folder."""
        query = "SELECT DISTINCT key FROM dnas_files WHERE study = %s"
        return [key for (key,) in self.run(lambda c: c.execute(query, (self.study,)).fetchall())]

    def forget_checkpoints(self, key: str) -> None:
        query = "DELETE FROM dnas_files WHERE study = %s AND key = %s"
        self._as_proposer(lambda c: c.execute(query, (self.study, key)))

    # what a worker does

    def beat(self, slots: int) -> Beat:
        """Says that this worker lives; what is still its own."""

        def work(cursor: Cursor) -> Beat:
            self._tell_time(cursor)
            self._tick(cursor)
            lease = cursor.execute(
                f"UPDATE dnas_leases SET expires = {self._expires()} WHERE study = %s AND owner = %s RETURNING 1",
                self._me(),
            ).fetchone()
            cursor.execute(
                f"""INSERT INTO dnas_hosts VALUES (%s, %s, %s, %s, {self._expires()})
                ON CONFLICT (study, owner) DO UPDATE SET expires = excluded.expires""",
                (self.study, self.owner, self.host, slots),
            )
            jobs = cursor.execute(
                f"""UPDATE dnas_jobs SET expires = {self._expires()}
                WHERE study = %s AND owner = %s AND state = 'claimed' RETURNING key, attempt""",
                self._me(),
            ).fetchall()
            done = cursor.execute("SELECT done FROM dnas_studies WHERE name = %s", (self.study,)).fetchone()
            return Beat(dict(jobs), lease is not None, done[0] if done else "removed from the database")

        return self.run(work)

    def leave(self) -> None:
        """Gives back what this worker holds, so that the others need not wait; only one attempt is made."""
        try:
            connection = psycopg.connect(**self.address.arguments, autocommit=True)  # type: ignore[arg-type]
            with connection, connection.transaction(), connection.cursor() as cursor:
                cursor.execute("DELETE FROM dnas_leases WHERE study = %s AND owner = %s", self._me())
                cursor.execute("DELETE FROM dnas_hosts WHERE study = %s AND owner = %s", self._me())
                cursor.execute(
                    """UPDATE dnas_jobs SET state = 'queued', owner = NULL, host = NULL, expires = NULL
                    WHERE study = %s AND owner = %s AND state = 'claimed'""",
                    self._me(),
                )
        except psycopg.Error:
            return  # they expire

    def claim(self, known: Iterable[str]) -> tuple[str, int, dict[str, Any]] | None:
        """A queued job that is this worker's from now on: key, attempt, job. known: those that it carries already."""
        known = list(known)

        def work(cursor: Cursor) -> tuple[str, int, dict[str, Any]] | None:
            row = cursor.execute(  # claimed by a call whose COMMIT was not heard of
                """SELECT key, attempt, job FROM dnas_jobs
                WHERE study = %s AND owner = %s AND state = 'claimed' AND key <> ALL(%s) LIMIT 1""",
                (self.study, self.owner, known),
            ).fetchone()
            row = (
                row
                or cursor.execute(
                    f"""UPDATE dnas_jobs SET state = 'claimed', owner = %s, host = %s, expires = {self._expires()}
                WHERE study = %s AND state = 'queued' AND key = (SELECT key FROM dnas_jobs
                    WHERE study = %s AND state = 'queued' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
                RETURNING key, attempt, job""",
                    (self.owner, self.host, self.study, self.study),
                ).fetchone()
            )
            return None if row is None else (row[0], row[1], json.loads(row[2]))

        return self.run(work)

    def held(self) -> dict[str, tuple[int, int | None, bool | None]]:
        """This worker's jobs: key -> attempt, the epoch answered last, and the answer."""
        query = """SELECT key, attempt, answered, go_on FROM dnas_jobs
            WHERE study = %s AND owner = %s AND state = 'claimed'"""
        rows = self.run(lambda c: c.execute(query, self._me()).fetchall())
        return {key: (attempt, answered, go_on) for key, attempt, answered, go_on in rows}

    def holds(self, key: str, attempt: int) -> bool:
        return self.held().get(key, (None,))[0] == attempt

    def say(
        self,
        key: str,
        attempt: int,
        kind: str,
        values: Mapping[str, Any],
        *,
        ends: bool = False,
        checkpoint: tuple[int, int, str, float | None] | None = None,
        result: str | None = None,
        finished: bool = False,
    ) -> list[str]:
        """Tells the proposer something of a job; `LeaseLost` where it is not this worker's any more.

        checkpoint: planned epochs, epoch, name and validation error of one that lies in the shared folder; result: the
        folder with the files of a training that ended; finished: its checkpoints are not needed any more. Gives the
        names in the shared folder that nobody needs now.
        """
        nonce, body = uuid.uuid4().hex, json.dumps(values)

        def work(cursor: Cursor) -> list[str]:
            held = cursor.execute(
                "SELECT 1 FROM dnas_jobs WHERE study = %s AND key = %s AND attempt = %s AND owner = %s FOR UPDATE",
                (self.study, key, attempt, self.owner),
            ).fetchone()
            if held is None:
                raise LeaseLost(f"job {key} of study {self.study} is another's")
            cursor.execute(
                """INSERT INTO dnas_messages (nonce, study, key, attempt, kind, body) VALUES (%s, %s, %s, %s, %s, %s)
                ON CONFLICT (nonce) DO NOTHING""",
                (nonce, self.study, key, attempt, kind, body),
            )
            if ends:
                cursor.execute("UPDATE dnas_jobs SET state = 'ended' WHERE study = %s AND key = %s", (self.study, key))
            stale = self._keep_checkpoint(cursor, key, checkpoint) if checkpoint else []
            if finished:
                query = "DELETE FROM dnas_files WHERE study = %s AND key = %s RETURNING name"
                stale += [name for (name,) in cursor.execute(query, (self.study, key)).fetchall()]
            return stale + (self._keep_result(cursor, key, result) if result else [])

        return self.run(work)

    def _keep_checkpoint(self, cursor: Cursor, key: str, checkpoint: tuple[int, int, str, float | None]) -> list[str]:
        """Notes a checkpoint; of a training the last and the best stay, the names of the others."""
        planned, epoch, name, error = checkpoint
        cursor.execute(
            """INSERT INTO dnas_files VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT (study, key, planned, epoch) DO UPDATE SET name = excluded.name, error = excluded.error""",
            (self.study, key, planned, epoch, name, error),
        )
        stale = cursor.execute(
            """DELETE FROM dnas_files WHERE study = %(study)s AND key = %(key)s AND (planned <> %(planned)s
                OR epoch <> %(epoch)s AND epoch <> (SELECT epoch FROM dnas_files
                    WHERE study = %(study)s AND key = %(key)s AND planned = %(planned)s
                    ORDER BY error NULLS LAST, epoch LIMIT 1)) RETURNING name""",
            {"study": self.study, "key": key, "planned": planned, "epoch": epoch},
        ).fetchall()
        return [name for (name,) in stale]

    def _keep_result(self, cursor: Cursor, key: str, name: str) -> list[str]:
        before = cursor.execute(
            "SELECT name FROM dnas_results WHERE study = %s AND key = %s AND name <> %s", (self.study, key, name)
        ).fetchall()
        cursor.execute(
            "INSERT INTO dnas_results VALUES (%s, %s, %s) ON CONFLICT (study, key) DO UPDATE SET name = excluded.name",
            (self.study, key, name),
        )
        return [name for (name,) in before]

    def checkpoint(self, key: str, planned: int) -> tuple[int, str] | None:
        """Epoch and name of the furthest checkpoint of a training."""
        query = """SELECT epoch, name FROM dnas_files WHERE study = %s AND key = %s AND planned = %s
            ORDER BY epoch DESC LIMIT 1"""
        row: tuple[int, str] | None = self.run(lambda c: c.execute(query, (self.study, key, planned)).fetchone())
        return row


def _essence(job: Mapping[str, Any]) -> str:
    """What a job trains, whoever started it how often."""
    return json.dumps([job[name] for name in ("spec", "recipe", "seed", "final", "recompute")], sort_keys=True)


def _time(cursor: Cursor) -> datetime:
    rows: list[tuple[datetime]] = cursor.execute("SELECT clock_timestamp()").fetchall()
    return rows[0][0]


def _text_of(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
