"""dnas: neural-architecture search and ablation for densely connected convolutional networks.

The public names below are loaded when they are first used, so that `import dnas` and `dnas --help` are fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dnas.api.ablations import ablate as ablate
    from dnas.api.searches import create_study as create_study
    from dnas.api.searches import search as search
    from dnas.api.study import Study as Study
    from dnas.api.study import open_study as open_study
    from dnas.api.training import train as train
    from dnas.arch import DenseNetSpec as DenseNetSpec
    from dnas.arch import ResNetSpec as ResNetSpec
    from dnas.arch import cost as cost
    from dnas.arch import parse_name as parse_name
    from dnas.data import load_dataset as load_dataset
    from dnas.data.arrays import Images as Images
    from dnas.errors import InputError as InputError
    from dnas.export import load_network as load_network
    from dnas.nn import build as build
    from dnas.report.plot import plot as plot
    from dnas.space.parse import load_space as load_space
    from dnas.space.python import Space as Space
    from dnas.study.folder import read_study as read_study

_HOMES = {
    "DenseNetSpec": "dnas.arch",
    "Images": "dnas.data.arrays",
    "InputError": "dnas.errors",
    "ResNetSpec": "dnas.arch",
    "Space": "dnas.space.python",
    "Study": "dnas.api.study",
    "ablate": "dnas.api.ablations",
    "build": "dnas.nn",
    "cost": "dnas.arch",
    "create_study": "dnas.api.searches",
    "load_dataset": "dnas.data",
    "load_network": "dnas.export",
    "load_space": "dnas.space.parse",
    "open_study": "dnas.api.study",
    "parse_name": "dnas.arch",
    "plot": "dnas.report.plot",
    "read_study": "dnas.study.folder",
    "search": "dnas.api.searches",
    "train": "dnas.api.training",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dnas' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
