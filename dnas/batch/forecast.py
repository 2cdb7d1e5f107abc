"""Forecast of a search from its configuration and its study on disk, without torch and without the images."""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dnas.arch import Cost, Spec
from dnas.data.summary import Summary, size_warnings, summarize
from dnas.formatting import count, several, size
from dnas.space.space import Space, check_fits
from dnas.strategy.stopping import expected_epochs
from dnas.study.config import SearchConfig, check_objectives, check_same
from dnas.study.folder import StudyFolder
from dnas.study.record import STATES, TrialRecord

SAMPLED_NETWORKS = 100
MORE_TRIALS = 10  # number of trials that the line on a finished study proposes to add
RECORD_BYTES = 60_000  # disk space for record, curve and norms of a trial
UNKNOWN_CHANNELS = 3  # channels assumed for a folder of images that was not read


@dataclass(frozen=True)
class Forecast:
    """Networks, data and amount of training of a search.

    Attributes:
        config: Settings of the search.
        data: Its data set.
        space: The space for these data.
        sampled: Networks inside the limits with their costs: at most `SAMPLED_NETWORKS` random ones.
        records: Trials that exist.
        total: Number of trials at the end. Less than requested if the space has fewer networks.
        shortest: Training that is left, in complete trials, if early stopping pauses as many trials as it usually does.
        longest: The same if it pauses none.
    """

    config: SearchConfig
    data: Summary
    space: Space
    sampled: tuple[tuple[Spec, Cost], ...]
    records: tuple[TrialRecord, ...]
    total: int
    shortest: float
    longest: float

    @property
    def typical(self) -> Spec:
        """The sampled network with the median number of multiply-adds."""
        return sorted(self.sampled, key=lambda pair: pair[1].macs)[len(self.sampled) // 2][0]

    @property
    def runs(self) -> int:
        """Upper limit on the number of runs that are left."""
        return math.ceil(self.longest)


def forecast(config: SearchConfig) -> Forecast:
    """Return what a search would train now.

    Raises:
        InputError: The study on disk was started with other inputs, or the data set or the space does not allow it.
    """
    folder = StudyFolder(Path("studies") / config.study)
    records: list[TrialRecord] = []
    if folder.exists:
        check_same(folder.name, folder.config(), config)
        records = folder.records()
    data = summarize(**config.run.data)
    channels = data.channels or UNKNOWN_CHANNELS
    space = config.space.for_data(channels, data.image_size, data.classes, augmented=data.augmentation != "none")
    check_fits(space)
    check_objectives(space, config.objectives)
    total = max(len(records), networks_inside_limits(space, config.trials))
    epochs = space.recipe.epochs
    # A study whose epochs were raised restarts the trials that early stopping spared.
    restarted = [r for r in records if r.state in ("complete", "running") and r.epochs_planned < epochs]
    kept = [r for r in records if r.epochs_planned >= epochs]
    resumed = sum(1 - r.epochs / epochs for r in kept if r.state == "running")
    paused = sum(1 - r.epochs / epochs for r in kept if r.state == "paused")
    finals = max(0, config.retrain * config.retrain_seeds - len(folder.retrained()))
    new = total - len(records)
    sure = len(restarted) + resumed + finals
    share = expected_epochs(config.stopping, epochs) / epochs
    return Forecast(
        config,
        data,
        space,
        _sample(space, config.seed),
        tuple(records),
        total,
        sure + share * new,
        sure + paused * (new > 0) + new,
    )


def networks_inside_limits(space: Space, at_most: int) -> int:
    """Return the number of networks of a space inside its limits. The count ends at `at_most`."""
    if not space.survey().whole:
        return min(space.size() or at_most, at_most)
    digests = set()
    for point in space.points():
        spec = space.feasible(point)
        if spec is not None:
            digests.add(spec.digest)
        if len(digests) == at_most:
            break
    return len(digests)


def _sample(space: Space, seed: int) -> tuple[tuple[Spec, Cost], ...]:
    rng = random.Random(seed)
    sampled = (space.feasible(space.random_point(rng)) for _ in range(50 * SAMPLED_NETWORKS))
    feasible = (spec for spec in sampled if spec is not None)
    specs = [spec for spec, _ in zip(feasible, range(SAMPLED_NETWORKS), strict=False)]
    return tuple((spec, space.cost(spec)) for spec in specs)


def describe(forecast: Forecast) -> str:
    """Describe a search before it starts: its networks, data, memory and disk space, but not its time."""
    config, space, recipe = forecast.config, forecast.space, forecast.space.recipe
    costs = [price for _, price in forecast.sampled]
    ranges = ", ".join(
        f"{count(min(values))} to {count(max(values))} {name}"
        for name in ("params", "macs")
        for values in [[getattr(price, name) for price in costs]]
    )
    exhausted = f", all that are inside the limits ({config.trials:,} requested)" * (forecast.total < config.trials)
    checkpoint = 2 * 4 * median(price.params for price in costs)
    new = forecast.total - len(forecast.records)
    lines = [
        f"networks  {forecast.total:,} of {space.name}{exhausted}: {ranges} (of {len(costs)} sampled)",
        f"data      {forecast.data.describe()}",
        f"training  {several(recipe.epochs, 'epoch')} of batch {recipe.batch_size}, recipe {recipe.name}",
        f"memory    up to {size(max(price.activation_bytes for price in costs))} of activations per step, in each of"
        f" {several(min(config.run.workers, max(1, forecast.runs)), 'worker')}",
        f"disk      about {size(new * (checkpoint + RECORD_BYTES))} in studies/{config.study}/",
        *(
            f"warning   {text}"
            for text in size_warnings(forecast.data.train_size, forecast.data.val_size, recipe.batch_size)
        ),
    ]
    if forecast.records:
        lines.insert(1, f"study     {existing(forecast)}")
    return "\n".join(lines)


def existing(forecast: Forecast) -> str:
    """Describe the trials that exist, and the number of new ones."""
    config, states = forecast.config, [record.state for record in forecast.records]
    epochs = config.space.recipe.epochs
    counts = ", ".join(f"{states.count(s)} {'to resume' if s == 'running' else s}" for s in STATES if s in states)
    new = forecast.total - len(states)
    text = f"has {several(len(states), 'trial')} ({counts}); {several(new, 'new one', 'new ones')}"
    restarted = [r for r in forecast.records if r.state in ("complete", "running") and r.epochs_planned < epochs]
    if restarted:
        verb = "restart" if restarted[1:] else "restarts"
        return f"{text}; {several(len(restarted), 'trial')} {verb} for {epochs} epochs"
    if new or "running" in states:
        return text
    if forecast.total < config.trials:
        return f"{text}, since the space has no other network"
    return f"{text}; --trials {len(states) + MORE_TRIALS} trains {MORE_TRIALS} more"
