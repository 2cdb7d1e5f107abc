"""A study as one page that answers in the order in which a reader asks, with its figures and tables beside it.

    reports/<study>/index.html    self-contained: styles, figures and the table's few lines of script are inside
    reports/<study>/*.svg, *.png  each figure
    reports/<study>/trials.csv    `dnas.study.read_study`; pareto.csv: the front's rows of it

Everything shown is read from the study's folder. Nothing here imports optuna, and torch only where the norms of the
best network must be taken from its checkpoint.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from dnas import figures
from dnas import wording as words
from dnas.analysis import (
    Front,
    NoiseFloor,
    cost_by_part,
    learning_curves,
    noise_floor,
    pareto_front,
    published,
    read_norms,
    weight_norms,
    wilson_interval,
    within_reach,
)
from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.files import write_atomic
from dnas.space import parse_space
from dnas.study import STATES, StudyFolder, TrialRecord, find_study, rank, read_study
from dnas.wording import count, duration, percent, size

TEMPLATES = Path(__file__).parent / "templates"
# Of `read_study`, for a study without a trial: even then trials.csv has its head.
COLUMNS = [
    *("number", "state", "arm", "network", "digest", "params", "macs", "activation_bytes", "val_error", "val_loss"),
    *("test_error", "epochs", "epochs_planned", "seconds", "peak_memory_bytes", "reason"),
]


@dataclass(frozen=True)
class Drawn:
    """A figure on the page: its files' stem, the SVG itself, and what a reader is told with it."""

    name: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Check:
    """One line of "Can I believe it". mark: `fine`, `mind` (it limits what the numbers say) or `fact`."""

    mark: str
    line: str
    body: str


@dataclass
class _Study:
    """All that the page is made from."""

    folder: StudyFolder
    config: dict[str, Any]
    records: list[TrialRecord]
    frame: pd.DataFrame
    front: Front
    curves: pd.DataFrame
    best: TrialRecord | None
    floor: NoiseFloor | None
    retrained: list[TrialRecord]
    published: pd.DataFrame
    out: Path
    drawn: dict[str, Drawn] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        return self.config.get("data", {})

    def of(self, *states: str) -> list[TrialRecord]:
        return [record for record in self.records if record.state in states]


def write_report(study: str | Path, out: Path | None = None) -> Path:
    """Writes the report of a study (its name in ./studies, or its folder) to `out`, else reports/<study>, and gives the
    path of its index.html. It works at any moment: before the first trial, while a search runs, after it."""
    s = _read(study, out)
    s.out.mkdir(parents=True, exist_ok=True)
    write_atomic(s.out / "trials.csv", s.frame.to_csv(index=False))
    write_atomic(s.out / "pareto.csv", s.front.trials.to_csv(index=False))
    _draw_all(s)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "params": words.params,
        "macs": words.macs,
        "count": count,
        "duration": duration,
    }
    page = environment.get_template("report.html.j2").render(
        name=str(s.config.get("name", s.folder.name)),
        status=_status(s),
        answer=_answer(s),
        checks=_checks(s),
        inside=_inside(s),
        rows=_rows(s),
        shared=", ".join(sorted(_shared([record.network for record in s.records]))),
        again=_again(s),
        figures=s.drawn,
        colours=figures.COLOURS,
    )
    write_atomic(s.out / "index.html", page)
    return s.out / "index.html"


def _read(study: str | Path, out: Path | None) -> _Study:
    folder = find_study(study)
    config, records, frame = folder.config(), folder.records(), read_study(folder.path)
    if frame.empty:
        frame = pd.DataFrame(columns=COLUMNS)
    best = next(iter(rank(records)), None)
    data = config.get("data", {})
    floor = None
    if best is not None and best.val_error is not None and data.get("val_size"):
        floor = noise_floor(best.val_error, int(data["val_size"]))
    # Parts of a data set, or images of another size, are another task than the paper's.
    whole = data.get("subset") is None and data.get("image_size", 32) == 32
    points = published(str(data.get("name", ""))) if whole else published("")
    points = points[points["augmented"] == (data.get("augmentation", "none") != "none")]
    return _Study(
        folder,
        config,
        records,
        frame,
        pareto_front(frame),
        learning_curves(folder),
        best,
        floor,
        [record for _, record in folder.retrained()],
        within_reach(points, frame),
        Path(out) if out is not None else Path("reports") / folder.name,
    )


# --- figures ------------------------------------------------------------------------------------------------------


def _draw_all(s: _Study) -> None:
    if any(record.val_error is not None for record in s.of("complete", "stopped")):
        number = s.best.number if s.best else None
        points = s.published if len(s.published) else None
        caption = (
            "Each mark is one network, trained once. The front joins the networks that no other one beats in both."
        )
        if points is not None:
            caption += " Published points are test errors after training on all images, at the paper's epochs."
        _draw(
            s,
            "error_against_params",
            lambda: figures.plot_error_against_params(s.frame, s.front, points, s.floor, number),
            caption,
        )
    if s.best is None:
        return
    best = s.best
    if len(s.curves) and (s.curves["number"] == best.number).any():
        _draw(
            s,
            "learning_curves",
            lambda: figures.plot_learning_curves(s.curves, best.number),
            "Validation error after each epoch, of every trial. The training error is a mean over the epoch's steps, on"
            " augmented images and with dropout where there is some, so it can lie above the validation error.",
        )
    if best.spec:
        _draw(
            s,
            "layer_costs",
            lambda: figures.plot_layer_costs(best.densenet),
            "Params and multiply-adds (for one image) of each layer.",
        )
    _draw(
        s,
        "weight_norms",
        lambda: figures.plot_weight_norms(weight_norms(read_norms(s.folder.trial_folder(best.number)))),
        "Root-mean-square weight of each layer's convolutions, over its value before the first step. The scale is that"
        " of the convolutions: no norm follows the classifier, so it can lie beyond the scale's ends.",
    )


def _draw(s: _Study, name: str, make: Callable[[], Figure], caption: str) -> None:
    """Draws one figure into its files and onto the page; what the study doesn't hold is left out."""
    try:
        figure = make()
    except InputError:
        return
    for suffix in ("svg", "png"):
        figures.save(figure, s.out / f"{name}.{suffix}")
    svg = (s.out / f"{name}.svg").read_text(encoding="utf-8")
    s.drawn[name] = Drawn(name, inline_svg(svg, name, f"{figures.title(figure)}. {caption}"), caption)


def inline_svg(svg: str, prefix: str, label: str) -> Markup:
    """matplotlib's SVG as an element of a page: without what is only for files, each id made unique by `prefix`."""
    box = re.search(r'viewBox="([\d. ]+)"', svg)
    assert box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", body)
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box[1], label)
    return head + Markup(body.strip())


# --- the answer ---------------------------------------------------------------------------------------------------


def _status(s: _Study) -> dict[str, Any]:
    """How far the study is, in a word and a sentence."""
    counts = Counter(record.state for record in s.records)
    parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    times = sorted(t for record in s.records for t in (record.started, record.ended) if t)
    word, note = "finished", ""
    if not s.records:
        word, note = "empty", "There is nothing yet: no trial has been started."
    elif counts["running"]:
        word = "running"
        note = (
            f"{words.several(counts['running'], 'trial is', 'trials are')} marked running: the search goes on, or was"
            " interrupted. This page shows what was there when it was written; write it again for more."
        )
    elif not counts["complete"]:
        word = "no result"
        note = "No trial is complete, so there is no network to name."
        if counts["failed"] + counts["infeasible"] == len(s.records):
            note = "Every trial failed, so there is no network to name. The reasons are below."
    if word == "running" and not counts["complete"]:
        note = "No trial is complete yet, so there is no network to name. " + note
    return {
        "note": note,
        "counts": words.joined(parts) if parts else "none",
        "trials": len(s.records),
        "asked": s.config.get("trials"),
        "first": times[0] if times else str(s.config.get("created", "")),
        "last": times[-1] if times else str(s.config.get("created", "")),
        "seconds": sum(record.seconds for record in s.records),
    }


def _answer(s: _Study) -> dict[str, Any]:
    space = s.config.get("space", {})
    # A space's first comment line ends as its author likes; the page goes on after it.
    title = str(space.get("title") or space.get("name") or "").strip().rstrip(".")
    answer: dict[str, Any] = {
        "space": title or "an unnamed space",
        "networks": None,
        "choices": [],
        "data": s.data.get("title", s.data.get("name", "unknown data")),
        "limits": words.joined(
            [f"{key}\u00a0≤\u00a0{value:,.0f}" for key, value in s.config.get("limits", {}).items()] or [""]
        ),
        "best": None,
        "retrained": _retrained(s),
    }
    try:
        read = parse_space(str(space.get("text", "")), str(space.get("name", "")), "the space")
        points = read.size()
        answer["networks"] = "endlessly many" if points is None else words.big(points)
        answer["choices"] = [(choice.name, choice.describe()) for choice in read.choices]
    except InputError:
        pass  # of another version of dnas: its text is at the end of the page
    if s.best is not None:
        answer["best"] = {
            "number": s.best.number,
            "network": s.best.network,
            "val_error": s.best.val_error,
            "interval": (s.floor.low, s.floor.high) if s.floor else None,
            "val_size": s.floor.size if s.floor else None,
            "params": s.best.cost.get("params"),
            "macs": s.best.cost.get("macs"),
        }
    return answer


def _retrained(s: _Study) -> list[dict[str, Any]]:
    """A row a network that was trained again, the best on validation first."""
    found = []
    selected = {record.number: record for record in s.records}
    for number in dict.fromkeys(record.number for record in s.retrained):
        runs = [record for record in s.retrained if record.number == number]
        errors = [record.test_error for record in runs if record.test_error is not None]
        mean = statistics.fmean(errors) if errors else None
        test_size = runs[0].data.get("test_size") or s.data.get("test_size")
        found.append(
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
    return sorted(found, key=lambda row: math.inf if row["val_error"] is None else row["val_error"])


# --- can I believe it ---------------------------------------------------------------------------------------------


def _checks(s: _Study) -> list[Check]:
    if not s.records:
        return [_split(s)]
    checks = [_selection(s), _seeds(s), _chance(s), _split(s), _test(s), _control(s), _stopping(s), _failures(s)]
    checks.append(_comparison(s))
    return [check for check in checks if check is not None]


def _selection(s: _Study) -> Check:
    objective = {"val_error": "validation error", "val_loss": "validation loss"}.get(
        s.config.get("objective", "val_error"), str(s.config.get("objective"))
    )
    return Check(
        "fine",
        f"The best network has the lowest {objective} after its last epoch",
        f"Each trial counts with its {objective} after the last epoch, not with the lowest of all epochs. Of equal ones"
        " the one with the fewest params is named, then the earlier. Only trials that ran to the end can be chosen.",
    )


def _seeds(s: _Study) -> Check:
    number = len(s.of("complete"))
    seeds = {tuple(r.seed[:1]) for r in s.retrained if r.test_error is not None}
    body = (
        "Every network was trained once, from one seed (n = 1): another initialisation and another order of the images"
        " would move each error."
    )
    if number > 1:
        body += (
            f" The best of {words.several(number, 'complete trial')} was chosen because its error is low, and part of"
            " that is luck: its validation error is optimistically biased, the more so the more trials there are."
        )
    if seeds:
        body += (
            f" The winners were trained again from {words.several(len(seeds), 'seed')}: their test errors above are"
            " free of that bias."
        )
    else:
        body += " Train the winners again from new seeds, and test them once, before you compare them with anything."
    return Check(
        "mind" if not seeds else "fact",
        "One seed a network" + (", and the best of many is flattered" if number > 1 else ""),
        body + f" Study seed {s.config.get('seed', 'unknown')}; trial i draws from (seed, i).",
    )


def _chance(s: _Study) -> Check | None:
    if s.floor is None:
        return None
    complete = [r for r in s.of("complete") if r.val_error is not None]
    inside = [r for r in complete if r.val_error is not None and r.val_error <= s.floor.high and r is not s.best]
    line = f"Chance in {s.floor.size:,} validation images alone: {percent(s.floor.low)} to {percent(s.floor.high)}"
    body = (
        f"The best network's error of {percent(s.floor.error)} has a binomial standard error of"
        f" {100 * s.floor.standard_error:.2f} points and a Wilson 95% interval of {percent(s.floor.low)} to"
        f" {percent(s.floor.high)}: the band in the figure. "
    )
    if len(complete) > 1:
        body += (
            f"{len(inside)} of the {len(complete) - 1} other complete {'network' if len(complete) == 2 else 'networks'}"
            f" {'lies' if len(inside) == 1 else 'lie'} inside it; this study can't tell"
            f" {'that one' if len(inside) == 1 else 'those'} from the best. "
            if inside
            else f"None of the {words.several(len(complete) - 1, 'other complete network')} lies inside it. "
        )
    body += "What the seed of a training adds is not in this interval."
    return Check("mind" if inside else "fact", line, body)


def _split(s: _Study) -> Check:
    d = s.data
    sizes = [f"{d[key]:,} {word}" for key, word in _PARTS.items() if isinstance(d.get(key), int)]
    line = "Split: " + (" / ".join(sizes) + " images" if sizes else "its sizes were not written down")
    seed = d.get("split_seed", s.config.get("split_seed", "unknown"))
    body = f"Drawn once, stratified by class, with split seed {seed}, and the same for every trial."
    if d.get("subset") is not None:
        body += f" Only {d['subset']:,} of the training files were used."
    body += f" Images: {d.get('size_rule', 'as stored')}; augmentation: {d.get('augmentation', 'unknown')}."
    return Check("fact", line, body)


_PARTS = {"train_size": "training", "val_size": "validation", "test_size": "test"}


def _test(s: _Study) -> Check:
    opened = [r for r in s.retrained if r.test_error is not None]
    tested = [r for r in s.records if r.test_error is not None]
    if not opened and not tested:
        return Check(
            "fine",
            "The test images were not opened",
            "No network was chosen, stopped or judged by them: they can still give an unbiased answer, once.",
        )
    numbers = sorted({r.number for r in [*opened, *tested]})
    return Check(
        "fine" if len(numbers) == 1 else "mind",
        f"The test images were opened for {words.several(len(numbers), 'network')}: "
        + words.joined([f"#{n}" for n in numbers]),
        "After the choice was made on validation. Choosing among the tested networks by test error would spend the test"
        " part.",
    )


def _control(s: _Study) -> Check | None:
    arms: dict[str, list[float]] = {}
    for record in s.of("complete"):
        if record.val_error is not None:
            arms.setdefault(record.arm, []).append(record.val_error)
    drawn = [record for record in s.records if record.arm == "control"]
    if not drawn:
        return None
    if not arms.get("control") or not arms.get("sampler"):
        return Check(
            "mind",
            f"Random control: {words.several(len(drawn), 'trial')}, not enough is complete to compare",
            "Networks drawn at random show what the sampler adds; both arms need complete trials for that.",
        )
    best = {arm: min(errors) for arm, errors in arms.items()}
    ahead = best["sampler"] < best["control"]
    return Check(
        "fact",
        f"Random control: its best reached {percent(best['control'])}, the sampler's {percent(best['sampler'])}",
        f"{words.several(len(drawn), 'network')} of {len(s.records)} were drawn at random, {len(arms['control'])} of"
        f" them are complete (median {percent(statistics.median(arms['control']))}; sampler: {len(arms['sampler'])},"
        f" median {percent(statistics.median(arms['sampler']))}). "
        + (
            "The lower minimum of the larger arm is partly its size."
            if ahead
            else "The sampler was not better than chance here."
        ),
    )


def _stopping(s: _Study) -> Check:
    if s.config.get("stopping", "none") == "none":
        return Check("fact", "No early stopping", "Every trial was meant to run through all its epochs.")
    stopped = Counter(record.epochs for record in s.of("stopped"))
    when = [f"{number} after {words.several(epochs, 'epoch')}" for epochs, number in sorted(stopped.items())]
    number = words.several(len(s.of("stopped")), "trial") if stopped else "no trial"
    line = f"Early stopping ({str(s.config['stopping']).upper()}): {number} stopped"
    body = "Successive halving: a trial goes on only while it is among the best at its rung. "
    if when:
        body += (
            f"Stopped: {words.joined(when)}. Their errors are those of an unfinished schedule, so they are not on the"
            " front, and a late riser among them is lost."
        )
    return Check("fact", line, body)


def _failures(s: _Study) -> Check:
    bad = s.of("failed", "infeasible")
    if not bad:
        return Check("fine", "No trial failed", "None diverged, ran out of memory, or ended with an error.")
    reasons = Counter((r.reason or "no reason was written down").partition(":")[0].strip() for r in bad)
    listed = [f"{number} × {reason}" for reason, number in reasons.most_common()]
    return Check(
        "mind",
        f"{words.several(len(bad), 'trial')} of {len(s.records)} failed: {words.joined(listed)}",
        "They are in the table with the whole reason. A region of the space that fails is one that was not searched.",
    )


def _comparison(s: _Study) -> Check | None:
    if not len(s.published):
        return None
    return Check(
        "mind",
        "Published points are no like-for-like comparison",
        "They are test errors of the paper's Table 2, after training on all training images for the paper's epochs; the"
        " study's are validation errors after its own recipe.",
    )


# --- inside, trials, again ----------------------------------------------------------------------------------------


def _inside(s: _Study) -> dict[str, Any] | None:
    if s.best is None:
        return None
    facts: list[tuple[str, str]] = []
    parts: list[Any] = []
    if s.best.spec:
        spec = s.best.densenet
        facts = [*_facts(spec), ("digest", spec.digest)]
        parts = cost_by_part(spec).to_dict("records")
    costs = s.best.cost
    if costs.get("activation_bytes"):
        facts.append((f"activations, batch {costs.get('batch', 64)}", size(costs["activation_bytes"])))
    if s.best.peak_memory_bytes:
        facts.append(("peak memory", size(s.best.peak_memory_bytes)))
    return {"number": s.best.number, "network": s.best.network, "facts": facts, "parts": parts}


def _facts(spec: DenseNetSpec) -> list[tuple[str, str]]:
    return [
        ("kind", spec.title),
        ("depth L", str(spec.depth)),
        (
            "growth rate k",
            "-".join(
                map(str, dict.fromkeys(spec.growth_rates) if len(set(spec.growth_rates)) == 1 else spec.growth_rates)
            ),
        ),
        ("layers in each block", "-".join(map(str, spec.block_layers))),
        ("bottleneck", f"{spec.bottleneck}k" if spec.bottleneck else "none"),
        ("compression θ", f"{spec.compression:g}"),
        ("connectivity", spec.connectivity),
        ("dropout", f"{spec.dropout:g}"),
        ("stem", f"{spec.stem}, {spec.stem_width} channels"),
        ("input", f"{spec.in_channels}×{spec.image_size}×{spec.image_size}, {spec.classes} classes"),
    ]


def _rows(s: _Study) -> list[dict[str, Any]]:
    lines, shared = _sparklines(s.curves), _shared([record.network for record in s.records])
    fronted = set(s.front.numbers)
    return [
        {
            "record": record,
            "params": record.cost.get("params"),
            "macs": record.cost.get("macs"),
            "short": _without(record.network, shared),
            "front": record.number in fronted,
            "best": s.best is not None and record.number == s.best.number,
            "line": lines.get(record.number),
            "folder": f"{s.folder.path}/trials/{record.number}",
        }
        for record in s.records
    ]


def _shared(networks: list[str]) -> set[str]:
    """What the data settle and so every name ends with: `channels=1`, `size=8`. A table reads better without it."""
    parts = [set(name.partition(":")[2].split(",")) for name in networks]
    fixed = ("channels=", "size=", "classes=", "stem=")
    return {part for part in set.intersection(*parts) if part.startswith(fixed)} if len(parts) > 1 else set()


def _without(network: str, shared: set[str]) -> str:
    head, colon, tail = network.partition(":")
    return head + colon + ",".join(part for part in tail.split(",") if part not in shared)


SPARK = (72, 22)


def _sparklines(curves: pd.DataFrame) -> dict[int, str]:
    """Points of an SVG polyline for each trial's validation error, all on one log scale and one axis of epochs."""
    known = curves.dropna(subset=["val_error"]) if len(curves) else curves
    positive = [error for error in known["val_error"] if error > 0]
    if not positive:
        return {}
    low, high = math.log(min(positive)), math.log(max(positive))
    last = max(2, int(known["epoch"].max()))
    width, height = SPARK[0] - 4, SPARK[1] - 4
    found = {}
    for _, curve in known.groupby("number"):
        points: Iterable[tuple[int, float]] = zip(curve["epoch"], curve["val_error"], strict=True)
        places = [
            (
                2 + width * (epoch - 1) / (last - 1),
                2 + height * (1 - (max(low, math.log(error)) - low if error > 0 else 0) / ((high - low) or 1)),
            )
            for epoch, error in points
        ]
        if len(places) == 1:
            places.append((places[0][0] + 2, places[0][1]))
        found[int(curve["number"].iloc[0])] = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return found


def _again(s: _Study) -> dict[str, Any]:
    c, d = s.config, s.data
    machine = [
        ("host", c.get("host") or (s.records[0].host if s.records else None)),
        ("device", c.get("device")),
        ("threads", c.get("threads")),
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
    inputs = [(key, c.get(key)) for key in ("seed", "objective", "sampler", "stopping", "trials", "created")]
    return {
        "command": c.get("command"),
        "groups": [
            (title, [(key, str(value)) for key, value in rows if value not in (None, "")])
            for title, rows in (
                ("Study", inputs),
                ("Recipe", list(c.get("recipe", {}).items())),
                ("Data", data),
                ("Machine", machine),
                ("Versions", list(c.get("versions", {}).items())),
            )
        ],
        "space": c.get("space", {}).get("text"),
        "space_name": c.get("space", {}).get("name", "space"),
    }
