"""Feature reuse, the paper's four observations, and causal reuse, on networks with given weights."""

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from dnas.analysis import NormHistory, Observation, feature_reuse, observe
from dnas.analysis.causal import CausalReuse, causal_reuse, correlate, with_fewer_images
from dnas.analysis.observations import effective_share
from dnas.analysis.weight_norms import read_histories
from dnas.arch import DenseNetSpec, parse_name
from dnas.cli import main
from dnas.cli.plot_network import Estimate
from dnas.cli.verify import observation_line
from dnas.data import Dataset, load_dataset
from dnas.data.catalog import data_info
from dnas.errors import InputError
from dnas.figures import plot_causal, plot_reuse, title
from dnas.nn import build
from dnas.training.evaluate import evaluate
from dnas.training.fit import fit
from dnas.training.norms import Norms, measure_norms, reading_weight
from dnas.training.recipe import Recipe, make_recipe
from tests.support.heatmaps import mesh

nan = math.nan


def set_weights(net: nn.Module, spec: DenseNetSpec, value: dict[tuple[int, int, int], float]) -> nn.Module:
    """Set the weights with which consumer l of block b reads source s to ± value[b, s, l] (default: 1).

    Source 0 is the input of the block. Consumer m + 1 is the layer after a block of m layers.
    """
    parameters = dict(net.named_parameters())
    for layer in spec.layers():
        if layer.kind == "stem":
            continue
        weight = parameters[reading_weight(layer.name, layer.kind)].detach()
        consumer = layer.index or spec.block_layers[layer.block - 1] + 1
        start = 0
        for source in layer.sources:
            s = int(source.layer.rpartition("denselayer")[2]) if "denselayer" in source.layer else 0
            part = weight[:, start : start + source.channels]
            signs = torch.arange(part.numel()).view(part.shape) % 2 * 2 - 1
            part.copy_(signs * value.get((layer.block, s, consumer), 1.0))
            start += source.channels
    return net


def history(*moments: Norms) -> NormHistory:
    """Return the history of norms that were measured one after the other, first of the untrained network."""
    first = moments[0]
    l2 = np.array([norms.l2 for norms in moments])
    return NormHistory(
        first.names, np.ones(len(first.names), int), l2, first.pairs, np.array([n.reuse for n in moments])
    )


def by_hand(name: str, value: dict[tuple[int, int, int], float]) -> NormHistory:
    """Return the history of a network whose weights were all 1 before training and are `value` after it."""
    spec = parse_name(name)
    net = build(spec)
    before = measure_norms(set_weights(net, spec, {}), spec)
    return history(before, measure_norms(set_weights(net, spec, value), spec))


# Block 1 has layers 1 and 2 and the transition (consumer 3), block 2 has layer 1 and the classifier (consumer 2).
SMALL = {(1, 0, 2): 4.0, (1, 1, 2): 1.0, (1, 0, 3): 2.0, (1, 1, 3): 1.0, (1, 2, 3): 3.0, (2, 1, 2): 8.0}


@pytest.mark.parametrize("kind", ["densenet", "densenet-bc"])
@pytest.mark.parametrize("rates", ["3", "2-5"])
def test_matrices_have_the_mean_weights(kind: str, rates: str) -> None:
    found = feature_reuse(by_hand(f"{kind}:layers=2-1,k={rates},size=8,channels=1", SMALL), normalise="none")
    first, second = found.blocks
    assert first.sources == ("stem", "denseblock1.denselayer1", "denseblock1.denselayer2")
    assert first.targets == ("denseblock1.denselayer1", "denseblock1.denselayer2", "transition1")
    assert (first.follower, second.follower) == ("transition", "classifier")
    assert second.sources == ("transition1", "denseblock2.denselayer1")
    np.testing.assert_allclose(first.values, [[1, 4, 2], [nan, 1, 1], [nan, nan, 3]])
    np.testing.assert_allclose(second.values, [[1, 1], [nan, 8]])
    assert (found.epoch, found.networks, found.normalise) == (1, 1, "none")


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [
        ("column", [[1, 1, 2 / 3], [nan, 0.25, 1 / 3], [nan, nan, 1]]),
        ("block", [[0.25, 1, 0.5], [nan, 0.25, 0.25], [nan, nan, 0.75]]),
    ],
)
def test_normalisation_by_column_and_block(normalise: str, expected: list[list[float]]) -> None:
    found = feature_reuse(by_hand("densenet:layers=2-1,k=3,size=8,channels=1", SMALL), normalise=normalise)
    np.testing.assert_allclose(found.blocks[0].values, expected)


@pytest.mark.parametrize(
    ("connect", "sources"),
    [
        ("dense", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        ("window:2", [[0], [0, 1], [1, 2], [2, 3], [3, 4]]),
        ("log", [[0], [0, 1], [1, 2], [0, 2, 3], [1, 3, 4]]),
        ("none", [[0], [1], [2], [3], [4]]),
    ],
)
@pytest.mark.parametrize("kind", ["densenet", "densenet-bc"])
def test_every_connectivity_has_its_cells(kind: str, connect: str, sources: list[list[int]]) -> None:
    value = {(1, s, column + 1): 1.0 + 10 * s + column for column, read in enumerate(sources) for s in read}
    found = feature_reuse(
        by_hand(f"{kind}:layers=4-1,k=2,size=8,channels=1,connect={connect}", value), normalise="none"
    )
    expected = np.full((5, 5), nan)
    for (_, s, consumer), number in value.items():
        expected[s, consumer - 1] = number
    np.testing.assert_allclose(found.blocks[0].values, expected)


def test_zero_weights_are_zero_reuse() -> None:
    nothing = {(1, s, 3): 0.0 for s in range(3)}
    found = feature_reuse(by_hand("densenet:layers=2-1,k=3,size=8,channels=1", nothing))
    np.testing.assert_allclose(found.blocks[0].values[:, 2], [0, 0, 0])


def test_cells_are_means_over_seeds_and_unclear_if_they_hardly_changed() -> None:
    # All untrained cells are 1. After training the cell of source 0 in layer 2 is 0.5, 0.6 and 0.7, and the cell in the
    # transition is 0.4, 1.0 and 1.0. The interval of the changes -0.5, -0.4 and -0.3 is -0.4 ± 4.303 · 0.1 / √3. The
    # others contain 0.
    seeds = [{(1, 0, 2): a, (1, 0, 3): b} for a, b in ((0.5, 0.4), (0.6, 1.0), (0.7, 1.0))]
    found = feature_reuse([by_hand("densenet:layers=2-1,k=3,size=8,channels=1", seed) for seed in seeds])
    block = found.blocks[0]
    assert found.networks == 3
    assert block.values[0] == pytest.approx([1, 0.6, 0.8])
    assert 4.303 * 0.1 / math.sqrt(3) < 0.4
    assert block.unclear.tolist() == [[True, False, True], [False, True, True], [False, False, True]]
    assert found.frame().query("block == 1")["unclear"].tolist() == [True, False, True, True, True, True]


def test_one_seed_is_compared_with_the_spread_of_its_untrained_cells() -> None:
    spec = parse_name("densenet:layers=2-1,k=3,size=8,channels=1")
    net = build(spec)
    before = {(1, 0, 2): 0.9, (1, 0, 3): 0.8, (1, 1, 3): 0.9}
    first = measure_norms(set_weights(net, spec, before), spec)
    after = {(1, 0, 2): 0.1, (1, 0, 3): 0.8, (1, 1, 3): 0.1}
    found = feature_reuse(history(first, measure_norms(set_weights(net, spec, after), spec))).blocks[0]
    cells = np.array([0.9, 1, 0.8, 0.9, 1])  # cells of columns with several sources
    reach = stats.t.ppf(0.975, 4) * cells.std(ddof=1)
    assert 0.1 < cells.mean() - reach < 0.8
    assert found.unclear.tolist() == [[True, False, True], [False, True, False], [False, False, True]]


def test_reuse_of_a_given_epoch_and_of_the_untrained_network() -> None:
    past = by_hand("densenet:layers=2-1,k=3,size=8,channels=1", SMALL)
    null = feature_reuse(past, epoch=0, normalise="none")
    assert null.epoch == 0
    assert null.blocks[0].values[np.isfinite(null.blocks[0].values)].tolist() == [1] * 6
    alone = dataclasses.replace(past, l2=past.l2[:1], reuse=past.reuse[:1])
    assert not feature_reuse(alone).blocks[0].unclear.any()
    with pytest.raises(InputError, match="there is no epoch 2: the network was trained for 1 epochs"):
        feature_reuse(past, epoch=2)
    longer = dataclasses.replace(
        past, l2=np.vstack([past.l2, past.l2[:1]]), reuse=np.vstack([past.reuse, past.reuse[:1]])
    )
    assert feature_reuse([past, longer]).epoch is None


def test_networks_without_pairs_and_invalid_arguments_are_refused() -> None:
    past = by_hand("densenet:layers=2-1,k=3,size=8,channels=1", {})
    with pytest.raises(
        InputError, match=r"no normalisation 'colum'; there are block, column, none\. Did you mean column"
    ):
        feature_reuse(past, normalise="colum")
    with pytest.raises(InputError, match="have different specs"):
        feature_reuse([past, by_hand("densenet:layers=2-2,k=3,size=8,channels=1", {})])
    other = dataclasses.replace(past, pairs=(("stem", "classifier"),), reuse=past.reuse[:, :1])
    with pytest.raises(InputError, match="`dnas plot weight-norms` or `dnas plot gradients`"):
        feature_reuse(other)
    with pytest.raises(InputError, match="needs a network"):
        feature_reuse([])


def test_strongest_sources_are_counted() -> None:
    # Among the layers with several sources, 1.2 reads the input most, 1.3 layer 1, and 1.4 layer 3, its predecessor.
    value = {(1, 0, 2): 2.0, (1, 1, 3): 2.0, (1, 3, 4): 2.0}
    found = feature_reuse(by_hand("densenet:layers=4,k=2,size=8,channels=1", value))
    assert found.strongest() == {"input": 1, "another": 1, "before": 1}


# --- the four observations ----------------------------------------------------------------------------------------

NET = "densenet:layers=6-6-6,k=2,size=8,channels=1"
EVERY = [(b, s, t) for b in (1, 2, 3) for t in range(1, 8) for s in range(t)]


def test_effective_share_is_the_exponential_of_the_entropy() -> None:
    assert effective_share(np.array([1.0, 1, 1, 1, nan])) == pytest.approx(1)
    assert effective_share(np.array([0.0, 0, 5, 0])) == pytest.approx(1 / 4)
    assert effective_share(np.array([3.0, 3, 0, 0])) == pytest.approx(2 / 4)
    # p = 1/2, 1/4, 1/4: an entropy of 1.5 bits
    assert effective_share(np.array([2.0, 1, 1])) == pytest.approx(2**1.5 / 3)
    assert math.isnan(effective_share(np.zeros(3)))


def verdicts(*seeds: dict[tuple[int, int, int], float]) -> dict[str, Observation]:
    return {found.letter: found for found in observe([by_hand(NET, seed) for seed in seeds])}


def test_observations_hold_for_a_network_like_the_papers() -> None:
    value = {(b, s, t): 1 + 0.1 * s for b, s, t in EVERY}
    value |= {(b, 0, t): 0.3 for b, _, t in EVERY if b > 1}
    value |= {(3, s, 7): 1.0 + s for s in range(7)}
    found = verdicts(value)
    assert {letter: one.verdict for letter, one in found.items()} == dict.fromkeys("abcd", "holds")
    # All untrained weights are equal, so that no source has the least.
    assert (found["c"].value, found["c"].untrained) == (1, 0)
    assert found["d"].value == pytest.approx(1)
    assert (found["a"].untrained, found["b"].untrained) == pytest.approx((1, 1))
    assert (found["a"].units, found["b"].units, found["c"].units, found["d"].units) == (15, 14, 10, 7)


def test_observations_do_not_hold_for_a_network_with_the_opposite_weights() -> None:
    value = {(b, s, t): 1.0 if s == t - 1 else 0.0 for b, s, t in EVERY}  # each layer reads only the last source
    value |= {(2, 0, 7): 1.0, (2, 6, 7): 0.0, (3, 0, 7): 7.0}
    value |= {(3, s, 7): 7.0 - s for s in range(7)}
    value |= {(b, 0, t): 2.0 for b, _, t in EVERY if b > 1 and t < 7}
    found = verdicts(value)
    assert found["b"].verdict == found["c"].verdict == found["d"].verdict == "does not hold"
    assert found["b"].value == pytest.approx(1 / 7)
    assert found["d"].value == pytest.approx(-1)
    # effective shares 1/2, 1/3, .., 1/6 in each block
    concentrated = verdicts({(b, s, t): 1.0 if s == t - 1 else 0.0 for b, s, t in EVERY})["a"]
    assert concentrated.value == pytest.approx(np.mean([1 / sources for sources in range(2, 7)]))
    assert concentrated.verdict == "does not hold"


def test_few_or_contradictory_values_lead_to_no_verdict() -> None:
    few = observe(by_hand("densenet:layers=1-1,k=2,size=8,channels=1", {}))
    assert {one.verdict for one in few} == {"cannot tell"}
    assert math.isnan(few[0].value)  # each of its layers has one source
    assert "nothing to measure it on" in observation_line(few[0])
    assert "too few for an interval" in observation_line(few[1])
    chain = observe(by_hand("densenet:layers=4-4,k=2,size=8,channels=1,connect=none", {}))
    assert {one.verdict for one in chain} == {"cannot tell"}
    # Half of the layers have the least weight for the input, so that the interval contains the bar.
    half = {(b, 0, t): 0.5 if t % 2 else 2.0 for b, _, t in EVERY if b > 1}
    assert verdicts(half)["c"].verdict == "cannot tell"
    # Each of two contradictory seeds alone leads to a verdict, but both together do not.
    up, down = ({(3, s, 7): 10.0 + sign * s for s in range(7)} for sign in (1, -1))
    assert [verdicts(one)["d"].verdict for one in (up, down)] == ["holds", "does not hold"]
    both = verdicts(up, down)["d"]
    assert (both.verdict, both.value, both.networks) == ("cannot tell", pytest.approx(0), 2)


def test_intervals_resample_networks_too() -> None:
    # In one network every layer has the least weight for the input, in the other no layer.
    seeds = [{(b, 0, t): weight for b, _, t in EVERY if b > 1} for weight in (0.5, 2.0)]
    found = verdicts(*seeds)["c"]
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_observations_are_reproducible() -> None:
    value = {(b, s, t): 1 + (7 * s + 3 * t) % 5 for b, s, t in EVERY}
    assert repr(verdicts(value)) == repr(verdicts(value))  # the untrained ρ is NaN, since all weights are equal
    line = observation_line(verdicts(value)["a"])
    assert line.startswith("(a) holds          layers spread")
    assert "untrained 1.000; the bar is 0.5)" in line


# --- causal reuse -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", subset=200)


def _note(seen: list[tuple[int, int]], done: int, total: int) -> None:
    seen.append((done, total))


def test_cutting_a_connection_equals_zeroing_the_input_of_one_consumer(digits: Dataset, tmp_path: Path) -> None:
    for name in ("densenet:layers=2-1,k=3", "densenet-bc:layers=2-2,k=3,connect=window:2"):
        torch.manual_seed(0)
        spec = parse_name(f"{name},size=8,channels=1")
        net = build(spec).eval()
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            nn.init.normal_(norm.bias)  # so that zeros before a norm are not zeros after it
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        seen: list[tuple[int, int]] = []
        found = causal_reuse(net, spec, digits, progress=partial(_note, seen))
        assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
        loss, error = evaluate(net, digits, "val")
        assert (found.loss, found.error, found.images) == (loss, error, digits.val_size)
        modules = dict(net.named_modules())
        cells = 0
        for layer in spec.layers():
            if layer.kind == "stem":
                continue
            head = "features." + layer.name if layer.kind != "classifier" else "classifier"
            reader = modules[head + {"dense": ".conv1", "transition": ".conv"}.get(layer.kind, "")]
            start = 0
            for source in layer.sources:
                stop = start + source.channels

                def cut(module: nn.Module, inputs: tuple[torch.Tensor], a: int = start, b: int = stop) -> torch.Tensor:
                    x = inputs[0].clone()
                    x[:, a:b] = 0
                    return x

                handle = reader.register_forward_pre_hook(cut)
                cut_loss, cut_error = evaluate(net, digits, "val")
                handle.remove()
                number = [shape[0] for shape in found.shapes].index(layer.block)
                _, sources, targets = found.shapes[number]
                cell = sources.index(source.layer), targets.index(layer.name)
                assert found.error_gained[number][cell] == pytest.approx(cut_error - error, abs=1e-9)
                assert found.loss_gained[number][cell] == pytest.approx(cut_loss - loss, abs=1e-5)
                start, cells = stop, cells + 1
        assert seen[-1] == (cells, cells)
        assert sum(int(np.isfinite(values).sum()) for values in found.error_gained) == cells


def test_an_interrupted_measurement_resumes(digits: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = parse_name("densenet:layers=2-1,k=3,size=8,channels=1")
    net, table = build(spec), tmp_path / "causal.csv"

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        causal_reuse(net, spec, digits, cache=table, progress=stop)
    assert len(table.read_text().splitlines()) == 1 + 1 + 4  # the header, the intact network, four connections
    table.write_text(table.read_text() + "2,transition1,classif")  # a partial line
    kept = table.read_text().splitlines()[:6]
    whole = causal_reuse(net, spec, digits, cache=table)
    lines = table.read_text().splitlines()
    assert lines[:6] == kept
    assert len(lines) == 1 + 1 + 9
    again = causal_reuse(net, spec, digits)
    for one, other in zip(whole.loss_gained, again.loss_gained, strict=True):
        np.testing.assert_allclose(one, other)
    with pytest.raises(InputError, match="of another network or other images"):
        causal_reuse(net, spec, with_fewer_images(digits, 5), cache=table)
    net.classifier.bias.detach().add_(1)
    with pytest.raises(InputError, match="of another network or other images"):
        causal_reuse(net, spec, digits, cache=table)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a table of causal reuse"):
        causal_reuse(net, spec, digits, cache=tmp_path / "x.csv")
    with pytest.raises(InputError, match="no validation part"):
        causal_reuse(net, spec, digits.with_validation_in_training())


def test_fewer_images_are_always_the_same(digits: Dataset) -> None:
    one, other = with_fewer_images(digits, 7), with_fewer_images(digits, 7)
    assert one.val_size == 7
    assert torch.equal(one.val_index, other.val_index)
    assert set(one.val_index.tolist()) <= set(digits.val_index.tolist())
    assert with_fewer_images(digits, 10**6).val_size == digits.val_size


def test_rank_correlation_of_weights_and_error_increase() -> None:
    weights = feature_reuse(by_hand("densenet:layers=2-1,k=3,size=8,channels=1", SMALL), normalise="none")
    shapes = tuple((block.number, block.sources, block.targets) for block in weights.blocks)
    same = tuple(block.values**3 for block in weights.blocks)
    found = correlate(CausalReuse(shapes, 0.1, 1.0, 10, same, same), weights)
    assert (found.rho, found.cells) == (pytest.approx(1), 9)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))
    values = np.concatenate([block.values[np.isfinite(block.values)] for block in weights.blocks])
    gained = np.array([3.0, 1, 4, 1, 5, 9, 2, 6, 5]) / 100
    filled, start = [], 0
    for block in weights.blocks:
        matrix, count = block.values.copy(), int(np.isfinite(block.values).sum())
        matrix[np.isfinite(matrix)] = gained[start : start + count]
        filled.append(matrix)
        start += count
    found = correlate(CausalReuse(shapes, 0.1, 1.0, 10, tuple(filled), same), weights)
    assert found.rho == pytest.approx(stats.spearmanr(values, gained).statistic)
    assert found.low < found.rho < found.high
    nothing = tuple(block.values * 0 for block in weights.blocks)
    assert math.isnan(correlate(CausalReuse(shapes, 0.1, 1.0, 10, nothing, same), weights).rho)


# --- figures ------------------------------------------------------------------------------------------------------


def test_heatmap_of_reuse_shows_the_matrices() -> None:
    value = {(1, 1, 2): 0.5, (2, 0, 2): 0.2, (2, 0, 3): 0.4}
    reuse = feature_reuse(
        [by_hand("densenet:layers=3-2,k=3,size=8,channels=1", value | {(1, 0, 3): x}) for x in (0.1, 0.2)]
    )
    figure = plot_reuse(reuse)
    blocks = [axes for axes in figure.axes if axes.get_title().startswith("Block")]
    assert len(blocks) == 2
    for axes, block in zip(blocks, reuse.blocks, strict=True):
        np.testing.assert_allclose(np.ma.filled(mesh(axes).get_array(), nan), block.values)
        assert mesh(axes).get_clim() == (0, 1)
        marks = [patch for patch in axes.patches if patch.get_gid() == "unclear"]
        assert len(marks) == block.unclear.sum()
        (frame,) = (patch for patch in axes.patches if patch.get_gid() == "frame")
        assert frame.get_bbox().x1 == len(block.targets)
    assert [axes.get_xticklabels()[-1].get_text() for axes in blocks] == ["T", "C"]
    assert blocks[0].get_yticklabels()[0].get_text() == "in"
    cells = sum(int(np.isfinite(b.values).sum()) for b in reuse.blocks)
    unclear = sum(int(b.unclear.sum()) for b in reuse.blocks)
    assert title(figure) == f"{unclear} of {cells} cells do not differ from the untrained network"
    text = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "mean of 2 seeds" in text
    assert "Hatched: does not differ from the untrained network" in text
    clear = dataclasses.replace(
        reuse, blocks=tuple(dataclasses.replace(b, unclear=np.zeros_like(b.unclear)) for b in reuse.blocks)
    )
    assert title(plot_reuse(clear)).startswith("Of 3 layers, ")
    assert not plot_reuse(clear).legends


def test_the_heatmap_of_causal_reuse_shows_points_of_error() -> None:
    weights = feature_reuse(by_hand("densenet:layers=2-1,k=3,size=8,channels=1", SMALL), normalise="none")
    shapes = tuple((block.number, block.sources, block.targets) for block in weights.blocks)
    gained = tuple(block.values / 100 - 0.02 for block in weights.blocks)
    causal = CausalReuse(shapes, 0.1, 1.0, 50, gained, gained)
    figure = plot_causal(causal.as_reuse(), causal.error, causal.images, "ρ 1.00")
    assert title(figure).replace("\n", " ") == (
        "Cutting one connection costs -1.00% error at the median, at most 6.00%; ρ 1.00"
    )
    image = mesh(figure.axes[0])
    np.testing.assert_allclose(np.ma.filled(image.get_array(), nan), np.maximum(gained[0], 0))
    text = figure.texts[-1].get_text().replace("\n", " ")
    assert "10.00% error on 50 images" in text
    assert "drawn as 0" in text


# --- the commands -------------------------------------------------------------------------------------------------


def train(folder: Path, digits: Dataset, seed: int) -> Path:
    spec = parse_name("densenet:layers=2-2,k=3,size=8,channels=1")
    recipe: Recipe = make_recipe("fast", data_info("digits"), epochs=2, batch_size=50)
    fit(spec, digits, recipe, seed=(seed, 0), folder=folder)
    return folder / "checkpoint.pt"


def test_verify_and_plot_read_checkpoints(digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [train(tmp_path / str(seed), digits, seed) for seed in (0, 1)]
    histories = read_histories(paths)
    assert feature_reuse(histories).networks == 2
    assert feature_reuse(histories[:1], epoch=0).epoch == 0
    sources = [str(path) for path in paths]
    assert main(["verify", *sources, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["letter"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["verdict"] for row in rows] == [each.verdict for each in observe(histories)]
    assert main(["verify", *sources]) == 0
    assert capsys.readouterr().out.startswith("2 networks, after epoch 2\n(a) ")
    out = tmp_path / "causal.svg"
    assert main(["plot", "causal", sources[0], "--images", "10", "--device", "cpu", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert "over 12 cells" in printed.out
    assert "left" in printed.err
    assert out.is_file()
    assert len((tmp_path / "causal.csv").read_text().splitlines()) == 14
    assert main(["plot", "gradients", sources[0], "-o", str(tmp_path / "g.png")]) == 0
    assert main(["plot", "reuse", *sources, "--epoch", "0", "-o", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").is_file()
    capsys.readouterr()
    assert main(["plot", "causal", sources[0], "-o", str(tmp_path / "x.gif")]) == 2
    assert "must end with .svg" in capsys.readouterr().err


def test_an_estimate_counts_new_measurements_only(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Estimate()
    for done in range(6):
        watch.progress(done, 10)  # all measurements are in the table
    watch.began -= 60
    watch.progress(6, 10)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("6 of 10 connections, about 4 min")
