"""Default settings of training runs, which mostly depend on the machine."""

import os

DEFAULT_KERNELS = "auto"  # kernels of a new study or run
TINY_IMAGE = 16  # side in pixels up to which one thread is used, since a second one waits longer than it computes


def default_threads(workers: int, image_size: int) -> int:
    """Return the CPU threads of each run: an equal share of the cores, or one for tiny images."""
    return 1 if image_size <= TINY_IMAGE else max(1, cores() // workers)


def default_workers() -> int:
    """Return the number of runs at a time: one on a small machine, else one per four cores."""
    return max(1, cores() // 4)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
