"""The notation page lists every letter that a chapter prints, for that chapter.

Imports tests.site.symbols and tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.site.built import ROOT
from tests.site.symbols import letters, listed, printed

pytestmark = pytest.mark.site

PAGE = (ROOT / "book" / "notation.md").read_text(encoding="utf8")
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"), key=lambda path: path.name)
EVERYWHERE = ("Everywhere", "Operations")


def of_chapter(stem: str) -> set[str]:
    """The letters that the page lists for a chapter, its own and everybody's."""
    tables = listed(PAGE)
    own = [names for head, names in tables.items() if head.startswith(f"Chapter {int(stem[:2])}:")]
    assert len(own) == 1, f"{stem}: {len(own)} tables"
    return own[0].union(*(tables[head] for head in EVERYWHERE))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_letter_of_a_chapter_is_listed(chapter: Path) -> None:
    missing = printed(chapter) - of_chapter(chapter.stem)
    assert missing == set(), f"{chapter.stem} prints {sorted(missing)}: book/notation.md has no row"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_listed_letter_is_one_that_the_chapter_prints(chapter: Path) -> None:
    own = {
        h: n for h, n in listed(PAGE).items() if h.startswith(f"Chapter {int(chapter.stem[:2])}:")
    }
    unused = set().union(*own.values()) - printed(chapter)
    assert unused == set(), f"{chapter.stem} prints no {sorted(unused)}"


def test_a_row_has_a_symbol_a_meaning_and_a_name() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| $") and "·" not in line:
            assert len(re.split(r"(?<!\\)\|", line.strip("|"))) == 3, line


@pytest.mark.parametrize(
    ("formula", "found"),
    [
        (r"f_t \odot c_{t-1}", {"f", "t", "c"}),
        (r"\bar h = \operatorname{diag}(o_t)\,\mathrm{x}", {"h", "o", "t"}),
        (r"\sigma(a) + \frac{\partial \mathcal L}{\partial w}", {r"\sigma", "a", "L", "w"}),
    ],
)
def test_the_letters_of_a_formula_are_read(formula: str, found: set[str]) -> None:
    assert letters(formula) == found
