"""Learning curves of a study as one frame."""

from collections import defaultdict
from io import BytesIO

import numpy as np
import pandas as pd

from dnas.study.folder import StudyFolder

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
    """Return one row per trial and epoch (from 1): number, state, epoch, train_error, val_error (fractions),
    train_loss, val_loss (nats), learning_rate, and the further metrics that the study asks for.

    Trials that finished no epoch have no rows.
    """
    # Parse files with the same header together. Parsing each by itself would take milliseconds for thousands of files.
    bodies: dict[bytes, list[bytes]] = defaultdict(list)
    trials: dict[bytes, list[tuple[int, str]]] = defaultdict(list)
    for record in study.records():
        path = study.trial_folder(record.number) / "curve.csv"
        if not path.is_file():
            continue
        head, *rows = [line for line in path.read_bytes().splitlines() if line.strip()] or [b""]
        bodies[head] += rows
        trials[head] += [(record.number, record.state)] * len(rows)
    frames = []
    for head, rows in bodies.items():
        if rows:
            curves = pd.read_csv(BytesIO(b"\n".join([head, *rows])))
            numbers, states = zip(*trials[head], strict=True)
            metrics = [name for name in curves.columns if name not in (*COLUMNS, "seconds")]
            frames.append(curves.assign(number=numbers, state=states).reindex(columns=[*COLUMNS, *metrics]))
    if not frames:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(frames).sort_values("number", kind="stable", ignore_index=True)


def error_curves(curves: pd.DataFrame) -> dict[int, np.ndarray]:
    """Return the epochs and validation errors of each trial, [epochs, 2], by its number.

    Epochs without a validation error are left out. curves: As returned by `learning_curves`.
    """
    if not len(curves):
        return {}
    known = curves.dropna(subset=["val_error"]).sort_values(["number", "epoch"])
    numbers, starts = np.unique(known["number"].to_numpy(int), return_index=True)
    return dict(zip(numbers.tolist(), np.split(known[["epoch", "val_error"]].to_numpy(float), starts[1:]), strict=True))


def leads_from(curves: pd.DataFrame, number: int) -> int | None:
    """Return the first epoch from which trial `number` had the lowest validation error, or shared it, until its end.

    None if it did not have it at its last epoch.
    """
    table = curves.pivot_table(index="epoch", columns="number", values="val_error")
    if number not in table:
        return None
    errors = table[number].dropna()
    level = (errors <= table.loc[errors.index].min(axis=1)).tolist()
    if not level or not level[-1]:
        return None
    behind = [epoch for epoch, ahead in zip(errors.index, level, strict=True) if not ahead]
    return int(behind[-1]) + 1 if behind else int(errors.index[0])
