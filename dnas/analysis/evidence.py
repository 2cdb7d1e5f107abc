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
    """The trials of the search in `folder`; epoch: compare all trials that got there after it, not only those that
    were trained to their end."""
    config, records = folder.config(), folder.records()
    values = None
    if epoch is not None:
        values = values_at(learning_curves(folder), objectives_of(config)[0], epoch)
        if not values:
            raise InputError(f"no trial of study {folder.name} has been trained for {several(epoch, 'epoch')}.")
    return evidence(config, records, by=by, values=values, epoch=epoch)


def effects_frame(whole: Fanova, best: Fanova, ped: pd.DataFrame) -> pd.DataFrame:
    """All three in one: of, method, choice, other, share, low, high, null, clear."""
    parts = [
        whole.effects.assign(of=ALL, method=FANOVA),
        best.effects.assign(of=BEST, method=FANOVA),
        ped.assign(of=BEST, method=PED, other="", clear=ped["low"] > ped["null"]),
    ]
    columns = ["of", "method", "choice", "other", "share", "low", "high", "null", "clear"]
    return pd.concat(parts, ignore_index=True)[columns]
