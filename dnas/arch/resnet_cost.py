"""What a pre-activation ResNet's parts cost: a stage's first unit, and the others, which are alike."""

from collections.abc import Iterator

from dnas.arch.layer import Layer, after_imagenet_stem, halved
from dnas.arch.resnet import ResNetSpec
from dnas.arch.terms import INDEX_BYTES, Terms, classifier, small_stem


def network_terms(spec: ResNetSpec) -> Iterator[Terms]:
    """The terms of parts that add up to the network's."""
    yield _stem(spec)
    for number, stage in enumerate(spec._stages, 1):
        yield _unit(spec, number, 1)
        yield _unit(spec, number, 2).times(stage.units - 1)
    yield classifier(stage.out_channels, stage.out_size, spec.classes)


def layer_terms(spec: ResNetSpec, layer: Layer) -> Terms:
    match layer.kind:
        case "stem":
            return _stem(spec)
        case "unit":
            return _unit(spec, layer.block, layer.index)
        case _:
            return classifier(layer.in_channels, layer.size, spec.classes)


def _stem(spec: ResNetSpec) -> Terms:
    if spec.stem == "small":
        return small_stem(spec.in_channels, spec.stem_width, spec.image_size)
    weights = 49 * spec.in_channels * spec.stem_width
    pixels = halved(spec.image_size) ** 2
    # kept: the image, the pool's input and its indices.
    return Terms(
        weights,
        weights * pixels,
        kept=spec.in_channels * spec.image_size**2 + spec.stem_width * pixels,
        kept_bytes=INDEX_BYTES * spec.stem_width * after_imagenet_stem(spec.image_size) ** 2,
    )


def _unit(spec: ResNetSpec, stage_number: int, index: int) -> Terms:
    """Of a stage's unit, counted from 1. Stochastic depth is left out: a step may keep all units."""
    stage = spec._stages[stage_number - 1]
    first = index == 1
    width, out, pixels = stage.width, stage.out_channels, stage.out_size**2
    channels, pixels_before = (stage.in_channels, stage.size**2) if first else (out, pixels)
    if spec.bottleneck:
        weights, inner = channels * width + 9 * width * width + width * out, 2 * width
    else:
        weights, inner = 9 * channels * width + 9 * width * out, width
    if first and stage.projects:
        weights += channels * out
    # kept: each norm's input and the output of its ReLU; the norms' means and 1/σ. A sum keeps nothing.
    norms = 2 * (channels + inner)
    kept = 2 * channels * pixels_before + 2 * inner * pixels
    return Terms(norms + weights, weights * pixels, kept, once=norms)
