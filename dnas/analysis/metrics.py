"""Metrics and costs of a network: names, units and number formats. A new metric is one entry of `METRICS`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dnas.formatting import count, percent, points, signed, size
from dnas.training.metrics import is_function


@dataclass(frozen=True)
class Metric:
    """Names, unit and number format of one metric.

    Attributes:
        key: Name in records, tables and study files.
        label: Name in a sentence.
        noun: Word that follows a formatted value.
        axis: Name on an axis.
        unit: Unit on an axis.
        scale: Factor from the stored value to the value on an axis.
        digits: Decimals of an interval or a difference, in units of the axis.
        format: Convert a stored value to text with its unit.
        plural: Whether `label` names countable things, which follow their number like a unit.
        maximize: Whether larger values are better.
    """

    key: str
    label: str
    noun: str
    axis: str
    unit: str
    scale: float
    digits: int
    format: Callable[[float], str]
    plural: bool = False
    maximize: bool = False

    @property
    def axis_label(self) -> str:
        return f"{self.axis} ({self.unit})" if self.unit else self.axis

    @property
    def is_error(self) -> bool:
        """True for the share of errors, whose differences are percentage points."""
        return self.unit == "%" and not self.maximize

    @property
    def sign(self) -> int:
        """Factor on a difference after which negative is better."""
        return -1 if self.maximize else 1

    def difference(self, value: float) -> str:
        """Format a difference with its sign, in units of the axis."""
        return points(value) if self.unit == "%" else signed(value)

    def amount(self, value: float) -> str:
        """A formatted difference and its unit, if it has one, such as `−1.23 points`."""
        return f"{self.difference(value)} {self.difference_unit}".rstrip()

    @property
    def difference_unit(self) -> str:
        """Unit of `scale` times the difference of two values."""
        return "points" if self.unit == "%" else self.unit

    def written(self, value: float | None) -> str:
        """`format` of a value, or a dash if the value is missing or not finite."""
        return "–" if value is None or not math.isfinite(value) else self.format(value)

    def with_noun(self, value: float) -> str:
        """A formatted value and its noun, such as `32.3 k params`."""
        return f"{self.format(value)} {self.noun}"

    def axis_for(self, largest: float) -> tuple[str, float]:
        """Return the label and the scale of an axis up to `largest`. Numbers below 100,000 are in thousands."""
        if self.unit != "millions" or largest >= 1e5:
            return self.axis_label, self.scale
        return f"{self.axis} (thousands)", 1e-3


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


_TABLE = (
    Metric("val_error", "validation error", "error", "validation error", "%", 100.0, 2, percent),
    Metric("test_error", "test error", "test error", "test error", "%", 100.0, 2, percent),
    Metric("val_loss", "validation loss", "loss", "validation loss", "nats", 1.0, 4, _nats),
    Metric("train_loss", "training loss", "training loss", "training loss", "nats", 1.0, 4, _nats),
    Metric("balanced_error", "balanced error", "balanced error", "1 − balanced accuracy", "%", 100.0, 2, percent),
    Metric("auroc_error", "1 − AUROC", "1 − AUROC", "1 − AUROC", "%", 100.0, 2, percent),
    Metric("f1_error", "1 − macro F1", "1 − F1", "1 − macro F1", "%", 100.0, 2, percent),
    Metric("params", "params", "params", "parameters", "millions", 1e-6, 3, count, True),
    Metric("macs", "multiply-adds", "macs", "multiply-adds of one image", "millions", 1e-6, 2, count, True),
    Metric("activation_bytes", "activation memory", "of activations", "activations of one batch", "MB", 1e-6, 1, size),
    Metric("latency", "latency", "latency", "latency of one image", "ms", 1e3, 2, _milliseconds),
)


class _Metrics(dict[str, Metric]):
    """Metrics by key. The import path of a user's function is a metric, named after the function."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and is_function(key))

    def __missing__(self, key: str) -> Metric:
        if not is_function(key):
            raise KeyError(key)
        name = key.partition(":")[2].replace("_", " ")
        return Metric(key, name, name, name, "value", 1.0, 4, _nats)


METRICS = _Metrics({metric.key: metric for metric in _TABLE})


def named_metric(name: str, *, maximize: bool = False, error_rate: bool = False) -> Metric:
    """Return a metric of the user's, shown as a plain number, or as percent if it is an error rate.

    An error rate called `val_error` or `test_error` is the metric of dnas's own studies.
    """
    if error_rate:
        return METRICS[name] if name in ("val_error", "test_error") else _error_rate(name)
    return Metric(name, name, name, name, "", 1.0, 4, lambda value: f"{value:.4g}", maximize=maximize)


def _error_rate(name: str) -> Metric:
    return Metric(name, name, "error", name, "%", 100.0, 2, percent)
