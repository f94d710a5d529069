"""The pages of the library, of agreement and of passports, as they were built.

Imports gatelib.functions for the names that a gate may use, the site's own extension, and
tests.site.built. Must not import torch.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gatelib.functions import FUNCTIONS

from tests.site.built import ROOT, soup  # isort: skip

import library
import records

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]
FLOORS = sorted(path.stem for path in (ROOT / "book" / "api").glob("*.md"))
RAW = re.compile(r":(param|type|raises|returns|rtype)\b|\bAlias for field number")


def described(page: Any) -> list[tuple[str, str]]:
    """Each name on a page of the library, with its description."""
    names = page.select("dl.py > dt")
    return [(one.get_text(" ", strip=True), description(one)) for one in names]


def description(name: Any) -> str:
    """What stands below a name; several names may share it."""
    return name.find_next_sibling("dd").get_text(" ", strip=True)


@pytest.mark.parametrize("floor", FLOORS)
def test_every_name_is_described_in_words(html: Path, floor: str) -> None:
    found = described(soup(html / "book" / "api" / f"{floor}.html"))
    assert found
    assert [name for name, text in found if not text] == []
    assert [name for name, text in found if RAW.search(text)] == []


@pytest.mark.parametrize("floor", FLOORS)
def test_no_description_is_repeated_down_a_page(html: Path, floor: str) -> None:
    counts = Counter(text for _, text in described(soup(html / "book" / "api" / f"{floor}.html")))
    assert [text for text, count in counts.items() if count > 5] == []


def test_the_tables_hold_every_function_with_its_derivative(html: Path) -> None:
    rows = soup(html / "book" / "api" / "language.html").select(".functions tbody tr")
    calls = {row.td.get_text(strip=True).partition("(")[0]: row for row in rows}
    assert set(calls) == set(FUNCTIONS)
    assert all(row.select(".katex") and row.select("td")[1].get_text(strip=True) for row in rows)
    assert "all but Triton" in calls["softmax"].get_text()


def test_what_is_refused_stands_beside_its_message(html: Path) -> None:
    rows = soup(html / "book" / "api" / "language.html").select(".refused tbody tr")
    assert len(rows) > 10
    assert all(len(row.select("td")[1].get_text(strip=True)) > 15 for row in rows)


def test_an_old_address_of_a_module_leads_to_its_page(html: Path) -> None:
    for module, page in library.places(ROOT).items():
        assert soup(html / "book" / "api" / f"{page}.html").find(id=f"module-{module}"), module
        assert f'"{module}": "{page}"' in (html / "book" / "api.html").read_text(encoding="utf8")


TABLES = {"agreement": records.AGREEMENT, "passports": records.PASSPORT}


@pytest.mark.parametrize("name", TABLES)
def test_a_gate_is_one_row_that_leads_to_its_fold(html: Path, name: str) -> None:
    page = soup(html / "book" / f"{name}.html")
    data = [d for p in records.chapters(ROOT) for d in records.stored(p, TABLES[name])]
    rows = page.select(".gates-rows tbody tr")
    assert len(rows) == len(data)
    for row, one in zip(rows, data, strict=True):
        link, chapter = row.td.select("a")[:2]
        assert one["name"] == link.get_text() and "chapter" in chapter.get_text()
        fold = page.find(id=link["href"].removeprefix("#")).find_parent("details")
        assert fold.select("table") and not fold.has_attr("open")


def test_a_passport_has_words_and_units(html: Path) -> None:
    page = soup(html / "book" / "passports.html")
    rows = [[td.get_text(strip=True) for td in tr.select("td")] for tr in page.select("details tr")]
    names = {row[0] for row in rows if row}
    assert not [name for name in names if "_" in name.partition(", ")[0]]
    assert {row[2] for row in rows if row} >= {"bytes", "FLOPs", "steps"}


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        (["≤ 1e-12", "≤ 1e-12"], "≤ 10⁻¹²"),
        (["≤ 1e-12", "≤ 1e-05", "≤ 1e-08"], "≤ 10⁻⁵"),
        (["≤ 1e-01", "> 1e-01"], "> 10⁻¹"),
        (["> 1e-01", "not finite"], "not finite"),
    ],
)
def test_the_largest_difference_is_the_weakest_bound(bounds: list[str], says: str) -> None:
    assert records.largest(bounds) == says


def test_outputs_and_gradients_are_counted_apart() -> None:
    assert records.compared(["y", "d_x", "d_1.0.W"]) == "1 output, 2 gradients"
    assert records.compared(["sgd", "adam"]) == "2 outputs"


@pytest.mark.parametrize("name", [*(f"api/{floor}" for floor in FLOORS), *TABLES])
def test_nothing_is_cut_at_the_right(tab: Any, host: str, name: str) -> None:
    """On a phone, and once the window is as wide as a desk's."""
    cut = """[...document.querySelectorAll("dt.sig, .gates-rows table, details[open] table")]
        .filter((e) => e.scrollWidth > e.parentElement.clientWidth + 1).map((e) => e.textContent)"""
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.goto(f"{host}book/{name}.html", wait_until="domcontentloaded")
    for width in (390, 1400):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    for width in (1400, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate(cut) == []


def test_a_row_opens_its_fold_and_an_old_anchor_finds_its_page(tab: Any, host: str) -> None:
    tab.goto(f"{host}book/passports.html", wait_until="domcontentloaded")
    tab.click(".gates-rows tbody tr:nth-child(2) a >> nth=0")
    assert tab.locator("details[open] table").is_visible()
    tab.goto(f"{host}book/api.html#gatelib.nn.recurrent.Recurrent")
    tab.wait_for_url("**/book/api/nn.html#gatelib.nn.recurrent.Recurrent")
