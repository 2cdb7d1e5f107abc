"""What a network costs, by arithmetic alone: no torch, no tensors, microseconds a network.

Conventions. `params`: every learned number. `macs`: multiply-adds of the convolutions and the linear layer for one
image, a transition's convolution counted before its pooling, as published. `activation_bytes`: the distinct tensors
that autograd keeps for the backward pass of one training step with cross entropy, float32, on the plain modules of
`dnas.nn` on the CPU, at the stated batch size; parameters and running statistics are not among them.

Every cost of a dense layer is linear in the channels it reads, so one function prices a single layer (n = 1) and, given
the sum of the channels that all its layers read, a whole block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from dnas.arch.densenet import DenseNetSpec, after_imagenet_stem, sources_of

FLOAT_BYTES = 4
INDEX_BYTES = 8  # of a max pool's indices, and of a label

DEFAULT_BATCH = 64  # the paper's


class Terms(NamedTuple):
    """A cost before the batch size is known. `kept` are floats kept for each image, `once` for the whole batch."""

    params: int
    macs: int
    kept: int
    once: int = 0
    kept_bytes: int = 0  # of each image, not float32

    def activation_bytes(self, batch: int) -> int:
        return FLOAT_BYTES * (self.kept * batch + self.once) + self.kept_bytes * batch


@dataclass(frozen=True, slots=True)
class Cost:
    """params; macs for one image; activation_bytes of a training step at `batch` images."""

    params: int
    macs: int
    activation_bytes: int
    batch: int


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer's share of the cost, and its shape (`size`: side of its convolutions' output, pixels)."""

    name: str
    kind: str
    in_channels: int
    out_channels: int
    size: int
    params: int
    macs: int
    activation_bytes: int


def cost(spec: DenseNetSpec, batch: int = DEFAULT_BATCH) -> Cost:
    """The whole network's cost, in time that does not grow with its depth."""
    params = macs = kept = once = extra = 0
    for terms in _network(spec):
        params += terms.params
        macs += terms.macs
        kept += terms.kept
        once += terms.once
        extra += terms.kept_bytes
    return Cost(params, macs, Terms(params, macs, kept, once, extra).activation_bytes(batch), batch)


def layer_costs(spec: DenseNetSpec, batch: int = DEFAULT_BATCH) -> list[LayerCost]:
    """The cost of each layer, in the order of execution; they add up to `cost(spec, batch)`."""
    found = []
    for layer in spec.layers():
        match layer.kind:
            case "stem":
                terms = _stem(spec)
            case "dense":
                terms = _dense_layers(spec, 1, layer.in_channels, layer.out_channels, layer.size)
            case "transition":
                terms = _transition(spec, layer.in_channels, layer.out_channels, layer.size)
            case "classifier":
                terms = _classifier(spec, layer.in_channels, layer.size)
        found.append(
            LayerCost(
                layer.name,
                layer.kind,
                layer.in_channels,
                layer.out_channels,
                layer.size,
                terms.params,
                terms.macs,
                terms.activation_bytes(batch),
            )
        )
    return found


def _network(spec: DenseNetSpec) -> Iterator[Terms]:
    yield _stem(spec)
    last = spec.blocks
    for number, block in enumerate(spec._blocks, 1):
        inputs, layers = _reads(spec.connectivity, block.layers)
        channels = inputs * block.in_channels + layers * block.growth_rate
        yield _dense_layers(spec, block.layers, channels, block.growth_rate, block.size)
        if number < last:
            yield _transition(spec, block.seen, block.out_channels, block.size)
        else:
            yield _classifier(spec, block.seen, block.size)


@lru_cache(maxsize=4096)
def _reads(connectivity: str, layers: int) -> tuple[int, int]:
    """How often a block's `layers` read its input, and how often the output of one of them."""
    reads = [sources_of(connectivity, consumer) for consumer in range(1, layers + 1)]
    inputs = sum(0 in sources for sources in reads)
    return inputs, sum(map(len, reads)) - inputs


def _stem(spec: DenseNetSpec) -> Terms:
    width, image = spec.stem_width, spec.in_channels * spec.image_size**2
    if spec.stem == "small":
        weights = 9 * spec.in_channels * width
        return Terms(weights, weights * spec.image_size**2, kept=image)
    weights = 49 * spec.in_channels * width
    pixels = ((spec.image_size + 1) // 2) ** 2
    pooled = after_imagenet_stem(spec.image_size) ** 2
    # kept: the image, the norm's input, the ReLU's output; the pool's indices; the norm's mean and 1/σ.
    return Terms(
        weights + 2 * width,
        weights * pixels,
        kept=image + 2 * width * pixels,
        once=2 * width,
        kept_bytes=INDEX_BYTES * width * pooled,
    )


def _dense_layers(spec: DenseNetSpec, n: int, channels: int, growth_rate: int, size: int) -> Terms:
    """`n` layers of one block that read `channels` channels between them."""
    pixels = size**2
    masks = 1 if spec.dropout else 0
    if not spec.bottleneck:
        weights = 9 * channels * growth_rate
        kept = 2 * channels + masks * n * growth_rate
        return Terms(2 * channels + weights, weights * pixels, kept * pixels, once=2 * channels)
    width = spec.bottleneck * growth_rate
    weights = channels * width + n * 9 * width * growth_rate
    kept = 2 * channels + n * (2 * width + masks * (width + growth_rate))
    norms = 2 * (channels + n * width)
    return Terms(norms + weights, weights * pixels, kept * pixels, once=norms)


def _transition(spec: DenseNetSpec, channels: int, out_channels: int, size: int) -> Terms:
    # kept: the norm's input, the ReLU's output, the pool's input; with dropout its mask.
    weights = channels * out_channels
    kept = 2 * channels + out_channels * (2 if spec.dropout else 1)
    return Terms(2 * channels + weights, weights * size**2, kept * size**2, once=2 * channels)


def _classifier(spec: DenseNetSpec, channels: int, size: int) -> Terms:
    # kept: the norm's input, the ReLU's output, the pooled vector, the log-probabilities; labels; the loss's weight.
    weights = channels * spec.classes
    return Terms(
        2 * channels + weights + spec.classes,
        weights,
        kept=2 * channels * size**2 + channels + spec.classes,
        once=2 * channels + 1,
        kept_bytes=INDEX_BYTES,
    )
