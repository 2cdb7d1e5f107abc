"""Ask and tell: a search whose networks the user's own code trains, in the process that asks.

The same driver proposes, stops early and writes the study, so that resumption and replay hold as for dnas's own
workers. A trial that was asked and not told is asked again: after the process ended, or after its object was dropped.
"""

import hashlib
import math
import threading
import time
import weakref
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from dnas.errors import InputError
from dnas.executors.protocol import Show
from dnas.formatting import joined
from dnas.space.objectives import WORST
from dnas.strategy.driver import Driver
from dnas.strategy.optuna_mirror import open_mirror
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder
from dnas.study.record import TrialRecord
from dnas.training.checkpoint import Epoch, write_curve


class AskedTrial:
    """A network to train, from `AskTell.ask`.

    Attributes:
        number: Number of the trial.
        spec: The network; `dnas.build(spec)` builds it.
        params: Value of each choice.
        cost: Its params, macs and activation_bytes.
        seed: Seed of the trial's random draws, the same whenever the study is repeated.
        epochs: Number of epochs to train.
        start: Number of epochs that were reported before; above 0 if the trial resumes.
        folder: Folder of the trial, for the user's own checkpoints.
    """

    def __init__(self, study: "AskTell", record: TrialRecord) -> None:
        self._study, self._record = study, record
        self.number, self.spec, self.params = record.number, record.network_spec, dict(record.params)
        self.cost = {name: record.cost[name] for name in ("params", "macs", "activation_bytes")}
        self.seed = _seed(record.seed)
        self.epochs, self.start = record.epochs_planned, record.epochs
        self.folder: Path = study.folder.trial_folder(record.number)
        self._since = time.monotonic()
        self._dropped = weakref.finalize(self, study.take_back, record)
        self._dropped.atexit = False

    @property
    def network(self) -> str:
        """Name of the network."""
        return self._record.network

    def report(
        self, epoch: int, *, val_error: float | None = None, val_loss: float | None = None, seconds: float | None = None
    ) -> bool:
        """Report the result of an epoch, and return True if the training continues.

        Epochs that were reported before, which a restarted run repeats, return their earlier decision.

        Args:
            epoch: The epoch, from 1.
            val_error: Fraction of the validation images that are misclassified.
            val_loss: Mean loss on the validation images, in nats.
            seconds: Duration of the epoch (default: the time since the last report).
        """
        now = time.monotonic()
        spent, self._since = now - self._since, now
        row = {"val_error": val_error, "val_loss": val_loss, "seconds": spent if seconds is None else seconds}
        return self._study.report(self._record, epoch, row)

    def report_latency(self, seconds: float) -> None:
        """Report the time of a forward pass, before the first epoch of a study that has latency as an objective."""
        self._study.report_latency(self._record, seconds)

    def __repr__(self) -> str:
        return f"AskedTrial({self.number}, {self.network!r}, {self.start}/{self.epochs} epochs)"


class AskTell:
    """A study that is open for asking and telling. It holds the study's lock until `close`.

    Args:
        folder: The study, which may be new.
        config: Settings of the search.
        data: Description of the data, as `Dataset.describe` returns it.
        show: Observer, such as a display.
        frozen: Content of study.toml for a new study.
    """

    def __init__(
        self, folder: StudyFolder, config: SearchConfig, data: dict[str, Any], show: Show, frozen: dict[str, Any]
    ) -> None:
        self.folder, self.config, self.show = folder, config, show
        self._mutex = threading.RLock()
        self._open: dict[int, TrialRecord] = {}  # asked and not told
        self._resources = ExitStack()
        folder.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as resources:
            resources.enter_context(folder.lock())
            if not folder.exists:
                folder.create(frozen)
            space = config.space.for_data(data["channels"], data["image_size"], data["classes"], augmented=False)
            self._driver = Driver(folder, config, space, data, show)
            self._driver.open()
            resources.enter_context(open_mirror(folder, config.mirror, show.note))
            self._resources = resources.pop_all()

    def keep(self, context: AbstractContextManager[object]) -> None:
        """Enter a context, which is left when the study is closed."""
        self._resources.enter_context(context)

    @property
    def exhausted(self) -> bool:
        """True if no untried network is left."""
        return self._driver.exhausted

    def ask(self) -> AskedTrial | None:
        """Return the next trial to train: an interrupted one, else a promoted one, else a new one.

        None: no trial is left. While other trials are open, a later call may return one.
        """
        with self._mutex:
            while (record := self._driver.next([str(number) for number in self._open])) is not None:
                record.started = record.started or self.folder.now()
                record.attempts += 1
                self.folder.write_record(record)
                self._open[record.number] = record
                trial, state = AskedTrial(self, record), self._driver.state.trials[record.number]
                if state.furthest and not state.go_on:  # its process ended between the last decision and `tell`
                    self._end(trial)
                    continue
                self.show.began(record)
                return trial
            return None

    def report(self, record: TrialRecord, epoch: int, row: dict[str, Any]) -> bool:
        """Record an epoch; see `AskedTrial.report`."""
        first = self.config.objectives[0]
        with self._mutex:
            self._check_open(record)
            trial = self._driver.state.trials[record.number]
            if not isinstance(epoch, int) or not 1 <= epoch <= record.epochs_planned:
                raise InputError(f"epoch must be from 1 to {record.epochs_planned}, but got {epoch!r}.")
            if epoch > trial.furthest:
                _check_value(first, row[first])
                if "latency" in self.config.objectives and record.latency is None:
                    raise InputError(
                        "latency is an objective of this study; call report_latency(seconds) before the first epoch."
                    )
            go_on = self._driver.on_epoch(record, {"epoch": epoch, **row})
            curve = [
                Epoch(number, math.nan, math.nan, kept["val_loss"], kept["val_error"], math.nan, kept["seconds"])
                for number, kept in sorted(trial.curve.items())
            ]
            write_curve(self.folder.trial_folder(record.number) / "curve.csv", curve)
            self.folder.write_record(record)
            self.show.epoch(record, {"epoch": epoch, **row})
            return go_on

    def report_latency(self, record: TrialRecord, seconds: float) -> None:
        with self._mutex:
            self._check_open(record)
            _check_value("latency", seconds)
            self._driver.on_started(record, {"latency": float(seconds)})

    def tell(
        self,
        trial: AskedTrial,
        val_error: float | None = None,
        *,
        val_loss: float | None = None,
        failed: str | None = None,
    ) -> TrialRecord:
        """End a trial with its result, and return its record.

        Results that were reported after an epoch need not be repeated.

        Args:
            trial: The trial.
            val_error: Final validation error, a fraction.
            val_loss: Final validation loss, in nats.
            failed: Reason why the trial has no result.
        """
        record, given = trial._record, {"val_error": val_error, "val_loss": val_loss}
        first = self.config.objectives[0]
        with self._mutex:
            self._check_open(record)
            if failed is not None:
                self._end(trial, failed=failed)
                return record
            state = self._driver.state.trials[record.number]
            if given[first] is not None and (state.go_on and state.furthest < record.epochs_planned):
                self.report(record, record.epochs_planned, given | {"seconds": time.monotonic() - trial._since})
            elif not state.curve:
                raise InputError(f"trial {record.number} has no result; pass {first}= to tell, or failed=.")
            elif given[first] is not None and given[first] != state.curve[state.furthest][first]:
                raise InputError(
                    f"trial {record.number} reported {first}={state.curve[state.furthest][first]!r} after epoch"
                    f" {state.furthest}, but {given[first]!r} was told."
                )
            if state.go_on and state.furthest < record.epochs_planned:
                raise InputError(
                    f"trial {record.number} has reported {state.furthest} of {record.epochs_planned} epochs; report the"
                    " rest, or pass failed= to tell."
                )
            self._end(trial)
            return record

    def take_back(self, record: TrialRecord) -> None:
        """Ask a trial again whose object was dropped before it was told."""
        with self._mutex:
            if self._open.pop(record.number, None) is not None:
                self._driver.put_back(record)

    def close(self) -> None:
        """Release the study. Open trials are asked again when it is next opened."""
        with self._mutex:
            self._open.clear()
            self._resources.close()

    def _end(self, trial: AskedTrial, failed: str | None = None) -> None:
        record = trial._record
        if failed is not None:
            record.state, record.reason = "failed", f"error: {failed}"
        else:
            finished = record.epochs >= record.epochs_planned
            names = ("epochs", "val_error", "val_loss", "seconds", "peak_memory_bytes", "weights_digest")
            self._driver.on_result(record, {name: getattr(record, name) for name in names} | {"finished": finished})
        record.ended = self.folder.now()
        self.folder.write_record(record)
        self._driver.on_end(record)
        trial._dropped.detach()
        del self._open[record.number]
        self.show.ended(record)

    def _check_open(self, record: TrialRecord) -> None:
        if record.number not in self._open:
            known = joined([str(number) for number in self._open]) or "none"
            raise InputError(f"trial {record.number} is not open; the open trials are {known}. `ask` opens one.")

    def __enter__(self) -> "AskTell":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _seed(parts: list[int]) -> int:
    """Return a seed of 32 bits for the study's seed and the trial's number."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def _check_value(name: str, value: object) -> None:
    """Raise `InputError` unless `value` is a finite number that the measure `name` can have."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= WORST.get(name, math.inf):
        raise InputError(f"{name} must be a number from 0 to {WORST.get(name, math.inf):g}, but got {value!r}.")
