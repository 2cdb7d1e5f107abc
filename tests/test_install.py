"""A wheel of dnas works in any folder and includes its search spaces and study definitions."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_installed_wheel_finds_its_spaces_in_any_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("dnas-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert "dnas/shipped/search_spaces/cifar_bc.toml" in names
    assert "dnas/report/templates/report.html.j2" in names
    sources = {f"dnas/nn/kernels/csrc/{path.name}" for path in ROOT.glob("dnas/nn/kernels/csrc/*")}
    assert "dnas/nn/kernels/csrc/dense_block.cpp" in sources
    assert sources <= set(names), "the sources of the kernels"
    shipped = {name for name in names if name.startswith("dnas/shipped/studies/")}
    definitions = {f"dnas/shipped/studies/{path.name}" for path in ROOT.glob("studies/*.toml")}
    assert shipped == definitions, "every definition is shipped, and no run"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def dnas(*arguments: str) -> str:
        # With -P and a minimal path, no file of this checkout can be found by accident.
        command = [sys.executable, "-P", "-c", "import dnas; print(dnas.__file__); from dnas.cli import main; main()"]
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run([*command, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert str(site) in done.stdout, done.stderr
        return done.stdout

    assert "cifar_bc" in dnas("spaces")
    assert "12 networks" in dnas("spaces", "show", "tiny")
    assert "networks  4 of tiny" in dnas("search", "--study", "tiny_demo", "--dry-run")
