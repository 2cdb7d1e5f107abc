"""Functions that tests run on Ray's nodes instead of a training run."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from dnas.executors.worker import Job, Message

Send, Ask = Callable[[Message], None], Callable[[Message], bool]


def fail(job: Job, send: Send, ask: Ask) -> None:
    """Fail with an error, which is another one if Ray's actor has imported torch.

    This process was forked from a server that the actor started.
    """
    actor = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]
    assert "libtorch" not in Path(f"/proc/{actor}/maps").read_text(), "Ray's actor has imported torch"
    Path(job.folder, "traceback.txt").write_text("ValueError: no good")
    send(Message("failed", {"reason": "error", "text": "ValueError: no good"}))


def die(job: Job, send: Send, ask: Ask) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(job: Job, send: Send, ask: Ask) -> None:
    os.abort()


def nap(job: Job, send: Send, ask: Ask) -> None:
    """Sleep, and write the times and the GPU instead of a curve."""
    began = time.time()
    time.sleep(1.5)
    span = {"from": began, "to": time.time(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    Path(job.folder, "curve.csv").write_text(json.dumps(span))
    row = {"epoch": 1, "train_loss": 1.0, "train_error": 0.5, "val_loss": 1.0, "val_error": 0.5}
    ask(Message("epoch", row | {"learning_rate": 0.1, "seconds": 1.5}))
    done = {"finished": True, "epochs": 1, "val_error": 0.5, "val_loss": 1.0, "seconds": 1.5}
    send(Message("done", done | {"peak_memory_bytes": 1, "weights_digest": "0"}))
