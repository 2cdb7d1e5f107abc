"""Training one network: batches in, a curve out, and a checkpoint at each epoch from which it goes on bit for bit.

Training knows no tuner: `fit(..., report)` calls `report(epoch)` after each epoch, and False means stop.
"""

import csv
import ctypes
import hashlib
import io
import logging
import math
import resource
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnas.arch import DenseNetSpec, ResNetSpec, Spec, spec_from_dict
from dnas.data import Dataset
from dnas.distributed import ALONE, Group
from dnas.errors import InputError
from dnas.io import remove_torn, write_atomic
from dnas.nn import build, use_kernels
from dnas.nn.norms import GRADIENT_STEPS, GradientNorms, Norms, measure_norms
from dnas.recipe import Recipe, learning_rate
from dnas.step import Criterion, GraphedStep, Step, autocast, check_cuda_graph

CHECKPOINT_FORMAT = "dnas-checkpoint-1"
EVALUATION_BATCH = 500  # at most
LATENCY_RUNS, LATENCY_SECONDS, LATENCY_WARM_UP = 30, 0.5, 5  # the timed runs end with whichever comes first
STREAMS = ("initialisation", "data", "dropout")  # data: the order of the images, then their augmentation

log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """The loss is not a finite number: the run cannot recover."""


@dataclass(frozen=True)
class Epoch:
    """One row of a curve. `epoch` counts from 1; errors are fractions, losses mean cross entropy in nats; `train_*` are
    means over the epoch's steps, as they were seen; `val_*` are None where there is no validation part."""

    epoch: int
    train_loss: float
    train_error: float
    val_loss: float | None
    val_error: float | None
    learning_rate: float
    seconds: float


@dataclass
class Run:
    """A network and all that its training needs to go on: what a checkpoint holds."""

    spec: Spec
    recipe: Recipe
    data: dict[str, Any]  # Dataset.describe()
    seed: tuple[int, int]
    net: nn.Module
    curve: list[Epoch] = field(default_factory=list)
    norms: list[Norms] = field(default_factory=list)  # the first is of the untrained network
    seconds: float = 0.0


@dataclass(frozen=True)
class Fit:
    """How a training ended. `finished` is False where `report` stopped it."""

    run: Run
    finished: bool
    weights_digest: str
    peak_memory_bytes: int


def stream_seed(seed: int, number: int, stream: str, *part: int) -> int:
    """The seed of one of a run's `STREAMS`, or of a part of it; runs with the same `seed` and `number` share all,
    whatever their spec."""
    words = np.random.SeedSequence([seed, number, STREAMS.index(stream), *part]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def fit(
    spec: Spec,
    data: Dataset,
    recipe: Recipe,
    *,
    seed: tuple[int, int],
    device: str = "cpu",
    folder: Path | None = None,
    compile_net: bool = False,
    cuda_graph: bool = False,
    kernels: str = "plain",
    recompute: bool = False,
    group: Group = ALONE,
    report: Callable[[Epoch], bool] = lambda epoch: True,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    guard: Callable[[], None] = lambda: None,
) -> Fit:
    """Trains `spec` from `seed = (study seed, trial number)`, or goes on from `folder`'s checkpoint where it has one.

    folder: gets checkpoint.pt, curve.csv and norms.npz, each replaced after every epoch; None keeps nothing.
    cuda_graph: on one GPU, each step is one CUDA graph (`dnas.step.GraphedStep`): the same run to rounding. Where the
        network cannot be captured the log says why, and its steps are launched one kernel at a time. It has not been
        run on a GPU yet.
    kernels: what runs a DenseNet's dense blocks (`dnas.nn.DenseNet`). Where this machine has not got them the log says
        why, and the modules do. Other kernels are the same run to rounding, and not bit for bit.
    recompute: activations are worked out again in the backward pass: a fraction of the memory, 15 to 50% more time on a
        CPU, and the same run, bit for bit. A run may be gone on with either way. The network is then neither compiled
        nor captured.
    group: the processes that train it together; every one calls `fit` with the same arguments and its own device. A
        batch is that of the recipe, sliced; the run is that of one process to rounding, but for dropout, whose masks
        depend on the number of processes. It may be gone on with by any number. Only the first writes and reports.
    report: called once an epoch, for those before a resume too; False ends the training.
    on_step: called after each step with the steps done and the total of this epoch.
    guard: called before anything in `folder` is changed; what it raises ends the training.

    Raises `Diverged` as soon as the loss is not finite, and `InputError` where the checkpoint is of another run, or
    `cuda_graph` not for this device. On the CPU the result depends on nothing but the arguments and the number of
    threads, however often it was interrupted.
    """
    if cuda_graph:
        check_cuda_graph(device, group.world, compile_net)
    if device == "cpu":
        keep_memory()
    torch.manual_seed(stream_seed(*seed, "initialisation"))
    run = Run(spec, recipe, data.describe(), seed, build(spec))
    # The paper's layouts are the same arithmetic; oneDNN's and cuDNN's 1×1 convolutions are several times faster so.
    net = run.net.to(device).to(memory_format=torch.channels_last)
    net.recompute = recompute  # type: ignore[assignment]
    use_kernels(net, kernels)
    group.synchronise_norms(net)
    data = replace(data, share=(group.rank, group.world))
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
    generator = torch.Generator().manual_seed(stream_seed(*seed, "data"))
    torch.manual_seed(stream_seed(*seed, "dropout"))

    def begin() -> dict[str, Any] | None:
        if folder is not None:
            guard()
            remove_torn(folder)
        if folder is None or not (folder / "checkpoint.pt").exists():
            return None
        return check_same_run(folder / "checkpoint.pt", spec, recipe, data, seed)

    content = group.from_first(begin)
    home = folder if group.is_first else None
    if content is not None:
        _restore(run, optimizer, generator, content)
        if home is not None:  # a kill may have come between the checkpoint and these
            _write_history(home, run, guard)
    else:
        run.norms.append(measure_norms(net, spec))
    go_on = True
    for epoch in run.curve:
        go_on = go_on and group.from_first(partial(report, epoch))
    if device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True  # every batch but the last of an epoch has one shape
        torch.cuda.reset_peak_memory_stats(device)
    forward: nn.Module = torch.compile(net) if compile_net and not recompute else net  # type: ignore[assignment]
    trained = group.shared(forward, device, some_unused=isinstance(spec, ResNetSpec) and spec.stochastic_depth > 0)
    criterion = _criterion(recipe, group)
    if cuda_graph and _is_capturable(spec, recompute):
        step: Step = GraphedStep(trained, optimizer, criterion, device, recipe.batch_size)
    else:
        step = Step(trained, optimizer, criterion, device, scale=group.world)
    while go_on and len(run.curve) < recipe.epochs:
        started = time.monotonic()
        # Masks of its own, and none to be kept: the checkpoint holds the first one's stream. The units that stochastic
        # depth drops are the same in all processes: without masks, all draw alike from the stream that all began with.
        if not group.is_first and isinstance(spec, DenseNetSpec):
            torch.manual_seed(stream_seed(*seed, "dropout", group.rank, len(run.curve)))
        gradients = GradientNorms(net.parameters())
        loss, error, rate = _train_epoch(step, data, recipe, len(run.curve), generator, group, on_step, gradients)
        val_loss, val_error = None, None
        if data.val_size:
            size = -(-recipe.batch_size // group.world)
            val_loss, val_error = evaluate(forward, data, "val", device, size, group)
        if val_loss is not None and not math.isfinite(val_loss):
            raise Diverged(f"the validation loss is {val_loss} after epoch {len(run.curve) + 1}.")
        seconds = time.monotonic() - started
        run.curve.append(Epoch(len(run.curve) + 1, loss, error, val_loss, val_error, rate, seconds))
        run.norms.append(measure_norms(net, spec, gradients.value()))
        run.seconds += seconds
        if home is not None:
            guard()
            write_checkpoint(home / "checkpoint.pt", run, optimizer, generator)
            _write_history(home, run, guard)
        go_on = group.from_first(partial(report, run.curve[-1]))
    peak = group.max(peak_memory_bytes(device), device)
    return Fit(run, len(run.curve) == recipe.epochs, weights_digest(net), peak)


def keep_memory() -> None:
    """From now on this process keeps the CPU memory that it has once got: every step asks for the same again, and what
    was given back costs a page fault for every 4 KB, up to a fifth of a step. For glibc; does nothing elsewhere.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: in malloc.h
            mallopt(threshold, 1 << 30)


def _is_capturable(spec: Spec, recompute: bool) -> bool:
    """Whether a step can be a CUDA graph; where not, the log says why."""
    reason = ""
    if recompute:
        reason = "memory is short, and a graph keeps its own"
    elif isinstance(spec, ResNetSpec) and spec.stochastic_depth:
        reason = "with stochastic depth each step runs other units"
    if reason:
        log.warning("the training steps are not captured as a CUDA graph: %s", reason)
    return not reason


def _train_epoch(
    step: Step,
    data: Dataset,
    recipe: Recipe,
    epoch: int,
    generator: torch.Generator,
    group: Group,
    on_step: Callable[[int, int], None],
    gradients: GradientNorms,
) -> tuple[float, float, float]:
    """Mean loss, mean error and last learning rate of one pass over the training part; `gradients` gets its last."""
    step.begin_epoch()
    steps = data.steps_per_epoch(recipe.batch_size)
    # A look at the loss waits for the device: every step on a CPU, where it is free, else now and then.
    look = 1 if step.device == "cpu" else 50
    seen, rate = 0, 0.0
    for number, (x, y) in enumerate(data.train_batches(recipe.batch_size, generator)):
        size = min(recipe.batch_size, data.train_size - number * recipe.batch_size)  # y may be a slice of it
        rate = learning_rate(recipe, epoch * steps + number, steps)
        step(x, y, size, rate)
        if number % look == 0 and not math.isfinite(now := group.sum(step.loss).item()):
            raise Diverged(f"the training loss is {now} at step {number + 1} of epoch {epoch + 1}.")
        if number >= steps - GRADIENT_STEPS:
            gradients.add()
        seen += size
        on_step(number + 1, steps)
    mean_loss = group.sum(step.total_loss).item() / seen
    if not math.isfinite(mean_loss):
        raise Diverged(f"the training loss is {mean_loss} in epoch {epoch + 1}.")
    return mean_loss, group.sum(step.wrong).item() / seen, rate


def _criterion(recipe: Recipe, group: Group) -> Criterion:
    """This process's part of the mean over the batch: of slices of unequal sizes too."""
    smoothing = recipe.label_smoothing
    if group.world == 1:
        return lambda logits, y, size: F.cross_entropy(logits, y, label_smoothing=smoothing)
    return lambda logits, y, size: F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="sum") / size


@torch.no_grad()
def evaluate(
    net: nn.Module,
    data: Dataset,
    part: str,
    device: str = "cpu",
    batch_size: int = EVALUATION_BATCH,
    group: Group = ALONE,
) -> tuple[float, float]:
    """Mean cross entropy (nats) and error (fraction) on a part of the data: `train`, `val` or `test`. In batches of the
    size that it was trained with, a network needs less memory than a training step does.

    group: processes whose `data` are shares of the same; all get the result of the whole.
    """
    net.eval()
    loss, wrong, seen = 0.0, 0, 0
    for x, y in data.batches(part, min(batch_size, EVALUATION_BATCH)):  # type: ignore[arg-type]
        with autocast(device):
            logits = net(x.contiguous(memory_format=torch.channels_last))
        loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        wrong += int((logits.argmax(1) != y).sum().item())
        seen += len(y)
    if group.world > 1:
        loss, wrong, seen = group.sum(torch.tensor([loss, wrong, seen], dtype=torch.float64, device=device)).tolist()
    return loss / seen, wrong / seen


def measure_latency(net: nn.Module, spec: Spec, device: str, threads: int) -> float:
    """Seconds of a forward pass of one image, as `evaluate` runs it: the median of up to 30 on `device`, which `net` is
    moved to; on a CPU with `threads` threads. No random stream and no weight or statistic of `net` is touched."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, net.training
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # as in `fit`: the warm-up chooses the kernels
    net = net.to(device).to(memory_format=torch.channels_last).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, spec.in_channels, spec.image_size, spec.image_size, generator=generator)
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    try:
        with torch.no_grad(), autocast(device):
            for _ in range(LATENCY_WARM_UP):
                net(x)
            while len(times) < LATENCY_RUNS and sum(times) < LATENCY_SECONDS:
                _finish_work(device)
                started = time.perf_counter()
                net(x)
                _finish_work(device)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]
        net.train(before[2])
    return statistics.median(times)


def _finish_work(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def weights_digest(net: nn.Module) -> str:
    """sha256 of every parameter and buffer: equal just when two networks are equal bit for bit."""
    return digest_of_weights(net.state_dict())


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """`weights_digest` of a state dict, such as a checkpoint's `weights`."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_device(device: str) -> str:
    """`device`, or for `auto` CUDA where there is one; `InputError` where it is not on this machine."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        raise InputError(f"there is no device {device!r}; give cpu, cuda or cuda:0.") from None
    if kind not in ("cpu", "cuda"):
        raise InputError(f"dnas trains on cpu and cuda, but got --device {device}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: torch {torch.__version__} finds no CUDA device here; use --device cpu.")
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}.")
    return device


def list_devices(device: str) -> tuple[str, ...]:
    """The devices that `device` names, checked by `check_device`: `cuda`, and `auto` where there is one, are every GPU
    of this machine."""
    device = check_device(device)
    if device == "cuda":
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return (device,)


OUT_OF_MEMORY = (  # in the messages of RuntimeErrors and OSErrors that have no type of their own
    "out of memory",  # CUDA's
    "can't allocate memory",  # torch's on a CPU, and oneDNN's
    "not enough memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, ..._HOST_...
    "bad_alloc",
    "Cannot allocate memory",  # the operating system's
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's, CUDA's, cuDNN's, the system's or Python's word for a full memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in OUT_OF_MEMORY)


def peak_memory_bytes(device: str) -> int:
    """On CUDA the most that tensors held; on a CPU the most that this process held, torch itself included."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- files -------------------------------------------------------------------------------------------------------


def _write_history(folder: Path, run: Run, guard: Callable[[], None]) -> None:
    guard()
    write_curve(folder / "curve.csv", run.curve)
    guard()
    write_norms(folder / "norms.npz", run)


def write_curve(path: Path, curve: list[Epoch]) -> None:
    """A row an epoch; the columns are the fields of `Epoch`, None an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(asdict(curve[0])))
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in curve)
    write_atomic(path, text.getvalue())


def write_norms(path: Path, run: Run) -> None:
    """`names` [P], `numel` [P], `l2` [epochs + 1, P], `pairs` [Q, 2] (source, consumer), `reuse` [epochs + 1, Q]: see
    `dnas.nn.norms.Norms`; the first row is of the untrained network. `l1` and `gradient` are like `l2`, and not a
    number where they were not measured."""
    sizes = {name: parameter.numel() for name, parameter in run.net.named_parameters()}
    plain = _norms_to_plain(run.norms)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array(plain["names"]),
        numel=np.array([sizes[name] for name in plain["names"]]),
        pairs=np.array(plain["pairs"], dtype=str).reshape(-1, 2),
        **{key: plain[key].numpy() for key in ("l2", "reuse", "l1", "gradient")},
    )
    write_atomic(path, buffer.getvalue())


# --- checkpoints -------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, run: Run, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """Writes all that `fit` needs to go on: tensors and plain values only, in one atomic step."""
    random = {"data": generator.get_state(), "global": torch.get_rng_state()}
    if next(run.net.parameters()).is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(next(run.net.parameters()).device)
    content = {
        "format": CHECKPOINT_FORMAT,
        "spec": run.spec.to_dict(),
        "recipe": run.recipe.to_dict(),
        "data": run.data,
        "seed": list(run.seed),
        "curve": [asdict(epoch) for epoch in run.curve],
        "norms": _norms_to_plain(run.norms),
        "seconds": run.seconds,
        "weights": {name: tensor.detach().cpu() for name, tensor in run.net.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "random": random,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours. `InputError` where the file is missing, cut short, or anything else; a
    pickle that would run code is refused, never run."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a dnas checkpoint, or it is cut short ({path.stat().st_size:,} bytes).")
    try:
        # torch does not look at the archive's checksums: a flipped bit would be loaded as a weight.
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        content = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except Exception:  # a damaged archive, or a pickle that is not ours, can end in any of a dozen kinds
        content = None
    if content is None:
        raise InputError(f"{path} is not a dnas checkpoint, or it is damaged.")
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path} is not a dnas checkpoint ({CHECKPOINT_FORMAT}).")
    return content


def check_same_run(path: Path, spec: Spec, recipe: Recipe, data: Dataset, seed: tuple[int, int]) -> dict[str, Any]:
    """The content of the checkpoint at `path`; `InputError` with what differs where it is of another run."""
    content, facts = read_checkpoint(path), data.describe()
    before = {**content["spec"], **content["recipe"], "seed": tuple(content["seed"])}
    here = {**spec.to_dict(), **recipe.to_dict(), "seed": tuple(seed)}
    for key in ("fingerprint", "subset", "split_seed", "augmentation", "train_size"):
        before[key], here[key] = content["data"][key], facts[key]
    changed = [f"{key}={before.get(key)} (now {here[key]})" for key in here if before.get(key) != here[key]]
    if changed:
        raise InputError(
            f"{path} is of another run, with {', '.join(changed)}; name another folder, or remove that one."
        )
    return content


def load_run(path: Path) -> Run:
    """The run that a checkpoint holds: its network with its weights, in evaluation mode on the CPU."""
    content = read_checkpoint(path)
    run = Run(
        spec_from_dict(content["spec"]),
        Recipe.from_dict(content["recipe"]),
        content["data"],
        (content["seed"][0], content["seed"][1]),
        build(spec_from_dict(content["spec"])),
    )
    _restore_history(run, content)
    return replace(run, net=run.net.to(memory_format=torch.channels_last).eval())


def _restore(run: Run, optimizer: torch.optim.Optimizer, generator: torch.Generator, content: dict[str, Any]) -> None:
    _restore_history(run, content)
    optimizer.load_state_dict(content["optimizer"])
    generator.set_state(content["random"]["data"])
    torch.set_rng_state(content["random"]["global"])
    parameter = next(run.net.parameters())
    if parameter.is_cuda and "cuda" in content["random"]:
        torch.cuda.set_rng_state(content["random"]["cuda"], parameter.device)


def _restore_history(run: Run, content: dict[str, Any]) -> None:
    run.net.load_state_dict(content["weights"])
    run.curve = [Epoch(**row) for row in content["curve"]]
    run.norms = _norms_from_plain(content["norms"])
    run.seconds = content["seconds"]


def _norms_to_plain(history: list[Norms]) -> dict[str, Any]:
    return {
        "names": list(history[0].names),
        "pairs": [list(pair) for pair in history[0].pairs],
        "l2": torch.tensor([norms.l2 for norms in history], dtype=torch.float64),
        "reuse": torch.tensor([norms.reuse for norms in history], dtype=torch.float64),
        "l1": _rows([norms.l1 for norms in history], len(history[0].names)),
        "gradient": _rows([norms.gradient for norms in history], len(history[0].names)),
    }


def _rows(rows: list[tuple[float, ...]], size: int) -> Tensor:
    """[epochs + 1, size]; an empty row becomes not a number."""
    return torch.tensor([row or (math.nan,) * size for row in rows], dtype=torch.float64)


def _norms_from_plain(plain: dict[str, Any]) -> list[Norms]:
    names, pairs = tuple(plain["names"]), tuple((source, consumer) for source, consumer in plain["pairs"])
    empty = torch.full_like(plain["l2"], math.nan)  # what runs that dnas 0.1 began did not measure
    measured = (plain[key].tolist() for key in ("l2", "reuse"))
    later = (plain.get(key, empty).tolist() for key in ("l1", "gradient"))
    return [
        Norms(names, tuple(l2), pairs, tuple(reuse), *(() if all(map(math.isnan, row)) else tuple(row) for row in rest))
        for l2, reuse, *rest in zip(*measured, *later, strict=True)
    ]
