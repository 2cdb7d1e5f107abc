"""A search from start to end: open the study, search, retrain the best."""

from pathlib import Path

from dnas.data import load_dataset
from dnas.executors.local import LocalExecutor
from dnas.executors.protocol import Executor, Outcome, Show
from dnas.nn.kernels import check_kernels
from dnas.search.driver import Driver, check_fits
from dnas.search.extend import settle
from dnas.search.stopping import check_stopping
from dnas.study.config import SearchConfig, check_objectives, check_same, frozen_inputs
from dnas.study.folder import StudyFolder
from dnas.training.devices import list_devices
from dnas.training.step import check_cuda_graph


def search(config: SearchConfig, show: Show, executor: Executor | None = None) -> Outcome:
    """Begins a study or goes on with it, until `config.trials` networks have been trained; then retrains the best.

    executor: processes of this host, unless given. `InputError` where the study on disk was made with other inputs.
    KeyboardInterrupt leaves it ready to go on.
    """
    from dnas.search.retrain import retrain_best
    from dnas.study.optuna_mirror import open_mirror

    folder = StudyFolder(Path("studies") / config.study)
    devices = list_devices(config.run.device) if executor is None else (config.run.device,)
    if config.run.cuda_graph:
        check_cuda_graph(devices[0], compiled=config.run.compile_net)
    if config.run.kernels is not None:
        check_kernels(config.run.kernels)  # before there is a folder
    check_stopping(config.stopping, len(config.objectives) > 1)
    if folder.exists:
        settle(folder)
        check_same(folder, config)  # before the data are read, which can take long
    data = load_dataset(**config.run.data, progress=show.note)  # on the CPU: only workers train
    space = config.space.for_data(data.channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    check_fits(space)
    check_objectives(space, config.objectives)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        if folder.exists:
            check_same(folder, config, data)
        else:
            folder.create(frozen_inputs(config, space, data.describe(), devices[0].partition(":")[0]))
        executor = executor or LocalExecutor(config.run.workers, devices)
        driver = Driver(folder, config, space, data.describe(), show, executor)
        try:
            driver.open()
            driver.freeze({"command": config.command, "trials": config.trials})
            with open_mirror(folder, config.mirror, show.note):
                outcome = driver.run()
                if outcome.stopped_by is None and config.retrain:
                    outcome.stopped_by = retrain_best(driver, data)
        finally:
            executor.stop()
    return outcome
