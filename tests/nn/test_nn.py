"""Modules match their specs: they keep the contract of families, and outputs equal torchvision's."""

import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn

from dnas.arch import Spec, cost, layer_costs, parse_name
from dnas.nn import ResNet, build
from dnas.testing import check_spec
from tests.support.specs import any_specs


@given(any_specs())
@settings(max_examples=60, deadline=None)
def test_specs_equal_their_modules(spec: Spec) -> None:
    check_spec(spec, keep_all_units)


def keep_all_units(net: nn.Module) -> None:
    """Drop no unit in training, as the cost model assumes."""
    if isinstance(net, ResNet):
        net.draw = lambda units: [0.0] * units


def test_cost_of_each_layer_equals_its_module() -> None:
    spec = parse_name("densenet-bc:layers=2-3,k=5,theta=0.7,stem=imagenet,size=65,connect=log")  # an odd size
    net = build(spec)
    sides: dict[str, int] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, output, name=name: sides.update({name: output.shape[2]}))
    with torch.no_grad():
        net.eval()(torch.randn(1, 3, 65, 65))
    for layer in layer_costs(spec):
        if layer.kind in ("dense", "transition"):
            module = net.get_submodule(f"features.{layer.name}")
            assert sum(parameter.numel() for parameter in module.parameters()) == layer.params
            assert sides[f"features.{layer.name}.{'conv2' if layer.kind == 'dense' else 'conv'}"] == layer.size
        elif layer.kind == "stem":
            assert sides["features.conv0"] == layer.size


@pytest.mark.parametrize(
    "name", ["densenet_40_12", "densenet_bc_40_12", "densenet_bc_100_12", "densenet121", "densenet161", "densenet264"]
)
def test_presets_have_the_number_of_parameters_of_the_cost_model(name: str) -> None:
    with torch.device("meta"):
        net = build(parse_name(name))
    assert sum(parameter.numel() for parameter in net.parameters()) == cost(parse_name(name)).params


def test_state_dicts_are_interchangeable_with_torchvision() -> None:
    torch.manual_seed(0)
    theirs, ours = torchvision.models.densenet121().eval(), build(parse_name("densenet121")).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(ours(x), theirs(x), atol=1e-3)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        fresh = build(parse_name("densenet121")).eval()
        theirs.load_state_dict(fresh.state_dict(), strict=True)
        torch.testing.assert_close(fresh(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_training_steps_equal_those_of_torchvision() -> None:
    torch.manual_seed(0)
    theirs, ours = torchvision.models.densenet121(num_classes=5), build(parse_name("densenet121:classes=5"))
    ours.load_state_dict(theirs.state_dict())
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    for net in (theirs, ours):
        F.cross_entropy(net.train()(x), y).backward()
    for (name, left), right in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert left.grad is not None
        assert right.grad is not None
        torch.testing.assert_close(right.grad, left.grad, rtol=1e-3, atol=1e-5, msg=name)
    for left, right in zip(theirs.buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(right, left)


def test_layer_reads_only_the_sources_of_its_spec() -> None:
    spec = parse_name("densenet-bc:layers=5-1,k=3,connect=log,size=16")
    block = build(spec).eval().features.denseblock1
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    for layer in block.children():
        layer.register_forward_pre_hook(lambda _m, i: inputs.append(i[0]))
        layer.register_forward_hook(lambda _m, _i, o: outputs.append(o))
    x = torch.randn(2, spec.stem_width, 16, 16)
    with torch.no_grad():
        block(x)
    made = {"stem": x}
    for layer, read, wrote in zip([m for m in spec.layers() if m.kind == "dense"], inputs, outputs, strict=False):
        start = 0
        for source in layer.sources:
            torch.testing.assert_close(read[:, start : start + source.channels], made[source.layer], rtol=0, atol=0)
            start += source.channels
        assert start == read.shape[1] == layer.in_channels
        made[layer.name] = wrote


def test_convolutions_are_initialised_with_he_variance() -> None:
    torch.manual_seed(0)
    net = build(parse_name("densenet-bc:L=40,k=24"))
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Linear):
            assert (module.bias == 0).all()


def test_dropout_follows_every_convolution_but_the_first() -> None:
    torch.manual_seed(0)
    spec = parse_name("densenet-bc:layers=2-2,k=4,dropout=0.5,size=8")
    net = build(spec).train()
    zeros = []
    for name, module in net.named_modules():
        if name.endswith(("norm2", "transition1.pool")):  # reads the output of a convolution after dropout
            module.register_forward_pre_hook(lambda _m, inputs: zeros.append((inputs[0] == 0).float().mean().item()))
    stem = []
    net.features.conv0.register_forward_hook(lambda _m, _i, output: stem.append((output == 0).float().mean().item()))
    net(torch.randn(4, 3, 8, 8))
    assert len(zeros) == 5
    assert all(0.35 < share < 0.65 for share in zeros)
    assert stem == [0.0]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_with_the_keys_of_2017_are_loaded(prefix: str) -> None:
    """torchvision's files name `norm.1` where modules are named `norm1`, and a `DataParallel` adds `module.`."""
    spec = parse_name("densenet-bc:layers=2-1,k=4,channels=1,size=8")
    source, net = build(spec), build(spec)
    old = {
        prefix + re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in source.state_dict().items()
    }
    assert any(".norm.1." in key for key in old)
    net.load_state_dict(old)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), source.state_dict().values(), strict=True))
