"""Evidence of a search's trials on its choices, for `dnas importance`."""

import pandas as pd

from dnas.analysis.control import values_at
from dnas.analysis.curves import learning_curves
from dnas.analysis.fanova import Fanova
from dnas.analysis.importance import CHOICES, Evidence, evidence
from dnas.errors import InputError
from dnas.formatting import several
from dnas.study.config import objectives_of
from dnas.study.folder import StudyFolder

ALL, BEST = "all", "best tenth"
FANOVA, PED = "fANOVA", "PED-ANOVA"


def read_evidence(folder: StudyFolder, by: str = CHOICES, epoch: int | None = None) -> Evidence:
    """Read the trials of the search in `folder` as evidence.

    epoch: Compare the values after this epoch of all trials that reached it, instead of the final values of the
    complete trials.
    """
    config, records = folder.config(), folder.records()
    values = None
    if epoch is not None:
        values = values_at(learning_curves(folder), objectives_of(config)[0], epoch)
        if not values:
            raise InputError(f"no trial of study {folder.name} has been trained for {several(epoch, 'epoch')}.")
    return evidence(config, records, by=by, values=values, epoch=epoch)


def effects_frame(overall: Fanova, best: Fanova, ped: pd.DataFrame) -> pd.DataFrame:
    """Return all three analyses as one frame: of, method, choice, other, share, low, high, null, clear."""
    parts = [
        overall.effects.assign(of=ALL, method=FANOVA),
        best.effects.assign(of=BEST, method=FANOVA),
        ped.assign(of=BEST, method=PED, other="", clear=ped["low"] > ped["null"]),
    ]
    columns = ["of", "method", "choice", "other", "share", "low", "high", "null", "clear"]
    return pd.concat(parts, ignore_index=True)[columns]
