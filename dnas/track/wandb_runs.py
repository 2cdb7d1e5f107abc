"""W&B: one run per trial, in a group for the study, and a run for the study itself.

The id of a run follows from the study, the trial and its planned epochs, so that a restarted search continues its runs.
W&B states the first step that it lacks, and only later epochs are sent. Offline ($WANDB_MODE=offline) there is no such
answer: a run that was not finished is removed and rewritten as a whole. A ledger in the study's folder lists the
runs that are finished.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dnas.errors import InputError
from dnas.io import write_atomic
from dnas.track.source import TrackedRun, TrackedStudy

OFFLINE = ("offline", "dryrun")
OPENING_SECONDS = 30.0  # time limit for starting a run on the server


class WandB:
    def __init__(self, place: str, study: TrackedStudy, ledger: Path) -> None:
        import wandb

        self._wandb, self.study = wandb, study
        entity, _, project = place.rpartition("/")
        self._place: dict[str, Any] = {"entity": entity or None, "project": project, "group": study.name}
        self._root = os.environ.get("WANDB_DIR") or str(Path.cwd())  # W&B's own default is that of its first run
        self._offline = os.environ.get("WANDB_MODE", "").lower() in OFFLINE
        if not self._offline and not wandb.login(prompt=False):
            raise InputError("W&B has no API key: run `wandb login`, or set WANDB_MODE=offline")
        self._open: dict[str, tuple[Any, int]] = {}  # id -> run and the last epoch that it has
        self._path = ledger
        self._ledger: dict[str, str] = {}  # id -> fingerprint of a finished run
        with suppress(OSError, ValueError):  # without a ledger everything is rewritten
            self._ledger = json.loads(ledger.read_text())

    def write(self, run: TrackedRun) -> bool:
        id = self.study.id_of(run.key, run.epochs)
        if self._is_finished(id, run.fingerprint):
            return False
        if id not in self._open:
            config = {**run.inputs, **run.costs, "number": run.key, "name": run.facts["network"]}
            self._open[id] = self._start(id, run.name, "trial", config)
        tracked, epoch = self._open[id]
        for point in run.points:
            if point.epoch > epoch:
                tracked.log({**point.values, "epoch": point.epoch}, step=point.epoch, commit=True)
                self._open[id] = tracked, point.epoch
        tracked.summary.update({**run.facts, **run.costs, **run.results})
        if run.state != "running":
            self._finish(id, run.fingerprint, failed=run.state == "failed")
        return True

    def finish(self, report: Path | None) -> None:
        for id, (tracked, _) in list(self._open.items()):  # interrupted trials
            tracked.finish()
            del self._open[id]
        id, content = self.study.id_of("study"), report.read_bytes() if report is not None else b""
        fingerprint = self.study.id_of(content.hex())
        if self._is_finished(id, fingerprint):
            return
        self._open[id] = self._start(id, self.study.name, "study", self.study.inputs)
        if report is not None:
            artifact = self._wandb.Artifact(f"report-{self.study.identity}", "report")
            artifact.add_file(str(report))
            self._open[id][0].log_artifact(artifact)
        self._finish(id, fingerprint)

    def close(self) -> None:
        for tracked, _ in self._open.values():
            tracked.finish()
        self._open.clear()

    def _start(self, id: str, name: str, kind: str, config: Mapping[str, Any]) -> tuple[Any, int]:
        """Start or resume a run; return it with the last epoch that W&B has."""
        settings = self._wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True,
            init_timeout=OPENING_SECONDS,
        )  # fmt: skip
        if self._ledger.pop(id, None) is not None:  # it changed after it was finished
            self._save()
        if self._offline:
            for folder in self._folders(id):
                shutil.rmtree(folder)
        tracked = self._wandb.init(
            **self._place,
            id=id,
            dir=self._root,
            name=name,
            job_type=kind,
            config=dict(config),
            resume=None if self._offline else "allow",
            reinit="create_new",
            settings=settings,
        )
        return tracked, max(tracked.starting_step, 1) - 1

    def _finish(self, id: str, fingerprint: str, failed: bool = False) -> None:
        tracked, _ = self._open.pop(id)
        tracked.finish(exit_code=int(failed))
        self._ledger[id] = fingerprint
        self._save()

    def _save(self) -> None:
        write_atomic(self._path, json.dumps(self._ledger))

    def _is_finished(self, id: str, fingerprint: str) -> bool:
        return self._ledger.get(id) == fingerprint and (not self._offline or bool(self._folders(id)))

    def _folders(self, id: str) -> list[Path]:
        """Return the folders that a run was written to offline."""
        return list(Path(self._wandb.Settings(root_dir=self._root).wandb_dir).glob(f"offline-run-*-{id}"))
