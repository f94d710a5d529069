"""The glossary: every term has its names, one sentence, and a section that uses it.

Imports the site's own extension, Sphinx, tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sphinx.errors import ExtensionError

from tests.site.built import ROOT, soup  # isort: skip

import glossary

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]
TERMS = glossary.load(ROOT / "book" / "glossary.yml")
ENTRY = {"term": "gate", "chinese": ["门"], "means": "A number.", "defined": "01_gate:a-gate"}


def test_there_are_enough_terms_and_each_chapter_has_some() -> None:
    chapters = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert len(TERMS) >= 50
    assert chapters == {term.chapter() for term in TERMS}


def test_a_term_stands_in_the_section_that_defines_it(html: Path) -> None:
    text = (html / "_static" / "search" / "sections.js").read_text(encoding="utf8")
    rows = json.loads(text.removeprefix("globalThis.GATES_SECTIONS = ").rstrip(";\n"))
    for term in TERMS:
        found = [row for row in rows if row[5] == "chapter" and term.names() in row[4]]
        assert len(found) == 1, f"{term.term}: {term.defined} is {len(found)} sections"
        said = f"{found[0][1]} {found[0][3]}".casefold()
        names = (name.casefold().split() for name in (term.term, *term.also))
        assert any(all(word in said for word in words) for words in names), term.term


def test_the_page_shows_every_name_and_leads_to_the_section(html: Path) -> None:
    page = soup(html / "book" / "glossary.html")
    for term in TERMS:
        title = page.find(id=term.anchor())
        assert all(name in title.get_text() for name in (term.term, *term.chinese))
        assert title.select_one('span[lang="zh"]')
        link = title.find_next_sibling("dd").select("a")[-1]["href"]
        assert link.startswith(f"../chapters/{term.chapter()}.html#")
    assert len(page.select("ul.chinese-names li")) == sum(len(t.chinese) for t in TERMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defined": "a-gate"}, "expected chapter:label, found 'a-gate'"),
        ({"chinese": []}, "at least one Chinese name"),
        ({"means": "A number"}, "expected one sentence"),
        ({"colour": "red"}, "expected the fields"),
    ],
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        glossary.check(ENTRY | change)


def test_a_term_stands_once(tmp_path: Path) -> None:
    (tmp_path / "glossary.yml").write_text(json.dumps({"terms": [ENTRY, ENTRY]}))
    with pytest.raises(ExtensionError, match="'gate' stands there twice"):
        glossary.load(tmp_path / "glossary.yml")
