"""The chapters as a reader sees them: how long, what is cut, where one is, and on paper.

Imports tests.house.chapter_rules, tests.house.page_rules, tests.site.conftest's browser.
Must not import gatelib.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.house.chapter_rules import CHAPTERS
from tests.house.page_rules import COLUMNS

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
SCREEN, SCREENS, PHONE = 1000, 25, 390
FOLDED = "details.hide, .solution, .exercise"

HEIGHT = "document.querySelector('article.bd-article').getBoundingClientRect().height"
PICTURE = """(() => {
  const shown = document.querySelector("article :is(figure img, figure svg, .circuit svg)");
  return shown ? shown.getBoundingClientRect().bottom + scrollY : Infinity;
})()"""
CUT_CODE = """([columns, folded]) => [...document.querySelectorAll("article .cell_input pre")]
  .filter((box) => !box.closest(folded) && box.scrollWidth > box.clientWidth + 1)
  .map((box) => box.textContent.split("\\n").reduce((a, b) => (a.length > b.length ? a : b)))
  .filter((line) => line.length <= columns)"""
ORPHANS = """[...document.querySelectorAll("article .kept")].filter((kept) => {
  const box = [...kept.querySelectorAll(".katex-html > .base")].at(-1)?.getBoundingClientRect();
  const last = document.createRange();
  last.selectNodeContents(kept.lastChild);
  const mark = last.getBoundingClientRect();
  return box && kept.lastChild.data && (mark.top >= box.bottom || mark.right <= box.left);
}).map((kept) => kept.textContent)"""
UNMARKED = """[...document.querySelectorAll("article *")]
  .filter((box) => box.scrollWidth > box.clientWidth + 1 && box.clientWidth)
  .filter((box) => ["auto", "scroll"].includes(getComputedStyle(box).overflowX))
  .filter((box) => !(box.dataset.more === "right" && getComputedStyle(box).maskImage !== "none"))
  .map((box) => `${box.className}: ${box.textContent.slice(0, 60)}`)"""


def visit(tab: Any, address: str) -> None:
    """Open a page and wait until all of it is laid out, however busy the machine."""
    tab.goto(address, wait_until="load", timeout=120000)
    tab.wait_for_function("document.readyState === 'complete' && document.querySelector('footer')")
    tab.evaluate("document.fonts.ready.then(() => null)")


def measured(tab: Any, address: str) -> dict[str, Any]:
    """What the tests ask of one chapter, at a desk and on a phone."""
    tab.set_viewport_size({"width": 1400, "height": SCREEN})
    visit(tab, address)
    found = {"height": tab.evaluate(HEIGHT), "picture": tab.evaluate(PICTURE)}
    found["cut"] = tab.evaluate(CUT_CODE, [COLUMNS, FOLDED])
    tab.set_viewport_size({"width": PHONE, "height": SCREEN})
    tab.wait_for_timeout(300)
    return found | {"orphans": tab.evaluate(ORPHANS), "unmarked": tab.evaluate(UNMARKED)}


@pytest.fixture(scope="module")
def chapters(browser: Any, host: str) -> dict[str, dict[str, Any]]:
    """Every chapter, measured once."""
    tab = browser.new_context(color_scheme="light").new_page()
    return {p.stem: measured(tab, f"{host}chapters/{p.stem}.html") for p in CHAPTERS}


def test_a_chapter_is_at_most_25_screens_long(
    chapters: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    screens = {stem: round(found["height"] / SCREEN, 1) for stem, found in chapters.items()}
    with capsys.disabled():
        print(f"\nscreens of {SCREEN} px at 1400 px, folds shut: {screens}")
    assert {stem: found for stem, found in screens.items() if found > SCREENS} == {}


def test_the_picture_of_a_chapter_is_on_its_first_screen(
    chapters: dict[str, dict[str, Any]],
) -> None:
    below = {stem: found["picture"] for stem, found in chapters.items()}
    assert {stem: bottom for stem, bottom in below.items() if bottom > SCREEN} == {}


def test_code_of_88_columns_is_not_cut_at_a_desk(chapters: dict[str, dict[str, Any]]) -> None:
    assert {stem: found["cut"] for stem, found in chapters.items() if found["cut"]} == {}


def test_a_comma_stays_with_its_formula(chapters: dict[str, dict[str, Any]]) -> None:
    assert {s: found["orphans"] for s, found in chapters.items() if found["orphans"]} == {}


def test_what_is_cut_on_a_phone_fades_where_it_goes_on(chapters: dict[str, dict[str, Any]]) -> None:
    assert {s: found["unmarked"] for s, found in chapters.items() if found["unmarked"]} == {}


def test_what_is_hidden_from_a_screen_reader_takes_no_focus(page: Any, host: str) -> None:
    page.set_viewport_size({"width": PHONE, "height": SCREEN})
    visit(page, host + "chapters/04_highway.html")  # a formula wider than a phone
    page.wait_for_function("document.querySelector('.katex-display[data-more]')", timeout=20000)
    assert page.locator("[aria-hidden] [tabindex='0'], [aria-hidden][tabindex='0']").count() == 0


# ---- one chapter, in more detail ------------------------------------------------------------


@pytest.fixture
def page(tab: Any, host: str) -> Any:
    """Chapter 6 at a desk."""
    tab.set_viewport_size({"width": 1400, "height": SCREEN})
    visit(tab, host + "chapters/06_lstm.html")
    return tab


def test_a_line_of_88_columns_fits_and_one_of_100_says_that_it_goes_on(page: Any) -> None:
    def shown(columns: int) -> str | None:
        page.evaluate(
            f"document.querySelector('article .cell_input pre').textContent = '{'x' * columns}'"
        )
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.evaluate("dispatchEvent(new Event('resize'))")
        return page.evaluate(
            "document.querySelector('article .cell_input pre').dataset.more ?? null"
        )

    assert (shown(COLUMNS), shown(100)) == (None, "right")


def test_what_scrolls_says_on_which_side_there_is_more(page: Any) -> None:
    box = "document.querySelector('article .cell_input pre')"
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(f"{box}.textContent = '{'x' * 300}'; dispatchEvent(new Event('resize'))")
    for place, more in ((0, "right"), (100, "left right"), (9999, "left")):
        page.evaluate(f"{box}.scrollLeft = {place}")
        page.wait_for_function(f"({box}.dataset.more ?? '') === '{more}'", timeout=20000)


def test_the_list_of_contents_shows_where_the_reader_is(page: Any) -> None:
    current = "document.querySelector('#pst-page-toc-nav a[aria-current]')?.hash ?? ''"
    for move, place in (
        ("document.getElementById('experiments').scrollIntoView()", "#experiments"),
        ("location.hash = '#what-breaks'", "#what-breaks"),
        ("document.getElementById('reference').scrollIntoView()", "#reference"),
        ("scrollTo(0, 0)", ""),
    ):
        page.evaluate(move)
        page.wait_for_function(f"({current}) === '{place}'", timeout=20000)
        assert page.locator("#pst-page-toc-nav a.active").count() == (1 if place else 0)


def test_a_fold_of_code_is_one_slim_line_that_says_what_is_inside(page: Any) -> None:
    for summary in page.locator("div.cell details.hide:not([open]) > summary").all():
        assert summary.bounding_box()["height"] <= 32
        assert re.match(
            r"Imports|Code|Tables?:|(Figure|Table|Output) and its code|Output",
            summary.inner_text().strip(),
        )


MENTION = (
    "<p id=probe>So <span class=glossed><a href='#'>claim A1</a><span class=gloss>"
    "<span class=bracket> (</span>its words<span class=bracket>)</span></span></span>.</p>"
)


def test_a_claims_words_are_there_for_a_pointer_a_keyboard_and_a_finger(page: Any) -> None:
    page.evaluate(
        f"document.querySelector('article h1').insertAdjacentHTML('afterend', `{MENTION}`)"
    )
    gloss = page.locator("#probe .gloss")
    assert not gloss.is_visible()
    page.hover("#probe a")
    gloss.wait_for(state="visible", timeout=20000)
    box, column = gloss.bounding_box(), page.locator("#probe").bounding_box()
    assert box["x"] >= column["x"] and box["width"] <= column["width"] + 1
    page.mouse.move(5, 900)
    gloss.wait_for(state="hidden", timeout=20000)
    page.focus("#probe a")
    gloss.wait_for(state="visible", timeout=20000)
    page.evaluate("document.activeElement.blur()")
    page.set_viewport_size({"width": PHONE, "height": SCREEN})
    gloss.wait_for(state="visible", timeout=20000)
    assert page.inner_text("#probe") == "So claim A1 (its words)."


# ---- on paper -------------------------------------------------------------------------------

SEEN = """(() => {
  const colour = (place, what) => getComputedStyle(document.querySelector(place))[what];
  const light = (text) => text.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 765;
  return {
    ground: light(colour("body", "backgroundColor")), text: light(colour("article p", "color")),
    code: light(colour("article pre", "color")),
    pictures: colour("figure img, .circuit svg", "filter"),
    wraps: colour("article pre", "whiteSpace"),
    shut: document.querySelectorAll("details:not([open]), .toggle-hidden").length,
    theme: document.documentElement.dataset.theme,
  };
})()"""


def test_paper_is_light_and_open_even_if_the_screen_is_dark(page: Any) -> None:
    page.emulate_media(color_scheme="dark")
    visit(page, page.url)
    before = page.evaluate(SEEN)
    assert before["theme"] == "dark" and before["shut"] > 0
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'light'", timeout=20000)
    paper = page.evaluate(SEEN)
    assert paper["ground"] > 0.95 and max(paper["text"], paper["code"]) < 0.3
    assert (paper["pictures"], paper["wraps"], paper["shut"]) == ("none", "pre-wrap", 0)
    page.emulate_media(media="screen", color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'", timeout=20000)
    assert page.evaluate(SEEN) == before


def test_a_printed_chapter_is_short_and_nothing_is_cut(page: Any, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 680, "height": SCREEN})  # what A4 leaves between its margins
    page.emulate_media(media="print")
    page.wait_for_function("!document.querySelector('details:not([open])')", timeout=20000)
    wide = """[...document.querySelectorAll("article pre, article .katex-html, article table")]
      .filter((box) => box.getBoundingClientRect().right > innerWidth + 1)
      .map((box) => box.textContent.slice(0, 60))"""
    assert page.evaluate(wide) == []
    printed = page.pdf(path=str(tmp_path / "06.pdf"), prefer_css_page_size=True)
    assert 10 < len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= 36  # 46 before
