"""What a record becomes on its way to a worker, and what it takes from the worker's result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.executors.worker import Job
from dnas.study.config import RunConfig
from dnas.study.record import TrialRecord


def make_job(
    run_config: RunConfig,
    record: TrialRecord,
    folder: Path,
    key: str,
    *,
    final: bool = False,
    latency: bool = False,
) -> Job:
    return Job(
        key=key,
        folder=str(folder),
        spec=record.spec,
        recipe=record.recipe,
        data=run_config.data,
        seed=(record.seed[0], record.seed[1]),
        device=run_config.device,
        threads=run_config.threads,
        compile_net=run_config.compile_net,
        cuda_graph=run_config.cuda_graph,
        kernels=record.kernels or "plain",
        final=final,
        activation_bytes=record.cost.get("activation_bytes", 0),
        params=record.cost.get("params", 0),
        recompute=record.recompute,
        alone=record.recompute,  # what ran out of memory once gets a device to itself
        measure_latency=latency,
        attempt=record.attempts,
        fingerprint=record.data.get("fingerprint"),
    )


def take(record: TrialRecord, values: Mapping[str, Any]) -> None:
    """Takes what a worker says at its end into its record."""
    for name in ("epochs", "val_error", "val_loss", "seconds", "peak_memory_bytes", "weights_digest"):
        setattr(record, name, values[name])
