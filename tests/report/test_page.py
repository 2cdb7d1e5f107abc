"""The page in a browser: no requests, layout on a phone, sorting, filtering, hover texts and saved figures."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser

from dnas.arch import DenseNetSpec
from dnas.report import write_comparison, write_report
from dnas.study.folder import StudyFolder, read_study
from tests.support.browser import Opened, chromium
from tests.support.pages import draw_only
from tests.support.patience import patience
from tests.support.studies import add_trial, make_study

pytestmark = pytest.mark.xdist_group("page")  # one browser and one page for all tests

STATES = ["complete", "complete", "stopped", "failed", "complete", "paused", "complete", "complete"] * 3
MANY = 5_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    study = make_study(tmp_path_factory.mktemp("studies") / "whole", STATES)
    (study.trial_folder(1) / "checkpoint.pt").touch()
    return study


@pytest.fixture(scope="module")
def path(study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the page without its files, as if it was sent by mail."""
    page = write_report(study.path, study.path.parent / "whole-page")
    return Path(shutil.copy(page, tmp_path_factory.mktemp("mail")))


@pytest.fixture(scope="module")
def short(study: StudyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy a page with one figure, which opens faster, without its files."""
    with pytest.MonkeyPatch.context() as patch:
        draw_only(patch, "error")
        page = write_report(study.path, study.path.parent / "report", formats=("pdf",))
    return Path(shutil.copy(page, tmp_path_factory.mktemp("mail")))


@pytest.fixture(scope="module")
def tab(browser: Browser, short: Path) -> Opened:
    return Opened(browser, short)


@pytest.fixture
def opened(tab: Opened, short: Path) -> Opened:
    """The page with one figure, as it is after loading."""
    tab.open(short)
    return tab


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1440, True)])
def test_the_page_loads_nothing_and_fits_the_window(browser: Browser, path: Path, width: int, dark: bool) -> None:
    opened = Opened(browser, path, width, dark)
    assert opened.errors == []
    assert opened.requests == [path.absolute().as_uri()]
    assert opened.overflow() <= 0
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 22, 24)" if dark else "rgb(255, 255, 255)")


def numbers(opened: Opened) -> list[int]:
    rows = opened.page.locator("#table tbody tr[id]:visible")
    return [int(name.removeprefix("trial-")) for name in rows.evaluate_all("rows => rows.map(row => row.id)")]


def test_the_contents_stay_in_view(opened: Opened) -> None:
    opened.page.get_by_role("link", name="Reproduce", exact=True).click()
    opened.page.wait_for_function("scrollY > 500")
    opened.page.wait_for_function("document.querySelector('nav').getBoundingClientRect().top === 0")
    opened.page.get_by_role("link", name="Top", exact=True).click()
    opened.page.wait_for_function("scrollY === 0")


def test_a_narrow_page_shows_figures_whole_and_a_tap_enlarges_them(browser: Browser, short: Path) -> None:
    opened = Opened(browser, short, width=390)
    canvas = opened.page.locator(".canvas").first
    sizes = "canvas => [canvas.scrollWidth, canvas.clientWidth]"
    content, shown = canvas.evaluate(sizes)
    assert content <= shown
    canvas.locator("svg").click(position={"x": 2, "y": 2})
    content, shown = canvas.evaluate(sizes)
    assert content > 1.5 * shown
    canvas.locator("svg").click(position={"x": 2, "y": 2})
    content, shown = canvas.evaluate(sizes)
    assert content <= shown


def test_the_table_sorts_both_ways_with_missing_values_last(opened: Opened, study: StudyFolder) -> None:
    errors = read_study(study.path).set_index("number")["val_error"].astype(float)
    for ascending in (True, False):
        opened.page.get_by_role("button", name="val error").click()
        shown = errors[numbers(opened)]
        known = shown.dropna()
        assert known.tolist() == sorted(known, reverse=not ascending)
        assert shown.isna().sum() > 0
        assert shown.tail(shown.isna().sum()).isna().all()


def test_the_table_filters_by_text_state_and_front(opened: Opened, study: StudyFolder) -> None:
    frame = read_study(study.path)
    opened.page.select_option("#state", "complete")
    assert numbers(opened) == frame[frame["state"] == "complete"]["number"].tolist()
    assert opened.page.locator("#shown").inner_text() == f"{STATES.count('complete')} shown"
    opened.page.check("#front")
    fronted = pd.read_csv(study.path.parent / "report" / "pareto.csv")["number"]
    assert sorted(numbers(opened)) == sorted(fronted)
    opened.page.uncheck("#front")
    opened.page.select_option("#state", "")
    opened.page.fill("#find", "diverged")
    assert numbers(opened) == frame[frame["state"] == "failed"]["number"].tolist()


def test_a_click_opens_a_trial_and_its_curve(opened: Opened, study: StudyFolder) -> None:
    button = opened.page.locator("#trial-1 .open")
    button.click()
    detail = opened.page.locator("#trial-1 + tr.detail")
    record = study.records()[1]
    assert record.network in detail.inner_text()
    assert str(record.params["growth_rate"]) in detail.inner_text()
    assert {str(record.epochs), "epoch", "validation error"} <= {*detail.locator("svg text").all_text_contents()}
    assert any(text.endswith("%") for text in detail.locator("svg text").all_text_contents())
    assert "dnas export whole --trial 1 -o 1.onnx" in detail.inner_text()
    name, value = (detail.locator(f"dl div:first-child {part}").bounding_box() for part in ("dt", "dd"))
    assert name is not None
    assert value is not None
    assert value["x"] + value["width"] - name["x"] < 500
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    assert detail.count() == 0


def test_a_failed_trial_shows_its_log_as_text(tab: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch)
    study = make_study(tmp_path / "s", ["complete", "failed"])
    (study.trial_folder(1) / "traceback.txt").write_text("RuntimeError: </script><b>broken</b>")
    tab.open(write_report(study.path, tmp_path / "out"))
    tab.page.locator("#trial-1 .open").click()
    assert tab.page.locator("tr.detail pre").inner_text() == "RuntimeError: </script><b>broken</b>"
    assert tab.errors == []


def test_hovering_over_a_mark_shows_its_trial(opened: Opened, study: StudyFolder) -> None:
    marks = opened.page.locator("#figure-error_against_params use[data-t]")
    shown = [record for record in study.records() if record.state in ("complete", "stopped", "paused")]
    assert marks.count() == len(shown)
    best = study.best()[0]
    texts = marks.evaluate_all("marks => marks.map(mark => mark.dataset.t)")
    (index,) = [i for i, text in enumerate(texts) if text.startswith(f"#{best.number} ")]
    assert best.network in texts[index]
    # Each text belongs to its mark: larger networks are further right.
    sizes = {f"#{record.number}": record.cost["params"] for record in shown}
    places = marks.evaluate_all("marks => marks.map(mark => Number(mark.getAttribute('x')))")
    by_place = [sizes[text.split()[0]] for _, text in sorted(zip(places, texts, strict=True))]
    assert by_place == sorted(by_place)
    marks.nth(index).scroll_into_view_if_needed()
    box = marks.nth(index).bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert opened.page.locator("#tip").inner_text().startswith("#")


def test_figures_can_be_saved_without_their_files(opened: Opened, study: StudyFolder) -> None:
    links = opened.page.locator("#figure-error_against_params .save a")
    saved = {}
    for index in range(4):
        with opened.page.expect_download() as download:
            links.nth(index).click()
        saved[download.value.suggested_filename.rpartition(".")[2]] = Path(download.value.path()).read_bytes()
    assert saved["pdf"].startswith(b"%PDF")
    assert b"<svg" in saved["svg"][:200]
    assert b"data-t" not in saved["svg"]
    picture = np.asarray(Image.open(io.BytesIO(saved["png"])).convert("L"))
    assert picture.std() > 5  # the picture is not blank
    table = pd.read_csv(io.BytesIO(saved["csv"]))
    known = read_study(study.path).set_index("number")["params"]
    assert (table.set_index("number")["params"] == known[table["number"]]).all()


def test_a_comparison_opens(
    browser: Browser, study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_study(tmp_path / "other", STATES[:9], seed=1)
    opened = Opened(browser, write_comparison([study.path, other.path], tmp_path / "out"), 390)
    assert opened.errors == []
    assert opened.overflow() <= 0
    assert "whole was not shown to be better than other" in opened.page.inner_text("main")


@pytest.mark.slow
def test_five_thousand_trials_open_within_three_seconds(browser: Browser, tmp_path: Path) -> None:
    study = make_study(tmp_path / "large", ["complete"] * 3, epochs=2)
    spec, rng = DenseNetSpec((1, 1, 1), growth_rate=4, in_channels=1, image_size=8), np.random.default_rng(0)
    for number in range(3, MANY):
        add_trial(study, number, spec, "complete" if number % 3 else "stopped", 4, rng=rng)
    page = write_report(study.path, tmp_path / "out")
    assert page.stat().st_size < 10_000_000
    opened = Opened(browser, page)
    assert opened.seconds() < patience(3)
    shown = opened.page.locator("#shown")
    assert shown.inner_text() == f"200 of {MANY} shown"
    assert numbers(opened) == list(range(200))
    opened.page.locator("#table thead button").first.click()
    assert numbers(opened) == list(range(MANY - 1, MANY - 201, -1)), (
        "all rows must be sorted, not only the visible ones"
    )
    opened.page.select_option("#state", "stopped")
    stopped = [number for number in range(3, MANY) if number % 3 == 0]
    assert shown.inner_text() == f"200 of {len(stopped)} shown"
    opened.page.evaluate("location.hash = 'trial-3'")
    assert opened.page.locator("#trial-3").is_visible()
    opened.page.locator("#all").click()
    assert numbers(opened) == stopped[::-1]
    assert shown.inner_text() == f"{len(stopped)} shown"
    assert not opened.page.locator("#all").is_visible()


def test_a_curve_without_numbers_is_not_drawn(tab: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_only(monkeypatch, "learning_curves")
    study = make_study(tmp_path / "s", ["complete"] * 3 + ["failed"])
    rows = study.curve(study.trial_folder(0)).head(4)
    for number, lost in ((3, range(4)), (1, range(2, 4))):
        curve = rows.copy()
        curve.loc[list(lost), ["train_loss", "val_loss", "val_error", "train_error"]] = np.nan
        curve.to_csv(study.trial_folder(number) / "curve.csv", index=False)
    tab.open(write_report(study.path, tmp_path / "out"))
    assert tab.errors == []
    tab.page.locator("#trial-3 .open").click()
    assert tab.page.locator("tr.detail svg").count() == 0
    tab.page.locator("#trial-1 .open").click()
    assert "2" in tab.page.locator("tr.detail svg text").all_text_contents()  # two epochs
