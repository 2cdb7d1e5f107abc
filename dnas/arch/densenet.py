"""Specification of the DenseNet family: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.

A block of m layers has m + 1 sources. Source 0 is the block's input, and source i is the k feature maps of its i-th
layer. Consumers 1 to m are the layers, and consumer m + 1 is the transition or classifier that follows the block. Each
consumer concatenates the sources that the connectivity selects for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

from dnas.arch.layer import Layer, Source, after_imagenet_stem
from dnas.arch.spec import Spec
from dnas.arch.validation import check_real, check_stem, check_whole, nearest_depths
from dnas.errors import InputError

CONNECTIVITIES = ("dense", "window:N", "log", "none")


@lru_cache(maxsize=4096)
def sources_of(connectivity: str, consumer: int) -> tuple[int, ...]:
    """Return the sources (0: the block's input, i: its i-th layer), ascending, that the `consumer`-th consumer reads.

    `dense` reads all earlier sources (equation 2 of the paper), `window:n` the last n, `log` those at distances 1, 2,
    4, 8 and so on, and `none` only the preceding one, which is a plain chain.
    """
    if connectivity == "dense":
        return tuple(range(consumer))
    if connectivity == "log":
        return tuple(sorted(consumer - 2**i for i in range(consumer.bit_length()) if 2**i <= consumer))
    window = 1 if connectivity == "none" else int(connectivity.removeprefix("window:"))
    return tuple(range(max(0, consumer - window), consumer))


@lru_cache(maxsize=65536)
def compressed(channels: int, compression: float) -> int:
    """Return ⌊θ·c⌋, computed in decimal because 0.29 · 100 is 28.999… in binary floating point."""
    return int(Decimal(repr(compression)) * channels)


@lru_cache(maxsize=4096)
def evenly_spread(count: int, layers: int) -> tuple[int, ...]:
    """Return `count` of the numbers 1 to `layers`, ascending, with gaps as equal as possible."""
    return tuple(i for i in range(1, layers + 1) if i * count // layers > (i - 1) * count // layers)


@dataclass(frozen=True)
class DenseNetSpec(Spec):
    """Specification of one DenseNet. Raises `InputError` if no such network exists.

    block_layers: Number of layers of each block.
    growth_rate: k, the feature maps that a layer adds; one number, or one per block.
    bottleneck: Width of the 1×1 convolution in growth rates (4 in the paper); 0 for no bottleneck.
    compression: θ, the fraction of channels that a transition keeps, in (0, 1].
    stem: `small` is a 3×3 convolution; `imagenet` is a 7×7 convolution of stride 2 and a 3×3 max pool of stride 2.
    stem_channels: Output channels of the stem. None follows the paper: 2k with a bottleneck, else 16.
    dropout: Dropout rate after each convolution but the first, as in the paper (section 4.2).
    connectivity: `dense`, `window:N`, `log` or `none`; see `sources_of`.
    wider_layers: Layers that add one map more than their block's k, for network sizes that no integer k reaches. Either
        a number of layers, spread evenly over the network, or their numbers, counted from 1 through all blocks.
    """

    family: ClassVar[str] = "densenet"

    block_layers: tuple[int, ...]
    growth_rate: int | tuple[int, ...] = 12
    bottleneck: int = 4
    compression: float = 0.5
    stem: str = "small"
    stem_channels: int | None = None
    dropout: float = 0.0
    connectivity: str = "dense"
    wider_layers: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        put = object.__setattr__
        if isinstance(self.block_layers, list):
            put(self, "block_layers", tuple(self.block_layers))
        if not isinstance(self.block_layers, tuple) or not self.block_layers:
            raise InputError(f"block_layers must list the layers of each block, but got {self.block_layers!r}.")
        for layers in self.block_layers:
            check_whole("block_layers", layers, 1)
        if isinstance(self.growth_rate, list | tuple):
            rates = tuple(self.growth_rate)
            if len(rates) != len(self.block_layers):
                raise InputError(
                    f"growth_rate must be one number or one for each of the {len(self.block_layers)} blocks,"
                    f" but got {len(rates)}: {list(rates)}."
                )
            put(self, "growth_rate", rates[0] if len(set(rates)) == 1 else rates)
        for rate in self.growth_rates:
            check_whole("growth_rate", rate, 1)
        check_whole("bottleneck", self.bottleneck, 0)
        put(self, "compression", check_real("compression", self.compression))
        if not 0 < self.compression <= 1:
            raise InputError(f"`0 < compression <= 1` must hold, but got compression={self.compression}.")
        check_stem(self.stem)
        if self.stem_channels is not None:
            check_whole("stem_channels", self.stem_channels, 1)
        put(self, "dropout", check_real("dropout", self.dropout))
        if not 0 <= self.dropout < 1:
            raise InputError(f"`0 <= dropout < 1` must hold, but got dropout={self.dropout}.")
        if not isinstance(self.connectivity, str) or not re.fullmatch(
            r"dense|log|none|window:[1-9][0-9]*", self.connectivity
        ):
            raise InputError(
                f"connectivity must be one of {', '.join(CONNECTIVITIES)} (N >= 1), but got {self.connectivity!r}."
            )
        for name in ("in_channels", "image_size", "classes"):
            check_whole(name, getattr(self, name), 1)
        put(self, "wider_layers", self._checked_wider_layers())
        for block, shape in enumerate(self._blocks, 1):
            if shape.out_channels < 1:
                raise InputError(
                    f"transition {block} would keep ⌊{self.compression} · {shape.seen}⌋ = 0 channels;"
                    " raise compression or growth_rate."
                )
            if shape.size < 1:
                raise InputError(
                    f"image_size={self.image_size} is too small: block {block} of {self.blocks} would have maps of"
                    f" 0×0 pixels; use fewer blocks, a larger image{', or the small stem' * (self.stem != 'small')}."
                )

    def _checked_wider_layers(self) -> int | tuple[int, ...]:
        """Check `wider_layers`, and return numbers of evenly spread layers as a count."""
        layers, wider = sum(self.block_layers), self.wider_layers
        if not isinstance(wider, list | tuple):
            check_whole("wider_layers", wider, 0)
            if wider >= layers:
                raise InputError(
                    f"`wider_layers < {layers}` (the number of layers) must hold, but got wider_layers={wider}; for one"
                    " more map in every layer, increase growth_rate by one."
                )
            return wider
        for number in wider:
            check_whole("wider_layers", number, 1)
        if len(set(wider)) < len(wider) or max(wider, default=0) > layers or len(wider) == layers:
            raise InputError(
                f"wider_layers must name some, but not all, of the layers 1 to {layers}, each once, but got"
                f" {list(wider)}."
            )
        numbers = tuple(sorted(wider))
        return len(numbers) if numbers == evenly_spread(len(numbers), layers) else numbers

    @classmethod
    def of_depth(cls, depth: int, *, blocks: int = 3, bottleneck: int = 4, **rest: Any) -> Self:
        """Return the network of depth L with equal blocks.

        L counts the stem, the convolutions of the layers (two per layer with a bottleneck), the transitions, and the
        classifier.
        """
        check_whole("blocks", blocks, 1)
        check_whole("depth", depth, 1)
        check_whole("bottleneck", bottleneck, 0)
        fixed, period = blocks + 1, blocks * (2 if bottleneck else 1)
        layers, remainder = divmod(depth - fixed, period)
        if remainder or layers < 1:
            name = family_name(bottleneck, rest.get("compression", 0.5 if bottleneck else 1.0))
            raise nearest_depths(name, depth, fixed, period)
        return cls(block_layers=(layers,) * blocks, bottleneck=bottleneck, **rest)

    @property
    def blocks(self) -> int:
        return len(self.block_layers)

    @property
    def growth_rates(self) -> tuple[int, ...]:
        """Growth rate of each block."""
        return self.growth_rate if isinstance(self.growth_rate, tuple) else (self.growth_rate,) * self.blocks

    @cached_property
    def layer_rates(self) -> tuple[tuple[int, ...], ...]:
        """Number of feature maps that each layer adds, by block."""
        pairs = list(zip(self.block_layers, self.growth_rates, strict=True))
        if not self.wider_layers:
            return tuple((rate,) * layers for layers, rate in pairs)
        wider = self.wider_layers
        numbers = set(wider if isinstance(wider, tuple) else evenly_spread(wider, sum(self.block_layers)))
        block_rates, earlier = [], 0
        for layers, rate in pairs:
            block_rates.append(tuple(rate + (earlier + index in numbers) for index in range(1, layers + 1)))
            earlier += layers
        return tuple(block_rates)

    @property
    def stem_width(self) -> int:
        if self.stem_channels is not None:
            return self.stem_channels
        return 2 * self.growth_rates[0] if self.bottleneck else 16

    @property
    def depth(self) -> int:
        """L as the paper counts it: the convolutions and the classifier."""
        return sum(self.block_layers) * (2 if self.bottleneck else 1) + self.blocks + 1

    @property
    def title(self) -> str:
        """Name of the variant in the paper: DenseNet, DenseNet-B, DenseNet-C or DenseNet-BC."""
        return family_name(self.bottleneck, self.compression)

    def _normal_form(self) -> dict[str, Any]:
        values = self.to_dict()
        values["stem_channels"] = self.stem_width
        del values["wider_layers"]
        values["growth_rate"] = [rates[0] if len(set(rates)) == 1 else list(rates) for rates in self.layer_rates]
        if self.blocks == 1:
            values["compression"] = 1.0  # there is no transition
        # Different connectivities can select equal sources: `window:1` and `none`, a wide window and `dense`.
        consumers = range(1, max(self.block_layers) + 2)
        reads = [sources_of(self.connectivity, consumer) for consumer in consumers]
        values["connectivity"] = "dense" if [*map(len, reads)] == [*consumers] else reads
        return values

    @cached_property
    def _blocks(self) -> tuple["_Block", ...]:
        """Channels and map sizes of each block. Only this property propagates them through the network."""
        size = self.image_size
        if self.stem == "imagenet":
            size = after_imagenet_stem(size)
        channels, blocks = self.stem_width, []
        for number, rates in enumerate(self.layer_rates, 1):
            source_channels = (channels, *rates)
            seen = sum(source_channels[source] for source in sources_of(self.connectivity, len(rates) + 1))
            out = seen if number == self.blocks else compressed(seen, self.compression)
            blocks.append(_Block(rates, channels, seen, out, size))
            channels, size = out, size // 2
        return tuple(blocks)

    def layers(self) -> Iterator[Layer]:
        """Iterate over the layers in the order of execution, with the sources of their input channels.

        Layers have the names of the modules, which are torchvision's: `stem`, `denseblock1.denselayer1`, `transition1`,
        `classifier`. The source `input` is the image.
        """
        stem_size = (self.image_size + 1) // 2 if self.stem == "imagenet" else self.image_size
        yield Layer("stem", "stem", 0, 0, (Source("input", self.in_channels),), self.stem_width, stem_size)
        block_input = "stem"
        for number, block in enumerate(self._blocks, 1):
            sources = [Source(block_input, block.in_channels)]
            for index, rate in enumerate(block.rates, 1):
                name = f"denseblock{number}.denselayer{index}"
                inputs = tuple(sources[source] for source in sources_of(self.connectivity, index))
                yield Layer(name, "dense", number, index, inputs, rate, block.size)
                sources.append(Source(name, rate))
            inputs = tuple(sources[source] for source in sources_of(self.connectivity, len(block.rates) + 1))
            if number < self.blocks:
                block_input = f"transition{number}"
                yield Layer(block_input, "transition", number, 0, inputs, block.out_channels, block.size)
            else:
                yield Layer("classifier", "classifier", number, 0, inputs, self.classes, block.size)


@dataclass(frozen=True, slots=True)
class _Block:
    rates: tuple[int, ...]  # feature maps that each layer adds
    in_channels: int
    seen: int  # channels that the transition or classifier reads
    out_channels: int  # output channels of the transition
    size: int  # side of the maps, in pixels


def family_name(bottleneck: int, compression: float) -> str:
    """Return the paper's name for the variant, such as DenseNet-BC."""
    letters = "B" * bool(bottleneck) + "C" * (compression < 1)
    return f"DenseNet-{letters}" if letters else "DenseNet"
