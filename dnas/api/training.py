"""Training of one network from Python."""

from pathlib import Path
from typing import TYPE_CHECKING

from dnas.api.interruption import Paused, SearchStopped, with_keywords

if TYPE_CHECKING:
    from dnas.export import Trained

INTERRUPTED = 130  # exit status of an interrupted command


@with_keywords
def train(
    name: str,
    dataset: str,
    *,
    recipe: str = "fast",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    data_root: str | Path | None = None,
    image_size: int | None = None,
    subset: int | None = None,
    split_seed: int = 0,
    augment: str = "auto",
    threads: int | None = None,
    device: str = "auto",
    gpus: int | None = None,
    compile: bool = False,
    cuda_graph: bool = False,
    kernels: str | None = None,
    out: str | Path | None = None,
) -> "Trained":
    """Train one network to the end, or resume its training, and return it.

    The arguments are the options of `dnas train`, whose help describes them.

    Args:
        name: Name of the network, such as "densenet-bc:L=16,k=8".
        dataset: Data set: digits, cifar10, ... or folder:PATH.

    Returns:
        The trained network: `run.net` is its module, and `run.curve` has one row per epoch.

    Raises:
        InputError: An argument is invalid, or the folder has another run.
        SearchStopped: The training diverged or ran out of memory; the reason was printed.
        KeyboardInterrupt: The training was interrupted; the same call resumes it.
    """
    from dnas.api.train_network import TrainConfig, train_network
    from dnas.export import load_trained

    config = TrainConfig(
        name=name,
        dataset=dataset,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        data_root=None if data_root is None else Path(data_root),
        subset=subset,
        split_seed=split_seed,
        image_size=image_size,
        augment=augment,
        threads=threads,
        device=device,
        processes=gpus,
        compile_net=compile,
        cuda_graph=cuda_graph,
        kernels=kernels,
        out=None if out is None else Path(out),
    )
    status = train_network(config)
    if status == INTERRUPTED:
        raise Paused(f"every finished epoch is saved in {config.folder}/. Run the same call again to resume.")
    if status:
        raise SearchStopped(f"the training of {name} ended with status {status}; see the message above.")
    return load_trained(config.folder)
