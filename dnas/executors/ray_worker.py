"""A trial on a node of a Ray cluster: what Ray Tune runs there.

The training is a process of its own, as on one machine, so that its memory is given back and the actor can be used
again. It works in a private folder; what others need of it (checkpoint, curve, norms) goes with Ray's checkpoints.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from ray import tune

from dnas import __version__
from dnas.executors.lease import Watch
from dnas.executors.shared_storage import SharedStorage
from dnas.executors.worker import Job, Message, lost, run_body
from dnas.training.forkserver import start_forkserver

CARRIED = ("checkpoint.pt", "curve.csv", "norms.npz")  # of a trial's folder
STEP_SECONDS = 5.0  # at most so often Ray hears how far an epoch is
LOOK_SECONDS = 0.2
BODY = "dnas.executors.worker:run_job"


class WorkerLost(RuntimeError):
    """The process of a training run is gone or frozen; `message` is the `lost` message to report."""

    def __init__(self, message: Message) -> None:
        super().__init__(message.values["text"])
        self.message = message


def carry(config: dict[str, Any]) -> None:
    """The function that Ray Tune calls for each trial. config: see `pack`."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # an actor that is not free by then is lost to Tune, silently
    job, folder = unpack(config), Path(tempfile.mkdtemp(prefix="dnas-"))
    try:
        if config["dnas"] != __version__:
            text = f"this node has dnas {__version__}, the driver {config['dnas']}; install the same on each."
            _tell([Message("failed", {"reason": "input", "text": text})], {})
            return
        fetched = _fetch(config, folder)
        while True:
            try:
                with _process(replace(job, folder=str(folder)), config["body"]) as (pipe, process):
                    _pass_on(folder, pipe, process, fetched)
                return
            except WorkerLost as error:  # its checkpoint is here; the loop counts, and ends what is lost too often
                _tell([Message("lost", error.message.values | {"restarted": True})], {})
                fetched = (folder / "checkpoint.pt").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pack(job: Job, shared: str, start: str | None, body: str) -> dict[str, Any]:
    """The config of a trial: plain text, so that Ray takes nothing in it for a choice or a reference.

    start: the name of a checkpoint in `shared` to begin from; body: module:function in the place of `run_job`.
    """
    text = json.dumps(asdict(job), default=str)
    return {"job": text, "key": job.key, "shared": shared, "start": start, "body": body, "dnas": __version__}


def unpack(config: dict[str, Any]) -> Job:
    values = json.loads(config["job"])
    values["seed"] = tuple(values["seed"])
    if values["data"].get("data_root") is not None:
        values["data"]["data_root"] = Path(values["data"]["data_root"])
    return Job(**values)


def _fetch(config: dict[str, Any], folder: Path) -> bool:
    """Puts the checkpoint to go on from into `folder`: that of Ray, or the one that the driver names. False: none."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as found:
            shutil.copyfile(Path(found) / "checkpoint.pt", folder / "checkpoint.pt")
        return True
    return config["start"] is not None and SharedStorage(config["shared"]).get(
        config["start"], folder / "checkpoint.pt"
    )


@contextmanager
def _process(job: Job, body: str) -> Iterator[tuple[Connection, BaseProcess]]:
    context = start_forkserver()
    ours, theirs = context.Pipe()
    process = context.Process(target=run_body, args=(body, job, theirs), daemon=False)
    with _without_main():
        process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        ours.close()
        process.kill()
        process.join()


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that is started meanwhile does not import this one's main file again: Ray's own, half a second."""
    main = sys.modules["__main__"]
    file = main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        if file is not None:
            main.__file__ = file


def _pass_on(folder: Path, pipe: Connection, process: BaseProcess, fetched: bool) -> None:
    """Tells Ray what the training says, until its end. Where Ray stops the trial, `report` ends this thread.

    fetched: it goes on from a checkpoint, and repeats its epochs; Ray gets the files only from the last of these on.
    """
    said: list[Message] = []
    repeats = 0
    last, watch = monotonic(), Watch(folder, monotonic())
    while True:
        if not pipe.poll(LOOK_SECONDS):
            if watch.silent(monotonic()):
                raise WorkerLost(Message("lost", {"text": "no heartbeat from its worker"}))
            message = None
        else:
            try:
                message = pipe.recv()
            except (EOFError, ConnectionResetError):
                raise WorkerLost(lost(process)) from None
        if message is not None:
            if message.kind == "step":
                said = [one for one in said if one.kind != "step"]
            said.append(message)
        ended = message is not None and message.ends
        asks = message is not None and message.kind == "epoch"
        if not (ended or asks or (said and monotonic() - last > STEP_SECONDS)):
            continue
        if asks and fetched:  # the curve is written whole before its first epoch is repeated
            repeats, fetched = len((folder / "curve.csv").read_text().splitlines()) - 1, False
        new = asks and message is not None and message.values["epoch"] >= repeats
        _tell(said, _so_far(message, folder), folder if new else None)
        if ended:
            return
        said, last = [], monotonic()
        if asks:
            pipe.send(True)  # had the answer been no, this thread would have ended in `report`


def _tell(said: list[Message], so_far: dict[str, Any], folder: Path | None = None) -> None:
    """Reports messages to Ray; with `folder`, its files as a checkpoint, which is in the storage before Ray hears."""
    metrics: dict[str, Any] = {
        "said": json.dumps([[one.kind, one.values] for one in said]),
        "so_far": json.dumps(so_far),
    }
    if said[-1].kind == "epoch":
        metrics["val_error"] = said[-1].values["val_error"]
    if folder is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="dnas-") as name:
        for file in CARRIED:
            if (folder / file).exists():
                os.link(folder / file, Path(name) / file)
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(name))


def _so_far(message: Message | None, folder: Path) -> dict[str, Any]:
    """What the driver's record needs of a training that Ray may stop now, or of one that failed."""
    if message is None:
        return {}
    values: dict[str, Any] = dict(message.so_far)
    if message.kind == "failed" and (folder / "traceback.txt").exists():
        values["traceback"] = (folder / "traceback.txt").read_text()
    return values
