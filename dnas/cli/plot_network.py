"""Figures of `dnas plot` that show the inside of a network, from studies or checkpoints."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.analysis.reuse import feature_reuse
from dnas.analysis.weight_norms import gradient_norms, read_histories, read_norms, weight_norms
from dnas.errors import InputError
from dnas.formatting import duration, several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TRIALS = 24  # largest number of trials drawn side by side


def draw_reuse(sources: Sequence[str | Path], trial: int | None, norm: str, epoch: int | None) -> "Figure":
    from dnas.figures.network import plot_reuse

    return plot_reuse(feature_reuse(read_histories(sources, trial), epoch=epoch, normalise=norm))


def draw_weight_norms(source: str | Path, trial: int | None, kind: str) -> "Figure":
    from dnas.figures import plot_weight_norms
    from dnas.study.folder import checkpoint_of

    return plot_weight_norms(weight_norms(read_norms(checkpoint_of(source, trial)), kind))


def draw_weight_norms_of_all(source: str | Path, kind: str) -> "Figure":
    """Draw the trials of a study side by side, the best first, and at most `MAX_TRIALS` of them."""
    from dnas.figures.network import plot_weight_norms_of_trials
    from dnas.study.folder import find_study
    from dnas.study.record import rank

    folder = find_study(source)
    records = folder.records()
    ranked = rank(records)
    complete = {record.number for record in ranked}
    ordered = ranked + [record for record in records if record.number not in complete]
    with_norms = [
        record
        for record in ordered
        if any((folder.trial_folder(record.number) / name).is_file() for name in ("norms.npz", "checkpoint.pt"))
    ]
    if not with_norms:
        raise InputError(f"study {folder.name} has no trial with recorded norms.")
    shown = [
        (f"#{record.number}", weight_norms(read_norms(folder.trial_folder(record.number)), kind))
        for record in with_norms[:MAX_TRIALS]
    ]
    return plot_weight_norms_of_trials(shown, left_out=len(with_norms) - len(shown))


def draw_gradients(source: str | Path, trial: int | None) -> "Figure":
    from dnas.figures.network import plot_gradients
    from dnas.study.folder import checkpoint_of

    return plot_gradients(gradient_norms(read_norms(checkpoint_of(source, trial))))


def draw_causal(
    source: str | Path,
    trial: int | None,
    norm: str,
    images: int | None,
    device: str,
    data_root: Path | None,
    table: Path,
) -> "Figure":
    """Cut each connection of a network, measure the error, and draw the increase.

    Args:
        source: A study or a checkpoint.
        trial: Trial of the study; None is the best.
        norm: Normalisation of the weights that the result is compared with.
        images: Number of validation images to use; None is all.
        device: Device to measure on.
        data_root: Folder of the data sets.
        table: CSV file of the measurements. An interrupted run resumes from it.
    """
    from dnas.analysis.causal import causal_reuse, correlate, with_fewer_images
    from dnas.analysis.reuse import check_same_pairs
    from dnas.arch import DenseNetSpec
    from dnas.data import load_dataset
    from dnas.export import load_trained
    from dnas.figures.network import plot_causal
    from dnas.training.devices import check_device

    device = check_device(device)
    trained = load_trained(source, trial)
    history = read_norms(trained.path)
    check_same_pairs([history])
    data = load_dataset(**trained.data_arguments(None, data_root), device=device)
    data = trained.prepared(data, same=True)
    if images is not None:
        data = with_fewer_images(data, images)
    print(f"measurements are saved in {table}; an interrupted run resumes from there", file=sys.stderr)
    spec = trained.run.spec
    assert isinstance(spec, DenseNetSpec)  # the other families have no such pairs
    causal = causal_reuse(trained.run.net, spec, data, device=device, cache=table, progress=Estimate().progress)
    weights = feature_reuse(history, normalise=norm)
    by_error, by_loss = correlate(causal, weights), correlate(causal, weights, "loss_gained")
    text = f"ρ with the weights {by_error.rho:.2f} (95% {by_error.low:.2f} to {by_error.high:.2f})"
    if math.isnan(by_error.rho):
        text = "no rank correlation with the weights"
    print(f"{text}, over {by_error.cells} cells, normalised by {norm}; with the loss increase {by_loss.rho:.2f}")
    return plot_causal(causal.as_reuse(), causal.error, causal.images, text)


class Estimate:
    """Progress output that prints the remaining time after each tenth of the measurements."""

    def __init__(self) -> None:
        self.began, self.cached, self.last_tenth = time.monotonic(), 0, 0

    def progress(self, done: int, total: int) -> None:
        seconds = time.monotonic() - self.began
        if done and seconds < 0.001 * done:  # read from the table of an earlier run
            self.cached = done
        new = done - self.cached
        if new and (new == 1 or done * 10 // total > self.last_tenth) and done < total:
            self.last_tenth = done * 10 // total
            left = duration(seconds / new * (total - done))
            print(f"{done} of {several(total, 'connection')}, about {left} left", file=sys.stderr, flush=True)
