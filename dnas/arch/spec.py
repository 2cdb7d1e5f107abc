"""Base class of the specs of all network families."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

from dnas.arch.layer import Layer
from dnas.arch.validation import check_fields, digest_of, read_fields, to_plain
from dnas.errors import InputError


@dataclass(frozen=True)
class Spec:
    """Specification of one network. The class of a family is a frozen dataclass that derives from this one.

    It states the name of its family and its fields, which describe a network completely, and yields its layers. Values
    are whole numbers, numbers, text or tuples of whole numbers. Invalid ones raise `InputError`.

    in_channels: Channels of the input images.
    image_size: Side of the square input in pixels.
    classes: Number of classes.
    """

    family: ClassVar[str]

    in_channels: int = field(default=3, kw_only=True)
    image_size: int = field(default=32, kw_only=True)
    classes: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        for layer in self.layers():
            if layer.size < 1:
                raise InputError(
                    f"image_size={self.image_size} is too small: {layer.name} would have maps of 0×0 pixels."
                )

    def layers(self) -> Iterator[Layer]:
        """Iterate over the layers in the order of execution."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the spec from the values of `to_dict`."""
        return cls(**read_fields(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON. `from_dict` returns an equal spec."""
        return to_plain(self)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that are equal for two specs if and only if they describe the same network."""
        return digest_of(self._normal_form())

    def _normal_form(self) -> dict[str, Any]:
        """Return values that are equal for two specs if and only if they describe the same network."""
        return self.to_dict()

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(1 for _ in self.layers())

    @property
    def title(self) -> str:
        """Name of the kind of network, for display."""
        return self.family
