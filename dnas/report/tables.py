"""Table of an ablation for the page and for a paper: one list of rows as Markdown, CSV and LaTeX (booktabs)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dnas.ablation.results import Ablation
from dnas.ablation.variants import Cell, Variant
from dnas.analysis.efficiency import Published, published_for
from dnas.analysis.metrics import Metric
from dnas.analysis.variants import over_seeds
from dnas.analysis.verdicts import CONCLUDED, level, raced
from dnas.arch import format_name
from dnas.formatting import count, several


@dataclass(frozen=True)
class Row:
    """One variant. Errors are fractions, and differences are from the base, over pairs. Missing values are None.

    A variant of the user's own script has no network, params and macs.
    """

    metric: Metric
    variant: str
    changed: str
    network: str | None
    params: int | None
    macs: int | None
    runs: int
    mean: float | None
    sd: float | None
    pairs: int | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    effect_size: float | None = None
    verdict: str = ""
    published: tuple[Published, ...] = ()

    @property
    def star(self) -> str:
        return "*" if self.verdict in CONCLUDED else ""


def table_rows(a: Ablation) -> list[Row]:
    """Return the row of the base, then the rows of the variants in order."""
    means = over_seeds(a.values, a.effects.alpha).set_index("variant")
    comparisons = {c.name: c for c in a.effects.comparisons}
    rows = []
    for variant in sorted(a.variants, key=lambda v: v.name != a.base):
        summary = means.loc[variant.name] if variant.name in means.index else None
        n = int(summary["n"]) if summary is not None else 0
        network = variant if isinstance(variant, Variant) else None
        row = Row(
            a.metric,
            variant.name,
            ", ".join(f"{key} {_level(value)}" for key, value in changed(a, variant).items()),
            format_name(network.spec) if network else None,
            network.params if network else None,
            network.macs if network else None,
            n,
            _known(summary["mean"]) if summary is not None else None,
            _known(summary["sd"]) if summary is not None else None,
            published=published_for(network.spec, str(a.config["data"].get("name", ""))) if network else (),
        )
        c = comparisons.get(variant.name)
        if c is not None and c.seeds:
            row = Row(
                **{
                    **vars(row),
                    "pairs": len(c.seeds),
                    "difference": c.mean,
                    "interval": c.interval if all(map(math.isfinite, c.interval)) else None,
                    "p": c.p_holm if len(c.seeds) > 1 else None,
                    "effect_size": _known(c.effect_size),
                    "verdict": c.verdict,
                }
            )
        rows.append(row)
    return rows


def changed(a: Ablation, variant: Cell) -> dict[str, Any]:
    """Return the factors whose level differs from the base's; for a listed variant, all its changes.

    Solved values (equal params) follow from these, and are part of the network's name.
    """
    base = next(candidate for candidate in a.variants if candidate.name == a.base)
    levels = {key: level for key, level in variant.levels.items() if level != base.levels.get(key)}
    return levels or (dict(variant.changed) if isinstance(variant, Variant) else {})


def _level(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def caption(a: Ablation) -> str:
    """Return a caption that explains the numbers to a reader of the table alone."""
    e, d = a.effects, a.config.get("data", {})
    size = d.get("val_size" if e.metric.key == "val_error" else "test_size")
    images = f" ({size:,} images)" if isinstance(size, int) else ""
    percent = " in percent" if e.metric.unit == "%" else ""
    text = f"{d.get('title', 'unknown data')}: {e.metric.label}{percent}{images}, mean ± standard deviation"
    kind, test = (
        ("", "race's sign-flip test, after Bonferroni") if raced(e) else (" t", "exact sign-flip test, after Holm")
    )
    text += f" over the runs; difference from {a.base}{' in percentage points' if percent else ''} over pairs of one"
    text += (
        f" seed, with its {level(e)}{kind} interval; p of the {test} over {several(len(e.comparisons), 'comparison')}."
    )
    text += f" * p ≤ {e.alpha:g}." if e.can_conclude else " There are too few seeds for any conclusion."
    if any(row.published for row in table_rows(a)):
        text += " Published: test errors in percent as printed by Huang et al. (2017), of one run each."
    return text


ERROR = "error (%)"
HEADERS = ("variant", "changed", "params", "macs", ERROR, "n", "difference", "interval", "p", "verdict")
NUMERIC = ("params", "macs", ERROR, "n", "difference", "interval", "p")


def cells(row: Row) -> list[str]:
    """Return the cells of a row, in the order of `HEADERS`."""
    points = row.metric.difference
    error = "–" if row.mean is None else _plain(row.mean, row.metric)
    error += f" ± {_plain(row.sd, row.metric)}" if row.sd is not None else ""
    n = str(row.runs) if row.pairs in (None, row.runs) else f"{row.runs} ({several(row.pairs or 0, 'pair')})"
    between = "–" if row.interval is None else f"{points(row.interval[0])} to {points(row.interval[1])}"
    # With too few seeds, p cannot be small.
    p = "–" if row.p is None or row.verdict == "too few seeds" else "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
    difference = "–" if row.difference is None else points(row.difference) + row.star
    verdict = row.verdict or ("the base" if row.pairs is None and row.runs else "–")
    return [
        row.variant,
        row.changed or "–",
        "–" if row.params is None else count(row.params),
        "–" if row.macs is None else count(row.macs),
        error,
        n,
        difference,
        between,
        p,
        verdict,
    ]


def _plain(value: float, metric: Metric) -> str:
    """Format a value without its unit."""
    return metric.format(value).removesuffix("%")


def headers(rows: Sequence[Row]) -> list[str]:
    """Return `HEADERS`, without costs if there are none, and with published errors if any row has them."""
    names = [name for name in HEADERS if rows[0].network is not None or name not in ("params", "macs")]
    return [*names, "published"] if any(row.published for row in rows) else names


def titles(rows: Sequence[Row]) -> list[str]:
    """Return `headers` with the name of a metric that is no error rate."""
    return [rows[0].metric.label if name == ERROR and rows[0].metric.unit != "%" else name for name in headers(rows)]


def written_cells(row: Row, names: Sequence[str]) -> list[str]:
    texts = dict(zip(HEADERS, cells(row), strict=True)) | {"published": published_text(row.published)}
    return [texts[name] for name in names]


def published_text(published: Sequence[Published]) -> str:
    return ", ".join(f"{100 * result.error:.2f} ({result.tag})" for result in published) or "–"


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table as CSV, with errors and differences as fractions."""
    records = []
    for row in rows:
        low, high = row.interval or (None, None)
        records.append(
            {
                "variant": row.variant,
                "changed": row.changed,
                "network": row.network,
                "params": row.params,
                "macs": row.macs,
                "runs": row.runs,
                "mean": row.mean,
                "sd": row.sd,
                "pairs": row.pairs,
                "difference": row.difference,
                "low": low,
                "high": high,
                "p_holm": row.p,
                "effect_size": row.effect_size,
                "verdict": row.verdict,
                "published": published_text(row.published) if row.published else None,
            }
        )
    frame = pd.DataFrame(records).astype({"pairs": "Int64"})
    if rows[0].network is None:
        frame = frame.drop(columns=["network", "params", "macs", "published"])
    return frame.to_csv(index=False)


def to_markdown(rows: Sequence[Row], text: str) -> str:
    names = headers(rows)
    lines = [titles(rows), ["---:" if name in NUMERIC else "---" for name in names]]
    lines += [[cell.replace("|", "\\|") for cell in written_cells(row, names)] for row in rows]
    # An unescaped `*` at the end of a number would start italics.
    return "\n".join("| " + " | ".join(line).replace("*", "\\*") + " |" for line in lines) + f"\n\n{text}\n".replace(
        "*", "\\*"
    )


def to_latex(rows: Sequence[Row], text: str, label: str) -> str:
    """Return the table as a LaTeX `table` for a paper. It needs \\usepackage{booktabs}."""
    names = headers(rows)
    lines = [
        "% needs \\usepackage{booktabs}; written by dnas report",
        "\\begin{table}[t]",
        "  \\centering",
        f"  \\caption{{{latex(text)}}}",
        f"  \\label{{tab:{re.sub(r'[^A-Za-z0-9:-]+', '-', label)}}}",
        "  \\begin{tabular}{" + "".join("r" if name in NUMERIC else "l" for name in names) + "}",
        "    \\toprule",
        "    " + " & ".join(latex(name) for name in titles(rows)) + " \\\\",
        "    \\midrule",
        *("    " + " & ".join(latex(cell) for cell in written_cells(row, names)) + " \\\\" for row in rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


_LATEX: Mapping[str, str] = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "\\textbar{}",
    "*": "$^{*}$",
    "\u2212": "$-$",
    "–": "--",
    "±": "$\\pm$",
    "×": "$\\times$",
    "≤": "$\\leq$",
    "≥": "$\\geq$",
    "·": "$\\cdot$",
    "θ": "$\\theta$",
    "\u00a0": "~",
}


def latex(text: str) -> str:
    """Escape `text` for LaTeX. Accented letters stay, since current LaTeX reads UTF-8."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
