"""Objectives of a search. All of them are minimised.

Training measures val_error and val_loss. The cost model returns params, macs and activation_bytes (for one batch of the
recipe) before training. Latency is measured on the device before training.
"""

from dnas.errors import InputError, did_you_mean

TRAINED = ("val_error", "val_loss")  # measured after each epoch
PRICED = ("params", "macs", "activation_bytes")  # exact before the network is built
TIMED = ("latency",)  # seconds of a forward pass of one image, measured once per trial
OBJECTIVES = (*TRAINED, *PRICED, *TIMED)
WORST = {"val_error": 1.0, "val_loss": 100.0}  # values recorded for a run that diverged


def read_objectives(text: str) -> tuple[str, ...]:
    """Parse a list such as `val_error,params`. The objective that training measures comes first in the result.

    Raises `InputError` if a name is unknown or repeated, and unless exactly one objective is measured by training.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(
                f"--objective must name some of {', '.join(OBJECTIVES)}, but got {name!r}."
                f"{did_you_mean(name, OBJECTIVES)}"
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"--objective names {', '.join(repeated)} twice; once is enough.")
    trained = [name for name in names if name in TRAINED]
    if len(trained) != 1:
        raise InputError(
            f"--objective needs exactly one of {' and '.join(TRAINED)}, which training measures, but got {text!r}."
        )
    return (*trained, *(name for name in names if name not in TRAINED))
