"""The family of pre-activation ResNets as a value: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016
(arXiv 1603.05027), with the stochastic depth of Huang et al., ECCV 2016 (arXiv 1603.09382) as an option.

A stage is a run of residual units on maps of one size; each later stage halves the size, in its first unit. A unit adds
to its input what its branch makes of it: BN-ReLU-Conv(3×3) twice, or with a bottleneck BN-ReLU-Conv three times, 1×1,
3×3, 1×1. A BN-ReLU follows the last unit.

As in the authors' code (github.com/KaimingHe/resnet-1k-layers), a unit that changes the shape has a 1×1 convolution of
the same stride as its shortcut; that and the branch then share the unit's first BN-ReLU, which the first unit's two
paths do in any case (the paper's appendix); the stride is that of the branch's first convolution.

These shortcuts are what the published sizes need: the convolutions and the classifier of L = 164 hold 1,679,034 numbers
(1.7M) and those of L = 1001 10,178,490 (10.2M), with norms, which we count too, 1,703,258 and 10,327,706. Padding with
zeros instead (option A of He et al., CVPR 2016) would give 10,136,506 and 10,285,722: neither is 10.2M. Of L = 110
without bottleneck either has 1.7M. The 10.2M that the DenseNet paper's Table 2 gives for L = 1202 is not that
network's: He et al. (CVPR 2016, Table 6) count 19.4M, and so do we.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from dnas.arch.layer import Layer, Source, after_imagenet_stem, halved
from dnas.arch.validation import check_real, check_stem, check_whole, digest_of, nearest_depths, read_fields, to_plain
from dnas.errors import InputError

FAMILY_NAME = "pre-activation ResNet"


@dataclass(frozen=True)
class ResNetSpec:
    """What one pre-activation ResNet is. Raises `InputError` where no such network exists.

    stage_units: the residual units of each stage.
    width: channels of the 3×3 convolutions; one number, for the first stage, which each further stage doubles, or one
        for each.
    bottleneck: how many times as wide as its 3×3 convolution a bottleneck's output is (4 in the paper); 0: basic units.
    stochastic_depth: the rate at which training drops the last unit's branch, in [0, 1); that of unit l of n is l/n of
        it (Huang et al. 2016, equation 4). 0 is none; 0.5 in the paper.
    stem: `small` is a 3×3 convolution; `imagenet` a 7×7 of stride 2 and a 3×3 max pool of stride 2.
    stem_channels: None is as wide as the first stage's 3×3 convolutions.
    image_size: side of the square input in pixels.
    """

    stage_units: tuple[int, ...]
    width: int | tuple[int, ...] = 16
    bottleneck: int = 0
    stochastic_depth: float = 0.0
    stem: str = "small"
    stem_channels: int | None = None
    in_channels: int = 3
    image_size: int = 32
    classes: int = 10
    family: str = field(default="resnet", init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        if isinstance(self.stage_units, list):
            put(self, "stage_units", tuple(self.stage_units))
        if not isinstance(self.stage_units, tuple) or not self.stage_units:
            raise InputError(f"stage_units must list the residual units of each stage, but got {self.stage_units!r}.")
        for units in self.stage_units:
            check_whole("stage_units", units, 1)
        if isinstance(self.width, list | tuple):
            widths = tuple(self.width)
            if len(widths) != self.stages:
                raise InputError(
                    f"width must be one number or one for each of the {self.stages} stages,"
                    f" but got {len(widths)}: {list(widths)}."
                )
            for width in widths:
                check_whole("width", width, 1)
            put(self, "width", widths[0] if widths == self._doubled(widths[0]) else widths)
        else:
            check_whole("width", self.width, 1)
        check_whole("bottleneck", self.bottleneck, 0)
        put(self, "stochastic_depth", check_real("stochastic_depth", self.stochastic_depth))
        if not 0 <= self.stochastic_depth < 1:
            raise InputError(
                f"`0 <= stochastic_depth < 1` must hold, but got stochastic_depth={self.stochastic_depth}."
            )
        check_stem(self.stem)
        if self.stem_channels is not None:
            check_whole("stem_channels", self.stem_channels, 1)
        check_whole("in_channels", self.in_channels, 1)
        check_whole("image_size", self.image_size, 1)
        check_whole("classes", self.classes, 1)

    @classmethod
    def of_depth(cls, depth: int, *, stages: int = 3, bottleneck: int = 0, **rest: Any) -> Self:
        """The network of depth L with equal stages. L counts the stem, the convolutions of the branches (two a unit,
        three with a bottleneck), and the classifier."""
        check_whole("stages", stages, 1)
        check_whole("depth", depth, 1)
        check_whole("bottleneck", bottleneck, 0)
        period = stages * (3 if bottleneck else 2)
        units, left = divmod(depth - 2, period)
        if left or units < 1:
            raise nearest_depths(FAMILY_NAME + " with bottlenecks" * bool(bottleneck), depth, 2, period)
        return cls(stage_units=(units,) * stages, bottleneck=bottleneck, **rest)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` wrote."""
        return cls(**read_fields(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `from_dict` gives an equal spec."""
        return to_plain(self)

    @property
    def stages(self) -> int:
        return len(self.stage_units)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each stage's 3×3 convolutions."""
        return self.width if isinstance(self.width, tuple) else self._doubled(self.width)

    def _doubled(self, width: int) -> tuple[int, ...]:
        return tuple(width * 2**stage for stage in range(self.stages))

    @property
    def stem_width(self) -> int:
        return self.widths[0] if self.stem_channels is None else self.stem_channels

    @property
    def depth(self) -> int:
        """L as the paper counts it: the convolutions, but for those of the shortcuts, and the classifier."""
        return sum(self.stage_units) * (3 if self.bottleneck else 2) + 2

    @property
    def title(self) -> str:
        """What people call its kind."""
        extras = ["bottlenecks"] * bool(self.bottleneck) + ["stochastic depth"] * bool(self.stochastic_depth)
        return f"{FAMILY_NAME} with {' and '.join(extras)}" if extras else FAMILY_NAME

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """The rate at which training drops each unit's branch."""
        units = sum(self.stage_units)
        return tuple(self.stochastic_depth * unit / units for unit in range(1, units + 1))

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name the network: two specs have one digest just when they are the same network."""
        return digest_of(self.to_dict() | {"stem_channels": self.stem_width, "width": list(self.widths)})

    @cached_property
    def _stages(self) -> tuple["_Stage", ...]:
        """Channels and map sizes of each stage: the one place that follows them through the network."""
        size = after_imagenet_stem(self.image_size) if self.stem == "imagenet" else self.image_size
        channels, found = self.stem_width, []
        for number, (units, width) in enumerate(zip(self.stage_units, self.widths, strict=True)):
            out, out_size = width * (self.bottleneck or 1), halved(size) if number else size
            found.append(_Stage(units, width, channels, out, size, out_size, bool(number) or channels != out))
            channels, size = out, out_size
        return tuple(found)

    def layers(self) -> Iterator[Layer]:
        """Every layer in the order of execution; a residual unit is one.

        The names are those of the modules: `stem`, `stage1.unit1`, `classifier`; the source `input` is the image.
        """
        stem_size = halved(self.image_size) if self.stem == "imagenet" else self.image_size
        yield Layer("stem", "stem", 0, 0, (Source("input", self.in_channels),), self.stem_width, stem_size)
        last = Source("stem", self.stem_width)
        for number, stage in enumerate(self._stages, 1):
            for index in range(1, stage.units + 1):
                name = f"stage{number}.unit{index}"
                yield Layer(name, "unit", number, index, (last,), stage.out_channels, stage.out_size)
                last = Source(name, stage.out_channels)
        yield Layer("classifier", "classifier", self.stages, 0, (last,), self.classes, self._stages[-1].out_size)


@dataclass(frozen=True, slots=True)
class _Stage:
    units: int
    width: int
    in_channels: int
    out_channels: int
    size: int  # before its first unit
    out_size: int
    projects: bool  # whether the first unit's shortcut is a convolution
