"""Access to a real browser, which is Debian's `chromium` or Google Chrome."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.patience import patience

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str:
    executable = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.fail("the tests of the page need a Chromium: apt-get install chromium")
    return executable


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page in a new tab. `errors` holds its error messages, `requests` the URLs that it requested."""

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
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.open(path)

    def open(self, path: Path) -> None:
        """Open a page in the same tab, which takes a fraction of the time of a new one."""
        self.errors.clear()
        self.requests.clear()
        self.page.goto(path.absolute().as_uri(), wait_until="load")

    def seconds(self) -> float:
        """Return the CPU seconds that the page has used so far, without other programs."""
        metrics = self.inner.send("Performance.getMetrics")["metrics"]
        return float({metric["name"]: metric["value"] for metric in metrics}["TaskDuration"])

    def overflow(self) -> int:
        """Return the number of pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))
