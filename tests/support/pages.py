"""Reports with fewer figures, which take most of the time of a report."""

import pytest

from dnas.report import PICTURES


def draw_only(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Draw some figures of the report of a search, by default none."""
    patch.setattr("dnas.report.figures.PICTURES", {name: PICTURES[name] for name in names})
