"""`dnas importance`: what a search's trials say of its choices."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from dnas.analysis.control import decision_epoch, values_at
from dnas.analysis.curves import learning_curves
from dnas.analysis.fanova import BELIEVABLE, REST, Fanova
from dnas.analysis.importance import CHOICES, SPEC, Evidence, evidence, importance
from dnas.analysis.metrics import METRICS
from dnas.errors import InputError, unknown
from dnas.formatting import joined, several
from dnas.study.config import objectives_of
from dnas.study.folder import StudyFolder, find_study
from dnas.study.record import TrialRecord

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


def main_importance(args: argparse.Namespace) -> int:
    if args.by not in (CHOICES, SPEC):
        raise unknown("kind of importance", args.by, (CHOICES, SPEC))
    if args.out is not None and args.out.suffix != ".csv":
        from dnas.figures.style import check_format

        check_format(args.out)
    folder = find_study(args.study)
    found = read_evidence(folder, args.by, args.epoch)
    whole, best = (found.fanova(best, args.bootstraps) for best in (False, True))
    frame = effects_frame(whole, best, importance(found.params, found.errors.tolist()))
    if args.out is not None:
        _write(args.out, frame, whole, best)
    if args.json:
        print(json.dumps(_as_json(found, whole, best, frame), indent=1))
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(_head(found, folder), highlight=False)
    console.print(_table(frame, args.pairs))
    for line in _cautions(found, whole, best, folder, args.by):
        console.print(line, highlight=False, soft_wrap=True)
    if args.out is not None:
        console.print(f"written to {args.out}", highlight=False)
    return 0


def _write(out: Path, frame: pd.DataFrame, whole: Fanova, best: Fanova) -> None:
    if out.suffix == ".csv":
        out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out, index=False)
        return
    from dnas.figures import plot_fanova, save

    save(plot_fanova(whole, best), out)


def _as_json(found: Evidence, whole: Fanova, best: Fanova, frame: pd.DataFrame) -> dict[str, Any]:
    rows = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
    return {
        "study": found.study,
        "objective": found.objective,
        "epoch": found.epoch,
        "trials": len(found.errors),
        "left_out": found.left_out,
        "r2": {ALL: whole.r2, BEST: best.r2},
        "ceiling": best.ceiling,
        "effects": rows,
    }


def _head(found: Evidence, folder: StudyFolder) -> str:
    when = f"after epoch {found.epoch}" if found.epoch is not None else "after their last epoch"
    text = f"{found.study}   {METRICS[found.objective].label} of {several(len(found.errors), 'trial')} {when}"
    if found.left_out:
        text += "; left out: " + ", ".join(f"{count} {state}" for state, count in sorted(found.left_out.items()))
    return text + "\n" + over_line(folder)


def over_line(folder: StudyFolder) -> str:
    """A line where the search is not over, else nothing."""
    config, records = folder.config(), folder.records()
    ended = sum(record.state != "running" for record in records)
    if ended < config["trials"]:
        return f"the search is not over: {ended} of {config['trials']} trials have ended\n"
    return ""


def _table(frame: pd.DataFrame, pairs: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    heads = ("share of the variance", "fANOVA, over all", "fANOVA, for the best tenth", "PED-ANOVA, for the best tenth")
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    keyed = frame.set_index(["of", "method", "choice", "other"])
    whole = frame[(frame["of"] == ALL) & (frame["method"] == FANOVA)]
    single = whole[(whole["other"] == "") & (whole["choice"] != REST)]
    shown = [*single.itertuples(), *whole[whole["other"] != ""].head(pairs).itertuples()]
    for row in shown:
        name = f"{row.choice} × {row.other}" if row.other else row.choice
        cells = [_cell(keyed, (of, method, row.choice, row.other)) for of, method in _COLUMNS]
        table.add_row(name, *cells)
    hidden = (whole["other"] != "").sum() - min(pairs, (whole["other"] != "").sum())
    if hidden:
        table.add_row(f"{several(int(hidden), 'other pair')}", *_hidden(frame, pairs), style="dim")
    table.add_row(REST, *(_cell(keyed, (of, method, REST, "")) for of, method in _COLUMNS), style="dim")
    return table


_COLUMNS = ((ALL, FANOVA), (BEST, FANOVA), (BEST, PED))


def _hidden(frame: pd.DataFrame, pairs: int) -> list[str]:
    """The sums over the pairs that have no row."""
    whole = frame[(frame["of"] == ALL) & (frame["other"] != "")]
    names = {(row.choice, row.other) for row in whole.iloc[pairs:].itertuples()}
    found = []
    for of in (ALL, BEST):
        rows = frame[(frame["of"] == of) & (frame["method"] == FANOVA)]
        total = sum(row.share for row in rows.itertuples() if (row.choice, row.other) in names)
        found.append(f"{100 * total:.1f}%{'':21s}")
    return [*found, ""]


def _cell(keyed: pd.DataFrame, key: tuple[str, ...]) -> str:
    """`41.2% (30.1 to 55.0)  `; a `·` where chance gives as much."""
    if key not in keyed.index:
        return ""
    row = keyed.loc[key]
    mark = " " if row["clear"] or math.isnan(row["null"]) else "·"
    return f"{100 * row['share']:.1f}% ({100 * row['low']:4.1f} to {100 * row['high']:5.1f}) {mark}"


def _cautions(found: Evidence, whole: Fanova, best: Fanova, folder: StudyFolder, by: str) -> list[str]:
    lines = [
        "",
        f"explained by single choices {whole.single:.0%}, by pairs {whole.pairs:.0%}, by three and more"
        f" {whole.forest.shares.rest:.0%} of what the forest predicts over the space; 95% intervals by bootstrap over"
        " trials; ·: not told from chance",
        f"forest    R² out of bag {whole.r2:.2f} over all, {best.r2:.2f} for the best tenth (there, errors"
        f" above {METRICS[found.objective].format(best.ceiling or 0)} count as that, which the best"
        f" {int((found.errors < (best.ceiling or 0)).sum())} are below)",
    ]
    doubtful = [name for name, one in (("over all", whole), ("for the best tenth", best)) if not one.believable]
    if doubtful:
        lines.append(
            f"mind      the fANOVA shares {joined(doubtful)} can't be believed: with R² below {BELIEVABLE} the forest"
            " does not know how unseen networks do; more trials are needed, or the choices don't decide it"
        )
    early = found.left_out.get("stopped", 0) + found.left_out.get("paused", 0)
    if early and found.epoch is None:
        lines.append(
            f"mind      {several(early, 'trial')} that trained for fewer epochs {'is' if early == 1 else 'are'} left"
            f" out, the worse ones; `--epoch {_common_epoch(folder)}` compares all trials that got there"
        )
    if by == CHOICES and found.space.limits.stated():
        lines.append("mind      fANOVA is of the whole box of choices, also where a limit forbids to train")
    if by == SPEC:
        lines.append(
            "mind      a network's facts hang together (params and macs follow from the others), so each may show what"
            " another one does; fANOVA weighs them as if any went with any"
        )
    elif any(choice.when for choice in found.space.choices):
        lines.append("mind      a choice that was not made changes nothing there, and counts so in its share")
    return lines


def _common_epoch(folder: StudyFolder) -> int:
    records: list[TrialRecord] = folder.records()
    ended = [r.epochs for r in records if r.state in ("stopped", "paused") and r.epochs]
    return decision_epoch(folder.events(), ended, max(record.epochs_planned for record in records))
