"""What a network is and what it costs, in plain values: nothing here imports torch."""

from dnas.arch.cost import Cost, LayerCost, cost, layer_costs
from dnas.arch.densenet import DenseNetSpec, Layer, Source
from dnas.arch.names import PRESETS, format_name, parse_name

__all__ = [
    "PRESETS",
    "Cost",
    "DenseNetSpec",
    "Layer",
    "LayerCost",
    "Source",
    "cost",
    "format_name",
    "layer_costs",
    "parse_name",
]
