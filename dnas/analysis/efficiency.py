"""Error against size: the Pareto front of a study, the published results, and the noise floor."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from dnas.analysis.intervals import standard_error, wilson_interval
from dnas.arch import DenseNetSpec, LayerCost, Spec, cost, layer_costs, parse_name
from dnas.errors import InputError
from dnas.space.pareto import nondominated_ranks


@dataclass(frozen=True)
class Front:
    """The non-dominated trials: rows of the study's frame, ascending in params and so descending in error."""

    trials: pd.DataFrame

    @property
    def numbers(self) -> list[int]:
        return [int(number) for number in self.trials["number"]]


@dataclass(frozen=True)
class NoiseFloor:
    """Uncertainty of an error due to the finite validation part alone, with its Wilson 95% interval (`low`, `high`).

    A second run of the same network differs by more, because initialisation and data order vary too.
    """

    error: float
    size: int
    standard_error: float
    low: float
    high: float


def pareto_front(frame: pd.DataFrame, objectives: Sequence[str] = ("params", "val_error")) -> Front:
    """Return the complete trials that are not dominated in `objectives` (columns, minimised), ascending in the first.

    One trial dominates another if it is no worse in each and strictly better in one, so equal trials are all kept.
    frame: As returned by `dnas.study.folder.read_study`. Trials without a finite value in each are left out.
    """
    if frame.empty:
        return Front(frame.reindex(columns=["number", "network", *objectives]))
    for column in ("number", "state", *objectives):
        if column not in frame:
            raise InputError(
                f"a front needs the column {column}, but the frame has {', '.join(map(str, frame.columns))}."
            )
    complete = frame[frame["state"] == "complete"]
    numbers = complete[[*objectives]].apply(pd.to_numeric).astype(float)
    complete = complete[np.isfinite(numbers.to_numpy()).all(axis=1)]
    ordered = complete.sort_values([*objectives, "number"])
    return Front(ordered[nondominated_ranks(ordered[[*objectives]].to_numpy(float)) == 0])


def noise_floor(error: float, size: int) -> NoiseFloor:
    """Return the uncertainty of `error` (fraction) due to the random choice of `size` validation images."""
    low, high = wilson_interval(error, size)
    return NoiseFloor(error, size, standard_error(error, size), low, high)


# The columns of Table 2 for each data set: without augmentation, with it.
_TABLE_2 = {"cifar10": ("c10", "c10_plus"), "cifar100": ("c100", "c100_plus"), "svhn": ("svhn", None)}


def published(dataset: str) -> pd.DataFrame:
    """Return the paper's Table 2 for a data set: method, depth, params, augmented, test_error (a fraction).

    The errors are test errors of the last epoch after training on the complete training part (for CIFAR all 50,000
    images, for SVHN with its extra images). The table rounds params to 0.1 M. Methods without a size are left out. The
    frame is empty for other data sets.
    """
    rows = []
    for column, augmented in zip(_TABLE_2.get(dataset, ()), (False, True), strict=False):
        if column is None:
            continue
        for row in _read("table2_error_rates.csv").to_dict("records"):
            if math.isfinite(row["params_millions"]) and math.isfinite(row[column]):
                rows.append(
                    {
                        "method": row["method"],
                        "depth": int(row["depth"]),
                        "params": round(row["params_millions"] * 1e6),
                        "augmented": augmented,
                        "test_error": round(row[column] / 100, 6),
                    }
                )
    return pd.DataFrame(rows, columns=["method", "depth", "params", "augmented", "test_error"])


def published_table1() -> pd.DataFrame:
    """Return the paper's Table 1: model, growth_rate, block_1 to block_4 (layers)."""
    return _read("table1_imagenet_architectures.csv")


def published_table2() -> pd.DataFrame:
    """Return the DenseNets of Table 2 with their error on C10+ (a fraction): name, params_millions, error."""
    table = _read("table2_error_rates.csv")
    parts = table["method"].str.extract(r"^(DenseNet(?:-BC)?) \(k=(\d+)\)$")
    rows = table[parts[0].notna()]
    kinds = parts.loc[rows.index, 0].str.lower().str.replace("-", "_")
    names = kinds + "_" + rows["depth"].astype(int).astype(str) + "_" + parts.loc[rows.index, 1]
    frame = rows[["params_millions"]].assign(name=names, error=(rows["c10_plus"] / 100).round(6))
    return frame.reset_index(drop=True)


def published_imagenet() -> pd.DataFrame:
    """Return the single-crop top-1 errors of Table 3 (fractions): group, network, params, macs, error.

    The params and macs are computed by `dnas.arch.cost`.
    """
    table = _read("table3_imagenet.csv")
    costs = [cost(parse_name(model.lower().replace("-", ""))) for model in table["model"]]
    return pd.DataFrame(
        {
            "group": "DenseNet-BC",
            "network": table["model"],
            "params": [network.params for network in costs],
            "macs": [network.macs for network in costs],
            "error": (table["top1_single_crop"] / 100).round(6),
        }
    )


@dataclass(frozen=True)
class Published:
    """An error that the paper's tables list for a network.

    Attributes:
        table: Name of the table.
        tag: The paper's name of the data set, such as `C10+`.
        data: Description of the data set.
        error: Error, as a fraction.
        schedule: Description of the training schedule.
    """

    table: str
    tag: str
    data: str
    error: float
    schedule: str


# Columns of Table 2: heading, data set, its title, whether it is augmented, classes, and epochs (section 4.2).
_COLUMNS = {
    "c10": ("C10", "cifar10", "CIFAR-10", False, 10, 300),
    "c10_plus": ("C10+", "cifar10", "CIFAR-10", True, 10, 300),
    "c100": ("C100", "cifar100", "CIFAR-100", False, 100, 300),
    "c100_plus": ("C100+", "cifar100", "CIFAR-100", True, 100, 300),
    "svhn": ("SVHN", "svhn", "SVHN", False, 10, 40),
}


def published_for(spec: Spec, dataset: str) -> tuple[Published, ...]:
    """Return the published errors of this network, ignoring dropout. Empty if the paper has no such network.

    dataset: Name of the data set. If it is not one of the paper's, the errors on all data sets with the same number of
    classes are returned.
    """
    if not isinstance(spec, DenseNetSpec):
        return ()
    plain = replace(spec, dropout=0.0)
    if plain.stem == "imagenet":
        results = [
            Published(
                "Table 3",
                "ImageNet",
                "ImageNet, top-1 of a single crop",
                round(row["top1_single_crop"] / 100, 6),
                "90 epochs",
            )
            for row in _read("table3_imagenet.csv").to_dict("records")
            if parse_name(row["model"].lower().replace("-", "")).digest == plain.digest
        ]
        return tuple(results) if dataset not in _TABLE_2 else ()
    table = _read("table2_error_rates.csv")
    parts = table["method"].str.extract(r"^(DenseNet(?:-BC)?) \(k=(\d+)\)$")
    results = []
    for kind, k, row in zip(parts[0].str.lower(), parts[1], table.to_dict("records"), strict=True):
        if not isinstance(kind, str):
            continue
        listed_spec = parse_name(f"{kind}:L={int(row['depth'])},k={k},classes={plain.classes}")
        if listed_spec.digest != plain.digest:
            continue
        for column, (tag, name, title, augmented, classes, epochs) in _COLUMNS.items():
            wanted = dataset == name if dataset in _TABLE_2 else True
            if wanted and classes == plain.classes and math.isfinite(row[column]):
                schedule = f"{epochs} epochs, " + ("no dropout" if augmented else "dropout 0.2")
                data = f"{title} with shifts and flips" if augmented else f"{title} without augmentation"
                results.append(Published("Table 2", tag, data, round(row[column] / 100, 6), schedule))
    return tuple(results)


def _read(name: str) -> pd.DataFrame:
    with files("dnas").joinpath("published", name).open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#")


def within_reach(points: pd.DataFrame, frame: pd.DataFrame, factor: float = 4.0) -> pd.DataFrame:
    """Return the published points whose size is within `factor` of the study's range of sizes."""
    sizes = frame["params"].dropna() if "params" in frame else pd.Series(dtype=float)
    if points.empty or sizes.empty:
        return points.iloc[:0]
    return points[points["params"].between(sizes.min() / factor, sizes.max() * factor)].reset_index(drop=True)


def cost_by_part(spec: Spec) -> pd.DataFrame:
    """Return the cost of each part of a network (stem, block 1, transition 1, ..., classifier; stages for ResNets).

    The columns are part, layers, in_channels, out_channels, size (pixels per side), params, macs, activation_bytes (at
    batch 64), params_share and macs_share (fractions of the total). The out_channels of a block are the channels that
    the next part reads.
    """
    rows: list[dict[str, Any]] = []
    for name, costs in _parts(spec).items():
        rows.append(
            {
                "part": name,
                "layers": len(costs),
                "in_channels": costs[0].in_channels,
                "out_channels": costs[-1].out_channels,
                "size": costs[0].size,
                **{key: sum(getattr(c, key) for c in costs) for key in ("params", "macs", "activation_bytes")},
            }
        )
    for row, following in itertools.pairwise(rows):
        if row["part"].startswith("block"):
            row["out_channels"] = following["in_channels"]
    frame = pd.DataFrame(rows)
    return frame.assign(
        params_share=frame["params"] / frame["params"].sum(), macs_share=frame["macs"] / frame["macs"].sum()
    )


def part_of(layer: str) -> str:
    """Return the part that a layer belongs to: "denseblock1.denselayer3" -> "block 1", "transition1" -> "transition 1",
    "stage1.unit3" -> "stage 1"."""
    head = layer.partition(".")[0]
    for prefix, word in (("denseblock", "block"), ("transition", "transition"), ("stage", "stage")):
        if head.startswith(prefix):
            return f"{word} {head.removeprefix(prefix)}"
    return head


def _parts(spec: Spec) -> dict[str, list[LayerCost]]:
    parts: dict[str, list[LayerCost]] = {}
    for layer_cost in layer_costs(spec):
        parts.setdefault(part_of(layer_cost.name), []).append(layer_cost)
    return parts
