"""The roles that quote a claim or an article, and the ledger's names of chapters, on a small site.

Imports the site's own extension, Sphinx, BeautifulSoup, tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError
from sphinx.testing.util import SphinxTestApp

import tests.site.built  # noqa: F401  (the extension's folder is on the path)

pytestmark = pytest.mark.site

LEDGER = """claims:
- {id: A1, section: "2", chapters: [01_gate, 12_vision], verdicts: {}, claim: "A gate is $a<b$."}
- {id: B2, section: "3", chapters: [01_gate], claim: "It *learns*.",
   verdicts: {01_gate: {verdict: "holds", by: [proof, rates, shut], because: "Yes."}}}
"""
SOURCES = "# Sources\n\nArticle A\n: A survey of *gates*.\n\nArticle B\n: An essay.\n"
ROWS = "```{claims-ledger} A\n```\n\n```{claims-ledger} B\n```\n"
INDEX = "# Book\n\n```{toctree}\nbook/claims\nbook/sources\nchapters/01_gate\n```\n"


CONF = """extensions = ['myst_nb', 'claims']
nb_execution_mode = 'off'
nitpicky = True
myst_enable_extensions = ['dollarmath', 'deflist']
"""


def chapter(prose: str) -> str:
    """A notebook with a title, this prose, and a cell that decides claim B2."""
    text = {"cell_type": "markdown", "metadata": {}, "source": f"# A gate\n\n{prose}\n"}
    code = {"cell_type": "code", "metadata": {"tags": ["decides-B2"]}, "source": "1"}
    metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    cells = [text, code | {"outputs": [], "execution_count": 1}]
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4})


def built(folder: Path, prose: str) -> dict[str, BeautifulSoup]:
    """The pages of a site of one chapter with this prose."""
    files = {
        "conf.py": CONF,
        "index.md": INDEX,
        "book/claims.yml": LEDGER,
        "book/claims.md": f"# Claims\n\n{ROWS}",
        "book/sources.md": SOURCES,
        "chapters/01_gate.ipynb": chapter(prose),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf8")
    app = SphinxTestApp("html", srcdir=folder, warningiserror=True)
    try:
        app.build()
    finally:
        app.cleanup()
    pages = Path(app.outdir).rglob("*.html")
    return {p.stem: BeautifulSoup(p.read_text(encoding="utf8"), "html.parser") for p in pages}


def mention(page: BeautifulSoup) -> tuple[str, str, Any]:
    """The text and the target of a page's first mention, and its gloss."""
    found = page.select_one("span.glossed")
    return found.a.get_text(), found.a["href"], found.select_one("span.gloss")


def test_a_mention_links_to_the_ledger_and_brings_the_claims_words(tmp_path: Path) -> None:
    pages = built(tmp_path, "So says {claim}`A1`.")
    text, target, gloss = mention(pages["01_gate"])
    assert (text, target) == ("claim A1", "../book/claims.html#claim-a1")
    assert gloss.get_text().startswith(" (“A gate is ") and gloss.select_one(".math")
    assert pages["claims"].find(id="claim-a1")


def test_a_mention_may_start_a_sentence(tmp_path: Path) -> None:
    text, _, gloss = mention(built(tmp_path, "{claim}`Claim B2` says so.")["01_gate"])
    assert text == "Claim B2" and gloss.em.get_text() == "learns"


@pytest.mark.parametrize(("role", "shown"), [("A", "article A"), ("Article A", "Article A")])
def test_an_article_is_quoted_likewise(tmp_path: Path, role: str, shown: str) -> None:
    pages = built(tmp_path, f"{{article}}`{role}` tells.")
    text, target, gloss = mention(pages["01_gate"])
    assert (text, target) == (shown, "../book/sources.html#article-a")
    assert gloss.get_text() == " (“A survey of gates.”)"
    assert pages["sources"].find(id="article-a")


@pytest.mark.parametrize("role", ["{claim}`A99`", "{claim}`the first`", "{article}`Z`"])
def test_what_is_not_there_stops_the_build(tmp_path: Path, role: str) -> None:
    with pytest.raises(ExtensionError, match=r"01_gate.*there is no (claim|article)"):
        built(tmp_path, f"So says {role}.")


def test_the_ledger_calls_a_chapter_by_number_and_title(tmp_path: Path) -> None:
    page = built(tmp_path, "Nothing.")["claims"]
    assert (
        page.find(id="claim-b2")
        .get_text()
        .endswith("chapter 1, A gate: the deciding cell, by proof, studies rates and shut\n")
    )
    foot = page.find(id="claim-a1").get_text()
    assert "chapter 1, A gate: not yet decided · chapter 12: not yet written" in foot
