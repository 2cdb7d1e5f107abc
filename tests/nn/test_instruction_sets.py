"""Networks train without memory errors with the instruction sets of different processors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dnas.nn.resnet import PointwiseConv
from dnas.space.parse import space_files
from tests.support.patience import patience

MALLOC_DEBUG = [*Path("/lib").glob("*/libc_malloc_debug.so.0"), *Path("/usr/lib64").glob("libc_malloc_debug.so.0")]
ROOT = Path(__file__).resolve().parents[2]


def run_with(instructions: str | None, *what: str) -> None:
    """Train in a child process with glibc's checks of the heap, limited to an instruction set (None: the machine's)."""
    environment = dict(os.environ)
    if instructions is not None:
        environment["ONEDNN_MAX_CPU_ISA"] = instructions
    if MALLOC_DEBUG:
        environment |= {"LD_PRELOAD": str(MALLOC_DEBUG[0]), "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    command = [sys.executable, "-m", "tests.support.instruction_sets", *what]
    # A process with a corrupted heap may hang in its abort handler.
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=patience(400))
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", None])
def test_narrow_networks_and_the_smallest_of_every_space_train_without_memory_errors(instructions: str | None) -> None:
    run_with(instructions, "narrow", *space_files())


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("channels", [(16, 32), (3, 5)])
def test_pointwise_convolution_equals_a_strided_convolution(size: int, channels: tuple[int, int]) -> None:
    """Outputs and gradients are equal bit for bit in float64, where no kernel reorders the sum over channels."""
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], size, size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], 1, 1, dtype=torch.float64)

    def run(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        conv.weight = nn.Parameter(weight.clone())
        y = conv(leaf)
        y.square().sum().backward()
        assert leaf.grad is not None
        assert conv.weight.grad is not None
        return [y.detach(), leaf.grad, conv.weight.grad]

    theirs = run(nn.Conv2d(*channels, 1, stride=2, bias=False), x)
    for ours, expected in zip(run(PointwiseConv(*channels, stride=2), x), theirs, strict=True):
        assert torch.equal(ours, expected)
