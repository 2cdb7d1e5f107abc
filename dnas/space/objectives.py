"""Objectives of a search. All of them are minimised.

Training measures val_error and val_loss, and a further metric if it is an objective: balanced_error, auroc_error,
f1_error, or a function of labels and scores as `module:function`. The cost model returns params, macs and
activation_bytes (for one batch of the recipe) before training. Latency is measured on the device before training.
"""

from collections.abc import Iterable

from dnas.errors import InputError, did_you_mean
from dnas.training.metrics import MEASURED, SHORT, is_function

TRAINED = ("val_error", "val_loss", *MEASURED)  # measured after each epoch
PRICED = ("params", "macs", "activation_bytes")  # exact before the network is built
TIMED = ("latency",)  # seconds of a forward pass of one image, measured once per trial
OBJECTIVES = (*TRAINED, *PRICED, *TIMED)
# values recorded for a run that diverged
WORST = {"val_error": 1.0, "val_loss": 100.0} | dict.fromkeys(MEASURED, 1.0)


def is_trained(name: str) -> bool:
    """Return whether training measures an objective."""
    return name in TRAINED or is_function(name)


def extra_metrics(objectives: Iterable[str]) -> tuple[str, ...]:
    """Return the objectives that training measures only because a study asks for them."""
    return tuple(name for name in objectives if name in MEASURED or is_function(name))


def read_objectives(text: str) -> tuple[str, ...]:
    """Parse a list such as `val_error,params`. The objective that training measures comes first in the result.

    `auroc` and `f1` stand for the errors `auroc_error` and `f1_error`, which are 1 minus the score.

    Raises `InputError` if a name is unknown or repeated, and unless exactly one objective is measured by training.
    """
    names = [SHORT.get(name.strip(), name.strip()) for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OBJECTIVES and not is_function(name):
            raise InputError(
                f"--objective must name some of {', '.join(OBJECTIVES)}, but got {name!r}."
                f"{did_you_mean(name, OBJECTIVES)}"
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"--objective names {', '.join(repeated)} twice; once is enough.")
    trained = [name for name in names if is_trained(name)]
    if len(trained) != 1:
        raise InputError(
            f"--objective needs exactly one of {', '.join(TRAINED)}, which training measures, but got {text!r}."
        )
    return (*trained, *(name for name in names if not is_trained(name)))
