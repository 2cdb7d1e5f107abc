"""One trial in one process: what an executor starts, wherever it starts it."""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import parent_process
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from dnas.arch import DenseNetSpec
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.files import DiskFull, write_atomic
from dnas.recipe import Recipe
from dnas.train import Diverged, Epoch, evaluate, fit, is_out_of_memory

STEP_SECONDS = 0.5  # at most so often a worker says how far its epoch is


@dataclass(frozen=True)
class Job:
    """One training, in plain values. `final` trains on the validation part too, and then opens the test set."""

    key: str
    folder: str
    spec: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any]  # arguments of load_dataset
    seed: tuple[int, int]
    device: str = "cpu"
    threads: int = 1
    compile_net: bool = False
    final: bool = False


@dataclass(frozen=True)
class Message:
    """What a job says: `epoch` (waits for go on or stop), `step`, and at its end `done`, `failed` or `lost`."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)


def run_job(job: Job, say: Callable[[Message], None], ask: Callable[[Message], bool]) -> None:
    """Trains `job`, from its folder's checkpoint where there is one; ends with one `done` or `failed` message.

    ask: passes an `epoch` message on and gives the answer, whether to go on.
    """
    folder = Path(job.folder)
    try:
        torch.set_num_threads(job.threads)
        data = load_dataset(**job.data, device=job.device)
        if job.final:
            data = data.with_validation_in_training()
        last_said = monotonic()

        def on_step(done: int, total: int) -> None:
            nonlocal last_said
            if monotonic() - last_said >= STEP_SECONDS:
                last_said = monotonic()
                say(Message("step", {"done": done, "total": total}))

        def report(epoch: Epoch) -> bool:
            return ask(Message("epoch", asdict(epoch)))

        result = fit(
            DenseNetSpec.from_dict(job.spec),
            data,
            Recipe.from_dict(job.recipe),
            seed=job.seed,
            device=job.device,
            folder=folder,
            compile_net=job.compile_net,
            report=report,
            on_step=on_step,
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
            values["test_loss"], values["test_error"] = evaluate(result.run.net, data, "test", job.device)
        say(Message("done", values))
    except (BrokenPipeError, EOFError, ConnectionResetError):
        raise  # the driver is gone
    except Exception as error:
        reason, text = _reason(error), f"{type(error).__name__}: {error}"
        if reason in ("error", "input"):
            write_atomic(folder / "traceback.txt", traceback.format_exc())
        say(Message("failed", {"reason": reason, "text": str(error) if reason != "error" else text}))


def _reason(error: Exception) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, DiskFull):
        return "disk full"
    if is_out_of_memory(error):
        return "out of memory"
    return "input" if isinstance(error, InputError) else "error"


def run_in_process(job: Job, pipe: Connection) -> None:
    """`run_job` at the end of a pipe. Ends at once when the driver does: nobody is left to read, and the driver's next
    start trains the same trial."""
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
        run_job(job, pipe.send, ask)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        os._exit(1)
