"""Tests of the command line: fast start, errors in one line, and output."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dnas.api.display import LiveTable, PlainLines, short_names
from dnas.api.opening import opening
from dnas.api.progress import EXPECTED_WEIGHT
from dnas.arch import FAMILIES, cost, parse_name
from dnas.batch.forecast import Forecast, existing
from dnas.cli import COMMANDS, command_module, main
from dnas.data.summary import summarize
from dnas.errors import InputError
from dnas.executors.worker import Job, Message
from dnas.formatting import duration
from dnas.space.parse import load_space
from dnas.strategy.run import search
from dnas.strategy.stopping import expected_epochs
from dnas.study.folder import StudyFolder, find_study
from dnas.study.record import TrialRecord
from dnas.training.checkpoint import load_run
from tests.support.analytic import AnalyticExecutor, Trouble, search_config
from tests.support.studies import make_study


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))


def error_of(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """Run an invalid command, check that it exits with status 2, and return its error message."""
    try:
        status = main(command.split())
    except SystemExit as error:
        status = error.code  # type: ignore[assignment]
    output = capsys.readouterr()
    assert status == 2, output
    assert output.err.startswith("dnas"), output
    assert "Traceback" not in output.err
    return output.err


def images(folder: Path, classes: int, each: int = 4, size: int = 8) -> None:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 255, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{number}.png")


def test_help_imports_neither_torch_nor_optuna() -> None:
    for arguments in (["--help"], ["search", "--help"], ["ablate", "--help"], ["cost", "densenet121"], ["spaces"]):
        code = f"import sys; from dnas.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        code += "bad = {'torch', 'optuna', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules); assert not bad, bad"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_of_every_command_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        command = [name, "--help"] if name != "plot" else ["plot", "weight-norms", "--help"]
        with pytest.raises(SystemExit) as exit_info:
            main(command)
        assert exit_info.value.code == 0
        assert capsys.readouterr().out.rstrip().endswith(f"examples:\n{command_module(name).EXAMPLES}")


def test_help_is_a_command_and_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["help"], ["--help"]):
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 0
        out = capsys.readouterr().out
        assert "\ncommands:\n  search for networks\n" in out
        assert "`dnas help COMMAND` describes" in out
    outputs = []
    for arguments in (["help", "plot", "reuse"], ["plot", "reuse", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert main(["help", "serach"]) == 2
    assert "no command 'serach'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "retrain-best", "ls studies"):
        assert word in script
    if shell == "bash":
        Path("studies/mine").mkdir(parents=True)
        Path("dnas.bash").write_text(script)
        code = "source dnas.bash; COMP_CWORD={}; COMP_WORDS=({}); _shtab_dnas; echo ${{COMPREPLY[@]}}"
        for words, completed in (
            ("dnas sea", "search"),
            ("dnas search --retrain-b", "--retrain-best"),
            ("dnas status m", "mine"),
        ):
            line = code.format(len(words.split()) - 1, words)
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
            assert done.stdout.split() == [completed], done.stderr
    if shell == "fish" and shutil.which("fish"):
        Path("studies/mine").mkdir(parents=True)
        Path("dnas.fish").write_text(script)
        lines = ("dnas sea", "dnas search --retrain-b", "dnas status m")
        code = "source dnas.fish; " + "; ".join(f"complete -C '{line}'" for line in lines)
        done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True)
        words = [line.split()[0] for line in done.stdout.splitlines()]
        assert words == ["search", "--retrain-best", "mine"], done.stderr


def test_cost_prints_the_golden_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "densenet_bc_100_12"]) == 0
    out = capsys.readouterr().out
    assert "769,162" in out
    assert "287,929,692" in out
    assert main(["cost", "densenet-bc:L=100,k=12,theta=0.5", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["params"] == 769_162
    assert costs["macs"] == 287_929_692
    assert sum(layer["params"] for layer in costs["layers"]) == 769_162
    assert sum(layer["activation_bytes"] for layer in costs["layers"]) == costs["activation_bytes"]
    assert main(["cost", "densenet_40_12", "--layers"]) == 0
    assert "denseblock3.denselayer12" in capsys.readouterr().out
    assert main(["cost", "densenet_40_12", "--batch", "7", "--json"]) == 0
    expected = cost(parse_name("densenet_40_12"), batch=7)
    assert json.loads(capsys.readouterr().out)["activation_bytes"] == expected.activation_bytes


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("densenet_40_12", 1_019_722, 264_812_928),
        ("densenet_100_12", 6_979_642, 1_769_516_448),
        ("densenet_100_24", 27_249_082, 6_889_347_744),
        ("densenet_bc_40_12", 176_122, 72_365_352),
        ("densenet_bc_100_12", 769_162, 287_929_692),
        ("densenet_bc_250_24", 15_324_406, 5_418_785_724),
        ("densenet_bc_190_40", 25_624_430, 9_301_945_740),
        ("densenet121", 7_978_856, None),
        ("densenet169", 14_149_480, None),
        ("densenet201", 20_013_928, None),
        ("densenet161", 28_681_000, None),
    ],
)
def test_cost_prints_the_golden_table(
    capsys: pytest.CaptureFixture[str], name: str, params: int, macs: int | None
) -> None:
    assert main(["cost", name, "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["params"] == params
    assert macs is None or costs["macs"] == macs


def test_spaces_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces"]) == 0
    out = capsys.readouterr().out
    assert "cifar_bc" in out
    assert "DenseNet-BC for 32×32 images" in out
    assert main(["spaces", "show", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "growth_rate" in out
    assert "12 networks" in out
    assert "338 to 2.2 k" in out
    assert main(["spaces", "show", "digits_bc"]) == 0
    assert "limit 60.0 k" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dataset", ["digits", "cifar100", "imagenet", 'folder:~/my "pictures"'])
def test_new_space_is_valid_with_all_its_examples(
    capsys: pytest.CaptureFixture[str], family: str, dataset: str
) -> None:
    assert main(["spaces", "new", "mine", "--family", family, "--dataset", dataset]) == 0
    assert "next    dnas spaces show mine" in capsys.readouterr().out
    path = Path("search_spaces/mine.toml")
    space = load_space("mine")
    spec = space.spec_of(space.first[0])
    assert (spec.family, space.dataset) == (family, dataset)
    assert spec.stem == ("imagenet" if dataset == "imagenet" else "small")
    width = space.family.width
    lines = [re.sub(r"^# (\w+ +=)", r"\1", line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if not re.match(rf"{width} += [^\"]", line)]  # "fit" replaces the choice
    path.write_text("\n".join(lines))
    space = load_space("mine")
    assert space.fixed[width] == "fit"
    assert set(space.limits.stated()) == {"params", "macs", "activation_bytes"}
    assert any(choice.when for choice in space.choices)


def test_new_space_replaces_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("search_spaces").mkdir()
    Path("search_spaces/mine.toml").write_text("mine")
    assert "search_spaces/mine.toml exists; choose another name" in error_of(capsys, "spaces new mine")
    assert Path("search_spaces/mine.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("serach --space tiny", "no command 'serach'; there are"),
        ("search --space tiny --trials 0", "expected a whole number of at least 1, but got 0"),
        ("search --space tiny --trials -3", "expected a whole number of at least 1, but got -3"),
        ("search --space tiny --trials x", "expected a whole number of at least 1, but got 'x'"),
        ("search --space tiny --trials 2.5", "expected a whole number of at least 1, but got '2.5'"),
        ("search --space tiny --trials 1 --workers 0", "expected a whole number of at least 1, but got 0"),
        ("search --space tiny", "needs --trials N"),
        ("search --trials 3", "needs --space NAME"),
        ("search --space tinny --trials 1", "no search space 'tinny'; there are"),
        ("search --space tiny --trials 1 --dataset cifar11", "no data set 'cifar11'"),
        ("search --space tiny --trials 1 --study a/b", "(no `/`, no `..`), but got 'a/b'"),
        ("search --space tiny --trials 1 --study ..", "(no `/`, no `..`), but got '..'"),
        (
            "search --space tiny --trials 1 --max-params 3",
            "dnas: --max-params 3: no network of tiny is as small; the smallest has 338 params.",
        ),
        (
            "search --space tiny --trials 1 --objective val_eror",
            "macs, activation_bytes, latency, but got 'val_eror'. Did you mean val_error",
        ),
        (
            "search --space tiny --trials 1 --max-macs 3",
            "dnas: --max-macs 3: no network of tiny is as small; the smallest has",
        ),
        ("search --space tiny --trials 1 --max-macs 0", "expected a positive number, but got '0'"),
        ("search --space tiny --trials 1 --learning-rate inf", "expected a positive number, but got 'inf'"),
        ("search --space tiny --trials 1 --stopping ahsa", "--stopping must be one of asha, hyperband, median, none"),
        ("search --space tiny --trials 1 --recipe papr", "no recipe 'papr'"),
        ("search --space tiny --trials 1 --subset 3", "subset must be between 20"),
        ("search --space tiny --trials 1 --dataset folder:/nowhere", "/nowhere"),
        ("search --space none.toml --trials 1", "no space file none.toml."),
        ("cost densenet_40_13", "Did you mean densenet_40_12"),
        ("cost densenet-bc:L=43,k=12", "the nearest depths are 40 and 46."),
        ("train densenet122 --dataset digits", "no network 'densenet122'"),
        ("train densenet-bc:L=10,k=4 --dataset digit", "no data set 'digit'"),
        ("train densenet-bc:L=10,k=4,classes=7 --dataset digits --epochs 1", "states classes=7, but Digits has 10."),
        ("train densenet-bc:L=10,k=4 --dataset digits --device cuda:99", "--device cuda:99"),
        ("eval nothing.pt", "no checkpoint at nothing.pt."),
        ("status nothing", "no study 'nothing'; there are none yet in /"),
        ("report nothing", "no study 'nothing'"),
        ("export nothing -o x.onnx", "no study 'nothing'"),
        ("plot weight-norms nothing -o x.svg", "no study 'nothing'"),
        ("plot reuse nothing -o x.svg", "no study 'nothing'"),
        ("plot reuse nothing -o x.gif", "end with .svg, .png or .pdf"),
        ("plot weight-norms nothing --all -o x.svg", "no study 'nothing'"),
        ("verify nothing", "no study 'nothing'"),
        ("spaces show", "`dnas spaces show` needs a space's name"),
        ("spaces new", "`dnas spaces new` needs a space's name"),
        ("spaces new ../mine", "a space's name is letters, digits"),
        ("spaces new mine --family vgg", "no family of networks 'vgg'; there are densenet, resnet"),
        ("spaces new mine --dataset cifar11", "no data set 'cifar11'"),
        ("spaces show tiny --family resnet", "--family applies to `dnas spaces new` only."),
        ("cost", "arguments are required: NAME"),
    ],
)
def test_invalid_input_is_reported_in_one_line(capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    output = error_of(capsys, command)
    assert message in output
    assert output.count("\n") == 1
    assert not Path("studies").exists(), "an invalid command creates no study"


def test_all_problems_of_a_space_file_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('dataset = "digits"\n[choose]\ngrowth = { int = [1, 2] }\n[limits]\nparams = "1M"\n')
    output = error_of(capsys, "search --space mine.toml --trials 1")
    assert "mine.toml has 2 problems:\n  [choose] growth: DenseNetSpec has no such field" in output
    assert '\n  [limits] params: expected a positive number, but got "1M".' in output


def test_error_names_the_invalid_image_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    images(Path("one/train"), classes=1)
    images(Path("broken/train"), classes=2)
    Path("broken/train/c1/0.png").write_bytes(b"not an image")
    train = "train densenet-bc:L=10,k=4 --epochs 1 --dataset folder:"
    assert "empty has no class folders" in error_of(capsys, train + "empty")
    assert "c0" in error_of(capsys, train + "one") or "one class" in error_of(capsys, train + "one")
    assert "broken/train/c1/0.png" in error_of(capsys, train + "broken")


def test_image_folder_trains_without_further_options(capsys: pytest.CaptureFixture[str]) -> None:
    images(Path("grey/train"), classes=3, each=8, size=28)
    images(Path("grey/test"), classes=3, each=2, size=28)
    command = "train densenet-bc:layers=1-1,k=2 --dataset folder:grey --epochs 1 --batch-size 4 --out run"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    network = next(line for line in out.splitlines() if line.startswith("densenet-bc:"))
    assert "channels=1" in network
    assert "classes=3" in network
    assert "size=" not in network  # images of 28 pixels become 32, the default size of the small stem
    assert main(["eval", "run", "--part", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert main(command.split()) == 0  # the repeated command has nothing left to train
    out = capsys.readouterr().out
    assert "already finished; nothing is left to train\ndone " in out
    assert "left\n" not in out
    assert json.loads(Path("run/run.json").read_text())["command"].startswith(
        f"dnas train densenet-bc:layers=1-1,k=2 --dataset folder:{Path.cwd()}/grey --epochs 1 --batch-size 4 --out run"
    )
    longer = error_of(capsys, command.replace("--epochs 1", "--epochs 2"))
    assert "belongs to another run, of 1 epoch (now 2). Learning rates depend on the number of epochs" in longer
    assert "another run, with batch_size=4 (now 5)" in error_of(capsys, command.replace("size 4", "size 5"))


def test_paper_recipe_uses_dropout_only_without_augmentation(capsys: pytest.CaptureFixture[str]) -> None:
    images(Path("grey/train"), classes=2, each=8)
    command = "train densenet-bc:layers=1,k=2{} --dataset folder:grey --image-size 8 --recipe paper --epochs 1 --out {}"
    main([*command.format("", "a").split(), "--augment", "none"])
    assert "dropout=0.2" in capsys.readouterr().out
    main(command.format("", "b").split())
    assert "dropout" not in capsys.readouterr().out
    main([*command.format(",dropout=0.1", "c").split(), "--augment", "none"])
    assert "dropout=0.1" in capsys.readouterr().out


def test_rejected_run_does_not_change_run_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = "train densenet-bc:layers=1,k=2 --dataset digits --subset 100 --epochs 1 --batch-size 32 --seed 3"
    assert main(command.split()) == 0
    folder = Path("studies/runs/digits-densenet-bc-layers-1-k-2-s3")
    before = (folder / "run.json").read_text()
    run = load_run(folder / "checkpoint.pt")
    assert (run.seed, run.recipe.batch_size, run.recipe.epochs) == ((3, 0), 32, 1)
    assert json.loads(before)["seed"] == 3
    assert f"{folder} belongs to another run" in error_of(capsys, command + " --learning-rate 0.1").replace(
        "/checkpoint.pt", ""
    )
    assert (folder / "run.json").read_text() == before


def test_size_in_the_network_name_sets_the_image_size(capsys: pytest.CaptureFixture[str]) -> None:
    command = "train densenet-bc:layers=1,k=2,size=12 --dataset digits --subset 100 --epochs 1 --out run"
    assert main(command.split()) == 0
    assert load_run(Path("run/checkpoint.pt")).data["image_size"] == 12
    refused = error_of(capsys, command.replace("--out run", "--out other --image-size 16"))
    assert "states image_size=12, but Digits has 16." in refused


def test_diverged_run_fails_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    command = "train densenet-bc:layers=1,k=2 --dataset digits --epochs 2 --learning-rate 1e30 --out run"
    assert main(command.split()) == 1
    assert "dnas: diverged: the training loss is" in capsys.readouterr().err


def test_debug_raises_the_error() -> None:
    with pytest.raises(InputError, match="Did you mean densenet_40_12"):
        main(["--debug", "cost", "densenet_40_13"])


def test_threads_wait_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    main(["spaces"])
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


# --- searches with analytic runs (tests/strategy/test_processes.py has real ones) ---


def use_analytic_executors(
    monkeypatch: pytest.MonkeyPatch, failures: Trouble = lambda job, epoch: None
) -> list[AnalyticExecutor]:
    """Replace worker processes by analytic executors in later searches, and return a list that collects them."""
    executors: list[AnalyticExecutor] = []

    class Analytic(AnalyticExecutor):
        def __init__(self, workers: int, devices: tuple[str, ...]) -> None:
            super().__init__(failures)
            executors.append(self)

        def _result(self, row: dict[str, object], finished: bool) -> dict[str, object]:
            return super()._result(row, finished) | {"test_error": 0.125, "test_loss": 0.5}

    monkeypatch.setattr("dnas.strategy.run.LocalExecutor", Analytic)
    return executors


def test_every_search_option_takes_effect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    executors = use_analytic_executors(monkeypatch)
    command = (
        "search --space tiny --study mine --trials 3 --epochs 9 --seed 5 --split-seed 3 --subset 200 --threads 1"
        " --objective val_loss --stopping none --learning-rate 0.05 --batch-size 32 --max-macs 1_000_000"
        " --max-params 2_000 --augment none --retrain-best 1 --retrain-seeds 2 --workers 2"
    )
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    config = StudyFolder(Path("studies/mine")).config()
    assert (config["seed"], config["objective"], config["stopping"], config["trials"]) == (5, "val_loss", "none", 3)
    assert config["limits"] == {"params": 2_000, "macs": 1_000_000}
    recipe = config["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (9, 32, 0.05)
    data = config["data"]
    assert (data["split_seed"], data["subset"], data["augmentation"]) == (3, 200, "none")
    assert sorted(job.key for job in executors[0].started if job.final)[0].endswith("-6")
    assert len([job for job in executors[0].started if job.final]) == 2
    best = find_study("mine").best()[0]
    for line in (
        "limits   params ≤ 2.0 k, macs ≤ 1.00 M",
        "Digits: 10 classes, 180 training and 20 validation images of 8×8, not augmented",
        "9 epochs of batch 32; early stopping none",
        "val_loss by Gaussian process, seed 5; 3 trials, 2 at once (1 thread each); studies/mine/",
        f"\nbest      #{best.number}  {100 * best.val_error:.2f}% validation error",
        "\ntrials    3 complete\nstored    studies/mine/\nnext      dnas report mine",
        "seed 7: 12.50% test error",
    ):
        assert line in out, line
    assert out.count("\ntrial  #") == 3


def test_quiet_search_prints_only_its_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_analytic_executors(monkeypatch)
    assert main(["search", "--space", "tiny", "--trials", "50", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("\nthe space holds no further network inside its limits: all 12 were tried.\nbest      #")
    assert "trial  #" not in out
    assert main(["search", "--space", "tiny", "--trials", "12", "-q"]) == 0
    assert "no further network" not in capsys.readouterr().out, "all requested trials were started"


def test_search_fails_when_all_trials_fail_with_the_same_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failures(job: Job, epoch: int) -> Message:
        return Message("failed", {"reason": "error", "text": "KeyError: 'x'"})

    use_analytic_executors(monkeypatch, failures)
    assert main(["search", "--space", "tiny", "--trials", "9"]) == 1
    out = capsys.readouterr().out
    assert (
        "stopped: 3 trials in a row failed with the same error: KeyError: 'x' (see studies/tiny/trials/2/traceback.txt)"
        in out
    )
    assert "trials    3 failed" in out


def test_command_line_overrides_the_study_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    executors = use_analytic_executors(monkeypatch)
    Path("studies").mkdir()
    Path("studies/mine.toml").write_text(
        'space = "tiny"\ntrials = 2\nepochs = 5\nseed = 4\nsubset = 300\nretrain_best = 1\nretrain_seeds = 2\n'
        'objective = "val_loss"\nstopping = "none"\nrecipe = "paper"\ndataset = "digits"\n'
    )
    assert main(["search", "--study", "mine", "--subset", "200"]) == 0
    config = StudyFolder(Path("studies/mine")).config()
    values = [config[key] for key in ("trials", "seed", "objective", "stopping")]
    assert values == [2, 4, "val_loss", "none"]
    assert (config["recipe"]["name"], config["recipe"]["epochs"], config["data"]["subset"]) == ("paper", 5, 200)
    assert len([job for job in executors[0].started if job.final]) == 2


def test_status_counts_trials_by_state(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failures = lambda job, epoch: (  # noqa: E731
        Message("failed", {"reason": "diverged", "text": "nan"}) if job.key == "1" and not job.final else None
    )
    use_analytic_executors(monkeypatch, failures)
    options = "--study mine --subset 200 --trials 6 --retrain-best 1 -q"
    main(["search", "--space", "digits_bc", *options.split()])
    capsys.readouterr()
    assert main(["status", "mine"]) == 0
    out = capsys.readouterr().out
    states = [record.state for record in StudyFolder(Path("studies/mine")).records()]
    best = find_study("mine").best()[0]
    assert f"\n{states.count('complete')} complete, {states.count('paused')} paused, 1 failed (1 diverged); " in out
    assert f"\nbest  #{best.number}  {100 * best.val_error:.2f}%" in out
    assert "6 of 6 trials" in out
    assert f"retrained {best.number}-1: 12.50% test error" in out
    assert "diverged: nan" in out


@pytest.mark.parametrize("ray", [None, {}])
def test_status_shows_the_epochs_of_running_trials_on_ray(
    ray: dict[str, str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Local workers write them into curves, which this executor does not."""

    class Look(PlainLines):
        def epoch(self, record: TrialRecord, row: dict[str, Any]) -> None:
            if record.epochs == 2:
                main(["status", "s", "--json"])
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(search_config(1, ray=ray, mirror="none"), Look(quiet=True), AnalyticExecutor())
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert (trial["state"], trial["epochs"]) == ("running", 0 if ray is None else 2)


def test_status_reads_curves_and_says_whether_a_process_runs_the_study(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a running trial has no epoch yet, but its curve has 6 of 12."""
    study = make_study(Path("studies/s"), ["complete", "running"], norms=False, trials=4, workers=1)
    first, second = study.records()
    study.write_record(dataclasses.replace(second, epochs=0, seconds=0.0, val_error=None))
    rate = 1.5 * (12 + 6) / (12 * first.cost["macs"] + 6 * second.cost["macs"])  # seconds per epoch and macs
    expected = partial(expected_epochs, study.config()["stopping"])
    prior = EXPECTED_WEIGHT * expected(12) * (first.cost["macs"] + second.cost["macs"]) / 2
    mean = (prior + 12 * first.cost["macs"]) / (EXPECTED_WEIGHT + 1)  # as in the display of a search
    left = rate * (expected(12, 6) * second.cost["macs"] + 2 * mean)
    locks = ExitStack()
    locks.enter_context(study.lock())
    assert main(["status", "s", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["running"], status["resume"], status["states"]) == (True, None, {"complete": 1, "running": 1})
    assert (status["trials"][1]["epochs"], status["seconds_left"]) == (6, pytest.approx(left))
    assert main(["status", "s"]) == 0
    assert f"1 of 4 trials      about {duration(left)} left" in capsys.readouterr().out
    monkeypatch.setattr("dnas.cli.status.time.sleep", lambda seconds: locks.close())
    assert main(["status", "s", "--watch"]) == 0
    out = capsys.readouterr().out
    assert "1 complete, 1 interrupted; " in out
    assert "1 of 4 trials\n" in out
    assert out.endswith("interrupted; resume it with\n  dnas search --study s --trials 4 --workers 1 --device cpu\n")
    assert "leave one of them out" in error_of(capsys, "status s --watch --json")
    make_study(Path("studies/small"), ["complete"] * 2, norms=False, trials=4, exhausted=True)
    assert main(["status", "small"]) == 0
    assert "interrupted" not in capsys.readouterr().out, "a space without a further network has nothing to resume"


@pytest.mark.parametrize(
    ("states", "epochs", "total", "line"),
    [
        (["complete", "running"] * 2, 12, 9, "has 4 trials (2 to resume, 2 complete); 5 new ones"),
        (["complete"] * 5, 12, 5, "has 5 trials (5 complete); 0 new ones; --trials 15 trains 10 more"),
        (["complete"] * 4, 12, 4, "has 4 trials (4 complete); 0 new ones, since the space has no other network"),
        (
            ["complete", "paused"],
            15,
            5,
            "has 2 trials (1 paused, 1 complete); 3 new ones; 1 trial restarts for 15 epochs",
        ),
    ],
)
def test_header_states_how_much_of_a_study_is_done(states: list[str], epochs: int, total: int, line: str) -> None:
    records = make_study(Path("studies/s"), states, norms=False).records()
    space = load_space("digits_bc", epochs=epochs)
    data = summarize("digits")
    plan = Forecast(search_config(5, space), data, space, (), tuple(records), total, 0.0, 0.0)
    assert existing(plan) == line


@pytest.mark.parametrize(
    ("stopping", "epochs", "text"),
    [
        ("asha", 8, "early stopping asha after 3 of 8 epochs\n"),
        ("asha", 27, "early stopping asha after 3 and 9 of 27 epochs\n"),
        ("asha", 6, "early stopping none, since asha needs at least 7 epochs\n"),
        ("median", 27, "early stopping median after 3 to 26 of 27 epochs\n"),
        ("none", 27, "early stopping none\n"),
    ],
)
def test_header_states_when_early_stopping_decides(stopping: str, epochs: int, text: str) -> None:
    config = search_config(2, load_space("tiny", epochs=epochs), stopping=stopping)
    assert text in opening(config, None)


# --- the display of a search ---


def trial_record(number: int, state: str, epochs: int, **rest: object) -> TrialRecord:
    error = {"complete": 0.1 + 0.01 * number}.get(state)
    return TrialRecord(
        number,
        state=state,
        cost={"params": 1000 + number, "macs": 10_000},
        epochs=epochs,
        epochs_planned=10,
        val_error=error,
        objectives={} if error is None else {"val_error": error},
        network=f"network-{number}",
        **rest,  # type: ignore[arg-type]
    )


def test_remaining_time_is_estimated_from_epochs_of_this_command(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("dnas.api.progress.time.monotonic", lambda: clock[0])
    lines = PlainLines()
    records = [trial_record(0, "complete", 10), trial_record(1, "running", 4)]
    lines.opened(records, wanted=4)
    assert lines.progress.left() is None
    lines.began(records[1])
    clock[0] = 5.0
    lines.step(records[1], 1, 100)  # the time until the first step does not count
    for epoch in (3, 4):  # a resumed worker repeats its earlier epochs
        records[1].epochs = epoch
        lines.epoch(records[1], {})
    assert lines.progress.left() is None
    clock[0] = 11.0
    for epoch in (5, 6):
        records[1].epochs = epoch
        lines.epoch(records[1], {})
    # At two epochs in six seconds, four epochs of this trial and ten of each of two more trials are left.
    assert lines.progress.left() == pytest.approx(3.0 * (4 + 2 * 10))
    assert lines.progress.footer() == "best  #0  10.00%  (1.0 k params)      1 of 4 trials      about 1 min 12 s left"


def test_remaining_time_counts_on_early_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("dnas.api.progress.time.monotonic", lambda: clock[0])
    lines = PlainLines()
    lines.expected = partial(expected_epochs, "asha")  # one rung, after 4 of 10 epochs
    lines.opened([], wanted=10)
    first = trial_record(0, "running", 0)
    lines.began(first)
    lines.step(first, 1, 100)
    clock[0], first.epochs = 2.0, 1
    lines.epoch(first, {})
    expected = 4 + 6 / 3
    assert lines.progress.left() == pytest.approx(2.0 * (expected - 1 + 9 * expected)), "six of ten epochs each"
    lines.step(first, 1, 2)
    clock[0] = 3.0
    assert lines.progress.left() == pytest.approx(2.0 * (expected - 1.5 + 9 * expected)), "half an epoch more"
    records = [trial_record(number, "paused", 3) for number in range(9)]
    lines.progress.add(records)
    mean = (3 * expected + 9 * 3) / 12
    assert lines.progress.left() == pytest.approx(3.0 * mean), "the cost of ended trials counts increasingly"


def test_live_table_fits_the_terminal_and_its_columns_stay() -> None:
    name = "densenet-bc:layers={}-6-12,k=12,theta=0.5,drop=0.2,channels=1,size=8"
    starts = set()
    for width in (80, 100, 120):
        table = LiveTable(Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None))
        for state, reason in (("complete", None), ("infeasible", "out of memory"), ("running", None)):
            record = trial_record(7, state, 4, reason=reason)
            record.network, record.cost = name.format(6), {"params": 15_324_406, "macs": 287_929_692}
            table.opened([record, trial_record(8, "running", 0)], wanted=100)
            table.console.file = io.StringIO()
            table.console.print(table._render())
            lines = table.console.file.getvalue().splitlines()
            assert len(lines) == 4, "a line for the names, one for each trial, and one for the progress"
            assert max(map(len, lines)) <= width
            assert reason is None or "out of memory  densenet" in lines[1]
            starts.add((width, lines[0].index("network"), lines[2].index("network-8")))
    assert len(starts) == 3, "the columns are where they were"


def test_names_in_the_table_leave_out_facts_of_the_data_that_all_share() -> None:
    assert short_names(["densenet:L=7,k=4,channels=1,size=8", "resnet:L=8,channels=1,size=8"]) == [
        "densenet:L=7,k=4",
        "resnet:L=8",
    ]
    assert short_names(["densenet:L=7,k=4,size=8", "densenet:L=7,k=4"]) == [
        "densenet:L=7,k=4,size=8",
        "densenet:L=7,k=4",
    ]
    assert short_names(["densenet121"]) == ["densenet121"]


def test_plain_lines_follow_the_verbosity(capsys: pytest.CaptureFixture[str]) -> None:
    record = trial_record(1, "complete", 10, seconds=2.5)
    outputs = {}
    for name, lines in (("quiet", PlainLines(quiet=True)), ("plain", PlainLines()), ("more", PlainLines(verbose=True))):
        with lines:
            lines.opened([], wanted=1)
            lines.began(record)
            lines.step(record, 1, 2)
            lines.epoch(record, {})
            lines.ended(record)
            lines.ended(trial_record(2, "failed", 0, reason="diverged: nan"))
            lines.note("a note")
        outputs[name] = capsys.readouterr().out.splitlines()
    assert outputs["quiet"] == []
    assert outputs["plain"] == [
        "trial  #1  complete  11.00%  1.0 k params  10/10 epochs  2.5 s  network-1",
        "trial  #2  failed  –  1.0 k params  0/10 epochs  0.0 s  network-2  (diverged: nan)",
        "a note",
    ]
    assert outputs["more"] == ["began  #1  network-1", "epoch  #1  10/10  11.00%", *outputs["plain"]]


def test_live_table_shows_the_last_trials_and_highlights_the_best() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system="standard")
    table = LiveTable(console)
    records = [trial_record(number, "complete", 10) for number in range(20)] + [trial_record(20, "running", 4)]
    with table:
        table.opened(records[:20], wanted=30)
        table.began(records[20])
        table.step(records[20], 1, 2)
        table.note("a note")
        screen.truncate(0)
        console.print(table._render())
        live = screen.getvalue()
        table.ended(records[20])
    assert "network-20" in live
    assert "━━━━────" in live  # four and a half of ten epochs
    assert "network-9" in live
    assert "network-8" not in live, "the table has twelve rows"
    assert "20 of 30 trials" in live
    end = screen.getvalue()
    best = next(line for line in end.splitlines()[::-1] if "network-0" in line)
    assert "\x1b[1;32m" in best
    assert "network-1 " in end


def test_estimated_time_follows_the_time_of_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dnas.batch.estimate.time_steps", lambda *_, **options: (1.0, 0.25))
    monkeypatch.setattr("dnas.batch.estimate.cores", lambda: 4)
    epoch = 21 + 0.25 * 144 / 64  # steps of training, and a quarter of the time for as many images of validation
    start = 8 * 2.0  # time until the first steps of eight trials
    for extra, time in (
        ("--epochs 2 --workers 1", f"time      about {duration(start + 8 * 2 * epoch)}, 1 run at once\n"),
        ("--epochs 2 --workers 4", f"time      about {duration(start / 4 + 2 * 2 * epoch)}, 4 runs at once\n"),
        ("--epochs 2 --workers 64", f"time      about {duration(start / 4 + 2 * 2 * epoch)}, 4 runs at once\n"),
        (
            "--epochs 27 --workers 1",
            f"about {duration(6 + 8 * 7 * epoch)} with early stopping, at most {duration(start + 8 * 27 * epoch)}, 1",
        ),
        ("--epochs 27 --workers 1 --stopping none", f"time      about {duration(start + 8 * 27 * epoch)}, 1 run"),
    ):
        assert main(f"search --space tiny --trials 8 --dry-run {extra}".split()) == 0
        out = capsys.readouterr().out
        assert time in out
        assert "338 to 2.2 k params" in out
    assert expected_epochs("asha", 27) == pytest.approx(3 + 6 / 3 + 18 / 9)
    assert expected_epochs("asha", 27, done=4) == pytest.approx(5 + 18 / 3)
    assert expected_epochs("none", 27, done=4) == 23
    options = "--trials 8 --dry-run --max-params 1_000 --batch-size 32"
    assert main(["search", "--space", "tiny", *options.split()]) == 0
    out = capsys.readouterr().out
    assert "338 to 984 params" in out
    assert "2 epochs of batch 32" in out


def test_dry_run_prints_the_plan_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--space", "tiny", "--trials", "8", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in ("networks  8 of tiny", "1,294 training and 144 validation", "time      about", "disk      about"):
        assert word in out
    assert not Path("studies").exists()


def test_dry_run_counts_the_networks_and_trials_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dnas.batch.estimate.time_steps", lambda *_, **options: (1.0, 0.0))
    space = load_space("tiny")
    facts = {"name": "tiny", "title": space.title, "text": space.text}
    same = {"space": facts, "limits": {}, "recipe": space.recipe.to_dict(), "sampler": "gp"}
    make_study(Path("studies/tiny"), ["complete", "complete", "failed"], epochs=2, **same)
    plan = "search --space tiny --workers 1 --epochs 2 --dry-run --trials"
    assert main([*plan.split(), "1000000"]) == 0
    out = capsys.readouterr().out
    assert "networks  12 of tiny, all that are inside the limits (1,000,000 requested): " in out
    assert "study     has 3 trials (2 complete, 1 failed); 9 new ones\n" in out
    assert f"time      about {duration(9 * (2 * 21 + 2))}, 1 run at once\n" in out
    assert main([*plan.split(), "3"]) == 0
    assert "time      none: nothing is left to train\n" in capsys.readouterr().out
    plan = plan.replace("--epochs 2", "--epochs 4")
    assert main([*plan.split(), "3"]) == 0
    assert f"time      about {duration(2 * (4 * 21 + 2))}, 1 run" in capsys.readouterr().out, "survivors restart"


def test_data_that_are_missing_are_named_with_their_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dnas.batch.estimate.time_steps", lambda *_, **options: (1.0, 0.0))
    plan = "search --space cifar_bc --trials 2 --dry-run --data-root none --kernels plain"
    assert main(plan.split()) == 0
    out = capsys.readouterr().out
    assert (
        "data      CIFAR-10: 10 classes, 45,000 training and 5,000 validation images of 32×32, shifted and mirrored at"
        " random; not downloaded: 170.5 MB\n" in out
    )
    assert not Path("none").exists()


def test_few_images_and_a_large_batch_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    plan = "search --space tiny --trials 1 --dry-run --subset 40 --batch-size 100"
    assert main(plan.split()) == 0
    out = capsys.readouterr().out
    assert (
        "warning   a batch of 100 is larger than the training part of 30 images, so an epoch is a single step;" in out
    )
    assert "warning   the validation part has 10 images only, so one image is 10% of the error" in out


def test_study_definition_sets_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    Path("studies").mkdir()
    Path("studies/mine.toml").write_text('space = "tiny"\ntrials = 3\nepochs = 5\n')
    assert main(["search", "--study", "mine", "--dry-run"]) == 0
    assert "networks  3 of tiny" in capsys.readouterr().out
    assert main(["search", "--study", "mine", "--trials", "4", "--dry-run"]) == 0
    assert "networks  4 of tiny" in capsys.readouterr().out
    Path("studies/mine.toml").write_text('space = "tiny"\ntrials = "3"\nepoch = 5\n')
    Path("studies/mine.toml").write_text('space = "tiny"\ntrials = 3\nepochs = 5\nseed = 0\n')
    assert main(["search", "--study", "mine", "--dry-run"]) == 0
    assert "training  5 epochs" in capsys.readouterr().out
    Path("studies/mine.toml").write_text("trials = 0\nseed = -1\nstopping = 1\n")
    output = error_of(capsys, "search --study mine")
    assert "trials: expected a positive number, but got 0." in output
    assert "seed: expected a positive number, but got -1." in output
    assert "stopping: expected text, but got 1." in output
    Path("studies/mine.toml").write_text('space = "tiny"\ntrials = "3"\nepoch = 5\n')
    output = error_of(capsys, "search --study mine")
    assert "epoch: a study definition has no such key. Did you mean epochs?" in output
    assert "trials: expected a whole number, but got '3'." in output


def test_epochs_of_an_existing_study_are_kept_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    make_study(Path("studies/tiny"), ["complete"], epochs=5)
    assert main(["search", "--study", "tiny", "--trials", "4", "--dry-run"]) == 0
    assert "training  5 epochs" in capsys.readouterr().out
    assert main(["search", "--study", "tiny", "--trials", "4", "--epochs", "7", "--dry-run"]) == 0
    assert "training  7 epochs" in capsys.readouterr().out
