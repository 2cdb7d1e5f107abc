"""Every test of trackers runs in a folder of its own, with a report, which takes long to draw."""

import os
import time
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path("reports/s/index.html")
    page.parent.mkdir(parents=True)
    page.write_text("the report")
    os.utime(page, (time.time() + 10**6,) * 2)  # newer than any record
