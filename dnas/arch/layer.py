"""Layers of networks of any family, as used by the module generator, the cost model and the analysis."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """A range of consecutive input channels, and the layer that produced them."""

    layer: str
    channels: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a network. A dense layer or a residual unit is one layer with all its convolutions.

    kind: `stem`, `dense`, `transition`, `unit` or `classifier`. Plugins may use other words.
    block: Dense block or stage of residual units, counted from 1. The stem has block 0, and a transition or classifier
        has the block before it.
    index: Position in the block, counted from 1; 0 outside blocks.
    size: Side in pixels of the maps that the layer's convolutions produce, before the pooling of a transition or of the
        `imagenet` stem. For the classifier, the side of its input.
    """

    name: str
    kind: str
    block: int
    index: int
    sources: tuple[Source, ...]
    out_channels: int
    size: int

    @property
    def in_channels(self) -> int:
        return sum(source.channels for source in self.sources)


def after_imagenet_stem(size: int) -> int:
    """Return the side of the maps after the stem's 7×7 convolution and 3×3 max pool, both of stride 2 and padded."""
    return halved(halved(size))


def halved(size: int) -> int:
    """Return the side of the maps after a k×k convolution with stride 2 and padding k // 2."""
    return (size + 1) // 2
