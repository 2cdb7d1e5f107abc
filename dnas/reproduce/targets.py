"""What each table and figure of the paper takes: networks, budgets, and the claim that is read from them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dnas.arch import Spec, parse_name
from dnas.batch.runs import PlannedRun
from dnas.data.catalog import DataInfo, data_info
from dnas.errors import InputError, unknown
from dnas.formatting import several
from dnas.training.recipe import Recipe, make_recipe


@dataclass(frozen=True)
class Budget:
    """How much is trained. epochs and batch_size None: the recipe's own. images: of the training part, for estimates;
    exact ones come from the data. seeds: unless `--seeds` says otherwise."""

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
    """A table or figure. networks: budget -> group -> names; datasets: budget -> another data set than the budget's.

    least_seeds: fewer give no interval. final: the budgets at which it trains on the validation part too and measures
    on the test set, as the paper did. seeds, epochs: in place of the budget's.
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
                    # With the stem of 16 channels that those without a bottleneck have else, it would be most of them.
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
            "Figure 5: how a layer uses what came before it",
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
    """One training that a plan asks for."""

    group: str
    name: str
    spec: Spec
    seed: int

    @property
    def key(self) -> str:
        return f"{self.name}/s{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What `dnas reproduce` will train. info: the data set's facts; final: whether the test set is opened."""

    target: Target
    budget: Budget
    info: DataInfo
    recipe: Recipe
    seeds: int
    final: bool
    runs: tuple[Listed, ...]

    @property
    def study(self) -> str:
        """studies/<this>: a study of its own for each target and budget."""
        return f"reproduce_{self.target.name}_{self.budget.name}"

    @property
    def folder(self) -> str:
        """reports/reproduce/<this>"""
        return f"{self.target.name}-{self.budget.name}" if self.runs else self.target.name

    @property
    def error(self) -> str:
        """The column that is measured."""
        return "test_error" if self.final else "val_error"

    def planned(self) -> list[PlannedRun]:
        """Return the runs for `dnas.batch.runs`. All networks of a seed share its random streams."""
        return [PlannedRun(run.key, run.group, run.spec, self.recipe, (run.seed, 0)) for run in self.runs]


def make_plan(target: str, budget: str, seeds: int | None = None) -> Plan:
    """The plan of `dnas reproduce target --budget budget`. Runs come seed by seed: what is there first compares all
    networks. `InputError` for unknown names, and for fewer seeds than the target's interval needs."""
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    what, much = TARGETS[target], BUDGETS[budget]
    count = seeds if seeds is not None else what.seeds.get(budget, much.seeds)
    if count < what.least_seeds:
        raise InputError(
            f"{target} is read with an interval over seeds, which needs --seeds {what.least_seeds} or more, but got"
            f" {count}."
        )
    info = data_info(what.datasets.get(budget, much.dataset))
    networks = what.networks.get(budget, {})
    specs = {name: spec_for(name, info) for names in networks.values() for name in names}
    runs = tuple(
        Listed(group, name, specs[name], seed)
        for seed in range(count)
        for group, names in networks.items()
        for name in names
    )
    return Plan(what, much, info, much.training(what, info.name), count, budget in what.final, runs)


def spec_for(name: str, info: DataInfo) -> Spec:
    """The network `name` for a data set's images and classes."""
    facts: dict[str, Any] = {"in_channels": info.channels, "image_size": info.image_size, "classes": info.classes}
    return dataclasses.replace(parse_name(name), **facts)


def describe(target: Target) -> str:
    """For `--help`: `fig4-left (12 networks at smoke)`."""
    count = sum(len(names) for names in target.networks.get("smoke", {}).values())
    return f"{target.name} ({several(count, 'network')})"
