"""Ablations of the user's own code: a command or a function, run once for each variant and seed.

The study is a list of runs, as an ablation of networks is (`dnas.batch.runs`): the same folder, run loop and
statistics. Its runs have no network. The metric of a run is its only objective.
"""

import math
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dnas import __version__
from dnas.ablation.command import FOLDER, SEED, Source, check_levels, fill, split_command
from dnas.ablation.design import factorial, one_at_a_time
from dnas.ablation.parse import BASE, DEFAULT_SEEDS, MAX_VARIANTS, read_seeds
from dnas.ablation.variants import Cell, thaw
from dnas.analysis.metrics import Metric
from dnas.analysis.pairs import check_alpha
from dnas.errors import InputError, unknown
from dnas.executors.command import Command, CommandExecutor
from dnas.executors.job import make_job
from dnas.executors.process import Job
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.executors.runner import COUNTED_ERRORS, TrialRunner
from dnas.formatting import joined, several
from dnas.study.config import LIST, RunConfig, without_none
from dnas.study.folder import StudyFolder, check_study_name
from dnas.study.record import TrialRecord, now

DESIGNS: dict[str, Callable[..., Any]] = {"one-at-a-time": one_at_a_time, "factorial": factorial}
ARM = "listed"


@dataclass(frozen=True)
class External:
    """An ablation of the user's own code, as it is asked for.

    Attributes:
        study: Name of the study.
        code: The command with its placeholders, or the name of the function.
        reading: The part of study.toml on how the metric is read.
        metric: The metric.
        design: A key of `DESIGNS`.
        levels: Levels of each factor, the base's first.
        seeds: The seeds.
        alpha: Level of the family of tests.
        question: Question of the study, or "".
    """

    study: str
    code: str
    reading: Mapping[str, str]
    metric: Metric
    design: str
    levels: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    alpha: float
    question: str = ""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The variants, the base first. A variant is called by its changes, such as `lr=0.01`."""
        base = {name: levels[0] for name, levels in self.levels.items()}
        cells = []
        for levels in DESIGNS[self.design](self.levels):
            changes = [f"{name}={level}" for name, level in levels.items() if level != base[name]]
            cells.append(Cell(" ".join(changes) or BASE, levels))
        return tuple(cells)

    @property
    def folder(self) -> StudyFolder:
        return StudyFolder(Path("studies") / self.study)

    def rows(self) -> list[dict[str, Any]]:
        """Return the runs as rows of study.toml, seed by seed, so that the first results compare all variants."""
        return [
            {"key": f"{cell.name}/s{seed}", "group": cell.name, "seed": [seed, 0]}
            for seed in self.seeds
            for cell in self.cells
        ]

    def missing(self) -> list[str]:
        """Return the keys of the runs that the study on disk has not completed."""
        records = self.folder.records() if self.folder.exists else []
        complete = {record.called for record in records if record.state == "complete"}
        return [row["key"] for row in self.rows() if row["key"] not in complete]


def make_external(
    study: str,
    code: str,
    reading: Mapping[str, str],
    metric: Metric,
    levels: Mapping[str, Sequence[Any]],
    *,
    seeds: Any = None,
    design: str = "one-at-a-time",
    alpha: float = 0.05,
    question: str = "",
) -> External:
    """Check the parts of an ablation of the user's own code, and read its seeds from the study if it exists.

    Args:
        study: Name of the study.
        code: The command with its placeholders, or the name of the function.
        reading: How the metric is read, for study.toml.
        metric: The metric.
        levels: Levels of each factor, the base's first.
        seeds: A number of seeds or a list of them. None for 7, or for those of the study.
        design: A key of `DESIGNS`.
        alpha: Level of the family of tests.
        question: Question of the study.

    Raises:
        InputError: An argument is invalid, or the study was started with another design.
    """
    check_study_name(study)
    check_levels(levels)
    check_alpha(alpha)
    if design not in DESIGNS:
        raise unknown("design", design, DESIGNS)
    count = math.prod(len(values) for values in levels.values())
    if design == "factorial" and count > MAX_VARIANTS:
        raise InputError(
            f"the factorial has {count:,} variants, more than {MAX_VARIANTS}; use fewer levels, or the design"
            " one-at-a-time."
        )
    stored = _stored(StudyFolder(Path("studies") / study))
    asked = read_seeds(seeds) if seeds is not None else tuple(stored.get("seeds", range(DEFAULT_SEEDS)))
    if isinstance(asked, str):
        raise InputError("seeds must be a number or a list: seeds are added one by one (auto) to networks only.")
    frozen = {name: tuple(values) for name, values in levels.items()}
    all_seeds = tuple(sorted({*stored.get("seeds", ()), *asked}))
    external = External(study, code, dict(reading), metric, design, frozen, all_seeds, alpha, question)
    if stored:
        _check_same(external, stored)
    return external


def _stored(folder: StudyFolder) -> dict[str, Any]:
    """Return the ablation table of an existing study with its objective, or {}."""
    if not folder.exists:
        return {}
    config = folder.config()
    table = config.get("ablation", {})
    if "metric" not in table:
        kind = "an ablation of networks" if table else "no ablation"
        raise InputError(
            f"study {folder.name} already exists and is {kind}; name another study with --study, or remove"
            f" {folder.path}/."
        )
    return {**table, "objective": config["objective"]}


def _check_same(external: External, stored: Mapping[str, Any]) -> None:
    """Raise `InputError` if a study was started with another command, metric or design. Seeds may be added."""
    table = _table(external) | {"objective": external.metric.key}
    names = {
        "code": "another command"
        if "printed" in external.reading or "json" in external.reading
        else "another function",
        "objective": "another metric",
        "metric": "another direction or unit of the metric",
        "reading": "another metric",
        "factors": "other factors",
    }
    for key in ("code", "objective", "reading", "metric", "factors", "design", "alpha"):
        if stored[key] != table[key]:
            before, after = (_as_text(values[key]) for values in (stored, table))
            name = names.get(key, f"another {key}")
            raise InputError(
                f"study {external.study} was started with {name}: {before} (now {after}); name"
                f" another study with --study, or remove {external.folder.path}/."
            )


def _as_text(value: Any) -> str:
    if not isinstance(value, Mapping):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "; ".join(f"{key}={_as_text(item)}" for key, item in value.items()) or "none"


def _table(external: External) -> dict[str, Any]:
    """Return the table `ablation` of study.toml."""
    metric = external.metric
    return {
        "question": external.question,
        "base": BASE,
        "design": external.design,
        "equal": "nothing",
        "alpha": external.alpha,
        "seeds": list(external.seeds),
        "code": external.code,
        "reading": dict(external.reading),
        "metric": {"maximize": metric.maximize, "error_rate": metric.is_error},
        "factors": {name: [thaw(value) for value in values] for name, values in external.levels.items()},
        "variants": [{"name": cell.name, "levels": dict(cell.levels)} for cell in external.cells],
    }


def _config(external: External, run_config: RunConfig, command: str) -> dict[str, Any]:
    """Return the content of study.toml; for an existing study, its content with new runs added."""
    folder, rows, table = external.folder, external.rows(), _table(external)
    facts = {"trials": len(rows), "runs": rows, "command": command or None}
    facts |= {"workers": run_config.workers, "timeout": run_config.timeout}
    if folder.exists:
        config = folder.config()
        before = config["ablation"]
        known = {row["key"] for row in config["runs"]}
        facts["runs"] = [*config["runs"], *(row for row in rows if row["key"] not in known)]
        earlier = list(before.get("earlier", ()))
        if len(before["seeds"]) < len(external.seeds) and any(r.state == "complete" for r in folder.records()):
            earlier.append(len(before["seeds"]))
        return config | without_none(facts) | {"ablation": table | ({"earlier": earlier} if earlier else {})}
    return without_none(
        {
            "name": external.study,
            "kind": LIST,
            "created": now(),
            "seed": external.seeds[0],
            "objective": external.metric.key,
            "sampler": LIST,
            "stopping": "none",
            **facts,
            "host": socket.gethostname(),
            "space": {"name": LIST, "title": external.question or "an ablation of the user's own code", "text": ""},
            "limits": {},
            "recipe": {},
            "data": {"title": external.code},
            "versions": {"dnas": __version__},
            "ablation": table,
        }
    )


# --- runs ---------------------------------------------------------------------------------------------------------


@dataclass
class ExternalRuns:
    """The `Source` of an ablation of the user's own code. A run counts as one epoch.

    rows: number -> row of study.toml of the runs that are asked for.
    facts: key of a run -> what its record states beside its seed.
    """

    folder: StudyFolder
    run_config: RunConfig
    metric: Metric
    rows: Mapping[int, Mapping[str, Any]]
    facts: Mapping[str, Mapping[str, Any]]
    show: Show
    records: dict[int, TrialRecord] = field(default_factory=dict)
    _planned: deque[int] = field(default_factory=deque)

    def open(self) -> None:
        """Read the records. Runs that were interrupted, or failed for a reason that may be gone, run again."""
        self.records = {record.number: record for record in self.folder.records() if record.number in self.rows}
        for number, record in list(self.records.items()):
            if record.state == "running" or (record.reason or "").partition(":")[0] in COUNTED_ERRORS:
                del self.records[number]
        self._planned = deque(number for number in self.rows if number not in self.records)
        self.show.opened([self.records[number] for number in sorted(self.records)], len(self.rows))

    def next(self, running: list[str]) -> TrialRecord | None:
        if not self._planned:
            return None
        number = self._planned.popleft()
        row = self.rows[number]
        record = TrialRecord(
            number,
            arm=ARM,
            params={"key": row["key"], "group": row["group"]},
            seed=list(row["seed"]),
            data=dict(self.facts[row["key"]]),
            epochs_planned=1,
            versions={"dnas": __version__},
            host=socket.gethostname(),
        )
        self.records[number] = record
        self.folder.write_record(record)
        return record

    def job(self, record: TrialRecord) -> Job:
        return make_job(self.run_config, record, self.folder.trial_folder(record.number), record.called)

    def on_started(self, record: TrialRecord, values: Mapping[str, Any]) -> None: ...

    def on_epoch(self, record: TrialRecord, row: dict[str, Any]) -> bool:
        return True

    def on_result(self, record: TrialRecord, values: dict[str, Any]) -> None:
        record.objectives = {self.metric.key: values["value"]}
        record.state, record.epochs, record.seconds = "complete", 1, values["seconds"]

    def on_retry(self, record: TrialRecord, reason: str, *, recompute: bool = False) -> None: ...

    def on_end(self, record: TrialRecord) -> None: ...


Facts = Mapping[str, Mapping[str, Any]]


def run_missing(
    external: External, executor: Executor, facts: Facts, show: Show, run_config: RunConfig, command: str
) -> Outcome:
    """Run what is missing. After a KeyboardInterrupt or a kill, the next call repeats the runs that did not end."""
    folder = external.folder
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        config = _config(external, run_config, command)
        if not folder.exists or folder.config() != config:
            folder.write_config(config)
        rows = {number: row for number, row in enumerate(config["runs"]) if row["key"] in facts}
        source = ExternalRuns(folder, run_config, external.metric, rows, facts, show)
        try:
            source.open()
            return TrialRunner(source, executor, show).run()
        finally:
            executor.stop()


def values_of_runs(external: External) -> dict[str, dict[str, Any]]:
    """Return the values of the placeholders of each run, by key."""
    numbers = {row["key"]: number for number, row in enumerate(_rows_on_disk(external))}
    levels = {cell.name: cell.levels for cell in external.cells}
    return {
        row["key"]: {
            **levels[row["group"]],
            SEED: row["seed"][0],
            FOLDER: external.folder.trial_folder(numbers[row["key"]]).absolute(),
        }
        for row in external.rows()
    }


def _rows_on_disk(external: External) -> list[dict[str, Any]]:
    """Return the rows of study.toml after the runs of `external` are added. A number is the place of its row."""
    before = external.folder.config()["runs"] if external.folder.exists else []
    known = {row["key"] for row in before}
    return [*before, *(row for row in external.rows() if row["key"] not in known)]


def run_command(
    external: External,
    source: Source,
    show: Show,
    *,
    workers: int = 1,
    timeout: float | None = None,
    threads: int | None = None,
    command: str = "",
) -> Outcome:
    """Run the command of an ablation for each variant and seed that is missing.

    Args:
        external: The ablation.
        source: How the metric is read.
        show: Observer of the runs, such as a display.
        workers: Number of commands at once.
        timeout: Time limit per run in seconds. None for no limit.
        threads: Threads of OpenMP and BLAS in a run. None leaves them to the command.
        command: Command line that repeats the study, for study.toml.
    """
    arguments = split_command(external.code, external.levels)
    commands, facts = {}, {}
    limits = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    for key, values in values_of_runs(external).items():
        filled = tuple(fill(argument, values) for argument in arguments)
        environment = {"DNAS_STUDY": external.study, "DNAS_SEED": str(values[SEED]), "DNAS_FOLDER": str(values[FOLDER])}
        commands[key] = Command(filled, partial(_read, source, values), limits | environment)
        facts[key] = {"command": " ".join(filled), "folder": str(values[FOLDER])}
    run_config = RunConfig({}, workers=workers, threads=threads or 1, timeout=timeout)
    return run_missing(external, CommandExecutor(commands, workers), facts, show, run_config, command)


def _read(source: Source, values: Mapping[str, Any], output: str, began: float) -> float:
    return source.read(output, values, began)


def describe_external(external: External, source: Source, workers: int) -> list[str]:
    """Describe the plan: command, design, variants, metric, runs."""
    factors = joined([f"{name} ({', '.join(map(str, values))})" for name, values in external.levels.items()])
    metric, missing, rows = external.metric, external.missing(), external.rows()
    cells = external.cells
    width = max(len(cell.name) for cell in cells)
    how = f"printed, last match of {source.text}" if "printed" in external.reading else f"from {source.text}"
    lines = [f"command   {external.code}", f"design    {external.design} of {factors}"]
    for place, cell in enumerate(cells):
        levels = " ".join(f"{name}={level}" for name, level in cell.levels.items())
        lines.append(f"{'' if place else 'variants':10s}{cell.name:{width}s}  {levels}")
    completed = len(rows) - len(missing)
    done = f"; {completed} already complete" if completed else ""
    seeds = several(len(external.seeds), "seed")
    return [
        *lines,
        f"metric    {metric.label}, {how}; {'higher' if metric.maximize else 'lower'} is better",
        f"runs      {len(rows)}: {several(len(cells), 'variant')} from {seeds}{done}; {workers} at once",
    ]
