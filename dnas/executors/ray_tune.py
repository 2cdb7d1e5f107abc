"""Trials on a Ray cluster: Ray Tune places them, begins them again after a loss, and carries their checkpoints.

Ray decides nothing. Its searcher hands out the jobs that dnas's own loop has started, and its scheduler passes each
epoch on to that loop and its answer back; so a study is the same as with processes of one machine. Tune runs in a
thread of the driver; the loop sees an executor like any other.
"""

import json
import logging
import math
import os
import queue
import re
import socket
import tempfile
import threading
import zipfile
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dnas.errors import InputError
from dnas.executors.ray_worker import BODY, CARRIED, carry, pack
from dnas.executors.shared_storage import SharedStorage
from dnas.executors.worker import Job, Message
from dnas.io import write_atomic
from dnas.training.checkpoint import digest_of_weights, read_checkpoint

CONNECT_SECONDS = 10.0
CAPACITY_SECONDS = 2.0  # at most so often the cluster is asked for its size
STOP_SECONDS = 60.0
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and no settings
HTTP2_SETTINGS = 4  # the type of a first frame
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of each trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own state: a study resumes from its own log
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}


@dataclass
class _Running:
    """A job that was started: its trial of Tune, once there is one; the answer that an epoch waits for; its end."""

    job: Job
    start: str | None
    answer: "queue.SimpleQueue[bool]" = field(default_factory=queue.SimpleQueue)
    trial: Any = None
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)  # epoch -> what was said of it
    so_far: dict[str, Any] = field(default_factory=dict)
    checkpoint: Any = None  # Ray's last
    heard: bool = False  # whether it has said anything
    end: Message | None = None


class ClusterLost(InputError):
    """The cluster is gone, or Tune on it."""


class RayExecutor:
    """Keeps the contract of `LocalExecutor` on a Ray cluster.

    address: host:port, or `auto` for the cluster of this machine; None starts one here, unless $RAY_ADDRESS names one.
    cpus, gpus: what each trial takes, gpus None for one where any node has one. shared: a folder or URL that every node
    sees, for the checkpoints. body: what a trial runs in place of `run_job`, as module:function.

    `InputError` where no Ray answers within 10 s, where it has another version, where no node has room for a trial, or
    where this machine can't write to `shared`.
    """

    def __init__(
        self,
        study: str,
        address: str | None = None,
        *,
        cpus: float = 1,
        gpus: float | None = None,
        shared: str | Path,
        body: str = BODY,
    ) -> None:
        self.shared = SharedStorage(shared)
        self.shared.check()
        self.cpus, self.body = cpus, body
        self._ours = connect(address)
        self.gpus = gpus if gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in _nodes()))
        _check_room(cpus, self.gpus)
        before = [int(name.removeprefix("ray-")) for name in self.shared.names(study) if name.startswith("ray-")]
        self._run = f"{study}/ray-{max(before, default=0) + 1:03d}"
        self._study = study
        self._running: dict[str, _Running] = {}
        self._of_trial: dict[str, _Running] = {}  # by Tune's own name
        self._waiting: deque[_Running] = deque()
        self._messages: queue.SimpleQueue[tuple[_Running, Message]] = queue.SimpleQueue()
        self._doomed: queue.SimpleQueue[_Running] = queue.SimpleQueue()
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._capacity = 0
        self._counted = -math.inf

    # --- the contract ---------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[str]:
        return list(self._running)

    @property
    def workers(self) -> int:
        """The trainings that the cluster has room for; 1 while no node has room, since one may come."""
        if monotonic() - self._counted > CAPACITY_SECONDS:
            self._capacity, self._counted = sum(_room(node, self.cpus, self.gpus) for node in _nodes()), monotonic()
        return max(1, self._capacity)

    @property
    def queued(self) -> set[str]:
        """The jobs that have not begun: they wait for a place in the cluster, or for Ray's actor to start."""
        return {key for key, running in self._running.items() if not running.heard}

    def clock(self) -> float:
        return monotonic()

    def room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        """Hands `job` to Ray, from the last checkpoint that is known of it, here or in the storage."""
        running = _Running(_absolute(job), self._stage(job))
        with self._news:
            self._running[job.key] = running
            self._waiting.append(running)
            self._news.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._tune, name="ray tune", daemon=True)
            self._thread.start()

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        if self._error is not None:
            raise ClusterLost(
                f"Ray Tune ended ({_first_line(self._error)}); what was trained is kept: mend the cluster, and run the"
                " same command again."
            ) from self._error
        found = []
        with suppress(queue.Empty):
            found.append(self._messages.get(timeout=timeout))
            while True:
                found.append(self._messages.get_nowait())
        said = []
        for running, message in found:
            key, running.heard = running.job.key, True
            if self._running.get(key) is not running:
                continue  # of a trial that was killed
            if message.ends:
                del self._running[key]
                self._finish(running, message)
            said.append((key, message))
        return said

    def answer(self, key: str, go_on: bool) -> None:
        self._running[key].answer.put(go_on)

    def kill(self, key: str) -> None:
        running = self._running.pop(key)
        self._doomed.put(running)
        running.answer.put(False)

    def stop(self) -> None:
        """Ends every job; their checkpoints stay in the storage."""
        whole = not self._running
        self._stopping.set()
        with self._news:
            self._running.clear()
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        if whole:
            self.shared.remove(self._run)  # Tune's own files
        if self._ours:
            ray.shutdown()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _stage(self, job: Job) -> str | None:
        """The name in the storage of the checkpoint that `job` is to begin from; None where there is none."""
        if job.attempt > 1 and (found := self._stored(job.key)) is not None:
            return found
        local = Path(job.folder) / "checkpoint.pt"
        if not local.exists():
            return None
        name = f"{self._study}/start/{job.key}.pt"
        self.shared.put(name, local)
        return name

    def _stored(self, key: str) -> str | None:
        """The last whole checkpoint of a trial in the storage: those of a driver that died were never fetched."""
        for folder in reversed(self._folders(key)):
            for name in reversed(self.shared.names(folder)):
                file = f"{folder}/{name}/checkpoint.pt"
                if name.startswith("checkpoint_") and self._whole(file):
                    return file
        return None

    def _folders(self, key: str) -> list[str]:
        """What the storage holds of a trial, the oldest first."""
        runs = [f"{self._study}/{run}" for run in self.shared.names(self._study) if run.startswith("ray-")]
        return [f"{run}/{name}" for run in runs for name in self.shared.names(run) if name.rpartition(".")[0] == key]

    def _whole(self, name: str) -> bool:
        """Whether a checkpoint in the storage is all there: a node may have died while it copied."""
        with tempfile.TemporaryDirectory(prefix="dnas-") as folder:
            path = Path(folder) / "checkpoint.pt"
            try:
                return self.shared.get(name, path) and zipfile.ZipFile(path).testzip() is None
            except (zipfile.BadZipFile, OSError):
                return False

    def _finish(self, running: _Running, message: Message) -> None:
        """Brings a trial's files into its folder of the study, and clears the storage of them."""
        folder = Path(running.job.folder)
        if running.checkpoint is not None:
            with running.checkpoint.as_directory() as found:
                for name in CARRIED:
                    if (Path(found) / name).exists():
                        write_atomic(folder / name, (Path(found) / name).read_bytes())
        if "traceback" in running.so_far:
            write_atomic(folder / "traceback.txt", running.so_far["traceback"])
        if message.kind != "lost":
            for stored in self._folders(running.job.key):
                self.shared.remove(stored)
            self.shared.remove(f"{self._study}/start/{running.job.key}.pt")
        if message.kind == "done" and message.values.get("weights_digest") is None:
            message.values["weights_digest"] = digest_of_weights(read_checkpoint(folder / "checkpoint.pt")["weights"])

    # --- Ray Tune, in its own thread ------------------------------------------------------------------------------

    def _tune(self) -> None:
        filesystem, path = None, self.shared.root
        if not self.shared.local:
            from pyarrow.fs import FSSpecHandler, PyFileSystem

            filesystem = PyFileSystem(FSSpecHandler(self.shared.files))
        try:
            tuner = tune.Tuner(
                tune.with_resources(carry, partial(_resources, self.cpus, self.gpus)),
                tune_config=tune.TuneConfig(
                    search_alg=_Asks(self),
                    scheduler=_Answers(self),
                    num_samples=-1,
                    reuse_actors=True,  # a fresh one costs half a second; the training is a process of its own anyway
                    trial_dirname_creator=lambda trial: str(trial.config["folder"]),
                ),
                run_config=tune.RunConfig(
                    name=self._run,
                    storage_path=path,
                    storage_filesystem=filesystem,
                    verbose=0,
                    stop=_Stops(self),
                    callbacks=[_Hears(self)],
                    # Without num_to_keep: with it Tune writes down the state of all its trials at each checkpoint,
                    # which takes longer with every trial. `place` removes what is not needed any more.
                    failure_config=tune.FailureConfig(max_failures=-1),  # the loop counts, and kills
                ),
            )
            tuner.fit()
        except BaseException as error:
            self._error = error

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def suggest(self, trial_id: str) -> Any:
        """The config of Tune's next trial, or None. Where Tune has nothing else to do it waits here: Tune would sleep
        for whole seconds."""
        with self._news:
            while not (self._waiting or self._of_trial or self.stopping):
                self._news.wait(1.0)
            if self.stopping:
                return Searcher.FINISHED
            if not self._waiting:
                return None
            running = self._of_trial[trial_id] = self._waiting.popleft()
        folder = f"{running.job.key}.{running.job.attempt:04d}"
        return pack(running.job, self.shared.address, running.start, self.body) | {"folder": folder}

    def place(self, trial: Any, checkpoint: Any = None) -> None:
        """Notes which trial of Tune's a job is, and its last checkpoint, in whose favour the one before is removed."""
        if (running := self._of_trial.get(trial.trial_id)) is None:
            return
        running.trial = trial
        if checkpoint is not None:
            before, running.checkpoint = running.checkpoint, checkpoint
            if before is not None and before.path != checkpoint.path:
                with suppress(OSError):
                    before.filesystem.delete_dir(before.path)

    def hear(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Passes on what a trial said; whether it goes on. Waits for the loop's answer."""
        running = self._of_trial.get(trial.trial_id)
        if running is None or running.end is not None:
            return True  # Tune repeats the last result at the end
        running.so_far |= json.loads(result["so_far"])
        for kind, values in json.loads(result["said"]):
            message = Message(kind, values)
            if message.ends:
                running.end = message  # said when Tune has ended the trial, and its place is free
                continue
            self._messages.put((running, message))
            if kind == "epoch":
                running.rows[values["epoch"]] = values
                if not self._answer(running):
                    running.end = Message("done", self._values_of_stopped(running))
                    return False
        return True

    def _answer(self, running: _Running) -> bool:
        while not self._stopping.is_set():
            with suppress(queue.Empty):
                return running.answer.get(timeout=0.2)
        return False

    def _values_of_stopped(self, running: _Running) -> dict[str, Any]:
        """What `done` says of a training that an answer ends; its weights' digest follows, from the checkpoint."""
        row = running.rows[max(running.rows)]
        return {
            "finished": row["epoch"] == running.job.recipe["epochs"],
            "epochs": row["epoch"],
            "val_error": row["val_error"],
            "val_loss": row["val_loss"],
            "seconds": sum(one["seconds"] for one in running.rows.values()),
            "peak_memory_bytes": running.so_far.get("peak_memory_bytes"),
            "weights_digest": None,
        }

    def end(self, trial_id: str) -> None:
        """Tune has ended a trial."""
        with self._news:
            running = self._of_trial.pop(trial_id, None)
        if running is not None:
            self._messages.put((running, running.end or Message("lost", {"text": "Ray Tune gave it up"})))

    def lose(self, trial: Any) -> None:
        """Tune begins a trial again, from its last checkpoint."""
        if (running := self._of_trial.get(trial.trial_id)) is not None:
            self._messages.put((running, Message("lost", {"text": "its node was lost", "restarted": True})))

    def end_doomed(self) -> None:
        """Ends the trials that the loop has killed."""
        with suppress(queue.Empty):
            while True:
                running = self._doomed.get_nowait()
                with self._news:
                    waits = running in self._waiting
                    if waits:
                        self._waiting.remove(running)
                if not waits and running.trial is not None:
                    running.trial.max_failures = 0
                    if (actor := running.trial.temporary_state.ray_actor) is not None:
                        ray.kill(actor)


class _Unkept:
    """Tune pickles its parts, to restore itself; a study goes on from its own log instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Asks(_Unkept, Searcher):
    """Ray's searcher: the jobs that the loop started, as they come."""

    def __init__(self, executor: RayExecutor) -> None:
        super().__init__()
        self.executor = executor

    def suggest(self, trial_id: str) -> Any:
        return self.executor.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.executor.end(trial_id)

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _Answers(_Unkept, FIFOScheduler):
    """Ray's scheduler: after each epoch, the loop's answer."""

    def __init__(self, executor: RayExecutor) -> None:
        super().__init__()
        self.executor = executor

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        go_on = "said" not in result or self.executor.hear(trial, result)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP


class _Stops(_Unkept, Stopper):
    """Ends Tune when the loop does."""

    def __init__(self, executor: RayExecutor) -> None:
        self.executor = executor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.executor.stopping


class _Hears(_Unkept, Callback):
    """What Tune does besides: checkpoints, losses; and when there is time to end what the loop has killed."""

    def __init__(self, executor: RayExecutor) -> None:
        self.executor = executor

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.executor.end_doomed()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.executor.place(trial)

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        self.executor.place(trial, checkpoint)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.executor.lose(trial)


# --- the cluster --------------------------------------------------------------------------------------------------


def connect(address: str | None) -> bool:
    """Connects this process to a Ray cluster, or starts one here; whether that is ours to end."""
    if ray.is_initialized():
        return False
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"dnas runs on a node of the cluster, not through Ray's client: got {address}; start it there, by"
            " `ray job submit` for one, with --ray-address auto."
        )
    if address is not None and address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        where = "here" if address in (None, "auto") else f"on this machine for {address}"
        raise InputError(
            f"no Ray runs {where} ({_first_line(error)}); start it: ray start, --head first. If one runs, it may ask"
            " for a token: RAY_AUTH_MODE=token."
        ) from None
    except ray.exceptions.AuthenticationError:
        raise InputError(
            f"the Ray at {address} asks for a token: give this machine the cluster's, in $RAY_AUTH_TOKEN or"
            " ~/.ray/auth_token."
        ) from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise _mismatch(str(error)) from None
    return True


def _check_answers(address: str) -> None:
    """`InputError` where nothing that may be Ray answers at `address` within `CONNECT_SECONDS`: Ray's own client tries
    longer. Ray speaks gRPC, so that what answers there begins with a frame of HTTP/2."""
    try:
        host, port = address.rsplit(":", 1)
        where = (host.strip("[]"), int(port))
    except ValueError:
        raise InputError(f"--ray-address needs host:port or auto, but got {address!r}.") from None
    try:
        with socket.create_connection(where, timeout=CONNECT_SECONDS / 2) as line:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            line.sendall(HTTP2_HELLO)
            said = line.recv(9)
    except OSError as error:
        raise InputError(f"no Ray answers at {address}: {error.strerror or error}; see `ray status` there.") from None
    if len(said) < 4 or said[3] != HTTP2_SETTINGS:
        raise InputError(f"what answers at {address} is no Ray; Ray's own address is in what `ray start` prints.")


def _mismatch(text: str) -> InputError:
    versions = re.findall(r"(Ray|Python): *([\w.]+)", text)
    said = [f"{name} {version}" for name, version in versions]
    return InputError(
        f"the cluster has {', '.join(said[:2]) or 'another version'}, this machine {', '.join(said[2:4])};"
        " install the same versions on both."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _nodes() -> list[dict[str, float]]:
    """What each node that lives has: CPU, GPU, ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """The trials that an empty node has room for."""
    rooms = [math.floor(node.get("CPU", 0) / cpus)] if cpus else []
    if gpus:
        # a part of a GPU is a part of one; whole GPUs are taken together
        rooms.append(
            int(node.get("GPU", 0)) * math.floor(1 / gpus) if gpus < 1 else math.floor(node.get("GPU", 0) / gpus)
        )
    return min(rooms)


def _check_room(cpus: float, gpus: float) -> None:
    nodes = _nodes()
    if any(_room(node, cpus, gpus) for node in nodes):
        return
    for option, name, wanted in (("gpus", "GPU", gpus), ("cpus", "CPU", cpus)):
        most = max((node.get(name, 0) for node in nodes), default=0)
        if wanted > most:
            raise InputError(
                f"no node of the cluster has {wanted:g} {name}s for a trial: the most is {most:g}; give a lower"
                f" --{option}-per-trial."
            )
    raise InputError(f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a trial.")


def _resources(cpus: float, gpus: float, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial takes; one that is to be alone on its device, a whole one."""
    gpus = math.ceil(gpus) if json.loads(config["job"])["alone"] else gpus
    return tune.PlacementGroupFactory([{"CPU": cpus, **({"GPU": gpus} if gpus else {})}])


def _absolute(job: Job) -> Job:
    """`job` with the paths of its data in full: on a node they are read from another folder."""
    data = dict(job.data)
    if data.get("data_root") is not None:
        data["data_root"] = str(Path(data["data_root"]).expanduser().absolute())
    if data["name"].startswith("folder:"):
        data["name"] = f"folder:{Path(data['name'].removeprefix('folder:')).expanduser().absolute()}"
    return replace(job, data=data)
