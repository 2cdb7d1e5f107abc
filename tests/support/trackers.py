"""Points of a study in the event log and as each tracker stores them, to compare."""

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

from dnas.study.folder import StudyFolder

Points = dict[str, dict[str, list[tuple[int, float]]]]  # key of a run -> name of a metric -> (epoch, value)


def logged(folder: StudyFolder) -> Points:
    """Return the points of the event log."""
    points: Any = defaultdict(lambda: defaultdict(list))
    for event in folder.events():
        if event["event"] == "report":
            for name in ("train_loss", "train_error", "val_loss", "val_error", "learning_rate", "seconds"):
                if event.get(name) is not None:
                    points[str(event["number"])][name].append((event["epoch"], event[name]))
    return {key: dict(metrics) for key, metrics in points.items()}


def in_tensorboard(folder: Path) -> Points:
    """Read event files by TensorBoard. It stores numbers in single precision, so compare them with `approx`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: Points = {}
    for path in folder.glob("**/events.out.tfevents*"):
        loaded = EventAccumulator(str(path.parent), {"scalars": 0}).Reload()
        curves = {
            name: [(event.step, event.value) for event in loaded.Scalars(name)] for name in loaded.Tags()["scalars"]
        }
        if path.parent != folder:
            points[str(path.parent.relative_to(folder))] = of_epochs(curves)
    return points


def in_mlflow(uri: str) -> Points:
    """Read the runs by MLflow's client."""
    from mlflow.tracking import MlflowClient

    client, points = MlflowClient(tracking_uri=uri), {}
    experiment = client.get_experiment_by_name("dnas")
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        key = run.data.tags["dnas.run"].partition("/")[2]
        assert key not in points, f"two runs for {key}"
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        points[key] = {name: sorted((m.step, m.value) for m in history) for name, history in histories.items()}
    del points["study"]
    return {key: of_epochs(curves) for key, curves in points.items()}


def in_wandb(folder: Path) -> Points:
    """Read the files of W&B's offline runs."""
    points: Points = {}
    for path in folder.glob("offline-run-*/run-*.wandb"):
        curves, key = defaultdict(list), ""
        for record in wandb_records(path):
            if record.HasField("run"):
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                key = config.get("number", "study")
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for name, value in row.items():
                    curves[name].append((record.history.step.num, value))
        if key:  # a kill may leave a file without records
            assert key not in points, f"two folders for {key}"
            points[key] = dict(curves)
    points.pop("study", None)
    return {key: of_epochs(curves) for key, curves in points.items()}


def wandb_records(path: Path) -> list[Any]:
    """Read the records of a W&B file, which is a log of LevelDB: blocks of 32 KiB with parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, records, parts = path.read_bytes(), 7, [], b""  # after the header
    while position + 7 <= len(content):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if not kind:
            break
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records


def of_epochs(curves: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """Return the metrics of epochs, without costs and final results."""
    names = ("train_loss", "train_error", "val_loss", "val_error", "learning_rate", "seconds")
    return {name: curves[name] for name in names if curves.get(name)}
