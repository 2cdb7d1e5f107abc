"""Costs of the parts of a pre-activation ResNet: the first unit of a stage, and the other units, which are equal."""

from collections.abc import Iterator

from dnas.arch.layer import Layer, after_imagenet_stem, halved
from dnas.arch.resnet import ResNetSpec
from dnas.arch.terms import INDEX_BYTES, Terms, classifier, small_stem


def network_terms(spec: ResNetSpec) -> Iterator[Terms]:
    """Yield the terms of parts that add up to the whole network."""
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
    # kept: image, input and indices of the pool.
    return Terms(
        weights,
        weights * pixels,
        kept=spec.in_channels * spec.image_size**2 + spec.stem_width * pixels,
        kept_bytes=INDEX_BYTES * spec.stem_width * after_imagenet_stem(spec.image_size) ** 2,
    )


def _unit(spec: ResNetSpec, stage_number: int, index: int) -> Terms:
    """Return the terms of one unit; stage and unit count from 1.

    Stochastic depth is ignored, because a step may keep all units.
    """
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
    # kept: input of each norm and output of its ReLU; once: means and 1/σ of the norms. A sum keeps nothing.
    norms = 2 * (channels + inner)
    kept = 2 * channels * pixels_before + 2 * inner * pixels
    return Terms(norms + weights, weights * pixels, kept, once=norms)
