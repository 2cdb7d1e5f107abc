"""Output of `dnas importance`: table, notes, JSON and files."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from dnas.analysis.control import decision_epoch
from dnas.analysis.evidence import ALL, BEST, FANOVA, PED
from dnas.analysis.fanova import BELIEVABLE, REST, Fanova
from dnas.analysis.importance import CHOICES, SPEC, Evidence
from dnas.analysis.metrics import METRICS
from dnas.formatting import joined, several
from dnas.study.folder import StudyFolder

COLUMNS = ((ALL, FANOVA), (BEST, FANOVA), (BEST, PED))


def write(out: Path, effects: pd.DataFrame, overall: Fanova, best: Fanova) -> None:
    if out.suffix == ".csv":
        out.parent.mkdir(parents=True, exist_ok=True)
        effects.to_csv(out, index=False)
        return
    from dnas.figures import plot_fanova, save

    save(plot_fanova(overall, best), out)


def as_json(evidence: Evidence, overall: Fanova, best: Fanova, effects: pd.DataFrame) -> dict[str, Any]:
    return {
        "study": evidence.study,
        "objective": evidence.objective,
        "epoch": evidence.epoch,
        "trials": len(evidence.errors),
        "left_out": evidence.left_out,
        "r2": {ALL: overall.r2, BEST: best.r2},
        "ceiling": best.ceiling,
        "effects": effects.to_dict("records"),
    }


def head(evidence: Evidence, folder: StudyFolder) -> str:
    after = f"after epoch {evidence.epoch}" if evidence.epoch is not None else "after their last epoch"
    text = f"{evidence.study}   {METRICS[evidence.objective].label} of {several(len(evidence.errors), 'trial')} {after}"
    if evidence.left_out:
        text += "; left out: " + ", ".join(f"{count} {state}" for state, count in sorted(evidence.left_out.items()))
    return text + "\n" + unfinished(folder)


def unfinished(folder: StudyFolder) -> str:
    """Return a line on the progress of a search, or an empty text if the search is complete."""
    config, records = folder.config(), folder.records()
    ended = sum(record.state != "running" for record in records)
    if ended < config["trials"]:
        return f"the search is not complete: {ended} of {config['trials']} trials have ended\n"
    return ""


def table(effects: pd.DataFrame, pairs: int) -> Table:
    """Return the shares of the variance: single choices, the first `pairs` pairs, and the rest."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    heads = ("share of the variance", "fANOVA, over all", "fANOVA, for the best tenth", "PED-ANOVA, for the best tenth")
    for index, title in enumerate(heads):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    keyed = effects.set_index(["of", "method", "choice", "other"])
    overall = effects[(effects["of"] == ALL) & (effects["method"] == FANOVA)]
    singles = overall[(overall["other"] == "") & (overall["choice"] != REST)]
    all_pairs = overall[overall["other"] != ""]
    for row in [*singles.itertuples(), *all_pairs.head(pairs).itertuples()]:
        name = f"{row.choice} × {row.other}" if row.other else row.choice
        table.add_row(name, *(_cell(keyed, (of, method, row.choice, row.other)) for of, method in COLUMNS))
    hidden = len(all_pairs) - min(pairs, len(all_pairs))
    if hidden:
        table.add_row(several(hidden, "other pair"), *_hidden_shares(effects, pairs), style="dim")
    table.add_row(REST, *(_cell(keyed, (of, method, REST, "")) for of, method in COLUMNS), style="dim")
    return table


def _hidden_shares(effects: pd.DataFrame, pairs: int) -> list[str]:
    """Return the summed shares of the pairs that have no row."""
    overall = effects[(effects["of"] == ALL) & (effects["other"] != "")]
    names = {(row.choice, row.other) for row in overall.iloc[pairs:].itertuples()}
    cells = []
    for of in (ALL, BEST):
        rows = effects[(effects["of"] == of) & (effects["method"] == FANOVA)]
        total = sum(row.share for row in rows.itertuples() if (row.choice, row.other) in names)
        cells.append(f"{100 * total:.1f}%{'':21s}")
    return [*cells, ""]


def _cell(keyed: pd.DataFrame, key: tuple[str, ...]) -> str:
    """Return `41.2% (30.1 to 55.0)`, with a `·` if chance alone reaches that share."""
    if key not in keyed.index:
        return ""
    row = keyed.loc[key]
    mark = " " if row["clear"] or math.isnan(row["null"]) else "·"
    return f"{100 * row['share']:.1f}% ({100 * row['low']:4.1f} to {100 * row['high']:5.1f}) {mark}"


def notes(evidence: Evidence, overall: Fanova, best: Fanova, folder: StudyFolder, by: str) -> list[str]:
    """Return notes on the reliability of the shares, one per line."""
    ceiling = best.ceiling or 0
    lines = [
        "",
        f"explained by single choices {overall.single:.0%}, by pairs {overall.pairs:.0%}, by three and more"
        f" {overall.forest.shares.rest:.0%} of the variance that the forest predicts over the space; 95% intervals by"
        " bootstrap over trials; ·: not distinguishable from chance",
        f"forest    R² out of bag {overall.r2:.2f} over all, {best.r2:.2f} for the best tenth (where errors"
        f" above {METRICS[evidence.objective].format(ceiling)} count as that value; the best"
        f" {int((evidence.errors < ceiling).sum())} are below)",
    ]
    names = {"over all": overall, "for the best tenth": best}
    unreliable = [name for name, fanova in names.items() if not fanova.believable]
    if unreliable:
        lines.append(
            f"note      the fANOVA shares {joined(unreliable)} are not reliable: with R² below {BELIEVABLE} the forest"
            " does not generalise to unseen networks; run more trials, or the choices do not determine the error"
        )
    early = evidence.left_out.get("stopped", 0) + evidence.left_out.get("paused", 0)
    if early and evidence.epoch is None:
        lines.append(
            f"note      {several(early, 'trial')} that trained for fewer epochs {'is' if early == 1 else 'are'} left"
            f" out, the worse ones; `--epoch {_common_epoch(folder)}` compares all trials that reached that epoch"
        )
    if by == CHOICES and evidence.space.limits.stated():
        lines.append("note      fANOVA covers the whole space of choices, including networks outside the limits")
    if by == SPEC:
        lines.append(
            "note      a network's properties depend on each other (params and macs follow from the others), so each"
            " may show the effect of another; fANOVA treats them as independent"
        )
    elif any(choice.when for choice in evidence.space.choices):
        lines.append(
            "note      a conditional choice has no effect where its condition is false; its share includes that"
        )
    return lines


def _common_epoch(folder: StudyFolder) -> int:
    records = folder.records()
    ended = [record.epochs for record in records if record.state in ("stopped", "paused") and record.epochs]
    return decision_epoch(folder.events(), ended, max(record.epochs_planned for record in records))
