"""Jobs and messages of training runs, and the process that runs a job, for any executor.

This module does not import torch, which a Ray actor does not need.
"""

import importlib
import os
import signal
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess, parent_process
from typing import Any

from dnas.executors.lease import LeaseLost

RUN_JOB = "dnas.executors.worker:run_job"


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
        metrics: further metrics to measure after each epoch, see `dnas.training.metrics`.
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
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """Message of a job.

    The kinds and their values are:

    started   once, before training. device; latency (seconds per forward pass of one image, or None); resident_bytes
              (GPU memory used by the data); kernels
    step      at intervals. done and total steps of this epoch
    epoch     after each epoch. A row of the curve; the job waits for the answer whether to continue
    done      at the end. The result
    failed    at the end. reason (one of `dnas.executors.worker.REASONS`) and text
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


def run_in_process(job: Job, pipe: Connection, body: str = RUN_JOB) -> None:
    """Run `job` at the end of a pipe, and end this process as soon as the driver ends.

    Without the driver no process reads the messages, and the next driver runs the same trial.

    Args:
        job: the job to run.
        pipe: connection to the driver, which receives the messages and answers epochs.
        body: function to call, as module:function, with the signature of `run_job`.
    """
    module, _, name = body.partition(":")
    run = getattr(importlib.import_module(module), name)
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


CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


def lost(process: BaseProcess) -> Message:
    """Return the `lost` message for a process that ended without a result."""
    process.join(5)
    code = process.exitcode
    if code is None or code >= 0:
        return Message("lost", {"text": f"its process ended with status {code}"})
    text = f"its process was ended by {signal.Signals(-code).name}"
    return Message("lost", {"text": text} | ({"crashed": True} if code in CRASHES else {}))
