"""The report: true, whole, self-contained and readable, whatever state a study is in."""

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dnas.analysis import pareto_front, wilson_interval
from dnas.arch import DenseNetSpec
from dnas.errors import InputError
from dnas.report import inline_svg, write_report
from dnas.study import StudyFolder, read_study
from tests.studies import add_trial, make_study

STATES = ["complete", "complete", "stopped", "failed", "complete", "infeasible", "complete", "complete"]
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """What a page holds; on the way it checks that every element is closed in order."""

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


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return make_study(tmp_path_factory.mktemp("studies") / "whole", STATES)


@pytest.fixture(scope="module")
def page(study: StudyFolder) -> Page:
    return report(study)


def test_it_names_the_best_network_its_error_and_its_interval(study: StudyFolder, page: Page) -> None:
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


def test_it_says_what_limits_the_numbers(page: Page) -> None:
    assert "One seed a network" in page.text
    assert "(n = 1)" in page.text
    assert "optimistically biased" in page.text
    assert "The best network has the lowest validation error after its last epoch" in page.text
    assert "1,294 training / 144 validation / 359 test images" in page.text
    assert "The test images were not opened" in page.text
    assert "Early stopping (ASHA): 1 trial stopped" in page.text
    assert "1 after 3 epochs" in page.text
    assert "2 trials of 8 failed: 1 × diverged and 1 × params 61,002 > 60,000" in page.text


def test_it_needs_nothing_but_itself(study: StudyFolder, page: Page) -> None:
    beside = study.path.parent / f"report-{study.name}"
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            if value is None or value.startswith(("#", "data:image/png;base64,")):
                continue
            assert tag == "a", (tag, value)
            assert (beside / value).is_file(), value
    assert not re.findall(r"https?://", page.source)
    assert not re.findall(r"url\((?!#)|@import", page.source)
    assert page.count("link") == page.count("img") == page.count("iframe") == 0


def test_its_parts_are_named_once_and_found(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', page.source)
    targets += [str(a[k]) for _, a in page.tags for k in ("aria-labelledby", "for") if k in a]
    assert set(targets) <= set(ids)
    assert {"answer", "believe", "inside", "trials", "again"} <= set(ids)
    drawings = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(drawings) == 4
    assert all(len(a["aria-label"] or "") > 40 for a in drawings)
    assert all("scope" in a for tag, a in page.tags if tag == "th")


def test_its_table_has_every_trial_and_marks_the_front(study: StudyFolder, page: Page) -> None:
    rows = [a for tag, a in page.tags if tag == "tr" and str(a.get("id", "")).startswith("trial-")]
    assert [a["id"] for a in rows] == [f"trial-{n}" for n in range(len(STATES))]
    assert [a["data-state"] for a in rows] == STATES
    fronted = [int(str(a["id"]).removeprefix("trial-")) for a in rows if "data-front" in a]
    assert fronted == sorted(pareto_front(read_study(study.path)).numbers)
    assert [a["id"] for a in rows if a.get("class") == "is-best"] == [f"trial-{study.best()[0].number}"]
    assert "diverged: the training loss is nan at step 3 of epoch 1." in page.text
    # What all have in common is said once, not in each row.
    assert "Every network has channels=1, size=8." in page.text
    assert f"sampler {study.best()[0].network.removesuffix(',channels=1,size=8')} growth_rate" in page.text


def test_it_says_how_to_do_it_again(page: Page) -> None:
    for fact in ("dnas search --space digits_bc --trials 8", "2.11.0", "f" * 40, "test-host", "0123456789abcdef" * 4):
        assert fact in page.text
    assert "growth_rate = { int = [4, 16], step = 4 }" in page.text


def test_the_files_beside_it_hold_the_same(study: StudyFolder, page: Page) -> None:
    beside, frame = study.path.parent / f"report-{study.name}", read_study(study.path)
    pd.testing.assert_frame_equal(
        pd.read_csv(beside / "trials.csv").astype(object).fillna(-1), frame.astype(object).fillna(-1), check_dtype=False
    )
    assert pd.read_csv(beside / "pareto.csv")["number"].tolist() == pareto_front(frame).numbers
    for name in ("error_against_params", "learning_curves", "layer_costs", "weight_norms"):
        assert (beside / f"{name}.svg").stat().st_size > 5_000
        assert (beside / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_study_gives_the_same_page(study: StudyFolder, page: Page) -> None:
    assert report(study).source == page.source


def test_final_trainings_are_shown_with_their_test_errors(tmp_path: Path) -> None:
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
    assert f"test error of #{first.number} 3.00% mean of 2 final trainings, {interval}" in text
    assert "2.00% to 4.00%" in text  # the range of the seeds
    assert "(1 running)" in text
    assert f"The test images were opened for 2 networks: #{min(first.number, second.number)}" in text
    assert "Weight norms were not written down" in text


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([], "There is nothing yet: no trial has been started."),
        (["failed", "failed", "infeasible"], "Every trial failed, so there is no network to name."),
        (["stopped", "failed"], "No trial is complete, so there is no network to name."),
        (["running", "stopped"], "No trial is complete yet, so there is no network to name. 1 trial is marked running"),
        (["complete", "running", "running"], "2 trials are marked running: the search goes on, or was interrupted."),
        (["complete"], "The only trial, #0:"),
    ],
)
def test_it_works_at_any_moment(tmp_path: Path, states: list[str], says: str) -> None:
    study = make_study(tmp_path / "s", states, epochs=1 if len(states) == 1 else 4, trials=60)
    page = report(study)
    assert says in page.text
    assert ("Inside the best network" in page.text) == ("complete" in states)
    beside = tmp_path / "report-s"
    assert len(pd.read_csv(beside / "trials.csv")) == len(states)
    assert len(pd.read_csv(beside / "pareto.csv")) == states.count("complete")


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    bad = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x^{"
    study = make_study(tmp_path / "s", ["complete"] * 3, norms=False, name=bad, command=bad, host=bad, sampler=bad)
    config = study.config()
    config["space"] |= {"title": bad, "text": bad, "name": bad}
    config["data"] |= {"title": bad, "fingerprint": bad}
    study.write_config(config)
    for record in study.records():
        study.write_record(dataclasses.replace(record, network=bad, reason=bad, arm=bad, digest=bad, params={bad: bad}))
    page = report(study)
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") > 10


def test_missing_keys_are_only_missing(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "bare")
    study.create({"name": "bare"})
    add_trial(study, 0, DenseNetSpec((1, 1), growth_rate=4), "complete", 2, objectives={}, data={"val_size": 10})
    page = report(study)
    assert "an unnamed space" in page.text
    assert "The command was not written down." in page.text
    assert "95% interval" not in page.text


def test_a_large_study_is_no_burden(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "large")
    make_study(study.path, ["complete"] * 3, epochs=2)
    spec, rng = DenseNetSpec((1, 1, 1), growth_rate=4, in_channels=1, image_size=8), np.random.default_rng(0)
    for number in range(3, 500):
        add_trial(study, number, spec, "complete" if number % 3 else "stopped", 4, rng=rng)
    page = report(study)
    assert sum(tag == "tr" and "data-state" in a for tag, a in page.tags) == 500
    assert len(page.source) < 4_000_000


def test_published_points_are_shown_only_for_the_same_task(tmp_path: Path) -> None:
    same = {"name": "cifar10", "title": "CIFAR-10", "image_size": 32, "augmentation": "crop+flip"}
    warning = "Published points are no like-for-like comparison"
    for number, (change, shown) in enumerate([({}, True), ({"subset": 5000}, False)]):
        study = make_study(
            tmp_path / f"s{number}", ["complete"], data=same | change, image=(3, 32), sizes=(8, 14), norms=False
        )
        assert (warning in report(study).text) == shown


def test_no_study_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_study(tmp_path / "studies" / "digits", [])
    with pytest.raises(InputError, match="no study 'digit'; there are digits"):
        write_report("digit")
    assert write_report("digits") == Path("reports/digits/index.html")


def test_reports_of_plain_files_need_neither_optuna_nor_torch(study: StudyFolder, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dnas.report import write_report;"
        f"write_report({str(study.path)!r}, Path({str(tmp_path)!r}));"
        "sys.exit(bool({'optuna', 'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_inlined_drawing_keeps_its_references_to_itself() -> None:
    svg = (
        '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg xmlns="x" width="1pt" viewBox="0 0 10 5">\n'
        "<metadata><a>m</a></metadata><style>*{x}</style>"
        '<defs><path id="a"/></defs><use xlink:href="#a" clip-path="url(#b)"/></svg>'
    )
    assert inline_svg(svg, "f", 'say "it"') == (
        '<svg viewBox="0 0 10 5" role="img" aria-label="say &#34;it&#34;">'
        '<defs><path id="f-a"/></defs><use href="#f-a" clip-path="url(#f-b)"/></svg>'
    )
