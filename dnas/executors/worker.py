"""Run one trial in one process, started by any executor."""

import importlib
import resource
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from dnas.arch import spec_from_dict
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.executors.lease import Lease, LeaseHeld, LeaseLost
from dnas.executors.process import Job, Message
from dnas.io import DiskFull, write_atomic
from dnas.nn import build, kernels_or_plain
from dnas.training.devices import is_out_of_memory, peak_memory_bytes
from dnas.training.evaluate import evaluate, measure_latency
from dnas.training.fit import Diverged, fit
from dnas.training.metrics import intervals, modules_of
from dnas.training.recipe import Recipe

STEP_SECONDS = 0.5  # shortest time between two messages about the progress within an epoch
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
    for module in modules_of(job.metrics):  # now, so that the first epoch does not take longer
        importlib.import_module(module)
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
        metrics=job.metrics,
        report=lambda epoch: ask(Message("epoch", epoch.row(), {"peak_memory_bytes": peak_memory_bytes(job.device)})),
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
    if job.metrics:
        values["metrics"] = dict(result.run.curve[-1].metrics)
    if job.metrics and result.finished and data.val_size:
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        evaluate(result.run.net, data, "val", job.device, recipe.batch_size, outputs=outputs)
        labels, scores = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
        values["intervals"] = intervals(job.metrics, labels, scores)
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
