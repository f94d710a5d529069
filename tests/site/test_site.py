"""The built book as files: its pages, links, claims, and what comes from stored data.

Imports the site's own extension, Sphinx, tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
import yaml

from tests.site.built import ROOT, anchors, pages, soup  # isort: skip

import address
import claims
import records
from sphinx.errors import ExtensionError

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
IDS = {"A": 17, "B": 9, "C": 9, "D": 6, "E": 7}
HERE = Path(__file__).parent
CHAPTERS = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))


def test_the_book_has_its_pages(html: Path) -> None:
    names = {path.relative_to(html).as_posix() for path in pages(html)}
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    extra = ["404", "search", "genindex"]
    assert {f"{name}.html" for name in [*files, *extra]} <= names


def test_a_chapter_keeps_the_number_of_its_file(html: Path) -> None:
    for stem in CHAPTERS:
        title = soup(html / "chapters" / f"{stem}.html").select_one("article h1").get_text()
        assert title.startswith(f"{int(stem[:2])}. ")


def test_katex_set_every_equation(html: Path) -> None:
    wrong = [p.name for p in pages(html) if "katex-error" in p.read_text(encoding="utf8")]
    unset = [p.name for p in pages(html) for m in soup(p).select(".math") if not m.select(".katex")]
    assert wrong == unset == []
    assert soup(html / "book" / "notation.html").select(".katex")


def test_every_picture_says_what_it_shows(html: Path) -> None:
    silent = [
        f"{path.name}: {image.get('src')}"
        for path in pages(html)
        for image in soup(path).select("article img, article svg[role=img]")
        if not (image.get("alt") or image.get("aria-label") or image.find("title"))
    ]
    assert silent == []


def test_every_figure_of_a_chapter_has_a_number_and_a_caption(html: Path) -> None:
    for stem in CHAPTERS:
        for figure in soup(html / "chapters" / f"{stem}.html").select("article figure"):
            assert figure.select_one(".caption-number"), figure
            assert len(figure.select_one(".caption-text").get_text()) > 10


def target(html: Path, page: Path, link: str) -> tuple[Path, str]:
    """The file and the fragment that a link inside the site names."""
    base = "/" + page.relative_to(html).as_posix()
    parts = urlsplit(urljoin(base, link))
    path = html / unquote(parts.path).lstrip("/")
    return (path / "index.html" if path.is_dir() else path), unquote(parts.fragment)


def broken(html: Path, page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere inside the site."""
    for tag in soup(page).select("[href], [src]"):
        link = tag.get("href") or tag.get("src") or ""
        if urlsplit(link).scheme:
            continue
        path, fragment = target(html, page, link)
        if not path.is_file() or (not link and tag.name == "a"):
            yield f"{page.name}: {link!r}"
        elif fragment.startswith(
            "gate="
        ):  # what the workshop is to open: tests/site/test_workshop.py
            continue
        elif fragment and path.suffix == ".html" and fragment not in anchors(path):
            yield f"{page.name}: {link!r} has no such part"


def test_links_inside_the_book_resolve(html: Path) -> None:
    assert [link for page in pages(html) for link in broken(html, page)] == []


def test_without_an_address_nothing_on_a_page_needs_one(html: Path) -> None:
    if address.read(ROOT / "book" / "site.yml")["repository"]:
        pytest.skip("the address is set")
    for page in pages(html):
        text = page.read_text(encoding="utf8")
        assert "mybinder.org" not in text and "colab.research" not in text
        assert not soup(page).select('meta[property="og:url"][content=""], .btn-source-edit-button')
    assert not (html / "sitemap.xml").exists()


@pytest.mark.slow
def test_with_an_address_every_button_names_it(html: Path, tmp_path: Path) -> None:
    """On two pages, made from what the last build has read: reading takes most of a build."""
    site, built = tmp_path / "site.yml", tmp_path / "html"
    site.write_text(
        "repository: https://github.com/someone/gates\nurl: https://gates.test/book\nbranch: main\n"
    )
    doctrees = shutil.copytree(html.parent / ".doctrees", tmp_path / "doctrees")
    chosen = ("chapters/06_lstm.ipynb", "book/claims.md")
    command = [sys.executable, str(HERE / "addressed.py"), *map(str, (site, doctrees, built))]
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    links = {a["href"] for a in soup(built / "chapters" / "06_lstm.html").select("a[href]")}
    wanted = ("mybinder.org/v2/gh/someone/gates/main", "colab.research.google.com", "/issues/new")
    wanted += ("github.com/someone/gates/edit/main/chapters/06_lstm.ipynb",)
    assert [part for part in wanted if not any(part in link for link in links)] == []
    page = soup(built / "chapters" / "06_lstm.html")
    og = page.select_one('meta[property="og:url"]')["content"]
    assert og == "https://gates.test/book/chapters/06_lstm.html"
    assert (
        "<loc>https://gates.test/book/book/claims.html</loc>" in (built / "sitemap.xml").read_text()
    )
    assert soup(built / "404.html").select('link[href^="/book/_static/"]')


@pytest.mark.parametrize(
    "text",
    [
        "repository: ''\nurl: ''\n",
        "repository: 'someone/gates'\nurl: ''\nbranch: main\n",
        "repository: ''\nurl: 'gates.test'\nbranch: main\n",
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yml").write_text(text)
    with pytest.raises(ExtensionError, match=r"site\.yml"):
        address.read(tmp_path / "site.yml")


# ---- the claims -----------------------------------------------------------------------------


def ledger() -> dict[str, claims.Claim]:
    """The claims of the book."""
    return claims.load(ROOT / "book" / "claims.yml")


def tags(stem: str) -> list[str]:
    """The tags of all code cells of a chapter."""
    cells = nbformat.read(ROOT / "chapters" / f"{stem}.ipynb", 4).cells
    return [tag for cell in cells for tag in cell.metadata.get("tags", [])]


def test_the_ledger_holds_every_claim_once() -> None:
    wanted = [f"{letter}{n}" for letter, count in IDS.items() for n in range(1, count + 1)]
    assert list(ledger()) == wanted


def test_a_verdict_has_a_cell_that_decides_it(html: Path) -> None:
    for claim in ledger().values():
        for chapter in claim.verdicts:
            assert chapter in CHAPTERS, f"{claim.id}: {chapter} does not exist"
            assert tags(chapter).count(f"decides-{claim.id}") == 1, claim.id
            page = soup(html / "chapters" / f"{chapter}.html")
            assert page.find(id=f"decides-{claim.id.lower()}"), claim.id


def test_a_deciding_cell_has_a_verdict() -> None:
    for stem in CHAPTERS:
        for name in (match[1] for match in map(claims.TAG.fullmatch, tags(stem)) if match):
            assert stem in ledger()[name].verdicts, (
                f"{stem} decides {name}, the ledger does not say"
            )


def test_a_finished_chapter_shows_a_card_for_each_of_its_claims(html: Path) -> None:
    for claim in ledger().values():
        for stem in set(claim.chapters) & set(CHAPTERS):
            page = soup(html / "chapters" / f"{stem}.html")
            assert page.find(id=f"verdict-{claim.id.lower()}"), f"{stem} has no card for {claim.id}"


def test_the_ledger_links_to_the_cells(html: Path) -> None:
    page = soup(html / "book" / "claims.html")
    for claim in ledger().values():
        row = page.find(id=f"claim-{claim.id.lower()}")
        links = {a["href"] for a in row.select("a[href]")}
        wanted = {f"../chapters/{c}.html#decides-{claim.id.lower()}" for c in claim.verdicts}
        assert wanted <= links


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"verdicts": {"06_lstm": {"verdict": "maybe", "by": ["proof"], "because": "x"}}},
            "unknown verdict 'maybe'",
        ),
        (
            {"verdicts": {"06_lstm": {"verdict": "holds", "because": "x"}}},
            "verdict, by and because",
        ),
        (
            {"verdicts": {"06_lstm": {"verdict": "holds", "by": [], "because": "x"}}},
            "a list under by",
        ),
        (
            {"verdicts": {"01_gate": {"verdict": "holds", "by": ["proof"], "because": "x"}}},
            "not one of its chapters",
        ),
        ({"colour": "red"}, "expected the fields"),
    ],
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], message: str) -> None:
    entry = {"id": "A8", "section": "3", "claim": "c", "chapters": ["06_lstm"], "verdicts": {}}
    with pytest.raises(ExtensionError, match=message):
        claims.check(entry | change)


def test_two_chapters_that_differ_make_a_claim_hold_only_if() -> None:
    verdicts = {c: {"verdict": v, "because": ""} for c, v in (("a", "false"), ("b", "holds"))}
    assert claims.Claim("A9", "", "", ("a", "b"), verdicts).status() == "holds-if"
    assert claims.Claim("A9", "", "", ("a", "b"), {"a": verdicts["a"]}).status() == "false"
    assert claims.Claim("A9", "", "", ("a", "b"), {}).status() == "undecided"


def test_each_study_that_decided_a_claim_is_stored() -> None:
    named = {
        f"{chapter}-{study}"
        for claim in ledger().values()
        for chapter in claim.verdicts
        for study in claim.studies(chapter)
    }
    stored = {path.stem for path in (ROOT / "chapters" / "studies").glob("*.jsonl")}
    assert len(named) > 30
    assert named <= stored


def named(words: str) -> list[str]:
    """The studies that a verdict names: `(study word)`, `(studies noise and wide)`."""
    found = re.findall(r"\bstud(?:y|ies) ([\w-]+(?:(?:, | and )[\w-]+)*)(?=[).;])", words)
    assert len(found) == len(re.findall(r"\bstud(?:y|ies)\b", words)), words
    return [name for names in found for name in re.split(", | and ", names)]


def test_a_study_that_a_verdict_names_in_its_words_decided_it() -> None:
    seen = 0
    for claim in ledger().values():
        for chapter, found in claim.verdicts.items():
            names = named(found["because"])
            assert set(names) <= set(claim.studies(chapter)), f"{claim.id}, {chapter}"
            seen += len(names)
    assert seen > 5


def test_the_studies_in_the_words_of_a_verdict_are_found() -> None:
    said = "It holds (study word). So (studies noise, wide and far); +0.1 (−1 to 2)."
    assert named(said) == ["word", "noise", "wide", "far"]
    with pytest.raises(AssertionError):
        named("A study of gates shows it.")


def test_a_verdict_with_an_interval_names_the_study_that_it_is_from() -> None:
    interval = re.compile(r"\([−+]?[\d.]+ to [−+]?[\d.]+\)")
    for claim in ledger().values():
        for chapter, found in claim.verdicts.items():
            if interval.search(found["because"]):
                assert claim.studies(chapter), f"{claim.id}, {chapter}"


# ---- pages made from stored data ------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "page"), [(records.AGREEMENT, "agreement"), (records.PASSPORT, "passports")]
)
def test_stored_data_reach_their_page(html: Path, media: str, page: str) -> None:
    text = soup(html / "book" / f"{page}.html").select_one("article").get_text()
    names = [d["name"] for p in records.chapters(ROOT) for d in records.stored(p, media)]
    assert [name for name in names if name not in text] == []


def test_the_status_page_counts_every_cell(html: Path) -> None:
    rows = soup(html / "book" / "status.html").select_one("table").select("tbody tr")
    for path, row in zip(records.chapters(ROOT), rows, strict=True):
        counts = [int(cell.get_text()) for cell in row.select("td")[1:4]]
        assert sum(counts) == len(records.code_cells(path))
