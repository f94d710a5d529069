"""A film is the same bytes each time, holds every frame, and moves without a program.

Imports pytest, NumPy, Pillow, gatelib.lab.
"""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gatelib.lab import film

FRAMES = np.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5)


def sheets(svg: str) -> list[np.ndarray]:
    """The pictures in a film, as indices into their palette."""
    found = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in found]


def test_every_frame_stands_in_the_strip_once() -> None:
    (sheet,) = sheets(film({"a film": FRAMES}).svg)
    expected = np.rint(np.concatenate(list(FRAMES), 1) * 255)
    assert np.array_equal(sheet, expected)


def test_the_same_frames_are_the_same_bytes_and_others_have_names_of_their_own() -> None:
    first, again = film({"a": FRAMES}), film({"a": FRAMES.copy()})
    assert first.svg == again.svg == first._repr_svg_()
    other = film({"a": FRAMES / 2})
    names = [re.search(r'id="(film-\w+)"', each.svg) for each in (first, other)]
    assert names[0] and names[1] and names[0][1] != names[1][1]


def test_a_film_is_well_formed_whatever_its_title_says_and_has_no_program() -> None:
    drawn = film({"x < y & z": FRAMES, "second": FRAMES}, hidden=1)
    root = ElementTree.fromstring(drawn.svg)
    assert [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")] == [*drawn.rows]
    assert "script" not in drawn.svg and "http" not in drawn.svg.replace("http://www.w3.org", "")


def test_nothing_moves_in_print_or_where_little_motion_is_asked_for() -> None:
    svg = film({"a": FRAMES}).svg
    for wish in ("@media print", "@media (prefers-reduced-motion:reduce)"):
        assert re.search(re.escape(wish) + r"\{[^@]*\.play[^@]*\.mark\{animation:none\}\}", svg)


def test_every_rule_of_a_film_is_of_that_film_alone() -> None:
    svg = film({"a": FRAMES}).svg
    style = re.search(r"<style>(.*)</style>", svg, re.S)
    assert style
    rules = [line for line in style[1].splitlines() if not line.startswith("@keyframes")]
    assert all("#film-" in line for line in rules)


def test_signed_values_lie_around_the_middle_of_the_palette_and_nan_is_blank() -> None:
    (sheet,) = sheets(film({"a": np.array([[[-1.0, 0.0, 1.0, 9.0]]])}, signed=True).svg)
    assert sheet.tolist() == [[0, 128, 255, 255]]
    (sheet,) = sheets(film({"a": np.array([[[np.nan, 1.0]]])}).svg)
    assert sheet.tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ({}, {}, "rows"),
        ({"a": FRAMES, "b": FRAMES[:2]}, {}, "one shape"),
        ({"a": FRAMES[0]}, {}, "height, width"),
        ({"a": FRAMES}, {"limit": 0.0}, "limit"),
        ({"a": FRAMES}, {"hidden": 3}, "hidden"),
    ],
)
def test_what_is_no_film_is_refused_by_name(rows, options, said) -> None:
    with pytest.raises(ValueError, match=said):
        film(rows, **options)
