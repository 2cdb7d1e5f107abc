"""The commands of a study repeat it in an empty folder, also if a Python program started it."""

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dnas.cli import main
from dnas.executors.worker import Job, Message
from dnas.space.parse import load_space
from dnas.strategy.run import search
from dnas.strategy.script import script_of
from dnas.study.commands import Script, _notes, list_script, resume_command
from dnas.study.folder import StudyFolder
from tests.support.analytic import AnalyticExecutor, Silent, search_config
from tests.support.data_files import write_folder
from tests.support.studies import events_but_times

OWN_SPACE = """# It's my own space of $HOME and `commands`
dataset = "digits"
[choose]
growth_rate = { int = [4, 12], step = 4 }
block_layers = { int = [1, 3], times = 2 }
[limits]
params = 40_000
[recipe]
epochs = 9
weight_decay = 2e-4"""  # no newline at its end


@pytest.fixture(autouse=True)
def _without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dnas.strategy.run", "dnas.batch.runs"):
        monkeypatch.setattr(f"{module}.LocalExecutor", lambda workers, devices: AnalyticExecutor())
    monkeypatch.setattr("dnas.training.forkserver.start_forkserver", lambda *modules: None)


def repeat(script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """Run the commands in an empty folder, and return the study that they make."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    for step in script.steps:
        if step.startswith("dnas "):
            words = shlex.split(step)[1:]
            assert main([*words, *(["-q"] if words[0] != "extend" else [])]) == 0, step
        else:
            subprocess.run(["bash", "-c", step], check=True)
    (study,) = folder.glob("studies/*")
    return StudyFolder(study)


def interrupt(job: Job, epoch: int) -> Message | None:
    if job.key == "4":
        raise KeyboardInterrupt
    return None


def test_commands_repeat_a_study_that_python_started_resumed_and_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").mkdir()
    monkeypatch.chdir(tmp_path / "python")
    Path("own.toml").write_text(OWN_SPACE)

    def python(trials: int, epochs: int, executor: AnalyticExecutor) -> None:
        space = load_space("own.toml", limits={"params": 30_000}, epochs=epochs)
        config = search_config(trials, space, device="cpu", mirror="none", seed=3, control=0.25)
        search(config, Silent(), executor)

    with pytest.raises(KeyboardInterrupt):
        python(6, 9, AnalyticExecutor(interrupt))
    python(6, 9, AnalyticExecutor())
    python(7, 9, AnalyticExecutor())
    python(9, 12, AnalyticExecutor())
    assert main(["extend", "s", "--max-params", "35_000"]) == 0
    Path("wider.toml").write_text(OWN_SPACE.replace("[4, 12]", "[4, 16]") + "\n")
    assert main(["extend", "s", "--space", "wider.toml", "--max-params", "50_000"]) == 0
    assert main(["search", "--study", "s", "--trials", "12", "--workers", "1"]) == 0

    study = StudyFolder(Path("studies/s").absolute())
    script = script_of(study)
    repeated = repeat(script, tmp_path / "empty", monkeypatch)
    assert events_but_times(repeated.events()) == events_but_times(study.events())
    assert [step for step in script_of(repeated).steps if step.startswith("dnas")] == [
        "dnas search --space own.toml --study s --trials 7 --max-params 30000 --seed 3 --sampler tpe --control 0.25"
        " --subset 200 --workers 1 --device cpu --kernels plain",
        "dnas search --study s --trials 9 --epochs 12 --workers 1 --device cpu --kernels plain",
        "dnas extend s --max-params 35000",
        "dnas extend s --space wider.toml --max-params 50000",
        "dnas search --study s --trials 12 --workers 1 --device cpu --kernels plain",
    ]
    assert script.notes == ()


def test_settings_without_an_option_are_written_into_the_space_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").mkdir()
    monkeypatch.chdir(tmp_path / "python")
    space = load_space("digits_bc", momentum=0.8, label_smoothing=0.1, limits={"activation_bytes": 50_000_000})
    search(search_config(2, space, device="cpu", mirror="none", workers=2), Silent(), AnalyticExecutor())
    study = StudyFolder(Path("studies/s").absolute())
    script = script_of(study)
    assert script.notes == ("2 trials ran at once, so their order, and the proposals that depend on it, may differ.",)
    repeated = repeat(script, tmp_path / "empty", monkeypatch)
    for key in ("recipe", "limits", "data", "seed", "sampler"):
        assert repeated.config()[key] == study.config()[key]


def test_a_search_of_other_data_is_named_after_them_and_resumes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    write_folder(Path("pics"), "train", ["a", "b"], 10, 8)
    options = ["--device", "cpu", "--workers", "1", "--threads", "1", "--mirror", "none", "--split-seed", "4"]
    search = ["search", "--space", "digits_bc", "--trials"]
    assert main([*search, "1", "--dataset", "folder:pics", *options]) == 0
    study = StudyFolder(Path("studies/digits_bc_pics"))
    assert script_of(study).text == (
        f"dnas search --space digits_bc --trials 1 --dataset folder:{tmp_path}/pics --split-seed 4 --workers 1"
        " --threads 1 --device cpu --kernels plain"
    )
    study.path.rename("studies/digits_bc")  # the name that older versions chose
    assert main([*search, "2"]) == 0
    assert main([*search, "3", "--dataset", "folder:pics"]) == 0
    assert [path.name for path in Path("studies").iterdir()] == ["digits_bc"]
    assert [record.data["title"] for record in StudyFolder(Path("studies/digits_bc")).records()] == ["pics"] * 3
    capsys.readouterr()
    monkeypatch.setattr("dnas.strategy.run.load_dataset", None)  # the check precedes a download
    assert main([*search, "3", "--study", "digits_bc", "--dataset", "cifar10"]) == 2
    assert "study digits_bc was started with another data set pics (now CIFAR-10)" in capsys.readouterr().err


OWN_ABLATION = """# Do wider networks help?
question = "Do wider networks help: by how much?"
dataset = "digits"
seeds = 2
[base]
network = "densenet-bc:L=10,k=4"
[recipe]
epochs = 4
[data]
subset = 300
[factors]
growth_rate = [4, 8]
"""


def test_commands_repeat_an_ablation_with_the_seeds_that_were_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    Path("wide.toml").write_text(OWN_ABLATION)
    for options in ("", "--seeds 3", "--seeds 4"):
        words = f"ablate wide.toml --study my_widths --epochs 2 --subset 200 --device cpu -q {options}"
        assert main(words.split()) == 0
    study = StudyFolder(Path("studies/my_widths").absolute())
    script = script_of(study)
    options = f"--study my_widths --epochs 2 --subset 200 --workers {study.config()['workers']} --device cpu"
    assert script.steps[1:] == tuple(
        f"dnas ablate wide.toml{seeds} {options} --kernels plain" for seeds in ("", " --seeds 3", " --seeds 4")
    )
    repeated = repeat(script, tmp_path / "empty", monkeypatch)
    for key in ("runs", "ablation", "trials", "kernels"):
        assert repeated.config()[key] == study.config()[key]
    command = f"dnas ablate wide.toml {options} --kernels plain"
    assert resume_command(study.config(), study.project) == command


def test_commands_name_the_ray_cluster_and_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnRay(AnalyticExecutor):
        def __init__(self, study: str, address: str | None, *, cpus: float, gpus: float | None, shared: str) -> None:
            super().__init__()
            self.gpus = gpus

    monkeypatch.setitem(sys.modules, "dnas.executors.ray_tune", SimpleNamespace(RayExecutor=OnRay))
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    ray = "--executor ray --ray-address head:6379 --cpus-per-trial 2 --gpus-per-trial 0.5 --shared"
    given = "search --space digits_bc --trials 2 --device cuda --mirror none -q"  # this machine has no GPU
    assert main([*given.split(), *ray.split(), "shared"]) == 0
    study = StudyFolder(Path("studies/digits_bc").absolute())
    script = script_of(study)
    assert script.text == f"dnas search --space digits_bc --trials 2 --kernels plain {ray} {tmp_path}/first/shared"
    repeated = repeat(script, tmp_path / "empty", monkeypatch)
    for key in ("ray", "device", "threads"):
        assert repeated.config()[key] == study.config()[key]
    monkeypatch.chdir(tmp_path / "first")
    assert main(["search", "--study", "digits_bc", "--trials", "3", "--device", "cpu", "--workers", "1", "-q"]) == 0
    assert "ray" not in study.config(), "the last command ran on this machine"

    Path("wide.toml").write_text(OWN_ABLATION)
    asked = "ablate wide.toml --seeds auto --max-seeds 9"
    assert main(f"{asked} -q --budget 90000 --device cpu --executor ray --gpus-per-trial 2".split()) == 0
    study = StudyFolder(Path("studies/wide").absolute())
    assert script_of(study).steps[-1] == (
        f"dnas {asked} --budget 90000 --device cpu --kernels plain --executor ray --cpus-per-trial 1"
    )
    asked = "ablate wide.toml --study fixed -q --device cpu"
    assert main(f"{asked} --executor ray".split()) == 0
    assert main(f"{asked} --seeds 3 --workers 1".split()) == 0
    assert "ray" not in StudyFolder(Path("studies/fixed")).config()


def test_other_lists_of_runs(tmp_path: Path) -> None:
    runs = [{"seed": [seed, 0]} for seed in (0, 1, 2, 0)]
    config = {"name": "reproduce_fig4-left_smoke", "kind": "list", "runs": runs, "device": "cpu"}
    assert list_script(config, tmp_path).text == "dnas reproduce fig4-left --budget smoke --seeds 3 --device cpu"
    config = {"name": "mine", "kind": "list", "runs": runs}
    assert list_script(config, tmp_path) == Script()
    assert resume_command(config, tmp_path) is None
    command = "dnas path s --train --seeds 3"
    assert resume_command(config | {"command": command}, tmp_path) == command
    assert resume_command(config | {"storage": {}}, tmp_path) == "dnas worker mine --storage URL"


def test_running_trials_at_an_extension_are_noted() -> None:
    """A study that was interrupted and then extended cannot be repeated exactly."""
    stage = {"trials": 3, "running": 2, "workers": 1}
    script = _notes([stage, stage | {"running": 0}])
    assert script == [
        "2 trials had not ended when the study was extended. The commands train such trials to their end first, so"
        " later events may differ."
    ]
