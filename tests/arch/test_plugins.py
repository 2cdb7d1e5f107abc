"""Families of other packages: the example package of docs/plugins.md, and plugins that cannot be used."""

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hatchling.build
import matplotlib.pyplot as plt
import pytest
from torch import nn

from dnas.arch import FAMILIES, Terms, cost, format_name, parse_name
from dnas.arch.families import Family
from dnas.cli import main
from dnas.errors import InputError
from dnas.figures import plot_diagram, plot_layer_costs
from dnas.space.parse import parse_space
from dnas.study.folder import find_study
from dnas.testing import check_family
from tests.support.analytic import AnalyticExecutor

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "plugin_example"
SPACE = """\
# Small networks like VGG
family = "vgg"
dataset = "digits"
[choose]
convs = { int = [1, 2], times = 2 }
width = { int = [4, 8], step = 4 }
[recipe]
name = "fast"
epochs = 1
"""
SEARCH = "search --space small.toml --study s --trials {} --subset 200 {}"
ABLATION = """\
# Depth of small networks like VGG
question = "Does depth lower the error?"
dataset = "digits"
equal = "params"
tolerance = 0.5
seeds = 2
[base]
network = "vgg:convs=1-1,width=4"
[data]
subset = 200
[factors]
convs = [[1, 1], [2, 2]]
[recipe]
name = "fast"
epochs = 1
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed example package."""
    folder = tmp_path_factory.mktemp("site")
    before = Path.cwd()
    os.chdir(EXAMPLE)
    try:
        wheel = hatchling.build.build_wheel(str(folder))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(folder / wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def installed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the example package, and return an empty folder where other packages can be installed."""
    other = tmp_path / "site"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(site), str(other), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    FAMILIES.refresh()
    yield other
    monkeypatch.undo()
    FAMILIES.refresh()


def install(folder: Path, package: str, plugins: dict[str, str], code: str = "", group: str = "dnas.families") -> None:
    """Install a package with one module."""
    metadata = folder / f"{package}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in plugins.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (folder / f"{package}.py").write_text(code)


def test_example_package_has_at_most_60_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.iterdir() if path.is_file()) <= 60


@pytest.mark.parametrize("name", ["densenet", "resnet", "vgg"])
def test_families_keep_the_contract(installed: Path, name: str) -> None:
    check_family(FAMILIES[name], {"bottleneck": [0, 2], "dropout": [0.0, 0.2]}, networks=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_terms": lambda spec, layer: Terms(1, 1, 1)}, "its cost states 3 params, but the module has "),
        ({"build": lambda spec: nn.Sequential(nn.Flatten(), nn.LazyLinear(3))}, "are [1, 3], not [1, "),
        ({"layers": "width"}, "the family 'vgg' is not installed"),
    ],
)
def test_broken_contract_is_described(
    installed: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    family = replace(FAMILIES["vgg"], **change)
    if "layers" not in change:
        monkeypatch.setitem(FAMILIES._objects, "vgg", family)
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_family(family, {"convs": [(1, 1)], "classes": [10]})


def test_digest_that_ignores_a_field_breaks_the_contract(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAMILIES["vgg"].spec, "_normal_form", lambda spec: {"convs": spec.convs})
    with pytest.raises(AssertionError, match="differ, but have the same digest"):
        check_family(FAMILIES["vgg"], {"convs": [(1,)]})


def test_check_of_the_guide_passes(installed: Path) -> None:
    text = (EXAMPLE.parent / "plugins.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    exec(code, {})
    (toml,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert toml in (EXAMPLE / "pyproject.toml").read_text()


def test_names_and_costs_of_a_plugin(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = parse_name("vgg:convs=1-2,width=8,size=8,channels=1")
    assert format_name(spec) == "vgg:convs=1-2,width=8,channels=1,size=8"
    assert main(["cost", "vgg:convs=1-2,width=8", "--layers"]) == 0
    out = capsys.readouterr().out
    assert "vgg, depth 4, 32×32×3 images, 10 classes" in out
    assert "stage2.conv2" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg:convs=1-2,widht=8", "there are convs, width, channels, size, classes. Did you mean width?"),
        ("vgg:convs=1,width=0", "`width >= 1` must hold, but got width=0."),
        ("vgg:convs=x", "convs must be a value such as 2-2-2, but got 'x'."),
        ("vgg:width=8", "VGGSpec needs a value of convs."),
        ("vgg:convs=1-1-1-1-1,size=8", "image_size=8 is too small: stage5.conv1 would have maps of 0×0 pixels."),
        ("vgh:convs=1", "Did you mean vgg?"),
    ],
)
def test_impossible_networks_of_a_plugin_are_refused(installed: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_name(name)
    assert message in str(error.value)


def test_figures_of_a_plugins_network_have_its_kinds_of_layers(installed: Path) -> None:
    spec = parse_name("vgg:convs=1-2,width=8")
    for figure in (plot_diagram(spec), plot_layer_costs(spec)):
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["classifier", "conv"]
        plt.close(figure)


def test_new_space_of_a_plugin_is_valid(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces", "new", "mine", "--family", "vgg", "--dataset", "digits"]) == 0
    assert main(["spaces", "show", "mine"]) == 0
    assert "convs_3   1 to 4" in capsys.readouterr().out
    space = parse_space(
        SPACE.replace("width = { int = [4, 8], step = 4 }", "").replace(
            "[choose]", '[fixed]\nwidth = "fit"\n[limits]\nparams = 5_000\n[choose]'
        ),
        "fit",
        "fit.toml",
    )
    assert 2_500 < cost(space.spec_of({"convs_1": 1, "convs_2": 1})).params <= 5_000


def test_a_plugin_is_searched_and_reported(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dnas.strategy.run.LocalExecutor", lambda workers, devices: AnalyticExecutor())
    monkeypatch.setattr("dnas.report.figures._draw", lambda *_: None)  # figures take seconds
    Path("small.toml").write_text(SPACE)
    assert main(SEARCH.format(3, "--objective val_error,params").split()) == 0
    assert {record.spec["family"] for record in find_study("s").records()} == {"vgg"}
    assert "vgg:convs=" in capsys.readouterr().out
    assert main(["report", "s"]) == 0
    page = Path("reports/s/index.html").read_text()
    assert "convs" in page
    assert "growth rate" not in page
    assert "feature reuse" not in page.lower()


@pytest.mark.parametrize(
    ("plugins", "code", "message"),
    [
        ({"bad": "a_bad:FAMILY"}, "import no_such", "ModuleNotFoundError: No module named 'no_such'"),
        ({"bad": "a_bad:FAMILY"}, "FAMILY = 3", "it is 3, and not a dnas.arch.Family"),
        ({"other": "dnas_vgg:FAMILY"}, "", "VGGSpec.family is 'vgg', and must be the lower-case name"),
        ({"resnet": "dnas_vgg:FAMILY"}, "", "dnas itself has this name"),
        ({"densenet-bc": "dnas_vgg:FAMILY"}, "", "dnas itself has this name"),
        ({"densenet121": "dnas_vgg:FAMILY"}, "", "dnas itself has this name"),
    ],
)
def test_a_broken_plugin_is_named_and_the_rest_works(
    installed: Path, plugins: dict[str, str], code: str, message: str
) -> None:
    install(installed, "a_bad", plugins, code)
    FAMILIES.refresh()
    sys.modules.pop("a_bad", None)
    (name,) = plugins
    with pytest.warns(UserWarning, match=rf"^plugin '{name}' of a_bad \(dnas.families\) is left out: ") as record:
        assert list(FAMILIES) == ["densenet", "resnet", "vgg"]
    assert len(record) == 1
    assert message in str(record[0].message)
    assert isinstance(FAMILIES["resnet"], Family)
    assert FAMILIES["resnet"].spec.__name__ == "ResNetSpec"


def test_of_two_plugins_with_one_name_neither_is_used(installed: Path) -> None:
    install(installed, "a_twin", {"vgg": "dnas_vgg:FAMILY"})
    FAMILIES.refresh()
    with pytest.warns(UserWarning, match="of a_twin and dnas-vgg .* two packages have plugins of this name"):
        assert list(FAMILIES) == ["densenet", "resnet"]


def test_shipped_families_read_no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    FAMILIES.refresh()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: pytest.fail("the entry points were read"))
    assert main(["cost", "densenet121"]) == 0
    assert main(["spaces", "show", "tiny"]) == 0
    assert parse_name("resnet:L=8")


@pytest.mark.slow
def test_a_plugin_is_trained_ablated_and_exported(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.toml").write_text(SPACE)
    Path("ablation.toml").write_text(ABLATION)
    assert main(SEARCH.format(2, "--workers 1").split()) == 0
    assert main(["ablate", "ablation.toml", "--workers", "1"]) == 0
    for study in ("s", "ablation"):
        assert main(["report", study]) == 0
    drawn = {path.stem for path in Path("reports/s").glob("*.svg")}
    assert {"diagram", "layer_costs", "learning_curves"} <= drawn
    assert not {"reuse", "weight_norms", "gradients"} & drawn
    assert main(["replay", "s"]) == 0
    assert main(["export", "s", "-o", "net.onnx"]) == 0
    for figure in ("reuse", "causal", "weight-norms"):
        capsys.readouterr()
        assert main(["plot", figure, "s"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
