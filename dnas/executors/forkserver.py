"""The process that worker processes are forked from: it has imported torch, and nothing has run in it.

No torch here: the command line starts the server first, so that it imports while the driver does the same.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOAD = ["dnas.executors.worker", "torch._dynamo"]  # the optimiser imports it, in every trial


def start_forkserver() -> ForkServerContext:
    """The context whose processes come from the server; starts it where it does not run yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
    return context
