"""The fast dense block is the same function as the plain modules."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dnas.arch import DenseNetSpec, parse_name
from dnas.nn import DenseNet
from tests.specs import specs


def nets(spec: DenseNetSpec, kernels: str, dtype: torch.dtype, memory: str = "linear") -> tuple[DenseNet, DenseNet]:
    """The plain network and one with `kernels`, of equal weights far from their start: γ and β are not 1 and 0."""
    torch.manual_seed(3)
    plain = DenseNet(spec)
    for name, parameter in plain.named_parameters():
        if "norm" in name:
            low, high = (0.5, 1.5) if name.endswith("weight") else (-0.3, 0.3)
            torch.nn.init.uniform_(parameter, low, high)
    plain, fast = plain.to(dtype), DenseNet(spec, kernels=kernels, memory=memory).to(dtype)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def images(spec: DenseNetSpec, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size, dtype=dtype, generator=generator)
    return x, torch.arange(batch) % spec.classes


def step(net: DenseNet, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """All that a training step leaves behind, and what the network then says in evaluation mode."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    logits = net.train()(x)
    F.cross_entropy(logits, y).backward()
    found = {"logits": logits.detach(), "image gradient": x.grad, "stream": torch.get_rng_state()}
    found |= {f"gradient {name}": parameter.grad for name, parameter in net.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.no_grad():
        found["evaluation"] = net.eval()(x)
    return found  # type: ignore[return-value]


def assert_close(fast: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    assert fast.keys() == plain.keys()
    for name in plain:
        error = (fast[name].double() - plain[name].double()).abs().max().item()
        size = plain[name].double().abs().max().item()
        assert error <= tolerance * max(1.0, size), (name, error, size)


def largest_gradient(found: dict[str, Tensor]) -> float:
    return max(tensor.abs().max().item() for name, tensor in found.items() if name.startswith("gradient"))


def check_equal(spec: DenseNetSpec, batch: int, kernels: str, memory: str, layout: torch.memory_format) -> None:
    plain, fast = nets(spec, kernels, torch.float64, memory)
    plain, fast = plain.to(memory_format=layout), fast.to(memory_format=layout)
    x, y = images(spec, batch, torch.float64)
    values = batch * spec._blocks[-1].size ** 2  # over which the last norms are
    if values == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            step(fast, x, y)
        return
    expected = step(plain, x, y)
    # Norms over a few values are ill-conditioned: they enlarge the rounding of either path.
    tolerance = 1e-12 if values >= 32 else 1e-10
    assert_close(step(fast, x, y), expected, tolerance * max(1.0, largest_gradient(expected)))


@given(specs(), st.sampled_from([1, 3, 6]), st.sampled_from([torch.contiguous_format, torch.channels_last]))
@example(parse_name("densenet:layers=3-2,k=4,size=8"), 6, torch.contiguous_format)
@example(parse_name("densenet-bc:layers=1-1,k=3,theta=1,size=9"), 4, torch.channels_last)
@example(parse_name("densenet-bc:layers=3-2,k=4,dropout=0.2,size=8"), 6, torch.channels_last)
@example(parse_name("densenet:layers=3-2,k=4,dropout=0.3,connect=window:2,size=7"), 4, torch.contiguous_format)
@example(parse_name("densenet-bc:layers=5-4,k=5,connect=log,stem=imagenet,size=45"), 3, torch.channels_last)
@example(parse_name("densenet-b:layers=4-4,k=2,connect=none,size=11"), 1, torch.contiguous_format)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("memory", ["linear", "recompute"])
def test_ref_is_the_same_function(memory: str, spec: DenseNetSpec, batch: int, layout: torch.memory_format) -> None:
    check_equal(spec, batch, "ref", memory, layout)
