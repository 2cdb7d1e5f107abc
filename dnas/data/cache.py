"""Cache of decoded images on disk.

Entries are written atomically: an entry is written to a temporary folder and renamed. If several processes write the
same entry, the first one wins and the others read its copy.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnas.data.images import Progress

DECODING_VERSION = 2  # increased whenever decoding or resizing changes, so that older entries are not used


@dataclass(frozen=True, eq=False)
class Decoded:
    """One decoded part of a data set, in memory or memory-mapped."""

    images: np.ndarray  # uint8 [N, C, H, W]
    labels: np.ndarray  # int64 [N]
    sums: np.ndarray  # int64 [N, C, 2]: sum and sum of squares of each image's pixels
    class_names: tuple[str, ...]
    resized: bool
    fingerprint: str
    notes: tuple[str, ...] = ()  # sentences on images that look wrong


def measured(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    resized: bool,
    notes: tuple[str, ...] = (),
) -> Decoded:
    """Add the pixel sums, from which mean and std of any subset follow, and a hex sha256 of all contents."""
    digest = hashlib.sha256(json.dumps([images.shape, class_names]).encode())
    sums = np.empty((*images.shape[:2], 2), dtype=np.int64)
    for start in range(0, len(images), 4096):
        block = np.ascontiguousarray(images[start : start + 4096])
        digest.update(block.data)
        wide = block.astype(np.uint32)
        sums[start : start + 4096, :, 0] = wide.sum(axis=(2, 3))
        sums[start : start + 4096, :, 1] = (wide * wide).sum(axis=(2, 3), dtype=np.uint64)
    digest.update(labels.astype("<i8").tobytes())
    return Decoded(images, labels, sums, class_names, resized, digest.hexdigest(), notes)


def cache_key(*parts: object) -> str:
    """Return a file name that is unique to `parts` (texts and numbers)."""
    return hashlib.sha256(json.dumps([DECODING_VERSION, *parts]).encode()).hexdigest()[:32]


def _open(entry: Path) -> Decoded | None:
    try:
        facts = json.loads((entry / "facts.json").read_text())
        return Decoded(
            # copy-on-write: torch requires a writable array, and the file is never changed
            np.load(entry / "images.npy", mmap_mode="c"),
            np.load(entry / "labels.npy"),
            np.load(entry / "sums.npy"),
            tuple(facts["class_names"]),
            facts["resized"],
            facts["fingerprint"],
            tuple(facts["notes"]),
        )
    except (OSError, ValueError, KeyError, EOFError):  # absent or damaged
        return None


def _write(entry: Path, decoded: Decoded) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        np.save(fresh / "images.npy", decoded.images)
        np.save(fresh / "labels.npy", decoded.labels)
        np.save(fresh / "sums.npy", decoded.sums)
        facts = {
            "class_names": decoded.class_names,
            "resized": decoded.resized,
            "fingerprint": decoded.fingerprint,
            "notes": decoded.notes,
        }
        (fresh / "facts.json").write_text(json.dumps(facts))
        try:
            fresh.replace(entry)
        except OSError:
            if _open(entry) is None:  # the existing entry is damaged, not a copy by another process
                shutil.rmtree(entry)
                fresh.replace(entry)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def decoded_once(folder: Path, key: str, compute: Callable[[], Decoded], progress: Progress) -> Decoded:
    """Return the entry `key` of the cache `folder`, memory-mapped. Compute and write it if it is missing."""
    entry = folder / key
    decoded = _open(entry)
    if decoded is None:
        decoded = compute()
        try:
            _write(entry, decoded)
        except OSError as error:
            progress(f"cannot write the cache {folder} ({error}); continuing without a cache")
        else:
            decoded = _open(entry) or decoded
    return decoded


def known_once(folder: Path, key: str, compute: Callable[[], Any], progress: Progress) -> Any:
    """Return a small JSON value of the cache `folder`. Compute and write it if it is missing."""
    path = folder / f"{key}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        value = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(value, file)
            Path(fresh).replace(path)
        finally:
            Path(fresh).unlink(missing_ok=True)
    except OSError as error:
        progress(f"cannot write the cache {folder} ({error}); continuing without a cache")
    return value
