"""Results of an ablation: its variants, the measured values and the tests of their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnas.ablation.parse import AUTO
from dnas.ablation.variants import Cell, Variant, freeze
from dnas.analysis.metrics import METRICS, Metric, named_metric
from dnas.analysis.paired import Effects, compare_with_base, factorial_effects
from dnas.analysis.sequential import race_with_base
from dnas.arch import parse_name
from dnas.batch.planned import read_runs
from dnas.errors import InputError
from dnas.study.folder import StudyFolder, find_study
from dnas.study.record import TrialRecord
from dnas.training.recipe import Recipe

FACTORIALS = ("factorial", "fractional")


@dataclass(frozen=True)
class Ablation:
    """An ablation as far as it has been run.

    Attributes:
        folder: The study. Numbers from elsewhere (`dnas compare`) have a folder that does not exist.
        config: Content of its study.toml.
        name: Name of the study.
        question: Question of the study.
        design: Kind of design.
        equal: Quantity held equal.
        base: Name of the base.
        variants: The variants, the base first. Those of the user's own scripts are no networks (`networks`).
        records: Records of the runs that were started.
        values: Values of the metric (errors as fractions), one row per seed and one column per variant, the base first.
            NaN if there is no result.
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
    variants: tuple[Cell, ...]
    records: tuple[TrialRecord, ...]
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
    def networks(self) -> tuple[Variant, ...]:
        """The variants, if dnas trained them."""
        return tuple(variant for variant in self.variants if isinstance(variant, Variant))

    @property
    def frame(self) -> pd.DataFrame:
        """One row per run of a study on disk (`read_runs`)."""
        return read_runs(self.folder.path)

    @property
    def metric(self) -> Metric:
        return self.effects.metric

    @property
    def numbers(self) -> pd.DataFrame:
        """The values, one row per run: variant, seed and the metric. `dnas compare` reads them from a CSV file."""
        rows = self.values.melt(ignore_index=False, var_name="variant", value_name=self.metric.key).reset_index()
        return rows[["variant", "seed", self.metric.key]].dropna()


def read_ablation(study: str | Path) -> Ablation:
    """Read the ablation called `study` in ./studies, or at that path. It may be unfinished."""
    folder = find_study(study)
    config = folder.config()
    if "ablation" not in config:
        raise InputError(f"study {folder.name} is not an ablation.")
    return analyse(folder, config, folder.records())


def analyse(folder: StudyFolder, config: dict[str, Any], records: Sequence[TrialRecord]) -> Ablation:
    """Test the differences between the runs of an ablation. config: content of its study.toml."""
    table = config["ablation"]
    values = values_of(config, records)
    base, metric = table["base"], metric_of(config)
    options: dict[str, Any] = {"alpha": table["alpha"], "metric": metric}
    sequential, factorial = table["seeds"] == AUTO, None
    if sequential:
        effects = race_with_base(values, base, table["most"], **options)
    else:
        effects = compare_with_base(values, base, **options)
    if table["design"] in FACTORIALS and not sequential:
        levels = {row["name"]: _frozen(row["levels"]) for row in table["variants"]}
        factorial = factorial_effects(values, levels, levels[base], **options)
    return Ablation(
        folder=folder,
        config=config,
        name=config["name"] if is_external(config) else folder.name,
        question=table["question"],
        design=table["design"],
        equal=table["equal"],
        base=base,
        variants=_cells(config) if is_external(config) else _networks(config),
        records=tuple(records),
        values=values,
        effects=effects,
        factorial=factorial,
    )


def is_external(config: Mapping[str, Any]) -> bool:
    """True if the numbers come from a command, a function or a file of the user's, and not from networks of dnas."""
    return "metric" in config["ablation"]


def metric_of(config: Mapping[str, Any]) -> Metric:
    """Return the metric that an ablation compares."""
    if not is_external(config):
        return METRICS[config["objective"]]
    return named_metric(config["objective"], **config["ablation"]["metric"])


def read_values(folder: StudyFolder) -> pd.DataFrame:
    """Return the values of the complete runs, as in `Ablation.values`."""
    return values_of(folder.config(), folder.records())


def values_of(config: Mapping[str, Any], records: Sequence[TrialRecord]) -> pd.DataFrame:
    """Return the values of the complete runs, one row per planned seed (ascending) and one column per variant."""
    names = [row["name"] for row in config["ablation"]["variants"]]
    planned = {row["key"]: row for row in config["runs"]}
    seeds = sorted({row["seed"][0] for row in planned.values()})
    values = pd.DataFrame(np.nan, index=pd.Index(seeds, name="seed"), columns=names)
    for record in records:
        row = planned[record.params["key"]]
        if record.state == "complete" and row["group"] in values:
            values.loc[row["seed"][0], row["group"]] = record.objectives[config["objective"]]
    return values


def _frozen(levels: Mapping[str, Any]) -> dict[str, Any]:
    return {key: freeze(value) for key, value in levels.items()}


def _cells(config: Mapping[str, Any]) -> tuple[Cell, ...]:
    return tuple(Cell(row["name"], _frozen(row["levels"])) for row in config["ablation"]["variants"])


def _networks(config: Mapping[str, Any]) -> tuple[Variant, ...]:
    rows = {row["group"]: row for row in reversed(config["runs"])}
    variants = []
    for table in config["ablation"]["variants"]:
        run = rows.get(table["name"])
        data = {key: value for key, value in (run["data"] if run else {}).items() if key != "split_seed"}
        variants.append(
            Variant(
                name=table["name"],
                levels=_frozen(table["levels"]),
                spec=parse_name(table["network"]),
                recipe=Recipe.from_dict(run["recipe"] if run else config["recipe"]),
                data=data,
                params=table["params"],
                macs=table["macs"],
                residual=table.get("residual"),
                changed=_frozen(table["changed"]),
            )
        )
    return tuple(variants)
