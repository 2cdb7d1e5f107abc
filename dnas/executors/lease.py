"""Exclusive right to write to a trial's folder: a lease file in the folder, kept alive by heartbeats.

    lease.json   {"owner", "host", "pid", "process_started", "attempt", "beat", "since"}

The holder and a process that requests the lease may be on different hosts that share the folder. Clocks of different
hosts are never compared. A waiting process watches the beat with its own monotonic clock. On the holder's host, the
death of its process is detected at once.

Two processes cannot hold a lease. The first one links a complete file into place, which succeeds only once. A process
that replaces a dead holder's file locks that file (with flock, which the kernel releases when the process dies) and
checks that it is still the one in the folder. A beat is written to the holder's open file, never by name, so a holder
that was declared dead and wakes up writes to a file that is no longer in any folder. The file system must support
flock, hard links and atomic renames.
"""

import errno
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from dnas.io import room_for

NAME = "lease.json"
BEAT_SECONDS = 2.0
EXPIRY_SECONDS = 20.0  # time without a heartbeat after which a holder is dead; a slow host or disk may delay a beat
POLL_SECONDS = 0.05
BEAT_DIGITS = 12  # fixed width of the beat in the file, so that it can be overwritten in place


@dataclass(frozen=True)
class LeaseInfo:
    """Content of a lease file.

    Attributes:
        owner: random id of the lease.
        host: host of the holder.
        pid: process id of the holder.
        process_started: start of the holder's process, which distinguishes it from a later process with the same pid.
        attempt: attempt at the trial.
        beat: counter that the holder increments.
        since: UTC time at which the lease was taken, for information only.
    """

    owner: str
    host: str
    pid: int
    process_started: str
    attempt: int
    beat: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class LeaseHeld(RuntimeError):
    """Another living process holds the lease."""

    def __init__(self, info: LeaseInfo) -> None:
        super().__init__(f"its folder is in use by {info}")
        self.info = info


class LeaseLost(RuntimeError):
    """The lease has another owner or was removed, so this process must not write any more."""


class Lease:
    """A lease held by this process. As a context manager it sends heartbeats from a thread and releases at the end."""

    def __init__(self, path: Path, owner: str, file: IO[bytes], beat_seconds: float) -> None:
        self.path = path
        self.owner = owner
        self._file = file  # open while the lease is held; beats are written here, not to the file at `path`
        self._beat_seconds = beat_seconds
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def take(
        cls,
        folder: Path,
        attempt: int,
        wait_seconds: float | None = None,
        *,
        beat_seconds: float = BEAT_SECONDS,
        expiry_seconds: float = EXPIRY_SECONDS,
    ) -> Self:
        """Take the lease of `folder` if it is free or its holder is dead.

        Args:
            folder: folder to write to.
            attempt: attempt at the trial.
            wait_seconds: time to wait for the death of a holder (default: long enough to detect it). A dead holder on
                another host is detected after `expiry_seconds`.
            beat_seconds: interval between two heartbeats.
            expiry_seconds: time without a heartbeat after which a holder is dead.

        Raises:
            LeaseHeld: if the holder is still alive after `wait_seconds`.
        """
        wait_seconds = expiry_seconds + 2 * beat_seconds if wait_seconds is None else wait_seconds
        path, owner = folder / NAME, uuid.uuid4().hex
        began = watched = time.monotonic()
        seen: bytes | None = None
        while True:
            file = _link(path, owner, attempt)
            if file is not None:
                return cls(path, owner, file, beat_seconds)
            content = _read(path)
            now = time.monotonic()
            if content != seen:
                seen, watched = content, now
            info = _parse(content) if content is not None else None
            dead = info is not None and is_dead(info)
            if content is not None and (dead or now - watched >= expiry_seconds):
                file = _replace(path, content, owner, attempt)
                if file is not None:
                    return cls(path, owner, file, beat_seconds)
            if info is not None and now - began >= wait_seconds:
                raise LeaseHeld(info)
            time.sleep(min(POLL_SECONDS, expiry_seconds / 10))

    def beat(self) -> None:
        """Increment the beat; raise `LeaseLost` if another process owns the lease."""
        self.check()
        self._beats += 1
        content = os.pread(self._file.fileno(), 4096, 0)
        start = content.index(b'"beat": ') + len(b'"beat": ')
        os.pwrite(self._file.fileno(), b"%-*d" % (BEAT_DIGITS, self._beats), start)
        os.fsync(self._file.fileno())  # a network file system would delay it

    def check(self) -> None:
        """Raise `LeaseLost` unless the lease file in the folder belongs to this lease."""
        info = _parse(_read(self.path) or b"")
        if info.owner != self.owner:
            raise LeaseLost(f"{self.path} is held by {info}" if info.owner else f"{self.path} is gone")

    def release(self) -> None:
        """Release the lease and remove its file, unless another process has taken it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._file.closed:
            return
        with self._file, suppress(OSError):
            # The lock keeps others from replacing the file before it is removed. If another process has the lock, it
            # is about to replace the file, and there is nothing to remove.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(self._file, self.path) and _parse(self._file.read()).owner == self.owner:
                self.path.unlink()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            try:
                self.beat()
            except LeaseLost:
                return  # `check` raises it before the next write
            except OSError as error:  # a full or slow disk may recover by the next beat
                if error.errno == errno.ESTALE:
                    return


def read_lease(folder: Path) -> LeaseInfo | None:
    """Return the lease of `folder`, whether its holder is alive or dead; None if there is none.

    An unreadable lease file is returned as a lease with an empty owner.
    """
    content = _read(folder / NAME)
    return None if content is None else _parse(content)


class Watch:
    """Monitor of the heartbeat in a worker's folder, with a monotonic clock of the caller."""

    def __init__(self, folder: Path, clock: float = 0.0) -> None:
        self.folder = folder
        self._checked = self._changed = clock
        self._beat: tuple[str, int] | None = None

    def silent(self, clock: float) -> bool:
        """Return whether the last beat is older than `EXPIRY_SECONDS`. A folder without a lease is not silent."""
        if clock - self._checked < EXPIRY_SECONDS / 10:
            return False
        self._checked = clock
        lease = read_lease(self.folder)
        beat = None if lease is None else (lease.owner, lease.beat)
        if beat is None or beat != self._beat:
            self._beat, self._changed = beat, clock
        return clock - self._changed > EXPIRY_SECONDS


def is_dead(info: LeaseInfo) -> bool | None:
    """Return whether the holder's process has ended; None if it is on another host, which only the beat can show.

    A process that exists may be frozen, so a waiting process has to watch the beat as well.
    """
    host, system = info.host, info.process_started.rpartition("/")[0]
    if not info.owner or host != socket.gethostname() or system != _system():
        return None
    return process_start(info.pid) != info.process_started


def process_start(pid: int) -> str | None:
    """Return the start of a process of this host as `boot/namespace/moment`; None if there is no such process.

    No other process, before or after a reboot, has the same pid and the same start.
    """
    try:
        # After the name, which may contain any character: field 3 is the state, field 22 the start in ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return None  # ended, but not yet waited for by its parent
        moment = fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        run = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        moment = " ".join(run.stdout.split())
        if not moment:
            return None
    return f"{_system()}/{moment}"


@cache
def _system() -> str:
    """Return the boot id and pid namespace of this process. Containers may share a host name, but not their pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "no /proc"


# --- the file -----------------------------------------------------------------------------------------------------


def _write_aside(path: Path, owner: str, attempt: int) -> Path:
    """Write a complete lease file beside `path`, under a name that `remove_torn` removes if a kill leaves it behind."""
    pid = os.getpid()
    start, since = process_start(pid) or "", datetime.now(UTC).isoformat(timespec="seconds")
    info = LeaseInfo(owner, socket.gethostname(), pid, start, attempt, 0, since)
    text = json.dumps(asdict(info)).replace('"beat": 0', f'"beat": {0:<{BEAT_DIGITS}}')
    temporary = path.with_name(f".{path.name}.{pid}-{owner}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with room_for(path), temporary.open("wb") as file:
            file.write(text.encode())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link(path: Path, owner: str, attempt: int) -> IO[bytes] | None:
    """Create a lease; return its open file, or None if there is one already."""
    if path.exists():
        return None
    temporary = _write_aside(path, owner, attempt)
    try:
        return _opened(temporary, lambda: os.link(temporary, path))
    finally:
        temporary.unlink(missing_ok=True)


def _replace(path: Path, content: bytes, owner: str, attempt: int) -> IO[bytes] | None:
    """Replace a dead holder's lease; return the open file, or None if the lease file has changed.

    content: content of the dead holder's lease file.
    """
    try:
        old = path.open("r+b")
    except FileNotFoundError:
        return None
    with old:
        try:
            fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None  # another process is about to replace it
        if not _is_at(old, path) or old.read() != content:
            return None
        temporary = _write_aside(path, owner, attempt)
        return _opened(temporary, lambda: temporary.replace(path))


def _opened(temporary: Path, move: Callable[[], object]) -> IO[bytes] | None:
    """Move the file `temporary` into place with `move` and return it open; None if another lease was first.

    The holder of that lease may have removed `temporary` as a torn file.
    """
    try:
        file = temporary.open("r+b")
    except FileNotFoundError:
        return None
    try:
        move()
        return file
    except (FileExistsError, FileNotFoundError):
        file.close()
        return None
    except BaseException:
        file.close()
        raise


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> LeaseInfo:
    try:
        return LeaseInfo(**json.loads(content))
    except (ValueError, TypeError):
        return LeaseInfo("", "", 0, "", 0, 0, "")
