"""Heatmaps, drawn by seaborn on an existing `Axes`. seaborn takes a second to import, so only drawing imports it."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

SEQUENTIAL = "cividis"  # perceptually uniform, and readable with any form of colour blindness


def draw_heatmap(axes: Axes, values: np.ndarray, norm: Normalize, cmap: str = SEQUENTIAL, lines: float = 0) -> QuadMesh:
    """Draw a matrix as coloured cells; those that are not finite stay empty.

    Args:
        axes: The axes to draw on.
        values: Matrix [rows, columns]. Cell (r, c) covers x from c to c + 1 and y from r to r + 1, row 0 at the top.
        norm: The colour scale.
        cmap: Name of the colour map.
        lines: Width in points of white lines between the cells. Without lines the mesh is rasterized, because SVG and
            PDF viewers show seams between vector cells.
    """
    import seaborn

    axes.grid(visible=False)
    seaborn.heatmap(
        np.where(np.isfinite(values), values, 0.0),
        mask=~np.isfinite(values),
        ax=axes,
        cmap=cmap,
        norm=norm,
        cbar=False,
        xticklabels=False,
        yticklabels=False,
        linewidths=lines,
        linecolor="white",
        rasterized=not lines,
    )
    axes.tick_params(length=0)
    (mesh,) = (part for part in axes.collections if isinstance(part, QuadMesh))
    return mesh


def add_colorbar(figure: Figure, mesh: QuadMesh, label: str, **options: Any) -> Colorbar:
    """Add a frameless colour bar. The options are those of `Figure.colorbar`."""
    bar = figure.colorbar(mesh, label=label, **{"pad": 0.02, "aspect": 30, **options})
    bar.outline.set_visible(False)
    return bar


def ticks_at_cells(axes: Axes, first: int, count: int, max_ticks: int = 12) -> None:
    """Label the centres of columns with whole numbers from `first` on, at most about `max_ticks` of them."""
    from matplotlib.ticker import MaxNLocator

    numbers = MaxNLocator(min(max_ticks, max(1, count)), integer=True).tick_values(first, first + count - 1)
    shown = [int(number) for number in numbers if first <= number <= first + count - 1 and number == int(number)]
    axes.set_xticks([number - first + 0.5 for number in shown], [str(number) for number in shown], rotation=0)
