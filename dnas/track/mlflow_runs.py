"""MLflow: one run per trial, nested under a run for the study, in the experiment `dnas` or $MLFLOW_EXPERIMENT_NAME.

MLflow never removes a point, so what a run holds is read from MLflow before points are added. The tag
`dnas.fingerprint` is written after everything else of a run. A run with another fingerprint is compared point by point.
If it holds a point that the study lacks, such as after the epochs of a study were raised, a new run replaces it.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dnas.track.source import TrackedRun, TrackedStudy

# State of a trial -> status of its run. The tag dnas.state holds the exact state.
STATUSES = {
    "running": "RUNNING",
    "paused": "SCHEDULED",
    "stopped": "KILLED",
    "complete": "FINISHED",
    "infeasible": "FAILED",
    "failed": "FAILED",
}
# Without these, a call to a server that does not answer takes minutes.
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
LARGEST_BATCH = 100  # metrics and params per request: limits of MLflow
LONGEST_VALUE = 5000  # characters of a tag or a param, likewise
PARENT, RUN, FINGERPRINT = "mlflow.parentRunId", "dnas.run", "dnas.fingerprint"
ROOT = "study"  # key of the run for the study
MetricPoint = tuple[str, int, float]  # name, step, value


class MLflow:
    def __init__(self, place: str, study: TrackedStudy) -> None:
        for name, value in LIMITS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self.study = study
        self._client = MlflowClient(tracking_uri=place)
        if "://" not in place or place.startswith("file:"):
            _repair_files(Path(unquote(place.removeprefix("file:").removeprefix("//"))), study.identity)
        self._experiment = self._find_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "dnas"))
        self._ids: dict[str, str] = {}  # key -> id of the run
        self._fingerprints: dict[str, str] = {}
        self._points: dict[str, set[MetricPoint]] = {}  # of the runs that were read or written
        for run in self._find(f"tags.`{RUN}` LIKE '{study.identity}/%'"):
            key = run.data.tags[RUN].partition("/")[2]
            if key in self._ids:  # a request that seemed lost was executed after all
                self._client.delete_run(run.info.run_id)
                continue
            self._ids[key] = run.info.run_id
            self._fingerprints[key] = run.data.tags.get(FINGERPRINT, "")
        # A store of files writes a run before its tags, so that a kill may leave a run without them.
        self._orphans = {
            (run.info.run_name, run.info.start_time): run.info.run_id
            for run in self._find(f"attributes.run_name LIKE '{study.name}%'")
            if not run.data.tags.get(RUN) and not run.data.metrics
        }
        if ROOT not in self._ids:
            trials = list(self._ids.values())
            self._create(ROOT, study.name, study.start)
            for id in trials:  # nested under an earlier run for the study, which was lost
                self._client.set_tag(id, PARENT, self._ids[ROOT])
            self._points[ROOT] = set()
            self._log(ROOT, set(), {}, study.inputs, {})

    def write(self, run: TrackedRun) -> bool:
        if self._fingerprints.get(run.key) == run.fingerprint:
            return False
        wanted = {(name, step, value): time for name, step, value, time in _points_of(run)}
        inputs = {**run.inputs, "name": run.facts["network"]}
        if run.key in self._ids and not self._fits(run.key, wanted, inputs):
            self._client.delete_run(self._ids.pop(run.key))
            self._points.pop(run.key, None)
        if run.key not in self._ids:
            self._create(run.key, run.name, run.start)
            self._points[run.key] = set()
        tags = {f"dnas.{name}": value for name, value in run.facts.items()}
        self._log(run.key, self._points[run.key], wanted, inputs, tags)
        self._end(run.key, STATUSES[run.state], run.end)
        self._client.set_tag(self._ids[run.key], FINGERPRINT, run.fingerprint)
        self._fingerprints[run.key] = run.fingerprint
        return True

    def finish(self, report: Path | None) -> None:
        if report is not None:
            self._client.log_artifact(self._ids[ROOT], str(report), "report")
        self._end(ROOT, "FINISHED", time.time())

    def close(self) -> None: ...

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _find(self, condition: str) -> Iterator[Any]:
        """Yield runs of the experiment, oldest first."""
        order, token = ["attributes.start_time ASC", "attributes.run_id ASC"], None
        while True:
            page = self._client.search_runs([self._experiment], condition, order_by=order, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _fits(self, key: str, wanted: Mapping[MetricPoint, float], inputs: Mapping[str, Any]) -> bool:
        """Return True if the run of `key` holds no point and no param that is not wanted. Its points are then known."""
        run = self._client.get_run(self._ids[key])
        if any(name in inputs and _text(inputs[name]) != value for name, value in run.data.params.items()):
            return False
        if key not in self._points:
            histories = [self._client.get_metric_history(self._ids[key], name) for name in run.data.metrics]
            points = [(metric.key, metric.step, metric.value) for history in histories for metric in history]
            self._points[key] = set(points)
            if len(points) > len(set(points)):  # written by another program
                return False
        return self._points[key] <= set(wanted)

    def _create(self, key: str, name: str, start: float) -> None:
        tags, began = {RUN: f"{self.study.identity}/{key}"}, round(1000 * start)
        if key != ROOT:
            tags = {PARENT: self._ids[ROOT], **tags}
        orphan = self._orphans.pop((name, began), None)
        if orphan is None:
            self._ids[key] = self._client.create_run(self._experiment, began, tags, name).info.run_id
            return
        for tag, value in tags.items():
            self._client.set_tag(orphan, tag, value)
        self._ids[key] = orphan

    def _log(
        self,
        key: str,
        known: set[MetricPoint],
        wanted: Mapping[MetricPoint, float],
        inputs: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        """Add the points that are missing, the params and the tags."""
        from mlflow.entities import Metric, Param, RunTag

        new = [point for point in wanted if point not in known]
        params = [Param(name, _text(value)) for name, value in inputs.items()]
        rest = [RunTag(name, _text(value)) for name, value in tags.items()]
        for first in range(0, max(len(new), len(params), 1), LARGEST_BATCH):
            batch = new[first : first + LARGEST_BATCH]
            self._client.log_batch(
                self._ids[key],
                [Metric(name, value, round(1000 * wanted[name, step, value]), step) for name, step, value in batch],
                params[first : first + LARGEST_BATCH],
                rest if first == 0 else (),
            )
            known.update(batch)

    def _end(self, key: str, status: str, end: float | None) -> None:
        if end is not None and status not in ("RUNNING", "SCHEDULED"):
            self._client.set_terminated(self._ids[key], status, round(1000 * end))
        else:
            self._client.update_run(self._ids[key], status)


def _repair_files(store: Path, identity: str) -> None:
    """Remove what a kill left empty in a store of files, where a single such file keeps MLflow from reading any run.

    A metric without a point is removed. A run whose facts are empty is removed as a whole, and copied anew.
    """
    for facts in store.glob("*/*/meta.yaml"):
        run, tag = facts.parent, facts.parent / "tags" / RUN
        is_ours = tag.is_file() and tag.read_text().startswith(f"{identity}/")
        if not facts.stat().st_size and (is_ours or list(run.iterdir()) == [facts]):
            shutil.rmtree(run)
    for tag in store.glob(f"*/*/tags/{RUN}"):
        if tag.read_text().startswith(f"{identity}/"):
            for metric in (tag.parent.parent / "metrics").glob("*"):
                if metric.is_file() and not metric.stat().st_size:
                    metric.unlink()


def _points_of(run: TrackedRun) -> Iterator[tuple[str, int, float, float]]:
    """Yield (name, step, value, time) of each point of the curves, the costs and the results."""
    for name, value in run.costs.items():
        yield name, 0, value, run.start
    for point in run.points:
        for name, value in point.values.items():
            yield name, point.epoch, value, point.time
    for name, value in run.results.items():
        yield name, run.points[-1].epoch if run.points else 0, value, run.end or run.start


def _text(value: object) -> str:
    return str(value)[:LONGEST_VALUE]
