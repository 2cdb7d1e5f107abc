"""Connection of one process to a PostgreSQL database: connect, retry, transactions and the database's clock.

The statements that run on it are in `queries`, `proposer` and `jobs`.
"""

import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg

from dnas.cluster.address import Address
from dnas.cluster.tables import SCHEMA, TABLES
from dnas.errors import InputError
from dnas.executors.lease import EXPIRY_SECONDS

MAX_RETRY_SECONDS = 2.0  # longest pause between two attempts to reach a database
STARTUP_SECONDS = 60.0  # time that a database may take to start up before it counts as unreachable
SCHEMA_LOCK = 7043017  # advisory lock under which the tables are created

T = TypeVar("T")
Cursor = psycopg.Cursor[Any]


class Stopped(RuntimeError):
    """This process is shutting down and no longer waits for a database."""


class Database:
    """Access of one process to the database of a study. Each thread has its own connection.

    The constructor raises `InputError` if the database cannot be used at all. Later connection errors are retried
    without a limit: `note` is called once when an outage begins and once when it ends. Setting `stop` ends all
    retries with `Stopped`.

    Args:
        url: address of the database, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`.
        study: name of the study.
        note: receives messages for the user.
        expiry_seconds: time without a heartbeat after which a process counts as dead (default: 20 s).
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
        self._last_outage = -float("inf")  # monotonic time of the last lost connection
        self._clock_reading = 0.0, 0.0  # the database's clock and the monotonic clock at the same moment
        try:
            self._create_tables(self._first_connection())
        except psycopg.Error as error:
            raise self._refused(error) from None
        self.run(self.read_clock)

    def __str__(self) -> str:
        return str(self.address)

    def close(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    # --- connections ----------------------------------------------------------------------------------------------

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection that belongs to the calling thread."""
        connection = psycopg.connect(**self.address.arguments, autocommit=True)  # type: ignore[arg-type]
        # A process that freezes inside a transaction must not hold its locks forever.
        timeout = int(1000 * max(1.0, self.expiry_seconds / 2))
        connection.execute(
            "SELECT set_config('idle_in_transaction_session_timeout', %s, false), set_config('timezone', 'UTC', false)",
            (str(timeout),),
        )
        connection.execute(  # committed data must survive a crash of the database
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
                return self.connect()
            except psycopg.OperationalError as error:
                if "starting up" not in str(error) or time.monotonic() - began > STARTUP_SECONDS:
                    raise InputError(
                        f"cannot reach the database {self}: {self.address.clean(error)};"
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
        return self.connect()

    # --- transactions ---------------------------------------------------------------------------------------------

    def run(self, work: Callable[[Cursor], T]) -> T:
        """Execute `work` in its own transaction and return its result; retry until the database has committed it.

        `work` must be idempotent. If the connection dies during COMMIT, the transaction may have been committed and
        `work` runs a second time.
        """
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
                self._count_failure(error, lost=lost)
                self.stop.wait(pause)
                pause = min(MAX_RETRY_SECONDS, 2 * pause)
                continue
            self._end_outage()
            return result
        raise Stopped

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> None:
        """Execute one statement in its own transaction."""
        self.run(lambda cursor: cursor.execute(query, values))

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of one statement."""
        return self.run(lambda cursor: cursor.execute(query, values).fetchall())

    def row(self, query: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """Return the first row of one statement; None if it has no rows."""
        return next(iter(self.rows(query, values)), None)

    def _count_failure(self, error: Exception, *, lost: bool) -> None:
        """Record a failed attempt. lost: there was no connection, so other hosts may be cut off as well."""
        with self._lock:
            self._failures += 1
            self._last_outage = time.monotonic() if lost else self._last_outage
            if self._failures != 2:  # a single failure is a deadlock or a short interruption
                return
        self.note(f"the database does not answer; waiting ({self.address.clean(error)})")

    def _end_outage(self) -> None:
        if not self._failures:
            return
        with self._lock:
            failures, self._failures = self._failures, 0
        if failures >= 2:
            self.note("the database is back")

    def _refused(self, error: psycopg.Error) -> InputError:
        return InputError(f"the database {self} refused a statement: {self.address.clean(error)}.")

    # --- tables ---------------------------------------------------------------------------------------------------

    def _create_tables(self, connection: psycopg.Connection[Any]) -> None:
        """Create the tables unless they exist; raise `InputError` if their version is another one."""
        try:
            with connection.transaction():
                version = _schema_version(connection)
                if version is None:
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
                    version = _schema_version(connection)  # another process may have created them meanwhile
                    if version is None:
                        connection.execute(TABLES)
                        connection.execute("INSERT INTO dnas_schema VALUES (%s)", (SCHEMA,))
                        version = SCHEMA
        except psycopg.errors.InsufficientPrivilege as error:
            raise InputError(
                f"the database {self} does not let this user create tables ({self.address.clean(error)}); let its"
                " owner GRANT CREATE ON SCHEMA public, or use another database."
            ) from None
        if version != SCHEMA:
            raise InputError(
                f"the database {self} holds tables of another dnas version (schema {version}, this version uses"
                f" {SCHEMA}); install the same dnas on all hosts, or use another database."
            )

    # --- time -----------------------------------------------------------------------------------------------------

    def read_clock(self, cursor: Cursor) -> None:
        """Synchronise `clock` with the database's clock."""
        self._clock_reading = server_time(cursor).timestamp(), time.monotonic()

    def clock(self) -> float:
        """Return the database's time in seconds since 1970, extrapolated from the last reading."""
        server, monotonic = self._clock_reading
        return server + time.monotonic() - monotonic

    def now(self) -> str:
        """Return the database's time as ISO 8601 text."""
        return time_text(datetime.fromtimestamp(self.clock(), UTC))

    # --- expiry ---------------------------------------------------------------------------------------------------

    def touch(self, cursor: Cursor) -> None:
        """Record that a process of the study is connected, and the time if all of them were cut off before.

        This must be called before any process is declared dead.
        """
        cursor.execute(
            f"""UPDATE dnas_studies SET seen = clock_timestamp(), resumed = CASE
                WHEN seen + {self._expiry()} / 2 < clock_timestamp() THEN clock_timestamp() ELSE resumed END
            WHERE name = %s""",
            (self.study,),
        )

    def expired(self, table: str) -> str:
        """Return the SQL condition under which the owner of a row of `table` is dead."""
        if time.monotonic() - self._last_outage < self.expiry_seconds:
            return "false"  # other processes may have been cut off as this one was
        connected = (
            f"(SELECT resumed + {self._expiry()} < clock_timestamp() FROM dnas_studies WHERE name = {table}.study)"
        )
        return f"({table}.expires < clock_timestamp() AND {connected})"

    def expires(self) -> str:
        """Return the SQL expression for the time at which a row written now expires."""
        return f"clock_timestamp() + {self._expiry()}"

    def _expiry(self) -> str:
        return f"interval '{self.expiry_seconds:f} seconds'"


def _schema_version(connection: psycopg.Connection[Any]) -> int | None:
    """Return the version of the tables; None if there are none."""
    if connection.execute("SELECT to_regclass('dnas_schema')").fetchone() == (None,):
        return None
    row = connection.execute("SELECT max(version) FROM dnas_schema").fetchone()
    return int(row[0]) if row and row[0] is not None else None


def server_time(cursor: Cursor) -> datetime:
    rows: list[tuple[datetime]] = cursor.execute("SELECT clock_timestamp()").fetchall()
    return rows[0][0]


def time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
