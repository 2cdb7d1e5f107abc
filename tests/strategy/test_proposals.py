"""Invariants of proposals by every sampler: inside all limits, never repeated, a function of the history."""

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.space.parse import load_space, parse_space
from dnas.space.space import Space
from dnas.strategy.distributions import distributions
from dnas.strategy.proposals import (
    SAMPLERS,
    Exhausted,
    Proposal,
    Region,
    check_sampler,
    is_control,
    make_sampler,
    propose,
)
from dnas.strategy.samplers.problem import Problem, Told
from dnas.strategy.samplers.tpe import frozen_trial
from dnas.strategy.state import SearchState
from dnas.study.config import check_objectives

RARE = """# Almost no network of this space is inside the limits
dataset = "cifar10"
[choose]
growth_rate = { int = [2, 128] }
block_layers = { int = [1, 64], times = 3 }
compression = { float = [0.3, 1.0], step = 0.1 }
bottleneck = { of = [0, 2, 4] }
[limits]
params = 12_000
macs = 4_000_000
"""


def proposals(
    space: Space,
    sampler: str,
    number: int,
    objectives: tuple[str, ...] = ("val_error",),
    control: float = 0.0,
    seed: int = 0,
) -> Iterator[Proposal]:
    """Yield proposals of a search on a formula: the error falls with size, plus some noise."""
    history, region = SearchState(objectives, "none", 1), Region(space, objectives)
    rng, ask = random.Random(seed), make_sampler(sampler)
    for n in range(number):
        try:
            proposal = propose(region, history, ask, control, seed)
        except Exhausted:
            return
        cost = space.cost(proposal.spec)
        region.tried.add(proposal.spec.digest)
        event = {"event": "ask", "number": n, "params": proposal.params, "digest": proposal.spec.digest}
        history.apply(event | {"cost": asdict(cost)})
        error = 1 / np.log(cost.params) + 0.01 * rng.random()
        history.apply({"event": "report", "number": n, "epoch": 1, "val_error": error, "go_on": True})
        history.apply({"event": "tell", "number": n, "state": "complete", "reason": None})
        yield proposal


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objectives", [("val_error",), ("val_error", "params")])
def test_proposals_are_feasible_and_distinct(sampler: str, objectives: tuple[str, ...]) -> None:
    space = load_space("cifar_bc", limits={"params": 800_000, "macs": 300_000_000})
    proposed = list(proposals(space, sampler, 30, objectives))
    assert len(proposed) == len({proposal.spec.digest for proposal in proposed}) == 30
    for proposal in proposed:
        assert not space.limits.excess(space.cost(proposal.spec))
        assert space.spec_of(proposal.params) == proposal.spec


@pytest.fixture
def rare() -> Space:
    return parse_space(RARE, "rare", "rare")


def test_fewer_than_one_in_a_thousand_points_of_the_rare_space_is_feasible(rare: Space) -> None:
    rng = random.Random(0)
    assert sum(rare.feasible(rare.random_point(rng)) is not None for _ in range(5_000)) < 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_search_a_space_with_a_tiny_feasible_region(sampler: str, rare: Space) -> None:
    proposed = list(proposals(rare, sampler, 12))
    assert len({proposal.spec.digest for proposal in proposed}) == 12
    assert all(not rare.limits.excess(rare.cost(proposal.spec)) for proposal in proposed)


def test_walks_into_a_rare_region_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a space that can be enumerated, 20 walks per feasible point are uniform by a chi-square test."""
    monkeypatch.setattr("dnas.strategy.samplers.feasible.PLAIN_DRAWS", 0)
    text = RARE.replace("[2, 128]", "[2, 4]").replace("[1, 64]", "[1, 8]").replace("[0.3, 1.0]", "[0.5, 0.5]")
    space = parse_space(text.replace("12_000", "1_300").replace("4_000_000", "700_000"), "r", "r")
    region = Region(space, ("val_error",))
    feasible_points = [point for point in space.points() if space.feasible(point) is not None]
    counts = dict.fromkeys((tuple(point.values()) for point in feasible_points), 0)
    rng = random.Random(1)
    for _ in range(20 * len(feasible_points)):
        counts[tuple(region.drawer()(rng).values())] += 1
    chi2 = sum((count - 20) ** 2 / 20 for count in counts.values())
    assert 30 < len(feasible_points) < 80
    assert chi2 / len(feasible_points) < 1.5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_network_is_proposed_before_exhaustion(sampler: str) -> None:
    proposed = list(proposals(load_space("tiny"), sampler, 50))
    assert len(proposed) == len({proposal.spec.digest for proposal in proposed}) == 12


@pytest.mark.parametrize("sampler", ["gp", "tpe", "nsga2", "random"])
def test_proposals_depend_on_seed_number_and_history_alone(sampler: str) -> None:
    space = load_space("digits_bc")

    def run(seed: int) -> list[dict[str, object]]:
        return [proposal.params for proposal in proposals(space, sampler, 16, seed=seed)]

    assert run(0) == run(0)
    assert run(0)[1:] != run(1)[1:]


def test_control_arm_is_an_evenly_spaced_share_of_random_draws() -> None:
    arms = [is_control(number, 0.15) for number in range(200)]
    assert sum(arms) == 30
    gaps = np.diff(np.flatnonzero(arms))
    assert set(gaps) == {6, 7}
    assert not any(is_control(number, 0.0) for number in range(200))
    assert sum(is_control(number, 0.29) for number in range(100)) == 29, (
        "although 0.29 * 100 is less than 29 in floating point"
    )
    space = load_space("digits_bc")
    one = [p for p in proposals(space, "tpe", 30, control=0.5) if p.arm == "control"]
    other = [p for p in proposals(space, "nsga2", 30, control=0.5) if p.arm == "control"]
    assert len(one) == 15 or len(one) == 14
    assert [p.params for p in one] == [p.params for p in other], "control proposals do not depend on the sampler"


def test_first_networks_are_tried_first_unless_they_exceed_a_limit() -> None:
    assert next(proposals(load_space("digits_bc"), "random", 1)).arm == "first"
    small = load_space("digits_bc", limits={"params": 5_000})
    assert next(proposals(small, "random", 1)).arm == "sampler"


def test_networks_as_large_as_one_out_of_memory_are_not_proposed() -> None:
    space = load_space("digits_bc")
    region, history = Region(space, ("val_error",)), SearchState(("val_error",), "none", 12)
    first = propose(region, history, make_sampler("random"), 0.0, 3)
    needed = space.cost(first.spec).activation_bytes
    event = {"event": "ask", "number": 0, "params": first.params, "digest": first.spec.digest}
    history.apply(event | {"cost": asdict(space.cost(first.spec))})
    history.apply({"event": "tell", "number": 0, "state": "infeasible", "reason": "out of memory: 9 GiB"})
    proposed = [propose(region, history, make_sampler("random"), 0.0, seed).spec for seed in range(40)]
    assert max(space.cost(spec).activation_bytes for spec in proposed) < needed
    assert region.accept(first.params) is None, "a network that needs as much memory is rejected too"


# --- growth_rate = "fit" ---


FIT = """# Networks of nearly equal size
dataset = "cifar10"
[fixed]
growth_rate = "fit"
[choose]
depth = { int = [22, 100], step = 6 }
compression = { of = [0.5, 0.75, 1.0] }
connectivity = { of = ["dense", "log", "none"] }
[limits]
params = 500_000
"""


def test_fit_chooses_the_largest_growth_rate_inside_the_limits() -> None:
    space = parse_space(FIT, "fit", "fit")
    for point in list(space.points())[::5]:
        spec = space.spec_of(point)
        fields = {key: value for key, value in spec.to_dict().items() if key != "family"}
        wider = DenseNetSpec.from_dict(fields | {"growth_rate": spec.growth_rates[0] + 1})
        assert space.cost(spec).params <= 500_000 < space.cost(wider).params
    sizes = [space.cost(space.spec_of(point)).params for point in space.points()]
    assert min(sizes) > 400_000, "depth, θ and connectivity are compared at nearly equal size"


def test_fit_respects_every_limit() -> None:
    space = parse_space(FIT + "macs = 60_000_000\n", "fit", "fit")
    costs = [space.cost(space.spec_of(point)) for point in space.points()]
    assert all(cost.params <= 500_000 and cost.macs <= 60_000_000 for cost in costs)


def test_fit_proposes_within_its_limits() -> None:
    space = parse_space(FIT.replace("500_000", "60_000"), "fit", "fit")
    proposed = list(proposals(space, "gp", 30))
    assert len({proposal.spec.digest for proposal in proposed}) == 30
    assert all(not space.limits.excess(space.cost(proposal.spec)) for proposal in proposed)


def test_fit_without_a_limit_is_rejected() -> None:
    with pytest.raises(InputError, match='growth_rate = "fit" needs a limit to fit to'):
        parse_space(FIT.replace("params = 500_000", ""), "fit", "fit")


# --- objectives, limits and samplers that contradict each other ---


def test_constant_objective_is_rejected() -> None:
    space = parse_space(FIT, "fit", "fit")
    with pytest.raises(
        InputError, match=r"params is an objective, and growth_rate = \"fit\" makes every network of fit"
    ):
        check_objectives(space, ("val_error", "params"))
    check_objectives(space, ("val_error", "macs"))
    tiny = load_space("tiny", limits={"params": 338})
    with pytest.raises(InputError, match=r"every network of tiny inside the limits has params = 338"):
        check_objectives(tiny, ("val_error", "params"))


def test_unsupported_sampler_is_rejected() -> None:
    with pytest.raises(InputError, match=r"--sampler must be one of gp, tpe, nsga2, random, grid, but got 'nsga'"):
        check_sampler("nsga", ("val_error",))
    with pytest.raises(InputError, match=r"--sampler grid does not support 2 objectives"):
        check_sampler("grid", ("val_error", "params"))
    assert [check_sampler(name, ("val_error",)) for name in SAMPLERS] == list(SAMPLERS)


# --- trials as Optuna sees them ---


def test_trial_states_convert_to_optuna_states() -> None:
    space = load_space("tiny")
    point, reports = next(space.points()), {1: 0.5, 2: 0.4}

    def optuna_trial(state: str, *values: float, objectives: int = 1) -> tuple[object, ...]:
        told = Told(0, point, state, values or None, 2, 9, reports)
        trial = frozen_trial(told, distributions(space.choices), objectives)
        assert trial.params == point
        return trial.state.name, trial.values, trial.intermediate_values

    assert optuna_trial("complete", 0.3) == ("COMPLETE", [0.3], {})
    assert optuna_trial("running", 0.4) == ("RUNNING", None, {})
    assert optuna_trial("paused", 0.4) == optuna_trial("stopped", 0.4) == ("PRUNED", None, reports)
    assert optuna_trial("failed", 1.0) == ("COMPLETE", [1.0], {})  # diverged: the worst error
    assert optuna_trial("failed") == ("FAIL", None, {})  # an error in the code does not describe the network
    assert optuna_trial("infeasible") == ("PRUNED", None, {})  # ranked behind every other
    assert optuna_trial("paused", 0.4, 90.0, objectives=2) == ("COMPLETE", [0.4, 90.0], {})
    assert optuna_trial("infeasible", objectives=2) == ("FAIL", None, {})
    with pytest.raises(AssertionError, match="values must be finite"):
        optuna_trial("complete", float("nan"))


def test_linear_algebra_in_a_proposal_uses_one_thread() -> None:
    """The last bits of a proposal must not depend on the number of cores of the driver."""
    space = replace(load_space("digits_bc"), first=())
    seen: list[int] = []

    def sampler(problem: Problem, told: Any, rng: np.random.Generator) -> dict[str, Any]:
        seen.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        return problem.draw(random.Random(0))

    with threadpool_limits(2, user_api="blas"):
        propose(Region(space, ("val_error",)), SearchState(("val_error",), "none", 3), sampler, 0.0, 0)
        assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {2}
    assert set(seen) == {1}
