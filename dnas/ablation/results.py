"""An ablation that was run, as plain values: its variants, what was measured, and what may be concluded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnas.ablation.parse import AUTO, Variant
from dnas.analysis.paired import Effects, compare_with_base, factorial_effects
from dnas.analysis.sequential import race_with_base
from dnas.arch import parse_name
from dnas.batch.runs import read_runs
from dnas.errors import InputError
from dnas.study.folder import StudyFolder, find_study
from dnas.training.recipe import Recipe

FACTORIALS = ("factorial", "fractional")


@dataclass(frozen=True)
class Ablation:
    """frame: a row a run (`read_runs`). values: a row a seed and a column a variant, the base first: the
    measured error, NaN where there is none. effects: each variant against the base. factorial: main effects and
    interactions of a factorial design, else None: after `--seeds auto` too, since tests of them would not hold where
    the comparisons decide how many seeds there are."""

    folder: StudyFolder
    config: dict[str, Any]
    name: str
    question: str
    design: str
    equal: str
    base: str
    variants: tuple[Variant, ...]
    frame: pd.DataFrame
    values: pd.DataFrame
    effects: Effects
    factorial: Effects | None

    @property
    def earlier(self) -> tuple[int, ...]:
        """Numbers of seeds that there were results of when more were asked for: p is exact for a number that was
        settled beforehand, and smaller than it should be after such looks."""
        return tuple(self.config["ablation"].get("earlier", ()))

    @property
    def measure(self) -> str:
        """`val_error` or `test_error`."""
        return str(self.config["objective"])


def read_ablation(study: str | Path) -> Ablation:
    """The ablation called `study` in ./studies, or at that path, as far as it has come."""
    folder = find_study(study)
    config = folder.config()
    table = config.get("ablation")
    if table is None:
        raise InputError(f"study {folder.name} is no ablation.")
    variants = _variants(config)
    values = read_values(folder)
    base, judged = table["base"], {"alpha": table["alpha"], "measure": config["objective"]}
    raced, factorial = table["seeds"] == AUTO, None
    effects = (
        race_with_base(values, base, table["most"], **judged) if raced else compare_with_base(values, base, **judged)
    )
    if table["design"] in FACTORIALS and not raced:
        levels = {variant.name: variant.levels for variant in variants}
        factorial = factorial_effects(values, levels, levels[base], **judged)
    return Ablation(
        folder=folder,
        config=config,
        name=folder.name,
        question=table["question"],
        design=table["design"],
        equal=table["equal"],
        base=table["base"],
        variants=variants,
        frame=read_runs(folder.path),
        values=values,
        effects=effects,
        factorial=factorial,
    )


def read_values(folder: StudyFolder) -> pd.DataFrame:
    """A row a seed that was listed, ascending, and a column a variant: the error of the complete runs, else NaN."""
    config = folder.config()
    names = [row["name"] for row in config["ablation"]["variants"]]
    listed = {row["key"]: row for row in config["runs"]}
    seeds = sorted({row["seed"][0] for row in listed.values()})
    values = pd.DataFrame(np.nan, index=pd.Index(seeds, name="seed"), columns=names)
    for record in folder.records():
        row = listed[record.params["key"]]
        if record.state == "complete" and row["group"] in values:
            values.loc[row["seed"][0], row["group"]] = record.objectives[config["objective"]]
    return values


def _variants(config: dict[str, Any]) -> tuple[Variant, ...]:
    rows = {row["group"]: row for row in reversed(config["runs"])}
    found = []
    for table in config["ablation"]["variants"]:
        run = rows.get(table["name"])
        data = {key: value for key, value in (run["data"] if run else {}).items() if key != "split_seed"}
        found.append(
            Variant(
                name=table["name"],
                levels={key: _frozen(value) for key, value in table["levels"].items()},
                spec=parse_name(table["network"]),
                recipe=Recipe.from_dict(run["recipe"] if run else config["recipe"]),
                data=data,
                params=table["params"],
                macs=table["macs"],
                residual=table.get("residual"),
                changed={key: _frozen(value) for key, value in table["changed"].items()},
            )
        )
    return tuple(found)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
