"""Samplers. Each is a function of the problem, the earlier trials and a random generator (`problem.Sampler`)."""

from importlib import import_module
from typing import TYPE_CHECKING

from dnas.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from dnas.strategy.samplers.problem import Sampler

# Module and member of each sampler. Optuna and SciPy are imported only when they are used.
_MEMBERS = {
    "gp": ("gp", "propose_gp"),
    "tpe": ("tpe", "ProposeTPE"),
    "nsga2": ("nsga2", "propose_nsga2"),
    "random": ("random_grid", "propose_random"),
    "grid": ("random_grid", "propose_grid"),
}
SAMPLERS = tuple(_MEMBERS)


def check_sampler(name: str, objectives: tuple[str, ...]) -> str:
    """Return `name`; raise `InputError` if there is no such sampler or it cannot handle the objectives."""
    if name not in SAMPLERS:
        raise InputError(
            f"--sampler must be one of {', '.join(SAMPLERS)}, but got {name!r}.{did_you_mean(name, SAMPLERS)}"
        )
    if name == "grid" and len(objectives) > 1:
        raise InputError(
            f"--sampler grid does not support {len(objectives)} objectives; use --sampler gp, tpe, nsga2 or random."
        )
    return name


def make_sampler(name: str) -> "Sampler":
    module, member = _MEMBERS[name]
    attribute = getattr(import_module(f"dnas.strategy.samplers.{module}"), member)
    sampler: Sampler = attribute() if isinstance(attribute, type) else attribute
    return sampler
