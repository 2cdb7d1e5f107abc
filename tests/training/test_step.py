"""Training steps, and everything about captured steps that needs no GPU.

A captured step reads nothing back from the device, its warm-up has no side effects, and it equals the plain step to
rounding. The capture itself is tested on machines with a GPU.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dnas.arch import parse_name
from dnas.cli import main
from dnas.data import load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.nn import build, use_kernels
from dnas.training.fit import _is_capturable, fit
from dnas.training.recipe import make_recipe
from dnas.training.step import GraphedStep, Step, check_cuda_graph, unchanged

NETWORKS = {
    "plain": ("densenet-bc:layers=2-1,k=4,dropout=0.2,channels=1,size=8", "plain"),
    "ref": ("densenet-bc:layers=2-1,k=4,dropout=0.2,channels=1,size=8", "ref"),
    "resnet": ("resnet:L=8,channels=1,size=8", "plain"),
}
SIZES = 6, 6, 6, 3, 6, 6, 3  # two epochs, with a smaller batch at the end of each
RATES = 0.1, 0.1, 0.05, 0.05, 0.02, 0.02, 0.01
Make = Callable[[nn.Module, torch.optim.SGD, Any, str], Step]


class Synchronisations(TorchDispatchMode):
    """Records in `calls` the operations that wait for the device or copy host values to it, which no graph can hold."""

    CALLS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put_") else ()
        if name in self.CALLS or any(by is not None and by.dtype == torch.bool for by in chosen):
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def plain_step(net: nn.Module, optimizer: torch.optim.SGD, criterion: Any, device: str) -> Step:
    return Step(net, optimizer, criterion, device)


def graphed_step(net: nn.Module, optimizer: torch.optim.SGD, criterion: Any, device: str) -> Step:
    return GraphedStep(net, optimizer, criterion, device, SIZES[0])


def uncaptured_step(net: nn.Module, optimizer: torch.optim.SGD, criterion: Any, device: str) -> Step:
    """Return a graphed step for a batch size that does not occur."""
    return GraphedStep(net, optimizer, criterion, device, SIZES[0] + 1)


def make_step(make: Make, network: str, device: str = "cpu", momentum: float = 0.9, kernels: str | None = None) -> Step:
    name, default_kernels = NETWORKS[network]
    torch.manual_seed(1)
    net = build(parse_name(name)).to(device).to(memory_format=torch.channels_last)
    use_kernels(net, kernels or default_kernels)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=momentum, nesterov=momentum > 0, weight_decay=1e-3)
    return make(net, optimizer, lambda logits, y, size: F.cross_entropy(logits, y, label_smoothing=0.1), device)


def batches(device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(2)
    pairs = [(torch.randn(n, 1, 8, 8, generator=stream), torch.randint(10, (n,), generator=stream)) for n in SIZES]
    return [(x.to(device), y.to(device)) for x, y in pairs]


def trained(make: Make, network: str, device: str = "cpu", **options: Any) -> dict[str, Tensor]:
    """Run some steps, and return all resulting state and the gradients of each step."""
    step = make_step(make, network, device, **options)
    results: dict[str, Tensor] = {}
    step.begin_epoch()
    for number, ((x, y), rate) in enumerate(zip(batches(device), RATES, strict=True)):
        step(x, y, len(y), rate)
        for name, weight in step.net.named_parameters():
            assert weight.grad is not None
            results[f"gradient {number} {name}"] = weight.grad.clone()
        results[f"loss {number}"] = step.loss.clone()
    results |= step.net.state_dict()
    for name, weight in step.net.named_parameters():
        results |= {f"{key} {name}": value for key, value in step.optimizer.state[weight].items() if value is not None}
    results |= {"total": step.total_loss, "wrong": step.wrong, "random": torch.get_rng_state()}
    if device != "cpu":
        results["random there"] = torch.cuda.get_rng_state(device)
    return results


def different(results: dict[str, Tensor], reference: dict[str, Tensor]) -> list[str]:
    assert results.keys() == reference.keys()
    return [name for name in reference if not torch.equal(results[name], reference[name])]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_graphed_step_equals_the_plain_step_to_rounding(network: str, momentum: float) -> None:
    results, reference = (trained(make, network, momentum=momentum) for make in (graphed_step, plain_step))
    assert results.keys() == reference.keys()
    for name in reference:
        torch.testing.assert_close(results[name], reference[name], rtol=1e-4, atol=1e-5, msg=name)
    counts = [
        name for name in reference if name.endswith("num_batches_tracked") or name.startswith(("wrong", "random"))
    ]
    assert {name: results[name].tolist() for name in counts} == {name: reference[name].tolist() for name in counts}


@pytest.mark.parametrize("network", NETWORKS)
def test_warm_up_has_no_side_effects(network: str) -> None:
    """Weights, statistics, momentum, sums and random numbers equal those of steps without a warm-up, bit for bit."""
    assert different(trained(graphed_step, network), trained(uncaptured_step, network)) == []


def test_unchanged_restores_tensors_and_random_streams() -> None:
    torch.manual_seed(0)
    whole, part = torch.randn(4, 3), torch.arange(3)
    view = whole.t()
    expected, following = whole.clone(), torch.Generator().set_state(torch.get_rng_state())
    with unchanged([view, part], "cpu"):
        view.mul_(torch.rand(3, 4))
        part += 7
    assert torch.equal(whole, expected)
    assert part.tolist() == [0, 1, 2]
    assert torch.equal(torch.rand(5), torch.rand(5, generator=following))


@pytest.mark.parametrize("network", NETWORKS)
def test_step_does_not_synchronise_with_the_device(network: str) -> None:
    """The first step is exempt: it creates tables of channels."""
    step = make_step(graphed_step, network)
    step.begin_epoch()
    (x, y), *_ = batches()
    step(x, y, len(y), 0.1)
    with Synchronisations() as recorded:
        step(x, y, len(y), 0.05)
    assert recorded.calls == []


def test_synchronisations_are_recorded() -> None:
    x, rows = torch.ones(3), torch.tensor([0, 2])
    with Synchronisations() as recorded:
        x.sum().item()
        torch.tensor([1.0])
        x[x > 0]
        x[rows] = x[rows] + 1
    assert recorded.calls == ["_local_scalar_dense", "lift_fresh", "index"]


def test_optimizer_state_does_not_depend_on_the_kind_of_step() -> None:
    """The rate is stored as a number, and the options select torch's default implementation."""
    states = []
    for make in (plain_step, graphed_step):
        step = make_step(make, "plain")
        step.begin_epoch()
        step(*batches()[0], SIZES[0], 0.1)
        states.append(step.optimizer.state_dict())
    plain, of_graph = states
    assert plain["state"].keys() == of_graph["state"].keys()
    assert {**plain["param_groups"][0], "lr": 1.0} == {**of_graph["param_groups"][0], "lr": 1.0}
    assert isinstance(of_graph["param_groups"][0]["lr"], float)


# --- refusals --------------------------------------------------------------------------------------------


def test_unsupported_cuda_graphs_are_refused() -> None:
    check_cuda_graph("cuda:1")
    with pytest.raises(InputError, match="requires a CUDA device, but this run is on the CPU; leave it out"):
        check_cuda_graph("cpu")
    with pytest.raises(InputError, match="requires a single GPU, but this run uses 4"):
        check_cuda_graph("cuda", processes=4)
    with pytest.raises(InputError, match="cannot capture a network compiled by --compile; give only one of the two"):
        check_cuda_graph("cuda", compiled=True)
    data = load_dataset("digits", subset=300)
    with pytest.raises(InputError, match="on the CPU"):
        fit(
            parse_name(NETWORKS["plain"][0]),
            data,
            make_recipe("fast", data_info("digits")),
            seed=(0, 0),
            cuda_graph=True,
        )


@pytest.mark.parametrize("command", ["train densenet:L=10,k=4 --dataset digits", "search --space digits_bc --trials 2"])
def test_cuda_graph_on_the_cpu_is_one_line_and_status_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu", "--cuda-graph"]) == 2
    error = capsys.readouterr().err
    assert error == "dnas: --cuda-graph requires a CUDA device, but this run is on the CPU; leave it out.\n"
    assert not (tmp_path / "studies").exists()


def test_networks_that_cannot_be_captured_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert _is_capturable(parse_name("densenet:L=10,k=4"), recompute=False)
        assert caplog.messages == []
        assert not _is_capturable(parse_name("densenet:L=10,k=4"), recompute=True)
        assert not _is_capturable(parse_name("resnet:L=8,stochastic_depth=0.5"), recompute=False)
    assert caplog.messages == [
        "the training steps are not captured as a CUDA graph: recomputation frees memory that a graph would keep",
        "the training steps are not captured as a CUDA graph: with stochastic depth each step runs other units",
    ]


# --- on a GPU --------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_gpu
@pytest.mark.parametrize(
    ("network", "kernels"), [("plain", "plain"), ("ref", "ref"), ("plain", "triton"), ("resnet", "plain")]
)
def test_captured_steps_equal_uncaptured_steps_bit_for_bit(
    network: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared under autocast, with dropout and with smaller batches in between."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    results, reference = (trained(make, network, "cuda", kernels=kernels) for make in (graphed_step, uncaptured_step))
    assert different(results, reference) == []


@needs_gpu
def test_graphed_run_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    data, plan = load_dataset("digits", subset=300, device="cuda"), make_recipe("fast", data_info("digits"), epochs=3)
    spec, options = parse_name(NETWORKS["plain"][0]), {"seed": (0, 0), "device": "cuda", "cuda_graph": True}
    whole = fit(spec, data, plan, **options)  # type: ignore[arg-type]
    fit(spec, data, plan, **options, folder=tmp_path, report=lambda epoch: epoch.epoch < 2)  # type: ignore[arg-type]
    resumed = fit(spec, data, plan, **options, folder=tmp_path)  # type: ignore[arg-type]
    assert resumed.weights_digest == whole.weights_digest
    assert resumed.run.norms == whole.run.norms
    eager = fit(spec, data, plan, seed=(0, 0), device="cuda")
    assert resumed.run.curve[0].train_loss == pytest.approx(eager.run.curve[0].train_loss, rel=0.05)
