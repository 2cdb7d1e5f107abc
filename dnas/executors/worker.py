"""One trial in one process: what an executor starts, wherever it starts it."""

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

STEP_SECONDS = 0.5  # at most so often a worker says how far its epoch is


@dataclass(frozen=True)
class Job:
    """One training, in plain values. `final` trains on the validation part too, and then opens the test set.

    activation_bytes, params: the cost model's, at the recipe's batch; `placement` predicts the memory from them.
    recompute: as `dnas.training.fit.fit`'s. alone: nothing else runs on its device. attempt: how often it was started.
    memory_limit_bytes: a cap on what the training may take: on a CPU on the growth of the process's address space from
    when the data are loaded, on CUDA on what the process allocates. Over it the training fails for want of memory.
    fingerprint: of the data set that the study was begun with; another host may hold another.
    """

    key: str
    folder: str
    spec: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]  # arguments of load_dataset
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
    """What a job says.

    started   once, before it trains: device; latency, seconds of a forward pass of one image, or None; resident_bytes,
              what the data take of a GPU
    step      done and total of this epoch, now and then
    epoch     a row of the curve; waits for the answer whether to go on
    done      at its end: the result
    failed    at its end: reason, one of `REASONS`, and text
    lost      at its end: text; the training can resume from its checkpoint. Sent by the worker itself where another
              process is training in the same folder, and else by the executor, for a process that is gone. With
              `crashed` a signal such as SIGSEGV ended the process, as a fault in native code does. With `restarted` it
              is no end: the executor has restarted it by itself.

    so_far: of an epoch, what `done` would say of this process were it the last: peak_memory_bytes.
    """

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    so_far: dict[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> bool:
        """Whether the job says nothing more."""
        return self.kind in ("done", "failed", "lost") and not self.values.get("restarted")


REASONS = ("out of memory", "diverged", "disk full", "input", "error")


def run_job(job: Job, say: Callable[[Message], None], ask: Callable[[Message], bool]) -> None:
    """Trains `job`, from its folder's checkpoint where there is one; ends with one `done`, `failed` or `lost` message,
    or with `LeaseLost`, without a word and without a write, when somebody else has taken its folder's lease.

    ask: passes an `epoch` message on and gives the answer, whether to go on.
    """
    folder = Path(job.folder)
    try:
        lease = Lease.take(folder, job.attempt)
    except LeaseHeld as error:
        say(Message("lost", {"text": str(error)}))
        return
    except Exception as error:  # no room, or no right, to write there
        say(Message("failed", {"reason": _reason(error), "text": str(error)}))
        return
    with lease:
        try:
            end = Message("done", _train(job, lease, say, ask))
        except (BrokenPipeError, EOFError, ConnectionResetError, LeaseLost):
            raise  # the driver is gone, or the folder is another's
        except Exception as error:
            end = _failed(error, job, lease)
    say(end)


def _train(job: Job, lease: Lease, say: Callable[[Message], None], ask: Callable[[Message], bool]) -> dict[str, Any]:
    """The training itself; the values of `done`."""
    torch.set_num_threads(job.threads)
    spec, recipe = spec_from_dict(job.spec), Recipe.from_dict(job.recipe)
    on_cuda = job.device.startswith("cuda")
    if on_cuda and (index := torch.device(job.device).index) is not None:
        torch.cuda.set_device(index)  # or whatever names no device would open a context on the first one too
    data = load_dataset(**job.data, device=job.device)
    if job.fingerprint is not None and data.fingerprint != job.fingerprint:
        raise InputError(
            f"{data.title} on {socket.gethostname()} has other files than the study was begun with (fingerprint"
            f" {data.fingerprint}, not {job.fingerprint}); give that host the same data."
        )
    if job.final:
        data = data.with_validation_in_training()
    resident = torch.cuda.memory_allocated(job.device) if on_cuda else 0
    if job.memory_limit_bytes is not None:
        limit_memory(job.memory_limit_bytes, job.device)
    latency = None
    if job.measure_latency:  # of a network of its own: `fit` begins its random streams anew
        latency = measure_latency(build(spec), spec, job.device, job.threads)
    kernels = kernels_or_plain(job.kernels)
    started = {"device": job.device, "latency": latency, "resident_bytes": resident, "kernels": kernels}
    say(Message("started", started))
    last_said = monotonic()

    def on_step(done: int, total: int) -> None:
        nonlocal last_said
        if monotonic() - last_said >= STEP_SECONDS:
            last_said = monotonic()
            say(Message("step", {"done": done, "total": total}))

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
    """The message that says how a training failed; what it held is free by then."""
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
    """Caps what this process may take from now on: its address space on a CPU, its allocations on CUDA."""
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
        return
    importlib.import_module("torch._dynamo")  # 190 MB of libraries that torch.optim imports: not the training's

    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        raise InputError("memory_limit_bytes needs a machine with /proc, or a GPU.") from None
    resource.setrlimit(resource.RLIMIT_AS, (used + limit_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def run_in_process(job: Job, pipe: Connection, run: Callable[..., None] = run_job) -> None:
    """`run_job`, or what is like it, at the end of a pipe. Ends at once when the driver does: nobody is left to read,
    and the driver's next start trains the same trial."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver hears Ctrl-C, and decides
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
    """`run_in_process` of the function that `body` names, as module:function."""
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
