"""A folder that several hosts see: a path on a shared disk, or any URL that fsspec knows, such as `s3://bucket/folder`.

What stands there is whole: a file on a disk is renamed into place, an object is one put.
"""

import os
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from dnas.errors import InputError
from dnas.formatting import redact
from dnas.io import room_for, write_atomic


class Shared:
    """Files by name, `/` between folders. `InputError` where the address is none, or its package is missing."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        try:
            self.files, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            package = "pip install 'dnas[s3]'" if self.address.startswith("s3:") else str(error)
            raise InputError(f"{self} needs a package that is not installed: {package}.") from None
        except (ValueError, OSError) as error:
            raise InputError(f"{self} is no folder or fsspec URL: {error}.") from None
        self.root = str(root).rstrip("/")
        self.local = "file" in self.files.protocol

    def __str__(self) -> str:
        return redact(self.address)

    def path(self, name: str) -> str:
        """The path of `name` in the file system `files`."""
        return f"{self.root}/{name}"

    def check(self) -> None:
        """`InputError` unless this host can write, read and remove there."""
        name, word = f".dnas-{uuid.uuid4().hex}", uuid.uuid4().bytes
        try:
            self.write(name, word)
            found = self.read(name)
            self.remove(name)
        except Exception as error:  # each file system has its own errors for the same few causes
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"this host can't write to {self}: {redact(text)}; give a folder that it can.") from None
        if found != word:
            raise InputError(f"{self} does not give back what was written to it.")

    def write(self, name: str, content: bytes) -> None:
        """Replaces the file `name`, in one step."""
        if self.local:
            write_atomic(Path(self.path(name)), content)
        else:
            self.files.pipe_file(self.path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes the file `name` where there is none, in one step: of many writers one gets True, the others False."""
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
        """What the file `name` holds; None where there is none."""
        try:
            content: bytes = self.files.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return content

    def names(self, folder: str = "") -> list[str]:
        """The names right in `folder`, without it, sorted; [] where it is not there. Never from a cache."""
        self.files.invalidate_cache()
        try:
            found: list[Any] = self.files.ls(f"{self.root}/{folder}".rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted({PurePosixPath(path).name for path in found} - {""})

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it; nothing where it is not there."""
        try:
            self.files.rm(self.path(name), recursive=True)
        except FileNotFoundError:
            return

    def get(self, name: str, to: Path) -> bool:
        """Copies the file `name` to the local file `to`, which is replaced in one step; False where there is none."""
        content = self.read(name)
        if content is None:
            return False
        write_atomic(to, content)
        return True

    def put(self, name: str, source: Path) -> None:
        """Copies the local file `source` to `name`, which is replaced in one step."""
        self.write(name, source.read_bytes())
