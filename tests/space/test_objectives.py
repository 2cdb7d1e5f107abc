"""Objectives and Pareto arithmetic, compared with literal definitions and with counts of grid cells."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnas.errors import InputError
from dnas.space.objectives import read_objectives
from dnas.space.pareto import crowding, hypervolume, nondominated_ranks

SMALL = st.integers(0, 5)


def dominates(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def ranks_by_definition(points: list[tuple[int, ...]]) -> list[int]:
    """Rank points by repeatedly removing those that no remaining point dominates."""
    ranks, remaining, rank = [0] * len(points), set(range(len(points))), 0
    while remaining:
        front = {i for i in remaining if not any(dominates(points[j], points[i]) for j in remaining)}
        for i in front:
            ranks[i] = rank
        remaining -= front
        rank += 1
    return ranks


@given(st.integers(1, 3).flatmap(lambda m: st.lists(st.tuples(*[SMALL] * m), min_size=1, max_size=14)))
def test_ranks_follow_the_definition(points: list[tuple[int, ...]]) -> None:
    assert nondominated_ranks(np.array(points)).tolist() == ranks_by_definition(points)


@given(st.integers(1, 3).flatmap(lambda m: st.lists(st.tuples(*[SMALL] * m), max_size=6)))
def test_hypervolume_equals_the_number_of_dominated_cells(points: list[tuple[int, ...]]) -> None:
    m = len(points[0]) if points else 2
    cells = itertools.product(range(5), repeat=m)
    dominated = sum(any(all(p[i] <= cell[i] for i in range(m)) for p in points) for cell in cells)
    assert hypervolume(np.array(points, dtype=float).reshape(-1, m), [5] * m) == pytest.approx(dominated)


def test_crowding_is_the_gap_between_neighbours() -> None:
    distances = crowding(np.array([[0.0, 4.0], [1.0, 2.0], [2.0, 1.5], [4.0, 0.0]]))
    assert distances.tolist() == [np.inf, 2 / 4 + 2.5 / 4, 3 / 4 + 2 / 4, np.inf]


def test_trained_objective_comes_first() -> None:
    assert read_objectives("val_error") == ("val_error",)
    assert read_objectives("params, val_loss,latency") == ("val_loss", "params", "latency")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_error,parms", "got 'parms'. Did you mean params?"),
        ("val_error,params,params", "names params twice; once is enough"),
        ("params", "f1_error, which training measures, but got 'params'"),
        ("val_error,val_loss", "needs exactly one of val_error, val_loss, "),
        ("", "needs exactly one of"),
    ],
)
def test_invalid_objectives_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_objectives(text)
    assert message in str(error.value)
