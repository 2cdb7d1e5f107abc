"""Files: atomic writes, which leave the old or the new file after a kill, TOML, and the endings of output files."""

import errno
import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, AnyStr

from dnas.errors import InputError

# A path of a Unix socket has at most 107 bytes, or 103 on macOS. multiprocessing adds about 32 to $TMPDIR.
LONGEST_TMPDIR = 70
FORMATS = ("svg", "png", "pdf")  # of figures
NETWORK_FORMATS = ("safetensors", "onnx")
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


def complete_lines(content: AnyStr) -> AnyStr:
    """Return the lines of a log without a last one that a kill or a full disk left torn."""
    end: AnyStr = b"\n" if isinstance(content, bytes) else "\n"
    return content[: content.rfind(end) + 1]


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark. Raises `InputError` for another encoding."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} is not UTF-8 (line {line}); save it with this encoding.") from None


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """Parse TOML. An `InputError` names the file `where` it came from."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}.") from None


def read_toml(path: Path) -> dict[str, Any]:
    return parse_toml(read_text(path), path)


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


def shorten_socket_paths() -> None:
    """Let multiprocessing create its sockets in /tmp if $TMPDIR is too long for them."""
    import multiprocessing.util
    import tempfile

    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_TMPDIR:
        return
    for short in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.access(short, os.W_OK):
            tempfile.tempdir = short
            try:
                multiprocessing.util.get_temp_dir()  # creates a folder once per process, for all sockets
            finally:
                tempfile.tempdir = folder
            return


def check_format(path: Path | str, formats: Sequence[str] = FORMATS) -> str:
    """Return the format that the suffix of `path` names, one of `formats`. Raises `InputError` if it is another one."""
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in formats:
        *others, last = [f".{name}" for name in formats]
        raise InputError(f"the file must end with {', '.join(others)} or {last}, but got {Path(path).name!r}.")
    return kind
