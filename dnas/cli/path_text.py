"""Output of `dnas path`: table, notes, JSON and files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from dnas.ablation.path import SEEDS, study_of_path
from dnas.analysis.ablation_path import Estimate, Trained, path_frame
from dnas.analysis.ablation_path import Path as AblationPath
from dnas.analysis.fanova import BELIEVABLE
from dnas.analysis.importance import Evidence
from dnas.analysis.metrics import METRICS
from dnas.cli.importance_text import unfinished
from dnas.cli.output import console_or_pipe
from dnas.formatting import count, several
from dnas.study.folder import StudyFolder


def write(out: Path, path: AblationPath, trained: Trained | None, objective: str) -> None:
    if out.suffix == ".csv":
        out.parent.mkdir(parents=True, exist_ok=True)
        path_frame(path, trained).to_csv(out, index=False)
        return
    from dnas.figures import plot_path, save

    save(plot_path(path, objective, trained), out)


def as_json(evidence: Evidence, path: AblationPath, trained: Trained | None) -> dict[str, Any]:
    return {
        "study": evidence.study,
        "objective": evidence.objective,
        "trials": path.trials,
        "r2": path.r2,
        "seeds": trained.seeds if trained is not None else 0,
        "steps": path_frame(path, trained).to_dict("records"),
    }


def plan(folder: StudyFolder, evidence: Evidence, path: AblationPath, seeds: int) -> str:
    """Return a line on the runs of `--train`."""
    epochs = several(evidence.space.recipe.epochs, "epoch")
    networks = len({node.spec.digest for node in path.nodes})
    return (
        f"training  {several(networks, 'network')} from {several(seeds, 'seed')}, {epochs} each:"
        f" {several(networks * seeds, 'run')} in studies/{study_of_path(folder)}/"
    )


def show(
    folder: StudyFolder, evidence: Evidence, path: AblationPath, trained: Trained | None, out: Path | None
) -> None:
    console = console_or_pipe()

    def write_line(text: str) -> None:
        console.print(text, soft_wrap=True)

    write_line(f"{evidence.study}   from {evidence.space.name_of(path.nodes[0].spec)}")
    write_line(
        f"{'':{len(evidence.study)}s}   to   {evidence.space.name_of(path.nodes[-1].spec)}\n{unfinished(folder)}"
    )
    console.print(_table(path, trained, evidence.objective))
    write_line("")
    write_line(
        f"predicted by a forest of {several(path.trials, 'trial')} (R² out of bag {path.r2:.2f}), 95% intervals by"
        " bootstrap over trials" + ("; no network of the path was trained" if trained is None else "")
    )
    if path.r2 < BELIEVABLE:
        write_line(
            f"note      the predictions are not reliable: with R² below {BELIEVABLE} the forest does not generalise to"
            " unseen networks; --train measures them"
        )
    write_line("measured: in the search, from one seed; the best network's value is biased, as it was selected by it")
    if trained is not None:
        _show_trained(trained, evidence.objective, write_line)
    else:
        write_line(f"next      dnas path {evidence.study} --train --seeds {SEEDS}")
    if out is not None:
        write_line(f"written to {out}")


def _show_trained(trained: Trained, objective: str, write_line: Callable[[str], None]) -> None:
    write_line(
        f"trained from {several(trained.seeds, 'new seed')}, each with its own data split, the same for all networks;"
        " differences within a seed, 95% intervals by Student's t, each step by itself"
        + ("" if trained.seeds > 1 else "; one seed has no interval")
    )
    write_line(f"from the first to the last: {_change(trained.whole, objective)}")
    missing = int(trained.values.isna().to_numpy().sum())
    if missing:
        write_line(f"note      {several(missing, 'run')} failed or {'is' if missing == 1 else 'are'} missing")


def _table(path: AblationPath, trained: Trained | None, objective: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    heads = ["step", "choice", "from → to", "params", "predicted", "difference", "measured"]
    heads += ["trained", "difference, trained"] if trained is not None else []
    for head in heads:
        table.add_column(head, justify="left" if head in ("choice", "from → to") else "right", no_wrap=True)
    for i, node in enumerate(path.nodes):
        table.add_row(
            str(i),
            "\n".join(name for name, _, _ in node.changes),
            "\n".join(f"{_shown(before)} → {_shown(after)}" for _, before, after in node.changes),
            count(node.cost.params) + (f"\nover: {', '.join(node.excess)}" if node.excess else ""),
            _interval(path.predicted[i], objective),
            _change(path.change[i], objective),
            METRICS[objective].format(path.measured[i]) if i in path.measured else "",
            *(
                (_interval(trained.errors[i], objective), _change(trained.changes[i], objective))
                if trained is not None
                else ()
            ),
        )
    return table


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _interval(estimate: Estimate, objective: str) -> str:
    """Format as `1.83% (1.33 to 2.71)`."""
    if math.isnan(estimate.value):
        return ""
    factor, digits = METRICS[objective].scale, METRICS[objective].digits
    text = METRICS[objective].format(estimate.value)
    if math.isnan(estimate.low):
        return text
    return f"{text} ({factor * estimate.low:.{digits}f} to {factor * estimate.high:.{digits}f})"


def _change(estimate: Estimate, objective: str) -> str:
    """Format as `-0.19 (-0.75 to +0.30)`, in percentage points or nats."""
    if math.isnan(estimate.value):
        return ""
    factor, digits = METRICS[objective].scale, METRICS[objective].digits
    text = f"{factor * estimate.value:+.{digits}f}"
    if math.isnan(estimate.low):
        return text
    return f"{text} ({factor * estimate.low:+.{digits}f} to {factor * estimate.high:+.{digits}f})"
