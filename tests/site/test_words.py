"""What the site's extension writes on folds and beside formulas, without a build.

Imports the site's own extension and docutils, tests.site.built. Must not import gatelib.
"""

from __future__ import annotations

import pytest
from docutils import nodes

import tests.site.built  # noqa: F401  # isort: skip  (the extension's folder is on the path)

import folds
import mathematics

pytestmark = pytest.mark.site


@pytest.mark.parametrize(
    ("source", "is_figure", "said"),
    [
        ("import numpy as np\nfrom torch import nn\n\nnn.x = 1", False, "Imports · 4 lines"),
        ("def a():\n    return 1\n\n\nclass B: ...", False, "Code: a and B · 5 lines"),
        ("import x\n\n\ndef f(): ...", False, "Code: f · 4 lines"),
        ("def a(): ...\ndef b(): ...\ndef c(): ...", False, "Code: a, b and c · 3 lines"),
        ("\n".join(f"def {n}(): ..." for n in "abcd"), False, "Code: a, b and 2 more · 4 lines"),
        ("def a(): ...\nplot()", True, "Code of the figure · 2 lines"),
        ("x = 1", False, "Code · 1 line"),
    ],
)
def test_a_fold_of_code_says_what_is_in_it(source: str, is_figure: bool, said: str) -> None:
    assert folds.of_code(source, is_figure) == said


@pytest.mark.parametrize(
    ("html", "is_figure", "said"),
    [
        ("<img>", True, "Figure and its code · 2 lines"),
        ("<table><tr></tr></table>", False, "Table and its code · 2 lines"),
        ("<pre>3</pre>", False, "Output and its code · 2 lines"),
    ],
)
def test_a_fold_of_a_whole_cell_says_first_what_it_shows(
    html: str, is_figure: bool, said: str
) -> None:
    cell = nodes.container(nb_element="cell_code", hide_mode="all")
    if is_figure:
        cell["cell_metadata"] = {"mystnb": {"figure": {"name": "fig"}}}
    code = nodes.container(nb_element="cell_code_source")
    code += nodes.literal_block("", "a = 1\nshow(a)")
    output = nodes.container("", nodes.raw("", html, format="html"))
    output["nb_element"] = "cell_code_output"
    cell += [code, output]
    assert folds.summary(cell) == said


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ("<table><caption>LSTM</caption></table>", "Table: LSTM"),
        ("<caption>RNN</caption><caption>GRU</caption>", "Tables: RNN and GRU"),
        ("<p>3</p>", "Output"),
    ],
)
def test_a_fold_of_output_names_its_tables(html: str, said: str) -> None:
    box = nodes.container("", nodes.raw("", html, format="html"))
    assert folds.of_output(box) == said


@pytest.mark.parametrize(
    ("before", "after", "kept", "left"),
    [
        ("so ", ", and", "M,", " and"),
        ("so (", "), and", "(M),", " and"),
        ("the ", "-th step", "M-th", " step"),
        ("an ", "-dimensional space", "M-dimensional", " space"),
        ("“", ".” End", "“M.”", " End"),
        ("from ", "–", None, None),
        ("is ", " here", None, None),
        ("is ", "(x)", None, None),
    ],
)
def test_a_formula_keeps_what_touches_it(
    before: str, after: str, kept: str | None, left: str | None
) -> None:
    formula = nodes.math("M", "M")
    paragraph = nodes.paragraph("", "", nodes.Text(before), formula, nodes.Text(after))
    mathematics.keep(formula)
    found = [node.astext() for node in paragraph.findall(nodes.inline)]
    assert found == ([kept] if kept else [])
    assert paragraph.astext() == before + "M" + after
    assert left is None or paragraph.children[-1].astext() == left


def test_a_kept_formula_may_break_between_its_boxes_only() -> None:
    box = mathematics.BOX
    html = f"<i>{box}a</span>{box}b</span>{box}c</span></i>"
    assert mathematics.breakable(html) == (
        f"<i>{box}a</span><wbr/>{box}b</span><wbr/>{box}c</span></i>"
    )
    assert mathematics.breakable(f"{box}a</span>") == f"{box}a</span>"
