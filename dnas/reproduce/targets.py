"""Tables and figures of the paper that can be reproduced: networks, budgets and claims."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dnas.arch import Spec, parse_name
from dnas.batch.planned import PlannedRun
from dnas.data.catalog import DataInfo, data_info
from dnas.errors import InputError, unknown
from dnas.formatting import several
from dnas.training.recipe import Recipe, make_recipe


@dataclass(frozen=True)
class Budget:
    """Amount of training.

    Attributes:
        name: Name on the command line.
        dataset: Name of the data set.
        recipe: Name of the recipe.
        epochs: Number of epochs. Defaults to that of the recipe.
        batch_size: Images per batch. Defaults to that of the recipe.
        images: Approximate number of training images, for time estimates.
        seeds: Default number of seeds.
        about: Description for help texts and the page.
    """

    name: str
    dataset: str
    recipe: str
    epochs: int | None
    batch_size: int | None
    images: int
    seeds: int
    about: str

    def training(self, target: "Target", dataset: str) -> Recipe:
        epochs = target.epochs.get(self.name, self.epochs)
        return make_recipe(self.recipe, data_info(dataset), epochs=epochs, batch_size=self.batch_size)


@dataclass(frozen=True)
class Target:
    """A table or figure of the paper.

    Attributes:
        name: Name on the command line.
        title: Title of the page.
        claim: Claim of the paper.
        networks: Names of networks, by budget and group.
        least_seeds: Smallest number of seeds for an interval.
        final: Budgets that train on the validation images too and measure on the test images, as the paper did.
        seeds: Number of seeds that replaces the default of a budget, by budget.
        epochs: Number of epochs that replaces the default, by budget.
        datasets: Data set that replaces the default, by budget.
    """

    name: str
    title: str
    claim: str
    networks: Mapping[str, Mapping[str, tuple[str, ...]]]
    least_seeds: int = 2
    final: tuple[str, ...] = ()
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    epochs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    datasets: Mapping[str, str] = dataclasses.field(default_factory=dict)


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("smoke", "digits", "fast", 8, 64, 1294, 3, "small networks on 8×8 digits: minutes on two cores"),
        Budget("short", "cifar10", "fast", 10, 128, 45_000, 3, "CIFAR-10, 10 epochs: some 20 minutes on one GPU"),
        Budget("paper", "cifar10", "paper", None, None, 50_000, 3, "the paper's schedule: GPU-days"),
    )
}


def _sizes(pattern: str, *depths: int) -> tuple[str, ...]:
    return tuple(pattern.format(depth) for depth in depths)


_BC_AND_RESNET = {
    "smoke": {
        "ResNet": ("resnet-b:L=11,width=2", "resnet-b:L=11,width=4", "resnet-b:L=20,width=4"),
        "DenseNet-BC": _sizes("densenet-bc:L={},k=2", 16, 22, 28),
    },
    "short": {
        "ResNet": _sizes("resnet-b:L={}", 11, 20, 29, 56),
        "DenseNet-BC": _sizes("densenet-bc:L={},k=12", 16, 28, 40, 64),
    },
    "paper": {
        "ResNet": (*_sizes("resnet-b:L={}", 29, 56), "resnet_164", "resnet_1001"),
        "DenseNet-BC": (*_sizes("densenet-bc:L={},k=12", 40, 64), "densenet_bc_100_12", "densenet_bc_250_24"),
    },
}
_IMAGENET = "{}:units={},width=64,stem=imagenet,size=224,classes=1000"

TARGETS = {
    target.name: target
    for target in (
        Target(
            "table1",
            "Table 1: the DenseNets for ImageNet",
            "the architectures are the published ones",
            {},
            least_seeds=0,
        ),
        Target(
            "table2",
            "Table 2: the DenseNets for CIFAR-10",
            "sizes and errors are the published ones",
            {
                "smoke": {"DenseNet": ("densenet_40_12",), "DenseNet-BC": ("densenet_bc_100_12",)},
                "short": {"DenseNet": ("densenet_40_12",), "DenseNet-BC": ("densenet_bc_100_12",)},
                "paper": {
                    "DenseNet": ("densenet_40_12", "densenet_100_12", "densenet_100_24"),
                    "DenseNet-BC": ("densenet_bc_100_12", "densenet_bc_250_24", "densenet_bc_190_40"),
                },
            },
            least_seeds=1,
            final=("paper",),
            seeds={"smoke": 1},
            epochs={"smoke": 2},
        ),
        Target(
            "fig3",
            "Figure 3: DenseNets against ResNets, by params and by multiply-adds",
            "at equal error DenseNets need fewer params and fewer multiply-adds than ResNets",
            {
                **_BC_AND_RESNET,
                "paper": {
                    "ResNet": (
                        _IMAGENET.format("resnet", "3-4-6-3"),
                        *(_IMAGENET.format("resnet-b", units) for units in ("3-4-6-3", "3-4-23-3", "3-8-36-3")),
                    ),
                    "DenseNet-BC": ("densenet121", "densenet169", "densenet201", "densenet264"),
                },
            },
            final=("paper",),
            seeds={"paper": 2},
            datasets={"paper": "imagenet"},
        ),
        Target(
            "fig4-left",
            "Figure 4, left: the parameter efficiency of DenseNet's variants",
            "at equal error DenseNet-BC needs fewer params than the other variants",
            {
                "smoke": {
                    # The default stem of 16 channels would contain most of the params of networks this small.
                    "DenseNet": _sizes("densenet:L={},k=2,stem_channels=4", 7, 10, 16),
                    "DenseNet-B": _sizes("densenet-b:L={},k=2", 10, 16, 22),
                    "DenseNet-C": _sizes("densenet-c:L={},k=2,stem_channels=4", 10, 13, 19),
                    "DenseNet-BC": _sizes("densenet-bc:L={},k=2", 16, 22, 28),
                },
                "short": {
                    "DenseNet": _sizes("densenet:L={},k=12", 10, 16, 22),
                    "DenseNet-B": _sizes("densenet-b:L={},k=12", 16, 28, 40),
                    "DenseNet-C": _sizes("densenet-c:L={},k=12", 10, 19, 28),
                    "DenseNet-BC": _sizes("densenet-bc:L={},k=12", 16, 28, 52),
                },
                "paper": {
                    "DenseNet": _sizes("densenet:L={},k=12", 16, 22, 28, 34),
                    "DenseNet-B": _sizes("densenet-b:L={},k=12", 22, 34, 52, 64),
                    "DenseNet-C": _sizes("densenet-c:L={},k=12", 22, 28, 34, 46),
                    "DenseNet-BC": _sizes("densenet-bc:L={},k=12", 40, 64, 82, 100),
                },
            },
            final=("paper",),
        ),
        Target(
            "fig4-middle",
            "Figure 4, middle: DenseNet-BC against pre-activation ResNets",
            "at equal error DenseNet-BC needs about a third of the params of a pre-activation ResNet",
            _BC_AND_RESNET,
            final=("paper",),
        ),
        Target(
            "fig4-right",
            "Figure 4, right: the curves of a large ResNet and of a small DenseNet-BC",
            "a DenseNet-BC with a tenth of the params ends at a similar error, though the ResNet's training loss is"
            " lower",
            {
                "smoke": {"ResNet": ("resnet-b:L=29,width=8",), "DenseNet-BC": ("densenet-bc:L=22,k=4",)},
                "short": {"ResNet": ("resnet_164",), "DenseNet-BC": ("densenet-bc:L=40,k=12",)},
                "paper": {"ResNet": ("resnet_1001",), "DenseNet-BC": ("densenet_bc_100_12",)},
            },
            epochs={"smoke": 20},
        ),
        Target(
            "fig5",
            "Figure 5: use of earlier layers by later ones",
            "later layers use features of all earlier ones",
            {
                "smoke": {"DenseNet": ("densenet:L=16,k=4",)},
                "short": {"DenseNet": ("densenet_40_12",)},
                "paper": {"DenseNet": ("densenet_40_12",)},
            },
            seeds={"smoke": 5},
            epochs={"smoke": 20},
        ),
    )
}


@dataclass(frozen=True)
class Listed:
    """One planned run."""

    group: str
    name: str
    spec: Spec
    seed: int

    @property
    def key(self) -> str:
        return f"{self.name}/s{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Runs of `dnas reproduce`. info: Properties of the data set. final: Whether errors are measured on test images."""

    target: Target
    budget: Budget
    info: DataInfo
    recipe: Recipe
    seeds: int
    final: bool
    runs: tuple[Listed, ...]

    @property
    def study(self) -> str:
        """Name of the study, one per target and budget."""
        return f"reproduce_{self.target.name}_{self.budget.name}"

    @property
    def folder(self) -> str:
        """Name of the folder in reports/reproduce/."""
        return f"{self.target.name}-{self.budget.name}" if self.runs else self.target.name

    @property
    def error(self) -> str:
        """Column of the measured error."""
        return "test_error" if self.final else "val_error"

    def planned(self) -> list[PlannedRun]:
        """Return the runs for `dnas.batch.runs`. All networks of a seed share its random streams."""
        return [PlannedRun(run.key, run.group, run.spec, self.recipe, (run.seed, 0)) for run in self.runs]


def make_plan(target: str, budget: str, seeds: int | None = None) -> Plan:
    """Return the plan of `dnas reproduce target --budget budget`.

    Runs are ordered by seed, so that the first results already compare all networks.

    Raises:
        InputError: For unknown names, or for fewer seeds than the interval of the target needs.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    definition, amount = TARGETS[target], BUDGETS[budget]
    count = seeds if seeds is not None else definition.seeds.get(budget, amount.seeds)
    if count < definition.least_seeds:
        raise InputError(
            f"{target} needs an interval over seeds, so --seeds must be at least {definition.least_seeds}, but got"
            f" {count}."
        )
    info = data_info(definition.datasets.get(budget, amount.dataset))
    networks = definition.networks.get(budget, {})
    specs = {name: spec_for(name, info) for names in networks.values() for name in names}
    runs = tuple(
        Listed(group, name, specs[name], seed)
        for seed in range(count)
        for group, names in networks.items()
        for name in names
    )
    return Plan(
        definition, amount, info, amount.training(definition, info.name), count, budget in definition.final, runs
    )


def spec_for(name: str, info: DataInfo) -> Spec:
    """Return the network `name` for the images and classes of a data set."""
    facts: dict[str, Any] = {"in_channels": info.channels, "image_size": info.image_size, "classes": info.classes}
    return dataclasses.replace(parse_name(name), **facts)


def describe(target: Target) -> str:
    """Describe a target for `--help`, such as `fig4-left (12 networks)`."""
    count = sum(len(names) for names in target.networks.get("smoke", {}).values())
    return f"{target.name} ({several(count, 'network')})"
