"""Specs, names and costs: golden numbers, invariants and messages. Nothing here imports torch."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnas.arch import PRESETS, DenseNetSpec, Spec, cost, format_name, layer_costs, parse_name, spec_from_dict
from dnas.arch.densenet import compressed, sources_of
from dnas.errors import InputError
from tests.support.specs import any_specs

# name: (stem width, params, macs, channels that the classifier reads). Sources: Table 2 of the paper (sizes in M) and,
# for the ImageNet networks, the parameter counts of torchvision's modules.
GOLDEN_32 = {
    "densenet_40_12": (16, 1_019_722, 264_812_928, 448),
    "densenet_100_12": (16, 6_979_642, 1_769_516_448, 1168),
    "densenet_100_24": (16, 27_249_082, 6_889_347_744, 2320),
    "densenet_bc_40_12": (24, 176_122, 72_365_352, 132),
    "densenet_bc_100_12": (24, 769_162, 287_929_692, 342),
    "densenet_bc_250_24": (48, 15_324_406, 5_418_785_724, 1734),
    "densenet_bc_190_40": (80, 25_624_430, 9_301_945_740, 2190),
}
GOLDEN_224 = {
    "densenet121": (64, 7_978_856),
    "densenet169": (64, 14_149_480),
    "densenet201": (64, 20_013_928),
    "densenet161": (96, 28_681_000),
}


@pytest.mark.parametrize("name", GOLDEN_32)
def test_golden_costs_of_table_2(name: str) -> None:
    spec = parse_name(name)
    price = cost(spec)
    read = layer_costs(spec)[-1].in_channels
    assert (spec.stem_width, price.params, price.macs, read) == GOLDEN_32[name]


@pytest.mark.parametrize("name", GOLDEN_224)
def test_golden_params_of_the_imagenet_networks(name: str) -> None:
    spec = parse_name(name)
    assert (spec.stem_width, cost(spec).params) == GOLDEN_224[name]


def test_presets_have_the_depth_of_their_name() -> None:
    # The paper calls 6-12-64-48 DenseNet-264, although its counting rule results in 265.
    expected = {"densenet121": 121, "densenet169": 169, "densenet201": 201, "densenet161": 161, "densenet264": 265}
    expected |= {"wide_resnet_16_8": 14, "wide_resnet_28_10": 26}  # the authors count two shortcuts
    for name, make in PRESETS.items():
        assert make().depth == expected.get(name) or str(make().depth) in name.split("_")
    assert parse_name("densenet264").block_layers == (6, 12, 64, 48)
    assert parse_name("densenet201").block_layers == (6, 12, 48, 32)


@given(any_specs())
@settings(max_examples=200, deadline=None)
def test_names_and_dicts_round_trip(spec: Spec) -> None:
    assert parse_name(format_name(spec)) == spec
    assert spec_from_dict(spec.to_dict()) == spec


def test_sources_of_each_connectivity() -> None:
    assert sources_of("dense", 5) == (0, 1, 2, 3, 4)
    assert sources_of("window:2", 5) == (3, 4)
    assert sources_of("window:9", 3) == (0, 1, 2)
    assert sources_of("log", 9) == (1, 5, 7, 8)
    assert sources_of("log", 8) == (0, 4, 6, 7)
    assert sources_of("log", 1) == (0,)
    assert sources_of("none", 5) == (4,)


def test_equal_networks_have_equal_digests() -> None:
    spec = parse_name("densenet-bc:L=40,k=12")
    assert replace(spec, growth_rate=(12, 12, 12)).digest == spec.digest
    assert replace(spec, stem_channels=24).digest == spec.digest
    assert replace(spec, connectivity="window:99").digest == spec.digest
    assert replace(spec, connectivity="window:1").digest == replace(spec, connectivity="none").digest
    others = {replace(spec, connectivity=kind).digest for kind in ("dense", "log", "none", "window:2")}
    assert len(others) == 4
    assert replace(spec, dropout=0.2).digest != spec.digest
    single = DenseNetSpec((1,))
    assert replace(single, compression=0.3).digest == single.digest  # there is no transition
    assert replace(single, connectivity="none").digest != single.digest  # the classifier reads fewer channels


def test_equivalent_arguments_create_equal_specs() -> None:
    assert DenseNetSpec([2, 2], growth_rate=[8, 8]) == DenseNetSpec((2, 2), growth_rate=8)  # type: ignore[arg-type]
    assert DenseNetSpec((2, 2), compression=1).compression.is_integer()
    assert format_name(DenseNetSpec((2, 2), growth_rate=(8, 8))) == "densenet-bc:L=11,blocks=2,k=8"


@pytest.mark.parametrize(
    ("kind", "bottleneck", "compression", "title"),
    [
        ("densenet", 0, 1.0, "DenseNet"),
        ("densenet-b", 4, 1.0, "DenseNet-B"),
        ("densenet-c", 0, 0.5, "DenseNet-C"),
        ("densenet-bc", 4, 0.5, "DenseNet-BC"),
    ],
)
def test_kinds_match_the_variants_of_the_paper(kind: str, bottleneck: int, compression: float, title: str) -> None:
    spec = parse_name(f"{kind}:L=40,k=12")
    assert (spec.bottleneck, spec.compression, spec.title) == (bottleneck, compression, title)
    assert format_name(spec) == f"{kind}:L=40,k=12"


def test_stem_width_follows_the_growth_rate_of_the_first_block() -> None:
    assert parse_name("densenet-bc:layers=1-1,k=5-16").stem_width == 10
    assert parse_name("densenet:layers=1-1,k=5-16").stem_width == 16
    assert parse_name("densenet-bc:layers=1-1,k=5-16,stem_channels=7").stem_width == 7


def test_compression_is_computed_in_decimal() -> None:
    assert compressed(100, 0.29) == 29  # 28.999... in binary
    assert compressed(100, 1.0) == 100


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "densenet-bc:L=43,k=12",
            "a DenseNet-BC of depth 43 does not exist: `(depth - 4) % 6 == 0` must hold;"
            " the nearest depths are 40 and 46.",
        ),
        ("densenet:L=5,k=12", "depth >= 7; the nearest depth is 7."),
        ("densenet-bc:L=40,theta=1.5", "`0 < compression <= 1` must hold, but got compression=1.5."),
        ("densenet-bc:L=40,k=0", "`growth_rate >= 1` must hold, but got growth_rate=0."),
        ("densenet-bc:L=40,k=1,theta=0.01", "transition 1 would keep ⌊0.01 · 8⌋ = 0 channels"),
        ("densenet-bc:L=50,k=4,blocks=7,size=32", "block 7 of 7 would have maps of 0×0 pixels"),
        ("densenet-bc:L=40,k=8-16", "one for each of the 3 blocks, but got 2"),
        ("densenet-bc:L=40,connect=windw:3", "connectivity must be one of dense, window:N, log, none"),
        ("densenet-bc:L=40,growth=3", "there is no key 'growth'"),
        ("densenet-bc:L=x", "L must be a value such as 100, but got 'x'."),
        ("densenet-bc:L=40,L=46", "has L twice"),
        ("densenet-bc:L=40,layers=6-6-6", "both a depth and the layers"),
        ("densenet-bc:k=12", "needs a depth or its blocks"),
        ("densenet121:L=40", "the depth of a preset cannot be changed"),
        ("densenet_40_13", "Did you mean densenet_40_12"),
        ("densenet-bc:L=40,stem=big", "stem must be one of small, imagenet, but got 'big'."),
        ("densenet-bc:L=40,dropout=1", "`0 <= dropout < 1` must hold"),
        ("densenet-bc:L=40,wider=x", "wider must be a value such as 5 or at3-7-12, but got 'x'."),
    ],
)
def test_impossible_networks_are_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_name(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(depth=st.integers(1, 300), blocks=st.integers(1, 5), bottleneck=st.sampled_from([0, 4]))
def test_depth_is_exact_or_refused(depth: int, blocks: int, bottleneck: int) -> None:
    try:
        spec = DenseNetSpec.of_depth(depth, blocks=blocks, bottleneck=bottleneck, image_size=64)
    except InputError as error:
        near = [
            int(word.strip(".")) for word in str(error).rpartition("nearest")[2].split() if word.strip(".").isdigit()
        ]
        assert near
        for other in near:
            assert DenseNetSpec.of_depth(other, blocks=blocks, bottleneck=bottleneck, image_size=64).depth == other
    else:
        assert spec.depth == depth


def test_arch_does_not_import_torch() -> None:
    code = "import dnas.arch, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
