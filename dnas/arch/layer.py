"""A layer of a network, whatever its family, as the generator, the cost model and the analysis speak of it."""

from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["stem", "dense", "transition", "unit", "classifier"]


@dataclass(frozen=True, slots=True)
class Source:
    """A run of a layer's input channels, and the layer that made them."""

    layer: str
    channels: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as it stands in the network, in the order of execution. A dense layer or a residual unit is one, with
    all its convolutions.

    `size` is the side, in pixels, of the maps that the layer's convolutions make: before the pooling of a transition
    or of the `imagenet` stem's max pool; for the classifier that of its input. `block` (a dense block, or a stage of
    residual units) and `index` count from 1; the stem has block 0, a transition or classifier the block before it, and
    index 0.
    """

    name: str
    kind: LayerKind
    block: int
    index: int
    sources: tuple[Source, ...]
    out_channels: int
    size: int

    @property
    def in_channels(self) -> int:
        return sum(source.channels for source in self.sources)


def after_imagenet_stem(size: int) -> int:
    """Side of the maps after the 7×7 convolution of stride 2 (padding 3) and the 3×3 max pool of stride 2 (1)."""
    return halved(halved(size))


def halved(size: int) -> int:
    """Side of the maps that a convolution of stride 2 makes: k×k with a padding of k // 2."""
    return (size + 1) // 2
