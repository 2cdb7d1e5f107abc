"""The page of an ablation: sentences that match the numbers, complete tables, and layout in a browser."""

import csv
import io
import math
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser

from dnas.ablation.results import read_ablation
from dnas.analysis import verdicts
from dnas.analysis.efficiency import published_for
from dnas.analysis.metrics import METRICS
from dnas.analysis.paired import Comparison, Effects
from dnas.analysis.variants import cell_means, curve_bands, over_seeds
from dnas.arch import parse_name
from dnas.cli import main
from dnas.errors import InputError
from dnas.report import watch_report, write_comparison, write_report
from dnas.report.ablation import PICTURES
from dnas.report.ablation_validity import checks
from dnas.report.nas_checklist import checklist
from dnas.report.tables import caption, latex, table_rows, to_csv, to_latex, to_markdown
from dnas.study.folder import StudyFolder
from tests.report.test_report import Page
from tests.support.ablations import TEXT, VARIANTS, make_ablation
from tests.support.browser import Opened, chromium
from tests.support.patience import patience
from tests.support.studies import make_study

pytestmark = pytest.mark.xdist_group("ablation report")  # its page is written once

NAN = float("nan")
IMAGES = 144


def errors(shifts: dict[str, list[int]], base: list[int]) -> dict[str, dict[int, float | str]]:
    """Return errors among 144 images: `base` for each seed of plain, and the base plus a shift for the others."""
    found: dict[str, dict[int, float | str]] = {"plain": {seed: n / IMAGES for seed, n in enumerate(base)}}
    for name, more in shifts.items():
        found[name] = {seed: (n + m) / IMAGES for seed, (n, m) in enumerate(zip(base, more, strict=True))}
    return found


# B is 3 to 5 images lower from every seed, C varies around the base, BC is 6 to 8 images lower.
BASE = [14, 15, 13, 16, 14, 15, 12]
SHIFTS = {"B": [-4, -3, -5, -4, -3, -4, -5], "C": [1, -1, 0, 2, -2, 1, -1], "BC": [-7, -8, -6, -7, -6, -8, -7]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return make_ablation(tmp_path_factory.mktemp("studies") / "whole", errors(SHIFTS, BASE))


@pytest.fixture(scope="module")
def page(study: StudyFolder) -> Page:
    return Page(write_report(study.path, study.path.parent / "report"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures in tests of text."""
    monkeypatch.setattr("dnas.report.ablation._draw_all", lambda *_: None)


# --- sentences ----------------------------------------------------------------------------------------------------


def comparison(verdict: str, mean: float, interval: tuple[float, float], p: float, **changes: object) -> Comparison:
    values: dict[str, object] = {
        "name": "BC",
        "kind": "variant",
        "seeds": tuple(range(7)),
        "differences": (mean,) * 7,
        "mean": mean,
        "t_interval": interval,
        "bootstrap_interval": interval,
        "p": p / 3,
        "p_holm": p,
        "effect_size": -1.0,
        "detectable": 0.009,
        "verdict": verdict,
    }
    return Comparison(**(values | changes))  # type: ignore[arg-type]


def effects(*comparisons: Comparison, pairs: int = 7, of: int = 3) -> Effects:
    filler = comparison("cannot tell", 0.0, (-0.01, 0.01), 1.0, name="other")
    found = (*comparisons, *[filler] * (of - len(comparisons)))
    return Effects("plain", METRICS["val_error"], 0.05, found, pairs, 7, pairs >= 7, 0.01, {})


def sentence_of(found: Comparison, **options: int) -> str:
    return verdicts.sentence(found, effects(found, **options)).replace("\u00a0", " ")


def test_finding_states_direction_size_interval_p_and_pairs() -> None:
    assert sentence_of(comparison("fewer errors", -0.0123, (-0.018, -0.0066), 0.046875)) == (
        "BC makes fewer errors than plain: −1.23 percentage points of validation error, the mean of 7 pairs (95%"
        " interval −1.80 to −0.66; p = 0.047 after Holm's correction for 3 comparisons)."
    )
    assert sentence_of(comparison("more errors", 0.02, (0.011, 0.029), 0.0004)) == (
        "BC makes more errors than plain: +2.00 percentage points of validation error, the mean of 7 pairs (95%"
        " interval +1.10 to +2.90; p < 0.001 after Holm's correction for 3 comparisons)."
    )


def test_inconclusive_verdict_states_the_effect_that_would_be_missed() -> None:
    text = sentence_of(comparison("cannot tell", -0.003, (-0.01, 0.004), 0.328))
    assert text == (
        "BC cannot be distinguished from plain: −0.30 percentage points of validation error, the mean of 7 pairs (95%"
        " interval −1.00 to +0.40; p = 0.33 after Holm's correction for 3 comparisons). This does not rule out an"
        " effect: one smaller than 0.90 points would be missed more often than one time in five."
    )
    beyond = sentence_of(comparison("cannot tell", -0.006, (-0.01, -0.002), 0.09))
    assert "The interval is for this comparison alone. Corrected for all comparisons, it is not evidence." in beyond
    same = sentence_of(comparison("cannot tell", 0.0, (0.0, 0.0), 1.0, differences=(0.0,) * 7, detectable=0.0))
    assert same.endswith("No pair differed.")


def test_finding_from_too_few_seeds_states_the_number_that_is_needed() -> None:
    few = comparison("too few seeds", -0.02, (-0.04, 0.0), 0.75, seeds=(0, 1, 2), differences=(-0.02,) * 3)
    assert sentence_of(few, pairs=3) == (
        "BC against plain: −2.00 percentage points of validation error, the mean of 3 pairs (95% interval −4.00 to"
        " 0.00). Too few seeds to conclude: 3 comparisons need 7 pairs at 5%, and it has 3."
    )
    one = comparison("too few seeds", -0.02, (-math.inf, math.inf), 1.0, seeds=(4,), differences=(-0.02,))
    assert sentence_of(one, pairs=1, of=1) == (
        "BC against plain: −2.00 percentage points of validation error, of one pair, which has no interval. Too few"
        " seeds to conclude: 1 comparison needs 7 pairs at 5%, and it has 1."
    )
    none = comparison("too few seeds", NAN, (-math.inf, math.inf), 1.0, seeds=(), differences=())
    assert sentence_of(none, pairs=0) == "BC cannot be compared: no seed has all the runs that the comparison needs."


def test_terms_of_a_design_are_described_by_their_kind() -> None:
    main_effect = {"kind": "main effect", "name": "bottleneck: 4 against 0"}
    text = sentence_of(comparison("fewer errors", -0.01, (-0.02, -0.005), 0.02, **main_effect))
    assert text.startswith("bottleneck: 4 against 0 makes fewer errors, averaged over the other factors: −1.00 perc")
    both = {"kind": "interaction", "name": "bottleneck × compression"}
    text = sentence_of(comparison("more errors", 0.01, (0.005, 0.02), 0.02, **both))
    assert text.startswith(
        "bottleneck × compression: together they make more errors than their effects alone add up to"
    )
    text = sentence_of(comparison("cannot tell", 0.01, (-0.005, 0.02), 0.2, **both))
    assert text.startswith("bottleneck × compression: it cannot be decided whether their effects add up: +1")


def test_race_states_its_interval_and_correction() -> None:
    race = comparison("fewer errors", -0.012, (-0.02, -0.004), 0.03, race_interval=(-0.025, -0.001))
    assert sentence_of(race) == (
        "BC makes fewer errors than plain: −1.20 percentage points of validation error, the mean of 7 pairs (95%"
        " interval of the race −2.50 to −0.10; p = 0.030 in the race, corrected for 3 comparisons)."
    )
    few = comparison("too few seeds", -0.012, (-0.02, -0.004), 1.0, race_interval=(-math.inf, math.inf))
    assert sentence_of(few).endswith(
        "Too few seeds to conclude: the race of 3 comparisons decides none before 7 pairs at 5%, and it has 7."
    )
    assert "interval of the race −∞ to +∞" in sentence_of(few)


def test_the_answer_is_one_sentence() -> None:
    fewer = comparison("fewer errors", -0.0123, (-0.018, -0.0066), 0.02)
    more = comparison("more errors", 0.02, (0.01, 0.03), 0.02, name="C")
    inconclusive = comparison("cannot tell", 0.001, (-0.01, 0.01), 1.0, name="B")
    few = comparison("too few seeds", 0.001, (-0.01, 0.01), 1.0, name="B", seeds=(1, 2), differences=(0.001,) * 2)
    assert verdicts.answer(effects(fewer, more, inconclusive)) == (
        "BC (−1.23 points) makes fewer errors and C (+2.00 points) makes more errors than plain; B is inconclusive"
    )
    assert verdicts.answer(effects(inconclusive, of=1)) == "B cannot be distinguished from plain"
    assert verdicts.answer(effects(few, pairs=2, of=1)) == (
        "Too few seeds to conclude: 1 comparison needs 7 pairs at 5%, and there are 2"
    )
    assert verdicts.answer(effects(of=0)) == "Nothing can be compared yet"
    many = [comparison("fewer errors", -0.01, (-0.02, -0.005), 0.01, name=f"a long name {i}") for i in range(9)]
    assert verdicts.short(effects(*many, of=9)) == "Of 9 comparisons: 9 with fewer errors, 0 with more, 0 inconclusive"
    assert len(verdicts.short(effects(fewer, more, inconclusive))) <= 88


# --- numbers of the variants --------------------------------------------------------------------------------------


def test_variants_over_seeds_and_cells() -> None:
    values = pd.DataFrame({"a": [0.1, 0.3], "b": [0.2, NAN], "none": [NAN, NAN]}, index=[0, 1])
    rows = over_seeds(values).set_index("variant")
    assert rows.loc["a", ["n", "mean", "least", "most"]].tolist() == pytest.approx([2, 0.2, 0.1, 0.3])
    assert rows.loc["a", "sd"] == pytest.approx(0.1414214, abs=1e-6)
    assert rows.loc["a", "high"] == pytest.approx(0.2 + 12.7062 * 0.1, abs=1e-4)  # t of one degree of freedom
    assert rows.loc["b", "n"] == 1
    assert np.isnan(rows.loc["b", "low"])
    assert rows.loc["none", "n"] == 0
    levels = {"p": {"x": 0, "y": 1}, "q": {"x": 4, "y": 1}, "r": {"x": 0, "y": 2}, "s": {"x": 4, "y": 2}}
    cells = cell_means(pd.DataFrame({"p": [0.1, 0.2], "q": [0.3, NAN], "r": [0.5, 0.7], "s": [0.8, 0.8]}), levels)
    assert cells["x_level"].tolist() == [0, 0, 4, 4]
    assert cells["line_level"].tolist() == [1, 2, 1, 2]
    assert cells["mean"].tolist() == pytest.approx([0.15, 0.6, 0.3, 0.8])
    assert cells["n"].tolist() == [2, 2, 1, 2]
    # A cell of two variants uses a seed only if both have it; otherwise levels of a third factor would be compared.
    both = {"p": {"x": 0, "y": 1, "z": 0}, "q": {"x": 0, "y": 1, "z": 1}}
    cells = cell_means(pd.DataFrame({"p": [0.1, 0.2], "q": [0.3, NAN]}), both)
    (cell,) = cells[cells["line_factor"] == "y"].to_dict("records")
    assert (cell["n"], cell["mean"]) == (1, pytest.approx(0.2))


def test_curves_of_a_variant_are_mean_and_range_over_its_runs() -> None:
    curves = pd.DataFrame({"number": [0, 0, 1, 1, 2], "epoch": [1, 2, 1, 2, 1], "val_error": [0.4, 0.2, 0.6, 0.3, 0.9]})
    bands = curve_bands(curves, {0: "a", 1: "a"})
    assert bands["variant"].tolist() == ["a", "a"]
    assert bands["mean"].tolist() == pytest.approx([0.5, 0.25])
    assert bands["low"].tolist() == [0.4, 0.2]
    assert bands["high"].tolist() == [0.6, 0.3]
    assert bands["n"].tolist() == [2, 2]


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_sentences_match_the_numbers(page: Page, study: StudyFolder) -> None:
    a = read_ablation(study.path)
    found = {c.name: c for c in a.effects.comparisons}
    assert {name: c.verdict for name, c in found.items()} == {
        "B": "fewer errors",
        "C": "cannot tell",
        "BC": "fewer errors",
    }
    mean = sum(SHIFTS["BC"]) / 7 / IMAGES  # computed here, independently of the page
    assert (
        f"BC makes fewer errors than plain: −{abs(100 * mean):.2f} percentage points of validation error" in page.text
    )
    assert "C cannot be distinguished from plain: 0.00 percentage points" in page.text
    assert "Do bottlenecks and compression help?" in page.text
    spread = 100 * np.std(BASE, ddof=1) / IMAGES
    assert f"The error of plain varies by {spread:.2f} points between seeds" in page.text
    assert "One image of 144 is 0.69 points" in page.text
    assert "1 of 32 have" not in page.text


def test_every_figure_is_drawn_saved_and_has_its_numbers(page: Page, study: StudyFolder) -> None:
    out = study.path.parent / "report"
    assert {tag[1]["id"] for tag in page.tags if tag[0] == "figure"} == {f"figure-{name}" for name in PICTURES}
    for name in PICTURES:
        assert all((out / f"{name}.{kind}").stat().st_size for kind in ("svg", "csv"))
    numbers = pd.read_csv(out / "forest.csv").set_index("name")
    assert numbers.loc["B", "mean"] == pytest.approx(sum(SHIFTS["B"]) / 7 / IMAGES)
    assert numbers.loc["B", [f"seed_{seed}" for seed in range(7)]].tolist() == pytest.approx(
        [n / IMAGES for n in SHIFTS["B"]]
    )


def test_the_page_loads_nothing_from_the_network(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action"):
            value = attributes.get(name) or ""
            if value.startswith("http"):  # a link that a reader may follow; nothing is loaded by it
                assert (tag, name) == ("a", "href")
    assert "@import" not in page.source
    assert not re.search(r"url\((?!#)", page.source)


def test_all_runs_are_listed_with_commit_and_versions(page: Page, study: StudyFolder) -> None:
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "id" in attributes]
    assert len(rows) == 28
    # What all runs share is stated once, above the table.
    assert "All runs: dnas 0.1.0, torch 2.11.0, python 3.11.2, ffffffffffff." in page.text
    assert "commit" not in [attributes.get("class") for tag, attributes in page.tags if tag == "th"]
    for seed in range(7):
        assert page.text.count(f"BC/s{seed}") == 1
    runs = pd.read_csv(study.path.parent / "report" / "runs.csv")
    assert len(runs) == 28
    assert TEXT.splitlines()[0] in page.text
    assert "dnas ablate whole.toml" in page.text


def test_failed_runs_are_left_out_and_reported(tmp_path: Path, undrawn: None) -> None:
    some = errors(SHIFTS, BASE)
    some["BC"][3] = "failed"
    some["plain"][5] = "failed"
    study = make_ablation(tmp_path / "s", some)
    text = Page(write_report(study.path, tmp_path / "out")).text
    assert "2 runs of 28 have no error; their pairs are left out" in text
    assert "BC/s3: diverged: the training loss is nan" in text
    assert "The run of the base is missing, so seed 5 cannot be used in any comparison." in text
    assert "2 runs of 28 failed: 2 × diverged" in text
    assert "BC against plain" in text
    assert "the mean of 5 pairs" in text
    assert "3 comparisons need 7 pairs at 5%, and there are 5" in text


@pytest.mark.parametrize(
    ("state", "note"),
    [
        ("running", "1 run is marked as running"),
        ("failed", "Nothing can be compared yet"),
    ],
)
def test_a_study_with_a_single_run_has_a_page(tmp_path: Path, state: str, note: str) -> None:
    study = make_ablation(tmp_path / "s", {"plain": {0: state}})
    text = Page(write_report(study.path, tmp_path / "out")).text
    assert note in text
    assert "makes fewer errors" not in text


def test_a_study_without_a_run_has_a_page(tmp_path: Path) -> None:
    study = make_ablation(tmp_path / "s", {})
    assert "No run has been started yet." in Page(write_report(study.path, tmp_path / "out")).text


def test_no_star_and_no_finding_from_too_few_seeds(tmp_path: Path, undrawn: None) -> None:
    few = {name: {seed: row[seed] for seed in range(3)} for name, row in errors(SHIFTS, BASE).items()}
    study = make_ablation(tmp_path / "s", few)
    found = Page(write_report(study.path, tmp_path / "out"))
    assert "Too few seeds to conclude: 3 comparisons need 7 pairs at 5%, and there are 3." in found.text
    assert "makes fewer errors" not in found.text
    tables = "".join((tmp_path / "out" / name).read_text() for name in ("table.md", "table.tex"))
    assert "*" not in tables
    assert "too few seeds for any conclusion" in tables
    assert "0.750" not in tables  # p could not have been below it


def test_a_race_reports_its_own_interval_and_correction(tmp_path: Path, undrawn: None) -> None:
    found = make_ablation(tmp_path / "s", errors(SHIFTS, BASE), seeds="auto", most=20)
    text = Page(write_report(found.path, tmp_path / "out")).text
    assert "interval of the race" in text
    assert "seeds were added to a comparison only while it was undecided, up to 20" in text
    assert "after Holm" not in text
    assert "Effects of the factors" not in text  # their tests would be invalid
    assert "race's sign-flip test, after Bonferroni over 3 comparisons" in text


# --- validity -----------------------------------------------------------------------------------------------------


def lines(study: StudyFolder) -> dict[str, str]:
    """Return the mark of each line of the section "Validity"."""
    return {check.line: check.mark for check in checks(read_ablation(study.path), study.records())}


def test_equal_sizes_are_checked_against_the_tolerance(tmp_path: Path) -> None:
    small = {name: {0: 0.1} for name in VARIANTS}
    near = make_ablation(
        tmp_path / "a", small, equal="params", residuals={"B": 0.004, "C": -0.0062, "BC": 0.002, "plain": 0}
    )
    assert lines(near)["Equal params: the largest residual is −0.62% (C), within 1%"] == "fine"
    far = make_ablation(tmp_path / "b", small, equal="params", residuals={"B": 0.03, "C": 0.0, "BC": 0.0, "plain": 0})
    assert lines(far)["Equal params: the largest residual is +3.00% (B), above 1%"] == "mind"
    free = make_ablation(tmp_path / "c", small)
    assert any(line.startswith("Sizes were not held equal: the variants have from ") for line in lines(free))


def test_equal_seconds_of_an_older_version_are_marked(tmp_path: Path) -> None:
    small = {name: {0: 0.1} for name in VARIANTS}
    options = {"equal": "seconds", "residuals": {"B": 0.004, "C": 0.0, "BC": 0.0, "plain": 0}}
    older = make_ablation(tmp_path / "a", small, **options)
    assert lines(older)["Equal seconds were estimated from other steps than the study trained"] == "mind"
    newer = make_ablation(tmp_path / "b", small, **options)
    config = newer.config()
    newer.create(config | {"ablation": config["ablation"] | {"timed_kernels": "cpu"}})
    assert lines(newer)["Equal seconds: the largest residual is +0.40% (B), within 1%"] == "fine"


def test_seeds_added_after_results_are_reported(tmp_path: Path) -> None:
    study = make_ablation(tmp_path / "s", errors(SHIFTS, BASE), earlier=[3, 5])
    line = "Seeds were added after results with 3 and 5 seeds were available: p is too small"
    assert lines(study)[line] == "mind"


def test_pairs_with_different_data_are_reported(study: StudyFolder, tmp_path: Path) -> None:
    assert lines(study)["Both runs of each of 21 pairs have the same seed, split and data"] == "fine"
    copy = StudyFolder(Path(shutil.copytree(study.path, tmp_path / "s")))
    record = copy.records()[1]  # B/s0
    record.data["split_seed"] = 9
    copy.write_record(record)
    assert lines(copy)["1 pair of 21 differ in seed or data: B/s0"] == "mind"


def test_use_of_test_images_and_different_machines_are_reported(study: StudyFolder, tmp_path: Path) -> None:
    found = lines(study)
    assert found["Measured on validation images; the test images were not used"] == "fine"
    assert found["All runs used one host, device type, commit and version of each library"] == "fine"
    copy = StudyFolder(Path(shutil.copytree(study.path, tmp_path / "s")))
    record = copy.records()[2]
    record.host, record.test_error = "another", 0.1
    copy.write_record(record)
    found = lines(copy)
    assert found["The test images were used by 1 run"] == "mind"
    assert found["The runs used different hosts"] == "mind"


def answers(study: StudyFolder) -> dict[int, str]:
    return {row.number: row.answer for row in checklist(read_ablation(study.path), study.records())}


def test_the_checklist_answers_only_what_the_records_show(study: StudyFolder, tmp_path: Path) -> None:
    whole = answers(study)
    assert list(whole) == list(range(1, 15))
    assert {n for n, answer in whole.items() if answer == "not applicable"} == {2, 8, 10}
    assert {n for n, answer in whole.items() if answer == "not shown"} == {12}  # how the recipe was tuned
    assert {n for n, answer in whole.items() if answer == "no"} == set()
    copy = StudyFolder(Path(shutil.copytree(study.path, tmp_path / "s")))
    for record in copy.records():
        record.commit = None
        record.data["fingerprint"] = "f" * 64 if record.number == 3 else record.data["fingerprint"]
        record.host = "another" if record.number == 4 else record.host
        copy.write_record(record)
    changed = answers(copy)
    assert changed[3] == "not shown"  # no commit was recorded
    assert changed[4] == "no"  # one run has other files
    assert changed[11] == "no"  # one run used another host
    dirty = StudyFolder(Path(shutil.copytree(study.path, tmp_path / "dirty")))
    record = dirty.records()[0]
    record.commit = "f" * 40 + "+"
    dirty.write_record(record)
    assert answers(dirty)[3] == "no"
    one = make_ablation(tmp_path / "one", {name: {0: 0.1} for name in VARIANTS})
    assert answers(one)[9] == "no"
    two = make_ablation(tmp_path / "two", {name: {0: 0.1, 1: 0.1} for name in VARIANTS})
    assert answers(two)[9] == "no"  # several seeds, but too few to conclude
    assert answers(make_ablation(tmp_path / "none", {}))[4] == "not shown"


# --- tables -------------------------------------------------------------------------------------------------------


def test_the_markdown_table_has_one_row_per_variant(study: StudyFolder) -> None:
    a = read_ablation(study.path)
    text = to_markdown(table_rows(a), caption(a))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == ["plain", "B", "C", "BC"]
    mean = 100 * sum(SHIFTS["B"]) / 7 / IMAGES
    assert f"| −{abs(mean):.2f}\\* |" in table[3]
    assert "\\*" not in table[4]


def test_the_csv_table_has_unrounded_numbers(study: StudyFolder) -> None:
    rows = {row["variant"]: row for row in csv.DictReader(io.StringIO(to_csv(table_rows(read_ablation(study.path)))))}
    assert float(rows["plain"]["mean"]) == pytest.approx(np.mean(BASE) / IMAGES)
    assert float(rows["plain"]["sd"]) == pytest.approx(np.std(BASE, ddof=1) / IMAGES)
    assert rows["plain"]["difference"] == ""
    assert float(rows["BC"]["difference"]) == pytest.approx(sum(SHIFTS["BC"]) / 7 / IMAGES)
    assert float(rows["BC"]["p_holm"]) == pytest.approx(3 * 2**-6)  # all of one sign: 2 of 2^7 patterns, times 3
    assert rows["BC"]["pairs"] == "7"


def test_the_latex_table_is_complete_and_escaped(study: StudyFolder) -> None:
    a = read_ablation(study.path)
    text = to_latex(table_rows(a), caption(a), "ablation-a_b")
    assert text.index("\\toprule") < text.index("\\midrule") < text.index("\\bottomrule")
    assert text.count("\\begin{") == text.count("\\end{") == 2
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 4
    for line in rows:
        assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
        assert not re.search(r"(?<!\\)[%#]", line)
    assert "\\label{tab:ablation-a-b}" in text
    assert "$^{*}$" in rows[1]
    # Everything is ASCII, so that any LaTeX can read it.
    assert text.isascii()
    balance = 0
    for letter in re.sub(r"\\[{}]", "", text):
        balance += {"{": 1, "}": -1}.get(letter, 0)
        assert balance >= 0
    assert balance == 0
    assert text.count("$") % 2 == 0


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50% of a_b & c#1", "50\\% of a\\_b \\& c\\#1"),
        ("{x}^2~$y$", "\\{x\\}\\textasciicircum{}2\\textasciitilde{}\\$y\\$"),
        ("a\\b", "a\\textbackslash{}b"),
        ("−0.5 ± 0.1", "$-$0.5 $\\pm$ 0.1"),
        ("bottleneck × θ < 1", "bottleneck $\\times$ $\\theta$ $<$ 1"),
    ],
)
def test_text_is_escaped_for_latex(text: str, escaped: str) -> None:
    assert latex(text) == escaped


def test_the_page_contains_the_tables_of_the_files(page: Page, study: StudyFolder) -> None:
    out = study.path.parent / "report"
    for name in ("table.md", "table.tex", "table.csv"):
        first = (out / name).read_text().splitlines()[1]
        assert re.sub(r"\s+", " ", first).strip() in page.text
    links = {attributes.get("download") for tag, attributes in page.tags if tag == "a"}
    assert {"table.md", "table.tex", "table.csv"} <= links


# --- comparison with the paper ------------------------------------------------------------------------------------


def test_published_errors_belong_to_the_same_network() -> None:
    found = published_for(parse_name("densenet:L=40,k=12,dropout=0.2"), "cifar10")
    assert [(one.tag, one.error) for one in found] == [("C10", 0.07), ("C10+", 0.0524)]
    assert found[1].schedule == "300 epochs, no dropout"
    hundred = published_for(parse_name("densenet-bc:L=100,k=12,classes=100"), "cifar100")
    assert [(one.tag, one.error) for one in hundred] == [("C100", 0.2415), ("C100+", 0.2227)]
    # A folder of images may be any of the paper's sets.
    assert [one.tag for one in published_for(parse_name("densenet:L=40,k=12"), "a folder")] == ["C10", "C10+", "SVHN"]
    assert [one.error for one in published_for(parse_name("densenet121"), "imagenet")] == [0.2502]
    assert published_for(parse_name("densenet:L=40,k=13"), "cifar10") == ()
    assert published_for(parse_name("densenet:L=40,k=12,channels=1,size=8"), "digits") == ()
    assert published_for(parse_name("resnet:L=110,width=16"), "cifar10") == ()


def test_published_numbers_are_shown_separately(tmp_path: Path, undrawn: None, page: Page) -> None:
    variants = {
        "plain": ({"kind": "plain"}, parse_name("densenet:L=40,k=12")),
        "BC": ({"kind": "BC"}, parse_name("densenet-bc:L=100,k=12")),
    }
    facts = {"name": "cifar10", "title": "CIFAR-10", "image_size": 32, "channels": 3, "val_size": 5000}
    some: dict[str, dict[int, float | str]] = {"plain": {0: 0.08, 1: 0.09}, "BC": {0: 0.07, 1: 0.06}}
    study = make_ablation(tmp_path / "s", some, variants, design="one-at-a-time", data=facts)
    found = Page(write_report(study.path, tmp_path / "out"))
    assert "Comparison with the paper" in found.text
    assert "5.24% published" in found.text
    assert "Ours: 6 epochs on CIFAR-10, validation error." in found.text
    assert "300 epochs, no dropout" in found.text
    assert "7.00 (C10), 5.24 (C10+)" in (tmp_path / "out" / "table.md").read_text()
    row = next(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert float(row["mean"]) == pytest.approx(0.085)
    assert "Comparison with the paper" not in page.text  # the paper has no results on digits


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_draws_and_refuses(
    study: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: None
) -> None:
    assert main(["report", str(study.path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "index.html").is_file()
    search = make_study(tmp_path / "search", ["complete"] * 2)
    with pytest.raises(InputError, match="whole is an ablation, which compares its own variants; report it alone"):
        write_comparison([search.path, study.path], tmp_path / "both")
    assert main(["plot", "forest", str(study.path), "-o", str(tmp_path / "forest.svg")]) == 0
    assert "BC" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "forest.svg").read_text()
    assert main(["plot", "forest", str(search.path), "-o", str(tmp_path / "no.svg")]) == 2
    assert "is not an ablation" in capsys.readouterr().err


def test_a_watched_ablation_is_updated_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    monkeypatch.setattr("dnas.report.write.WATCH_SECONDS", 0.05)
    some: dict[str, dict[int, float | str]] = {"plain": {0: 0.1}, "B": {0: "running"}}
    study = make_ablation(tmp_path / "s", some)
    notes: list[str] = []
    watching = threading.Thread(target=watch_report, args=(study.path, tmp_path / "out", notes.append), daemon=True)
    watching.start()
    until = time.monotonic() + patience(20)
    while not notes and time.monotonic() < until:
        time.sleep(0.05)
    assert "marked as running" in (tmp_path / "out" / "index.html").read_text()
    record = study.records()[1]
    record.state, record.val_error, record.objectives = "complete", 0.05, {"val_error": 0.05}
    study.write_record(record)
    watching.join(patience(20))
    assert not watching.is_alive()
    text = (tmp_path / "out" / "index.html").read_text()
    assert "marked as running" not in text
    assert "http-equiv" not in text


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def alone(page: Page, study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the page without its files, as if it were sent by mail."""
    return Path(shutil.copy(study.path.parent / "report" / "index.html", tmp_path_factory.mktemp("mail")))


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1440, True)])
def test_the_page_loads_nothing_and_fits_the_window(browser: Browser, alone: Path, width: int, dark: bool) -> None:
    opened = Opened(browser, alone, width, dark)
    assert opened.errors == []
    assert opened.requests == [alone.absolute().as_uri()]
    assert opened.overflow() <= 0
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 22, 24)" if dark else "rgb(255, 255, 255)")


def keys(opened: Opened) -> list[str]:
    return list(opened.page.locator("#table tbody tr[id]:visible td:nth-child(2)").all_inner_texts())


def test_runs_sort_filter_and_open(browser: Browser, alone: Path, study: StudyFolder) -> None:
    opened = Opened(browser, alone)
    opened.page.get_by_role("button", name="val error").click()
    shown = keys(opened)
    known = read_ablation(study.path).frame.set_index("key")["val_error"]
    assert known[shown].tolist() == sorted(known)
    opened.page.fill("#find", "BC/")
    assert sorted(keys(opened)) == [f"BC/s{seed}" for seed in range(7)]
    opened.page.fill("#find", "BC/s3")
    opened.page.locator("#table .open:visible").click()
    detail = opened.page.locator("tr.detail")
    assert "split seed\n3" in detail.inner_text()
    assert "f" * 40 in detail.inner_text()
    assert detail.locator("svg").count() == 1
    assert opened.errors == []


def test_marks_show_their_pair_and_tables_can_be_saved(browser: Browser, alone: Path) -> None:
    opened = Opened(browser, alone)
    texts = opened.page.locator("#figure-forest use[data-t]").evaluate_all("marks => marks.map(m => m.dataset.t)")
    assert len(texts) == 21
    assert f"BC, seed 1: −{800 / IMAGES:.2f} points" in texts
    slopes = opened.page.locator("#figure-slopes use[data-t]")
    assert slopes.count() == 2 * 21
    assert opened.page.locator("#figure-factor_means use[data-t]").count() == 8
    opened.page.locator("details.texts summary", has_text="LaTeX").click()
    opened.page.locator("details.texts[open] .copy").click()
    opened.page.wait_for_function("document.querySelector('details.texts[open] [role=status]').textContent !== ''")
    with opened.page.expect_download() as download:
        opened.page.locator("a[download='table.tex']").click()
    assert "\\toprule" in Path(download.value.path()).read_text()
    assert opened.errors == []
