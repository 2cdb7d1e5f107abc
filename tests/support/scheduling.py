"""Distribution of the tests over pytest-xdist's processes."""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

GROUP = re.compile(r"^pytestmark = .*\bxdist_group\(\"([^\"]+)\"\)", re.MULTILINE)


@cache
def group_of(file: Path) -> str | None:
    """Return the name of the group that all tests of a file belong to, as its `pytestmark` states it."""
    match = GROUP.search(file.read_text())
    return match[1] if match else None


class GroupScheduling(LoadGroupScheduling):
    """`--dist loadgroup` that survives a crashed process, and groups under every version of pytest.

    xdist 3.8 puts a test that crashed its process back into the queue. It then crashes one process after another, until
    none is left and the run hangs. In addition, xdist stores a test's group in `item._nodeid`, which pytest 9.2 no
    longer reads. Each test would be a separate group, and each process would start its own Ray cluster.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return the group of a test; a test without one is a separate group."""
        return group_of(self.config.rootpath / nodeid.split("::")[0]) or nodeid

    def remove_node(self, node: WorkerController) -> str | None:
        """Remove a process, move its pending tests to other processes, and return the test that crashed it."""
        units = self.assigned_work.pop(node)
        pending = [(unit, test) for unit in units.values() for test, completed in unit.items() if not completed]
        if not pending:
            return None
        unit, crashed = pending[0]
        unit[crashed] = True
        self.workqueue.update({scope: unit for scope, unit in units.items() if not all(unit.values())})
        for other in self.assigned_work:
            if other in self.registered_collections:  # otherwise it has just started and requests tests when ready
                self._reschedule(other)
        return crashed
