"""Numbers from finished runs: small frozen values and pandas frames, no drawing."""

from dnas.analysis.curves import leads_from, learning_curves
from dnas.analysis.efficiency import (
    Front,
    NoiseFloor,
    cost_by_part,
    noise_floor,
    pareto_front,
    published,
    standard_error,
    wilson_interval,
    within_reach,
)
from dnas.analysis.observations import Observation, observe
from dnas.analysis.reuse import Reuse, feature_reuse
from dnas.analysis.weight_norms import NormHistory, WeightNorms, gradient_norms, read_norms, weight_norms

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
