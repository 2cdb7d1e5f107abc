"""Folders of data files and of decoded images."""

import os
from pathlib import Path

from dnas.io import expanded


def data_folder(data_root: Path | None) -> Path:
    """Return the folder of the data files."""
    return expanded(data_root or os.environ.get("DNAS_DATA") or "~/.cache/dnas/data")


def cache_folder() -> Path:
    """Return the folder of the decoded images."""
    return expanded(os.environ.get("DNAS_CACHE") or "~/.cache/dnas/arrays")
