"""Several processes that train one network: each takes its slice of every batch, and all end a step with equal weights.

`fit` speaks to a `Group`; `ALONE`, a group of one, does nothing. NCCL connects processes on GPUs, gloo those on CPUs.

Batch norm is `SyncBatchNorm2d` below, on GPUs too, and not torch.nn.SyncBatchNorm. That one refuses CPU tensors; it is
no BatchNorm2d, so that recomputation would let it update its statistics twice; and under bf16 autocast a process whose
slice is empty sends bf16 where the others send float32 (read in torch 2.15's source, not run). So what the tests hold
on CPUs is what runs on GPUs.
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
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # all set: torchrun started this process
STATISTICS = (0, 2, 3)  # what a channel's statistics are over: images and pixels


@dataclass(frozen=True)
class Group:
    """The processes of one training, as one of them sees them. Every method must be called by all, in the same order.

    rank: from 0; the first one prints and writes.
    local_world: the processes on this host.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, of any shape; without gradient."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def max(self, value: int, device: str) -> int:
        if self.world == 1:
            return value
        largest = torch.tensor(value, device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

    def from_first(self, work: Callable[[], Result]) -> Result:
        """What `work()` gives in the first process; the others do not call it."""
        if self.world == 1:
            return work()
        box: list[Any] = [work() if self.is_first else None]
        dist.broadcast_object_list(box)
        return box[0]

    def after_first(self, work: Callable[[], Result]) -> Result:
        """`work()` in each host's first process, and then in its others: what it downloads or caches is made once. It
        may take longer than the others would wait for a collective."""
        if self.local_world == 1:
            return work()
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        place = [os.environ.get(key, "0") for key in ("TORCHELASTIC_RESTART_COUNT", "GROUP_RANK")]
        done = "/".join(["dnas", *place, "first is done"])
        if os.environ["LOCAL_RANK"] != "0":
            store.wait([done], timedelta(days=2))
            return work()
        result = work()
        store.set(done, "yes")
        return result

    def shared(self, net: nn.Module, device: str, some_unused: bool = False) -> nn.Module:
        """`net` such that a backward pass leaves in every process the mean over processes of the gradients.

        some_unused: a step may leave weights out, the same in every process.
        """
        if self.world == 1:
            return net
        devices = [torch.device(device)] if device.startswith("cuda") else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name that torch 2.15 wants is unknown to 2.11
            # The buffers are statistics, equal in all processes already.
            return DistributedDataParallel(
                net, device_ids=devices, broadcast_buffers=False, find_unused_parameters=some_unused
            )

    def synchronise_norms(self, net: nn.Module) -> None:
        """Makes the batch norms of `net`, in place, take their statistics over the slices of all processes."""
        if self.world == 1:
            return
        for parent in list(net.modules()):
            for name, norm in parent.named_children():
                if type(norm) is nn.BatchNorm2d:
                    setattr(parent, name, SyncBatchNorm2d.of(norm))

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


ALONE = Group()


def is_started_by_torchrun() -> bool:
    return all(key in os.environ for key in TORCHRUN)


def join_group(device: str) -> Group:
    """The group that torchrun's environment variables name; waits for all of it. device: `cpu` or `cuda:N`."""
    rank, world, local_world = (int(os.environ.get(key, "1")) for key in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        return ALONE
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # or whatever names no device would go to the first one
        dist.init_process_group("nccl", device_id=torch.device(device))
    else:
        dist.init_process_group("gloo")
    return Group(rank, world, local_world)


def is_loss_of_peer(error: BaseException) -> bool:
    """Whether `error` is NCCL's, gloo's or the store's word for another process that does not answer."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


# --- batch norm ----------------------------------------------------------------------------------------------------


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all processes: [N, C, H, W] -> [N, C, H, W], N its own slice's, 0 allowed.

    Outputs, gradients of x and running statistics are, to rounding, those of one BatchNorm2d on the whole batch; the
    gradients of weight and bias are this slice's part of the sum. In evaluation it is a BatchNorm2d.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SyncBatchNorm2d":
        """With the same parameters and buffers as `norm`, not copies."""
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
    """Mean [C], biased variance [C] and count [] of the values of each channel, over the x of all processes.

    Each sends its own mean and sum of squared deviations, which are merged as in Chan et al. 1979: no difference of
    large sums. All processes get the same bits.
    """
    channels, dtype = x.shape[1], _exact(x.dtype)
    own = torch.zeros(2 * channels + 1, dtype=dtype, device=x.device)
    size = x.numel() // channels
    if size:
        var, mean = torch.var_mean(x.to(dtype), STATISTICS, correction=0)
        own[:channels], own[channels:-1], own[-1] = mean, var * size, size
    flat = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(flat, own)
    every = flat.view(-1, len(own))
    means, squares, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, var, count


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class _Normalise(torch.autograd.Function):
    """Batch norm with given statistics, and the gradient that takes into account that they are those of the batch."""

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
        own = torch.stack([gradient.sum(STATISTICS), (gradient * normalised).sum(STATISTICS)])
        every = own.clone()
        dist.all_reduce(every)
        of_mean, of_scale = every / count
        gradient = gradient - of_mean.view(wide) - normalised * of_scale.view(wide)
        gradient = gradient * (weight * scale).view(wide)
        return gradient.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None, None, None
