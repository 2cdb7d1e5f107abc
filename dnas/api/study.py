"""A study on disk, for Python and notebooks."""

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dnas.formatting import count, percent
from dnas.strategy.script import script_of
from dnas.study.config import LIST, objectives_of
from dnas.study.folder import StudyFolder, find_study, read_study
from dnas.study.record import TrialRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import nn

    from dnas.ablation.results import Ablation
    from dnas.strategy.asktell import AskedTrial, AskTell
    from dnas.strategy.replay import Replay, Retrained

ROWS = 10  # rows of the table that a notebook shows


class Study:
    """A search, an ablation or a list of runs, from its files. It may still be running; every property reads anew."""

    def __init__(self, folder: StudyFolder, asking: "AskTell | None" = None) -> None:
        self._folder, self._asking = folder, asking

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def path(self) -> Path:
        """Folder of the study."""
        return self._folder.path

    @property
    def config(self) -> dict[str, Any]:
        """Content of study.toml: space, limits, recipe, data, seed, ..."""
        return self._folder.config()

    @property
    def kind(self) -> Literal["search", "ablation", "list"]:
        config = self.config
        return "ablation" if "ablation" in config else "list" if config.get("kind") == LIST else "search"

    @property
    def objectives(self) -> tuple[str, ...]:
        return objectives_of(self.config)

    # --- results ------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> "pd.DataFrame":
        """One row per trial; the columns are those of `dnas.read_study`."""
        return read_study(self.path)

    @property
    def records(self) -> list[TrialRecord]:
        """The record of each trial, by number."""
        return self._folder.records()

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial with the lowest value of the first objective; None before one is complete."""
        return next(iter(self._folder.best()), None)

    @property
    def front(self) -> "pd.DataFrame":
        """The complete trials that no other one dominates, ascending in cost.

        The costs are the further objectives; params if there are none.
        """
        from dnas.analysis.efficiency import pareto_front

        first, *costs = self.objectives
        return pareto_front(self.trials, (*(costs or ["params"]), first)).trials

    def importance(self, by: str = "choices", epoch: int | None = None, bootstraps: int = 100) -> "pd.DataFrame":
        """Return how much of the objective's variance each choice and each pair of choices explains.

        Args:
            by: choices, of the space; or spec, the fields of the network.
            epoch: Compare all trials after this epoch (default: complete trials at their end).
            bootstraps: Resamples of the trials, for the intervals.

        Returns:
            One row per effect: of, method, choice, other, share, low, high (95% interval), null (share by chance),
            clear (whether the interval is above it).
        """
        from dnas.analysis.evidence import effects_frame, read_evidence
        from dnas.analysis.importance import importance

        evidence = read_evidence(self._folder, by, epoch)
        overall, best = (evidence.fanova(only_best, bootstraps) for only_best in (False, True))
        return effects_frame(overall, best, importance(evidence.params, evidence.errors.tolist()))

    @property
    def ablation(self) -> "Ablation":
        """The comparisons of an ablation, with their intervals and verdicts. Raises `InputError` for other studies."""
        from dnas.ablation.results import read_ablation

        return read_ablation(self.path)

    @property
    def verdicts(self) -> "pd.DataFrame":
        """The comparisons of an ablation: name, difference, low, high, p, p_holm, verdict. Errors are fractions."""
        import pandas as pd

        columns = ["name", "difference", "low", "high", "p", "p_holm", "verdict"]
        rows = [(c.name, c.mean, *c.interval, c.p, c.p_holm, c.verdict) for c in self.ablation.effects.comparisons]
        return pd.DataFrame(rows, columns=columns)

    # --- output -------------------------------------------------------------------------------------------------

    @property
    def plot(self) -> "Plots":
        """The figures, such as `study.plot.reuse()`. `dir(study.plot)` lists them."""
        return Plots(self)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report, and return the path of its page. out: folder of the report (default: reports/NAME)."""
        from dnas.report import write_report

        return write_report(self.path, None if out is None else Path(out))

    def export(self, path: str | Path, trial: int | None = None) -> Path:
        """Write the trained network of a trial as .safetensors or .onnx, and return its path.

        trial: number of the trial (default: the best one).
        """
        from dnas.export import load_trained, write_network

        write_network(load_trained(self.path, trial), Path(path))
        return Path(path)

    def load(self, trial: int | None = None) -> "nn.Module":
        """Load the trained network of a trial; see `dnas.load_network`."""
        from dnas.export import load_network

        return load_network(self.path, trial)

    def replay(self) -> "Replay":
        """Repeat every decision of a search from its log; `differences` of the result is empty if all are equal."""
        from dnas.strategy.replay import replay

        return replay(self._folder)

    def retrain(self, trial: int) -> "Retrained":
        """Train a trial again, and compare its learning curve and weights with the recorded ones."""
        from dnas.strategy.replay import retrain_trial

        return retrain_trial(self._folder, trial)

    def track(self, *trackers: str) -> None:
        """Copy the study to trackers, each "tensorboard:FOLDER", "mlflow:URI" or "wandb:PROJECT".

        Only what a tracker lacks is copied, so that this can be repeated while the study grows.

        Raises:
            InputError: A tracker's package is not installed, or the tracker cannot be reached.
        """
        from dnas.track.keep import track
        from dnas.track.targets import read_targets

        for target in read_targets(trackers):
            track(self._folder, target)

    @property
    def script(self) -> str:
        """The commands that repeat the study in an empty folder."""
        return script_of(self._folder).text

    # --- ask and tell -------------------------------------------------------------------------------------------

    def ask(self) -> "AskedTrial | None":
        """Return the next network to train with your own code, or None if there is none now.

        A trial that was asked before and not told, by this process or an earlier one, is asked again first.
        """
        return self._open().ask()

    def tell(
        self,
        trial: "AskedTrial",
        val_error: float | None = None,
        *,
        val_loss: float | None = None,
        failed: str | None = None,
    ) -> TrialRecord:
        """End a trial; see `dnas.strategy.asktell.AskTell.tell`."""
        return self._open().tell(trial, val_error, val_loss=val_loss, failed=failed)

    def close(self) -> None:
        """Release the study, so that another process can ask."""
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def _open(self) -> "AskTell":
        if self._asking is None:
            from dnas.api.own import reopen

            self._asking = reopen(self._folder)
        return self._asking

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- display ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Study {self.name}: {self._summary()}>"

    def _summary(self) -> str:
        from dnas.api.display import state_counts

        return f"{self.kind}, {state_counts(self.records)}"

    def _repr_html_(self) -> str:
        head = f"<p><b>{escape(self.name)}</b> &nbsp; {escape(self._summary())}</p>"
        if self.kind == "ablation":
            return head + _html(self.verdicts)
        frame = self.trials
        if frame.empty:
            return head
        first = self.objectives[0]
        shown = frame.sort_values(["state", first], key=lambda column: column.replace("complete", "")).head(ROWS)
        rest = f"<p>{len(frame) - len(shown)} more in <code>study.trials</code></p>" if len(frame) > len(shown) else ""
        return head + _html(shown[["number", "state", first, "params", "macs", "epochs", "seconds", "network"]]) + rest


def _html(frame: "pd.DataFrame") -> str:
    shown: dict[str, Callable[[Any], str]] = {
        name: percent for name in ("val_error", "test_error", "difference", "low", "high") if name in frame
    }
    shown |= {name: lambda value: count(int(value)) for name in ("params", "macs") if name in frame}
    shown |= {name: lambda value: f"{value:.3g}" for name in ("val_loss", "seconds", "p", "p_holm") if name in frame}
    return str(frame.to_html(index=False, formatters=shown, border=0))


class Plots:
    """The figures of one study, by name: each is a function that returns a matplotlib figure.

    The functions take `style`: page, paper, slides, or a `dnas.figures.Format`. Raises `InputError` if the study lacks
    the data for a figure.
    """

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> "Callable[..., Figure]":
        if name.startswith("_"):
            raise AttributeError(name)
        from dnas.report.plot import plot

        if name not in dir(self):
            raise AttributeError(f"no figure {name!r}; there are {', '.join(dir(self))}.")

        def draw(style: Any = None) -> "Figure":
            return plot(name, self._study.path, style)

        draw.__name__ = name
        return draw

    def __dir__(self) -> Iterator[str]:
        if self._study.kind == "ablation":
            from dnas.report import ablation

            return iter(sorted(ablation.PICTURES))
        from dnas.report import figures

        return iter(sorted(figures.PICTURES))


def open_study(name: str | Path) -> Study:
    """Open a study in ./studies by name, or at the path of its folder. Raises `InputError` if there is none."""
    return Study(find_study(name))
