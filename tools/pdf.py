"""Print the whole book as one PDF, `_build/gates.pdf`, with Chromium, and let the site offer it.

Imports Playwright; runs Jupyter Book in processes of its own.
Must not import gatelib or Sphinx.

The browser is CHROMIUM from the environment, a system one, or Playwright's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_build" / "singlehtml"
# Sphinx writes the one page below `book` with addresses that are right one folder above.
BUILT, PAGE = FOLDER / "book" / "index.html", FOLDER / "gates.html"
TARGET = ROOT / "_build" / "gates.pdf"
SECONDS = 300  # the whole book is one page
OPENED = "!document.querySelector('details:not([open]), .toggle-hidden')"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def build(*options: str) -> None:
    """Build the book, with Jupyter Book's options."""
    command = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([str(command), "build", ".", *options], cwd=ROOT, check=True)


def print_page() -> None:
    """Print the page with its style; exit with a message where there is no browser."""
    shutil.copy(BUILT, PAGE)
    with sync_playwright() as playwright:
        named = [os.environ.get("CHROMIUM"), *map(shutil.which, BROWSERS)]
        named.append(playwright.chromium.executable_path)
        path = next((p for p in named if p and Path(p).exists()), None)
        if path is None:
            sys.exit("pdf: no Chromium found; install one or set CHROMIUM to its path")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(SECONDS * 1000)
        page.goto(PAGE.as_uri(), wait_until="load")
        page.emulate_media(media="print")
        page.wait_for_function(OPENED)  # book.js opens what is folded
        page.pdf(path=str(TARGET), prefer_css_page_size=True, outline=True, tagged=True)
        browser.close()


if __name__ == "__main__":
    build("--builder", "singlehtml")
    print_page()
    build()
    print(TARGET)
