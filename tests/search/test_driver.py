"""The search loop on trainings that are formulas: limits, resumption, growth, failures, early stopping."""

import dataclasses
import functools
import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.executors.lease import LeaseInfo
from dnas.executors.worker import Job, Message
from dnas.search.driver import Outcome
from dnas.search.run import search
from dnas.search.state import SearchState
from dnas.space.parse import load_space, parse_space
from dnas.study.folder import StudyFolder, check_study_name, find_study, read_study
from dnas.study.record import TrialRecord, rank
from tests.support.analytic import AnalyticExecutor, Silent, Trouble, changed
from tests.support.analytic import search_config as config_of
from tests.support.data_files import noise, write_folder

TIGHT = """# Few of these are inside the limits
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


search_config = functools.partial(config_of, mirror="none")  # which has its own tests, and takes a third of a second


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(trials: int, trouble: Trouble = lambda job, epoch: None, **changes: object) -> Outcome:
    return search(search_config(trials, **changes), Silent(), AnalyticExecutor(trouble))


def records() -> list[TrialRecord]:
    return StudyFolder(Path("studies/s")).records()


def events() -> list[dict[str, object]]:
    """The study's log, without its times."""
    found = StudyFolder(Path("studies/s")).events()
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


def essence(found: list[TrialRecord]) -> list[tuple[object, ...]]:
    """What must not depend on interruptions."""
    return [
        (r.number, r.state, r.arm, r.params, r.digest, r.val_error, r.epochs, r.weights_digest, r.history_digest)
        for r in found
    ]


def test_no_proposal_is_over_a_limit_or_a_duplicate() -> None:
    space = parse_space(TIGHT, "tight", "tight")
    run(60, space=space)
    found = records()
    assert len(found) == 60
    assert len({record.digest for record in found}) == 60
    for record in found:
        assert not space.limits.excess(space.cost(DenseNetSpec.from_dict(record.spec)))
    assert sum(record.arm == "sampler" for record in found) == 60


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns(sampler: str) -> None:
    """After its random start it must do better than random draws: the mean final error of the last twenty of forty."""

    def mean_of_the_last(sampler: str) -> float:
        run(40, space=load_space("cifar_plain", dataset="digits"), stopping="none", sampler=sampler)
        errors = [record.val_error for record in records() if record.val_error is not None]
        shutil.rmtree("studies")
        return sum(errors[20:]) / 20

    assert mean_of_the_last(sampler) < mean_of_the_last("random") - 0.0005


def test_the_first_networks_are_tried_first() -> None:
    run(2)
    assert [record.arm for record in records()] == ["first", "sampler"]
    assert records()[0].network == "densenet-bc:L=22,k=8,channels=1,size=8"


def test_the_same_command_does_nothing_more_and_a_larger_n_goes_on() -> None:
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
    """Lets the trials that run at once advance in turn."""

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        [(key, message)] = super().wait(timeout)
        if key in self.jobs:
            self.jobs[key] = self.jobs.pop(key)
        return [(key, message)]


class Interrupting(AnalyticExecutor):
    """Ends the driver, as Ctrl-C does, before its `left`-th message."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def wait(self, timeout: float) -> list[tuple[str, Message]]:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().wait(timeout)


def run_interrupted(trials: int, pace: int = 1, **changes: object) -> int:
    """Runs the same command until it ends, stopped after one message or as many as a trial and a half; how often."""
    for times, left in enumerate(itertools.cycle((2, 15, 7, 1, 20, 11, 3, 18))):
        executor = Interrupting(pace * left)
        try:
            search(search_config(trials, **changes), Silent(), executor)
        except KeyboardInterrupt:
            assert executor.running == [], "no worker outlives its driver"
        else:
            return times
    raise AssertionError


def test_a_search_interrupted_anywhere_equals_one_that_was_not() -> None:
    run(14)
    whole, log = essence(records()), events()
    Path("studies/s").rename("studies/whole")
    assert run_interrupted(14) > 10
    assert essence(records()) == whole
    assert events() == log


def test_what_a_kill_leaves_between_two_writes_is_mended() -> None:
    run(6, stopping="none")
    whole, before = essence(records()), events()
    folder = StudyFolder(Path("studies/s"))
    log = folder.path / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    tell = next(i for i, line in enumerate(lines) if '"tell"' in line and '"number": 5' in line)
    ask = next(i for i, line in enumerate(lines) if '"ask"' in line and '"number": 5' in line)
    assert tell == len(lines) - 1

    # after the record, before its tell
    log.write_text("".join(lines[:tell]))
    run(6, stopping="none")
    assert essence(records()) == whole
    assert events() == before

    # after the ask's event, before its record; with a torn line behind it
    log.write_text("".join(lines[: ask + 1]) + '{"event": "rep')
    for path in folder.trial_folder(5).iterdir():
        path.unlink()
    show = Silent()
    search(search_config(6, stopping="none"), show, AnalyticExecutor())
    assert show.notes == ["repaired events.jsonl: its last line was torn (14 bytes cut)"]
    assert essence(records()) == whole
    assert events() == before

    # in the middle of a trial: the record says running, the log has its first epochs
    log.write_text("".join(lines[: ask + 4]))
    record = folder.records()[5]
    folder.write_record(dataclasses.replace(record, state="running", objectives={}, weights_digest=None))
    run(6, stopping="none")
    assert essence(records()) == whole
    assert events() == before


def test_damaged_files_are_named() -> None:
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


def test_a_record_of_a_later_version_is_read() -> None:
    run(1)
    path = StudyFolder(Path("studies/s")).trial_folder(0) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mood": "good"}))
    assert records()[0].state == "complete"


def test_a_record_says_how_its_training_went() -> None:
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
    said = [event for event in events() if event["event"] in ("tell", "pause")]
    assert [event for event in said if event["event"] == "tell"] == [
        {
            "event": "tell",
            "number": event["number"],
            "state": "complete",
            "values": {"val_error": records()[event["number"]].val_error},  # type: ignore[index]
            "reason": None,
        }
        for event in said
        if event["event"] == "tell"
    ]
    paused = {event["number"] for event in said if event["event"] == "pause"}
    assert {record.number for record in records() if record.state == "paused"} <= paused
    assert [record.number for record in records()] == list(range(6))
    assert {record.state for record in records()} == {"complete", "paused"}


def test_the_seed_reaches_the_sampler_and_the_trainings() -> None:
    run(3)
    first = [record.digest for record in records()]
    Path("studies/s").rename("studies/first")
    executor = AnalyticExecutor()
    search(search_config(3, seed=7), Silent(), executor)
    assert [job.seed for job in executor.started] == [(7, 0), (7, 1), (7, 2)]
    assert [record.digest for record in records()][:1] == first[:1]
    assert not set(first[1:]) & {record.digest for record in records()}


def test_without_early_stopping_every_trial_ends() -> None:
    run(6, stopping="none")
    assert [(record.state, record.epochs) for record in records()] == [("complete", 12)] * 6


def test_the_objective_is_what_is_minimised() -> None:
    """With losses and errors exchanged, minimising the loss is to search as minimising the error did."""

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


def test_a_space_with_fewer_networks_ends_well() -> None:
    outcome = run(50, space=load_space("tiny"))
    assert outcome.exhausted
    assert outcome.trials == 12
    assert len({record.digest for record in records()}) == 12
    assert [record.number for record in records()] == list(range(12))


def test_a_choice_of_one_value_is_kept_in_mind() -> None:
    """The sampler is never asked for it, yet what it would propose is priced and compared with it."""
    text = TIGHT.replace("[2, 64]", "[4, 4]").replace("[1, 30]", "[1, 3]")
    space = parse_space(text.replace("float = [0.3, 1.0], step = 0.1", "of = [0.5]"), "x", "x")
    assert run(40, space=space).trials == 27
    assert len({record.digest for record in records()}) == 27


def test_more_workers_train_the_same_number_once_each() -> None:
    at_once: list[int] = []

    class Counting(InTurn):
        def start(self, job: Job) -> None:
            super().start(job)
            at_once.append(len(self.running))

    search(search_config(15, workers=3), Silent(), Counting())
    assert max(at_once) == 3
    assert len({record.digest for record in records()}) == 15
    assert {record.state for record in records()} <= {"complete", "paused"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "was begun with another seed 0 (now 1)"),
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
        ({"space": load_space("digits_bc", epochs=5)}, "a study's epochs only grow; got --epochs 5"),
    ],
)
def test_a_study_that_exists_refuses_other_inputs(changes: dict[str, object], message: str) -> None:
    run(2)
    before = essence(records())
    with pytest.raises(InputError) as error:
        search(changed(search_config(2), **changes), Silent(), AnalyticExecutor())
    assert message in str(error.value)
    assert essence(records()) == before


def test_a_space_file_that_changed_is_refused() -> None:
    space = load_space("digits_bc")
    run(1, space=space)
    with pytest.raises(
        InputError, match=r"another space as its file was then \(now as its file is; `dnas extend s` widens it\)"
    ):
        run(1, space=dataclasses.replace(space, text=space.text + "# another line\n"))


def test_images_that_changed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    for folder in ("one", "two"):
        write_folder(Path(folder), "train", ["a", "b"], 10, 8, channels=1)
    of_one = changed(search_config(1), data={"name": "folder:one"})
    search(of_one, Silent(), AnalyticExecutor())
    with pytest.raises(InputError, match=r"another data set .*one.* \(now .*two.*\)"):
        search(changed(of_one, data={"name": "folder:two"}), Silent(), AnalyticExecutor())
    noise(4711, 8, channels=1).save("one/train/a/000.png")
    with pytest.raises(InputError, match=r"another data set as its files were then \(now as its files are\)"):
        search(of_one, Silent(), AnalyticExecutor())


def test_more_epochs_train_the_survivors_again_and_record_it() -> None:
    run(9)
    before, log = records(), events()
    survivors = [r.number for r in before if r.state == "complete"]
    assert survivors == [0, 3, 6, 8]
    for record in before:
        (find_study("s").trial_folder(record.number) / "checkpoint.pt").write_bytes(b"of twelve epochs")
    find_study("s").write_record(dataclasses.replace(before[0], test_error=0.5))  # as a final training leaves it
    executor = AnalyticExecutor()
    search(search_config(9, load_space("digits_bc", epochs=24)), Silent(), executor)
    after = records()
    assert events()[: len(log) + 1] == [*log, {"event": "extend", "epochs": 24, "trials": survivors}]
    again = {number: [] for number in survivors}  # type: ignore[var-annotated]
    for event in events()[len(log) :]:
        if event["event"] == "report":
            again[event["number"]].append(event["epoch"])
    assert [epochs == [*range(1, epochs[-1] + 1)] for epochs in again.values()] == [True] * 4
    assert {epochs[-1] for epochs in again.values()} == {3, 24}, "they are compared among themselves"
    kept = {path.parent.name for path in find_study("s").path.glob("trials/*/checkpoint.pt")}
    assert kept == {"1", "2", "4", "5", "7"}, (
        "a schedule depends on the epochs: no survivor goes on from its old weights"
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
    with pytest.raises(InputError, match="a study's epochs only grow; got --epochs 12"):
        run(9)

    # killed between the last record and its pause
    log_file = find_study("s").path / "events.jsonl"
    told_last = log_file.read_text().splitlines()
    assert json.loads(told_last[-1])["event"] == "pause"
    log_file.write_text("\n".join(told_last[:-1]) + "\n")
    whole = events()
    run(9, space=load_space("digits_bc", epochs=24))
    assert events()[:-1] == whole
    assert events()[-1]["event"] == "pause"


def test_more_epochs_interrupted_anywhere_equal_those_that_were_not() -> None:
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


def test_more_epochs_stand_in_the_study_even_if_a_kill_came_before_they_were_written(
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
    with pytest.raises(InputError, match="a study's epochs only grow; got --epochs 12"):
        run(4)
    run(4, space=load_space("digits_bc", epochs=24))
    assert {record.epochs_planned for record in records() if record.state == "complete"} == {24}


# several objectives, pauses and promotions


def test_a_paused_trial_goes_on_from_where_it_was_when_others_turn_out_worse() -> None:
    executor = AnalyticExecutor()
    search(search_config(20, sampler="random", seed=1), Silent(), executor)
    promoted = {event["number"] for event in events() if event["event"] == "promote"}
    assert promoted
    for number in promoted:
        mine = [event for event in events() if event.get("number") == number]
        kinds = [event["event"] for event in mine]
        assert [event["epoch"] for event in mine if event["event"] == "report"] == [*range(1, 13)], (
            "no epoch is told twice"
        )
        assert kinds.index("pause") < kinds.index("promote") < kinds.index("tell")
        assert records()[number].state == "complete"
        assert records()[number].reason is None
    counted = Counter(int(job.key) for job in executor.started)
    assert {number for number, times in counted.items() if times == 2} == promoted


def test_a_kill_between_a_promotion_and_its_record_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert events() == log, "a complete trial has no reason to have been paused"


@pytest.mark.parametrize("seed", [0, 1, 6, 7])
def test_a_trial_is_not_promoted_before_its_worker_has_ended(seed: int) -> None:
    """Of several workers, one that was told to stop ends late; meanwhile others fall behind its trial."""

    class Late(AnalyticExecutor):
        def __init__(self) -> None:
            super().__init__()
            self.draws = random.Random(seed)

        def start(self, job: Job) -> None:
            assert job.key not in self.jobs, "two workers would train the same trial"
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


def test_later_trials_promote_those_of_an_earlier_command() -> None:
    run(4, sampler="random", seed=1)
    paused = {record.number for record in records() if record.state == "paused"}
    run(16, sampler="random", seed=1)
    assert paused & {record.number for record in records() if record.state == "complete"}


@pytest.mark.parametrize("stopping", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "params"), ("val_loss", "macs", "params")])
def test_every_rule_and_objective_survives_interruptions(stopping: str, objectives: tuple[str, ...]) -> None:
    if stopping == "median" and len(objectives) > 1:
        with pytest.raises(InputError, match="--stopping median needs a single objective"):
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


def test_a_latency_is_measured_once_and_kept() -> None:
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


def test_a_diverged_trial_is_recorded_and_the_search_goes_on() -> None:
    def trouble(job: Job, epoch: int) -> Message | None:
        return failing("diverged", "the training loss is nan")(job, epoch) if job.key == "1" else None

    outcome = run(4, trouble, stopping="none")
    assert outcome.stopped_by is None
    assert [record.state for record in records()] == ["complete", "failed", "complete", "complete"]
    assert records()[1].reason == "diverged: the training loss is nan"
    assert records()[1].objectives == {}


def test_every_trial_diverging_does_not_stop_the_search() -> None:
    assert run(5, failing("diverged", "nan")).stopped_by is None
    assert len(records()) == 5


def test_a_full_memory_is_met_by_recomputing_the_activations() -> None:
    """The same trial goes on, alone on its device, and ends as it would have where there was room."""
    run(3, stopping="none")
    whole = [row[:-1] for row in essence(records())]
    Path("studies/s").rename("studies/roomy")
    full = failing("out of memory", "tried to allocate 9 GiB", when=5)
    executor = AnalyticExecutor(lambda job, epoch: None if job.recompute else full(job, epoch))
    search(search_config(3, stopping="none"), Silent(), executor)
    assert [row[:-1] for row in essence(records())] == whole
    assert [(job.key, job.recompute, job.alone) for job in executor.started] == [
        (key, again, again) for key in "012" for again in (False, True)
    ]
    assert all(record.recompute for record in records())
    assert [e["reason"] for e in events() if e["event"] == "again"] == ["out of memory"] * 3


def test_what_does_not_fit_even_so_is_infeasible_and_nothing_larger_is_tried() -> None:
    run(8, failing("out of memory", "tried to allocate 9 GiB"), space=load_space("digits_bc", batch_size=64))
    found = records()
    assert {record.state for record in found} == {"infeasible"}
    assert found[0].reason == "out of memory: tried to allocate 9 GiB"
    needed = [record.cost["activation_bytes"] for record in found]
    assert needed == sorted(set(needed), reverse=True), "each needs less than all that failed"


def test_a_recomputation_survives_an_interruption() -> None:
    full = failing("out of memory", "9 GiB", when=5)
    trouble = lambda job, epoch: None if job.recompute else full(job, epoch)  # noqa: E731
    executor = Interrupting(8)
    executor.trouble = trouble
    with pytest.raises(KeyboardInterrupt):
        search(search_config(1), Silent(), executor)
    again = AnalyticExecutor(trouble)
    search(search_config(1), Silent(), again)
    assert [(job.recompute, job.alone) for job in again.started] == [(True, True)]


def test_a_training_that_takes_too_long_is_ended_and_told_as_the_worst() -> None:
    """By a simulated clock: a second an epoch, twelve epochs."""
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


def test_the_seconds_before_an_interruption_count() -> None:
    with pytest.raises(KeyboardInterrupt):
        search(search_config(1, timeout=6.5, stopping="none"), Silent(), Interrupting(6))
    run(1, timeout=6.5, stopping="none")
    assert records()[0].state == "failed"


def test_a_worker_without_a_heartbeat_is_ended_and_its_trial_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease in the trial's folder stands still while the clock goes on: nobody trains there any more."""
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


def test_workers_that_always_freeze_stop_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_equal_errors_that_others_part_do_not_stop_it() -> None:
    fails = failing("error", "KeyError: 'x'")
    outcome = run(8, lambda job, epoch: fails(job, epoch) if int(job.key) % 2 else None, stopping="none")
    assert outcome.stopped_by is None
    assert [record.state for record in records()] == ["complete", "failed"] * 4


def test_different_errors_do_not_stop_it() -> None:
    outcome = run(6, lambda job, epoch: Message("failed", {"reason": "error", "text": f"KeyError: {job.key}"}))
    assert outcome.stopped_by is None
    assert len(records()) == 6


def test_a_lost_worker_goes_on_and_is_no_failure() -> None:
    """Lost at every second epoch, more often than would be borne without progress in between."""
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


def test_a_worker_that_is_lost_without_progress_fails_at_last() -> None:
    run(1, lambda job, epoch: Message("lost", {"text": "its process was ended by SIGKILL"}))
    assert records()[0].state == "failed"
    assert records()[0].reason == "lost worker: its process was ended by SIGKILL"
    assert records()[0].attempts == 5


def test_a_crash_in_native_code_fails_the_trial_at_the_second_like_death() -> None:
    """Two epochs apart, so that epochs in between do not hide it; another signal in between does not count."""
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


def test_crashes_of_different_trials_stop_the_search_only_when_three_fail_in_a_row() -> None:
    crash = Message("lost", {"text": "its process was ended by SIGSEGV", "crashed": True})
    outcome = run(9, lambda job, epoch: crash)
    assert outcome.stopped_by is not None
    assert outcome.stopped_by.startswith(
        "3 trials in a row failed with the same error: its process was ended by SIGSEGV 2 times"
    )
    assert [record.attempts for record in records()] == [2] * 3


def test_what_comes_after_the_end_of_a_trial_in_one_batch_is_not_heard() -> None:
    """Ray begins a lost process again by itself, so that several losses may come at once."""

    class Bursting(AnalyticExecutor):
        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            lost = Message("lost", {"text": "gone", "restarted": True})
            return [(key, lost) for key in self.running for _ in range(9)]

    search(search_config(1), Silent(), Bursting())
    assert records()[0].state == "failed"
    assert records()[0].losses == 4
    assert [event["event"] for event in events()].count("tell") == 1


def test_a_full_disk_stops_the_search_and_the_trial_goes_on_later() -> None:
    with pytest.raises(InputError, match="no room left"):
        run(3, failing("disk full", "no room left"))
    assert records()[0].state == "running"
    run(3)
    assert {record.state for record in records()} == {"complete", "paused"}


class Measuring(AnalyticExecutor):
    """Measures what depends on the seed: an eighth for the first fresh one, a quarter for the second."""

    def start(self, job: Job) -> None:
        super().start(job)
        for message in self.jobs[job.key]:
            if message.kind == "done":
                message.values["row"] = message.values["row"] | {"seed": job.seed[0]}

    def _result(self, row: dict[str, object], finished: bool) -> dict[str, object]:
        return super()._result(row, finished) | {"test_error": 0.125 * row.get("seed", 0), "test_loss": 0.5}  # type: ignore[operator]


def test_retraining_opens_the_test_set_only_for_the_best() -> None:
    executor = Measuring()
    search(search_config(6, retrain=2, retrain_seeds=2), Silent(), executor)
    final = [job for job in executor.started if job.final]
    best = [record.number for record in find_study("s").best(2)]
    assert sorted(job.key for job in final) == sorted(f"{number}-{seed}" for number in best for seed in (1, 2))
    assert {job.seed for job in final} == {(seed, number) for number in best for seed in (1, 2)}
    measured = {record.number for record in records() if record.test_error is not None}
    assert measured == set(best)
    assert read_study("s").set_index("number")["test_error"].dropna().unique().tolist() == [0.1875]  # the mean
    for _, record in find_study("s").retrained():
        assert (record.test_error, record.test_loss, record.state) == (0.125 * record.seed[0], 0.5, "complete")
        assert record.data["val_size"] == 0, "it trains on the validation images too"
    again = Measuring()
    search(search_config(6, retrain=2, retrain_seeds=2), Silent(), again)
    assert again.started == []


def test_after_more_epochs_the_best_are_retrained_anew() -> None:
    search(search_config(2, retrain=1), Silent(), Measuring())
    executor = Measuring()
    search(search_config(2, load_space("digits_bc", epochs=24), retrain=1), Silent(), executor)
    final = [job for job in executor.started if job.final]
    assert [job.recipe["epochs"] for job in final] == [24]
    assert [record.epochs for _, record in find_study("s").retrained()] == [24]


def test_a_lost_or_failed_retraining_goes_on_or_says_so() -> None:
    lost: list[str] = []

    def trouble(job: Job, epoch: int) -> Message | None:
        if job.final and epoch == 2 and job.key not in lost:
            lost.append(job.key)
            return Message("lost", {"text": "its process was ended by SIGKILL"})
        if job.final and job.seed[0] == 2:
            return Message("failed", {"reason": "diverged", "text": "nan"})
        return None

    search(search_config(1, retrain=1, retrain_seeds=2), Silent(), Measuring(trouble))
    found = [record for _, record in find_study("s").retrained()]
    assert [(r.state, r.attempts, r.test_error) for r in found] == [("complete", 2, 0.125), ("failed", 1, None)]
    assert found[1].reason == "diverged: nan"
    assert records()[0].test_error == 0.125


def test_a_kill_before_the_mean_test_error_is_written_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
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
    again = Measuring()
    search(search_config(1, retrain=1), Silent(), again)
    assert again.started == []
    assert records()[0].test_error == 0.125


def test_final_trainings_of_fewer_epochs_are_not_in_the_mean() -> None:
    search(search_config(1, retrain=1, retrain_seeds=2), Silent(), Measuring())
    assert records()[0].test_error == 0.1875
    search(search_config(1, load_space("digits_bc", epochs=24), retrain=1), Silent(), Measuring())
    assert records()[0].test_error == 0.125


def test_a_kill_while_a_final_training_is_cleared_away_leaves_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of fewer epochs without its record would be gone on with, and be refused as another run's."""
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


def test_a_driver_that_is_started_often_does_not_use_up_the_patience_with_workers() -> None:
    """Only a lost worker counts, not an end of the driver, which a long final training may see a few times."""
    for left in (17, 5, 5):  # the first trains the trial, too
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


def test_a_final_training_whose_worker_is_always_lost_fails_at_last() -> None:
    def always(job: Job, epoch: int) -> Message | None:
        return Message("lost", {"text": "its process was ended by SIGKILL"}) if job.final else None

    search(search_config(1, retrain=1), Silent(), Measuring(always))
    [(_, record)] = find_study("s").retrained()
    assert (record.state, record.attempts) == ("failed", 5)


def test_a_final_training_that_takes_too_long_is_ended() -> None:
    """By a simulated clock, a second an epoch: the network itself is trained first, without the limit."""
    search(search_config(1), Silent(), Measuring())
    search(search_config(1, retrain=1, timeout=6.5), Silent(), Measuring())
    [(_, record)] = find_study("s").retrained()
    assert (record.state, record.test_error) == ("failed", None)
    assert record.reason == "timeout: 7 s of training, more than --timeout 6.5 allows"


def test_a_final_training_whose_worker_froze_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_final_trainings_that_fail_alike_stop_the_search() -> None:
    def trouble(job: Job, epoch: int) -> Message | None:
        return Message("failed", {"reason": "error", "text": "KeyError: 'x'"}) if job.final else None

    executor = Measuring(trouble)
    outcome = search(search_config(1, retrain=1, retrain_seeds=9), Silent(), executor)
    assert outcome.stopped_by is not None
    assert "3 trials in a row failed with the same error: KeyError: 'x'" in outcome.stopped_by
    assert sum(job.final for job in executor.started) == 3


def test_without_a_test_set_there_is_no_retraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    write_folder(Path("pictures"), "train", ["a", "b"], 10, 8, channels=1)
    of_folder = changed(search_config(1, retrain=1), data={"name": "folder:pictures"})
    executor = AnalyticExecutor()
    with pytest.raises(InputError, match=r"has no held-out test set.*put class folders under test/"):
        search(of_folder, Silent(), executor)
    assert not [job for job in executor.started if job.final]


def test_two_drivers_at_once_are_refused() -> None:
    folder = StudyFolder(Path("studies/s"))
    folder.path.mkdir(parents=True)
    with folder.lock(), pytest.raises(InputError, match=r"is being run by another process \(process \d+ on"):
        run(1)


# the parts


def test_the_best_is_the_smaller_of_equals_and_always_complete() -> None:
    def record(number: int, error: float, params: int, state: str = "complete") -> TrialRecord:
        return TrialRecord(number, state=state, objectives={"val_error": error}, cost={"params": params})

    found = [record(0, 0.2, 10), record(1, 0.1, 30), record(2, 0.1, 20), record(3, 0.1, 20), record(4, 0.3, 5)]
    found.append(record(5, 0.01, 1, "stopped"))
    assert [r.number for r in rank(found)] == [2, 3, 1, 0, 4]


@pytest.mark.parametrize("name", ["a/b", "../x", "a..b", "", ".hidden", "a b"])
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="a study's name is letters"):
        check_study_name(name)
