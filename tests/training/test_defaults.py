"""Default threads and workers of training runs."""

from dnas.nn.kernels import NAMES
from dnas.training.defaults import KERNELS, cores, default_threads, default_workers


def test_cores_are_shared_among_the_workers() -> None:
    assert default_threads(1, 32) == cores()
    assert default_threads(2 * cores(), 32) == 1
    assert default_threads(1, 16) == 1
    assert default_workers() == max(1, cores() // 4)


def test_the_names_of_the_kernels_are_known_without_torch() -> None:
    assert KERNELS == NAMES
