"""Tests of the search loop on analytic runs: limits, resumption, growth, failures and early stopping."""

import dataclasses
import functools
import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.executors.lease import LeaseInfo
from dnas.executors.protocol import Outcome
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space, parse_space
from dnas.strategy.replay import replay
from dnas.strategy.run import search
from dnas.strategy.state import SearchState
from dnas.study.folder import StudyFolder, check_study_name, find_study, read_study
from dnas.study.record import TrialRecord, rank
from tests.support.analytic import AnalyticExecutor, Silent, Trouble, changed
from tests.support.analytic import search_config as config_of
from tests.support.data_files import noise, write_folder

TIGHT = """# Few networks of this space are inside the limits
dataset = "digits"
[choose]
growth_rate = { int = [2, 64] }
block_layers = { int = [1, 30], times = 3 }
compression = { float = [0.3, 1.0], step = 0.1 }
[limits]
params = 20_000
macs = 800_000
[recipe]
epochs = 9
"""


# The mirror has its own tests and takes a third of a second.
search_config = functools.partial(config_of, mirror="none")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(trials: int, trouble: Trouble = lambda job, epoch: None, **changes: object) -> Outcome:
    return search(search_config(trials, **changes), Silent(), AnalyticExecutor(trouble))


def records() -> list[TrialRecord]:
    return StudyFolder(Path("studies/s")).records()


def events() -> list[dict[str, object]]:
    """Return the events of the study without their times."""
    events = StudyFolder(Path("studies/s")).events()
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


def essence(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    """Return the fields of the records that must not depend on interruptions."""
    return [
        (r.number, r.state, r.arm, r.params, r.digest, r.val_error, r.epochs, r.weights_digest, r.history_digest)
        for r in records
    ]


def test_no_proposal_exceeds_a_limit_or_repeats_another() -> None:
    space = parse_space(TIGHT, "tight", "tight")
    run(20, space=space)
    trials = records()
    assert len(trials) == 20
    assert len({record.digest for record in trials}) == 20
    for record in trials:
        assert not space.limits.excess(space.cost(DenseNetSpec.from_dict(record.spec)))
    assert sum(record.arm == "sampler" for record in trials) == 20


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_sampler_beats_random_draws(sampler: str) -> None:
    """The mean final error of the last 20 of 40 trials is lower than with random draws."""

    def mean_of_the_last(sampler: str) -> float:
        run(40, space=load_space("cifar_plain", dataset="digits"), stopping="none", sampler=sampler)
        errors = [record.val_error for record in records() if record.val_error is not None]
        shutil.rmtree("studies")
        return sum(errors[20:]) / 20

    assert mean_of_the_last(sampler) < mean_of_the_last("random") - 0.0005


def test_first_networks_of_the_space_are_tried_first() -> None:
    run(2)
    assert [record.arm for record in records()] == ["first", "sampler"]
    assert records()[0].network == "densenet-bc:L=22,k=8,channels=1,size=8"


def test_repeated_command_does_nothing_and_more_trials_extend_the_study() -> None:
    run(5)
    before = essence(records())
    executor = AnalyticExecutor()
    search(search_config(5), Silent(), executor)
    assert executor.started == []
    assert essence(records()) == before
    run(8)
    assert essence(records())[:5] == before
    grown = essence(records())
    assert len(grown) == 8
    assert find_study("s").config()["trials"] == 8
    StudyFolder(Path("studies/s")).path.rename("studies/grown")
    run(8)
    assert essence(records()) == grown


class InTurn(AnalyticExecutor):
    """Advance concurrent trials in turn."""

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        [(key, message)] = super().wait(timeout)
        if key in self.jobs:
            self.jobs[key] = self.jobs.pop(key)
        return [(key, message)]


class Interrupting(AnalyticExecutor):
    """Interrupt the driver, as Ctrl-C does, before its `left`-th message."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().wait(timeout)


def run_interrupted(trials: int, pace: int = 1, **changes: object) -> int:
    """Repeat a search until it completes, interrupting it after 1 to 20 messages, and count the interruptions."""
    for times, left in enumerate(itertools.cycle((2, 15, 7, 1, 20, 11, 3, 18))):
        executor = Interrupting(pace * left)
        try:
            search(search_config(trials, **changes), Silent(), executor)
        except KeyboardInterrupt:
            assert executor.running == [], "no worker outlives its driver"
        else:
            return times
    raise AssertionError


def test_interrupted_search_equals_an_uninterrupted_one() -> None:
    run(14)
    whole, log = essence(records()), events()
    Path("studies/s").rename("studies/whole")
    assert run_interrupted(14) > 10
    assert essence(records()) == whole
    assert events() == log


def test_search_repairs_a_kill_between_two_writes() -> None:
    run(6, stopping="none")
    whole, before = essence(records()), events()
    folder = StudyFolder(Path("studies/s"))
    log = folder.path / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    tell = next(i for i, line in enumerate(lines) if '"tell"' in line and '"number": 5' in line)
    ask = next(i for i, line in enumerate(lines) if '"ask"' in line and '"number": 5' in line)
    assert tell == len(lines) - 1

    # Killed after writing the record, before its tell.
    log.write_text("".join(lines[:tell]))
    run(6, stopping="none")
    assert essence(records()) == whole
    assert events() == before

    # Killed after the ask, before writing the record. The last line of the log is torn.
    log.write_text("".join(lines[: ask + 1]) + '{"event": "rep')
    for path in folder.trial_folder(5).iterdir():
        path.unlink()
    show = Silent()
    search(search_config(6, stopping="none"), show, AnalyticExecutor())
    assert show.notes == ["repaired events.jsonl: its last line was torn (14 bytes cut)"]
    assert essence(records()) == whole
    assert events() == before

    # Killed in the middle of a trial: the record is in state running, and the log has its first epochs.
    log.write_text("".join(lines[: ask + 4]))
    record = folder.records()[5]
    folder.write_record(dataclasses.replace(record, state="running", objectives={}, weights_digest=None))
    run(6, stopping="none")
    assert essence(records()) == whole
    assert events() == before


def test_error_names_the_damaged_file() -> None:
    run(1)
    folder = StudyFolder(Path("studies/s"))
    for name in ("events.jsonl", "study.toml", "trials/0/record.json"):
        path = folder.path / name
        content = path.read_text()
        path.write_text("damaged\n" + content)
        with pytest.raises(InputError, match=rf"{name} is damaged: "):
            run(1)
        path.write_text(content)
    assert run(1).trials == 1


def test_record_of_a_later_version_is_read() -> None:
    run(1)
    path = StudyFolder(Path("studies/s")).trial_folder(0) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mood": "good"}))
    assert records()[0].state == "complete"


def test_record_holds_the_outcome_of_its_run() -> None:
    run(6, seed=7)
    for record in records():
        done = {"complete": 12, "paused": 4}[record.state]
        assert (record.epochs, record.epochs_planned, record.seconds) == (done, 12, float(done))
        assert (record.peak_memory_bytes, record.seed) == (1, [7, record.number])
        assert record.attempts == 1 + sum(e["event"] == "promote" and e["number"] == record.number for e in events())
        assert record.weights_digest == f"{record.val_error:.9f}"
        assert record.objectives == ({"val_error": record.val_error} if done == 12 else {})
        assert record.reason == (None if done == 12 else "not among the best third after 4 epochs")
        assert record.cost == dataclasses.asdict(load_space("digits_bc").cost(record.network_spec))
    decided = [event for event in events() if event["event"] in ("tell", "pause")]
    assert [event for event in decided if event["event"] == "tell"] == [
        {
            "event": "tell",
            "number": event["number"],
            "state": "complete",
            "values": {"val_error": records()[event["number"]].val_error},  # type: ignore[index]
            "reason": None,
        }
        for event in decided
        if event["event"] == "tell"
    ]
    paused = {event["number"] for event in decided if event["event"] == "pause"}
    assert {record.number for record in records() if record.state == "paused"} <= paused
    assert [record.number for record in records()] == list(range(6))
    assert {record.state for record in records()} == {"complete", "paused"}


def test_seed_reaches_the_sampler_and_the_runs() -> None:
    run(3)
    first = [record.digest for record in records()]
    Path("studies/s").rename("studies/first")
    executor = AnalyticExecutor()
    search(search_config(3, seed=7), Silent(), executor)
    assert [job.seed for job in executor.started] == [(7, 0), (7, 1), (7, 2)]
    assert [record.digest for record in records()][:1] == first[:1]
    assert not set(first[1:]) & {record.digest for record in records()}


def test_every_trial_completes_without_early_stopping() -> None:
    run(6, stopping="none")
    assert [(record.state, record.epochs) for record in records()] == [("complete", 12)] * 6


def test_search_minimises_its_objective() -> None:
    """With losses and errors exchanged, minimising the loss makes the proposals of minimising the error."""

    class Exchanged(InTurn):
        def start(self, job: Job) -> None:
            super().start(job)
            for message in self.jobs[job.key]:
                if message.kind == "epoch":
                    error = message.values["val_error"]
                    message.values.update(val_error=1 - error, val_loss=error)

    search(search_config(13, workers=2), Silent(), InTurn())
    whole = [(r.state, r.epochs, r.digest, r.val_error, r.history_digest, *r.objectives.values()) for r in records()]
    best = [record.number for record in find_study("s").best(13)]
    Path("studies/s").rename("studies/error")
    search(search_config(13, objectives=("val_loss",), workers=2), Silent(), Exchanged())
    assert [
        (r.state, r.epochs, r.digest, r.val_loss, r.history_digest, *r.objectives.values()) for r in records()
    ] == whole
    assert {key for record in records() for key in record.objectives} == {"val_loss"}
    assert [record.number for record in find_study("s").best(13)] == best


class Scored(AnalyticExecutor):
    """Measure 1 − AUROC, for jobs that ask for it: half of the error."""

    def start(self, job: Job) -> None:
        super().start(job)
        assert job.metrics == ("auroc_error",)
        for message in self.jobs[job.key]:
            if message.kind == "epoch":
                message.values["auroc_error"] = message.values["val_error"] / 2

    def _result(self, row: dict[str, Any], finished: bool) -> dict[str, Any]:
        intervals = {"intervals": {"auroc_error": [0.0, 1.0]}} if finished else {}
        return super()._result(row, finished) | {"metrics": {"auroc_error": row["auroc_error"]}} | intervals


def test_search_minimises_a_metric_that_it_asks_for() -> None:
    config = search_config(13, objectives=("auroc_error", "params"))
    search(config, Silent(), Scored())
    folder = StudyFolder(Path("studies/s"))
    assert folder.config()["objective"] == "auroc_error,params"
    ended = [record for record in records() if record.epochs]
    assert all(record.metrics == {"auroc_error": record.val_error / 2} for record in ended)
    assert {bool(record.intervals) for record in ended if record.state == "complete"} == {True}
    (best, *_) = folder.best()
    assert best.objectives == {"auroc_error": best.val_error / 2, "params": best.cost["params"]}
    assert read_study("s").set_index("number")["auroc_error"][best.number] == best.val_error / 2
    repeated = replay(folder)
    assert (repeated.proposals, repeated.differences) == (13, [])
    search(search_config(14, objectives=("auroc_error", "params")), Silent(), Scored())
    assert len(records()) == 14


def test_search_ends_when_the_space_is_exhausted() -> None:
    outcome = run(50, space=load_space("tiny"))
    assert outcome.exhausted
    assert StudyFolder(Path("studies/s")).config()["exhausted"] is True
    assert outcome.trials == 12
    assert len({record.digest for record in records()}) == 12
    assert [record.number for record in records()] == list(range(12))


def test_choice_with_one_value_counts_in_costs_and_duplicates() -> None:
    """The sampler does not see this choice, but costs and duplicates take it into account."""
    text = TIGHT.replace("[2, 64]", "[4, 4]").replace("[1, 30]", "[1, 3]")
    space = parse_space(text.replace("float = [0.3, 1.0], step = 0.1", "of = [0.5]"), "x", "x")
    assert run(40, space=space).trials == 27
    assert len({record.digest for record in records()}) == 27


def test_several_workers_train_each_trial_once() -> None:
    running_counts: list[int] = []

    class Counting(InTurn):
        def start(self, job: Job) -> None:
            super().start(job)
            running_counts.append(len(self.running))

    search(search_config(15, workers=3), Silent(), Counting())
    assert max(running_counts) == 3
    assert len({record.digest for record in records()}) == 15
    assert {record.state for record in records()} <= {"complete", "paused"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "was started with another seed 0 (now 1)"),
        ({"objectives": ("val_loss",)}, "another objective val_error (now val_loss)"),
        ({"objectives": ("val_error", "params")}, "another objective val_error (now val_error,params)"),
        ({"sampler": "random"}, "another sampler tpe (now random)"),
        ({"control": 0.25}, "another control 0.0 (now 0.25)"),
        ({"stopping": "none"}, "another stopping asha (now none)"),
        ({"data": {"name": "digits", "subset": 300}}, "another subset 200 (now 300)"),
        ({"data": {"name": "digits"}}, "another subset 200 (now whole)"),
        ({"data": {"name": "digits", "subset": 200, "split_seed": 2}}, "another split seed 0 (now 2)"),
        ({"data": {"name": "digits", "subset": 200, "augmentation": "none"}}, "another augmentation crop (now none)"),
        ({"data": {"name": "digits", "subset": 200, "image_size": 16}}, "another image size 8 (now 16)"),
        ({"space": load_space("tiny")}, "another space digits_bc (now tiny)"),
        (
            {"space": load_space("digits_bc", learning_rate=0.05)},
            "another recipe learning_rate=0.2 (now learning_rate=0.05)",
        ),
        ({"space": load_space("digits_bc", limits={"params": 50_000})}, "another limits"),
        ({"space": load_space("digits_bc", epochs=5)}, "a study's epochs can only be raised, but got --epochs 5"),
    ],
)
def test_existing_study_rejects_other_inputs(changes: dict[str, object], message: str) -> None:
    run(2)
    before = essence(records())
    with pytest.raises(InputError) as error:
        search(changed(search_config(2), **changes), Silent(), AnalyticExecutor())
    assert message in str(error.value)
    assert essence(records()) == before


def test_changed_space_file_is_rejected() -> None:
    space = load_space("digits_bc")
    run(1, space=space)
    with pytest.raises(
        InputError, match=r"another version of the space file \(now changed; use `dnas extend s` to widen it\)"
    ):
        run(1, space=dataclasses.replace(space, text=space.text.replace("[recipe]", "[recipe]\nbatch_size = 32", 1)))


def test_changed_comments_of_a_space_file_are_accepted() -> None:
    space = load_space("digits_bc")
    run(1, space=space)
    run(2, space=dataclasses.replace(space, text=space.text + "# another line\n"))
    assert len(records()) == 2


def test_changed_images_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    for folder in ("one", "two"):
        write_folder(Path(folder), "train", ["a", "b"], 10, 8, channels=1)
    of_one = changed(search_config(1), data={"name": "folder:one"})
    search(of_one, Silent(), AnalyticExecutor())
    with pytest.raises(InputError, match=r"another data set .*one.* \(now .*two.*\)"):
        search(changed(of_one, data={"name": "folder:two"}), Silent(), AnalyticExecutor())
    noise(4711, 8, channels=1).save("one/train/a/000.png")
    with pytest.raises(InputError, match=r"another version of the data files \(now changed\)"):
        search(of_one, Silent(), AnalyticExecutor())


def test_more_epochs_retrain_the_survivors_and_are_recorded() -> None:
    run(9)
    before, log = records(), events()
    survivors = [r.number for r in before if r.state == "complete"]
    assert survivors == [0, 3, 6, 8]
    for record in before:
        (find_study("s").trial_folder(record.number) / "checkpoint.pt").write_bytes(b"of twelve epochs")
    find_study("s").write_record(dataclasses.replace(before[0], test_error=0.5))  # as after a final run
    executor = AnalyticExecutor()
    search(search_config(9, load_space("digits_bc", epochs=24)), Silent(), executor)
    after = records()
    assert events()[: len(log) + 1] == [*log, {"event": "extend", "epochs": 24, "trials": survivors}]
    reported = {number: [] for number in survivors}  # type: ignore[var-annotated]
    for event in events()[len(log) :]:
        if event["event"] == "report":
            reported[event["number"]].append(event["epoch"])
    assert [epochs == [*range(1, epochs[-1] + 1)] for epochs in reported.values()] == [True] * 4
    assert {epochs[-1] for epochs in reported.values()} == {3, 24}, "survivors are compared among themselves"
    kept = {path.parent.name for path in find_study("s").path.glob("trials/*/checkpoint.pt")}
    assert kept == {"1", "2", "4", "5", "7"}, (
        "the schedule depends on the number of epochs, so survivors must not resume from old weights"
    )
    assert {int(job.key) for job in executor.started} == set(survivors)
    for record in after:
        if record.number in survivors:
            assert record.epochs_planned == 24
            assert record.test_error is None
            assert record.earlier[0]["val_error"] == before[record.number].val_error
            assert record.seed == before[record.number].seed
        else:
            assert record.epochs_planned == 12
    assert find_study("s").config()["recipe"]["epochs"] == 24
    again_executor = AnalyticExecutor()
    search(search_config(9, load_space("digits_bc", epochs=24)), Silent(), again_executor)
    assert again_executor.started == []
    assert records() == after
    with pytest.raises(InputError, match="a study's epochs can only be raised, but got --epochs 12"):
        run(9)

    # Killed between the last record and its pause.
    log_file = find_study("s").path / "events.jsonl"
    lines = log_file.read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "pause"
    log_file.write_text("\n".join(lines[:-1]) + "\n")
    whole = events()
    run(9, space=load_space("digits_bc", epochs=24))
    assert events()[:-1] == whole
    assert events()[-1]["event"] == "pause"


def test_interrupted_extension_equals_an_uninterrupted_one() -> None:
    run(5)
    shutil.copytree("studies/s", "studies/copy")
    longer = load_space("digits_bc", epochs=24)
    run(6, space=longer)
    whole, log = essence(records()), events()
    Path("studies/s").rename("studies/whole")
    Path("studies/copy").rename("studies/s")
    with pytest.raises(KeyboardInterrupt):
        search(search_config(6, longer), Silent(), Interrupting(5))
    with pytest.raises(KeyboardInterrupt):
        search(search_config(6, longer), Silent(), Interrupting(30))
    run(6, space=longer)
    assert essence(records()) == whole
    assert events() == log


def test_more_epochs_are_kept_after_a_kill_before_the_records_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(3)

    def killed(folder: StudyFolder, record: TrialRecord, path: Path | None = None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            run(3, space=load_space("digits_bc", epochs=24))
    assert events()[-1]["event"] == "extend"
    with pytest.raises(InputError, match="a study's epochs can only be raised, but got --epochs 12"):
        run(4)
    run(4, space=load_space("digits_bc", epochs=24))
    assert {record.epochs_planned for record in records() if record.state == "complete"} == {24}


# --- several objectives, pauses and promotions ---


def test_promoted_trial_resumes_where_it_was_paused() -> None:
    executor = AnalyticExecutor()
    search(search_config(20, sampler="random", seed=1), Silent(), executor)
    promoted = {event["number"] for event in events() if event["event"] == "promote"}
    assert promoted
    for number in promoted:
        events_of_trial = [event for event in events() if event.get("number") == number]
        kinds = [event["event"] for event in events_of_trial]
        assert [event["epoch"] for event in events_of_trial if event["event"] == "report"] == [*range(1, 13)], (
            "no epoch is reported twice"
        )
        assert kinds.index("pause") < kinds.index("promote") < kinds.index("tell")
        assert records()[number].state == "complete"
        assert records()[number].reason is None
    starts = Counter(int(job.key) for job in executor.started)
    assert {number for number, times in starts.items() if times == 2} == promoted


def test_kill_between_a_promotion_and_its_record_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"sampler": "random", "seed": 1}
    run(20, **changes)
    whole, log = essence(records()), events()
    Path("studies/s").rename("studies/whole")
    write = StudyFolder.write_record

    def killed(folder: StudyFolder, record: TrialRecord, path: Path | None = None) -> None:
        if folder.events()[-1]["event"] == "promote":
            raise KeyboardInterrupt
        write(folder, record, path)

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            run(20, **changes)
    run(20, **changes)
    assert essence(records()) == whole
    assert events() == log, "a complete trial has no reason for a pause"


@pytest.mark.parametrize("seed", [0, 1, 6, 7])
def test_trial_is_not_promoted_before_its_worker_has_ended(seed: int) -> None:
    """A worker ends some time after the request to stop, and its trial becomes promotable in between."""

    class Late(AnalyticExecutor):
        def __init__(self) -> None:
            super().__init__()
            self.draws = random.Random(seed)

        def start(self, job: Job) -> None:
            assert job.key not in self.jobs, "two workers must not train the same trial"
            super().start(job)

        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            def stopping(key: str) -> bool:
                message = self.jobs[key][0]
                return message.kind == "done" and not message.values["finished"]

            keys = self.running
            self.draws.shuffle(keys)
            self.jobs = {key: self.jobs[key] for key in sorted(keys, key=stopping)}
            return super().wait(timeout)

    search(search_config(20, workers=4, sampler="random", seed=seed), Silent(), Late())
    assert {record.state for record in records()} == {"complete", "paused"}
    last: dict[object, object] = {}
    for event in events():
        assert event["event"] != "promote" or last[event["number"]] == "pause"
        last[event.get("number")] = event["event"]


def test_later_trials_promote_trials_of_an_earlier_command() -> None:
    run(4, sampler="random", seed=1)
    paused = {record.number for record in records() if record.state == "paused"}
    run(16, sampler="random", seed=1)
    assert paused & {record.number for record in records() if record.state == "complete"}


@pytest.mark.parametrize("stopping", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "params"), ("val_loss", "macs", "params")])
def test_every_stopping_rule_and_objective_survives_interruptions(stopping: str, objectives: tuple[str, ...]) -> None:
    if stopping == "median" and len(objectives) > 1:
        with pytest.raises(InputError, match="--stopping median supports a single objective only"):
            run(1, stopping=stopping, objectives=objectives)
        return
    changes = {"stopping": stopping, "objectives": objectives, "control": 0.2, "sampler": "gp"}
    space = load_space("digits_bc", epochs=27)
    run(12, space=space, **changes)
    whole, log = essence(records()), events()
    Path("studies/s").rename("studies/whole")
    assert run_interrupted(12, 3, space=space, **changes) > 3
    assert essence(records()) == whole
    assert events() == log
    if stopping == "asha":
        assert {record.state for record in records()} == {"complete", "paused"}
    for record in records():
        if record.state == "complete":
            costs = {name: record.cost[name] for name in objectives[1:]}
            assert record.objectives == {objectives[0]: getattr(record, objectives[0])} | costs
    assert Counter(record.arm for record in records())["control"] == 2


def test_latency_is_measured_once_and_kept() -> None:
    class Timing(AnalyticExecutor):
        def start(self, job: Job) -> None:
            super().start(job)
            seconds = 0.001 * (1 + int(job.key)) if job.measure_latency else None
            self.jobs[job.key].appendleft(Message("started", {"device": "cpu", "latency": seconds}))

    executor = Timing()
    search(search_config(9, objectives=("val_error", "latency")), Silent(), executor)
    assert [record.latency for record in records()] == [0.001 * (1 + record.number) for record in records()]
    complete = [record for record in records() if record.state == "complete"]
    assert all(record.objectives["latency"] == record.latency for record in complete)
    measured = Counter(job.key for job in executor.started if job.measure_latency)
    assert set(measured.values()) == {1}
    assert sum(event["event"] == "measured" for event in events()) == 9


def failing(reason: str, text: str, when: int = 2) -> Trouble:
    return lambda job, epoch: Message("failed", {"reason": reason, "text": text}) if epoch == when else None


def test_search_continues_after_a_diverged_trial() -> None:
    def trouble(job: Job, epoch: int) -> Message | None:
        return failing("diverged", "the training loss is nan")(job, epoch) if job.key == "1" else None

    outcome = run(4, trouble, stopping="none")
    assert outcome.stopped_by is None
    assert [record.state for record in records()] == ["complete", "failed", "complete", "complete"]
    assert records()[1].reason == "diverged: the training loss is nan"
    assert records()[1].objectives == {}


def test_search_continues_when_every_trial_diverges() -> None:
    assert run(5, failing("diverged", "nan")).stopped_by is None
    assert len(records()) == 5


def test_trial_out_of_memory_is_retried_with_recomputed_activations() -> None:
    """The trial resumes alone on its device, with the same result as if memory had sufficed."""
    run(3, stopping="none")
    whole = [row[:-1] for row in essence(records())]
    Path("studies/s").rename("studies/roomy")
    full = failing("out of memory", "tried to allocate 9 GiB", when=5)
    executor = AnalyticExecutor(lambda job, epoch: None if job.recompute else full(job, epoch))
    search(search_config(3, stopping="none"), Silent(), executor)
    assert [row[:-1] for row in essence(records())] == whole
    assert [(job.key, job.recompute, job.alone) for job in executor.started] == [
        (key, retried, retried) for key in "012" for retried in (False, True)
    ]
    assert all(record.recompute for record in records())
    assert [e["reason"] for e in events() if e["event"] == "again"] == ["out of memory"] * 3


def test_trial_that_does_not_fit_with_recomputation_is_infeasible_and_bounds_later_ones() -> None:
    run(8, failing("out of memory", "tried to allocate 9 GiB"), space=load_space("digits_bc", batch_size=64))
    trials = records()
    assert {record.state for record in trials} == {"infeasible"}
    assert trials[0].reason == "out of memory: tried to allocate 9 GiB"
    needed = [record.cost["activation_bytes"] for record in trials]
    assert needed == sorted(set(needed), reverse=True), "each trial needs less memory than all that failed"


def test_recomputation_survives_an_interruption() -> None:
    full = failing("out of memory", "9 GiB", when=5)
    trouble = lambda job, epoch: None if job.recompute else full(job, epoch)  # noqa: E731
    executor = Interrupting(8)
    executor.trouble = trouble
    with pytest.raises(KeyboardInterrupt):
        search(search_config(1), Silent(), executor)
    second = AnalyticExecutor(trouble)
    search(search_config(1), Silent(), second)
    assert [(job.recompute, job.alone) for job in second.started] == [(True, True)]


def test_run_that_exceeds_the_timeout_fails_with_the_worst_error() -> None:
    """The simulated clock advances by one second in each of the twelve epochs."""
    assert run(2, timeout=12.5, stopping="none").stopped_by is None
    assert [record.state for record in records()] == ["complete"] * 2
    Path("studies/s").rename("studies/before")
    run(3, timeout=6.5, stopping="none")
    assert [record.state for record in records()] == ["failed"] * 3
    assert records()[0].reason == "timeout: 7 s of training, more than --timeout 6.5 allows"
    assert [event["epoch"] for event in events() if event["event"] == "report"] == [*range(1, 8)] * 3
    history = SearchState(("val_error",), "none", 12)
    for event in events():
        history.apply(event)
    assert [told.values for told in history.told()] == [(1.0,)] * 3


def test_timeout_includes_the_seconds_before_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt):
        search(search_config(1, timeout=6.5, stopping="none"), Silent(), Interrupting(6))
    run(1, timeout=6.5, stopping="none")
    assert records()[0].state == "failed"


def test_trial_resumes_after_its_worker_lost_its_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease in the folder of the trial is not renewed while the clock advances."""
    monkeypatch.setattr("dnas.executors.lease.EXPIRY_SECONDS", 10.0)

    class Frozen(AnalyticExecutor):
        def start(self, job: Job) -> None:
            super().start(job)
            lease = LeaseInfo("a worker", "a host", 1, "", 1, 7, "2026-01-02")
            if len(self.started) == 1:
                (Path(job.folder) / "lease.json").write_text(json.dumps(dataclasses.asdict(lease)))
            else:
                (Path(job.folder) / "lease.json").unlink()

        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            self.seconds += 2.0
            assert self.seconds < 1000
            return [] if len(self.started) == 1 else super().wait(timeout)

    executor, show = Frozen(), Silent()
    search(search_config(1), show, executor)
    assert len(executor.started) == 2
    assert show.notes == ["trial 0: no heartbeat from its worker; resuming from its checkpoint"]
    assert [(record.state, record.losses) for record in records()] == [("complete", 1)]


def test_search_stops_when_every_worker_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.executors.lease.EXPIRY_SECONDS", 10.0)

    class Frozen(AnalyticExecutor):
        def start(self, job: Job) -> None:
            super().start(job)
            lease = LeaseInfo("a worker", "a host", 1, "", 1, 7, "2026-01-02")
            (Path(job.folder) / "lease.json").write_text(json.dumps(dataclasses.asdict(lease)))

        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            self.seconds += 2.0
            assert self.seconds < 10_000
            return []

    outcome = search(search_config(9), Silent(), Frozen())
    assert outcome.stopped_by is not None
    assert outcome.stopped_by.startswith("3 trials in a row failed with the same error: no heartbeat from its worker")
    assert [record.state for record in records()] == ["failed"] * 3


def test_three_identical_errors_in_a_row_stop_the_search() -> None:
    outcome = run(10, failing("error", "KeyError: 'x'"))
    assert outcome.stopped_by is not None
    assert "3 trials in a row failed with the same error: KeyError: 'x'" in outcome.stopped_by
    assert len(records()) == 3


def test_identical_errors_between_successes_do_not_stop_the_search() -> None:
    fails = failing("error", "KeyError: 'x'")
    outcome = run(8, lambda job, epoch: fails(job, epoch) if int(job.key) % 2 else None, stopping="none")
    assert outcome.stopped_by is None
    assert [record.state for record in records()] == ["complete", "failed"] * 4


def test_different_errors_do_not_stop_the_search() -> None:
    outcome = run(6, lambda job, epoch: Message("failed", {"reason": "error", "text": f"KeyError: {job.key}"}))
    assert outcome.stopped_by is None
    assert len(records()) == 6


def test_lost_worker_with_progress_is_restarted_without_failing_the_trial() -> None:
    """The worker is lost at every second epoch, more often than is allowed without progress in between."""
    lost: set[tuple[str, int]] = set()

    def often(job: Job, epoch: int) -> Message | None:
        if epoch % 2 == 0 and (job.key, epoch) not in lost:
            lost.add((job.key, epoch))
            return Message("lost", {"text": "its process was ended by SIGKILL"})
        return None

    run(2, stopping="none")
    whole = [row[:-1] for row in essence(records())]
    Path("studies/s").rename("studies/before")
    run(2, often, stopping="none")
    assert [record.losses for record in records()] == [6, 6]
    assert [record.attempts for record in records()] == [7, 7]
    assert [row[:-1] for row in essence(records())] == whole
    assert len({event["epoch"] for event in events() if event["event"] == "report" and event["number"] == 0}) == 12


def test_worker_lost_repeatedly_without_progress_fails_the_trial() -> None:
    run(1, lambda job, epoch: Message("lost", {"text": "its process was ended by SIGKILL"}))
    assert records()[0].state == "failed"
    assert records()[0].reason == "lost worker: its process was ended by SIGKILL"
    assert records()[0].attempts == 5


def test_second_native_crash_by_the_same_signal_fails_the_trial() -> None:
    """Epochs between two crashes do not reset the count, and a crash by another signal does not raise it."""
    deaths = iter(["SIGSEGV", "SIGABRT", "SIGSEGV"])

    def crash(job: Job, epoch: int) -> Message | None:
        if epoch % 2 or (signal_name := next(deaths, None)) is None:
            return None
        return Message("lost", {"text": f"its process was ended by {signal_name}", "crashed": True})

    run(1, crash, stopping="none")
    (record,) = records()
    assert record.state == "failed"
    assert record.reason == (
        f"crash: its process was ended by SIGSEGV 2 times; this network crashes torch {torch.__version__.split('+')[0]}"
        " on this machine"
    )
    assert (record.attempts, record.losses) == (3, 2)


def test_three_crashed_trials_in_a_row_stop_the_search() -> None:
    crash = Message("lost", {"text": "its process was ended by SIGSEGV", "crashed": True})
    outcome = run(9, lambda job, epoch: crash)
    assert outcome.stopped_by is not None
    assert outcome.stopped_by.startswith(
        "3 trials in a row failed with the same error: its process was ended by SIGSEGV 2 times"
    )
    assert [record.attempts for record in records()] == [2] * 3


def test_messages_after_the_end_of_a_trial_are_ignored() -> None:
    """Ray restarts a lost process by itself, so one batch may report several losses."""

    class Bursting(AnalyticExecutor):
        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            lost = Message("lost", {"text": "gone", "restarted": True})
            return [(key, lost) for key in self.running for _ in range(9)]

    search(search_config(1), Silent(), Bursting())
    assert records()[0].state == "failed"
    assert records()[0].losses == 4
    assert [event["event"] for event in events()].count("tell") == 1


def test_full_disk_stops_the_search_and_the_trial_resumes_later() -> None:
    with pytest.raises(InputError, match="no room left"):
        run(3, failing("disk full", "no room left"))
    assert records()[0].state == "running"
    run(3)
    assert {record.state for record in records()} == {"complete", "paused"}


class Measuring(AnalyticExecutor):
    """Report a test error of an eighth times the seed of the final run."""

    def start(self, job: Job) -> None:
        super().start(job)
        for message in self.jobs[job.key]:
            if message.kind == "done":
                message.values["row"] = message.values["row"] | {"seed": job.seed[0]}

    def _result(self, row: dict[str, object], finished: bool) -> dict[str, object]:
        return super()._result(row, finished) | {"test_error": 0.125 * row.get("seed", 0), "test_loss": 0.5}  # type: ignore[operator]


def test_only_the_best_trials_are_retrained_and_tested() -> None:
    executor = Measuring()
    search(search_config(6, retrain=2, retrain_seeds=2), Silent(), executor)
    final = [job for job in executor.started if job.final]
    best = [record.number for record in find_study("s").best(2)]
    assert sorted(job.key for job in final) == sorted(f"{number}-{seed}" for number in best for seed in (1, 2))
    assert {job.seed for job in final} == {(seed, number) for number in best for seed in (1, 2)}
    measured = {record.number for record in records() if record.test_error is not None}
    assert measured == set(best)
    assert read_study("s").set_index("number")["test_error"].dropna().unique().tolist() == [0.1875]  # of 0.125 and 0.25
    for _, record in find_study("s").retrained():
        assert (record.test_error, record.test_loss, record.state) == (0.125 * record.seed[0], 0.5, "complete")
        assert record.data["val_size"] == 0, "a final run also trains on the validation images"
    second = Measuring()
    search(search_config(6, retrain=2, retrain_seeds=2), Silent(), second)
    assert second.started == []


def test_best_trials_are_retrained_after_an_extension_to_more_epochs() -> None:
    search(search_config(2, retrain=1), Silent(), Measuring())
    executor = Measuring()
    search(search_config(2, load_space("digits_bc", epochs=24), retrain=1), Silent(), executor)
    final = [job for job in executor.started if job.final]
    assert [job.recipe["epochs"] for job in final] == [24]
    assert [record.epochs for _, record in find_study("s").retrained()] == [24]


def test_lost_final_run_resumes_and_failed_one_is_recorded() -> None:
    lost: list[str] = []

    def trouble(job: Job, epoch: int) -> Message | None:
        if job.final and epoch == 2 and job.key not in lost:
            lost.append(job.key)
            return Message("lost", {"text": "its process was ended by SIGKILL"})
        if job.final and job.seed[0] == 2:
            return Message("failed", {"reason": "diverged", "text": "nan"})
        return None

    search(search_config(1, retrain=1, retrain_seeds=2), Silent(), Measuring(trouble))
    final_runs = [record for _, record in find_study("s").retrained()]
    assert [(r.state, r.attempts, r.test_error) for r in final_runs] == [("complete", 2, 0.125), ("failed", 1, None)]
    assert final_runs[1].reason == "diverged: nan"
    assert records()[0].test_error == 0.125


def test_kill_before_the_mean_test_error_is_written_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write = StudyFolder.write_record

    def killed(folder: StudyFolder, record: TrialRecord, path: Path | None = None) -> None:
        if path is None and record.test_error is not None:
            raise KeyboardInterrupt
        write(folder, record, path)

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            search(search_config(1, retrain=1), Silent(), Measuring())
    assert [record.state for _, record in find_study("s").retrained()] == ["complete"]
    second = Measuring()
    search(search_config(1, retrain=1), Silent(), second)
    assert second.started == []
    assert records()[0].test_error == 0.125


def test_final_runs_of_fewer_epochs_are_excluded_from_the_mean() -> None:
    search(search_config(1, retrain=1, retrain_seeds=2), Silent(), Measuring())
    assert records()[0].test_error == 0.1875
    search(search_config(1, load_space("digits_bc", epochs=24), retrain=1), Silent(), Measuring())
    assert records()[0].test_error == 0.125


def test_interrupted_deletion_of_a_final_run_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its record, the old checkpoint of fewer epochs would be resumed and rejected as that of another run."""
    search(search_config(1, retrain=1), Silent(), Measuring())
    folder = find_study("s").path / "retrain" / "0-1"
    longer = load_space("digits_bc", epochs=24)
    iterdir, unlink = Path.iterdir, Path.unlink
    (folder / "checkpoint.pt").write_bytes(b"of twelve epochs")

    def killed(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.parent.name == folder.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=True)))
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            search(search_config(1, longer, retrain=1), Silent(), Measuring())
    search(search_config(1, longer, retrain=1), Silent(), Measuring())
    assert not (folder / "checkpoint.pt").exists()
    assert [record.epochs for _, record in find_study("s").retrained()] == [24]


def test_interrupted_drivers_do_not_count_as_lost_workers() -> None:
    """Only lost workers count. A long final run may outlast several drivers."""
    for left in (17, 5, 5):  # the first also trains the trial
        with pytest.raises(KeyboardInterrupt):
            search(search_config(1, retrain=1), Silent(), Interrupting(left))
    lost: list[str] = []

    def once(job: Job, epoch: int) -> Message | None:
        if job.final and not lost:
            lost.append(job.key)
            return Message("lost", {"text": "its process was ended by SIGKILL"})
        return None

    search(search_config(1, retrain=1), Silent(), Measuring(once))
    [(_, record)] = find_study("s").retrained()
    assert (record.state, record.losses) == ("complete", 1)
    assert record.attempts > 3


def test_final_run_fails_when_its_worker_is_lost_repeatedly() -> None:
    def always(job: Job, epoch: int) -> Message | None:
        return Message("lost", {"text": "its process was ended by SIGKILL"}) if job.final else None

    search(search_config(1, retrain=1), Silent(), Measuring(always))
    [(_, record)] = find_study("s").retrained()
    assert (record.state, record.attempts) == ("failed", 5)


def test_final_run_that_exceeds_the_timeout_fails() -> None:
    """The simulated clock advances by one second per epoch. The trial itself runs first, without a time limit."""
    search(search_config(1), Silent(), Measuring())
    search(search_config(1, retrain=1, timeout=6.5), Silent(), Measuring())
    [(_, record)] = find_study("s").retrained()
    assert (record.state, record.test_error) == ("failed", None)
    assert record.reason == "timeout: 7 s of training, more than --timeout 6.5 allows"


def test_final_run_resumes_after_its_worker_froze(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.executors.lease.EXPIRY_SECONDS", 10.0)
    search(search_config(1), Silent(), Measuring())

    class Frozen(Measuring):
        def start(self, job: Job) -> None:
            super().start(job)
            lease = LeaseInfo("a worker", "a host", 1, "", 1, 7, "2026-01-02")
            path = Path(job.folder) / "lease.json"
            if len(self.started) == 1:
                path.write_text(json.dumps(dataclasses.asdict(lease)))
            else:
                path.unlink()

        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            self.seconds += 2.0
            assert self.seconds < 1000
            return [] if len(self.started) == 1 else super().wait(timeout)

    executor, show = Frozen(), Silent()
    search(search_config(1, retrain=1), show, executor)
    assert [job.key for job in executor.started] == ["0-1", "0-1"]
    assert "trial 0-1: no heartbeat from its worker; resuming from its checkpoint" in show.notes
    [(_, record)] = find_study("s").retrained()
    assert (record.state, record.losses) == ("complete", 1)


def test_identical_failures_of_final_runs_stop_the_search() -> None:
    def trouble(job: Job, epoch: int) -> Message | None:
        return Message("failed", {"reason": "error", "text": "KeyError: 'x'"}) if job.final else None

    executor = Measuring(trouble)
    outcome = search(search_config(1, retrain=1, retrain_seeds=9), Silent(), executor)
    assert outcome.stopped_by is not None
    assert "3 trials in a row failed with the same error: KeyError: 'x'" in outcome.stopped_by
    assert sum(job.final for job in executor.started) == 3


def test_retraining_without_a_test_set_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    write_folder(Path("pictures"), "train", ["a", "b"], 10, 8, channels=1)
    of_folder = changed(search_config(1, retrain=1), data={"name": "folder:pictures"})
    executor = AnalyticExecutor()
    with pytest.raises(InputError, match=r"has no held-out test set.*put class folders under test/"):
        search(of_folder, Silent(), executor)
    assert not [job for job in executor.started if job.final]


def test_second_driver_is_rejected() -> None:
    folder = StudyFolder(Path("studies/s"))
    folder.path.mkdir(parents=True)
    with folder.lock(), pytest.raises(InputError, match=r"is being run by another process \(process \d+ on"):
        run(1)


# --- ranking and names ---


def test_rank_prefers_the_smaller_of_equals_and_ignores_incomplete_trials() -> None:
    def record(number: int, error: float, params: int, state: str = "complete") -> TrialRecord:
        return TrialRecord(number, state=state, objectives={"val_error": error}, cost={"params": params})

    trials = [record(0, 0.2, 10), record(1, 0.1, 30), record(2, 0.1, 20), record(3, 0.1, 20), record(4, 0.3, 5)]
    trials.append(record(5, 0.01, 1, "stopped"))
    assert [r.number for r in rank(trials)] == [2, 3, 1, 0, 4]


@pytest.mark.parametrize("name", ["a/b", "../x", "a..b", "", ".hidden", "a b"])
def test_invalid_study_name_is_rejected(name: str) -> None:
    with pytest.raises(InputError, match="a study's name is letters"):
        check_study_name(name)
