"""The command line: answers at once, refuses in one line, prints what it should."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnas.cli import EPILOGS, main
from tests.studies import make_study


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))


def refusal(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """The one line that a refused command prints; it must exit with 2."""
    try:
        status = main(command.split())
    except SystemExit as error:
        status = error.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert status == 2, printed
    assert printed.err.startswith("dnas"), printed
    assert "Traceback" not in printed.err
    return printed.err


def images(folder: Path, classes: int, each: int = 4, size: int = 8) -> None:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 255, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{number}.png")


def test_help_imports_neither_torch_nor_optuna() -> None:
    for arguments in (["--help"], ["search", "--help"], ["cost", "densenet121"], ["spaces"]):
        code = f"import sys; from dnas.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        code += "bad = {'torch', 'optuna', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules); assert not bad, bad"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_help_ends_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name, epilog in EPILOGS.items():
        command = [name, "--help"] if name != "plot" else ["plot", "weight-norms", "--help"]
        with pytest.raises(SystemExit) as done:
            main(command)
        assert done.value.code == 0
        assert capsys.readouterr().out.rstrip().endswith(epilog.rstrip())


def test_cost_prints_the_golden_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "densenet_bc_100_12"]) == 0
    out = capsys.readouterr().out
    assert "769,162" in out
    assert "287,929,692" in out
    assert main(["cost", "densenet-bc:L=100,k=12,theta=0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 769_162
    assert found["macs"] == 287_929_692
    assert sum(layer["params"] for layer in found["layers"]) == 769_162
    assert sum(layer["activation_bytes"] for layer in found["layers"]) == found["activation_bytes"]
    assert main(["cost", "densenet_40_12", "--layers"]) == 0
    assert "denseblock3.denselayer12" in capsys.readouterr().out


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
def test_the_golden_table_from_the_command_line(
    capsys: pytest.CaptureFixture[str], name: str, params: int, macs: int | None
) -> None:
    assert main(["cost", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == params
    assert macs is None or found["macs"] == macs


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


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("serach --space tiny", "no command 'serach'; there are"),
        ("search --space tiny --trials 0", "a whole number of at least 1 is needed, but got 0"),
        ("search --space tiny --trials -3", "a whole number of at least 1 is needed, but got -3"),
        ("search --space tiny --trials x", "a whole number of at least 1 is needed, but got 'x'"),
        ("search --space tiny --trials 2.5", "a whole number of at least 1 is needed, but got '2.5'"),
        ("search --space tiny --trials 1 --workers 0", "at least 1 is needed, but got 0"),
        ("search --space tiny", "needs --trials N"),
        ("search --trials 3", "needs --space NAME"),
        ("search --space tinny --trials 1", "no search space 'tinny'; there are"),
        ("search --space tiny --trials 1 --dataset cifar11", "no data set 'cifar11'"),
        ("search --space tiny --trials 1 --study a/b", "(no `/`, no `..`), but got 'a/b'"),
        ("search --space tiny --trials 1 --study ..", "(no `/`, no `..`), but got '..'"),
        (
            "search --space tiny --trials 1 --max-params 3",
            "nothing in the space meets params <= 3; the smallest has 338",
        ),
        (
            "search --space tiny --trials 1 --objective val_eror",
            "must be one of val_error, val_loss, but got 'val_eror'. Did you mean val_error",
        ),
        ("search --space tiny --trials 1 --stopping ahsa", "--stopping must be one of asha, none"),
        ("search --space tiny --trials 1 --recipe papr", "no recipe 'papr'"),
        ("search --space tiny --trials 1 --subset 3", "subset must lie between 20"),
        ("search --space tiny --trials 1 --dataset folder:/nowhere", "/nowhere"),
        ("search --space none.toml --trials 1", "no space file none.toml."),
        ("cost densenet_40_13", "Did you mean densenet_40_12"),
        ("cost densenet-bc:L=43,k=12", "the nearest depths are 40 and 46."),
        ("train densenet122 --dataset digits", "no network 'densenet122'"),
        ("train densenet-bc:L=10,k=4 --dataset digit", "no data set 'digit'"),
        ("train densenet-bc:L=10,k=4,classes=7 --dataset digits --epochs 1", "states classes=7, but Digits has 10."),
        ("train densenet-bc:L=10,k=4 --dataset digits --device cuda:99", "--device cuda:99"),
        ("eval nothing.pt", "no checkpoint at nothing.pt."),
        ("status nothing", "no study 'nothing'; there are none yet."),
        ("report nothing", "no study 'nothing'"),
        ("export nothing -o x.onnx", "no study 'nothing'"),
        ("plot weight-norms nothing -o x.svg", "no study 'nothing'"),
        ("spaces show", "needs a space's name"),
        ("cost", "arguments are required: NAME"),
    ],
)
def test_bad_input_is_one_clear_line(capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    printed = refusal(capsys, command)
    assert message in printed
    assert printed.count("\n") == 1
    assert not Path("studies").exists(), "a refused command leaves nothing behind"


def test_several_mistakes_of_a_space_file_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('dataset = "digits"\n[choose]\ngrowth = { int = [1, 2] }\n[limits]\nparams = "1M"\n')
    printed = refusal(capsys, "search --space mine.toml --trials 1")
    assert "mine.toml has 2 problems:\n  [choose] growth: DenseNetSpec has no such field" in printed
    assert '\n  [limits] params: expected a positive number, got "1M".' in printed


def test_bad_folders_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    images(Path("one/train"), classes=1)
    images(Path("broken/train"), classes=2)
    Path("broken/train/c1/0.png").write_bytes(b"not an image")
    train = "train densenet-bc:L=10,k=4 --epochs 1 --dataset folder:"
    assert "train" in refusal(capsys, train + "empty")
    assert "c0" in refusal(capsys, train + "one") or "one class" in refusal(capsys, train + "one")
    assert "broken/train/c1/0.png" in refusal(capsys, train + "broken")


def test_a_folder_trains_at_the_first_try(capsys: pytest.CaptureFixture[str]) -> None:
    images(Path("grey/train"), classes=3, each=8, size=28)
    images(Path("grey/test"), classes=3, each=2, size=28)
    command = "train densenet-bc:layers=1-1,k=2 --dataset folder:grey --epochs 1 --batch-size 4 --out run"
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    network = next(line for line in out.splitlines() if line.startswith("densenet-bc:"))
    assert "channels=1" in network
    assert "classes=3" in network
    assert "size=" not in network  # 28 pixels become the small stem's 32, the grammar's default
    assert main(["eval", "run", "--part", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert main(command.split()) == 0  # again: nothing is left to train
    assert "(before)" in capsys.readouterr().out
    assert "another run" in refusal(capsys, command.replace("--epochs 1", "--epochs 2"))


def test_without_augmentation_the_papers_recipe_drops_out(capsys: pytest.CaptureFixture[str]) -> None:
    images(Path("grey/train"), classes=2, each=8)
    command = "train densenet-bc:layers=1,k=2{} --dataset folder:grey --image-size 8 --recipe paper --epochs 1 --out {}"
    main([*command.format("", "a").split(), "--augment", "none"])
    assert "dropout=0.2" in capsys.readouterr().out
    main(command.format("", "b").split())
    assert "dropout" not in capsys.readouterr().out
    main([*command.format(",dropout=0.1", "c").split(), "--augment", "none"])
    assert "dropout=0.1" in capsys.readouterr().out


def test_dry_run_prints_the_plan_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--space", "tiny", "--trials", "8", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in ("networks  8 of tiny", "1,294 training and 144 validation", "time      about", "disk      about"):
        assert word in out
    assert not Path("studies").exists()


def test_a_definition_gives_the_defaults_of_its_study(capsys: pytest.CaptureFixture[str]) -> None:
    Path("studies").mkdir()
    Path("studies/mine.toml").write_text('space = "tiny"\ntrials = 3\nepochs = 5\n')
    assert main(["search", "--study", "mine", "--dry-run"]) == 0
    assert "networks  3 of tiny" in capsys.readouterr().out
    assert main(["search", "--study", "mine", "--trials", "4", "--dry-run"]) == 0
    assert "networks  4 of tiny" in capsys.readouterr().out
    Path("studies/mine.toml").write_text('space = "tiny"\ntrials = "3"\nepoch = 5\n')
    printed = refusal(capsys, "search --study mine")
    assert "epoch: a study definition has no such key. Did you mean epochs?" in printed
    assert "trials: expected a whole number, but got '3'." in printed


def test_the_epochs_of_a_study_that_exists_are_kept_unless_named(capsys: pytest.CaptureFixture[str]) -> None:
    make_study(Path("studies/tiny"), ["complete"], epochs=5)
    assert main(["search", "--space", "tiny", "--trials", "4", "--dry-run"]) == 0
    assert "training  5 epochs" in capsys.readouterr().out
    assert main(["search", "--space", "tiny", "--trials", "4", "--epochs", "7", "--dry-run"]) == 0
    assert "training  7 epochs" in capsys.readouterr().out
