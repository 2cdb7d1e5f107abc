"""A real Chromium: Debian's `chromium`, or whichever is there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.patience import patience

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str:
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("the tests of the page need a Chromium: apt-get install chromium")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page as a browser shows it; what went wrong on the way is in `errors`, what it asked for in `requests`."""

    def __init__(self, browser: Browser, path: Path, width: int = 1440, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        self.context.set_default_timeout(1000 * patience(30))
        self.page: Page = self.context.new_page()
        self.inner = self.context.new_cdp_session(self.page)
        self.inner.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.page.goto(path.absolute().as_uri(), wait_until="load")

    def seconds(self) -> float:
        """Seconds of a core that the page has taken so far: those of other programs don't count."""
        measured = self.inner.send("Performance.getMetrics")["metrics"]
        return float({one["name"]: one["value"] for one in measured}["TaskDuration"])

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
