"""Access to the heatmaps of a figure."""

from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh


def meshes(axes: Axes) -> list[QuadMesh]:
    """Return the heatmaps on `axes`."""
    return [part for part in axes.collections if isinstance(part, QuadMesh)]


def mesh(axes: Axes) -> QuadMesh:
    """Return the only heatmap on `axes`."""
    (cells,) = meshes(axes)
    return cells
