"""Analysis of finished runs. Results are small frozen dataclasses and pandas frames; nothing is drawn here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dnas.analysis.curves import leads_from, learning_curves
from dnas.analysis.efficiency import (
    Front,
    NoiseFloor,
    cost_by_part,
    noise_floor,
    pareto_front,
    published,
    within_reach,
)
from dnas.analysis.intervals import standard_error, wilson_interval
from dnas.analysis.weight_norms import NormHistory, WeightNorms, gradient_norms, read_norms, weight_norms

if TYPE_CHECKING:
    from dnas.analysis.observations import Observation, observe
    from dnas.analysis.reuse import Reuse, feature_reuse

# Imported at the first use. They need scipy, whose import takes half a second, and the end of a search does not.
_LATER = {"Observation": "observations", "observe": "observations", "Reuse": "reuse", "feature_reuse": "reuse"}

__all__ = [
    "Front",
    "NoiseFloor",
    "NormHistory",
    "Observation",
    "Reuse",
    "WeightNorms",
    "cost_by_part",
    "feature_reuse",
    "gradient_norms",
    "leads_from",
    "learning_curves",
    "noise_floor",
    "observe",
    "pareto_front",
    "published",
    "read_norms",
    "standard_error",
    "weight_norms",
    "wilson_interval",
    "within_reach",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
