"""Run one trial in one process, started by any executor."""

import importlib
import os
import resource
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from dnas.arch import spec_from_dict
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.executors.lease import Lease, LeaseHeld, LeaseLost
from dnas.io import DiskFull, write_atomic
from dnas.nn import build, kernels_or_plain
from dnas.training.devices import is_out_of_memory, peak_memory_bytes
from dnas.training.evaluate import evaluate, measure_latency
from dnas.training.fit import Diverged, fit
from dnas.training.recipe import Recipe

STEP_SECONDS = 0.5  # shortest time between two messages about the progress within an epoch


@dataclass(frozen=True)
class Job:
    """One training run, described by plain values.

    Attributes:
        key: name of the job.
        folder: folder for its files.
        spec: network, as `spec_from_dict` reads it.
        recipe: recipe, as `Recipe.from_dict` reads it.
        data: arguments of `load_dataset`.
        seed: seed of the study and seed of this run.
        device: device to train on.
        threads: number of CPU threads.
        compile_net: whether to compile the network.
        cuda_graph: whether to capture the training step in a CUDA graph.
        kernels: kernels of dense blocks.
        final: whether to train on the validation part as well, and evaluate on the test set at the end.
        activation_bytes: activations of one step at the recipe's batch size, predicted by the cost model.
        params: number of parameters. `placement` predicts the memory from `activation_bytes` and `params`.
        recompute: whether to recompute activations in the backward pass, as `dnas.training.fit.fit` does.
        alone: whether no other job may run on its device.
        measure_latency: whether to measure the latency of the network before training.
        attempt: number of times that the job has been started, this time included.
        memory_limit_bytes: limit of the memory. On a CPU it limits the growth of the address space after the data
            have been loaded, on CUDA the allocations of the process. A run that exceeds it fails as out of memory.
        fingerprint: fingerprint of the study's data set, since another host may have other files.
    """

    key: str
    folder: str
    spec: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]
    seed: tuple[int, int]
    device: str = "cpu"
    threads: int = 1
    compile_net: bool = False
    cuda_graph: bool = False
    kernels: str = "plain"
    final: bool = False
    activation_bytes: int = 0
    params: int = 0
    recompute: bool = False
    alone: bool = False
    measure_latency: bool = False
    attempt: int = 1
    memory_limit_bytes: int | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Message:
    """Message of a job.

    The kinds and their values are:

    started   once, before training. device; latency (seconds per forward pass of one image, or None); resident_bytes
              (GPU memory used by the data); kernels
    step      at intervals. done and total steps of this epoch
    epoch     after each epoch. A row of the curve; the job waits for the answer whether to continue
    done      at the end. The result
    failed    at the end. reason (one of `REASONS`) and text
    lost      at the end. text; the run can resume from its checkpoint. Sent by the job itself if another process is
              training in the same folder, and otherwise by the executor for a process that has died. `crashed` is set
              if a signal such as SIGSEGV ended the process, as a fault in native code does. With `restarted` the job
              has not ended: the executor has restarted it.

    Attributes:
        kind: one of the kinds above.
        values: its values.
        so_far: for an epoch, the values that `done` would add if this were the last epoch: peak_memory_bytes.
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    so_far: dict[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> bool:
        """True for the last message of a job."""
        return self.kind in ("done", "failed", "lost") and not self.values.get("restarted")


REASONS = ("out of memory", "diverged", "disk full", "input", "error")


def run_job(job: Job, send: Callable[[Message], None], ask: Callable[[Message], bool]) -> None:
    """Run `job`, resuming from the checkpoint in its folder if there is one.

    The last message is `done`, `failed` or `lost`.

    Args:
        job: the job to run.
        send: sends a message.
        ask: sends an `epoch` message and returns the answer, whether to continue.

    Raises:
        LeaseLost: if another process has taken the lease of the folder; nothing is sent or written after that.
    """
    folder = Path(job.folder)
    try:
        lease = Lease.take(folder, job.attempt)
    except LeaseHeld as error:
        send(Message("lost", {"text": str(error)}))
        return
    except Exception as error:  # the disk is full or not writable
        send(Message("failed", {"reason": _reason(error), "text": str(error)}))
        return
    with lease:
        try:
            end = Message("done", _train(job, lease, send, ask))
        except (BrokenPipeError, EOFError, ConnectionResetError, LeaseLost):
            raise  # the driver has ended, or another process owns the folder
        except Exception as error:
            end = _failed(error, job, lease)
    send(end)


def _train(job: Job, lease: Lease, send: Callable[[Message], None], ask: Callable[[Message], bool]) -> dict[str, Any]:
    """Train the network; return the values of `done`."""
    torch.set_num_threads(job.threads)
    spec, recipe = spec_from_dict(job.spec), Recipe.from_dict(job.recipe)
    on_cuda = job.device.startswith("cuda")
    if on_cuda and (index := torch.device(job.device).index) is not None:
        torch.cuda.set_device(index)  # else calls without a device open a context on the first GPU as well
    data = load_dataset(**job.data, device=job.device)
    if job.fingerprint is not None and data.fingerprint != job.fingerprint:
        raise InputError(
            f"{data.title} on {socket.gethostname()} has other files than the study was started with (fingerprint"
            f" {data.fingerprint}, not {job.fingerprint}); copy the same data to that host."
        )
    if job.final:
        data = data.with_validation_in_training()
    resident = torch.cuda.memory_allocated(job.device) if on_cuda else 0
    if job.memory_limit_bytes is not None:
        limit_memory(job.memory_limit_bytes, job.device)
    latency = None
    if job.measure_latency:  # on a separate network; `fit` restarts its random streams
        latency = measure_latency(build(spec), spec, job.device, job.threads)
    kernels = kernels_or_plain(job.kernels)
    started = {"device": job.device, "latency": latency, "resident_bytes": resident, "kernels": kernels}
    send(Message("started", started))
    last_sent = monotonic()

    def on_step(done: int, total: int) -> None:
        nonlocal last_sent
        if monotonic() - last_sent >= STEP_SECONDS:
            last_sent = monotonic()
            send(Message("step", {"done": done, "total": total}))

    result = fit(
        spec,
        data,
        recipe,
        seed=job.seed,
        device=job.device,
        folder=Path(job.folder),
        compile_net=job.compile_net,
        cuda_graph=job.cuda_graph,
        kernels=kernels,
        recompute=job.recompute,
        report=lambda epoch: ask(Message("epoch", asdict(epoch), {"peak_memory_bytes": peak_memory_bytes(job.device)})),
        on_step=on_step,
        guard=lease.check,
    )
    values: dict[str, Any] = {
        "finished": result.finished,
        "epochs": len(result.run.curve),
        "val_error": result.run.curve[-1].val_error,
        "val_loss": result.run.curve[-1].val_loss,
        "seconds": result.run.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "weights_digest": result.weights_digest,
    }
    if job.final:
        net = result.run.net
        values["test_loss"], values["test_error"] = evaluate(net, data, "test", job.device, recipe.batch_size)
    return values


def _failed(error: Exception, job: Job, lease: Lease) -> Message:
    """Return the `failed` message for an error, after releasing the memory of the run."""
    reason = _reason(error)
    values: dict[str, Any] = {"reason": reason, "text": str(error) or type(error).__name__}
    if reason in ("error", "input"):
        lease.check()
        write_atomic(Path(job.folder) / "traceback.txt", "".join(traceback.format_exception(error)))
    if reason == "error":
        values["text"] = f"{type(error).__name__}: {error}"
    if reason == "out of memory":
        traceback.clear_frames(error.__traceback__)  # they hold the network and its activations
        values["peak_memory_bytes"] = peak_memory_bytes(job.device)
        if job.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return Message("failed", values)


def _reason(error: Exception) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, DiskFull):
        return "disk full"
    if is_out_of_memory(error):
        return "out of memory"
    return "input" if isinstance(error, InputError) else "error"


def limit_memory(limit_bytes: int, device: str) -> None:
    """Limit the further memory of this process: its address space on a CPU, its allocations on CUDA."""
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
        return
    importlib.import_module("torch._dynamo")  # torch.optim imports 190 MB of libraries, which do not count

    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        raise InputError("memory_limit_bytes needs a machine with /proc, or a GPU.") from None
    resource.setrlimit(resource.RLIMIT_AS, (used + limit_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run_in_process(job: Job, pipe: Connection, run: Callable[..., None] = run_job) -> None:
    """Run `job` at the end of a pipe, and end this process as soon as the driver ends.

    Without the driver no process reads the messages, and the next driver runs the same trial.

    Args:
        job: the job to run.
        pipe: connection to the driver, which receives the messages and answers epochs.
        run: function to call, with the signature of `run_job`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    driver = parent_process()
    assert driver is not None

    def end_with_driver() -> None:
        wait_for([driver.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_driver, daemon=True).start()

    def ask(message: Message) -> bool:
        pipe.send(message)
        return bool(pipe.recv())

    try:
        run(job, pipe.send, ask)
    except (BrokenPipeError, EOFError, ConnectionResetError, LeaseLost):
        os._exit(1)


def run_body(body: str, job: Job, pipe: Connection) -> None:
    """Call `run_in_process` with the function that `body` names as module:function."""
    module, _, name = body.partition(":")
    run_in_process(job, pipe, getattr(importlib.import_module(module), name))


CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


def lost(process: BaseProcess) -> Message:
    """Return the `lost` message for a process that ended without a result."""
    process.join(5)
    code = process.exitcode
    if code is None or code >= 0:
        return Message("lost", {"text": f"its process ended with status {code}"})
    text = f"its process was ended by {signal.Signals(-code).name}"
    return Message("lost", {"text": text} | ({"crashed": True} if code in CRASHES else {}))
