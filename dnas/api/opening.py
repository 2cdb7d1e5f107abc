"""Output of `dnas search` and `dnas worker` before the search. Imports neither torch nor the analyses."""

from dnas.batch.forecast import existing, forecast
from dnas.data.summary import size_warnings
from dnas.formatting import count, joined, several
from dnas.strategy.stopping import LEAST_EPOCHS, Ladder
from dnas.study.config import SearchConfig

SAMPLERS = {"gp": "Gaussian process", "tpe": "TPE", "nsga2": "NSGA-II"}


def opening(config: SearchConfig, workers: int | None) -> str:
    """Return a summary of a search before it starts.

    Args:
        config: Settings of the search.
        workers: Number of runs at once; None if a cluster determines it.

    Raises:
        InputError: The study on disk was started with other inputs, or the data set or the space does not allow it.
    """
    plan = forecast(config)
    space, recipe = plan.space, plan.space.recipe
    networks, (low, high) = space.size(), space.survey().range("params")
    limits = ", ".join(f"{name} ≤ {count(value)}" for name, value in space.limits.stated().items()) or "none"
    control = f", {100 * config.control:.0f}% random control" if config.control else ""
    at_once = "" if workers is None else f", {workers} at once ({several(config.run.threads, 'thread')} each)"
    lines = [
        f"{space.name}   {space.title}",
        f"space    {f'{networks:,} networks' if networks is not None else 'infinite'},"
        f" {count(low)} to {count(high)} params",
        f"limits   {limits}",
        f"data     {plan.data.describe()}",
        f"train    recipe {recipe.name}, {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size};"
        f" early stopping {_stopping(config)}",
        f"search   {', '.join(config.objectives)} by {SAMPLERS.get(config.sampler, config.sampler)}, seed"
        f" {config.seed}{control}; {several(config.trials, 'trial')}{at_once}; studies/{config.study}/",
    ]
    if plan.records:
        lines.append(f"study    {existing(plan)}")
    lines += [f"warning  {text}" for text in size_warnings(plan.data.train_size, plan.data.val_size, recipe.batch_size)]
    return "\n".join((*lines, ""))


def _stopping(config: SearchConfig) -> str:
    epochs = config.space.recipe.epochs
    rungs = Ladder(config.stopping, epochs, several=len(config.objectives) > 1).rungs
    if config.stopping == "none":
        return "none"
    if not rungs:
        return f"none, since {config.stopping} needs at least {LEAST_EPOCHS} epochs"
    text = joined([str(rung) for rung in rungs]) if len(rungs) < 6 else f"{rungs[0]} to {rungs[-1]}"
    return f"{config.stopping} after {text} of {epochs} epochs"
