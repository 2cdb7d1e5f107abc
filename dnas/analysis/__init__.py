"""Analysis of finished runs. Results are small frozen dataclasses and pandas frames; nothing is drawn here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from dnas.analysis.observations import Observation, observe
    from dnas.analysis.reuse import Reuse, feature_reuse
    from dnas.analysis.weight_norms import NormHistory, WeightNorms, gradient_norms, read_norms

# Imported at the first use, because they need pandas and scipy, which light modules of this package do not. No name may
# be that of a module, such as weight_norms, since the first import of a module sets the attribute of the same name.
_MEMBERS = {
    "curves": ("leads_from", "learning_curves"),
    "efficiency": (
        *("Front", "NoiseFloor", "cost_by_part", "noise_floor", "pareto_front", "published", "within_reach"),
    ),
    "intervals": ("standard_error", "wilson_interval"),
    "observations": ("Observation", "observe"),
    "reuse": ("Reuse", "feature_reuse"),
    "weight_norms": ("NormHistory", "WeightNorms", "gradient_norms", "read_norms"),
}
_MODULES = {name: module for module, names in _MEMBERS.items() for name in names}

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
    "wilson_interval",
    "within_reach",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
