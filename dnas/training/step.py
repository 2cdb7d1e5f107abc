"""One training step: launched kernel by kernel, or captured as a CUDA graph.

A step of a small network consists of about a thousand kernels of a few microseconds each, and the host takes longer to
launch them than a GPU takes to run them. A CUDA graph is a recording of these launches that the host starts with one
call. It repeats them exactly, with the same addresses and the same scalar arguments. Each batch is therefore copied
into the recorded buffers, the learning rate is a tensor, momentum buffers exist before the first step, and nothing
inside a step reads a value back from the device. Random numbers advance from step to step, because torch passes the
position of its random stream to the graph.

No graph has been captured on a GPU yet. On the CPU, which has no graphs, `GraphedStep` does everything else and runs
the same steps one by one; that part is tested.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import SGD, sgd

from dnas.errors import InputError

WARM_UP_STEPS = 3  # before the capture, as torch's documentation recommends
# (logits [N, classes], y [N] or [N, classes], images in the whole batch) -> loss []
Criterion = Callable[[Tensor, Tensor, int], Tensor]


def count_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Return the number of wrong images for labels `y` [N], or of wrong labels for `y` [N, classes]; int64 []."""
    return ((logits > 0) != y).sum() if y.ndim == 2 else (logits.argmax(1) != y).sum()


def autocast(device: str) -> AbstractContextManager[Any]:
    """Return the autocast context of a device: bf16 on CUDA, full precision on a CPU."""
    # bf16 is hundreds of times slower on a CPU without bf16 units. It needs no gradient scaling.
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.startswith("cuda") else nullcontext()


class Step:
    """Forward pass, backward pass and optimiser update on one batch.

    Attributes (tensors [] on the device, which no step waits for):
        loss: Loss of the last step.
        total_loss, wrong: Sums of the loss and of `count_wrong` over the images since `begin_epoch`.

    The gradients of a step remain available until the next one. The loss is multiplied by `scale` before the backward
    pass.
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
        """Run one step.

        Args:
            x: [N, C, H, W], this process's slice of the images.
            y: [N], their labels, or [N, classes] for several labels per image.
            size: Images in the whole batch.
            rate: Learning rate.
        """
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
        self.wrong += count_wrong(logits.detach(), y)

    def _update(self) -> None:
        self.optimizer.step()


class GraphedStep(Step):
    """A `Step` that runs batches of `batch_size` images as one CUDA graph, captured at the first such batch.

    A smaller batch, the last of an epoch, is launched kernel by kernel. The update is torch's fused SGD, which reads
    the learning rate from the device and equals the update of `Step` to rounding. Both leave the same optimiser state,
    so either can resume a run of the other. A checkpoint must be loaded before the first batch, because the graph
    refers to the tensors that it was captured with. The graph owns the memory of a step as long as it exists;
    evaluation and smaller batches allocate additional memory.
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
            self._repeat = self._capture()
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
        """Return the momentum buffers. They start as zeros, so that the first step sets them to the gradient."""
        state = self.optimizer.state
        for weight in weights:
            if state[weight].get("momentum_buffer") is None:
                state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return [state[weight]["momentum_buffer"] for weight in weights]

    def _capture(self) -> Callable[[], None]:
        """Return a function that repeats a step on the buffers.

        Warm-up steps on a separate stream create everything that is created at first use (cuDNN's choices, compiled
        kernels, tables of channels), which a capture must not do. Their effects on weights and random streams are
        undone.
        """

        def run() -> None:
            self._run(self._x, self._y, self.batch_size)

        weights = [weight for weight in self.net.parameters() if weight.requires_grad]
        (options,) = self.optimizer.param_groups
        lasting = [*self.net.parameters(), *self.net.buffers(), self.loss, self.total_loss, self.wrong]
        if options["momentum"]:
            lasting += [momentum for momentum in self._momenta(weights) if momentum is not None]
        with unchanged(lasting, self.device), _side_stream(self.device):
            for _ in range(WARM_UP_STEPS):
                run()
        self.optimizer.zero_grad(set_to_none=True)  # so that the graph allocates its own gradients
        if not self.device.startswith("cuda"):
            return run
        graph = torch.cuda.CUDAGraph()
        # Other threads may call CUDA during the capture: one of them may be pinning the next batch.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"),
        ):
            run()
        gradients = [weight.grad for weight in weights]

        def replay() -> None:
            graph.replay()
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient  # a smaller batch may have replaced it

        return replay


def check_cuda_graph(device: str, processes: int = 1, compiled: bool = False) -> None:
    """Raise `InputError` if a run on `device` cannot use CUDA graphs."""
    if device == "cpu":
        raise InputError("--cuda-graph requires a CUDA device, but this run is on the CPU; leave it out.")
    if processes > 1:
        raise InputError(f"--cuda-graph requires a single GPU, but this run uses {processes}; leave it out.")
    if compiled:
        raise InputError("--cuda-graph cannot capture a network compiled by --compile; give only one of the two.")


@contextmanager
def unchanged(tensors: Sequence[Tensor], device: str) -> Iterator[None]:
    """Restore `tensors`, and torch's random streams on the CPU and `device`, when the context ends."""
    copies = [tensor.detach().clone() for tensor in tensors]
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        yield
    with torch.no_grad():
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)


@contextmanager
def _side_stream(device: str) -> Iterator[None]:
    """Run the launches of the context on another stream, in order with the launches before and after it."""
    if not device.startswith("cuda"):
        yield
        return
    with torch.cuda.device(device):
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield
        current.wait_stream(stream)
