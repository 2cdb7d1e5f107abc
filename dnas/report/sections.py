"""Texts and tables of the page of a search, section by section, as plain values for the template."""

import dataclasses
import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from dnas import formatting as words
from dnas.analysis import cost_by_part, wilson_interval
from dnas.analysis.curves import error_curves
from dnas.analysis.metrics import METRICS
from dnas.analysis.observations import observe
from dnas.analysis.progress import best_so_far, timeline
from dnas.arch import DenseNetSpec, ResNetSpec, Spec
from dnas.errors import InputError
from dnas.figures.search import never_improved
from dnas.formatting import size
from dnas.report.data import Study, listed, objective_of, value
from dnas.report.figures import histories
from dnas.space.objectives import extra_metrics
from dnas.space.parse import parse_space
from dnas.strategy.script import script_of
from dnas.study.folder import StudyFolder
from dnas.study.record import STATES, TrialRecord

MAX_FRONT_ROWS = 12  # in the table below the figure; pareto.csv has all rows


def status(s: Study) -> dict[str, Any]:
    """Return the progress of the study: counts, times, and a note if it is not finished."""
    counts = Counter(record.state for record in s.records)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    times = sorted(t for record in s.records for t in (record.started, record.ended) if t)
    note = ""
    if not s.records:
        note = "No trial has been started yet."
    elif counts["running"]:
        note = (
            f"{words.several(counts['running'], 'trial is', 'trials are')} marked as running: the search is still"
            " running, or was interrupted. This page shows the state when it was written; write it again to update it."
        )
        if not counts["complete"]:
            note = "No trial is complete yet, so there is no best network. " + note
    elif not counts["complete"]:
        note = "No trial is complete, so there is no best network."
        if counts["failed"] + counts["infeasible"] == len(s.records):
            note = "Every trial failed, so there is no best network. The reasons are below."
    return {
        "note": note,
        "counts": words.joined(parts) if parts else "none",
        "trials": len(s.records),
        "asked": s.config.get("trials"),
        "first": times[0] if times else str(s.config.get("created", "")),
        "last": times[-1] if times else str(s.config.get("created", "")),
        "seconds": sum(record.seconds for record in s.records),
    }


def answer(s: Study) -> dict[str, Any]:
    space = s.config.get("space", {})
    # The title may end with a period; the sentence of the page continues after it.
    title = str(space.get("title") or space.get("name") or "").strip().rstrip(".")
    answer: dict[str, Any] = {
        "space": title or "an unnamed space",
        "networks": None,
        "choices": [],
        "data": s.data.get("title", s.data.get("name", "unknown data")),
        "limits": words.joined(
            [f"{key}\u00a0≤\u00a0{value:,.0f}" for key, value in s.config.get("limits", {}).items()] or [""]
        ),
        "minimised": _minimised(s),
        "standing": _standing(s) if s.best is not None else "",
        "best": None,
        "retrained": _retrained(s),
    }
    try:
        parsed_space = parse_space(str(space.get("text", "")), str(space.get("name", "")), "the space", check=False)
        points = parsed_space.size()
        answer["networks"] = "infinitely many" if points is None else words.big(points)
        answer["choices"] = [(choice.name, choice.describe()) for choice in parsed_space.choices]
    except InputError:
        pass  # a space of another version of dnas; its text is at the end of the page
    if s.best is not None:
        answer["best"] = {
            "number": s.best.number,
            "network": s.best.network,
            "val_error": s.best.val_error,
            "interval": (s.floor.low, s.floor.high) if s.floor else None,
            "val_size": s.floor.size if s.floor else None,
            "params": s.best.cost.get("params"),
            "macs": s.best.cost.get("macs"),
            "by": METRICS[s.objectives[0]].label if len(s.objectives) > 1 or s.objectives[0] != "val_error" else "",
            # Error, params and macs are shown separately.
            "more": [
                (METRICS[name].label, value(objective_of(s.best, name), name), _interval(s.best, name))
                for name in s.objectives
                if name not in ("val_error", "params", "macs")
            ],
        }
    return answer


def _interval(record: TrialRecord, name: str) -> str:
    """State the interval of a further metric; an empty text for other objectives."""
    if name not in record.metrics:
        return ""
    if name not in record.intervals:
        return "no interval"
    low, high = map(METRICS[name].format, record.intervals[name])
    return f"95% interval {low.rstrip('%')} to {high}, by bootstrap over the images"


def _standing(s: Study) -> str:
    """State the trials that tie with the best one, and whether the search improved on the networks it started from."""
    assert s.best is not None
    name = s.objectives[0]
    least = s.best.measured(name)
    tied = [r for r in s.of("complete") if r.measured(name) == least and r.number != s.best.number]
    given = [r.number for r in (s.best, *tied) if r.arm == "first"]
    text = ""
    if tied:
        some = words.joined([f"#{r.number}" for r in tied]) if len(tied) < 4 else f"{len(tied)} other trials"
        text = f"{some} {'has' if len(tied) == 1 else 'have'} the same {METRICS[name].label}."
    if given and len(s.of("complete")) > 1:
        text += f" The search started from #{given[0]} and found no lower {METRICS[name].noun}."
    return text.strip()


def _minimised(s: Study) -> str:
    """Describe the objectives and, with several objectives, the front."""
    first, rest = s.objectives[0], s.objectives[1:]
    if not rest:
        return f"The search minimised the {METRICS[first].label} alone."
    text = f"The search minimised {listed(s.objectives)} together"
    rows, complete = s.front.trials, len(s.of("complete"))
    if not len(rows):
        return text + "."
    text += f": {len(rows)} of {words.several(complete, 'complete network')} {'is' if len(rows) == 1 else 'are'} on the"
    text += " front"
    if len(rows) > 1:
        ends = rows.sort_values([rest[0], first]).iloc[[0, -1]]
        points = [f"{value(row[first], first)} at {value(row[rest[0]], rest[0])}" for _, row in ends.iterrows()]
        unit = f" {METRICS[rest[0]].label}" if METRICS[rest[0]].plural else ""
        text += f", which ranges from {points[0]}{unit} to {points[1]}"
    return text + "."


# Figures of the section "What mattered", in order, with their names where they are folded.
EXPLANATIONS = {
    "best_so_far": "the lowest error so far",
    "importance": "importance",
    "fanova": "functional ANOVA",
    "interactions": "interactions",
    "path": "the path from the first network to the best",
    "slices": "slices",
    "parallel": "parallel coordinates",
    "distribution": "the distribution of errors",
    "timeline": "the timeline",
}


def mattered(s: Study) -> dict[str, Any]:
    """Return the figures of "What mattered": those to show, those to fold with their names, and the finding.

    Figures that the trials do not support are folded, and so are those without a finding: the lowest error so far if it
    never fell, and the timeline of a single worker.
    """
    drawn = {name: text for name, text in EXPLANATIONS.items() if name in s.drawn}
    if not drawn:
        return {"finding": "", "shown": [], "folded": {}}
    finding, folded = "", {"distribution"}
    complete = len(s.of("complete"))
    try:
        r2 = s.fanova.r2
        believable = s.fanova.believable
    except InputError:
        r2, believable = math.nan, False
    if believable:
        if not s.fanova.effects.query("other != ''")["clear"].any():
            folded.add("interactions")
        if "importance" in drawn and not (s.importance["low"] > s.importance["null"]).any():
            folded.add("importance")
    else:
        folded |= {*drawn} - {"best_so_far", "timeline"}
        if complete:
            finding = f"{words.several(complete, 'complete trial')} {'is' if complete == 1 else 'are'} too few to say"
            finding += " what mattered"
            if math.isfinite(r2):
                finding += f": a model of their errors predicts unseen trials with R² = {r2:.2f}".replace("-", "\u2212")
            finding += "."
    if "best_so_far" in drawn and never_improved(best_so_far(s.records, s.objectives[0])):
        folded.add("best_so_far")
        finding += " The sampler did not improve on its first complete trial."
    if "timeline" in drawn and timeline(s.records, s.events)["lane"].max() == 0:
        folded.add("timeline")
    return {
        "finding": finding.strip(),
        "shown": [name for name in drawn if name not in folded],
        "folded": {name: text for name, text in drawn.items() if name in folded},
    }


def front(s: Study) -> dict[str, Any] | None:
    """Return the front as a table, for a search with several objectives."""
    if len(s.objectives) == 1 or not len(s.front.trials):
        return None
    records = {record.number: record for record in s.records}
    shared = shared_parts([record.network for record in s.records])
    return {
        "heads": [METRICS[name].label for name in s.objectives],
        "rows": [
            {
                "number": number,
                "network": without_parts(records[number].network, shared),
                "values": [value(objective_of(records[number], name), name) for name in s.objectives],
                "best": s.best is not None and number == s.best.number,
            }
            for number in s.front.numbers[:MAX_FRONT_ROWS]
        ],
        "more": max(0, len(s.front.numbers) - MAX_FRONT_ROWS),
    }


def _retrained(s: Study) -> list[dict[str, Any]]:
    """Return one row per retrained network, the best on validation first."""
    rows = []
    selected = {record.number: record for record in s.records}
    for number in dict.fromkeys(record.number for record in s.retrained):
        runs = [record for record in s.retrained if record.number == number]
        errors = [record.test_error for record in runs if record.test_error is not None]
        mean = statistics.fmean(errors) if errors else None
        test_size = runs[0].data.get("test_size") or s.data.get("test_size")
        rows.append(
            {
                "number": number,
                "network": runs[0].network,
                "params": runs[0].cost.get("params"),
                "val_error": selected[number].val_error if number in selected else None,
                "mean": mean,
                "range": (min(errors), max(errors)) if len(errors) > 1 else None,
                "interval": wilson_interval(mean, int(test_size)) if mean is not None and test_size else None,
                "test_size": test_size,
                "seeds": len(errors),
                "open": words.joined(
                    [f"{n} {state}" for state, n in Counter(r.state for r in runs).items() if state != "complete"]
                    or [""]
                ),
            }
        )
    return sorted(rows, key=lambda row: math.inf if row["val_error"] is None else row["val_error"])


def inside(s: Study) -> dict[str, Any] | None:
    if s.best is None:
        return None
    facts: list[tuple[str, str]] = []
    parts: list[Any] = []
    if s.best.spec:
        spec = s.best.network_spec
        facts = [*_facts(spec), ("digest", spec.digest)]
        parts = cost_by_part(spec).to_dict("records")
    costs = s.best.cost
    if costs.get("activation_bytes"):
        facts.append((f"activations, batch {costs.get('batch', 64)}", size(costs["activation_bytes"])))
    if s.best.peak_memory_bytes:
        facts.append(("peak memory", size(s.best.peak_memory_bytes)))
    return {
        "number": s.best.number,
        "network": s.best.network,
        "facts": facts,
        "parts": parts,
        "observations": _observations(s),
    }


def _observations(s: Study) -> list[dict[str, str]]:
    """Return the paper's four observations on feature reuse for the best network, or none if its norms are missing."""
    try:
        observations = observe(histories(s))
    except InputError:
        return []
    lines = []
    for observation in observations:
        if not math.isfinite(observation.value):
            continue
        interval = (
            f"95% {observation.low:.2f} to {observation.high:.2f}"
            if math.isfinite(observation.low)
            else "too few values for an interval"
        )
        before = f"; untrained {observation.untrained:.2f}" if observation.untrained is not None else ""
        lines.append(
            {
                "claim": observation.claim,
                "verdict": observation.verdict,
                "measured": f"{observation.measure} {observation.value:.2f} ({interval}{before};"
                f" the bar is {observation.bar:g})".replace("-", "\u2212"),
            }
        )
    return lines


def _growth(spec: DenseNetSpec) -> str:
    wider = sum(rate > k for k, rates in zip(spec.growth_rates, spec.layer_rates, strict=True) for rate in rates)
    return _joined(spec.growth_rate) + (f", plus 1 in {wider} of {sum(spec.block_layers)} layers" if wider else "")


def _family_facts(spec: Spec) -> list[tuple[str, str]]:
    match spec:
        case DenseNetSpec():
            return [
                ("growth rate k", _growth(spec)),
                ("layers in each block", _joined(spec.block_layers)),
                ("bottleneck", f"{spec.bottleneck}k" if spec.bottleneck else "none"),
                ("compression θ", f"{spec.compression:g}"),
                ("connectivity", spec.connectivity),
                ("dropout", f"{spec.dropout:g}"),
                ("stem", f"{spec.stem}, {spec.stem_width} channels"),
            ]
        case ResNetSpec():
            drop_rate = f"drop rate {spec.stochastic_depth:g} at the last unit" if spec.stochastic_depth else "none"
            return [
                ("width of each stage", _joined(spec.widths)),
                ("residual units in each stage", _joined(spec.stage_units)),
                ("bottleneck", f"expansion {spec.bottleneck}" if spec.bottleneck else "none"),
                ("stochastic depth", drop_rate),
                ("stem", f"{spec.stem}, {spec.stem_width} channels"),
            ]
    own = [f.name for f in dataclasses.fields(spec) if f.name not in ("in_channels", "image_size", "classes")]
    return [(name.replace("_", " "), _joined(getattr(spec, name))) for name in own]


def _facts(spec: Spec) -> list[tuple[str, str]]:
    return [
        ("kind", spec.title),
        ("depth L", str(spec.depth)),
        *_family_facts(spec),
        ("input", f"{spec.in_channels}×{spec.image_size}×{spec.image_size}, {spec.classes} classes"),
    ]


def _joined(numbers: int | tuple[int, ...]) -> str:
    return "-".join(map(str, numbers)) if isinstance(numbers, tuple) else str(numbers)


def rows(s: Study) -> list[dict[str, Any]]:
    lines, shared = sparklines(s.curves), shared_parts([record.network for record in s.records])
    fronted = set(s.front.numbers)
    return [
        {
            "record": record,
            "params": record.cost.get("params"),
            "macs": record.cost.get("macs"),
            "short": without_parts(record.network, shared),
            "front": record.number in fronted,
            "best": s.best is not None and record.number == s.best.number,
            "line": lines.get(record.number),
            "more": [(number := objective_of(record, name), value(number, name)) for name in columns(s)],
        }
        for record in s.records
    ]


LOG_LETTERS = 4_000  # number of characters shown from the end of a traceback


def details(s: Study) -> Markup:
    """Return the choices of each trial, its curve, its log and the command that exports it, by its number."""

    def facts(record: TrialRecord) -> dict[str, Any]:
        return {
            **record.params,
            "name": record.network,
            "digest": record.digest,
            "folder": f"trials/{record.number}",
            "peak memory": size(record.peak_memory_bytes) if record.peak_memory_bytes else None,
            "host": f"{record.host}, {record.device}" if record.host else None,
            "kernels": record.kernels,
        }

    return details_of(s.folder, s.records, s.curves, facts)


def details_of(
    folder: StudyFolder,
    records: Sequence[TrialRecord],
    curves: pd.DataFrame,
    facts: Callable[[TrialRecord], Mapping[str, Any]],
) -> Markup:
    """Return what opens below each row of a table of trials, as JSON that is safe inside a page.

    Args:
        folder: The study.
        records: Its trials.
        curves: As returned by `learning_curves`.
        facts: Function that returns the facts of a trial. Those that are None are left out.
    """
    known = error_curves(curves)
    trials: dict[int, dict[str, Any]] = {}
    for record in records:
        path = folder.trial_folder(record.number)
        trial = trials[record.number] = {
            "facts": {key: str(value) for key, value in facts(record).items() if value is not None}
        }
        if record.number in known:
            trial["curve"] = [round(value, 5) for value in known[record.number][:, 1].tolist()]
        if (path / "checkpoint.pt").is_file():
            trial["command"] = f"dnas export {shlex.quote(folder.name)} --trial {record.number} -o {record.number}.onnx"
        if record.state == "failed" and (path / "traceback.txt").is_file():
            trial["log"] = (path / "traceback.txt").read_text(encoding="utf-8", errors="replace")[-LOG_LETTERS:]
    return Markup(json.dumps(trials, separators=(",", ":")).replace("<", "\\u003c"))


def columns(s: Study) -> dict[str, str]:
    """Return the objectives that need an additional column in the table of trials, with its header."""
    heads = {"val_loss": "val loss", "activation_bytes": "activations", "latency": "latency"}
    heads |= {name: METRICS[name].noun for name in extra_metrics(s.objectives)}
    return {name: heads[name] for name in s.objectives if name in heads}


def shared_parts(networks: list[str]) -> set[str]:
    """Return the parts that all names share because the data set determines them, such as `channels=1` and `size=8`.

    Tables are more readable without them.
    """
    parts = [set(name.partition(":")[2].split(",")) for name in networks]
    fixed = ("channels=", "size=", "classes=", "stem=")
    return {part for part in set.intersection(*parts) if part.startswith(fixed)} if len(parts) > 1 else set()


def without_parts(network: str, shared: set[str]) -> str:
    head, colon, tail = network.partition(":")
    return head + colon + ",".join(part for part in tail.split(",") if part not in shared)


SPARK = (72, 22)


def sparklines(curves: pd.DataFrame) -> dict[int, str]:
    """Return the points of an SVG polyline of each trial's validation error, on a shared log scale and epoch axis."""
    known = error_curves(curves)
    positive = [error for curve in known.values() for error in curve[:, 1].tolist() if error > 0]
    if not positive:
        return {}
    low, high = math.log(min(positive)), math.log(max(positive))
    last = max(2, *(int(curve[-1, 0]) for curve in known.values()))
    width, height = SPARK[0] - 4, SPARK[1] - 4
    lines = {}
    for number, curve in known.items():
        places = [
            (
                2 + width * (epoch - 1) / (last - 1),
                2 + height * (1 - (max(low, math.log(error)) - low if error > 0 else 0) / ((high - low) or 1)),
            )
            for epoch, error in curve.tolist()
        ]
        if len(places) == 1:
            places.append((places[0][0] + 2, places[0][1]))
        lines[number] = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return lines


def reproduction(s: Study) -> dict[str, Any]:
    c = s.config
    inputs = [(key, c.get(key)) for key in ("seed", "objective", "sampler", "control", "stopping", "trials", "created")]
    return {
        "script": script_of(s.folder),
        "replay": f"dnas replay {shlex.quote(s.folder.name)}",
        "groups": facts_of_study(c, inputs, s.records[0].host if s.records else None),
        "space": c.get("space", {}).get("text"),
        "space_name": c.get("space", {}).get("name", "space"),
    }


def facts_of_study(
    c: Mapping[str, Any], inputs: list[tuple[str, Any]], host: str | None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return groups of facts from study.toml, each with a title. Missing facts are left out."""
    d = c.get("data", {})
    machine = [
        ("host", c.get("host") or host),
        ("device", c.get("device")),
        ("threads", c.get("threads")),
        ("kernels", c.get("kernels")),
        ("commit", c.get("commit")),
    ]
    data = [
        ("data", d.get("title")),
        ("fingerprint", d.get("fingerprint")),
        ("source", d.get("source")),
        ("split seed", d.get("split_seed", c.get("split_seed"))),
        ("subset", d.get("subset")),
        ("augmentation", d.get("augmentation")),
    ]
    return [
        (title, [(key, str(value)) for key, value in rows if value not in (None, "")])
        for title, rows in (
            ("Study", inputs),
            ("Recipe", list(c.get("recipe", {}).items())),
            ("Data", data),
            ("Machine", machine),
            ("Versions", list(c.get("versions", {}).items())),
        )
    ]
