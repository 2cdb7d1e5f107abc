"""Who may write to a trial's folder: a lease file in the folder, kept alive by a beat.

    lease.json   {"owner", "host", "pid", "process_started", "attempt", "beat", "since"}

Holder and taker may sit on different hosts that share the folder. No clock is compared with another host's: whoever
waits watches the beat against its own monotonic clock. On the holder's own host a process that is gone is seen at once.

Why two can't hold it: the first taker links a whole file into place, which succeeds once; whoever replaces a dead
holder's file locks that very file (flock: the kernel frees it when its process dies), and looks whether it is still the
one in the folder. A beat is written into the holder's own file, never by name: a holder that was taken for dead, and
wakes, beats into a file that is in no folder any more. The file system must have flock, link and an atomic rename.
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
EXPIRY_SECONDS = 20.0  # a beat that stood still so long is a dead holder's: a holder may be slow, or its disk
POLL_SECONDS = 0.05
BEAT_DIGITS = 12  # the beat's place in the file has one width, so that it is overwritten where it stands


@dataclass(frozen=True)
class LeaseInfo:
    """What a lease file says. `process_started` tells a process from a later one with its pid: see `process_start`;
    `beat` counts up while the holder lives; `since` is UTC, for people."""

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
    """Somebody else holds the lease, and lives."""

    def __init__(self, info: LeaseInfo) -> None:
        super().__init__(f"its folder is in use by {info}")
        self.info = info


class LeaseLost(RuntimeError):
    """The lease names another owner by now, or nobody: what this process would write, it must not."""


class Lease:
    """A lease that this process holds. As a context manager it beats from a thread, and releases at the end."""

    def __init__(self, path: Path, owner: str, file: IO[bytes], beat_seconds: float) -> None:
        self.path = path
        self.owner = owner
        self._file = file  # open as long as it is held: a beat goes here, whatever stands at `path`
        self._beat_seconds = beat_seconds
        self._beats = 0
        self._end = threading.Event()
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
        """The lease of `folder`, from nobody or from a dead holder; `LeaseHeld` if after `wait_seconds` (unless given,
        long enough to know) its holder still lives. On another host that takes `expiry_seconds` to know."""
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
        """Counts the beat up; raises `LeaseLost` where the lease is another's."""
        self.check()
        self._beats += 1
        content = os.pread(self._file.fileno(), 4096, 0)
        start = content.index(b'"beat": ') + len(b'"beat": ')
        os.pwrite(self._file.fileno(), b"%-*d" % (BEAT_DIGITS, self._beats), start)
        os.fsync(self._file.fileno())  # a network file system would keep it to itself

    def check(self) -> None:
        """Raises `LeaseLost` unless the lease file in the folder is this lease's."""
        info = _parse(_read(self.path) or b"")
        if info.owner != self.owner:
            raise LeaseLost(f"{self.path} is held by {info}" if info.owner else f"{self.path} is gone")

    def release(self) -> None:
        """Gives the lease back, if it is still this one; nothing of it stays in the folder."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._file.closed:
            return
        with self._file, suppress(OSError):
            # Nobody replaces it between the look and the removal; and whoever is about to, shall.
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
        while not self._end.wait(self._beat_seconds):
            try:
                self.beat()
            except LeaseLost:
                return  # `check` says so to whoever is about to write
            except OSError as error:  # a full or slow disk now may be none at the next beat
                if error.errno == errno.ESTALE:
                    return


def read_lease(folder: Path) -> LeaseInfo | None:
    """Who holds the lease of `folder`, dead or alive; None where nobody does. A file that can't be read as a lease has
    an owner without a name."""
    content = _read(folder / NAME)
    return None if content is None else _parse(content)


class Watch:
    """A look at the heartbeat in a worker's folder, by a clock of the watcher's own: seconds that only go forward."""

    def __init__(self, folder: Path, clock: float = 0.0) -> None:
        self.folder = folder
        self._looked = self._seen = clock
        self._beat: tuple[str, int] | None = None

    def silent(self, clock: float) -> bool:
        """Whether the beat has stood still for `EXPIRY_SECONDS`. A folder without a lease is not silent."""
        if clock - self._looked < EXPIRY_SECONDS / 10:
            return False
        self._looked = clock
        lease = read_lease(self.folder)
        beat = None if lease is None else (lease.owner, lease.beat)
        if beat is None or beat != self._beat:
            self._beat, self._seen = beat, clock
        return clock - self._seen > EXPIRY_SECONDS


def is_dead(info: LeaseInfo) -> bool | None:
    """Whether the holder's process is gone, seen at once on its own host; None from another, where only the beat says.
    One that is there may be frozen: whoever waits for it watches its beat as well."""
    host, system = info.host, info.process_started.rpartition("/")[0]
    if not info.owner or host != socket.gethostname() or system != _system():
        return None
    return process_start(info.pid) != info.process_started


def process_start(pid: int) -> str | None:
    """When a process of this host began, `boot/namespace/moment`, and None where there is none: no other process, since
    the host started or later, has the same pid and the same start."""
    try:
        # After the name, which may hold anything: state is field 3, the start, in clock ticks since boot, field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return None  # ended; its parent has not looked yet
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
    """This host since its last start, and the numbering of its processes: containers may share a name, but no pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "no /proc"


# --- the file -----------------------------------------------------------------------------------------------------


def _write_aside(path: Path, owner: str, attempt: int) -> Path:
    """A whole lease file beside `path`, under the name that `remove_torn` knows for what a kill left."""
    pid = os.getpid()
    start, since = process_start(pid) or "", datetime.now(UTC).isoformat(timespec="seconds")
    info = LeaseInfo(owner, socket.gethostname(), pid, start, attempt, 0, since)
    text = json.dumps(asdict(info)).replace('"beat": 0', f'"beat": {0:<{BEAT_DIGITS}}')
    beside = path.with_name(f".{path.name}.{pid}-{owner}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with room_for(path), beside.open("wb") as file:
            file.write(text.encode())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def _link(path: Path, owner: str, attempt: int) -> IO[bytes] | None:
    """Puts a lease of ours where there is none: our file, open; None where there is one."""
    if path.exists():
        return None
    beside = _write_aside(path, owner, attempt)
    try:
        return _opened(beside, lambda: os.link(beside, path))
    finally:
        beside.unlink(missing_ok=True)


def _replace(path: Path, content: bytes, owner: str, attempt: int) -> IO[bytes] | None:
    """Puts a lease of ours in the place of a dead holder's: our file, open; None where it is not that one any more."""
    try:
        theirs = path.open("r+b")
    except FileNotFoundError:
        return None
    with theirs:
        try:
            fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None  # another taker is about to
        if not _is_at(theirs, path) or theirs.read() != content:
            return None
        beside = _write_aside(path, owner, attempt)
        return _opened(beside, lambda: beside.replace(path))


def _opened(beside: Path, put: Callable[[], object]) -> IO[bytes] | None:
    """The file `beside`, open, after `put` has given it its name; None where another lease was first, whose holder may
    also have cleared `beside` away as torn."""
    try:
        file = beside.open("r+b")
    except FileNotFoundError:
        return None
    try:
        put()
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
