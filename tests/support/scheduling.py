"""Distribution of the tests over pytest-xdist's processes."""

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController


class GroupScheduling(LoadGroupScheduling):
    """`--dist loadgroup` that survives a crashed process.

    xdist 3.8 puts a test that crashed its process back into the queue, where it crashes one process after another,
    until none is left and the run hangs.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Take a process out, return the test that crashed it, and give its other tests to the other processes."""
        units = self.assigned_work.pop(node)
        pending = [(unit, test) for unit in units.values() for test, completed in unit.items() if not completed]
        if not pending:
            return None
        unit, crashed = pending[0]
        unit[crashed] = True
        self.workqueue.update({scope: unit for scope, unit in units.items() if not all(unit.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed
