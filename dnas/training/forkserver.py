"""The server that training processes are forked from, which has imported torch and has run nothing else.

This module does not import torch. The command line starts the server first, so that the server imports torch while the
driver imports it.
"""

import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from types import ModuleType

from dnas.io import shorten_socket_paths

PRELOAD = ["dnas.executors.preload"]


def start_forkserver(modules: Sequence[str] = ()) -> ForkServerContext:
    """Start the server if it is not running, and return the context whose processes are forked from it.

    modules: Further modules that a new server imports.
    """
    shorten_socket_paths()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, *modules])
    forkserver.ensure_running()
    return context


def start(process: BaseProcess) -> None:
    """Start a process of the server that does not import the program of this one.

    multiprocessing imports the main script in each process that it starts. A script without an `if __name__ ==
    "__main__"` guard would start its search again in every worker, and Ray's own program takes half a second.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
