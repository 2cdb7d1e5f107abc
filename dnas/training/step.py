"""One training step: launch by launch, or captured as a CUDA graph.

A step of a small network is about a thousand kernels of some microseconds each, and the host takes longer to launch
them than a GPU to run them. A CUDA graph is the list of these launches, recorded once, which the host then starts with
one call. It repeats them to the letter, at the same addresses, with the same numbers. So each batch is copied into the
buffers that were recorded, the learning rate is a tensor, momentum is there before the first step, and nothing inside a
step asks the device for a value. Random numbers go on from step to step: torch tells a graph where its stream stands.

No graph has been captured on a GPU yet. What needs none is tested: on the CPU, which has no graphs, `GraphedStep` does
all the rest, and takes the same steps one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import SGD, sgd

from dnas.errors import InputError

WARM_UP = 3  # steps before the capture, as torch's documentation has it
Criterion = Callable[
    [Tensor, Tensor, int], Tensor
]  # (logits [N, classes], y [N], images in the whole batch) -> loss []


def autocast(device: str) -> AbstractContextManager[Any]:
    # bf16 on a CPU without such units is hundreds of times slower; bf16 needs no gradient scaling.
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.startswith("cuda") else nullcontext()


class Step:
    """Forward, backward and the optimiser's update on one batch.

    loss: [], of the last step. total_loss, wrong: [], sums over the images since `begin_epoch`. They stay on the
    device, and nobody waits for them here. The gradients of a step are there until the next.

    scale: what the loss is multiplied by before its gradient is taken.
    """

    def __init__(self, net: nn.Module, optimizer: SGD, criterion: Criterion, device: str, scale: float = 1.0) -> None:
        self.net, self.optimizer, self.criterion, self.device, self.scale = net, optimizer, criterion, device, scale
        self.loss = torch.zeros((), device=device)
        self.total_loss = torch.zeros((), device=device)
        self.wrong = torch.zeros((), device=device, dtype=torch.long)

    def begin_epoch(self) -> None:
        self.net.train()
        self.total_loss.zero_()
        self.wrong.zero_()

    def __call__(self, x: Tensor, y: Tensor, size: int, rate: float) -> None:
        """x [N, C, H, W], y [N]: this process's slice of a batch of `size` images. rate: the learning rate."""
        for options in self.optimizer.param_groups:
            options["lr"] = rate
        self._run(x.contiguous(memory_format=torch.channels_last), y, size)

    def _run(self, x: Tensor, y: Tensor, size: int) -> None:
        with autocast(self.device):
            logits = self.net(x)
            loss = self.criterion(logits, y, size)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.scale).backward()
        self._update()
        self.loss.copy_(loss.detach())
        self.total_loss += self.loss * size
        self.wrong += (logits.detach().argmax(1) != y).sum()

    def _update(self) -> None:
        self.optimizer.step()


class GraphedStep(Step):
    """The same on batches of `batch_size` images by one CUDA graph, captured at the first of them; smaller batches, the
    last of an epoch, launch by launch.

    The update is torch's fused SGD, the one that takes its rate from the device: the same as `Step`'s to rounding. The
    optimizer's state is as `Step` leaves it, so that a run may be gone on with by either. A checkpoint is loaded before
    the first batch, or the graph would know other tensors. As long as it lives, it keeps for itself the memory that a
    step needs, and the smaller batches' steps and the evaluation take theirs beside it.
    """

    def __init__(self, net: nn.Module, optimizer: SGD, criterion: Criterion, device: str, batch_size: int) -> None:
        super().__init__(net, optimizer, criterion, device)
        self.batch_size = batch_size
        self._rate = torch.zeros((), device=device)
        self._repeat: Callable[[], None] | None = None

    def __call__(self, x: Tensor, y: Tensor, size: int, rate: float) -> None:
        self._rate.fill_(rate)
        if len(y) != self.batch_size:
            self._run(x.contiguous(memory_format=torch.channels_last), y, size)
            return
        if self._repeat is None:
            self._x, self._y = torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(y)
        self._x.copy_(x)
        self._y.copy_(y)
        if self._repeat is None:
            self._repeat = self._captured()
        self._repeat()

    def _update(self) -> None:
        (options,) = self.optimizer.param_groups
        weights = [weight for weight in options["params"] if weight.grad is not None]
        with torch.no_grad():
            sgd(
                weights,
                [weight.grad for weight in weights],
                self._momenta(weights) if options["momentum"] else [],
                lr=self._rate,
                weight_decay=options["weight_decay"],
                momentum=options["momentum"],
                dampening=options["dampening"],
                nesterov=options["nesterov"],
                maximize=options["maximize"],
                fused=True,
            )

    def _momenta(self, weights: Sequence[Tensor]) -> list[Tensor | None]:
        """Of a first step zeros, which make the momentum the gradient, as the optimizer does without them."""
        state = self.optimizer.state
        for weight in weights:
            if state[weight].get("momentum_buffer") is None:
                state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return [state[weight]["momentum_buffer"] for weight in weights]

    def _captured(self) -> Callable[[], None]:
        """What repeats a step on the buffers.

        The first few, on a stream of their own, make what is made at first use (cuDNN's choices, compiled kernels,
        tables of channels), and leave no trace: a capture may do none of it, and runs nothing.
        """

        def run() -> None:
            self._run(self._x, self._y, self.batch_size)

        weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        (options,) = self.optimizer.param_groups
        lasting = [*self.net.parameters(), *self.net.buffers(), self.loss, self.total_loss, self.wrong]
        if options["momentum"]:
            lasting += [momentum for momentum in self._momenta(weights) if momentum is not None]
        with unchanged(lasting, self.device), _side_stream(self.device):
            for _ in range(WARM_UP):
                run()
        self.optimizer.zero_grad(set_to_none=True)  # so that the graph makes its own
        if not self.device.startswith("cuda"):
            return run
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on as they like: one of them may be pinning the next batch.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"),
        ):
            run()
        gradients = [weight.grad for weight in weights]

        def replay() -> None:
            graph.replay()
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient  # a smaller batch's stood there

        return replay


def check_cuda_graph(device: str, processes: int = 1, compiled: bool = False) -> None:
    """`InputError` where a training on `device` cannot be one of CUDA graphs."""
    if device == "cpu":
        raise InputError("--cuda-graph is for a CUDA device, and this training is on the CPU; leave it out.")
    if processes > 1:
        raise InputError(f"--cuda-graph is for one GPU, and this training is on {processes}; leave it out.")
    if compiled:
        raise InputError(
            "--cuda-graph captures the network as it is, not what --compile makes of it; give one of them."
        )


@contextmanager
def unchanged(tensors: Sequence[Tensor], device: str) -> Iterator[None]:
    """What is done inside leaves `tensors`, and torch's random streams on the CPU and `device`, as they were."""
    before = [tensor.detach().clone() for tensor in tensors]
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        yield
    with torch.no_grad():
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)


@contextmanager
def _side_stream(device: str) -> Iterator[None]:
    """What is launched inside runs after all before it, and before all after it, on another stream."""
    if not device.startswith("cuda"):
        yield
        return
    with torch.cuda.device(device):
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield
        current.wait_stream(stream)
