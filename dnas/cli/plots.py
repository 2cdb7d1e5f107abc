"""What `dnas plot` and `dnas verify` do, as functions too: from a study or checkpoints to numbers and a figure."""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.analysis.observations import Observation, observe
from dnas.analysis.reuse import Reuse, feature_reuse
from dnas.analysis.weight_norms import NormHistory, gradient_norms, read_norms, weight_norms
from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.formatting import duration, several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL_MULTIPLES = 24  # trials that `plot weight-norms --all` draws at most


@dataclass(frozen=True)
class Figure5:
    """The paper's Figure 5 and section 5 for one network: what was measured, and the picture of it."""

    reuse: Reuse
    observations: tuple[Observation, ...]
    figure: "Figure"


def figure5(
    sources: Sequence[str | Path], trial: int | None = None, *, normalise: str = "column", epoch: int | None = None
) -> Figure5:
    """Feature reuse and the four observations of one network from one or several seeds, and the heatmap.

    sources: studies or checkpoint files, all of one spec. Of a study it is `trial` (None: its best), together with its
    final trainings, which are the same network from other seeds. epoch: None is each one's last; the observations are
    of the last always.
    """
    from dnas.figures.network import plot_reuse

    histories = read_histories(sources, trial)
    reuse = feature_reuse(histories, epoch=epoch, normalise=normalise)
    return Figure5(reuse, observe(histories), plot_reuse(reuse))


def read_histories(sources: Sequence[str | Path], trial: int | None = None) -> list[NormHistory]:
    """The norms of every network that the sources name (see `figure5`)."""
    return [read_norms(path) for source in sources for path in _checkpoints(source, trial)]


def _checkpoints(source: str | Path, trial: int | None) -> list[Path]:
    """A checkpoint itself; of a study that of its trial, and then those of the trial's complete final trainings."""
    from dnas.export import checkpoint_of
    from dnas.study.folder import StudyFolder

    first = checkpoint_of(source, trial)
    folder = first.parent.parent.parent
    if Path(source) == first or not (folder / "study.toml").is_file() or first.parent.parent.name != "trials":
        return [first]
    again = [
        path / "checkpoint.pt"
        for path, record in StudyFolder(folder).retrained()
        if str(record.number) == first.parent.name and record.state == "complete"
    ]
    return [first, *(path for path in again if path.is_file())]


def observation_line(found: Observation) -> str:
    """(c) holds          later ...: share of layers 0.929 (95% 0.786 to 1.000; untrained 0.071; the bar is 0.5)"""
    head = f"({found.letter}) {found.verdict:14s} {found.claim}: "
    if not _is_known(found.value):
        return head + "nothing in this network to measure it on"
    interval = (
        f"95% {found.low:.3f} to {found.high:.3f}"
        if _is_known(found.low)
        else f"{found.units} of them are too few for an interval"
    )
    before = f"; untrained {found.untrained:.3f}" if _is_known(found.untrained) else ""
    return head + f"{found.measure} {found.value:.3f} ({interval}{before}; the bar is {found.bar:g})"


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


# --- the commands -------------------------------------------------------------------------------------------------


def run_verify(args: argparse.Namespace) -> int:
    """A line an observation, or JSON."""
    histories = read_histories(args.sources, args.trial)
    found = observe(histories)
    if args.json:
        print(json.dumps([_finite(dataclasses.asdict(one)) for one in found], indent=1))
        return 0
    epochs = sorted({history.epochs for history in histories})
    print(f"{several(len(histories), 'network')}, after epoch {' and '.join(map(str, epochs))}")
    for one in found:
        print(observation_line(one))
    return 0


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def run_plot(args: argparse.Namespace) -> int:
    """Draws the figure that `args.figure` names and writes it to `args.out`."""
    from dnas.figures import save
    from dnas.figures.style import check_format

    check_format(args.out)  # before minutes of measuring
    save(_FIGURES[args.figure](args), args.out)
    print(f"written to {args.out}")
    return 0


def _weight_norms(args: argparse.Namespace) -> "Figure":
    from dnas.figures import plot_weight_norms

    if args.all:
        return _weight_norms_of_all(args)
    (history,) = _one(args)
    return plot_weight_norms(weight_norms(history, args.kind))


def _weight_norms_of_all(args: argparse.Namespace) -> "Figure":
    from dnas.figures.network import plot_weight_norms_of_trials
    from dnas.study.folder import find_study
    from dnas.study.record import rank

    if args.trial is not None:
        raise InputError("--all draws every trial of a study; leave --trial out.")
    folder = find_study(args.source)
    records = folder.records()
    ranked = rank(records)
    best = {record.number for record in ranked}
    ordered = ranked + [record for record in records if record.number not in best]
    with_norms = [
        record
        for record in ordered
        if any((folder.trial_folder(record.number) / name).is_file() for name in ("norms.npz", "checkpoint.pt"))
    ]
    if not with_norms:
        raise InputError(f"study {folder.name} has no trial whose norms were written down.")
    shown = [
        (f"#{record.number}", weight_norms(read_norms(folder.trial_folder(record.number)), args.kind))
        for record in with_norms[:SMALL_MULTIPLES]
    ]
    return plot_weight_norms_of_trials(shown, left_out=len(with_norms) - len(shown))


def _gradients(args: argparse.Namespace) -> "Figure":
    from dnas.figures.network import plot_gradients

    (history,) = _one(args)
    return plot_gradients(gradient_norms(history))


def _one(args: argparse.Namespace) -> list[NormHistory]:
    from dnas.export import checkpoint_of

    return [read_norms(checkpoint_of(args.source, args.trial))]


def _reuse(args: argparse.Namespace) -> "Figure":
    return figure5(args.sources, args.trial, normalise=args.norm, epoch=args.epoch).figure


def _causal(args: argparse.Namespace) -> "Figure":
    from dnas.analysis.causal import causal_reuse, correlate, with_fewer_images
    from dnas.analysis.reuse import check_same_pairs
    from dnas.data import load_dataset
    from dnas.export import load_trained
    from dnas.figures.network import plot_causal
    from dnas.training.devices import check_device

    device = check_device(args.device)
    trained = load_trained(args.source, args.trial)
    history = read_norms(trained.path)
    check_same_pairs([history])
    data = load_dataset(**trained.data_arguments(None, args.data_root), device=device)
    trained.check_data(data, same=True)
    data = trained.normalised(data)
    if args.images is not None:
        data = with_fewer_images(data, args.images)
    table = args.out.with_suffix(".csv")
    print(f"measured into {table}, from which an interrupted run goes on", file=sys.stderr)
    spec = trained.run.spec
    assert isinstance(spec, DenseNetSpec)  # others have no such pairs
    causal = causal_reuse(trained.run.net, spec, data, device=device, cache=table, progress=_Estimate().progress)
    weights = feature_reuse(history, normalise=args.norm)
    found, by_loss = correlate(causal, weights), correlate(causal, weights, "loss_gained")
    text = f"ρ with the weights {found.rho:.2f} (95% {found.low:.2f} to {found.high:.2f})"
    if math.isnan(found.rho):
        text = "no rank correlation with the weights"
    print(f"{text}, over {found.cells} cells, normalised by {args.norm}; of the loss gained {by_loss.rho:.2f}")
    return plot_causal(causal.as_reuse(), causal.error, causal.images, text)


class _Estimate:
    """A line about each tenth of the work, with the time that is left."""

    def __init__(self) -> None:
        self.began, self.before, self.said = time.monotonic(), 0, 0

    def progress(self, done: int, total: int) -> None:
        spent = time.monotonic() - self.began
        if done and spent < 0.001 * done:  # known from before
            self.before = done
        new = done - self.before
        if new and (new == 1 or done * 10 // total > self.said) and done < total:
            self.said = done * 10 // total
            left = duration(spent / new * (total - done))
            print(f"{done} of {several(total, 'connection')}, about {left} left", file=sys.stderr, flush=True)


_FIGURES = {"weight-norms": _weight_norms, "gradients": _gradients, "reuse": _reuse, "causal": _causal}
