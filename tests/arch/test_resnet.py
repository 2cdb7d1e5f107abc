"""Pre-activation ResNets: sizes computed by hand, independent reference modules, and stochastic depth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

import dnas
from dnas.arch import ResNetSpec, cost, layer_costs, parse_name, spec_from_dict
from dnas.cli import main
from dnas.errors import InputError
from dnas.nn import build
from dnas.space.parse import parse_space
from dnas.space.space import Space
from dnas.study.folder import find_study
from tests.support.specs import resnet_specs

# name: (params without norms, params, macs) for 32×32×3 images and 10 classes. `test_golden_costs_follow_by_hand`
# derives them; those of wide networks are from their authors' code.
GOLDEN = {
    "resnet_110": (1_722_426, 1_730_522, 253_149_824),
    "resnet_164": (1_679_034, 1_703_258, 244_500_992),
    "resnet_1001": (10_178_490, 10_327_706, 1_487_849_984),
    "resnet_1202": (19_334_202, 19_423_834, 2_829_501_056),
    "wide_resnet_28_10": (None, 36_479_194, None),
    "wide_resnet_16_8": (None, 10_961_370, None),
}


class _Unit(nn.Module):
    """A residual unit written directly from the papers, independent of `dnas.nn`."""

    def __init__(self, parts: list[tuple[int, int, int, int]], shares: bool) -> None:
        super().__init__()
        self.shares = shares
        self.norms = nn.ModuleList(nn.BatchNorm2d(i) for i, _, _, _ in parts)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in parts)
        before, after, stride = parts[0][0], parts[-1][1], parts[0][3]
        self.short = None
        if stride > 1 or before != after:
            self.short = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, first = x, True
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = norm(y).relu()
            if first and (self.shares or self.short is not None):
                x = y
            y, first = conv(y), False
        return (x if self.short is None else self.short(x)) + y


def reference(depth: int, bottleneck: bool, widths: tuple[int, ...] = (16, 32, 64), stem: int = 16) -> nn.Sequential:
    """Build the CIFAR network of He et al. 2016 independently; its parameters have another order."""
    count = (depth - 2) // (9 if bottleneck else 6)
    net: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
    channels = stem
    for stage, width in enumerate(widths):
        for index in range(count):
            stride = 2 if stage and not index else 1
            parts = [(channels, width, 3, stride), (width, width, 3, 1)]
            if bottleneck:
                parts = [(channels, width, 1, stride), (width, width, 3, 1), (width, 4 * width, 1, 1)]
            net.append(_Unit(parts, shares=stage == index == 0))
            channels = parts[-1][1]
    tail = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*net, *tail)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_costs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.nn.resnet.initialise", lambda net: None)  # takes seconds on the meta device
    plain, params, macs = GOLDEN[name]
    spec = parse_name(name)
    price = cost(spec)
    assert price.params == params
    assert macs in (None, price.macs)
    with torch.device("meta"):
        net = build(spec)
    assert sum(parameter.numel() for parameter in net.parameters()) == params
    if plain is not None:
        weights = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert sum(p.numel() for m in weights for p in m.parameters(recurse=False)) == plain


@pytest.mark.parametrize(("name", "millions"), [("resnet_110", 1.7), ("resnet_164", 1.7), ("resnet_1001", 10.2)])
def test_published_sizes_exclude_norms(name: str, millions: float) -> None:
    plain = GOLDEN[name][0]
    assert plain is not None
    assert round(plain / 1e6, 1) == millions


def test_golden_costs_follow_by_hand() -> None:
    squares = 16**2 + 32**2 + 64**2
    for depth, units in ((110, 18), (1202, 200)):
        convolutions = 18 * units * squares - 9 * 16 * 32 - 9 * 32 * 64 + (16 * 32 + 32 * 64)
        norms = 2 * (2 * units * (16 + 32 + 64) - 16 - 32 + 64)
        assert GOLDEN[f"resnet_{depth}"][:2] == (convolutions + 432 + 650, convolutions + 432 + 650 + norms)
    for depth, units in ((164, 18), (1001, 111)):
        convolutions = (4 + 9 + 4) * units * squares
        convolutions -= (64 - 16) * 16 + (128 - 64) * 32 + (256 - 128) * 64  # first units of stages
        convolutions += 16 * 64 + 64 * 128 + 128 * 256  # shortcuts
        norms = 2 * (6 * units * (16 + 32 + 64) - (64 - 16) - (128 - 64) - (256 - 128) + 256)
        assert GOLDEN[f"resnet_{depth}"][:2] == (convolutions + 432 + 2570, convolutions + 432 + 2570 + norms)
    # macs of L = 110: maps of 32², 16² and 8² pixels, and 18 · width² multiply-adds per unit and pixel
    pixels = {16: 1024, 32: 256, 64: 64}
    macs = sum(18 * 18 * width**2 * pixels[width] for width in pixels) + 432 * 1024 + 640
    macs += (16 * 32 - 9 * 16 * 32) * 256 + (32 * 64 - 9 * 32 * 64) * 64
    assert macs == GOLDEN["resnet_110"][2]


@pytest.mark.parametrize(
    ("name", "depth", "bottleneck"),
    [("resnet:L=14", 14, False), ("resnet-b:L=20", 20, True), ("resnet_110", 110, False)],
)
def test_outputs_and_gradients_equal_the_reference(name: str, depth: int, bottleneck: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = build(parse_name(name)), reference(depth, bottleneck)
    for left, right in zip(_leaves(ours), _leaves(theirs), strict=True):
        right.load_state_dict(left.state_dict())
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
    for net in (ours, theirs):
        F.cross_entropy(net.train()(x), y).backward()
    for left, right in zip(_leaves(ours), _leaves(theirs), strict=True):
        for one, other in zip(left.parameters(), right.parameters(), strict=True):
            assert one.grad is not None
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def _leaves(net: nn.Module) -> list[nn.Module]:
    """Return the modules with weights; in a unit first norms, then convolutions, then the shortcut."""
    leaves: list[nn.Module] = []
    for module in net.modules():
        if type(module).__name__ in ("_Unit", "ResidualUnit"):
            own = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]
            leaves += sorted(own, key=lambda m: isinstance(m, nn.Conv2d))
    rest = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d | nn.Linear)]
    return leaves + [m for m in rest if not any(m is other for other in leaves)]


def test_cost_of_each_unit_equals_its_module() -> None:
    spec = parse_name("resnet-b:units=2-3,width=5-7,b=3,stem=imagenet,size=65,stem_channels=15")  # odd sizes
    net = build(spec)
    sides: dict[str, int] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, output, name=name: sides.update({name: output.shape[2]}))
    with torch.no_grad():
        net.eval()(torch.randn(1, 3, 65, 65))
    assert [layer.kind for layer in layer_costs(spec)] == ["stem", *["unit"] * 5, "classifier"]
    for layer in layer_costs(spec):
        if layer.kind == "unit":
            module = net.get_submodule(f"features.{layer.name}")
            assert sum(parameter.numel() for parameter in module.parameters()) == layer.params
            assert {side for name, side in sides.items() if name.startswith(f"features.{layer.name}.")} == {layer.size}
        elif layer.kind == "stem":
            assert sides["features.conv0"] == layer.size
    assert "features.stage1.unit1.shortcut" not in sides, "15 = 3 · 5 channels and no stride: nothing to project"
    assert "features.stage2.unit1.shortcut" in sides


def test_cost_takes_no_longer_for_a_thousand_layers() -> None:
    spec = parse_name("resnet:L=60002")
    assert cost(spec).params == cost(parse_name("resnet:L=8")).params + 9_999 * 2 * (9 * (16**2 + 32**2 + 64**2) + 224)


# --- stochastic depth -------------------------------------------------------------------------------------------------


def test_survival_decays_linearly() -> None:
    assert parse_name("resnet:units=2-2,drop=0.8").drop_rates == pytest.approx((0.2, 0.4, 0.6, 0.8))  # type: ignore[union-attr]
    spec = parse_name("resnet_110_sd")
    assert isinstance(spec, ResNetSpec)
    assert (spec.drop_rates[0], spec.drop_rates[26], spec.drop_rates[-1]) == pytest.approx((0.5 / 54, 0.25, 0.5))


def test_units_are_dropped_at_their_rates() -> None:
    net: Any = build(parse_name("resnet:units=1-1,width=2,drop=0.6,size=4,channels=1")).train()
    runs = [0, 0]
    for index, unit in enumerate(net._units):
        unit.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    torch.manual_seed(0)
    x = torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        for _ in range(1000):
            net(x)
    # 4 standard deviations of a fraction of 1,000 draws are 0.058 and 0.062
    assert (runs[0] / 1000, runs[1] / 1000) == (pytest.approx(0.7, abs=0.058), pytest.approx(0.4, abs=0.062))
    runs[:] = 0, 0
    with torch.no_grad():
        net.eval()(x)
    assert runs == [1, 1]


def test_dropped_branch_leaves_only_the_shortcut() -> None:
    net: Any = build(parse_name("resnet:units=2-2,width=3,drop=0.5,size=8")).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.draw = lambda units: [0.0, 1.0, 1.0, 0.0]  # the second and the third unit are dropped
    x = torch.randn(4, 3, 8, 8)
    logits = net(x)
    logits.square().sum().backward()
    first, second, third, last = net._units
    changed = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert not any(name.startswith("features.stage1.unit2.") for name in changed)
    assert {name.split(".")[3] for name in changed if name.startswith("features.stage2.unit1.")} == {"norm1"}
    assert all(p.grad is None for p in second.parameters())
    assert third.conv1.weight.grad is None
    assert third.shortcut.weight.grad is not None
    assert last.conv2.weight.grad is not None
    # literally, in the same order
    with torch.no_grad():
        y = first(net.features.conv0(x))
        y = last(third.shortcut(third.norm1(y).relu()))
        expected = net.classifier(net.norm(y).relu().mean((2, 3)))
    torch.testing.assert_close(logits, expected)


def test_evaluation_scales_branches_by_their_survival() -> None:
    torch.manual_seed(0)
    dropping: Any = build(parse_name("resnet:units=1-1,width=3,drop=0.5,size=8")).eval()
    whole: Any = build(parse_name("resnet:units=1-1,width=3,size=8")).eval()
    whole.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert not torch.allclose(dropping(x), whole(x), atol=1e-3)
        for unit, survival in zip(whole._units, (0.75, 0.5), strict=True):
            unit.conv2.weight *= survival
        torch.testing.assert_close(dropping(x), whole(x))


def test_no_random_numbers_without_stochastic_depth() -> None:
    net = build(parse_name("resnet:units=1-1,width=2,size=4,channels=1")).train()
    before = torch.get_rng_state()
    net(torch.randn(2, 1, 4, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_compiled_network_drops_units() -> None:
    logits = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = build(parse_name("resnet:units=2-2,width=2,drop=0.5,size=4,channels=1")).train()
        forward: Any = torch.compile(net, backend="eager") if compiled else net
        x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        logits.append([forward(x).detach() for _ in range(4)])
        logits[-1].append(
            torch.compile(net.eval(), backend="eager")(x).detach() if compiled else net.eval()(x).detach()
        )
    assert all(torch.equal(a, b) for a, b in zip(*logits, strict=True))


# --- specs ---------------------------------------------------------------------------------------------------------


@given(resnet_specs())
@settings(max_examples=50, deadline=None)
def test_source_of_each_unit_is_the_previous_one(spec: ResNetSpec) -> None:
    layers = list(spec.layers())
    assert [layer.sources[0].layer for layer in layers] == ["input", *(layer.name for layer in layers[:-1])]
    assert sum(layer.kind == "unit" for layer in layers) == sum(spec.stage_units)
    assert spec.depth == (3 if spec.bottleneck else 2) * sum(spec.stage_units) + 2


def test_equal_networks_have_equal_digests() -> None:
    spec = parse_name("resnet:L=20")
    for same in ("resnet:L=20,width=16-32-64", "resnet:units=3-3-3", "resnet:L=20,stem_channels=16"):
        assert parse_name(same).digest == spec.digest
    others = ("resnet:L=20,width=16-32-65", "resnet-b:L=29", "resnet:L=20,drop=0.5", "resnet:L=20,stem_channels=17")
    assert len({spec.digest, *(parse_name(other).digest for other in others)}) == 5
    assert parse_name("resnet:L=20,width=16-32-64") == spec


def test_titles() -> None:
    assert parse_name("resnet_164").title == "pre-activation ResNet with bottlenecks"
    assert parse_name("resnet_110_sd").title == "pre-activation ResNet with stochastic depth"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet:L=111",
            "a pre-activation ResNet of depth 111 does not exist: `(depth - 2) % 6 == 0` must hold;"
            " the nearest depths are 110 and 116.",
        ),
        ("resnet-b:L=5", "with bottlenecks of depth 5 does not exist"),
        ("resnet:L=20,width=0", "`width >= 1` must hold, but got width=0."),
        ("resnet:L=20,width=8-16", "one for each of the 3 stages, but got 2"),
        ("resnet:L=20,drop=1", "`0 <= stochastic_depth < 1` must hold, but got stochastic_depth=1.0."),
        ("resnet:L=20,k=12", "there is no key 'k'; there are L, units, width, b, stages, drop"),
        ("resnet:L=20,units=3-3", "has both a depth and the units of each stage"),
        ("resnet:width=8", "needs a depth or its stages: resnet:L=20,width=16 or resnet:units=3-3-3,width=16."),
        ("resnet_110:L=20", "the depth of a preset cannot be changed; write it as resnet:L=...,width=... instead."),
        ("resnet_111", "Did you mean resnet_110"),
        ("resnet:L=20,stem=big", "stem must be one of small, imagenet, but got 'big'."),
    ],
)
def test_impossible_networks_are_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_name(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# --- spaces and studies ------------------------------------------------------------------------

SPACE = """\
# Residual networks of a few hundred weights.
family = "resnet"
dataset = "digits"

[choose]
stage_units      = { int = [1, 2], times = 2 }
width            = { of = [2, 3] }
bottleneck       = { of = [0, 2] }
stochastic_depth = { of = [0.0, 0.5] }

[recipe]
name = "fast"
epochs = 2
"""


def space_of(text: str) -> Space:
    return parse_space(text, "residual", "residual.toml")


def test_space_of_resnets() -> None:
    space = space_of(SPACE)
    assert space.size() == 32
    params = {"stage_units_1": 2, "stage_units_2": 1, "width": 3, "bottleneck": 2, "stochastic_depth": 0.5}
    spec = space.spec_of(params)
    assert spec == ResNetSpec(
        (2, 1), width=3, bottleneck=2, stochastic_depth=0.5, in_channels=1, image_size=8, classes=10
    )
    assert space.name_of(spec) == "resnet-b:units=2-1,width=3,b=2,drop=0.5,channels=1,size=8"
    # DenseNets have the dropout of the recipe on data without augmentation; ResNets have none.
    assert space.for_data(1, 8, 10, augmented=False).spec_of(params) == spec


def test_depth_and_width_of_each_stage_can_be_chosen() -> None:
    text = SPACE.replace("bottleneck       = { of = [0, 2] }", "depth = { int = [8, 14], step = 6 }")
    text = text.replace("stage_units      = { int = [1, 2], times = 2 }", "")
    space = space_of(text.replace("{ of = [2, 3] }", "{ int = [2, 4], times = 3 }"))
    spec = space.spec_of({"depth": 14, "width_1": 2, "width_2": 2, "width_3": 4, "stochastic_depth": 0.0})
    assert (spec.depth, spec.stage_units, spec.widths) == (14, (2, 2, 2), (2, 2, 4))  # type: ignore[union-attr]


def test_width_is_fitted_to_the_limits() -> None:
    text = SPACE.replace("width            = { of = [2, 3] }", "").replace(
        "[recipe]", "[limits]\nparams = 5_000\n[recipe]"
    )
    space = space_of(text.replace("[choose]", '[fixed]\nwidth = "fit"\n[choose]'))
    assert space.fits_width
    for units in (1, 2):
        spec = space.spec_of({"stage_units_1": units, "stage_units_2": 1, "bottleneck": 0, "stochastic_depth": 0.0})
        assert isinstance(spec, ResNetSpec)
        assert isinstance(spec.width, int)
        assert cost(spec).params <= 5_000 < cost(replace(spec, width=spec.width + 1)).params


@pytest.mark.slow
def test_study_of_resnets_is_searched_resumed_reported_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("residual.toml").write_text(SPACE)
    monkeypatch.setattr(
        "dnas.report.figures._draw", lambda *_: None
    )  # skip the figures of the report, which take seconds
    search = "search --space residual.toml --study {} --trials {} --subset 200 --stopping none --workers 1"
    assert main(search.format("whole", 2).split()) == 0
    assert main(search.format("parts", 1).split()) == 0
    assert main(search.format("parts", 2).split()) == 0  # resumed
    whole, parts = find_study("whole").records(), find_study("parts").records()
    assert [record.weights_digest for record in whole] == [record.weights_digest for record in parts]
    assert None not in [record.weights_digest for record in whole]
    assert all(record.network.startswith("resnet") and record.spec["family"] == "resnet" for record in whole)
    assert main(["report", "whole"]) == 0
    page = Path("reports/whole/index.html").read_text()
    assert "residual units in each stage" in page
    assert "growth rate" not in page
    assert main(["plot", "weight-norms", "whole", "-o", "norms.svg"]) == 0
    assert "stage 2" in Path("norms.svg").read_text()
    assert main(["doctor", "whole"]) == 0
    assert main(["replay", "whole"]) == 0
    capsys.readouterr()
    best = find_study("whole").best()[0]
    assert main(["eval", "whole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error"] == best.val_error
    assert main(["export", "whole", "-o", "net.onnx"]) == 0
    assert main(["export", "whole", "-o", "net.safetensors"]) == 0
    net, images = dnas.load_network("whole"), torch.randn(3, 1, 8, 8)
    (logits,) = onnxruntime.InferenceSession("net.onnx").run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(images).numpy(), rtol=1e-4, atol=1e-5)


def test_specs_without_a_family_are_densenets() -> None:
    spec = parse_name("densenet-bc:L=16,k=4")
    values = spec.to_dict()
    assert values.pop("family") == "densenet"
    assert spec_from_dict(values) == spec
    with pytest.raises(InputError, match="no family of networks 'vgg'; there are densenet, resnet"):
        spec_from_dict({"family": "vgg"})
