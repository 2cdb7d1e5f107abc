"""Launch a command in N processes of this host, as torchrun would, for `dnas train --gpus N`.

torch.distributed.run is not used: after a failure it prints a page about each process, and it starts every process by
importing torch.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from torch.distributed import TCPStore

from dnas.errors import InputError
from dnas.formatting import several
from dnas.training.forkserver import start, start_forkserver

LOST_PEER = 75  # exit status of a process that ends because another one has ended; it prints nothing
# Seconds for the process of rank 0 to report the same failure, and to leave the terminal in order.
GRACE_SECONDS = 5.0

Command = Callable[[Any], int]


def launch(command: Command, config: Any, count: int, resume_hint: str, debug: bool = False) -> int:
    """Run `command(config)` in `count` processes that see torchrun's environment variables.

    The process of rank 0 owns the terminal. The output of the others is discarded, except the standard error of the
    process that caused a failure. When one process fails, the others are ended.

    Args:
        command: A function that processes can import; returns an exit status.
        config: Its argument, which must be picklable.
        count: Number of processes.
        resume_hint: Sentence on how to resume, printed after Ctrl-C and for a process that was killed.
        debug: Print the traceback of an `InputError` instead of one line.

    Returns:
        The exit status: 0 if every process returned 0, else the status of the process that caused the failure.
    """
    context = start_forkserver()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    with TemporaryDirectory(prefix="dnas-") as folder:
        error_files = [Path(folder) / str(rank) for rank in range(count)]
        processes = [
            context.Process(target=_run, args=(command, config, rank, count, store.port, str(error_files[rank]), debug))
            for rank in range(count)
        ]
        handler = signal.signal(signal.SIGINT, _interrupt_once)
        try:
            for process in processes:
                start(process)
            statuses = _wait_for_end(processes)
        except KeyboardInterrupt:
            _end(processes)
            print(f"\nstopped; {resume_hint}")
            return 130
        finally:
            _end(processes)
            signal.signal(signal.SIGINT, handler)
        return _exit_status(statuses, error_files, resume_hint)


def _interrupt_once(*_: object) -> None:
    """Handle Ctrl-C once. A second one must not interrupt the cleanup: Python would wait for the processes at exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _wait_for_end(processes: Sequence[BaseProcess]) -> dict[int, int]:
    """Wait for all processes, or for the first failure.

    Returns the exit status by rank of the processes that ended by themselves, in the order in which they ended.
    """
    statuses: dict[int, int] = {}
    deadline = float("inf")
    while len(statuses) < len(processes) and time.monotonic() < deadline:
        sentinels = [process.sentinel for rank, process in enumerate(processes) if rank not in statuses]
        wait(sentinels, None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
        for rank, process in enumerate(processes):
            if rank not in statuses and process.exitcode is not None:
                statuses[rank] = process.exitcode
        if any(statuses.values()):
            if 0 in statuses:
                break
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return statuses


def _end(processes: Sequence[BaseProcess]) -> None:
    """Terminate the running processes, and kill those that do not react.

    A process inside a collective operation with a dead peer never reacts to SIGTERM.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    started = [process for process in processes if process.pid is not None]
    killed = False
    for process in started:
        process.terminate()
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in started:
        if process.is_alive():
            killed = True
            process.kill()
            process.join()
    if killed and sys.stdout.isatty():
        Console().show_cursor()


def _exit_status(statuses: dict[int, int], error_files: list[Path], resume_hint: str) -> int:
    """Return the exit status of the command, and print the failure unless rank 0 has printed it."""
    failed = {rank: status for rank, status in statuses.items() if status}
    if not failed:
        return 0
    for rank, status in failed.items():
        if status < 0:
            name = signal.Signals(-status).name
            print(f"dnas: the process of rank {rank} was ended by {name}; {resume_hint}", file=sys.stderr)
            return 1
    if failed.get(0, LOST_PEER) != LOST_PEER:
        return failed[0]  # rank 0 has printed the reason
    for rank, status in failed.items():
        if status != LOST_PEER:
            print(error_files[rank].read_text(errors="replace"), end="", file=sys.stderr)
            return status
    count = several(len(error_files), "process", "processes")
    print(f"dnas: the {count} lost contact with one another; {resume_hint}", file=sys.stderr)
    return 1


def _run(command: Command, config: Any, rank: int, count: int, port: int, error_file: str, debug: bool) -> None:
    """Run the command in one process. Ctrl-C is ignored here: the launching command handles it and ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the launching command holds the store
        TORCHELASTIC_RESTART_COUNT="0",
    )
    if sys.platform == "linux":  # works on a host whose own name does not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if rank == 0:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(LOST_PEER))  # leaves the terminal in order
    else:
        null, errors = os.open(os.devnull, os.O_WRONLY), os.open(error_file, os.O_WRONLY | os.O_CREAT, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(null, 1)
        os.dup2(errors, 2)
    try:
        status = command(config)
    except InputError as error:
        if debug:
            raise
        print(f"dnas: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _end_with_parent() -> None:
    """End this process as soon as the launching command ends."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(LOST_PEER)

    threading.Thread(target=watch, daemon=True).start()
