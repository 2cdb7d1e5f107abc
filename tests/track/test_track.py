"""Trackers, by TensorBoard, whose files are written and read fast. See test_trackers.py for MLflow and W&B."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

import dnas
from dnas.cli import main
from dnas.errors import InputError
from dnas.space.parse import load_space
from dnas.strategy import mirroring
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from dnas.track import targets
from dnas.track.keep import Tracking, open_trackers, track
from dnas.track.source import Source
from dnas.track.targets import Target, read_targets
from tests.support.analytic import AnalyticExecutor, Silent, search_config
from tests.support.patience import patience
from tests.support.studies import make_study
from tests.support.trackers import in_tensorboard, logged

TARGET = Target("tensorboard", "tb")
FILE = "events.out.tfevents.0000000000.dnas"


def study() -> StudyFolder:
    return StudyFolder(Path("studies/s"))


def run(trials: int, executor: AnalyticExecutor | None = None, **changes: Any) -> None:
    search(search_config(trials, mirror="none", **changes), Silent(), executor or AnalyticExecutor())


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("tb").rglob("*") if path.is_file()}


def check_points() -> None:
    points, expected = in_tensorboard(Path("tb/s")), logged(study())
    assert points.keys() == {str(record.number) for record in study().records()}
    for key, curves in expected.items():
        assert points[key].keys() == curves.keys()
        for name, curve in curves.items():
            assert [epoch for epoch, _ in points[key][name]] == [epoch for epoch, _ in curve], (key, name)
            assert [value for _, value in points[key][name]] == pytest.approx([value for _, value in curve])


def texts(number: int, tag: str) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    event = EventAccumulator(f"tb/s/{number}").Reload().Tensors(tag)[-1]
    return str(event.tensor_proto.string_val[0].decode())


# --- arguments ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mflow:x", "one of tensorboard:FOLDER, mlflow:URI, wandb:PROJECT, but got 'mflow:x'. Did you mean mlflow?"),
        ("runs", "but got 'runs'"),
        ("tensorboard:", "tensorboard: needs its folder, such as tensorboard:runs, but got 'tensorboard:'"),
        ("mlflow: ", "mlflow: needs its uri"),
        ("wandb:a/b/c", "wandb: needs its project, such as wandb:densenets or wandb:my-team/densenets"),
    ],
)
def test_wrong_trackers_are_refused_before_anything_is_written(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--space", "tiny", "--trials", "1", "--track", text]) == 2
    assert message in capsys.readouterr().err
    assert not Path("studies").exists()


def test_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        read_targets(["wandb:p", "tensorboard:tb", "wandb:p"])
    assert str(error.value) == "tensorboard and wandb are not installed: pip install 'dnas[tensorboard,wandb]'."


def test_password_of_a_server_is_not_shown() -> None:
    assert str(read_targets("mlflow:http://me:secret@host")[0]) == "mlflow:http://me:***@host"


# --- content ---


def test_each_trial_has_its_points_inputs_costs_state_and_the_study_its_report() -> None:
    run(4)
    assert track(study(), TARGET) == 4
    check_points()
    record = study().records()[0]
    assert f"| growth_rate | {record.params['growth_rate']} |" in texts(0, "inputs")
    assert f"| params | {float(record.cost['params'])} |" in texts(0, "inputs")
    assert f"| state | {record.state} |" in texts(0, "result")
    assert f"| network | {record.network} |" in texts(0, "result")
    assert Path("tb/s/report.html").read_text() == "the report"
    before = files()
    assert track(study(), TARGET) == 0
    assert files() == before


def test_runs_of_a_list_and_final_runs_are_copied_from_their_curves() -> None:
    folder = make_study(Path("studies/s"), ["complete", "failed", "running"], norms=False, kind="list", runs=[])
    final = folder.path / "retrain" / "0-1"
    final.parent.mkdir()
    (folder.path / "trials/0").rename(final)
    assert track(folder, TARGET) == 3
    points = in_tensorboard(Path("tb/s"))
    assert points.keys() == {"1", "2", "retrain/0-1"}
    assert points["retrain/0-1"]["val_error"][-1] == (12, pytest.approx(folder.retrained()[0][1].val_error))
    assert len(points["2"]["train_loss"]) == 6
    assert "| reason | diverged: the training loss is nan at step 3 of epoch 1. |" in texts(1, "result")


# --- exactly once ---


def test_new_epochs_are_appended_and_raised_epochs_replace_a_curve() -> None:
    run(2, stopping="none")
    track(study(), TARGET)
    path, before = Path("tb/s/0") / FILE, files()
    content, node = path.read_bytes(), path.stat().st_ino
    for size in (10, len(content) // 2, len(content) - 1):  # a kill at any byte
        os.truncate(path, size)
        assert track(study(), TARGET) == 1
        assert files() == before
    assert path.stat().st_ino == node
    path.write_bytes(content[:-4] + b"torn")
    track(study(), TARGET)
    assert files() == before
    run(2, stopping="none", space=load_space("digits_bc", epochs=24))
    assert track(study(), TARGET) == 2
    assert [epoch for epoch, _ in in_tensorboard(Path("tb/s"))["0"]["val_error"]] == list(range(1, 25))


def test_trackers_follow_a_search_and_are_complete_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(mirroring, "MAX_TIME_SHARE", 1.0)
    with open_trackers(study(), [TARGET], pytest.fail):  # before the study exists
        run(3)
        deadline = time.monotonic() + patience(30)
        while not Path("tb/s/2", FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.setattr(mirroring, "EVERY_SECONDS", 60.0)
        time.sleep(0.1)
        run(5)
    check_points()
    paused = [record.number for record in study().records() if record.state == "paused"]
    assert "| state | paused |" in texts(paused[0], "result"), "by the last pass"


def test_promoted_trial_has_no_result_of_its_pause() -> None:
    run(3)
    track(study(), TARGET)
    (paused, *_) = [record for record in study().records() if record.state == "paused"]
    study().append({"event": "promote", "number": paused.number})
    paused.state = "running"
    study().write_record(paused)
    source = Source(study())
    assert not next(found for found in source.changed(last=True) if found.key == str(paused.number)).closed
    track(study(), TARGET)
    with pytest.raises(KeyError):
        texts(paused.number, "result")


def test_unreachable_tracker_is_reported_once_and_completed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(mirroring, "MAX_TIME_SHARE", 1.0)
    Path("tb").write_text("a file where the folder should be")
    notes: list[str] = []
    with open_trackers(study(), [TARGET], notes.append):
        run(3)
        time.sleep(0.2)
    assert len(notes) == 1
    assert notes[0].startswith("tensorboard:tb is out of date (")
    assert notes[0].endswith("the search continues and retries, and `dnas track s tensorboard:tb` completes it later")
    Path("tb").unlink()
    track(study(), TARGET)
    check_points()


def test_command_copies_to_the_other_trackers_if_one_fails(capsys: pytest.CaptureFixture[str]) -> None:
    run(2)
    Path("bad").write_text("")
    assert main(["track", "s", "tensorboard:bad", "tensorboard:tb"]) == 1
    out, errors = capsys.readouterr()
    assert out == "tensorboard:tb  2 runs copied\n"
    assert errors.startswith("dnas: tensorboard:bad is out of date: ")
    assert main(["track", "s", "tensorboard:tb"]) == 0
    assert capsys.readouterr().out == "tensorboard:tb  up to date\n"
    check_points()


def test_another_study_of_the_same_name_is_not_overwritten() -> None:
    make_study(Path("studies/s"), ["complete"], norms=False)
    track(study(), TARGET)
    before = files()
    make_study(Path("studies/s"), ["complete"], norms=False, seed=1)
    with pytest.raises(InputError, match="tb/s holds another study called s; name another folder, or remove"):
        track(study(), TARGET)
    assert files() == before


def test_one_process_at_a_time_copies_to_a_tracker() -> None:
    run(1)
    first = Tracking(study(), TARGET)
    first.update(last=False)
    track(study(), Target("tensorboard", "other"))
    with pytest.raises(InputError, match="another process is copying study s to tensorboard:tb"):
        track(study(), TARGET)
    first.drop()
    track(study(), TARGET)


def test_loops_of_ones_own_are_copied_until_they_close() -> None:
    options: dict[str, Any] = {"shape": (1, 8, 8), "classes": 10, "epochs": 2, "mirror": "none", "stopping": "none"}
    with dnas.create_study("tiny", trials=2, study="s", track="tensorboard:tb", **options) as loop:
        while (trial := loop.ask()) is not None:
            trial.report(1, val_error=0.5, seconds=1)
            loop.tell(trial, 0.25)
    check_points()
    loop.track("tensorboard:other", "tensorboard:tb")
    assert in_tensorboard(Path("other/s")) == in_tensorboard(Path("tb/s"))
