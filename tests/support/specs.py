"""Strategies for random small specs of every kind, for property-based tests."""

from hypothesis import assume
from hypothesis import strategies as st

from dnas.arch import DenseNetSpec, ResNetSpec, Spec
from dnas.errors import InputError


@st.composite
def specs(draw: st.DrawFn, max_layers: int = 5, max_growth: int = 9) -> DenseNetSpec:
    blocks = draw(st.integers(1, 4))
    rates = st.integers(1, max_growth)
    stem = draw(st.sampled_from(["small", "imagenet"]))
    block_layers = tuple(draw(st.lists(st.integers(1, max_layers), min_size=blocks, max_size=blocks)))
    numbers = st.integers(1, sum(block_layers))
    wider = st.just(0) | st.integers(0, sum(block_layers) - 1) | st.sets(numbers, max_size=sum(block_layers) - 1)
    wider_layers = draw(wider)
    try:
        return DenseNetSpec(
            block_layers=block_layers,
            wider_layers=tuple(wider_layers) if isinstance(wider_layers, set) else wider_layers,
            growth_rate=draw(rates | st.tuples(*[rates] * blocks)),
            bottleneck=draw(st.sampled_from([0, 1, 4])),
            compression=draw(st.integers(30, 100)) / 100,
            stem=stem,
            stem_channels=draw(st.none() | st.integers(3, 20)),
            dropout=draw(st.sampled_from([0.0, 0.2])),
            connectivity=draw(st.sampled_from(["dense", "log", "none", "window:1", "window:2", "window:4"])),
            in_channels=draw(st.sampled_from([1, 3])),
            image_size=draw(st.integers(32, 80) if stem == "imagenet" else st.integers(8, 20)),
            classes=draw(st.integers(2, 12)),
        )
    except InputError:
        assume(False)
        raise


@st.composite
def resnet_specs(draw: st.DrawFn) -> ResNetSpec:
    stages = draw(st.integers(1, 4))
    widths = st.integers(1, 9)
    stem = draw(st.sampled_from(["small", "imagenet"]))
    return ResNetSpec(
        stage_units=tuple(draw(st.lists(st.integers(1, 4), min_size=stages, max_size=stages))),
        width=draw(widths | st.tuples(*[widths] * stages)),
        bottleneck=draw(st.sampled_from([0, 1, 2, 4])),
        stochastic_depth=draw(st.sampled_from([0.0, 0.5])),
        stem=stem,
        stem_channels=draw(st.none() | st.integers(3, 20)),
        in_channels=draw(st.sampled_from([1, 3])),
        image_size=draw(st.integers(32, 80) if stem == "imagenet" else st.integers(8, 20)),
        classes=draw(st.integers(2, 12)),
    )


def any_specs() -> st.SearchStrategy[Spec]:
    return specs() | resnet_specs()
