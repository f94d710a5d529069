"""A film stands in its page, so that it hears what the page is asked for: little motion, or paper.

Imports pytest, tests.site.built; a browser through the fixtures.
Must not import gatelib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.site.built import soup

pytestmark = pytest.mark.site

PAGE = "chapters/12_vision.html"
PLACE = """() => {
  const marks = [...document.querySelectorAll('.film .mark')];
  return marks.map((mark) => mark.getBoundingClientRect().left);
}"""
SECOND = 1000


def test_a_film_stands_in_the_page_with_its_description(html: Path) -> None:
    films = soup(html / PAGE).select(".film > svg")
    assert films
    for drawn in films:
        assert drawn["id"].startswith("film-") and len(str(drawn["aria-label"])) > 20


def test_no_two_things_on_a_page_with_films_share_a_name(html: Path) -> None:
    names = [str(tag["id"]) for tag in soup(html / PAGE).select(".film [id]")]
    assert len(names) == len(set(names))


def moves(tab: Any, **wish: str) -> bool:
    """Does a film move within a second, where this is asked for?"""
    tab.emulate_media(**wish)
    before = tab.evaluate(PLACE)
    tab.wait_for_timeout(SECOND)
    return bool(tab.evaluate(PLACE) != before)


def test_a_film_moves_but_for_readers_who_want_little_motion_and_on_paper(
    tab: Any, host: str
) -> None:
    tab.goto(host + PAGE)
    assert moves(tab, reduced_motion="no-preference", media="screen")
    assert not moves(tab, reduced_motion="reduce", media="screen")
    assert not moves(tab, reduced_motion="no-preference", media="print")
