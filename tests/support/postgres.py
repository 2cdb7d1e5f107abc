"""PostgreSQL server of the tests with its own folder and port, which can be killed and restarted."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from tests.support.patience import patience

PASSWORD = "s3cret:w/th@signs"  # URLs may contain it with or without escapes


def binary(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, which Debian does not add to PATH."""
    paths = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    path = shutil.which(name) or (str(paths[0]) if paths else None)
    assert path, f"the tests need PostgreSQL's {name}: apt-get install postgresql, or put it on PATH"
    return path


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Server:
    """PostgreSQL on a free port of this machine. Since it refuses to run as root, root starts it as another user."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dnas-postgres-", dir="/tmp"))
        self.data, self.port = self.folder / "data", free_port()
        self.user: dict[str, object] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self.user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [binary("initdb"), "-D", self.data, "-U", "owner", "--pwfile", secret, "-A", "scram-sha-256"]
        self._run([*command, "-E", "UTF8", "--locale=C", "--no-sync"])
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, command: list[object]) -> None:
        process = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self.user,  # type: ignore[call-overload]
        )
        assert process.returncode == 0, process.stderr

    def start(self) -> None:
        command = [binary("postgres"), "-D", self.data, "-p", self.port, "-k", self.folder, "-h", "127.0.0.1"]
        command += ["-c", "autovacuum=off", "-c", "max_connections=60", "-c", "shared_buffers=16MB", "-c", "fsync=off"]
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=self.folder,
            stdout=log,
            stderr=log,
            **self.user,  # type: ignore[call-overload]
        )
        log.close()
        began = time.monotonic()
        while True:
            try:
                self.sql("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() - began < patience(60)
                time.sleep(0.05)

    def kill(self) -> None:
        """Stop the server as a crash would: SIGQUIT is an immediate shutdown without a checkpoint."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(patience(30))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, query: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="owner", password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(query)  # type: ignore[arg-type]
            with suppress(psycopg.ProgrammingError):  # no rows
                return cursor.fetchall()
        return []

    def database(self, name: str) -> str:
        """Create a database and return its URL, with the password unescaped."""
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://owner:{PASSWORD}@127.0.0.1:{self.port}/{name}"
