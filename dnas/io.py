"""Writing so that a kill leaves the old file or the new one, and a full disk is one clear line."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dnas.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(InputError):
    """There was no room for a file; what had been written before it is untouched."""


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turns the operating system's word for a full disk into a `DiskFull` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"no room left to write {path} ({error.strerror}): free some space and run the same command again;"
            " it goes on from what is there."
        ) from None


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces `path` by `content` in one step: readers and kills see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with room_for(path), beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def remove_torn(folder: Path) -> None:
    """Removes what kills in the middle of `write_atomic` left in a folder that nobody else writes to."""
    for path in folder.glob(".*.[0-9]*"):
        path.unlink(missing_ok=True)
