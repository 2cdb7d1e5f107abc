"""Costs of the parts of a DenseNet.

Every cost of a dense layer is linear in the channels that it reads. One function therefore computes the cost of a
single layer (n = 1), or that of a whole block from the sum of the channels that its layers read.
"""

from collections.abc import Iterator
from functools import lru_cache

from dnas.arch.densenet import DenseNetSpec, sources_of
from dnas.arch.layer import Layer, after_imagenet_stem, halved
from dnas.arch.terms import INDEX_BYTES, Terms, classifier, small_stem


def network_terms(spec: DenseNetSpec) -> Iterator[Terms]:
    """Yield the terms of parts that add up to the whole network."""
    yield _stem(spec)
    last = spec.blocks
    for number, block in enumerate(spec._blocks, 1):
        if not spec.wider_layers:
            layers, rate = len(block.rates), block.rates[0]
            inputs, earlier = _reads(spec.connectivity, layers)
            yield _dense_layers(spec, layers, inputs * block.in_channels + earlier * rate, rate, block.size)
        else:
            for rate, (n, channels) in _reads_by_rate(spec.connectivity, block.in_channels, block.rates).items():
                yield _dense_layers(spec, n, channels, rate, block.size)
        if number < last:
            yield _transition(spec, block.seen, block.out_channels, block.size)
        else:
            yield classifier(block.seen, block.size, spec.classes)


def layer_terms(spec: DenseNetSpec, layer: Layer) -> Terms:
    match layer.kind:
        case "stem":
            return _stem(spec)
        case "dense":
            return _dense_layers(spec, 1, layer.in_channels, layer.out_channels, layer.size)
        case "transition":
            return _transition(spec, layer.in_channels, layer.out_channels, layer.size)
        case _:
            return classifier(layer.in_channels, layer.size, spec.classes)


@lru_cache(maxsize=4096)
def _reads(connectivity: str, layers: int) -> tuple[int, int]:
    """Return how many times the `layers` of a block read its input, and how many times they read an earlier layer."""
    reads = [sources_of(connectivity, consumer) for consumer in range(1, layers + 1)]
    inputs = sum(0 in sources for sources in reads)
    return inputs, sum(map(len, reads)) - inputs


def _reads_by_rate(connectivity: str, in_channels: int, rates: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Map each growth rate in a block to the number of its layers and the channels that they read."""
    sources_channels, reads = (in_channels, *rates), dict[int, tuple[int, int]]()
    for consumer, rate in enumerate(rates, 1):
        n, channels = reads.get(rate, (0, 0))
        reads[rate] = n + 1, channels + sum(sources_channels[source] for source in sources_of(connectivity, consumer))
    return reads


def _stem(spec: DenseNetSpec) -> Terms:
    if spec.stem == "small":
        return small_stem(spec.in_channels, spec.stem_width, spec.image_size)
    width, image = spec.stem_width, spec.in_channels * spec.image_size**2
    weights = 49 * spec.in_channels * width
    pixels = halved(spec.image_size) ** 2
    pooled = after_imagenet_stem(spec.image_size) ** 2
    # kept: image, input of the norm, output of the ReLU, indices of the pool; once: mean and 1/σ of the norm.
    return Terms(
        weights + 2 * width,
        weights * pixels,
        kept=image + 2 * width * pixels,
        once=2 * width,
        kept_bytes=INDEX_BYTES * width * pooled,
    )


def _dense_layers(spec: DenseNetSpec, n: int, channels: int, growth_rate: int, size: int) -> Terms:
    """Return the terms of `n` layers of one block that read `channels` channels in total."""
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
    # kept: input of the norm, output of the ReLU, input of the pool, and the mask of dropout.
    weights = channels * out_channels
    kept = 2 * channels + out_channels * (2 if spec.dropout else 1)
    return Terms(2 * channels + weights, weights * size**2, kept * size**2, once=2 * channels)
