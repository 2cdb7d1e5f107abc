"""Shortcuts for matplotlib, which computes some things several times while it lays out or draws a figure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from matplotlib.axis import Axis
from matplotlib.font_manager import FontProperties, fontManager


@contextmanager
def remembered() -> Iterator[None]:
    """Context in which ticks, the boxes of their labels and the files of fonts are computed once.

    Nothing but the places of axes may change within it. matplotlib computes the ticks of an axis about three times for
    each of the two passes over the layout, and again for the drawing. The methods are not public. If a version of
    matplotlib lacks one, nothing is remembered, and figures are the same.
    """
    names = ("_update_ticks", "_get_ticklabel_bboxes")
    if not all(hasattr(Axis, name) for name in names) or not hasattr(fontManager, "_find_fonts_by_props"):
        yield
        return
    update_ticks, label_boxes = (getattr(Axis, name) for name in names)
    find_fonts = fontManager._find_fonts_by_props
    ticks: dict[Axis, tuple[Any, Any]] = {}
    boxes: dict[Axis, tuple[Any, Any]] = {}
    fonts: dict[FontProperties, list[Any]] = {}

    def place(axis: Axis) -> tuple[Any, ...]:
        return (*axis.axes.bbox.bounds, *axis.get_view_interval(), axis.axes.figure.dpi)

    def ticks_once(axis: Axis) -> Any:
        key = place(axis)
        if axis not in ticks or ticks[axis][0] != key:
            ticks[axis] = key, update_ticks(axis)
        return ticks[axis][1]

    def boxes_once(axis: Axis, shown: Any, renderer: Any) -> Any:
        key = (*place(axis), renderer)
        if axis not in boxes or boxes[axis][0] != key:
            boxes[axis] = key, label_boxes(axis, shown, renderer)
        return boxes[axis][1]

    def fonts_once(font: FontProperties, *arguments: Any, **options: Any) -> list[Any]:
        if arguments or options:
            return list(find_fonts(font, *arguments, **options))
        if font not in fonts:
            fonts[font.copy()] = find_fonts(font)
        return fonts[font]

    with (
        patch.object(Axis, names[0], ticks_once),
        patch.object(Axis, names[1], boxes_once),
        patch.object(fontManager, "_find_fonts_by_props", fonts_once),
    ):
        yield
