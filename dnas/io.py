"""Atomic file writes, which leave the old or the new file after a kill, and a clear error for a full disk."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dnas.errors import InputError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(InputError):
    """The disk is full. Files written earlier are unchanged."""


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Convert the operating system's error for a full disk to a `DiskFull` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiskFull(
            f"no space left to write {path} ({error.strerror}); free some space and run the same command again to"
            " resume."
        ) from None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` in one step, so that readers and kills see the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with room_for(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def expanded(path: Path | str) -> Path:
    """Return `path` with `~` or `~user` replaced by the home folder. Raises `InputError` for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} begins with the home folder of an unknown user; give the whole path.") from None


def remove_torn(folder: Path) -> None:
    """Remove temporary files of killed `write_atomic` calls from a folder that no other process writes to."""
    for path in folder.glob(".*.[0-9]*"):
        path.unlink(missing_ok=True)
