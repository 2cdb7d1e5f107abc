"""Replay and wider spaces: everything that was decided is decided again, and what was trained stays valid."""

import functools
import json
from pathlib import Path

import pytest

from dnas.cli import main
from dnas.errors import InputError
from dnas.search.extend import extend, settle
from dnas.search.replay import replay
from dnas.search.run import search
from dnas.space.parse import load_space, parse_space
from dnas.study.folder import StudyFolder
from tests.search.test_driver import AnalyticExecutor, InTurn, essence, records
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


search_config = functools.partial(config_of, mirror="none")  # which has its own tests, and takes a third of a second


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def study() -> StudyFolder:
    return StudyFolder(Path("studies/s"))


@pytest.mark.parametrize("sampler", ["gp", "tpe", "nsga2", "random", "grid"])
def test_every_decision_is_made_again(sampler: str) -> None:
    search(search_config(18, sampler=sampler, control=0.2), Silent(), AnalyticExecutor())
    found = replay(study())
    assert found.differences == []
    assert found.proposals == 18
    assert found.decisions > 18 * 4


@pytest.mark.parametrize("stopping", ["asha", "hyperband", "none"])
def test_with_several_objectives_and_workers_too(stopping: str) -> None:
    wanted = search_config(16, objectives=("val_error", "params"), workers=3, stopping=stopping, control=0.2)
    search(wanted, Silent(), InTurn())
    found = replay(study())
    assert found.differences == []
    assert found.proposals == 16


def test_the_median_rule_and_more_epochs_too() -> None:
    search(search_config(9, stopping="median"), Silent(), AnalyticExecutor())
    search(search_config(11, load_space("digits_bc", epochs=24), stopping="median"), Silent(), AnalyticExecutor())
    assert replay(study()).differences == []


@pytest.mark.parametrize("stopping", ["asha", "hyperband"])
def test_rungs_and_more_epochs_too(stopping: str) -> None:
    """Of 9 epochs the rung is 3; of 24 they are 3 and 8. The last command goes on after the epochs were raised."""
    for trials, epochs in ((24, 9), (40, 24), (44, 24)):
        space = load_space("digits_bc", epochs=epochs)
        search(search_config(trials, space, stopping=stopping, workers=3, sampler="random", seed=1), Silent(), InTurn())
    events = study().events()
    raised = next(place for place, event in enumerate(events) if event["event"] == "extend")
    for part, rungs in ((events[:raised], {3}), (events[raised:], {3, 8})):
        assert "promote" in {event["event"] for event in part}
        assert {event["epoch"] for event in part if event["event"] == "report" and not event["go_on"]} == rungs
    told = [(event["number"], event["epoch"]) for event in events[raised:] if event["event"] == "report"]
    assert {min(epoch for n, epoch in told if n == number) for number in events[raised]["trials"]} == {1}
    found = replay(study())
    assert found.differences == []
    assert found.proposals == 44
    assert found.decisions == sum(event["event"] in ("report", "promote") for event in events)


def change(number: int, kind: str, **values: object) -> None:
    """Changes the first event of a kind about a trial."""
    path = study().path / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    event = next(e for e in lines if e["event"] == kind and e.get("number") == number)
    event |= values
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_was_changed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "trial 3: the history that its proposal saw was" in capsys.readouterr().out

    (study().path / "events.jsonl").write_text(whole)
    paused = next(e for e in study().events() if e["event"] == "report" and not e["go_on"])
    path = study().path / "events.jsonl"
    path.write_text(whole.replace('"go_on": false', '"go_on": true', 1))
    assert main(["replay", "s"]) == 1
    assert (
        f"trial {paused['number']}: the decision after epoch 4 was to go on, and is to stop now"
        in capsys.readouterr().out
    )

    path.write_text(whole)
    complete = next(record for record in records() if record.state == "complete")
    complete.objectives = {"val_error": 0.5}
    study().write_record(complete)
    assert main(["replay", "s"]) == 1
    assert f"trial {complete.number}: its end was complete val_error=0.0" in capsys.readouterr().out


def test_a_trial_is_trained_again_and_its_curve_compared(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "--space", "tiny", "--trials", "2", "--study", "s", "-q", "--threads", "1"]
    assert main([*command, "--kernels", "ref"]) == 0
    capsys.readouterr()
    assert main(["replay", "s", "--trial", "1"]) == 0
    assert "trial 1: 2 epochs are equal; its weights too" in capsys.readouterr().out
    change(1, "report", val_loss=9.0)
    assert main(["replay", "s", "--trial", "1"]) == 1
    assert "trial 1 differs from epoch 1:\n  recorded  train_loss " in capsys.readouterr().out
    assert main(["replay", "s", "--trial", "9"]) == 2
    assert "study s has no trial 9; there are 2, from 0 on." in capsys.readouterr().err


# wider spaces


def begun(trials: int = 6) -> None:
    search(search_config(trials, parse_space(SMALL, "small", "small")), Silent(), AnalyticExecutor())


def test_a_wider_space_keeps_what_was_trained_and_goes_on() -> None:
    begun()
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
    assert [row[4] for row in after[:6]] == [row[4] for row in before], "the networks of old stay"
    assert {record.network_spec.bottleneck for record in records()[6:]} > {4}
    assert replay(study()).differences == []
    assert study().config()["limits"] == {"params": 60_000}


def test_an_extension_that_was_killed_half_way_is_finished_at_the_next_start() -> None:
    begun()
    toml = (study().path / "study.toml").read_text()
    extend(study(), parse_space(WIDER, "wider", "wider"), {"params": 60_000})
    whole = (study().path / "study.toml").read_text()
    (study().path / "study.toml").write_text(toml)
    settle(study())
    assert (study().path / "study.toml").read_text() == whole
    assert extend(study(), parse_space(WIDER, "wider", "wider"), {"params": 60_000}) == []


def test_a_proposal_whose_record_a_kill_prevented_survives_a_wider_space() -> None:
    """The log has its params without the choice that is new."""
    begun()
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
        (SMALL.replace("[1, 3]", "[1, 2]"), 20_000, "[choose] block_layers_1: 3 could be chosen before"),
        (WIDER.replace("growth_rate = { int = [4, 16], step = 4 }", ""), 60_000, "[choose] growth_rate is missing"),
        (SMALL, 10_000, "[limits] params <= 10,000 is below the study's 20,000; limits only grow"),
        (WIDER.replace("[0, 2, 4]", "[0, 2]"), 60_000, "trial 0 has bottleneck = 4, which w does not let it have"),
        (SMALL.replace("bottleneck = 4", "bottleneck = 2"), 20_000, "would be another network in w"),
        (load_space("digits_resnet").text, 60_000, "its networks are of another family."),
    ],
)
def test_a_space_that_is_no_wider_is_refused(text: str, limits: int, message: str) -> None:
    begun()
    files = {path: path.read_bytes() for path in study().path.rglob("*") if path.suffix in (".toml", ".jsonl")}
    with pytest.raises(InputError) as error:
        extend(study(), parse_space(text, "w", "w"), {"params": limits})
    assert message in str(error.value)
    assert {path: path.read_bytes() for path in files} == files


def test_the_command_extends_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    search(search_config(2), Silent(), AnalyticExecutor())
    assert main(["extend", "s"]) == 2
    assert "`dnas extend` needs what is to be wider" in capsys.readouterr().err
    assert main(["extend", "s", "--max-params", "70_000"]) == 0
    out = capsys.readouterr().out
    assert "params: limit 60,000 -> 70,000" in out
    assert "next  dnas search --study s --space digits_bc" in out
    Path("w.toml").write_text(Path(load_space("digits_bc").name + ".toml").name)
    assert main(["extend", "s", "--space", "w.toml"]) == 2
