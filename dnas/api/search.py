"""Searches, for `dnas search` and `dnas.search`."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dnas.api.execution import Execution, check_machine
from dnas.api.options import SearchOptions, complete, default_study, make_config
from dnas.formatting import several
from dnas.study.config import SearchConfig
from dnas.study.folder import StudyFolder, check_study_name

if TYPE_CHECKING:
    from dnas.executors.protocol import Outcome


@dataclass(frozen=True)
class PreparedSearch:
    """A search whose options were checked. Nothing has been written yet."""

    options: SearchOptions
    folder: StudyFolder
    config: SearchConfig

    def opening(self) -> str:
        """Return the summary that is printed before the search starts."""
        from dnas.api.opening import opening

        return opening(self.config, self.config.run.workers if self.options.executor == "local" else None)

    def run(self, quiet: bool = False, verbose: bool = False) -> "Outcome":
        """Run the search with a display. KeyboardInterrupt leaves the study ready to resume."""
        config, executor = self.config, None
        if self.options.executor == "local":
            from dnas.training.forkserver import start_forkserver

            start_forkserver()
        else:
            side = self.options.image_size or config.space.fixed.get("image_size", 32)
            executor, changes = Execution.of(self.options).connect_ray(config.study, side)
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))
        from dnas.api.display import make_display
        from dnas.strategy.run import search as run_search
        from dnas.strategy.stopping import expected_epochs

        display = make_display(quiet, verbose, partial(expected_epochs, config.stopping))
        if executor is not None:
            display.note(f"Ray: {several(min(config.run.workers, executor.workers), 'run')} at once")
        with display:
            return run_search(config, display, executor)


def prepare(options: SearchOptions, dry_run: bool = False) -> PreparedSearch:
    """Check the options of a search, without torch unless they name a device or kernels.

    Args:
        options: The options.
        dry_run: The search will only be planned, so another process may be running the study.

    Raises:
        InputError: The options cannot be used.
    """
    options = complete(options)
    folder = StudyFolder(Path("studies") / check_study_name(options.study or default_study(options)))
    if folder.exists and not dry_run:
        from dnas.strategy.extend import settle

        with folder.lock():  # refuses a study that another process is running
            settle(folder)
    config = make_config(options, folder.name, folder.config() if folder.exists else {})
    check_machine(options.device, options.kernels)
    return PreparedSearch(options, folder, config)
