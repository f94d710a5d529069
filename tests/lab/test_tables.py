"""A table is written as Markdown: text as it is, numbers as the columns say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter

from gatelib.lab import table


def lines(*args, **options):
    return table(*args, **options).data.splitlines()


def test_a_table_has_a_header_sides_and_rows():
    found = lines("net | size", [("plain", 3), ("gated", 4)])
    assert found == ["| net | size |", "|:--|--:|", "| plain | 3 |", "| gated | 4 |"]


def test_the_last_side_and_the_last_form_hold_for_all_columns_that_follow():
    found = lines(("n", "a", "b"), [(10, 2.5, 1 / 3)], align="cr", form="d .1f")
    assert found == ["| n | a | b |", "|:-:|--:|--:|", "| 10 | 2.5 | 0.3 |"]


@pytest.mark.parametrize("half", [0.5, np.float64(0.5), np.array(0.5), torch.tensor(0.5)])
def test_text_is_not_formatted_and_every_kind_of_number_is(half):
    found = lines("a | b | c", [("–", half, np.int64(1200))], form=".2f .2f ,")
    assert found[2] == "| – | 0.50 | 1,200 |"


def test_an_empty_cell_is_one_space_wide():
    assert lines(" | rate", [("", 1)]) == ["| | rate |", "|:--|--:|", "| | 1 |"]


def test_rows_may_be_made_as_they_are_needed():
    assert len(lines("k | square", ((k, k * k) for k in range(5)))) == 7


def test_a_notebook_shows_it_as_markdown():
    data, _ = DisplayFormatter().format(table("a | b", [(1, 2)]))
    assert data["text/markdown"] == "| a | b |\n|:--|--:|\n| 1 | 2 |"


@given(st.lists(st.lists(st.floats() | st.integers(), min_size=3, max_size=3), max_size=5))
def test_every_cell_can_be_read_back(rows):
    found = [line.strip("| ").split(" | ") for line in lines("a | b | c", rows)[2:]]
    assert found == [[str(cell) for cell in row] for row in rows]


def test_what_would_break_a_table_is_named():
    with pytest.raises(ValueError, match="rows: expected 2 cells, got "):
        table("a | b", [(1, 2, 3)])
    with pytest.raises(ValueError, match=r"rows: expected cells without '\|'"):
        table("a | b", [("$|x|$", 2)])
    with pytest.raises(TypeError, match="format"):
        table("a | b", [("none", None)], form=".2f")
    for align in ("lx", ""):
        with pytest.raises(ValueError, match="align: expected letters of l, c and r"):
            table("a | b", [], align=align)
