"""dnas: neural-architecture search and ablation for densely connected convolutional networks.

The public names below are loaded when they are first used, so that `import dnas` and `dnas --help` are fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "DenseNetSpec": "dnas.arch",
    "InputError": "dnas.errors",
    "ResNetSpec": "dnas.arch",
    "build": "dnas.nn",
    "cost": "dnas.arch",
    "load_dataset": "dnas.data",
    "load_network": "dnas.export",
    "load_space": "dnas.space.parse",
    "parse_name": "dnas.arch",
    "plot": "dnas.report.plot",
    "read_study": "dnas.study.folder",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dnas' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
