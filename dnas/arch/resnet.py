"""Specification of the family of pre-activation ResNets.

Papers: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (arXiv 1603.05027), with the optional
stochastic depth of Huang et al., ECCV 2016 (arXiv 1603.09382).

A stage is a sequence of residual units on maps of one size. The first unit of each later stage halves the size. A unit
adds the output of its branch to its input. The branch is BN-ReLU-Conv(3×3) twice, or with a bottleneck BN-ReLU-Conv
three times (1×1, 3×3, 1×1). A BN-ReLU follows the last unit.

As in the authors' code (github.com/KaimingHe/resnet-1k-layers), the shortcut of a unit that changes the shape is a 1×1
convolution of the same stride. Shortcut and branch then share the unit's first BN-ReLU, as the two paths of the first
unit do in any case (appendix of the paper). The first convolution of the branch has the stride.

The published sizes require these shortcuts. The convolutions and the classifier have 1,679,034 parameters for L = 164
(1.7M) and 10,178,490 for L = 1001 (10.2M); with norms, which dnas counts too, 1,703,258 and 10,327,706. Padding with
zeros instead (option A of He et al., CVPR 2016) would result in 10,136,506 and 10,285,722 for L = 1001, neither of
which is 10.2M. For L = 110 without bottleneck both result in 1.7M. Table 2 of the DenseNet paper states 10.2M for L =
1202, which is not the size of that network: He et al. (CVPR 2016, Table 6) count 19.4M, and so does dnas.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from dnas.arch.layer import Layer, Source, after_imagenet_stem, halved
from dnas.arch.spec import Spec
from dnas.arch.validation import check_real, check_stem, check_whole, nearest_depths
from dnas.errors import InputError

FAMILY_NAME = "pre-activation ResNet"


@dataclass(frozen=True)
class ResNetSpec(Spec):
    """Specification of one pre-activation ResNet. Raises `InputError` if no such network exists.

    stage_units: Number of residual units of each stage.
    width: Channels of the 3×3 convolutions: one number for the first stage, which each further stage doubles, or one
        per stage.
    bottleneck: Ratio of a bottleneck unit's output channels to its width (4 in the paper); 0 for basic units.
    stochastic_depth: Probability of dropping the last unit's branch in training, in [0, 1) (0.5 in the paper). Unit l
        of n has l/n times this probability (Huang et al. 2016, equation 4).
    stem: `small` is a 3×3 convolution; `imagenet` is a 7×7 convolution of stride 2 and a 3×3 max pool of stride 2.
    stem_channels: Output channels of the stem. None is the width of the first stage.
    """

    family: ClassVar[str] = "resnet"

    stage_units: tuple[int, ...]
    width: int | tuple[int, ...] = 16
    bottleneck: int = 0
    stochastic_depth: float = 0.0
    stem: str = "small"
    stem_channels: int | None = None

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
        for name in ("in_channels", "image_size", "classes"):
            check_whole(name, getattr(self, name), 1)

    @classmethod
    def of_depth(cls, depth: int, *, stages: int = 3, bottleneck: int = 0, **rest: Any) -> Self:
        """Return the network of depth L with equal stages.

        L counts the stem, the convolutions of the branches (two per unit, three with a bottleneck), and the classifier.
        """
        check_whole("stages", stages, 1)
        check_whole("depth", depth, 1)
        check_whole("bottleneck", bottleneck, 0)
        period = stages * (3 if bottleneck else 2)
        units, remainder = divmod(depth - 2, period)
        if remainder or units < 1:
            raise nearest_depths(FAMILY_NAME + " with bottlenecks" * bool(bottleneck), depth, 2, period)
        return cls(stage_units=(units,) * stages, bottleneck=bottleneck, **rest)

    @property
    def stages(self) -> int:
        return len(self.stage_units)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each stage's 3×3 convolutions."""
        return self.width if isinstance(self.width, tuple) else self._doubled(self.width)

    def _doubled(self, width: int) -> tuple[int, ...]:
        return tuple(width * 2**stage for stage in range(self.stages))

    @property
    def stem_width(self) -> int:
        return self.widths[0] if self.stem_channels is None else self.stem_channels

    @property
    def depth(self) -> int:
        """L as the paper counts it: the convolutions except those of shortcuts, and the classifier."""
        return sum(self.stage_units) * (3 if self.bottleneck else 2) + 2

    @property
    def title(self) -> str:
        """Name of the variant, for display."""
        extras = ["bottlenecks"] * bool(self.bottleneck) + ["stochastic depth"] * bool(self.stochastic_depth)
        return f"{FAMILY_NAME} with {' and '.join(extras)}" if extras else FAMILY_NAME

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Probability of dropping each unit's branch in training."""
        units = sum(self.stage_units)
        return tuple(self.stochastic_depth * unit / units for unit in range(1, units + 1))

    def _normal_form(self) -> dict[str, Any]:
        return self.to_dict() | {"stem_channels": self.stem_width, "width": list(self.widths)}

    @cached_property
    def _stages(self) -> tuple["_Stage", ...]:
        """Channels and map sizes of each stage. Only this property propagates them through the network."""
        size = after_imagenet_stem(self.image_size) if self.stem == "imagenet" else self.image_size
        channels, stages = self.stem_width, []
        for number, (units, width) in enumerate(zip(self.stage_units, self.widths, strict=True)):
            out, out_size = width * (self.bottleneck or 1), halved(size) if number else size
            stages.append(_Stage(units, width, channels, out, size, out_size, bool(number) or channels != out))
            channels, size = out, out_size
        return tuple(stages)

    def layers(self) -> Iterator[Layer]:
        """Iterate over the layers in the order of execution. A residual unit is one layer.

        Layers have the names of the modules: `stem`, `stage1.unit1`, `classifier`. The source `input` is the image.
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
    size: int  # side of the maps before the first unit, in pixels
    out_size: int
    projects: bool  # the first unit's shortcut is a convolution
