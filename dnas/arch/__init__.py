"""Network specifications and their costs as plain values. This package does not import torch."""

from dnas.arch.cost import Cost, LayerCost, cost, layer_costs
from dnas.arch.densenet import DenseNetSpec
from dnas.arch.families import FAMILIES, Family, spec_from_dict
from dnas.arch.layer import Layer, Source
from dnas.arch.names import PRESETS, format_name, parse_name
from dnas.arch.resnet import ResNetSpec
from dnas.arch.spec import Spec
from dnas.arch.terms import Terms

__all__ = [
    "FAMILIES",
    "PRESETS",
    "Cost",
    "DenseNetSpec",
    "Family",
    "Layer",
    "LayerCost",
    "ResNetSpec",
    "Source",
    "Spec",
    "Terms",
    "cost",
    "format_name",
    "layer_costs",
    "parse_name",
    "spec_from_dict",
]
