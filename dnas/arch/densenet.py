"""The DenseNet family as a value: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.

A block of m layers holds m + 1 sources: source 0 is the block's input, source i the k feature maps of its i-th layer.
Consumer l (1 .. m are the layers, m + 1 is what follows the block: a transition, or the classifier) concatenates the
sources that the connectivity grants it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Self

from dnas.arch.layer import Layer, Source, after_imagenet_stem
from dnas.arch.validation import check_real, check_stem, check_whole, digest_of, nearest_depths, read_fields, to_plain
from dnas.errors import InputError

CONNECTIVITIES = ("dense", "window:N", "log", "none")


@lru_cache(maxsize=4096)
def sources_of(connectivity: str, consumer: int) -> tuple[int, ...]:
    """The sources (0: the block's input, i: its i-th layer), ascending, that the `consumer`-th consumer reads.

    `dense` reads all before it (the paper's equation 2), `window:n` the last n, `log` those 1, 2, 4, 8 ... back,
    `none` only the one just before it: a plain chain.
    """
    if connectivity == "dense":
        return tuple(range(consumer))
    if connectivity == "log":
        return tuple(sorted(consumer - 2**i for i in range(consumer.bit_length()) if 2**i <= consumer))
    window = 1 if connectivity == "none" else int(connectivity.removeprefix("window:"))
    return tuple(range(max(0, consumer - window), consumer))


@lru_cache(maxsize=65536)
def compressed(channels: int, compression: float) -> int:
    """⌊θ·c⌋, the product taken in decimal: in binary floats 0.29 · 100 is 28.999…, one short."""
    return int(Decimal(repr(compression)) * channels)


@lru_cache(maxsize=4096)
def evenly_spread(count: int, layers: int) -> tuple[int, ...]:
    """`count` of the numbers 1 to `layers`, ascending, with gaps as equal as can be."""
    return tuple(i for i in range(1, layers + 1) if i * count // layers > (i - 1) * count // layers)


@dataclass(frozen=True)
class DenseNetSpec:
    """What one DenseNet is. Raises `InputError` where no such network exists.

    growth_rate: k, the maps that a layer adds; one number, or one for each block.
    bottleneck: width of the 1×1 convolution in growth rates (4 in the paper); 0 is none.
    compression: θ, the share of channels that a transition keeps, in (0, 1].
    stem: `small` is a 3×3 convolution; `imagenet` a 7×7 of stride 2 and a 3×3 max pool of stride 2.
    stem_channels: None is the paper's: 2k with a bottleneck, else 16.
    dropout: rate after each convolution but the first, as in the paper (section 4.2).
    connectivity: `dense`, `window:N`, `log` or `none`; see `sources_of`.
    image_size: side of the square input in pixels.
    wider_layers: the layers that add one map more than their block's k, so that a network can be given a size that no
        whole k gives: how many, spread evenly over the network, or which, counted from 1 through all its blocks.
    """

    block_layers: tuple[int, ...]
    growth_rate: int | tuple[int, ...] = 12
    bottleneck: int = 4
    compression: float = 0.5
    stem: str = "small"
    stem_channels: int | None = None
    dropout: float = 0.0
    connectivity: str = "dense"
    in_channels: int = 3
    image_size: int = 32
    classes: int = 10
    wider_layers: int | tuple[int, ...] = 0
    family: str = field(default="densenet", init=False)

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
        check_whole("in_channels", self.in_channels, 1)
        check_whole("image_size", self.image_size, 1)
        check_whole("classes", self.classes, 1)
        put(self, "wider_layers", self._checked_wider_layers())
        for block, shape in enumerate(self._blocks, 1):
            if shape.out_channels < 1:
                raise InputError(
                    f"transition {block} would keep ⌊{self.compression} · {shape.seen}⌋ = 0 channels;"
                    " raise compression or growth_rate."
                )
            if shape.size < 1:
                raise InputError(
                    f"image_size={self.image_size} is too small: block {block} of {self.blocks} would see maps of"
                    f" 0×0 pixels; use fewer blocks, a larger image{', or the small stem' * (self.stem != 'small')}."
                )

    def _checked_wider_layers(self) -> int | tuple[int, ...]:
        """As a count where it says all."""
        layers, wider = sum(self.block_layers), self.wider_layers
        if not isinstance(wider, list | tuple):
            check_whole("wider_layers", wider, 0)
            if wider >= layers:
                raise InputError(
                    f"`wider_layers < {layers}` must hold, the number of layers, but got wider_layers={wider}; for one"
                    " map more in every layer, raise growth_rate by one."
                )
            return wider
        for number in wider:
            check_whole("wider_layers", number, 1)
        if len(set(wider)) < len(wider) or max(wider, default=0) > layers or len(wider) == layers:
            raise InputError(
                f"wider_layers must name some of the layers 1 to {layers}, each once and not all, but got"
                f" {list(wider)}."
            )
        numbers = tuple(sorted(wider))
        return len(numbers) if numbers == evenly_spread(len(numbers), layers) else numbers

    @classmethod
    def of_depth(cls, depth: int, *, blocks: int = 3, bottleneck: int = 4, **rest: Any) -> Self:
        """The network of depth L with equal blocks. L counts the stem, every convolution of the layers (two with a
        bottleneck), the transitions, and the classifier."""
        check_whole("blocks", blocks, 1)
        check_whole("depth", depth, 1)
        check_whole("bottleneck", bottleneck, 0)
        fixed, period = blocks + 1, blocks * (2 if bottleneck else 1)
        layers, left = divmod(depth - fixed, period)
        if left or layers < 1:
            name = family_name(bottleneck, rest.get("compression", 0.5 if bottleneck else 1.0))
            raise nearest_depths(name, depth, fixed, period)
        return cls(block_layers=(layers,) * blocks, bottleneck=bottleneck, **rest)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` wrote."""
        return cls(**read_fields(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `from_dict` gives an equal spec."""
        return to_plain(self)

    @property
    def blocks(self) -> int:
        return len(self.block_layers)

    @property
    def growth_rates(self) -> tuple[int, ...]:
        """The growth rate of each block."""
        return self.growth_rate if isinstance(self.growth_rate, tuple) else (self.growth_rate,) * self.blocks

    @cached_property
    def layer_rates(self) -> tuple[tuple[int, ...], ...]:
        """The maps that each layer adds, block by block."""
        pairs = list(zip(self.block_layers, self.growth_rates, strict=True))
        if not self.wider_layers:
            return tuple((rate,) * layers for layers, rate in pairs)
        wider = self.wider_layers
        numbers = set(wider if isinstance(wider, tuple) else evenly_spread(wider, sum(self.block_layers)))
        found, before = [], 0
        for layers, rate in pairs:
            found.append(tuple(rate + (before + index in numbers) for index in range(1, layers + 1)))
            before += layers
        return tuple(found)

    @property
    def stem_width(self) -> int:
        if self.stem_channels is not None:
            return self.stem_channels
        return 2 * self.growth_rates[0] if self.bottleneck else 16

    @property
    def depth(self) -> int:
        """L as the paper counts it: convolutions and the classifier."""
        return sum(self.block_layers) * (2 if self.bottleneck else 1) + self.blocks + 1

    @property
    def title(self) -> str:
        """The paper's name for its kind: DenseNet, DenseNet-B, DenseNet-C or DenseNet-BC."""
        return family_name(self.bottleneck, self.compression)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the network: two specs have one digest just when they are the same network."""
        return digest_of(self._normal_form())

    def _normal_form(self) -> dict[str, Any]:
        values = self.to_dict()
        values["stem_channels"] = self.stem_width
        del values["wider_layers"]
        values["growth_rate"] = [rates[0] if len(set(rates)) == 1 else list(rates) for rates in self.layer_rates]
        if self.blocks == 1:
            values["compression"] = 1.0  # there is no transition
        # Several connectivities can grant the same sources: `window:1` and `none`, a wide window and `dense`.
        consumers = range(1, max(self.block_layers) + 2)
        reads = [sources_of(self.connectivity, consumer) for consumer in consumers]
        values["connectivity"] = "dense" if [*map(len, reads)] == [*consumers] else reads
        return values

    @cached_property
    def _blocks(self) -> tuple["_Block", ...]:
        """Channels and map sizes at the block borders: the one place that follows them through the network."""
        size = self.image_size
        if self.stem == "imagenet":
            size = after_imagenet_stem(size)
        channels, found = self.stem_width, []
        for number, rates in enumerate(self.layer_rates, 1):
            made = (channels, *rates)
            seen = sum(made[source] for source in sources_of(self.connectivity, len(rates) + 1))
            out = seen if number == self.blocks else compressed(seen, self.compression)
            found.append(_Block(rates, channels, seen, out, size))
            channels, size = out, size // 2
        return tuple(found)

    def layers(self) -> Iterator[Layer]:
        """Every layer in the order of execution, with where each of its input channels was made.

        The names are those of the modules (torchvision's): `stem`, `denseblock1.denselayer1`, `transition1`,
        `classifier`; the source `input` is the image.
        """
        stem_size = (self.image_size + 1) // 2 if self.stem == "imagenet" else self.image_size
        yield Layer("stem", "stem", 0, 0, (Source("input", self.in_channels),), self.stem_width, stem_size)
        block_input = "stem"
        for number, block in enumerate(self._blocks, 1):
            made = [Source(block_input, block.in_channels)]
            for index, rate in enumerate(block.rates, 1):
                name = f"denseblock{number}.denselayer{index}"
                read = tuple(made[source] for source in sources_of(self.connectivity, index))
                yield Layer(name, "dense", number, index, read, rate, block.size)
                made.append(Source(name, rate))
            read = tuple(made[source] for source in sources_of(self.connectivity, len(block.rates) + 1))
            if number < self.blocks:
                block_input = f"transition{number}"
                yield Layer(block_input, "transition", number, 0, read, block.out_channels, block.size)
            else:
                yield Layer("classifier", "classifier", number, 0, read, self.classes, block.size)


@dataclass(frozen=True, slots=True)
class _Block:
    rates: tuple[int, ...]  # the maps that each of its layers adds
    in_channels: int
    seen: int  # channels that what follows the block reads
    out_channels: int  # channels that the transition hands on
    size: int


def family_name(bottleneck: int, compression: float) -> str:
    letters = "B" * bool(bottleneck) + "C" * (compression < 1)
    return f"DenseNet-{letters}" if letters else "DenseNet"
