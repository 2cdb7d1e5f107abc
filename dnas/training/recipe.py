"""Training recipes as values. Does not import torch, so that spaces and the command line can check recipes quickly."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from dnas.data.catalog import DataInfo
from dnas.errors import InputError, did_you_mean, unknown


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum under a learning-rate schedule.

    schedule: `steps` divides the rate by 10 at each of `milestones` (fractions of the epochs). `one-cycle` rises
        linearly over the first fraction `warmup` of the steps and falls linearly to zero.
    dropout_without_augmentation: Dropout rate of a DenseNet on data without augmentation, unless its name states one.
    class_weights: `balanced` weights the training loss of each class inversely to its number of training images.
    """

    name: str
    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.1
    schedule: str = "steps"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    dropout_without_augmentation: float = 0.0
    class_weights: str = "none"

    def __post_init__(self) -> None:
        if isinstance(self.milestones, list):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        for key, minimum in (("epochs", 1), ("batch_size", 2)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise InputError(f"`{key} >= {minimum}` must hold, but got {key}={value!r}.")
        for key, low, high in (
            ("learning_rate", 0.0, float("inf")),
            ("warmup", 0.0, 1.0),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, float("inf")),
            ("label_smoothing", 0.0, 1.0),
            ("dropout_without_augmentation", 0.0, 1.0),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
                raise InputError(f"`{low:g} <= {key} < {high:g}` must hold, but got {key}={value!r}.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, but got {self.schedule!r}.")
        if self.class_weights not in CLASS_WEIGHTS:
            raise InputError(
                f"class_weights must be one of {', '.join(CLASS_WEIGHTS)}, but got {self.class_weights!r}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values. Without class weights there is no such key, as in earlier versions."""
        values = dataclasses.asdict(self)
        if self.class_weights == "none":
            del values["class_weights"]
        return values | {"milestones": list(self.milestones)}


SCHEDULES = ("steps", "one-cycle")
CLASS_WEIGHTS = ("none", "balanced")
RECIPES = ("paper", "fast")
RECIPE_KEYS = {field.name for field in dataclasses.fields(Recipe)}


def make_recipe(name: str, data: DataInfo, **changes: Any) -> Recipe:
    """Return the recipe `name` for a data set, with `changes` to its fields (None keeps a field).

    `paper` follows section 4.2: SGD with Nesterov momentum 0.9 and weight decay 1e-4, learning rate 0.1 divided by 10
    at 50% and 75% of 300 epochs with batches of 64 (40 epochs for SVHN), and dropout 0.2 without augmentation. For
    ImageNet: 90 epochs with batches of 256, rate divided at epochs 30 and 60, no dropout. `fast` reaches a given error
    in few epochs, see benchmarks/results/recipes.md.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    for key in changes:
        if key not in RECIPE_KEYS:
            raise InputError(f"a recipe has no {key!r}.{did_you_mean(key, RECIPE_KEYS)}")
    if name == "paper":
        imagenet = data.name == "imagenet"
        recipe = Recipe(
            "paper",
            epochs=data.paper_epochs,
            batch_size=data.paper_batch_size,
            milestones=(1 / 3, 2 / 3) if imagenet else (0.5, 0.75),
            dropout_without_augmentation=0.0 if imagenet else 0.2,
        )
    elif name == "fast":
        recipe = Recipe("fast", epochs=30, schedule="one-cycle", warmup=0.3, learning_rate=0.2)
    else:
        raise unknown("recipe", name, RECIPES)
    return dataclasses.replace(recipe, **changes)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimiser step `step` (from 0), which needs no stored state."""
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "steps":
        passed = sum(step >= round(milestone * total) for milestone in recipe.milestones)
        return float(recipe.learning_rate * 0.1**passed)
    rise = recipe.warmup * total
    if step < rise:
        return recipe.learning_rate * (step + 1) / (rise + 1)
    return recipe.learning_rate * (total - step) / (total - rise)
