"""A training step, and all of a captured one that needs no GPU: it asks the device for nothing, its first steps leave
no trace, and it is the plain step to rounding. The capture itself is tested on a GPU, where there is one."""

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


class Asked(TorchDispatchMode):
    """`calls` are the operations inside that wait for the device, or bring it numbers of the host: what no graph can
    hold."""

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


def plainly(net: nn.Module, optimizer: torch.optim.SGD, criterion: Any, device: str) -> Step:
    return Step(net, optimizer, criterion, device)


def graphed(net: nn.Module, optimizer: torch.optim.SGD, criterion: Any, device: str) -> Step:
    return GraphedStep(net, optimizer, criterion, device, SIZES[0])


def uncaptured(net: nn.Module, optimizer: torch.optim.SGD, criterion: Any, device: str) -> Step:
    """A graph for batches that never come."""
    return GraphedStep(net, optimizer, criterion, device, SIZES[0] + 1)


def make_step(make: Make, network: str, device: str = "cpu", momentum: float = 0.9, kernels: str | None = None) -> Step:
    name, own = NETWORKS[network]
    torch.manual_seed(1)
    net = build(parse_name(name)).to(device).to(memory_format=torch.channels_last)
    use_kernels(net, kernels or own)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=momentum, nesterov=momentum > 0, weight_decay=1e-3)
    return make(net, optimizer, lambda logits, y, size: F.cross_entropy(logits, y, label_smoothing=0.1), device)


def batches(device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    given = torch.Generator().manual_seed(2)
    pairs = [(torch.randn(n, 1, 8, 8, generator=given), torch.randint(10, (n,), generator=given)) for n in SIZES]
    return [(x.to(device), y.to(device)) for x, y in pairs]


def trained(make: Make, network: str, device: str = "cpu", **options: Any) -> dict[str, Tensor]:
    """Everything that some steps leave behind, and the gradients of each."""
    step = make_step(make, network, device, **options)
    found: dict[str, Tensor] = {}
    step.begin_epoch()
    for number, ((x, y), rate) in enumerate(zip(batches(device), RATES, strict=True)):
        step(x, y, len(y), rate)
        for name, weight in step.net.named_parameters():
            assert weight.grad is not None
            found[f"gradient {number} {name}"] = weight.grad.clone()
        found[f"loss {number}"] = step.loss.clone()
    found |= step.net.state_dict()
    for name, weight in step.net.named_parameters():
        found |= {f"{key} {name}": value for key, value in step.optimizer.state[weight].items() if value is not None}
    found |= {"total": step.total_loss, "wrong": step.wrong, "random": torch.get_rng_state()}
    if device != "cpu":
        found["random there"] = torch.cuda.get_rng_state(device)
    return found


def different(found: dict[str, Tensor], truth: dict[str, Tensor]) -> list[str]:
    assert found.keys() == truth.keys()
    return [name for name in truth if not torch.equal(found[name], truth[name])]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_plain_step_to_rounding(network: str, momentum: float) -> None:
    found, truth = (trained(make, network, momentum=momentum) for make in (graphed, plainly))
    assert found.keys() == truth.keys()
    for name in truth:
        torch.testing.assert_close(found[name], truth[name], rtol=1e-4, atol=1e-5, msg=name)
    counts = [name for name in truth if name.endswith("num_batches_tracked") or name.startswith(("wrong", "random"))]
    assert {name: found[name].tolist() for name in counts} == {name: truth[name].tolist() for name in counts}


@pytest.mark.parametrize("network", NETWORKS)
def test_its_first_steps_leave_no_trace(network: str) -> None:
    """Weights, statistics, momentum, sums and random numbers are, bit for bit, those of steps without a warm-up."""
    assert different(trained(graphed, network), trained(uncaptured, network)) == []


def test_what_is_done_inside_is_undone() -> None:
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
def test_a_step_asks_the_device_for_nothing(network: str) -> None:
    """But for what the first one makes, tables of channels."""
    step = make_step(graphed, network)
    step.begin_epoch()
    (x, y), *_ = batches()
    step(x, y, len(y), 0.1)
    with Asked() as asked:
        step(x, y, len(y), 0.05)
    assert asked.calls == []


def test_the_watch_sees_what_asks() -> None:
    x, rows = torch.ones(3), torch.tensor([0, 2])
    with Asked() as asked:
        x.sum().item()
        torch.tensor([1.0])
        x[x > 0]
        x[rows] = x[rows] + 1
    assert asked.calls == ["_local_scalar_dense", "lift_fresh", "index"]


def test_a_run_may_be_gone_on_with_by_either() -> None:
    """The optimizer's state is that of a plain step: with a rate that is a number, and torch's own choice of loops."""
    states = []
    for make in (plainly, graphed):
        step = make_step(make, "plain")
        step.begin_epoch()
        step(*batches()[0], SIZES[0], 0.1)
        states.append(step.optimizer.state_dict())
    plain, of_graph = states
    assert plain["state"].keys() == of_graph["state"].keys()
    assert {**plain["param_groups"][0], "lr": 1.0} == {**of_graph["param_groups"][0], "lr": 1.0}
    assert isinstance(of_graph["param_groups"][0]["lr"], float)


# --- where it cannot be --------------------------------------------------------------------------------------------


def test_where_there_can_be_no_graph() -> None:
    check_cuda_graph("cuda:1")
    with pytest.raises(InputError, match="is for a CUDA device, and this training is on the CPU; leave it out"):
        check_cuda_graph("cpu")
    with pytest.raises(InputError, match="is for one GPU, and this training is on 4"):
        check_cuda_graph("cuda", processes=4)
    with pytest.raises(InputError, match="not what --compile makes of it; give one of them"):
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
def test_one_line_and_status_2_on_the_cpu(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu", "--cuda-graph"]) == 2
    said = capsys.readouterr().err
    assert said == "dnas: --cuda-graph is for a CUDA device, and this training is on the CPU; leave it out.\n"
    assert not (tmp_path / "studies").exists()


def test_what_is_not_captured_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert _is_capturable(parse_name("densenet:L=10,k=4"), recompute=False)
        assert caplog.messages == []
        assert not _is_capturable(parse_name("densenet:L=10,k=4"), recompute=True)
        assert not _is_capturable(parse_name("resnet:L=8,stochastic_depth=0.5"), recompute=False)
    assert caplog.messages == [
        "the training steps are not captured as a CUDA graph: memory is short, and a graph keeps its own",
        "the training steps are not captured as a CUDA graph: with stochastic depth each step runs other units",
    ]


# --- on a GPU --------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@needs_gpu
@pytest.mark.parametrize(
    ("network", "kernels"), [("plain", "plain"), ("ref", "ref"), ("plain", "triton"), ("resnet", "plain")]
)
def test_a_graph_is_the_steps_bit_for_bit(network: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same steps, captured and not, under autocast, with dropout and smaller batches in between."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    found, truth = (trained(make, network, "cuda", kernels=kernels) for make in (graphed, uncaptured))
    assert different(found, truth) == []


@needs_gpu
def test_a_graphed_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
