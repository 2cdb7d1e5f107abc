"""Run the Triton kernels on the CPU through Triton's interpreter, and print their errors relative to `ref` in float64.

`python -m tests.support.interpreted` takes most of a minute.
tests/nn/test_triton.py starts this as a process with TRITON_INTERPRET=1, because Triton reads the variable on import.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from dnas.arch import parse_name
from dnas.nn.kernels import triton_block
from dnas.nn.kernels.dispatch import drawn_masks, fallback_reason
from dnas.nn.kernels.reference import REF, BlockShape, Kernels
from dnas.nn.kernels.triton_block import TRITON
from tests.nn.test_dense_block import images, nets, step

DENSE = ((0,), (0, 1), (0, 1, 2))
WINDOW = ((0,), (1,), (2,))
LOG = ((0,), (0, 1), (1, 2), (0, 2, 3))
# A block, the shape of its images, and whether its bottlenecks are recomputed. 5 × 7 × 5 pixels fill two tiles.
CASES = {
    "both kinds of layers": (
        BlockShape((3, 2, 4), ((0,), (0, 1), (0, 2)), (7, 0), "pool", 0.2, 1e-5),
        (2, 4, 4),
        False,
    ),
    "plain": (BlockShape((5, 4, 4), DENSE, (0, 0), "pool", 0.0, 1e-5), (5, 7, 5), False),
    "plain, dropout, window": (BlockShape((3, 4, 6), WINDOW, (0, 0), "relu", 0.3, 1e-5), (2, 4, 4), False),
    "bottlenecks": (BlockShape((4, 3, 3), DENSE, (12, 12), "mean", 0.0, 1e-3), (2, 5, 6), False),
    "bottlenecks, dropout, log": (BlockShape((5, 3, 4, 3), LOG, (7, 20, 5), "pool", 0.2, 1e-5), (2, 6, 5), False),
    "recomputed": (BlockShape((5, 3, 4, 3), LOG, (7, 20, 5), "pool", 0.2, 1e-5), (2, 6, 5), True),
    "wide": (BlockShape((70, 36), ((0,), (0, 1)), (130,), "relu", 0.0, 1e-5), (2, 4, 3), False),
    "one image, one layer": (BlockShape((2, 1), ((0,), (0, 1)), (0,), "pool", 0.0, 1e-5), (1, 3, 2), False),
}


def weights_of(shape: BlockShape) -> list[Tensor]:
    weights = []
    for layer in range(shape.layers):
        channels = shape.seen(layer)
        for outs, taps in ((shape.widths[layer], 1), (shape.sources[layer + 1], 3)):
            if outs:
                weight = torch.randn(outs, channels, taps, taps) / (channels * taps**2) ** 0.5
                # The two layouts that a network's weights may have.
                layout = torch.channels_last if layer % 2 else torch.contiguous_format
                weights += [*norm_of(channels), weight.contiguous(memory_format=layout)]
                channels = outs
    return [*weights, *norm_of(shape.seen(shape.layers))]


def norm_of(channels: int) -> list[Tensor]:
    return [torch.rand(channels) + 0.5, torch.rand(channels) * 0.6 - 0.3]


def run(
    kernels: Kernels, shape: BlockShape, x: Tensor, weights: list[Tensor], masks: list[Tensor], recompute: bool
) -> dict[str, Tensor]:
    output, statistics, kept = kernels.forward(shape, x, weights, masks, recompute)
    gradient = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dx, weight_gradients = kernels.backward(shape, x, weights, masks, statistics, kept, gradient.to(output))
    means = [torch.linspace(-0.5, 0.5, len(gamma), dtype=x.dtype, device=x.device) for gamma in weights[::3]]
    variances = [mean + 1.25 for mean in means]
    inferred = kernels.infer(shape, x, weights, means, variances)
    gradients = {f"gradient {index} of {tuple(tensor.shape)}": tensor for index, tensor in enumerate(weight_gradients)}
    return {"output": output, "statistics": statistics, "dx": dx, "inferred": inferred} | gradients


def errors(result: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    assert result.keys() == truth.keys()
    assert all(result[name].shape == truth[name].shape for name in truth)
    largest = max(tensor.double().norm().item() for name, tensor in truth.items() if name.startswith("gradient"))
    return {
        name: (result[name].double() - value.double()).norm().item() / max(value.double().norm().item(), 1e-3 * largest)
        for name, value in truth.items()
    }


def block_errors(name: str) -> dict[str, float]:
    shape, (batch, height, width), recompute = CASES[name]
    torch.manual_seed(0)
    x, weights = torch.randn(batch, shape.sources[0], height, width), weights_of(shape)
    if len(name) % 2:
        x = x.contiguous(memory_format=torch.channels_last)
    masks = list(drawn_masks(shape, x, weights)) if shape.dropout else []
    truth = run(REF, shape, x.double(), [weight.double() for weight in weights], masks, recompute)
    result = run(TRITON, shape, x, weights, masks, recompute)
    repeated = run(TRITON, shape, x, weights, masks, recompute) if shape.layers == 1 else result
    return errors(result, truth) | {
        "same bits": float(any(not torch.equal(result[key], repeated[key]) for key in result))
    }


def far_from_zero_errors() -> dict[str, float]:
    """Return errors for feature maps whose mean is a thousand times as large as their standard deviation."""
    shape = BlockShape((3, 2), ((0,), (0, 1)), (0,), "relu", 0.0, 1e-5)
    torch.manual_seed(0)
    x, weights = torch.randn(3, 3, 7, 8) + 1000, weights_of(shape)
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    weights[1] += 1000
    weights[2] = weights[2].abs() * centre  # a single tap, so that borders do not matter
    double = [weight.double() for weight in weights]
    return errors(
        dict(zip(("mean", "variance"), TRITON.forward(shape, x, weights, [], False)[1], strict=True)) | {"gradient": x},
        dict(zip(("mean", "variance"), REF.forward(shape, x.double(), double, [], False)[1], strict=True))
        | {"gradient": x},
    )


def network_errors(name: str, memory: str) -> dict[str, float]:
    """Return errors of a training step and an evaluation of a network, including running statistics."""
    spec = parse_name(name)
    fast, exact = nets(spec, "triton", torch.float32, memory)[1], nets(spec, "ref", torch.float64)[1]
    x, y = images(spec, 3, torch.float32)
    return errors(step(fast, x, y), step(exact, x.double(), y))


def reasons_under_autocast() -> list[str]:
    """Return why blocks fall back to their modules under autocast, for x in bfloat16 and in float32."""
    net = nets(parse_name("densenet-bc:layers=1-1,k=3,size=8"), "triton", torch.float32)[1].train()
    block, after, x = net.features.denseblock1, net.features.transition1, torch.zeros(2, net.spec.stem_width, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        return [
            fallback_reason(TRITON, block, after, x.bfloat16()),
            fallback_reason(TRITON, block, after, x),
            fallback_reason(REF, block, after, x.bfloat16()),
        ]


def report() -> dict[str, Any]:
    """Return the errors of all blocks and of a network, and other results by name."""
    early = "dnas.nn.kernels.triton_kernels" in sys.modules
    dtypes = torch.float32, torch.float64
    return {name: block_errors(name) for name in CASES} | {
        "imported early": early,
        "network": network_errors("densenet-bc:layers=1-1,k=3,size=8,dropout=0.2", "recompute"),
        "why not": [TRITON.unsupported_reason(torch.zeros(1, 1, 2, 2, dtype=dtype), []) for dtype in dtypes],
        "under autocast": reasons_under_autocast(),
        "far from zero": far_from_zero_errors(),
    }


if __name__ == "__main__":
    triton_block.TILES = 1  # sums over two tiles take two rounds
    json.dump(report(), sys.stdout)
