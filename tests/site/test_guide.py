"""The field guide and the numbers that the book counts itself, on a small site and on the book's.

Imports the site's own extension, Sphinx, BeautifulSoup, tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError, SphinxError
from sphinx.testing.util import SphinxTestApp

from tests.site.built import ROOT, soup  # isort: skip

import claims
import counts
import guide
import records

pytestmark = [pytest.mark.site, pytest.mark.timeout(120)]

LINE = {
    "need": "A net that remembers $N$ steps",
    "kind": "start",
    "do": "Set the bias.",
    "because": "It *decides*.",
    "chapter": "06_lstm",
    "link": "one-step",
}


def built(folder: Path, *lines: dict[str, str]) -> BeautifulSoup:
    """The guide of a site of one chapter with these lines."""
    files = {
        "index.md": "# Book\n\n```{toctree}\nbook/guide\nchapters/06_lstm\n```\n",
        "book/guide.yml": json.dumps({"lines": lines}),
        "book/guide.md": "# Guide\n\n```{field-guide}\n```\n",
        "book/glossary.yml": '{"terms": []}',
        "chapters/06_lstm.md": "# The LSTM\n\n(lstm-carousel)=\n## One step\n\nText.\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf8")
    (folder / "conf.py").write_text(
        "extensions = ['myst_nb', 'claims', 'guide', 'sections']\nnitpicky = True\n"
        "nb_execution_mode = 'off'\nmyst_enable_extensions = ['dollarmath']\n"
    )
    app = SphinxTestApp("html", srcdir=folder, warningiserror=True)
    try:
        app.build()
    finally:
        app.cleanup()
    text = (Path(app.outdir) / "book" / "guide.html").read_text(encoding="utf8")
    return BeautifulSoup(text, "html.parser")


def test_lines_of_one_need_stand_together_and_lead_to_the_place(tmp_path: Path) -> None:
    other = LINE | {"need": "Something else", "link": "lstm-carousel"}
    page = built(tmp_path, LINE, other, LINE | {"kind": "beware"})
    titles = [re.sub(r"\W+$", "", h.get_text()) for h in page.select("section section > h2")]
    assert len(titles) == 2 and titles[1] == "Something else"
    first = page.select("section section")[0]
    assert [kind.get_text() for kind in first.select(".guide-kind")] == ["start", "beware"]
    links = [a["href"] for a in page.select(".guide a")]
    assert links[0] == "../chapters/06_lstm.html#one-step"
    assert links[2] in ("../chapters/06_lstm.html#lstm-carousel", links[0])


@pytest.mark.parametrize("link", ["no-such-place", "fig-lstm-nowhere"])
def test_a_line_without_a_place_fails_the_build(tmp_path: Path, link: str) -> None:
    with pytest.raises(SphinxError, match=f"undefined label.*{link}"):
        built(tmp_path, LINE | {"link": link})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "perhaps"}, r"expected a kind of \['use', 'start', 'beware'\], found 'perhaps'"),
        ({"chapter": "LSTM"}, "expected a chapter, found 'LSTM'"),
        ({"colour": "red"}, "expected the fields"),
    ],
)
def test_a_wrong_line_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        guide.check(LINE | change)


# ---- counts ---------------------------------------------------------------------------------


def test_the_verdicts_add_up_to_the_claims() -> None:
    found = counts.of_claims(ROOT)
    verdicts = [found[f"claims {name}"] for name in claims.VERDICTS.values()]
    assert sum(verdicts) == found["claims"] == found["claims decided"] + found["claims undecided"]


def test_every_code_cell_is_counted_once() -> None:
    chapters = records.chapters(ROOT)
    found = counts.of_cells(ROOT, chapters)
    assert found["chapters"] == len(chapters)
    assert found["cells"] == sum(found[f"{kind} cells"] for kind in records.KINDS)
    assert found["cells"] == sum(len(records.code_cells(path)) for path in chapters)


def test_no_number_of_claims_or_cells_is_typed_on_the_first_page() -> None:
    source = (ROOT / "book" / "index.md").read_text(encoding="utf8")
    text = re.sub(r"\{count\}`[^`]*`|```.*?```|`[^`]*`", "", source, flags=re.S)
    typed = r"(\d+|(?:twenty|thirty|forty|fifty)[- ]\w+) (?:claims|chapters|cells|terms)"
    assert re.findall(typed, text) == []


def test_the_first_page_shows_what_was_counted(html: Path) -> None:
    shown = [c.get_text() for c in soup(html / "book" / "index.html").select("span.count")]
    wanted = counts.of_claims(ROOT) | counts.of_cells(ROOT, records.chapters(ROOT))
    for name in ("claims", "claims decided", "claims false", "chapters", "exact cells"):
        assert f"{wanted[name]:,}" in shown, name
