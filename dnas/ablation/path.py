"""Training of the networks on the path from one network of a search to its best."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import pandas as pd

from dnas.analysis.ablation_path import Path, Trained, find_path, params_of
from dnas.analysis.fanova import BOOTSTRAPS
from dnas.analysis.importance import Evidence
from dnas.arch import parse_name
from dnas.errors import InputError
from dnas.space.space import Space
from dnas.study.folder import StudyFolder
from dnas.study.record import rank

if TYPE_CHECKING:
    from dnas.batch.planned import PlannedRun

SEEDS = 3  # default number of seeds per network of the path


def path_of(folder: StudyFolder, evidence: Evidence, source: str | None = None, bootstraps: int = BOOTSTRAPS) -> Path:
    """Return the predicted path to the best network of a study.

    Args:
        folder: The study.
        evidence: Its trials, as returned by `dnas.analysis.evidence.read_evidence`.
        source: Start of the path: a trial's number or a network's name. Defaults to the first network of the space.
        bootstraps: Number of resamples of the trials, for the intervals.
    """
    best = next(iter(rank(folder.records())), None)
    if best is None:
        raise InputError(f"study {folder.name} has no complete trial yet.")
    return find_path(evidence, _source(folder, evidence.space, source), best.params, bootstraps)


def _source(folder: StudyFolder, space: Space, source: str | None) -> Mapping[str, Any]:
    if source is None:
        if not space.first:
            raise InputError(
                f"space {space.name} names no [[first]] network; set the start of the path: --from NAME, or a trial's"
                " number."
            )
        return space.first[0]
    if source.isdigit():
        for record in folder.records():
            if record.number == int(source):
                return record.params
        raise InputError(f"study {folder.name} has no trial {source}.")
    spec = parse_name(source)
    data_fields = {name: space.fixed[name] for name in ("in_channels", "image_size", "classes") if name in space.fixed}
    return params_of(space, dataclasses.replace(spec, **data_fields))


def planned(folder: StudyFolder, evidence: Evidence, path: Path, seeds: int) -> "list[PlannedRun]":
    """List the runs: each network of the path from each seed.

    A seed has its own split of the data, and all networks of a seed share its random streams. The search's seed and
    split, by which the best network was selected, are not used. The key of a run contains its network and seed, so
    another path of the same study trains only new networks.
    """
    from dnas.batch.planned import PlannedRun

    config = folder.config()
    used = {config["seed"], config["data"]["split_seed"]}
    fresh = itertools.islice((seed for seed in itertools.count(1) if seed not in used), seeds)
    nodes = {node.spec.digest: node for node in path.nodes}
    return [
        PlannedRun(
            _key(digest, seed),
            evidence.space.name_of(node.spec),
            node.spec,
            evidence.space.recipe,
            (seed, 0),
            {"split_seed": seed},
        )
        for seed in fresh
        for digest, node in nodes.items()
    ]


def _key(digest: str, seed: int) -> str:
    return f"{digest[:12]}/s{seed}"


def study_of_path(folder: StudyFolder) -> str:
    return f"{folder.name}_path"


def read_trained(folder: StudyFolder, evidence: Evidence, path: Path, seeds: int) -> Trained:
    """Return the results of the runs of `planned`."""
    from dnas.batch.planned import read_runs

    runs = planned(folder, evidence, path, seeds)
    frame = read_runs(StudyFolder(File("studies") / study_of_path(folder)).path)
    values = frame[frame["state"] == "complete"].set_index("key")[evidence.objective].to_dict()
    rows = {
        run.seed[0]: [values.get(_key(node.spec.digest, run.seed[0]), math.nan) for node in path.nodes] for run in runs
    }
    return Trained(pd.DataFrame.from_dict(rows, orient="index"))
