"""Functions that tests run on Ray's nodes instead of a training run."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dnas.arch import DenseNetSpec
from dnas.executors.worker import Job, Message
from dnas.training.checkpoint import CHECKPOINT_FORMAT, read_checkpoint
from tests.support.analytic import curve, epoch_row, result
from tests.support.studies import write_curve

Send, Ask = Callable[[Message], None], Callable[[Message], bool]


def fail(job: Job, send: Send, ask: Ask) -> None:
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


def formula(job: Job, send: Send, ask: Ask) -> None:
    """Report the epochs of `AnalyticExecutor`. A restarted job repeats the epochs that it had reported.

    Raises:
        AssertionError: Ray's actor, which started the server that this process was forked from, has imported torch.
    """
    actor = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]
    assert "libtorch" not in Path(f"/proc/{actor}/maps").read_text(), "Ray's actor has imported torch"
    errors = curve(DenseNetSpec.from_dict(job.spec), job.recipe["epochs"])
    rows = [epoch_row(number, error) for number, error in enumerate(errors, 1)]
    checkpoint = Path(job.folder, "checkpoint.pt")
    done = read_checkpoint(checkpoint)["epochs"] if checkpoint.exists() else 0
    write_curve(Path(job.folder), rows[:done])
    for row in rows:
        if row["epoch"] > done:
            write_curve(Path(job.folder), rows[: row["epoch"]])
            weights = {"error": torch.tensor(row["val_error"])}
            torch.save({"format": CHECKPOINT_FORMAT, "epochs": row["epoch"], "weights": weights}, checkpoint)
        ask(Message("epoch", row, {"peak_memory_bytes": 1}))
    send(Message("done", result(row, True)))
