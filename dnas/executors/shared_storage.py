"""Storage that several hosts share: a path on a shared disk, or any URL that fsspec knows, such as `s3://bucket/folder`.

Every file that exists is complete. On a disk it is renamed into place, and in an object store it is a single put.
"""

import os
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from dnas.errors import InputError
from dnas.formatting import first_line, redact
from dnas.io import room_for, write_atomic


class SharedStorage:
    """Storage of files by name, with `/` between folders.

    The constructor raises `InputError` if `address` is neither a folder nor a URL, or if its package is missing.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        try:
            self.files, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            package = "pip install 'dnas[s3]'" if self.address.startswith("s3:") else str(error)
            raise InputError(f"{self} needs a package that is not installed: {package}.") from None
        except (ValueError, OSError) as error:
            raise InputError(f"{self} is not a folder or fsspec URL: {error}.") from None
        self.root = str(root).rstrip("/")
        self.local = "file" in self.files.protocol

    def __str__(self) -> str:
        return redact(self.address)

    def path(self, name: str) -> str:
        """Return the path of `name` in the file system `files`."""
        return f"{self.root}/{name}"

    def check(self) -> None:
        """Raise `InputError` unless this host can write, read and remove files."""
        name, content = f".dnas-{uuid.uuid4().hex}", uuid.uuid4().bytes
        try:
            self.write(name, content)
            stored = self.read(name)
            self.remove(name)
        except Exception as error:  # each file system has its own errors for the same few causes
            raise InputError(
                f"this host cannot write to {self}: {first_line(error)}; give a folder or URL that is writable here."
            ) from None
        if stored != content:
            raise InputError(f"{self} does not return what was written to it; use another folder or URL.")

    def write(self, name: str, content: bytes) -> None:
        """Replace the file `name` atomically."""
        if self.local:
            write_atomic(Path(self.path(name)), content)
        else:
            self.files.pipe_file(self.path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Create the file `name` atomically. Of several writers exactly one receives True."""
        if not self.local:
            try:
                self.files.pipe_file(self.path(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        path = Path(self.path(name))
        beside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with room_for(path):
                beside.write_bytes(content)
            os.link(beside, path)
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)
        return True

    def read(self, name: str) -> bytes | None:
        """Return the content of the file `name`; None if it does not exist."""
        try:
            content: bytes = self.files.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names directly in `folder`; [] if it does not exist. Never from a cache."""
        self.files.invalidate_cache()
        try:
            paths: list[Any] = self.files.ls(f"{self.root}/{folder}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted({PurePosixPath(path).name for path in paths} - {""})

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it; do nothing if it does not exist."""
        try:
            self.files.rm(self.path(name), recursive=True)
        except FileNotFoundError:
            return

    def get(self, name: str, to: Path) -> bool:
        """Copy the file `name` to the local file `to`, which is replaced atomically; return False if it is missing."""
        content = self.read(name)
        if content is None:
            return False
        write_atomic(to, content)
        return True

    def put(self, name: str, source: Path) -> None:
        """Copy the local file `source` to `name`, which is replaced atomically."""
        self.write(name, source.read_bytes())
