"""Several processes that train one network.

Each process trains on a slice of every batch, and all end a step with equal weights. `fit` uses a `Group`; `ALONE` is a
group of one process and does nothing. NCCL connects processes on GPUs, and gloo those on CPUs.

Batch norm is `SyncBatchNorm2d` on every device instead of torch.nn.SyncBatchNorm. The latter refuses CPU tensors. It is
not a BatchNorm2d, so recomputation would update its statistics twice. Under bf16 autocast, a process with an empty
slice sends bf16 where the others send float32 (according to the source of torch 2.15, not run). With one
implementation, the tests on CPUs cover what runs on GPUs.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")
# torchrun sets all of these variables in the processes that it starts.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STATISTICS_DIMS = (0, 2, 3)  # a channel's statistics are taken over images and pixels


@dataclass(frozen=True)
class Group:
    """The processes that train one network. Every process must call the same methods in the same order.

    rank: Number of this process, from 0. The process of rank 0 prints and writes.
    world: Number of processes.
    local_world: Number of processes on this host.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor of any shape over the processes, without gradient."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def max(self, value: int, device: str) -> int:
        """Return the largest value over the processes."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work()`, which only the first process calls."""
        if self.world == 1:
            return work()
        box: list[Any] = [work() if self.is_first else None]
        dist.broadcast_object_list(box)
        return box[0]

    def after_first(self, work: Callable[[], Result]) -> Result:
        """Call `work()` in the first process of each host, and then in the others.

        Downloads and caches are thus written once. The work may take longer than the timeout of a collective operation.
        """
        if self.local_world == 1:
            return work()
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        attempt = [os.environ.get(key, "0") for key in ("TORCHELASTIC_RESTART_COUNT", "GROUP_RANK")]
        done = "/".join(["dnas", *attempt, "first is done"])
        if os.environ["LOCAL_RANK"] != "0":
            store.wait([done], timedelta(days=2))
            return work()
        result = work()
        store.set(done, "yes")
        return result

    def shared(self, net: nn.Module, device: str, some_unused: bool = False) -> nn.Module:
        """Wrap `net` so that a backward pass results in the mean gradients over processes.

        some_unused: A step may leave some weights unused, equally in every process.
        """
        if self.world == 1:
            return net
        devices = [torch.device(device)] if device.startswith("cuda") else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 lacks the new name that torch 2.15 suggests
            # The buffers are statistics that are already equal in all processes.
            return DistributedDataParallel(
                net, device_ids=devices, broadcast_buffers=False, find_unused_parameters=some_unused
            )

    def synchronise_norms(self, net: nn.Module) -> None:
        """Replace the batch norms of `net` in place by norms with statistics over the slices of all processes."""
        if self.world == 1:
            return
        for parent in list(net.modules()):
            for name, norm in parent.named_children():
                if type(norm) is nn.BatchNorm2d:
                    setattr(parent, name, SyncBatchNorm2d.of(norm))

    def leave(self) -> None:
        """End the communication of this group."""
        if self.world > 1:
            dist.destroy_process_group()


ALONE = Group()


def is_started_by_torchrun() -> bool:
    """Return whether torchrun, or `dnas.training.launch`, started this process."""
    return all(key in os.environ for key in TORCHRUN)


def join_group(device: str) -> Group:
    """Join the group of torchrun's environment variables, and wait for all its processes on `cpu` or `cuda:N`."""
    rank, world, local_world = (int(os.environ.get(key, "1")) for key in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        return ALONE
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # otherwise, calls without a device would use the first one
        dist.init_process_group("nccl", device_id=torch.device(device))
    else:
        dist.init_process_group("gloo")
    return Group(rank, world, local_world)


def is_loss_of_peer(error: BaseException) -> bool:
    """Return whether NCCL, gloo or the store reports that another process does not respond."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


# --- batch norm ----------------------------------------------------------------------------------------------------


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batch of all processes: [N, C, H, W] -> [N, C, H, W], where N may be 0.

    Outputs, gradients of x and running statistics equal those of one BatchNorm2d on the whole batch to rounding. The
    gradients of weight and bias are this slice's part of the sum. In evaluation mode it is a BatchNorm2d.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SyncBatchNorm2d":
        """Return a synchronised norm that shares the parameters and buffers of `norm`."""
        new = cls(norm.num_features, norm.eps, norm.momentum)
        new._parameters, new._buffers, new.training = norm._parameters, norm._buffers, norm.training
        return new

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            mean, var, count = batch_statistics(x)
            self.num_batches_tracked.add_(1)
            self.running_mean.mul_(1 - self.momentum).add_(mean, alpha=self.momentum)
            self.running_var.mul_(1 - self.momentum).add_(var * (count / (count - 1)), alpha=self.momentum)
        return _Normalise.apply(x, self.weight, self.bias, mean, var, count, self.eps)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and count [] of the values of each channel over the x of all processes.

    Each process sends its mean and its sum of squared deviations, which are merged as in Chan et al. 1979, without
    differences of large sums. All processes obtain the same bits.
    """
    channels, dtype = x.shape[1], _statistics_dtype(x.dtype)
    local = torch.zeros(2 * channels + 1, dtype=dtype, device=x.device)
    size = x.numel() // channels
    if size:
        var, mean = torch.var_mean(x.to(dtype), STATISTICS_DIMS, correction=0)
        local[:channels], local[channels:-1], local[-1] = mean, var * size, size
    gathered = local.new_empty(dist.get_world_size() * len(local))
    dist.all_gather_into_tensor(gathered, local)
    rows = gathered.view(-1, len(local))
    means, squares, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, var, count


def _statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class _Normalise(torch.autograd.Function):
    """Batch norm with given statistics, whose backward pass treats them as functions of the batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        wide, dtype = (1, -1, 1, 1), mean.dtype
        normalised = (x.to(dtype) - mean.view(wide)) * scale.view(wide)
        gradient = gradient.to(dtype)
        local = torch.stack([gradient.sum(STATISTICS_DIMS), (gradient * normalised).sum(STATISTICS_DIMS)])
        total = local.clone()
        dist.all_reduce(total)
        mean_term, scale_term = total / count
        gradient = gradient - mean_term.view(wide) - normalised * scale_term.view(wide)
        gradient = gradient * (weight * scale).view(wide)
        return gradient.to(x.dtype), local[1].to(weight.dtype), local[0].to(weight.dtype), None, None, None, None
