"""The explorers of the chapters: figures that stand without a script, and move with one.

Imports pytest, tests.site.built, tests.site.conftest's browser, and the paths of tools.vendor.
Must not import gatelib.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.site.built import HTML, ROOT, pages, soup  # isort: skip

import vendor

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
AXE = vendor.VENDOR / "test" / "axe.min.js"
WIDTHS = (320, 390, 768)
PATIENCE = 120_000  # ms, however busy the machine
CHAPTERS = sorted(
    path.stem
    for path in (ROOT / "chapters").glob("*.ipynb")
    if "```{explorer}" in path.read_text(encoding="utf8")
)
PAGES = [f"chapters/{stem}.html" for stem in CHAPTERS]


# ---- without a browser --------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_an_explorer_is_a_figure_with_a_number_a_caption_and_a_picture(
    html: Path, page: str
) -> None:
    figures = soup(html / page).select("figure.explorer")
    assert figures
    for figure in figures:
        caption = figure.select_one("figcaption")
        assert caption and re.match(r"\s*Fig\. \d+\.\d+", caption.get_text())
        assert len(str(figure.select_one("svg[role=img]")["aria-label"])) > 40
        assert len(figure.select_one(".explorer-reading").get_text()) > 20
        assert figure.select_one(".explorer-controls").has_attr("hidden")
    names = {f"#{figure['id']}" for figure in figures}
    links = [link for link in soup(html / page).select("a.reference") if link["href"] in names]
    assert any(re.match(r"Fig\. \d", link.get_text()) for link in links)


def test_only_pages_with_an_explorer_load_its_scripts_and_its_style(html: Path) -> None:
    for page in pages(html):
        text = page.read_text(encoding="utf8")
        has = 'class="explorer' in text or "explorer-picture" in text
        assert ("explorer.js" in text, "explorer.css" in text) == (has, has), page


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_script_holds_its_gates_as_functions(html: Path, page: str) -> None:
    text = (html / "_static" / "explorers" / Path(page).with_suffix(".js")).read_text("utf8")
    figures = soup(html / page).select("figure.explorer")
    assert text.count("GatesExplorer.add(") == len(figures)
    assert "eval(" not in text and "new Function" not in text


# ---- with a browser -----------------------------------------------------------------------------

READ = """[...document.querySelectorAll('figure.explorer')].map((figure) => [
  figure.id, figure.querySelector('svg').outerHTML,
  figure.querySelector('.explorer-reading').innerHTML])"""
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
SLOPES = """(() => {
  const found = [];
  const near = (gate, given, output, input, by) =>
    GatesViews.forward(gate, { ...given, [input]: given[input] + by })[output];
  for (const definition of GatesExplorer.definitions.values()) {
    for (const gate of definition.gates.filter((one) => one.elementwise)) {
      const given = Object.fromEntries(gate.inputs.map((name, k) => [name, 0.4 + 0.13 * k]));
      for (const output of gate.outputs) for (const input of gate.inputs) {
        const slope = GatesViews.backward(gate, given, { [output]: 1 })[input];
        const by = 1e-5, at = (step) => near(gate, given, output, input, step);
        const both = at(by) - at(-by);
        found.push(Math.abs(slope - both / (2 * by)) / Math.max(1, Math.abs(slope)));
      }
    }
  }
  return Math.max(0, ...found);
})()"""

# Axe reads a whole page before it looks at a part of one, and a chapter has ten thousand parts.
ALONE = """(() => {
  const figures = document.querySelectorAll('figure.explorer');
  const article = document.querySelector('article.bd-article');
  article.replaceChildren(...figures);
  document.querySelectorAll('header, footer, nav, aside').forEach((part) => part.remove());
  document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>');
})()"""


class Visit:
    """What a browser met on one page with explorers."""

    def __init__(self, browser: Any, address: str, local: tuple[str, ...]) -> None:
        context = browser.new_context(color_scheme="light", viewport={"width": 1400, "height": 900})
        self.tab = context.new_page()
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.tab.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", lambda r: r.url.startswith(local) or self.foreign.append(r.url))
        self.tab.goto(address, wait_until="load", timeout=PATIENCE)
        self.tab.evaluate("document.fonts.ready.then(() => null)")
        self.start = self.read()
        self.moved, self.restored = self.by_keyboard()
        self.slopes = self.tab.evaluate(SLOPES)
        self.widths = [self.width_at(width) for width in WIDTHS]
        self.met = [*self.errors, *self.foreign]  # before axe, which asks for styles again
        self.tab.evaluate(ALONE)
        self.tab.add_script_tag(path=str(AXE))
        self.axe = [found for mode in ("light", "dark") for found in self.problems(mode)]
        context.close()

    def read(self) -> list[list[str]]:
        """Every explorer's picture and reading, once they stand still."""
        self.tab.evaluate(FRAMES)
        found: list[list[str]] = self.tab.evaluate(READ)
        return found

    def by_keyboard(self) -> tuple[list[list[str]], list[list[str]]]:
        """What is read after the first slider of each has moved, and after Reset."""
        figures = self.tab.locator("figure.explorer").all()
        for figure in figures:
            figure.locator("input[type=range]:visible").first.focus()
            for key in ("PageUp", "ArrowRight"):
                self.tab.keyboard.press(key)
        moved = self.read()
        for figure in figures:
            figure.get_by_role("button", name="Reset").focus()
            self.tab.keyboard.press("Enter")
        return moved, self.read()

    def problems(self, mode: str) -> list[str]:
        """Axe's serious findings inside the explorers."""
        self.tab.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
        self.tab.evaluate(FRAMES)
        asked = json.dumps({"resultTypes": ["violations"]})
        found = self.tab.evaluate(f"axe.run('figure.explorer', {asked})")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        return [
            f"{mode}: {one['id']}: {[n['target'] for n in one['nodes'][:3]]}" for one in serious
        ]

    def width_at(self, width: int) -> int:
        """How wide the page gets, and every explorer, on a screen of a width."""
        self.tab.set_viewport_size({"width": width, "height": 800})
        self.tab.wait_for_timeout(150)
        inner = """[...document.querySelectorAll('figure.explorer, figure.explorer *')]
          .filter((part) => !part.closest('.katex-mathml') && !part.parentElement.closest('svg'))
          .map((part) => part.getBoundingClientRect().right)"""
        whole = "document.documentElement.scrollWidth"
        return int(self.tab.evaluate(f"Math.max({whole}, ...{inner})"))


@pytest.fixture(scope="module")
def visits(browser: Any, host: str, html: Path) -> dict[str, Visit]:
    """Every page with an explorer, visited once; every second one from a folder."""
    local, found = (host, HTML.as_uri(), "data:", "blob:"), {}
    for number, page in enumerate(PAGES):
        found[page] = Visit(browser, (f"{HTML.as_uri()}/" if number % 2 else host) + page, local)
    return found


def test_no_page_logs_an_error_or_asks_another_host(visits: dict[str, Visit]) -> None:
    assert {page: visit.met for page, visit in visits.items() if visit.met} == {}


def test_a_slider_moves_picture_and_reading_by_keyboard(visits: dict[str, Visit]) -> None:
    for visit in visits.values():
        for before, after in zip(visit.start, visit.moved, strict=True):
            assert before[0] == after[0]
            assert before[1] != after[1] and before[2] != after[2], before[0]


def test_reset_restores_the_picture_of_the_book(visits: dict[str, Visit]) -> None:
    for visit in visits.values():
        assert visit.start == visit.restored


def test_the_slope_of_every_gate_is_the_quotient_of_differences(visits: dict[str, Visit]) -> None:
    assert max(visit.slopes for visit in visits.values()) < 1e-9


def test_axe_finds_nothing_serious_in_an_explorer(visits: dict[str, Visit]) -> None:
    assert {page: visit.axe for page, visit in visits.items() if visit.axe} == {}


def test_nothing_is_wider_than_the_screen(visits: dict[str, Visit]) -> None:
    assert {page: v.widths for page, v in visits.items() if v.widths != [*WIDTHS]} == {}


# ---- one explorer, in more detail ---------------------------------------------------------------


def slide(figure: Any, label: str, value: float) -> str:
    """Move a slider to a value; return what is then read."""
    control = figure.get_by_label(label, exact=True)
    control.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')) }", value)
    figure.page.evaluate(FRAMES)
    return str(figure.locator(".explorer-reading").inner_text())


def test_the_half_life_is_that_of_the_bias(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/06_lstm.html", wait_until="load", timeout=PATIENCE)
    figure = tab.locator("#fig-lstm-halflife")
    for bias, steps in ((0, "1,"), (1, "2.21,"), (5, "103,")):
        assert f"half-life in steps {steps}" in slide(figure, "bias of the forget gate", bias)


def test_one_sigmoid_gate_moves_alone_and_all_softmax_gates_give_way(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/01_gate.html", wait_until="load", timeout=PATIENCE)
    figure = tab.locator("#fig-gate-compete")

    def read(value: float) -> list[list[str]]:
        halves = slide(figure, "a 1", value).split(";")
        return [re.findall(r"\d[\d.]*", half) for half in halves]

    (low, soft), (high, shared) = read(-1), read(3)
    assert low[1:4] == high[1:4] and low[0] != high[0]
    assert all(a != b for a, b in zip(soft[:4], shared[:4], strict=True))
    assert soft[4] == shared[4] == "1."


def test_one_unit_without_a_second_bias_is_one_cell_in_two_conventions(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/07_gru.html", wait_until="load", timeout=PATIENCE)
    figure = tab.locator("#fig-gru-conventions")

    def read(bias: float) -> list[str]:
        return re.findall(r"\) (−?[\d.]+\d)", slide(figure, "bias b′", bias))

    torch, cho, _chung = read(0)
    assert torch == cho
    torch, cho, _chung = read(0.5)
    assert torch != cho


def test_a_sequence_is_drawn_by_pointer_and_set_by_keyboard(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/07_gru.html", wait_until="load", timeout=PATIENCE)
    figure = tab.locator("#fig-gru-conventions")
    pad = figure.locator(".explorer-pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    tab.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 3)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 3)  # in one leap: none is left out
    tab.mouse.up()
    assert figure.get_by_label("sequence", exact=True).input_value() == "your own"
    for step in (17, 20, 23):
        assert re.search(r"= 1\.\d", slide(figure, "step", step)), step
    figure.get_by_label("x t", exact=True).focus()
    tab.keyboard.press("Home")
    tab.evaluate(FRAMES)
    assert "= −1.2" in figure.locator(".explorer-reading").inner_text()


def test_a_screen_reader_is_told_once_when_the_moving_has_ended(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/06_lstm.html", wait_until="load", timeout=PATIENCE)
    figure = tab.locator("#fig-lstm-halflife")
    said = figure.locator("[aria-live=polite]")
    figure.locator("input[type=range]").focus()
    for _ in range(5):
        tab.keyboard.press("ArrowRight")
        assert said.text_content() == ""
    tab.wait_for_function("document.querySelector('#fig-lstm-halflife .explorer-said').textContent")
    assert said.text_content() == figure.locator(".explorer-reading").text_content()


def test_without_a_script_and_on_paper_figures_stand_and_controls_are_gone(
    browser: Any, tab: Any, host: str
) -> None:
    context = browser.new_context(java_script_enabled=False)
    still = context.new_page()
    for page, paper in ((still, False), (tab, True)):
        page.goto(host + PAGES[0], wait_until="load", timeout=PATIENCE)
        if paper:
            page.emulate_media(media="print")
        for figure in page.locator("figure.explorer").all():
            assert figure.locator("svg").is_visible()
            assert figure.locator("figcaption").is_visible()
            assert figure.locator(".explorer-controls").is_hidden()
            assert figure.get_by_role("button").count() == 0 or paper
            assert figure.locator("button:visible").count() == 0
    context.close()
