"""Ablations: parsing, designs, paired runs, resuming a killed study, and adding seeds."""

import dataclasses
import itertools
import os
import random
import re
import signal
import time
import tomllib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dnas.ablation.auto_seeds import train_rounds
from dnas.ablation.design import best_fraction, factorial, one_at_a_time, read_generators
from dnas.ablation.parse import Definition, ablation_files, load_definition, parse_definition
from dnas.ablation.plan import (
    can_conclude,
    describe_epochs,
    describe_plan,
    frozen_table,
    make_plan,
    planned,
    with_equal_seconds,
)
from dnas.ablation.results import read_ablation
from dnas.arch import DenseNetSpec, cost, format_name
from dnas.batch.planned import PlannedRun
from dnas.batch.runs import train_runs
from dnas.cli import main
from dnas.cli.ablate_text import describe_result
from dnas.data import load_dataset
from dnas.errors import InputError
from dnas.executors.worker import Job, Message
from dnas.nn import build
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from dnas.training.checkpoint import weights_digest
from dnas.training.fit import stream_seed
from tests.support.analytic import AnalyticExecutor, Silent
from tests.support.commands import Command
from tests.support.patience import patience
from tests.support.studies import equal_but_times

pytestmark = pytest.mark.xdist_group("commands")  # one server for all tests that fork commands

ROOT = Path(__file__).resolve().parents[2]
MEANS = RunConfig({"name": "digits", "data_root": None})
PATIENCE = 180.0  # seconds to wait for a step that takes about ten on a quiet machine
TEXT = """\
# A small study for the tests.
question = "Does it help?"
dataset = "digits"
design = "factorial"
seeds = 3

[base]
name = "plain"
network = "densenet:L=10,k=3,stem_channels=4"

[data]
subset = 200

[factors]
bottleneck = [0, 4]
compression = [1.0, 0.5]

[names]
B = { bottleneck = 4 }
C = { compression = 0.5 }

[recipe]
epochs = 2
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def define(*changes: tuple[str, str], **overrides: Any) -> Definition:
    """Return the small study with parts of its text replaced."""
    text = TEXT
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return parse_definition(tomllib.loads(text), text, "small", "small.toml", **overrides)


def networks(definition: Definition) -> dict[str, str]:
    return {
        variant.name: format_name(variant.spec).removesuffix(",channels=1,size=8") for variant in definition.variants
    }


# --- the file -----------------------------------------------------------------------------------------------------


def test_variants_keep_the_depth_as_the_base_states_it() -> None:
    # L = 10 means 2 layers per block without a bottleneck, and 1 with a bottleneck
    assert networks(define()) == {
        "plain": "densenet:L=10,k=3,stem_channels=4",
        "B": "densenet-b:L=10,k=3,stem_channels=4",
        "C": "densenet-c:L=10,k=3,stem_channels=4",
        "bottleneck=4 compression=0.5": "densenet-bc:L=10,k=3,stem_channels=4",
    }
    held = define(("densenet:L=10", "densenet:layers=2-2-2"))
    assert networks(held)["B"] == "densenet-b:L=16,k=3,stem_channels=4"
    fields = define(
        (
            'network = "densenet:L=10,k=3,stem_channels=4"',
            "depth = 10\ngrowth_rate = 3\nbottleneck = 0\ncompression = 1.0\nstem_channels = 4",
        )
    )
    assert networks(fields) == networks(define())


def test_changes_cover_network_recipe_and_data() -> None:
    variants = {variant.name: variant for variant in define().variants}
    assert variants["plain"].changed == {}
    assert variants["B"].changed == {"block_layers": [1, 1, 1], "bottleneck": 4}
    assert variants["C"].changed == {"compression": 0.5}
    more = define(
        ("bottleneck = [0, 4]", 'recipe.weight_decay = [1e-4, 1e-3]\ndata.augmentation = ["crop", "none"]'),
        ("B = { bottleneck = 4 }\n", ""),
    )
    last = more.variants[-1]
    assert last.changed == {"compression": 0.5, "recipe.weight_decay": 1e-3, "data.augmentation": "none"}
    assert last.recipe.weight_decay == 1e-3
    assert last.data == {"subset": 200, "image_size": 8, "augmentation": "none"}


def test_without_augmentation_all_variants_share_the_dropout_of_the_recipe() -> None:
    one = define(
        ("subset = 200", 'augmentation = "none"'), ("epochs = 2", "epochs = 2\ndropout_without_augmentation = 0.2")
    )
    assert {variant.spec.dropout for variant in one.variants} == {0.2}  # type: ignore[union-attr]
    both = define(
        ("bottleneck = [0, 4]", 'data.augmentation = ["crop", "none"]'),
        ("B = { bottleneck = 4 }\n", ""),
        ("epochs = 2", "epochs = 2\ndropout_without_augmentation = 0.2"),
    )
    assert {variant.spec.dropout for variant in both.variants} == {0.0}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("question =", "qestion =")], "qestion: there is no such key. Did you mean question?"),
        ([('"digits"', '"digit"')], "dataset: no data set 'digit'"),
        ([('"factorial"', '"factorials"')], "design: no design 'factorials'.* Did you mean factorial?"),
        ([("seeds = 3", "seeds = 1")], "seeds: `seeds >= 2` must hold, but got seeds=1: 1 pair cannot show"),
        ([("seeds = 3", "seeds = 0")], "`seeds >= 2` must hold, but got seeds=0"),
        ([("seeds = 3", "seeds = [4]")], "`seeds >= 2` must hold, but got 1 seed"),
        ([("seeds = 3", "seeds = [4, 4]")], "a seed appears twice"),
        ([("seeds = 3", "seeds = 3\nalpha = 1.5")], "alpha: `0 < alpha < 1` must hold, but got 1.5"),
        ([("seeds = 3", "seeds = 3\ntolerance = -1")], "tolerance: `0 <= tolerance < 1` must hold, but got -1"),
        ([("L=10", "L=11")], r"\[base\] network: a DenseNet of depth 11 does not exist"),
        ([("[data]\n", "[data]\nsubsets = 2\n")], r"\[data\] subsets: there is no such key"),
        ([("epochs = 2", "epochs = 0")], r"\[recipe\] `epochs >= 1` must hold"),
        ([("[0, 4]", "[0, -1]")], r"\[factors\] bottleneck = -1: `bottleneck >= 0` must hold, but got bottleneck=-1"),
        (
            [("bottleneck = [0, 4]", "depth = [10, 12]"), ("B = { bottleneck = 4 }\n", "")],
            r"\[factors\] depth = 12: a DenseNet of depth 12 does not exist: .* the nearest depths are 10 and 13",
        ),
        ([("[0, 4]", "[2, 4]")], r"bottleneck: its levels \[2, 4\] do not include the base's, 0; add it, or state one"),
        ([("[0, 4]", "[0]")], "bottleneck: expected a list of at least two levels"),
        ([("[0, 4]", "[0, 4, 4]")], "bottleneck: a level appears twice"),
        ([("bottleneck = [0, 4]", "botleneck = [0, 4]")], "botleneck: DenseNetSpec has no such field. Did you mean bo"),
        ([("bottleneck = [0, 4]", "image_size = [8, 16]")], "image_size: it is set by the data set; use data.image_s"),
        ([("bottleneck = [0, 4]", "data.split_seed = [0, 1]")], "each pair has its own split"),
        (
            [
                ("L=10,k=3", "layers=2,k=3"),
                ("bottleneck = [0, 4]", "dropout = [0.0, 0.2]"),
                ("B = { bottleneck = 4 }\n", ""),
            ],
            r"compression: it has no effect: at \[1.0, 0.5\] the runs are the same, since a network of one block has",
        ),
        (
            [("bottleneck = [0, 4]", "recipe.warmup = [0.0, 0.1]"), ("epochs = 2", 'name = "paper"\nepochs = 2')],
            "recipe.warmup: it has no effect: .* since the schedule is steps",
        ),
        (
            [("[1.0, 0.5]", "[1.0, 0.5, 0.49]"), ("k=3,stem_channels=4", "k=1,stem_channels=1")],
            "transition 1 would keep",
        ),
        (
            [
                ('"factorial"', '"one-at-a-time"'),
                ("bottleneck = [0, 4]", 'connectivity = ["dense", "window:2", "window:9"]'),
                ("B = { bottleneck = 4 }\n", ""),
            ],
            "variants plain and connectivity=window:9 are the same run",
        ),
        ([('"factorial"', '"fractional"')], "at least 3 factors, but got 2"),
        ([("B = { bottleneck = 4 }", "B = { bottleneck = 3 }")], r"\[names\] B: no variant of the design has bottlene"),
        (
            [("seeds = 3", 'seeds = 3\nequal = "params"'), ("bottleneck = [0, 4]", "growth_rate = [3, 4]")],
            r"growth_rate: with equal = \"params\" it is solved for each variant",
        ),
        (
            [("seeds = 3", 'seeds = 3\nequal = "params"\ntolerance = 0.0001')],
            r"variant B: equal params within 0.01% cannot be reached: the nearest network, densenet-b:L=10,k=\d.*, has"
            r" [\d,]+, \d+\.\d% (more|fewer) than the base's",
        ),
        (
            [("seeds = 3", 'seeds = 3\nequal = "seconds"'), ("bottleneck = [0, 4]", "recipe.epochs = [2, 4]")],
            'recipe.epochs: with equal = "seconds" it is solved for',
        ),
    ],
)
def test_an_invalid_file_is_refused(changes: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        define(*changes)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(InputError) as error:
        define(("seeds = 3", "seeds = 1\nalpha = 2"), ("epochs = 2", "epochs = 0"), ("subset", "subsets"))
    lines = str(error.value).splitlines()
    assert lines[0] == "small.toml has 4 problems:"
    parts = ("alpha: ", "seeds: ", "[data] subsets: ", "[recipe] ")
    for line, part in zip(lines[1:], parts, strict=True):
        assert line.startswith("  " + part)


LIST = (
    ('"factorial"', '"list"'),
    ("[factors]\nbottleneck = [0, 4]\ncompression = [1.0, 0.5]\n", ""),
    (TEXT[TEXT.index("[names]") : TEXT.index("[recipe]")], ""),
)


def with_variants(*variants: str) -> tuple[tuple[str, str], ...]:
    return (*LIST, ("epochs = 2\n", "epochs = 2\n" + "".join(f"[[variants]]\n{text}\n" for text in variants)))


def test_a_list_of_variants_is_parsed_and_checked() -> None:
    definition = define(
        *with_variants('name = "B"\nbottleneck = 4', 'name = "slow"\nrecipe.learning_rate = 0.01\ndepth = 13')
    )
    assert networks(definition) == {
        "plain": "densenet:L=10,k=3,stem_channels=4",
        "B": "densenet-b:L=10,k=3,stem_channels=4",
        "slow": "densenet:L=13,k=3,stem_channels=4",
    }
    assert definition.variants[2].levels == {"recipe.learning_rate": 0.01, "depth": 13}
    for variants, message in (
        (("bottleneck = 4",), r"\[\[variants\]\] 1: it needs a name"),
        (('name = "plain"\nbottleneck = 4',), "two variants called 'plain'"),
        (('name = "B"',), "B: it changes nothing"),
        (('name = "B"\nbottleneck = 0',), "variants plain and B are the same run"),
        (('name = "B"\nbottleneck = 4', 'name = "b"\nbottleneck = 4'), "variants B and b are the same run"),
        (('name = "B"\nbottleneck = -4',), r"\[\[variants\]\] B: `bottleneck >= 0` must hold"),
        ((), "at least one table"),
    ):
        with pytest.raises(InputError, match=message):
            define(*with_variants(*variants))


# --- designs ------------------------------------------------------------------------------------------------------

LEVELS = {"a": (0, 1), "b": (0, 1, 2)}


def test_one_at_a_time_and_factorial_designs_match_hand_written_ones() -> None:
    assert list(one_at_a_time(LEVELS)) == [
        {"a": 0, "b": 0},
        {"a": 1, "b": 0},
        {"a": 0, "b": 1},
        {"a": 0, "b": 2},
    ]
    cells = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert list(factorial(LEVELS)) == [{"a": a, "b": b} for a, b in cells]


def words(*texts: str) -> list[frozenset[str]]:
    return [frozenset(text) for text in texts]


def test_half_of_four_factors_matches_the_textbook() -> None:
    """2^(4-1): I = ABCD, of resolution IV, with the two-factor interactions confounded in three pairs."""
    fraction = best_fraction("ABCD", 1)
    assert list(fraction.words) == words("ABCD")
    assert fraction.resolution == 4
    assert fraction.cells == 8
    assert fraction.aliases(frozenset("AB")) == (frozenset("CD"),)
    assert fraction.relation() == "I = A × B × C × D"
    assert fraction.confounded() == [
        "A = B × C × D",
        "B = A × C × D",
        "C = A × B × D",
        "D = A × B × C",
        "A × B = C × D",
        "A × C = B × D",
        "A × D = B × C",
    ]
    cells = list(fraction.combinations(dict.fromkeys("ABCD", (0, 1))))
    assert cells[0] == {"A": 0, "B": 0, "C": 0, "D": 0}
    assert len({tuple(cell.values()) for cell in cells}) == 8
    assert all(sum(cell.values()) % 2 == 0 for cell in cells)  # ABCD = +1: an even number of changes
    for one, other in itertools.combinations("ABCD", 2):  # each pair of factors has all four combinations twice
        seen = [(cell[one], cell[other]) for cell in cells]
        assert {pair: seen.count(pair) for pair in seen} == {(0, 0): 2, (0, 1): 2, (1, 0): 2, (1, 1): 2}


@pytest.mark.parametrize(
    ("factors", "halvings", "resolution"),
    [("ABC", 1, 3), ("ABCDE", 1, 5), ("ABCDE", 2, 3), ("ABCDEF", 2, 4), ("ABCDEFG", 4, 3), ("ABCDEFG", 3, 4)],
)
def test_fractions_reach_the_published_resolutions(factors: str, halvings: int, resolution: int) -> None:
    """Resolutions of Box, Hunter and Hunter 1978, table 12.15."""
    assert best_fraction(factors, halvings).resolution == resolution


def test_the_fraction_with_least_aberration_is_chosen() -> None:
    """2^(7-2), of resolution IV, can have one word of four letters (Fries and Hunter 1980)."""
    assert [len(word) for word in best_fraction("ABCDEFG", 2).words] == [4, 5, 5]


def test_generators_are_parsed_and_checked() -> None:
    fraction = read_generators("ABCDE", ["D = A * B", "E = A × C"])
    assert list(fraction.words) == words("ABD", "ACE", "BCDE")
    assert fraction.resolution == 3
    for texts, message in (
        (["D = A * X"], "must read `FACTOR = FACTOR"),
        (["D A"], "must read `FACTOR = FACTOR"),
        (["D = A * D"], "names a factor twice"),
        (["D = A", "E = A * B"], "imply I = A × D, which confounds main effects with each other: resolution 2"),
        (["D = A * B", "D = A * C"], "D has a generator already"),
        (["D = A * B", "E = A * D"], "the generator of E names D"),
        ([], "contain at least one generator"),
    ):
        with pytest.raises(InputError) as error:
            read_generators("ABCDE", texts)
        assert message in str(error.value)
    with pytest.raises(InputError, match="4 variants cannot separate 4 main effects; the smallest fraction is 1/2, 8"):
        best_fraction("ABCD", 2)


FRACTIONAL = (
    ('"factorial"', '"fractional"'),
    ("bottleneck = [0, 4]", 'bottleneck = [0, 4]\nconnectivity = ["dense", "log"]\ndropout = [0.0, 0.2]'),
    (TEXT[TEXT.index("[names]") : TEXT.index("[recipe]")], ""),
)


def test_a_fractional_study_has_half_the_variants_and_lists_its_aliases() -> None:
    definition = define(*FRACTIONAL)
    assert len(definition.variants) == 8
    assert definition.variants[0].name == "plain"
    table = frozen_table(plan_of(definition))
    assert table["resolution"] == 4
    assert "bottleneck × connectivity = dropout × compression" in table["aliases"]
    with pytest.raises(InputError, match="needs two levels of each factor, but dropout has 3; keep two of them"):
        define(
            *FRACTIONAL[:1], ("bottleneck = [0, 4]", "bottleneck = [0, 4]\ndropout = [0.0, 0.1, 0.2]"), *FRACTIONAL[2:]
        )
    with pytest.raises(InputError, match=r"fraction: expected one of 1/2, 1/4, 1/8 as text, but got 0.5"):
        define(*FRACTIONAL, ("seeds = 3", "seeds = 3\nfraction = 0.5"))


# --- equal sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["params", "macs"])
def test_sizes_are_held_equal_to_the_base(measure: str) -> None:
    definition = define(("seeds = 3", f'seeds = 3\nequal = "{measure}"\ntolerance = 0.06'), ("k=3", "k=8"))
    target = getattr(cost(definition.base.spec), measure)
    for variant in definition.variants:
        share = getattr(cost(variant.spec), measure) / target - 1
        assert variant.residual == pytest.approx(share)
        assert abs(share) <= 0.06
    assert definition.base.spec == define(("k=3", "k=8")).base.spec
    assert [v.spec.bottleneck for v in definition.variants] == [0, 4, 0, 4]


def plan_of(definition: Definition, **changes: Any) -> Any:
    folder = StudyFolder(Path("studies") / definition.name)
    return with_equal_seconds(make_plan(definition, folder, MEANS, **changes), folder, MEANS)


def test_equal_seconds_are_solved_by_the_epochs_once_per_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = {"plain": 1.0, "B": 2.0, "C": 0.6, "bottleneck=4 compression=0.5": 40.0}
    definition = define(("seeds = 3", 'seeds = 3\nequal = "seconds"'), ("epochs = 2", "epochs = 9"))
    folder, by_spec = StudyFolder(Path("studies") / definition.name), dict[Any, float]()
    monkeypatch.setattr("dnas.batch.estimate.epoch_seconds", lambda spec, *_: by_spec[spec])
    untimed = make_plan(definition, folder, MEANS)  # times nothing
    assert untimed.needs_timing
    assert "+0.00%" not in describe_plan(untimed, folder, MEANS)
    by_spec |= {variant.spec: slow[variant.name] for variant in definition.variants}
    plan = plan_of(definition)
    assert not plan.needs_timing
    assert describe_epochs(plan).splitlines()[:2] == [
        "epochs    plain                         9, kernels plain",
        "          B                             4, -11.11% seconds",
    ]
    # 9 epochs of the base take as long as 4.5 of B, 15 of C, and 0.2 of the last variant, which is trained for one
    assert [variant.recipe.epochs for variant in plan.definition.variants] == [9, 4, 15, 1]
    residuals = [variant.residual for variant in plan.definition.variants]
    assert residuals == pytest.approx([0.0, 8 / 9 - 1, 0.0, 40 / 9 - 1])
    train(plan)
    by_spec = {variant.spec: 1.0 for variant in definition.variants}  # on a machine of another speed
    resumed = plan_of(definition)
    assert resumed.definition.variants == plan.definition.variants
    config = folder.config()
    assert plan.kernels == resumed.kernels == config["ablation"].pop("timed_kernels") == "plain"
    folder.write_config(config)  # as an older version wrote it, which timed the plain modules
    assert plan_of(definition).kernels is None


# --- pairs --------------------------------------------------------------------------------------------------------


def train(plan: Any, executor: AnalyticExecutor | None = None) -> AnalyticExecutor:
    executor = executor or AnalyticExecutor()
    about = {"ablation": frozen_table(plan)}
    train_runs(plan.study, "t", plan.runs, MEANS, Silent(), executor, final=plan.final, about=about)
    return executor


def test_runs_of_a_seed_share_split_order_augmentation_and_stream() -> None:
    executor = train(plan_of(define(("bottleneck = [0, 4]", "dropout = [0.0, 0.2]"), ("B = { bott", "# B = { bott"))))
    seen: dict[int, list[list[torch.Tensor]]] = {}
    for job in executor.started:
        data = load_dataset(**job.data)
        generator = torch.Generator().manual_seed(stream_seed(*job.seed, "data"))
        x, y = zip(*data.train_batches(64, generator), strict=True)
        stream = torch.tensor(stream_seed(*job.seed, "initialisation"))
        seen.setdefault(job.data["split_seed"], []).append([data.val_index, torch.cat(x), torch.cat(y), stream])
    assert {seed: len(some) for seed, some in seen.items()} == {0: 4, 1: 4, 2: 4}
    for first, *others in seen.values():
        for other in others:
            assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    for (one, *_), (two, *_) in itertools.combinations(seen.values(), 2):
        assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    plain, dropout = (job for job in executor.started[:4] if job.spec["compression"] == 1.0)
    weights = []
    for job in (plain, dropout):  # networks of the same shape have the same initial weights
        torch.manual_seed(stream_seed(*job.seed, "initialisation"))
        weights.append(weights_digest(build(DenseNetSpec.from_dict(job.spec))))
    assert weights[0] == weights[1]


def test_runs_are_ordered_by_seed() -> None:
    assert [run.key for run in planned(define().variants[:2], [0, 3])] == ["plain/s0", "B/s0", "plain/s3", "B/s3"]


# --- the command --------------------------------------------------------------------------------------------------


def write(*changes: tuple[str, str], name: str = "small") -> Path:
    text = TEXT
    for before, after in changes:
        text = text.replace(before, after)
    path = Path(f"{name}.toml")
    path.write_text(text)
    return path


def test_a_dry_run_describes_the_plan_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    write()
    assert main(["ablate", "small.toml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "small   A small study for the tests.",
        "question  Does it help?",
        "factorial of bottleneck (0, 4) and compression (1.0, 0.5); nothing held equal",
        "densenet-b:L=10,k=3,stem_channels=4",
        "data      Digits: 10 classes, 180 training and 20 validation images of 8×8, shifted at random",
        "training  recipe fast, 2 epochs of batch 64; measured on the validation data",
        "runs      12: 4 variants from 3 seeds",
        "time      about",
        "evidence  INSUFFICIENT: 3 comparisons with 3 pairs cannot reach 0.05, the smallest possible p being 0.75;",
        "nothing was trained",
    ):
        assert text in printed
    assert not Path("studies").exists()
    assert main(["ablate", "small.toml", "--dry-run", "--seeds", "7", "--final", "--epochs", "5"]) == 0
    printed = capsys.readouterr().out
    assert "3 comparisons with 7 pairs: p can fall to 0.047" in printed
    assert "5 epochs of batch 64; trained on the validation data too, measured on the test set" in printed


def test_a_plan_states_whether_it_can_lead_to_a_conclusion() -> None:
    """m · 2^(1-n) <= alpha: one comparison needs 6 pairs at 5%, three need 7."""
    one = define(*with_variants('name = "B"\nbottleneck = 4'))
    assert can_conclude(plan_of(one)).endswith("the smallest possible p being 0.25; 6 pairs can: --seeds 6")
    assert "1 comparison with 6 pairs: p can fall to 0.031" in can_conclude(
        plan_of(dataclasses.replace(one, seeds=tuple(range(6))))
    )
    assert can_conclude(plan_of(define(seeds=6))).startswith("INSUFFICIENT: 3 comparisons with 6 pairs cannot")
    assert "(7 pairs suffice)" in can_conclude(plan_of(define(seeds=7)))


def test_invalid_input_exits_with_status_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    write()
    write(("[base]", "[bas]"), name="none")
    for arguments, message in (
        (["small.toml", "--seeds", "1"], "`seeds >= 2` must hold, but got seeds=1"),
        (["small.toml", "--seeds", "many"], "--seeds must be a number of seeds, or auto, but got 'many'"),
        (["small.toml", "--max-seeds", "9"], "--max-seeds .* --seeds auto"),
        (["small.toml", "--budget", "9"], "--budget requires --seeds auto"),
        (["small.toml", "--executor", "rai"], "no executor 'rai'"),
        (["small.toml", "--cpus-per-trial", "2"], "--cpus-per-trial is for --executor ray"),
        (["small.toml", "--study", "a/b"], "a study's name is letters"),
        (["gone.toml"], "no study file gone.toml"),
        (["digits_bottleneck"], "no ablation 'digits_bottleneck'.* Did you mean digits_bottleneck_compression"),
        (["tiny_demo"], "does not define an ablation.*`dnas search --study tiny_demo`"),
        (["none.toml"], "does not define an ablation"),
    ):
        assert main(["ablate", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(message, error), error
    assert main(["search", "--study", "bottleneck_compression", "--trials", "2"]) == 2
    assert "defines an ablation, not a search; use `dnas ablate bottleneck_compression`" in capsys.readouterr().err


def records(study: str = "small") -> list[dict[str, Any]]:
    return equal_but_times(StudyFolder(Path("studies") / study).records())


def test_adding_seeds_only_adds_runs() -> None:
    train(plan_of(define()))
    before = records()
    assert len(before) == 12
    executor = train(plan_of(define(seeds=5)))
    assert {job.seed for job in executor.started} == {(3, 0), (4, 0)}
    assert records()[:12] == before
    assert StudyFolder(Path("studies/small")).config()["ablation"]["seeds"] == [0, 1, 2, 3, 4]
    assert train(plan_of(define(), asked=False)).started == []  # the file has 3 seeds, the study 5
    train(plan_of(define(seeds=9)))
    assert read_ablation("small").earlier == (3, 5)
    assert "seeds were added after results of 3 and 5: p holds for" in describe_result(read_ablation("small"))
    StudyFolder(Path("studies/small")).path.rename("studies/grown")
    train(plan_of(define(seeds=9)))
    assert read_ablation("small").earlier == ()
    assert [row["params"] for row in records()] == [row["params"] for row in records("grown")]


def test_an_existing_study_cannot_be_changed() -> None:
    train(plan_of(define()))
    for changes, message in (
        ([("epochs = 2", "epochs = 3")], "another recipe: epochs=2 .now epochs=3"),
        ([("seeds = 3", "seeds = 3\nalpha = 0.1")], "started with alpha 0.05 .now 0.1."),
        ([('name = "plain"', 'name = "base"')], "started with base plain .now base."),
        ([("B = {", "bottled = {")], "has a variant that its file no longer has: B; all runs must be reported"),
        ([("seeds = 3", 'seeds = "auto"')], "started with seeds: 3 seeds .now auto."),
    ):
        with pytest.raises(InputError, match=message):
            train(plan_of(define(*changes)))
    wider = define(("[1.0, 0.5]", "[1.0, 0.5, 0.25]"))
    assert len(train(plan_of(wider)).started) == 6  # two more variants
    config = StudyFolder(Path("studies/small")).config()
    del config["ablation"]
    StudyFolder(Path("studies/small")).write_config(config)
    with pytest.raises(InputError, match="already exists and is not an ablation"):
        plan_of(define())


# --- results ------------------------------------------------------------------------------------------------------


def by_group(errors: Callable[[str, int], float | None]) -> AnalyticExecutor:
    """Return an executor whose runs end with `errors(variant, seed)`; a run with None diverges."""
    definition = define()
    names = {variant.spec.digest: variant.name for variant in definition.variants}

    class Planted(AnalyticExecutor):
        def start(self, job: Job) -> None:
            super().start(job)
            error = errors(names[DenseNetSpec.from_dict(job.spec).digest], job.seed[0])
            if error is None:
                self.jobs[job.key] = deque([Message("failed", {"reason": "diverged", "text": "nan"})])
            for message in self.jobs[job.key]:
                row = message.values.get("row", message.values)
                row["val_error"] = error

    return Planted()


EFFECTS = {"plain": 0.0, "B": -0.02, "C": 0.03, "bottleneck=4 compression=0.5": 0.0}


def test_planted_effects_are_measured() -> None:
    train(plan_of(define(seeds=8)), by_group(lambda name, seed: 0.1 + 0.01 * seed + EFFECTS[name] + 1e-4 * seed))
    ablation = read_ablation("small")
    assert (ablation.name, ablation.base, ablation.design) == ("small", "plain", "factorial")
    assert ablation.equal == "nothing"
    assert list(ablation.values.columns) == list(EFFECTS)
    assert ablation.values.index.tolist() == list(range(8))
    assert ablation.values.loc[2, "C"] == pytest.approx(0.1502)
    definition = define()
    for variant, defined in zip(ablation.variants, definition.variants, strict=True):
        kept = {key: value for key, value in defined.data.items() if value is not None}
        changed = {key: tuple(value) if isinstance(value, list) else value for key, value in defined.changed.items()}
        assert variant == dataclasses.replace(defined, data=kept, changed=changed)
    assert {one.name: round(one.mean, 6) for one in ablation.effects.comparisons} == {
        name: effect for name, effect in EFFECTS.items() if name != "plain"
    }
    assert [one.verdict for one in ablation.effects.comparisons] == ["fewer errors", "more errors", "cannot tell"]
    assert ablation.factorial is not None
    # B alone: -0.02, with C: -0.03, mean -0.025. C alone: +0.03, with B: +0.02, mean 0.025. Interaction: -0.01.
    assert {one.name: round(one.mean, 6) for one in ablation.factorial.comparisons} == {
        "bottleneck: 4 against 0": -0.025,
        "compression: 0.5 against 1.0": 0.025,
        "bottleneck × compression": -0.01,
    }
    summary = describe_result(ablation)
    assert re.search(r"base      plain: 13\.54% validation error, mean of 8 seeds", summary)
    assert re.search(r"B +-2\.00 .* fewer errors", summary)
    assert summary.endswith("stored    studies/small/\nnext      dnas report small")


def test_failed_runs_are_reported() -> None:
    diverging = by_group(lambda name, seed: None if (name, seed) == ("B", 1) else 0.1 + EFFECTS[name])
    train(plan_of(define(seeds=3)), diverging)
    ablation = read_ablation("small")
    assert ablation.effects.left_out == {"B": (1,)}
    summary = describe_result(ablation)
    assert re.search(r"no value +B: .*seed 1", summary)
    assert re.search("3 comparisons with 2 pairs.* 7 are needed at 0.05; --seeds 7 adds them", summary)


def race(most: int = 10, left: int = 10**6, budget: float | None = None) -> tuple[str | None, list[str]]:
    """Run `--seeds auto` with planted effects, and interrupt it before run number `left` starts.

    B is 2 points better from each seed, the sign of C alternates, and the last variant equals the base.
    """
    plan = plan_of(define(seeds="auto"), max_seeds=most)
    started: list[str] = []
    signs = {"plain": 0.0, "B": -0.02, "C": 0.03, "bottleneck=4 compression=0.5": 0.0}

    def error(name: str, seed: int) -> float:
        if len(started) >= left:
            raise KeyboardInterrupt
        started.append(f"{name}/s{seed}")
        return 0.1 + 0.001 * seed + signs[name] * ((-1) ** seed if name == "C" else 1)

    def train_some(runs: Sequence[PlannedRun]) -> str | None:
        about = {"ablation": frozen_table(plan)}
        return train_runs("small", "t", runs, MEANS, Silent(), by_group(error), about=about).stopped_by

    return train_rounds(plan, StudyFolder(Path("studies/small")), train_some, budget, lambda text: None), started


def test_seeds_are_added_to_undecided_comparisons_only() -> None:
    """For 3 comparisons at 5% and at most 10 pairs the first look is at 8 pairs.

    At 8 pairs 128·(0.05/3)·0.8^1.5 = 1.5 sign patterns may reject, at 7 pairs 0.6. All signs of B agree, so B is
    decided then; the other variants and the base are trained from all 10 seeds.
    """
    stopped_by, started = race()
    assert stopped_by is None
    pairs = {name: sum(key.startswith(name + "/") for key in started) for name in EFFECTS}
    assert pairs == {"plain": 10, "B": 8, "C": 10, "bottleneck=4 compression=0.5": 10}
    ablation = read_ablation("small")
    assert [one.verdict for one in ablation.effects.comparisons] == ["fewer errors", "cannot tell", "cannot tell"]
    assert ablation.effects.left_out == {}
    assert ablation.factorial is None
    assert ablation.config["ablation"]["seeds"] == "auto"
    assert ablation.config["ablation"]["most"] == 10
    whole = records()
    StudyFolder(Path("studies/small")).path.rename("studies/whole")
    for left in (3, 31, 2, 0):  # interrupted in the first round, in the second, and before the first run
        with pytest.raises(KeyboardInterrupt):
            race(left=left)
    assert race()[0] is None
    now = records()
    for row in (*whole, *now):
        row.pop("attempts")
    assert now == whole
    assert race()[1] == []  # nothing is left to train


def test_a_budget_stops_the_race_after_a_whole_seed() -> None:
    stopped_by, started = race(budget=60)  # seconds; an epoch takes one second, a run two
    assert stopped_by == (
        "1 min 04 s of training exceed --budget 1 min 00 s; undecided: C and bottleneck=4 compression=0.5"
    )
    assert len(started) == 32
    assert len(race(budget=10**6)[1]) == 6


def test_the_maximum_number_of_seeds_cannot_be_changed() -> None:
    race()
    assert plan_of(define(), asked=False).seeds == tuple(range(10))
    with pytest.raises(InputError, match=r"started with --max-seeds 10 .now 12., which its stopping rule depends on"):
        plan_of(define(seeds="auto"), max_seeds=12)
    with pytest.raises(InputError, match=r"started with seeds: auto .now 3 seeds."):
        plan_of(define())
    with pytest.raises(InputError, match=r"m·2.*allow 7 seeds or more"):
        plan_of(dataclasses.replace(define(seeds="auto"), name="other"), max_seeds=4)


def test_a_study_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no study 'small'"):
        read_ablation("small")
    train_runs("small", "t", plan_of(define()).runs, MEANS, Silent(), AnalyticExecutor())
    with pytest.raises(InputError, match="study small is not an ablation"):
        read_ablation("small")


# --- real training ------------------------------------------------------------------------------------------------

COMMAND = ["ablate", "small.toml", "--seeds", "2", "--epochs", "3", "-q"]


def epochs_done(folder: Path) -> int:
    """Return the number of epochs whose checkpoints are written, over all runs."""
    rows = 0
    for path in folder.glob("studies/small/trials/*/curve.csv"):
        rows += max(0, len(path.read_text().splitlines()) - 1)
    return rows


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_study_resumes_to_the_result_of_an_uninterrupted_one(
    kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the driver and all workers by SIGKILL."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    rng = random.Random(6)
    for folder in (alone, killed):
        folder.mkdir()
        monkeypatch.chdir(folder)
        write()
    done = Command(*COMMAND, folder=alone)
    printed, errors = done.communicate(patience(PATIENCE))
    assert done.returncode == 0, errors
    assert "3 comparisons with 2 pairs" in printed
    assert printed.endswith("next      dnas report small\n")
    for _ in range(kills):
        before, more = epochs_done(killed), rng.randint(1, 4)
        process = Command(*COMMAND, folder=killed)
        began = time.monotonic()
        while epochs_done(killed) < before + more:
            assert process.poll() is None, "the study ended before it could be killed"
            assert time.monotonic() - began < patience(PATIENCE)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = Command(*COMMAND, folder=killed)
    assert done.wait(patience(PATIENCE)) == 0, done.communicate()[1]

    def essence(folder: Path) -> tuple[Any, ...]:
        ablation = read_ablation(folder / "studies/small")
        rows = equal_but_times(ablation.folder.records())
        for row in rows:
            assert row.pop("attempts") >= 1
        return rows, ablation.frame.drop(columns=["seconds", "peak_memory_bytes"]), ablation.values, ablation.effects

    one, other = essence(alone), essence(killed)
    assert one[0] == other[0]
    assert {row["state"] for row in one[0]} == {"complete"}
    assert len({row["weights_digest"] for row in one[0]}) == 8
    pd.testing.assert_frame_equal(one[1], other[1])
    pd.testing.assert_frame_equal(one[2], other[2])
    assert one[3] == other[3]


# --- shipped ablations --------------------------------------------------------------------------------------------

SHIPPED = (
    "bottleneck_compression",
    "growth_rate",
    "depth_vs_width",
    "connectivity",
    "dropout",
    "transition_compression",
)


def test_shipped_ablations_are_valid_and_each_has_a_small_version() -> None:
    names = {path.stem for path in (ROOT / "studies").glob("*.toml")} & set(ablation_files())
    assert names == {*SHIPPED, *(f"digits_{name}" for name in SHIPPED)}
    for name in sorted(names):
        definition = load_definition(name)
        assert definition.dataset == ("digits" if name.startswith("digits_") else "cifar10")
        assert can_be_decided(definition), name
        lines = definition.text.splitlines()
        assert lines[1].startswith(f"# Run:     dnas ablate {name}")
        assert lines[2].startswith("# Time:    ")
        assert lines[3].startswith("# Expect:  ")
        if definition.equal == "params":
            assert max(abs(variant.residual or 0) for variant in definition.variants) <= 0.01


def can_be_decided(definition: Definition) -> bool:
    return (len(definition.variants) - 1) * 2.0 ** (1 - len(definition.seeds)) <= definition.alpha
