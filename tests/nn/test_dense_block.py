"""Dense blocks run by kernels are the same function as the plain modules."""

import copy
import gc
import multiprocessing
import pickle
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dnas.arch import DenseNetSpec, parse_name
from dnas.errors import InputError
from dnas.nn import DenseNet, resolve_kernels
from dnas.nn.densenet import MEMORY
from dnas.nn.kernels import load_kernels
from dnas.nn.kernels.autotune import _step_seconds
from dnas.nn.kernels.cpu import CPU
from dnas.nn.kernels.dispatch import fallback_reason
from dnas.nn.kernels.reference import REF, BlockShape, Kernels
from dnas.nn.layers import DenseBlock, DenseLayer, Transition
from dnas.training.distributed import SyncBatchNorm2d
from tests.nn.test_recompute import step_bytes
from tests.support.specs import specs


def nets(
    spec: DenseNetSpec, kernels: str, dtype: torch.dtype, memory: str = "linear", seed: int = 3
) -> tuple[DenseNet, DenseNet]:
    """Return a plain network and one with `kernels`, with equal weights and random γ and β."""
    torch.manual_seed(seed)
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
    """Run a training step, and return all its results and the logits in evaluation mode afterwards."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    logits = net.train()(x)
    F.cross_entropy(logits, y).backward()
    results = {"logits": logits.detach(), "image gradient": x.grad, "stream": torch.get_rng_state()}
    results |= {f"gradient {name}": parameter.grad for name, parameter in net.named_parameters()}
    results |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.no_grad():
        results["evaluation"] = net.eval()(x)
    return results  # type: ignore[return-value]


def assert_close(fast: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    assert fast.keys() == plain.keys()
    for name in plain:
        error = (fast[name].double() - plain[name].double()).abs().max().item()
        size = plain[name].double().abs().max().item()
        assert error <= tolerance * max(1.0, size), (name, error, size)


def largest_gradient(results: dict[str, Tensor]) -> float:
    return max(tensor.abs().max().item() for name, tensor in results.items() if name.startswith("gradient"))


def check_equal(spec: DenseNetSpec, batch: int, kernels: str, memory: str, layout: torch.memory_format) -> None:
    plain, fast = nets(spec, kernels, torch.float64, memory)
    plain, fast = plain.to(memory_format=layout), fast.to(memory_format=layout)
    x, y = images(spec, batch, torch.float64)
    values = batch * spec._blocks[-1].size ** 2  # values per channel of the last norms
    if values == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            step(fast, x, y)
        return
    expected = step(plain, x, y)
    # Norms over few values are ill-conditioned and amplify the rounding errors of both paths.
    tolerance = 1e-12 if values >= 32 else 1e-10
    assert_close(step(fast, x, y), expected, tolerance * max(1.0, largest_gradient(expected)))


@given(specs(), st.sampled_from([1, 3, 6]), st.sampled_from([torch.contiguous_format, torch.channels_last]))
@example(parse_name("densenet:layers=3-2,k=4,size=8"), 6, torch.contiguous_format)
@example(parse_name("densenet-bc:layers=1-1,k=3,theta=1,size=9"), 4, torch.channels_last)
@example(parse_name("densenet-bc:layers=3-2,k=4,dropout=0.2,size=8"), 6, torch.channels_last)
@example(parse_name("densenet:layers=3-2,k=4,dropout=0.3,connect=window:2,size=7"), 4, torch.contiguous_format)
@example(parse_name("densenet-bc:layers=5-4,k=5,connect=log,stem=imagenet,size=45"), 3, torch.channels_last)
@example(parse_name("densenet-b:layers=4-4,k=2,connect=none,size=11"), 1, torch.contiguous_format)
@example(parse_name("densenet-b:layers=2-2,k=1,dropout=0.2,connect=none,channels=1,size=4"), 1, torch.channels_last)
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("memory", ["linear", "recompute"])
def test_ref_equals_the_plain_modules(memory: str, spec: DenseNetSpec, batch: int, layout: torch.memory_format) -> None:
    check_equal(spec, batch, "ref", memory, layout)


# --- kernels -----------------------------------------------------------------------------------------------------


# A unit whose input is within rounding of the kink of the ReLU may be on in float32 and off in float64. Tests then try
# other weights. A defect would fail with all of them.
SEEDS = (3, 4, 5)


def distance(results: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Return the largest error relative to the largest value of its tensor, or to 1/1000 of the largest gradient."""
    smallest_scale = 1e-3 * max(1e-3, largest_gradient(truth))
    return max(
        (results[name].double() - value.double()).abs().max().item()
        / max(value.double().abs().max().item(), smallest_scale)
        for name, value in truth.items()
    )


@given(specs(), st.sampled_from([2, 5]), st.sampled_from([torch.contiguous_format, torch.channels_last]))
@example(parse_name("densenet-bc:layers=4-3,k=12,size=32"), 2, torch.channels_last)
@example(parse_name("densenet:layers=4-3,k=13,size=24"), 2, torch.channels_last)
@example(parse_name("densenet-bc:layers=3-3,k=32,size=14,dropout=0.2"), 5, torch.channels_last)
@example(parse_name("densenet:layers=3-2,k=4,dropout=0.3,connect=window:2,size=7"), 5, torch.contiguous_format)
@example(parse_name("densenet-bc:layers=5-4,k=5,connect=log,stem=imagenet,size=45"), 3, torch.channels_last)
@settings(max_examples=12, deadline=None)
def test_cpu_equals_the_reference(spec: DenseNetSpec, batch: int, layout: torch.memory_format) -> None:
    """Errors in float32 against float64 are about as small as those of the plain path."""
    if batch * spec._blocks[-1].size ** 2 < 20:
        return  # norms over so few values amplify rounding too much for a comparison
    x, y = images(spec, batch, torch.float32)
    errors = []
    for seed in SEEDS:
        plain, fast = (net.to(memory_format=layout) for net in nets(spec, "cpu", torch.float32, seed=seed))
        exact = nets(spec, "ref", torch.float64, seed=seed)[1].to(memory_format=layout)
        truth = step(exact, x.double(), y)
        errors.append((distance(step(fast, x, y), truth), distance(step(plain, x, y), truth)))
        if errors[-1][0] <= 1e-4 + 5 * errors[-1][1]:
            return
    raise AssertionError(errors)


class Shape(NamedTuple):
    sources: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    bottlenecks: tuple[int, ...]
    end: str
    height: int
    width: int
    images: int = 7
    dropout: float = 0.25
    layout: str = "NCHW"  # memory layout of the input


SHAPES = [
    Shape((5, 3, 3), ((0,), (0, 1), (0, 1, 2)), (12, 12), "pool", 9, 6),
    Shape((13, 7, 2), ((0,), (0, 1), (0, 1, 2)), (0, 0), "mean", 8, 8),
    Shape((4, 3, 5, 2), ((0,), (0, 1), (1, 2), (1, 3)), (5, 0, 30), "relu", 5, 17),
    Shape((30, 12), ((0,), (0, 1)), (48,), "pool", 40, 40),
    Shape((16, 12), ((0,), (0, 1)), (16,), "mean", 16, 16),
    Shape((2, 1), ((0,), (0, 1)), (1,), "mean", 2, 1),
    # Narrow images, of which 2, 4, 8 or 16 are interleaved with vectors of 16.
    Shape((5, 3, 3), ((0,), (0, 1), (0, 1, 2)), (0, 0), "pool", 8, 8, 6, 0, "NHWC"),
    Shape((9, 4), ((0,), (0, 1)), (8,), "pool", 5, 4, 12, 0, "CNHW"),
    Shape((3, 2, 4), ((0,), (1,), (0, 2)), (0, 3), "relu", 3, 3, 120, 0),
    Shape((18, 4, 4), ((0,), (0, 1), (0, 1, 2)), (0, 0), "mean", 2, 2, 24, 0, "CNHW"),
    Shape((3, 2), ((0,), (0, 1)), (0,), "pool", 3, 2, 8, 0, "NHWC"),
    Shape((3, 2), ((0,), (0, 1)), (4,), "mean", 1, 1, 48, 0, "NHWC"),
    Shape((3, 2), ((0,), (0, 1)), (4,), "pool", 4, 4, 16, 0.25),  # not interleaved because of the dropout masks
]
# Number of a shape for which the C++ kernels use several threads but torch does not. torch's OpenMP hangs in a forked
# child of a parent that has used it.
LARGE = 4


def run_kernels(kernels: Kernels, number: int, dtype: torch.dtype, recompute: bool, seed: int) -> dict[str, Tensor]:
    """Run forward, backward and inference of SHAPES[number] without modules."""
    sources, reads, widths, end, height, width, images, dropout, layout = SHAPES[number]
    shape = BlockShape(sources, reads, widths, end, dropout, 1e-5)
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int, low: float = -1.0) -> Tensor:
        return (torch.rand(*size, generator=generator) * (1 - low) + low).to(dtype)

    weights: list[Tensor] = []
    masks = []
    for layer, inner in enumerate(widths):
        seen, made = shape.seen(layer), sources[layer + 1]
        for into, out, kernel in [(seen, inner, 1), (inner, made, 3)] if inner else [(seen, made, 3)]:
            weights += draw(into, low=0.3), draw(into), draw(out, into, kernel, kernel)
            if dropout:
                masks.append(torch.rand(images, out, height, width, generator=generator) > dropout)
    weights += draw(shape.seen(len(widths)), low=0.3), draw(shape.seen(len(widths)))
    x = draw(images, sources[0], height, width)
    if layout == "NHWC":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "CNHW":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    out, statistics, kept = kernels.forward(shape, x, weights, masks, recompute)
    gradient = draw(*out.shape)
    dx, dweights = kernels.backward(shape, x, weights, masks, statistics, kept, gradient)
    running = [(draw(len(gamma)), draw(len(gamma), low=0.5)) for gamma in weights if gamma.dim() == 1][::2]
    inference = kernels.infer(shape, x, weights, *map(list, zip(*running, strict=True)))
    return {"out": out, "statistics": statistics, "dx": dx, "answer": inference} | dict(
        zip((f"gradient {i}" for i in range(len(dweights))), dweights, strict=True)
    )


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_cpu_is_correct_with_any_number_of_threads(number: int) -> None:
    threads_before = torch.get_num_threads()
    cpu = load_kernels("cpu")
    assert cpu is not None
    best = dict.fromkeys((1, 2, 3, 16), float("inf"))
    for seed in SEEDS:
        truth = run_kernels(REF, number, torch.float64, False, seed)
        for threads in best:
            torch.set_num_threads(threads)
            runs = [run_kernels(cpu, number, torch.float32, recompute, seed) for recompute in (False, True, False)]
            torch.set_num_threads(threads_before)
            assert bits(runs[0]) == bits(runs[1]) == bits(runs[2]), "runs must be equal with and without recomputation"
            best[threads] = min(best[threads], distance(runs[0], truth))
        if max(best.values()) < 2e-5:
            return
    raise AssertionError(best)


def bits(results: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in results.items()}


@pytest.mark.parametrize("name", ["densenet-bc:layers=3-2,k=5,size=9,dropout=0.1", "densenet:layers=3-2,k=4,size=8"])
def test_repeated_steps_are_equal_bit_for_bit(name: str) -> None:
    spec = parse_name(name)
    x, y = images(spec, 7, torch.float32)
    runs = [bits(step(nets(spec, "cpu", torch.float32, memory)[1], x, y)) for memory in MEMORY for _ in range(2)]
    assert all(run == runs[0] for run in runs), "also with recomputation"


def test_concurrent_calls_from_several_threads() -> None:
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(2,)) as pool:
        expected = pool.submit(lambda: bits(run_kernels(CPU, LARGE, torch.float32, False, 3))).result()
        results = list(pool.map(lambda _: bits(run_kernels(CPU, LARGE, torch.float32, False, 3)), range(40)))
    assert all(result == expected for result in results)


def _run_in_child(pipe: Connection) -> None:
    torch.set_num_threads(2)
    pipe.send(bits(run_kernels(CPU, LARGE, torch.float32, False, 3)))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_child_processes_start_their_own_threads(method: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = bits(run_kernels(CPU, LARGE, torch.float32, False, 3))
    torch.set_num_threads(before)
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_run_in_child, args=(theirs,), daemon=True)
    child.start()
    assert ours.poll(60)
    assert ours.recv() == expected
    child.join(60)
    assert child.exitcode == 0


def test_nan_is_propagated() -> None:
    net = nets(parse_name("densenet-bc:layers=2-2,k=4,size=8"), "cpu", torch.float32)[1]
    x = torch.randn(4, 3, 8, 8)
    x[0, 0, 3, 3] = float("nan")
    assert net.train()(x).isnan().all()
    with torch.no_grad():
        assert nets(net.spec, "cpu", torch.float32)[1].eval()(x)[0].isnan().all()


def test_memory_is_linear_in_depth() -> None:
    kept = []
    for layers in (8, 16):
        spec = parse_name(f"densenet-bc:layers={layers},k=12,size=16,stem_channels=12")
        for memory in MEMORY:
            net = DenseNet(spec, kernels="cpu", memory=memory)
            kept.append(step_bytes(net, *images(spec, 8, torch.float32))[0])
    assert kept[2] < 2.1 * kept[0]
    assert kept[3] < 2.1 * kept[1]
    assert kept[1] < 0.35 * kept[0]


# --- fallback to the modules ----------------------------------------------------------------------------

SMALL = parse_name("densenet-bc:layers=2-2,k=4,size=8")


def reasons(net: DenseNet, kernels: str = "cpu") -> list[str]:
    """Return for each block why it is left to its modules."""
    features = net.features
    x = next(net.parameters()).new_zeros(3, SMALL.stem_width, 8, 8)
    z = x.new_zeros(3, features.transition1.conv.out_channels, 4, 4)
    loaded = load_kernels(kernels)
    assert loaded is not None
    return [
        fallback_reason(loaded, features.denseblock1, features.transition1, x),
        fallback_reason(loaded, features.denseblock2, features.norm5, z),
    ]


def freeze(net: DenseNet) -> None:
    net.features.denseblock1.denselayer2.norm2.weight.requires_grad_(False)


def evaluate_one(net: DenseNet) -> None:
    net.features.denseblock1.denselayer1.norm1.eval()


def hook(net: DenseNet) -> None:
    net.features.denseblock1.denselayer1.conv2.register_forward_hook(lambda _m, _i, o: 2 * o)


def hook_backward(net: DenseNet) -> None:
    net.features.transition1.conv.register_full_backward_hook(lambda _m, i, _o: (2 * i[0],))


def parametrise(net: DenseNet) -> None:
    torch.nn.utils.parametrizations.weight_norm(net.features.denseblock1.denselayer1.conv1)


def synchronise(net: DenseNet) -> None:
    layer = net.features.denseblock1.denselayer1
    layer.norm1 = SyncBatchNorm2d.of(layer.norm1)


def replace_relu(net: DenseNet) -> None:
    net.features.denseblock1.denselayer1.relu1 = torch.nn.LeakyReLU()  # type: ignore[assignment]


def average(net: DenseNet) -> None:
    net.features.denseblock1.denselayer1.norm1.momentum = None


def forget(net: DenseNet) -> None:
    norm = net.features.transition1.norm
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


def replace_forward(net: DenseNet) -> None:
    norm = net.features.denseblock1.denselayer2.norm1
    norm.forward = lambda x: 2 * type(norm).forward(norm, x)  # type: ignore[method-assign]


def scatter(net: DenseNet) -> None:
    """Store a running mean in every second position of memory."""
    norm = net.features.denseblock1.denselayer2.norm1
    norm.running_mean = torch.stack([norm.running_mean, norm.running_mean], dim=1)[:, 0]  # type: ignore[list-item]


class TwiceTheLayer(DenseLayer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def subclass(net: DenseNet) -> None:
    net.features.denseblock1.denselayer2.__class__ = TwiceTheLayer


def subclass_block(net: DenseNet) -> None:
    class Twice(DenseBlock):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net.features.denseblock1.__class__ = Twice


def subclass_transition(net: DenseNet) -> None:
    class Twice(Transition):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net.features.transition1.__class__ = Twice


def freeze_statistics(net: DenseNet) -> None:
    """Keep running statistics, but do not update them."""
    net.features.denseblock1.denselayer2.norm1.track_running_stats = False


def count_otherwise(net: DenseNet) -> None:
    net.features.denseblock1.denselayer2.norm1.num_batches_tracked = None  # type: ignore[assignment]


@pytest.mark.parametrize("kernels", ["ref", "cpu"])
def test_norms_may_have_different_momenta(kernels: str) -> None:
    plain, fast = nets(SMALL, kernels, torch.float32)
    for net in (plain, fast):
        net.features.denseblock1.denselayer2.norm1.momentum = 0.4
    x, y = images(SMALL, 6, torch.float32)
    assert reasons(fast.train()) == ["", ""]
    assert_close(step(fast, x, y), step(plain, x, y), 1e-4)


@pytest.mark.parametrize("kernels", ["ref", "cpu"])
@pytest.mark.parametrize(
    "change",
    [
        *(
            freeze,
            evaluate_one,
            hook,
            hook_backward,
            parametrise,
            replace_relu,
            average,
            forget,
            scatter,
            replace_forward,
        ),
        *(subclass, subclass_block, subclass_transition, freeze_statistics, count_otherwise),
    ],
)
def test_unsupported_block_is_left_to_its_modules(change: Callable[[DenseNet], None], kernels: str) -> None:
    plain, fast = nets(SMALL, kernels, torch.float32)
    assert reasons(fast.train(), kernels) == ["", ""]
    x, y = images(SMALL, 6, torch.float32)
    outcomes = []
    for net in (plain, fast):
        change(net.train())
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
        outcomes.append(
            gradients | {name: buffer.clone() for name, buffer in net.named_buffers()} | {"loss": loss.detach()}
        )
    first, second = reasons(fast, kernels)
    assert first
    assert not second
    assert_close(outcomes[1], outcomes[0], 2e-5)


def test_dropout_with_norms_in_evaluation_mode() -> None:
    """The mode is used to sample several predictions of one network."""
    spec = parse_name("densenet-bc:layers=2-2,k=4,size=8,dropout=0.3")
    x, _ = images(spec, 6, torch.float32)
    outputs = []
    for net in nets(spec, "cpu", torch.float32):
        for module in net.train().modules():
            module.train(not isinstance(module, torch.nn.BatchNorm2d))
        torch.manual_seed(1)
        with torch.no_grad():
            outputs.append(net(x))
    assert torch.equal(outputs[0], outputs[1])


def prune(net: DenseNet) -> None:
    """Reduce a bottleneck from 16 to 7 maps by replacing only the tensors."""
    layer = net.features.denseblock1.denselayer1
    layer.conv1.weight.data = layer.conv1.weight.data[:7].clone()
    layer.conv2.weight.data = layer.conv2.weight.data[:, :7].clone()
    for tensor in (layer.norm2.weight, layer.norm2.bias, layer.norm2.running_mean, layer.norm2.running_var):
        assert tensor is not None
        tensor.data = tensor.data[:7].clone()


def test_shapes_are_taken_from_the_tensors() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    for net in (plain, fast):
        net.train()(x)
        prune(net)
    assert reasons(fast.train()) == ["", ""]
    assert_close(step(fast, x, y), step(plain, x, y), 1e-4)


def test_inconsistent_weights_raise_the_error_of_the_modules() -> None:
    for net in nets(SMALL, "cpu", torch.float32):
        net.eval().features.denseblock1.denselayer1.conv1.weight.data = torch.zeros(7, SMALL.stem_width, 1, 1)
        with torch.no_grad(), pytest.raises(RuntimeError, match="running_mean should contain 7 elements not 16"):
            net(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("move", ["double", "channels_last", "half_and_back"])
def test_parameters_modified_in_place_are_detected(move: str) -> None:
    """The parameters remain the same objects."""
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    for net in (fast, plain):
        net.train()(x)
        if move == "double":
            net.double()
        elif move == "channels_last":
            net.to(memory_format=torch.channels_last)
        else:
            net.half().float()
    x = x.double() if move == "double" else x
    assert any(reasons(fast.train())) == (move == "double")
    assert_close(step(fast, x, y), step(plain, x, y), 1e-4)


def test_transition_can_be_replaced() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    for net in (plain, fast):
        net.train()(x)
        net.features.transition1 = copy.deepcopy(net.features.transition1)
        torch.nn.init.constant_(net.features.transition1.norm.bias, 0.3)
    assert_close(step(fast, x, y), step(plain, x, y), 1e-4)


def test_modules_may_have_attributes_without_comparison() -> None:
    """A user may store attributes that Python cannot compare, such as tensors."""
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    for seen in (torch.zeros(2), torch.zeros(3), None):
        fast.features.denseblock1.seen = seen  # type: ignore[assignment]
        assert_close(step(fast, x, y), step(plain, x, y), 1e-4)
        assert reasons(fast.train()) == ["", ""]


def test_deleted_network_is_released() -> None:
    net = nets(SMALL, "cpu", torch.float32)[1]
    net(torch.zeros(2, 3, 8, 8))
    block = weakref.ref(net.features.denseblock1)
    del net
    gc.collect()
    assert block() is None


def test_lent_tensors_are_released() -> None:
    net = nets(SMALL, "cpu", torch.float32)[1].train()
    lent = {name: tensor.detach().clone().requires_grad_() for name, tensor in net.named_parameters()}
    alive = [weakref.ref(tensor) for tensor in lent.values()]
    torch.func.functional_call(net, lent, (torch.zeros(2, 3, 8, 8),))
    assert all(tensor() is not None for tensor in alive)
    lent.clear()
    gc.collect()
    assert all(tensor() is None for tensor in alive)


def test_hooks_on_all_modules_are_called_once() -> None:
    net = nets(SMALL, "cpu", torch.float32)[1].train()
    seen: list[str] = []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: seen.append(name))
    net(torch.randn(3, 3, 8, 8))
    assert sorted(seen) == sorted(name for name, module in net.named_modules())


def test_synchronised_norm_is_left_to_its_module() -> None:
    net = nets(SMALL, "cpu", torch.float32)[1].train()
    synchronise(net)
    assert reasons(net) == ["a SyncBatchNorm2d instead of a BatchNorm2d", ""]


def test_evaluation_with_gradients() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    for net in (plain, fast):
        F.cross_entropy(net.eval()(x), y).backward()
    assert all(reasons(fast))
    for left, right in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)


@pytest.mark.parametrize("kernels", ["ref", "cpu"])
def test_other_precisions(kernels: str) -> None:
    plain, fast = nets(SMALL, kernels, torch.float32)
    x, _ = images(SMALL, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        left, right = fast.train()(x), plain.train()(x)
    assert left.dtype == right.dtype == torch.bfloat16
    assert torch.equal(left, right)
    for dtype in (torch.float64, torch.bfloat16):
        plain, fast = nets(SMALL, kernels, dtype)
        torch.testing.assert_close(fast.train()(x.to(dtype)), plain.train()(x.to(dtype)), rtol=0.1, atol=0.1)
        assert all(reasons(fast, kernels)) == (kernels == "cpu")


@pytest.mark.parametrize("kernels", ["ref", "cpu"])
def test_gradients_of_gradients(kernels: str) -> None:
    spec = parse_name("densenet-bc:layers=2-2,k=3,size=6,dropout=0.2")
    gradients = []
    for net in nets(spec, kernels, torch.float64 if kernels == "ref" else torch.float32):
        torch.manual_seed(2)
        dtype = net.classifier.weight.dtype
        x, y = images(spec, 5, dtype)
        x.requires_grad_()
        loss = F.cross_entropy(net.train()(x), y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()} | {"x": x.grad})
    assert_close(gradients[1], gradients[0], 1e-11 if kernels == "ref" else 1e-3)  # type: ignore[arg-type]


def test_retained_graph_has_a_second_backward_pass() -> None:
    net = nets(parse_name("densenet-bc:layers=2-2,k=4,dropout=0.2,size=8"), "cpu", torch.float32, "recompute")[1]
    loss = net.train()(torch.randn(3, 3, 8, 8)).square().sum()
    weights = list(net.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    second = torch.autograd.grad(loss, weights)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_transformations() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    weights = {name: parameter.detach() * 1.1 for name, parameter in fast.named_parameters()}
    for net in (plain, fast):
        net.eval()

    def loss(net: DenseNet, weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)

    torch.testing.assert_close(loss(fast, weights), loss(plain, weights))
    with torch.no_grad():
        torch.testing.assert_close(loss(fast, weights), loss(plain, weights))
    left, right = torch.func.grad(partial(loss, fast))(weights), torch.func.grad(partial(loss, plain))(weights)
    assert_close(left, right, 1e-5)
    every = torch.func.vmap(lambda w: torch.func.functional_call(fast, w, (x,)))(
        {name: torch.stack([value, value / 2]) for name, value in weights.items()}
    )
    torch.testing.assert_close(every[0], torch.func.functional_call(plain, weights, (x,)), rtol=1e-4, atol=1e-5)


def test_functional_call_in_training_reads_the_given_tensors() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, _ = images(SMALL, 6, torch.float32)
    results = []
    for net in (plain, fast):
        net.train()(x)  # the network's own parameters must not be reused
        given = {name: tensor.detach().clone() * 1.1 for name, tensor in net.state_dict().items()}
        for name, _ in net.named_parameters():
            given[name].requires_grad_()
        before = net.features.norm5.running_mean.clone()
        torch.func.functional_call(net.train(), given, (x,)).square().sum().backward()
        assert torch.equal(net.features.norm5.running_mean, before)
        results.append({name: tensor.grad if tensor.requires_grad else tensor for name, tensor in given.items()})
    assert_close(results[1], results[0], 1e-5)


@pytest.mark.slow
def test_compiled_and_exported() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    x, y = images(SMALL, 6, torch.float32)
    F.cross_entropy(torch.compile(fast.train(), backend="eager", fullgraph=True)(x), y).backward()
    F.cross_entropy(plain.train()(x), y).backward()
    for left, right in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)
    program = torch.export.export(fast.eval(), (x,))
    torch.testing.assert_close(program.module()(x), plain.eval()(x))


def twice(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Double every gradient instead of summing over processes."""
    reduced: torch.futures.Future[Tensor] = torch.futures.Future()
    reduced.set_result(bucket.buffer() * 2)
    return reduced


def test_in_distributed_data_parallel(tmp_path: Path) -> None:
    alone, shared = nets(SMALL, "cpu", torch.float32)[1], nets(SMALL, "cpu", torch.float32)[1]
    x, y = images(SMALL, 6, torch.float32)
    F.cross_entropy(alone.train()(x), y).backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(shared.train())
        wrapped.register_comm_hook(None, twice)
        F.cross_entropy(wrapped(x), y).backward()
    finally:
        dist.destroy_process_group()
    for left, right in zip(shared.parameters(), alone.parameters(), strict=True):
        assert right.grad is not None
        torch.testing.assert_close(left.grad, 2 * right.grad)


def test_copies_and_state_dicts() -> None:
    net = nets(SMALL, "cpu", torch.float32)[1].eval()
    x = torch.randn(2, 3, 8, 8)
    restored = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    with torch.no_grad():
        assert torch.equal(restored(x), net(x))
    assert (restored.kernels, restored.memory) == ("cpu", "linear")
    assert net.state_dict().keys() == DenseNet(SMALL).state_dict().keys()


def test_layers_may_have_different_widths() -> None:
    plain, fast = nets(SMALL, "cpu", torch.float32)
    for net in (plain, fast):  # the second layer of the first block has 7 output maps
        torch.manual_seed(4)
        block, width = net.features.denseblock1, SMALL.stem_width + 4
        block.denselayer2 = DenseLayer(width, 7, 2, 0.0)
        net.features.transition1 = Transition(width + 7, 8, 0.0)
    assert reasons(fast.train()) == ["", ""]
    x, y = images(SMALL, 6, torch.float32)
    assert_close(step(fast, x, y), step(plain, x, y), 1e-4)


def test_recompute_is_an_alias_of_memory() -> None:
    net = DenseNet(SMALL, memory="recompute")
    assert net.recompute
    net.recompute = False
    assert net.memory == "linear"
    with pytest.raises(InputError, match="memory must be one of linear, recompute, but got 'all'"):
        DenseNet(SMALL, memory="all")
    with pytest.raises(InputError, match="kernels must be one of plain, ref, cpu, triton, auto, but got 'fast'"):
        DenseNet(SMALL, kernels="fast")


@pytest.mark.parametrize(
    ("plain", "chosen"), [([0.5] * 5, "plain"), ([0.5] * 4 + [0.9], "cpu"), ([0.9], "cpu"), ([2.0], "cpu")]
)
def test_preferred_kernels_win_unless_clearly_slower_in_every_round(
    monkeypatch: pytest.MonkeyPatch, plain: list[float], chosen: str
) -> None:
    """The first step of each candidate is a warm-up. Measuring stops after a round that C++ does not clearly lose."""
    seconds = {"cpu": iter([9.0] + [1.0] * 5), "plain": iter([0.1, *plain])}
    monkeypatch.setattr("dnas.nn.kernels.autotune.unavailable_reason", lambda name: "")
    monkeypatch.setattr("dnas.nn.kernels.autotune._step_seconds", lambda net, x, y: next(seconds[net.kernels]))
    assert resolve_kernels("auto", SMALL, "cpu", 8) == chosen
    assert not list(seconds["plain"]), "no more steps are timed than necessary"


def test_step_time_excludes_other_load_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that sleeps for a quarter of a second is not measured as slower."""
    net = DenseNet(SMALL, kernels="plain")

    def delayed(*args: Tensor) -> Tensor:
        time.sleep(0.25)
        return F.cross_entropy(*args)

    monkeypatch.setattr("dnas.nn.kernels.autotune.F", SimpleNamespace(cross_entropy=delayed))
    assert _step_seconds(net, torch.randn(2, 3, 8, 8), torch.tensor([0, 1])) < 0.2


def test_resolving_auto_leaves_the_random_stream_unchanged() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert resolve_kernels("auto", SMALL, "cpu", 8) in ("plain", "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_only_auto_is_measured_and_only_for_eager_densenets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.nn.fastest_kernels", lambda *args: "measured")
    assert resolve_kernels("auto", SMALL, "cpu", 8) == "measured"
    assert resolve_kernels("ref", SMALL, "cpu", 8) == "ref"
    assert resolve_kernels("auto", SMALL, "cpu", 8, compile_net=True) == "plain"
    assert resolve_kernels("auto", parse_name("resnet:L=8,width=4"), "cpu", 8) == "plain"


def test_a_network_refuses_unresolved_kernels() -> None:
    with pytest.raises(InputError, match=r"cannot measure its own kernels 'auto'; call dnas\.nn\.resolve_kernels"):
        DenseNet(SMALL, kernels="auto")
