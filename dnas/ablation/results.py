"""Results of an ablation: its variants, the measured errors and the tests of their differences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnas.ablation.parse import AUTO
from dnas.ablation.variants import Variant, freeze
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
    """An ablation as far as it has been run.

    Attributes:
        folder: The study.
        config: Content of its study.toml.
        name: Name of the study.
        question: Question of the study.
        design: Kind of design.
        equal: Quantity held equal.
        base: Name of the base.
        variants: The variants, the base first.
        frame: One row per run (`read_runs`).
        values: Measured errors as fractions, one row per seed and one column per variant, the base first. NaN if there
            is no result.
        effects: Comparisons of each variant with the base.
        factorial: Main effects and interactions of a factorial design, else None. Also None after `--seeds auto`, where
            the comparisons determine the number of seeds, which invalidates tests of other effects.
    """

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
        """Numbers of seeds with results at the times when more were requested.

        p is exact for a number of seeds that was fixed beforehand, and too small after looks at the results.
        """
        return tuple(self.config["ablation"].get("earlier", ()))

    @property
    def measure(self) -> str:
        """Measured quantity, `val_error` or `test_error`."""
        return str(self.config["objective"])


def read_ablation(study: str | Path) -> Ablation:
    """Read the ablation called `study` in ./studies, or at that path. It may be unfinished."""
    folder = find_study(study)
    config = folder.config()
    table = config.get("ablation")
    if table is None:
        raise InputError(f"study {folder.name} is not an ablation.")
    variants = _variants(config)
    values = read_values(folder)
    base, options = table["base"], {"alpha": table["alpha"], "measure": config["objective"]}
    sequential, factorial = table["seeds"] == AUTO, None
    if sequential:
        effects = race_with_base(values, base, table["most"], **options)
    else:
        effects = compare_with_base(values, base, **options)
    if table["design"] in FACTORIALS and not sequential:
        levels = {variant.name: variant.levels for variant in variants}
        factorial = factorial_effects(values, levels, levels[base], **options)
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
    """Return the errors of the complete runs, one row per planned seed (ascending) and one column per variant."""
    config = folder.config()
    names = [row["name"] for row in config["ablation"]["variants"]]
    planned = {row["key"]: row for row in config["runs"]}
    seeds = sorted({row["seed"][0] for row in planned.values()})
    values = pd.DataFrame(np.nan, index=pd.Index(seeds, name="seed"), columns=names)
    for record in folder.records():
        row = planned[record.params["key"]]
        if record.state == "complete" and row["group"] in values:
            values.loc[row["seed"][0], row["group"]] = record.objectives[config["objective"]]
    return values


def _variants(config: dict[str, Any]) -> tuple[Variant, ...]:
    rows = {row["group"]: row for row in reversed(config["runs"])}
    variants = []
    for table in config["ablation"]["variants"]:
        run = rows.get(table["name"])
        data = {key: value for key, value in (run["data"] if run else {}).items() if key != "split_seed"}
        variants.append(
            Variant(
                name=table["name"],
                levels={key: freeze(value) for key, value in table["levels"].items()},
                spec=parse_name(table["network"]),
                recipe=Recipe.from_dict(run["recipe"] if run else config["recipe"]),
                data=data,
                params=table["params"],
                macs=table["macs"],
                residual=table.get("residual"),
                changed={key: freeze(value) for key, value in table["changed"].items()},
            )
        )
    return tuple(variants)
