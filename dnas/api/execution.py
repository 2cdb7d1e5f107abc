"""Execution of a command's runs, on this machine or on Ray, with a display."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError, unknown
from dnas.formatting import redact
from dnas.io import expanded
from dnas.study.config import UNLIMITED_WORKERS, RunConfig
from dnas.training.defaults import (
    TINY_IMAGE,
    check_device_here,
    check_device_name,
    check_kernels_name,
    cores,
    default_threads,
    default_workers,
)

if TYPE_CHECKING:
    from dnas.batch.planned import PlannedRun
    from dnas.executors.protocol import Executor, Outcome

EXECUTORS = ("local", "ray")
RAY_OPTIONS = ("ray_address", "gpus_per_trial", "cpus_per_trial", "shared")


@dataclass(frozen=True)
class Execution:
    """Options of a command for executing and displaying runs. None means that an option was not given."""

    executor: str = "local"
    ray_address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    shared: str | None = None
    workers: int | None = None
    threads: int | None = None
    device: str = "auto"
    timeout: float | None = None
    kernels: str | None = None
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, options: Any, **changes: Any) -> "Execution":
        """Read the attributes of `options` that are fields of this class, with `changes`.

        Raises:
            InputError: The executor is unknown, or an option belongs to another executor.
        """
        execution = cls(
            **{
                field.name: getattr(options, field.name)
                for field in dataclasses.fields(cls)
                if hasattr(options, field.name)
            }
            | changes
        )
        if execution.executor not in EXECUTORS:
            raise unknown("executor", execution.executor, EXECUTORS)
        on_cluster = execution.executor == "ray"  # whose machines have other devices
        (check_device_name if on_cluster else check_device_here)(execution.device)
        check_kernels_name(execution.kernels)
        for name in RAY_OPTIONS:
            if execution.executor != "ray" and getattr(execution, name) is not None:
                option = name.replace("_", "-")
                raise InputError(f"--{option} is for --executor ray, but the executor is {execution.executor}.")
        return execution

    def run_config(self, data: dict[str, Any], image_size: int) -> RunConfig:
        """Return the settings of the runs, with defaults for the options that were not given.

        On CPUs a run on tiny images takes one thread, and each core takes one run.

        Args:
            data: Arguments of `load_dataset`.
            image_size: Side of the images, in pixels.
        """
        tiny_on_cpu = image_size <= TINY_IMAGE and self.device in ("auto", "cpu")
        workers = self.workers or (cores() if tiny_on_cpu else default_workers())
        return RunConfig(
            data=data,
            workers=workers,
            threads=self.threads or default_threads(workers, image_size),
            device=self.device,
            timeout=self.timeout,
            kernels=self.kernels,
        )

    def connect_ray(self, study: str, image_size: int) -> "tuple[Executor, dict[str, Any]]":
        """Connect to Ray; return the executor, and the workers, threads and device as changes of a `RunConfig`."""
        from dnas.executors.ray_tune import RayExecutor

        cpus = self.cpus_per_trial or self.threads or 1
        executor = RayExecutor(
            study,
            self.ray_address,
            cpus=cpus,
            gpus=0 if self.device == "cpu" else self.gpus_per_trial,
            shared=self.shared or Path("studies", study, "ray").absolute(),
        )
        return executor, {
            "workers": self.workers or UNLIMITED_WORKERS,
            "threads": self.threads or (1 if image_size <= TINY_IMAGE else max(1, int(cpus))),
            "device": "cuda" if executor.gpus else "cpu",
            "ray": {
                "address": self.ray_address,
                "shared": None if self.shared is None else _absolute(self.shared),
                "cpus_per_trial": cpus,
                "gpus_per_trial": executor.gpus or None,
            },
        }

    def train(
        self,
        study: str,
        title: str,
        runs: "Sequence[PlannedRun]",
        config: RunConfig,
        *,
        final: bool = False,
        about: Mapping[str, Any] | None = None,
        command: str = "",
    ) -> "Outcome":
        """Call `dnas.batch.runs.train_runs` with the executor and the display of the command."""
        from dnas.api.display import make_display
        from dnas.batch.runs import train_runs

        executor: Executor | None = None
        if self.executor == "ray":
            executor, changes = self.connect_ray(study, max(run.spec.image_size for run in runs))
            config = dataclasses.replace(config, **changes)
        display = make_display(self.quiet, self.verbose)
        with display:
            return train_runs(study, title, runs, config, display, executor, final=final, command=command, about=about)


def _absolute(shared: str) -> str:
    """Return a folder with its absolute path, or a URL without its password."""
    return redact(shared) if "://" in shared else str(expanded(shared).absolute())


def check_machine(device: str, kernels: str | None, executor: str = "local") -> None:
    """Raise `InputError` if this machine lacks a device or kernels that were requested by name.

    Imports torch if any were; `Execution.of` refuses what is certain without torch. A command calls this before it
    prints anything.
    """
    if executor == "ray":
        device = "auto"  # the machines of the cluster have other devices
    if not device.startswith("cuda") and kernels not in ("cpu", "triton"):
        return
    from dnas.nn.kernels import check_kernels
    from dnas.training.devices import check_device

    check_device(device)
    if kernels is not None:
        check_kernels(kernels)
