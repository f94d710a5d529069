"""The built book in a headless Chromium: silent, accessible, light, and its own in light and dark.

Imports tests.site.built, tests.site.conftest, and the paths of tools.vendor; Playwright in the
threads that visit pages. Must not import gatelib.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.site.built import pages  # isort: skip
from tests.site.conftest import launch  # isort: skip

import vendor

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]


SCRIPTS = Path(__file__).parent
TABS = 2  # pages are visited two at a time, each in a browser of its own
COLOUR = ["color-contrast", "link-in-text-block"]


class Visit:
    """What a browser met on one page."""

    def __init__(self, tab: Any, host: str, name: str) -> None:
        self.name, self.errors, self.requests = name, [], []
        listeners = {
            "console": lambda m: self.errors.append(m.text) if m.type == "error" else None,
            "pageerror": lambda error: self.errors.append(str(error)),
            "request": lambda request: self.requests.append(request.url),
        }
        for event, listener in listeners.items():
            tab.on(event, listener)
        tab.set_viewport_size({"width": 1400, "height": 900})
        tab.goto(host + name, wait_until="load")
        tab.evaluate("document.fonts.ready.then(() => null)")
        self.problems = list(problems(tab, name))
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        self.width = tab.evaluate("document.documentElement.scrollWidth")
        for event, listener in listeners.items():
            tab.remove_listener(event, listener)


def problems(tab: Any, name: str) -> Iterator[str]:
    """Axe's serious and critical findings: what colours have to do with in light and in dark.

    The other rules read the page's structure, which has no colour mode. Colours are looked at
    once for each way that text looks on the page (colour, ground, size, weight, opacity): words
    that look alike have the same contrast, and a chapter has ten thousand.
    """
    tab.add_script_tag(path=str(vendor.VENDOR / "test" / "axe.min.js"))
    tab.add_script_tag(path=str(SCRIPTS / "looks.js"))
    tab.add_style_tag(content="* { transition: none !important }")
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    off = {rule: {"enabled": False} for rule in COLOUR}
    yield from serious(tab, f"{name}", "document", {"rules": off})
    for mode in ("light", "dark"):
        tab.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
        tab.evaluate("chooseLooks()")
        looks = "{include: [['[data-look]']]}"
        yield from serious(tab, f"{name} ({mode})", looks, {"runOnly": COLOUR})


def serious(tab: Any, where: str, context: str, options: dict[str, Any]) -> Iterator[str]:
    """What axe finds serious or critical in a part of the page."""
    asked = json.dumps(options | {"resultTypes": ["violations"]})
    for found in tab.evaluate(f"axe.run({context}, {asked})")["violations"]:
        if found["impact"] in ("serious", "critical"):
            yield f"{where}: {found['id']}: {[n['target'] for n in found['nodes'][:3]]}"


def visit_all(host: str, names: Queue[str]) -> list[Visit]:
    """Visit pages, in a browser of this thread's own, until there are no more."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        tab = launch(playwright).new_context(color_scheme="light").new_page()
        with contextlib.suppress(Empty):
            while True:
                found.append(Visit(tab, host, names.get_nowait()))
    return found


@pytest.fixture(scope="session")
def visits(browser: Any, html: Path, host: str) -> list[Visit]:
    """Every page, visited once, the heaviest first."""
    names: Queue[str] = Queue()
    for page in sorted(pages(html), key=lambda page: -page.stat().st_size):
        names.put(page.relative_to(html).as_posix())
    with ThreadPoolExecutor(TABS) as pool:
        runs = [pool.submit(visit_all, host, names) for _ in range(TABS)]
        found = [visit for run in runs for visit in run.result()]
    assert len(found) == len(pages(html))
    return sorted(found, key=lambda visit: visit.name)


def test_no_page_logs_an_error(visits: list[Visit]) -> None:
    assert [f"{v.name}: {v.errors}" for v in visits if v.errors] == []


def test_no_page_asks_another_host(visits: list[Visit], host: str) -> None:
    local = (host, "data:", "blob:")
    assert {u for v in visits for u in v.requests if not u.startswith(local)} == set()
    assert all(len(v.requests) > 3 for v in visits)


def test_no_page_scrolls_sideways_on_a_phone(visits: list[Visit]) -> None:
    assert [f"{v.name}: {v.width}" for v in visits if v.width > 390] == []


def test_axe_finds_nothing_serious_in_light_or_dark(visits: list[Visit]) -> None:
    assert [problem for v in visits for problem in v.problems] == []


def test_one_faint_word_among_many_is_found(tab: Any, host: str) -> None:
    """One that is faint in light, and one that is faint in dark."""
    tab.goto(host + "book/notation.html")
    colours = {"light": "#bbb", "dark": "#444"}
    for mode, colour in colours.items():
        word = f"<span id=faint-{mode} style='color: {colour}'>faint</span>"
        tab.evaluate(
            f'document.querySelectorAll("article p")[1].insertAdjacentHTML("beforeend", "{word}")'
        )
    found = [problem for problem in problems(tab, "notation") if "faint" in problem]
    assert len(found) == 2, found
    for mode, problem in zip(colours, found, strict=True):
        assert f"({mode}): color-contrast" in problem and f"['#faint-{mode}']" in problem


def test_a_page_weighs_less_than_a_megabyte(visits: list[Visit], html: Path, host: str) -> None:
    def weight(url: str) -> int:
        file = html / unquote(urlsplit(url).path).lstrip("/")
        return len(gzip.compress(file.read_bytes(), 6)) if file.is_file() else 0

    sizes = {v.name: sum(map(weight, set(v.requests))) for v in visits}
    assert {name: size for name, size in sizes.items() if size > 1_000_000} == {}


def test_the_fonts_are_the_books_own(tab: Any, host: str) -> None:
    tab.goto(host + "book/notation.html", wait_until="networkidle")
    loaded = "[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)"
    families = {name.strip('"') for name in tab.evaluate(loaded)}
    assert {"Source Serif 4", "Inter", "JetBrains Mono", "KaTeX_Math"} <= families


def test_a_copy_button_copies_the_code_beside_it(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/01_gate.html", wait_until="networkidle")
    shown = tab.locator("div.highlight:visible", has=tab.locator("button.copybtn"))
    block = shown.first
    block.hover()
    block.locator("button.copybtn").click()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == block.locator("pre").inner_text().strip() != ""


def test_the_theme_button_turns_the_page_dark_and_is_remembered(tab: Any, host: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    tab.goto(host + "book/index.html", wait_until="networkidle")
    light = tab.evaluate(colour)
    for _ in range(3):
        if tab.evaluate("document.documentElement.dataset.theme") != "dark":
            tab.click(".theme-switch-button:visible")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.wait_for_timeout(400)
    dark = tab.evaluate(colour)
    tab.reload(wait_until="networkidle")
    assert light != dark == tab.evaluate(colour)


def test_a_figure_is_readable_in_the_dark(tab: Any, host: str) -> None:
    tab.emulate_media(color_scheme="dark")
    tab.goto(host + "chapters/06_lstm.html", wait_until="networkidle")
    tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    filters = "all => all.map(image => getComputedStyle(image).filter)"
    found = tab.eval_on_selector_all("article figure img", filters)
    assert found and all("invert" in value for value in found)


def test_a_photograph_is_no_negative_in_the_dark(tab: Any, host: str) -> None:
    tab.emulate_media(color_scheme="dark")
    tab.goto(host + "chapters/12_vision.html", wait_until="networkidle")
    tab.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    looks = "all => all.map(image => [getComputedStyle(image).filter, image.className])"
    found = tab.eval_on_selector_all("article figure img", looks)
    assert {shown for shown, of in found if "photograph" in of} == {"none"}
    assert all("invert" in shown for shown, of in found if "photograph" not in of)


def test_a_measured_figure_keeps_its_shape_on_a_phone(tab: Any, host: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(host + "chapters/04_highway.html", wait_until="networkidle")
    ratios = "all => all.map(i => i.width / i.height * i.naturalHeight / i.naturalWidth)"
    found = tab.eval_on_selector_all("figure img[src$='.png']", ratios)
    assert found and all(abs(ratio - 1) < 0.02 for ratio in found), found


def test_an_unknown_address_gets_the_books_own_page(tab: Any, host: str) -> None:
    lost: list[str] = []
    tab.on("response", lambda r: lost.append(r.url) if r.status >= 400 else None)
    tab.goto(host + "no/such/page.html", wait_until="networkidle")
    assert tab.inner_text("article h1") == "This gate is closed"
    assert lost == [host + "no/such/page.html"]
    tab.click("nav.bd-links a >> nth=0")
    assert re.search(r"/chapters/\w+\.html$", tab.url)
