"""Executor on a Ray cluster: Ray Tune places trials, restarts them after a loss, and transfers their checkpoints.

Ray makes no decisions. Its searcher hands out the jobs that the run loop of dnas has started. Its scheduler forwards
each epoch to that loop and returns the answer. The study is therefore the same as with processes of one machine. Tune
runs in a thread of the driver, and the loop uses this executor like any other.
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

from dnas.data.catalog import absolute_name
from dnas.errors import InputError
from dnas.executors.process import RUN_JOB, Job, Message
from dnas.executors.ray_worker import TRIAL_FILES, pack, resources, run_trial
from dnas.executors.shared_storage import SharedStorage
from dnas.formatting import first_line
from dnas.io import expanded, write_atomic
from dnas.training.checkpoint import digest_of_weights, read_checkpoint
from dnas.training.metrics import metrics_in

CONNECT_SECONDS = 10.0
CAPACITY_SECONDS = 2.0  # shortest time between two queries of the cluster's size
STOP_SECONDS = 60.0  # time that Tune may take to end
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # with an empty SETTINGS frame
HTTP2_SETTINGS = 4  # type of the first frame that a server sends
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own state: a study resumes from its own log
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}


@dataclass
class _Running:
    """A job that was started.

    Attributes:
        start: name in the shared storage of the checkpoint to resume from.
        answer: answer that an epoch waits for.
        trial: Tune's trial, once it exists.
        rows: row of the curve for each epoch.
        so_far: values to add to the result if the job ends after the current epoch.
        checkpoint: Ray's last checkpoint.
        reported: whether it has sent a message.
        end: its last message.
    """

    job: Job
    start: str | None
    answer: "queue.SimpleQueue[bool]" = field(default_factory=queue.SimpleQueue)
    trial: Any = None
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    so_far: dict[str, Any] = field(default_factory=dict)
    checkpoint: Any = None
    reported: bool = False
    end: Message | None = None


class ClusterLost(InputError):
    """The Ray cluster, or Ray Tune on it, has ended."""


class RayExecutor:
    """Run jobs on a Ray cluster, with the interface of `LocalExecutor`.

    Args:
        study: name of the study.
        address: host:port, or `auto` for the cluster of this machine. None starts a cluster on this machine unless
            $RAY_ADDRESS is set.
        cpus: CPUs per trial.
        gpus: GPUs per trial (default: one if any node has one, otherwise none).
        shared: folder or URL that every node can access, for the checkpoints.
        body: function to run instead of `run_job`, as module:function.

    Raises:
        InputError: if no Ray cluster answers within 10 s, if it has another version, if no node has room for a trial,
            or if this machine cannot write to `shared`.
    """

    def __init__(
        self,
        study: str,
        address: str | None = None,
        *,
        cpus: float = 1,
        gpus: float | None = None,
        shared: str | Path,
        body: str = RUN_JOB,
    ) -> None:
        self.shared = SharedStorage(shared)
        self.shared.check()
        self.cpus, self.body = cpus, body
        self._started_ray = connect(address)
        self.gpus = gpus if gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in _nodes()))
        _check_room(cpus, self.gpus)
        earlier_runs = [int(name.removeprefix("ray-")) for name in self.shared.names(study) if name.startswith("ray-")]
        self._run = f"{study}/ray-{max(earlier_runs, default=0) + 1:03d}"
        self._study = study
        self._running: dict[str, _Running] = {}
        self._of_trial: dict[str, _Running] = {}  # Tune's trial id -> job
        self._waiting: deque[_Running] = deque()
        self._messages: queue.SimpleQueue[tuple[_Running, Message]] = queue.SimpleQueue()
        self._to_kill: queue.SimpleQueue[_Running] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._capacity = 0
        self._counted = -math.inf

    # --- the interface of executors -------------------------------------------------------------------------------

    @property
    def running(self) -> list[str]:
        return list(self._running)

    @property
    def workers(self) -> int:
        """Number of trials that the cluster has room for; 1 while no node has room, since one may join."""
        if monotonic() - self._counted > CAPACITY_SECONDS:
            self._capacity, self._counted = sum(_room(node, self.cpus, self.gpus) for node in _nodes()), monotonic()
        return max(1, self._capacity)

    @property
    def queued(self) -> set[str]:
        """Keys of the jobs that wait for room in the cluster, or for Ray's actor to start."""
        return {key for key, running in self._running.items() if not running.reported}

    def clock(self) -> float:
        return monotonic()

    def room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        """Hand `job` to Ray, to resume from its last checkpoint in the study's folder or in the shared storage."""
        running = _Running(_absolute(job), self._stage(job))
        with self._changed:
            self._running[job.key] = running
            self._waiting.append(running)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._tune, name="ray tune", daemon=True)
            self._thread.start()

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        if self._error is not None:
            raise ClusterLost(
                f"Ray Tune ended ({first_line(self._error)}); finished epochs are kept: repair the cluster, and run"
                " the same command again."
            ) from self._error
        received = []
        with suppress(queue.Empty):
            received.append(self._messages.get(timeout=timeout))
            while True:
                received.append(self._messages.get_nowait())
        messages = []
        for running, message in received:
            key, running.reported = running.job.key, True
            if self._running.get(key) is not running:
                continue  # from a trial that was killed
            if message.ends:
                del self._running[key]
                self._finish(running, message)
            messages.append((key, message))
        return messages

    def answer(self, key: str, go_on: bool) -> None:
        self._running[key].answer.put(go_on)

    def kill(self, key: str) -> None:
        running = self._running.pop(key)
        self._to_kill.put(running)
        running.answer.put(False)

    def stop(self) -> None:
        """End every job. Their checkpoints stay in the shared storage."""
        all_ended = not self._running
        self._stopping.set()
        with self._changed:
            self._running.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        if all_ended:
            self.shared.remove(self._run)  # Tune's files
        if self._started_ray:
            ray.shutdown()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _stage(self, job: Job) -> str | None:
        """Return the name in the shared storage of the checkpoint to resume from; None if there is none."""
        if job.attempt > 1 and (stored := self._stored(job.key)) is not None:
            return stored
        local = Path(job.folder) / "checkpoint.pt"
        if not local.exists():
            return None
        name = f"{self._study}/start/{job.key}.pt"
        self.shared.put(name, local)
        return name

    def _stored(self, key: str) -> str | None:
        """Return the last complete checkpoint of a trial in the shared storage, left there by a driver that died."""
        for folder in reversed(self._folders(key)):
            for name in reversed(self.shared.names(folder)):
                file = f"{folder}/{name}/checkpoint.pt"
                if name.startswith("checkpoint_") and self._is_complete(file):
                    return file
        return None

    def _folders(self, key: str) -> list[str]:
        """Return the folders of a trial in the shared storage, the oldest first."""
        runs = [f"{self._study}/{run}" for run in self.shared.names(self._study) if run.startswith("ray-")]
        return [f"{run}/{name}" for run in runs for name in self.shared.names(run) if name.rpartition(".")[0] == key]

    def _is_complete(self, name: str) -> bool:
        """Return whether a checkpoint is complete; a node may have died while copying it."""
        with tempfile.TemporaryDirectory(prefix="dnas-") as folder:
            path = Path(folder) / "checkpoint.pt"
            try:
                return self.shared.get(name, path) and zipfile.ZipFile(path).testzip() is None
            except (zipfile.BadZipFile, OSError):
                return False

    def _finish(self, running: _Running, message: Message) -> None:
        """Copy a trial's files to its folder in the study, and remove them from the shared storage."""
        folder = Path(running.job.folder)
        if running.checkpoint is not None:
            with running.checkpoint.as_directory() as directory:
                for name in TRIAL_FILES:
                    if (Path(directory) / name).exists():
                        write_atomic(folder / name, (Path(directory) / name).read_bytes())
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
                tune.with_resources(run_trial, partial(resources, self.cpus, self.gpus)),
                tune_config=tune.TuneConfig(
                    search_alg=_JobSearcher(self),
                    scheduler=_LoopScheduler(self),
                    num_samples=-1,
                    reuse_actors=True,  # a new actor takes half a second; each trial has its own process anyway
                    trial_dirname_creator=lambda trial: str(trial.config["folder"]),
                ),
                run_config=tune.RunConfig(
                    name=self._run,
                    storage_path=path,
                    storage_filesystem=filesystem,
                    verbose=0,
                    stop=_LoopStopper(self),
                    callbacks=[_TrialEvents(self)],
                    # `num_to_keep` is not used, because with it Tune saves the state of all trials at each checkpoint
                    # and becomes slower with every trial. `place` removes the checkpoints that are no longer needed.
                    failure_config=tune.FailureConfig(max_failures=-1),  # the run loop limits the failures
                ),
            )
            tuner.fit()
        except BaseException as error:
            self._error = error

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def suggest(self, trial_id: str) -> Any:
        """Return the config of Tune's next trial; None if there is none.

        Waits for a job while Tune has no trial, since Tune itself would sleep for whole seconds.
        """
        with self._changed:
            while not (self._waiting or self._of_trial or self.stopping):
                self._changed.wait(1.0)
            if self.stopping:
                return Searcher.FINISHED
            if not self._waiting:
                return None
            running = self._of_trial[trial_id] = self._waiting.popleft()
        folder = f"{running.job.key}.{running.job.attempt:04d}"
        return pack(running.job, self.shared.address, running.start, self.body) | {"folder": folder}

    def place(self, trial: Any, checkpoint: Any = None) -> None:
        """Record Tune's trial of a job and its last checkpoint, and remove the checkpoint before that."""
        if (running := self._of_trial.get(trial.trial_id)) is None:
            return
        running.trial = trial
        if checkpoint is not None:
            old, running.checkpoint = running.checkpoint, checkpoint
            if old is not None and old.path != checkpoint.path:
                with suppress(OSError):
                    old.filesystem.delete_dir(old.path)

    def receive(self, trial: Any, result: Mapping[str, Any]) -> bool:
        """Forward a trial's messages to the run loop, wait for its answer, and return whether the trial continues."""
        running = self._of_trial.get(trial.trial_id)
        if running is None or running.end is not None:
            return True  # Tune repeats the last result at the end
        running.so_far |= json.loads(result["so_far"])
        for kind, values in json.loads(result["said"]):
            message = Message(kind, values)
            if message.ends:
                running.end = message  # forwarded when Tune has ended the trial and its resources are free
                continue
            self._messages.put((running, message))
            if kind == "epoch":
                running.rows[values["epoch"]] = values
                if not self._wait_for_answer(running):
                    running.end = Message("done", self._stopped_values(running))
                    return False
        return True

    def _wait_for_answer(self, running: _Running) -> bool:
        while not self._stopping.is_set():
            with suppress(queue.Empty):
                return running.answer.get(timeout=0.2)
        return False

    def _stopped_values(self, running: _Running) -> dict[str, Any]:
        """Return the values of `done` for a run that an answer ended. `_finish` adds the digest of its weights."""
        row = running.rows[max(running.rows)]
        return {
            "finished": row["epoch"] == running.job.recipe["epochs"],
            "epochs": row["epoch"],
            "val_error": row["val_error"],
            "val_loss": row["val_loss"],
            "seconds": sum(epoch["seconds"] for epoch in running.rows.values()),
            "peak_memory_bytes": running.so_far.get("peak_memory_bytes"),
            "weights_digest": None,
            **({"metrics": metrics} if (metrics := metrics_in(row)) else {}),
        }

    def end(self, trial_id: str) -> None:
        """Send the last message of a trial that Tune has ended."""
        with self._changed:
            running = self._of_trial.pop(trial_id, None)
        if running is not None:
            self._messages.put((running, running.end or Message("lost", {"text": "Ray Tune abandoned it"})))

    def lose(self, trial: Any) -> None:
        """Report the loss of a trial that Tune restarts from its last checkpoint."""
        if (running := self._of_trial.get(trial.trial_id)) is not None:
            self._messages.put((running, Message("lost", {"text": "its node was lost", "restarted": True})))

    def end_killed(self) -> None:
        """End the trials that the run loop has killed."""
        with suppress(queue.Empty):
            while True:
                running = self._to_kill.get_nowait()
                with self._changed:
                    is_waiting = running in self._waiting
                    if is_waiting:
                        self._waiting.remove(running)
                if not is_waiting and running.trial is not None:
                    running.trial.max_failures = 0
                    if (actor := running.trial.temporary_state.ray_actor) is not None:
                        ray.kill(actor)


class _NotPickled:
    """Part of Tune without pickled state, which Tune needs to restore itself; a study resumes from its own log."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _JobSearcher(_NotPickled, Searcher):
    """Searcher that suggests the jobs that the run loop has started."""

    def __init__(self, executor: RayExecutor) -> None:
        super().__init__()
        self.executor = executor

    def suggest(self, trial_id: str) -> Any:
        return self.executor.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.executor.end(trial_id)

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _LoopScheduler(_NotPickled, FIFOScheduler):
    """Scheduler that continues or stops a trial after each epoch as the run loop decides."""

    def __init__(self, executor: RayExecutor) -> None:
        super().__init__()
        self.executor = executor

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        go_on = "said" not in result or self.executor.receive(trial, result)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP


class _LoopStopper(_NotPickled, Stopper):
    """Stopper that ends Tune with the run loop."""

    def __init__(self, executor: RayExecutor) -> None:
        self.executor = executor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.executor.stopping


class _TrialEvents(_NotPickled, Callback):
    """Callback for checkpoints and losses, and for ending killed trials between Tune's steps."""

    def __init__(self, executor: RayExecutor) -> None:
        self.executor = executor

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.executor.end_killed()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.executor.place(trial)

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        self.executor.place(trial, checkpoint)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.executor.lose(trial)


# --- the cluster --------------------------------------------------------------------------------------------------


def connect(address: str | None) -> bool:
    """Connect to a Ray cluster, or start one on this machine; return whether this process has to disconnect from it."""
    if ray.is_initialized():
        return False
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"dnas runs on a node of the cluster, not through Ray's client, but got {address}; start it there, for"
            " example with `ray job submit`, with --ray-address auto."
        )
    if address is not None and address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        place = "here" if address in (None, "auto") else f"on this machine for {address}"
        raise InputError(
            f"no Ray runs {place} ({first_line(error)}); start it with `ray start`, on the head node with --head. If"
            " it runs, it may require a token: RAY_AUTH_MODE=token."
        ) from None
    except ray.exceptions.AuthenticationError:
        raise InputError(
            f"the Ray at {address} requires a token; copy the cluster's token to $RAY_AUTH_TOKEN or"
            " ~/.ray/auth_token on this machine."
        ) from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise _mismatch(str(error)) from None
    return True


def _check_answers(address: str) -> None:
    """Raise `InputError` unless a server that may be Ray answers at `address` within `CONNECT_SECONDS`.

    Ray's own client tries longer. Ray uses gRPC, so the answer has to begin with a frame of HTTP/2.
    """
    try:
        host, port = address.rsplit(":", 1)
        endpoint = (host.strip("[]"), int(port))
    except ValueError:
        raise InputError(f"--ray-address needs host:port or auto, but got {address!r}.") from None
    try:
        with socket.create_connection(endpoint, timeout=CONNECT_SECONDS / 2) as line:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            line.sendall(HTTP2_HELLO)
            frame = line.recv(9)
    except OSError as error:
        raise InputError(f"no Ray answers at {address}: {error.strerror or error}; see `ray status` there.") from None
    if len(frame) < 4 or frame[3] != HTTP2_SETTINGS:
        raise InputError(f"the server at {address} is not a Ray head node; `ray start` prints the head node's address.")


def _mismatch(text: str) -> InputError:
    versions = re.findall(r"(Ray|Python): *([\w.]+)", text)
    names = [f"{name} {version}" for name, version in versions]
    return InputError(
        f"the cluster has {', '.join(names[:2]) or 'another version'}, this machine {', '.join(names[2:4])};"
        " install the same versions on both."
    )


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each living node: CPU, GPU, ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return the number of trials that an empty node has room for."""
    rooms = [math.floor(node.get("CPU", 0) / cpus)] if cpus else []
    if gpus:
        # A fraction of a GPU comes from a single GPU, but whole GPUs can be combined.
        rooms.append(
            int(node.get("GPU", 0)) * math.floor(1 / gpus) if gpus < 1 else math.floor(node.get("GPU", 0) / gpus)
        )
    return min(rooms)


def _check_room(cpus: float, gpus: float) -> None:
    nodes = _nodes()
    if any(_room(node, cpus, gpus) for node in nodes):
        return
    for option, name, wanted in (("gpus", "GPU", gpus), ("cpus", "CPU", cpus)):
        largest = max((node.get(name, 0) for node in nodes), default=0)
        if wanted > largest:
            raise InputError(
                f"no node of the cluster has {wanted:g} {name}s for a trial: the largest has {largest:g}; give a lower"
                f" --{option}-per-trial."
            )
    raise InputError(f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a trial; lower one of them.")


def _absolute(job: Job) -> Job:
    """Return `job` with absolute paths of its data, since a node reads them from another working folder."""
    data = dict(job.data)
    if data.get("data_root") is not None:
        data["data_root"] = str(expanded(data["data_root"]).absolute())
    data["name"] = absolute_name(data["name"])
    return replace(job, data=data)
