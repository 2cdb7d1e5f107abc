"""Data of a report, read once from the study."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnas import formatting as words
from dnas.analysis import Front, NoiseFloor, learning_curves, noise_floor, pareto_front, published, within_reach
from dnas.analysis.control import ArmComparison, compare_arms, decision_epoch, values_at
from dnas.analysis.fanova import Fanova
from dnas.analysis.importance import Evidence, evidence, importance
from dnas.analysis.metrics import METRICS
from dnas.errors import InputError
from dnas.report.page import Drawn
from dnas.space.objectives import is_trained
from dnas.study.config import objectives_of
from dnas.study.folder import StudyFolder, find_study, read_study
from dnas.study.record import TrialRecord, rank

BOOTSTRAPS, ROUNDS = 30, 3  # for the random forests on a page, which take one or two seconds in total
# Columns of `read_study`, for the header of trials.csv of a study without trials.
COLUMNS = [
    *("number", "state", "arm", "network", "digest", "params", "macs", "activation_bytes", "val_error", "val_loss"),
    *("test_error", "epochs", "epochs_planned", "seconds", "peak_memory_bytes", "latency"),
    "reason",
]


@dataclass
class Study:
    """Data of the page, and the figures drawn so far."""

    folder: StudyFolder
    config: dict[str, Any]
    objectives: tuple[str, ...]  # the trained objective comes first
    records: list[TrialRecord]
    events: list[dict[str, Any]]
    frame: pd.DataFrame
    front: Front
    curves: pd.DataFrame
    best: TrialRecord | None
    floor: NoiseFloor | None
    retrained: list[TrialRecord]
    published: pd.DataFrame
    arms: ArmComparison
    out: Path
    formats: Sequence[str] = ()  # of the files of figures, besides SVG
    drawn: dict[str, Drawn] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        return self.config.get("data", {})

    @property
    def axes(self) -> tuple[str, ...]:
        """Objectives of the main figure and the front. A search by error alone is shown against params."""
        return self.objectives if len(self.objectives) > 1 else (self.objectives[0], "params")

    @property
    def main_figure(self) -> str:
        y, x = self.axes[:2]
        return f"{y.removeprefix('val_')}_against_{x}"

    @cached_property
    def evidence(self) -> Evidence:
        """Complete trials, for the analysis of their choices."""
        try:
            return evidence(self.config, self.records)
        except KeyError as missing:
            raise InputError(f"study.toml has no {missing}, which the analysis of its choices needs.") from None

    @cached_property
    def fanova(self) -> Fanova:
        return self.evidence.fanova(bootstraps=BOOTSTRAPS, rounds=ROUNDS)

    @cached_property
    def importance(self) -> pd.DataFrame:
        return importance(self.evidence.params, self.evidence.errors.tolist())

    def of(self, *states: str) -> list[TrialRecord]:
        return [record for record in self.records if record.state in states]


def read_for_report(study: str | Path, out: Path | None, formats: Sequence[str] = ()) -> Study:
    folder = find_study(study)
    config, records, frame = folder.config(), folder.records(), read_study(folder.path)
    objectives = _objectives(config)
    try:
        events = folder.events()
    except InputError:
        events = []  # the records contain the same, except for the numbers of pauses and promotions
    if frame.empty:
        frame = pd.DataFrame(columns=COLUMNS)
    best = next(iter(rank(records)), None)
    data = config.get("data", {})
    floor = None
    if best is not None and best.val_error is not None and data.get("val_size"):
        floor = noise_floor(best.val_error, int(data["val_size"]))
    # A part of a data set, or another image size, is a different task from the paper's.
    is_complete = data.get("subset") is None and data.get("image_size", 32) == 32
    points = published(str(data.get("name", ""))) if is_complete else published("")
    points = points[points["augmented"] == (data.get("augmentation", "none") != "none")]
    curves = learning_curves(folder)
    costs = objectives[1:] or ("params",)
    for column in (objectives[0], *costs):
        # The column is missing or None if no trial has measured the metric or the latency yet.
        frame[column] = pd.to_numeric(frame[column]) if column in frame else np.nan
    return Study(
        folder,
        config,
        objectives,
        records,
        events,
        frame,
        pareto_front(frame, (costs[0], objectives[0], *costs[1:])),
        curves,
        best,
        floor,
        [record for _, record in folder.retrained()],
        within_reach(points, frame) if costs == ("params",) and objectives[0] == "val_error" else points.iloc[:0],
        _arms(objectives[0], records, events, curves),
        Path(out) if out is not None else Path("reports") / folder.name,
        formats,
    )


def _objectives(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the objectives of a study, or the validation error if the study names unknown ones."""
    objectives = objectives_of(config)
    known = is_trained(objectives[0]) and all(name in METRICS for name in objectives)
    return objectives if known else ("val_error",)


def _arms(
    objective: str, records: list[TrialRecord], events: list[dict[str, Any]], curves: pd.DataFrame
) -> ArmComparison:
    """Compare the sampler with the control arm at the first epoch at which a trial was stopped or paused."""
    # If `--epochs` was raised, trials that were not continued have another schedule and cannot be compared.
    last = max((record.epochs_planned for record in records), default=0)
    comparable = [record for record in records if record.epochs_planned == last]
    ended = [r.epochs for r in comparable if r.state in ("stopped", "paused") and r.epochs]
    epoch = decision_epoch(events, ended, last)
    arms = {record.number: record.arm for record in comparable}
    values = {n: value for n, value in values_at(curves, objective, epoch).items() if n in arms}
    return compare_arms(values, arms, objective, epoch)


def value(value: float | None, objective: str) -> str:
    """Format a value of an objective for the page."""
    return METRICS[objective].written(value)


def listed(objectives: Iterable[str]) -> str:
    return words.joined([METRICS[name].label for name in objectives])


def objective_of(record: TrialRecord, name: str) -> float | None:
    """Return a trial's value of any objective, including those that its study does not minimise."""
    return record.measured(name)
