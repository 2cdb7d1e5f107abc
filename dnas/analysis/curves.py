"""Learning curves of a whole study as one frame."""

import pandas as pd

from dnas.study import StudyFolder

COLUMNS = [
    "number",
    "state",
    "epoch",
    "train_error",
    "val_error",
    "train_loss",
    "val_loss",
    "learning_rate",
]


def learning_curves(study: StudyFolder) -> pd.DataFrame:
    """A row a trial and epoch (from 1): number, state, epoch, train_error, val_error (fractions), train_loss, val_loss
    (nats), learning_rate. Trials that finished no epoch have no rows."""
    found = []
    for record in study.records():
        folder = study.trial_folder(record.number)
        if not (folder / "curve.csv").is_file():
            continue
        curve = study.curve(folder)
        if len(curve):
            found.append(curve.assign(number=record.number, state=record.state).reindex(columns=COLUMNS))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def leads_from(curves: pd.DataFrame, number: int) -> int | None:
    """The first epoch from which trial `number` had the lowest validation error of all, or shared it, to its end; None
    where it did not even at its last epoch."""
    table = curves.pivot_table(index="epoch", columns="number", values="val_error")
    if number not in table:
        return None
    own = table[number].dropna()
    level = (own <= table.loc[own.index].min(axis=1)).tolist()
    if not level or not level[-1]:
        return None
    behind = [epoch for epoch, ahead in zip(own.index, level, strict=True) if not ahead]
    return int(behind[-1]) + 1 if behind else int(own.index[0])
