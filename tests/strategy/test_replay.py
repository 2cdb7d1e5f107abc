"""Tests of replay, which repeats every decision, and of wider spaces, which keep trained networks valid."""

import functools
import json
from pathlib import Path

import pytest

from dnas.cli import main
from dnas.errors import InputError
from dnas.space.parse import load_space, parse_space
from dnas.strategy.extend import extend, settle
from dnas.strategy.replay import replay
from dnas.strategy.run import search
from dnas.study.folder import StudyFolder
from tests.strategy.test_driver import AnalyticExecutor, InTurn, essence, records
from tests.support.analytic import Silent
from tests.support.analytic import search_config as config_of

SMALL = """# A small space
dataset = "digits"
[fixed]
bottleneck = 4
[choose]
growth_rate = { int = [4, 8], step = 4 }
block_layers = { int = [1, 3], times = 3 }
[limits]
params = 20_000
[recipe]
epochs = 9
"""
WIDER = SMALL.replace("[4, 8]", "[4, 16]").replace("[fixed]\nbottleneck = 4\n", "").replace("[1, 3]", "[1, 4]")
WIDER = WIDER.replace("20_000", "60_000").replace("[limits]", "bottleneck = { of = [0, 2, 4] }\n[limits]")


# The mirror has its own tests and takes a third of a second.
search_config = functools.partial(config_of, mirror="none")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def study() -> StudyFolder:
    return StudyFolder(Path("studies/s"))


@pytest.mark.parametrize("sampler", ["gp", "tpe", "nsga2", "random", "grid"])
def test_replay_repeats_every_decision(sampler: str) -> None:
    search(search_config(18, sampler=sampler, control=0.2), Silent(), AnalyticExecutor())
    repeated = replay(study())
    assert repeated.differences == []
    assert repeated.proposals == 18
    assert repeated.decisions > 18 * 4


@pytest.mark.parametrize("stopping", ["asha", "hyperband", "none"])
def test_replay_repeats_searches_with_several_objectives_and_workers(stopping: str) -> None:
    config = search_config(16, objectives=("val_error", "params"), workers=3, stopping=stopping, control=0.2)
    search(config, Silent(), InTurn())
    repeated = replay(study())
    assert repeated.differences == []
    assert repeated.proposals == 16


def test_replay_repeats_the_median_rule_and_more_epochs() -> None:
    search(search_config(9, stopping="median"), Silent(), AnalyticExecutor())
    search(search_config(11, load_space("digits_bc", epochs=24), stopping="median"), Silent(), AnalyticExecutor())
    assert replay(study()).differences == []


@pytest.mark.parametrize("stopping", ["asha", "hyperband"])
def test_replay_repeats_rungs_after_an_extension_to_more_epochs(stopping: str) -> None:
    """The rung is 3 with 9 epochs; the rungs are 3 and 8 with 24. The last command resumes after the extension."""
    for trials, epochs in ((24, 9), (40, 24), (44, 24)):
        space = load_space("digits_bc", epochs=epochs)
        search(search_config(trials, space, stopping=stopping, workers=3, sampler="random", seed=1), Silent(), InTurn())
    events = study().events()
    extension = next(place for place, event in enumerate(events) if event["event"] == "extend")
    for part, rungs in ((events[:extension], {3}), (events[extension:], {3, 8})):
        assert "promote" in {event["event"] for event in part}
        assert {event["epoch"] for event in part if event["event"] == "report" and not event["go_on"]} == rungs
    reported = [(event["number"], event["epoch"]) for event in events[extension:] if event["event"] == "report"]
    assert {min(epoch for n, epoch in reported if n == number) for number in events[extension]["trials"]} == {1}
    repeated = replay(study())
    assert repeated.differences == []
    assert repeated.proposals == 44
    assert repeated.decisions == sum(event["event"] in ("report", "promote") for event in events)


def change(number: int, kind: str, **values: object) -> None:
    """Change the first event of a kind about a trial."""
    path = study().path / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    event = next(e for e in lines if e["event"] == kind and e.get("number") == number)
    event |= values
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_replay_reports_changed_events_and_records(capsys: pytest.CaptureFixture[str]) -> None:
    search(search_config(8), Silent(), AnalyticExecutor())
    assert main(["replay", "s"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("8 proposals and ")
    assert out.endswith(" decisions repeated: no difference\n")
    whole = (study().path / "events.jsonl").read_text()

    change(3, "ask", params=study().events()[0]["params"])
    assert main(["replay", "s"]) == 1
    assert "trial 3: the proposal was growth_rate=8 block_layers_1=3" in capsys.readouterr().out

    (study().path / "events.jsonl").write_text(whole)
    change(2, "report", val_error=0.123)
    assert main(["replay", "s"]) == 1
    assert "trial 3: the history of its proposal was" in capsys.readouterr().out

    (study().path / "events.jsonl").write_text(whole)
    paused = next(e for e in study().events() if e["event"] == "report" and not e["go_on"])
    path = study().path / "events.jsonl"
    path.write_text(whole.replace('"go_on": false', '"go_on": true', 1))
    assert main(["replay", "s"]) == 1
    assert (
        f"trial {paused['number']}: the decision after epoch 4 was to continue, but is now to stop"
        in capsys.readouterr().out
    )

    path.write_text(whole)
    complete = next(record for record in records() if record.state == "complete")
    complete.objectives = {"val_error": 0.5}
    study().write_record(complete)
    assert main(["replay", "s"]) == 1
    assert f"trial {complete.number}: its end was complete val_error=0.0" in capsys.readouterr().out


@pytest.mark.slow
def test_replay_retrains_a_trial_and_compares_its_curve(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "--space", "tiny", "--trials", "2", "--study", "s", "-q", "--threads", "1"]
    assert main([*command, "--kernels", "ref"]) == 0
    capsys.readouterr()
    assert main(["replay", "s", "--trial", "1"]) == 0
    assert "trial 1: 2 epochs are equal; its weights too" in capsys.readouterr().out
    change(1, "report", val_loss=9.0)
    assert main(["replay", "s", "--trial", "1"]) == 1
    assert "trial 1 differs from epoch 1:\n  recorded  train_loss " in capsys.readouterr().out
    assert main(["replay", "s", "--trial", "9"]) == 2
    assert "study s has no trial 9; it has 2 trials, numbered from 0." in capsys.readouterr().err


# --- wider spaces ---


def search_small_space(trials: int = 6) -> None:
    search(search_config(trials, parse_space(SMALL, "small", "small")), Silent(), AnalyticExecutor())


def test_search_in_a_wider_space_keeps_the_trained_networks() -> None:
    search_small_space()
    before = essence(records())
    changes = extend(study(), parse_space(WIDER, "wider", "wider"), {"params": 60_000})
    assert changes == [
        "growth_rate: 4 to 8 in steps of 4 -> 4 to 16 in steps of 4",
        *(f"block_layers_{i}: 1 to 3 -> 1 to 4" for i in (1, 2, 3)),
        "bottleneck: new, 0, 2, 4",
        "params: limit 20,000 -> 60,000",
    ]
    assert essence(records()) == before
    wider = parse_space(WIDER, "wider", "wider")
    search(search_config(30, wider), Silent(), AnalyticExecutor())
    after = essence(records())
    assert [row[:3] for row in after[:6]] == [(n, *row[1:3]) for n, row in enumerate(before)] or len(after) == 30
    assert [row[4] for row in after[:6]] == [row[4] for row in before], "trained networks are kept"
    assert {record.network_spec.bottleneck for record in records()[6:]} > {4}
    assert replay(study()).differences == []
    assert study().config()["limits"] == {"params": 60_000}


def test_interrupted_extension_is_completed_at_the_next_start() -> None:
    search_small_space()
    toml = (study().path / "study.toml").read_text()
    extend(study(), parse_space(WIDER, "wider", "wider"), {"params": 60_000})
    whole = (study().path / "study.toml").read_text()
    (study().path / "study.toml").write_text(toml)
    settle(study())
    assert (study().path / "study.toml").read_text() == whole
    assert extend(study(), parse_space(WIDER, "wider", "wider"), {"params": 60_000}) == []


def test_proposal_without_a_record_survives_a_wider_space() -> None:
    """Its params in the log lack the new choice."""
    search_small_space()
    path = study().path / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    ask = next(i for i, line in enumerate(lines) if '"ask"' in line and '"number": 5' in line)
    path.write_text("".join(lines[: ask + 1]))
    before = records()[5]
    for file in study().trial_folder(5).iterdir():
        file.unlink()
    extend(study(), parse_space(WIDER, "wider", "wider"), {"params": 60_000})
    search(search_config(6, parse_space(WIDER, "wider", "wider")), Silent(), AnalyticExecutor())
    assert records()[5].network_spec == before.network_spec
    assert records()[5].params == before.params | {"bottleneck": 4}
    assert replay(study()).differences == []


@pytest.mark.parametrize(
    ("text", "limits", "message"),
    [
        (SMALL.replace("[1, 3]", "[1, 2]"), 20_000, "[choose] block_layers_1: 3 was allowed before"),
        (WIDER.replace("growth_rate = { int = [4, 16], step = 4 }", ""), 60_000, "[choose] growth_rate is missing"),
        (SMALL, 10_000, "[limits] params <= 10,000 is below the study's 20,000; limits can only be raised"),
        (WIDER.replace("[0, 2, 4]", "[0, 2]"), 60_000, "trial 0 has bottleneck = 4, which w does not allow"),
        (SMALL.replace("bottleneck = 4", "bottleneck = 2"), 20_000, "would be another network in w"),
        (load_space("digits_resnet").text, 60_000, "its networks are of another family."),
    ],
)
def test_space_that_is_not_wider_is_rejected(text: str, limits: int, message: str) -> None:
    search_small_space()
    files = {path: path.read_bytes() for path in study().path.rglob("*") if path.suffix in (".toml", ".jsonl")}
    with pytest.raises(InputError) as error:
        extend(study(), parse_space(text, "w", "w"), {"params": limits})
    assert message in str(error.value)
    assert {path: path.read_bytes() for path in files} == files


def test_extend_command_prints_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    search(search_config(2), Silent(), AnalyticExecutor())
    assert main(["extend", "s"]) == 2
    assert "`dnas extend` needs the wider space or a higher limit" in capsys.readouterr().err
    assert main(["extend", "s", "--max-params", "70_000"]) == 0
    out = capsys.readouterr().out
    assert "params: limit 60,000 -> 70,000" in out
    assert "next  dnas search --study s --trials N\n" in out
    Path("w.toml").write_text(Path(load_space("digits_bc").name + ".toml").name)
    assert main(["extend", "s", "--space", "w.toml"]) == 2
