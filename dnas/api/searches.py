"""Searches, for `dnas search` and `dnas.search`."""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.api.execution import Execution, check_machine
from dnas.api.interruption import SearchStopped, pausing, with_keywords
from dnas.api.options import SearchOptions, complete, default_study, make_config
from dnas.api.study import Study
from dnas.errors import InputError
from dnas.formatting import several
from dnas.space.objectives import extra_metrics
from dnas.space.space import Space
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder, check_study_name
from dnas.track.keep import open_trackers
from dnas.track.targets import Target, read_targets
from dnas.training.metrics import modules_of

if TYPE_CHECKING:
    from dnas.api.own import TrainFunction
    from dnas.executors.protocol import Outcome


@dataclass(frozen=True)
class PreparedSearch:
    """A search whose options were checked. Nothing has been written yet."""

    options: SearchOptions
    folder: StudyFolder
    config: SearchConfig
    targets: list[Target]

    def opening(self) -> str:
        """Return the summary that is printed before the search starts."""
        from dnas.api.opening import opening

        return opening(self.config, self.config.run.workers if self.options.executor == "local" else None)

    def run(self, quiet: bool = False, verbose: bool = False) -> "Outcome":
        """Run the search with a display. KeyboardInterrupt leaves the study ready to resume."""
        config, executor = self.config, None
        if self.options.executor == "local":
            from dnas.training.forkserver import start_forkserver

            start_forkserver(modules_of(extra_metrics(config.objectives)))
        else:
            side = self.options.image_size or config.space.fixed.get("image_size", 32)
            executor, changes = Execution.of(self.options).connect_ray(config.study, side)
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))
        from dnas.api.display import make_display
        from dnas.strategy.run import search as run_search
        from dnas.strategy.stopping import expected_epochs

        display = make_display(quiet, verbose, partial(expected_epochs, config.stopping))
        if executor is not None:
            display.note(f"Ray: {several(min(config.run.workers, executor.workers), 'run')} at once")
        with display, open_trackers(self.folder, self.targets, warnings.warn if quiet else display.note):
            return run_search(config, display, executor)


def prepare(options: SearchOptions, dry_run: bool = False) -> PreparedSearch:
    """Check the options of a search, without torch unless they name a device or kernels.

    Args:
        options: The options.
        dry_run: The search will only be planned, so another process may be running the study.

    Raises:
        InputError: The options cannot be used.
    """
    options = complete(options)
    targets = read_targets(options.track)
    folder = StudyFolder(Path("studies") / check_study_name(options.study or default_study(options)))
    if folder.exists and not dry_run:
        from dnas.strategy.extend import settle

        with folder.lock():  # refuses a study that another process is running
            settle(folder)
    config = make_config(options, folder.name, folder.config() if folder.exists else {})
    check_machine(options.device, options.kernels, options.executor)
    return PreparedSearch(options, folder, config, targets)


@with_keywords
def search(
    space: str | Path | Space | None = None,
    *,
    trials: int | None = None,
    study: str | None = None,
    objectives: str | Sequence[str] | None = None,
    sampler: str | None = None,
    control: float | None = None,
    stopping: str | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    retrain_best: int | None = None,
    retrain_seeds: int | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    subset: int | None = None,
    split_seed: int | None = None,
    augment: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    timeout: float | None = None,
    compile: bool = False,
    cuda_graph: bool = False,
    kernels: str | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    gpus_per_trial: float | None = None,
    cpus_per_trial: float | None = None,
    shared: str | None = None,
    mirror: str | None = None,
    track: str | Sequence[str] | None = None,
    train: "TrainFunction | None" = None,
    shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    validation_images: int | None = None,
    progress: bool = True,
) -> Study:
    """Search a space for the best networks, or resume a search, and return its study.

    The arguments are the options of `dnas search`, whose help describes them. The same call and the same command write
    the same study.

    Args:
        space: Name of a space, path of its file, or a `dnas.Space`.
        trials: Total number of trials to start, earlier ones included.
        study: Name of the study, whose folder is studies/NAME (default: the space's name).
        objectives: Values to minimise, such as ("val_error", "params").
        track: Trackers to copy the study to while it runs, such as ["tensorboard:runs"]; see `Study.track`.
        train: Function that trains the networks instead of dnas: `train(spec, seed, report)` builds the network of
            `spec`, calls `report(epoch, val_error=...)` after each epoch, stops if it returns False, and returns the
            validation error or a dict of val_error and val_loss. It runs in this process.
        shape: With `train`: shape of an image, (channels, size, size).
        classes: With `train`: number of classes.
        validation_images: With `train`: number of validation images, for the intervals of the report.
        progress: Show the progress.

    Raises:
        InputError: An argument is invalid, or the study was started with other ones.
        KeyboardInterrupt: The search was interrupted; the same call resumes it.
    """
    own = (shape, classes, validation_images)
    return _run(_options(locals()), train, own, progress)


@with_keywords
def create_study(
    space: str | Path | Space,
    *,
    shape: tuple[int, int, int],
    classes: int,
    trials: int,
    study: str | None = None,
    objectives: str | Sequence[str] | None = None,
    sampler: str | None = None,
    control: float | None = None,
    stopping: str | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    validation_images: int | None = None,
    mirror: str | None = None,
    track: str | Sequence[str] | None = None,
) -> Study:
    """Start a study whose networks your own loop trains, or reopen it.

    `study.ask()` returns a trial with its network, or None at the end; `trial.report(epoch, val_error=...)` returns
    True if the training continues, and `study.tell(trial)` ends it. The study is held until `study.close()`, or the
    end of a `with` block.

    Args:
        space: Name of a space, path of its file, or a `dnas.Space`.
        shape: Shape of an image, (channels, size, size).
        classes: Number of classes.
        trials: Total number of trials, earlier ones included.
        study: Name of the study, whose folder is studies/NAME (default: the space's name).
        objectives: Values to minimise, such as ("val_error", "params").
        validation_images: Number of validation images, for the intervals of the report.
        track: Trackers to copy the study to until it is closed, such as ["tensorboard:runs"]; see `Study.track`.

    Raises:
        InputError: An argument is invalid, or the study was started with other ones.
    """
    given = locals()
    from dnas.api.display import make_display
    from dnas.api.own import open_asking, with_own_data

    prepared = prepare(with_own_data(_options(given), shape, classes))
    display = make_display(quiet=True, verbose=False)
    asking = open_asking(prepared.folder, prepared.config, display, validation_images)
    try:
        asking.keep(open_trackers(prepared.folder, prepared.targets, warnings.warn))
    except BaseException:
        asking.close()  # or the study would stay locked until this process ends
        raise
    return Study(prepared.folder, asking)


def _run(options: SearchOptions, train: "TrainFunction | None", own: tuple[Any, ...], progress: bool) -> Study:
    """Run a search. own: `shape`, `classes` and `validation_images` of a search that `train` trains."""
    if train is None:
        if own != (None, None, None):
            raise InputError(
                "shape, classes and validation_images are for networks that your code trains; give train=."
            )
        prepared = prepare(options)
        header = prepared.opening()  # also checks the study on disk
        if progress:
            print(header, flush=True)
        with pausing(prepared.folder):
            outcome = prepared.run(quiet=not progress)
    else:
        if not callable(train):
            raise InputError(f"train must be a function of (spec, seed, report), but got {train!r}.")
        from dnas.api.own import run_function, with_own_data

        shape, classes, validation_images = own
        prepared = prepare(with_own_data(options, shape, classes))
        with pausing(prepared.folder):
            outcome = run_function(
                prepared.folder, prepared.config, train, validation_images, not progress, prepared.targets
            )
    if outcome.stopped_by:
        raise SearchStopped(f"study {prepared.folder.name} stopped: {outcome.stopped_by}")
    return Study(prepared.folder)


def _options(given: dict[str, Any]) -> SearchOptions:
    """Return the options among the arguments of a function of this module."""
    objectives = given["objectives"]
    if objectives is not None and not isinstance(objectives, str):
        given = given | {"objective": ",".join(objectives)}
    elif objectives is not None:
        given = given | {"objective": objectives}
    return SearchOptions.of(given)
