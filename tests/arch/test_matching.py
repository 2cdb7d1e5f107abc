"""Networks resized to equal parameters or multiply-adds."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnas.arch import DenseNetSpec, cost, format_name, parse_name
from dnas.arch.densenet import evenly_spread
from dnas.arch.matching import residual, resize
from dnas.errors import InputError


def test_wider_layers_add_one_map_each() -> None:
    spec = parse_name("densenet:layers=2-3,k=4,wider=at1-4")
    assert isinstance(spec, DenseNetSpec)
    assert spec.layer_rates == ((5, 4), (4, 5, 4))
    # A 3×3 convolution has 9 weights per pair of maps, and a norm 2 parameters per map. The stem has 16 channels.
    # Layers read 16, 21 | 25, 29, 34 and add 5, 4 | 4, 5, 4. The transition maps 25 to 25, and the classifier reads 38.
    layers = sum(2 * reads + 9 * reads * adds for reads, adds in [(16, 5), (21, 4), (25, 4), (29, 5), (34, 4)])
    assert cost(spec).params == 9 * 3 * 16 + layers + 2 * 25 + 25 * 25 + 2 * 38 + 38 * 10 + 10


def test_number_of_wider_layers_is_spread_evenly() -> None:
    assert evenly_spread(3, 12) == (4, 8, 12)
    assert evenly_spread(2, 5) == (3, 5)
    assert evenly_spread(0, 5) == ()
    assert DenseNetSpec((2, 3), wider_layers=(5, 3)) == DenseNetSpec((2, 3), wider_layers=2)
    assert DenseNetSpec((2, 3), wider_layers=()) == DenseNetSpec((2, 3))


def test_digest_depends_on_the_maps_that_layers_add() -> None:
    plain = DenseNetSpec((2, 3), growth_rate=(4, 5), stem_channels=8)
    same = DenseNetSpec((2, 3), growth_rate=4, wider_layers=(3, 4, 5), stem_channels=8)
    assert same.digest == plain.digest
    assert replace(same, wider_layers=(1, 4, 5)).digest != plain.digest
    # The digest from before layers could be wider, because recorded digests must remain valid.
    assert parse_name("densenet_40_12").digest == "046b8d939adfbdc6"


@pytest.mark.parametrize(
    ("wider", "message"),
    [
        (-1, "`wider_layers >= 0`"),
        (5, "increase growth_rate by one"),
        ((1, 6), "some, but not all, of the layers 1 to 5"),
        ((2, 2), "each once"),
        ((1, 2, 3, 4, 5), "not all"),
        ((0,), "`wider_layers >= 1`"),
        (1.5, "whole number"),
    ],
)
def test_impossible_wider_layers_are_refused(wider: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DenseNetSpec((2, 3), wider_layers=wider)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize(
    "name",
    [
        "densenet-b:L=40,k=12",
        "densenet-c:L=40,k=12",
        "densenet-bc:L=40,k=12",
        "densenet-bc:L=100,k=12",
        "densenet:L=40,k=12,connect=log",
        "densenet:L=40,k=12,connect=none",
        "densenet-bc:layers=6-12-24-16,k=8-12-16-20",
    ],
)
def test_variants_of_the_paper_are_resized_to_a_plain_densenet(name: str, measure: str) -> None:
    """An integer growth rate misses by some percent; with wider layers the difference is below 0.3 percent."""
    target = getattr(cost(parse_name("densenet_40_12")), measure)
    spec = parse_name(name)
    resized = resize(spec, measure, target)
    assert abs(getattr(cost(resized), measure) / target - 1) <= 0.003
    assert residual(resized, measure, target) == pytest.approx(getattr(cost(resized), measure) / target - 1)
    assert isinstance(spec, DenseNetSpec)
    assert isinstance(resized, DenseNetSpec)
    rates = zip(spec.growth_rates, resized.growth_rates, strict=True)
    assert len({after - before for before, after in rates}) == 1, "the blocks' rates are moved by the same number"
    assert replace(resized, growth_rate=spec.growth_rate, wider_layers=0) == spec, "no other field changes"


@given(
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    growth_rate=st.integers(1, 9),
    bottleneck=st.sampled_from([0, 4]),
    target=st.integers(500, 60_000),
    measure=st.sampled_from(["params", "macs"]),
)
@settings(max_examples=60, deadline=None)
def test_no_other_growth_rate_or_count_is_nearer(
    layers: list[int], growth_rate: int, bottleneck: int, target: int, measure: str
) -> None:
    spec = DenseNetSpec(tuple(layers), growth_rate=growth_rate, bottleneck=bottleneck, image_size=8)
    target = target if measure == "params" else 40 * target
    difference = abs(residual(resize(spec, measure, target), measure, target))
    for rate in range(1, 30):
        for count in range(sum(layers)):
            other = replace(spec, growth_rate=rate, wider_layers=count)
            assert difference <= max(0.002, abs(residual(other, measure, target)))


def test_network_of_the_target_size_is_unchanged() -> None:
    spec = parse_name("densenet_bc_100_12")
    assert resize(spec, "params", 769_162) == spec
    assert format_name(resize(parse_name("resnet_110"), "params", cost(parse_name("resnet_110")).params)) == (
        "resnet:L=110"
    )


def test_unknown_measure_is_refused() -> None:
    with pytest.raises(InputError, match="params or macs"):
        resize(parse_name("densenet_40_12"), "seconds", 1)
