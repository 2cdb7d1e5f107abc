"""The report of a search: correct numbers, complete, self-contained, and available in any state of a study."""

import dataclasses
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dnas import formatting as words
from dnas.analysis import pareto_front, wilson_interval
from dnas.arch import DenseNetSpec
from dnas.cli import main
from dnas.errors import InputError
from dnas.report import PICTURES, inline_svg, watch_report, write_comparison, write_report
from dnas.study.folder import StudyFolder, read_study
from tests.support.pages import draw_only
from tests.support.patience import patience
from tests.support.studies import add_trial, make_study

pytestmark = pytest.mark.xdist_group("report")  # its pages are written once

STATES = ["complete", "complete", "stopped", "failed", "complete", "infeasible", "complete", "complete"]
NOT_THERE = {
    "timeline",
    "importance",
    "fanova",
    "interactions",
    "path",
    "gradients",
}  # missing for the study below, which has no log, too few trials and no gradients
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Parser of a page that also checks that every element is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def report(study: StudyFolder) -> Page:
    return Page(write_report(study.path, study.path.parent / f"report-{study.name}"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures in tests of the text."""
    draw_only(monkeypatch)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return make_study(tmp_path_factory.mktemp("studies") / "whole", STATES)


@pytest.fixture(scope="module")
def page(study: StudyFolder) -> Page:
    return report(study)


def test_the_best_network_is_reported_with_its_error_and_interval(study: StudyFolder, page: Page) -> None:
    best = study.best()[0]
    assert best.val_error is not None
    low, high = wilson_interval(best.val_error, 144)
    assert f"#{best.number} is best: {best.network}" in page.text
    assert f"a validation error of {100 * best.val_error:.2f}% on Digits" in page.text
    assert f"95% interval {100 * low:.2f} to {100 * high:.2f}%, from 144 images" in page.text
    assert "Small DenseNets for 8×8 digits: made up (500 points), limited to params ≤ 60,000" in page.text.replace(
        "\xa0", " "
    )
    assert "5 complete, 1 stopped, 1 infeasible and 1 failed" in page.text


def test_the_validity_of_the_numbers_is_reported(page: Page) -> None:
    assert "One seed per network; the best of 5 trials is optimistically biased" in page.text
    assert "(n = 1)" in page.text
    assert "optimistically biased" in page.text
    assert "The best network has the lowest validation error after its last epoch" in page.text
    assert "1,294 training / 144 validation / 359 test images" in page.text
    assert "The test images were not used" in page.text
    assert "Early stopping (ASHA): 1 trial stopped" in page.text
    assert "1 after 3 epochs" in page.text
    assert "2 trials of 8 failed: 1 × diverged and 1 × params 61,002 > 60,000" in page.text
    assert "diverged: the loss was not finite; the sampler received the worst possible error." in page.text


def test_figures_that_cannot_be_believed_are_folded(page: Page) -> None:
    assert "5 complete trials are too few to say what mattered." in page.text
    assert "More figures: slices, parallel coordinates, the distribution of errors" in page.text
    before, _, inside = page.source.partition('<details class="fold">')
    assert 'id="figure-best_so_far"' in before
    folded = inside.partition("</details>")[0]
    assert all(f'id="figure-{name}"' in folded for name in ("slices", "parallel", "distribution"))


@pytest.mark.usefixtures("undrawn")
def test_ties_and_an_unimproved_first_network_are_in_the_answer(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 6, norms=False)
    records = study.records()
    for record in records:
        record.val_error = 0.1
        record.objectives = {"val_error": 0.1}
        record.arm = "first" if record.number == 4 else "sampler"
        record.cost["params"] = 5_000 if record.number == 4 else 6_000
        study.write_record(record)
    text = report(study).text
    assert "#4 is best" in text
    assert "5 other trials have the same validation error. The search started from #4 and found no lower error." in text
    for record in records[:3]:
        record.val_error, record.objectives = 0.2, {"val_error": 0.2}
        study.write_record(record)
    assert "#3 and #5 have the same validation error." in report(study).text


def test_the_page_is_self_contained(study: StudyFolder, page: Page) -> None:
    beside = study.path.parent / f"report-{study.name}"
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            if value is None or re.match(r"#|data:(image/png|application/pdf|text/csv);base64,", value):
                continue
            assert tag == "a", (tag, value)
            assert (beside / value).is_file(), value
    assert not re.findall(r"https?://", page.source)
    assert not re.findall(r"url\((?!#)|@import", page.source)
    assert page.count("link") == page.count("img") == page.count("iframe") == 0


def test_ids_are_unique_and_links_resolve(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', page.source)
    targets += [str(a[k]) for _, a in page.tags for k in ("aria-labelledby", "for") if k in a]
    assert set(targets) <= set(ids)
    assert {"answer", "validity", "inside", "trials", "reproduce"} <= set(ids)
    drawings = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(drawings) == len(PICTURES) - len(NOT_THERE)
    assert all(len(a["aria-label"] or "") > 40 for a in drawings)
    assert all("scope" in a for tag, a in page.tags if tag == "th")


def test_the_table_lists_every_trial_and_marks_the_front(study: StudyFolder, page: Page) -> None:
    rows = [a for tag, a in page.tags if tag == "tr" and str(a.get("id", "")).startswith("trial-")]
    assert [a["id"] for a in rows] == [f"trial-{n}" for n in range(len(STATES))]
    assert [a["data-state"] for a in rows] == STATES
    fronted = [int(str(a["id"]).removeprefix("trial-")) for a in rows if "data-front" in a]
    assert fronted == sorted(pareto_front(read_study(study.path)).numbers)
    assert [a["id"] for a in rows if a.get("class") == "is-best"] == [f"trial-{study.best()[0].number}"]
    assert "diverged: the training loss is nan at step 3 of epoch 1." in page.text
    # Parts that all names share are stated once, not in each row.
    assert "All networks have channels=1, size=8." in page.text
    assert f"sampler {study.best()[0].network.removesuffix(',channels=1,size=8')} " in page.text


def test_the_page_states_how_to_reproduce_the_study(page: Page) -> None:
    command = "dnas search --space digits_bc.toml --study whole --trials 8"
    for fact in (command, "2.11.0", "f" * 40, "test-host", "0123456789abcdef" * 4):
        assert fact in page.text
    assert "growth_rate = { int = [4, 16], step = 4 }" in page.text
    assert "To verify the study from its own files" in page.text
    assert "dnas replay whole" in page.text


def test_the_files_beside_the_page_hold_the_same_numbers(study: StudyFolder, page: Page) -> None:
    beside, frame = study.path.parent / f"report-{study.name}", read_study(study.path)
    pd.testing.assert_frame_equal(
        pd.read_csv(beside / "trials.csv").astype(object).fillna(-1), frame.astype(object).fillna(-1), check_dtype=False
    )
    assert pd.read_csv(beside / "pareto.csv")["number"].tolist() == pareto_front(frame).numbers
    for name in ("error_against_params", *(name for name in PICTURES if name != "error")):
        if name in NOT_THERE:
            continue
        assert (beside / f"{name}.svg").stat().st_size > 5_000
        assert len(pd.read_csv(beside / f"{name}.csv"))


def test_png_and_pdf_files_are_made_if_asked_for_and_kept_up_to_date(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_only(monkeypatch, "best_so_far")
    command, files = ["report", str(study.path), "--out", str(tmp_path)], ("best_so_far.png", "best_so_far.pdf")
    assert main(command) == 0
    assert not any((tmp_path / name).exists() for name in files)
    saved = [a["download"] for _, a in Page(tmp_path / "index.html").tags if "download" in a]
    assert "best_so_far.svg" in saved  # the page makes the PNG, too
    assert "best_so_far.png" in saved
    assert "best_so_far.pdf" not in saved
    assert main([*command, "--formats", "pdf,png"]) == 0
    (tmp_path / files[0]).write_text("old")
    assert main(command) == 0
    assert (tmp_path / files[0]).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / files[1]).read_bytes().startswith(b"%PDF")
    assert "best_so_far.pdf" in [a.get("download") for _, a in Page(tmp_path / "index.html").tags]
    with pytest.raises(SystemExit):
        main([*command, "--formats", "svg,gif"])
    assert "'gif' is no format of figures; use svg, png or pdf" in capsys.readouterr().err


@pytest.fixture(scope="module")
def other_process(study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Write the report by the command. Its status is 1 if it imported more than it needs, or left a figure open."""
    out = tmp_path_factory.mktemp("other-process")
    code = (
        f"import sys; from dnas.cli import main; main(['report', {str(study.path)!r}, '--out', {str(out)!r}]);"
        "from matplotlib import pyplot;"  # seaborn imports it too, but no figure may be in its state
        "slow = {'optuna', 'torch', 'scipy.stats', 'sklearn'} & set(sys.modules);"
        "from scipy import stats;"  # can be imported later
        "sys.exit(bool(slow or pyplot.get_fignums()))"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode, out / "index.html"


@pytest.mark.slow
def test_equal_studies_have_identical_pages(page: Page, other_process: tuple[int, Path]) -> None:
    assert other_process[1].read_text(encoding="utf-8") == page.source


@pytest.mark.slow
def test_reports_of_plain_files_import_no_slow_package(other_process: tuple[int, Path]) -> None:
    assert other_process[0] == 0


@pytest.mark.usefixtures("undrawn")
def test_final_runs_are_shown_with_their_test_errors(tmp_path: Path) -> None:
    study = make_study(tmp_path / "final", ["complete"] * 3, norms=False)
    first, second = study.best(2)
    for winner, seeds in ((first, {1: 0.02, 2: 0.04}), (second, {1: 0.05, 2: None})):
        for seed, error in seeds.items():
            state = "complete" if error is not None else "running"
            record = dataclasses.replace(
                winner, seed=[seed, winner.number], test_error=error, val_error=None, state=state
            )
            study.write_record(record, study.path / "retrain" / f"{winner.number}-{seed}")
    text = report(study).text
    low, high = wilson_interval(0.03, 359)
    interval = f"95% interval {100 * low:.2f} to {100 * high:.2f}%"
    assert f"test error of #{first.number} 3.00% mean of 2 final runs, {interval}" in text
    assert "2.00% to 4.00%" in text  # the range of the seeds
    assert "(1 running)" in text
    assert f"The test images were used for 2 networks: #{min(first.number, second.number)}" in text
    assert "Weight norms were not recorded" in text


# --- several objectives -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, Page]:
    study = make_study(
        tmp_path_factory.mktemp("studies") / "front",
        ["complete"] * 10 + ["paused"] * 4,
        objective="val_error,macs,latency",
        norms=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch, "error")
        return study, report(study)


def test_the_first_of_several_objectives_selects_the_best_network(several: tuple[StudyFolder, Page]) -> None:
    study, page = several
    best, front = study.best()[0], pareto_front(read_study(study.path), ("macs", "val_error", "latency"))
    assert best.val_error == min(record.val_error for record in study.records() if record.state == "complete")  # type: ignore[type-var]
    assert f"Among 14 trials, #{best.number} is best by validation error: {best.network}" in page.text
    assert (
        f"The search minimised validation error, multiply-adds and latency together: {len(front.trials)} of 10 complete"
        " networks are on the front" in page.text
    )
    low, high = front.trials.iloc[0], front.trials.iloc[-1]
    assert (
        f"which ranges from {words.percent(low['val_error'])} at {words.count(low['macs'])} multiply-adds to"
        f" {words.percent(high['val_error'])} at {words.count(high['macs'])}." in page.text
    )
    assert "The best network has the lowest validation error after its last epoch" in page.text
    assert "Ties are broken by the lower multiply-adds" in page.text
    assert f"latency of the best {1000 * best.objectives['latency']:.2f} ms" in page.text


def test_the_front_of_several_objectives_is_a_table(several: tuple[StudyFolder, Page]) -> None:
    study, page = several
    front = pareto_front(read_study(study.path), ("macs", "val_error", "latency"))
    (table,) = re.findall(r'<table id="pareto">.*?</table>', page.source, flags=re.DOTALL)
    heads = re.findall(r"<th [^>]*>(.*?)</th>", table)
    assert heads == ["#", "validation error", "multiply-adds", "latency", "network"]
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", row)] for row in table.split("<tr")[2:]]
    assert [row[:4] for row in cells] == [
        [str(r["number"]), words.percent(r["val_error"]), words.count(r["macs"]), f"{1000 * r['latency']:.2f} ms"]
        for r in front.trials.head(12).to_dict("records")
    ]
    assert [row[0] for row in cells if "lowest validation error" in row[4]] == [str(study.best()[0].number)]
    fronted = [a["id"] for tag, a in page.tags if tag == "tr" and "data-front" in a]
    assert fronted == [f"trial-{number}" for number in sorted(front.numbers)]
    beside = study.path.parent / f"report-{study.name}"
    assert pd.read_csv(beside / "pareto.csv")["number"].tolist() == front.numbers
    assert (beside / "error_against_macs.svg").is_file()
    assert not (beside / "error_against_params.svg").exists()


def test_one_objective_has_no_front_table(page: Page) -> None:
    assert "The search minimised the validation error alone." in page.text
    assert "Pareto front: no other complete network" not in page.text


def test_a_search_by_loss_is_shown_by_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "error")
    study = make_study(tmp_path / "s", ["complete"] * 6, objective="val_loss,params", norms=False)
    page, best = report(study), study.best()[0]
    assert best.val_loss == min(record.val_loss for record in study.records())  # type: ignore[type-var]
    assert f"#{best.number} is best by validation loss" in page.text
    assert "The best network has the lowest validation loss after its last epoch" in page.text
    assert f"validation loss of the best {best.val_loss:.4f}" in page.text
    assert (tmp_path / "report-s" / "loss_against_params.svg").is_file()
    assert "lowest validation error" not in page.text


# --- the control arm ----------------------------------------------------------------------------------------------


def with_arms(path: Path, sampler: float, control: float, count: int = 40, **config: Any) -> StudyFolder:
    """Make a study with every fourth trial in the control arm, and with given errors of both arms after the rung."""
    study = make_study(path, [], epochs=8, **config)
    spec = DenseNetSpec((1, 1, 1), growth_rate=4, in_channels=1, image_size=8)
    for number in range(count):
        arm = "control" if number % 4 == 3 else "sampler"
        state = "complete" if number % 3 else "paused"
        record = add_trial(study, number, spec, state, 8, arm=arm)
        at_rung = {"sampler": sampler, "control": control}[arm] + 0.001 * (number // 4 % 8)
        curve = study.curve(study.trial_folder(number))
        # The final errors are reversed: they belong to trials that were selected by their early error.
        curve.loc[curve["epoch"] == 2, "val_error"] = at_rung
        curve.loc[curve["epoch"] > 2, "val_error"] = 0.9 - at_rung
        curve.to_csv(study.trial_folder(number) / "curve.csv", index=False)
        study.write_record(dataclasses.replace(record, val_error=float(curve["val_error"].iloc[-1])))
    return study


@pytest.mark.parametrize(
    ("sampler", "control", "line", "mark"),
    [
        (0.2, 0.4, "The sampler beats random search: it wins in 100% of pairs (p < 0.001;", "fine"),
        (0.4, 0.2, "The sampler did worse than random search: it wins in 0% of pairs (p < 0.001;", "mind"),
        (0.3, 0.3, "The sampler was not shown to beat random search: it wins in", "mind"),
    ],
)
def test_the_arms_are_compared_before_any_trial_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: float, control: float, line: str, mark: str
) -> None:
    draw_only(monkeypatch, "control_arm")
    page = report(with_arms(tmp_path / "s", sampler, control))
    text = page.text.replace("\xa0", " ")
    assert line in text
    assert "30 trials against 10)" in text
    label = {"fine": "✓ ok", "mind": "! caution"}[mark]
    assert f"{label}{line}" in text
    assert "compared by the validation error after epoch 2, the first at which trials were stopped or paused" in text
    assert (tmp_path / "report-s" / "control_arm.svg").is_file()


@pytest.mark.usefixtures("undrawn")
def test_the_numbers_of_both_arms_are_reported(tmp_path: Path) -> None:
    text = report(with_arms(tmp_path / "s", 0.2, 0.4)).text
    assert "The sampler's 30 trials have a mean of 20.29%, the 10 random trials 40.29%" in text
    assert "a difference of −20.00 points (Welch 95% interval −20.19 to −19.81)" in text
    assert "The best of 10 trials has 20.0" in text
    assert "on average with the sampler, and 40.00% at random." in text
    assert "1/2 + 2.80/√(12·30·10/(30 + 10)) = 80% or more is detected with 80% power (Noether 1987)." in text


@pytest.mark.usefixtures("undrawn")
def test_too_few_trials_are_reported_with_the_detectable_share(tmp_path: Path) -> None:
    text = report(with_arms(tmp_path / "s", 0.2, 0.4, count=8)).text.replace("\xa0", " ")
    assert "Too few trials to compare the sampler with random search: it wins in 100% of pairs" in text
    assert "(Noether 1987), which exceeds 100%: run more trials." in text


@pytest.mark.usefixtures("undrawn")
def test_arms_are_compared_in_all_objectives(tmp_path: Path) -> None:
    text = report(with_arms(tmp_path / "s", 0.2, 0.4, objective="val_error,params")).text
    # All networks are the same, so the arm with the lower error dominates in every pair.
    assert "(no worse in any objective and better in one) in 100% of the pairs, and is dominated in 0%" in text


@pytest.mark.usefixtures("undrawn")
def test_without_a_control_arm_the_option_is_named(tmp_path: Path) -> None:
    assert (
        "There is no control arm (--control 0.15), so it is unknown whether the sampler beats random search"
        in report(make_study(tmp_path / "s", ["complete"] * 3, norms=False)).text
    )
    random = report(make_study(tmp_path / "r", ["complete"] * 3, norms=False, sampler="random")).text
    assert "Every network was drawn at random" in random
    assert "no control arm" not in random
    early = make_study(tmp_path / "e", ["complete"] * 3 + ["running"] * 3 + ["failed"], epochs=12, norms=False)
    assert "Random control: 1 trial, not enough for a comparison yet" in report(early).text


# --- early stopping, failures -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_pauses_and_promotions_are_counted(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 3 + ["paused"] * 4, norms=False)
    study.append({"event": "pause", "number": 2})
    study.append({"event": "promote", "number": 2})
    page = report(study)
    assert "Early stopping (ASHA): 5 pauses and 1 promotion" in page.text
    assert "Paused now: 4 after 3 epochs, and may be promoted." in page.text
    assert "48 of 84 epochs were trained." in page.text
    assert "4 paused and 3 complete" in page.text
    rows = [a["id"] for tag, a in page.tags if tag == "tr" and a.get("data-state") == "paused"]
    assert rows == [f"trial-{number}" for number in (3, 4, 5, 6)]
    assert page.text.count("3/12") == 4
    (study.path / "events.jsonl").write_text("damaged\n")
    assert "Early stopping (ASHA): 4 pauses and 0 promotions" in report(study).text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("hyperband", "Early stopping (Hyperband): 1 pause and 0 promotions"),
        ("median", "Early stopping (median rule): 1 trial stopped"),
        ("asha", "Early stopping (ASHA): no trial was stopped"),
        ("none", "No early stopping"),
    ],
)
def test_the_stopping_rule_is_named(tmp_path: Path, rule: str, line: str) -> None:
    state = {"hyperband": "paused", "median": "stopped"}.get(rule, "complete")
    assert line in report(make_study(tmp_path / "s", ["complete", state], norms=False, stopping=rule)).text


@pytest.mark.usefixtures("undrawn")
def test_failures_are_counted_by_reason_and_recoveries_are_listed(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 3 + ["failed"] * 4 + ["infeasible"], norms=False)
    changes: dict[int, dict[str, Any]] = {
        0: {"recompute": True},
        1: {"losses": 2},
        4: {"reason": "timeout: 61 s of training, more than --timeout 60 allows"},
        5: {"reason": "lost worker: its process was ended by SIGKILL", "losses": 1},
        6: {"reason": "error: it broke"},
        7: {"reason": "out of memory: 9 GB were asked for", "recompute": True},
    }
    for record in study.records():
        study.write_record(dataclasses.replace(record, **changes.get(record.number, {})))
    text = report(study).text
    line = "5 trials of 8 failed: 1 × diverged, 1 × timeout, 1 × lost worker, 1 × error and 1 × out of memory"
    assert line in text
    assert "2 trials ran out of memory and continued with recomputed activations" in text
    assert "1 of these did not fail again (#0 and #7)" in text
    assert "3 workers were lost; the trials resumed from their checkpoints (#1 and #5)." in text
    assert "lost worker: its process died or froze several times without finishing an epoch." in text


@pytest.mark.usefixtures("undrawn")
def test_a_recovery_is_reported_where_no_trial_failed(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", ["complete"] * 2, norms=False)
    assert "None diverged, ran out of memory, took too long" in report(study).text
    study.write_record(dataclasses.replace(study.records()[1], recompute=True))
    text = report(study).text
    assert "No trial failed; some recovered from an error" in text
    assert "1 trial ran out of memory and continued with recomputed activations" in text


@pytest.mark.parametrize(
    ("states", "note"),
    [
        ([], "No trial has been started yet."),
        (["failed", "failed", "infeasible"], "Every trial failed, so there is no best network."),
        (["stopped", "failed"], "No trial is complete, so there is no best network."),
        (["running", "stopped"], "No trial is complete yet, so there is no best network. 1 trial is marked as running"),
        (["complete", "running", "running"], "2 trials are marked as running: the search is still running, or was"),
        (["complete"], "The only trial, #0:"),
    ],
)
def test_a_report_can_be_written_at_any_time(tmp_path: Path, states: list[str], note: str) -> None:
    study = make_study(tmp_path / "s", states, epochs=1 if len(states) == 1 else 4, trials=60)
    page = report(study)
    assert note in page.text
    assert ("Inside the best network" in page.text) == ("complete" in states)
    beside = tmp_path / "report-s"
    assert len(pd.read_csv(beside / "trials.csv")) == len(states)
    assert len(pd.read_csv(beside / "pareto.csv")) == states.count("complete")


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    bad = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x^{"
    study = make_study(tmp_path / "s", ["complete"] * 3, norms=False, name=bad, command=bad, host=bad, sampler=bad)
    config = study.config()
    config["space"] |= {"title": bad, "text": bad, "name": bad}
    config["data"] |= {"title": bad, "fingerprint": bad}
    study.write_config(config)
    for record in study.records():
        study.write_record(dataclasses.replace(record, network=bad, reason=bad, arm=bad, digest=bad, params={bad: bad}))
    page = report(study)
    assert page.count("script") == 3  # the page's, the table's, and the details as JSON
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") > 10


def test_missing_keys_are_left_out(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "bare")
    study.create({"name": "bare"})
    add_trial(study, 0, DenseNetSpec((1, 1), growth_rate=4), "complete", 2, objectives={}, data={"val_size": 10})
    page = report(study)
    assert "an unnamed space" in page.text
    assert "The commands cannot be derived from the files of this study: they have no 'recipe'." in page.text
    assert "95% interval" not in page.text


@pytest.mark.slow
def test_a_large_study_has_a_small_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures that grow with the number of trials."""
    draw_only(monkeypatch, "error", "best_so_far", "slices", "parallel", "distribution", "learning_curves")
    study = StudyFolder(tmp_path / "large")
    make_study(study.path, ["complete"] * 3, epochs=2, norms=False)
    spec, rng = DenseNetSpec((1, 1, 1), growth_rate=4, in_channels=1, image_size=8), np.random.default_rng(0)
    for number in range(3, 500):
        add_trial(study, number, spec, "complete" if number % 3 else "stopped", 4, rng=rng)
    page = report(study)
    assert sum(tag == "tr" and "data-state" in a for tag, a in page.tags) == 500
    assert len(page.source) < 2_000_000


@pytest.mark.usefixtures("undrawn")
def test_published_points_are_shown_only_for_the_same_task(tmp_path: Path) -> None:
    same = {"name": "cifar10", "title": "CIFAR-10", "image_size": 32, "augmentation": "crop+flip"}
    warning = "Published points are not directly comparable"
    for number, (change, shown) in enumerate([({}, True), ({"subset": 5000}, False)]):
        study = make_study(
            tmp_path / f"s{number}", ["complete"], data=same | change, image=(3, 32), sizes=(8, 14), norms=False
        )
        assert (warning in report(study).text) == shown


def test_an_unknown_study_is_refused_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_study(tmp_path / "studies" / "digits", [])
    with pytest.raises(InputError, match="no study 'digit'; there are digits"):
        write_report("digit")
    assert write_report("digits") == Path("reports/digits/index.html")


def test_marks_of_an_inlined_figure_share_their_style() -> None:
    marks = "".join(f'<use xlink:href="#m" x="{x}" style="fill: red"/>' for x in range(500))
    element = inline_svg(f'<svg viewBox="0 0 10 5">{marks}</svg>', "error", "a figure")
    assert (element.count("<use "), element.count("fill: red")) == (500, 1)


def test_an_inlined_figure_keeps_its_internal_references() -> None:
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg xmlns="x" width="1pt" viewBox="0 0 10 5">\n'
        "<metadata><a>m</a></metadata><style>*{x}</style>"
        '<defs><path id="a"/></defs><use xlink:href="#a" clip-path="url(#b)"/></svg>'
    )
    assert inline_svg(svg, "f", 'say "it"') == (
        '<svg viewBox="0 0 10 5" role="img" aria-label="say &#34;it&#34;">'
        '<defs><path id="f-a"/></defs><use href="#f-a" clip-path="url(#f-b)"/></svg>'
    )


def test_studies_of_different_data_cannot_be_compared(tmp_path: Path) -> None:
    first = make_study(tmp_path / "first", ["complete"] * 2)
    for number, (change, what) in enumerate(
        [
            ({"title": "Others"}, "their data set differ, Digits and Others"),
            ({"fingerprint": "f" * 64}, "their data files (fingerprint) differ"),
            ({"subset": 100}, "their part of the data differ, whole and 100"),
        ]
    ):
        other = make_study(tmp_path / f"other{number}", ["complete"] * 2)
        config = other.config()
        config["data"] |= change
        other.write_config(config)
        with pytest.raises(InputError, match=re.escape(what)):
            write_comparison([first.path, other.path], tmp_path / "out")
    with pytest.raises(InputError, match="with itself"):
        write_comparison([first.path, first.path], tmp_path / "out")
    by_loss = make_study(tmp_path / "loss", ["complete"] * 2, objective="val_loss")
    with pytest.raises(InputError, match="trained objective differ, val_error and val_loss"):
        write_comparison([first.path, by_loss.path], tmp_path / "out")


def test_repetitions_of_a_search_show_their_attainment(tmp_path: Path) -> None:
    studies = [
        make_study(tmp_path / name, ["complete"] * 4, seed=seed, norms=False)
        for seed, name in enumerate(("a", "b", "c"))
    ]
    out = tmp_path / "out"
    page = Page(write_comparison([study.path for study in studies], out))
    assert "These studies differ only in their seeds." in page.text
    table = pd.read_csv(out / "attainment.csv")
    assert table["best"].iloc[-1] == min(study.best()[0].val_error or 1 for study in studies)
    assert pd.read_csv(out / "fronts.csv")["study"].nunique() == 3
    config = studies[1].config()
    config["recipe"] |= {"epochs": 99}
    studies[1].write_config(config)
    page = Page(write_comparison([study.path for study in studies], tmp_path / "again"))
    assert "a and b have different numbers of epochs." in page.text
    assert "These studies differ only in their seeds." not in page.text
    empty = make_study(tmp_path / "empty", [])
    assert "no complete trial" in Page(write_comparison([studies[0].path, empty.path], tmp_path / "third")).text


@pytest.mark.usefixtures("undrawn")
def test_a_watched_page_is_updated_until_the_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnas.report.write.WATCH_SECONDS", 0.05)
    study = make_study(tmp_path / "s", ["complete", "running"], trials=2, norms=False)
    messages: list[str] = []
    watcher = threading.Thread(target=watch_report, args=(study.path, tmp_path / "out", messages.append), daemon=True)
    watcher.start()
    wait_for(lambda: bool(messages))
    assert "updated while the study runs" in messages[0]
    page = tmp_path / "out" / "index.html"
    assert 'http-equiv="refresh"' in page.read_text()
    study.write_record(dataclasses.replace(study.records()[1], state="failed", reason="error: x"))
    (study.path / "events.jsonl").open("a").write('{"event": "tell", "number": 1}\n')
    watcher.join(patience(30))
    assert not watcher.is_alive()
    assert "1 trial of 2 failed" in Page(page).text
    assert 'http-equiv="refresh"' not in page.read_text()


def wait_for(met: Callable[[], bool]) -> None:
    until = time.monotonic() + patience(30)
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.usefixtures("undrawn")
def test_studies_with_other_settings_have_no_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of 8 epochs with early stopping, and one of 4 epochs without: only all trials at one epoch compare."""
    monkeypatch.setattr("dnas.report.compare.draw", lambda *_: {})
    states = ["complete"] * 4
    first = make_study(tmp_path / "first", states, norms=False)
    same = make_study(tmp_path / "same", states, norms=False, seed=1)
    assert "was not shown to be better than" in Page(write_comparison([first.path, same.path], tmp_path / "alike")).text
    for change, what in (
        ({"stopping": "hyperband"}, "stopping rules"),
        ({"objective": "val_error,params"}, "objectives"),
        ({"limits": {"params": 7}}, "limits"),
        ({"recipe": {**first.config()["recipe"], "epochs": 99}}, "numbers of epochs"),
        ({"recipe": {**first.config()["recipe"], "learning_rate": 9.0}}, "recipes"),
    ):
        same.write_config(first.config() | {"seed": 1} | change)
        text = Page(write_comparison([first.path, same.path], tmp_path / "other")).text
        assert f"first and same have different {what}, so their complete trials cannot tell" in text
        assert re.search(r"After epoch \d+, the last that all trials reached, the median validation error is", text)
        assert "of pairs" not in text
        assert "p <" not in text


@pytest.mark.usefixtures("undrawn")
def test_figures_keep_their_colours_in_dark_mode(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.source
    assert "invert(" not in page.source
