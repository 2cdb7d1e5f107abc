"""Run one trial on a node of a Ray cluster, called by Ray Tune.

The trial runs in its own process, as on a single machine, so that its memory is released and the actor can be reused.
The actor does not import torch. The trial works in a private folder. The files that others need (checkpoint, curve,
norms) are sent in Ray's checkpoints.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
from dnas.executors.process import Job, Message, lost, run_in_process
from dnas.executors.shared_storage import SharedStorage
from dnas.training.forkserver import start, start_forkserver

TRIAL_FILES = ("checkpoint.pt", "curve.csv", "norms.npz")  # copied between the node and the study's folder
STEP_SECONDS = 5.0  # shortest time between two reports to Ray about the progress within an epoch
POLL_SECONDS = 0.2


class WorkerLost(RuntimeError):
    """The process of a training run has ended or is frozen; `message` is the `lost` message to report."""

    def __init__(self, message: Message) -> None:
        super().__init__(message.values["text"])
        self.message = message


def run_trial(config: dict[str, Any]) -> None:
    """Run the trial of a config that `pack` returned. Ray Tune calls this function for each trial."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "60"  # Tune silently loses an actor that is not free by then
    job, folder = unpack(config), Path(tempfile.mkdtemp(prefix="dnas-"))
    try:
        if config["dnas"] != __version__:
            text = f"this node has dnas {__version__}, the driver {config['dnas']}; install the same version on both."
            _report([Message("failed", {"reason": "input", "text": text})], {})
            return
        fetched = _fetch(config, folder)
        while True:
            try:
                with _process(replace(job, folder=str(folder)), config["body"]) as (pipe, process):
                    _forward(folder, pipe, process, fetched)
                return
            except WorkerLost as error:  # restart from the local checkpoint; the run loop limits the number of losses
                _report([Message("lost", error.message.values | {"restarted": True})], {})
                fetched = (folder / "checkpoint.pt").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pack(job: Job, shared: str, start: str | None, body: str) -> dict[str, Any]:
    """Return the config of a trial. The job is JSON text, so that Ray interprets no part of it.

    Args:
        job: the job to run.
        shared: address of the shared storage.
        start: name of the checkpoint in the shared storage to resume from.
        body: function to run instead of `run_job`, as module:function.
    """
    text = json.dumps(asdict(job), default=str)
    return {"job": text, "key": job.key, "shared": shared, "start": start, "body": body, "dnas": __version__}


def resources(cpus: float, gpus: float, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources of a trial; a trial that must be alone on its device receives whole GPUs."""
    gpus = math.ceil(gpus) if json.loads(config["job"])["alone"] else gpus
    return tune.PlacementGroupFactory([{"CPU": cpus, **({"GPU": gpus} if gpus else {})}])


def unpack(config: dict[str, Any]) -> Job:
    values = json.loads(config["job"])
    values["seed"] = tuple(values["seed"])
    if values["data"].get("data_root") is not None:
        values["data"]["data_root"] = Path(values["data"]["data_root"])
    return Job(**values)


def _fetch(config: dict[str, Any], folder: Path) -> bool:
    """Copy Ray's checkpoint, or else the one that the driver names, to `folder`; return False without any."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            shutil.copyfile(Path(directory) / "checkpoint.pt", folder / "checkpoint.pt")
        return True
    return config["start"] is not None and SharedStorage(config["shared"]).get(
        config["start"], folder / "checkpoint.pt"
    )


@contextmanager
def _process(job: Job, body: str) -> Iterator[tuple[Connection, BaseProcess]]:
    context = start_forkserver()
    pipe, child_pipe = context.Pipe()
    process = context.Process(target=run_in_process, args=(job, child_pipe, body), daemon=False)
    start(process)
    child_pipe.close()
    try:
        yield pipe, process
    finally:
        pipe.close()
        process.kill()
        process.join()


def _forward(folder: Path, pipe: Connection, process: BaseProcess, fetched: bool) -> None:
    """Forward the messages of a training run to Ray until it ends. If Ray stops the trial, `report` ends this thread.

    Args:
        folder: working folder of the run.
        pipe: connection to its process.
        process: its process.
        fetched: whether it resumes from a checkpoint and repeats the messages of earlier epochs. The files are sent to
            Ray from the last of these epochs onward.
    """
    messages: list[Message] = []
    repeats = 0
    last, watch = monotonic(), Watch(folder, monotonic())
    while True:
        if not pipe.poll(POLL_SECONDS):
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
                messages = [other for other in messages if other.kind != "step"]
            messages.append(message)
        ended = message is not None and message.ends
        asks = message is not None and message.kind == "epoch"
        if not (ended or asks or (messages and monotonic() - last > STEP_SECONDS)):
            continue
        if asks and fetched:  # the whole curve is written before the first epoch is repeated
            repeats, fetched = len((folder / "curve.csv").read_text().splitlines()) - 1, False
        new = asks and message is not None and message.values["epoch"] >= repeats
        _report(messages, _so_far(message, folder), folder if new else None)
        if ended:
            return
        messages, last = [], monotonic()
        if asks:
            pipe.send(True)  # for the answer False, `report` would have ended this thread


def _report(messages: list[Message], so_far: dict[str, Any], folder: Path | None = None) -> None:
    """Report messages to Ray, with the files of `folder` as a checkpoint, which is stored before the report arrives."""
    metrics: dict[str, Any] = {
        "said": json.dumps([[message.kind, message.values] for message in messages]),
        "so_far": json.dumps(so_far),
    }
    if messages[-1].kind == "epoch":
        metrics["val_error"] = messages[-1].values["val_error"]
    if folder is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="dnas-") as name:
        for file in TRIAL_FILES:
            if (folder / file).exists():
                os.link(folder / file, Path(name) / file)
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(name))


def _so_far(message: Message | None, folder: Path) -> dict[str, Any]:
    """Return the values that the record of the run needs if Ray stops it after this message, or if it failed."""
    if message is None:
        return {}
    values: dict[str, Any] = dict(message.so_far)
    if message.kind == "failed" and (folder / "traceback.txt").exists():
        values["traceback"] = (folder / "traceback.txt").read_text()
    return values
