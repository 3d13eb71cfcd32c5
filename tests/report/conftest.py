"""One browser for the tests of a module, and tabs that fail a test by what they note."""

from __future__ import annotations

import pytest
from support.browsing import Tab, chromium


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def desktop(browser):
    return Tab(browser, viewport={"width": 1200, "height": 900})


@pytest.fixture
def opened(browser, desktop):
    """Open a file on a desktop, or in a window with other properties."""
    tabs = [desktop]
    desktop.trouble.clear()

    def open_page(path, **options):
        if options:
            tabs.append(Tab(browser, **options))
        return tabs[-1].open(path)

    yield open_page
    for tab in tabs[1:]:
        tab.page.context.close()
    assert [trouble for tab in tabs for trouble in tab.trouble] == []
