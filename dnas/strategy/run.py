"""A complete search, which opens the study, runs its trials and retrains the best."""

from pathlib import Path

from dnas.data import Dataset, load_dataset
from dnas.executors.local import LocalExecutor
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.executors.runner import TrialRunner
from dnas.nn.kernels import check_kernels
from dnas.space.objectives import extra_metrics
from dnas.space.space import check_fits
from dnas.strategy.driver import Driver
from dnas.strategy.extend import settle
from dnas.strategy.optuna_mirror import open_mirror
from dnas.strategy.retrain import retrain_best
from dnas.strategy.stopping import check_stopping
from dnas.study.config import SearchConfig, check_objectives, check_same, frozen_inputs, run_facts
from dnas.study.folder import StudyFolder
from dnas.training.devices import list_devices
from dnas.training.metrics import check_measurable
from dnas.training.step import check_cuda_graph


def search(config: SearchConfig, show: Show, executor: Executor | None = None) -> Outcome:
    """Start or resume a study, run it until `config.trials` trials have been started, then retrain the best.

    KeyboardInterrupt leaves the study ready to resume.

    Args:
        config: Settings of the search.
        show: Observer, such as a display.
        executor: Runs the trials; by default processes of this host.

    Raises:
        InputError: The study on disk was started with other inputs, or the settings cannot be used.
    """
    folder, run = StudyFolder(Path("studies") / config.study), config.run
    devices = list_devices(run.device) if executor is None else (run.device,)
    if run.cuda_graph:
        check_cuda_graph(devices[0], compiled=run.compile_net)
    if run.kernels is not None:
        check_kernels(run.kernels)  # before the folder is created
    check_stopping(config.stopping, len(config.objectives) > 1)
    if folder.exists:
        settle(folder)
        check_same(folder.name, folder.config(), config)  # before reading the data, which can be slow
    data = load_dataset(**run.data, progress=show.note)  # on the CPU: only workers train
    space = config.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    check_fits(space)
    check_objectives(space, config.objectives)
    check_measurable(data, extra_metrics(config.objectives))
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        if folder.exists:
            check_same(folder.name, folder.config(), config, data)
        else:
            folder.create(frozen_inputs(config, space, data.describe(), devices[0].partition(":")[0]))
        executor = executor or LocalExecutor(run.workers, devices)
        driver = Driver(folder, config, space, data.describe(), show)
        try:
            driver.open()
            retrain = {"retrain": {"best": config.retrain, "seeds": config.retrain_seeds}} if config.retrain else {}
            trials = max(config.trials, len(driver.records))
            driver.freeze({"trials": trials, "exhausted": None, **run_facts(run), **retrain})
            return search_and_retrain(driver, data, executor)
        finally:
            executor.stop()


def search_and_retrain(driver: Driver, data: Dataset, executor: Executor) -> Outcome:
    """Run the trials of an open driver, then the final runs, with the mirror kept up to date."""
    folder, config, show = driver.folder, driver.config, driver.show
    with open_mirror(folder, config.mirror, show.note):
        outcome = TrialRunner(driver, executor, show).run()
        outcome.exhausted = driver.exhausted
        driver.freeze({"exhausted": outcome.exhausted or None})
        if outcome.stopped_by is None and config.retrain:
            outcome.stopped_by = retrain_best(folder, config, data, executor, show)
    return outcome
