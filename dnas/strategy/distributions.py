"""The choices of a space as Optuna's distributions."""

from collections.abc import Sequence

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from dnas.space.space import Choice


def distributions(choices: Sequence[Choice]) -> dict[str, BaseDistribution]:
    """Return the space as Optuna distributions, including choices that their `when` may deactivate."""
    by_name: dict[str, BaseDistribution] = {}
    for choice in choices:
        if choice.kind == "int":
            by_name[choice.name] = IntDistribution(int(choice.low), int(choice.high), step=int(choice.step or 1))
        elif choice.kind == "float":
            by_name[choice.name] = FloatDistribution(choice.low, choice.high, step=choice.step)
        else:
            by_name[choice.name] = CategoricalDistribution([choice.encode(option) for option in choice.options])
    return by_name


def distributions_json(choices: Sequence[Choice]) -> dict[str, str]:
    return {name: distribution_to_json(distribution) for name, distribution in distributions(choices).items()}
