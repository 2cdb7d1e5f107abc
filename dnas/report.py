"""A study as one page that answers in the order in which a reader asks, with its figures and tables beside it.

    reports/<study>/index.html    self-contained: styles, figures and the table's few lines of script are inside
    reports/<study>/*.svg, *.png  each figure
    reports/<study>/trials.csv    `dnas.study.read_study`; pareto.csv: the front's rows of it

Everything shown is read from the study's folder. Nothing here imports optuna, and torch only where the norms of the
best network must be taken from its checkpoint.
"""

import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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
from dnas.analysis.control import ArmComparison, compare_arms, decision_epoch, dominance, values_at
from dnas.arch import DenseNetSpec, Spec
from dnas.errors import InputError
from dnas.files import write_atomic
from dnas.inputs import objectives_of
from dnas.objectives import TRAINED
from dnas.space import parse_space
from dnas.study import STATES, StudyFolder, TrialRecord, find_study, rank, read_study
from dnas.wording import count, duration, percent, size

TEMPLATES = Path(__file__).parent / "templates"
# Of `read_study`, for a study without a trial: even then trials.csv has its head.
COLUMNS = [
    *("number", "state", "arm", "network", "digest", "params", "macs", "activation_bytes", "val_error", "val_loss"),
    *("test_error", "epochs", "epochs_planned", "seconds", "peak_memory_bytes", "latency"),
    "reason",
]
# What each objective is called in a sentence.
NAMES = {
    "val_error": "validation error",
    "val_loss": "validation loss",
    "params": "params",
    "macs": "multiply-adds",
    "activation_bytes": "activation memory",
    "latency": "latency",
}
FRONT_ROWS = 12  # of the table under the figure; pareto.csv has them all


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
    body: str  # a paragraph a line
    figure: str = ""  # the stem of one that opens with it


@dataclass
class _Study:
    """All that the page is made from."""

    folder: StudyFolder
    config: dict[str, Any]
    objectives: tuple[str, ...]  # the trained one first
    records: list[TrialRecord]
    events: list[dict[str, Any]]
    frame: pd.DataFrame
    front: Front
    curves: pd.DataFrame
    best: TrialRecord | None
    floor: NoiseFloor | None
    retrained: list[TrialRecord]
    published: pd.DataFrame
    arms: ArmComparison
    out: Path
    drawn: dict[str, Drawn] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        return self.config.get("data", {})

    @property
    def axes(self) -> tuple[str, ...]:
        """The objectives of the figure and the front: a search for the error alone is shown against params."""
        return self.objectives if len(self.objectives) > 1 else (self.objectives[0], "params")

    @property
    def main_figure(self) -> str:
        y, x = self.axes[:2]
        return f"{y.removeprefix('val_')}_against_{x}"

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
        "value": _value,
    }
    page = environment.get_template("report.html.j2").render(
        name=str(s.config.get("name", s.folder.name)),
        status=_status(s),
        answer=_answer(s),
        checks=_checks(s),
        inside=_inside(s),
        front=_front(s),
        columns=_columns(s),
        main_figure=s.main_figure,
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
    objectives = _objectives(config)
    try:
        events = folder.events()
    except InputError:
        events = []  # the records tell the same, but for how often a trial was paused and promoted
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
    curves = learning_curves(folder)
    costs = objectives[1:] or ("params",)
    for column in costs:
        # A latency that no trial has measured yet is a column of None.
        frame[column] = pd.to_numeric(frame[column])
    return _Study(
        folder,
        config,
        objectives,
        records,
        events,
        frame,
        pareto_front(frame, (costs[0], objectives[0], *costs[1:])),
        curves,
        best,
        floor,
        [record for _, record in folder.retrained()],
        within_reach(points, frame) if costs == ("params",) and objectives[0] == "val_error" else points.iloc[:0],
        _arms(objectives[0], records, events, curves),
        Path(out) if out is not None else Path("reports") / folder.name,
    )


def _objectives(config: dict[str, Any]) -> tuple[str, ...]:
    """As `objectives_of`; of a file that names unknown ones, the error."""
    found = objectives_of(config)
    known = found[0] in TRAINED and all(name in NAMES for name in found)
    return found if known else ("val_error",)


def _arms(
    objective: str, records: list[TrialRecord], events: list[dict[str, Any]], curves: pd.DataFrame
) -> ArmComparison:
    """The sampler's arm against the control's, at the first epoch at which a trial was stopped or paused."""
    # After `--epochs` was raised, the trials that were left behind have another schedule: they are no comparison.
    last = max((record.epochs_planned for record in records), default=0)
    able = [record for record in records if record.epochs_planned == last]
    epoch = decision_epoch(events, [r.epochs for r in able if r.state in ("stopped", "paused") and r.epochs], last)
    numbers = {record.number for record in able}
    values = {n: value for n, value in values_at(curves, objective, epoch).items() if n in numbers}
    return compare_arms(values, {record.number: record.arm for record in able}, objective, epoch)


def _value(value: float | None, objective: str) -> str:
    """A value of an objective as the whole page writes it."""
    if value is None or not math.isfinite(value):
        return "–"
    exact = {"params": words.params, "macs": words.macs}
    return exact[objective](value) if objective in exact else words.said(objective, value)


# --- figures ------------------------------------------------------------------------------------------------------


def _draw_all(s: _Study) -> None:
    if any(record.val_error is not None for record in s.of("complete", "stopped", "paused")):
        number = s.best.number if s.best else None
        points = s.published if len(s.published) else None
        caption = "Each mark is one network, trained once. "
        if len(s.axes) == 2:
            caption += "The front joins the networks that no other one beats in both."
        else:
            caption += f"The ringed ones are on the front of {_listed(s.axes)}, which the picture shows two of."
        if points is not None:
            caption += " Published points are test errors after training on all images, at the paper's epochs."
        _draw(
            s,
            s.main_figure,
            lambda: figures.plot_error_against_cost(s.frame, s.front, points, s.floor, number, s.axes),
            caption,
        )
    _draw(
        s,
        "control_arm",
        lambda: figures.plot_control(s.arms),
        f"The {NAMES[s.objectives[0]]} after epoch {s.arms.epoch} of every trial that got there: by trial, and as the"
        " share of either arm at or below a value. A curve further to the right is the better arm.",
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
            lambda: figures.plot_layer_costs(best.network_spec),
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
        "minimised": _minimised(s),
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
            "by": NAMES[s.objectives[0]] if len(s.objectives) > 1 or s.objectives[0] != "val_error" else "",
            # The error, the params and the macs have their own places.
            "more": [
                (NAMES[name], _value(_objective(s.best, name), name))
                for name in s.objectives
                if name not in ("val_error", "params", "macs")
            ],
        }
    return answer


def _minimised(s: _Study) -> str:
    """What the search minimised, and with several objectives what became of that, in a sentence."""
    first, rest = s.objectives[0], s.objectives[1:]
    if not rest:
        return f"The search minimised the {NAMES[first]} alone."
    text = f"The search minimised {_listed(s.objectives)} together"
    rows, complete = s.front.trials, len(s.of("complete"))
    if not len(rows):
        return text + "."
    text += f": {len(rows)} of {words.several(complete, 'complete network')} {'is' if len(rows) == 1 else 'are'} on the"
    text += " front, where no other one is better in one of them and no worse in the others"
    if len(rows) > 1:
        ends = rows.sort_values([rest[0], first]).iloc[[0, -1]]
        said = [f"{_value(row[first], first)} at {_value(row[rest[0]], rest[0])}" for _, row in ends.iterrows()]
        text += f"; they go from {said[0]} {UNITS.get(rest[0], '')}".rstrip() + f" to {said[1]}"
    return text + "."


UNITS = {"params": "params", "macs": "multiply-adds"}  # said after a value that has no unit of its own


def _listed(objectives: Iterable[str]) -> str:
    return words.joined([NAMES[name] for name in objectives])


def _objective(record: TrialRecord, name: str) -> float | None:
    """A trial's value of one of the objectives, whether it was one of its study's or not."""
    if name in TRAINED or name == "latency":
        value: float | None = getattr(record, name)
        return value
    return record.cost.get(name)


def _front(s: _Study) -> dict[str, Any] | None:
    """The front as a table, of a search for several objectives."""
    if len(s.objectives) == 1 or not len(s.front.trials):
        return None
    records = {record.number: record for record in s.records}
    shared = _shared([record.network for record in s.records])
    return {
        "heads": [NAMES[name] for name in s.objectives],
        "rows": [
            {
                "number": number,
                "network": _without(records[number].network, shared),
                "values": [_value(_objective(records[number], name), name) for name in s.objectives],
                "best": s.best is not None and number == s.best.number,
            }
            for number in s.front.numbers[:FRONT_ROWS]
        ],
        "more": max(0, len(s.front.numbers) - FRONT_ROWS),
    }


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
    first, rest = NAMES[s.objectives[0]], s.objectives[1:]
    body = (
        f"Each trial counts with its {first} after the last epoch, not with the lowest of all epochs. Of equal ones the"
        f" one with the {'lower ' + _listed(rest[:1]) if rest and rest[0] != 'params' else 'fewest params'} is named,"
        f" then the earlier. Only trials that ran to the end can be chosen."
    )
    if rest:
        body += (
            f"\nThe search minimised {_listed(s.objectives)} alike, and the first of them names the best: which network"
            f" of the front is the right one depends on what {_listed(rest)} may cost."
        )
    return Check("fine", f"The best network has the lowest {first} after its last epoch", body)


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


def _control(s: _Study) -> Check:
    drawn = [record for record in s.records if record.arm == "control"]
    if not drawn and s.config.get("sampler") == "random":
        return Check(
            "fact", "Every network was drawn at random", "So there is no sampler to compare with a control arm."
        )
    if not drawn:
        return Check(
            "mind",
            "There was no control arm (--control 0.15): whether the sampler beats chance is not known",
            "With --control 0.15, 15% of a search's networks are drawn at random, spread evenly over it, and this line"
            " compares them with the sampler's.",
        )
    arms, first = s.arms, s.objectives[0]
    if arms.beats is None or arms.p is None or arms.difference is None or arms.best is None:
        return Check(
            "mind",
            f"Random control: {words.several(len(drawn), 'trial')}, and nothing to compare yet",
            f"Both arms need trials that finished epoch {arms.epoch}: the sampler has {len(arms.sampler)} and the"
            f" control {len(arms.control)}.",
        )
    numbers = f"{arms.beats:.0%} of pairs ({_p(arms.p)}; {len(arms.sampler)} trials against {len(arms.control)})"
    shown = arms.enough and arms.p < 0.05
    if not arms.enough:
        mark, line = "mind", f"Too few trials to tell the sampler from chance: it beats a random trial in {numbers}"
    elif not shown:
        mark, line = "mind", f"The sampler was not shown to beat chance: it beats a random trial in {numbers}"
    elif arms.beats > 0.5:
        mark, line = "fine", f"The sampler beats chance: its trial beats a random one in {numbers}"
    else:
        mark, line = "mind", f"The sampler did worse than chance: its trial beats a random one in {numbers}"
    return Check(mark, line, "\n".join(_control_body(s, arms, first)), "control_arm")


def _control_body(s: _Study, arms: ArmComparison, first: str) -> list[str]:
    assert arms.best is not None
    assert arms.difference is not None
    assert arms.detectable is not None
    n, m = len(arms.sampler), len(arms.control)
    unit, factor = ("points", 100) if first == "val_error" else ("nats", 1)
    when = "the last one, for no trial was stopped early"
    if any(record.epochs_planned > arms.epoch for record in s.records):
        when = "the first at which trials were stopped or paused: all that got there have it, and none was chosen by it"
    means = [sum(part.values()) / len(part) for part in (arms.sampler, arms.control)]
    interval = (
        f"Welch 95% interval {_signed(factor * arms.interval[0])} to {_signed(factor * arms.interval[1])}"
        if arms.interval
        else "no interval: it needs two trials of each arm, and values that differ"
    )
    text = [
        f"Compared is the {NAMES[first]} after epoch {arms.epoch}, {when}. The sampler's {n} trials have a mean of"
        f" {_value(means[0], first)}, the {m} drawn at random {_value(means[1], first)}: a difference of"
        f" {_signed(factor * arms.difference)} {unit} ({interval}). Of {words.several(arms.draws, 'trial')}, the best"
        f" of the sampler's has {_value(arms.best[0], first)} on average, of the random ones"
        f" {_value(arms.best[1], first)}.",
        f"In {arms.beats:.0%} of all pairs of a trial of the sampler's and a random one the sampler's is better, ties"
        " counted as half (Mann and Whitney, two-sided)."
        f" With {n} and {m} trials only a share of 1/2 + 2.80/√(12·{n}·{m}/({n} + {m})) = {arms.detectable:.0%} or more"
        " would be found four times in five"
        + (" (Noether 1987)." if arms.enough else " (Noether 1987), and there is none above 100%: run more trials."),
    ]
    if len(s.objectives) > 1:
        text.append(_control_of_several(s, arms))
    lost = Counter(r.arm for r in s.records if r.state in ("failed", "infeasible") and r.epochs < arms.epoch)
    notes = [
        "A sampler's trials follow from the earlier ones, so they are not independent, and p is an approximation; its"
        " first ones are drawn at random too, and count as its own. Networks given first are in neither arm."
    ]
    if any(record.epochs_planned > arms.epoch for record in s.records):
        notes.append("An early error orders networks only roughly as the last one does.")
    if s.best is not None and s.best.arm == "control":
        notes.append(f"The best network of the study, #{s.best.number}, is one that was drawn at random.")
    if lost["sampler"] or lost["control"]:
        notes.append(
            f"{words.several(lost['sampler'], 'trial')} of the sampler's and {lost['control']} of the control's failed"
            " before that epoch and are not counted."
        )
    return [*text, " ".join(notes)]


def _control_of_several(s: _Study, arms: ArmComparison) -> str:
    """With several objectives the trained one alone undersells a sampler that also sought small networks."""
    records = {record.number: record for record in s.records}
    rows = [
        [
            [value, *(_objective(records[number], name) or math.nan for name in s.objectives[1:])]
            for number, value in part.items()
        ]
        for part in (arms.sampler, arms.control)
    ]
    ahead, behind = dominance(np.array(rows[0]), np.array(rows[1]))
    cost = s.objectives[1]
    middles = [statistics.median(row[1] for row in part) for part in rows]
    return (
        f"The sampler sought low {_listed(s.objectives[1:])} too, which the {NAMES[s.objectives[0]]} alone does not"
        f" show: its median {NAMES[cost]} {'are' if cost in UNITS else 'is'} {_value(middles[0], cost)}, the control's"
        f" {_value(middles[1], cost)}. In {ahead:.0%} of the pairs its network is no worse in any objective and better"
        f" in one, in {behind:.0%} the random one is."
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(p: float) -> str:
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.2g}"


_RULES = {
    "asha": (
        "ASHA",
        "Successive halving: at a rung the best third goes on. The others are paused there, and promoted when further"
        " trials bring them into the best third.",
    ),
    "hyperband": (
        "Hyperband",
        "Several ladders of successive halving side by side, some of which begin late: at a rung the best third of a"
        " ladder goes on, the others are paused, and promoted when further trials bring them into the best third.",
    ),
    "median": (
        "median rule",
        "A trial is stopped for good when its best value so far is worse than the median of what ended trials had on"
        " average by the same epoch.",
    ),
}


def _stopping(s: _Study) -> Check:
    rule = str(s.config.get("stopping", "none"))
    if rule == "none":
        return Check("fact", "No early stopping", "Every trial was meant to run through all its epochs.")
    name, body = _RULES.get(rule, (rule, ""))
    stopped, paused = s.of("stopped"), s.of("paused")
    promotions = sum(event["event"] == "promote" for event in s.events)
    pauses = max(sum(event["event"] == "pause" for event in s.events), len(paused))
    said = [f"{words.several(len(stopped), 'trial')} stopped"] if stopped else []
    if pauses:
        said += [words.several(pauses, "pause"), words.several(promotions, "promotion")]
    line = f"Early stopping ({name}): {words.joined(said) if said else 'no trial was stopped'}"
    if len(s.objectives) > 1:
        body += " With several objectives a trial is compared with those of about its own size."
    for word, some, after in (("Stopped", stopped, ""), ("Paused now", paused, ", and may be promoted")):
        when = Counter(record.epochs for record in some)
        if when:
            listed = [f"{number} after {words.several(epochs, 'epoch')}" for epochs, number in sorted(when.items())]
            body += f"\n{word}: {words.joined(listed)}{after}."
    if stopped or paused:
        planned = sum(record.epochs_planned for record in s.records)
        body += (
            " Their errors are those of an unfinished schedule, so they are not on the front, and a late riser among"
            f" them is lost. {sum(record.epochs for record in s.records):,} of {planned:,} epochs were trained."
        )
    return Check("fact", line, body.strip())


def _failures(s: _Study) -> Check:
    bad = s.of("failed", "infeasible")
    body = _rescued(s)
    if not bad:
        line = "No trial failed"
        text = "None diverged, ran out of memory, took too long, or ended with an error."
        if body:
            line += ", and some were rescued"
            text = "None diverged, took too long, or ended with an error."
        return Check("fine", line, "\n".join([text, *body]))
    reasons = Counter((r.reason or "no reason was written down").partition(":")[0].strip() for r in bad)
    listed = [f"{number} × {reason}" for reason, number in reasons.most_common()]
    text = "They are in the table with the whole reason. A region of the space that fails is one that was not searched."
    known = [f"{reason}: {_FAILURES[reason]}." for reason in reasons if reason in _FAILURES]
    return Check(
        "mind",
        f"{words.several(len(bad), 'trial')} of {len(s.records)} failed: {words.joined(listed)}",
        "\n".join([text, *known, *body]),
    )


# What a search makes of each way to fail.
_FAILURES = {
    "diverged": "a loss was no number; the sampler was told the worst error",
    "timeout": "longer than --timeout allowed; the sampler was told the worst error",
    "out of memory": "even with recomputed activations and the device to itself; networks that need as much were not"
    " proposed again",
    "lost worker": "its process died or froze several times without finishing an epoch",
    "error": "an exception; its traceback.txt lies in the trial's folder",
}


def _rescued(s: _Study) -> list[str]:
    """Trials that met with an accident and went on, a sentence a kind."""
    found = []
    recomputed = [record for record in s.records if record.recompute]
    if recomputed:
        again = [record for record in recomputed if record.state not in ("failed", "infeasible")]
        found.append(
            f"{words.several(len(recomputed), 'trial')} ran out of memory and went on with recomputed activations,"
            f" which changes no result: {words.several(len(again), 'of them', 'of them')} did not fail again"
            f" ({words.joined([f'#{record.number}' for record in recomputed])})."
        )
    losses = sum(record.losses for record in s.records)
    if losses:
        hit = [f"#{record.number}" for record in s.records if record.losses]
        found.append(
            f"{words.several(losses, 'worker was', 'workers were')} lost; the trials went on from their checkpoints"
            f" ({words.joined(hit)})."
        )
    return found


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
        spec = s.best.network_spec
        facts = [*_facts(spec), ("digest", spec.digest)]
        parts = cost_by_part(spec).to_dict("records")
    costs = s.best.cost
    if costs.get("activation_bytes"):
        facts.append((f"activations, batch {costs.get('batch', 64)}", size(costs["activation_bytes"])))
    if s.best.peak_memory_bytes:
        facts.append(("peak memory", size(s.best.peak_memory_bytes)))
    return {"number": s.best.number, "network": s.best.network, "facts": facts, "parts": parts}


def _facts(spec: Spec) -> list[tuple[str, str]]:
    own = (
        [
            ("growth rate k", _joined(spec.growth_rate)),
            ("layers in each block", _joined(spec.block_layers)),
            ("bottleneck", f"{spec.bottleneck}k" if spec.bottleneck else "none"),
            ("compression θ", f"{spec.compression:g}"),
            ("connectivity", spec.connectivity),
            ("dropout", f"{spec.dropout:g}"),
        ]
        if isinstance(spec, DenseNetSpec)
        else [
            ("width of each stage", _joined(spec.widths)),
            ("residual units in each stage", _joined(spec.stage_units)),
            ("bottleneck", f"widens {spec.bottleneck} times" if spec.bottleneck else "none"),
            (
                "stochastic depth",
                f"drops the last unit at a rate of {spec.stochastic_depth:g}" if spec.stochastic_depth else "none",
            ),
        ]
    )
    return [
        ("kind", spec.title),
        ("depth L", str(spec.depth)),
        *own,
        ("stem", f"{spec.stem}, {spec.stem_width} channels"),
        ("input", f"{spec.in_channels}×{spec.image_size}×{spec.image_size}, {spec.classes} classes"),
    ]


def _joined(numbers: int | tuple[int, ...]) -> str:
    return "-".join(map(str, numbers)) if isinstance(numbers, tuple) else str(numbers)


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
            "reason": _reason(record),
            "more": [(_objective(record, name), name) for name in _columns(s)],
        }
        for record in s.records
    ]


def _columns(s: _Study) -> dict[str, str]:
    """The objectives that have no column of their own in every study's table, and the head of theirs."""
    heads = {"val_loss": "val loss", "activation_bytes": "activations", "latency": "latency"}
    return {name: heads[name] for name in s.objectives if name in heads}


def _reason(record: TrialRecord) -> str | None:
    """Why a trial is not complete."""
    if record.state == "paused":
        return f"paused after {words.several(record.epochs, 'epoch')}, may be promoted"
    return record.reason


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
    inputs = [(key, c.get(key)) for key in ("seed", "objective", "sampler", "control", "stopping", "trials", "created")]
    return {
        "command": c.get("command"),
        "replay": f"dnas replay {shlex.quote(s.folder.name)}",
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
