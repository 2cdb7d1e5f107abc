"""Ablation studies as `dnas ablate` would leave them, with given errors instead of training."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnas.arch import DenseNetSpec, Spec, cost, format_name
from dnas.study.config import LIST
from dnas.study.folder import StudyFolder
from tests.support.studies import DATA, VERSIONS, add_trial, write_curve

TEXT = """\
# Do bottlenecks and compression help, at equal params?
base = "densenet:L=10,k=8"
design = "factorial"
equal = "params"

[factors]
bottleneck  = [0, 4]
compression = [1.0, 0.5]
"""
PLAIN = DenseNetSpec((2, 2, 2), growth_rate=8, bottleneck=0, compression=1.0, in_channels=1, image_size=8)
# Levels and spec by name of a variant, for two factors of two levels each. The first variant is the base.
VARIANTS: dict[str, tuple[dict[str, Any], Spec]] = {
    "plain": ({"bottleneck": 0, "compression": 1.0}, PLAIN),
    "B": ({"bottleneck": 4, "compression": 1.0}, dataclasses.replace(PLAIN, bottleneck=4)),
    "C": ({"bottleneck": 0, "compression": 0.5}, dataclasses.replace(PLAIN, compression=0.5)),
    "BC": ({"bottleneck": 4, "compression": 0.5}, dataclasses.replace(PLAIN, bottleneck=4, compression=0.5)),
}


def make_ablation(
    path: Path,
    errors: Mapping[str, Mapping[int, float | str]],
    variants: Mapping[str, tuple[dict[str, Any], Spec]] = VARIANTS,
    *,
    design: str = "factorial",
    equal: str = "nothing",
    epochs: int = 6,
    data: Mapping[str, Any] | None = None,
    residuals: Mapping[str, float] | None = None,
    seeds: list[int] | str | None = None,
    most: int | None = None,
    earlier: list[int] | None = None,
    question: str = "Do bottlenecks and compression help?",
    records: Mapping[str, Any] | None = None,
    **config: Any,
) -> StudyFolder:
    """Create a study whose runs have given outcomes.

    Args:
        path: Folder of the study.
        errors: Validation error, or state of a run without one, by variant and seed.
        variants: Levels and spec by name of a variant. The first one is the base.
        design: Design of the ablation.
        equal: Cost that variants are matched in.
        epochs: Epochs of each run.
        data: Changes to the description of the data.
        residuals: Relative differences in params from the base, by variant.
        seeds: Seeds, or the text that requests them; by default, the seeds of `errors`.
        most: Largest number of seeds.
        earlier: Seeds of earlier rounds.
        question: Question of the ablation.
        records: Fields that all records share.
        config: Changes to study.toml.

    Returns:
        Folder of the study.
    """
    study = StudyFolder(path)
    facts = DATA | dict(data or {})
    base = next(iter(variants))
    given_seeds = sorted({seed for row in errors.values() for seed in row})
    recipe = {"name": "fast", "epochs": epochs, "batch_size": 64, "learning_rate": 0.1, "schedule": "one-cycle"}
    keys = [(name, seed) for seed in given_seeds for name in variants if seed in errors.get(name, {})]
    rows = [
        {
            "key": f"{name}/s{seed}",
            "group": name,
            "network": format_name(variants[name][1]),
            "digest": variants[name][1].digest,
            "seed": [seed, 0],
            "recipe": recipe,
            "data": {"split_seed": seed},
        }
        for name, seed in keys
    ]
    costs = {name: cost(spec) for name, (_, spec) in variants.items()}
    ablation = {
        "question": question,
        "text": TEXT,
        "base": base,
        "design": design,
        "equal": equal,
        "tolerance": 0.01,
        "alpha": 0.05,
        "seeds": given_seeds if seeds is None else seeds,
        **({"most": most} if most else {}),
        **({"earlier": earlier} if earlier else {}),
        "factors": {key: list(dict.fromkeys(v[0][key] for v in variants.values())) for key in variants[base][0]},
        "variants": [
            {
                "name": name,
                "levels": levels,
                "network": format_name(spec),
                "params": costs[name].params,
                "macs": costs[name].macs,
                "residual": (residuals or {}).get(name, costs[name].params / costs[base].params - 1),
                "epochs": epochs,
                "changed": {key: value for key, value in levels.items() if value != variants[base][0][key]},
            }
            for name, (levels, spec) in variants.items()
        ],
    }
    study.create(
        {
            "name": path.name,
            "kind": LIST,
            "created": "2026-01-02T03:04:05+00:00",
            "command": f"dnas ablate {path.name} --seeds {len(given_seeds)}",
            "trials": len(rows),
            "seed": 0,
            "objective": "val_error",
            "sampler": LIST,
            "stopping": "none",
            "device": "cpu",
            "threads": 1,
            "host": "test-host",
            "commit": "f" * 40,
            "space": {"name": LIST, "title": question, "text": ""},
            "limits": {},
            "recipe": recipe,
            "data": facts,
            "versions": VERSIONS,
            "runs": rows,
            "ablation": ablation,
        }
        | config
    )
    test = study.config()["objective"] == "test_error"
    for number, (name, seed) in enumerate(keys):
        outcome = errors[name][seed]
        state = "complete" if not isinstance(outcome, str) else outcome
        error = outcome if not isinstance(outcome, str) else None
        record = add_trial(
            study,
            number,
            variants[name][1],
            state,
            epochs,
            arm="listed",
            data=facts | {"split_seed": seed},
            seed=[seed, 0],
            params={"key": f"{name}/s{seed}", "group": name},
            recipe=recipe,
            **({"test_error": error} if test else {"val_error": error}),
            **(records or {}),
        )
        if isinstance(error, float):
            _end_at(study, record.number, error, seed)
    return study


def _end_at(study: StudyFolder, number: int, error: float, seed: int) -> None:
    """Write a curve that falls to `error`."""
    rng = np.random.default_rng(seed)
    last = len(study.curve(study.trial_folder(number)))
    rows = [
        {
            "epoch": epoch,
            "train_loss": 2.3 * value,
            "train_error": 0.8 * value,
            "val_loss": 2.6 * value,
            "val_error": value,
            "learning_rate": 0.1,
            "seconds": 1.5,
        }
        for epoch in range(1, last + 1)
        for value in [min(0.95, error * (1 + 4 * (1 - epoch / last)) + (epoch < last) * 0.02 * float(rng.random()))]
    ]
    write_curve(study.trial_folder(number), rows)
