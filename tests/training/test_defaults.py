"""Default threads and workers of training runs."""

from dnas.training.defaults import cores, default_threads, default_workers


def test_cores_are_shared_among_the_workers() -> None:
    assert default_threads(1, 32) == cores()
    assert default_threads(2 * cores(), 32) == 1
    assert default_threads(1, 16) == 1
    assert default_workers() == max(1, cores() // 4)
