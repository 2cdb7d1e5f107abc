"""The server that training processes are forked from, which has imported torch and has run nothing else.

This module does not import torch. The command line starts the server first, so that the server imports torch while the
driver imports it.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from dnas.io import shorten_socket_paths

PRELOAD = ["dnas.executors.preload"]


def start_forkserver() -> ForkServerContext:
    """Start the server if it is not running, and return the context whose processes are forked from it."""
    shorten_socket_paths()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()
    return context
