"""Searches whose networks the user's own code trains: by ask and tell, or by a function."""

import dataclasses
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dnas.api.display import make_display
from dnas.api.options import SearchOptions, make_config
from dnas.data.own import OWN, describe_own, own_source
from dnas.errors import InputError
from dnas.executors.protocol import Outcome, Show
from dnas.executors.runner import MAX_SAME_ERRORS
from dnas.formatting import first_line
from dnas.io import write_atomic
from dnas.space.objectives import extra_metrics
from dnas.space.space import check_fits
from dnas.strategy.asktell import AskTell
from dnas.strategy.stopping import check_stopping, expected_epochs
from dnas.study.config import SearchConfig, check_objectives, check_same, frozen_inputs
from dnas.study.folder import StudyFolder
from dnas.track.keep import open_trackers
from dnas.track.targets import Target

TrainFunction = Callable[..., float | dict[str, float]]
RESULTS = ("val_error", "val_loss")


def with_own_data(options: SearchOptions, shape: tuple[int, int, int] | None, classes: int | None) -> SearchOptions:
    """Return the options with the data set of a study that dnas does not train."""
    if options.dataset is not None:
        raise InputError(
            f"dataset={options.dataset!r} is for networks that dnas trains; for your own training, give"
            " shape=(channels, size, size) and classes=."
        )
    if (shape is None) != (classes is None):
        raise InputError(f"shape and classes belong together, but got shape={shape!r} and classes={classes!r}.")
    return (
        options
        if shape is None or classes is None
        else dataclasses.replace(options, dataset=own_source(shape, classes))
    )


def open_asking(folder: StudyFolder, config: SearchConfig, show: Show, val_size: int | None = None) -> AskTell:
    """Start or reopen a study for asking and telling.

    Raises:
        InputError: The study on disk was started with other inputs, or the settings cannot be used.
    """
    source = config.run.data["name"]
    if not source.startswith(OWN):
        raise InputError(
            f"study {folder.name} trains on {source}, which dnas reads; for your own training, give shape=(channels,"
            " size, size) and classes=."
        )
    data = describe_own(source, val_size)
    if unknown := extra_metrics(config.objectives):
        raise InputError(
            f"the objective {unknown[0]} is measured by dnas's own training; for your own training, use val_error or"
            " val_loss and report your metric by that name."
        )
    if folder.exists:
        stored = folder.config()
        check_same(folder.name, stored, config)
        data |= {"val_size": stored["data"].get("val_size")}
    space = config.space.for_data(data["channels"], data["image_size"], data["classes"], augmented=False)
    check_stopping(config.stopping, len(config.objectives) > 1)
    check_fits(space)
    check_objectives(space, config.objectives)
    return AskTell(folder, config, data, show, frozen_inputs(config, space, data, "cpu"))


def reopen(folder: StudyFolder) -> AskTell:
    """Open an existing study for asking and telling, with its own settings."""
    stored = folder.config()
    config = make_config(SearchOptions(trials=stored["trials"]), folder.name, stored)
    return open_asking(folder, config, make_display(quiet=True, verbose=False))


def run_function(
    folder: StudyFolder,
    config: SearchConfig,
    train: TrainFunction,
    val_size: int | None,
    quiet: bool,
    targets: Sequence[Target] = (),
) -> Outcome:
    """Run a search whose networks `train` trains in this process, one after another.

    A trial whose function raises fails with that reason. The search stops after too many identical errors in a row.
    """
    display = make_display(quiet, False, partial(expected_epochs, config.stopping))
    outcome = Outcome(0)
    errors: list[str] = []
    trackers = open_trackers(folder, targets, warnings.warn if quiet else display.note)
    with display, trackers, open_asking(folder, config, display, val_size) as study:
        while (trial := study.ask()) is not None:
            try:
                result = train(trial.spec, trial.seed, trial.report)
                study.tell(trial, **_as_result(result))
                errors.clear()
            except Exception as error:  # the user's function may raise anything
                text = f"{type(error).__name__}: {first_line(error)}"
                write_atomic(trial.folder / "traceback.txt", traceback.format_exc())
                study.tell(trial, failed=text)
                errors.append(text)
                if len(errors) >= MAX_SAME_ERRORS and len(set(errors[-MAX_SAME_ERRORS:])) == 1:
                    outcome.stopped_by = f"{MAX_SAME_ERRORS} trials in a row failed with the same error: {text}"
                    break
        outcome.trials = len(folder.records())
        outcome.exhausted = study.exhausted
    return outcome


def _as_result(result: Any) -> dict[str, Any]:
    """Return the arguments of `tell` for the value that the function returned, a validation error or a dict."""
    if result is None:
        return {}
    if isinstance(result, dict):
        if unknown := [key for key in result if key not in RESULTS]:
            raise InputError(f"the training function returned {unknown[0]!r}; a result has {' and '.join(RESULTS)}.")
        return dict(result)
    return {"val_error": result}
