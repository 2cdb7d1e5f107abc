"""The search loop on trainings that are formulas: limits, resumption, growth, failures, early stopping."""

import dataclasses
import json
from pathlib import Path

import pytest

from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.executors.worker import Job, Message
from dnas.sampler import Exhausted, propose, told
from dnas.search import Outcome, search
from dnas.space import Space, load_space, parse_space
from dnas.stopping import goes_on, rungs
from dnas.study import StudyFolder, TrialRecord, check_study_name, find_study, read_study
from tests.analytic import AnalyticExecutor, Silent, Trouble, options

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


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(trials: int, trouble: Trouble = lambda job, epoch: None, **changes: object) -> Outcome:
    return search(options(trials, **changes), Silent(), AnalyticExecutor(trouble))


def records() -> list[TrialRecord]:
    return StudyFolder(Path("studies/s")).records()


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


def test_the_sampler_learns() -> None:
    """After its random start TPE must do better than that start: the mean over the last twenty, in final error."""
    run(60, space=parse_space(TIGHT, "tight", "tight"), stopping="none")
    errors = [record.val_error for record in records() if record.val_error is not None]
    assert sum(errors[40:]) / 20 < sum(errors[:10]) / 10


def test_the_first_networks_are_tried_first() -> None:
    run(2)
    assert [record.arm for record in records()] == ["first", "sampler"]
    assert records()[0].network == "densenet-bc:L=22,k=8,channels=1,size=8"


def test_the_same_command_does_nothing_more_and_a_larger_n_goes_on() -> None:
    run(5)
    before = essence(records())
    executor = AnalyticExecutor()
    search(options(5), Silent(), executor)
    assert executor.started == []
    assert essence(records()) == before
    run(8)
    assert essence(records())[:5] == before
    grown = essence(records())
    assert len(grown) == 8
    StudyFolder(Path("studies/s")).path.rename("studies/grown")
    run(8)
    assert essence(records()) == grown


def test_a_search_interrupted_anywhere_equals_one_that_was_not() -> None:
    """Stops the driver before each message in turn, 40 times over, and once after each kind of write."""
    run(14)
    whole = essence(records())
    events = (Path("studies/s") / "events.jsonl").read_text().splitlines()
    Path("studies/s").rename("studies/whole")

    class Interrupting(AnalyticExecutor):
        left = 3

        def wait(self, timeout: float) -> list[tuple[str, Message]]:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().wait(timeout)

    for _ in range(40):
        with pytest.raises(KeyboardInterrupt):
            search(options(14), Silent(), Interrupting())
    run(14)
    assert essence(records()) == whole

    def plain(line: str) -> dict[str, object]:
        return {key: value for key, value in json.loads(line).items() if key != "time"}

    again = (Path("studies/s") / "events.jsonl").read_text().splitlines()
    assert [plain(line) for line in again] == [plain(line) for line in events]


def test_what_a_kill_leaves_between_two_writes_is_mended() -> None:
    run(6)
    whole = essence(records())
    folder = StudyFolder(Path("studies/s"))
    log = folder.path / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    tell = next(i for i, line in enumerate(lines) if '"tell"' in line and '"number": 5' in line)
    ask = next(i for i, line in enumerate(lines) if '"ask"' in line and '"number": 5' in line)

    # after the record, before its tell
    log.write_text("".join(lines[:tell]))
    run(6)
    assert '"tell"' in log.read_text().splitlines()[-1]
    assert essence(records()) == whole

    # after the ask's event, before its record; with a torn line behind it
    log.write_text("".join(lines[: ask + 1]) + '{"event": "rep')
    for path in folder.trial_folder(5).iterdir():
        path.unlink()
    show = Silent()
    search(options(6), show, AnalyticExecutor())
    assert show.notes == ["mended events.jsonl: its last line was torn (14 bytes cut)"]
    assert essence(records()) == whole

    # in the middle of a trial: the record says running, the log has its first epochs
    log.write_text("".join(lines[: ask + 4]))
    record = folder.records()[5]
    folder.write_record(dataclasses.replace(record, state="running", objectives={}, weights_digest=None))
    run(6)
    assert essence(records()) == whole


def test_a_space_with_fewer_networks_ends_well() -> None:
    outcome = run(50, space=load_space("tiny"))
    assert outcome.exhausted
    assert outcome.trials == 12
    assert len({record.digest for record in records()}) == 12


def test_more_workers_train_the_same_number_once_each() -> None:
    run(15, workers=3)
    assert len({record.digest for record in records()}) == 15
    assert {record.state for record in records()} <= {"complete", "stopped"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "was begun with another seed 0 (now 1)"),
        ({"objective": "val_loss"}, "another objective val_error (now val_loss)"),
        ({"stopping": "none"}, "another stopping asha (now none)"),
        ({"data": {"name": "digits", "subset": 300}}, "another subset 200 (now 300)"),
        ({"data": {"name": "digits"}}, "another subset 200 (now whole)"),
        ({"data": {"name": "digits", "subset": 200, "split_seed": 2}}, "another split seed 0 (now 2)"),
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
        search(dataclasses.replace(options(2), **changes), Silent(), AnalyticExecutor())  # type: ignore[arg-type]
    assert message in str(error.value)
    assert essence(records()) == before


def test_more_epochs_train_the_survivors_again_and_record_it() -> None:
    run(6)
    before = records()
    survivors = [r.number for r in before if r.state == "complete"]
    assert 0 < len(survivors) < 6
    executor = AnalyticExecutor()
    search(options(6, load_space("digits_bc", epochs=24)), Silent(), executor)
    after = records()
    assert [int(job.key) for job in executor.started] == survivors
    for record in after:
        if record.number in survivors:
            assert record.epochs_planned == 24
            assert record.earlier[0]["val_error"] == before[record.number].val_error
            assert record.seed == before[record.number].seed
        else:
            assert record.epochs_planned == 12
    assert find_study("s").config()["recipe"]["epochs"] == 24
    whole = essence(after)
    run(6, space=load_space("digits_bc", epochs=24))
    assert essence(records()) == whole


def failing(reason: str, text: str, when: int = 2) -> Trouble:
    return lambda job, epoch: Message("failed", {"reason": reason, "text": text}) if epoch == when else None


def test_a_diverged_trial_is_recorded_and_the_search_goes_on() -> None:
    def trouble(job: Job, epoch: int) -> Message | None:
        return failing("diverged", "the training loss is nan")(job, epoch) if job.key == "1" else None

    outcome = run(4, trouble)
    assert outcome.stopped_by is None
    assert [record.state for record in records()] == ["complete", "failed", "complete", "complete"]
    assert records()[1].reason == "diverged: the training loss is nan"
    assert records()[1].objectives == {}


def test_every_trial_diverging_does_not_stop_the_search() -> None:
    assert run(5, failing("diverged", "nan")).stopped_by is None
    assert len(records()) == 5


def test_out_of_memory_is_infeasible_here() -> None:
    run(2, failing("out of memory", "tried to allocate 9 GiB"))
    assert {record.state for record in records()} == {"infeasible"}


def test_three_identical_errors_in_a_row_stop_the_search() -> None:
    outcome = run(10, failing("error", "KeyError: 'x'"))
    assert outcome.stopped_by is not None
    assert "3 trials in a row failed alike: KeyError: 'x'" in outcome.stopped_by
    assert len(records()) == 3


def test_different_errors_do_not_stop_it() -> None:
    outcome = run(6, lambda job, epoch: Message("failed", {"reason": "error", "text": f"KeyError: {job.key}"}))
    assert outcome.stopped_by is None
    assert len(records()) == 6


def test_a_lost_worker_goes_on_three_times_and_then_fails() -> None:
    lost: list[str] = []

    def once(job: Job, epoch: int) -> Message | None:
        if epoch == 2 and job.key not in lost:
            lost.append(job.key)
            return Message("lost", {"text": "its process was ended by SIGKILL"})
        return None

    run(2, once)
    assert [record.attempts for record in records()] == [2, 2]
    assert {record.state for record in records()} == {"complete"}
    Path("studies/s").rename("studies/before")
    run(1, lambda job, epoch: Message("lost", {"text": "its process was ended by SIGKILL"}))
    assert records()[0].state == "failed"
    assert records()[0].attempts == 3


def test_a_full_disk_stops_the_search_and_the_trial_goes_on_later() -> None:
    with pytest.raises(InputError, match="no room left"):
        run(3, failing("disk full", "no room left"))
    assert records()[0].state == "running"
    run(3)
    assert {record.state for record in records()} == {"complete"}


def test_retraining_opens_the_test_set_only_for_the_best() -> None:
    class Testing(AnalyticExecutor):
        def _result(self, row: dict[str, object], finished: bool) -> dict[str, object]:
            return super()._result(row, finished) | {"test_error": 0.125, "test_loss": 0.5}

    executor = Testing()
    search(options(6, retrain=2, retrain_seeds=2), Silent(), executor)
    final = [job for job in executor.started if job.final]
    best = [record.number for record in find_study("s").best(2)]
    assert sorted(job.key for job in final) == sorted(f"{number}-{seed}" for number in best for seed in (1, 2))
    assert {job.seed for job in final} == {(seed, number) for number in best for seed in (1, 2)}
    measured = {record.number for record in records() if record.test_error is not None}
    assert measured == set(best)
    assert read_study("s").set_index("number")["test_error"].dropna().unique().tolist() == [0.125]
    again = Testing()
    search(options(6, retrain=2, retrain_seeds=2), Silent(), again)
    assert again.started == []


def test_two_drivers_at_once_are_refused() -> None:
    folder = StudyFolder(Path("studies/s"))
    folder.path.mkdir(parents=True)
    with folder.lock(), pytest.raises(InputError, match=r"is being run by another process \(process \d+ on"):
        run(1)


# the parts


def test_rungs_and_who_passes_them() -> None:
    assert rungs(40) == (5, 14)
    assert rungs(12) == (4,)
    assert rungs(3) == ()
    assert goes_on(0.9, [])
    assert goes_on(0.9, [0.1, 0.2])
    assert not goes_on(0.9, [0.1, 0.2, 0.3])
    assert goes_on(0.15, [0.1, 0.2, 0.3])
    assert not goes_on(0.15, [0.1, 0.12, 0.3, 0.4])
    assert goes_on(0.15, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_a_proposal_depends_on_seed_number_and_history_alone() -> None:
    space = load_space("digits_bc")
    run(12)
    history = [told(r, space, "val_error", {r.epochs: r.val_error or 0.0}) for r in records()]
    proposals = {(seed, n): propose(space, seed, n, history, set()).params for seed in (0, 1) for n in (12, 13)}
    assert len({json.dumps(params) for params in proposals.values()}) > 2
    for (seed, number), params in proposals.items():
        assert propose(space, seed, number, history, set()).params == params
    assert propose(space, 0, 12, [], set()).params != proposals[0, 12]


def test_exhaustion_is_said_by_the_sampler() -> None:
    space: Space = load_space("tiny")
    every = {space.spec_of(point).digest for point in space.points()}
    last = every - {next(iter(every))}
    assert propose(space, 0, 0, [], last).spec.digest not in last
    with pytest.raises(Exhausted):
        propose(space, 0, 0, [], every)


@pytest.mark.parametrize("name", ["a/b", "../x", "a..b", "", ".hidden", "a b"])
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="a study's name is letters"):
        check_study_name(name)
