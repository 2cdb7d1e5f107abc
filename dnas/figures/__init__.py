"""Figures. Each function draws a result of `dnas.analysis` and returns a matplotlib `Figure`.

The title of a figure states its finding. Errors are passed as fractions and drawn in percent.
"""

from dnas.figures.ablation import (
    HELD,
    plot_curves_of_variants,
    plot_forest,
    plot_interaction,
    plot_slopes,
    plot_variants,
)
from dnas.figures.efficiency import plot_control, plot_error_against_cost
from dnas.figures.files import save
from dnas.figures.importance import plot_fanova, plot_interactions, plot_path
from dnas.figures.network import plot_causal, plot_gradients, plot_reuse, plot_weight_norms_of_trials
from dnas.figures.search import (
    plot_attainment,
    plot_best_so_far,
    plot_diagram,
    plot_distribution,
    plot_fidelity,
    plot_fronts,
    plot_importance,
    plot_parallel,
    plot_slices,
    plot_timeline,
)
from dnas.figures.style import COLOURS, GREY, STYLES, UNTITLED, Format, drawn_on, formatted, title
from dnas.figures.training import plot_layer_costs, plot_learning_curves, plot_weight_norms
from dnas.io import FORMATS, check_format

__all__ = [
    "COLOURS",
    "FORMATS",
    "GREY",
    "HELD",
    "STYLES",
    "UNTITLED",
    "Format",
    "check_format",
    "drawn_on",
    "formatted",
    "plot_attainment",
    "plot_best_so_far",
    "plot_causal",
    "plot_control",
    "plot_curves_of_variants",
    "plot_diagram",
    "plot_distribution",
    "plot_error_against_cost",
    "plot_fanova",
    "plot_fidelity",
    "plot_forest",
    "plot_fronts",
    "plot_gradients",
    "plot_importance",
    "plot_interaction",
    "plot_interactions",
    "plot_layer_costs",
    "plot_learning_curves",
    "plot_parallel",
    "plot_path",
    "plot_reuse",
    "plot_slices",
    "plot_slopes",
    "plot_timeline",
    "plot_variants",
    "plot_weight_norms",
    "plot_weight_norms_of_trials",
    "save",
    "title",
]
