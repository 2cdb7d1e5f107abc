"""Recomputed activations: an equal run bit for bit, in a fraction of the memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnas.arch import Spec, parse_name
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import data_info
from dnas.nn import build, densenet
from dnas.training.checkpoint import Epoch, weights_digest
from dnas.training.fit import fit
from dnas.training.recipe import make_recipe
from tests.support.specs import any_specs

BATCH = 5


class Live(TorchDispatchMode):
    """Tracks the bytes of live storages created inside the context, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total = 0  # bytes of `storages`, of which some may have been freed since
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:  # a new storage, not a view
                storage = leaf.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.total += storage.nbytes()
        if self.total > self.most:
            self.most = max(self.most, self.now())
        return out

    def now(self) -> int:
        expired = torch.UntypedStorage._expired
        self.storages = {key: value for key, value in self.storages.items() if not expired(value[0].cdata)}
        self.total = sum(size for _, size in self.storages.values())
        return self.total


def step_bytes(net: nn.Module, x: Tensor, y: Tensor, autocast: bool = False) -> tuple[int, int]:
    """Return the bytes that a training step keeps for its backward pass, and its peak including gradients."""
    net.train().zero_grad(set_to_none=True)
    with Live() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(net(x), y)
        kept = live.now()
        loss.backward()
    return kept, live.most


def outcome(
    spec: Spec, recompute: bool, dtype: torch.dtype, steps: int = 2, autocast: bool = False
) -> dict[str, Tensor]:
    """Run training steps, and return outputs, gradients, weights, statistics and the random stream."""
    torch.manual_seed(1)
    net: Any = build(spec).to(dtype).to(memory_format=torch.channels_last).train()
    net.recompute = recompute
    x = torch.randn(BATCH, spec.in_channels, spec.image_size, spec.image_size, dtype=dtype, requires_grad=True)
    y = torch.arange(BATCH) % spec.classes
    results: dict[str, Tensor] = {}
    for step in range(steps):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(x)
            loss = F.cross_entropy(logits, y)
        loss.backward()
        results[f"logits {step}"] = logits.detach()
        results |= {
            f"gradient {step} {name}": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
        }
        results |= {f"buffer {step} {name}": buffer.clone() for name, buffer in net.named_buffers()}
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:  # None: of a unit that stochastic depth dropped
                    parameter -= 0.1 * parameter.grad
    assert x.grad is not None
    return results | {"image gradient": x.grad, "stream": torch.get_rng_state()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    # Compare bits, so that NaN (of tiny maps) equals itself, and 0 differs from -0.
    wrong = [name for name in left if left[name].numpy(force=True).tobytes() != right[name].numpy(force=True).tobytes()]
    assert wrong == []


@given(any_specs(), st.sampled_from([torch.float32, torch.float64]))
@example(parse_name("densenet:layers=3-2,k=4,dropout=0.2,size=8"), torch.float64)
@example(parse_name("densenet:layers=3-2,k=4,theta=0.5,size=8"), torch.float32)
@example(parse_name("densenet-bc:layers=3-2,k=4,theta=1,size=8"), torch.float64)
@example(parse_name("densenet-bc:layers=4-3,k=4,dropout=0.2,connect=log,size=8"), torch.float32)
@example(parse_name("densenet-bc:layers=4-3,k=4,dropout=0.2,stem=imagenet,size=33"), torch.float64)
@example(parse_name("resnet:units=2-2,width=4,drop=0.5,size=8"), torch.float32)
@example(parse_name("resnet-b:units=2-2,width=4,stem=imagenet,size=33"), torch.float64)
@settings(max_examples=25, deadline=None)
def test_recomputed_step_is_equal_bit_for_bit(spec: Spec, dtype: torch.dtype) -> None:
    assert_same(outcome(spec, True, dtype), outcome(spec, False, dtype))


def test_recomputed_step_in_bf16_is_equal_bit_for_bit() -> None:
    spec = parse_name("densenet-bc:layers=3-2,k=4,dropout=0.2,size=8")
    logits = outcome(spec, True, torch.float32, autocast=True)["logits 0"]
    assert logits.dtype == torch.bfloat16
    plain, recomputed_results = (outcome(spec, recompute, torch.float32, autocast=True) for recompute in (False, True))
    for results in (plain, recomputed_results):
        results.update({name: tensor.float() for name, tensor in results.items() if tensor.dtype == torch.bfloat16})
    assert_same(plain, recomputed_results)


@pytest.mark.parametrize(
    ("name", "kept", "most"),
    [
        ("densenet_40_12", 0.06, 0.25),
        ("densenet-bc:L=100,k=12", 0.04, 0.18),
        ("densenet-bc:L=40,k=12,dropout=0.2,connect=log", 0.07, 0.3),
        ("resnet:L=56", 0.27, 0.45),
        ("resnet-b:L=83", 0.4, 0.6),
        ("densenet-bc:layers=3-3,k=12,stem=imagenet,size=64", 0.15, 0.6),  # mostly maps of the stem
    ],
)
def test_recomputed_step_needs_a_fraction_of_the_memory(name: str, kept: float, most: float) -> None:
    spec = parse_name(name)
    net: Any = build(spec).to(memory_format=torch.channels_last)
    x, y = torch.randn(4, 3, spec.image_size, spec.image_size), torch.zeros(4, dtype=torch.long)
    plain = step_bytes(net, x, y)
    net.recompute = True
    less = step_bytes(net, x, y)
    assert less[0] < kept * plain[0]
    assert less[1] < most * plain[1]


def test_only_outputs_of_layers_are_kept() -> None:
    spec = parse_name("densenet-bc:layers=6-6,k=4,size=16")
    net: Any = build(spec)
    net.recompute = True
    x, y = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel() * out.element_size()))
        for name, module in net.named_modules()
        if name.endswith(("conv0", "conv2", "transition1.pool", "classifier"))
    ]
    with torch.no_grad():
        net.train()(x)
    for hook in hooks:
        hook.remove()
    kept, _ = step_bytes(net, x, y)
    assert sum(sizes) <= kept < 1.02 * sum(sizes) + 1000  # the loss keeps the log-probabilities


def test_nothing_runs_twice_without_gradients() -> None:
    net: Any = build(parse_name("densenet-bc:layers=2-2,k=4,size=8"))
    runs: list[str] = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: runs.append(name))
    assert net.recompute is False
    net.recompute = True
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net.train()(x)
    net.eval()(x).sum().backward()
    assert len(runs) == 2 * len(set(runs))
    runs.clear()
    net.train()(x).sum().backward()
    layer, last = "features.denseblock1.denselayer1", "features.denseblock1.denselayer1.conv2"
    assert (runs.count(f"{layer}.norm1"), runs.count(f"{layer}.conv1")) == (2, 2)
    assert runs.count(last) == 1, "the second run ends where nothing more is needed"


def test_retained_graph_has_a_second_backward_pass() -> None:
    net: Any = build(parse_name("densenet-bc:layers=2-2,k=4,dropout=0.2,size=8")).train()
    net.recompute = True
    loss = net(torch.randn(3, 3, 8, 8)).square().sum()
    weights = list(net.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", subset=150)


def curve(epochs: list[Epoch]) -> list[tuple[object, ...]]:
    return [(e.epoch, e.train_loss, e.train_error, e.val_loss, e.val_error) for e in epochs]


@pytest.mark.parametrize(
    "name",
    [
        "densenet:layers=3-2,k=4,dropout=0.2,channels=1,size=8",
        "densenet-bc:layers=4-2,k=4,dropout=0.2,channels=1,size=8,connect=window:2",
        "resnet-b:units=2-2,width=4,drop=0.5,channels=1,size=8",
    ],
)
def test_run_with_changing_recomputation_ends_bit_equal(digits: Dataset, tmp_path: Path, name: str) -> None:
    spec, recipe = parse_name(name), make_recipe("fast", data_info("digits"), epochs=3)
    plain = fit(spec, digits, recipe, seed=(3, 1))
    recomputing = fit(spec, digits, recipe, seed=(3, 1), recompute=True)
    assert recomputing.weights_digest == plain.weights_digest
    assert curve(recomputing.run.curve) == curve(plain.run.curve)
    assert recomputing.run.norms == plain.run.norms

    for epoch, recompute in ((1, False), (2, True)):  # switch as after running out of memory, and back
        fit(
            spec,
            digits,
            recipe,
            seed=(3, 1),
            folder=tmp_path,
            recompute=recompute,
            report=lambda row, epoch=epoch: row.epoch < epoch,
        )
    mixed = fit(spec, digits, recipe, seed=(3, 1), folder=tmp_path)
    assert mixed.weights_digest == plain.weights_digest
    assert curve(mixed.run.curve) == curve(plain.run.curve)


@pytest.mark.slow
def test_compiled_network_ignores_recomputation(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_name("densenet-bc:layers=2-1,k=4,channels=1,size=8")
    digests = []
    monkeypatch.setattr(densenet, "recomputed", None)
    for recompute in (False, True):
        torch.manual_seed(0)
        net: Any = build(spec).train()
        net.recompute = recompute
        x, y = next(digits.train_batches(32, torch.Generator().manual_seed(0)))
        F.cross_entropy(torch.compile(net, backend="eager")(x), y).backward()
        digests.append((weights_digest(net), [p.grad.sum().item() for p in net.parameters()]))
    assert digests[0] == digests[1]
