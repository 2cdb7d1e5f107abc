"""Errors of the operating system, of encodings and of memory end a command in one line, and lose nothing."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from dnas.cli import COMMANDS, main
from dnas.cli.parser import size_limit
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.io import expanded, parse_toml, read_text
from dnas.training.single import default_folder
from tests.support.commands import Command
from tests.support.data_files import write_folder
from tests.support.studies import make_study

pytestmark = pytest.mark.xdist_group("commands")  # one server for all tests that fork commands

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "densenet:L=7,k=4 --epochs 1 --batch-size 8 --kernels plain --threads 1 --device cpu"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))


FOLDER = "dnas.study.folder.StudyFolder."
PLACES: dict[str, list[tuple[str, str]]] = {
    "search": [
        ("search --space tiny --trials 1 -q", "dnas.strategy.run.load_dataset"),
        ("search --space tiny --trials 1 -q", FOLDER + "create"),
        ("search --space tiny --trials 1 --dry-run", "dnas.space.parse.read_text"),
    ],
    "spaces": [("spaces show tiny", "dnas.space.parse.read_text")],
    "status": [("status s", FOLDER + "records"), ("status s --json", FOLDER + "config")],
    "report": [("report s", FOLDER + "records"), ("report s", "dnas.report.page.write_atomic")],
    "importance": [("importance s", FOLDER + "records"), ("importance s", FOLDER + "config")],
    "path": [("path s", FOLDER + "records"), ("path s", FOLDER + "config")],
    "plot": [
        ("plot error s -o x.svg", FOLDER + "records"),
        ("plot error s -o x.svg", "dnas.figures.files.write_atomic"),
    ],
    "verify": [("verify s", FOLDER + "records")],
    "ablate": [("ablate digits_dropout --dry-run", "dnas.ablation.parse.read_text")],
    "compare": [("compare runs.csv --base a", "dnas.ablation.numbers.read_numbers")],
    "track": [("track s tensorboard:runs", FOLDER + "records")],
    "reproduce": [("reproduce table1", "dnas.report.page.write_atomic")],
    "cost": [("cost densenet121", "dnas.arch.cost")],
    "train": [(f"train {TRAIN} --dataset digits --out run", "dnas.api.train_network.load_dataset")],
    "eval": [("eval run.pt", "dnas.export.load_run"), ("eval s", FOLDER + "records")],
    "predict": [("predict run.pt x.png", "dnas.export.load_run"), ("predict s x.png", FOLDER + "records")],
    "completion": [("completion bash", "shtab.complete")],
    "export": [("export run.pt -o x.onnx", "dnas.export.load_run"), ("export s -o x.onnx", FOLDER + "records")],
    "worker": [("worker s --storage postgresql://u@h/d", "dnas.cluster.database.Database.__init__")],
    "pull": [("pull s --storage postgresql://u@h/d", "dnas.cluster.database.Database.__init__")],
    "extend": [("extend s --space tiny", FOLDER + "config")],
    "replay": [("replay s", FOLDER + "config"), ("replay s", FOLDER + "events")],
    "doctor": [("doctor s", FOLDER + "lock"), ("doctor s --dry-run", "dnas.strategy.doctor.diagnose")],
}
ERRORS = [
    (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/x"), "dnas: /data/x: Permission denied; "),
    (OSError(errno.EIO, os.strerror(errno.EIO)), "dnas: Input/output error; "),
    (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "dnas: a text has characters that cannot"),
    (MemoryError(), "dnas: out of memory; "),
]


def test_every_command_is_tried() -> None:
    assert set(PLACES) == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "place"), [pair for pairs in PLACES.values() for pair in pairs], ids=lambda text: text[:40]
)
def test_an_error_anywhere_is_one_line(
    command: str, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(Path("studies/s"), ["complete"] * 2)
    Path("run.pt").touch()
    for error, line in ERRORS:
        with monkeypatch.context() as patch:

            def fail(*arguments: Any, error: BaseException = error, **options: Any) -> NoReturn:
                raise error

            patch.setattr(place, fail)
            assert main(command.split()) == 2
        shown = capsys.readouterr().err
        assert shown.splitlines()[-1].startswith(line), shown
        assert shown.endswith("; `dnas --debug ...` shows where it happened.\n")
        assert "Traceback" not in shown


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(Path("studies/s"), ["complete"] * 2)
    monkeypatch.setattr(FOLDER + "records", lambda self: Path("/nowhere").read_text())
    with pytest.raises(FileNotFoundError):
        main(["--debug", "status", "s"])


def test_a_missing_study_is_refused_before_slow_imports() -> None:
    """All commands run in one process, so the imported modules accumulate."""
    commands = ["status", "report", "report --watch", "importance", "path", "doctor", "replay", "extend --max-params 9"]
    lines = [[*command.split()[:1], "nope", *command.split()[1:]] for command in commands]
    lines.append(["plot", "error", "nope", "-o", "x.svg"])
    code = f"""if True:
        import sys
        from dnas.cli import main
        for line in {lines!r}:
            assert main(line) == 2, line
            slow = {{"torch", "optuna", "pandas", "matplotlib", "scipy", "sklearn"}} & set(sys.modules)
            assert not slow, (line, slow)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dnas: no study 'nope'; ") == len(lines)


PLANS = {
    "search --space tiny --trials 9 --dry-run": "networks  9 of tiny: ",
    "search --space tiny --trials 9": "data     Digits: 10 classes, 1,294 training and 144 validation images of 8×8",
    "search --study s --trials 9 --stopping asha --sampler tpe": "study    has 2 trials (2 complete); 7 new ones",
    "search --space tiny --trials 9 --dataset folder:pics": "data     pics: 2 classes, 16 training and 2 validation",
    "search --space tiny --trials 9 --dataset csv:pics/list.csv": "data     list.csv: 2 classes, 16 training and 2",
    "search --space tiny --trials 9 --dataset npz:pics.npz": "data     pics.npz: 2 classes, 16 training and 2",
    "ablate digits_dropout --dry-run": "evidence  3 comparisons with 7 pairs",
    "ablate digits_dropout --seeds auto": "after 9 pairs at the earliest, 20 at most",
    "ablate digits_dropout --dry-run --dataset folder:pics": "data      pics: 2 classes, 16 training and 2 validation",
    "reproduce fig4-right --dry-run": "runs      6: 2 networks from 3 seeds",
}
REFUSALS = {
    "search --space tiny --trials 9 --device gpu": "no device 'gpu'",
    "search --space tiny --trials 9 --kernels fast": "--kernels must be one of plain, ",
    "search --space tiny --trials 9 --sampler best": "--sampler must be one of ",
    "search --space tiny --trials 9 --subset 3 -q": "subset must be between 20 ",
    "search --space tiny --trials 9 --dataset folder:nowhere": "there is no folder ",
    "search --space tiny --trials 9 --dataset csv:none.csv": "none.csv (No such file or directory); name a CSV file",
    "search --space tiny --trials 9 --dataset npz:none.npz": "none.npz (No such file or directory); name an .npz file",
    "search --space tiny --trials 9 --max-params 10": "--max-params 10: no network of tiny is as small",
    "search --space tiny --trials 9 --study s": "study s was started with another space digits_bc",
    "train densenet:L=7,k=4 --dataset digit": "no data set 'digit'",
    "train densenet122 --dataset digits": "no network 'densenet122'",
    "train densenet:L=7,k=4 --dataset folder:nowhere": "there is no folder ",
    "train densenet:L=7,k=4 --dataset digits --device gpu": "no device 'gpu'",
    "eval s --device gpu": "no device 'gpu'",
    "search --study held --trials 9": "study held is being run by another process",
    "ablate digits_dropouts": "no ablation 'digits_dropouts'",
    "ablate digits_dropout --seeds 1": "`seeds >= 2` must hold",
    "ablate digits_dropout --budget 9": "--budget requires --seeds auto",
    "ablate digits_dropout --subset 3": "subset must be between 20 ",
    "ablate digits_dropout --device gpu": "no device 'gpu'",
    "ablate digits_dropout --study s": "study s already exists and is not an ablation",
    "reproduce fig4": "no target 'fig4'",
}


def test_plans_and_refusals_do_not_wait_for_slow_imports() -> None:
    """Everything that needs no slow module is checked and printed before one is imported."""
    make_study(Path("studies/s"), ["complete"] * 2)
    held = make_study(Path("studies/held"), ["complete"])
    paths = write_folder(Path("pics"), "", ["a", "b"], 10, 8)
    rows = [f"{path.relative_to('pics')},{path.parent.name}" for path in paths]
    Path("pics/list.csv").write_text("\n".join(["path,label", *rows]))
    np.savez("pics.npz", x=np.zeros((20, 8, 8), dtype=np.uint8), y=np.arange(20) % 2)
    code = f"""if True:
        import contextlib, io, sys
        from dnas.cli import main
        slow = ("torch", "optuna", "pandas", "matplotlib", "scipy", "sklearn")
        sys.modules.update(dict.fromkeys(slow))  # an import of one of them raises ImportError
        for line, text in {[*(PLANS | REFUSALS).items()]!r}:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                try:
                    status = main(line.split())
                except ImportError as error:
                    assert error.name in slow, error
                    status = "waits"
            assert text in out.getvalue() + err.getvalue(), (line, out.getvalue(), err.getvalue())
            assert status == (2 if line in {[*REFUSALS]!r} else "waits"), (line, status)
            assert status == "waits" or not out.getvalue(), (line, out.getvalue())
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with held.lock():
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sizes_are_read_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert [size_limit(text) for text in ("100k", "1.2M", "3G", "2_000", "60.0 k")] == [
        100_000,
        1_200_000,
        3 * 10**9,
        2000,
        60_000,
    ]
    for text in ("k", "100q", "-1k", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a positive number"):
            size_limit(text)


def test_a_path_as_a_data_set_is_answered_with_the_prefix() -> None:
    with pytest.raises(
        InputError, match=r"no data set '/data/pics'; for a folder of images, write folder:/data/pics\."
    ):
        data_info("/data/pics")


# --- terminals ---


def test_characters_that_the_terminal_lacks_are_replaced() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dnas", "cost", "densenet_40_12"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(Path("studies/s"), ["complete"] * 2)
    config = study.config()
    study.write_config(config | {"space": config["space"] | {"title": "mine [v2] of [/s]"}})
    assert main(["status", "s"]) == 0
    assert "mine [v2] of [/s]" in capsys.readouterr().out
    study.write_config(config | {"data": config["data"] | {"name": f"folder:{Path('pics [v2]').absolute()}"}})
    assert main(["status", "s"]) == 0
    assert " on folder:pics [v2], recipe" in capsys.readouterr().out


def test_warnings_of_libraries_have_no_source_lines() -> None:
    code = """if True:
        import sys, warnings
        import dnas.cli
        dnas.cli.main = lambda: warnings.warn("a library\\nwarns", UserWarning, stacklevel=1) or 0
        sys.exit(dnas.cli.entry_point())
    """
    command = Command(code=code)
    assert command.communicate()[1] == "dnas: warning: a library\n"
    assert command.returncode == 0


# --- paths ---


def test_a_tilde_after_an_equals_sign_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(Path("studies/s"), ["complete"] * 2)
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    assert main(["plot", "error", "s", "--out=~/x.svg"]) == 0
    assert Path("home/x.svg").is_file()
    assert not Path("~").exists()
    with pytest.raises(SystemExit):
        main(["plot", "error", "s", "--out=~nosuch/x.svg"])
    assert (
        "~nosuch/x.svg begins with the home folder of an unknown user; give the whole path" in capsys.readouterr().err
    )
    with pytest.raises(InputError, match="unknown user"):
        expanded("~nosuch/pics")


def test_default_run_folders_tell_data_sets_apart() -> None:
    network = "densenet:L=7,k=4"
    cat, dog = (default_folder(network, f"folder:{name}", 0) for name in ("猫", "犬"))
    assert cat.name.startswith("猫-")
    assert dog.name.startswith("犬-")
    assert default_folder(network, "folder:x/data", 0) != default_folder(network, "folder:y/data", 0)
    assert default_folder(network, "folder:x/data", 0) == default_folder(
        network, f"folder:{Path('x/data').absolute()}", 0
    )
    assert len(default_folder(network, "folder:" + "d" * 240, 0).name) < 100
    assert default_folder(network, "digits", 0) == Path("studies/runs/digits-densenet-L-7-k-4-s0")


def test_an_earlier_run_folder_is_resumed() -> None:
    earlier = Path("studies/runs/pics-densenet-L-7-k-4-s0")
    earlier.mkdir(parents=True)
    (earlier / "checkpoint.pt").write_bytes(b"")
    assert default_folder("densenet:L=7,k=4", "folder:pics", 0) == earlier


def test_data_are_found_from_another_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("project").mkdir()
    Path("other").mkdir()
    monkeypatch.chdir("project")
    write_folder(Path("pics"), "train", ["a", "b"], 6, 8)
    assert main(["train", *TRAIN.split(), "--image-size", "8", "--dataset", "folder:pics", "--out", "run"]) == 0
    monkeypatch.chdir("../other")
    assert main(["eval", "../project/run"]) == 0
    assert "on the val part of pics" in capsys.readouterr().out


def test_eval_matches_classes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    def shades(root: str, names: dict[str, int]) -> None:
        for name, value in names.items():
            folder = Path(root, "train", name)
            folder.mkdir(parents=True)
            for i in range(20):
                Image.fromarray(np.full((8, 8, 3), value + i % 4, dtype=np.uint8)).save(folder / f"{i}.png")

    shades("fruit", {"apple": 0, "banana": 120, "cherry": 240})
    run = [
        "train",
        *TRAIN.replace("--epochs 1", "--epochs 6").split(),
        "--image-size",
        "8",
        "--dataset",
        "folder:fruit",
    ]
    assert main([*run, "--out", "run"]) == 0
    shades("some", {"cherry": 240, "banana": 120})
    capsys.readouterr()
    assert main(["eval", "run", "--part", "train", "--dataset", "folder:some"]) == 0
    assert capsys.readouterr().out.startswith("0.00% error")
    shades("other", {"banana": 120, "cherry": 240, "zebra": 0})
    assert main(["eval", "run", "--part", "train", "--dataset", "folder:other"]) == 2
    assert "other has the class 'zebra', but the network was trained on" in capsys.readouterr().err


def test_sockets_are_created_in_a_short_folder() -> None:
    folder = Path("a" * 60, "b" * 40).absolute()
    folder.mkdir(parents=True)
    code = """if True:
        import multiprocessing.util
        from multiprocessing import forkserver
        from dnas.training.forkserver import start_forkserver
        forkserver.ensure_running = lambda: None
        start_forkserver()
        print(len(multiprocessing.util.get_temp_dir()))
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 70


def test_settings_of_matplotlib_do_not_reach_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(Path("studies/s"), ["complete"] * 2)
    assert main(["plot", "distribution", "s", "-o", "a.svg"]) == 0
    Path("matplotlibrc").write_text("font.size: 30\naxes.labelsize: 40\nlines.linewidth: 9\nfigure.dpi: 33\n")
    code = "from dnas.cli import entry_point; raise SystemExit(entry_point())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    line = [sys.executable, "-c", code, "plot", "distribution", "s", "-o", "b.svg"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("b.svg").read_bytes() == Path("a.svg").read_bytes()


# --- TOML ---

SPACE = (
    '# A space for tests\ndataset = "digits"\n[choose]\ngrowth_rate = { of = [4, 8] }\n[fixed]\nblock_layers = [1, 1]\n'
)


def test_a_byte_order_mark_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("search_spaces").mkdir()
    Path("search_spaces/win.toml").write_bytes(b"\xef\xbb\xbf" + SPACE.encode())
    assert main(["spaces", "show", "win"]) == 0
    assert "A space for tests" in capsys.readouterr().out
    Path("studies").mkdir()
    Path("studies/mine.toml").write_bytes(b'\xef\xbb\xbfspace = "win"\ntrials = 1\n')
    assert main(["search", "--study", "mine", "--dry-run"]) == 0


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_one_line_and_the_other_spaces_are_listed(
    encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("search_spaces").mkdir()
    Path("search_spaces/old.toml").write_bytes(("# é\n" + SPACE).encode(encoding))
    assert main(["spaces", "show", "old"]) == 2
    assert "search_spaces/old.toml is not UTF-8 (line 1); save it with this encoding." in capsys.readouterr().err
    assert main(["spaces"]) == 0
    out = capsys.readouterr().out
    assert "tiny " in out
    assert "(cannot be read: search_spaces/old.toml is not UTF-8 (line 1)" in out
    with pytest.raises(InputError, match="not UTF-8"):
        read_text(Path("search_spaces/old.toml"))
    with pytest.raises(InputError, match=r"here is not TOML: .*line 1"):
        parse_toml("x = = 1", "here")
