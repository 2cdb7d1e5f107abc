"""Conversion of records to worker jobs, and of worker results to records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.executors.process import Job
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
    metrics: tuple[str, ...] = (),
) -> Job:
    """Convert a record to a job.

    Args:
        run_config: Settings of the study's runs.
        record: Record of the run.
        folder: Folder of the run's files.
        key: Name of the run for the executor.
        final: Train on training and validation data, and evaluate on the test set.
        metrics: Further metrics to measure after each epoch, see `dnas.training.metrics`.
        latency: Measure the latency of a forward pass before training.
    """
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
        alone=record.recompute,  # after running out of memory a run does not share its device
        measure_latency=latency,
        attempt=record.attempts,
        fingerprint=record.data.get("fingerprint"),
        metrics=metrics,
    )


def take_result(record: TrialRecord, values: Mapping[str, Any]) -> None:
    """Copy the fields of a worker's result into its record."""
    for name in ("epochs", "val_error", "val_loss", "seconds", "peak_memory_bytes", "weights_digest"):
        setattr(record, name, values[name])
    record.metrics, record.intervals = dict(values.get("metrics", {})), dict(values.get("intervals", {}))
