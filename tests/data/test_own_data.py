"""Commands on the data of a user, from the first run to a changed file."""

from pathlib import Path

import numpy as np
import pytest

import dnas
from dnas.cli import main
from tests.support.data_files import noise, write_folder

TRAIN = "train densenet-bc:layers=1,k=2 --image-size 8 --epochs 1 --batch-size 4 --out run --dataset"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DNAS_DATA", str(tmp_path / "data"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def write_csv():
    paths = write_folder(Path("pics"), "", ["cat", "dog"], 12, 8, channels=1)
    rows = [f"{path.relative_to('pics')},{path.parent.name}" for path in paths]
    Path("pics/list.csv").write_text("\n".join(["path,label", *rows]))
    return "csv:pics/list.csv", lambda: noise(4711, 8, channels=1).save(paths[0])


def write_npz():
    x, y = np.stack([np.asarray(noise(i, 8, 1)) for i in range(24)]), np.array(["cat", "dog"])[np.arange(24) % 2]
    np.savez("pics.npz", x=x, y=y)
    return "npz:pics.npz", lambda: np.savez("pics.npz", x=255 - x, y=y)


def write_memory():
    """Write data from memory as a file, and change that file."""
    x, y = np.stack([np.asarray(noise(i, 8, 1)) for i in range(24)]), np.arange(24) % 2
    source = dnas.Images(x, y, classes=["cat", "dog"]).source()
    return source, lambda: np.savez(source.removeprefix("npz:"), x=255 - x, y=y, classes=["cat", "dog"])


@pytest.mark.parametrize("write", [write_csv, write_npz, write_memory])
def test_data_are_trained_on_evaluated_from_elsewhere_and_refused_after_a_change(tmp_path, monkeypatch, capsys, write):
    source, change = write()
    assert main([*TRAIN.split(), source]) == 0
    assert main([*TRAIN.split(), source]) == 0, "a finished run is reported again"
    monkeypatch.chdir(tmp_path)
    noise(1, 8, 1).save("new.png")
    assert main(["eval", "project/run", "--part", "test"]) == 0
    out = capsys.readouterr().out
    assert "0 cat" in out
    assert main(["predict", "project/run", "new.png"]) == 0
    assert "cat " in capsys.readouterr().out
    monkeypatch.chdir("project")
    change()
    assert main(["eval", "run"]) == 2
    assert "has changed since run/checkpoint.pt was trained; pass --dataset" in capsys.readouterr().err
    assert main([*TRAIN.split(), source]) == 2
    assert "belongs to another run, with fingerprint=" in capsys.readouterr().err
