"""Ablations of numbers that exist: a CSV file with one row per run, whose columns are variant, seed and a metric."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnas.ablation.command import finite
from dnas.ablation.results import Ablation, analyse
from dnas.analysis.metrics import named_metric
from dnas.analysis.pairs import check_alpha
from dnas.errors import InputError, did_you_mean
from dnas.executors.command import RunFailed
from dnas.formatting import joined
from dnas.io import read_text
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord

VARIANT, SEED, BUDGET = "variant", "seed", "budget"

Values = dict[str, dict[int, float]]  # variant -> seed -> value


def compare_numbers(
    path: Path,
    base: str,
    *,
    metric: str | None = None,
    maximize: bool = False,
    error_rate: bool = False,
    alpha: float = 0.05,
    command: str = "",
) -> Ablation:
    """Compare the variants of a CSV file with its base, as an ablation of the same numbers does.

    Args:
        path: The file. Its columns are variant, seed and the metric. If it has a column budget, all budgets must be
            equal. Further columns do not matter.
        base: Name of the base.
        metric: Column of the metric (default: the only further column, or `value`).
        maximize: Whether larger values are better.
        error_rate: Whether the metric is a fraction of errors, shown in percent.
        alpha: Level of the family of tests.
        command: Command line that repeats the comparison, for the page.

    Raises:
        InputError: The file cannot be read, or its runs are not paired.
    """
    check_alpha(alpha)
    column, values = read_numbers(path, metric)
    if base not in values:
        raise InputError(
            f"{path} has no variant {base!r} to compare with; it has {', '.join(values)}.{did_you_mean(base, values)}"
        )
    if error_rate and (outside := next((v for row in values.values() for v in row.values() if not 0 <= v <= 1), None)):
        raise InputError(
            f"an error rate is a fraction from 0 to 1, but {path} has {outside:g}; leave out --error-rate."
        )
    names = [base, *(name for name in values if name != base)]
    rows = [(name, seed) for name in names for seed in sorted(values[name])]
    known = named_metric(column, maximize=maximize, error_rate=error_rate)
    records = [
        TrialRecord(
            number,
            state="complete",
            params={"key": f"{name}/s{seed}", "group": name},
            seed=[seed, 0],
            objectives={column: values[name][seed]},
        )
        for number, (name, seed) in enumerate(rows)
    ]
    config: dict[str, Any] = {
        "name": path.stem,
        "objective": column,
        "command": command,
        "data": {"title": f"the numbers of {path.name}"},
        "runs": [{"key": f"{name}/s{seed}", "group": name, "seed": [seed, 0]} for name, seed in rows],
        "ablation": {
            "question": "",
            "base": base,
            "design": "list",
            "equal": "nothing",
            "alpha": alpha,
            "seeds": sorted(values[base]),
            "metric": {"maximize": known.maximize, "error_rate": error_rate},
            "variants": [{"name": name, "levels": {}} for name in names],
        },
    }
    return analyse(StudyFolder(path.with_suffix("")), config, records)


def read_numbers(path: Path, metric: str | None = None) -> tuple[str, Values]:
    """Return the column of the metric, and its values by variant and seed.

    Raises:
        InputError: The file cannot be read, lacks a column or a number, or its runs are not paired.
    """
    if not path.is_file():
        raise InputError(f"no file {path}.")
    reader = csv.DictReader(read_text(path).removeprefix("\ufeff").splitlines())
    columns = [str(name).strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    column = _metric_column(path, columns, metric)
    values: Values = {}
    budgets: dict[str, tuple[str, int]] = {}
    for row in reader:
        name, seed = str(row[VARIANT] or "").strip(), _seed(path, reader.line_num, row)
        where = f"{path}, line {reader.line_num}: variant {name}, seed {seed}"
        if not name:
            raise InputError(f"{path}, line {reader.line_num}: the variant has no name.")
        if seed in values.setdefault(name, {}):
            raise InputError(f"{where} occurs twice; each variant has one run per seed.")
        try:
            values[name][seed] = finite(row[column], f"{column} is {row[column]!r}")
        except RunFailed as error:
            raise InputError(f"{where}: {error}.") from None
        if BUDGET in columns:
            budgets.setdefault(str(row[BUDGET] or "").strip(), (name, seed))
    _check_pairs(path, values, budgets)
    return column, values


def _metric_column(path: Path, columns: list[str], metric: str | None) -> str:
    if missing := [name for name in (VARIANT, SEED) if name not in columns]:
        raise InputError(
            f"{path} has no column {joined(missing)}; its first line must name the columns variant, seed and the"
            f" metric, but it is {','.join(columns)!r}."
        )
    others = [name for name in columns if name not in (VARIANT, SEED, BUDGET)]
    if metric is not None and metric not in others:
        raise InputError(f"{path} has no column {metric!r} of a metric.{did_you_mean(metric, others)}")
    if metric is None and len(others) != 1 and "value" not in others:
        listed = joined(others) or "no further column"
        raise InputError(f"{path} has {listed} beside variant and seed; name the metric's column with --metric.")
    return metric or ("value" if "value" in others else others[0])


def _seed(path: Path, line: int, row: Mapping[str, str | None]) -> int:
    try:
        return int(row[SEED] or "")
    except ValueError:
        raise InputError(f"{path}, line {line}: a seed is a whole number, but got {row[SEED]!r}.") from None


def _check_pairs(path: Path, values: Values, budgets: Mapping[str, tuple[str, int]]) -> None:
    """Raise `InputError` unless there are variants to compare, with the same seeds and budgets."""
    if len(values) < 2:
        raise InputError(f"{path} has {joined(list(values)) or 'no variant'} only; a comparison needs two variants.")
    first, *others = values
    for name in others:
        for one, other in ((name, first), (first, name)):
            if lacking := sorted(values[other].keys() - values[one].keys()):
                raise InputError(
                    f"{path}: the runs are not paired: {one} has no run of seed {lacking[0]}, but {other} has; run it,"
                    " or remove the seed from all variants."
                )
    if len(values[first]) < 2:
        raise InputError(f"{path} has one seed; one pair cannot show how much a difference varies.")
    if len(budgets) > 1:
        (budget, (name, seed)), (budget_2, (name_2, seed_2)) = list(budgets.items())[:2]
        raise InputError(
            f"{path}: the budgets are not equal: {budget or 'none'} for {name}, seed {seed}, but {budget_2 or 'none'}"
            f" for {name_2}, seed {seed_2}; compare runs of one budget."
        )
