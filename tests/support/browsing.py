"""A real browser for the pages: tabs that note what must not happen. Needs playwright and chromium, else it skips."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
BROWSER = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None, reason="there is no playwright or no chromium"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root, as in a container, has no sandbox to give
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A page that notes what must not happen.

    Attributes:
        page: Playwright's.
        folder: that the file lies in.
        trouble: errors, messages, dialogs, and requests that leave the folder.
    """

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page: Any = browser.new_context(**options).new_page()
        self.folder = ""
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"{message.text} {message.location['url']}"))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.trouble.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.allows(request.url) or self.trouble.append(request.url))

    def allows(self, url: str) -> bool:
        return url == "about:blank" or url.startswith("data:") or url.startswith(self.folder)

    def open(self, path: Path) -> Any:
        self.folder = path.parent.as_uri() + "/"
        self.page.goto("about:blank")  # from the page to itself would be no new page
        self.page.goto(path.as_uri())
        return self.page
