"""What is inside trained networks: how layers reuse each other's maps, and how large weights and gradients are."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

from dnas.analysis.reuse import BlockReuse, Reuse
from dnas.analysis.weight_norms import WeightNorms
from dnas.arch.parts import part_of
from dnas.errors import InputError
from dnas.figures.style import BLUE, GREY, INK, QUIET, WIDTH, canvas, styled
from dnas.wording import percent, several
