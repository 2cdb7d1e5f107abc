"""Objects of other packages, which announce them as entry points. docs/plugins.md describes them for users.

Entry points are read when a name is not shipped, or when names are listed. A plugin that cannot be used is left out
with a warning, and the others still work.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Shipped objects of one kind and those of plugins, by name.

    Attributes:
        shipped: The objects of dnas itself.
        reserved: Names that no plugin may take. They include the shipped names.
    """

    def __init__(self, group: str, shipped: Mapping[str, T], problem: Callable[[str, Any], str]) -> None:
        """Describe a group of entry points; nothing is read yet.

        Args:
            group: Name of the group, such as `dnas.families`.
            shipped: The objects of dnas itself.
            problem: Returns why a plugin's object cannot be used under its name, or an empty string.
        """
        self.group = group
        self.shipped = dict(shipped)
        self.reserved = set(shipped)
        self._problem = problem
        self._objects: dict[str, T | None] = {}  # None: a plugin that cannot be used

    def reserve(self, names: Iterable[str]) -> None:
        """Refuse plugins with these names."""
        self.reserved.update(names)

    def refresh(self) -> None:
        """Reread the entry points at the next use, after a package was installed."""
        self.__dict__.pop("_entry_points", None)
        self._objects.clear()

    @cached_property
    def _entry_points(self) -> dict[str, list["EntryPoint"]]:
        from importlib.metadata import entry_points  # takes longer to import than most commands

        by_name: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=self.group), key=_package):
            by_name.setdefault(point.name, []).append(point)
        return by_name

    def _plugin(self, name: str) -> T | None:
        if name not in self._objects:
            self._objects[name] = None
            points = self._entry_points[name]
            loaded, reason = None, ""
            if name in self.reserved:
                reason = "dnas itself has this name"
            elif len(points) > 1:
                reason = "two packages have plugins of this name, so that neither is used"
            else:
                try:
                    loaded = points[0].load()
                    reason = self._problem(name, loaded)
                except Exception as error:  # a defect of one plugin must not stop the others
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
            if reason:
                packages = " and ".join(map(_package, points))
                warnings.warn(f"plugin {name!r} of {packages} ({self.group}) is left out: {reason}.", stacklevel=2)
            else:
                self._objects[name] = loaded
        return self._objects[name]

    def __getitem__(self, name: str) -> T:
        if name in self.shipped:
            return self.shipped[name]
        if name not in self._entry_points or (loaded := self._plugin(name)) is None:
            raise KeyError(name)
        return loaded

    def __iter__(self) -> Iterator[str]:
        yield from self.shipped
        yield from [name for name in self._entry_points if self._plugin(name) is not None]

    def __len__(self) -> int:
        return len(list(iter(self)))


def _package(point: "EntryPoint") -> str:
    return point.dist.name if point.dist else point.value
