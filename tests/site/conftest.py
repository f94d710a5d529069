"""What the tests of the site start from: the built pages, a server of them, and a browser.

Imports pytest, tests.site.built, and Playwright once a browser is asked for.
Must not import gatelib.

The browser is CHROMIUM from the environment, a system one, or Playwright's own. Without one the
browser's tests are skipped, and pytest's summary says so.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.site.built import HTML, ROOT, build, is_stale

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "NO BROWSER: the site was not looked at; install Chromium or set CHROMIUM to its path"


@pytest.fixture(scope="session")
def html() -> Path:
    """The built site; built now where it is missing or older than its sources."""
    if is_stale():
        build(ROOT)
    return HTML


class Server(SimpleHTTPRequestHandler):
    """Serves the site as a static host does: an unknown address gets 404.html."""

    def send_error(self, code: int, *rest: Any) -> None:
        """Answer with the book's own page."""
        body = (HTML / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *rest: Any) -> None:
        """Stay silent."""


@pytest.fixture(scope="session")
def host(html: Path) -> Iterator[str]:
    """The address of a local server of the built site."""

    def handler(*args: Any) -> Server:
        return Server(*args, directory=str(html))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def executable(playwright: Any) -> str | None:
    """The browser to drive, or None."""
    named = os.environ.get("CHROMIUM")
    found = [named, *map(shutil.which, BROWSERS), playwright.chromium.executable_path]
    return next((path for path in found if path and Path(path).exists()), None)


def launch(playwright: Any) -> Any:
    """A headless Chromium; skip the test where there is none."""
    path = executable(playwright)
    if path is None:
        pytest.skip(NO_BROWSER)
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, host: str) -> Iterator[Any]:
    """A fresh page in light mode that may use the clipboard."""
    context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host)
    yield context.new_page()
    context.close()
