"""`dnas reproduce`: plans, verdicts on studies with planted effects, and resuming a killed run."""

import csv
import json
import math
import re
from collections import deque
from pathlib import Path

import pandas as pd
import pytest

from dnas.analysis.efficiency import published_imagenet, published_table2
from dnas.analysis.intervals import holm
from dnas.analysis.scaling import IsoError
from dnas.api.execution import Execution
from dnas.arch import cost, parse_name, spec_from_dict
from dnas.batch.runs import train_runs
from dnas.cli import main
from dnas.cli.reproduce_text import describe_plan
from dnas.errors import InputError
from dnas.executors.worker import Job, Message
from dnas.figures import title
from dnas.reproduce.page import write_page
from dnas.reproduce.results import Result, about_a_third, paired, read_result
from dnas.reproduce.targets import BUDGETS, TARGETS, Budget, Plan, Target, make_plan
from dnas.study.config import RunConfig
from dnas.study.folder import StudyFolder
from tests.support.analytic import AnalyticExecutor, Silent
from tests.support.commands import Command
from tests.support.patience import wait_until


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- plans --------------------------------------------------------------------------------------------------------

RUNS = {  # networks times seeds
    ("table1", "smoke"): 0,
    ("table1", "short"): 0,
    ("table1", "paper"): 0,
    ("table2", "smoke"): 2 * 1,
    ("table2", "short"): 2 * 3,
    ("table2", "paper"): 6 * 3,
    ("fig3", "smoke"): 6 * 3,
    ("fig3", "short"): 8 * 3,
    ("fig3", "paper"): 8 * 2,
    ("fig4-left", "smoke"): 12 * 3,
    ("fig4-left", "short"): 12 * 3,
    ("fig4-left", "paper"): 16 * 3,
    ("fig4-middle", "smoke"): 6 * 3,
    ("fig4-middle", "short"): 8 * 3,
    ("fig4-middle", "paper"): 8 * 3,
    ("fig4-right", "smoke"): 2 * 3,
    ("fig4-right", "short"): 2 * 3,
    ("fig4-right", "paper"): 2 * 3,
    ("fig5", "smoke"): 1 * 5,
    ("fig5", "short"): 1 * 3,
    ("fig5", "paper"): 1 * 3,
}


def test_every_target_and_budget_has_a_plan() -> None:
    assert set(RUNS) == {(target, budget) for target in TARGETS for budget in BUDGETS}


@pytest.mark.parametrize(("target", "budget"), RUNS)
def test_networks_of_a_plan_match_its_data_and_differ_in_size(target: str, budget: str) -> None:
    plan = make_plan(target, budget)
    assert len(plan.runs) == RUNS[target, budget]
    assert len({run.key for run in plan.runs}) == len(plan.runs)
    for run in plan.runs:
        spec = run.spec
        assert (spec.in_channels, spec.image_size) == (plan.info.channels, plan.info.image_size)
        assert spec.classes == plan.info.classes
    sizes: dict[str, list[int]] = {}
    for run in plan.runs:
        if run.seed == 0:
            sizes.setdefault(run.group, []).append(cost(run.spec).params)
    for found in sizes.values():
        assert found == sorted(set(found))
    if target in ("fig3", "fig4-left", "fig4-middle"):  # families that can be compared at all
        bc = sizes["DenseNet-BC"]
        for group, found in sizes.items():
            assert len(found) >= 3
            assert found[0] < bc[-1], group
            assert bc[0] < found[-1], group


def test_the_paper_budget_trains_the_networks_of_the_paper() -> None:
    assert make_plan("table2", "paper").recipe.epochs == 300
    assert (make_plan("fig3", "paper").recipe.epochs, make_plan("fig3", "paper").info.name) == (90, "imagenet")
    sizes = [cost(run.spec).params for run in make_plan("table2", "paper", 1).runs]
    assert sizes == [1_019_722, 6_979_642, 27_249_082, 769_162, 15_324_406, 25_624_430]
    # The axis of the figure has the same range.
    assert max(cost(run.spec).params for run in make_plan("fig4-left", "paper").runs) < 0.85e6
    final = {target for target in TARGETS if make_plan(target, "paper").final}
    assert final == {"table2", "fig3", "fig4-left", "fig4-middle"}
    assert not any(make_plan(target, budget).final for target in TARGETS for budget in ("smoke", "short"))


def test_runs_are_ordered_by_seed() -> None:
    assert [run.seed for run in make_plan("fig4-left", "smoke").runs] == [0] * 12 + [1] * 12 + [2] * 12
    assert [run.seed for run in make_plan("fig4-left", "smoke").planned()][12] == (1, 0)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fig4"], "no target 'fig4'; there are"),
        (["fig4-left", "--budget", "tiny"], "no budget 'tiny'; there are paper, short, smoke"),
        (
            ["fig4-left", "--seeds", "1"],
            "fig4-left needs an interval over seeds, so --seeds must be at least 2, but got 1",
        ),
        (["fig4-left", "--executor", "slurm"], "no executor 'slurm'"),
        (["fig4-left", "--shared", "x"], "--shared is for --executor ray"),
        (["fig4-left", "--budget", "short", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_invalid_input_is_refused_with_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing is downloaded
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    if "nowhere" in words:
        monkeypatch.setattr("dnas.batch.estimate.estimate_seconds", lambda *_: 1.0)
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_dry_run_prints_the_plan_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["reproduce", "fig4-right", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "runs      6: 2 networks from 3 seeds" in shown
    assert re.search(r"time +about .*at once", shown)
    assert "nothing was trained" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_plan_counts_complete_runs_and_parallel_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny images on CPUs use one run per core."""
    monkeypatch.setattr("dnas.api.execution.cores", lambda: 7)
    plan = make_plan("fig4-right", "smoke")
    means = Execution(device="cpu").run_config({"name": "digits"}, 8)
    assert (means.workers, means.threads) == (7, 1)
    folder = StudyFolder(Path("studies") / plan.study)
    assert "are complete" not in describe_plan(plan, folder, means, Path("out"))
    train_runs(plan.study, "t", plan.planned()[:2], RunConfig({"name": "digits"}), Silent(), Planted(plan, {}))
    assert "runs      6: 2 networks from 3 seeds; 2 are complete" in describe_plan(plan, folder, means, Path("out"))


# --- verdicts -----------------------------------------------------------------------------------------------------


class Planted(AnalyticExecutor):
    """Executor whose errors fall with the log of `less[group]` times the params, and vary with the seed by `noise`."""

    def __init__(self, plan: Plan, less: dict[str, float], noise: float = 0.002) -> None:
        super().__init__()
        self.groups = {run.spec.digest: run.group for run in plan.runs}
        self.less, self.noise = less, noise

    def start(self, job: Job) -> None:
        spec = spec_from_dict(job.spec)
        size = self.less.get(self.groups[spec.digest], 1.0) * cost(spec).params
        error = 1.2 - 0.07 * math.log(size) + self.noise * (job.seed[0] - 1) * (-1) ** len(self.started)
        self.started.append(job)
        epochs = job.recipe["epochs"]
        rows = [
            {
                "epoch": epoch,
                "train_loss": 3 * error * epochs / epoch,
                "train_error": error,
                "val_loss": error,
                "val_error": error + 0.01 * (epochs - epoch),
                "learning_rate": 0.1,
                "seconds": 1.0,
            }
            for epoch in range(1, epochs + 1)
        ]
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(folder / "curve.csv", index=False)
        done = Message("done", {"row": rows[-1], "finished": True})
        self.jobs[job.key] = deque([*(Message("epoch", row) for row in rows), done])


def read(target: str, less: dict[str, float], noise: float = 0.002, seeds: int = 3) -> tuple[Plan, Result]:
    plan = make_plan(target, "smoke", seeds)
    executor = Planted(plan, less, noise)
    train_runs(plan.study, "t", plan.planned(), RunConfig({"name": "digits"}), Silent(), executor)
    return plan, read_result(plan, StudyFolder(Path("studies") / plan.study))


def test_fig4_left_finds_the_planted_ratios() -> None:
    plan, result = read("fig4-left", {"DenseNet-BC": 3.0, "DenseNet-B": 1.5, "DenseNet-C": 3.0})
    table = result.tables["readings"][0].set_index("first")
    assert table.loc["DenseNet", "times_fewer"] == pytest.approx(3.0, rel=0.12)
    assert table.loc["DenseNet-B", "times_fewer"] == pytest.approx(2.0, rel=0.12)
    assert table.loc["DenseNet-C", "times_fewer"] == pytest.approx(1.0, rel=0.12)
    assert [finding.verdict for finding in result.findings] == ["holds", "holds", "cannot tell"]
    assert result.findings[0].claim == "at equal error DenseNet-BC needs fewer params than DenseNet"
    assert "times fewer params, 95% interval" in result.findings[0].numbers
    assert "Holm's correction for 3 comparisons" in result.findings[0].numbers
    assert "than DenseNet" in title(result.figures["figure"][0])
    assert any("Digits are not CIFAR-10" in note for note in result.notes)
    assert len(result.tables["networks"][0]) == 12
    page = write_page(plan, result, StudyFolder(Path("studies") / plan.study), Path("out"))
    text = page.read_text()
    assert "Digits are not CIFAR-10" in text
    assert "<svg" in text
    assert text.count("<li>") == 3
    assert not re.search(r"""(src|href)=["']https?:""", text)
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"index.html", "networks.csv", "readings.csv", "figure.svg", "figure.png", "figure.pdf"}


def test_a_wrong_claim_does_not_hold() -> None:
    _, result = read("fig4-left", {"DenseNet-BC": 0.3})
    assert [finding.verdict for finding in result.findings] == ["does not hold"] * 3
    assert "times more params" in result.findings[0].numbers


def test_fig4_middle_compares_the_published_ratio_on_cifar_only() -> None:
    _, result = read("fig4-middle", {"DenseNet-BC": 3.0})
    assert [finding.verdict for finding in result.findings] == ["holds", "cannot tell"]
    assert "3 is inside" in result.findings[1].numbers
    assert "not the data that it was published for" in result.findings[1].numbers


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(2.0, 4.0, "holds"), (1.2, 2.5, "does not hold"), (3.5, 9.0, "does not hold"), (0.9, 4.0, "cannot tell")],
)
def test_the_published_ratio_agrees_where_an_interval_that_excludes_one_holds_it(
    low: float, high: float, verdict: str
) -> None:
    reading = IsoError("ResNet", "DenseNet-BC", "params", 2.2, low, high, 0.01, (0.1, 0.2), None)
    assert about_a_third(reading, True).verdict == verdict


def test_fig3_compares_params_and_multiply_adds() -> None:
    _, result = read("fig3", {"DenseNet-BC": 3.0})
    assert [finding.claim for finding in result.findings] == [
        "at equal error DenseNet-BC needs fewer params than ResNet",
        "at equal error DenseNet-BC needs fewer multiply-adds than ResNet",
    ]
    assert set(result.tables["readings"][0]["cost"]) == {"params", "macs"}
    assert "fewer params" in title(result.figures["figure"][0])


def test_fig4_right_compares_the_ends_of_the_curves() -> None:
    plan = make_plan("fig4-right", "smoke")
    size = {run.group: cost(run.spec).params for run in plan.runs}
    even = size["ResNet"] / size["DenseNet-BC"]
    _, result = read("fig4-right", {"DenseNet-BC": even}, noise=0.0001)  # the same error, in spite of the size
    assert result.findings[0].verdict == "holds"
    assert f"{even:.0f} times fewer params" in result.findings[0].claim
    assert result.findings[1].verdict == "cannot tell"  # the losses differ only by noise
    assert not title(result.figures["figure"][0]).endswith("inconclusive")
    assert len(result.tables["curves"][0]) == 6 * 20
    assert "validation curves" in result.figures["figure"][1]


def test_fig4_right_does_not_hold_if_the_small_network_is_worse() -> None:
    _, result = read("fig4-right", {})
    assert [finding.verdict for finding in result.findings] == ["does not hold", "holds"]
    _, few = read("fig4-right", {}, seeds=2)
    assert [finding.verdict for finding in few.findings] == ["cannot tell", "cannot tell"]
    assert title(few.figures["figure"][0]).endswith(", inconclusive")


def test_table2_compares_sizes_and_comparable_errors_only() -> None:
    _, result = read("table2", {}, seeds=1)
    assert [finding.verdict for finding in result.findings] == ["holds", "cannot tell"]
    assert "params are equal for 6 of 6" in result.findings[0].numbers
    table = result.tables["networks"][0]
    assert table["test_error_published"].tolist() == [0.0524, 0.0410, 0.0374, 0.0451, 0.0362, 0.0346]
    assert table["val_error_here"].notna().tolist() == [True, False, False, True, False, False]


def test_table1_needs_no_training(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["reproduce", "table1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("holds") == 2
    assert "equal for 4 of 4" in shown
    assert "published blocks of DenseNet-264 have 265 layers" in shown
    assert not (tmp_path / "studies").exists()
    with (tmp_path / "reports/reproduce/table1/architectures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["block_layers"] for row in rows] == ["6-12-24-16", "6-12-32-32", "6-12-48-32", "6-12-64-48"]
    assert [row["params"] for row in rows] == ["7978856", "14149480", "20013928", "33337704"]


def test_unfinished_runs_are_reported_as_missing() -> None:
    plan = make_plan("fig4-middle", "smoke")
    executor = Planted(plan, {"DenseNet-BC": 3.0})
    train_runs(plan.study, "t", plan.planned()[:9], RunConfig({"name": "digits"}), Silent(), executor)
    result = read_result(plan, StudyFolder(Path("studies") / plan.study))
    assert any("9 runs of 18 did not finish" in note for note in result.notes)


def test_without_complete_runs_of_both_families_nothing_is_drawn() -> None:
    plan = make_plan("fig4-middle", "smoke")
    failing = AnalyticExecutor(lambda job, epoch: Message("failed", {"reason": "diverged", "text": "nan"}))
    train_runs(plan.study, "t", plan.planned()[:2], RunConfig({"name": "digits"}), Silent(), _no_curves(failing))
    with pytest.raises(InputError, match="no run of reproduce_fig4-middle_smoke is complete"):
        read_result(plan, StudyFolder(Path("studies") / plan.study))
    left = make_plan("fig4-left", "smoke")
    train_runs(left.study, "t", left.planned()[:3], RunConfig({"name": "digits"}), Silent(), Planted(left, {}))
    with pytest.raises(InputError, match="needs complete runs of DenseNet-BC and of another family"):
        read_result(left, StudyFolder(Path("studies") / left.study))


def _no_curves(executor: AnalyticExecutor) -> AnalyticExecutor:
    """Return an executor whose runs all fail, including ResNets, for which `AnalyticExecutor` has no formula."""
    executor.start = lambda job: executor.jobs.update(  # type: ignore[method-assign]
        {job.key: deque([Message("failed", {"reason": "diverged", "text": "nan"})])}
    )
    return executor


def test_published_points_equal_those_of_the_paper() -> None:
    table = published_table2().set_index("name")
    assert table.loc["densenet_bc_190_40", "error"] == 0.0346
    assert table.loc["densenet_40_12", "params_millions"] == 1.0
    assert len(table) == 6
    for name, row in table.iterrows():
        assert round(cost(parse_name(str(name))).params / 1e6, 1) == row["params_millions"]
    assert published_imagenet()["params"].tolist() == [7978856, 14149480, 20013928, 33337704]
    assert published_imagenet()["error"].tolist() == [0.2502, 0.2380, 0.2258, 0.2215]


def test_holm_correction_by_hand() -> None:
    # The products are 0.01 · 3, 0.02 · 2 and 0.03 · 1. The last one is raised to the value before it.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, None, 0.8]) == [1.0, None, 1.0]


def test_paired_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, t(2) · 1/√3 = 2.484.
    found = paired(pd.DataFrame({"a": [2.0, 4.0, 6.0, None], "b": [1.0, 2.0, 3.0, 9.0]}), "a", "b")
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert (found.verdict_below(5.0), found.verdict_below(-1.0), found.verdict_below(2.0)) == (
        "holds",
        "does not hold",
        "cannot tell",
    )
    assert found.text(100, " points") == "+200.00 points (95% interval -48.41 to +448.41, 3 pairs)"
    level = paired(pd.DataFrame({"a": [0.2] * 3, "b": [0.1] * 3}), "a", "b", 0.01)
    assert level.interval is not None
    assert level.interval[1] - 0.1 == pytest.approx(4.302653 * 0.01 / math.sqrt(6) / math.sqrt(3), rel=1e-6)
    two = paired(pd.DataFrame({"a": [2.0, 3.0], "b": [1.0, 1.0]}), "a", "b")
    assert two.interval is None
    assert two.verdict_below(9.0) == "cannot tell"
    assert two.text(1, " nats") == "+1.50 nats, from 2 pairs of runs, too few for an interval"


# --- a real run ---------------------------------------------------------------------------------------------------

TINY_NETWORKS = {
    "DenseNet": ("densenet:L=7,k=1", "densenet:L=7,k=2"),
    "DenseNet-BC": ("densenet-bc:L=10,k=1", "densenet-bc:L=10,k=2"),
}
SCRIPT = """
import sys
from dnas.cli import main
from tests.reproduce.test_reproduce import make_tiny
if __name__ == "__main__":
    make_tiny()
    sys.exit(main(sys.argv[1:]))
"""


def make_tiny() -> None:
    """Add a budget that takes seconds."""
    BUDGETS["tiny"] = Budget("tiny", "digits", "fast", 2, 128, 1294, 2, "for tests")
    left = TARGETS["fig4-left"]
    TARGETS["fig4-left"] = Target(left.name, left.title, left.claim, {"tiny": TINY_NETWORKS})


def start(*words: str) -> Command:
    return Command("reproduce", "fig4-left", "--budget", "tiny", *words, code=SCRIPT)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one() -> None:
    process = start("--workers", "2")
    shown = process.communicate()[0]
    assert process.returncode == 0
    assert "at equal error DenseNet-BC needs fewer params than DenseNet" in shown
    assert "page      reports/reproduce/fig4-left-tiny/index.html" in shown
    assert len(re.findall(r"^trial  #\d+  complete", shown, re.MULTILINE)) == 8
    out = Path("reports/reproduce/fig4-left-tiny")
    before = {name: (out / name).read_text() for name in ("networks.csv", "readings.csv", "figure.svg")}
    Path("studies").rename("whole")
    Path("reports").rename("pages")
    process = start("--workers", "2")
    study = Path("studies/reproduce_fig4-left_tiny")
    wait_until(lambda: len(list(study.glob("trials/*/checkpoint.pt"))) >= 3, "the checkpoints of three networks")
    process.kill()
    process.wait()
    states = [record.state for record in StudyFolder(study).records()]
    assert "running" in states
    again = start("--workers", "2")
    again.communicate()
    assert again.returncode == 0
    assert {name: (out / name).read_text() for name in before} == before
    third = start()
    shown = third.communicate()[0]
    assert "8 are complete" in shown
    assert "trial  #" not in shown
    assert json.loads((study / "trials/7/record.json").read_text())["params"]["group"] == "DenseNet-BC"
