"""Writer of the page of an ablation: question, conclusions, validity, figures, and a table for a paper.

reports/<study>/index.html               self-contained, as the page of a search
reports/<study>/*.svg                    each figure; *.csv has its numbers
reports/<study>/table.md, .csv, .tex     the table; runs.csv has the rows of `dnas.batch.planned.read_runs`
reports/<study>/numbers.csv              the values that are compared, as `dnas compare` reads them
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from dnas import figures
from dnas import formatting as words
from dnas.ablation.results import Ablation, is_external, read_ablation
from dnas.analysis.curves import learning_curves
from dnas.analysis.metrics import METRICS, Metric
from dnas.analysis.paired import Comparison, Effects, seed_noise
from dnas.analysis.variants import cell_means, curve_bands, over_seeds
from dnas.analysis.verdicts import answer, level, sentence
from dnas.arch import format_name
from dnas.errors import InputError
from dnas.io import write_atomic
from dnas.report.ablation_validity import checks
from dnas.report.nas_checklist import SOURCE, checklist, software, values_of
from dnas.report.page import Drawn, Picture, link, write_figure, write_page, write_table
from dnas.report.sections import details_of, facts_of_study, sparklines
from dnas.report.tables import (
    NUMERIC,
    Row,
    caption,
    headers,
    table_rows,
    titles,
    to_csv,
    to_latex,
    to_markdown,
    written_cells,
)
from dnas.strategy.script import script_of
from dnas.study.commands import list_script
from dnas.study.record import STATES, TrialRecord


@dataclass
class Page:
    """Data of the page, and the figures drawn so far."""

    ablation: Ablation
    curves: pd.DataFrame
    out: Path
    formats: Sequence[str] = ()  # of the files of figures, besides SVG
    drawn: dict[str, Drawn] = field(default_factory=dict)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        return self.ablation.records

    @property
    def effects(self) -> Effects:
        return self.ablation.effects

    @cached_property
    def rows(self) -> list[Row]:
        return table_rows(self.ablation)


@figures.formatted(figures.UNTITLED)
def write_ablation(
    study: str | Path,
    out: Path | None = None,
    refresh: float | None = None,
    show: Callable[[str], None] = lambda text: None,
    formats: Sequence[str] = (),
) -> Path:
    """Write the page of an ablation and return the path of its index.html. It works at any time, as for a search.

    Args:
        study: Name of a study in ./studies, or path of its folder.
        out: Folder of the report, by default reports/<study>.
        refresh: Seconds after which a browser reloads the page.
        show: Receives the current step, such as a figure.
        formats: Formats of the files of each figure besides SVG, as for `write_report`.
    """
    a = read_ablation(study)
    out = Path(out) if out is not None else Path("reports") / a.folder.name
    return write_analysed(a, out, refresh, show, formats)


@figures.formatted(figures.UNTITLED)
def write_analysed(
    a: Ablation,
    out: Path,
    refresh: float | None = None,
    show: Callable[[str], None] = lambda text: None,
    formats: Sequence[str] = (),
) -> Path:
    """Write the page of an ablation that has been read. The arguments are those of `write_ablation`."""
    page = Page(a, learning_curves(a.folder), out, formats)
    _draw_all(page, show)
    write_table(a.numbers, out / "numbers.csv")
    if a.folder.exists:
        write_table(a.frame, out / "runs.csv")
    external = is_external(a.config)
    runs = _runs(page)
    varying = {name for name in ("params", "commit", "software") if len({row[name] for row in runs}) > 1}
    values = {
        "name": str(a.config.get("name", a.folder.name)),
        "status": _status(page),
        "question": a.question,
        "answer": _answer(page),
        "table": _table(page),
        "tables": _write_tables(page),
        "published": _published(page),
        "checks": checks(a, page.records),
        "checklist": [] if external else checklist(a, page.records),
        "checklist_source": SOURCE,
        "runs": runs,
        "varying": varying,
        "equal": ", ".join(
            runs[0][name] for name in ("software", "commit") if runs and name not in varying and runs[0][name]
        ),
        "details": _details(page),
        "measure": a.metric.label.replace("validation", "val"),
        "external": external,
        "files": ["runs.csv", "numbers.csv"] if a.folder.exists else ["numbers.csv"],
        "again": _reproduction(page),
        "figures": page.drawn,
        "refresh": refresh,
    }
    return write_page(out, "ablation.html.j2", values)


# --- figures ------------------------------------------------------------------------------------------------------


def _draw_all(page: Page, show: Callable[[str], None]) -> None:
    for number, (name, make) in enumerate(PICTURES.items(), 1):
        show(f"drawing figure {number} of {len(PICTURES)}: {name.replace('_', ' ')}")
        try:
            picture = make(page)
        except InputError:
            continue
        page.drawn[name] = write_figure(picture, name, page.out, page.formats)


def _numbers(effects: Effects) -> pd.DataFrame:
    rows = []
    for c in effects.comparisons:
        low, high = c.interval
        bottom, top = c.bootstrap_interval
        rows.append(
            {
                "name": c.name,
                "kind": c.kind,
                "pairs": len(c.seeds),
                "mean": c.mean,
                "low": low,
                "high": high,
                "bootstrap_low": bottom,
                "bootstrap_high": top,
                "p": c.p,
                "p_holm": c.p_holm,
                "effect_size": c.effect_size,
                "detectable": c.detectable,
                "verdict": c.verdict,
                **{f"seed_{seed}": d for seed, d in zip(c.seeds, c.differences, strict=True)},
            }
        )
    return pd.DataFrame(rows)


def _forest(page: Page) -> Picture:
    e = page.effects
    top = "best" if e.metric.maximize else "lowest"
    return Picture(
        figures.plot_forest(e, seed_noise(page.ablation.values[e.base], max(1, e.pairs), e.alpha)),
        _numbers(e),
        f"Difference of each variant from {e.base} between runs of the same seed, the {top} on top. Small marks:"
        f" single pairs; line: {level(e)} interval of the mean; thin line below: bootstrap interval. Filled marks are"
        " significant after correction for all comparisons; hollow ones are not. The band shows the effect of the seed"
        " alone: means of equally many differences between runs of the base from different seeds. Intervals can be"
        " narrower than the band because runs are paired.",
    )


def _terms(page: Page) -> Picture:
    factorial = _factorial(page)
    return Picture(
        figures.plot_forest(factorial),
        _numbers(factorial),
        "Main effects (a level of a factor against the base's, averaged over the other factors) and interactions (the"
        " deviation of joint effects from the sum of the single ones), within each seed.",
    )


def _factorial(page: Page) -> Effects:
    if page.ablation.factorial is None or not page.ablation.factorial.comparisons:
        raise InputError("only a factorial design has main effects and interactions.")
    return page.ablation.factorial


def _factor_means(page: Page) -> Picture:
    factorial = _factorial(page)
    levels = {variant.name: variant.levels for variant in page.ablation.variants}
    cells = cell_means(page.ablation.values, levels, page.effects.alpha)
    value = "error" if factorial.metric.is_error else factorial.metric.label
    return Picture(
        figures.plot_interaction(cells, factorial),
        cells,
        f"Mean {value} at each pair of levels, with {level(factorial)} t intervals over seeds. Runs share seeds, so"
        " differences between marks are more precise than these intervals. The forest plot shows the differences.",
    )


def _slopes(page: Page) -> Picture:
    e = page.effects
    value = "error" if e.metric.is_error else e.metric.label
    return Picture(
        figures.plot_slopes(page.ablation.values, e),
        page.ablation.values.reset_index(names="seed"),
        f"Each line is a seed, from the {value} of {e.base} to the {value} of the variant. Lines that all"
        f" {'rise' if e.metric.maximize else 'fall'} show a consistent effect, even if seeds differ more than variants"
        " do.",
    )


def _variants(page: Page) -> Picture:
    a = page.ablation
    if not a.networks:
        raise InputError("only networks have params and multiply-adds.")
    rows = over_seeds(a.values, a.effects.alpha)
    known = {variant.name: variant for variant in a.networks}
    rows = rows.assign(
        **{
            column: [getattr(known[name], column) for name in rows["variant"]]
            for column in ("params", "macs", "residual")
        }
    )
    free = " and ".join(METRICS[name].label for name in ("params", "macs") if name != a.equal)
    text = f"Mean error of each variant, and its range over seeds, against its {free} (for one image)."
    tolerance = float(a.config.get("ablation", {}).get("tolerance", 0.01))
    if a.equal in figures.HELD:
        text += f" The {a.equal} were held equal; right: relative deviation of each variant from the base (band:"
        text += f" {100 * tolerance:g}%)."
    return Picture(figures.plot_variants(rows, a.effects, a.equal, tolerance), rows, text)


def _curves(page: Page) -> Picture:
    a = page.ablation
    if not a.networks:
        raise InputError("only runs of networks have learning curves.")
    done = {r.number: str(r.params.get("group")) for r in page.records if r.state == "complete"}
    bands = curve_bands(page.curves, done)
    return Picture(
        figures.plot_curves_of_variants(bands, a.effects, [variant.name for variant in a.variants]),
        bands,
        "Validation error after each epoch: mean and range over the complete runs, with one variant per panel and"
        f" {a.base} for reference. The number of runs is in brackets.",
    )


# In the order of the page. A picture raises `InputError` with the reason if the study lacks data for it.
PICTURES: dict[str, Callable[[Page], Picture]] = {
    "forest": _forest,
    "slopes": _slopes,
    "effects": _terms,
    "factor_means": _factor_means,
    "variants": _variants,
    "variant_curves": _curves,
}


def picture_of(name: str, study: str | Path) -> Picture:
    """Draw the picture `name` of an ablation."""
    a = read_ablation(study)
    return PICTURES[name](Page(a, learning_curves(a.folder), a.folder.path))


# --- text ---------------------------------------------------------------------------------------------------------


def _status(page: Page) -> dict[str, Any]:
    counts = Counter(record.state for record in page.records)
    planned = len(page.ablation.config.get("runs", []))
    note = ""
    if not page.records:
        note = "No run has been started yet."
    elif counts["running"]:
        verb = "run is" if counts["running"] == 1 else "runs are"
        note = (
            f"{counts['running']} {verb} marked as running: the study is still running, or was interrupted. This page"
            " shows the state when it was written; write it again to update it."
        )
    elif len(page.records) < planned:
        note = f"{planned - len(page.records)} of {planned} runs have not started; the same command resumes the study."
    elif not counts["complete"]:
        note = "Every run failed, so there is nothing to compare. The reasons are below."
    return {
        "note": note,
        "counts": words.joined([f"{counts[state]} {state}" for state in STATES if counts[state]]) or "none",
        "runs": len(page.records),
        "asked": planned,
        "seconds": sum(record.seconds for record in page.records),
        "last": max((t for r in page.records for t in (r.started, r.ended) if t), default=""),
    }


def _answer(page: Page) -> dict[str, Any]:
    a, e = page.ablation, page.effects
    base = next((row for row in page.rows if row.variant == a.base), None)
    factorial = a.factorial.comparisons if a.factorial is not None else ()
    order = sorted(e.comparisons, key=lambda c: c.mean * e.metric.sign if c.seeds else float("inf"))
    return {
        "short": answer(e),
        "enough": e.can_conclude,
        "sentences": _sentences(order, e),
        "terms": _sentences(factorial, a.factorial) if a.factorial is not None else [],
        "base": a.base,
        "base_value": e.metric.format(base.mean) if base is not None and base.mean is not None else None,
        "base_spread": _spread(base, e.metric) if base is not None else "",
        "network": next((format_name(v.spec) for v in a.networks if v.name == a.base), None),
        "measure": e.metric.label,
        "maximize": e.metric.maximize,
        "pairs": e.pairs,
        "needed": e.pairs_needed,
        "comparisons": len(e.comparisons),
        "alpha": e.alpha,
        "data": a.config.get("data", {}).get("title", "unknown data"),
        "code": a.config["ablation"].get("code"),
        "design": a.design,
        "equal": a.equal,
        "factors": [
            (key, ", ".join(map(str, levels)))
            for key, levels in a.config.get("ablation", {}).get("factors", {}).items()
        ],
    }


def _spread(row: Row, metric: Metric) -> str:
    if row.sd is None:
        return "one seed"
    return f"± {metric.format(row.sd).removesuffix('%')} over {words.several(row.runs, 'seed')}"


def _sentences(comparisons: Sequence[Comparison], effects: Effects) -> list[tuple[str, str]]:
    """Return (verdict, sentence) of each comparison, or nothing if no comparison has a pair yet."""
    if not any(c.seeds for c in comparisons):
        return []
    return [(c.verdict if c.seeds else "no pair", sentence(c, effects)) for c in comparisons]


def _table(page: Page) -> dict[str, Any]:
    names = headers(page.rows)
    return {
        "caption": caption(page.ablation),
        "heads": [(title, name in NUMERIC) for title, name in zip(titles(page.rows), names, strict=True)],
        "rows": [(row, list(zip(written_cells(row, names), names, strict=True))) for row in page.rows],
        "numeric": NUMERIC,
    }


def _write_tables(page: Page) -> list[dict[str, str]]:
    """Write the table in each format, and return its file, text and a link that contains it."""
    text = caption(page.ablation)
    tables = (
        ("Markdown", "table.md", to_markdown(page.rows, text)),
        ("LaTeX", "table.tex", to_latex(page.rows, text, f"ablation-{page.ablation.folder.name}")),
        ("CSV", "table.csv", to_csv(page.rows)),
    )
    for _, name, content in tables:
        write_atomic(page.out / name, content)
    return [
        {"kind": kind, "file": name, "text": content, "link": link(page.out / name)} for kind, name, content in tables
    ]


def _published(page: Page) -> dict[str, Any] | None:
    rows = [row for row in page.rows if row.published]
    if not rows:
        return None
    a = page.ablation
    epochs = sorted({record.epochs_planned for record in page.records if record.epochs_planned})
    data = a.config.get("data", {}).get("title", "its data")
    return {
        "ours": f"{words.joined([str(n) for n in epochs])} epochs on {data}, {a.metric.label}",
        "rows": [
            {"variant": row.variant, "mean": row.mean, "runs": row.runs, "result": result}
            for row in rows
            for result in row.published
        ],
    }


def _runs(page: Page) -> list[dict[str, Any]]:
    lines = sparklines(page.curves)
    metric = page.effects.metric
    return [
        {
            "record": record,
            "key": record.params.get("key", ""),
            "seed": record.seed[0] if record.seed else None,
            "value": (value := record.objectives.get(metric.key, getattr(record, metric.key, None))),
            "text": metric.written(value),
            "params": words.count(record.cost["params"]) if "params" in record.cost else "–",
            "size": record.cost.get("params", ""),
            "line": lines.get(record.number),
            "commit": (record.commit or "")[:12],
            "software": software(record),
        }
        for record in page.records
    ]


def _details(page: Page) -> Markup:
    def facts(record: TrialRecord) -> dict[str, Any]:
        if not record.spec:
            return {
                "key": record.called,
                "seed": record.seed[0],
                "folder": record.data.get("folder"),
                "command": record.data.get("command"),
                "host": record.host or None,
                "started": record.started,
            }
        machine = f"{record.host}, {record.device}, {words.several(record.threads, 'thread')}"
        return {
            "key": record.params.get("key"),
            "name": record.network,
            "digest": record.digest,
            "folder": f"trials/{record.number}",
            "seed": "/".join(map(str, record.seed)),
            "split seed": record.data.get("split_seed", ""),
            "commit": record.commit or "not a checkout",
            "versions": ", ".join(f"{key} {value}" for key, value in record.versions.items()),
            "host": machine if record.host else None,
            "kernels": record.kernels,
        }

    return details_of(page.ablation.folder, page.records, page.curves, facts)


def _reproduction(page: Page) -> dict[str, Any]:
    a = page.ablation
    settings = a.config.get("ablation", {})
    seeds = settings.get("seeds")
    external = is_external(a.config)
    inputs = [
        ("design", a.design),
        ("base", a.base),
        ("held equal", None if external else a.equal),
        ("metric", next(iter(settings.get("reading", {}).values()), None)),
        ("tolerance", f"{100 * settings['tolerance']:g}%" if "tolerance" in settings else None),
        ("alpha", settings.get("alpha")),
        ("seeds", ", ".join(map(str, seeds)) if isinstance(seeds, list) else seeds),
        ("created", a.config.get("created")),
    ]
    host = next(iter(values_of(page.records, "host")), None)
    return {
        "script": script_of(a.folder) if a.folder.exists else list_script(a.config, a.folder.project),
        "groups": facts_of_study({**a.config, "data": {}} if external else a.config, inputs, host),
        "text": settings.get("text"),
        "file": f"{a.name}.toml",
    }
