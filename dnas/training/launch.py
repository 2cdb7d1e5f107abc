"""`--gpus N`: this command again in N processes of this host, as torchrun would start them, and an eye on them.

Not torch.distributed.run: it ends with a page about the processes that failed, and starts each by importing torch.
"""

import argparse
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

from rich.console import Console
from torch.distributed import TCPStore

from dnas.errors import InputError
from dnas.executors.forkserver import start_forkserver
from dnas.formatting import several

LOST_PEER = 75  # the exit status of a process that ends because another is gone: it has nothing to say
GRACE_SECONDS = (
    5.0  # for what the first process may have to say of the same trouble, and to leave the terminal in order
)

Command = Callable[[argparse.Namespace], int]


def launch(command: Command, args: argparse.Namespace, count: int, go_on: str) -> int:
    """Runs `command(args)` in `count` processes, and gives the exit status: 0 where all gave 0, else that of the one
    that failed by itself. When one ends otherwise the others are ended too. All see torchrun's environment variables.

    command: a function that processes can import; the one of rank 0 has the terminal, the others are not heard unless
        they are the cause of the end.
    go_on: the sentence that tells how to go on, for a process that was killed and for Ctrl-C.
    """
    context = start_forkserver()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=5))
    with TemporaryDirectory(prefix="dnas-") as folder:
        words = [Path(folder) / str(rank) for rank in range(count)]
        processes = [
            context.Process(target=_run, args=(command, args, rank, count, store.port, str(words[rank])))
            for rank in range(count)
        ]
        before = signal.signal(signal.SIGINT, _interrupt_once)
        try:
            for process in processes:
                process.start()
            ended = _watch(processes)
        except KeyboardInterrupt:
            _end(processes)
            print(f"\nstopped; {go_on}")
            return 130
        finally:
            _end(processes)
            signal.signal(signal.SIGINT, before)
        return _verdict(ended, words, go_on)


def _interrupt_once(*_: object) -> None:
    """Ctrl-C, but a second one does not break off the tidying up: Python would wait for the processes at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _watch(processes: Sequence[BaseProcess]) -> dict[int, int]:
    """Waits for all, or for the first that fails. The exit status by rank of those that ended by themselves, the first
    one first."""
    ended: dict[int, int] = {}
    deadline = float("inf")
    while len(ended) < len(processes) and time.monotonic() < deadline:
        alive = [process.sentinel for rank, process in enumerate(processes) if rank not in ended]
        wait(alive, None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
        for rank, process in enumerate(processes):
            if rank not in ended and process.exitcode is not None:
                ended[rank] = process.exitcode
        if any(ended.values()):
            if 0 in ended:
                break
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return ended


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ends those that run, hard where they do not listen: a collective that waits for a dead process never does."""
    deadline = time.monotonic() + GRACE_SECONDS
    started = [process for process in processes if process.pid is not None]
    hung = False
    for process in started:
        process.terminate()
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in started:
        if process.is_alive():
            hung = True
            process.kill()
            process.join()
    if hung and sys.stdout.isatty():
        Console().show_cursor()


def _verdict(ended: dict[int, int], words: list[Path], go_on: str) -> int:
    failed = {rank: status for rank, status in ended.items() if status}
    if not failed:
        return 0
    for rank, status in failed.items():
        if status < 0:
            name = signal.Signals(-status).name
            print(f"dnas: the process of rank {rank} was ended by {name}; {go_on}", file=sys.stderr)
            return 1
    if failed.get(0, LOST_PEER) != LOST_PEER:
        return failed[0]  # it has said why
    for rank, status in failed.items():
        if status != LOST_PEER:
            print(words[rank].read_text(errors="replace"), end="", file=sys.stderr)
            return status
    print(f"dnas: the {several(len(words), 'process', 'processes')} lost one another; {go_on}", file=sys.stderr)
    return 1


def _run(command: Command, args: argparse.Namespace, rank: int, count: int, port: int, words: str) -> None:
    """What a process does. It hears no Ctrl-C: the command that launched it does, and ends it."""
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
        TORCHELASTIC_USE_AGENT_STORE="True",  # the launching command holds it
        TORCHELASTIC_RESTART_COUNT="0",
    )
    if sys.platform == "linux":  # a host whose own name leads nowhere can be left out
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if rank == 0:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(LOST_PEER))  # leaves the terminal in order
    else:
        nowhere, own = os.open(os.devnull, os.O_WRONLY), os.open(words, os.O_WRONLY | os.O_CREAT, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(nowhere, 1)
        os.dup2(own, 2)
    try:
        status = command(args)
    except InputError as error:
        if args.debug:
            raise
        print(f"dnas: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(LOST_PEER)

    threading.Thread(target=watch, daemon=True).start()
