"""Export of trained networks as modules, safetensors and ONNX."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dnas
from dnas import export
from dnas.arch import parse_name
from dnas.cli import main
from dnas.data import load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.export import load_trained, write_network
from dnas.nn import build
from dnas.training.evaluate import evaluate
from dnas.training.fit import fit
from dnas.training.recipe import make_recipe
from tests.support.data_files import noise, write_folder
from tests.support.studies import make_study

pytestmark = pytest.mark.xdist_group("export")  # its network is trained once

NAME = "densenet-bc:layers=2-1,k=4,channels=1,size=8"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = load_dataset("digits", subset=300, split_seed=3)
    fit(parse_name(NAME), data, make_recipe("fast", data_info("digits"), epochs=2), seed=(0, 0), folder=folder)
    return folder


@pytest.fixture(scope="module")
def onnx_file(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as .onnx. Its conversion takes seconds."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    write_network(load_trained(run_folder), path)
    return path


def test_loaded_network_equals_the_trained_one(run_folder: Path) -> None:
    net = dnas.load_network(run_folder / "checkpoint.pt")
    assert not net.training
    data = load_dataset("digits", subset=300, split_seed=3)
    last = load_trained(run_folder).run.curve[-1]
    assert evaluate(net, data, "val") == (pytest.approx(last.val_loss, rel=1e-5), last.val_error)


def test_safetensors_contain_weights_and_description(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_network(load_trained(run_folder), path)
    net = build(parse_name(NAME))
    net.load_state_dict(load_file(path), strict=True)
    for name, tensor in dnas.load_network(run_folder).state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
    with safe_open(path, "pt") as file:
        assert parse_name(file.metadata()["dnas.network"]) == parse_name(NAME)
        assert json.loads(file.metadata()["dnas.data"])["name"] == "digits"


def test_onnx_returns_equal_logits_for_any_batch_size(run_folder: Path, onnx_file: Path) -> None:
    net = dnas.load_network(run_folder)
    session = onnxruntime.InferenceSession(onnx_file)
    facts = session.get_modelmeta().custom_metadata_map
    assert parse_name(facts["dnas.network"]) == parse_name(NAME)
    assert json.loads(facts["dnas.data"])["split_seed"] == 3
    for batch in (1, 5):
        images = torch.randn(batch, 1, 8, 8)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, net(images).numpy(), rtol=1e-4, atol=1e-5)


def test_eval_reproduces_the_recorded_error(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error"] == load_trained(run_folder).run.curve[-1].val_error


def test_eval_measures_the_requested_part(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, data = dnas.load_network(run_folder), load_dataset("digits", subset=300, split_seed=3)
    images = {"train": data.train_size, "val": data.val_size, "test": data.test_size}
    for part in images:
        assert main(["eval", str(run_folder), "--part", part, "--json"]) == 0
        loss, error = evaluate(net, data, part)
        result = json.loads(capsys.readouterr().out)
        confusion, classes = np.array(result.pop("confusion")), result.pop("classes")
        assert result == {"part": part, "images": images[part], "error": error, "loss": loss, "dataset": "digits"}
        labels = torch.cat([y for _, y in data.batches(part)])
        assert confusion.sum(1).tolist() == [row["images"] for row in classes] == torch.bincount(labels).tolist()
        assert 1 - confusion.trace() / confusion.sum() == pytest.approx(error)
        assert [row["name"] for row in classes] == list(data.class_names)
        assert classes[3]["error"] == pytest.approx(1 - confusion[3, 3] / confusion[3].sum())


def test_eval_prints_the_errors_of_classes(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run_folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["eval", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["class", *map(str, range(10)), "images", "error"]
    row = lines[4 + 3].split()
    assert row[1:11] == [str(count or ".") for count in result["confusion"][3]]
    assert row[11:] == [str(result["classes"][3]["images"]), f"{100 * result['classes'][3]['error']:.2f}%"]
    monkeypatch.setattr("dnas.cli.eval.SHOWN_CLASSES", 9)
    monkeypatch.setattr("dnas.cli.eval.WORST_CLASSES", 2)
    assert main(["eval", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    worst = max(row["error"] for row in result["classes"])
    assert lines[2] == "the 2 classes with the highest errors (all: --json)"
    assert lines[3].endswith(f"{100 * worst:.2f}%")
    assert len(lines) == 5


@pytest.mark.parametrize("size", [8, 100])
def test_predictions_of_files_are_those_of_the_loaded_data(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    files = write_folder(Path("pictures"), "", ["a", "b"], 4, 20)
    data = load_dataset("folder:pictures", image_size=size)
    spec = parse_name(f"densenet:L=4,k=2,blocks=1,size={size},classes=2")
    recipe = make_recipe("fast", data_info("folder:pictures"), epochs=1)
    fit(spec, data, recipe, seed=(0, 0), folder=Path("run"))
    Path("broken.png").write_bytes(b"no image")
    names = [str(file) for file in files]
    assert main(["predict", "run", *names[:4], "broken.png", "missing.png", *names[4:], "--json"]) == 2
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "dnas: cannot read the image broken.png (cannot identify image file 'broken.png').",
        "dnas: cannot read the image missing.png (No such file or directory).",
    ]
    result = json.loads(output.out)
    assert [row["image"] for row in result["images"]] == names
    assert [row["image"] for row in result["unread"]] == ["broken.png", "missing.png"]
    net = dnas.load_network("run")
    with torch.no_grad():
        expected = torch.cat([net(x).softmax(1) for part in ("train", "val", "test") for x, _ in data.batches(part)])
    probabilities = [{c["name"]: c["probability"] for c in row["classes"]}["a"] for row in result["images"]]
    assert sorted(probabilities) == pytest.approx(sorted(expected[:, 0].tolist()), abs=1e-5)
    assert main(["predict", "run", names[0], "--top", "1"]) == 0
    best = result["images"][0]["classes"][0]
    assert capsys.readouterr().out == f"{names[0]}  {best['name']} {100 * best['probability']:.2f}%\n"


@pytest.mark.parametrize("ending", ["safetensors", "onnx"])
def test_export_states_its_interface_and_its_check(
    ending: str,
    run_folder: Path,
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"net.{ending}"
    monkeypatch.setattr(export, "_onnx", lambda *_: onnx_file.read_bytes())
    assert main(["export", str(run_folder), "-o", str(path)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    facts = load_trained(run_folder).run.data
    assert lines["input"] == "float32 [N, 1, 8, 8], as stored"
    assert lines["pixels"] == f"from 0 to 1, then minus the mean ({facts['mean'][0]:.4f}), divided by the std (" + (
        f"{facts['std'][0]:.4f})"
    )
    assert lines["output"] == "logits, float32 [N, 10], of the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert lines["checked"].startswith("the logits of 2 images in ")
    path.unlink()
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert main(["export", str(run_folder), "-o", str(path)]) == 2
    assert "was not written: its logits differ by" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(("shift", "accepted"), [(1e-4, True), (0.1, False)])
def test_only_rounding_of_exported_logits_is_accepted(
    shift: float, accepted: bool, run_folder: Path, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = export._run_onnx
    monkeypatch.setattr(export, "_onnx", lambda *_: onnx_file.read_bytes())
    monkeypatch.setattr(export, "_run_onnx", lambda *arguments: (run(*arguments)[0] + shift, "ONNX Runtime"))
    path = tmp_path / "net.onnx"
    with nullcontext() if accepted else pytest.raises(InputError, match=r"its logits differ by 0\.1 from"):
        write_network(load_trained(run_folder), path)
    assert path.exists() == accepted


def test_eval_loads_the_requested_data_set(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run_folder), "--dataset", "cifar10", "--data-root", str(tmp_path)]) == 2
    assert "cifar-10-python.tar.gz" in capsys.readouterr().err


def test_other_data_are_normalised_like_the_training_data(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    write_folder(Path("ten"), "train", [str(label) for label in range(10)], 10, 8, channels=1)
    write_folder(Path("three"), "train", ["a", "b", "c"], 10, 8, channels=1)
    assert main(["eval", str(run_folder), "--dataset", "folder:ten", "--part", "train", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    data, facts = load_dataset("folder:ten", image_size=8, split_seed=3), load_trained(run_folder).run.data
    assert data.mean != tuple(facts["mean"])
    data = dataclasses.replace(data, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    assert result["images"] == data.train_size
    assert (result["loss"], result["error"]) == evaluate(dnas.load_network(run_folder), data, "train")
    assert main(["eval", str(run_folder), "--dataset", "folder:three"]) == 2
    assert (
        "three has the class 'a', but the network was trained on the classes 0, 1, 2, 3, 4, ...;"
        in capsys.readouterr().err
    )
    write_folder(Path("colour"), "train", ["0", "1"], 10, 8)
    assert main(["eval", str(run_folder), "--dataset", "folder:colour"]) == 2
    assert "is a network for 1 channels, but colour has 3." in capsys.readouterr().err


def test_changed_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    write_folder(Path("pictures"), "train", ["a", "b"], 10, 8, channels=1)
    command = "train densenet-bc:layers=1,k=2 --dataset folder:pictures --image-size 8 --epochs 1 --batch-size 4"
    assert main([*command.split(), "--out", "run"]) == 0
    assert main(["eval", "run"]) == 0
    noise(4711, 8, channels=1).save("pictures/train/a/000.png")
    assert main(["eval", "run"]) == 2
    assert "has changed since run/checkpoint.pt was trained; pass --dataset" in capsys.readouterr().err
    assert main(["eval", "run", "--dataset", "folder:pictures"]) == 0


def test_unknown_endings_and_trials_are_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"must end with .safetensors or .onnx, but got 'x.pth'"):
        write_network(load_trained(run_folder), tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"--trial requires a study"):
        load_trained(run_folder / "checkpoint.pt", trial=3)


def test_trial_of_a_study_is_selected_by_its_number(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = {"root": str(tmp_path / "elsewhere")}
    folder = make_study(tmp_path / "studies" / "x", ["complete", "complete", "stopped"], data=root)
    best = folder.best()[0].number
    other = next(record.number for record in folder.records() if record.number != best)
    (folder.trial_folder(best) / "checkpoint.pt").write_bytes((run_folder / "checkpoint.pt").read_bytes())
    assert dnas.load_network("studies/x", trial=best).spec == parse_name(NAME)
    assert dnas.load_network("x").spec == parse_name(NAME)
    assert load_trained("x").data_arguments()["data_root"] == tmp_path / "elsewhere"
    with pytest.raises(InputError, match=f"trial {other} of study x has no checkpoint, because"):
        dnas.load_network("x", trial=other)
    with pytest.raises(InputError, match="has no trial 9999; its trials are 0 to"):
        dnas.load_network("x", trial=9999)
    make_study(tmp_path / "studies" / "y", ["stopped", "running"])
    with pytest.raises(InputError, match="study y has no complete trial yet; choose one with --trial"):
        dnas.load_network("y")
