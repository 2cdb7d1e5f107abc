"""CPU seconds per test of the test process and its descendants, since wall time means little on a busy machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS_PER_TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


def cpu_seconds() -> float:
    """Return the CPU seconds that this process, its living descendants and their reaped children have used."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended
        process = int(stat.parent.name)
        parents[process] = int(fields[1])
        used[process] = sum(int(field) for field in fields[11:15])

    def descends(process: int) -> bool:
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return SECONDS_PER_TICK * sum(ticks for process, ticks in used.items() if descends(process))


class CpuTimes:
    """Append one line per test, its CPU seconds and its name, to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before = cpu_seconds()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            with self.path.open("a") as file:
                file.write(f"{cpu_seconds() - before:8.2f} {item.nodeid}\n")
