"""Search by section: what the index holds, what a reader finds, and where a click lands.

Imports the site's own extension, tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.site.built import ROOT, anchors, soup  # isort: skip

import glossary
import sections

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]
TERMS = {
    name: term for term in glossary.load(ROOT / "book" / "glossary.yml") for name in term.names()
}


def rows(html: Path) -> list[list[Any]]:
    """The index as the page reads it: address, title, where, text, names, kind."""
    text = (html / "_static" / "search" / "sections.js").read_text(encoding="utf8")
    return json.loads(text.removeprefix("globalThis.GATES_SECTIONS = ").rstrip(";\n"))


def search(tab: Any, address: str, query: str) -> Any:
    """The hits that the dialog shows for a query typed on a page."""
    tab.goto(address)
    tab.keyboard.press("Control+k")
    tab.fill("dialog input", query)
    tab.wait_for_selector("dialog a.found")
    return tab.locator("dialog a.found")


def landed(tab: Any) -> tuple[str, str]:
    """The page and the part that the browser shows, once something on it is marked."""
    tab.wait_for_url("**found=**")
    tab.wait_for_selector("mark")
    parts = urlsplit(tab.url)
    return Path(parts.path).stem, unquote(parts.fragment)


# ---- the index ------------------------------------------------------------------------------


def test_every_section_of_a_chapter_is_in_the_index(html: Path) -> None:
    addresses = {row[0] for row in rows(html)}
    for path in (html / "chapters").glob("*.html"):
        for section in soup(path).select("article section section[id]"):
            if section.find(["h2", "h3", "h4"], recursive=False):
                assert f"chapters/{path.name}#{section['id']}" in addresses, section["id"]


def test_an_address_of_the_index_is_a_place_of_the_book(html: Path) -> None:
    for address, *_ in rows(html):
        page, _, anchor = address.partition("#")
        assert not anchor or anchor in anchors(html / page), address


def test_the_text_of_a_hit_is_prose(html: Path) -> None:
    for address, title, _, text, *_ in rows(html):
        tex = re.search(r"\\(frac|sigma|odot|operatorname|mathrm|left|bar)\b", title + text)
        assert title and not tex, address
        assert "import numpy as np" not in text, address


def test_an_object_of_the_api_is_in_with_its_name_and_its_beginning(html: Path) -> None:
    objects = {title: text for _, title, _, text, _, kind in rows(html) if kind == "api"}
    assert len(objects) > 1000
    assert "word" in objects["gatelib.lab.scores.word_f1"]
    assert all(len(text) <= sections.BEGINNING for text in objects.values())
    assert sum(len(text) > 0.9 * sections.BEGINNING for text in objects.values()) > 50


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"\sigma(a)", "σ(a)"),
        (r"f_t \odot c_{t-1}", "f_t ⊙ c_t-1"),
        (r"\log\frac{p}{1-p}", "log p/1-p"),
        (r"t_{1/2}", "t_1/2"),
        (r"\tfrac12\,\bar x", "1/2 x"),
        (r"\sum_{k=1}^{n} \left(a_k + b_k + c_k + d_k\right)", "…"),
    ],
)
def test_a_short_formula_is_readable_in_a_snippet(tex: str, plain: str) -> None:
    assert sections.formula(tex) == plain


HALF_A_PAGE = 500_000
"""Bytes as a host sends them, where a page may weigh a megabyte; a chapter has about 20,000."""


def test_the_index_is_small_and_loads_only_when_somebody_searches(
    tab: Any, host: str, html: Path
) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(host + "chapters/06_lstm.html", wait_until="load")
    assert not [url for url in asked if "search/" in url or "searchindex" in url]
    search(tab, host + "book/index.html", "gate")
    loaded = {Path(urlsplit(url).path) for url in asked if "_static/search/" in url}
    assert {path.name for path in loaded} == {"minisearch.js", "sections.js"}
    sizes = [len(gzip.compress((html / str(p).lstrip("/")).read_bytes(), 6)) for p in loaded]
    assert sum(sizes) < HALF_A_PAGE, sizes


# ---- finding --------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["forget gate", "vanishing gradient", "遗忘门", "carousel"])
def test_a_term_leads_to_the_section_that_defines_it(tab: Any, host: str, query: str) -> None:
    search(tab, host + "chapters/01_gate.html", query).first.click()
    page, part = landed(tab)
    term = TERMS[query]
    section = tab.locator(f"section:has(> h2, > h3):has(#{term.defined.partition(':')[2]})").last
    assert page == term.chapter()
    assert part == section.get_attribute("id") or section.locator(f"#{part}").count()
    marked = " ".join(tab.locator("mark").all_inner_texts()).lower()
    assert any(name.lower() in marked for name in term.names()), marked
    assert tab.evaluate("document.querySelector('mark').getBoundingClientRect().top") < 900


def test_words_that_stand_apart_lead_to_the_section_whose_title_has_one(
    tab: Any, host: str
) -> None:
    search(tab, host + "book/index.html", "GRU reset").first.click()
    page, part = landed(tab)
    assert (page, "reset" in part) == ("07_gru", True)
    assert "reset" in " ".join(tab.locator("mark").all_inner_texts()).lower()


@pytest.mark.parametrize(
    ("query", "address"),
    [
        ("gate vision", "chapters/12_vision.html#"),
        ("mixture experts", "chapters/14_moe.html#"),
        ("recurrent network clipping", "chapters/05_rnn.html#clipping"),
        ("field guide", "book/guide.html"),
        ("sequence to sequence", "chapters/09_seq2seq.html"),
    ],
)
def test_a_page_leads_where_its_title_was_asked_for_and_a_section_of_it_elsewhere(
    tab: Any, host: str, query: str, address: str
) -> None:
    href = search(tab, host + "book/index.html", query).first.get_attribute("href")
    parts = urlsplit(href)
    found = f"{parts.path[1:]}#{parts.fragment}" if parts.fragment else parts.path[1:]
    assert found.startswith(address) if "#" in address else found == address


def test_a_title_ranks_above_a_text_and_a_phrase_above_its_words(tab: Any, host: str) -> None:
    hits = search(tab, host + "book/index.html", "what breaks").all_inner_texts()
    assert all(hit.startswith("What breaks") for hit in hits[:5]), hits
    hits = search(tab, host + "book/index.html", "holds nothing").all_inner_texts()
    assert "holds nothing" in hits[0], hits[0]


def test_a_page_from_a_disk_is_searched_too(tab: Any, html: Path) -> None:
    search(tab, (html / "book" / "index.html").as_uri(), "half-life").first.click()
    page, _ = landed(tab)
    assert page == TERMS["half-life"].chapter()
    assert urlsplit(tab.url).scheme == "file"


def test_what_is_nowhere_is_said_to_be_nowhere(tab: Any, host: str) -> None:
    tab.goto(host + "book/index.html")
    tab.keyboard.press("Control+k")
    tab.fill("dialog input", "xylophone")
    tab.wait_for_selector("dialog .found-count")
    assert "Nothing has “xylophone”" in tab.inner_text("dialog .found-count")


# ---- hands on -------------------------------------------------------------------------------


def test_arrows_choose_enter_opens_and_escape_closes(tab: Any, host: str) -> None:
    hits = search(tab, host + "book/index.html", "forget gate")
    third = hits.nth(2).get_attribute("href")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        tab.keyboard.press(key)
    assert tab.evaluate("document.activeElement.href") == third
    tab.keyboard.press("Escape")
    tab.wait_for_selector("dialog[open]", state="detached")
    tab.keyboard.press("Control+k")
    tab.keyboard.press("Enter")
    assert landed(tab)[0] == TERMS["forget gate"].chapter()


def test_the_marks_are_counted_and_cleared(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/06_lstm.html?found=forget+gate#the-lstm")
    tab.wait_for_selector(".found-bar")
    assert tab.inner_text(".found-bar span").endswith("× “forget gate”")
    tab.keyboard.press("Escape")
    assert not tab.locator("mark, .found-bar").count()
    assert tab.url.endswith("06_lstm.html#the-lstm")
    tab.go_back()
    tab.goto(host + "chapters/06_lstm.html?found=forget+gate#the-lstm")
    tab.click(".found-bar button")
    assert not tab.locator("mark, .found-bar").count()


def test_a_mark_in_a_fold_opens_the_fold(tab: Any, host: str) -> None:
    tab.goto(host + "chapters/06_lstm.html?found=solution#exercises")
    tab.wait_for_selector("mark")
    closed = "all => all.filter(m => m.closest('details:not([open])')).length"
    assert tab.eval_on_selector_all("mark", closed) == 0


def test_the_page_of_results_shows_more_than_the_dialog(tab: Any, host: str) -> None:
    search(tab, host + "book/index.html", "gradient").last.click()
    tab.wait_for_selector("[data-search-results] a.found")
    assert parse_qs(urlsplit(tab.url).query) == {"q": ["gradient"]}
    assert tab.locator("[data-search-results] a.found").count() > 20


def test_the_magnifier_stands_beside_the_first_letter(tab: Any, host: str) -> None:
    search(tab, host + "book/index.html", "forget gate")
    icon = tab.locator("dialog form :is(svg, i)").first.bounding_box()
    left = tab.evaluate(
        "(i => i.getBoundingClientRect().left + parseFloat(getComputedStyle(i).paddingLeft))"
        "(document.querySelector('dialog input'))"
    )
    assert icon["x"] + icon["width"] <= left


def test_without_javascript_the_search_page_says_where_to_look(html: Path) -> None:
    page = soup(html / "search.html")
    assert page.select_one("article form, .bd-search-container form")["action"]
    links = {a["href"] for a in page.select("noscript a[href]")}
    assert links == {"book/glossary.html", "genindex.html"}
