"""Metrics on the validation part besides error and loss, which a study measures if they are its objective.

All of them are minimised. The scores come from scikit-learn, which is imported when one is measured.
"""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnas.errors import InputError
from dnas.formatting import first_line

if TYPE_CHECKING:
    import numpy as np

    from dnas.data import Dataset

MEASURED = ("balanced_error", "auroc_error", "f1_error")
SHORT = {"auroc": "auroc_error", "f1": "f1_error"}  # names of scores, for the errors that are minimised instead

RESAMPLES = 200
LARGEST_BOOTSTRAP = 200_000  # images times classes

Metric = Callable[["np.ndarray", "np.ndarray"], float]


def is_function(name: str) -> bool:
    """Return whether `name` is the import path of a function, `module:function`."""
    module, _, function = name.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and function.isidentifier()


def metrics_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics in a row of `dnas.training.checkpoint.Epoch.row`, or in an event that contains one."""
    return {name: value for name, value in row.items() if name in MEASURED or is_function(name)}


def path_of(function: Callable[..., Any]) -> str:
    """Return the import path of a metric function, by which worker processes find it.

    Raises `InputError` for a function that only this process has, such as a lambda or a function of a notebook.
    """
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not callable(function):
        raise InputError(f"an objective is a name or a function of labels and scores, but got {function!r}.")
    path = f"{module}:{name}"
    if module == "__main__" or not is_function(path) or getattr(sys.modules.get(module), name, None) is not function:
        raise InputError(
            f"the objective {name or function!r} cannot be imported by worker processes; define it at the top level of"
            " a module, in a file beside your program."
        )
    return path


def function_at(path: str) -> Metric:
    """Import the function `module:function`, from the working folder as well.

    Raises `InputError` if there is no such function.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    try:
        sys.path.append(here)
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module may raise anything
        raise InputError(f"cannot import the objective {path} ({first_line(error)}); give module:function.") from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise InputError(f"the objective {path} is no function of labels and scores, but {function!r}.")
    metric: Metric = function
    return metric


def check_measurable(data: "Dataset", names: Sequence[str]) -> None:
    """Raise `InputError` if a metric has no value on the validation part of `data` for any network."""
    for name in filter(is_function, names):
        function_at(name)
    if "auroc_error" in names and data.val_size:
        labels = data.labels.cpu()[data.val_index].numpy()
        if not _told_apart(labels, data.classes):
            what = "one class" if labels.ndim == 1 else "no label that some images have and others lack"
            raise InputError(
                f"auroc is an objective, but the validation part of {data.title} has {what}; use another --split-seed"
                " or other splits, or the objective val_loss."
            )


def modules_of(names: Sequence[str]) -> list[str]:
    """Return the modules that measuring the metrics imports, and that take seconds to import."""
    return ["sklearn.metrics"] if any(name in MEASURED for name in names) else []


def measure(names: Sequence[str], labels: "np.ndarray", scores: "np.ndarray") -> dict[str, float]:
    """Return the value of each metric.

    Args:
        names: Names in `MEASURED`, or import paths of functions of `labels` and `scores`.
        labels: Classes [N], or 0 and 1 [N, classes].
        scores: Probabilities [N, classes], float32.

    Raises:
        InputError: A function raised an error, or returned no finite number.
    """
    known = {"balanced_error": _balanced_error, "auroc_error": _auroc_error, "f1_error": _f1_error}
    values = {}
    for name in names:
        try:
            value = float((known.get(name) or function_at(name))(labels, scores))
        except InputError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise InputError(
                f"the objective {name} failed with {type(error).__name__}: {first_line(error)}."
            ) from error
        if not math.isfinite(value):
            raise InputError(f"the objective {name} returned {value}; it must return a finite number.")
        values[name] = value
    return values


def intervals(names: Sequence[str], labels: "np.ndarray", scores: "np.ndarray") -> dict[str, list[float]]:
    """Return a 95% interval of each metric, by percentile bootstrap over the images.

    A metric has none if it fails on a resample, and no metric has one for over `LARGEST_BOOTSTRAP` scores, which would
    take minutes. Arguments as for `measure`.
    """
    import numpy as np

    if scores.size > LARGEST_BOOTSTRAP:
        return {}
    rng = np.random.default_rng(0)
    resamples = [rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES)]
    found = {}
    for name in names:
        try:
            values = [measure([name], labels[rows], scores[rows])[name] for rows in resamples]
        except InputError:  # such as a class that a function needs, and that the resample lacks
            continue
        found[name] = np.percentile(values, [2.5, 97.5]).tolist()
    return found


def _told_apart(labels: "np.ndarray", classes: int) -> list[int]:
    """Return the classes that some images belong to and others do not."""
    if labels.ndim == 2:
        return [c for c in range(classes) if 0 < labels[:, c].sum() < len(labels)]
    return [c for c in range(classes) if 0 < (labels == c).sum() < len(labels)]


def _balanced_error(labels: "np.ndarray", scores: "np.ndarray") -> float:
    from sklearn.metrics import recall_score

    if labels.ndim == 2:  # the mean over the labels that some images have and others lack
        present = _told_apart(labels, labels.shape[1]) or range(labels.shape[1])
        recalls = [recall_score(labels[:, c], scores[:, c] > 0.5, average="macro", zero_division=0) for c in present]
        return 1 - float(sum(recalls) / len(recalls))
    present = sorted(set(labels.tolist()))
    return 1 - float(recall_score(labels, scores.argmax(1), labels=present, average="macro", zero_division=0))


def _auroc_error(labels: "np.ndarray", scores: "np.ndarray") -> float:
    from sklearn.metrics import roc_auc_score

    present = _told_apart(labels, scores.shape[1])
    areas = [
        roc_auc_score(labels[:, c] if labels.ndim == 2 else labels == c, scores[:, c]) for c in present
    ]  # each class against the others
    return 1 - float(sum(areas) / len(areas))


def _f1_error(labels: "np.ndarray", scores: "np.ndarray") -> float:
    from sklearn.metrics import f1_score

    predicted = (scores > 0.5).astype(int) if labels.ndim == 2 else scores.argmax(1)
    return 1 - float(f1_score(labels, predicted, average="macro", zero_division=0))
