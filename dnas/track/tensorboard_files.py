"""TensorBoard: one folder of event files per trial, `FOLDER/STUDY/NUMBER`.

The content of an event file is a function of the trial's record and epochs. New epochs are appended to the file, and a
file with any other content, such as a torn record, is replaced. A point is therefore never missing or doubled.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dnas.errors import InputError
from dnas.io import expanded, room_for, write_atomic
from dnas.track.source import TrackedRun, TrackedStudy

NAME = "events.out.tfevents.0000000000.dnas"  # TensorBoard requires the beginning, and sorts files by name
OWNER = "dnas-study.json"  # identifies the study that a folder belongs to


class TensorBoard:
    def __init__(self, place: str, study: TrackedStudy) -> None:
        self.folder, self.study = expanded(place) / study.name, study
        owner = self.folder / OWNER
        if not owner.exists():
            write_atomic(owner, json.dumps({"study": study.identity}))
        elif json.loads(owner.read_text())["study"] != study.identity:
            raise InputError(
                f"{self.folder} holds another study called {study.name}; name another folder, or remove this one."
            )

    def write(self, run: TrackedRun) -> bool:
        return _write(self.folder / run.key / NAME, _content(run))

    def finish(self, report: Path | None) -> None:
        text = _table(self.study.inputs)
        if report is not None:
            write_atomic(self.folder / "report.html", report.read_bytes())
            text += f"\n\nThe report is in {self.folder / 'report.html'}."
        _write(self.folder / NAME, _records([(self.study.start, 0, _text("study", text))]))

    def close(self) -> None: ...


def _write(path: Path, content: bytes) -> bool:
    """Give a file this content, and return True if it had another."""
    stored = path.read_bytes() if path.exists() else b""
    if stored and content.startswith(stored):
        with room_for(path), path.open("ab") as file:  # TensorBoard keeps reading this file
            file.write(content[len(stored) :])
    elif stored != content:
        write_atomic(path, content)
    return stored != content


def _content(run: TrackedRun) -> bytes:
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    inputs = {**run.inputs, **run.costs}
    start = SessionStartInfo(group_name=run.name, start_time_secs=run.start)
    for name, value in inputs.items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        setattr(start.hparams[name], kind, value)
    events = [(run.start, 0, _hparams(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)))]
    events.append((run.start, 0, _text("inputs", _table(inputs))))
    events += [(point.time, point.epoch, _scalars(point.values)) for point in run.points]
    if run.closed:
        end, epoch = run.end or run.start, run.points[-1].epoch if run.points else 0
        events.append((end, epoch, _scalars({**run.costs, **run.results})))
        events.append((end, epoch, _text("result", _table({**run.facts, **run.results}))))
        failed = run.state in ("failed", "infeasible")
        status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
        last = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=end))
        events.append((end, epoch, _hparams(SESSION_END_INFO_TAG, last)))
    return _records(events)


def _records(events: Iterable[tuple[float, int, Any]]) -> bytes:
    """Return the content of an event file. events: (time, step, summary)."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    for time, step, summary in events:
        writer.write(Event(wall_time=time, step=step, summary=summary).SerializeToString(deterministic=True))
    return file.getvalue()


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _hparams(tag: str, data: Any) -> Any:
    """Return a summary for the page of hyperparameters, with the same bytes in each process."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, PLUGIN_DATA_VERSION, PLUGIN_NAME

    data.version = PLUGIN_DATA_VERSION
    content = data.SerializeToString(deterministic=True)
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=NULL_TENSOR)])


def _text(tag: str, text: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(tag, text)


def _table(values: Mapping[str, object]) -> str:
    """Return a table in Markdown, which TensorBoard shows."""
    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "|---|---|", *rows])
