"""Search spaces: the contents of space files, and complete reports of their problems."""

import dataclasses
import random
from pathlib import Path

import optuna
import pytest

from dnas.arch import DenseNetSpec, cost
from dnas.errors import InputError
from dnas.space.parse import load_space, parse_space, space_files
from dnas.space.space import Limits
from dnas.strategy.distributions import distributions

GOOD = """# A space for this test
dataset = "digits"
[fixed]
compression = 0.5
[choose]
growth_rate = { int = [4, 12], step = 4 }
bottleneck = { of = [0, 2] }
block_layers = { int = [1, 2], times = 2 }
dropout = { float = [0.0, 0.3], step = 0.1, when = { bottleneck = 2 } }
[limits]
params = 5_000
[recipe]
epochs = 3
"""


def test_shipped_spaces_are_valid() -> None:
    names = {"cifar_bc", "cifar_plain", "cifar_resnet", "svhn_bc", "imagenet_bc", "digits_bc", "digits_resnet", "tiny"}
    assert names <= set(space_files())
    for name in names:
        space = load_space(name)
        opening = [line.lstrip("# ").split()[0] for line in space.text.splitlines()[:4]]
        assert opening[1:] == ["Run:", "Time:", "Expect:"], name
        for point in space.first:
            assert space.feasible(point) is not None, f"the first network of {name} exceeds its limits"


def test_spaces_of_the_current_folder_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search_spaces").mkdir()
    Path("search_spaces/tiny.toml").write_text(GOOD)
    assert load_space("tiny").title == "A space for this test"
    assert load_space("digits_bc").dataset == "digits"


def test_size_counts_distinct_networks() -> None:
    space = parse_space(GOOD, "x", "x.toml")
    assert space.size() == 3 * 2 * 2 * (1 + 4)  # four dropouts with a bottleneck, one without
    specs = {space.spec_of(point).digest for point in space.points()}
    assert len(specs) == space.size()
    assert parse_space(GOOD.replace(", step = 0.1", ""), "x", "x").size() is None


def test_inactive_choice_leaves_its_field_at_the_default() -> None:
    space = parse_space(GOOD, "x", "x.toml")
    point = {"growth_rate": 4, "bottleneck": 0, "block_layers_1": 1, "block_layers_2": 2, "dropout": 0.3}
    assert space.spec_of(point).dropout == 0.0
    assert "dropout" not in space.active(point)
    assert space.spec_of(point | {"bottleneck": 2}).dropout == 0.3
    assert space.spec_of(point | {"bottleneck": 2, "dropout": 0.1 + 0.2}).dropout == 0.3  # not 0.30000000000000004


def test_suggest_works_with_optuna_trials() -> None:
    space = parse_space(GOOD, "x", "x.toml")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        spec = space.suggest(trial)
        assert space.suggest(optuna.trial.FixedTrial(trial.params)) == spec
        assert ("dropout" in trial.params) == (spec.bottleneck == 2), "inactive choices are not drawn"
        assert space.spec_of(trial.params | {k: 0.0 for k in ("dropout",) if k not in trial.params}) == spec
        assert spec.in_channels == 1
        assert spec.image_size == 8


def test_lists_of_layers_can_be_chosen() -> None:
    text = GOOD.replace("block_layers = { int = [1, 2], times = 2 }", "block_layers = { of = [[1, 1], [1, 2, 1]] }")
    space = parse_space(text, "x", "x.toml")
    layers = {space.spec_of(space.random_point(random.Random(seed))).block_layers for seed in range(20)}
    assert layers == {(1, 1), (1, 2, 1)}
    assert distributions(space.choices)["block_layers"].choices == ("1-1", "1-2-1")  # type: ignore[attr-defined]


def test_a_depth_can_be_chosen() -> None:
    text = GOOD.replace("block_layers = { int = [1, 2], times = 2 }", "depth = { of = [10, 16] }").replace(
        "of = [0, 2]", "of = [2]"
    )
    space = parse_space(text.replace(", when = { bottleneck = 2 }", ""), "x", "x")
    assert {space.spec_of(point).depth for point in space.points()} == {10, 16}


def test_range_ends_at_the_last_step() -> None:
    space = parse_space(GOOD.replace("[4, 12]", "[4, 15]"), "x", "x.toml")
    assert space.choices[0].describe() == "4 to 12 in steps of 4"
    assert space.choices[0].high == 12


def test_data_set_determines_shape_and_dropout() -> None:
    chosen = parse_space(GOOD, "x", "x.toml", recipe="paper")
    free = parse_space(GOOD.replace("dropout = {", "# dropout = {"), "x", "x.toml", recipe="paper")
    fixed = parse_space(free.text.replace("compression = 0.5", "dropout = 0.4"), "x", "x.toml", recipe="paper")
    point = {"growth_rate": 4, "bottleneck": 2, "block_layers_1": 1, "block_layers_2": 2, "dropout": 0.1}
    dropouts = {}
    for name, space in (("chosen", chosen), ("free", free), ("fixed", fixed)):
        for augmented in (True, False):
            spec = space.for_data(3, 16, 7, augmented).spec_of(point)
            assert (spec.in_channels, spec.image_size, spec.classes) == (3, 16, 7)
            dropouts[name, augmented] = spec.dropout
    assert dropouts["chosen", True] == dropouts["chosen", False] == 0.1
    assert (dropouts["free", True], dropouts["free", False]) == (0.0, 0.2)
    assert dropouts["fixed", True] == dropouts["fixed", False] == 0.4


def test_fixed_image_size_is_kept() -> None:
    space = parse_space(GOOD.replace("compression = 0.5", "image_size = 16"), "x", "x.toml")
    assert space.spec_of(next(space.points())).image_size == 16


def test_cost_is_for_the_batch_size_of_the_recipe() -> None:
    space = parse_space(GOOD.replace("epochs = 3", "batch_size = 2"), "x", "x.toml")
    spec = space.spec_of(next(space.points()))
    assert space.cost(spec) == cost(spec, 2)


def test_survey_of_a_large_space_finds_its_extremes() -> None:
    space = load_space("cifar_bc")
    survey = space.survey()
    assert not survey.whole
    smallest, largest = (
        cost(DenseNetSpec((layers,) * 3, growth_rate=k, compression=theta))
        for layers, k, theta in ((4, 8, 0.3), (32, 40, 1.0))
    )
    assert survey.range("params") == (smallest.params, largest.params)
    assert survey.range("macs") == (smallest.macs, largest.macs)


def test_cached_survey_depends_on_every_property_of_the_space() -> None:
    space = load_space("digits_bc")
    others = [
        dataclasses.replace(space, limits=Limits(params=5_000)),
        dataclasses.replace(space, recipe=dataclasses.replace(space.recipe, batch_size=8)),
        dataclasses.replace(space, choices=space.choices[:-1]),
        space.for_data(3, 32, 10, augmented=True),
    ]
    surveys = [other.survey(seed=seed, draws=50) for other in (space, *others) for seed in (0, 1)]
    assert [other._survey(seed, 50) for other in (space, *others) for seed in (0, 1)] == surveys
    assert len({repr(survey) for survey in surveys}) == 9, "one space is small enough to be enumerated"
    assert load_space("digits_bc", epochs=99).survey() is space.survey(), "the networks are equal"


def test_limits_that_few_networks_satisfy_are_accepted() -> None:
    text = """# The smallest growth rates yield no network, and the survey finds none that satisfies both limits
dataset = "digits"
[fixed]
compression = 0.01
block_layers = [1, 1]
[choose]
growth_rate = { int = [1, 300] }
image_size = { int = [8, 64] }
classes = { int = [2, 1000] }
[limits]
params = 106_000
macs = 6_000_000
"""
    survey = parse_space(text, "x", "x.toml").survey()
    assert survey.feasible == 0
    assert survey.impossible


def test_excess_is_relative_to_the_limit() -> None:
    price = cost(DenseNetSpec((1, 1), growth_rate=4))
    limits = Limits(params=price.params / 2, macs=price.macs)
    assert limits.excess(price) == pytest.approx({"params": 1.0})
    assert Limits().excess(price) == {}


def test_all_problems_of_a_file_are_reported_together() -> None:
    text = (
        GOOD.replace("[limits]\nparams = 5_000", '[limits]\nparams = "1M"\nmac = 3')
        .replace("compression = 0.5", "compresion = 0.5")
        .replace("growth_rate = { int = [4, 12], step = 4 }", "growth_rate = { int = [12, 4] }")
        .replace("bottleneck = { of = [0, 2] }", "bottleneck = { of = [] }")
        .replace("epochs = 3", "epochs = 0\nbatchsize = 3")
        .replace('dataset = "digits"', 'dataset = "digit"\nlimit = 3')
    )
    with pytest.raises(InputError) as error:
        parse_space(text, "x", "search_spaces/x.toml")
    message = str(error.value)
    for part in (
        "search_spaces/x.toml has ",
        "limit: there is no such key. Did you mean limits?",
        "dataset: no data set 'digit'",
        "[fixed] compresion: DenseNetSpec has no such field; did you mean compression?",
        "[choose] growth_rate: int must be [low, high] with low <= high, but got [12, 4].",
        "[choose] bottleneck: of must list at least one value",
        "[choose] dropout: when names 'bottleneck', which is not a choice.",
        '[limits] params: expected a positive number, but got "1M".',
        "[limits] mac: there is no such limit. Did you mean macs?",
        "[recipe] batchsize: a recipe has no such key. Did you mean batch_size?",
    ):
        assert part in message, part
    assert message.count("\n") >= 9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("params = 5_000", "params = 100", "no network satisfies params <= 100; the smallest has 1,046."),
        ("step = 4 }", "step = 0 }", "`step > 0` must hold, but got step=0."),
        ("step = 4 }", "steps = 4 }", "steps: there is no such key. Did you mean step or times?"),
        ("int = [4, 12]", "int = [4.5, 12]", "int requires whole numbers"),
        ("times = 2", "times = 0", "times must be a positive number of blocks"),
        ("bottleneck = 2 }", "bottleneck = 3 }", "when bottleneck = 3, but bottleneck never has that value."),
        ("of = [0, 2] }", "of = [0, 2], when = { dropout = 0.1 } }", "names 'dropout', which must come before it."),
        ("compression = 0.5", "growth_rate = 4", "it is also in [fixed]; keep only one."),
        ("compression = 0.5", "compression = 1.5", "`0 < compression <= 1` must hold"),
        ("epochs = 3", 'name = "slow"', "no recipe 'slow'; there are fast, paper."),
        ("[recipe]", "[[first]]\ngrowth_rate = 5\n[recipe]", "growth_rate=5 is outside of 4 to 12 in steps of 4."),
        (
            "[recipe]",
            "[[first]]\ngrowth = 4\n[recipe]",
            "growth is not chosen in this space. Did you mean growth_rate?",
        ),
        (
            "block_layers = { int = [1, 2], times = 2 }",
            "block_layers = { int = [1, 2], times = 6 }",
            "none of its networks exists",
        ),
        (
            "block_layers = { int = [1, 2], times = 2 }",
            "",
            "the depth of the networks is missing: choose or fix block_layers",
        ),
        ('dataset = "digits"', 'dataset = "digits', "is not TOML"),
        ('dataset = "digits"', 'dataset = "digits"\nfamily = "renset"', "no family of networks 'renset'; there are"),
        ('dataset = "digits"', 'dataset = "digits"\nfamily = "resnet"', "[choose] growth_rate: ResNetSpec has no such"),
    ],
)
def test_problems_have_specific_messages(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as error:
        parse_space(GOOD.replace(old, new), "x", "x.toml")
    assert message in str(error.value)


def test_first_network_that_does_not_exist_is_reported() -> None:
    text = GOOD.replace("compression = 0.5", "stem_channels = 1").replace(
        "growth_rate = { int = [4, 12], step = 4 }",
        "growth_rate = { int = [1, 12] }\ncompression = { float = [0.01, 1] }",
    )
    first = "[[first]]\ngrowth_rate = 1\ncompression = 0.01\nbottleneck = 0\nblock_layers = [1, 1]\n[recipe]"
    assert parse_space(text, "x", "x.toml").size() is None
    with pytest.raises(InputError, match=r"\[\[first\]\] 1: transition 1 would keep ⌊0.01 · 2⌋ = 0 channels"):
        parse_space(text.replace("[recipe]", first), "x", "x.toml")


def test_depth_that_does_not_exist_is_reported() -> None:
    text = GOOD.replace("block_layers = { int = [1, 2], times = 2 }", "depth = { int = [10, 13] }")
    with pytest.raises(InputError, match=r"do not exist, such as: a DenseNet"):
        parse_space(text, "x", "x.toml")


def test_overrides_replace_values_of_the_file() -> None:
    space = load_space("tiny", epochs=7, limits={"params": 1_000}, recipe="paper", dataset=None)
    assert (space.recipe.name, space.recipe.epochs, space.limits.params) == ("paper", 7, 1_000)
    space = parse_space(GOOD, "x", "x.toml", dataset="cifar100", epochs=None, limits={"params": 9_000, "macs": 10**9})
    assert (space.dataset, space.fixed["classes"], space.recipe.epochs) == ("cifar100", 100, 3)
    assert space.limits == Limits(params=9_000, macs=10**9)
    with pytest.raises(InputError, match=r"--max-params 10: no network of tiny is as small"):
        load_space("tiny", limits={"params": 10})


def test_unknown_space_lists_similar_names() -> None:
    with pytest.raises(InputError, match=r"no search space 'cifar_b'; there are .*Did you mean cifar_bc"):
        load_space("cifar_b")
